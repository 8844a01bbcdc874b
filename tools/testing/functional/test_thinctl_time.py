# SPDX-License-Identifier: GPL-2.0
"""thinctl and the time of a pool's metadata: each snapshot takes one of 2^24."""

import pytest

from dmtest import disk, metadata
from dmtest.content import Content
from dmtest.disk import KIB
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


def test_tells_that_time_ends(pool, thinctl):
    assert "each snapshot takes one" not in thinctl.run("status", pool.name).decode()
    late = MAX_TIME // 4 * 3 + 100
    set_superblock(pool, time=late)
    shown = thinctl.run("status", pool.name).decode()
    assert f"{late} of {MAX_TIME} (75.0 %)" in shown and "each snapshot takes one" in shown
    assert thinctl.json("status", pool.name)["snapshot_time"] == time_of(pool) == late
