# SPDX-License-Identifier: GPL-2.0
"""What has passed is found again as long as all that it depends on is the same, and no longer."""

import contextlib
import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import unittest
from unittest import mock

TOP = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP / "tools" / "testing"))

from guest.plugin import Asked  # noqa: E402
from guest.share import share  # noqa: E402
from harness import (  # noqa: E402
    inputs,
    jobs,
    passes,
    suite,
)

CONFIG = {
    "modules": {}, "implementations": {}, "settings": {"seed": "1"}, "job": "functional", "impl": "rust", "expression": "", "mark": "",
    "share": [0, 1], "append": [], "parameters": [],
}


class Room(unittest.TestCase):
    """A tree of its own, in git."""

    FILES = {
        "scripts/packages": "# All\nmake\n", "tools/testing/run": "run", "tools/testing/functional/conftest.py": "fixtures",
        "tools/testing/functional/test_a.py": "from test_b import it\n", "tools/testing/functional/test_b.py": "it = 1\n",
        "tools/testing/functional/test_c.py": "open(__file__)\n", "tools/thinctl/main.rs": "fn main() {}\n", ".gitignore": "*.o\n",
        "Documentation/metadata-snapshots.rst": "a\n", "tools/testing/functional/test_thinctl_recipes.py": "__file__\n",
    }

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.room = pathlib.Path(folder.name)
        for name, text in self.FILES.items():
            self.write(name, text)
        subprocess.run(["git", "init", "-q", self.room], check=True)
        patch = mock.patch.object(inputs, "TOP", str(self.room))
        patch.start()
        self.addCleanup(patch.stop)
        patch = mock.patch.object(inputs.Inputs.__init__, "__defaults__", (str(self.room),))
        patch.start()
        self.addCleanup(patch.stop)

    def write(self, name, text):
        path = self.room / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def keys(self, **config):
        files = passes.Files(str(self.room / "kernel"), {**CONFIG, **config})
        return {name: files.key(f"test_{name}.py") for name in ("a", "b", "c", "thinctl_recipes")}

    def changed(self, name, text="changed\n"):
        """Whose keys change when this file does."""
        before = self.keys()
        self.write(name, text)
        after = self.keys()
        return {name for name in before if before[name] != after[name]}


class Keys(Room):
    ALL = {"a", "b", "c", "thinctl_recipes"}

    def test_nothing_has_changed(self):
        self.assertEqual(self.keys(), self.keys())

    def test_tests_and_those_who_use_them(self):
        self.assertEqual(self.changed("tools/testing/functional/test_a.py"), {"a", "c"})
        self.assertEqual(self.changed("tools/testing/functional/test_b.py"), {"b", "c"})

    def test_users_of_a_test(self):
        self.assertEqual(self.changed("tools/testing/functional/test_b.py"), {"a", "b", "c"})

    def test_library(self):
        for name in ("tools/testing/run", "tools/testing/functional/conftest.py", "tools/testing/dmtest/new.py", "tools/testing/guest/new.py",
                     "tools/testing/harness/new.py"):
            self.assertEqual(self.changed(name), self.ALL, name)

    def test_packages(self):
        self.assertEqual(self.changed("scripts/packages", "make\ngcc\n"), self.ALL)

    def test_who_looks_around_depends_on_the_whole_tree(self):
        self.assertEqual(self.changed("tools/thinctl/main.rs"), {"c"})
        self.assertEqual(self.changed("new file"), {"c"})
        self.assertEqual(self.changed("ignored.o"), set())

    def test_who_is_known_to_look_at_a_file(self):
        self.assertEqual(self.changed("Documentation/metadata-snapshots.rst"), {"c", "thinctl_recipes"})

    def test_kernel_and_its_modules(self):
        self.assertEqual(self.changed("kernel/linux"), self.ALL)
        self.write("kernel/drivers/dm.ko", "1")
        self.write("kernel/modules.order", "drivers/dm.o\n")
        self.assertEqual(self.changed("kernel/drivers/dm.ko"), self.ALL)

    def test_modules_by_their_content(self):
        self.write("one/it.ko", "1")
        self.write("two/it.ko", "1")
        self.write("three/it.ko", "3")
        keys = [self.keys(implementations={"rust": str(self.room / name / "it.ko")}) for name in ("one", "two", "three")]
        self.assertEqual(keys[0], keys[1])
        self.assertFalse(set(keys[0].values()) & set(keys[2].values()))

    def test_orders(self):
        usual = self.keys()
        for more in ({"append": ["kmemleak=off"]}, {"parameters": ["a=1"]}, {"expression": "one"}, {"share": [0, 2]}, {"impl": "c"}):
            self.assertFalse(set(usual.values()) & set(self.keys(**more).values()), more)
        self.assertEqual(usual, self.keys(settings={"seed": "2"}))

    def test_a_file_that_is_removed(self):
        self.write("more", "")
        before = self.keys()
        (self.room / "more").unlink()
        self.assertNotEqual(before["c"], self.keys()["c"])

    def test_permissions(self):
        before = self.keys()
        (self.room / "tools/thinctl/main.rs").chmod(0o755)
        self.assertNotEqual(before["c"], self.keys()["c"])


class Play(Room):
    """The runner, with a machine that passes all; what it is told to do meanwhile is done while it runs."""

    def play(self, meanwhile=lambda: None, fresh=False, **settings):
        ran = []

        class Run:
            def __init__(self, label, make_vm, config, results, test_limit, boot_limit, keep, processor):
                for name in config["tests"]:
                    ran.append(name)
                    results.add(f"{name}::one", "passed", 1)
                    keep(name, {"passed": 1, "failed": 0, "skipped": 0}, ["program"] if name == "test_a.py" else [])
                meanwhile()

            def step(self):
                return False

        options = mock.Mock(passes=f"{self.room}.passes", fresh=fresh, suite="functional", kernel=f"{self.room}/kernel", report=None,
                            results=f"{self.room}.results", test_timeout=None, vng="")
        with mock.patch.object(suite, "Run", Run), contextlib.redirect_stdout(io.StringIO()) as shown:
            jobs.play(options, {**CONFIG, "settings": settings}, ["test_a.py", "test_b.py"], lambda tests, took: [tests] if tests else [],
                      None, 2, 1)
        return ran, shown.getvalue().splitlines()[-1].split(" in ")[0]

    def test_does_not_run_again(self):
        self.write("program", "1")
        program = str(self.room / "program")
        every = (["test_a.py", "test_b.py"], "functional: 2 passed, 0 failed, 0 skipped")
        self.assertEqual(self.play(program=program), every)
        self.assertEqual(self.play(program=program), ([], "functional: 2 passed, 0 failed, 0 skipped (of these 2 unchanged)"))
        self.assertEqual(self.play(program=program, fresh=True), every)
        self.write("program", "2")
        self.assertEqual(self.play(program=program), (["test_a.py"], "functional: 2 passed, 0 failed, 0 skipped (of these 1 unchanged)"))

    def test_changed_meanwhile(self):
        self.write("program", "1")
        program = str(self.room / "program")
        self.play(lambda: self.write("program", "2"), program=program)
        self.assertEqual(self.play(program=program)[0], ["test_a.py"])
        self.write("program", "3")
        self.write("tools/testing/functional/test_b.py", "it = 2\n")
        self.play(lambda: self.write("tools/testing/functional/test_b.py", "it = 3\n"), program=program)
        self.assertEqual(self.play(program=program)[0], ["test_a.py", "test_b.py"])


class Kept(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = f"{folder.name}/passes"
        self.passes = passes.Passes(self.folder)

    def test_found_again(self):
        self.assertIsNone(self.passes.find("key"))
        self.passes.keep("key", {"passed": 3, "skipped": 1})
        self.assertEqual(self.passes.find("key")["passed"], 3)
        self.assertIsNone(self.passes.find("other"))

    def test_fresh(self):
        fresh = passes.Passes(self.folder, fresh=True)
        fresh.keep("key", {"passed": 3})
        self.assertIsNone(fresh.find("key"))
        self.assertEqual(self.passes.find("key")["passed"], 3)

    def test_only_settings_that_were_asked_for_count(self):
        self.passes.keep("key", {"passed": 1}, {"seed": "1"})
        self.assertIsNotNone(self.passes.find("key", {"seed": "1", "program": "x"}))
        self.assertIsNone(self.passes.find("key", {"seed": "2"}))
        self.assertIsNone(self.passes.find("key", {}))
        self.passes.keep("key", {"passed": 2}, {"seed": "2"})
        self.assertEqual([self.passes.find("key", {"seed": seed})["passed"] for seed in "12"], [1, 2])

    def test_that_a_setting_is_missing_counts(self):
        self.passes.keep("key", {"passed": 1}, {"program": ""})
        self.assertIsNotNone(self.passes.find("key", {}))
        self.assertIsNone(self.passes.find("key", {"program": "x"}))

    def test_programs_count_by_their_content(self):
        path = f"{self.folder}.program"
        values = []
        for text in "1", "2", "1":
            with open(path, "w") as file:
                file.write(text)
            values.append(inputs.Inputs().value(path))
        self.assertEqual(values[0], values[2])
        self.assertNotEqual(values[0], values[1])

    def test_forgotten(self):
        for name in ("old", "new"):
            self.passes.keep(name, {"passed": 1})
        before = time.time() - passes.AGE - 10
        os.utime(f"{self.folder}/old", (before, before))
        self.passes.forget()
        self.assertEqual(os.listdir(self.folder), ["new"])

    def test_damaged(self):
        self.passes.keep("key", {"passed": 1})
        for text in ("", "[{", "[]"):
            with open(f"{self.folder}/key", "w") as file:
                file.write(text)
            self.assertIsNone(self.passes.find("key"))


class Share(unittest.TestCase):
    """A share of the tests does not depend on which other files there are."""

    @staticmethod
    def chosen(number, count, *files):
        items = [mock.Mock(nodeid=f"{file}::test_{test}") for file in files for test in range(5)]
        share(items, number, count)
        return {item.nodeid for item in items}

    def test_each_in_one(self):
        shares = [self.chosen(number, 4, "a.py", "b.py") for number in range(4)]
        self.assertEqual(sum(map(len, shares)), 10)
        self.assertEqual(len(set.union(*shares)), 10)

    def test_other_files(self):
        for number in range(4):
            self.assertEqual(
                self.chosen(number, 4, "a.py", "b.py"), self.chosen(number, 4, "a.py") | self.chosen(number, 4, "b.py"))


class Asking(unittest.TestCase):
    """A test file depends on the settings that it asks for."""

    def test_by_file(self):
        asked = Asked({"seed": "3"})
        asked.file = "a.py"
        self.assertEqual((asked.get("seed", 1), asked.get("rounds", 5)), ("3", 5))
        asked.file = "b.py"
        asked.get("rounds", 5)
        self.assertEqual([asked.names(file) for file in ("a.py", "b.py", "c.py")], [["rounds", "seed"], ["rounds"], []])


class Reach(unittest.TestCase):
    """Tests that look at files of the tree are known."""

    def test_functional(self):
        found = {path.name for path in (TOP / "tools/testing/functional").glob("test_*.py") if passes.LOOKS_AROUND.search(path.read_text())}
        self.assertEqual(found, set(passes.LOOKS_AT))

    def test_their_library(self):
        found = [path.name for folder in ("dmtest", "guest") for path in (TOP / "tools/testing" / folder).glob("*.py")
                 if passes.LOOKS_AROUND.search(path.read_text())]
        self.assertEqual(found, ["main.py"])

    def test_no_other_way_to_the_tree(self):
        found = [path.name for folder in ("dmtest", "functional") for path in (TOP / "tools/testing" / folder).glob("*.py")
                 if re.search(r"[\"'](?:\.\./|[^\"'\n]*tools/testing/(?!README))", path.read_text())]
        self.assertEqual(found, [])


if __name__ == "__main__":
    unittest.main()
