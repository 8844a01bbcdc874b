# SPDX-License-Identifier: GPL-2.0
"""The NVMe disk that the virtual machines on x86_64 have."""

import glob
import os

from .background import wait_until
from .disk import SECTOR


class NvmeDisk:
    """Looks like a `Disk` to a pool. Its content is the last user's."""

    def __init__(self, modules):
        modules.need("nvme")
        wait_until(lambda: glob.glob("/dev/nvme*n1"), "the NVMe disk", 60)
        [self.path] = glob.glob("/dev/nvme*n1")
        self.name = os.path.basename(self.path)
        with open(f"/sys/block/{self.name}/size") as file:
            self.sectors = int(file.read())
        self.size = self.sectors * SECTOR

    @staticmethod
    def is_there():
        """Whether the machine has one. Its module need not be loaded."""
        for path in glob.glob("/sys/bus/pci/devices/*/class"):
            with open(path) as file:
                if file.read().startswith("0x0108"):
                    return True
        return False

    def limit(self, name):
        """A number of the queue's limits, as in sysfs."""
        with open(f"/sys/block/{self.name}/queue/{name}") as file:
            return int(file.read())

    def close(self):
        """It stays."""
