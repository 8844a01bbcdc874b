# SPDX-License-Identifier: GPL-2.0
"""The benchmark as seen from the host: boots, watches, and reports."""

import json
import os
import random
import sys
import time

from bench import (
    chart,
    images,
    profile,
    report,
    rows,
)

from . import suite
from .vm import Virtme

# Time counts instructions, and idle time takes none of ours.
ICOUNT = "-icount shift=0,sleep=off"
MEMORY = "4G"
BOOT_LIMIT = 240
SILENCE_LIMIT = 600


class Broken(Exception):
    """The run gave no figures that could be believed."""


class Progress:
    """Says on standard error what is being done, whenever that has taken a while."""

    EVERY = 15

    def __init__(self):
        self._began = time.monotonic()
        self._shown = self._began

    def say(self, text):
        self._shown = time.monotonic()
        seconds = int(self._shown - self._began)
        print(f"[{seconds // 60}:{seconds % 60:02}] {text}", file=sys.stderr, flush=True)

    def tick(self, text):
        if time.monotonic() - self._shown >= self.EVERY:
            self.say(text)


class Machine:
    """One boot of the benchmark's machine; `on_event` is given each event, `idle` called in between."""

    def __init__(self, vm, config, progress, on_event, idle=lambda: time.sleep(0.1)):
        self.vm = vm
        self._idle = idle
        self._progress = progress
        self._on_event = on_event
        self._doing = "boot"
        self._ended = False
        vm.start(config)

    def run(self):
        """Until the guest has told its end. Raises Broken."""
        since = time.monotonic()
        try:
            while True:
                alive = self.vm.running()
                if self._events():
                    since = time.monotonic()
                if self._ended:
                    break
                if not alive:
                    raise Broken(self._trouble("it stopped"))
                if time.monotonic() - since > (BOOT_LIMIT if self._doing == "boot" else SILENCE_LIMIT):
                    raise Broken(self._trouble("no progress"))
                self._progress.tick(self._doing)
                self._idle()
            end = time.monotonic() + 60
            while self.vm.running() and time.monotonic() < end:
                time.sleep(0.1)
        finally:
            self.vm.kill()
        complaints = suite.complaints(self.vm)
        if complaints:
            raise Broken("the kernel complained:\n" + "\n".join(complaints[:20]))
        if self.vm.status() != 0:
            raise Broken(self._trouble("it did not end well"))

    def _trouble(self, why):
        tail = "\n".join(self.vm.read("console.log").splitlines()[-40:])
        return f"{why} at: {self._doing}; the console's end, {self.vm.console}:\n{tail}"

    def _events(self):
        fresh = self.vm.new_lines("events")
        for line in fresh:
            event = json.loads(line)
            if event["event"] == "start":
                self._doing = event["what"]
            elif event["event"] == "failed":
                raise Broken(f"{self._doing}: {event['text']}")
            elif event["event"] == "end":
                self._ended = True
            self._on_event(event)
        return bool(fresh)


class Run:
    """All of `make bench`."""

    def __init__(self, options, config):
        self.options = options
        self.config = config
        self.progress = Progress()
        self.figures = report.Figures()
        if options.profile:
            options.rows = [options.profile]
            options.sizes = options.sizes or [rows.MAIN.name]
        self.selection = rows.select(options.rows, options.sizes)
        self.subjects = [subject for subject in rows.SUBJECTS if subject in ("null_blk", "linear") or subject in config["implementations"]]

    def is_complete(self):
        return self.selection == rows.select([], []) and "rust" in self.subjects

    def images(self):
        found = {}
        for size in {size for _, size in self.selection}:
            self.progress.tick(f"metadata with {size.name} mappings")
            found[size.name] = images.image(size, self.options.images)
        return found

    def measure(self):
        """Boots for all rows that take one CPU, then for those that take two."""
        found = self.images()
        for cpus, name, qemu in ((1, "one-cpu", [ICOUNT]), (2, "two-cpus", [])):
            selection = [(row.name, size.name) for row, size in self.selection if row.cpus == cpus]
            if selection:
                config = dict(self.config, profile=False, images=found, subjects=self.subjects, selection=selection)
                vm = Virtme(self.options.kernel, os.path.join(self.options.results, name), self.options.vng, cpus, MEMORY, qemu, first=cpus > 1)
                Machine(vm, config, self.progress, self._figure).run()

    def profile(self):
        """Shows where one row's instructions go."""
        monitor = profile.Monitor()
        samples = profile.Profile()
        results = os.path.join(self.options.results, "profile")
        mark = os.path.join(results, "sampling")
        symbols = None

        def sample():
            nonlocal symbols
            if not os.path.exists(mark):
                time.sleep(0.002)
                return
            if symbols is None:
                with open(os.path.join(results, "kallsyms")) as file:
                    symbols = profile.Symbols(file)
            # Many at once, as looking for events takes longer.
            for _ in range(50):
                where = monitor.where()
                if not os.path.exists(mark):
                    break
                samples.add(symbols, *where)
                time.sleep(random.uniform(0, 0.001))

        [(row, size)] = self.selection
        config = dict(
            self.config, profile=True, images=self.images(), subjects=[self.options.impl], selection=[(row.name, size.name)],
        )
        vm = Virtme(self.options.kernel, results, self.options.vng, 1, MEMORY, [ICOUNT, monitor.option])
        Machine(vm, config, self.progress, lambda event: None, sample).run()
        print(f"{self.options.impl}: {row.name} {size.name}")
        print("\n".join(samples.table()))

    def _figure(self, event):
        if event["event"] != "figure":
            return
        row, size, subject = event["row"], event["size"], event["subject"]
        self.figures.add(row, size, subject, event["value"])
        if subject == self.subjects[-1]:
            print(self.figures.line(row, size), flush=True)


def run(options, config):
    running = Run(options, config)
    if not running.selection:
        print("bench: no such row or size", file=sys.stderr)
        return 2
    try:
        if options.profile:
            running.profile()
            return 0
        running.measure()
    except Broken as error:
        print(f"bench: FAILED: {error}", file=sys.stderr)
        return 1
    print()
    print(report.text(running.figures), end="")
    save(running.figures, options.results, config)
    if options.document and running.is_complete():
        save(running.figures, options.document, config)
        chart.draw(running.figures, os.path.join(options.document, "benchmark.svg"))
    return 0


def save(figures, folder, config):
    figures.write(os.path.join(folder, "benchmark.json"), {"kernel": config["release"]})
    with open(os.path.join(folder, "benchmark.txt"), "w") as file:
        file.write(report.text(figures))
