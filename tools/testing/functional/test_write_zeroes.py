# SPDX-License-Identifier: GPL-2.0
"""Zeroes: those that users ask for, and those that fill new blocks."""

import random

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
    SECTOR,
    TIB,
)

BLOCK = 64 * KIB


@pytest.mark.named_addition
@pytest.mark.smoke
def test_unmapped_blocks_stay_unmapped(make_pool):
    pool = make_pool()
    thin = pool.new_thin(0, 8 * MIB)
    assert thin.limit("write_zeroes_max_bytes") > 0
    thin.zero_out(0, 8 * MIB)
    thin.punch_hole(BLOCK + SECTOR * 8, 5 * BLOCK)
    assert thin.mapped_blocks() == 0
    assert not any(thin.read())


@pytest.mark.named_addition
@pytest.mark.smoke
def test_whole_blocks_are_unmapped_or_zeroed(make_pool):
    """A hole gives the space back, other zeroes need not."""
    pool = make_pool(data_size=64 * MIB)
    content = Content(pool.new_thin(0, 8 * MIB))
    content.write(0, 8 * MIB)
    content.zero(BLOCK, 10 * BLOCK, "punch_hole")
    assert content.thin.mapped_blocks() == 118
    content.zero(20 * BLOCK, 10 * BLOCK, "zero_out")
    assert content.thin.mapped_blocks() in (108, 118)
    content.verify()


@pytest.mark.parametrize("sectors", [128, 384])
@pytest.mark.parametrize("how", [pytest.param("punch_hole", marks=pytest.mark.named_addition), "zero_out"])
def test_random(make_pool, sectors, how):
    """With snapshots; what C does for want of write-zeroes must read the same."""
    choice = random.Random(how)
    pool = make_pool(data_size=128 * MIB, block_sectors=sectors)
    contents = {0: Content(pool.new_thin(0, 4 * MIB))}
    for step in range(120):
        content = contents[choice.choice(sorted(contents))]
        what = choice.random()
        if what < 0.5:
            content.scatter(("write", step), 3)
        elif what < 0.9:
            # In units of a page, which is what holes are made of where they are not passed down.
            start = choice.randrange(1024)
            length = choice.randint(1, min(200, 1024 - start))
            content.zero(start * 8 * SECTOR, length * 8 * SECTOR, how)
        elif len(contents) < 8:
            number = len(contents)
            origin = choice.choice(sorted(contents))
            pool.create_snap(number, origin)
            contents[number] = contents[origin].snapshot(pool.activate(number, 4 * MIB))
    for content in contents.values():
        content.verify()
    pool.restart()
    for number, content in contents.items():
        content.on(pool.activate(number, 4 * MIB)).verify()


@pytest.mark.named_addition
def test_huge_device(make_pool):
    pool = make_pool(data_size=64 * MIB)
    thin = pool.new_thin(0, 16 * TIB)
    for offset in (0, 8 * TIB, 16 * TIB - BLOCK):
        thin.write(offset, pattern(offset, BLOCK))
    thin.punch_hole(0, 16 * TIB)
    assert thin.mapped_blocks() == 0
    assert not any(thin.read(8 * TIB, BLOCK))


def test_zeroes_in_a_read_only_pool(make_pool):
    """Blocks that are mapped can be written to, zeroes included; nothing is unmapped."""
    pool = make_pool(data_size=64 * MIB)
    content = Content(pool.new_thin(0, 4 * MIB))
    content.write(0, 2 * MIB)
    pool.features = ["read_only"]
    pool.device.reload(pool.table())
    content.zero(BLOCK, 3 * BLOCK, "zero_out")
    content.verify()
    assert content.thin.mapped_blocks() == 32


@pytest.mark.parametrize("how", [pytest.param("punch_hole", marks=pytest.mark.named_addition), "zero_out"])
def test_zeroes_where_new_blocks_are_not_zeroed(make_pool, how):
    """They stay when something else is written to their blocks, whatever lies on the data device."""
    pool = make_pool(data_size=64 * MIB, features=["skip_block_zeroing"], start=False)
    pool.data.overwrite(0, b"\xa5" * (64 * MIB))
    pool.start()
    content = Content(pool.new_thin(0, 8 * MIB))
    content.write(0, 4 * BLOCK)
    snap = content.snapshot(pool.new_snap(1, 0, 8 * MIB))
    content.write(BLOCK, BLOCK)
    zeroed = [(0, 3 * BLOCK), (8 * BLOCK, 3 * BLOCK), (16 * BLOCK + 8 * SECTOR, 16 * SECTOR), (24 * BLOCK - 8 * SECTOR, BLOCK + 16 * SECTOR)]
    for offset, length in zeroed:
        content.zero(offset, length, how)
    content.thin.flush()
    for block in (0, 1, 2, 8, 9, 10, 24):
        content.write(block * BLOCK + 40 * SECTOR, 8 * SECTOR)
    for block in (16, 23, 25):
        content.write(block * BLOCK + 32 * SECTOR, 8 * SECTOR)
    for offset, length in zeroed:
        assert content.thin.read(offset, length) == content.data[offset:offset + length], f"at block {offset // BLOCK}"
    snap.verify()
    pool.restart()
    content = content.on(pool.activate(0, 8 * MIB))
    for offset, length in zeroed:
        assert content.thin.read(offset, length) == content.data[offset:offset + length], f"at block {offset // BLOCK}"


def test_data_device_that_breaks_its_promise(make_pool):
    """New blocks are zeroed, and zeroes written, although the device says yes to write-zeroes and then fails."""
    pool = make_pool(data_size=64 * MIB, start=False)
    # What lies there already must not be seen.
    pool.data.overwrite(0, b"\xa5" * (16 * MIB))
    pool.data.break_write_zeroes()
    pool.start()
    content = Content(pool.new_thin(0, 8 * MIB))
    for block in range(0, 100, 3):
        content.write(block * BLOCK + 5 * SECTOR, 3 * SECTOR)
    content.verify()
    content.zero(0, 4 * BLOCK + 8 * SECTOR, "zero_out")
    content.verify()


def test_data_device_without_write_zeroes(make_pool):
    pool = make_pool(data_size=64 * MIB, data_discards=False)
    content = Content(pool.new_thin(0, 8 * MIB))
    assert content.thin.limit("write_zeroes_max_bytes") == 0
    content.scatter("some", 50)
    content.zero(3 * BLOCK, 4 * BLOCK + 8 * SECTOR, "zero_out")
    content.verify()


@pytest.mark.named_addition
def test_refused_zeroes_fail_nobody_else(make_pool, make_gate):
    """Others write to the block meanwhile, which was shared."""
    pool = make_pool(data=make_gate(64 * MIB))
    content = Content(pool.new_thin(0, 4 * MIB))
    content.write(0, 2 * BLOCK)
    snap = content.snapshot(pool.new_snap(1, 0, 4 * MIB))
    pool.data.hold("zeroes")
    zeroing = Background(lambda: content.thin.zero_out(0, BLOCK))
    pool.data.wait_for("zeroes")
    writing = [Background(lambda at=at: content.write(at, 4 * KIB)) for at in (0, 8 * KIB, 60 * KIB)]
    wait_until(lambda: all(one.sleeps() for one in writing), "the writes")
    # The worker has got them when it has done this.
    content.write(BLOCK, 4 * KIB)
    pool.data.fail("zeroes")
    pool.data.release()
    assert zeroing.outcome() != "ok"
    assert [one.outcome() for one in writing] == ["ok"] * 3
    content.verify()
    snap.verify()
