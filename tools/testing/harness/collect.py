# SPDX-License-Identifier: GPL-2.0
"""Finds out, before any machine is booted, which test files have tests that `-k` chooses.

As a program, `collect.py FOLDER`: reads a JSON object from standard input and writes a list of the tests' names.
"""

import contextlib
import io
import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Collector:
    """The pytest plugin that notes what there is. It is also the run's configuration, to which tests look for their seeds."""

    def __init__(self, settings):
        self.config = {"settings": settings}
        self.tests = []

    def pytest_configure(self, config):
        config.dmtest = self

    def pytest_collection_finish(self, session):
        self.tests = [item.nodeid for item in session.items]


def chosen(folder, names, expression, settings):
    """Those of `names`, files or single tests, that have tests which match; all if pytest cannot tell, as a machine will then say why."""
    asked = json.dumps({"names": names, "expression": expression, "settings": settings})
    done = subprocess.run([sys.executable, os.path.abspath(__file__), folder], input=asked, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return names
    tests = json.loads(done.stdout)
    return [name for name in names if any(test == name or test.startswith((f"{name}::", f"{name}[")) for test in tests)]


def main():
    import pytest

    sys.path.insert(0, ROOT)
    [folder] = sys.argv[1:]
    asked = json.load(sys.stdin)
    collector = Collector(asked["settings"])
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = pytest.main(
            ["--collect-only", "-qq", "--no-summary", "-p", "no:cacheprovider", "--rootdir", folder, "-k", asked["expression"],
             *(os.path.join(folder, name) for name in asked["names"])],
            plugins=[collector],
        )
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        sys.stderr.write(said.getvalue())
        return 1
    json.dump(collector.tests, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    sys.exit(main())
