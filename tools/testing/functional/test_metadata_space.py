# SPDX-License-Identifier: GPL-2.0
"""Running out of metadata space, and getting out of that again."""

import errno

import pytest

from dmtest import metadata
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
)

BLOCK = 64 * KIB
BLOCKS = 3000
SIZE = 24000 * BLOCK
VOLUMES = 60


def mode(pool):
    return pool.status().mode


class Full:
    """A pool whose metadata device is full: snapshots that share little of their trees with each other.

    Volume 0 has all of the blocks. Volumes 1 to `last` have trees of their own, those after it share volume 0's.
    """

    def __init__(self, pool, hold=False, blocks=BLOCKS):
        self.pool = pool
        self.blocks = blocks
        self.written = 0
        self.errors = set()
        pool.create_thin(0)
        origin = pool.activate(0, SIZE)
        for block in range(blocks):
            origin.write(block * BLOCK, pattern(block, 512))
        origin.remove()
        for thin_id in range(1, VOLUMES + 1):
            pool.create_snap(thin_id, 0)
        if hold:
            pool.reserve_metadata_snap()
        self._fill()

    def write(self, thin, index):
        """Breaks sharing of one block; whether that succeeded."""
        try:
            thin.write(index * BLOCK, pattern((thin.id, index), 512))
        except OSError as error:
            self.errors.add(errno.errorcode[error.errno])
            return False
        self.written += 1
        return True

    def _fill(self):
        for self.last in range(1, VOLUMES + 1):
            thin = self.pool.activate(self.last, SIZE)
            # A leaf has about 126 entries.
            for index in range(0, self.blocks, 100):
                if not self.write(thin, index):
                    return
            thin.remove()
        raise AssertionError("the metadata device is too large for this")


@pytest.fixture
def full(make_pool):
    def make(**options):
        pool = make_pool(metadata_size=2 * MIB, data_size=1536 * MIB, features=["skip_block_zeroing"])
        return Full(pool, **options)
    return make


def test_running_out_and_growing(make_pool, compare):
    """What fails, what the log says, and that growth brings the pool back."""
    def scenario(trace, turn):
        pool = make_pool(metadata_size=2 * MIB, data_size=1536 * MIB, features=["skip_block_zeroing"])
        trace.note("threshold", pool.status().metadata_low_water)
        events = pool.device.event_nr()
        pool.status()
        full = Full(pool)
        # Copies that a commit makes superfluous can let the mark be reached more than once.
        trace.log(once=True)
        trace.note("errors", full.errors)
        status = pool.status()
        trace.note("mode", (status.mode, status.needs_check, status.metadata_blocks))
        trace.note("enough events", pool.device.event_nr() - events >= 2)
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
        for index in range(50, BLOCKS, 100):
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
        pool = make_pool(metadata_size=2 * MIB, data_size=1536 * MIB, features=["skip_block_zeroing"])
        full = Full(pool)
        trace.note("errors", full.errors)
        pool.restart()
        trace.log(once=True)
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
    """It is sent when no more than a quarter of the blocks is free, and once more when that was different meanwhile."""
    def scenario(trace, turn):
        pool = make_pool(metadata_size=2 * MIB, data_size=1536 * MIB, features=["skip_block_zeroing"])
        threshold = pool.status().metadata_low_water
        trace.note("threshold", threshold)
        pool.create_thin(0)
        thin = pool.activate(0, SIZE)
        for block in range(BLOCKS):
            thin.write(block * BLOCK, pattern(block, 512))
        thin.remove()
        trace.log()
        for round in range(2):
            events = pool.device.event_nr()
            for thin_id in range(1, VOLUMES):
                pool.create_snap(thin_id, 0)
                thin = pool.activate(thin_id, SIZE)
                for index in range(0, BLOCKS, 100):
                    thin.write(index * BLOCK, pattern(index, 512))
                thin.flush()
                thin.remove()
                used = pool.status().metadata_blocks[0]
                if pool.device.event_nr() > events:
                    break
            # The reserve of 51 blocks counts as used, but not for the threshold. A volume takes about 26 blocks.
            assert abs(512 + 51 - used - threshold) <= 80, used
            trace.note("volumes", thin_id)
            trace.note("an event", pool.device.event_nr() > events)
            trace.log(once=True)
            for deleted in range(1, thin_id + 1):
                pool.delete(deleted)
            trace.note("mode", pool.status().mode)
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
def test_block_for_a_write_under_way(make_pool, make_gate):
    """It was allocated when there was metadata space, and cannot be mapped when its data have been copied."""
    pool = make_pool(metadata_size=2 * MIB, data=make_gate(1536 * MIB), features=["skip_block_zeroing"])
    full = Full(pool)
    pool.delete(1)
    assert mode(pool) == "rw"
    thin = next(iter(pool.thins.values()))
    pool.data.hold("read")
    writing = Background(lambda: thin.write(50 * BLOCK, pattern(50, 512)))
    pool.data.wait_for("read")
    # Whole blocks need no copies.
    with pytest.raises(OSError) as error:
        for thin_id in range(full.last + 1, VOLUMES + 1):
            other = pool.activate(thin_id, SIZE)
            for index in range(0, BLOCKS, 100):
                other.write(index * BLOCK, pattern(index, BLOCK))
    assert error.value.errno == errno.EIO and mode(pool) == "ro"
    pool.data.let_pass("read")
    assert writing.outcome() == "EIO"

    pool.metadata.grow(4 * MIB)
    pool.device.suspend()
    pool.device.resume()
    assert full.write(thin, 50)
    thin.flush()
    mapped = metadata.mappings(metadata.dump(pool.metadata.copy("outside")))
    blocks = {data for volume in mapped.values() for data in volume.values()}
    assert pool.status().data_blocks[0] == len(blocks)
    pool.stop()


@pytest.mark.named_addition
def test_deleting_what_frees_nothing(full):
    """A volume that shares all it has with others gives nothing back; the pool stays as it is and can go on."""
    full = full()
    pool = full.pool
    for thin_id in range(full.last + 1, VOLUMES + 1):
        pool.delete(thin_id)
        assert not pool.status().needs_check
    assert mode(pool) == "ro"
    pool.delete(1)
    assert mode(pool) == "rw"
    for thin in list(pool.thins.values()):
        thin.remove()
    for thin_id in range(2, full.last + 1):
        pool.delete(thin_id)
    status = pool.status()
    assert status.data_blocks[0] == BLOCKS and status.metadata_blocks[0] < 150
    content = pool.activate(0, SIZE)
    assert content.read(7 * BLOCK, 512) == pattern(7, 512)
    pool.stop()


@pytest.mark.named_addition
def test_deletions_beside_a_metadata_snapshot(full):
    """It holds what was there before, so the first deletions take blocks and free none."""
    full = full(hold=True)
    pool = full.pool
    for thin_id in range(VOLUMES, full.last, -1):
        pool.delete(thin_id)
        status = pool.status()
        assert status.mode == "ro" and not status.needs_check
    pool.delete(1)
    assert mode(pool) == "rw"
    pool.release_metadata_snap()
    pool.create_thin(99)
    pool.stop()


@pytest.mark.named_addition
def test_deletion_too_large_for_the_reserve(full, kernel):
    """Counts of many references that change need copies of more blocks than there are. Nothing comes of it."""
    full = full(blocks=22000)
    pool = full.pool
    events = pool.device.event_nr()
    before = pool.status()
    kernel.lines()
    for _ in range(3):
        with pytest.raises(OSError) as error:
            pool.delete(1)
        assert error.value.errno == errno.ENOSPC
        status = pool.status()
        assert status == before and status.mode == "ro" and not status.needs_check
    assert pool.device.event_nr() == events
    assert not any("switching pool" in line or "aborting" in line for line in kernel.lines())
    for thin in list(pool.thins.values()):
        thin.flush()
        assert thin.read(7 * BLOCK, 512) == pattern(7, 512)

    pool.metadata.grow(4 * MIB)
    pool.device.suspend()
    pool.device.resume()
    assert mode(pool) == "rw"
    pool.delete(1)
    assert pool.status().metadata_blocks[0] < 512
    pool.stop()


@pytest.mark.named_addition
@pytest.mark.parametrize("which", ["metadata", "data"])
def test_failing_deletion_without_metadata_space(make_pool, make_faulty, which):
    """An error of a device is what it always is: rolled back, noted, read-only."""
    faulty = make_faulty(2 * MIB if which == "metadata" else 1536 * MIB)
    pool = make_pool(**{"metadata_size": 2 * MIB, "data_size": 1536 * MIB, which: faulty}, features=["skip_block_zeroing"])
    Full(pool)
    faulty.fail_writes()
    with pytest.raises(OSError) as error:
        pool.delete(1)
    assert error.value.errno == errno.EIO
    status = pool.status()
    assert status.mode == "ro" and status.needs_check
    with pytest.raises(OSError) as error:
        pool.delete(1)
    assert error.value.errno == errno.EOPNOTSUPP
    faulty.heal()
    pool.stop()
    assert "1" in [row[0] for row in metadata.ls(pool.metadata.path)]
