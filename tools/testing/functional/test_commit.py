# SPDX-License-Identifier: GPL-2.0
"""When the metadata on disk changes, seen from outside: on a flush, on FUA, each second, and not without need."""

import hashlib
import os
import subprocess
import time

import pytest

from dmtest import (
    disk,
    metadata,
)
from dmtest.background import wait_until
from dmtest.content import pattern
from dmtest.disk import (
    KIB,
    MIB,
)

BLOCK = 64 * KIB
SIZE = 8 * MIB


def on_disk(pool):
    """The mappings that the metadata disk holds at this moment."""
    return metadata.mappings(metadata.dump(pool.metadata.copy("outside")))


def digest(pool):
    return hashlib.sha256(pool.metadata.contents()).hexdigest()


def writes(pool):
    """How many writes the metadata disk has seen."""
    return disk.stat(pool.metadata.path, 4)


def flushes(pool):
    """How many flushes the data disk has seen."""
    return disk.stat(pool.data.path, 15)


def wait_for_rest(pool):
    """Waits until nothing has been left to commit for longer than a commit takes to come."""
    before = None
    while (now := (digest(pool), writes(pool))) != before:
        before = now
        time.sleep(2.5)


@pytest.fixture
def thin(pool):
    return pool.new_thin(0, SIZE)


@pytest.mark.smoke
def test_commit_on_flush(pool, thin):
    for block in range(4):
        thin.write(block * BLOCK, pattern(block, BLOCK))
        thin.flush()
        assert sorted(on_disk(pool)[0]) == list(range(block + 1))


def test_commit_on_fua(pool, thin):
    for block in range(4):
        thin.write(block * BLOCK, pattern(block, BLOCK), os.O_DSYNC)
        assert sorted(on_disk(pool)[0]) == list(range(block + 1))


@pytest.mark.fault_of_c("a write with FUA to a new block is not committed without a write cache below")
@pytest.mark.parametrize("cache", ["with a write cache", "without a write cache"])
@pytest.mark.parametrize("state", ["new", "shared"])
def test_commit_on_fua_alone(make_pool, make_generator, cache, state):
    """Without a flush behind it, as file systems send it. It fills its block, so the data go first, and the mapping follows."""
    pool = make_pool(start=False)
    if cache == "without a write cache":
        pool.data.lose_write_cache()
    pool.start()
    thin = pool.new_thin(0, SIZE)
    if state == "shared":
        for block in range(4):
            thin.write(block * BLOCK, pattern(block, BLOCK))
        pool.new_snap(1, 0, SIZE)
    generator = make_generator(thin)
    for block in range(4):
        before = on_disk(pool)[0].get(block)
        # No commit is due of itself for a second after this.
        pool.message("set_transaction_id 0 0" if block == 0 else f"set_transaction_id {block - 1} {block}")
        report = generator.run(f"write seq {BLOCK} 1 depth=1 fua_every=1 start={block * BLOCK}")
        assert (report["ios"], report["errors"]) == (1, 0)
        assert on_disk(pool)[0].get(block) != before


def test_flush_of_one_volume_commits_the_others(pool, thin):
    other = pool.new_thin(1, SIZE)
    thin.write(0, pattern("first", BLOCK))
    other.write(0, pattern("other", BLOCK))
    other.flush()
    assert [sorted(blocks) for blocks in on_disk(pool).values()] == [[0], [0]]


@pytest.mark.smoke
def test_commit_each_second(pool, thin):
    thin.write(0, pattern("timed", BLOCK))
    wait_until(lambda: on_disk(pool)[0], "a commit", 20)


def test_commit_on_message(pool):
    for thin_id in range(3):
        pool.create_thin(thin_id)
        assert sorted(on_disk(pool)) == list(range(thin_id + 1))
    pool.delete(1)
    assert sorted(on_disk(pool)) == [0, 2]
    pool.message("set_transaction_id 0 9")
    assert metadata.superblock(metadata.dump(pool.metadata.copy("outside")))["transaction"] == "9"


def test_commit_on_suspend(pool, thin):
    thin.write(0, pattern("suspended", BLOCK))
    pool.device.suspend()
    assert sorted(on_disk(pool)[0]) == [0]
    pool.device.resume()


def test_flush_while_somebody_else_commits(make_pool, make_faulty):
    slow = make_faulty(16 * MIB)
    pool = make_pool(metadata=slow)
    thin = pool.new_thin(0, SIZE)
    slow.delay(400)
    # On a busy machine the worker may commit first, or all be over too early.
    for turn in range(3):
        # No commit is due of itself for a second after this.
        thin.write(0, pattern(f"first {turn}", BLOCK))
        thin.flush()
        thin.write((turn + 1) * BLOCK, pattern(f"new {turn}", BLOCK))
        seen = flushes(pool)
        with subprocess.Popen(["dmsetup", "status", pool.name], stdout=subprocess.DEVNULL) as status:
            wait_until(lambda: flushes(pool) > seen, "a commit for the status")
            # That commit has flushed the data device, and still has to write the superblock.
            seen = flushes(pool)
            thin.write(0, pattern(f"later {turn}", BLOCK))
            thin.flush()
            assert flushes(pool) > seen, "data in the data device's cache were called stable"
        assert status.returncode == 0


def test_no_change_no_commit(pool, thin):
    thin.write(0, pattern("once", 4 * BLOCK))
    thin.flush()
    wait_for_rest(pool)
    before = digest(pool), writes(pool)
    thin.read()
    thin.write(0, pattern("over", 4 * BLOCK))
    time.sleep(3)
    assert (digest(pool), writes(pool)) == before


def test_status_without_flush_does_not_commit(pool, thin):
    wait_for_rest(pool)
    before = digest(pool)
    for _ in range(5):
        pool.device.status(noflush=True)
        thin.status(noflush=True)
    assert digest(pool) == before


@pytest.mark.smoke
def test_metadata_blocks_do_not_leak(pool, thin):
    """The same changes over and over leave the number of used metadata blocks where it was."""
    def turn():
        pool.create_snap(1, 0)
        for block in range(0, 64, 3):
            thin.write(block * BLOCK, pattern(block, 4 * KIB))
        pool.delete(1)
        thin.flush()
        return pool.status().metadata_blocks[0]

    turn()
    second = turn()
    for _ in range(5):
        assert turn() == second
