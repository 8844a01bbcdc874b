# SPDX-License-Identifier: GPL-2.0
"""A disk that can be told to fail: a mapped device on a disk, whose table is changed while it is in use."""

import itertools

from .background import wait_until
from .dm import Device

_numbers = itertools.count()

# What is held waits for so long that nobody sees the end of it.
_HELD = 3600 * 1000


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
        self._become_within(start, end, " ".join(ways))

    def _become_within(self, start, end, ways):
        """Is a delay with these `ways` for sectors from `start` to `end`, and works elsewhere."""
        self.device.reload("\n".join(
            f"{first} {last - first} {target}" for first, last, target in (
                (0, start, f"linear {self.disk.path} 0"),
                (start, end, f"delay {ways}"),
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

    def delay_writes(self, milliseconds):
        """Writes and discards work later, all else at once."""
        self._become(f"delay {self.disk.path} 0 0 {self.disk.path} 0 {milliseconds} {self.disk.path} 0 0")

    def hold(self, *kinds, start=0, count=None, fails=False):
        """All "reads", "writes" (discards are), "flushes" that come for as many sectors wait until the disk becomes something else.

        What waits may fail then.
        """
        if fails:
            self._make_broken()
        end = self.disk.sectors if count is None else start + count
        ways = " ".join(
            f"{(self._broken if fails else self.disk).path} {start} {_HELD}" if kind in kinds else f"{self.disk.path} {start} 0"
            for kind in ("reads", "writes", "flushes"))
        self._become_within(start, end, ways)

    def held(self):
        """How much of that waits at this moment."""
        return sum(int(word) for line in self.device.status(noflush=True).splitlines() for word in line.split())

    def wait_for_held(self):
        """Waits until there is something that is held."""
        wait_until(lambda: self.held() > 0, "I/O that is held", 60)

    def close(self):
        if self.device:
            self.device.remove()
            self.device = None
            if self._broken:
                self._broken.remove()
