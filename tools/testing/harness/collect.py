# SPDX-License-Identifier: GPL-2.0
"""Finds out, before any machine is booted, which test files have tests that `-k`, a mark and a share choose.

As a program, `collect.py FOLDER`: reads a JSON object from standard input and writes a list of the tests' names.
"""

import contextlib
import io
import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import pytest  # noqa: E402
from guest.share import share  # noqa: E402


class Collector:
    """The pytest plugin that notes what there is. It is also the run's configuration, to which tests look for their seeds."""

    def __init__(self, settings, share):
        self.config = {"settings": settings}
        self.tests = []
        self._share = share

    def pytest_configure(self, config):
        config.dmtest = self

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        share(items, *self._share)

    def pytest_collection_finish(self, session):
        self.tests = [item.nodeid for item in session.items]


def chosen(folder, names, config):
    """Those of `names`, files or single tests, that have tests which a machine with these orders would play.

    All, if pytest cannot tell, as a machine will then say why.
    """
    asked = json.dumps({"names": names, **{name: config[name] for name in ("expression", "mark", "share", "settings")}})
    done = subprocess.run([sys.executable, os.path.abspath(__file__), folder], input=asked, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return names
    tests = json.loads(done.stdout)
    return [name for name in names if any(test == name or test.startswith((f"{name}::", f"{name}[")) for test in tests)]


def main():
    [folder] = sys.argv[1:]
    asked = json.load(sys.stdin)
    collector = Collector(asked["settings"], asked["share"])
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = pytest.main(
            ["--collect-only", "-qq", "--no-summary", "-p", "no:cacheprovider", "--rootdir", folder, "-k", asked["expression"], "-m", asked["mark"],
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
