# SPDX-License-Identifier: GPL-2.0
"""What holds for every file of the tree."""

import pathlib
import re
import subprocess
import unittest

TOP = pathlib.Path(__file__).resolve().parents[2]
UNSAFE_ROOMS = ("rust/dm/", "rust/persistent_data/platform")


def sources(*suffixes):
    for folder in ["rust", "tools", "scripts"]:
        for path in sorted((TOP / folder).rglob("*")):
            if path.suffix in suffixes and not path.name.endswith("_generated.rs"):
                yield path.relative_to(TOP).as_posix(), path.read_text()


class Tree(unittest.TestCase):
    def test_unsafe_keeps_to_its_rooms(self):
        found = []
        for name, text in sources(".rs"):
            if name.startswith(UNSAFE_ROOMS):
                continue
            for number, line in enumerate(text.splitlines(), 1):
                code = line.split("//")[0]
                if re.search(r"\bunsafe\b", code):
                    found.append(f"{name}:{number}")
        self.assertEqual(found, [])

    def test_unsafe_is_explained(self):
        """A block or impl has a SAFETY comment above it, a function a Safety section."""
        found = []
        for name, text in sources(".rs"):
            lines = text.splitlines()
            for number, line in enumerate(lines):
                code = line.split("//")[0]
                if not re.search(r"\bunsafe\s*(\{|impl\b)", code):
                    continue
                above = "\n".join(lines[max(0, number - 25):number + 1])
                if "SAFETY:" not in above:
                    found.append(f"{name}:{number + 1}")
        self.assertEqual(found, [])

    def test_the_kernels_own_atomics(self):
        """The kernel's memory model is not that of the language, and functions are declared by its headers."""
        crates = ("rust/", "tools/testing/bench/load/")
        # In user space, and symbols of the linker's.
        others = ("rust/persistent_data/platform/user.rs", "rust/persistent_data/cached", "rust/persistent_data/direct",
                  "rust/dm/coverage.rs")
        found = []
        for name, text in sources(".rs"):
            if not name.startswith(crates) or name.startswith(others) or "/tests" in name or "/examples/" in name:
                continue
            for number, line in enumerate(text.splitlines(), 1):
                code = line.split("//")[0]
                if re.search(r"\b(core|std)::sync::atomic\b|^\s*(unsafe )?extern \"C\" \{", code):
                    found.append(f"{name}:{number}")
        self.assertEqual(found, [])

    def test_licence_lines(self):
        found = [name for name, text in sources(".rs", ".py", ".c", ".h", ".sh")
                 if "SPDX-License-Identifier: GPL-2.0" not in "\n".join(text.splitlines()[:2])]
        self.assertEqual(found, [])

    def test_help_lists_every_target(self):
        makefile = (TOP / "Makefile").read_text()
        targets = re.search(r"^\.PHONY: (.*)$", makefile, re.M).group(1).split()
        shown = subprocess.run(["make", "-C", TOP, "--no-print-directory", "help"],
                               capture_output=True, text=True, check=True).stdout
        missing = [t for t in targets if not re.search(rf"^  {t}  +- ", shown, re.M)]
        self.assertEqual(missing, [])
