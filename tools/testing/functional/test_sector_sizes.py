# SPDX-License-Identifier: GPL-2.0
"""Disks whose smallest sector is 4 KiB, for metadata, data and external origins, mixed with others and not."""

import random
import subprocess

import pytest

from dmtest import disk
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

SIZES = [(512, 4096), (4096, 512), (4096, 4096)]

mixed = pytest.mark.parametrize("metadata, data", SIZES, ids=lambda size: str(size))


@pytest.fixture
def make_pool_of(make_disk, make_pool):
    """Makes pools on disks with these sectors."""
    def make(metadata, data, data_size=64 * MIB, **options):
        return make_pool(metadata=make_disk(4 * MIB, sector_size=metadata), data=make_disk(data_size, sector_size=data), **options)

    return make


def attempt_small(trace, content):
    """Half a sector of the data device, and what is not in line with sectors, in each way to write and read."""
    thin = content.thin
    for offset, length in ((0, SECTOR), (SECTOR, 4 * KIB), (4 * KIB, 4 * KIB + SECTOR), (8 * KIB, 4 * KIB)):
        where = f"{length} bytes at {offset}"
        if trace.attempt(f"write of {where}", lambda: thin.write(offset, pattern(where, length))):
            content.data[offset:offset + length] = pattern(where, length)
        trace.attempt(f"read of {where}", lambda: thin.read(offset, length))
        if trace.attempt(f"zeroes of {where}", lambda: thin.zero_out(offset, length)):
            content.data[offset:offset + length] = bytes(length)
        trace.attempt(f"discard of {where}", lambda: thin.discard(offset, length))


def change(content, choice, steps, unit):
    """Random writes, zeroes and discards in whole sectors of the data device."""
    units = content.thin.size // unit
    for _ in range(steps):
        begin = choice.randrange(units)
        length = choice.randint(1, min(40, units - begin)) * unit
        what = choice.random()
        if what < 0.7:
            content.write(begin * unit, length)
        elif what < 0.85:
            content.zero(begin * unit, length, "zero_out")
        else:
            content.discard(begin * unit, length)


@pytest.mark.smoke
@mixed
def test_sectors_are_those_of_the_data_device(make_pool_of, compare, metadata, data):
    """Nothing smaller reaches it, and nothing is mapped for what is refused."""
    def scenario(trace, turn):
        pool = make_pool_of(metadata, data)
        content = Content(pool.new_thin(0, SIZE))
        for label, device in (("pool", pool.device), ("volume", content.thin)):
            for name in ("logical_block_size", "physical_block_size", "minimum_io_size", "dma_alignment"):
                trace.note(f"{name} of the {label}", device.limit(name))
        assert content.thin.limit("logical_block_size") == data
        attempt_small(trace, content)
        content.verify()
        trace.note("mapped", content.thin.mapped())
        content.write(8 * BLOCK + 12 * KIB, 4 * KIB)
        content.verify()
        for sectors in (8193, 8191, 8184, 1, 7, 8):
            trace.attempt(f"a volume of {sectors} sectors", lambda: Device.create("odd", content.thin.table_text(sectors)).remove())
        trace.attempt("odd start of a second target", lambda: Device.create(
            "odd", "\n".join((content.thin.table_text(9), f"9 {SIZE // SECTOR} error"))).remove())
        # Whatever was refused has let go of the volume.
        content.thin.remove()
        pool.delete(0)
        trace.pool(pool)
        pool.stop()

    compare(scenario)


@mixed
@pytest.mark.parametrize("block_sectors", [128, 384])
def test_content(make_pool_of, compare, metadata, data, block_sectors):
    """Random changes of volumes and their snapshots, before and after a restart."""
    def scenario(trace, turn):
        choice = random.Random(f"{metadata} {data}")
        pool = make_pool_of(metadata, data, block_sectors=block_sectors)
        contents = {0: Content(pool.new_thin(0, SIZE))}
        for number in range(1, 4):
            origin = choice.choice(sorted(contents))
            change(contents[origin], choice, 25, data)
            pool.create_snap(number, origin)
            contents[number] = contents[origin].snapshot(pool.activate(number, SIZE))
            # The first writes to what is shared: a sector each.
            for block in choice.sample(range(SIZE // pool.block_size), 5):
                contents[number].write(block * pool.block_size + choice.randrange(8) * data, data)
        for content in contents.values():
            content.verify()
        # What a write of zeroes leaves mapped is another matter.
        trace.note("volumes that hold what was written", len(contents))
        pool.restart()
        for number, content in contents.items():
            content = content.on(pool.activate(number, SIZE))
            content.verify()
            change(content, choice, 10, data)
            content.verify()
        pool.stop()

    compare(scenario)


@pytest.mark.smoke
@pytest.mark.parametrize("kind, options", [("ext4", ["-q", "-F"]), ("xfs", ["-q", "-f"])])
def test_file_system(make_pool_of, mounted, kind, options):
    pool = make_pool_of(4096, 4096, data_size=512 * MIB)
    thin = pool.new_thin(0, 400 * MIB)
    subprocess.run([f"mkfs.{kind}", *options, thin.path], check=True, capture_output=True)
    folder = mounted(thin.path)
    for number in range(40):
        (folder / f"file{number}").write_bytes(pattern(number, 10_000 + number * 3000))
    subprocess.run(["sync", "-f", str(folder)], check=True)
    snap = pool.new_snap(1, 0, 400 * MIB)
    for number in range(0, 40, 2):
        (folder / f"file{number}").unlink()
    subprocess.run(["fstrim", str(folder)], check=True)
    copy = mounted(snap.path, "nouuid" if kind == "xfs" else "defaults")
    for number in range(40):
        assert (copy / f"file{number}").read_bytes() == pattern(number, 10_000 + number * 3000)
    for number in range(1, 40, 2):
        assert (folder / f"file{number}").read_bytes() == pattern(number, 10_000 + number * 3000)


# The origin's size in sectors of 512 bytes: in the middle of a block, of a sector of 4 KiB, and at the end of each.
ORIGIN_SIZES = [5003, 5000, 4992, 1, 9001]


@pytest.mark.parametrize("sectors", ORIGIN_SIZES)
@pytest.mark.parametrize("data", [4096, 512])
def test_external_origin(make_pool_of, make_disk, compare, data, sectors):
    """Of the other sector size than the data device.

    Where it ends within a sector of that, the first write to the block fails, unless it covers the block: what is copied is not
    whole sectors. No other block suffers.
    """
    def scenario(trace, turn):
        other = 512 if data == 4096 else 4096
        size = sectors * SECTOR // other * other
        if not size:
            return trace.note("no such disk", size)
        origin = make_disk(size, sector_size=other)
        holds = pattern(("origin", sectors), size)
        disk.write(origin.path, 0, holds)
        pool = make_pool_of(512, data)
        content = Layered(pool.new_thin(0, SIZE, origin.path), holds)
        content.verify()
        last = size // BLOCK
        for block in (0, last - 1, last, last + 1):
            offset = block * BLOCK + 8 * KIB
            if not 0 <= offset < SIZE:
                continue
            if not trace.attempt(f"block {block - last} from the last", lambda: content.write(offset, 4 * KIB)):
                assert block == last and size % data, "a block failed that is copied in whole sectors"
            content.verify()
        if last * BLOCK < SIZE:
            content.write(last * BLOCK, BLOCK)
        content.write(40 * BLOCK, BLOCK)
        content.verify()
        pool.create_snap(1, 0)
        snap = content.snapshot(pool.activate(1, SIZE, origin.path), holds)
        content.write(41 * BLOCK, 4 * KIB)
        content.write(40 * BLOCK + 16 * KIB, 4 * KIB)
        content.verify()
        snap.verify()
        trace.note("mapped", content.thin.mapped())
        pool.stop()
        assert disk.read(origin.path, 0, size) == holds, "something was written to an external origin"

    compare(scenario)


@pytest.mark.smoke
@pytest.mark.parametrize("large", ["metadata", "data", "both"])
def test_sectors_larger_than_pages(make_pool, make_disk, compare, large):
    """Those that are larger than a metadata block, too, where the kernel has such disks."""
    try:
        make_disk(MIB, sector_size=8 * KIB)
    except OSError:
        pytest.skip("the kernel has no such disks")

    def scenario(trace, turn):
        def size_of(what):
            return 8 * KIB if large in (what, "both") else SECTOR

        pool = make_pool(metadata=make_disk(4 * MIB, sector_size=size_of("metadata")), data=make_disk(64 * MIB, sector_size=size_of("data")), start=False)
        if not trace.attempt("start", pool.start):
            # There is nothing on it that could be checked.
            pool.metadata = make_disk(4 * MIB)
            return pool.start().stop()
        content = Content(pool.new_thin(0, SIZE))
        content.write(0, SIZE)
        trace.attempt("half a sector", lambda: content.thin.write(0, pattern("x", 4 * KIB)))
        content.verify()
        pool.stop()

    compare(scenario)
