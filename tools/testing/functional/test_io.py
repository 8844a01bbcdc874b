# SPDX-License-Identifier: GPL-2.0
"""I/O by others: fio that verifies, file systems, and requests on their way while devices change."""

import hashlib
import mmap
import os
import random
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dmtest import (
    disk,
    load,
)
from dmtest.background import (
    Background,
    wait_until,
)
from dmtest.content import (
    Content,
    pattern,
)
from dmtest.disk import (
    KIB,
    MIB,
    SECTOR,
)
from dmtest.dm import DmError

BLOCK = 64 * KIB


@pytest.mark.smoke
@pytest.mark.parametrize("engine", ["libaio", "io_uring", "psync"])
def test_fio_random_writes(pool, engine):
    thin = pool.new_thin(0, 32 * MIB)
    load.run(thin, "--bs=4k", engine=engine, size="16m")
    load.run(thin, "--bsrange=512-128k", engine=engine)


@pytest.mark.smoke
def test_fio_reads_among_writes(pool):
    """From user space as the benchmark does it: reads and writes of mapped and of new blocks, 32 at a time."""
    thin = pool.new_thin(0, 32 * MIB)
    for _ in range(2):
        load.run(thin, "--bs=4k", rw="randrw", size="24m", engine="io_uring", depth=32)


def test_fio_several_jobs(pool):
    """Four writers, each in its own quarter, mixed with their reads."""
    thin = pool.new_thin(0, 32 * MIB)
    load.run(thin, "--bsrange=4k-64k", "--offset_increment=25%", rw="randrw", size="25%", jobs=4)


def test_fio_sequential_with_fsync(pool):
    thin = pool.new_thin(0, 16 * MIB)
    load.run(thin, "--bs=64k", "--fsync=8", rw="write")


def test_fio_while_snapshots_are_taken(pool):
    """Each snapshot stops changing at once."""
    size = 16 * MIB
    thin = pool.new_thin(0, size)
    writer = load.Background(thin, "--bsrange=4k-64k", "--loops=6", size="100%")
    digests = {}
    for number in range(1, 9):
        time.sleep(0.1)
        snap = pool.new_snap(number, 0, size)
        digests[number] = hashlib.sha256(snap.read()).digest()
    writer.finish()
    for number, digest in digests.items():
        assert hashlib.sha256(pool.thins[number].read()).digest() == digest, f"snapshot {number} changed"


@pytest.mark.smoke
@pytest.mark.parametrize("what", ["pool", "volume"])
def test_fio_while_tables_are_reloaded(pool, what):
    thin = pool.new_thin(0, 16 * MIB)
    writer = load.Background(thin, "--bsrange=4k-64k", "--loops=4")
    turns = 0
    while writer.running() and turns < 20:
        if what == "pool":
            pool.device.reload(pool.table())
        else:
            thin.reload(thin.table_text())
        turns += 1
        time.sleep(0.05)
    writer.finish()
    assert turns > 3


def test_fio_while_other_volumes_come_and_go(pool):
    thin = pool.new_thin(0, 16 * MIB)
    writer = load.Background(thin, "--bs=16k", "--loops=4")
    number = 0
    while writer.running() and number < 60:
        number += 1
        other = Content(pool.new_thin(number, 2 * MIB))
        other.write(0, 5 * BLOCK)
        other.verify()
        other.thin.remove()
        pool.delete(number)
    writer.finish()
    assert number > 3
    assert pool.status().data_blocks[0] == 256


@pytest.mark.smoke
@pytest.mark.parametrize("what", ["writes", "slow writes", "discards"])
def test_only_volume_comes_and_goes(make_pool, make_faulty, kernel, what):
    """It is removed as soon as its last bio has ended; the worker may be about to look for the next volume then."""
    pool = make_pool(data=make_faulty(32 * MIB))
    if what == "slow writes":
        pool.data.delay(20)
    with ThreadPoolExecutor(8) as others:
        for number in range(40):
            thin = pool.new_thin(number, 4 * MIB)
            with disk.opened(thin.path) as descriptor:
                blocks = range(0, 4 * MIB, BLOCK)
                buffer = mmap.mmap(-1, 4 * KIB)
                for done in others.map(lambda offset: os.pwritev(descriptor, [buffer], offset), blocks):
                    assert done == 4 * KIB
                if what == "discards":
                    for _ in others.map(lambda offset: disk.discard(thin.path, offset, 2 * BLOCK), blocks[::2]):
                        pass
            thin.remove()
            pool.delete(number)
    assert pool.status().data_blocks[0] == 0
    pool.stop()


def test_killed_writer_leaves_a_removable_device(pool):
    for turn in range(3):
        thin = pool.new_thin(turn, 64 * MIB)
        writer = load.Background(thin, "--bs=4k", depth=64, verify=False)
        time.sleep(0.4)
        writer.kill()
        thin.remove()
        pool.delete(turn)


@pytest.fixture
def slow_pool(make_pool, make_faulty):
    """A pool whose data device can take its time."""
    return make_pool(data=make_faulty(512 * MIB))


@pytest.mark.parametrize("what", ["pool", "volume"])
def test_suspend_waits_for_io(slow_pool, what):
    content = Content(slow_pool.new_thin(0, 4 * MIB))
    device = slow_pool.device if what == "pool" else content.thin
    slow_pool.data.hold("writes")
    writer = Background(lambda: content.write(0, BLOCK))
    slow_pool.data.wait_for_held()
    suspending = Background(device.suspend)
    waits = suspending.waits(1)
    slow_pool.data.heal()
    assert suspending.outcome() == "ok"
    device.resume()
    assert writer.outcome() == "ok"
    assert waits, "suspend came back while a write was on its way"
    content.verify()


@pytest.mark.parametrize("how", ["discard", "delete"])
def test_block_is_used_again_when_its_readers_are_gone(make_pool, make_faulty, how):
    """A read that is still on its way to a block gets what was there, although the block has another owner by then."""
    pool = make_pool(data=make_faulty(16 * BLOCK), features=["skip_block_zeroing", "no_discard_passdown"])
    old = Content(pool.new_thin(0, 16 * BLOCK))
    new = Content(pool.new_thin(1, 16 * BLOCK))
    old.write(0, 16 * BLOCK)
    if how == "delete":
        # A snapshot keeps the blocks that the reader is on its way to, and is deleted meanwhile.
        pool.create_snap(2, 0)
    wanted, found = bytes(old.data[:16 * BLOCK]), []
    pool.data.hold("reads")
    reader = Background(lambda: found.append(old.thin.read(0, 16 * BLOCK)))
    wait_until(lambda: pool.data.held() == 16, "the read is on its way")

    def take():
        old.thin.discard(0, 16 * BLOCK)
        if how == "delete":
            pool.delete(2)
        new.write(0, 16 * BLOCK)

    taking = Background(take)
    # Whatever of that does not wait for the read is done by then.
    taking.waits(1.5)
    pool.data.heal()
    assert reader.outcome() == "ok"
    assert taking.outcome() == "ok"
    assert found == [wanted], "the read got what the block's next owner wrote"
    new.verify()


def test_removal_waits_for_io(slow_pool):
    """Nothing of a request on its way is lost: neither copies nor zeroing, of which no opener knows."""
    content = Content(slow_pool.new_thin(0, 4 * MIB))
    content.write(0, 2 * BLOCK)
    snap = content.snapshot(slow_pool.new_snap(1, 0, 4 * MIB))
    slow_pool.data.hold("writes")
    writers = [
        Background(lambda: content.write(SECTOR, SECTOR)),
        Background(lambda: snap.write(BLOCK + SECTOR, SECTOR)),
        Background(lambda: snap.write(5 * BLOCK + SECTOR, SECTOR)),
    ]
    wait_until(lambda: slow_pool.data.held() >= 3, "the copies and the zeroes are on their way")
    with pytest.raises(DmError):
        content.thin.remove(patience=0)
    # The writes themselves take a second.
    slow_pool.data.delay_writes(1000)
    content.thin.remove()
    snap.thin.remove()
    slow_pool.device.remove()
    for writer in writers:
        assert writer.outcome() == "ok"
    slow_pool.start()
    content.on(slow_pool.activate(0, 4 * MIB)).verify()
    snap.on(slow_pool.activate(1, 4 * MIB)).verify()


def test_concurrent_writers_to_one_block(pool):
    """Many requests for a block that is not there yet: it is provisioned once, and none of them is lost."""
    content = Content(pool.new_thin(0, 4 * MIB))
    for block in range(0, 64, 8):
        pieces = {sector: pattern((block, sector), 4 * KIB) for sector in range(0, 128, 8)}
        writers = [
            threading.Thread(target=content.thin.write, args=(block * BLOCK + sector * SECTOR, data))
            for sector, data in pieces.items()
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        for sector, data in pieces.items():
            offset = block * BLOCK + sector * SECTOR
            content.data[offset:offset + len(data)] = data
    content.verify()
    assert pool.status().data_blocks[0] == 8


def test_concurrent_writers_break_sharing(pool):
    """Origin and snapshot are written at once, in the same blocks."""
    size = 4 * MIB
    origin = Content(pool.new_thin(0, size))
    origin.write(0, size)
    snap = origin.snapshot(pool.new_snap(1, 0, size))
    writers = [
        threading.Thread(target=content.scatter, args=(seed, 40), kwargs={"most": 16})
        for content, seed in ((origin, "origin"), (snap, "snap"))
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    origin.verify()
    snap.verify()


def sh(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-1500:]}{done.stderr[-1500:]}"
    return done.stdout


MAKE = {"ext4": ["mkfs.ext4", "-q", "-E", "nodiscard"], "xfs": ["mkfs.xfs", "-q", "-K"]}
CHECK = {"ext4": ["fsck.ext4", "-fn"], "xfs": ["xfs_repair", "-n"]}
SIZES = {"ext4": 64 * MIB, "xfs": 320 * MIB}


def fill(folder, seed, count=40):
    """Writes files and returns {name: digest} of them."""
    choice = random.Random(seed)
    written = {}
    for number in range(count):
        name = f"{seed}-{number}"
        data = pattern(name, choice.randint(1, 200 * KIB))
        with open(folder / name, "wb") as file:
            file.write(data)
        written[name] = hashlib.sha256(data).hexdigest()
    return written


def verify(folder, written):
    for name, digest in written.items():
        with open(folder / name, "rb") as file:
            assert hashlib.sha256(file.read()).hexdigest() == digest, name


@pytest.mark.smoke
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_file_system(pool, mounted, kind):
    """Through remount, snapshot, changes on both sides and reload of the pool; clean for fsck at the end."""
    size = SIZES[kind]
    thin = pool.new_thin(0, size)
    sh(*MAKE[kind], thin.path)
    folder = mounted(thin.path)
    common = fill(folder, "common")
    sh("umount", str(folder))
    folder = mounted(thin.path)
    verify(folder, common)

    # Suspending a mounted volume freezes its file system: the snapshot is consistent.
    snap = pool.new_snap(1, 0, size)
    snap_folder = mounted(snap.path, "nouuid" if kind == "xfs" else "defaults")
    origin_files = fill(folder, "origin")
    snap_files = fill(snap_folder, "snap")
    os.unlink(folder / "common-3")
    verify(snap_folder, common)
    verify(folder, origin_files)
    assert not (snap_folder / "origin-0").exists()
    assert not (folder / "snap-0").exists()
    sh("umount", str(folder))
    sh("umount", str(snap_folder))
    pool.restart()

    for thin_id in (0, 1):
        sh(*CHECK[kind], pool.activate(thin_id, size).path)
    folder = mounted(pool.thins[0].path)
    verify(folder, origin_files)
    sh("umount", str(folder))
    snap_folder = mounted(pool.thins[1].path, "nouuid" if kind == "xfs" else "defaults")
    verify(snap_folder, {**common, **snap_files})
