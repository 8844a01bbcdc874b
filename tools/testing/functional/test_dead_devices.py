# SPDX-License-Identifier: GPL-2.0
"""Devices that die while there is nothing to commit: who looks at a pool in service learns of it."""

import time

import pytest

from dmtest import disk
from dmtest.content import (
    Content,
    pattern,
)
from dmtest.disk import (
    KIB,
    MIB,
)
from test_failures import (
    look_after_rollback,
    repair,
)

BLOCK = 64 * KIB
SIZE = 8 * MIB


def prepare(make_pool, make_faulty):
    """A pool on disks that can fail, with a volume whose content is committed."""
    pool = make_pool(metadata=make_faulty(4 * MIB), data=make_faulty(32 * MIB))
    content = Content(pool.new_thin(0, SIZE))
    content.write(0, MIB)
    content.thin.flush()
    pool.status()
    return pool, content


def mode(pool):
    """As a status line tells that changes nothing."""
    words = pool.device.status(noflush=True).split()
    return words[4] if len(words) > 4 else words[0]


@pytest.mark.smoke
@pytest.mark.parametrize("device, how", [("data", "fail_writes"), ("data", "fail"), ("metadata", "fail_writes"), ("metadata", "fail")])
def test_status_finds_a_dead_device(make_pool, make_faulty, compare, device, how):
    """Where a commit would meet it; time alone does not find it, nor a status line that must not flush."""
    def scenario(trace, turn):
        pool, content = prepare(make_pool, make_faulty)
        content.write(0, 4 * KIB)
        getattr(getattr(pool, device), how)()
        time.sleep(2.5)
        trace.note("mode before", mode(pool))
        look_after_rollback(trace, pool, "the fault")
        trace.note("volume", content.thin.status())
        trace.attempt("flush", content.thin.flush)
        trace.attempt("overwriting", lambda: content.thin.write(0, content.data[:BLOCK]))
        getattr(pool, device).heal()
        look_after_rollback(trace, pool, "the end of the fault")
        pool.stop()
        if device != "data" or how != "fail":
            repair(pool)
        pool.start()
        content = content.on(pool.activate(0, SIZE))
        content.verify()
        content.write(4 * MIB, MIB)
        content.verify()
        look_after_rollback(trace, pool, "a restart")
        pool.stop()

    compare(scenario)


def test_bad_superblock_is_found(make_pool, make_faulty, compare):
    """All but two sectors of the metadata device work."""
    def scenario(trace, turn):
        pool, content = prepare(make_pool, make_faulty)
        pool.metadata.fail_sectors(6, 2)
        trace.note("mode before", mode(pool))
        look_after_rollback(trace, pool, "the fault")
        trace.note("volume", content.thin.status())
        pool.metadata.heal()
        pool.stop()
        pool.start()
        content.on(pool.activate(0, SIZE)).verify()
        pool.stop()

    compare(scenario)


@pytest.mark.parametrize("by", ["nothing", "a read-only start", "activation", "a message", "a refused message", "a message that is none"])
def test_pool_gets_into_service(make_pool, make_faulty, compare, by):
    """Before that the devices are left alone."""
    def scenario(trace, turn):
        pool, content = prepare(make_pool, make_faulty)
        pool.stop()
        if by == "a read-only start":
            pool.features = ["read_only"]
        pool.start()
        if by == "activation":
            pool.activate(0, SIZE).remove()
        elif by == "a message":
            pool.message("set_transaction_id 0 1")
        elif by == "a refused message":
            trace.attempt("delete 7", lambda: pool.delete(7))
        elif by == "a message that is none":
            trace.attempt("nonsense", lambda: pool.message("nonsense"))
        pool.data.fail_writes()
        look_after_rollback(trace, pool, "the fault")
        pool.data.heal()
        pool.stop()
        pool.features = []
        repair(pool)
        pool.start()
        content.on(pool.activate(0, SIZE)).verify()
        pool.stop()

    compare(scenario)


@pytest.mark.parametrize("device", ["data", "metadata"])
@pytest.mark.parametrize("what", ["suspend", "reload", "removal"])
def test_the_end_of_a_table_finds_a_dead_device(make_pool, make_faulty, compare, device, what):
    def scenario(trace, turn):
        pool, content = prepare(make_pool, make_faulty)
        getattr(pool, device).fail_writes()
        if what == "removal":
            pool.stop()
            getattr(pool, device).heal()
            pool.start()
            content.thin = pool.activate(0, SIZE)
        else:
            pool.device.load(pool.table()) if what == "reload" else None
            pool.device.suspend()
            pool.device.resume()
            trace.note("mode after", mode(pool))
            getattr(pool, device).heal()
        content.verify()
        look_after_rollback(trace, pool, what)
        pool.stop()
        repair(pool)

    compare(scenario)


@pytest.mark.parametrize("what", ["status", "status without a flush", "suspend", "removal", "time"])
def test_data_device_is_flushed_without_changes(make_pool, compare, what):
    """What was written in place is stable after that, though nobody flushed the volume."""
    def scenario(trace, turn):
        pool = make_pool(data_size=32 * MIB)
        content = Content(pool.new_thin(0, SIZE))
        content.write(0, MIB)
        content.thin.flush()
        pool.status()
        content.write(0, 4 * KIB)
        before = disk.stat(pool.data.path, 15)
        if what.startswith("status"):
            pool.device.status(noflush=what != "status")
        elif what == "suspend":
            pool.device.suspend()
        elif what == "removal":
            pool.stop()
        else:
            time.sleep(2.5)
        trace.note("flushed", disk.stat(pool.data.path, 15) > before)
        if what == "suspend":
            pool.device.resume()
        pool.stop()

    compare(scenario)


@pytest.mark.named_addition
def test_looking_writes_no_metadata(pool):
    """The C module writes the superblock anew each time."""
    thin = pool.new_thin(0, SIZE)
    thin.write(0, pattern("once", 4 * BLOCK))
    thin.flush()
    pool.status()
    before = disk.stat(pool.metadata.path, 6)
    for _ in range(3):
        pool.status()
        pool.device.suspend()
        pool.device.resume()
    pool.stop()
    assert disk.stat(pool.metadata.path, 6) == before
