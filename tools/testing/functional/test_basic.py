# SPDX-License-Identifier: GPL-2.0
"""Thin volumes: what is written is read back, and what was never written is zero."""

import errno

import pytest

from dmtest import (
    disk,
    dm,
    metadata,
)
from dmtest.content import (
    Content,
    pattern,
)
from dmtest.disk import (
    GIB,
    KIB,
    MIB,
    SECTOR,
)

BLOCK = 64 * KIB
# 64 KiB, 128 KiB and one that is no power of two.
BLOCK_SECTORS = [128, 256, 384]


@pytest.mark.smoke
def test_dmsetup_end_to_end(pool):
    """The commands of the kernel's own documentation, through dmsetup."""
    def run(*arguments):
        done = dm.dmsetup(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("message", pool.name, "0", "create_thin 0")
    run("create", "thin", "--table", f"0 32768 thin {pool.device.path} 0")
    disk.write("/dev/mapper/thin", 0, pattern("origin", MIB))
    run("suspend", "thin")
    run("message", pool.name, "0", "create_snap 1 0")
    run("resume", "thin")
    run("create", "snap", "--table", f"0 32768 thin {pool.device.path} 1")
    disk.write("/dev/mapper/thin", 0, pattern("changed", MIB))
    assert disk.read("/dev/mapper/thin", 0, MIB) == pattern("changed", MIB)
    assert disk.read("/dev/mapper/snap", 0, MIB) == pattern("origin", MIB)
    assert run("status", "thin").split()[3:] == ["2048", "2047"]
    run("remove", "thin")
    run("remove", "snap")
    run("message", pool.name, "0", "delete 1")


def test_unprovisioned_reads_are_zero(pool):
    thin = pool.new_thin(0, 16 * MIB)
    assert not any(thin.read())
    assert thin.mapped() == (0, None)
    assert pool.status().data_blocks[0] == 0


@pytest.mark.smoke
@pytest.mark.parametrize("block_sectors", BLOCK_SECTORS)
def test_scattered_writes(make_pool, block_sectors):
    pool = make_pool(block_sectors=block_sectors)
    content = Content(pool.new_thin(0, 24 * MIB))
    content.scatter("scattered", 200)
    content.verify()
    pool.restart()
    content.on(pool.activate(0, 24 * MIB)).verify()


def test_every_sector_of_a_block(make_pool):
    """One sector at a time, in an order that jumps between blocks."""
    pool = make_pool()
    content = Content(pool.new_thin(0, 4 * BLOCK))
    for sector in range(128):
        content.write(((sector % 4) * 128 + (sector * 37) % 128) * SECTOR, SECTOR)
    content.verify()


def dirty(pool):
    """Fills the data device, so that what is not zeroed shows."""
    for offset in range(0, 64 * MIB, 4 * MIB):
        disk.write(pool.data.path, offset, b"\xa5" * (4 * MIB))


@pytest.mark.smoke
def test_partial_write_zeroes_the_rest(make_pool):
    pool = make_pool()
    dirty(pool)
    content = Content(pool.new_thin(0, 16 * MIB))
    content.write(5 * BLOCK + 3 * SECTOR, 4 * KIB)
    content.write(7 * BLOCK, SECTOR)
    content.write(9 * BLOCK - SECTOR, SECTOR)
    content.write(20 * BLOCK - SECTOR, 2 * SECTOR)
    content.verify()
    assert content.thin.mapped()[0] == 5 * BLOCK


@pytest.mark.smoke
def test_skip_block_zeroing_keeps_what_was_there(make_pool):
    pool = make_pool(features=["skip_block_zeroing"])
    dirty(pool)
    content = Content(pool.new_thin(0, 16 * MIB))
    content.write(2 * BLOCK + SECTOR, 4 * KIB)
    content.data[2 * BLOCK:2 * BLOCK + SECTOR] = b"\xa5" * SECTOR
    rest = 2 * BLOCK + SECTOR + 4 * KIB
    content.data[rest:3 * BLOCK] = b"\xa5" * (3 * BLOCK - rest)
    content.verify()


def test_whole_block_write_is_not_zeroed_first(make_pool):
    """A write that covers the block costs the data device one write of that size."""
    pool = make_pool()
    thin = pool.new_thin(0, 16 * MIB)

    def written():
        return disk.stat(pool.data.path, 6) * SECTOR

    before = written()
    thin.write(4 * BLOCK, pattern("whole", BLOCK))
    assert written() - before == BLOCK
    before = written()
    thin.write(5 * BLOCK, pattern("part", SECTOR))
    assert written() - before >= BLOCK


@pytest.mark.parametrize("sectors", [1, 127, 129, 128 * 5 + 8, 128 * 9 - 1])
def test_size_is_no_multiple_of_the_block(pool, sectors):
    content = Content(pool.new_thin(0, sectors * SECTOR))
    content.write((sectors - 1) * SECTOR, SECTOR)
    content.write(0, sectors * SECTOR)
    content.verify()
    with pytest.raises(OSError):
        disk.read(content.thin.path, sectors * SECTOR, SECTOR)


@pytest.mark.smoke
def test_highest_id(pool):
    highest = (1 << 24) - 1
    content = Content(pool.new_thin(highest, 4 * MIB))
    content.scatter("highest", 20)
    pool.create_snap(highest - 1, highest)
    pool.restart()
    content.on(pool.activate(highest, 4 * MIB)).verify()
    content.on(pool.activate(highest - 1, 4 * MIB)).verify()


@pytest.mark.smoke
def test_block_size_of_one_gib(make_pool):
    pool = make_pool(data_size=4 * GIB, block_sectors=GIB // SECTOR, features=["skip_block_zeroing"])
    thin = pool.new_thin(0, 3 * GIB)
    for offset in (0, GIB + 12345 * SECTOR, 3 * GIB - BLOCK):
        thin.write(offset, pattern(offset, BLOCK))
    for offset in (0, GIB + 12345 * SECTOR, 3 * GIB - BLOCK):
        assert thin.read(offset, BLOCK) == pattern(offset, BLOCK)
    assert thin.mapped() == (3 * GIB, 3 * GIB - 1)
    assert pool.status().data_blocks == (3, 4)


def test_status_counts_blocks(pool):
    thin = pool.new_thin(0, 64 * MIB)
    used = 0
    for block in (0, 1, 2, 17, 900, 5):
        thin.write(block * BLOCK, pattern(block, SECTOR))
        used += 1
        assert thin.mapped()[0] == used * BLOCK
    assert thin.mapped()[1] == 901 * BLOCK - 1
    assert pool.status().data_blocks[0] == used
    thin.write(17 * BLOCK, pattern("again", BLOCK))
    assert pool.status().data_blocks[0] == used


def test_many_volumes_share_a_pool(pool):
    contents = [Content(pool.new_thin(thin_id, 8 * MIB)) for thin_id in range(8)]
    for turn in range(4):
        for content in contents:
            content.scatter((content.thin.id, turn), 6)
    for content in contents:
        content.verify()


def test_large_requests_span_blocks(pool):
    content = Content(pool.new_thin(0, 16 * MIB))
    content.write(3 * SECTOR, 8 * MIB)
    content.write(0, 16 * MIB)
    content.write(BLOCK - SECTOR, 4 * MIB)
    content.verify()


@pytest.mark.smoke
def test_delete_gives_space_back(pool):
    content = Content(pool.new_thin(0, 8 * MIB))
    content.write(0, 8 * MIB)
    kept = Content(pool.new_thin(1, 8 * MIB))
    kept.write(0, 2 * MIB)
    assert pool.status().data_blocks[0] == 160
    content.thin.remove()
    pool.delete(0)
    assert pool.status().data_blocks[0] == 32
    kept.verify()
    with pytest.raises(dm.DmError) as error:
        pool.activate(0, 8 * MIB)
    assert error.value.errno == errno.ENODATA
    again = Content(pool.new_thin(0, 8 * MIB))
    again.verify()


def test_deleted_space_is_used_again(make_pool):
    """A pool that is filled and emptied three times holds no block back."""
    pool = make_pool(data_size=16 * MIB)
    for turn in range(3):
        content = Content(pool.new_thin(turn, 16 * MIB))
        content.write(0, 16 * MIB)
        assert pool.status().data_blocks == (256, 256)
        content.verify()
        content.thin.remove()
        pool.delete(turn)
        assert pool.status().data_blocks == (0, 256)


@pytest.mark.smoke
def test_transaction_id(pool):
    assert pool.status().transaction_id == 0
    pool.message("set_transaction_id 0 7")
    assert pool.status().transaction_id == 7
    with pytest.raises(dm.DmError):
        pool.message("set_transaction_id 0 8")
    pool.message(f"set_transaction_id 7 {(1 << 64) - 1}")
    pool.restart()
    assert pool.status().transaction_id == (1 << 64) - 1
    pool.message(f"set_transaction_id {(1 << 64) - 1} 3")
    assert pool.status().transaction_id == 3


def test_dump_shows_what_was_written(pool):
    thin = pool.new_thin(3, 16 * MIB)
    for block in (2, 9, 3):
        thin.write(block * BLOCK, pattern(block, BLOCK))
    mapped = metadata.mappings(pool.dump())
    assert sorted(mapped[3]) == [2, 3, 9]
    for block, data_block in mapped[3].items():
        assert disk.read(pool.data.path, data_block * BLOCK, BLOCK) == pattern(block, BLOCK)
