# SPDX-License-Identifier: GPL-2.0
"""The feature discard_on_delete: the space of deleted volumes goes back to the data device."""

import time
from contextlib import contextmanager

import pytest

from dmtest import dm, load, metadata
from dmtest.content import Content
from dmtest.disk import (
    KIB,
    MIB,
)

BLOCK = 64 * KIB
FEATURE = "discard_on_delete"

pytestmark = pytest.mark.named_addition


def progress(pool):
    """The blocks still to be discarded, and those that were."""
    done = dm.dmsetup("message", pool.name, "0", "discard_progress")
    assert done.returncode == 0, done.stderr
    pending, discarded = done.stdout.split()
    return int(pending), int(discarded)


def finish(pool, patience=200):
    """Waits for the end of all discards; returns how many blocks were discarded."""
    end = time.monotonic() + patience
    while True:
        pending, discarded = progress(pool)
        if pending == 0:
            # The last ones may be on their way yet.
            pool.device.suspend()
            pool.device.resume()
            return discarded
        assert time.monotonic() < end, f"{pending} blocks are left"
        time.sleep(0.05)


def discard(pool, thin_id):
    pool.thins[thin_id].remove()
    pool.delete(thin_id)


@contextmanager
def parameter(value):
    path = "/sys/module/dm_thin_pool/parameters/discard_on_delete"
    with open(path, "w") as file:
        file.write(value)
    try:
        yield
    finally:
        with open(path, "w") as file:
            file.write("0")


@pytest.mark.smoke
def test_space_goes_back(make_pool):
    pool = make_pool(data_size=64 * MIB, features=[FEATURE])
    assert pool.device.table().split()[4:] == ["1", FEATURE]
    Content(pool.new_thin(0, 32 * MIB)).write(0, 24 * MIB)
    kept = Content(pool.new_thin(1, 8 * MIB))
    kept.write(0, 8 * MIB)
    assert pool.data.allocated() >= 32 * MIB
    event = pool.device.event_nr()
    discard(pool, 0)
    assert finish(pool) == 24 * MIB // BLOCK
    assert pool.data.allocated() <= 9 * MIB
    assert pool.device.event_nr() == event + 1
    kept.verify()
    assert pool.status().data_blocks[0] == 8 * MIB // BLOCK
    # As many words as without the feature.
    assert len(pool.device.status().split()) == 9


def test_without_it_nothing_is_discarded(make_pool):
    pool = make_pool(data_size=64 * MIB)
    Content(pool.new_thin(0, 8 * MIB)).write(0, 8 * MIB)
    discard(pool, 0)
    assert progress(pool) == (0, 0)
    time.sleep(1.5)
    assert pool.data.allocated() >= 8 * MIB


def test_module_parameter(make_pool):
    """For pools whose tables others make, such as lvm2's."""
    with parameter("1"):
        pool = make_pool(data_size=64 * MIB)
        Content(pool.new_thin(0, 8 * MIB)).write(0, 8 * MIB)
        discard(pool, 0)
        assert finish(pool) == 128
    assert pool.data.allocated() < MIB
    assert pool.device.table().split()[4:] == ["0"]


def test_shared_blocks_stay(make_pool):
    """Those of a snapshot and of a metadata snapshot, until their last owner goes."""
    pool = make_pool(data_size=64 * MIB, features=[FEATURE])
    origin = Content(pool.new_thin(0, 8 * MIB))
    origin.write(0, 8 * MIB)
    snap = origin.snapshot(pool.new_snap(1, 0, 8 * MIB))
    origin.write(0, 2 * MIB)
    discard(pool, 0)
    assert finish(pool) == 2 * MIB // BLOCK
    snap.verify()
    pool.reserve_metadata_snap()
    discard(pool, 1)
    assert finish(pool) == 2 * MIB // BLOCK
    assert pool.data.allocated() >= 8 * MIB
    pool.release_metadata_snap()
    # Whoever released them was no deletion.
    assert progress(pool) == (0, 32)


def test_blocks_in_use_again_are_left_alone(make_pool, modules):
    """While discards are slow, others take the blocks: what they write stays."""
    modules.need("dm-delay")
    pool = make_pool(data_size=128 * MIB, block_sectors=128, features=[FEATURE], start=False)
    sectors = pool.data.sectors
    slow = dm.Device.create("slow", f"0 {sectors} delay {pool.data.path} 0 0 {pool.data.path} 0 3")
    try:
        pool.data_path = slow.path
        pool.start()
        for turn in range(3):
            doomed = pool.new_thin(0, 128 * MIB)
            load.run(doomed, "--bs=64k", "--number_ios=600", rw="randwrite", depth=32, verify=False)
            discard(pool, 0)
            content = Content(pool.new_thin(1, 96 * MIB))
            for block in range(0, 1500, 30):
                content.write(block * BLOCK, 4 * BLOCK)
            content.verify()
            finish(pool)
            content.verify()
            discard(pool, 1)
        pool.stop()
    finally:
        pool.stop()
        slow.remove()


def test_allocation_waits_for_discards_only_if_it_must(make_pool, modules):
    """A pool that is full but for blocks that are being discarded goes on without ever counting as full."""
    modules.need("dm-delay")
    pool = make_pool(data_size=8 * MIB, features=[FEATURE, "error_if_no_space"], start=False)
    slow = dm.Device.create("slow", f"0 {pool.data.sectors} delay {pool.data.path} 0 0 {pool.data.path} 0 300")
    try:
        pool.data_path = slow.path
        pool.start()
        load.run(pool.new_thin(0, 8 * MIB), "--bs=1m", rw="write", verify=False)
        discard(pool, 0)
        content = Content(pool.new_thin(1, 8 * MIB))
        content.write(0, 8 * MIB)
        assert pool.status().mode == "rw"
        content.verify()
        pool.stop()
    finally:
        pool.stop()
        slow.remove()


def test_suspend_and_reload_in_between(make_pool, modules):
    modules.need("dm-delay")
    pool = make_pool(data_size=512 * MIB, features=[FEATURE, "skip_block_zeroing"], start=False)
    slow = dm.Device.create("slow", f"0 {pool.data.sectors} delay {pool.data.path} 0 0 {pool.data.path} 0 20")
    try:
        pool.data_path = slow.path
        pool.start()
        thin = pool.new_thin(0, 512 * MIB)
        load.run(thin, "--bs=64k", rw="write", depth=64, verify=False)
        discard(pool, 0)
        for turn in range(10):
            if turn % 2:
                pool.device.suspend(noflush=True)
                before = progress(pool)
                time.sleep(0.1)
                assert progress(pool) == before, "discards go on while the pool is suspended"
                pool.device.resume()
            else:
                pool.device.reload(pool.table())
        assert finish(pool) == 8192
        pool.stop()
    finally:
        pool.stop()
        slow.remove()
    assert pool.data.allocated() < MIB


def test_closing_in_between_loses_nothing_but_discards(make_pool):
    pool = make_pool(data_size=256 * MIB, features=[FEATURE, "skip_block_zeroing"])
    kept = Content(pool.new_thin(1, 4 * MIB))
    kept.write(0, 4 * MIB)
    load.run(pool.new_thin(0, 200 * MIB), "--bs=64k", rw="write", depth=64, verify=False)
    discard(pool, 0)
    pool.restart()
    assert progress(pool)[1] == 0
    kept = kept.on(pool.activate(1, 4 * MIB))
    kept.verify()
    assert pool.status().data_blocks[0] == 64


@pytest.mark.parametrize("features", [[FEATURE], []])
def test_deletion_that_was_not_committed(make_pool, features):
    """The commit of the deletion fails: the volume is there again after that, with all its data."""
    pool = make_pool(data_size=64 * MIB, features=features, start=False)
    table = f"0 {pool.metadata.sectors} linear {pool.metadata.path} 0"
    below = dm.Device.create("below", table)
    try:
        pool.metadata_path = below.path
        with parameter("1"):
            pool.start()
            content = Content(pool.new_thin(0, 16 * MIB))
            content.write(0, 16 * MIB)
            content.thin.flush()
            content.thin.remove()
            below.reload(f"0 {pool.metadata.sectors} error")
            try:
                pool.delete(0)
            except OSError:
                pass
            time.sleep(1.5)
            assert progress(pool) == (0, 0)
            below.reload(table)
            pool.stop()
            metadata.clear_needs_check(below.path)
            pool.start()
            content.on(pool.activate(0, 16 * MIB)).verify()
            pool.stop()
    finally:
        pool.stop()
        below.remove()


def test_data_device_without_discards(make_pool):
    pool = make_pool(data_size=64 * MIB, data_discards=False, features=[FEATURE])
    Content(pool.new_thin(0, 8 * MIB)).write(0, 8 * MIB)
    discard(pool, 0)
    assert progress(pool) == (0, 0)


def test_number_of_features(make_pool):
    """C takes four words at most; one more is accepted only for the sake of the addition."""
    usual = ["skip_block_zeroing", "no_discard_passdown", "error_if_no_space", "skip_block_zeroing"]
    pool = make_pool(features=[*usual, FEATURE])
    pool.stop()
    pool.features = [*usual, "error_if_no_space"]
    with pytest.raises(dm.DmError):
        pool.start()
