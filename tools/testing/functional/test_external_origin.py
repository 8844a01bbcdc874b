# SPDX-License-Identifier: GPL-2.0
"""External origins: devices outside of the pool that have what a volume has not provisioned.

The scenarios are played by both modules, which must agree with a model of the content and with each other.
"""

import errno
import random
import threading
import time

import pytest

from dmtest import (
    disk,
    load,
    metadata,
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
from dmtest.dm import Device
from dmtest.layered import Layered

BLOCK = 64 * KIB
SIZE = 4 * MIB

# The external origin's size in sectors, next to volumes of 8192 sectors: no multiple of a block where that matters.
ORIGINS = {
    "shorter": 5003,
    "shorter by a bit": 8191,
    "a single sector": 1,
    "equal": 8192,
    "longer": 9001,
    "longer within the last block": 8200,
}


@pytest.fixture
def make_origin(make_disk):
    """Makes disks with content, to be external origins; nobody may have written to them at the end."""
    made = []

    def make(sectors=SIZE // SECTOR):
        content = pattern(("origin", len(made)), sectors * SECTOR)
        origin = make_disk(sectors * SECTOR, "origin")
        disk.write(origin.path, 0, content)
        origin.holds = content
        made.append(origin)
        return origin

    yield make
    for origin in made:
        assert origin.contents()[:len(origin.holds)] == origin.holds, "something was written to an external origin"


def layered(pool, thin_id, origin, size=SIZE):
    return Layered(pool.new_thin(thin_id, size, origin.path), origin.holds)


def fails(code, action, *arguments):
    with pytest.raises(OSError) as error:
        action(*arguments)
    assert error.value.errno == code


def look(choice, content):
    """Reads somewhere, often across the end of the external origin."""
    sectors = content.thin.size // SECTOR
    edge = choice.choice([5003, 8191, 8192, choice.randrange(sectors)])
    begin = max(0, min(edge, sectors) - choice.randint(1, 300))
    length = choice.randint(1, min(600, sectors - begin))
    begin, end = begin * SECTOR, (begin + length) * SECTOR
    assert content.thin.read(begin, end - begin) == content.data[begin:end], f"sectors {begin // SECTOR} to {end // SECTOR}"


def play(trace, pool, origin, seed, steps):
    """Random writes, reads, discards, snapshots and activations, with and without the external origin."""
    choice = random.Random(seed)
    contents = {0: layered(pool, 0, origin)}

    def activated(model, thin_id, size):
        """`model` is a function from the newly activated volume and what is below it to its content."""
        below = choice.random() < 0.7
        thin = pool.activate(thin_id, size, origin.path if below else None)
        return model(thin, origin.holds if below else b"")

    def settle():
        """The C module's worker uses a volume after its last bio has ended; a flush waits for the worker."""
        next(iter(contents.values())).thin.flush()

    for step in range(steps):
        thin_id = choice.choice(sorted(contents))
        content = contents[thin_id]
        what = choice.random()
        if what < 0.4:
            content.scatter((seed, step), choice.randint(1, 4), 500)
        elif what < 0.6:
            look(choice, content)
        elif what < 0.7:
            sectors = content.thin.size // SECTOR
            # The block layer splits others at multiples of a power of two, and so within blocks of another size.
            begin = choice.randrange(sectors) if pool.block_sectors == 128 else 0
            content.discard(begin * SECTOR, choice.randint(1, sectors - begin) * SECTOR)
        elif what < 0.8 and len(contents) < 6:
            number = max(contents) + 1
            pool.create_snap(number, thin_id)
            contents[number] = activated(content.snapshot, number, content.thin.size)
        elif what < 0.9:
            settle()
            content.thin.remove()
            contents[thin_id] = activated(content.on, thin_id, choice.choice([SIZE, SIZE - 7 * SECTOR, 2 * SIZE]))
        elif what < 0.93:
            settle()
            pool.restart()
            for number, known in contents.items():
                contents[number] = activated(known.on, number, SIZE)
        elif len(contents) > 1:
            settle()
            contents.pop(thin_id).thin.remove()
            pool.delete(thin_id)
        trace.pool(pool)
    for content in contents.values():
        content.verify(1000 * SECTOR)
        assert content.thin.mapped_blocks() == content.mapped_blocks()
    trace.note("dump", pool.dump())
    settle()
    pool.stop()
    trace.note("at the end", metadata.dump(pool.metadata.path))


@pytest.mark.parametrize("sectors", ORIGINS.values(), ids=ORIGINS)
@pytest.mark.parametrize("block_sectors", [128, 384])
def test_random_scenario(make_pool, make_origin, compare, block_sectors, sectors):
    def scenario(trace, turn):
        pool = make_pool(data_size=64 * MIB, block_sectors=block_sectors, start=False)
        # What lies on the data device already must not be seen.
        pool.data.overwrite(0, b"\xa5" * pool.data.size)
        pool.start()
        play(trace, pool, make_origin(sectors), f"{block_sectors} {sectors}", 40)

    compare(scenario)


def test_turns(make_pool, make_origin, modules, both):
    """A volume and its snapshot on an external origin, continued by one module where the other stopped."""
    pool = make_pool(start=False)
    origin = make_origin(5003)
    content = snap = None
    for turn in range(6):
        modules.load(both[turn % 2])
        pool.start()
        if content is None:
            content = layered(pool, 0, origin)
            content.scatter("first", 10)
            snap = content.snapshot(pool.new_snap(1, 0, SIZE, origin.path), origin.holds)
        else:
            content, snap = (
                each.on(pool.activate(number, SIZE, origin.path), origin.holds) for number, each in enumerate((content, snap))
            )
        for each in (content, snap):
            each.verify()
            each.scatter(turn, 8)
            each.verify()
        pool.stop()
        modules.unload()
        pool.check()


@pytest.mark.smoke
def test_reads_provision_nothing(make_pool, make_origin):
    pool = make_pool()
    content = layered(pool, 0, make_origin(5003))
    content.verify(1000 * SECTOR)
    assert content.thin.status() == "0 -"
    assert pool.status().data_blocks[0] == 0


@pytest.mark.smoke
@pytest.mark.parametrize("features", [[], ["skip_block_zeroing"]], ids=["zeroing", "no zeroing"])
def test_first_writes(make_pool, make_origin, features):
    """A sector, a whole block, at the edges of the external origin, and beyond it."""
    pool = make_pool(data_size=64 * MIB, start=False, features=features)
    # What lies on the data device already must not be seen.
    pool.data.overwrite(0, b"\xa5" * (16 * MIB))
    pool.start()
    content = layered(pool, 0, make_origin(5003))
    edge = 5003 * SECTOR // BLOCK * BLOCK
    content.write(3 * SECTOR, SECTOR)
    content.write(2 * BLOCK, BLOCK)
    content.write(4 * BLOCK + 5 * SECTOR, 2 * BLOCK)
    content.write(edge + BLOCK, BLOCK)
    if features:
        # Only what the external origin has is copied, and nothing is zeroed.
        content.write(edge, BLOCK)
    else:
        content.write(edge, SECTOR)
        content.write(edge + 3 * BLOCK + SECTOR, SECTOR)
    content.verify()


def test_sizes_in_which_the_last_block_is_not_whole(make_pool, make_origin):
    """Its copy is whole nevertheless, as is seen when the volume gets larger."""
    pool = make_pool(data_size=64 * MIB)
    content = layered(pool, 0, make_origin(), 3 * BLOCK + 9 * SECTOR)
    content.write(3 * BLOCK, SECTOR)
    content.thin.remove()
    content.on(pool.activate(0, 5 * BLOCK)).verify()


def test_snapshot_keeps_what_was_copied(make_pool, make_origin, compare):
    """A snapshot shares the copies; without the external origin in its table it has zeroes for the rest."""
    def scenario(trace, turn):
        pool = make_pool(data_size=64 * MIB)
        origin = make_origin()
        content = layered(pool, 0, origin)
        content.write(SECTOR, SECTOR)
        content.write(3 * BLOCK - SECTOR, 2 * SECTOR)
        pool.create_snap(1, 0)
        pool.create_snap(2, 0)
        one = content.snapshot(pool.activate(1, SIZE))
        two = content.snapshot(pool.activate(2, SIZE, origin.path), origin.holds)
        for each in (content, one, two):
            each.verify()
            each.write(5 * BLOCK + SECTOR, SECTOR)
            each.write(SECTOR, 2 * SECTOR)
        for each in (content, one, two):
            each.verify()
        trace.pool(pool)
        trace.note("dump", pool.dump())
        pool.stop()

    compare(scenario)


def test_size_counts_from_the_last_resume(make_pool, make_origin, compare):
    def scenario(trace, turn):
        pool = make_pool(data_size=64 * MIB)
        origin = make_origin(2 * MIB // SECTOR + 9)
        content = layered(pool, 0, origin)
        more = origin.holds + pattern("more", MIB)
        origin.grow(len(more))
        disk.write(origin.path, len(origin.holds), more[len(origin.holds):])
        content.verify()
        content.write(2 * MIB + 20 * SECTOR, SECTOR)
        content.verify()
        content.thin.suspend()
        content.thin.resume()
        content.resumed(more)
        content.verify()
        trace.pool(pool)
        pool.stop()

    compare(scenario)


def test_read_only_device(make_pool, make_origin):
    """The origin is opened for reading alone."""
    pool = make_pool(data_size=64 * MIB)
    origin = make_origin()
    linear = Device.create("linear", f"0 {origin.sectors} linear {origin.path} 0", readonly=True)
    content = Layered(pool.new_thin(0, SIZE, linear.path), origin.holds)
    content.scatter("some", 20)
    content.verify()
    content.thin.remove()
    linear.remove()


def test_lines(make_pool, make_origin, compare):
    def scenario(trace, turn):
        pool = make_pool(data_size=64 * MIB)
        origin = make_origin()
        thin = pool.new_thin(0, SIZE, origin.path)
        trace.pool(pool)
        number = thin.table().split()[2]
        thin.reload(thin.table_text().replace(origin.path, number))
        assert thin.table().split()[2] == number
        trace.pool(pool)
        plain = pool.new_thin(1, SIZE)
        assert thin.limits() == plain.limits(), "the external origin counts for the limits"
        plain.reload(plain.table_text() + " " + number)
        trace.pool(pool)
        assert plain.read() == origin.holds
        pool.stop()

    compare(scenario)


@pytest.mark.fault_of_c("it uses memory that it has freed")
def test_pool_by_another_name(pool, kernel):
    """Refused as by its own name. The C module takes it, and uses memory then that it has freed."""
    pool.create_thin(0)
    for names in ((pool.device.path, pool.device.number), (pool.device.number, pool.device.path)):
        kernel.lines()
        fails(errno.EINVAL, Device.create, "bad", f"0 8192 thin {names[0]} 0 {names[1]}")
        assert any("Error setting origin device" in line for line in kernel.lines())


def test_volume_of_another_pool(make_pool, make_origin):
    """And of the same pool: what is read there may have to wait for the same worker."""
    pools = [make_pool(data_size=64 * MIB), make_pool(data_size=64 * MIB)]
    bottom = layered(pools[0], 0, make_origin(5003))
    bottom.scatter("bottom", 20)
    below = bytes(bottom.data[:SIZE])
    contents = [Layered(pool.new_thin(7, SIZE, bottom.thin.path), below) for pool in pools]
    for content in contents:
        content.scatter("top", 30)
        content.verify()
    bottom.verify()
    for content in contents:
        content.thin.remove()


@pytest.mark.fault_of_c("the worker waits for itself")
def test_volume_of_the_same_pool_and_a_slow_worker(make_pool, make_faulty):
    """After a second, the worker holds those back who give it more to do. It must not be one of them. In the C module it is."""
    pool = make_pool(metadata=make_faulty(16 * MIB), data_size=64 * MIB)
    bottom = Content(pool.new_thin(0, SIZE))
    bottom.write(0, 4 * BLOCK)
    busy = Content(pool.new_thin(1, SIZE))
    busy.write(0, BLOCK)
    pool.create_thin(2)
    # Nothing of the volumes' trees is in memory then.
    pool.restart()
    bottom, busy = bottom.on(pool.activate(0, SIZE)), busy.on(pool.activate(1, SIZE))
    thin = pool.activate(2, SIZE, origin=bottom.thin.path)
    pool.metadata.delay(1500)
    first = Background(lambda: busy.thin.read(0, BLOCK))
    wait_until(first.sleeps, "the first read")
    # They come to the worker together. It finds out where the first one goes, is slow by then, and goes on with the second.
    reads = [Background(lambda at=at: thin.read(at * BLOCK, BLOCK)) for at in range(4)]
    assert [one.outcome() for one in (first, *reads)] == 5 * ["ok"]
    pool.metadata.heal()
    assert thin.read(0, 4 * BLOCK) == bottom.data[:4 * BLOCK]
    thin.remove()
    bottom.verify()
    busy.verify()


@pytest.fixture
def broken(make_origin):
    """An external origin of which all reads from 1 to 2 MiB fail: the disk and the device to be used."""
    origin = make_origin()
    begin, rest = MIB // SECTOR, origin.sectors - 2 * MIB // SECTOR
    device = Device.create("broken", (
        f"0 {begin} linear {origin.path} 0\n{begin} {begin} error\n{2 * begin} {rest} linear {origin.path} {2 * begin}"
    ))
    return origin, device


def test_reads_that_fail(make_pool, broken, run):
    """Nothing is mapped where copying failed, and what needs no copy works."""
    pool = make_pool(data_size=64 * MIB)
    origin, device = broken
    content = Layered(pool.new_thin(0, SIZE, device.path), origin.holds)
    fails(errno.EIO, content.thin.read, MIB, 4 * KIB)
    fails(errno.EIO, content.thin.write, MIB, bytes(SECTOR))
    fails(errno.EIO, content.thin.write, 2 * MIB - SECTOR, bytes(SECTOR))
    assert content.thin.status() == "0 -"
    if run["impl"] == "rust":
        # The C module does not free the block that it allocated in vain.
        assert pool.status().data_blocks[0] == 0
    assert pool.status().mode == "rw"
    content.write(MIB, BLOCK)
    content.write(2 * MIB, SECTOR)
    content.write(MIB + 4 * SECTOR, SECTOR)
    device.reload(f"0 {origin.sectors} linear {origin.path} 0")
    content.write(2 * MIB - SECTOR, SECTOR)
    content.verify()
    content.thin.remove()
    device.remove()


@pytest.fixture
def slow(make_origin, modules):
    """An external origin that takes a second for each read: the disk and the device to be used."""
    modules.need("dm-delay")
    origin = make_origin()
    return origin, Device.create("slow", f"0 {origin.sectors} delay {origin.path} 0 1000")


def delayed(device):
    """How many reads the slow device holds at this moment."""
    return int(device.status(noflush=True).split()[0])


def until_delayed(thread, device):
    while not delayed(device):
        assert thread.is_alive(), "nothing was read from the external origin"
        time.sleep(0.01)


@pytest.mark.parametrize("length", [SECTOR, BLOCK], ids=["a sector", "the whole block"])
def test_read_while_its_block_is_written(make_pool, slow, length):
    pool = make_pool(data_size=64 * MIB)
    origin, device = slow
    content = Layered(pool.new_thin(0, SIZE, device.path), origin.holds)
    found = []
    reader = threading.Thread(target=lambda: found.append(content.thin.read(0, BLOCK)))
    reader.start()
    until_delayed(reader, device)
    before = bytes(content.data[:BLOCK])
    content.write(0, length)
    assert content.thin.read(0, BLOCK) == content.data[:BLOCK]
    reader.join()
    assert found and found[0] in (before, content.data[:BLOCK])
    content.verify()
    content.thin.remove()
    device.remove()


@pytest.mark.parametrize("how", ["read", "write"])
@pytest.mark.parametrize("what", ["pool", "volume"])
def test_suspend_waits_for_the_origin(make_pool, slow, how, what):
    pool = make_pool(data_size=64 * MIB)
    origin, device = slow
    content = Layered(pool.new_thin(0, SIZE, device.path), origin.holds)
    action = content.thin.read if how == "read" else content.write
    user = threading.Thread(target=action, args=(0, SECTOR))
    user.start()
    until_delayed(user, device)
    suspended = pool.device if what == "pool" else content.thin
    suspended.suspend()
    left = delayed(device)
    suspended.resume()
    user.join()
    assert not left, "suspend came back while the origin was being read"
    content.verify()
    content.thin.remove()
    device.remove()


def test_fio_on_top_of_an_origin(make_pool, make_origin):
    """Copies by the dozen while snapshots are taken; what fio did not write is still the origin's."""
    pool = make_pool()
    origin = make_origin(32 * MIB // SECTOR - 11)
    thin = pool.new_thin(0, 32 * MIB, origin.path)
    job = load.Background(thin, "--bsrange=512-96k", size="16m", depth=32)
    number = 1
    while job.running() and number < 20:
        pool.create_snap(number, 0)
        number += 1
        time.sleep(0.05)
    job.finish()
    assert thin.read(16 * MIB, 16 * MIB - 11 * SECTOR) == origin.holds[16 * MIB:]
    assert not any(thin.read(32 * MIB - 11 * SECTOR, 11 * SECTOR))


@pytest.mark.named_addition
@pytest.mark.parametrize("what", ["read_only", "full"])
def test_pool_that_cannot_provision(make_pool, make_origin, what):
    """Reads are served as ever, also across the end of the external origin, where the C module gives EIO."""
    pool = make_pool(data_size=MIB, features=["error_if_no_space"])
    content = layered(pool, 0, make_origin(5003))
    content.write(0, MIB)
    if what == "read_only":
        pool.features = ["read_only"]
        pool.device.reload(pool.table())
    fails(errno.EIO if what == "read_only" else errno.ENOSPC, content.thin.write, 2 * MIB, bytes(SECTOR))
    assert pool.status().mode == ("ro" if what == "read_only" else "out_of_data_space")
    content.verify(1000 * SECTOR)


@pytest.mark.parametrize("how", [pytest.param("punch_hole", marks=pytest.mark.named_addition), "zero_out"])
def test_zeroes_stay_zeroes(make_pool, make_origin, how):
    """They must not let the external origin through; nor beyond its end, as it may get larger."""
    choice = random.Random(how)
    pool = make_pool(data_size=64 * MIB)
    origin = make_origin(5003)
    content = layered(pool, 0, origin)
    for step in range(40):
        if choice.random() < 0.4:
            content.scatter(("write", step), 2)
        else:
            start = choice.randrange(1024)
            content.zero(start * 4 * KIB, choice.randint(1, min(200, 1024 - start)) * 4 * KIB, how)
    content.verify()
    assert content.thin.mapped_blocks() == content.mapped_blocks()
    content.thin.remove()
    content.on(pool.activate(0, SIZE)).verify()


def test_write_zeroes_that_the_data_device_refuses(make_pool, make_origin):
    pool = make_pool(data_size=64 * MIB, start=False)
    pool.data.overwrite(0, b"\xa5" * (16 * MIB))
    pool.data.break_write_zeroes()
    pool.start()
    content = layered(pool, 0, make_origin(5003))
    for block in range(0, 60, 3):
        content.write(block * BLOCK + 5 * SECTOR, 3 * SECTOR)
    content.verify()
    content.zero(0, 4 * BLOCK + 8 * SECTOR, "zero_out")
    content.verify()


@pytest.mark.fault_of_c("the suspend hangs")
@pytest.mark.parametrize("reloaded", [None, "plain", "middle", "bottom and middle"])
def test_suspend_with_a_volume_of_the_same_pool(make_pool, make_origin, reloaded):
    """Volumes are suspended before their external origins; otherwise the C module, too, waits for ever."""
    pool = make_pool(data_size=64 * MIB)
    bottom = layered(pool, 0, make_origin())
    middle = Layered(pool.new_thin(1, SIZE, bottom.thin.path), bytes(bottom.data))
    top = Layered(pool.new_thin(2, SIZE, middle.thin.path), bytes(middle.data))
    plain = Content(pool.new_thin(3, SIZE))
    plain.write(0, SIZE)
    above = Layered(pool.new_thin(4, SIZE, plain.thin.path), bytes(plain.data))
    for name, content in (("plain", plain), ("bottom", bottom), ("middle", middle)):
        if reloaded and name in reloaded:
            content.thin.reload(content.thin.table_text())
    jobs = [
        load.Background(each.thin, "--bs=4k", "--time_based", "--runtime=3", rw="randread", depth=8, verify=False)
        for each in (top, above)
    ]
    while all(job.running() for job in jobs):
        pool.device.suspend()
        pool.device.resume()
    for job in jobs:
        job.finish()
    for each in (top, above):
        each.scatter("some", 10)
        each.verify()
    for thin_id in (4, 2, 1):
        pool.thins[thin_id].remove()


@pytest.mark.fault_of_c("the suspend hangs")
def test_suspend_with_a_ring_of_tables(make_pool):
    """Two volumes stand on each other: the one as it is, the other by a table that is only loaded."""
    pool = make_pool(data_size=64 * MIB)
    below = pool.new_thin(2, SIZE)
    below.write(0, pattern("below", SIZE))
    above = pool.new_thin(1, SIZE, below.path)
    below.load(f"{below.table_text()} {above.path}")
    job = load.Background(above, "--bs=4k", "--time_based", "--runtime=600", rw="randread", depth=8, verify=False)
    try:
        for _ in range(10):
            completed = disk.stat(above.path, 0)
            wait_until(lambda: disk.stat(above.path, 0) > completed, "reads")
            pool.device.suspend()
            pool.device.resume()
    finally:
        job.kill()
    below.clear()
    above.remove()
    below.remove()
