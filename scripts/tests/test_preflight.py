# SPDX-License-Identifier: GPL-2.0
"""Every reason for which the module cannot be built gets one clear line."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

TOP = pathlib.Path(__file__).resolve().parents[2]
RUSTC = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)"
UTILITIES = "sh sed tr cat sort mktemp rm env make uname"
LLVM = "ld.lld llvm-ar llvm-nm llvm-objcopy llvm-strip llvm-link"


class Preflight(unittest.TestCase):
    """A kernel and tools that fit each other; each test breaks one thing."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.room = pathlib.Path(folder.name)
        self.kernel = self.room / "kernel"
        self.write("include/config/kernel.release", "7.3.4-test\n")
        self.write("Module.symvers", "")
        self.options = {
            "MODULES": "y",
            "RUST": "y",
            "RUST_INLINE_HELPERS": "y",
            "64BIT": "y",
            "BLK_DEV_DM": "m",
            "DM_BUFIO": "m",
            "CC_IS_CLANG": "y",
            "CLANG_VERSION": "220108",
            "RUSTC_VERSION_TEXT": f'"{RUSTC}"',
        }
        for name in ["libkernel.rmeta", "libcore.rmeta", "libpin_init.rmeta",
                     "libmacros.so", "helpers/helpers_module.bc"]:
            self.write(f"rust/{name}", "")

        self.bin = self.room / "bin"
        self.bin.mkdir()
        for name in UTILITIES.split():
            (self.bin / name).symlink_to(shutil.which(name))
        self.tool("rustc", f'echo "{RUSTC}"')
        self.tool("bindgen", 'if [ "$1" = --version ]; then echo "bindgen 0.73.2"; fi')
        self.tool("clang-22", 'echo "Debian clang version 22.1.8 (1~deb12u1)"')
        for name in LLVM.split():
            self.tool(f"{name}-22", "")

    def write(self, name, text):
        path = self.kernel / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def tool(self, name, body, folder=None):
        folder = folder or self.bin
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def run_preflight(self, *args, **environment):
        if (self.kernel / "include/config").is_dir():
            lines = [f"CONFIG_{k}={v}\n" for k, v in self.options.items()]
            self.write("include/config/auto.conf", "".join(lines))
        env = {"PATH": str(self.bin), "HOME": str(self.room), **environment}
        return subprocess.run(
            [TOP / "scripts/preflight", *args, self.kernel],
            env=env, capture_output=True, text=True, check=False)

    def assert_reason(self, *words, **environment):
        result = self.run_preflight(**environment)
        self.assertEqual(result.returncode, 1, result)
        lines = result.stderr.splitlines()
        self.assertEqual(len(lines), 1, lines)
        for word in ["dm-thin-pool: cannot build: ", *words]:
            self.assertIn(word, lines[0])

    def assert_ready(self, **environment):
        result = self.run_preflight(**environment)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return result.stdout.splitlines()

    def test_ready(self):
        lines = self.assert_ready()
        self.assertEqual(lines[:3], [
            f"RUSTC={self.bin}/rustc", "LLVM=-22", f"BINDGEN={self.bin}/bindgen"])

    def test_user_mode_linux(self):
        self.options["UML"] = "y"
        self.assertIn("ARCH=um", self.assert_ready())

    def test_preempted_tasks_are_waited_for(self):
        self.options["PREEMPTION"] = "y"
        self.assert_reason("CONFIG_TASKS_RCU")
        self.options["TASKS_RCU"] = "y"
        self.assert_ready()

    def test_gcc_kernel(self):
        del self.options["CC_IS_CLANG"], self.options["RUST_INLINE_HELPERS"]
        self.options["CLANG_VERSION"] = "0"
        self.assert_reason("gcc is missing")
        self.tool("gcc", "")
        self.assertNotIn("LLVM", "".join(self.assert_ready()))

    def test_matching_rustc_later_in_path(self):
        first = self.room / "rustup"
        self.tool("rustc", 'echo "rustc 1.95.0 (59807616e 2026-04-14)"', first)
        lines = self.assert_ready(PATH=f"{first}:{self.bin}")
        self.assertIn(f"RUSTC={self.bin}/rustc", lines)

    def test_unversioned_clang(self):
        for name in ["clang", *LLVM.split()]:
            (self.bin / f"{name}-22").rename(self.bin / name)
        self.assertIn("LLVM=1", self.assert_ready())

    def test_no_folder(self):
        shutil.rmtree(self.kernel)
        self.assert_reason("no kernel build folder", "KDIR")

    def test_not_configured(self):
        shutil.rmtree(self.kernel / "include")
        self.assert_reason("not configured")

    def test_not_built(self):
        (self.kernel / "Module.symvers").unlink()
        self.assert_reason("not built")

    def test_other_series(self):
        for release in ["7.2.9", "7.30.1", "7.4.0-rc1", "17.3.0"]:
            with self.subTest(release=release):
                self.write("include/config/kernel.release", f"{release}\n")
                self.assert_reason(release, "this module is for 7.3")

    def test_series_suffixes(self):
        for release in ["7.3", "7.3.4", "7.3.0-rc1", "7.3-amd64", "7.3.9-arch1-1"]:
            with self.subTest(release=release):
                self.write("include/config/kernel.release", f"{release}\n")
                self.assert_ready()

    def test_no_rust(self):
        del self.options["RUST"]
        self.assert_reason("CONFIG_RUST=y")

    def test_no_metadata(self):
        shutil.rmtree(self.kernel / "rust")
        self.assert_reason("Rust metadata", "Debian")

    def test_no_inline_helpers(self):
        (self.kernel / "rust/helpers/helpers_module.bc").unlink()
        self.assert_reason("helpers_module.bc")

    def test_missing_options(self):
        for option in ["MODULES", "BLK_DEV_DM", "DM_BUFIO"]:
            with self.subTest(option=option):
                value = self.options.pop(option)
                self.assert_reason(f"CONFIG_{option}")
                self.options[option] = value

    def test_32_bits(self):
        del self.options["64BIT"]
        self.assert_reason("32 bits")

    def test_rustc_missing(self):
        (self.bin / "rustc").unlink()
        self.assert_reason("rustc is missing", RUSTC)

    def test_rustc_differs(self):
        self.tool("rustc", 'echo "rustc 1.95.0 (59807616e 2026-04-14)"')
        self.assert_reason('rustc is "rustc 1.95.0', RUSTC)

    def test_chosen_rustc_differs(self):
        self.tool("mine", 'echo "rustc 1.95.0 (59807616e 2026-04-14)"')
        self.assert_reason('rustc is "rustc 1.95.0', RUSTC=f"{self.bin}/mine")

    def test_bindgen_missing(self):
        (self.bin / "bindgen").unlink()
        self.assert_reason("bindgen is missing")

    def test_bindgen_too_old(self):
        self.tool("bindgen", "echo bindgen 0.60.1")
        self.assert_reason("bindgen is 0.60.1", "0.71.1")

    def test_libclang_missing(self):
        self.tool("bindgen", 'if [ "$1" = --version ]; then echo bindgen 0.73.2; else exit 101; fi')
        self.assert_reason("libclang is missing")
        self.assert_reason("no libclang in LIBCLANG_PATH=/nowhere", LIBCLANG_PATH="/nowhere")

    def test_clang_missing(self):
        (self.bin / "clang-22").unlink()
        self.assert_reason("clang 22 is missing")

    def test_clang_differs(self):
        (self.bin / "clang-22").unlink()
        self.tool("clang", 'echo "Debian clang version 14.0.6"')
        self.assert_reason("clang is version 14", "22")

    def test_chosen_llvm_differs(self):
        self.tool("clang-19", 'echo "Debian clang version 19.1.7"')
        self.assert_reason("clang-19 is version 19", "22", LLVM="-19")

    def test_llvm_tool_missing(self):
        for name in LLVM.split():
            with self.subTest(tool=name):
                (self.bin / f"{name}-22").unlink()
                self.assert_reason(f"{name}-22 is missing")
                self.tool(f"{name}-22", "")

    def test_all_reasons_at_once(self):
        self.write("include/config/kernel.release", "7.4.0\n")
        for name in ["rustc", "bindgen", "clang-22"]:
            (self.bin / name).unlink()
        del self.options["DM_BUFIO"]
        self.assertEqual(len(self.run_preflight().stderr.splitlines()), 5)

    def test_kernel_only(self):
        for name in ["rustc", "bindgen", "clang-22"]:
            (self.bin / name).unlink()
        self.options["UML"] = "y"
        result = self.run_preflight("--kernel-only")
        self.assertEqual((result.returncode, result.stdout), (0, "ARCH=um\n"))

    def test_make_says_the_reason(self):
        del self.options["RUST"]
        self.run_preflight()
        env = {key: os.environ[key] for key in ["HOME"] if key in os.environ}
        result = subprocess.run(
            ["make", "-C", TOP, f"KDIR={self.kernel}"],
            env={"PATH": str(self.bin), **env}, capture_output=True, text=True, check=False)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("cannot build: kernel 7.3.4-test was built without Rust", result.stderr)
