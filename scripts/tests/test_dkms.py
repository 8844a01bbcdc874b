# SPDX-License-Identifier: GPL-2.0
"""DKMS adds, builds, installs and removes the module for a test kernel; depmod and modprobe then prefer it."""

import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
import unittest

TOP = pathlib.Path(__file__).resolve().parents[2]
IGNORED = shutil.ignore_patterns(".git", "target", "__pycache__")


def environment():
    """What scripts/setup says about the test kernels, on top of our own environment."""
    script = f'eval "$({TOP}/scripts/setup env)" && env -0'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)


class Dkms(unittest.TestCase):
    """A machine's trees in a folder of their own: DKMS's, the sources' and the kernel's modules."""

    @classmethod
    def setUpClass(cls):
        cls.env = environment()
        if "KERNEL_X86_64" not in cls.env:
            raise AssertionError("the x86_64 test kernel is missing; run scripts/setup")
        cls.release = cls.env["KRELEASE_X86_64"]

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.room = pathlib.Path(folder.name)
        self.modules = self.room / "lib/modules" / self.release
        shutil.copytree(
            pathlib.Path(self.env["MODROOT_X86_64"], "lib/modules", self.release), self.modules, symlinks=True)
        for name in ["dkms", "src"]:
            (self.room / name).mkdir()

    def run_dkms(self, action, *arguments):
        options = [
            "--dkmstree", self.room / "dkms", "--sourcetree", self.room / "src",
            "--installtree", self.room / "lib/modules",
        ]
        if action in ("build", "install", "uninstall"):
            options += ["-k", self.release, "-a", platform.machine(),
                        "--kernelsourcedir", self.env["KERNEL_X86_64"], "--no-depmod"]
        # DKMS makes keys for signing here, wherever its tree is.
        private = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else []),
                   "sh", "-c", 'mount -t tmpfs none /var/lib/dkms && exec dkms "$@"', "dkms"]
        result = subprocess.run(
            [*private, action, *options, *arguments], env=self.env, cwd=self.room, capture_output=True, text=True, check=False)
        output = result.stdout + result.stderr
        if result.returncode:
            for log in self.room.glob("dkms/*/*/build/make.log"):
                output += log.read_text(errors="replace")[-3000:]
        return result.returncode, output

    def dkms(self, action, *arguments):
        code, output = self.run_dkms(action, *arguments)
        self.assertEqual(code, 0, output)
        return output

    def chosen(self):
        """The file that modprobe would load for dm-thin-pool, after depmod."""
        subprocess.run(["depmod", "-b", self.room, self.release], check=True, env=self.env)
        found = subprocess.run(
            ["modprobe", "-d", self.room, "-S", self.release, "--show-depends", "dm-thin-pool"],
            check=True, env=self.env, capture_output=True, text=True).stdout
        return pathlib.Path(found.splitlines()[-1].split()[1])

    def modinfo(self, field, path):
        return subprocess.run(["modinfo", "-F", field, path], check=True, env=self.env,
                              capture_output=True, text=True).stdout.strip()

    def test_life_of_the_module(self):
        self.assertEqual(self.chosen().parent.name, "md")
        source = self.room / "tree"
        shutil.copytree(TOP, source, ignore=IGNORED)
        self.dkms("add", source)
        package = ["-m", "dm-thin-pool-rust", "-v", "0.1.0"]
        self.dkms("build", *package)
        self.dkms("install", *package)
        self.assertIn("installed", self.dkms("status"))

        installed = self.chosen()
        self.assertEqual(installed, self.modules / "updates/dkms/dm-thin-pool.ko")
        self.assertEqual(self.modinfo("name", installed), "dm_thin_pool")
        self.assertEqual(self.modinfo("version", installed), "0.1.0")
        self.assertIn(self.release, self.modinfo("vermagic", installed).split())
        self.assertNotEqual(self.modinfo("author", installed), self.modinfo("author", self.modules / "kernel/drivers/md/dm-thin-pool.ko"))

        self.dkms("remove", *package, "--all", "--no-depmod")
        self.assertEqual(self.chosen().parent.name, "md")

    def test_kernel_of_another_series(self):
        """Each new kernel makes DKMS try again: one that the module is not for is left out, not failed."""
        source = self.room / "tree"
        shutil.copytree(TOP, source, ignore=IGNORED)
        self.dkms("add", source)
        self.release = "7.4.0"
        code, output = self.run_dkms("build", "-m", "dm-thin-pool-rust", "-v", "0.1.0")
        self.assertEqual(code, 77, output)


if __name__ == "__main__":
    unittest.main()
