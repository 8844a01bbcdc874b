# SPDX-License-Identifier: GPL-2.0
"""The pytest plugin that tells the host what happens, and holds the run's configuration."""

import json
import os
import sys
import threading
import time
import traceback

import pytest
from dmtest import kmemleak, kmsg
from dmtest.coverage import Coverage
from dmtest.modules import Modules
from guest.share import share


# After so many seconds a test tells where it is, as it may be ended soon.
LONG = 200


def tell_where(console, nodeid):
    """Prints where each thread is. Not by faulthandler's own timer, which looks at threads while they run, and can crash."""
    print(f"{nodeid} is here after {LONG} s:", file=console)
    for frame in sys._current_frames().values():
        print("".join(traceback.format_stack(frame)), file=console, flush=True)


class Asked:
    """The settings of a run, and which of them the tests of a file ask for."""

    def __init__(self, settings):
        self._settings = settings
        self._names = {}
        self.file = None

    def get(self, name, usual=None):
        self._names.setdefault(self.file, set()).add(name)
        return self._settings.get(name, usual)

    def names(self, file):
        return sorted(self._names.get(file, set()))


class Events:
    """Appends one JSON line per event to `events` in the results folder."""

    def __init__(self, results, config):
        self._path = os.path.join(results, "events")
        self._asked = Asked(config["settings"])
        self.config = {**config, "settings": self._asked}
        self.modules = Modules(config["modules"], config["implementations"], config["parameters"], Coverage(os.path.join(results, "profraw")))
        self._session = None
        self._outcome = None
        self._long = None
        # pytest keeps what tests write to the usual places.
        self._console = os.fdopen(os.dup(2), "w")
        self._told = 0.0

    def figures(self, test, **numbers):
        """Numbers for the run's report."""
        self._emit("figures", test=test, numbers=numbers)

    def progress(self, text):
        """Every ten seconds a line about a test that takes long."""
        if time.monotonic() > self._told + 10:
            self._told = time.monotonic()
            self._emit("progress", text=text)

    def _emit(self, event, **fields):
        # Closing the file is what makes the line visible on the host.
        with open(self._path, "a") as file:
            file.write(json.dumps({"event": event, **fields}) + "\n")

    def pytest_configure(self, config):
        config.dmtest = self

    def pytest_sessionstart(self, session):
        self._session = session

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        """Leaves the run's share of those that are chosen."""
        share(items, *self.config["share"])

    def pytest_collection_finish(self, session):
        self._emit("collected", tests=[item.nodeid for item in session.items])

    def pytest_collectstart(self, collector):
        self._asked.file = collector.nodeid.split("::")[0]

    def pytest_collectreport(self, report):
        if report.failed:
            self._emit("result", test=report.nodeid, outcome="failed", seconds=0, text=str(report.longrepr))

    def pytest_runtest_logstart(self, nodeid, location):
        kmsg.mark(f"start {nodeid}")
        self._asked.file = nodeid.split("::")[0]
        self._outcome = ["passed", {}, ""]
        self._emit("start", test=nodeid)
        self._long = threading.Timer(LONG, tell_where, [self._console, nodeid])
        self._long.daemon = True
        self._long.start()

    def pytest_runtest_logreport(self, report):
        self._outcome[1][report.when] = round(report.duration, 2)
        if report.failed:
            self._outcome[0] = "failed"
            self._outcome[2] += f"[{report.when}]\n{report.longreprtext}\n"
        elif report.skipped and self._outcome[0] == "passed":
            self._outcome[0] = "skipped"
            self._outcome[2] = str(report.longrepr[2])

    def pytest_runtest_logfinish(self, nodeid, location):
        self._long.cancel()
        outcome, phases, text = self._outcome
        self._emit("result", test=nodeid, outcome=outcome, seconds=round(sum(phases.values()), 2), phases=phases, text=text)
        if kmsg.checks_locking() is False:
            # After a complaint the kernel no longer checks locks: the rest of the tests needs another one.
            self._session.shouldstop = "lockdep is off"

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item, nextitem):
        yield
        file = item.nodeid.split("::")[0]
        if not self._session.shouldstop and (nextitem is None or nextitem.nodeid.split("::")[0] != file):
            self._finish(file)

    def pytest_sessionfinish(self, session, exitstatus):
        if session.shouldstop:
            self._emit("again")
        else:
            self._emit("end", status=int(exitstatus))

    def _finish(self, file):
        """Unloads the module, and looks for what it has left behind. To the host this is one more test."""
        test = f"{file}::leaks"
        kmsg.mark(f"start {test}")
        self._emit("start", test=test)
        began = time.monotonic()
        try:
            symbols = kmemleak.symbols("dm_thin_pool") if kmemleak.is_there() else []
            self.modules.unload()
            found = kmemleak.find(symbols) if kmemleak.is_there() else ""
        except (AssertionError, OSError) as error:
            found = str(error)
        outcome = "failed" if found else "passed"
        self._emit("result", test=test, outcome=outcome, seconds=round(time.monotonic() - began, 2), text=found)
        self._emit("file", file=file, asked=self._asked.names(file))
