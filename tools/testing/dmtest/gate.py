# SPDX-License-Identifier: GPL-2.0
"""A disk whose I/O waits, or fails, exactly when a test says so: our target `gate`, from the load generator's module."""

from .background import wait_until
from .faulty import Faulty

# What the status line counts.
COUNTS = ("read", "write", "flush", "discard", "zeroes", "undo", "suspend")


class Gate(Faulty):
    """Looks like the disk below to a pool. The words are those of the target's messages."""

    def __init__(self, disk):
        super().__init__(disk)
        self._become(f"gate {disk.path}")

    def hold(self, *kinds):
        """What comes of these kinds waits."""
        self.device.message(f"hold {' '.join(kinds)}")

    def fail(self, *kinds):
        """What comes of these kinds fails."""
        self.device.message(f"fail {' '.join(kinds)}")

    def release(self, count=1):
        """As many of those that wait go on, or fail if their kind does by now."""
        self.device.message(f"release {count}")

    def let_pass(self, *kinds):
        """Nothing of these kinds waits any more, nor fails."""
        self.device.message(f"pass {' '.join(kinds)}".strip())

    def heal(self):
        self.let_pass()

    def held(self, kind):
        """How many wait of this kind."""
        return int(self.device.status(noflush=True).split()[COUNTS.index(kind)])

    def wait_for(self, kind, count=1):
        """Waits until as many wait."""
        wait_until(lambda: self.held(kind) >= count, f"{count} held: {kind}")
