# SPDX-License-Identifier: GPL-2.0
"""thinctl: targets that are too small, or whose sectors are too large."""

import os
import subprocess

import pytest

from dmtest import disk
from dmtest.background import (
    Background,
    wait_until,
)
from dmtest.content import Content
from dmtest.disk import (
    KIB,
    MIB,
)
from dmtest.thinctl import (
    BUSY,
    NO_ROOM,
    REFUSED,
    SIZE,
    received,
    suspended,
    volumes,
)
from dmtest.worker import is_at_work


@pytest.fixture
def small(make_pool, make_faulty):
    """A pool of 12 MiB, half of which another volume has."""
    made = make_pool(data=make_faulty(12 * MIB))
    content = Content(made.new_thin(0, SIZE))
    content.write(0, 6 * MIB)
    made.content = content
    return made


def still_works(pool):
    """Nobody's writes were refused, and none wait."""
    assert pool.status().mode == "rw"
    pool.content.write(6 * MIB, 64 * KIB)
    pool.content.verify()


def test_refuses_what_has_no_room(pool, small, thinctl):
    content = Content(pool.new_thin(0, SIZE))
    content.write(0, 8 * MIB)
    thinctl.snapshot(pool, 0, 1)
    stream = thinctl.send(pool, 1)
    repository = os.path.join(thinctl.folder, "backups")
    thinctl.run("init", repository)
    thinctl.run("backup", pool.name, 0, repository, "--name", "data")
    kept = volumes(pool)
    assert "8.0 MiB are to come, and 6.0 MiB are free" in thinctl.refused("receive", small.name, 7, code=NO_ROOM, input=stream)
    thinctl.refused("restore", repository, "data", small.name, 7, code=NO_ROOM)
    thinctl.refused("migrate", f"{pool.name}:0", f"{small.name}:7", code=NO_ROOM)
    assert volumes(small) == {0} and volumes(pool) == kept
    still_works(small)
    content.verify()
    assert not thinctl.leftovers(pool) and not thinctl.leftovers(small)


def test_stops_before_a_pool_runs_full(pool, small, thinctl):
    """Others take the room while a stream comes."""
    content = Content(pool.new_thin(0, SIZE))
    content.write(0, 5 * MIB)
    thinctl.snapshot(pool, 0, 1)
    stream = thinctl.send(pool, 1)
    process = thinctl.start("receive", small.name, 7, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(stream[:len(stream) // 2])
    process.stdin.flush()
    wait_until(lambda: thinctl.notes(small, "partial-7.json"), "the stream has begun")
    small.content.write(6 * MIB, 3 * MIB)
    errors = process.communicate(stream[len(stream) // 2:])[1].decode()
    assert process.returncode == NO_ROOM and "no room" in errors, errors
    assert small.status().mode == "rw"
    small.content.verify()
    # There is room again: it goes on where it was.
    small.content.discard(3 * MIB, 6 * MIB)
    token = thinctl.run("token", small.name, 7).decode().strip()
    rest = thinctl.send(pool, 1, "--resume", token)
    assert len(rest) < len(stream)
    thinctl.receive(small, 7, rest)
    received(small, 7, content)
    assert not thinctl.leftovers(small)


def test_migrates_on_in_its_old_pool(pool, small, thinctl):
    """Others take the room while a volume that is in use is copied."""
    content = Content(pool.new_thin(0, SIZE))
    content.write(0, 5 * MIB)
    small.data.hold("writes")
    process = thinctl.start("migrate", f"{pool.name}:0", f"{small.name}:7", stderr=subprocess.PIPE)
    small.data.wait_for_held()
    assert thinctl.notes(pool, "migrate-0.json")["copying"]
    writing = Background(lambda: small.content.write(6 * MIB, 3 * MIB))
    # The write has its blocks when the worker has seen to it.
    wait_until(lambda: writing.sleeps() and not is_at_work(), "others take the room")
    small.data.heal()
    assert writing.outcome() == "ok"
    errors = process.communicate()[1].decode()
    assert process.returncode == NO_ROOM, errors
    assert content.thin.table() == f"{pool.device.number} 0"
    assert Background(lambda: content.scatter("later", 5)).outcome() == "ok"
    content.verify()
    assert small.status().mode == "rw"
    small.content.verify()
    assert 7 not in volumes(small) and 0 in volumes(pool)
    small.content.discard(3 * MIB, 6 * MIB)
    thinctl.run("migrate", f"{pool.name}:0", f"{small.name}:7")
    content.verify()
    assert content.thin.table() == f"{small.device.number} 7"
    content.thin.remove()
    assert volumes(small) == {0, 7} and volumes(pool) == {0}


def test_merges_into_no_pool_that_has_no_room(pool, make_pool, thinctl):
    """The external origin is a volume of another pool, and the volume has more than is free there."""
    small = make_pool(data_size=16 * MIB)
    origin = small.new_thin(0, SIZE)
    full = small.new_thin(1, SIZE)
    full.write(0, bytes(8 * MIB))
    content = Content(pool.new_thin(0, SIZE, origin=origin.path))
    content.write(0, 12 * MIB)
    content.thin.remove()
    assert "has no room" in thinctl.refused("merge", pool.name, 0, "--into", origin.path, code=NO_ROOM)
    assert origin.mapped_blocks() == 0
    full.remove()
    small.delete(1)
    thinctl.run("merge", pool.name, 0, "--into", origin.path)
    assert origin.read(0, 12 * MIB) == bytes(content.data[:12 * MIB])
    # All of it is mapped by now, but that does not tell that it is not shared.
    thinctl.refused("merge", pool.name, 0, "--into", origin.path, code=NO_ROOM)
    thinctl.run("merge", pool.name, 0, "--into", origin.path, "--anyway")


def test_merges_into_no_pool_whose_larger_blocks_have_no_room(pool, make_pool, thinctl):
    """Each small block of the volume takes a large one of the pool that its external origin is in."""
    large = make_pool(data_size=8 * MIB, block_sectors=MIB // disk.SECTOR)
    origin = large.new_thin(0, SIZE)
    content = Content(pool.new_thin(0, SIZE, origin=origin.path))
    for number in range(12):
        content.write(number * MIB, 64 * KIB)
    content.thin.remove()
    kept = volumes(pool)
    assert "has no room" in thinctl.refused("merge", pool.name, 0, "--into", origin.path, code=NO_ROOM)
    assert origin.mapped_blocks() == 0
    assert volumes(pool) == kept and not thinctl.leftovers(pool)


def test_stops_a_merge_before_the_pool_below_runs_full(pool, make_pool, make_faulty, thinctl):
    """Others take the room while it is written."""
    below = make_pool(data=make_faulty(24 * MIB))
    origin = below.new_thin(0, SIZE)
    other = Content(below.new_thin(1, SIZE))
    content = Content(pool.new_thin(0, SIZE, origin=origin.path))
    content.write(0, 12 * MIB)
    content.thin.remove()
    below.data.hold("writes")
    process = thinctl.start("merge", pool.name, 0, "--into", origin.path, "--delete", stderr=subprocess.PIPE)
    below.data.wait_for_held()
    writing = Background(lambda: other.write(0, 16 * MIB))
    # The write has its blocks when the worker has seen to it.
    wait_until(lambda: writing.sleeps() and not is_at_work(), "others take the room")
    below.data.heal()
    assert writing.outcome() == "ok"
    errors = process.communicate()[1].decode()
    assert process.returncode == NO_ROOM and "no room" in errors, errors
    assert below.status().mode == "rw"
    other.verify()
    other.discard(0, 16 * MIB)
    thinctl.run("merge", pool.name, 0, "--into", origin.path, "--delete")
    assert origin.read(0, 12 * MIB) == bytes(content.data[:12 * MIB])
    assert not volumes(pool) and not thinctl.leftovers(pool)


@pytest.fixture
def large_sectors(make_pool, make_disk):
    return make_pool(metadata=make_disk(16 * MIB, sector_size=4096), data=make_disk(256 * MIB, sector_size=4096))


# No multiple of 4 KiB.
ODD = SIZE - 512


def test_gives_no_volume_in_use_larger_sectors(pool, large_sectors, thinctl):
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 20)
    errors = thinctl.refused("migrate", f"{pool.name}:0", f"{large_sectors.name}:5")
    assert "512" in errors and "4096" in errors
    content.write(512, 512)
    content.verify()
    assert volumes(large_sectors) == set() and volumes(pool) == {0}
    content.thin.remove()
    thinctl.run("migrate", f"{pool.name}:0", f"{large_sectors.name}:5", "--delete")
    received(large_sectors, 5, content)
    # The other way nothing is in the way.
    thin = large_sectors.activate(5, SIZE)
    thinctl.run("migrate", f"{large_sectors.name}:5", f"{pool.name}:6", "--delete")
    content.on(thin).verify()
    assert thin.table() == f"{pool.device.number} 6"
    thin.remove()
    assert volumes(pool) == {6} and volumes(large_sectors) == set()


def test_refuses_sizes_that_are_no_multiple_of_a_sector(pool, large_sectors, thinctl):
    content = Content(pool.new_thin(0, ODD))
    content.scatter("first", 20)
    content.write(ODD - 512, 512)
    repository = os.path.join(thinctl.folder, "backups")
    thinctl.run("init", repository)
    thinctl.run("backup", pool.name, 0, repository, "--name", "data")
    thinctl.snapshot(pool, 0, 1)
    errors = thinctl.refused("restore", repository, "data", large_sectors.name, 5, code=REFUSED)
    assert str(ODD) in errors and "4096" in errors
    assert volumes(large_sectors) == set()
    thinctl.run("restore", repository, "data", pool.name, 5)
    thin = pool.activate(5, ODD)
    content.on(thin).verify()
    thin.remove()
    # Of one that is not active, whole blocks are seen.
    thinctl.receive(large_sectors, 5, thinctl.send(pool, 1))
    thin = large_sectors.activate(5, SIZE)
    assert thin.read(0, ODD - ODD % 4096) == bytes(content.data[:ODD - ODD % 4096])
    thin.remove()


def test_keeps_nobody_from_making_room(make_pool, other, thinctl):
    """A write waits until the pool is made larger. Whoever has the volume suspended would wait for that write."""
    pool = make_pool(data_size=8 * MIB)
    content = Content(pool.new_thin(0, SIZE))
    content.write(0, 8 * MIB)
    repository = thinctl.repository("backups")
    waiting = Background(lambda: content.write(8 * MIB, 64 * KIB))
    wait_until(lambda: pool.status().mode == "out_of_data_space", "the pool is full")
    commands = (
        ("snapshot", pool.name, 0, 1),
        ("backup", pool.name, 0, repository),
        ("migrate", f"{pool.name}:0", f"{other.name}:5"),
    )
    for words in commands:
        with thinctl.start(*words, stderr=subprocess.PIPE) as process:
            errors = process.communicate(timeout=40)[1]
        assert process.returncode == BUSY and b"wait until it is made larger" in errors
        assert not suspended(content.thin.name)
    assert waiting.waits()
    pool.data.grow(32 * MIB)
    pool.device.reload(pool.table())
    assert waiting.outcome() == "ok"
    content.verify()
    for words in commands:
        thinctl.run(*words)
    content.verify()
    # It is in the other pool now.
    content.thin.remove()
