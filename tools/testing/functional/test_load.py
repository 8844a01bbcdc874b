# SPDX-License-Identifier: GPL-2.0
"""The load generator of the benchmark does what its messages say."""

import errno
import os
import re
import signal
import subprocess

import pytest

from dmtest import disk
from dmtest.disk import (
    KIB,
    MIB,
)
from dmtest.dm import (
    Device,
    environment,
)
from dmtest.generator import Generator

BLOCK = 4 * KIB
SIZE = 4 * MIB
BLOCKS = SIZE // BLOCK
FILL = b"\x5a"


@pytest.fixture(autouse=True)
def generator(run, modules, kernel):
    if "dm-load" not in run["modules"]:
        pytest.skip("no dm-load.ko: see --load")
    modules.need("dm-load")
    yield
    # It takes no device of this name along, or the module would be in use.
    subprocess.run(["dmsetup", "remove_all"], env=environment(), check=True, capture_output=True)
    done = subprocess.run(["rmmod", "dm-load"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def target(make_disk):
    return make_disk(SIZE)


@pytest.fixture
def load(target):
    return Generator(target.path)


def touched(target, size=BLOCK):
    """The blocks that are not zero; of each, all is or nothing."""
    data = target.contents()
    blocks = [data[at:at + size] for at in range(0, len(data), size)]
    assert all(block in (FILL * size, bytes(size)) for block in blocks), "part of a block was written"
    return [number for number, block in enumerate(blocks) if block[0]]


@pytest.mark.parametrize("depth", [1, 32])
def test_seq_writes_one_after_the_other(target, load, depth):
    report = load.run(f"write seq {BLOCK} 100 depth={depth}")
    assert (report["ios"], report["errors"]) == (100, 0)
    assert touched(target) == list(range(100))


def test_seq_begins_again(target, load):
    report = load.run(f"write seq {BLOCK} 100 start={SIZE // 2} length={10 * BLOCK}")
    assert report["ios"] == 100
    assert touched(target) == list(range(BLOCKS // 2, BLOCKS // 2 + 10))


def test_seq_is_divided_among_threads(target, load):
    report = load.run(f"write seq {BLOCK} 90 threads=3")
    assert report["ios"] == 90
    begins = [BLOCKS * i // 3 for i in range(3)]
    assert touched(target) == [begin + i for begin in begins for i in range(30)]


@pytest.mark.smoke
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("blocks", [BLOCKS, BLOCKS - 57])
def test_shuffle_writes_each_once(target, load, threads, blocks):
    options = f"length={blocks * BLOCK} threads={threads} seed=5"
    report = load.run(f"write shuffle {BLOCK} 300 {options}")
    assert report["ios"] == 300
    some = touched(target)
    # Each at most once, so there are as many as were written.
    assert len(some) == 300
    # All parts of the device have a share: of chance, this is more than six standard deviations away.
    quarters = [sum(1 for number in some if number * 4 // blocks == i) for i in range(4)]
    assert min(quarters) > 30, quarters
    load.run(f"write shuffle {BLOCK} {blocks} {options}")
    assert touched(target) == list(range(blocks))


def test_shuffle_depends_on_the_seed(target, load):
    results = []
    for seed in (1, 1, 2):
        load.run(f"write shuffle {BLOCK} 100 seed={seed}")
        results.append(touched(target))
        load.run(f"discard seq {SIZE} 1")
        assert not touched(target)
    assert results[0] == results[1] != results[2]


def test_random_hits_anything(target, load):
    report = load.run(f"write random {BLOCK} {BLOCKS} threads=2")
    assert report["ios"] == BLOCKS
    # With replacement, the expectation is 63.2 % with a standard deviation of one.
    assert 0.57 * BLOCKS < len(touched(target)) < 0.69 * BLOCKS


@pytest.mark.parametrize("pattern", ["seq", "shuffle"])
def test_stride_leaves_gaps(target, load, pattern):
    count = SIZE // (64 * KIB)
    load.run(f"write {pattern} {BLOCK} {count} stride={64 * KIB}")
    assert touched(target) == list(range(0, BLOCKS, 16))


def test_discard_shuffle(target, load):
    load.run(f"write seq {64 * KIB} {SIZE // (64 * KIB)}")
    assert target.allocated() == SIZE
    report = load.run(f"discard shuffle {BLOCK} 250")
    assert (report["ios"], report["errors"]) == (250, 0)
    assert len(touched(target)) == BLOCKS - 250
    assert target.allocated() == SIZE - 250 * BLOCK


def test_zeroes(target, load):
    load.run(f"write seq {64 * KIB} {SIZE // (64 * KIB)}")
    report = load.run(f"zeroes seq {64 * KIB} 4 start={MIB}")
    assert (report["ios"], report["errors"]) == (4, 0)
    zeroed = range(MIB // BLOCK, (MIB + 256 * KIB) // BLOCK)
    assert touched(target) == [number for number in range(BLOCKS) if number not in zeroed]


def test_read_changes_nothing(target, load):
    load.run(f"write shuffle {BLOCK} 100")
    before = target.contents()
    before_that = [disk.stat(target.path, field) for field in range(3)]
    report = load.run(f"read random {8 * KIB} 500 threads=2")
    assert (report["ios"], report["errors"]) == (500, 0)
    done, merged, sectors = (disk.stat(target.path, field) - before_that[field] for field in range(3))
    # Those next to each other may be merged. The kernel counts without keeping interrupts away, which may cost one.
    assert 495 <= done + merged <= 500 and sectors >= 495 * 16
    assert target.contents() == before


@pytest.mark.smoke
def test_flushes(target, load):
    before = disk.stat(target.path, 15)
    report = load.run("flush - 0 10 depth=1")
    assert (report["ios"], report["errors"]) == (10, 0)
    assert disk.stat(target.path, 15) - before == 10
    # The loop device has no FUA: it gets a flush after each of these writes.
    before = disk.stat(target.path, 15)
    load.run(f"write seq {BLOCK} 65 depth=1 fua_every=16")
    assert disk.stat(target.path, 15) - before == 4


def test_latencies(load):
    report = load.run(f"read random {BLOCK} 300")
    times = [report[key] for key in ("min", "p50", "p99", "p999", "max")]
    assert 0 < times[0] and times == sorted(times)
    assert times[-1] <= report["ns"]
    report = load.run(f"read random {BLOCK} 300 latency=0")
    assert report["ns"] > 0
    assert not any(report[key] for key in ("min", "p50", "p99", "p999", "max"))


def test_errors_are_counted(target):
    error = Device.create("error", f"0 {SIZE // 512} error")
    load = Generator(error.path)
    report = load.run(f"write shuffle {BLOCK} 200")
    assert (report["ios"], report["errors"]) == (200, 200)
    load.device.remove()
    error.remove()


def test_gap(load):
    report = load.run("flush - 0 10 depth=1 gap_us=100000")
    assert report["ns"] > 10 * 100_000_000
    # It does not count as a part of what takes time.
    assert report["p50"] < 100_000_000


@pytest.fixture
def null_blk(run, modules):
    def make(*parameters):
        modules.insert(run["modules"]["null_blk"], "nr_devices=1", "gb=1", "memory_backed=0", *parameters)
        return "/dev/nullb0"

    yield make
    subprocess.run(["dmsetup", "remove_all"], env=environment(), check=True, capture_output=True)
    subprocess.run(["rmmod", "null_blk"], check=True, capture_output=True)


@pytest.mark.smoke
@pytest.mark.parametrize("mode", [0, 1])
def test_null_blk(null_blk, mode):
    load = Generator(null_blk(f"irqmode={mode}"))
    for op in ("read", "write"):
        for latency in (0, 1):
            report = load.run(f"{op} random {BLOCK} 20000 threads=2 latency={latency}")
            assert (report["ios"], report["errors"]) == (20000, 0)


@pytest.mark.smoke
def test_depth(null_blk):
    """With a device that takes 200 ms, whatever the depth."""
    load = Generator(null_blk("irqmode=2", "completion_nsec=200000000"))
    deep = load.run(f"read random {BLOCK} 64")
    assert deep["min"] >= 200_000_000
    assert deep["ns"] < 64 * 200_000_000 / 4
    flat = load.run(f"read random {BLOCK} 16 depth=1")
    assert flat["ns"] >= 16 * 200_000_000


@pytest.mark.parametrize("words", [
    "walk",
    "run",
    "run write seq 4096",
    "run copy seq 4096 1",
    "run write zigzag 4096 1",
    "run write seq 0 1",
    "run write seq 100 1",
    "run write seq x 1",
    "run write seq 4096 x",
    "run write seq 4096 1 depth=0",
    "run write seq 4096 1 speed=1",
    "run write seq 4096 1 depth",
    "run write seq 4096 1 stride=100",
    "run write seq 4096 1 latency=2",
    "run write seq 4096 1 cpu=4000",
    f"run write seq 4096 1 start={SIZE}",
    f"run write seq 4096 1 length={SIZE + 512}",
    f"run write shuffle 4096 {BLOCKS + 1}",
    "run write seq 4096 1 length=4096 threads=2",
    "run discard seq 4294967296 1",
    "run write seq 2097152 1",
])
def test_refusals(target, load, kernel, words):
    number = load.device.number
    done = load.message(words)
    assert done.returncode != 0
    assert os.strerror(errno.EINVAL) in done.stderr
    lines = [line for line in kernel.lines() if re.search(r"\bload: ", line)]
    assert len(lines) == 1 and f" {number}: " in lines[0], lines
    assert not touched(target)


def test_tables(target, load):
    number = os.stat(target.path).st_rdev
    assert load.device.table() == f"{os.major(number)}:{os.minor(number)}"
    for table in ("0 8 load", f"0 8 load {target.path} 0", "0 8 load /dev/nothing"):
        with pytest.raises(OSError):
            Device.create("other", table)


def test_takes_no_io(load):
    with pytest.raises(OSError) as error:
        disk.read(load.device.path, 0, BLOCK)
    assert error.value.errno == errno.EIO


LONG = f"read random {BLOCK} 1000000000000 threads=2"


def end(running):
    """Interrupts a run, which would take ages."""
    assert running.poll() is None
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    # The message came back, so that the signal could be delivered.
    assert running.returncode == -signal.SIGINT


def test_a_signal_ends_a_run(load):
    end(load.start(LONG))
    assert load.run(f"read seq {BLOCK} 10")["ios"] == 10


@pytest.mark.smoke
def test_removal_waits_for_a_run(load):
    running = load.start(LONG)
    removal = subprocess.Popen(["dmsetup", "remove", load.name], env=environment())
    with pytest.raises(subprocess.TimeoutExpired):
        removal.wait(1)
    end(running)
    assert removal.wait(60) == 0


def test_two_runs_at_once(target, load):
    running = load.start(LONG)
    report = load.run(f"write shuffle {BLOCK} {BLOCKS}")
    end(running)
    assert (report["ios"], report["errors"]) == (BLOCKS, 0)
    assert len(touched(target)) == BLOCKS


@pytest.mark.smoke
def test_on_a_volume(pool):
    """Blocks that are provisioned are blocks that were touched."""
    size, block = 32 * MIB, 64 * KIB
    thin = pool.new_thin(0, size)
    load = Generator(thin.path)
    try:
        report = load.run(f"write shuffle {BLOCK} 200 stride={block} threads=2 fua_every=16")
        assert (report["ios"], report["errors"]) == (200, 0)
        assert thin.mapped_blocks() == 200
        assert load.run(f"write shuffle {block} {size // block}")["errors"] == 0
        assert thin.mapped_blocks() == size // block
        assert load.run(f"read random {BLOCK} 1000")["errors"] == 0
        assert load.run(f"discard shuffle {block} 100")["errors"] == 0
        assert thin.mapped_blocks() == size // block - 100
    finally:
        load.device.remove()
