# SPDX-License-Identifier: GPL-2.0
"""What failed, out of a suite's lines, and why."""

import re

NAMED = re.compile(r"FAILED +[0-9.]+ s  |test .* \.\.\. FAILED$|(?:FAIL|ERROR): ")
MOST = 24


def failures(lines):
    """The tests that failed, each with the beginning and the end of what it said; the last lines if none is named."""
    found = []
    text = None
    last = ""

    def flush():
        nonlocal last
        if last:
            found.append(last)
        last = ""

    for line in lines:
        if NAMED.match(line):
            flush()
            found.append(line)
            text = 0
        elif text is not None and line.startswith("    E ") and text < 3:
            found.append(line)
            text += 1
            last = ""
        elif text is not None and re.match(r"    +[^ ]", line):
            last = line
        elif text is not None and line.strip():
            flush()
            text = None
    flush()
    found = found or [line for line in lines[-4:] if line]
    return [line[:200] for line in found[:MOST]]
