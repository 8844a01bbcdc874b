# SPDX-License-Identifier: GPL-2.0
"""The soak's runner, and the faults that are planted to be found."""

import contextlib
import importlib.machinery
import importlib.util
import io
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

TESTING = pathlib.Path(__file__).resolve().parents[2] / "tools" / "testing"


def load(name, path):
    """A script as a module."""
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    sys.modules[name] = module
    loader.exec_module(module)
    return module


sys.path.insert(0, str(TESTING / "soak"))
mutants = load("mutants_run", TESTING / "mutants" / "run")
parts = load("parts", TESTING / "soak" / "parts.py")
soak = load("soak_run", TESTING / "soak" / "run")


class Mutants(unittest.TestCase):
    def test_each_fits_its_source_once(self):
        table = mutants.table()
        self.assertGreaterEqual(len(table), 10)
        for mutant in table.values():
            with self.subTest(mutant["name"]):
                self.assertNotEqual(mutants.planted(mutant), (mutants.ROOT / mutant["file"]).read_text())

    def test_one_that_does_not_fit_is_refused(self):
        mutant = dict(next(iter(mutants.table().values())))
        mutant["from"] = "no such line"
        with self.assertRaises(mutants.Broken):
            mutants.planted(mutant)

    def test_checks_name_files_that_exist(self):
        for mutant in mutants.table().values():
            kind, *words = mutant["caught-by"].split()
            if kind == "functional":
                for word in words:
                    self.assertTrue((TESTING / "functional" / word.split("::")[0]).exists(), word)


class Soak(unittest.TestCase):
    def run_parts(self, *scripts):
        with tempfile.TemporaryDirectory() as folder:
            place = parts.Place(1, 7, pathlib.Path(folder))
            chosen = [
                parts.Part(f"part{i}", "a test", ["/bin/sh", "-c", f"REPORT={place.report(f'part{i}')}; {script}"])
                for i, script in enumerate(scripts)
            ]
            with contextlib.redirect_stdout(io.StringIO()):
                status = soak.Soak(place, chosen).run()
            return status, json.loads((place.reports / "report.json").read_text()), (place.reports / "report.txt").read_text()

    def test_figures_are_gathered(self):
        status, report, text = self.run_parts("""echo '{"states": 5, "seeds": [1]}' >$REPORT; echo 'x: 3 passed, 0 failed'""", "echo '1 passed, 0 failed'")
        self.assertEqual(status, 0)
        self.assertEqual(report["seed"], 7)
        self.assertEqual([part["passed"] for part in report["parts"]], [3, 1])
        self.assertEqual(report["parts"][0]["figures"]["states"], 5)
        self.assertIn("states: 5", text)

    def test_figures_of_virtual_machines_are_shown(self):
        figures = {"suite": "functional", "passed": 1, "figures": [{"test": "test_stress", "bios": 7, "seed": 3}]}
        self.assertEqual(dict(soak.figures(figures)), {"suite": "functional", "passed": 1, "test_stress": "bios 7, seed 3"})

    def test_failures_are_seen(self):
        for script in ("echo '3 passed, 1 failed'", "echo '3 passed, 0 failed'; exit 1", "true", "echo nothing"):
            with self.subTest(script):
                self.assertEqual(self.run_parts(script)[0], 1)

    def test_every_part_has_a_command(self):
        place = parts.Place(1, 1, pathlib.Path("/x"))
        for part in parts.parts(place):
            self.assertTrue(part.what and part.command, part.name)
            if part.command[0].startswith(str(TESTING)):
                self.assertTrue(pathlib.Path(part.command[0]).exists(), part.command[0])

    def test_parts_can_be_listed(self):
        done = subprocess.run(
            [sys.executable, TESTING / "soak" / "run", "--reports", "/nonexistent", "--list"], capture_output=True, text=True, check=True,
        )
        self.assertIn("mutants", done.stdout)


if __name__ == "__main__":
    unittest.main()
