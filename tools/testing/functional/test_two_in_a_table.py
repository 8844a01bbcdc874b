# SPDX-License-Identifier: GPL-2.0
"""Two volumes of one pool, one after the other in one device."""

import time

import pytest

from dmtest import disk
from dmtest.background import (
    Background,
    wait_until,
)
from dmtest.content import (
    Content,
    pattern,
)
from dmtest.disk import (
    KIB,
    MIB,
    SECTOR,
)
from dmtest.dm import Device
from dmtest.worker import (
    Stops,
    sleeps,
)

BLOCK = 64 * KIB
SIZE = 4 * MIB
# When the worker holds others back in C and here.
ROUND_IS_LONG = 1.2


@pytest.fixture
def make_both():
    """Makes a device of the volumes 0 and 1 of a pool."""
    made = []

    def make(pool):
        sectors = SIZE // SECTOR
        made.append(Device.create("both", "\n".join(
            f"{thin_id * sectors} {sectors} thin {pool.device.path} {thin_id}" for thin_id in (0, 1)
        )))
        return made[-1]

    yield make
    for device in made:
        device.remove()


def test_flush_while_the_worker_is_late(make_gate, make_pool, make_both):
    """A flush goes to both. One of them sends it on, the other one has to wait for the worker, which may not wait for the first."""
    pool = make_pool(metadata=make_gate(4 * MIB), data_size=64 * MIB)
    for thin_id in range(5):
        Content(pool.new_thin(thin_id, SIZE)).write(0, 4 * BLOCK)
    pool.restart()
    both = make_both(pool)
    # What changes take is in memory after this. There are blocks that were freed by a commit, and none was allocated since.
    for offset in (0, SIZE):
        disk.write(both.path, offset + 8 * BLOCK, pattern(offset, BLOCK))
    disk.discard(both.path, 8 * BLOCK, BLOCK)
    disk.flush(both.path)
    stops = Stops(pool, (2, 3), SIZE)
    taking = pool.activate(4, SIZE)
    stops.stop()
    changing = Background(lambda: disk.discard(both.path, SIZE + 8 * BLOCK, BLOCK))
    wait_until(changing.sleeps, "the second volume is changed")
    stops.stop()
    # The worker finds out that it is late when it has done with this.
    time.sleep(ROUND_IS_LONG)
    writing = Background(lambda: taking.write(9 * BLOCK, pattern("new", BLOCK)))
    wait_until(writing.sleeps, "a new block is wanted")
    pool.metadata.release()
    pool.metadata.wait_for("read")
    wait_until(sleeps, "the worker waits")
    flushing = Background(lambda: disk.flush(both.path))
    wait_until(lambda: flushing.sleeps() or not flushing.waits(0), "the flush")
    stops.end()
    for one in (changing, writing, flushing):
        assert one.outcome() == "ok"
    assert taking.read(9 * BLOCK, BLOCK) == pattern("new", BLOCK)
