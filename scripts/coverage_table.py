#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Adds up line counts in lcov's format, and prints those of each file and crate.

Code under tests does not count: folders and files of tests, and modules of tests at the end of a file.
"""

import argparse
import collections
import json
import pathlib
import re
import sys

CRATES = ("persistent_data", "thin_metadata")
TESTS = re.compile(r"(^|/)(tests|examples)/|(^|/)(small_)?tests\.rs$")
# Nothing comes after the module of tests in a file.
TEST_MODULE = re.compile(r"^#\[cfg\((any\()?(test|dm_thin_kunit)\b")


def end_of_code(path):
    """The line at which the module of tests begins, if there is one."""
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        below = lines[number:number + 3]
        if TEST_MODULE.match(line) and any(re.match(r"(pub )?mod \w+ \{", text) for text in below):
            return number
    return len(lines) + 1


def read(files, top, crates):
    """The counts of all lines, by file."""
    counts = collections.defaultdict(lambda: collections.defaultdict(int))
    for name in files:
        current = None
        for line in pathlib.Path(name).read_text().splitlines():
            tag, _, value = line.partition(":")
            if tag == "SF":
                path = pathlib.Path(value)
                path = path if path.is_absolute() else top / path
                current = path.relative_to(top).as_posix() if path.is_relative_to(top) else None
                if current and (not current.startswith(tuple(f"rust/{c}/" for c in crates)) or TESTS.search(current)):
                    current = None
            elif tag == "DA" and current:
                number, count = value.split(",")[:2]
                counts[current][int(number)] += int(count)
    for name, lines in counts.items():
        end = end_of_code(top / name)
        for number in [n for n in lines if n >= end]:
            del lines[number]
    return counts


def figures(lines):
    """How many lines there are, and how many of them were reached."""
    return len(lines), sum(1 for count in lines.values() if count)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--top", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[1])
    parser.add_argument("--report", type=pathlib.Path, help="write the figures there, as JSON")
    parser.add_argument("--crate", action="append", help="instead of the two libraries")
    parser.add_argument("--missing", action="store_true", help="print the lines that were not reached")
    parser.add_argument("lcov", nargs="+")
    args = parser.parse_args()

    crates = args.crate or CRATES
    counts = read(args.lcov, args.top, crates)
    report = {}
    for crate in crates:
        files = {name: lines for name, lines in sorted(counts.items()) if name.startswith(f"rust/{crate}/") and lines}
        rows = {name: figures(lines) for name, lines in files.items()}
        total = tuple(map(sum, zip(*rows.values()))) if rows else (0, 0)
        for name, (lines, reached) in [*rows.items(), (f"{crate}, total", total)]:
            print(f"{name:<52} {reached:>6} of {lines:>6} lines  {100 * reached / max(lines, 1):6.2f} %")
            if args.missing and name in files:
                print("   ", " ".join(str(n) for n, count in sorted(files[name].items()) if not count))
        print()
        report[crate] = {
            "lines": total[0],
            "reached": total[1],
            "percent": round(100 * total[1] / max(total[0], 1), 2),
            "files": {name: {"lines": lines, "reached": reached} for name, (lines, reached) in rows.items()},
        }
    if args.report:
        args.report.write_text(json.dumps(report) + "\n")
    if not all(crate["lines"] for crate in report.values()):
        sys.exit("nothing was counted")


if __name__ == "__main__":
    main()
