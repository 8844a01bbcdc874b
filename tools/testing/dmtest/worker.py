# SPDX-License-Identifier: GPL-2.0
"""The worker of a pool, stopped where a test wants it to be."""

import glob

from .background import (
    Background,
    wait_until,
)


def _states():
    """The states of the workers of pools that are in the midst of their work."""
    found = []
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            with open(path) as file:
                name, state = file.read().rsplit(")", 1)
        except OSError:
            continue
        if name.endswith("+dm-thin"):
            found.append(state.split()[0])
    return found


def sleeps():
    """Whether the worker of some pool waits for something in the midst of its work."""
    return "D" in _states()


def is_at_work():
    """Whether the worker of some pool is in the midst of its work."""
    return bool(_states())


class Stops:
    """Places where the worker has to wait: volumes whose mappings have to be read from metadata that are a gate.

    Nobody may have read those volumes since the pool was started. The worker takes volumes in the order in which they were
    activated, or in which they have something for it. These are activated after those that are active, and stop it in the
    reverse order. So while it waits, others may hand it what it shall find together in its next round, before it is stopped
    again.
    """

    def __init__(self, pool, thin_ids, size):
        self._gate = pool.metadata
        self._volumes = [pool.activate(thin_id, size) for thin_id in thin_ids][::-1]
        self._reads = []
        self._gate.hold("read")

    def stop(self):
        """Lets the worker go on, if it was stopped, up to the next place."""
        volume = self._volumes[len(self._reads)]
        read = Background(lambda: volume.read(0, 4096))
        wait_until(read.sleeps, "a read that stops the worker")
        self._reads.append(read)
        if len(self._reads) > 1:
            self._gate.release()
        self._gate.wait_for("read")
        wait_until(sleeps, "the worker waits")

    def end(self):
        """Lets it go on and stops it no more."""
        self._gate.let_pass("read")
        for read in self._reads:
            assert read.outcome() == "ok"
