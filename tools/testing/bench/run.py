# SPDX-License-Identifier: GPL-2.0
"""Measures, inside the virtual machine, and tells the host by events."""

import contextlib
import json
import os
import shutil
import subprocess
import time
import traceback

from bench import (
    machine,
    measure,
    rows,
)

# How long a row is done for its profile: what counts of it, and all of it, most of which may be idle.
PROFILE_NS = 8_000_000_000
PROFILE_ELAPSED_NS = 400_000_000_000
# Of the metadata of the present size.
IMAGE = "/run/bench.img"


class Events:
    """Appends one JSON line per event to `events` in the results folder."""

    def __init__(self, results):
        self._path = os.path.join(results, "events")

    def emit(self, event, **fields):
        # Closing the file is what makes the line visible on the host.
        with open(self._path, "a") as file:
            file.write(json.dumps({"event": event, **fields}) + "\n")


def run(results, config, modules):
    events = Events(results)
    try:
        bench = Bench(config, modules, events)
        if config["profile"]:
            bench.profile(results)
        else:
            bench.run()
    except Exception:
        events.emit("failed", text=traceback.format_exc())
        return 1
    events.emit("end")
    return 0


class Bench:
    """One boot's share of the rows."""

    def __init__(self, config, modules, events):
        self._modules = modules
        self._events = events
        self._images = config["images"]
        self._subjects = config["subjects"]
        self._selection = [(rows.by_name(row), rows.size_by_name(size)) for row, size in config["selection"]]

    def run(self):
        self._set_up()
        for size in rows.SIZES:
            chosen = [row for row, of in self._selection if of == size]
            if chosen:
                self._size(size, chosen)

    def profile(self, results):
        """Does one row again and again; a file in the folder of results is there while that counts."""
        self._set_up()
        [(row, size)] = self._selection
        [name] = self._subjects
        self._copy_image(size)
        plain = name in ("null_blk", "linear")
        subject = machine.Plain(self._data, name) if plain else self._pool(name, size, row.state)
        subject.loads(1)
        shutil.copyfile("/proc/kallsyms", os.path.join(results, "kallsyms"))
        mark = os.path.join(results, "sampling")

        counted = 0

        @contextlib.contextmanager
        def watch():
            nonlocal counted
            open(mark, "w").close()
            begin = time.monotonic_ns()
            try:
                yield
            finally:
                counted += time.monotonic_ns() - begin
                os.unlink(mark)

        measure.watch = watch
        began = time.monotonic_ns()
        for turn in range(1000 if row.state != "delete" else 1):
            if turn and row.state == "shared":
                subject.share()
            self._events.emit("start", what=f"{name}: {row.name} {size.name}, turn {turn}")
            measure.measure(row, size, subject, turn)
            if counted > PROFILE_NS or time.monotonic_ns() - began > PROFILE_ELAPSED_NS:
                break
        if not plain:
            subject.stop()
        subject.close()

    def _set_up(self):
        self._modules.need("dm-bufio")
        with open("/sys/module/dm_bufio/parameters/max_cache_size_bytes", "w") as parameter:
            parameter.write(str(machine.BUFIO_BYTES))
        self._modules.need("dm-load")
        self._data = machine.NullBlk(self._modules, "data", rows.DATA_BYTES, irqmode=0, submit_queues=os.cpu_count())
        if any(row.state == "slow" for row, _ in self._selection):
            # What is written is stored here, or the device would have no cache to flush.
            slow = machine.NullBlk(
                self._modules, "slow", rows.GROWN_BYTES, irqmode=2, completion_nsec=5000000, memory_backed=1, cache_size=1024)
            self._slow = machine.Begin(slow, rows.DATA_BYTES)

    def _copy_image(self, size):
        """Into memory, as images are used more than once."""
        self._events.emit("start", what=f"copying the image of {size.name}")
        subprocess.run(["dd", f"if={self._images[size.name]}", f"of={IMAGE}", "bs=1M", "status=none"], check=True)

    def _size(self, size, chosen):
        if any(name in self._subjects for name in ("c", "rust")):
            self._copy_image(size)
        for name in ("null_blk", "linear"):
            part = [row for row in chosen if row.baseline]
            if part and name in self._subjects:
                subject = machine.Plain(self._data, name)
                for row in part:
                    self._measure(row, size, subject)
                subject.close()
        for name in ("c", "rust"):
            if name in self._subjects:
                self._module(name, size, chosen)

    def _module(self, name, size, chosen):
        for states in rows.STATES:
            part = [row for row in chosen if row.state in states and (name == "rust" or not isinstance(row, rows.Memory))]
            if not part:
                continue
            self._events.emit("start", what=f"{name}: metadata of {size.name}")
            subject = self._pool(name, size, part[0].state)
            for row in sorted(part, key=lambda row: states.index(row.state)):
                subject.enter(row.state)
                self._measure(row, size, subject)
            subject.stop()
            subject.close()

    def _pool(self, name, size, state):
        subject = machine.Thin(self._modules, name, size, IMAGE, self._slow if state == "slow" else self._data)
        subject.start(state)
        return subject

    def _measure(self, row, size, subject):
        self._events.emit("start", what=f"{subject.name}: {row.name} {size.name}")
        value = measure.measure(row, size, subject)
        self._events.emit("figure", row=row.name, size=size.name, subject=subject.name, value=round(value, 3))
