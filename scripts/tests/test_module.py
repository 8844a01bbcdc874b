# SPDX-License-Identifier: GPL-2.0
"""The module can be built as kernels that are configured otherwise than the test kernels build theirs."""

import pathlib
import subprocess
import tempfile
import unittest

TOP = pathlib.Path(__file__).resolve().parents[2]


def module(*words):
    """Builds a variant of the module. Gives its path."""
    with tempfile.TemporaryFile("w+") as log:
        done = subprocess.run([TOP / "scripts/module", *words], stdout=subprocess.PIPE, stderr=log, text=True, check=False)
        log.seek(0)
        output = log.read()
    if done.returncode:
        raise AssertionError(output[-3000:])
    return pathlib.Path(done.stdout.strip())


class OptimisedForSize(unittest.TestCase):
    """What is not called must not be there, also where the optimiser does not remove it: it could not be linked."""

    def check(self, *words):
        path = module("um", *words, "size")
        # Of several levels the last one counts.
        for name in ("dm", "dm_thin") if "load" not in words else ("dm",):
            command = path.with_name("rust").joinpath(name, ".lib.o.cmd").read_text()
            levels = [word for word in command.split() if word.startswith("-Copt-level=")]
            self.assertEqual(levels[-1], "-Copt-level=s")
        undefined = subprocess.run(["nm", "--undefined-only", path], capture_output=True, text=True, check=True).stdout
        self.assertNotIn("rust_build_error", undefined)

    def test_module(self):
        self.check()

    def test_unit_tests(self):
        self.check("kunit")

    def test_load_generator(self):
        self.check("load")


if __name__ == "__main__":
    unittest.main()
