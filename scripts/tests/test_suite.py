# SPDX-License-Identifier: GPL-2.0
"""What becomes of tests whose virtual machine does not get through all of them."""

import contextlib
import io
import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools" / "testing"))

from harness.collect import chosen  # noqa: E402
from harness.suite import (  # noqa: E402
    Results,
    Run,
    files,
    known_times,
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


class Times(unittest.TestCase):
    """What tests took is kept, and decides the order of the next run."""

    def files(self, times):
        return files(Chosen.FUNCTIONAL, [], times)

    def test_the_longest_comes_first(self):
        usual = self.files({})
        every = {f"{name}::test": {"call": 1} for name in usual}
        last, before = usual[-1], usual[-2]
        times = {**every, f"{last}::a": {"setup": 2, "call": 3}, f"{before}::a": {"call": 4}}
        self.assertEqual(self.files(times), [last, before, *usual[:-2]])

    def test_what_is_not_known_comes_before(self):
        usual = self.files({})
        times = {f"{name}::test": {"call": 1} for name in usual if name != "test_tables.py"}
        self.assertEqual(self.files(times)[0], "test_tables.py")

    def test_others_are_kept(self):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            path = f"{folder}/times"
            self.assertEqual(known_times(path), {})
            for names in (("a", "b"), ("b", "c")):
                results = Results("suite")
                for name in names:
                    results.add(name, "passed", 3, phases={"setup": 1, "call": len(names[0])})
                results.add("d", "failed", 2)
                results.keep_times(path)
            self.assertEqual(known_times(path), {
                **{name: {"setup": 1, "call": 1} for name in "abc"}, "d": {"call": 2},
            })


class Chosen(unittest.TestCase):
    """No machine is booted for a file of which no test is to run."""

    FUNCTIONAL = str(pathlib.Path(__file__).resolve().parents[2] / "tools" / "testing" / "functional")
    NAMES = ["test_module.py", "test_stress.py"]

    def chosen(self, expression, names=NAMES, **settings):
        return chosen(self.FUNCTIONAL, names, expression, settings)

    def test_by_file(self):
        names = files(self.FUNCTIONAL, [], {})
        self.assertEqual(self.chosen("not test_module.py", names), [name for name in names if name != "test_module.py"])

    def test_by_name(self):
        self.assertEqual(self.chosen("test_targets_and_versions"), ["test_module.py"])
        self.assertEqual(self.chosen("no_such_test_at_all"), [])
        self.assertEqual(self.chosen("123"), [])
        self.assertEqual(self.chosen("123", seed=123), ["test_stress.py"])

    def test_single_tests(self):
        names = ["test_module.py::test_parameters", "test_module.py::test_targets_and_versions"]
        self.assertEqual(self.chosen("versions", names), names[1:])

    def test_all_if_it_cannot_be_told(self):
        self.assertEqual(self.chosen("("), self.NAMES)


if __name__ == "__main__":
    unittest.main()
