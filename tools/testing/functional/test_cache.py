# SPDX-License-Identifier: GPL-2.0
"""The cache of mappings: what it holds, what it costs, and that it never says what is not so."""

import os
import random
import threading

import pytest

from dmtest import disk, dm, load
from dmtest.background import (
    Background,
    wait_until,
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
from dmtest.dm import Device

BLOCK = 64 * KIB
PAGES = "/sys/module/dm_thin_pool/parameters/mapping_cache_pages"
PAGE = 4 * KIB
# How many blocks a page has words for.
BLOCKS_OF_PAGE = 504

pytestmark = pytest.mark.named_addition


def stats(pool):
    """What the pool tells of its cache, by name."""
    return {key: int(value) for key, value in (word.split("=") for word in pool.device.ask("cache_stats").split())}


@pytest.fixture
def limit():
    """Sets the parameter; it is what it was before afterwards."""
    with open(PAGES) as parameter:
        before = parameter.read()

    def set_limit(pages):
        with open(PAGES, "w") as parameter:
            parameter.write(str(pages))

    set_limit(1000)
    yield set_limit
    set_limit(before)


def read_blocks(thin, blocks):
    for block in blocks:
        thin.read(block * BLOCK, SECTOR)


def test_default_is_a_part_of_the_memory(pool):
    with open("/proc/meminfo") as info:
        memory = int(info.readline().split()[1]) * KIB
    with open(PAGES) as parameter:
        pages = int(parameter.read())
    if pages <= 1:
        pytest.skip("another limit was asked for")
    assert 0.015 < pages * PAGE / memory < 0.025
    assert stats(pool) == {"pages": 0, "limit": pages, "mappings": 0, "bytes": 0}
    assert dm.dmsetup("message", pool.name, "0", "cache_stats").stdout == f"pages=0 limit={pages} mappings=0 bytes=0\n"


def test_mappings_cost_little_more_than_a_word(make_pool, limit):
    pool = make_pool(data_size=GIB)
    thin = pool.new_thin(0, GIB)
    blocks = 4 * BLOCKS_OF_PAGE
    load.run(thin, "--bs=64k", f"--size={blocks * BLOCK}", rw="write", verify=False)
    assert thin.mapped_blocks() == blocks
    told = stats(pool)
    assert told == {"pages": 4, "limit": 1000, "mappings": blocks, "bytes": 4 * PAGE}
    assert told["bytes"] / told["mappings"] < 8.2


def test_look_ups_fill_it(make_pool, limit):
    pool = make_pool()
    content = Content(pool.new_thin(0, 64 * MIB))
    content.write(0, 16 * MIB)
    pool.restart()
    content.on(pool.activate(0, 64 * MIB))
    assert stats(pool)["mappings"] == 0
    content.verify()
    assert stats(pool)["mappings"] == 256
    # What is not mapped is no mapping, but takes room.
    assert stats(pool)["pages"] == -(-1024 // BLOCKS_OF_PAGE)


@pytest.mark.parametrize("pages", [1, 3])
def test_limit_is_kept(make_pool, limit, pages):
    """All pools share it."""
    limit(pages)
    pools = [make_pool(data_size=GIB) for _ in range(2)]
    contents = [Content(pool.new_thin(0, 256 * MIB)) for pool in pools]
    choice = random.Random(pages)
    for content in contents:
        for _ in range(200):
            content.write(choice.randrange(0, 256 * MIB, BLOCK), choice.choice([SECTOR, BLOCK]))
            assert sum(stats(pool)["pages"] for pool in pools) <= pages
    for content in contents:
        content.verify()
    assert sum(stats(pool)["pages"] for pool in pools) == pages


def test_limit_is_lowered(make_pool, limit):
    pool = make_pool(data_size=GIB)
    content = Content(pool.new_thin(0, 256 * MIB))
    for page in range(8):
        content.write(page * BLOCKS_OF_PAGE * BLOCK, SECTOR)
    assert stats(pool)["pages"] == 8
    for pages in (2, 0):
        limit(pages)
        wait_until(lambda: stats(pool)["pages"] == pages, f"{pages} pages")
        content.verify()
        assert stats(pool)["pages"] == pages
    assert stats(pool)["mappings"] == 0


def test_used_pages_stay(make_pool, limit):
    """A page that is used now and then outlives many that are used once."""
    limit(4)
    pool = make_pool(data_size=GIB)
    thin = pool.new_thin(0, GIB)
    load.run(thin, "--bs=64k", f"--size={512 * MIB}", rw="write", verify=False)
    pool.restart()
    thin = pool.activate(0, GIB)
    hot = range(BLOCKS_OF_PAGE)
    read_blocks(thin, hot)
    for page in range(1, 16):
        read_blocks(thin, [page * BLOCKS_OF_PAGE, 0])
    # The page is still there with all that was read long ago.
    assert stats(pool)["mappings"] >= len(hot)


def test_memory_is_given_back(make_pool, limit):
    pool = make_pool(data_size=GIB)
    content = Content(pool.new_thin(0, 64 * MIB))
    content.write(0, 64 * MIB)
    assert stats(pool)["pages"] == 3

    def drop():
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("2")
        return stats(pool)["pages"] == 0

    wait_until(drop, "all pages are given back")
    content.verify()
    assert stats(pool)["mappings"] == 1024


def test_volumes_come_and_go(make_pool, limit):
    pool = make_pool()
    contents = [Content(pool.new_thin(number, 8 * MIB)) for number in range(3)]
    for content in contents:
        content.write(0, 8 * MIB)
    assert stats(pool)["pages"] == 3
    contents[1].thin.remove()
    assert stats(pool)["pages"] == 2
    # A new table has the mappings of the old one.
    contents[0].thin.reload(contents[0].thin.table_text())
    assert stats(pool)["mappings"] == 2 * 128
    for content in (contents[0], contents[2]):
        content.verify()
    pool.stop()
    pool.start()
    assert stats(pool)["pages"] == 0


def test_snapshots_keep_it(make_pool, limit):
    """A snapshot makes all blocks shared, without a new look at any of them."""
    pool = make_pool()
    origin = Content(pool.new_thin(0, 16 * MIB))
    origin.write(0, 16 * MIB)
    before = stats(pool)
    snap = origin.snapshot(pool.new_snap(1, 0, 16 * MIB))
    assert stats(pool)["mappings"] == before["mappings"] == 256
    for block in range(0, 256, 3):
        origin.write(block * BLOCK, SECTOR)
    for block in range(0, 256, 5):
        snap.write(block * BLOCK, BLOCK)
    origin.verify()
    snap.verify()


@pytest.mark.parametrize("known", [True, False])
def test_io_while_a_commit_waits_for_its_device(make_pool, limit, known):
    """Only what changes the metadata waits for a commit: not what is mapped, whether that is cached or has to be looked up."""
    pool = make_pool(start=False)
    linear = Device.create("linear", f"0 {pool.metadata.sectors} linear {pool.metadata.path} 0")
    try:
        pool.metadata_path = linear.path
        pool.start()
        content = Content(pool.new_thin(0, 4 * MIB))
        content.write(0, 2 * MIB)
        other = Content(pool.new_thin(1, 4 * MIB))
        other.write(0, MIB)
        other.thin.flush()
        content.verify()
        other.verify()
        if not known:
            limit(0)
            wait_until(lambda: stats(pool)["pages"] == 0, "the cache is empty")
        data = pattern("provisions", BLOCK)
        linear.suspend()
        try:
            writer = Background(lambda: content.thin.write(3 * MIB, data, os.O_DSYNC))
            assert writer.waits()
            for offset in range(0, 2 * MIB, BLOCK):
                content.write(offset, SECTOR)
                assert content.thin.read(offset, BLOCK) == content.data[offset:offset + BLOCK]
            assert content.thin.read(2 * MIB, BLOCK) == bytes(BLOCK)
            # The other volume has nothing that a commit could make stable.
            disk.write(other.thin.path, 0, other.data[:SECTOR], os.O_DSYNC)
            other.thin.flush()
            flush = Background(content.thin.flush)
            provision = Background(lambda: other.thin.write(2 * MIB, data))
            assert [waiting.waits() for waiting in (writer, flush, provision)] == [True] * 3
        finally:
            linear.resume()
        assert [waiting.outcome() for waiting in (writer, flush, provision)] == ["ok"] * 3
        content.data[3 * MIB:3 * MIB + BLOCK] = data
        other.data[2 * MIB:2 * MIB + BLOCK] = data
        content.verify()
        other.verify()
        pool.stop()
    finally:
        pool.stop()
        linear.remove()


def test_aborts_empty_it(make_pool, make_faulty, limit):
    """What a transaction changed that is given up is not remembered."""
    pool = make_pool(metadata=make_faulty(16 * MIB))
    content = Content(pool.new_thin(0, 4 * MIB))
    content.write(0, MIB)
    content.thin.flush()
    pool.metadata.fail_writes()
    with pytest.raises(OSError):
        for block in range(16, 32):
            disk.write(content.thin.path, block * BLOCK, pattern("lost", BLOCK))
        content.thin.flush()
    assert pool.status().mode == "ro"
    content.verify()
    with pytest.raises(OSError):
        content.thin.flush()
    pool.metadata.heal()
    pool.stop()


def test_readers_beside_writers(make_pool, limit):
    """Blocks are discarded, written and snapshotted while others read; a reader sees a block as it was at some time."""
    limit(2)
    pool = make_pool(data_size=256 * MIB)
    thin = pool.new_thin(0, 64 * MIB)
    blocks = 1024
    stop = threading.Event()
    wrong = []

    def fill(block, generation):
        return (block.to_bytes(4, "little") + generation.to_bytes(4, "little")) * (SECTOR // 8)

    def reader(seed):
        choice = random.Random(seed)
        while not stop.is_set():
            block = choice.randrange(blocks)
            data = thin.read(block * BLOCK, SECTOR)
            if data != bytes(SECTOR) and (int.from_bytes(data[:4], "little") != block or data != data[:8] * (SECTOR // 8)):
                wrong.append((block, data[:16]))

    readers = [threading.Thread(target=reader, args=(seed,)) for seed in range(2)]
    for each in readers:
        each.start()
    choice = random.Random(7)
    taken = 0
    try:
        for generation in range(1, 1500):
            block = choice.randrange(blocks)
            if generation % 300 == 0:
                taken += 1
                pool.create_snap(taken, 0)
            elif generation % 3 == 0:
                thin.discard(block * BLOCK, BLOCK)
            else:
                thin.write(block * BLOCK, fill(block, generation))
            if generation % 100 == 0:
                thin.flush()
    finally:
        stop.set()
        for each in readers:
            each.join()
    assert not wrong
