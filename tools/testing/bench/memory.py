# SPDX-License-Identifier: GPL-2.0
"""What the mapping cache takes of the memory, and whether it gives it back."""

import mmap

from bench import (
    machine,
    rows,
)

STEP = 4 * rows.MIB


class Cache:
    """The mapping cache of a pool."""

    def __init__(self, subject):
        self._subject = subject
        self._load = subject.loads(1)[0]

    def _read(self, blocks, distance):
        """Begins with nothing, and reads so many blocks, each so far from the last one. Reading again finds what is missed at first."""
        self._subject.forget()
        for _ in range(2):
            self._load.run("read", "seq", 4 * rows.KIB, blocks, latency=0, stride=distance * rows.BLOCK, length=blocks * distance * rows.BLOCK)
        found = self._subject.cache_stats()
        if not found["mappings"]:
            raise RuntimeError("nothing is cached")
        return found

    def _spread(self):
        return self._read(rows.MAIN.mapped // 64, 64)

    def dense(self):
        found = self._read(64 * rows.KIB, 1)
        return found["bytes"] / found["mappings"]

    def spread(self):
        found = self._spread()
        return found["bytes"] / found["mappings"]

    def limit(self):
        self._subject.forget()
        self._subject.set_cache_limit(64)
        try:
            self._load.run("read", "seq", 4 * rows.KIB, rows.MAIN.mapped // 64, latency=0, stride=64 * rows.BLOCK)
            return self._subject.cache_stats()["pages"]
        finally:
            self._subject.set_cache_limit(machine.CACHE_PAGES)

    def drop_caches(self):
        before = self._spread()["pages"]
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("2")
        return 100 * self._subject.cache_stats()["pages"] / before

    def pressure(self):
        """Takes memory until the cache has given back a part of it, or there is hardly any left."""
        before = self._spread()["pages"]
        taken = []
        try:
            while True:
                left = self._subject.cache_stats()["pages"]
                if left < before * 9 // 10 or free() < 8 * rows.MIB:
                    return 100 * left / before
                taken.append(mmap.mmap(-1, max(STEP, free() // 4), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE))
        finally:
            for one in taken:
                one.close()


def free():
    """The bytes of memory that nobody uses, not even for something that may be dropped."""
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) * rows.KIB for line in file if line.startswith("MemFree"))
