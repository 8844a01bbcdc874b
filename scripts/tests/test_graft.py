# SPDX-License-Identifier: GPL-2.0
"""Grafting changes a kernel's tree that it knows, and no other. That the result builds and boots is for scripts/tests/graft."""

import pathlib
import subprocess
import tempfile
import unittest

TOP = pathlib.Path(__file__).resolve().parents[2]
KCONFIG = "config DM_THIN_PROVISIONING\n\ttristate\n\nconfig DM_CACHE\n\ttristate\n"
MAKEFILE = "obj-$(CONFIG_DM_RAID) += dm-raid.o\nobj-$(CONFIG_DM_THIN_PROVISIONING) += dm-thin-pool.o\n"


class Graft(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.kernel = pathlib.Path(folder.name)
        self.md = self.kernel / "drivers/md"
        self.ours = self.md / "dm-thin-rust"
        self.md.mkdir(parents=True)
        (self.kernel / "Makefile").write_text("VERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 4\n")
        (self.md / "Kconfig").write_text(KCONFIG)
        (self.md / "Makefile").write_text(MAKEFILE)

    def graft(self):
        return subprocess.run([TOP / "scripts/graft", self.kernel], capture_output=True, text=True, check=False)

    def state(self):
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in self.kernel.rglob("*") if path.is_file()}

    def assert_grafted(self):
        result = self.graft()
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return result.stdout

    def assert_refused(self, *words):
        before = self.state()
        result = self.graft()
        self.assertEqual(result.returncode, 1)
        for word in words:
            self.assertIn(word, result.stderr)
        self.assertEqual(len(result.stderr.splitlines()), 1)
        self.assertEqual(self.state(), before)

    def test_hooks(self):
        self.assert_grafted()
        kconfig = (self.md / "Kconfig").read_text()
        self.assertEqual(kconfig, KCONFIG.replace(
            "config DM_CACHE", 'source "drivers/md/dm-thin-rust/Kconfig"\n\nconfig DM_CACHE'))
        self.assertEqual((self.md / "Makefile").read_text(),
                         MAKEFILE + "obj-$(CONFIG_DM_THIN_PROVISIONING_RUST) += dm-thin-rust/\n")

    def test_all_that_a_build_needs(self):
        self.assert_grafted()
        tracked = subprocess.run(
            ["git", "-C", TOP, "ls-files", "Kbuild", "Kconfig", "rust"], capture_output=True, text=True, check=False)
        if tracked.returncode == 0:
            missing = [name for name in tracked.stdout.split()
                       if not (self.ours / name).exists() and not name.endswith("Cargo.toml") and (TOP / name).exists()]
            self.assertEqual(missing, [])
        self.assertEqual([path for path in self.ours.rglob("*_generated.rs")], [])
        self.assertTrue((self.ours / "Kbuild").exists())

    def test_second_time(self):
        self.assert_grafted()
        before = self.state()
        self.assertIn("0 files changed", self.assert_grafted())
        self.assertEqual(self.state(), before)

    def test_brought_up_to_date(self):
        self.assert_grafted()
        before = self.state()
        (self.ours / "rust/dm/lib.rs").write_text("old")
        (self.ours / "rust/dm/gone.rs").write_text("old")
        self.assertIn("2 files changed", self.assert_grafted())
        after = self.state()
        changed = self.ours / "rust/dm/lib.rs"
        self.assertEqual(after.pop(changed)[0], before.pop(changed)[0])
        self.assertEqual(after, before)

    def test_build_in_the_source_folder_is_left_alone(self):
        self.assert_grafted()
        kept = [self.ours / name for name in ["rust/dm/lib.o", "rust/dm/.lib.o.cmd", "rust/bindings/bindings_generated.rs"]]
        for path in kept:
            path.write_text("built")
        self.assertIn("0 files changed", self.assert_grafted())
        self.assertTrue(all(path.exists() for path in kept))

    def test_other_series(self):
        (self.kernel / "Makefile").write_text("VERSION = 7\nPATCHLEVEL = 4\n")
        self.assert_refused("Linux 7.4", "7.3")

    def test_no_kernel(self):
        (self.kernel / "Makefile").write_text("all:\n")
        self.assert_refused("not a kernel's source tree")

    def test_unknown_kconfig(self):
        (self.md / "Kconfig").write_text("config SOMETHING_ELSE\n")
        self.assert_refused("drivers/md/Kconfig", "config DM_CACHE")

    def test_unknown_makefile(self):
        (self.md / "Makefile").write_text(MAKEFILE + MAKEFILE)
        self.assert_refused("drivers/md/Makefile")

    def test_hook_twice(self):
        hook = "obj-$(CONFIG_DM_THIN_PROVISIONING_RUST) += dm-thin-rust/\n"
        (self.md / "Makefile").write_text(MAKEFILE + hook + hook)
        self.assert_refused("drivers/md/Makefile")

    def test_folder_of_someone_else(self):
        self.ours.mkdir()
        (self.ours / "notes").write_text("mine")
        self.assert_refused("is not from this tree")

    def test_usage(self):
        result = subprocess.run([TOP / "scripts/graft"], capture_output=True, text=True, check=False)
        self.assertEqual(result.returncode, 2)
        self.assertIn("usage: graft", result.stderr)
