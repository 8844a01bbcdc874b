# SPDX-License-Identifier: GPL-2.0
"""Discards of thin devices, and what becomes of them on the data device."""

import contextlib
import os
import random
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dmtest import dm, load, metadata
from dmtest.background import wait_until
from dmtest.content import (
    Content,
    pattern,
)
from dmtest.disk import (
    GIB,
    KIB,
    MIB,
    SECTOR,
    TIB,
)

BLOCK = 64 * KIB


def fill(thin, blocks, tag="fill"):
    """Writes whole blocks, each in one piece."""
    for block in blocks:
        thin.write(block * BLOCK, pattern((tag, block), BLOCK))


@pytest.mark.smoke
def test_whole_blocks_are_unmapped(make_pool, compare):
    def scenario(trace, turn):
        pool = make_pool()
        content = Content(pool.new_thin(0, 8 * MIB))
        content.write(0, 8 * MIB)
        content.discard(16 * BLOCK, 32 * BLOCK)
        trace.pool(pool)
        content.verify()
        content.write(20 * BLOCK, BLOCK)
        content.verify()
        trace.note("dump", pool.dump())
        content.discard(0, 8 * MIB)
        trace.pool(pool)
        content.verify()
        trace.note("dump", pool.dump())
        pool.stop()

    compare(scenario)


@pytest.mark.parametrize("sectors", [128, 384])
def test_partial_head_and_tail_stay(make_pool, compare, sectors):
    def scenario(trace, turn):
        block = sectors * SECTOR
        pool = make_pool(block_sectors=sectors)
        thin = pool.new_thin(0, 64 * block)
        content = Content(thin)
        content.write(0, 64 * block)
        before = bytes(content.data)
        spans = [(1, 1), (8, sectors - 8), (8, sectors), (8, 3 * sectors), (0, 2 * sectors + 1), (sectors - 1, sectors + 2), (0, 1)]
        for index, (start, length) in enumerate(spans):
            offset = index * 6 * block + start * SECTOR
            thin.discard(offset, length * SECTOR)
            trace.note(f"after {start}+{length}", thin.status())
        # What was not unmapped is as it was; which blocks were is in the dump.
        for index in range(64):
            found = thin.read(index * block, block)
            assert found in (before[index * block:(index + 1) * block], bytes(block))
        trace.note("blocks", [any(thin.read(index * block, SECTOR)) for index in range(64)])
        trace.note("dump", pool.dump())
        pool.stop()

    compare(scenario)


def test_of_unmapped_blocks(make_pool, compare):
    def scenario(trace, turn):
        pool = make_pool()
        thin = pool.new_thin(0, 64 * MIB)
        thin.discard(0, 64 * MIB)
        fill(thin, [3, 500, 1023])
        thin.discard(4 * BLOCK, 400 * BLOCK)
        trace.pool(pool)
        thin.discard(0, 64 * MIB)
        trace.pool(pool)
        trace.note("dump", pool.dump())
        pool.stop()

    compare(scenario)


@pytest.mark.smoke
@pytest.mark.parametrize("features", [[], ["no_discard_passdown"], ["ignore_discard"]])
def test_features(make_pool, compare, features):
    """What each feature lets through to the data device, which is a sparse file."""
    def scenario(trace, turn):
        pool = make_pool(data_size=64 * MIB, features=features)
        thin = pool.new_thin(0, 16 * MIB)
        fill(thin, range(256))
        thin.flush()
        full = pool.data.allocated()
        assert full >= 16 * MIB
        trace.attempt("discard", lambda: thin.discard(0, 8 * MIB))
        trace.pool(pool)
        trace.note("data device gave back MiB", round((full - pool.data.allocated()) / MIB))
        trace.note("limits of the pool", pool.device.limits("discard"))
        trace.note("granularity of the volume", thin.limit("discard_granularity"))
        pool.stop()

    compare(scenario)


def test_shared_blocks_are_not_passed_down(make_pool, compare):
    """Neither those of a snapshot, nor those of a metadata snapshot; the last user's discard is."""
    def scenario(trace, turn):
        pool = make_pool(data_size=64 * MIB)
        origin = Content(pool.new_thin(0, 8 * MIB))
        origin.write(0, 8 * MIB)
        pool.create_snap(1, 0)
        snap = origin.snapshot(pool.activate(1, 8 * MIB))
        full = pool.data.allocated()
        origin.discard(0, 4 * MIB)
        snap.verify()
        origin.verify()
        trace.note("after the first", full - pool.data.allocated())
        snap.discard(0, 2 * MIB)
        snap.verify()
        trace.note("after the second", full - pool.data.allocated())
        # Broken sharing: each has its own now.
        snap.write(4 * MIB, MIB)
        origin.discard(4 * MIB, MIB)
        snap.verify()
        pool.message("reserve_metadata_snap")
        snap.discard(2 * MIB, 2 * MIB)
        trace.note("held by the metadata snapshot", pool.data.allocated())
        pool.message("release_metadata_snap")
        origin.verify()
        snap.verify()
        trace.pool(pool)
        trace.note("dump", pool.dump())
        pool.stop()

    compare(scenario)


def test_beyond_prison_ranges(make_pool):
    """C locks at most 1024 blocks at a time; data runs that cross such a boundary are unmapped as a whole."""
    pool = make_pool(data_size=512 * MIB, features=["skip_block_zeroing"])
    thin = pool.new_thin(0, 512 * MIB)
    fill(thin, [0])
    for block in range(1, 3000):
        thin.write(block * BLOCK, pattern(block, SECTOR))
    thin.discard(500 * BLOCK, 2000 * BLOCK)
    assert thin.mapped_blocks() == 1000
    assert thin.read(499 * BLOCK, SECTOR) == pattern(499, SECTOR)
    assert thin.read(2500 * BLOCK, SECTOR) == pattern(2500, SECTOR)
    assert not any(thin.read(500 * BLOCK, BLOCK)) and not any(thin.read(2499 * BLOCK, BLOCK))


def test_discard_of_a_block_that_is_being_copied(make_pool, modules):
    """A discard unmaps exactly what it covers, although a snapshot's block in the middle is busy."""
    modules.need("dm-delay")
    pool = make_pool(data_size=256 * MIB, features=["skip_block_zeroing"], start=False)
    data = pool.data
    slow = dm.Device.create("slow", f"0 {data.sectors} delay {data.path} 0 400 {data.path} 0 0")
    try:
        pool.data_path = slow.path
        pool.start()
        # From here on data blocks are 512 off the virtual ones, so a discard crosses a multiple of 1024 of them.
        load.run(pool.new_thin(9, 32 * MIB), "--bs=64k", rw="write", verify=False, depth=1)
        thin = pool.new_thin(0, 64 * MIB)
        load.run(thin, "--bs=64k", rw="write", verify=False, depth=1)
        snap = pool.new_snap(1, 0, 64 * MIB)
        first, last = thin.read(0, BLOCK), snap.read(1023 * BLOCK, BLOCK)
        for writer, other in ((snap, thin), (thin, snap)):
            with ThreadPoolExecutor() as others:
                copied = others.submit(writer.write, 5 * BLOCK, pattern("copied", SECTOR))
                time.sleep(0.1)
                other.discard(0, 32 * MIB)
                assert other.mapped_blocks() == 512
                copied.result()
            other.discard(32 * MIB, 32 * MIB)
            assert other.mapped_blocks() == 0
            assert writer.read(5 * BLOCK, SECTOR) == pattern("copied", SECTOR)
            if writer is snap:
                assert snap.read(0, BLOCK) == first and snap.read(1023 * BLOCK, BLOCK) == last
        pool.stop()
        pool.check()
    finally:
        pool.stop()
        slow.remove()


@pytest.mark.fault_of_c("a discard that passes over a busy block unmaps others")
def test_discard_waits_for_the_copy_of_its_own_block(make_pool, modules):
    """All blocks are unmapped in the end.

    C goes on in the data blocks but not in the virtual ones where the former are locked: it unmaps virtual blocks whose
    data blocks it keeps, and gives up data blocks of virtual blocks that stay mapped.
    """
    modules.need("dm-delay")
    pool = make_pool(data_size=256 * MIB, features=["skip_block_zeroing"], start=False)
    data = pool.data
    slow = dm.Device.create("slow", f"0 {data.sectors} delay {data.path} 0 400 {data.path} 0 0")
    try:
        pool.data_path = slow.path
        pool.start()
        # From here on data blocks are 512 off the virtual ones, so a discard crosses a multiple of 1024 of them.
        load.run(pool.new_thin(9, 32 * MIB), "--bs=64k", rw="write", verify=False, depth=1)
        origin = Content(pool.new_thin(0, 65 * MIB))
        origin.write(0, 65 * MIB)
        snap = origin.snapshot(pool.new_snap(1, 0, 65 * MIB))
        with ThreadPoolExecutor() as others:
            copied = others.submit(snap.thin.write, 5 * BLOCK, pattern("copied", SECTOR))
            time.sleep(0.1)
            snap.discard(0, 64 * MIB)
            copied.result()
        slow.reload(f"0 {data.sectors} linear {data.path} 0")
        snap.verify()
        origin.verify()
        assert snap.thin.mapped_blocks() == 16
        pool.stop()
        pool.check()
    finally:
        pool.stop()
        slow.remove()


def test_concurrent_discards_and_writes_lose_no_block(make_pool):
    """Discards that meet busy blocks unmap exactly what they cover."""
    pool = make_pool(data_size=256 * MIB)
    size = 32 * MIB
    kept = Content(pool.new_thin(0, size))
    kept.write(0, size)
    pool.create_snap(1, 0)
    snap = kept.snapshot(pool.activate(1, size))
    writes = load.Background(kept.thin, "--time_based", "--runtime=3600", "--bs=4k", size=size // 2, verify=False)
    for _ in range(10):
        snap.thin.discard(0, size // 2)
        for block in range(0, size // BLOCK // 2, 3):
            snap.thin.write(block * BLOCK, pattern(block, BLOCK))
    assert writes.running()
    writes.kill()
    for block in range(size // BLOCK // 2):
        expected = pattern(block, BLOCK) if block % 3 == 0 else bytes(BLOCK)
        assert snap.thin.read(block * BLOCK, BLOCK) == expected, block
    assert snap.thin.read(size // 2, size // 2) == bytes(kept.data[size // 2:])
    assert kept.thin.read(size // 2, size // 2) == bytes(kept.data[size // 2:])


def test_huge_device(make_pool):
    """The whole of 16 TiB with a few mapped blocks."""
    pool = make_pool(data_size=64 * MIB)
    thin = pool.new_thin(0, 16 * TIB)
    blocks = [0, 1, 65535, 65536, 1 << 20, (1 << 28) - 1]
    fill(thin, blocks)
    thin.discard(0, 16 * TIB)
    assert thin.mapped_blocks() == 0
    for block in blocks:
        assert not any(thin.read(block * BLOCK, BLOCK))


def test_discarded_blocks_are_used_again(make_pool):
    """Many times the size of the pool goes through it."""
    pool = make_pool(data_size=16 * MIB)
    thin = pool.new_thin(0, GIB)
    content = Content(pool.new_thin(1, 4 * MIB))
    content.write(0, 4 * MIB)
    for turn in range(40):
        offset = turn * 16 * MIB
        for block in range(0, 128):
            thin.write(offset + block * BLOCK, pattern((turn, block), BLOCK))
        assert thin.read(offset + 77 * BLOCK, BLOCK) == pattern((turn, 77), BLOCK)
        thin.discard(offset, 8 * MIB)
    content.verify()
    assert pool.status().mode == "rw"


def test_data_device_without_discards(make_pool, compare, make_disk):
    """Passdown is disabled with a line in the log; the blocks are unmapped all the same."""
    def scenario(trace, turn):
        pool = make_pool(data_size=32 * MIB, data_discards=False)
        thin = pool.new_thin(0, 8 * MIB)
        fill(thin, range(128))
        trace.attempt("discard", lambda: thin.discard(0, 8 * MIB))
        trace.pool(pool)
        trace.log("Disabling discard passdown")
        trace.note("limits of the pool", pool.device.limits("discard"))
        pool.stop()

    compare(scenario)


def test_in_each_mode(make_pool, compare):
    """A full pool takes discards and is back in write mode; a read-only one ignores them."""
    def scenario(trace, turn):
        pool = make_pool(data_size=8 * MIB, features=["error_if_no_space"])
        thin = pool.new_thin(0, 16 * MIB)
        fill(thin, range(128))
        trace.attempt("write", lambda: thin.write(9 * MIB, pattern("no room", BLOCK)))
        trace.pool(pool)
        thin.discard(0, 4 * MIB)
        trace.pool(pool)
        thin.write(9 * MIB, pattern("room", BLOCK))
        trace.pool(pool)
        pool.features = ["read_only"]
        pool.device.reload(pool.table())
        trace.attempt("discard", lambda: thin.discard(4 * MIB, 4 * MIB))
        trace.pool(pool)
        assert thin.read(4 * MIB, BLOCK) == pattern(("fill", 64), BLOCK)
        pool.stop()

    compare(scenario)


@pytest.mark.parametrize("passdown", [True, False])
def test_random(make_pool, compare, passdown):
    """Writes, discards and snapshots at random places, of random sizes."""
    def scenario(trace, turn):
        choice = random.Random("discards")
        pool = make_pool(data_size=128 * MIB, features=[] if passdown else ["no_discard_passdown"])
        contents = {0: Content(pool.new_thin(0, 4 * MIB))}
        for step in range(150):
            content = contents[choice.choice(sorted(contents))]
            what = choice.random()
            if what < 0.5:
                content.scatter(("write", step), 3)
            elif what < 0.9:
                start = choice.randrange(8192)
                length = choice.randint(1, min(2000, 8192 - start))
                content.discard(start * SECTOR, length * SECTOR)
            elif len(contents) < 8:
                number = len(contents)
                origin = choice.choice(sorted(contents))
                pool.create_snap(number, origin)
                contents[number] = contents[origin].snapshot(pool.activate(number, 4 * MIB))
            if step % 10 == 9:
                trace.pool(pool)
        for content in contents.values():
            content.verify()
        trace.note("dump", pool.dump())
        pool.stop()

    compare(scenario)


@pytest.mark.fault_of_c("a block is discarded that a crash gives back to another volume")
def test_block_that_a_crash_would_share_again(make_pool, modules):
    """A volume breaks sharing, its origin discards the block, and neither gets committed: the volume needs the block again.

    C discards it on the data device, as nothing refers to it at that moment.
    """
    modules.need("dm-flakey")
    pool = make_pool(data_size=64 * MIB, start=False)
    table = f"0 {pool.metadata.sectors} linear {pool.metadata.path} 0"
    below = dm.Device.create("below", table)
    try:
        pool.metadata_path = below.path
        pool.start()
        origin = Content(pool.new_thin(0, 8 * MIB))
        origin.write(0, 4 * MIB)
        snap = origin.snapshot(pool.new_snap(1, 0, 8 * MIB))
        before = pool.data.contents()
        # The next commit is due a second after this one. It fails then, and all that follows, so there is no time for many.
        snap.write(5 * MIB, BLOCK)
        snap.thin.flush()
        below.reload(f"0 {pool.metadata.sectors} flakey {pool.metadata.path} 0 0 3600 1 error_writes")
        for block in range(0, 8, 2):
            with contextlib.suppress(OSError):
                snap.thin.write(block * BLOCK, pattern("not committed", BLOCK))
        for block in range(0, 8, 2):
            with contextlib.suppress(OSError):
                origin.thin.discard(block * BLOCK, BLOCK)
        assert pool.data.contents()[:4 * MIB] == before[:4 * MIB]
        for thin in list(pool.thins.values()):
            thin.remove()
        below.reload(table)
        pool.stop()
        metadata.clear_needs_check(below.path)
        pool.start()
        snap.on(pool.activate(1, 8 * MIB)).verify()
        pool.stop()
    finally:
        pool.stop()
        below.remove()


@pytest.mark.parametrize("kind,options", [("ext4", "discard"), ("ext4", "defaults"), ("xfs", "discard"), ("xfs", "defaults")])
def test_file_system(make_pool, mounted, kind, options):
    """Files come and go; the file system's discards give their blocks back, and harm nothing that is left."""
    pool = make_pool(data_size=GIB)
    thin = pool.new_thin(0, 512 * MIB)
    load.run(thin, "--bs=1m", rw="write", verify=False)
    assert thin.mapped_blocks() == 512 * MIB // BLOCK
    subprocess.run([f"mkfs.{kind}", "-q", thin.path], check=True)
    # The log of 64 MiB, where there are no write-zeroes, and little else.
    empty = thin.mapped_blocks()
    assert empty < 70 * MIB // BLOCK
    folder = mounted(thin.path, options)
    choice = random.Random(kind)
    kept = {}
    for number in range(120):
        data = pattern((kind, number), choice.randint(1, 2 * MIB))
        path = folder / f"file{number}"
        path.write_bytes(data)
        kept[path] = data
        if number % 3:
            gone = choice.choice(sorted(kept))
            gone.unlink()
            del kept[gone]
        if number % 20 == 19:
            os.sync()
    os.sync()
    subprocess.run(["fstrim", str(folder)], check=True)
    size = sum(map(len, kept.values()))
    # A file system may still be about to discard when the program has ended.
    wait_until(lambda: thin.mapped_blocks() <= empty + 1.5 * size // BLOCK + 200, "space is given back")
    subprocess.run(["umount", str(folder)], check=True)
    check = ["e2fsck", "-fn", thin.path] if kind == "ext4" else ["xfs_repair", "-n", thin.path]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = mounted(thin.path)
    for path, data in kept.items():
        assert (folder / path.name).read_bytes() == data


@pytest.mark.fault_of_c("a pool stays full if it got full while its last discard was under way")
def test_blocks_that_wait_for_a_commit_are_not_used(make_pool):
    """A full pool: what a discard frees after sharing goes to others only when its own discard has ended."""
    pool = make_pool(data_size=8 * MIB)
    others = Content(pool.new_thin(2, 4 * MIB))
    others.write(0, 4 * MIB)
    for turn in range(8):
        thin = pool.new_thin(10 + turn, 4 * MIB)
        fill(thin, range(64))
        # By time, the blocks may be shared from here on.
        pool.create_snap(100, 10 + turn)
        pool.delete(100)
        taker = Content(pool.new_thin(50 + turn, 4 * MIB))
        with ThreadPoolExecutor() as workers:
            discarded = workers.submit(thin.discard, 0, 4 * MIB)
            for block in range(64):
                taker.write(block * BLOCK, BLOCK)
            discarded.result()
        taker.verify()
        others.verify()
        for number in (10 + turn, 50 + turn):
            pool.thins[number].remove()
            pool.delete(number)
