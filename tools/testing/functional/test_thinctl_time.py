# SPDX-License-Identifier: GPL-2.0
"""thinctl and the time of a pool's metadata: each snapshot takes one of 2^24."""

import os
import shutil

import pytest

from dmtest import disk, metadata
from dmtest.content import Content
from dmtest.disk import (
    KIB,
    MIB,
)
from dmtest.superblock import (
    BLOCK_SIZE,
    Superblock,
)
from dmtest.thinctl import (
    SIZE,
    received,
    volumes,
)

MAX_TIME = (1 << 24) - 1


def set_superblock(pool, **fields):
    """Changes fields of the superblock of a pool, which is restarted."""
    pool.stop()
    superblock = Superblock(disk.read(pool.metadata.path, 0, BLOCK_SIZE))
    for field, value in fields.items():
        superblock.set(field, value)
    disk.write(pool.metadata.path, 0, bytes(superblock.seal().block))
    pool.start()


def time_of(pool):
    return int(metadata.superblock(pool.dump())["time"])


@pytest.mark.parametrize("active", [False, True], ids=["inactive", "active"])
def test_what_has_not_changed_takes_no_time(pool, other, thinctl, active):
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 20)
    repository = thinctl.repository("backups")
    backup = "backup", pool.name, 0, repository, "--name", "data"
    replicate = "replicate", pool.name, 0, "--to", f"{thinctl.program} receive {other.name} 7", "--turns", 1
    for turn in range(3):
        if not active:
            content.thin.remove()
        assert thinctl.json(*backup)["number"] == turn + 1
        assert thinctl.json(*replicate)["whole"] == (turn == 0)
        before = time_of(pool)
        for _ in range(3):
            assert thinctl.json(*backup) is None
            assert thinctl.json(*replicate) is None
        assert time_of(pool) == before
        if not active:
            content = content.on(pool.activate(0, SIZE))
        # A change is seen, also one that takes a mapping away only.
        content.write(turn * 64 * KIB, 512)
        if turn:
            content.discard(SIZE // 2, SIZE // 4)
    if not active:
        content.thin.remove()
    thinctl.run(*backup)
    thinctl.run(*replicate)
    received(other, 7, content)
    thinctl.run("restore", repository, "data", other.name, 8)
    received(other, 8, content)
    assert len(volumes(pool)) == 3
    assert not thinctl.leftovers(pool)


def test_what_is_not_written_yet_has_changed(pool, other, thinctl):
    """It is in the page cache only, but whoever wrote it thinks that it is in the volume."""
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 20)
    repository = thinctl.repository("backups")
    thinctl.run("backup", pool.name, 0, repository, "--name", "data")
    with open(content.thin.path, "r+b", buffering=0) as file:
        file.write(b"later" * 100)
        assert thinctl.json("backup", pool.name, 0, repository, "--name", "data")["number"] == 2
    thinctl.run("restore", repository, "data", other.name, 8)
    thin = other.activate(8, SIZE)
    assert thin.read(0, 512)[:500] == b"later" * 100
    thin.remove()


def made_anew(pool):
    """Another pool under the same name: its metadata are empty."""
    pool.stop()
    disk.write(pool.metadata.path, 0, bytes(BLOCK_SIZE))
    pool.start()


def test_a_pool_that_was_made_anew_is_another_one(pool, other, thinctl):
    """The new one has the same mappings, so that the stream seems to start from what there is."""
    content = Content(pool.new_thin(0, SIZE))
    content.write(0, 4 * MIB)
    thinctl.snapshot(pool, 0, 1)
    content.write(MIB, MIB)
    thinctl.snapshot(pool, 0, 2)
    thinctl.receive(other, 7, thinctl.send(pool, 1))
    for turn in range(3):
        thinctl.snapshot(other, 7, 10 + turn)
    change = thinctl.send(pool, 2, "--from", 1)
    made_anew(other)
    thin = other.new_thin(100, SIZE)
    thin.write(0, bytes(4 * MIB))
    thin.remove()
    other.create_snap(7, 100)
    folder = os.path.join(thinctl.environment["THINCTL_HOME"], other.name)
    before = other.dump()
    for words in ("receive", other.name, 7), ("status", other.name), ("snapshot", other.name, 7, 8):
        assert folder in thinctl.refused(*words, input=change)
    assert other.dump() == before
    shutil.rmtree(folder)
    # It is known now that this is another state.
    assert "not in the state" in thinctl.refused("receive", other.name, 7, input=change)
    thinctl.run("status", other.name)


def test_a_transaction_id_that_went_back(pool, thinctl):
    """As that of metadata that were put back from a copy."""
    pool.create_thin(0)
    pool.message("set_transaction_id 0 5")
    thinctl.snapshot(pool, 0, 1)
    set_superblock(pool, transaction_id=4)
    assert "transaction id" in thinctl.refused("ls", pool.name)
    set_superblock(pool, transaction_id=6)
    thinctl.run("ls", pool.name)


def test_tells_that_time_ends(pool, thinctl):
    assert "each snapshot takes one" not in thinctl.run("status", pool.name).decode()
    late = MAX_TIME // 4 * 3 + 100
    set_superblock(pool, time=late)
    shown = thinctl.run("status", pool.name).decode()
    assert f"{late} of {MAX_TIME} (75.0 %)" in shown and "each snapshot takes one" in shown
    assert thinctl.json("status", pool.name)["snapshot_time"] == time_of(pool) == late
