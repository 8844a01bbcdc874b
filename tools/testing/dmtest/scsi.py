# SPDX-License-Identifier: GPL-2.0
"""A SCSI disk in the kernel's memory, by its module scsi_debug."""

import glob
import os

from . import disk
from .background import wait_until
from .disk import (
    MIB,
    SECTOR,
)

DRIVER = "/sys/bus/pseudo/drivers/scsi_debug"
ERRORS = "/sys/kernel/debug/scsi_debug"

ILLEGAL_REQUEST = "2 5 24 0"
WRITE_SAME = ("41", "93")


class ScsiDisk:
    """A disk of `size` bytes, whose zeroes can be unmapped blocks if it `unmaps`. It looks like a `Disk` to a pool."""

    def __init__(self, modules, size, unmaps=True):
        self._modules = modules
        modules.need("sd_mod")
        modules.insert_named("scsi_debug", f"dev_size_mb={size // MIB}", "lbpu=1", f"lbpws={int(unmaps)}", "delay=0")
        try:
            wait_until(lambda: self._names() and os.path.exists(f"/dev/{self._names()[0]}"), "the disk of scsi_debug")
        except BaseException:
            self.close()
            raise
        self.name = self._names()[0]
        self.path = f"/dev/{self.name}"
        self.size = size

    @staticmethod
    def _names():
        return [os.path.basename(path) for path in glob.glob(f"{DRIVER}/adapter*/host*/target*/*/block/*")]

    @property
    def sectors(self):
        return self.size // SECTOR

    def limit(self, name):
        """A number of the queue's limits, as in sysfs."""
        with open(f"/sys/block/{self.name}/queue/{name}") as file:
            return int(file.read())

    def _inject(self, format):
        [errors] = glob.glob(f"{ERRORS}/*/error")
        for command in WRITE_SAME:
            with open(errors, "w") as file:
                file.write(format.format(command))

    def refuse_write_zeroes(self):
        """Will refuse them once, upon which the kernel does not ask for them any more."""
        self._inject(f"2 1 {{}} 0 0 {ILLEGAL_REQUEST}")

    def lose_write_zeroes(self):
        """Refuses them for its last MiB."""
        self.refuse_write_zeroes()
        disk.zero_out(self.path, self.size - MIB, MIB)
        self._inject("- 2 {}")

    def close(self):
        self._modules.remove_named("scsi_debug")
