# SPDX-License-Identifier: GPL-2.0
"""Many volumes, many snapshots, deep chains of snapshots."""

from dmtest import metadata
from dmtest.background import Background
from dmtest.content import (
    Content,
    pattern,
)
from dmtest.disk import (
    KIB,
    MIB,
)

BLOCK = 64 * KIB


def test_a_thousand_volumes(make_pool):
    """All of them active at once; then again after the pool was reloaded; then half of them deleted."""
    pool = make_pool(data_size=256 * MIB)
    count = 1000
    for number in range(count):
        pool.create_thin(number)
    for number in range(count):
        thin = pool.activate(number, MIB)
        thin.write((number % 16) * BLOCK, pattern(number, 4 * KIB))
    assert pool.status().data_blocks[0] == count
    for number, thin in pool.thins.items():
        assert thin.read((number % 16) * BLOCK, 4 * KIB) == pattern(number, 4 * KIB)
    pool.restart()
    assert sorted(metadata.mappings(pool.dump())) == list(range(count))
    for number in range(0, count, 2):
        pool.delete(number)
    assert pool.status().data_blocks[0] == count // 2
    for number in range(1, count, 20):
        thin = pool.activate(number, MIB)
        assert thin.read((number % 16) * BLOCK, 4 * KIB) == pattern(number, 4 * KIB)


def test_volumes_that_do_nothing(make_pool, settings, progress):
    """Many are active while a few have work to do: each of those gets it done, by itself and all at once.

    `--set volumes=N` says how many there are.
    """
    count = settings("volumes", 300)
    pool = make_pool(metadata_size=64 * MIB, data_size=64 * MIB)
    for number in range(count):
        pool.create_thin(number)
    for number in range(count):
        if number % 500 == 0:
            progress(f"volume {number}")
        pool.activate(number, MIB)
    some = {number: Content(pool.thins[number]) for number in (0, 1, count // 2, count - 2, count - 1)}
    for content in some.values():
        content.write(0, 4 * KIB)
        content.thin.flush()
    writes = [Background(lambda content=content: content.write(2 * BLOCK, 5 * BLOCK)) for content in some.values()]
    assert all(write.outcome(120) == "ok" for write in writes)
    for content in some.values():
        content.discard(3 * BLOCK, 2 * BLOCK)
        content.verify()
    assert pool.status().data_blocks[0] == 4 * len(some)
    # One is gone, another one is there twice as its table is reloaded, and the pool suspends them all.
    pool.thins[1].remove()
    last = pool.thins[count - 1]
    last.reload(last.table_text())
    pool.device.suspend()
    pool.device.resume()
    del some[1]
    for content in some.values():
        content.write(8 * BLOCK, BLOCK)
        content.thin.flush()
        content.verify()


def test_a_hundred_snapshots_of_one_volume(pool):
    """The origin changes after each; every snapshot keeps what it saw."""
    size = 2 * MIB
    origin = Content(pool.new_thin(0, size))
    origin.write(0, size)
    kept = {}
    for number in range(1, 101):
        pool.create_snap(number, 0)
        kept[number] = bytes(origin.data)
        origin.scatter(number, 3, most=64)
    pool.restart()
    for number, data in kept.items():
        snap = pool.activate(number, size)
        assert snap.read() == data, f"snapshot {number}"
        snap.remove()
    origin.on(pool.activate(0, size)).verify()
    for number in range(1, 101, 3):
        pool.delete(number)
    for number in (2, 50, 99):
        assert pool.activate(number, size).read() == kept[number], f"snapshot {number}"


def test_snapshots_of_snapshots_fifty_deep(pool):
    size = 2 * MIB
    content = Content(pool.new_thin(0, size))
    content.write(0, size)
    chain = [content]
    for depth in range(1, 51):
        content = content.snapshot(pool.new_snap(depth, depth - 1, size))
        content.scatter(depth, 4, most=64)
        chain.append(content)
    for content in chain[::-1]:
        content.verify()
    for depth in range(0, 51, 5):
        chain[depth].scatter(("again", depth), 4, most=64)
    pool.restart()
    for depth, content in enumerate(chain):
        content.on(pool.activate(depth, size)).verify()


def test_a_large_mapping_tree(make_pool):
    """Enough single mappings, not in order, for a tree of three levels and its rebalancing at deletion."""
    pool = make_pool(data_size=1024 * MIB, features=["skip_block_zeroing"])
    thin = pool.new_thin(0, 1024 * MIB)
    blocks = [(index * 7919) % 16384 for index in range(6000)]
    for block in blocks:
        thin.write(block * BLOCK, b"\x5a" * 512)
    assert thin.mapped()[0] == len(blocks) * BLOCK
    pool.create_snap(1, 0)
    for block in blocks[:200]:
        thin.write(block * BLOCK, b"\xa5" * BLOCK)
    assert sorted(metadata.mappings(pool.dump())[1]) == sorted(blocks)
    pool.stop()
    pool.check()
    pool.start()
    pool.delete(0)
    assert pool.status().data_blocks[0] == len(blocks)
    pool.delete(1)
    assert pool.status().data_blocks[0] == 0
