# SPDX-License-Identifier: GPL-2.0
"""One pool, served by the two implementations in turn: each continues what the other wrote."""

import random

import pytest

from dmtest.content import Content
from dmtest.disk import (
    KIB,
    MIB,
)

BLOCK = 64 * KIB
SIZE = 3 * MIB
TURNS = 12


def test_turns(make_pool, modules, both):
    """Volumes, snapshots, changes, deletions and metadata snapshots by one, continued by the other."""
    pool = make_pool(start=False)
    choice = random.Random("turns")
    contents = {}
    transaction = 0
    held = None
    for turn in range(TURNS):
        modules.load(both[turn % 2])
        pool.start()
        status = pool.status()
        assert status.transaction_id == transaction
        assert status.metadata_snap == held
        assert status.mode == "rw" and not status.needs_check
        for thin_id in list(contents):
            contents[thin_id] = contents[thin_id].on(pool.activate(thin_id, SIZE))
            contents[thin_id].verify()

        contents[turn] = Content(pool.new_thin(turn, SIZE))
        for thin_id in sorted(contents):
            contents[thin_id].scatter((turn, thin_id), 8)
        origin = contents[choice.choice(sorted(contents))]
        snap_id = 1000 + turn
        contents[snap_id] = origin.snapshot(pool.new_snap(snap_id, origin.thin.id, SIZE))
        origin.scatter((turn, "origin"), 6)
        contents[snap_id].scatter((turn, "snap"), 6)
        if held is None:
            held = pool.reserve_metadata_snap()
        elif turn % 3 == 0:
            pool.release_metadata_snap()
            held = None
        if len(contents) > 8:
            victim = choice.choice(sorted(contents))
            contents.pop(victim).thin.remove()
            pool.delete(victim)
        pool.message(f"set_transaction_id {transaction} {turn + 100}")
        transaction = turn + 100
        for content in contents.values():
            content.verify()
        pool.stop()
        modules.unload()
        pool.check()


@pytest.mark.parametrize("block_sectors", [384, 2048])
def test_turns_with_other_block_sizes(make_pool, modules, both, block_sectors):
    pool = make_pool(start=False, block_sectors=block_sectors)
    content = snap = None
    for turn in range(10):
        modules.load(both[turn % 2])
        pool.start()
        if content is None:
            content = Content(pool.new_thin(0, SIZE))
            content.scatter("first", 20)
            snap = content.snapshot(pool.new_snap(1, 0, SIZE))
        else:
            content, snap = content.on(pool.activate(0, SIZE)), snap.on(pool.activate(1, SIZE))
        content.verify()
        snap.verify()
        content.scatter(turn, 5)
        snap.scatter(("snap", turn), 5)
        pool.stop()
        modules.unload()
        pool.check()


def test_deletion_of_what_the_other_wrote(make_pool, modules, both):
    """Each one's trees, with mappings in no order and shared blocks, are taken down by the other."""
    for writer, deleter in (both, both[::-1]):
        pool = make_pool(start=False)
        modules.load(writer)
        pool.start()
        content = Content(pool.new_thin(0, 256 * MIB))
        for index in range(1500):
            content.thin.write((index * 2741) % 4096 * BLOCK, b"\x11" * 4096)
        for number in range(1, 6):
            pool.create_snap(number, 0)
            for index in range(100):
                content.thin.write((index * 2741 + number) % 4096 * BLOCK, b"\x22" * 4096)
        pool.stop()
        pool.check()
        modules.load(deleter)
        pool.start()
        for number in (3, 0, 5, 1, 4, 2):
            pool.delete(number)
            if number == 5:
                pool.stop()
                pool.check()
                pool.start()
        assert pool.status().data_blocks[0] == 0
        pool.stop()
        pool.check()


def test_growth_under_the_other(make_pool, modules, both):
    pool = make_pool(metadata_size=4 * MIB, data_size=16 * MIB)
    content = Content(pool.new_thin(0, SIZE))
    for turn in range(2, 6):
        pool.stop()
        modules.load(both[turn % 2])
        pool.metadata.grow(turn * 4 * MIB)
        pool.data.grow(turn * 16 * MIB)
        pool.start()
        assert pool.status().metadata_blocks[1] == turn * 1024
        assert pool.status().data_blocks[1] == turn * 256
        content = content.on(pool.activate(0, SIZE))
        content.verify()
        content.scatter(turn, 20)
