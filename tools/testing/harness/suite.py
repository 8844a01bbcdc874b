# SPDX-License-Identifier: GPL-2.0
"""Runs the functional tests: VMs are given test files, and their events become lines on the terminal."""

import json
import math
import os
import re
import sys
import time

from dmtest import kmsg

from . import cores

BOOT = "(boot)"
MARK = re.compile(re.escape(kmsg.MARK) + r"start (\S+)")


class Results:
    """Counts, and the order in which results are shown."""

    def __init__(self, suite):
        self.suite = suite
        self.outcomes = {"passed": 0, "failed": 0, "skipped": 0}
        self.unchanged = 0
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

    def add_unchanged(self, file, counts):
        """Counts what passed when it ran last, and need not run again."""
        self.unchanged += counts["passed"]
        for outcome in ("passed", "skipped"):
            self.outcomes[outcome] += counts[outcome]
        print(f"unchanged          {file}, {counts['passed']} passed", flush=True)

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
        if self.unchanged:
            counts += f" (of these {self.unchanged} unchanged)"
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
    """One VM's share of the tests; boots again with the rest of them when the kernel dies or complains, or a test hangs.

    `keep(file, counts, asked)` is called for each file that passed, in a machine that came to its end without a complaint:
    how many tests did, and for which settings they asked.
    """

    def __init__(self, label, make_vm, config, results, test_limit, boot_limit, keep=None, processor=None):
        self.label = label
        self._make_vm = make_vm
        self._config = config
        self._results = results
        self._test_limit = test_limit
        self._boot_limit = boot_limit
        self._keep = keep
        self._processor = processor
        self._boots = 0
        self._pending = None
        self._counts = {}
        self._asked = {}
        self._boot()

    def _boot(self):
        self._boots += 1
        self._vm = self._make_vm(f"{self.label}.{self._boots}" if self._boots > 1 else self.label)
        self._vm.processor = self._processor
        self._current = None
        self._since = time.monotonic()
        self._ended = self._again = False
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
                self._add(test, "failed", 0, "did not run: the VM broke off too often")
            return False
        self._config = dict(self._config, tests=self._pending, expression="", mark="", share=(0, 1))
        self._boot()
        return True

    def kill(self):
        self._vm.kill()

    def _add(self, test, outcome, *arguments):
        self._results.add(test, outcome, *arguments)
        counts = self._counts.setdefault(test.split("::")[0], {"passed": 0, "failed": 0, "skipped": 0})
        counts[outcome] += 1

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
                self._add(event["test"], event["outcome"], event["seconds"], event["text"], event.get("phases"))
            elif event["event"] == "progress":
                print(f"[{self._vm.seconds():.0f} s] {event['text']}", file=sys.stderr, flush=True)
            elif event["event"] == "figures":
                self._results.figures.append({"test": event["test"], **event["numbers"]})
                print(f"        {event['test']}: {', '.join(f'{count} {name}' for name, count in event['numbers'].items())}", flush=True)
            elif event["event"] == "file":
                self._asked[event["file"]] = event["asked"]
            elif event["event"] == "again":
                self._again = True
            elif event["event"] == "end":
                self._ended = True

    def _broken(self, why):
        test = self._current or f"{self.label} {BOOT}"
        tail = "\n".join(self._vm.read("console.log").splitlines()[-60:])
        self._add(test, "failed", time.monotonic() - self._since, f"{why}; the console's end, {self._vm.console}:\n{tail}")
        if self._current in (self._pending or []):
            self._pending.remove(self._current)

    def _scan(self):
        """Finds complaints in the kernel's log that no test was blamed for; keeps what passed if there is none."""
        lines = self._vm.read("dmesg.log").splitlines()
        found = kmsg.bad(lines)
        if found and not any(counts["failed"] for counts in self._counts.values()):
            self._add(f"{blamed(lines, found[0]) or self.label} kernel log", "failed", 0, "\n".join(found[:20]))
        if self._keep and lines and not found and self._boots == 1 and self._vm.status() == 0:
            for file, asked in self._asked.items():
                counts = self._counts.get(file)
                if counts and counts["passed"] and not counts["failed"]:
                    self._keep(file, counts, asked)


def blamed(lines, complaint):
    """The test during which a line came into a kernel's log."""
    marks = [MARK.search(line) for line in lines[:lines.index(complaint)]]
    return next((mark[1] for mark in reversed(marks) if mark), None)


def complaints(vm):
    """The lines of a VM's kernel log that mean a fault."""
    return kmsg.bad(vm.read("dmesg.log").splitlines())


def run(results, shares, at_once, make_run, times, report=None, places=1):
    """Runs all `shares`, lists of files, with at most `at_once` VMs at a time; `make_run(share, processor)` gives a Run.

    VMs wait for their turn in the queue for the processors, if there is one, where each takes so many `places`. What the tests
    took goes to the file `times`, figures to the file `report`.
    """
    took = seconds_of_files(known_times(times))
    waiting = [(share, cores.Place(places, sum(seconds_of(name, took) for name in share))) for share in shares]
    active = []
    try:
        while waiting or active:
            for one in list(waiting):
                share, place = one
                if len(active) < at_once and place.granted():
                    waiting.remove(one)
                    active.append((make_run(share, place.processor), place))
            for one in list(active):
                running, place = one
                if not running.step():
                    active.remove(one)
                    place.close()
            time.sleep(0.05)
    finally:
        for running, _ in active:
            running.kill()
    results.keep_times(times)
    if report:
        results.report(report)
    return results.finish()


# Files of which nothing is known yet and that take long, the longest first.
SLOW = [f"test_{name}.py" for name in (
    "external_origin", "lvm2", "bad_input", "power", "faults", "discard", "suspend", "cache", "memory_faults", "scale", "compare",
    "fuzzed_input", "modes", "metadata_space", "tables", "failures", "thinctl_another", "thinctl_cut", "thinctl_recipes",
)]
# A machine gets several files that are known to take less than this, until they take so many seconds together: its disks are in its
# memory, and what files leave there adds up.
SMALL = 15
TOGETHER = 45


def files(folder, wanted, times):
    """The test files to run: those that nothing is known of, then those that took longest by `times`."""
    found = sorted(name for name in os.listdir(folder) if name.startswith("test_") and name.endswith(".py"))
    if wanted:
        wanted = [os.path.basename(name) for name in wanted]
        missing = [name for name in wanted if name.split("::")[0] not in found]
        if missing:
            raise SystemExit(f"no such test file: {', '.join(missing)}")
        return wanted
    took = seconds_of_files(times)
    usual = [name for name in SLOW if name in found] + [name for name in found if name not in SLOW]
    return sorted(usual, key=lambda name: -took.get(name, math.inf))


def seconds_of_files(times):
    """What each file took, by what its tests did."""
    took = {}
    for test, phases in times.items():
        name = test.split("::")[0]
        took[name] = took.get(name, 0) + sum(phases.values())
    return took


def seconds_of(name, took):
    """What a file, or a test of it, may take."""
    usual = 100 if name in SLOW else SMALL + 1
    return took.get(name.split("::")[0], usual)


def shares(names, took, alone=()):
    """Shares the files out among machines, the longest first: small ones together, but for those that want to be `alone`."""
    found = []
    small = []
    for name in names:
        if name in alone or seconds_of(name, took) > SMALL:
            found.append([name])
        else:
            small.append(name)
    filling = {}
    for name in sorted(small, key=lambda name: -seconds_of(name, took)):
        seconds = seconds_of(name, took)
        place = next((number for number, filled in filling.items() if filled + seconds <= TOGETHER), None)
        if place is None:
            place = len(found)
            found.append([])
        filling[place] = filling.get(place, 0) + seconds
        found[place].append(name)
    return sorted(found, key=lambda share: -sum(seconds_of(name, took) for name in share))
