# SPDX-License-Identifier: GPL-2.0
"""Running out of metadata space, and getting out of that again."""

import errno
import random

import pytest

from dmtest import metadata
from dmtest.background import wait_until
from dmtest.content import (
    Content,
    pattern,
)
from dmtest.disk import (
    KIB,
    MIB,
)

BLOCK = 64 * KIB
SIZE = 256 * MIB
VOLUMES = 8


def mode(pool):
    return pool.status().mode


class Full:
    """A pool whose metadata are full of the nodes of volumes that were written to here and there."""

    def __init__(self, pool, volumes=VOLUMES):
        self.pool = pool
        self.choice = random.Random("metadata")
        pool.create_thin(0)
        origin = pool.activate(0, SIZE)
        for block in range(0, SIZE // BLOCK, 64):
            origin.write(block * BLOCK, pattern(block, 512))
        origin.remove()
        for thin_id in range(1, volumes + 1):
            pool.create_snap(thin_id, 0)
        self.written = 0
        self.errors = set()
        self.fill(volumes)

    def write(self, thin, index):
        try:
            thin.write(index * BLOCK, pattern((thin.name, index), 512))
            self.written += 1
            return True
        except OSError as error:
            self.errors.add(errno.errorcode[error.errno])
            return False

    def fill(self, volumes):
        """One volume after the other gets a tree of its own, until there is no room for that."""
        blocks = list(range(SIZE // BLOCK))
        for thin_id in range(1, volumes + 1):
            thin = self.pool.activate(thin_id, SIZE)
            self.choice.shuffle(blocks)
            for index in blocks[:600]:
                if not self.write(thin, index):
                    return
            thin.remove()
        raise AssertionError("the metadata device is too large for this")


@pytest.fixture
def full(make_pool):
    def make(**options):
        return Full(make_pool(metadata_size=2 * MIB, data_size=1024 * MIB, features=["skip_block_zeroing"], **options))
    return make


def test_running_out_and_growing(make_pool, compare):
    """What fails, what the log says, and that growth brings the pool back."""
    def scenario(trace, turn):
        pool = make_pool(metadata_size=2 * MIB, data_size=1024 * MIB, features=["skip_block_zeroing"])
        trace.note("threshold", pool.status().metadata_low_water)
        events = pool.device.event_nr()
        pool.status()
        full = Full(pool)
        trace.log()
        trace.note("errors", full.errors)
        status = pool.status()
        trace.note("mode", (status.mode, status.needs_check, status.metadata_blocks))
        trace.note("events", pool.device.event_nr() - events)
        thin = next(iter(pool.thins.values()))
        trace.note("what is mapped is read", any(thin.read(0, 4 * KIB)))
        trace.attempt("flush", thin.flush)
        for message in ("create_thin 77", "create_snap 77 0", "set_transaction_id 0 1", "reserve_metadata_snap",
                        "release_metadata_snap", "nonsense"):
            trace.attempt(message, lambda: pool.message(message))
        trace.log()
        pool.device.suspend()
        pool.device.resume()
        trace.note("mode", pool.status().mode)
        trace.log()
        # A fresh table asks for write mode, and the next commit finds that this is not possible.
        events = pool.device.event_nr()
        pool.device.reload(pool.table())
        trace.note("mode", pool.status().mode)
        trace.note("events", pool.device.event_nr() - events)
        trace.log()

        events = pool.device.event_nr()
        pool.metadata.grow(4 * MIB)
        pool.device.suspend()
        pool.device.resume()
        trace.note("mode", pool.status().mode)
        trace.note("total", pool.status().metadata_blocks[1])
        trace.note("events", pool.device.event_nr() - events)
        trace.log()
        before = full.written
        for index in range(100, 200):
            assert full.write(thin, index)
        thin.flush()
        trace.note("writes", full.written - before)
        pool.create_thin(77)
        trace.note("mode", pool.status().mode)
        pool.stop()
        trace.note("volumes", [row[0] for row in metadata.ls(pool.metadata.path)])

    compare(scenario)


def test_restart_without_metadata_space(make_pool, compare):
    def scenario(trace, turn):
        pool = make_pool(metadata_size=2 * MIB, data_size=1024 * MIB, features=["skip_block_zeroing"])
        full = Full(pool)
        trace.note("errors", full.errors)
        pool.restart()
        trace.log()
        # The first message finds a pool in write mode.
        trace.attempt("create_thin 77", lambda: pool.create_thin(77))
        trace.note("mode", pool.status().mode)
        trace.attempt("create_thin 78", lambda: pool.create_thin(78))
        trace.log()
        pool.restart()
        trace.attempt("delete 1", lambda: pool.delete(1))
        wait_until(lambda: pool.status().mode == "rw", "write mode")
        trace.log()
        pool.stop()

    compare(scenario)


def test_threshold_event(make_pool, compare):
    """It is sent when the number of free blocks falls to a quarter, and again after it was above."""
    def scenario(trace, turn):
        pool = make_pool(metadata_size=2 * MIB, data_size=1024 * MIB, features=["skip_block_zeroing"])
        threshold = pool.status().metadata_low_water
        trace.note("threshold", threshold)
        pool.create_thin(0)
        origin = pool.activate(0, SIZE)
        events = pool.device.event_nr()
        reached = None
        for index in random.Random("threshold").sample(range(SIZE // BLOCK), 4000):
            origin.write(index * BLOCK, pattern(index, 512))
            if index % 16 == 0 and pool.device.event_nr() > events:
                reached = pool.status().metadata_blocks
                break
            if len(pool.thins) == 1 and index % 400 == 7:
                snap = pool.create_snap(1000 + index, 0)
        trace.note("reached", reached is not None)
        assert abs(512 - 51 - reached[0] - threshold) <= 60, reached
        trace.note("events", pool.device.event_nr() - events)
        trace.log()
        pool.stop()

    compare(scenario)


@pytest.mark.named_addition
def test_deleting_without_metadata_space(full, kernel):
    """A deletion takes blocks of the reserve, and brings write mode back when it has freed enough."""
    full = full()
    pool = full.pool
    assert full.errors == {"EIO"} and mode(pool) == "ro"
    active = next(iter(pool.thins))
    events = pool.device.event_nr()
    kernel.lines()

    with pytest.raises(OSError) as error:
        pool.delete(active)
    assert error.value.errno == errno.EBUSY
    with pytest.raises(OSError) as error:
        pool.delete(4711)
    assert error.value.errno == errno.ENODATA
    with pytest.raises(OSError) as error:
        pool.message("delete")
    assert error.value.errno == errno.EINVAL
    with pytest.raises(OSError) as error:
        pool.create_thin(99)
    assert error.value.errno == errno.EOPNOTSUPP
    status = pool.status()
    assert status.mode == "ro" and not status.needs_check
    assert pool.device.event_nr() == events

    used = status.data_blocks[0]
    pool.delete(1)
    status = pool.status()
    assert status.mode == "rw" and not status.needs_check
    assert status.data_blocks[0] < used
    assert pool.device.event_nr() == events + 1
    assert any("switching pool to write mode" in line for line in kernel.lines())

    thin = pool.thins[active]
    assert full.write(thin, 4000)
    thin.flush()
    pool.create_thin(99)
    pool.stop()
    assert "1" not in [row[0] for row in metadata.ls(pool.metadata.path)]


@pytest.mark.named_addition
def test_deleting_what_frees_nothing(full):
    """A volume that shares all it has with others gives nothing back; the pool stays as it is and can go on."""
    full = full()
    pool = full.pool
    last = VOLUMES
    for thin_id in (last, last - 1):
        # These were not written to: they share all with volume 0.
        if thin_id in pool.thins:
            pool.thins[thin_id].remove()
        pool.delete(thin_id)
        assert not pool.status().needs_check
    assert mode(pool) == "ro"
    pool.delete(1)
    assert mode(pool) == "rw"
    pool.stop()


@pytest.mark.named_addition
def test_deletions_use_up_no_more_than_half_of_the_reserve(full, make_faulty):
    """With a metadata snapshot held, deletions only take blocks. They end while the pool can still be extended."""
    full = full()
    pool = full.pool
    pool.stop()
    pool.start()
    pool.message("reserve_metadata_snap")
    refused = None
    for thin_id in range(1, VOLUMES + 1):
        if mode(pool) == "rw":
            break
        try:
            pool.delete(thin_id)
        except OSError as error:
            refused = error.errno
    status = pool.status()
    assert not status.needs_check
    assert refused in (None, errno.ENOSPC)
    pool.metadata.grow(4 * MIB)
    pool.device.suspend()
    pool.device.resume()
    assert mode(pool) == "rw"
    pool.message("release_metadata_snap")
    pool.create_thin(99)
    pool.stop()


@pytest.mark.named_addition
def test_failing_deletion_without_metadata_space(make_pool, make_faulty):
    """An error of the device is what it always is: rolled back, noted, read-only."""
    pool = make_pool(metadata=make_faulty(2 * MIB), data_size=1024 * MIB, features=["skip_block_zeroing"])
    Full(pool)
    before = None
    pool.metadata.fail_writes()
    with pytest.raises(OSError) as error:
        pool.delete(1)
    assert error.value.errno == errno.EIO
    status = pool.status()
    assert status.mode == "ro" and status.needs_check
    with pytest.raises(OSError) as error:
        pool.delete(1)
    assert error.value.errno == errno.EOPNOTSUPP
    pool.stop()
    pool.metadata.heal()
    assert "1" in [row[0] for row in metadata.ls(pool.metadata.path)]
