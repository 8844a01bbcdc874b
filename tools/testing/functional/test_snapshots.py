# SPDX-License-Identifier: GPL-2.0
"""Snapshots: sharing, and its end on either side."""

import os
import random
import re

import pytest

from dmtest import metadata
from dmtest.background import Background
from dmtest.content import Content
from dmtest.disk import (
    KIB,
    MIB,
    SECTOR,
)

BLOCK = 64 * KIB
SIZE = 8 * MIB


@pytest.fixture
def origin(pool):
    content = Content(pool.new_thin(0, SIZE))
    content.write(0, SIZE // 2)
    return content


def take(pool, content, thin_id):
    return content.snapshot(pool.new_snap(thin_id, content.thin.id, content.thin.size))


def test_snapshot_shares_all_blocks(pool, origin):
    used = pool.status().data_blocks[0]
    snap = take(pool, origin, 1)
    assert pool.status().data_blocks[0] == used
    snap.verify()
    mapped = metadata.mappings(pool.dump())
    assert mapped[0] == mapped[1]


@pytest.mark.smoke
@pytest.mark.parametrize("length", [SECTOR, 4 * KIB, BLOCK - SECTOR], ids=["sector", "4k", "all but a sector"])
@pytest.mark.parametrize("writer", ["origin", "snapshot"])
def test_partial_write_copies_the_block(pool, origin, writer, length):
    snap = take(pool, origin, 1)
    used = pool.status().data_blocks[0]
    content = origin if writer == "origin" else snap
    for block in (0, 3, 4, 31):
        content.write(block * BLOCK + (BLOCK - length) // SECTOR // 2 * SECTOR, length)
    assert pool.status().data_blocks[0] == used + 4
    origin.verify()
    snap.verify()


@pytest.mark.smoke
@pytest.mark.parametrize("writer", ["origin", "snapshot"])
def test_whole_block_write_breaks_sharing(pool, origin, writer):
    snap = take(pool, origin, 1)
    content = origin if writer == "origin" else snap
    content.write(2 * BLOCK, 3 * BLOCK)
    origin.verify()
    snap.verify()
    mapped = metadata.mappings(pool.dump())
    assert [block for block in mapped[0] if mapped[0][block] != mapped[1][block]] == [2, 3, 4]


def test_second_write_copies_nothing(pool, origin):
    snap = take(pool, origin, 1)
    origin.write(0, SECTOR)
    used = pool.status().data_blocks[0]
    origin.write(SECTOR, SECTOR)
    snap.write(0, SECTOR)
    snap.write(8 * SECTOR, SECTOR)
    assert pool.status().data_blocks[0] - used in (0, 1)
    origin.verify()
    snap.verify()


def test_unprovisioned_blocks_stay_apart(pool, origin):
    snap = take(pool, origin, 1)
    origin.write(SIZE // 2, 5 * BLOCK)
    snap.write(SIZE // 2 + 3 * BLOCK, 5 * BLOCK + SECTOR)
    origin.verify()
    snap.verify()


def test_delete_of_the_origin_leaves_the_snapshot(pool, origin):
    snap = take(pool, origin, 1)
    snap.scatter("snapshot", 20)
    origin.thin.remove()
    pool.delete(0)
    snap.verify()
    snap.thin.remove()
    pool.delete(1)
    assert pool.status().data_blocks[0] == 0


def test_snapshot_of_an_inactive_volume(pool, origin):
    origin.thin.remove()
    pool.create_snap(1, 0)
    origin.on(pool.activate(1, SIZE)).verify()


@pytest.mark.smoke
def test_tree_of_snapshots(pool, origin):
    """Snapshots of whatever there is, writes to all of them, deletion of some, for a while."""
    choice = random.Random("tree")
    alive = {0: origin}
    for turn in range(60):
        content = alive[choice.choice(sorted(alive))]
        what = choice.random()
        if what < 0.3 and len(alive) < 12:
            thin_id = turn + 1
            alive[thin_id] = take(pool, content, thin_id)
        elif what < 0.4 and len(alive) > 3:
            content.thin.remove()
            pool.delete(content.thin.id)
            del alive[content.thin.id]
        else:
            content.scatter(("tree", turn), 4)
    for content in alive.values():
        content.verify()
    pool.restart()
    for thin_id, content in alive.items():
        content.on(pool.activate(thin_id, SIZE)).verify()


@pytest.mark.parametrize("block_sectors", [384, 1024])
def test_other_block_sizes(make_pool, block_sectors):
    pool = make_pool(block_sectors=block_sectors)
    origin = Content(pool.new_thin(0, SIZE + 5 * SECTOR))
    origin.write(0, SIZE + 5 * SECTOR)
    snap = take(pool, origin, 1)
    origin.scatter("origin", 15)
    snap.scatter("snap", 15)
    origin.verify()
    snap.verify()


def test_skip_block_zeroing_still_copies(make_pool):
    pool = make_pool(features=["skip_block_zeroing"])
    origin = Content(pool.new_thin(0, SIZE))
    origin.write(0, SIZE)
    snap = take(pool, origin, 1)
    origin.scatter("origin", 20, most=40)
    snap.scatter("snap", 20, most=40)
    origin.verify()
    snap.verify()


def set_back(pool):
    """Stops a pool, and says in its superblock that no snapshot was taken yet, as a repair may that has lost the number."""
    pool.stop()
    xml = metadata.dump(pool.metadata.path)
    metadata.restore(re.sub(r'(<superblock [^>]*\btime=)"\d+"', r'\1"0"', xml), pool.metadata.path)
    pool.start()


def test_write_with_fua_to_a_volume_of_the_future(pool, origin):
    """The volume was part of a snapshot at a time that is still to come for the pool."""
    take(pool, origin, 1)
    take(pool, origin, 2)
    set_back(pool)
    origin = origin.on(pool.activate(0, SIZE))
    writing = Background(lambda: origin.write(3 * SECTOR, 4 * KIB, os.O_DSYNC))
    assert writing.outcome() == "ok"
    origin.verify()


@pytest.mark.fault_of_c("the older snapshot changes")
@pytest.mark.parametrize("active", [False, True])
def test_snapshot_of_a_volume_of_the_future(pool, origin, active):
    """An older snapshot keeps its blocks. The C module sets the origin's time back to that of the new one, and then writes to
    blocks that the older one shares.
    """
    take(pool, origin, 1)
    origin.write(0, SIZE // 2)
    older = take(pool, origin, 2)
    set_back(pool)
    if active:
        origin = origin.on(pool.activate(0, SIZE))
        snap = take(pool, origin, 3)
    else:
        pool.create_snap(3, 0)
        origin = origin.on(pool.activate(0, SIZE))
        snap = origin.snapshot(pool.activate(3, SIZE))
    origin.write(0, SIZE // 2)
    older = older.on(pool.activate(2, SIZE))
    for each in (origin, older, snap):
        each.verify()
