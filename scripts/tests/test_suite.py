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
    shares,
)

TESTS = ["one", "two", "three"]


def passed(test):
    return {"event": "result", "test": test, "outcome": "passed", "seconds": 0.1, "text": ""}


def collected(tests):
    return {"event": "collected", "tests": list(tests)}


class Machine:
    """A virtual machine that says what it is told to, and stops; `log` is its kernel's."""

    console = "console.log"

    def __init__(self, events, log):
        self._events = events
        self._log = log

    def start(self, config):
        self.tests = config["tests"]

    def running(self):
        return False

    def kill(self):
        pass

    def read(self, name):
        return self._log if name == "dmesg.log" else ""

    def status(self):
        return 0

    def new_lines(self, name):
        return [json.dumps(event) for event in self._events]


class Boots(unittest.TestCase):
    def play(self, *boots, log="[1] dmtest: start one\n"):
        """Runs `TESTS` in machines with these events; gives the counts, and the tests that each was given."""
        made = []
        self.kept = {}

        def make(label):
            made.append(Machine(boots[len(made)], log))
            return made[-1]

        def keep(file, counts, asked):
            self.kept[file] = (counts["passed"], asked)

        results = Results("suite")
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            run = Run("share", make, {"tests": TESTS}, results, 60, 60, keep)
            while run.step():
                pass
        self.assertEqual(len(made), len(boots))
        self.shown = shown.getvalue()
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


class Kept(Boots):
    """Which files count as passed, so that they need not run again."""

    FILES = ["a.py::one", "a.py::two", "b.py::one"]
    TO_THE_END = [
        collected(FILES), passed("a.py::one"), passed("a.py::two"), passed("a.py::leaks"), {"event": "file", "file": "a.py", "asked": ["seed"]},
        passed("b.py::one"), passed("b.py::leaks"), {"event": "file", "file": "b.py", "asked": []}, {"event": "end"},
    ]

    def without(self, number, *instead):
        return [*self.TO_THE_END[:number], *instead, *self.TO_THE_END[number + 1:]]

    def test_all(self):
        self.play(self.TO_THE_END)
        self.assertEqual(self.kept, {"a.py": (3, ["seed"]), "b.py": (2, [])})

    def test_one_that_fails(self):
        for number in (2, 3):
            self.play(self.without(number, dict(self.TO_THE_END[number], outcome="failed")))
            self.assertEqual(list(self.kept), ["b.py"])

    def test_one_without_an_end(self):
        self.play(self.without(4))
        self.assertEqual(list(self.kept), ["b.py"])

    def test_one_that_only_skips(self):
        self.play(self.without(5, dict(self.TO_THE_END[5], outcome="skipped"))[:6] + [{"event": "file", "file": "b.py", "asked": []}, {"event": "end"}])
        self.assertEqual(list(self.kept), ["a.py"])

    def test_none_of_a_machine_that_breaks_off(self):
        self.play(self.TO_THE_END[:5] + [{"event": "again"}], self.TO_THE_END[5:])
        self.assertEqual(self.kept, {})

    def test_none_of_a_machine_whose_kernel_complains(self):
        outcomes, _ = self.play(self.TO_THE_END, log="[1] dmtest: start a.py::two\n[2] WARNING: at somewhere\n[3] dmtest: start b.py::one\n")
        self.assertEqual((outcomes["failed"], self.kept), (1, {}))
        self.assertIn("a.py::two kernel log", self.shown)

    def test_none_of_a_machine_without_a_log(self):
        self.play(self.TO_THE_END, log="")
        self.assertEqual(self.kept, {})


class Counts(unittest.TestCase):
    def test_what_is_unchanged_counts_as_passed(self):
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            results = Results("suite")
            results.add("test_a.py::one", "passed", 1)
            results.add_unchanged("test_b.py", {"passed": 5, "skipped": 2})
            self.assertEqual(results.finish(), 0)
        self.assertRegex(shown.getvalue(), r"unchanged +test_b.py, 5 passed\n")
        self.assertRegex(shown.getvalue().splitlines()[-1], r"^suite: 6 passed, 0 failed, 2 skipped \(of these 5 unchanged\) in \d+ s$")


class Shares(unittest.TestCase):
    """Files that take little share a machine."""

    def test_small_ones_together(self):
        took = {"a": 100, "b": 30, "c": 14, "d": 14, "e": 14, "f": 14, "g": 2}
        self.assertEqual(shares(list("abcdefg"), took), [["a"], ["c", "d", "e", "g"], ["b"], ["f"]])

    def test_alone(self):
        self.assertEqual(shares(list("abc"), {"a": 3, "b": 2, "c": 1}, alone="b"), [["a", "c"], ["b"]])

    def test_what_is_not_known(self):
        names = [f"test_{name}.py" for name in ("new", "lvm2", "other")]
        self.assertEqual(shares(names, {}), [["test_lvm2.py"], ["test_new.py"], ["test_other.py"]])

    def test_each_once(self):
        names = [str(number) for number in range(50)]
        found = shares(names, {name: int(name) for name in names})
        self.assertEqual(sorted(sum(found, [])), sorted(names))


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

    def chosen(self, expression, names=NAMES, mark="", share=(0, 1), **settings):
        return chosen(self.FUNCTIONAL, names, {"expression": expression, "mark": mark, "share": share, "settings": settings})

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

    def test_by_mark(self):
        self.assertEqual(self.chosen("", ["test_lvm2.py", "test_tables.py"], "lvm2"), ["test_lvm2.py"])

    def test_by_share(self):
        names = ["test_module.py::test_parameters"]
        self.assertEqual(sorted(len(self.chosen("", names, share=(number, 2))) for number in (0, 1)), [0, 1])

    def test_all_if_it_cannot_be_told(self):
        self.assertEqual(self.chosen("("), self.NAMES)


if __name__ == "__main__":
    unittest.main()
