# SPDX-License-Identifier: GPL-2.0
"""How the figure of each kind of row comes about. `subject` is a machine.Plain or a machine.Thin."""

import contextlib
import json
import subprocess
import threading
import time

from bench import (
    machine,
    memory,
    rows,
)
from dmtest import disk

# What surrounds that which counts.
watch = contextlib.nullcontext


class Slots:
    """Where a row's I/O goes, on each of the volumes that take part."""

    def __init__(self, row, size, turn=0):
        self.volumes = min(size.volumes, row.count)
        self.count = row.count // self.volumes
        mapped = size.per_volume * rows.BLOCK
        # Requests that are about blocks have one each, however small they are.
        self.stride = row.bytes if row.pattern in ("seq", "random") and not row.each_block else max(row.bytes, rows.BLOCK)
        self.slots = self.count
        if row.area == "spread":
            self.slots = min(self.count, size.per_volume)
            self.start, self.stride = 0, mapped // self.slots
        elif row.area == "leaves":
            self.slots = min(self.count, max(1, size.per_volume // 1024))
            self.start, self.stride = 0, mapped // 2 // self.slots
        elif row.area in ("third", "fourth"):
            self.start = mapped // 4 * {"third": 2, "fourth": 3}[row.area]
        else:
            self.start = rows.TIB + rows.ROWS.index(row) * 256 * rows.GIB
            self.slots *= 4 if row.area == "sparse" else 1
            self.start += turn * self.length

    @property
    def length(self):
        return self.slots * self.stride

    def place(self):
        return {"start": self.start, "length": self.length, "stride": self.stride}


def io(row, size, subject, turn=0):
    slots = Slots(row, size, turn)
    thin = isinstance(subject, machine.Thin)
    if not thin and slots.start >= rows.TIB:
        # null_blk and dm-linear are as small as the data device.
        slots.start = 0
    loads = subject.loads(slots.volumes)
    if thin:
        prepare(row, slots, loads)
    options = dict(word.split("=") for word in row.options.split())
    count = min(slots.count, slots.slots) if row.pattern == "shuffle" else slots.count
    ns = ios = 0
    for number in range(max(1, slots.count // slots.slots) if row.cold else 1):
        if row.cold and thin:
            subject.forget()
        for load in loads:
            with watch():
                report = load.run(row.op, row.pattern, row.bytes, count, latency=0, seed=number + 1, **slots.place(), **options)
            ns += report["ns"]
            ios += report["ios"]
    return ns / ios


def prepare(row, slots, loads):
    for load in loads:
        if row.warm:
            warm(load, slots.start, slots.length, max(slots.stride, rows.BLOCK))
        if row.area == "written":
            load.run("write", "seq", rows.BLOCK, slots.length // rows.BLOCK, latency=0, start=slots.start, length=slots.length)


def warm(load, start, length, stride):
    """Reads something of every block, twice."""
    for _ in range(2):
        load.run("read", "seq", 4 * rows.KIB, length // stride, latency=0, start=start, length=length, stride=stride)


def call(row, size, subject, turn=0):
    with watch():
        return sum(getattr(subject, row.method)() for _ in range(row.repeat)) / row.repeat


def fio(row, size, subject, turn=0):
    count = 32 * rows.KIB
    bytes_mapped = min(size.per_volume * rows.BLOCK, rows.GIB)
    if isinstance(subject, machine.Thin):
        warm(subject.loads(1)[0], 0, bytes_mapped, rows.BLOCK)
    done = subprocess.run(
        ["fio", "--name=bench", f"--filename={subject.paths[0]}", "--direct=1", f"--rw={row.op}", "--bs=4k", "--ioengine=io_uring",
         "--iodepth=32", f"--size={bytes_mapped}", f"--number_ios={count}", "--randrepeat=1", "--norandommap=1", "--clocksource=clock_gettime",
         "--thread", "--output-format=json"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"fio: {done.stdout[-1500:]}{done.stderr[-1500:]}")
    job = json.loads(done.stdout)["jobs"][0]
    side = job["read" if row.op == "randread" else "write"]
    if job["error"] or side["total_ios"] != count:
        raise RuntimeError(f"fio: error {job['error']}, {side['total_ios']} I/Os instead of {count}")
    return side["runtime"] * 1e6 / count


class Beside(threading.Thread):
    """A run of the load generator while the caller goes on."""

    def __init__(self, load, *arguments, **options):
        super().__init__()
        self._arguments = (load, arguments, options)
        self._report = None
        self._error = None
        self.start()

    def run(self):
        load, arguments, options = self._arguments
        try:
            self._report = load.run(*arguments, **options)
        except Exception as error:
            self._error = error

    def finish(self):
        self.join()
        if self._error:
            raise self._error
        return self._report


def latency(row, size, subject, turn=0):
    reads = {"start": 0, "length": 4 * rows.KIB * rows.BLOCK, "stride": rows.BLOCK}
    reader = subject.loads(1)[0]
    warm(reader, **reads)
    other = subject.beside()
    began = time.monotonic_ns()
    if row.commits:
        writer = Beside(other, "write", "seq", rows.BLOCK, 800, depth=1, fua_every=1, start=subject.fresh(rows.GIB))
    else:
        writer = Beside(other, "write", "seq", rows.BLOCK, 1200, depth=1, **reads)
    report = reader.run("read", "random", 4 * rows.KIB, 8000, threads=8, depth=1, **reads)
    written = writer.finish()
    elapsed = time.monotonic_ns() - began
    other.close()
    if written["ns"] < report["ns"] or elapsed > written["ns"] + report["ns"] // 2:
        raise RuntimeError(f"{row.name}: reads took {report['ns']} ns, writes {written['ns']} ns, both {elapsed} ns: not at one time")
    return report[row.field]


# If all threads have to wait once, that is more than one of a thousand reads.
NEIGHBOUR_READS = 8000
NEIGHBOUR_THREADS = 32


def neighbour(row, size, subject, turn=0):
    if row.method not in subject.reports:
        subject.reports[row.method] = beside_work(row, subject)
    return subject.reports[row.method][row.field]


def beside_work(row, subject):
    """What the generator reports of reads that were under way when the work began."""
    area = {"start": 0, "length": 4 * rows.KIB * rows.BLOCK, "stride": rows.BLOCK}
    volume = subject.neighbour()
    load = machine.Load(volume.path, volume.size // 512)
    load.run("write", "seq", 4 * rows.KIB, 4 * rows.KIB, **area)
    warm(load, **area)
    before = reads(volume)
    reader = Beside(load, "read", "random", 4 * rows.KIB, NEIGHBOUR_READS, threads=NEIGHBOUR_THREADS, depth=1, **area)
    while reader.is_alive() and reads(volume) < before + NEIGHBOUR_READS // 16:
        time.sleep(0.001)
    done = reads(volume) - before
    if done > NEIGHBOUR_READS // 4:
        raise RuntimeError(f"{row.name}: {done} reads were done before anything else began")
    getattr(subject, row.method)()
    report = reader.finish()
    load.close()
    return report


def reads(volume):
    """How many the kernel has counted."""
    return disk.stat(volume.path, 0)


def scale(row, size, subject, turn=0):
    """Many short comparisons, of which the best times count: in between, the host has other things to do."""
    reads = {"start": 0, "length": size.per_volume * rows.BLOCK, "stride": rows.BLOCK, "latency": 0}
    loads = subject.loads(row.volumes)
    if isinstance(subject, machine.Thin):
        for load in loads:
            warm(load, reads["start"], reads["length"], reads["stride"])
    count = 8 * rows.KIB
    ones, twos = [], []
    for _ in range(60):
        ones.append(loads[0].run("read", "random", 4 * rows.KIB, count, cpu=0, **reads)["ns"])
        if row.volumes == 1:
            twos.append(loads[0].run("read", "random", 4 * rows.KIB, 2 * count, threads=2, **reads)["ns"])
        else:
            runs = [Beside(load, "read", "random", 4 * rows.KIB, count, cpu=cpu, **reads) for cpu, load in enumerate(loads)]
            twos.append(max(run.finish()["ns"] for run in runs))
    return 2 * min(ones) / min(twos)


def in_memory(row, size, subject, turn=0):
    return getattr(memory.Cache(subject), row.method)()


KINDS = {rows.Io: io, rows.Call: call, rows.Fio: fio, rows.Latency: latency, rows.Neighbour: neighbour, rows.Memory: in_memory, rows.Scale: scale}


def measure(row, size, subject, turn=0):
    """The figure; whoever measures a row again counts the turns, so that new blocks are new."""
    return KINDS[type(row)](row, size, subject, turn)
