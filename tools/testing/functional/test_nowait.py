# SPDX-License-Identifier: GPL-2.0
"""I/O that must not wait: served if the mapping is at hand, EAGAIN otherwise. The C module does not take it."""

import os
import time

import pytest

from dmtest import (
    disk,
    load,
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

BLOCK = 64 * KIB
PATIENCE = 60

pytestmark = pytest.mark.named_addition


def read(device, offset, length):
    return disk.read(device.path, offset, length, os.RWF_NOWAIT)


def write(device, offset, data, how=0):
    disk.write(device.path, offset, data, how=os.RWF_NOWAIT | how)


def eventually(action, *arguments):
    """The result of the action once it need not wait: others may have held a lock, or the tags of the disk."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return action(*arguments)
        except BlockingIOError:
            assert time.monotonic() < end, "there is always something to wait for"
            time.sleep(0.01)


def would_wait(action, *arguments):
    for _ in range(20):
        with pytest.raises(BlockingIOError):
            action(*arguments)


@pytest.mark.smoke
def test_what_is_mapped(pool):
    content = Content(pool.new_thin(0, 8 * MIB))
    content.write(0, 4 * MIB)
    for offset in range(0, 4 * MIB, 100 * SECTOR):
        assert eventually(read, content.thin, offset, 8 * SECTOR) == content.data[offset:offset + 8 * SECTOR]
    for offset in range(0, 4 * MIB, 300 * SECTOR):
        data = pattern(("nowait", offset), 4 * SECTOR)
        eventually(write, content.thin, offset, data)
        content.data[offset:offset + len(data)] = data
    content.verify()


@pytest.mark.smoke
def test_what_is_not_mapped(pool):
    thin = pool.new_thin(0, 8 * MIB)
    would_wait(write, thin, 0, bytes(SECTOR))
    would_wait(write, thin, BLOCK, bytes(BLOCK))
    assert thin.status() == "0 -"
    thin.write(0, pattern("first", BLOCK))
    assert not any(eventually(read, thin, 5 * BLOCK, BLOCK))
    assert thin.mapped_blocks() == 1


@pytest.mark.smoke
def test_what_is_shared(pool):
    content = Content(pool.new_thin(0, 4 * MIB))
    content.write(0, MIB)
    snap = content.snapshot(pool.new_snap(1, 0, 4 * MIB))
    for each in (content, snap):
        would_wait(write, each.thin, 0, bytes(SECTOR))
        would_wait(write, each.thin, BLOCK, bytes(BLOCK))
        assert eventually(read, each.thin, BLOCK, BLOCK) == content.data[BLOCK:2 * BLOCK]
        each.verify()
    content.write(0, SECTOR)
    data = pattern("broken", SECTOR)
    eventually(write, content.thin, 2 * SECTOR, data)
    content.data[2 * SECTOR:3 * SECTOR] = data
    content.verify()
    snap.verify()


def test_what_asks_for_a_commit(pool):
    content = Content(pool.new_thin(0, 4 * MIB))
    content.write(0, MIB)
    would_wait(write, content.thin, 0, bytes(SECTOR), os.RWF_DSYNC)
    content.verify()


def test_metadata_that_are_not_in_memory(make_pool):
    """They are read by and by, even if nobody asks who waits for them."""
    pool = make_pool()
    content = Content(pool.new_thin(0, 64 * MIB))
    content.write(0, 64 * MIB)
    pool.restart()
    thin = pool.activate(0, 64 * MIB)
    with pytest.raises(BlockingIOError):
        read(thin, 32 * MIB, SECTOR)
    assert eventually(read, thin, 32 * MIB, SECTOR) == content.data[32 * MIB:32 * MIB + SECTOR]


def test_while_suspended(pool):
    content = Content(pool.new_thin(0, 4 * MIB))
    content.write(0, MIB)
    for device in (content.thin, pool.device):
        device.suspend()
        would_wait(read, content.thin, 0, SECTOR)
        would_wait(write, content.thin, 0, bytes(SECTOR))
        device.resume()
    content.verify()


def test_external_origin(make_pool, make_disk, modules):
    """It is read at once if it takes such I/O; a delay target does not."""
    modules.need("dm-delay")
    pool = make_pool()
    origin = make_disk(2 * MIB + 9 * SECTOR, "origin")
    holds = pattern("origin", origin.size)
    disk.write(origin.path, 0, holds)
    delay = Device.create("delay", f"0 {origin.sectors} delay {origin.path} 0 0")
    direct = pool.new_thin(0, 4 * MIB, origin.path)
    delayed = pool.new_thin(1, 4 * MIB, delay.path)
    for thin in (direct, delayed):
        thin.write(3 * MIB, bytes(SECTOR))
        assert not any(eventually(read, thin, 2 * MIB + BLOCK, BLOCK))
        would_wait(write, thin, 0, bytes(SECTOR))
    begin = 2 * MIB - BLOCK
    assert eventually(read, direct, begin, 2 * BLOCK) == holds[begin:].ljust(2 * BLOCK, b"\0")
    would_wait(read, delayed, begin, SECTOR)
    would_wait(read, delayed, 2 * MIB, 20 * SECTOR)
    assert delayed.read(begin, 2 * BLOCK) == holds[begin:].ljust(2 * BLOCK, b"\0")
    delayed.remove()
    delay.remove()


def test_device_below_that_does_not_take_it(make_pool, modules):
    """Nor does the volume, then."""
    modules.need("dm-delay")
    pool = make_pool(start=False)
    delay = Device.create("delay", f"0 {pool.data.sectors} delay {pool.data.path} 0 0")
    pool.device = Device.create(
        pool.name, f"0 {pool.data.sectors} thin-pool {pool.metadata.path} {delay.path} {pool.block_sectors} 0"
    )
    thin = pool.new_thin(0, 4 * MIB)
    thin.write(0, bytes(SECTOR))
    with pytest.raises(OSError, match="not supported"):
        read(thin, 0, SECTOR)
    pool.stop()
    delay.remove()


@pytest.mark.parametrize("what", ["nothing", "snapshots", "reloads"])
def test_io_uring(pool, what):
    """io_uring tries without waiting first, and has somebody wait if that fails."""
    thin = pool.new_thin(0, 32 * MIB)
    job = load.Background(thin, "--bsrange=4k-96k", engine="io_uring", depth=32)
    number = 1
    while job.running():
        if what == "snapshots" and number < 20:
            pool.create_snap(number, 0)
            number += 1
        elif what == "reloads":
            thin.reload(thin.table_text())
        time.sleep(0.05)
    job.finish()
