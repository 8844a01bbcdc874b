# SPDX-License-Identifier: GPL-2.0
"""A disk that can be told to fail: a mapped device on a disk, whose table is changed while it is in use."""

import itertools

from .background import wait_until
from .dm import Device

_numbers = itertools.count()


class Faulty:
    """Looks like the disk below to a pool. Needs the kernel's modules dm-flakey and dm-delay for some faults."""

    def __init__(self, disk):
        self.disk = disk
        self.name = f"faulty{next(_numbers)}"
        # A device that always fails, if there is need of one.
        self._broken = None
        self.device = Device.create(self.name, self._table(f"linear {disk.path} 0"))

    def _table(self, target):
        return f"0 {self.disk.sectors} {target}"

    def names(self):
        """Of all mapped devices that it is made of."""
        return [self.name] + ([self._broken.name] if self._broken else [])

    @property
    def path(self):
        return self.device.path

    @property
    def sectors(self):
        return self.disk.sectors

    @property
    def size(self):
        return self.disk.size

    def copy(self, name):
        return self.disk.copy(name)

    def contents(self):
        return self.disk.contents()

    def grow(self, size):
        self.disk.grow(size)
        self.heal()

    def _become(self, target):
        # Nobody's I/O is waited for, as that may wait for us.
        self.device.reload(self._table(target), noflush=True)

    def heal(self):
        """Everything works."""
        self._become(f"linear {self.disk.path} 0")

    def fail_writes(self):
        """Writes fail, reads work."""
        self._become(f"flakey {self.disk.path} 0 0 3600 1 error_writes")

    def fail_reads(self):
        """Reads fail, writes work."""
        self._become(f"flakey {self.disk.path} 0 0 3600 1 error_reads")

    def _make_broken(self):
        if not self._broken:
            self._broken = Device.create(f"{self.name}-broken", self._table("error"))

    def fail_sectors(self, start, count, reads=True, writes=True):
        """As many sectors are bad; flushes of the disk succeed."""
        self._make_broken()
        end = start + count
        ways = [f"{(self._broken if bad else self.disk).path} {start} 0" for bad in (reads, writes, False)]
        self.device.reload("\n".join(
            f"{first} {last - first} {target}" for first, last, target in (
                (0, start, f"linear {self.disk.path} 0"),
                (start, end, f"delay {' '.join(ways)}"),
                (end, self.disk.sectors, f"linear {self.disk.path} {end}"),
            ) if last > first
        ), noflush=True)

    def come_and_go(self, good, bad, how):
        """Works for `good` seconds, then is for `bad` seconds `how` dm-flakey is told, and again."""
        self._become(f"flakey {self.disk.path} 0 {good} {bad} {len(how.split())} {how}")

    def turn_flakey(self, how):
        """Is all the time as dm-flakey is told."""
        self._become(f"flakey {self.disk.path} 0 0 3600 {len(how.split())} {how}")

    def become_dusty(self, block_size):
        """Blocks can be told to be bad, by message to the device; writing to one makes it good."""
        self._become(f"dust {self.disk.path} 0 {block_size}")

    def fail(self):
        """Nothing works."""
        self._become("error")

    def delay(self, milliseconds):
        """Everything works, later."""
        self._become(f"delay {self.disk.path} 0 {milliseconds}")

    def hold(self, what, fails=False):
        """Of "writes", to which discards belong, or "flushes" none ends before the disk is told something else; then it may fail."""
        if fails:
            self._make_broken()
        ways = [(self.disk, 0) for _ in ("reads", "writes", "flushes")]
        ways[["reads", "writes", "flushes"].index(what)] = (self._broken if fails else self.disk, 10 ** 8)
        self._become(f"delay {' '.join(f'{device.path} 0 {milliseconds}' for device, milliseconds in ways)}")

    def wait_for_held(self):
        """Waits until there is something that is held."""
        def is_held():
            with open(f"/sys/block/dm-{self.device.minor}/inflight") as file:
                return sum(map(int, file.read().split())) > 0

        wait_until(is_held, "I/O that is held", 60)

    def close(self):
        if self.device:
            self.device.remove()
            self.device = None
            if self._broken:
                self._broken.remove()
