# SPDX-License-Identifier: GPL-2.0
"""The parts of the soak: each one a command that takes long and ends with `N passed, N failed`."""

import dataclasses
import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[3]
TESTING = ROOT / "tools" / "testing"


@dataclasses.dataclass
class Part:
    """`command` runs it, in the environment with `env` added."""

    name: str
    what: str
    command: list
    env: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Place:
    """What the parts are run with: `scale` times as much of each, from `seed` on."""

    scale: float
    seed: int
    reports: pathlib.Path
    results: pathlib.Path

    def many(self, number):
        return str(max(1, round(number * self.scale)))

    def report(self, name):
        return str(self.reports / f"{name}.json")


def cargo(package, *arguments):
    return [os.environ.get("CARGO", "cargo"), "test", "--locked", "-p", package, *arguments]


def guest(place, name, suite, *arguments, module="", kernel="UM"):
    """A run of virtual machines; `module` is the variant of the module."""
    return [
        str(TESTING / "soak" / "vm"), kernel, module, suite, "--results", str(place.results / name),
        "--report", place.report(name), *arguments,
    ]


def parts(place):
    """All parts, in the order in which they run."""
    return [
        Part("model", "the lockless parts and the prison, in more interleavings", cargo("dm_thin_model", "--", "--include-ignored")),
        Part("mutants", "faults that are planted on purpose and must be found", [
            str(TESTING / "mutants" / "run"), "--report", place.report("mutants"),
        ]),
    ]
