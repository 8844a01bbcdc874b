# SPDX-License-Identifier: GPL-2.0
"""Runs the functional tests: VMs are given test files, and their events become lines on the terminal."""

import json
import math
import os
import sys
import time

from dmtest import kmsg

BOOT = "(boot)"


class Results:
    """Counts, and the order in which results are shown."""

    def __init__(self, suite):
        self.suite = suite
        self.outcomes = {"passed": 0, "failed": 0, "skipped": 0}
        self.figures = []
        self.times = {}
        self.began = time.monotonic()

    def add(self, test, outcome, seconds, text="", phases=None):
        """Counts a test that took `seconds`: in `phases` "setup", "call" and "teardown", as far as is known."""
        self.outcomes[outcome] += 1
        self.times[test] = phases or {"call": seconds}
        print(f"{outcome.upper() if outcome == 'failed' else outcome:7} {seconds:6.1f} s  {test}", flush=True)
        if outcome == "failed" and text:
            print("    " + text.rstrip().replace("\n", "\n    "), flush=True)

    def report(self, path):
        """Appends the counts and all figures to the file `path`, as a line of JSON."""
        with open(path, "a") as file:
            file.write(json.dumps({"suite": self.suite, **self.outcomes, "figures": self.figures}) + "\n")

    def keep_times(self, path):
        """Writes to the file `path` what the tests took, beside what is known there of others: see `known_times`."""
        kept = {**known_times(path), **self.times}
        with open(f"{path}.new", "w") as file:
            json.dump(kept, file, indent=0)
        os.replace(f"{path}.new", path)

    def finish(self):
        """Prints the suite's last line and returns its exit code."""
        phases = {when: sum(phases.get(when, 0) for phases in self.times.values()) for when in ("setup", "call", "teardown")}
        print(f"{self.suite}: {', '.join(f'{when} {seconds:.0f} s' for when, seconds in phases.items())}", flush=True)
        counts = ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.items())
        print(f"{self.suite}: {counts} in {time.monotonic() - self.began:.0f} s", flush=True)
        return 0 if self.outcomes["passed"] and not self.outcomes["failed"] else 1


def known_times(path):
    """What tests took when they ran last: the seconds of "setup", "call" and "teardown" by their names."""
    try:
        with open(path) as file:
            return json.load(file)
    except (FileNotFoundError, ValueError):
        return {}


class Run:
    """One VM's share of the tests; boots again with the rest of them when the kernel dies or complains, or a test hangs."""

    def __init__(self, label, make_vm, config, results, test_limit, boot_limit):
        self.label = label
        self._make_vm = make_vm
        self._config = config
        self._results = results
        self._test_limit = test_limit
        self._boot_limit = boot_limit
        self._boots = 0
        self._pending = None
        self._boot()

    def _boot(self):
        self._boots += 1
        self._vm = self._make_vm(f"{self.label}.{self._boots}" if self._boots > 1 else self.label)
        self._current = None
        self._since = time.monotonic()
        self._ended = self._again = False
        self._failed_before = self._results.outcomes["failed"]
        self._vm.start(self._config)

    def step(self):
        """Looks after the VM; returns whether there is more to do."""
        alive = self._vm.running()
        self._events()
        limit = self._test_limit if self._current else self._boot_limit
        waited = time.monotonic() - self._since
        if alive and waited < limit:
            return True
        if alive:
            self._broken(f"no progress for {waited:.0f} s")
        elif not self._ended and not self._again:
            self._broken("the VM stopped")
        self._vm.kill()
        if self._ended:
            self._scan()
            return False
        if not self._pending or self._boots > 20:
            for test in self._pending or []:
                self._results.add(test, "failed", 0, "did not run: the VM broke off too often")
            return False
        self._config = dict(self._config, tests=self._pending, expression="", mark="", share=(0, 1))
        self._boot()
        return True

    def kill(self):
        self._vm.kill()

    def _events(self):
        for line in self._vm.new_lines("events"):
            event = json.loads(line)
            self._since = time.monotonic()
            if event["event"] == "collected":
                self._pending = event["tests"]
            elif event["event"] == "start":
                self._current = event["test"]
            elif event["event"] == "result":
                self._current = None
                if event["test"] in (self._pending or []):
                    self._pending.remove(event["test"])
                self._results.add(event["test"], event["outcome"], event["seconds"], event["text"], event.get("phases"))
            elif event["event"] == "progress":
                print(f"[{self._vm.seconds():.0f} s] {event['text']}", file=sys.stderr, flush=True)
            elif event["event"] == "figures":
                self._results.figures.append({"test": event["test"], **event["numbers"]})
                print(f"        {event['test']}: {', '.join(f'{count} {name}' for name, count in event['numbers'].items())}", flush=True)
            elif event["event"] == "again":
                self._again = True
            elif event["event"] == "end":
                self._ended = True

    def _broken(self, why):
        test = self._current or f"{self.label} {BOOT}"
        tail = "\n".join(self._vm.read("console.log").splitlines()[-60:])
        self._results.add(test, "failed", time.monotonic() - self._since, f"{why}; the console's end, {self._vm.console}:\n{tail}")
        if self._current in (self._pending or []):
            self._pending.remove(self._current)

    def _scan(self):
        """Finds complaints in the kernel's log that no test was blamed for."""
        found = complaints(self._vm)
        if found and self._results.outcomes["failed"] == self._failed_before:
            self._results.add(f"{self.label} kernel log", "failed", 0, "\n".join(found[:20]))


def complaints(vm):
    """The lines of a VM's kernel log that mean a fault."""
    return kmsg.bad(vm.read("dmesg.log").splitlines())


def run(results, shares, at_once, make_run, times, report=None):
    """Runs all `shares` with at most `at_once` VMs at a time; `make_run(share)` gives a Run.

    What the tests took goes to the file `times`, figures to the file `report`.
    """
    waiting = list(shares)
    active = []
    try:
        while waiting or active:
            while waiting and len(active) < at_once:
                active.append(make_run(waiting.pop(0)))
            active = [one for one in active if one.step()]
            time.sleep(0.05)
    finally:
        for one in active:
            one.kill()
    results.keep_times(times)
    if report:
        results.report(report)
    return results.finish()


def files(folder, wanted, times):
    """The test files to run: those that nothing is known of, then those that took longest by `times`."""
    found = sorted(name for name in os.listdir(folder) if name.startswith("test_") and name.endswith(".py"))
    if wanted:
        wanted = [os.path.basename(name) for name in wanted]
        missing = [name for name in wanted if name.split("::")[0] not in found]
        if missing:
            raise SystemExit(f"no such test file: {', '.join(missing)}")
        return wanted
    took = {}
    for test, phases in times.items():
        name = test.split("::")[0]
        took[name] = took.get(name, 0) + sum(phases.values())
    # Where nothing is known yet.
    slow = [f"test_{name}.py" for name in (
        "external_origin", "lvm2", "bad_input", "power", "faults", "discard", "suspend", "cache", "memory_faults", "scale", "compare",
        "fuzzed_input", "modes", "metadata_space", "tables", "failures",
    )]
    usual = [name for name in slow if name in found] + [name for name in found if name not in slow]
    return sorted(usual, key=lambda name: -took.get(name, math.inf))
