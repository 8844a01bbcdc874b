# SPDX-License-Identifier: GPL-2.0
"""Tables, and suspend, resume, reload and removal in every legal order."""

import errno
import itertools
import threading
import time

import pytest

from dmtest import (
    disk,
    metadata,
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
from dmtest.dm import (
    Device,
    DmError,
)
from dmtest.pool import Thin

BLOCK = 64 * KIB
SIZE = 8 * MIB

FEATURES = ["skip_block_zeroing", "ignore_discard", "no_discard_passdown", "read_only", "error_if_no_space"]
# A pool may refuse these, with a reason, but it must not ignore them.
REFUSABLE = set(FEATURES[1:])

# What may be done with one device between two checks of its contents: l loads a table,
# c clears it, s suspends, n suspends without flushing, r resumes. All end up resumed.
ORDERS = ["sr", "r", "srr", "ssr", "nr", "lr", "lsr", "slr", "nlr", "llr", "lcr", "lcsr", "slcr", "sclr", "lslr", "slsr", "lnlcr"]


def play(device, table, order):
    steps = {
        "l": lambda: device.load(table),
        "c": device.clear,
        "s": device.suspend,
        "n": lambda: device.suspend(noflush=True),
        "r": device.resume,
    }
    for step in order:
        steps[step]()


@pytest.mark.parametrize("order", ORDERS)
def test_orders_of_a_volume(pool, order):
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("before", 10)
    play(content.thin, content.thin.table_text(), order)
    content.verify()
    content.scatter("after", 10)
    content.verify()


@pytest.mark.parametrize("order", ORDERS)
def test_orders_of_a_pool(pool, order):
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("before", 10)
    play(pool.device, pool.table(), order)
    content.verify()
    content.scatter("after", 10)
    content.verify()
    pool.create_snap(1, 0)
    assert pool.status().mode == "rw"


@pytest.mark.parametrize("order", ["sr", "nr", "lr", "lsr", "slr"])
@pytest.mark.parametrize("what", ["pool", "volume"])
def test_orders_while_a_writer_runs(pool, what, order):
    """The writer is held up, never failed, and every write of it is there afterwards."""
    content = Content(pool.new_thin(0, SIZE))
    stop = threading.Event()
    faults = []

    def work():
        turn = 0
        while not stop.is_set():
            turn += 1
            try:
                content.scatter(turn, 3)
            except OSError as error:
                faults.append(error)
                return

    writer = threading.Thread(target=work)
    writer.start()
    device, table = (pool.device, pool.table()) if what == "pool" else (content.thin, content.thin.table_text())
    for turn in range(5):
        time.sleep(0.03)
        play(device, table, order)
    stop.set()
    writer.join()
    assert not faults
    content.verify()


def test_suspended_volume_holds_its_io(pool):
    thin = pool.new_thin(0, SIZE)
    thin.suspend()
    writer = threading.Thread(target=thin.write, args=(0, pattern("held", BLOCK)))
    writer.start()
    time.sleep(0.3)
    assert writer.is_alive()
    thin.resume()
    writer.join(60)
    assert not writer.is_alive()
    assert thin.read(0, BLOCK) == pattern("held", BLOCK)


@pytest.mark.smoke
def test_suspended_pool_holds_io_of_its_volumes(pool):
    thins = [pool.new_thin(number, SIZE) for number in range(2)]
    pool.device.suspend()
    writers = [threading.Thread(target=thin.write, args=(0, pattern(thin.id, BLOCK))) for thin in thins]
    for writer in writers:
        writer.start()
    time.sleep(0.3)
    assert all(writer.is_alive() for writer in writers)
    pool.device.resume()
    for writer, thin in zip(writers, thins):
        writer.join(60)
        assert not writer.is_alive()
        assert thin.read(0, BLOCK) == pattern(thin.id, BLOCK)


def test_no_volume_on_a_suspended_pool(pool):
    pool.create_thin(0)
    pool.device.suspend()
    with pytest.raises(DmError) as error:
        pool.activate(0, SIZE)
    assert error.value.errno == errno.EINVAL
    pool.device.resume()
    pool.activate(0, SIZE)


@pytest.mark.smoke
def test_pool_grows(make_pool):
    pool = make_pool(data_size=16 * MIB)
    content = Content(pool.new_thin(0, 64 * MIB))
    content.write(0, 16 * MIB)
    assert pool.status().data_blocks == (256, 256)
    pool.data.grow(64 * MIB)
    pool.device.reload(pool.table())
    assert pool.status().data_blocks == (256, 1024)
    content.write(16 * MIB, 16 * MIB)
    content.verify()


def test_metadata_grows(make_pool):
    pool = make_pool(metadata_size=4 * MIB)
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("before", 20)
    before = pool.status().metadata_blocks[1]
    pool.metadata.grow(32 * MIB)
    pool.device.reload(pool.table())
    assert (before, pool.status().metadata_blocks[1]) == (1024, 8192)
    content.scatter("after", 20)
    pool.restart()
    content.on(pool.activate(0, SIZE)).verify()


def test_pool_does_not_shrink(make_pool):
    pool = make_pool(data_size=32 * MIB)
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("before", 10)
    pool.device.load(pool.table(16 * MIB // SECTOR))
    with pytest.raises(DmError) as error:
        pool.device.resume()
    assert error.value.errno == errno.EINVAL
    pool.device.reload(pool.table())
    content.verify()


def test_volume_grows_and_shrinks(pool):
    thin = pool.new_thin(0, SIZE)
    thin.write(SIZE - BLOCK, pattern("end", BLOCK))
    thin.reload(thin.table_text(2 * SIZE // SECTOR))
    assert not any(thin.read(SIZE, SIZE))
    thin.write(2 * SIZE - BLOCK, pattern("new end", BLOCK))
    thin.reload(thin.table_text(SIZE // 2 // SECTOR))
    with pytest.raises(OSError):
        disk.read(thin.path, SIZE - BLOCK, BLOCK)
    thin.reload(thin.table_text(2 * SIZE // SECTOR))
    assert thin.read(SIZE - BLOCK, BLOCK) == pattern("end", BLOCK)
    assert thin.read(2 * SIZE - BLOCK, BLOCK) == pattern("new end", BLOCK)


def test_volume_changes_its_identity(pool):
    """A reload may map a device to another thin volume."""
    first, second = (Content(pool.new_thin(number, SIZE)) for number in range(2))
    first.scatter("first", 10)
    second.scatter("second", 10)
    second.thin.remove()
    first.thin.reload(f"0 {SIZE // SECTOR} thin {pool.device.path} 1")
    second.on(first.thin).verify()
    first.thin.reload(first.thin.table_text())
    first.verify()


def test_low_water_mark_and_zeroing_change_with_a_reload(pool):
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("before", 10)
    pool.low_water = 77
    pool.features = ["skip_block_zeroing"]
    pool.device.reload(pool.table())
    assert pool.device.table().split()[2:] == ["128", "77", "1", "skip_block_zeroing"]
    content.verify()
    pool.low_water = 0
    pool.features = []
    pool.device.reload(pool.table())
    assert pool.device.table().split()[2:] == ["128", "0", "0"]
    content.scatter("after", 10)
    content.verify()


def test_one_volume_active_twice(pool):
    """Two devices on one thin volume see the same blocks."""
    content = Content(pool.new_thin(0, SIZE))
    twin = Thin.open(pool, 0, SIZE, name="twin")
    content.scatter("once", 5)
    content.on(twin).verify()
    twin.remove()
    content.scatter("more", 5)
    content.verify()


def test_pool_in_use_is_not_removed(pool):
    thin = pool.new_thin(0, SIZE)
    with pytest.raises(DmError) as error:
        pool.device.remove(patience=0)
    assert error.value.errno == errno.EBUSY
    thin.write(0, pattern("still", BLOCK))
    thin.remove()


def test_pool_device_passes_io_through(pool):
    """The pool device maps linearly to the data device."""
    thin = pool.new_thin(0, SIZE)
    thin.write(0, pattern("through", BLOCK))
    thin.flush()
    block = metadata.mappings(pool.dump())[0][0]
    assert disk.read(pool.device.path, block * BLOCK, BLOCK) == pattern("through", BLOCK)


def test_status_of_a_suspended_pool(pool):
    thin = pool.new_thin(0, SIZE)
    thin.write(0, pattern("x", BLOCK))
    before = pool.device.status()
    pool.device.suspend()
    assert pool.device.status() == before
    assert pool.device.status(noflush=True) == before
    pool.device.resume()


def combinations():
    for count in range(1, len(FEATURES) + 1):
        yield from (list(chosen) for chosen in itertools.combinations(FEATURES, count))
    yield FEATURES[::-1]
    yield ["error_if_no_space", "skip_block_zeroing"]
    yield ["skip_block_zeroing", "skip_block_zeroing"]
    yield ["SKIP_BLOCK_ZEROING"]


def test_feature_arguments_are_reported_back(make_pool, kernel):
    """In the fixed order of the table line, whatever the order in which they were given."""
    pool = make_pool()
    pool.stop()
    for features in combinations():
        kernel.lines()
        pool.features = features
        try:
            pool.start()
        except DmError as error:
            assert REFUSABLE & set(features), features
            assert error.errno == errno.EINVAL
            assert any("table:" in line for line in kernel.lines()), f"{features} refused without a reason"
            continue
        expected = [feature for feature in FEATURES if feature in [given.lower() for given in features]]
        assert pool.device.table().split()[2:] == ["128", "0", str(len(expected)), *expected]
        status = pool.device.status().split()
        assert ("error_if_no_space" in status) == ("error_if_no_space" in features)
        assert ("ro" in status) == ("read_only" in features)
        if "ignore_discard" in features:
            assert status[5] == "ignore_discard"
        elif "no_discard_passdown" in features:
            assert status[5] == "no_discard_passdown"
        pool.stop()
    pool.features = []
    pool.start()
    assert pool.device.table().split()[4:] == ["0"]


def test_devices_by_number_and_by_path(make_pool):
    pool = make_pool(start=False)
    numbers = []
    for path in (pool.metadata.path, pool.data.path):
        with open(f"/sys/block/{path.removeprefix('/dev/')}/dev") as number:
            numbers.append(number.read().strip())
    pool.device = Device.create(pool.name, f"0 {pool.data.sectors} thin-pool {numbers[0]} {numbers[1]} 128 0")
    assert pool.device.table().split()[:2] == numbers
    pool.new_thin(0, SIZE).write(0, pattern("numbers", BLOCK))


def test_pool_smaller_than_the_data_device(make_pool):
    pool = make_pool(start=False)
    # The last block is not whole and is left unused.
    pool.device = Device.create(pool.name, pool.table(sectors=128 * 10 + 64))
    assert pool.status().data_blocks == (0, 10)
