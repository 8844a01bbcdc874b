# SPDX-License-Identifier: GPL-2.0
"""A disk that can be told to fail: a mapped device on a disk, whose table is changed while it is in use."""

import itertools

from .dm import Device

_numbers = itertools.count()


class Faulty:
    """Looks like the disk below to a pool. Needs the kernel's modules dm-flakey and dm-delay for some faults."""

    def __init__(self, disk):
        self.disk = disk
        self.name = f"faulty{next(_numbers)}"
        self.device = Device.create(self.name, self._table(f"linear {disk.path} 0"))

    def _table(self, target):
        return f"0 {self.disk.sectors} {target}"

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

    def fail(self):
        """Nothing works."""
        self._become("error")

    def delay(self, milliseconds):
        """Everything works, later."""
        self._become(f"delay {self.disk.path} 0 {milliseconds}")

    def close(self):
        if self.device:
            self.device.remove()
            self.device = None
