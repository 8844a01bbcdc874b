# SPDX-License-Identifier: GPL-2.0
"""The order in which a pool's two devices were written and flushed, by the kernel's dm-log-writes and our target `order`.

Each device has a log of its own, for a flush of one makes nothing stable on the other:

    metadata         data
       |               |
     order           order         numbers the flushes and FUA writes of both
       |               |
    log-writes      log-writes     what was completed before which of the device's flushes
       |               |
      disk            disk

dm-log-writes logs a write when a flush that was sent after the write's completion has completed, and just before that; a FUA
write at its own completion. The numbers say how the two logs are to be put together: flush by flush, each with what comes
before it in its own log. A write that is not FUA says no more than that it had completed by then. Marks are put into both
logs, before a step's first I/O and after its last, and count where the first of them is met. A device gets one flush at a time:
one that overtakes another would end before the writes are logged that the other one has taken along.
"""

import os
import struct
from dataclasses import dataclass

from .dm import Device

SECTOR = 512

FLUSH = 1
FUA = 2
DISCARD = 4
MARK = 8

_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
_MAGIC = 0x6A736677736872


@dataclass
class Entry:
    """One entry of a log: a write, discard, flush, mark, or a flush with data."""

    sector: int
    sectors: int
    flags: int
    mark: str
    # Where the data is in the log.
    place: int
    # "metadata" or "data".
    device: str
    # Of a flush or a FUA write: which one it is among those of both devices.
    number: int = None

    def is_flush(self):
        return bool(self.flags & FLUSH)


class Log:
    """What dm-log-writes left in the file `path`, for the device `name`."""

    def __init__(self, path, name):
        self.name = name
        self._file = open(path, "rb")
        magic, version, count, size = _SUPER.unpack(self._file.read(_SUPER.size))
        assert (magic, version, size) == (_MAGIC, 1, SECTOR), "not a log"
        self.entries = []
        offset = SECTOR
        for _ in range(count):
            head = os.pread(self._file.fileno(), SECTOR, offset)
            sector, sectors, flags, length = _ENTRY.unpack_from(head)
            offset += SECTOR
            text = head[_ENTRY.size:_ENTRY.size + length].decode() if flags & MARK else ""
            self.entries.append(Entry(sector, sectors, flags, text, offset, name))
            if not flags & DISCARD:
                offset += sectors * SECTOR

    def data(self, entry):
        if entry.flags & DISCARD:
            return bytes(entry.sectors * SECTOR)
        return os.pread(self._file.fileno(), entry.sectors * SECTOR, entry.place)

    def close(self):
        self._file.close()


class Part:
    """One of the two devices, as pools and their table want disks to be."""

    def __init__(self, disk, log, name):
        self.size = disk.size
        self.sectors = disk.sectors
        self._log = log
        self._below = Device.create(f"{name}-log", f"0 {self.sectors} log-writes {disk.path} {log.path}")
        try:
            self.device = Device.create(f"{name}-order", f"0 {self.sectors} order {self._below.path}")
        except OSError:
            self._below.remove()
            raise
        self.path = self.device.path

    def mark(self, text):
        self._below.message(f"mark {text}")

    def stop(self, name):
        """Ends the log and returns it, all flushes and FUA writes numbered."""
        assert "logging_disabled" not in self._below.status(), f"the log of {name} is full"
        numbers = []
        while len(numbers) < int(self.device.status()):
            numbers += [int(word) for word in self.device.ask(f"numbers {len(numbers)}").split()[1:]]
        self.device.remove()
        self._below.remove()
        log = Log(self._log.file, name)
        ordered = [entry for entry in log.entries if entry.flags & (FLUSH | FUA)]
        assert len(ordered) == len(numbers), f"{name}: {len(ordered)} flushes and FUA writes were logged, {len(numbers)} seen"
        for entry, number in zip(ordered, numbers):
            entry.number = number
        return log


class Recorder:
    """Makes `metadata` and `data`, of these sizes, on new disks, and logs what is written to them until stop()."""

    def __init__(self, make_disk, metadata_size, data_size, log_size):
        self.metadata, self.data = (
            Part(make_disk(size, name), make_disk(log_size, f"{name}-log"), name)
            for name, size in (("metadata", metadata_size), ("data", data_size))
        )

    def mark(self, text):
        """Puts a word into both logs: all that has completed so far and was flushed is before it."""
        self.metadata.mark(text)
        self.data.mark(text)

    def stop(self):
        """Ends the logs; returns the entries of both in their order, and the two logs that hold the data."""
        logs = self.metadata.stop("metadata"), self.data.stop("data")
        return merge(*logs), {log.name: log for log in logs}


def merge(*logs):
    """All entries, as the numbers of the flushes and FUA writes tell; of a mark only what is met first."""
    groups = []
    for log in logs:
        group = []
        for entry in log.entries:
            group.append(entry)
            if entry.number is not None:
                groups.append((entry.number, group))
                group = []
        # What was never flushed comes last.
        groups.append((float("inf"), group))
    merged, marks = [], set()
    for _, group in sorted(groups, key=lambda group: group[0]):
        for entry in group:
            if entry.mark and entry.mark in marks:
                continue
            marks.add(entry.mark)
            merged.append(entry)
    return merged
