# SPDX-License-Identifier: GPL-2.0
"""Running low on data space."""

import errno
import time

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

BLOCK = 64 * KIB


@pytest.mark.smoke
def test_low_water_mark_sends_one_event(make_pool):
    pool = make_pool(data_size=16 * MIB, low_water=200)
    thin = pool.new_thin(0, 16 * MIB)
    before = pool.device.event_nr()
    for block in range(40):
        thin.write(block * BLOCK, pattern(block, BLOCK))
    assert pool.device.event_nr() == before
    for block in range(40, 80):
        thin.write(block * BLOCK, pattern(block, BLOCK))
    wait_until(lambda: pool.device.event_nr() > before, "the event")
    time.sleep(0.5)
    assert pool.device.event_nr() == before + 1


def test_every_block_can_be_used(make_pool):
    pool = make_pool(data_size=8 * MIB)
    content = Content(pool.new_thin(0, 8 * MIB))
    content.write(0, 8 * MIB)
    assert pool.status().data_blocks == (128, 128)
    content.verify()
    content.write(0, 8 * MIB)
    content.verify()


@pytest.mark.smoke
def test_full_pool_still_serves_what_is_mapped(make_pool):
    pool = make_pool(data_size=8 * MIB)
    content = Content(pool.new_thin(0, 16 * MIB))
    content.write(0, 8 * MIB)
    assert not any(content.thin.read(8 * MIB, 8 * MIB))
    content.write(BLOCK, 3 * BLOCK)
    assert content.thin.read(0, 8 * MIB) == content.data[:8 * MIB]
    pool.create_snap(1, 0)
    pool.delete(1)


def test_writes_beyond_the_space_fail_after_the_timeout(make_pool):
    """They do not hang for ever, and what was there before stays."""
    with open("/sys/module/dm_thin_pool/parameters/no_space_timeout", "r+") as parameter:
        usual = parameter.read().strip()
        parameter.write("2")
    try:
        pool = make_pool(data_size=8 * MIB)
        content = Content(pool.new_thin(0, 16 * MIB))
        content.write(0, 8 * MIB)
        began = time.monotonic()
        with pytest.raises(OSError) as error:
            content.thin.write(8 * MIB, pattern("too much", BLOCK))
        assert error.value.errno in (errno.ENOSPC, errno.EIO)
        assert time.monotonic() - began < 30
        assert content.thin.read(0, 8 * MIB) == content.data[:8 * MIB]
    finally:
        with open("/sys/module/dm_thin_pool/parameters/no_space_timeout", "w") as parameter:
            parameter.write(usual)


def test_no_space_timeout_parameter():
    """It can be read and written while the module is loaded."""
    path = "/sys/module/dm_thin_pool/parameters/no_space_timeout"
    with open(path) as parameter:
        assert parameter.read().strip() == "60"
    for value in ("0", "17", "60"):
        with open(path, "w") as parameter:
            parameter.write(value)
        with open(path) as parameter:
            assert parameter.read().strip() == value
    with pytest.raises(OSError), open(path, "w") as parameter:
        parameter.write("nonsense")
    with open(path) as parameter:
        assert parameter.read().strip() == "60"


@pytest.mark.fault_of_c("a deletion at the moment of running full goes unnoticed")
def test_deletion_at_the_very_moment(make_pool, make_gate):
    """A write finds no free block, and somebody deletes a volume before the pool counts as full. The C module has the same gap."""
    pool = make_pool(metadata=make_gate(4 * MIB), data_size=16 * BLOCK, features=["skip_block_zeroing"])
    thin = pool.new_thin(0, 2 * MIB)
    thin.write(0, pattern("kept", BLOCK))
    for turn in range(20):
        pool.new_thin(1, MIB).write(0, pattern(turn, 14 * BLOCK))
        pool.thins[1].remove()
        pool.metadata.hold("flush")
        # The last block; and something to commit, in the hope for blocks.
        thin.write(2 * BLOCK, pattern(turn, BLOCK))
        writing = Background(lambda: thin.write(BLOCK, pattern(turn, BLOCK)))
        pool.metadata.wait_for("flush")
        deleting = Background(lambda: pool.delete(1))
        wait_until(deleting.sleeps, "the deletion waits for its turn")
        pool.metadata.let_pass("flush")
        assert deleting.outcome() == "ok"
        assert writing.outcome() == "ok", f"turn {turn}"
        thin.discard(BLOCK, 2 * BLOCK)
        thin.flush()
        assert pool.status().mode == "rw"
