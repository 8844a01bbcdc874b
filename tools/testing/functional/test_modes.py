# SPDX-License-Identifier: GPL-2.0
"""The modes of a pool, as status lines, events, the kernel's log and the errors of I/O show them."""

import errno

import pytest

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
from dmtest.uevents import Uevents
from dmtest.worker import is_at_work

BLOCK = 64 * KIB
FULL = 8 * MIB

# How many seconds writes wait for space, where somebody has to look at the pool before they fail.
WAIT = 6


def look(trace, pool, label):
    """Notes everything about a pool's mode."""
    trace.note("after", label)
    trace.pool(pool)
    trace.note("events", pool.device.event_nr())
    trace.log()


def fill(pool):
    """A volume that has all blocks of an 8 MiB pool, and is twice as large."""
    content = Content(pool.new_thin(0, 2 * FULL))
    content.write(0, FULL)
    return content


def wait_for(pool, mode, no_space=None):
    def reached():
        status = pool.status()
        # The event and the line in the log come after the mode, from the worker.
        return status.mode == mode and no_space in (None, status.no_space) and not is_at_work()

    wait_until(reached, f"mode {mode}")


def test_queue_then_error(make_pool, compare, no_space_timeout):
    """Writes wait, then fail; a resume lets them wait again; more space ends it."""
    def scenario(trace, turn):
        no_space_timeout(WAIT)
        pool = make_pool(data_size=FULL)
        look(trace, pool, "creation")
        content = fill(pool)
        look(trace, pool, "the last block")
        waiting = Background(lambda: content.thin.write(FULL, pattern("waits", BLOCK)))
        wait_for(pool, "out_of_data_space", "queue_if_no_space")
        look(trace, pool, "a write too many")
        trace.note("the write", waiting.outcome())
        look(trace, pool, "the timeout")
        trace.attempt("another write", lambda: content.thin.write(FULL, pattern("fails", BLOCK)))
        trace.attempt("overwriting", lambda: content.write(BLOCK, 4 * KIB))
        trace.attempt("flush", content.thin.flush)
        look(trace, pool, "more writes")

        pool.device.suspend()
        pool.device.resume()
        look(trace, pool, "suspend and resume")
        waiting = Background(lambda: content.thin.write(FULL, pattern("waits again", BLOCK)))
        trace.note("the second write waits", waiting.waits())
        trace.note("the second write", waiting.outcome())
        look(trace, pool, "the second timeout")

        # From here on more space is what ends the waiting.
        no_space_timeout(0)
        pool.device.reload(pool.table())
        look(trace, pool, "a reload without more space")
        waiting = Background(lambda: content.write(FULL, BLOCK))
        wait_for(pool, "out_of_data_space")
        look(trace, pool, "a write without more space")
        pool.data.grow(2 * FULL)
        pool.device.reload(pool.table())
        trace.note("the third write", waiting.outcome())
        look(trace, pool, "a reload with more space")
        content.verify()
        pool.stop()

    compare(scenario)


def test_error_if_no_space(make_pool, compare, no_space_timeout):
    def scenario(trace, turn):
        no_space_timeout(WAIT)
        pool = make_pool(data_size=FULL, features=["error_if_no_space"])
        content = fill(pool)
        look(trace, pool, "the last block")
        trace.attempt("a write too many", lambda: content.thin.write(FULL, pattern("fails", BLOCK)))
        look(trace, pool, "a write too many")
        pool.create_snap(1, 0)
        trace.attempt("breaking sharing", lambda: content.thin.write(0, pattern("fails", 4 * KIB)))
        content.verify()
        look(trace, pool, "breaking sharing")
        # What the table asks for is changed while the pool has no space.
        pool.features = []
        pool.device.reload(pool.table())
        look(trace, pool, "a reload")
        waiting = Background(lambda: content.thin.write(FULL, pattern("waits", BLOCK)))
        wait_for(pool, "out_of_data_space")
        look(trace, pool, "another write too many")
        trace.note("the write", waiting.outcome())
        look(trace, pool, "the timeout")
        pool.stop()

    compare(scenario)


def test_timeout_of_zero_is_for_ever(make_pool, compare, no_space_timeout):
    """A change of the parameter counts from the next time that space runs out."""
    def scenario(trace, turn):
        no_space_timeout(0)
        pool = make_pool(data_size=FULL)
        content = fill(pool)
        waiting = Background(lambda: content.write(FULL, BLOCK))
        wait_for(pool, "out_of_data_space")
        no_space_timeout(1)
        trace.note("waits", waiting.waits(3))
        look(trace, pool, "some time")
        pool.data.grow(FULL + MIB)
        pool.device.reload(pool.table())
        trace.note("the write", waiting.outcome())
        content.verify()
        waiting = Background(lambda: content.thin.write(FULL + BLOCK, pattern("too much", MIB)))
        trace.note("a large write", waiting.outcome())
        look(trace, pool, "running full once more")
        pool.stop()

    compare(scenario)


def test_deletion_lets_waiting_writes_go_on(make_pool, compare):
    def scenario(trace, turn):
        pool = make_pool(data_size=FULL)
        old = Content(pool.new_thin(1, FULL))
        old.write(0, MIB)
        old.thin.remove()
        content = Content(pool.new_thin(0, 2 * FULL))
        content.write(0, FULL - MIB)
        waiting = Background(lambda: content.write(FULL, 4 * BLOCK))
        wait_for(pool, "out_of_data_space")
        trace.note("waits", waiting.waits())
        look(trace, pool, "running full")
        pool.delete(1)
        trace.note("the write", waiting.outcome())
        content.verify()
        look(trace, pool, "the deletion")
        pool.stop()

    compare(scenario)


def test_discard_lets_waiting_writes_go_on(make_pool, compare):
    def scenario(trace, turn):
        pool = make_pool(data_size=FULL)
        content = fill(pool)
        waiting = Background(lambda: content.write(FULL, 4 * BLOCK))
        wait_for(pool, "out_of_data_space")
        content.discard(MIB, 2 * BLOCK)
        # Two blocks are not enough.
        trace.note("waits", waiting.waits(2))
        content.discard(2 * MIB, 2 * BLOCK)

        def goes_on():
            # The C module may not commit by itself what the end of a discard frees, but does so for its status.
            pool.status()
            return not waiting.waits(0)

        wait_until(goes_on, "the write goes on")
        trace.note("the write", waiting.outcome())
        content.verify()
        trace.note("data", pool.status().data_blocks)
        pool.stop()

    compare(scenario)


def test_read_only_and_back(make_pool, compare):
    def scenario(trace, turn):
        pool = make_pool(data_size=FULL)
        content = Content(pool.new_thin(0, 2 * FULL))
        content.write(0, 4 * BLOCK)
        pool.create_snap(1, 0)
        content.write(0, BLOCK)
        look(trace, pool, "writes")
        pool.features = ["read_only"]
        pool.device.reload(pool.table())
        look(trace, pool, "becoming read-only")
        content.verify()
        trace.attempt("a new block", lambda: content.thin.write(FULL, pattern("x", BLOCK)))
        trace.attempt("a shared block", lambda: content.thin.write(BLOCK, pattern("x", BLOCK)))
        trace.attempt("a block of its own", lambda: content.write(4 * KIB, 4 * KIB))
        trace.attempt("flush", content.thin.flush)
        for message in ("create_thin 7", "create_snap 7 0", "delete 1", "set_transaction_id 0 1",
                        "reserve_metadata_snap", "release_metadata_snap", "nonsense"):
            trace.attempt(message, lambda: pool.message(message))
        content.verify()
        look(trace, pool, "being read-only")
        pool.device.suspend()
        pool.device.resume()
        look(trace, pool, "suspend and resume")
        pool.features = []
        pool.device.reload(pool.table())
        look(trace, pool, "becoming writable")
        content.write(FULL, BLOCK)
        content.write(BLOCK, BLOCK)
        content.verify()
        look(trace, pool, "more writes")
        content.thin.remove()
        pool.stop()

        pool.features = ["read_only"]
        pool.start()
        look(trace, pool, "starting read-only")
        content = content.on(pool.activate(0, 2 * FULL))
        content.verify()
        look(trace, pool, "reading")
        pool.stop()
        pool.features = []
        trace.note("dump", pool.start().dump())
        pool.stop()

    compare(scenario)


@pytest.mark.named_addition
@pytest.mark.parametrize("features", [["read_only"], [], ["error_if_no_space"]])
def test_flush_needs_no_block(make_pool, features):
    """Nothing was lost, so a flush succeeds. The C module treats it as a write to the first block."""
    pool = make_pool(data_size=FULL, features=[] if features == ["read_only"] else features)
    content = fill(pool)
    empty = pool.new_thin(1, FULL)
    too_much = Background(lambda: empty.write(MIB, pattern("x", BLOCK)))
    wait_for(pool, "out_of_data_space")
    if features == ["read_only"]:
        pool.features = features
        pool.device.reload(pool.table())
        assert too_much.outcome() == "EIO"
    empty.flush()
    content.thin.flush()
    if not features:
        assert too_much.waits()
        pool.data.grow(2 * FULL)
        pool.device.reload(pool.table())
        assert too_much.outcome() == "ok"


@pytest.mark.fault_of_c("it fails its metadata")
def test_growing_a_read_only_pool_is_put_off(make_pool, kernel):
    """The C module fails its metadata there, and needs a restart. A pool is none the worse for it here."""
    pool = make_pool(data_size=FULL, metadata_size=2 * MIB)
    content = fill(pool)
    pool.data.grow(2 * FULL)
    pool.metadata.grow(4 * MIB)
    pool.features = ["read_only"]
    kernel.lines()
    pool.device.reload(pool.table())
    lines = "\n".join(kernel.lines())
    assert "unable to grow the data device of a read-only pool" in lines
    assert "unable to grow the metadata device of a read-only pool" in lines
    assert pool.status().mode == "ro"
    assert pool.status().data_blocks == (128, 128)
    content.verify()
    pool.features = []
    pool.device.reload(pool.table())
    assert pool.status().data_blocks == (128, 256)
    assert pool.status().metadata_blocks[1] == 1024
    content.write(FULL, FULL)
    content.verify()


def test_low_water_mark_once_per_resume(make_pool, compare):
    def scenario(trace, turn):
        pool = make_pool(data_size=FULL, low_water=100)
        content = Content(pool.new_thin(0, 2 * FULL))
        for block in range(0, 60, 10):
            content.write(block * BLOCK, 10 * BLOCK)
            look(trace, pool, f"{block} blocks")
        pool.device.suspend()
        pool.device.resume()
        look(trace, pool, "a resume")
        content.write(60 * BLOCK, BLOCK)
        content.write(61 * BLOCK, BLOCK)
        look(trace, pool, "the next blocks")
        pool.low_water = 50
        pool.device.reload(pool.table())
        for block in range(70, 90):
            content.write(block * BLOCK, BLOCK)
        look(trace, pool, "a lower mark")
        pool.stop()

    compare(scenario)


def test_resumes_are_the_only_uevents(make_pool, compare):
    """Events of a target are for those who wait for them; udev hears of resumes and removals."""
    def scenario(trace, turn):
        pool = make_pool(data_size=FULL, low_water=64, features=["error_if_no_space"])
        uevents = Uevents()
        try:
            content = fill(pool)
            trace.attempt("a write too many", lambda: content.thin.write(FULL, pattern("x", BLOCK)))
            look(trace, pool, "running full")
            trace.note("uevents of the pool", uevents.of(pool.device))
            pool.device.suspend()
            pool.device.resume()
            trace.note("uevents of a resume", uevents.of(pool.device))
            pool.stop()
        finally:
            uevents.close()

    compare(scenario)


@pytest.mark.parametrize("features", [[], ["error_if_no_space"]])
def test_all_errors_once_full(make_pool, compare, features, no_space_timeout):
    """Reads, overwrites, discards, flushes and messages of a full pool."""
    def scenario(trace, turn):
        no_space_timeout(1)
        pool = make_pool(data_size=FULL, features=features)
        content = fill(pool)
        snap = Content(pool.new_snap(1, 0, 2 * FULL), bytearray(content.data))
        trace.attempt("new block", lambda: content.thin.write(FULL, pattern("x", 4 * KIB)))
        trace.attempt("shared block", lambda: content.thin.write(0, pattern("x", 4 * KIB)))
        trace.attempt("whole shared block", lambda: content.thin.write(0, pattern("x", BLOCK)))
        content.verify()
        snap.verify()
        for message in ("create_thin 7", "create_snap 8 1", "create_thin 7", "delete 9", "delete 0", "delete 7",
                        "reserve_metadata_snap", "release_metadata_snap", "set_transaction_id 0 5"):
            trace.attempt(message, lambda: pool.message(message))
            look(trace, pool, message)
        snap.thin.remove()
        pool.delete(1)
        look(trace, pool, "a deletion that frees nothing")
        pool.delete(8)
        look(trace, pool, "one more")
        trace.attempt("a block that is not shared any more", lambda: content.thin.write(0, pattern("x", 4 * KIB)))
        look(trace, pool, "a write")
        pool.stop()

    compare(scenario)


def test_a_failing_write_gives_the_right_errno(make_pool):
    """ENOSPC is what tells a file system that the pool is full, and not broken."""
    pool = make_pool(data_size=FULL, features=["error_if_no_space"])
    content = fill(pool)
    with pytest.raises(OSError) as error:
        content.thin.write(FULL, pattern("x", BLOCK))
    assert error.value.errno == errno.ENOSPC
