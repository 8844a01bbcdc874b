# SPDX-License-Identifier: GPL-2.0
"""Kills a virtual machine again and again while it works on a pool; the next one looks what became of the pool.

The pool's disks and a journal of the guest's are files on the host. What a killed machine has handed to its disks is in the
host's page cache and stays: nothing that was written is lost, but whatever the kernel had not written yet is.
"""

import json
import os
import random
import sys
import time

from . import cores, suite
from .vm import Uml

METADATA = 4 << 20
DATA = 256 << 20
PATIENCE = 240

# A machine is killed before it has written as many lines, or after so many seconds.
MOST = 400
STROKE = 20


def run(options, config):
    results = suite.Results("power")
    shared = os.path.join(options.results, "shared")
    os.makedirs(shared)
    for name, size in (("metadata", METADATA), ("data", DATA)):
        with open(os.path.join(shared, name), "wb") as file:
            file.truncate(size)
    seed = int(options.seed)
    choice = random.Random(f"kills {seed}")
    totals = {}
    for boot in range(options.kills + 1):
        last = boot == options.kills
        trial = Boot(options, dict(config, boot=boot, seed=seed, shared=shared, last=last))
        outcome, text, counts = trial.watch(None if last else choice)
        for name, count in counts.items():
            totals[name] = totals.get(name, 0) + count
        if outcome == "failed":
            text = f"{text}\nthe pool's disks are in {shared}; again: --seed {seed} --kills {options.kills}"
        results.add("the end" if last else f"kill {boot + 1} of {options.kills}", outcome, trial.vm.seconds(), text)
        if outcome == "failed":
            break
    results.figures.append({"test": "kills", "seed": seed, "kills": boot, **totals})
    print(f"        kills: {', '.join(f'{count} {name}' for name, count in totals.items())}", flush=True)
    if options.report:
        results.report(options.report)
    return results.finish()


class Boot:
    """One machine: it looks into what it finds, works, and is killed."""

    def __init__(self, options, config):
        # Not all logs are kept: two numbers take turns.
        folder = os.path.join(options.results, f"boot{config['boot'] % 2}")
        self._limit = options.test_timeout or PATIENCE
        self._shared = config["shared"]
        self._path = os.path.join(self._shared, f"journal.{config['boot']}")
        self.vm = Uml(options.kernel, folder)
        self.vm.processor = cores.processor()
        self.vm.start(config, [f"ubd{number}={os.path.join(self._shared, name)}" for number, name in enumerate(("metadata", "data"))])

    def watch(self, choice):
        """Lets it work for a while and kills it, or lets it end without a `choice`: (outcome, text, counts)."""
        try:
            # Some are killed while they look or recover.
            early = choice is not None and choice.random() < 0.1
            if not self._wait("loaded" if early else "verified"):
                return "failed", self._why("did not get ready"), {}
            end = time.monotonic() + (STROKE if choice else self._limit)
            # Whatever the machine's speed, it has got as far.
            lines = choice.randrange(MOST) if choice and not early else 0
            pause = choice.uniform(0, 0.05) if choice else 0
            while self.vm.running() and time.monotonic() < end and (choice is None or self._journal() < lines):
                time.sleep(0.01)
            time.sleep(pause)
            alive = self.vm.running()
        finally:
            self.vm.kill()
        counts = {name: count for event in self._events() for name, count in event.get("counts", {}).items()}
        failures = [event["text"] for event in self._events() if event["event"] == "failed"]
        complaints = suite.complaints(self.vm) or suite.kmsg.bad(self.vm.read("console.log").splitlines())
        if failures or complaints:
            return "failed", "\n".join([*failures, *complaints, self.vm.console]), counts
        if alive == (choice is None):
            return "failed", self._why("still works" if alive else "stopped by itself"), counts
        if choice is None and self.vm.status() != 0:
            return "failed", self._why("ended with an error"), counts
        return "passed", "", counts

    def _journal(self):
        """How many lines the journal has: two for each step."""
        try:
            with open(self._path, "rb") as file:
                return file.read().count(b"\n")
        except FileNotFoundError:
            return 0

    def _events(self):
        lines = self.vm.read("events").splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def _wait(self, name):
        shown = 0.0
        while self.vm.running() and self.vm.seconds() < self._limit:
            if any(event["event"] == name for event in self._events()):
                return True
            if self.vm.seconds() > shown + 10:
                shown = self.vm.seconds()
                print(f"[{shown:.0f} s] waiting until it is {name}", file=sys.stderr, flush=True)
            time.sleep(0.02)
        return any(event["event"] == name for event in self._events())

    def _why(self, what):
        failures = [event["text"] for event in self._events() if event["event"] == "failed"]
        return "\n".join([f"the machine {what}", *failures, *self.vm.read("console.log").splitlines()[-40:]])
