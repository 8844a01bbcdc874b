# SPDX-License-Identifier: GPL-2.0
"""Reads that are still on their way to a data block when nobody refers to it any more.

What they find there is what was there when they were sent: the block is neither discarded nor given away before. Nobody
else has to wait for them.
"""

import pytest

from dmtest import metadata
from dmtest.background import (
    Background,
    is_soon,
    wait_until,
)
from dmtest.content import Content
from dmtest.disk import (
    KIB,
    MIB,
)

BLOCK = 64 * KIB
SECTORS = 128
SIZE = 4 * MIB
DATA = 64 * MIB


class HeldRead:
    """A read of the first block of `content`, which is on its way until release()."""

    def __init__(self, pool, content):
        self._disk = pool.data
        self.wanted = bytes(content.data[:BLOCK])
        self._found = []
        block = metadata.mappings(pool.dump())[content.thin.id][0]
        self._disk.hold("reads", start=block * SECTORS, count=SECTORS)
        self._read = Background(lambda: self._found.append(content.thin.read(0, BLOCK)))
        wait_until(self._disk.held, "the read is on its way")

    def release(self):
        """Lets it go on, and returns what it found."""
        self._disk.heal()
        assert self._read.outcome() == "ok"
        return self._found[0]


@pytest.fixture
def is_ours(run):
    return run["impl"] != "c"


def start(make_pool, make_faulty, size=DATA, **options):
    return make_pool(data=make_faulty(size), metadata_size=4 * MIB, **options)


def volume(pool, thin_id, blocks=1):
    """A volume some blocks of which are written and committed."""
    content = Content(pool.new_thin(thin_id, SIZE))
    content.write(0, blocks * BLOCK)
    content.thin.flush()
    return content


def work(content, first, count=4):
    """What a volume's user does: new blocks, a flush, and reads."""
    for block in range(first, first + count):
        content.write(block * BLOCK, BLOCK)
    content.thin.flush()
    content.verify()


def goes_on(content, first, count=4):
    assert Background(lambda: work(content, first, count)).outcome() == "ok"


@pytest.mark.parametrize("how", [
    "discard", pytest.param("delete", marks=pytest.mark.named_addition),
])
def test_no_discard_overtakes_a_read(make_pool, make_faulty, how):
    """The reader's volume has another block by then, and nobody knows any more that the block was its own."""
    features = ["discard_on_delete"] if how == "delete" else []
    pool = start(make_pool, make_faulty, features=features)
    origin = volume(pool, 0)
    snap = origin.snapshot(pool.new_snap(1, 0, SIZE))
    read = HeldRead(pool, snap)
    # The C module waits for the read here already.
    writing = Background(lambda: snap.write(0, BLOCK))
    writing.waits(1)
    if how == "discard":
        discarding = Background(lambda: origin.thin.discard(0, BLOCK))
        discarding.waits(1)
    else:
        origin.thin.remove()
        pool.delete(0)
        is_soon(lambda: pool.data.disk.allocated() < 2 * BLOCK)
    found = read.release()
    assert writing.outcome() == "ok"
    assert how == "delete" or discarding.outcome() == "ok"
    assert found in (read.wanted, bytes(snap.data[:BLOCK])), "zeroes" if not any(found) else "other data"
    snap.verify()


def test_others_go_on_while_a_discard_waits(make_pool, make_faulty, is_ours):
    """For what is discarded here somebody has to wait: the read of the former owner. No other volume does."""
    pool = start(make_pool, make_faulty)
    origin = volume(pool, 0)
    snap = origin.snapshot(pool.new_snap(1, 0, SIZE))
    other = volume(pool, 2, blocks=2)
    read = HeldRead(pool, snap)
    writing = Background(lambda: snap.write(0, BLOCK))
    writing.waits(1)
    discarding = Background(lambda: origin.thin.discard(0, BLOCK))
    goes_on(other, 2)
    if is_ours:
        # In the C module all discards wait for all reads.
        for block in (0, 3):
            assert Background(lambda: other.discard(block * BLOCK, BLOCK)).outcome() == "ok"
    pool.message("create_thin 3")
    goes_on(other, 8)
    assert read.release() in (read.wanted, bytes(snap.data[:BLOCK]))
    assert writing.outcome() == "ok"
    assert discarding.outcome() == "ok"
    for content in (snap, other):
        content.verify()


def test_new_blocks_do_not_wait_for_reads_elsewhere(make_pool, make_faulty, is_ours):
    """A volume gives blocks up, which is committed; another one wants new blocks. Somebody reads a third volume, slowly."""
    pool = start(make_pool, make_faulty)
    slow, giving, taking = (volume(pool, thin_id, blocks=4) for thin_id in range(3))
    read = HeldRead(pool, slow)
    discarding = Background(lambda: giving.discard(0, 2 * BLOCK))
    if is_ours:
        assert discarding.outcome() == "ok"
    else:
        discarding.waits(1)
    for turn in range(3):
        goes_on(taking, 4 + 4 * turn)
        if is_ours:
            # In the C module what is being discarded cannot be read.
            goes_on(giving, 4 + 4 * turn)
            assert Background(lambda: giving.discard((4 + 4 * turn) * BLOCK, 2 * BLOCK)).outcome() == "ok"
    assert read.release() == read.wanted
    assert discarding.outcome() == "ok"
    for content in (slow, giving, taking):
        content.verify()


@pytest.mark.parametrize("how", ["discard", "delete", "release_metadata_snap"])
@pytest.mark.parametrize("no_space", ["queue", pytest.param("error", marks=pytest.mark.named_addition)])
def test_full_pool_waits_for_reads(make_pool, make_faulty, is_ours, how, no_space):
    """All blocks are in use but one, which a read is on its way to: a write waits for that one. All else goes on."""
    features = ["no_discard_passdown", "skip_block_zeroing"] + (["error_if_no_space"] if no_space == "error" else [])
    pool = start(make_pool, make_faulty, size=16 * BLOCK, features=features)
    slow = volume(pool, 0)
    other = volume(pool, 1, blocks=8)
    taking = volume(pool, 2, blocks=7)
    if how == "delete":
        pool.create_snap(9, 0)
    elif how == "release_metadata_snap":
        pool.reserve_metadata_snap()
    read = HeldRead(pool, slow)
    discarding = Background(lambda: slow.thin.discard(0, BLOCK))
    if is_ours:
        wait_until(lambda: slow.thin.mapped_blocks() == 0, "the discard")
    else:
        discarding.waits(1)
    if how == "delete":
        pool.delete(9)
    elif how == "release_metadata_snap":
        pool.release_metadata_snap()
    writing = Background(lambda: taking.write(7 * BLOCK, BLOCK))
    assert writing.waits(1), writing.outcome()
    goes_on(other, 0)
    for content in (other, taking):
        assert Background(lambda: content.write(2 * BLOCK, 4 * KIB)).outcome() == "ok"
        assert Background(content.thin.flush).outcome() == "ok"
    if is_ours:
        # The worker is needed for this. In the C module all discards wait for all reads.
        assert Background(lambda: other.thin.discard(3 * MIB, BLOCK)).outcome() == "ok"
    assert writing.waits(0), "the block was used while it was read"
    assert read.release() == read.wanted, "the read got what the block's next owner wrote"
    assert discarding.outcome() == "ok"
    assert writing.outcome() == "ok"
    wait_until(lambda: pool.status().mode == "rw", "write mode")
    for content in (other, taking):
        content.verify()


@pytest.mark.named_addition
def test_overwritten_block_is_read_before_it_is_used_again(make_pool, make_faulty):
    """A write has broken sharing, and the other owner is deleted: the block that both had is free, but read. The C module's write waits."""
    pool = start(make_pool, make_faulty, size=16 * BLOCK, features=["no_discard_passdown", "skip_block_zeroing"])
    slow = volume(pool, 0)
    other = volume(pool, 1, blocks=6)
    taking = volume(pool, 2, blocks=8)
    pool.create_snap(9, 0)
    read = HeldRead(pool, slow)
    assert Background(lambda: slow.write(0, BLOCK)).outcome() == "ok"
    pool.delete(9)
    writing = Background(lambda: taking.write(8 * BLOCK, BLOCK))
    assert writing.waits(1), writing.outcome()
    goes_on(other, 0)
    assert read.release() == read.wanted, "the read got what the block's next owner wrote"
    assert writing.outcome() == "ok"
    for content in (slow, other, taking):
        content.verify()
