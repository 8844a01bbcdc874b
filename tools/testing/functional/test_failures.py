# SPDX-License-Identifier: GPL-2.0
"""Devices that fail: what was committed stays, what was acknowledged is there, and the pool says what is wrong."""

import os
import subprocess
from contextlib import suppress

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
from dmtest.worker import is_at_work
from test_modes import (
    look,
    wait_for,
)

BLOCK = 64 * KIB
SIZE = 8 * MIB


def repair(pool):
    """Clears needs_check, as an administrator would; the pool must not be active."""
    done = subprocess.run(["thin_check", "--clear-needs-check-flag", pool.metadata.path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def prepare(make_pool, make_faulty, **options):
    """A pool on metadata that can fail, with two volumes whose content is committed."""
    pool = make_pool(metadata=make_faulty(4 * MIB), data_size=32 * MIB, **options)
    one, two = (Content(pool.new_thin(thin_id, SIZE)) for thin_id in (0, 1))
    one.write(0, MIB)
    # A flush in the C module fails with a read-only pool if the first block is not mapped.
    two.write(0, BLOCK)
    two.write(MIB, MIB)
    one.thin.flush()
    two.thin.flush()
    pool.status()
    return pool, one, two


def look_after_rollback(trace, pool, label):
    """Notes all but what volumes map: the C module counts what was rolled back until they are activated anew."""
    trace.note("after", label)
    trace.pool(pool, volumes=False)
    trace.note("events", pool.device.event_nr())
    trace.log()


def wait_for_fault(pool):
    # The event and the line in the log come after the mode, from the worker.
    wait_until(lambda: pool.device.status(noflush=True).split()[4:5] != ["rw"] and not is_at_work(), "a fault of the metadata")


def test_metadata_write_error(make_pool, make_faulty, compare):
    """The transaction is rolled back, the pool becomes read-only and says that it needs a check."""
    def scenario(trace, turn):
        pool, one, two = prepare(make_pool, make_faulty)
        look(trace, pool, "preparation")
        pool.metadata.fail_writes()
        one.thin.write(4 * MIB, pattern("lost", BLOCK))
        trace.attempt("flush of what is lost", one.thin.flush)
        look_after_rollback(trace, pool, "the fault")
        trace.attempt("flush of another volume", two.thin.flush)
        trace.attempt("a new block", lambda: two.thin.write(4 * MIB, pattern("x", BLOCK)))
        one.verify()
        two.verify()
        two.write(MIB, BLOCK)
        for message in ("create_thin 5", "delete 5", "set_transaction_id 0 1", "reserve_metadata_snap"):
            trace.attempt(message, lambda: pool.message(message))
        look_after_rollback(trace, pool, "the pool read-only")

        pool.metadata.heal()
        pool.device.suspend()
        pool.device.resume()
        look_after_rollback(trace, pool, "a resume")
        pool.data.grow(64 * MIB)
        pool.metadata.grow(8 * MIB)
        pool.device.reload(pool.table())
        look_after_rollback(trace, pool, "a reload with more space")
        pool.restart()
        look(trace, pool, "a restart")
        pool.stop()

        repair(pool)
        pool.start()
        look(trace, pool, "repair")
        one, two = (content.on(pool.activate(thin_id, SIZE)) for thin_id, content in enumerate((one, two)))
        one.verify()
        two.verify()
        one.write(4 * MIB, MIB)
        two.write(4 * MIB, MIB)
        one.thin.flush()
        one.verify()
        two.verify()
        look(trace, pool, "more writes")
        trace.note("dump", pool.dump())
        pool.stop()

    compare(scenario)


def test_metadata_write_error_without_a_flush(make_pool, make_faulty, compare):
    """The commit that comes each second finds it."""
    def scenario(trace, turn):
        pool, one, two = prepare(make_pool, make_faulty)
        pool.metadata.fail_writes()
        one.thin.write(4 * MIB, pattern("lost", BLOCK))
        wait_for_fault(pool)
        look_after_rollback(trace, pool, "the fault")
        trace.attempt("flush of another volume", two.thin.flush)
        trace.attempt("rewriting", lambda: one.thin.write(4 * MIB, pattern("x", BLOCK)))
        one.verify()
        two.verify()
        pool.stop()
        pool.metadata.heal()
        repair(pool)
        pool.start()
        one = one.on(pool.activate(0, SIZE))
        one.verify()
        look(trace, pool, "repair")
        pool.stop()

    compare(scenario)


@pytest.mark.fault_of_c("a flush after a rollback can succeed")
@pytest.mark.parametrize("found_by", ["flush", "time", "message"])
def test_no_flush_succeeds_after_changes_were_lost(make_pool, make_faulty, found_by):
    """What was written before is gone, so no flush or FUA may say otherwise. The C module's second flush succeeds."""
    pool, one, two = prepare(make_pool, make_faulty)
    pool.metadata.fail_writes()
    one.thin.write(4 * MIB, pattern("lost", BLOCK))
    if found_by == "flush":
        with pytest.raises(OSError):
            one.thin.flush()
    elif found_by == "message":
        with pytest.raises(OSError):
            pool.create_thin(7)
    wait_for_fault(pool)
    pool.metadata.heal()
    for _ in range(2):
        with pytest.raises(OSError):
            one.thin.flush()
        with pytest.raises(OSError):
            one.thin.write(0, bytes(one.data[:BLOCK]), os.O_DSYNC)
    two.thin.flush()
    two.write(MIB, BLOCK, os.O_DSYNC)
    one.verify()
    two.verify()
    # Whoever opens the volume anew sees what there is, and can rely on that.
    one.thin.remove()
    one = one.on(pool.activate(0, SIZE))
    one.verify()
    one.thin.flush()


@pytest.mark.fault_of_c("a status counts mappings that were rolled back")
def test_volume_status_after_a_rollback(make_pool, make_faulty):
    """It tells what is mapped. The C module goes on to count what is not any more."""
    pool, one, _ = prepare(make_pool, make_faulty)
    assert one.thin.mapped() == (MIB, MIB - 1)
    pool.metadata.fail_writes()
    one.thin.write(4 * MIB, pattern("lost", BLOCK))
    wait_for_fault(pool)
    assert one.thin.mapped() == (MIB, MIB - 1)


def test_metadata_fail_altogether(make_pool, make_faulty, compare):
    """Nothing can be rolled back. Nothing but a restart helps then."""
    def scenario(trace, turn):
        pool, one, two = prepare(make_pool, make_faulty)
        pool.metadata.fail()
        one.thin.write(4 * MIB, pattern("lost", BLOCK))
        trace.attempt("flush", one.thin.flush)
        look_after_rollback(trace, pool, "the fault")
        trace.attempt("reading", lambda: one.thin.read(0, BLOCK))
        trace.attempt("overwriting", lambda: one.thin.write(0, one.data[:BLOCK]))
        trace.attempt("flush", one.thin.flush)
        trace.attempt("flush of another volume", two.thin.flush)
        for message in ("create_thin 5", "delete 5", "reserve_metadata_snap"):
            trace.attempt(message, lambda: pool.message(message))
        trace.attempt("activation", lambda: pool.activate(1, SIZE))
        pool.device.suspend()
        trace.attempt("resume", pool.device.resume)
        look_after_rollback(trace, pool, "a resume")
        pool.metadata.heal()
        trace.attempt("another table", lambda: pool.device.load(pool.table()))
        look(trace, pool, "the end of the fault")
        pool.stop()

        pool.start()
        look(trace, pool, "a restart")
        one, two = (content.on(pool.activate(thin_id, SIZE)) for thin_id, content in enumerate((one, two)))
        one.verify()
        two.verify()
        pool.stop()

    compare(scenario)


def test_failed_pool_lets_go_of_waiting_writes(make_pool, make_faulty, compare, no_space_timeout):
    def scenario(trace, turn):
        no_space_timeout(0)
        pool = make_pool(metadata=make_faulty(4 * MIB), data_size=SIZE)
        content = Content(pool.new_thin(0, 2 * SIZE))
        content.write(0, SIZE)
        waiting = Background(lambda: content.thin.write(SIZE, pattern("waits", BLOCK)))
        wait_for(pool, "out_of_data_space")
        look(trace, pool, "running full")
        pool.metadata.fail_writes()
        # The C module says that it succeeded.
        with suppress(OSError):
            pool.create_thin(5)
        trace.note("the write", waiting.outcome())
        look_after_rollback(trace, pool, "the fault")
        trace.attempt("a new block", lambda: content.thin.write(SIZE, pattern("x", BLOCK)))
        content.verify()
        pool.stop()

    compare(scenario)


def test_pool_whose_message_cannot_be_committed(make_pool, make_faulty, compare):
    """The C module says that the message succeeded, but the pool says what became of it."""
    def scenario(trace, turn):
        pool, one, two = prepare(make_pool, make_faulty)
        pool.metadata.fail_writes()
        with suppress(OSError):
            pool.create_thin(5)
        look(trace, pool, "the message")
        trace.attempt("create_thin 6", lambda: pool.create_thin(6))
        trace.attempt("activation of 5", lambda: pool.activate(5, SIZE))
        one.verify()
        pool.stop()
        pool.metadata.heal()
        repair(pool)
        pool.start()
        trace.note("volumes", metadata.ls(pool.metadata.copy("copy")))
        pool.stop()

    compare(scenario)


def test_data_device_that_cannot_flush(make_pool, make_faulty, compare):
    """A commit whose data cannot be made stable must not happen."""
    def scenario(trace, turn):
        pool = make_pool(data=make_faulty(32 * MIB), metadata_size=4 * MIB)
        content = Content(pool.new_thin(0, SIZE))
        content.write(0, MIB)
        content.thin.flush()
        look(trace, pool, "preparation")
        content.thin.write(4 * MIB, pattern("lost", BLOCK))
        pool.data.fail_writes()
        trace.attempt("flush", content.thin.flush)
        pool.data.heal()
        look_after_rollback(trace, pool, "the fault")
        trace.attempt("flush once more", content.thin.flush)
        content.verify()
        pool.stop()
        repair(pool)
        pool.start()
        content = content.on(pool.activate(0, SIZE))
        content.verify()
        pool.stop()

    compare(scenario)


def test_data_write_error(make_pool, make_faulty, compare):
    """It concerns the write alone: no mapping is made for it, and the block is not lost."""
    def scenario(trace, turn):
        pool = make_pool(data=make_faulty(SIZE), metadata_size=4 * MIB)
        content = Content(pool.new_thin(0, SIZE))
        content.write(0, MIB)
        content.thin.flush()
        pool.create_snap(1, 0)
        look(trace, pool, "preparation")
        pool.data.fail_writes()
        trace.attempt("a whole new block", lambda: content.thin.write(2 * MIB, pattern("x", BLOCK)))
        trace.attempt("part of a new block", lambda: content.thin.write(3 * MIB, pattern("x", 4 * KIB)))
        trace.attempt("a whole shared block", lambda: content.thin.write(0, pattern("x", BLOCK)))
        trace.attempt("part of a shared block", lambda: content.thin.write(BLOCK, pattern("x", 4 * KIB)))
        content.verify()
        pool.data.heal()
        content.write(2 * MIB, BLOCK)
        content.write(0, BLOCK)
        content.verify()
        trace.note("mapped", content.thin.mapped())
        trace.note("mode", pool.status().mode)
        trace.log()
        pool.stop()

    compare(scenario)


def test_unreadable_mapping(make_pool, make_faulty, compare):
    """A bad sector of the metadata device fails the I/O that needs it, and no other."""
    def scenario(trace, turn):
        pool, one, two = prepare(make_pool, make_faulty)
        pool.stop()
        pool.start()
        one, two = (content.on(pool.activate(thin_id, SIZE)) for thin_id, content in enumerate((one, two)))
        pool.metadata.fail_reads()
        trace.attempt("reading", lambda: one.thin.read(0, BLOCK))
        look_after_rollback(trace, pool, "the fault")
        pool.metadata.heal()
        one.verify()
        two.verify()
        look(trace, pool, "the end of it")
        pool.stop()

    compare(scenario)


@pytest.mark.parametrize("after", [1, 2, 3, 4, 6, 8, 12, 20])
def test_acknowledged_flushes_survive_any_fault(make_pool, make_faulty, after):
    """Writes and flushes until the metadata device fails, some time on: all that was acknowledged is there."""
    pool, one, two = prepare(make_pool, make_faulty)
    acknowledged = bytes(one.data)
    written = []
    failed = False
    for index in range(40):
        if index == after:
            (pool.metadata.fail_writes if after % 2 else pool.metadata.fail)()
        offset = 2 * MIB + index * BLOCK
        try:
            one.write(offset, BLOCK)
            written.append(offset)
            one.thin.flush()
            assert not failed, "a flush succeeded after one that had failed"
            acknowledged = bytes(one.data)
        except OSError:
            failed = True
    assert failed
    pool.stop()
    pool.metadata.heal()
    repair(pool)
    pool.start()
    one, two = (content.on(pool.activate(thin_id, SIZE)) for thin_id, content in enumerate((one, two)))
    two.verify()
    found = one.thin.read(0, 2 * MIB + after * BLOCK)
    assert found == acknowledged[:len(found)]


def test_thin_repair_of_damaged_metadata(make_pool, make_disk, compare):
    """What thin_repair makes of damaged metadata is a pool that works."""
    def scenario(trace, turn):
        pool = make_pool(metadata_size=4 * MIB, data_size=32 * MIB)
        one = Content(pool.new_thin(0, SIZE))
        one.scatter("repair", 40)
        one.thin.flush()
        pool.create_snap(1, 0)
        before = dict(metadata.devices(pool.dump()))
        pool.stop()
        spare = make_disk(4 * MIB)
        done = subprocess.run(["thin_repair", "-i", pool.metadata.path, "-o", spare.path], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        pool.metadata = spare
        pool.start()
        look(trace, pool, "repair")
        one = one.on(pool.activate(0, SIZE))
        one.verify()
        Content(pool.activate(1, SIZE), one.data).verify()
        assert metadata.devices(pool.dump()) == before
        one.scatter("more", 20)
        one.verify()
        pool.stop()

    compare(scenario)


@pytest.mark.parametrize("then", ["nothing", "a larger table before", "a table after"])
def test_pool_fails_while_it_is_being_suspended(make_pool, make_faulty, compare, then):
    """It can be resumed nevertheless, which ends what waits, and it can be removed."""
    def scenario(trace, turn):
        pool = make_pool(metadata=make_faulty(4 * MIB), data=make_faulty(32 * MIB))
        content = Content(pool.new_thin(0, SIZE))
        content.write(0, MIB)
        content.thin.flush()
        if then == "a larger table before":
            pool.data.grow(64 * MIB)
            pool.device.load(pool.table())
        content.thin.write(4 * MIB, pattern("lost", 4 * KIB))
        # A commit waits for the data device, that of the suspend if no other one has come before.
        pool.data.hold("flushes")
        suspending = Background(pool.device.suspend)
        pool.data.wait_for_held()
        pool.metadata.fail()
        pool.data.heal()
        trace.note("the suspend", suspending.outcome(60))
        trace.note("status", pool.device.status())
        waiting = Background(lambda: content.thin.write(5 * MIB, pattern("waits", 4 * KIB)))
        trace.note("a write waits", waiting.waits())
        if then == "a table after":
            trace.attempt("another table", lambda: pool.device.load(pool.table()))
        trace.attempt("resume", pool.device.resume)
        trace.note("the write", waiting.outcome(60))
        look_after_rollback(trace, pool, "the resume")
        pool.stop()

        pool.metadata.heal()
        pool.start()
        content = content.on(pool.activate(0, SIZE))
        content.verify()
        pool.stop()

    compare(scenario)
