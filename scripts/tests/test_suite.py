# SPDX-License-Identifier: GPL-2.0
"""What becomes of tests whose virtual machine does not get through all of them."""

import contextlib
import io
import json
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools" / "testing"))

from harness.suite import (  # noqa: E402
    Results,
    Run,
)

TESTS = ["one", "two", "three"]


def passed(test):
    return {"event": "result", "test": test, "outcome": "passed", "seconds": 0.1, "text": ""}


def collected(tests):
    return {"event": "collected", "tests": list(tests)}


class Machine:
    """A virtual machine that says what it is told to, and stops."""

    console = "console.log"

    def __init__(self, events):
        self._events = events

    def start(self, config):
        self.tests = config["tests"]

    def running(self):
        return False

    def kill(self):
        pass

    def read(self, name):
        return ""

    def new_lines(self, name):
        return [json.dumps(event) for event in self._events]


class Boots(unittest.TestCase):
    def play(self, *boots):
        """Runs `TESTS` in machines with these events; gives the counts, and the tests that each was given."""
        made = []

        def make(label):
            made.append(Machine(boots[len(made)]))
            return made[-1]

        results = Results("suite")
        with contextlib.redirect_stdout(io.StringIO()):
            run = Run("share", make, {"tests": TESTS}, results, 60, 60)
            while run.step():
                pass
        self.assertEqual(len(made), len(boots))
        return results.outcomes, [machine.tests for machine in made]

    def test_to_the_end(self):
        outcomes, given = self.play([collected(TESTS), *map(passed, TESTS), {"event": "end"}])
        self.assertEqual((outcomes["passed"], outcomes["failed"]), (3, 0))

    def test_machine_that_dies(self):
        outcomes, given = self.play(
            [collected(TESTS), passed("one"), {"event": "start", "test": "two"}],
            [collected(["three"]), passed("three"), {"event": "end"}],
        )
        self.assertEqual((outcomes["passed"], outcomes["failed"]), (2, 1))
        self.assertEqual(given[1], ["three"])

    def test_machine_that_asks_for_another(self):
        outcomes, given = self.play(
            [collected(TESTS), dict(passed("one"), outcome="failed"), {"event": "again"}],
            [collected(["two", "three"]), passed("two"), passed("three"), {"event": "end"}],
        )
        self.assertEqual((outcomes["passed"], outcomes["failed"]), (2, 1))
        self.assertEqual(given[1], ["two", "three"])

    def test_machine_that_asks_for_another_after_the_last_test(self):
        outcomes, _ = self.play([collected(TESTS), *map(passed, TESTS), {"event": "again"}])
        self.assertEqual((outcomes["passed"], outcomes["failed"]), (3, 0))


if __name__ == "__main__":
    unittest.main()
