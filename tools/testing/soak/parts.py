# SPDX-License-Identifier: GPL-2.0
"""The parts of the soak: each one a command that takes long and ends with `N passed, N failed`."""

import dataclasses
import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[3]
TESTING = ROOT / "tools" / "testing"


@dataclasses.dataclass
class Part:
    """What runs, and why."""

    name: str
    what: str
    command: list


@dataclasses.dataclass
class Place:
    """What the parts are run with: `scale` times as much of each, from `seed` on."""

    scale: float
    seed: int
    reports: pathlib.Path

    def many(self, number):
        """A number of the usual length, scaled."""
        return max(1, round(number * self.scale))

    def report(self, name):
        """Where the figures of a part are."""
        return str(self.reports / f"{name}.json")


def cargo(*arguments):
    """A call of cargo."""
    return [os.environ.get("CARGO", "cargo"), *arguments]


def parts(place):
    """All parts, in the order in which they run."""
    seed, many = place.seed, place.many

    def crash(name, what, *arguments):
        return Part(name, what, cargo(
            "run", "--release", "--locked", "-p", "dm_thin_crash", "--", *map(str, arguments), "--report", place.report(name)))

    def machines(name, what, *arguments, suite="functional", variant=("um", "check")):
        return Part(name, what, [
            str(TESTING / "soak" / "vm"), *variant, "--", suite, "--results", str(place.reports / "machines" / name),
            "--report", place.report(name), *map(str, arguments)])

    return [
        crash("crash", "states that a loss of power may leave metadata in",
              "--seeds", f"{seed}..{seed + 10 ** 9}", "--states", many(1_000_000)),
        crash("faults", "each read, write, flush and allocation of the libraries fails",
              "--faults", "--seeds", f"{seed}..{seed + many(1000)}"),
        Part("fuzz", "mutated metadata images and operations on them, under AddressSanitizer", [
            str(TESTING / "fuzz" / "run"), "--executions", str(many(10_000_000)), "--jobs", "2", "--seed", str(seed % 2 ** 31),
            "--report", place.report("fuzz")]),
        machines("debug", "all functional tests, with a search for lost memory"),
        machines("cache-1", "all functional tests, with a mapping cache of one page", "--parameter", "mapping_cache_pages=1"),
        machines("cache-0", "all functional tests, without a mapping cache", "--parameter", "mapping_cache_pages=0"),
        machines("c-module", "all functional tests, on the C module", "--impl", "c", "--append", "kmemleak=off"),
        machines("memory", "each allocation of the module fails", "--set", "memory_faults=100000", "--test-timeout", 1800,
                 "test_memory_faults.py"),
        Part("images", "mutated metadata images in pools, under this module and under the C one", [
            str(TESTING / "soak" / "images"), "--count", str(many(2500)), "--seed", str(seed), "--beside",
            "--results", str(place.reports / "machines" / "images"), "--report", place.report("images")]),
        machines("lines", "random tables and messages, to both modules", "--set", f"fuzzed_lines={many(20_000)}",
                 "--set", f"seed={seed}", "--test-timeout", 20_000, "test_fuzzed_input.py"),
        machines("kills", "machines that are killed while they work on a pool",
                 "--kills", many(100), "--seed", seed, suite="power"),
        machines("logs", "power cuts, with the whole stack", "--set", f"power_logs={many(40)}", "--set", f"seed={seed}",
                 "--test-timeout", 900, "test_power.py"),
        machines("cuts", "thinctl, killed before each of its steps", "--set", "cut_step=1", "--test-timeout", 20_000, "test_thinctl_cut.py"),
        machines("disks", "disks that fail in many places and ways", "--set", f"fault_rounds={many(40)}", "--set", f"seed={seed}",
                 "--test-timeout", 900, "test_faults.py"),
        machines("stress", "everything at once", "--set", f"stress_rounds={many(20)}", "--set", "stress_seconds=90",
                 "--set", f"seed={seed}", "--test-timeout", 900, "test_stress.py"),
        Part("model", "the lockless parts and the prison, in more interleavings",
             cargo("test", "--locked", "-p", "dm_thin_model", "--", "--include-ignored")),
        Part("coverage", "how many lines of the libraries and of the module the tests reach", [
            str(TESTING / "soak" / "coverage"), place.report("coverage")]),
        Part("mutants", "faults that are planted on purpose and must be found",
             [str(TESTING / "mutants" / "run"), "--report", place.report("mutants")]),
    ]
