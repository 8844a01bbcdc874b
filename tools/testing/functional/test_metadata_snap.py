# SPDX-License-Identifier: GPL-2.0
"""Metadata snapshots: what userspace reads of a live pool is what was there when the message was sent."""

import errno
import time

import pytest

from dmtest import (
    load,
    metadata,
)
from dmtest.content import (
    Content,
    pattern,
)
from dmtest.disk import (
    KIB,
    MIB,
)
from dmtest.dm import DmError

BLOCK = 64 * KIB
SIZE = 16 * MIB


def dump(pool, root):
    return metadata.dump(pool.metadata.path, root)


@pytest.fixture
def busy(pool):
    """A volume with blocks here and there, and a snapshot of it with changes."""
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("origin", 60)
    snap = content.snapshot(pool.new_snap(1, 0, SIZE))
    content.scatter("changes", 20)
    snap.scatter("other changes", 20)
    return content


def test_root_in_the_status_line(pool):
    assert pool.device.status().split()[3] == "-"
    root = pool.reserve_metadata_snap()
    assert 0 < root < pool.status().metadata_blocks[1]
    assert pool.device.status().split()[3] == str(root)
    pool.release_metadata_snap()
    assert pool.device.status().split()[3] == "-"


def test_of_an_empty_pool(pool):
    assert metadata.devices(dump(pool, pool.reserve_metadata_snap())) == {}


@pytest.mark.smoke
def test_equals_the_mappings_at_that_time(pool, busy):
    expected = pool.dump()
    root = pool.reserve_metadata_snap()
    busy.scatter("later", 80)
    pool.create_snap(2, 0)
    pool.thins[1].remove()
    pool.delete(1)
    pool.new_thin(3, SIZE).write(0, pattern("new", 8 * BLOCK))
    held = dump(pool, root)
    assert metadata.devices(held) == metadata.devices(expected)
    assert metadata.devices(pool.dump()) != metadata.devices(expected)


def test_does_not_change_with_the_pool(pool, busy):
    root = pool.reserve_metadata_snap()
    first = dump(pool, root)
    for turn in range(10):
        busy.scatter(turn, 10)
        busy.thin.flush()
        assert dump(pool, root) == first


def quiesced(pool):
    """The live pool's mappings at a moment at which nothing changes, and the root of a metadata snapshot of that moment."""
    # With its volumes suspended no write gets through, but the pool still takes messages.
    volumes = list(pool.thins.values())
    for thin in volumes:
        thin.suspend()
    try:
        expected = pool.dump()
        root = pool.reserve_metadata_snap()
    finally:
        for thin in volumes:
            thin.resume()
    return expected, root


@pytest.mark.smoke
def test_taken_and_dumped_while_fio_writes(pool, progress):
    thin = pool.new_thin(0, 64 * MIB)
    pool.new_thin(1, 64 * MIB)
    writers = [
        load.Background(volume, "--bsrange=4k-64k", "--norandommap", "--time_based", "--runtime=3600", depth=8, verify=False)
        for volume in pool.thins.values()
    ]
    for turn in range(6):
        progress(f"metadata snapshots: {turn}")
        time.sleep(0.2)
        expected, root = quiesced(pool)
        assert metadata.devices(dump(pool, root)) == metadata.devices(expected)
        time.sleep(0.2)
        assert metadata.devices(dump(pool, root)) == metadata.devices(expected)
        pool.release_metadata_snap()
        if turn % 2:
            pool.create_snap(100 + turn, 0)
    assert all(writer.running() for writer in writers)
    for writer in writers:
        writer.kill()
    assert thin.mapped()[0] > 0


@pytest.mark.smoke
def test_delta_between_origin_and_snapshot(pool):
    origin = Content(pool.new_thin(0, SIZE))
    origin.write(0, 32 * BLOCK)
    snap = origin.snapshot(pool.new_snap(1, 0, SIZE))
    origin.write(4 * BLOCK, 2 * BLOCK)
    snap.write(100 * BLOCK, BLOCK)
    origin.write(50 * BLOCK, 3 * BLOCK)
    root = pool.reserve_metadata_snap()
    origin.write(0, 32 * BLOCK)
    xml = metadata.delta(pool.metadata.path, 0, 1, root)
    lines = [line.strip() for line in xml.splitlines()]
    assert '<different begin="4" length="2"/>' in lines
    assert '<left_only begin="50" length="3"/>' in lines
    assert '<right_only begin="100" length="1"/>' in lines
    assert '<same begin="0" length="4"/>' in lines
    assert '<same begin="6" length="26"/>' in lines


def test_ls(pool):
    pool.new_thin(0, SIZE).write(0, pattern("ls", 5 * BLOCK))
    pool.create_thin(1)
    pool.create_snap(2, 0)
    root = pool.reserve_metadata_snap()
    pool.thins[0].write(0, pattern("later", 9 * BLOCK))
    pool.create_thin(3)
    assert metadata.ls(pool.metadata.path, root) == [["0", "5", "0", "1"], ["1", "0", "0", "0"], ["2", "5", "1", "1"]]


@pytest.mark.smoke
def test_survives_a_reload(pool, busy):
    root = pool.reserve_metadata_snap()
    expected = dump(pool, root)
    pool.device.reload(pool.table())
    assert pool.status().metadata_snap == root
    busy.scatter("between", 30)
    pool.restart()
    assert pool.status().metadata_snap == root
    assert dump(pool, root) == expected
    busy.on(pool.activate(0, SIZE)).scatter("after", 30)
    assert dump(pool, root) == expected
    pool.release_metadata_snap()


@pytest.mark.smoke
def test_second_reserve(pool, busy):
    root = pool.reserve_metadata_snap()
    with pytest.raises(DmError) as error:
        pool.message("reserve_metadata_snap")
    assert error.value.errno == errno.EBUSY
    assert pool.status().metadata_snap == root
    assert metadata.devices(dump(pool, root))


def test_release_without_reserve(pool):
    with pytest.raises(DmError) as error:
        pool.release_metadata_snap()
    assert error.value.errno == errno.EINVAL
    pool.reserve_metadata_snap()
    pool.release_metadata_snap()
    with pytest.raises(DmError):
        pool.release_metadata_snap()


def test_holds_the_data_blocks_of_a_deleted_volume(pool, busy):
    """The mappings that userspace sees must stay true: their blocks are not given to others."""
    used = pool.status().data_blocks[0]
    root = pool.reserve_metadata_snap()
    mapped = metadata.mappings(dump(pool, root))
    for thin_id in (0, 1):
        pool.thins[thin_id].remove()
        pool.delete(thin_id)
    assert pool.status().data_blocks[0] == used
    other = Content(pool.new_thin(7, SIZE))
    other.write(0, SIZE)
    taken = set(metadata.mappings(pool.dump())[7].values())
    assert not taken & {block for blocks in mapped.values() for block in blocks.values()}
    pool.release_metadata_snap()
    assert pool.status().data_blocks[0] == SIZE // BLOCK


def test_reserve_and_release_leak_nothing(pool, busy):
    def turn():
        root = pool.reserve_metadata_snap()
        busy.scatter("same", 10)
        busy.thin.flush()
        dump(pool, root)
        pool.release_metadata_snap()
        busy.thin.flush()
        return pool.status().metadata_blocks[0], pool.status().data_blocks[0]

    turn()
    second = turn()
    for _ in range(6):
        assert turn() == second


def test_removed_pool_with_a_metadata_snapshot_is_sound(pool, busy):
    """thin_check counts the metadata snapshot's references as well."""
    pool.reserve_metadata_snap()
    busy.scatter("later", 20)
    pool.stop()
    pool.check()
