# SPDX-License-Identifier: GPL-2.0
"""The states that a power cut may leave two devices in, made from their write log one after the other."""

import os
from dataclasses import dataclass

from .history import promises
from .write_log import (
    FUA,
    SECTOR,
)


class Image:
    """What is stable on a device, in a file, and what was completed since, in its order."""

    def __init__(self, log, file):
        self._log = log
        self._file = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        self.file = file
        self.pending = []

    def write(self, offset, data):
        os.pwrite(self._file, data, offset)

    def read(self, offset, length):
        return os.pread(self._file, length, offset)

    def add(self, entry):
        if entry.flags & FUA:
            # It passes by what is still in the cache, but an older write there must not overwrite it later.
            self.pending.append(entry)
            self._settle(entry)
        else:
            self.pending.append(entry)

    def _settle(self, entry):
        overlapping = [other for other in self.pending if other.sector < entry.sector + entry.sectors
                       and entry.sector < other.sector + other.sectors]
        for other in overlapping:
            self._apply(other)
            self.pending.remove(other)

    def flush(self):
        for entry in self.pending:
            self._apply(entry)
        self.pending = []

    def _apply(self, entry):
        self.write(entry.sector * SECTOR, self._log.data(entry))

    def some(self, choice):
        """Some of the pending writes, the last of them possibly torn, as (offset, bytes) in their order."""
        share = choice.choice((0.1, 0.5, 0.9))
        chosen = []
        for entry in self.pending:
            if choice.random() < share:
                data = self._log.data(entry)
                if choice.random() < 0.2:
                    # Single sectors of it arrived.
                    for start in range(0, len(data), SECTOR):
                        if choice.random() < 0.5:
                            chosen.append((entry.sector * SECTOR + start, data[start:start + SECTOR]))
                else:
                    chosen.append((entry.sector * SECTOR, data))
        return chosen

    def close(self):
        os.close(self._file)


@dataclass
class Point:
    """A moment in the log: after the entry `index`."""

    index: int
    entry: object


class Replay:
    """Walks a log. `history` is told of the marks on the way: `b<n>` and `e<n>` for the begin and the end of step n."""

    def __init__(self, entries, logs, metadata_file, data_file, history, steps):
        self._entries = entries
        self.images = {"metadata": Image(logs["metadata"], metadata_file), "data": Image(logs["data"], data_file)}
        self._history = history
        self._steps = steps
        self.marks = set()

    def points(self):
        """Every moment just before and after a flush, after every FUA, and when something was promised to be stable.

        The images are as they are then.
        """
        for index, entry in enumerate(self._entries):
            if entry.mark:
                if self._mark(entry.mark):
                    yield "promised", Point(index, entry)
                continue
            image = self.images[entry.device]
            if entry.is_flush():
                yield "before", Point(index, entry)
                image.flush()
                yield "after", Point(index, entry)
            else:
                image.add(entry)
                if entry.flags & FUA:
                    yield "after", Point(index, entry)

    def _mark(self, text):
        """Takes note of a mark; whether something is stable from here on."""
        self.marks.add(text)
        if not text[1:].isdigit():
            return False
        number = int(text[1:])
        step = self._steps[number]
        if text[0] == "b":
            self._history.begin(number, step)
            return False
        self._history.end(number)
        return promises(step)

    def close(self):
        for image in self.images.values():
            image.close()
