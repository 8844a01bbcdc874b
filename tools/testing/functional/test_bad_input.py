# SPDX-License-Identifier: GPL-2.0
"""Wrong tables, messages and metadata.

Each is given to the C module and to ours; errno, dmsetup's output and the reason in the kernel's
log must be the same, and a pool that runs meanwhile must not change.
"""

import errno
import os

import pytest

from dmtest.content import Content
from dmtest.disk import (
    GIB,
    KIB,
    MIB,
    SECTOR,
)
from dmtest.dm import (
    Device,
    DmError,
)
from dmtest.pool import Thin
from dmtest.superblock import (
    BLOCK_SIZE,
    FIELDS,
    Superblock,
)
from dmtest.trace import (
    Trace,
    Unchanged,
)

SIZE = 1 * MIB
HUGE = "99999999999999999999999"


@pytest.fixture
def bench(make_pool, make_disk, compare):
    """Runs a scenario `(trace, pool, spare)` on a pool with a volume, a snapshot and two spare disks."""

    def run(scenario):
        def turn(trace, number):
            pool = make_pool(metadata_size=4 * MIB)
            spare = [make_disk(4 * MIB, "spare") for _ in range(2)]
            content = Content(pool.new_thin(0, SIZE))
            content.scatter("content", 10)
            pool.create_snap(1, 0)
            pool.create_thin(5)
            pool.message("set_transaction_id 0 3")
            with Unchanged(pool):
                scenario(trace, pool, spare)
            content.verify()
            pool.stop()
            pool.check()

        compare(turn)

    return run


def create(trace, table, *options):
    """Tries to make a device "bad" with dmsetup, and removes it if that was accepted."""
    if trace.dmsetup("create", "bad", *options, "--table", table):
        trace.dmsetup("status", "bad")
        trace.dmsetup("table", "bad")
        trace.dmsetup("remove", "bad")


# {m} and {d} are spare disks, {pm} and {pd} those of the running pool.
POOL_TABLES = {
    "argument count": ["", "{m}", "{m} {d}", "{m} {d} 128"],
    "block size out of range": [
        f"{{m}} {{d}} {size} 0" for size in (0, 1, 64, 127, 2097153, 2097280, -128, 4294967424, 18446744073709551744, HUGE)
    ],
    "block size no multiple": [f"{{m}} {{d}} {size} 0" for size in (128 + 64, 129, 2097151)],
    "block size no number": [f"{{m}} {{d}} {size} 0" for size in ("large", "128k", "0x80", "128.0", "12-8", "''")],
    "block size in odd spelling": [f"{{m}} {{d}} {size} 0" for size in ("+128", "00128")],
    "low water mark": [
        f"{{m}} {{d}} 128 {mark}" for mark in ("low", -1, 18446744073709551615, 18446744073709551616, HUGE, "0x1", "+7")
    ],
    "equal devices": ["{m} {m} 128 0", "{d} {d} 128 0"],
    "no such device": ["/dev/nowhere {d} 128 0", "{m} /dev/nowhere 128 0", "249:1000 {d} 128 0", "{m} 1:2:3 128 0"],
    "no block device": ["/dev/null {d} 128 0", "{m} /dev/null 128 0", "{m} /dev 128 0", "/etc/passwd {d} 128 0"],
    "feature count": [
        "{m} {d} 128 0 many", "{m} {d} 128 0 -1", "{m} {d} 128 0 5 a b c d e", "{m} {d} 128 0 " + HUGE, "{m} {d} 128 0 1",
        "{m} {d} 128 0 2 skip_block_zeroing", "{m} {d} 128 0 1 skip_block_zeroing read_only",
        "{m} {d} 128 0 0 skip_block_zeroing", "{m} {d}  128  0  1  skip_block_zeroing",
    ],
    "unknown feature": [
        "{m} {d} 128 0 1 turbo", "{m} {d} 128 0 2 skip_block_zeroing turbo", "{m} {d} 128 0 1 skip_block_zeroingg",
    ],
    "disks of a running pool": ["{pm} {d} 128 0", "{pm} {pd} 128 0", "{m} {pm} 128 0"],
}

# Whole tables, for what is wrong outside of the arguments.
PLACES = [
    "0 9999999 thin-pool {m} {d} 128 0",
    "0 100 thin-pool {m} {d} 128 0",
    "0 4096 thin-pool {m} {d} 128 0\n4096 4096 thin-pool {m} {d} 128 0",
    "128 4096 thin-pool {m} {d} 128 0",
]


@pytest.mark.parametrize("tables", [*POOL_TABLES.values(), PLACES], ids=[*POOL_TABLES, "place"])
def test_pool_table(bench, tables):
    def scenario(trace, pool, spare):
        for table in tables:
            whole = table if table[:1].isdigit() and " thin-pool " in table else f"0 8192 thin-pool {table}"
            spare[0].overwrite(0, bytes(BLOCK_SIZE))
            create(trace, whole.format(m=spare[0].path, d=spare[1].path, pm=pool.metadata.path, pd=pool.data.path))
            trace.note("formatted", any(spare[0].contents()[:BLOCK_SIZE]))

    bench(scenario)


@pytest.mark.fault_of_c("the data go over the metadata")
def test_one_disk_under_two_names(make_disk):
    """The C module compares the names, and puts the data over the metadata."""
    disk = make_disk(4 * MIB)
    before = disk.contents()
    for name in (f"/{disk.path}", "{}:{}".format(*divmod(os.stat(disk.path).st_rdev, 256))):
        with pytest.raises(DmError) as refused:
            Device.create("bad", f"0 8192 thin-pool {disk.path} {name} 128 0")
        assert refused.value.errno == errno.EINVAL
    assert disk.contents() == before


@pytest.mark.parametrize("kib", [0.5, 2, 4, 8, 12, 16, 24, 32, 64, 2047.5])
def test_small_metadata_device(make_disk, compare, kib):
    def scenario(trace, turn):
        metadata, data = make_disk(int(kib * KIB)), make_disk(16 * MIB)
        create(trace, f"0 8192 thin-pool {metadata.path} {data.path} 128 0")

    compare(scenario)


def test_pool_that_must_not_be_written(bench):
    """A table that is loaded read-only."""
    def scenario(trace, pool, spare):
        create(trace, f"0 8192 thin-pool {spare[0].path} {spare[1].path} 128 0", "--readonly")

    bench(scenario)


def set_field(field, value):
    return lambda block, data: bytes(Superblock(block).set(field, value).seal().block) + data


# How the metadata disk's contents are spoiled: (first block, the rest) -> contents.
REFUSED = {
    "garbage": lambda block, rest: bytes(range(256)) * 16 + rest,
    "ones": lambda block, rest: b"\xff" * BLOCK_SIZE + rest,
    "last byte": lambda block, rest: block[:4095] + bytes([block[4095] ^ 1]) + rest,
    "checksum": lambda block, rest: bytes([block[0] ^ 1]) + block[1:] + rest,
    "one bit": lambda block, rest: block[:50] + bytes([block[50] ^ 4]) + block[51:] + rest,
    "second half is zero": lambda block, rest: block[:340] + bytes(BLOCK_SIZE - 340) + rest,
    "truncated to the superblock": lambda block, rest: block,
    "magic": set_field("magic", 27022011),
    "block number": set_field("blocknr", 1),
    "incompatible feature": set_field("incompat_flags", 1),
    "data block size 0": set_field("data_block_size", 0),
    "other data block size": set_field("data_block_size", 256),
}

# What the C module opens without a look, to fail later or never. Ours may be stricter.
OVERLOOKED = {
    "truncated device": lambda block, rest: (block + rest)[:1 * MIB],
    "version 0": set_field("version", 0),
    "version 3": set_field("version", 3),
    "incompatible read-only feature": set_field("compat_ro_flags", 1),
    "other metadata block size": set_field("metadata_block_size", 16),
    "size of the data space map": set_field("data_space_map_root", 1 << 60),
    "mapping root beyond the end": set_field("data_mapping_root", 1 << 40),
    "details root beyond the end": set_field("device_details_root", 1 << 40),
    "mapping root is the superblock": set_field("data_mapping_root", 0),
}

# Nothing is wrong with these.
ACCEPTED = {
    "nothing": lambda block, rest: block + rest,
    "version 1": set_field("version", 1),
    "compatible feature": set_field("compat_flags", 1),
}


@pytest.fixture(scope="module")
def image():
    """Keeps the contents of a sound metadata disk for all tests of this file."""
    return {}


@pytest.fixture
def sound(image, make_pool, modules, both):
    """The contents of the metadata disk of a pool with a volume and a snapshot of it, as C wrote it."""
    if "bytes" not in image:
        modules.load(both[0])
        pool = make_pool(metadata_size=4 * MIB)
        Content(pool.new_thin(0, SIZE)).scatter("sound", 10)
        pool.create_snap(1, 0)
        pool.stop()
        image["bytes"] = pool.metadata.contents()
    assert Superblock(image["bytes"]).sealed()
    return image["bytes"]


def open_spoiled(trace, make_disk, contents):
    """Opens a pool on the contents and a volume of it; returns whether the pool was accepted."""
    metadata = make_disk(len(contents))
    metadata.overwrite(0, contents)
    data = make_disk(512 * MIB)
    table = f"0 {data.sectors} thin-pool {metadata.path} {data.path} 128 0"
    accepted = trace.dmsetup("create", "bad", "--table", table)
    if accepted:
        trace.dmsetup("create", "thin", "--table", f"0 {SIZE // SECTOR} thin /dev/mapper/bad 0")
        trace.dmsetup("status", "--noflush", "bad")
        trace.dmsetup("remove", "thin")
        trace.dmsetup("remove", "bad")
    else:
        assert metadata.contents() == contents, "a pool that was refused was written to"
    return accepted


@pytest.fixture
def spoiled(make_disk, modules, both, kernel):
    """Opens contents under both implementations; gives whether each accepted them, and what it noted."""
    def run(contents):
        outcomes = []
        for implementation in both:
            modules.load(implementation)
            trace = Trace(kernel)
            outcomes.append((open_spoiled(trace, make_disk, contents), trace.entries))
        return outcomes

    return run


@pytest.mark.parametrize("spoil", REFUSED.values(), ids=REFUSED)
def test_superblock_that_is_refused(spoiled, sound, spoil):
    (c_accepts, c_notes), (accepts, notes) = spoiled(spoil(sound[:BLOCK_SIZE], sound[BLOCK_SIZE:]))
    assert not c_accepts
    assert not accepts
    assert notes == c_notes


@pytest.mark.parametrize("spoil", OVERLOOKED.values(), ids=OVERLOOKED)
def test_superblock_that_c_overlooks(spoiled, sound, spoil):
    (c_accepts, c_notes), (accepts, notes) = spoiled(spoil(sound[:BLOCK_SIZE], sound[BLOCK_SIZE:]))
    if accepts or not c_accepts:
        assert notes == c_notes


@pytest.mark.parametrize("spoil", ACCEPTED.values(), ids=ACCEPTED)
def test_superblock_that_is_accepted(spoiled, sound, spoil):
    (c_accepts, c_notes), (accepts, notes) = spoiled(spoil(sound[:BLOCK_SIZE], sound[BLOCK_SIZE:]))
    assert c_accepts
    assert accepts
    assert notes == c_notes


@pytest.mark.parametrize("root", ["data_mapping_root", "device_details_root"])
@pytest.mark.parametrize("how", ["flipped bit", "zeroes", "another block"])
def test_root_of_a_tree(spoiled, sound, root, how):
    offset = Superblock(sound).get(root) * BLOCK_SIZE
    block = bytearray(sound[offset:offset + BLOCK_SIZE])
    if how == "flipped bit":
        block[100] ^= 0x10
    elif how == "zeroes":
        block[:] = bytes(BLOCK_SIZE)
    else:
        block[:] = sound[:BLOCK_SIZE]
    contents = sound[:offset] + bytes(block) + sound[offset + BLOCK_SIZE:]
    (c_accepts, c_notes), (accepts, notes) = spoiled(contents)
    if accepts or not c_accepts:
        assert notes == c_notes


def test_all_fields_are_where_the_tests_think(sound):
    block = Superblock(sound)
    assert block.get("magic") == 27022010
    assert block.get("version") == 2
    assert block.get("data_block_size") == 128
    assert block.get("metadata_block_size") == BLOCK_SIZE // SECTOR
    assert block.get("metadata_nr_blocks") == len(sound) // BLOCK_SIZE
    assert max(offset for offset, _ in FIELDS.values()) < 400


def test_other_block_size(make_disk, compare, sound):
    """A table with another block size than the pool was made with."""
    def scenario(trace, turn):
        metadata, data = make_disk(len(sound)), make_disk(2 * GIB)
        metadata.overwrite(0, sound)
        for rest in ("256 0", "384 0", "2097152 0", "256 0 1 skip_block_zeroing"):
            create(trace, f"0 {data.sectors} thin-pool {metadata.path} {data.path} {rest}")
            trace.note("disk unchanged", metadata.contents() == sound)

    compare(scenario)


# Tables for the running pool itself: {d} is a spare disk.
RELOADS = {
    "other block size": "0 {n} thin-pool {pm} {pd} 256 0",
    "other metadata": "0 {n} thin-pool {m} {pd} 128 0",
    "other data": "0 8192 thin-pool {pm} {d} 128 0",
    "disks swapped": "0 {n} thin-pool {pd} {pm} 128 0",
    "wrong count": "0 {n} thin-pool {pm} {pd} 128",
    "unknown feature": "0 {n} thin-pool {pm} {pd} 128 0 1 turbo",
    "linear": "0 8192 linear {d} 0",
    "thin": "0 8192 thin {pool} 0",
}


def test_reload_of_a_running_pool(bench):
    def scenario(trace, pool, spare):
        for name, table in RELOADS.items():
            trace.note("reload", name)
            text = table.format(m=spare[0].path, d=spare[1].path, pm=pool.metadata.path, pd=pool.data.path,
                                pool=pool.device.path, n=pool.data.sectors)
            if trace.dmsetup("load", pool.name, "--table", text):
                trace.dmsetup("clear", pool.name)
            trace.dmsetup("status", pool.name)

    bench(scenario)


# {p} is the pool, {t} an active thin volume of it, {l} a linear device, {m} a disk.
THIN_TABLES = {
    "argument count": ["", "{p}", "{p} 5 {m} more"],
    "unknown id": ["{p} 77", "{p} 16777215"],
    "id out of range": [f"{{p}} {number}" for number in (16777216, 4294967296, 18446744073709551616, HUGE, -1)],
    "id no number": [f"{{p}} {word}" for word in ("zero", "0x0", "5.5", "5x", "''")],
    "id in odd spelling": ["{p} +5", "{p} 0005"],
    "pool is none": ["/dev/nowhere 0", "{m} 0", "{t} 0", "{l} 0", "/dev/null 0", "249:1000 0"],
}


@pytest.mark.parametrize("tables", THIN_TABLES.values(), ids=THIN_TABLES)
def test_thin_table(bench, tables):
    def scenario(trace, pool, spare):
        linear = Device.create("linear", f"0 8192 linear {spare[1].path} 0")
        for table in tables:
            create(trace, "0 8192 thin " + table.format(
                p=pool.device.path, t=pool.thins[0].path, l=linear.path, m=spare[0].path,
            ))
        linear.remove()

    bench(scenario)


# {n} is the pool, too, by its number.
ORIGIN_TABLES = {
    "is none": [f"{{p}} 5 {origin}" for origin in ("/dev/nowhere", "/dev/null", "249:1000", "8x", "''")],
    "is the pool": ["{p} 5 {p}", "/dev/nowhere 5 /dev/nowhere", "{n} 5 {n}"],
    "is another volume": ["{p} 5 {t}"],
    "is in order, but something else is not": [
        "/dev/nowhere 5 {m}", "{m} 5 {l}", "{l} 5 {m}", "{p} zero {m}", "{p} 77 {m}", "{p} 16777216 {m}", "{p} 5 {m} {l}",
    ],
    "is not in order, nor is something else": ["/dev/nowhere 5 /dev/null", "{p} zero /dev/nowhere", "{p} 77 {p}"],
    "is in order": ["{p} 5 {m}", "{p} 5 {l}", "{p} 0 {m}"],
}


@pytest.mark.parametrize("tables", ORIGIN_TABLES.values(), ids=ORIGIN_TABLES)
def test_external_origin(bench, tables):
    def scenario(trace, pool, spare):
        linear = Device.create("linear", f"0 8192 linear {spare[1].path} 0")
        for table in tables:
            create(trace, "0 8192 thin " + table.format(
                p=pool.device.path, n=pool.device.number, t=pool.thins[0].path, l=linear.path, m=spare[0].path,
            ))
        linear.remove()

    bench(scenario)


def test_volume_that_is_its_own_origin(bench):
    def scenario(trace, pool, spare):
        thin = pool.thins[0]
        table = f"0 {thin.size // SECTOR} thin {pool.device.path} 0 {thin.path}"
        assert not trace.dmsetup("load", thin.name, "--table", table)

    bench(scenario)


def test_thin_at_other_places_of_a_table(bench):
    def scenario(trace, pool, spare):
        create(trace, f"0 8192 thin {pool.device.path} 5\n8192 8192 thin {pool.device.path} 5")
        create(trace, f"128 8192 thin {pool.device.path} 5")

    bench(scenario)


def test_thin_table_on_a_suspended_pool(bench):
    def scenario(trace, pool, spare):
        pool.device.suspend()
        create(trace, f"0 8192 thin {pool.device.path} 5")
        create(trace, f"0 8192 thin {pool.device.path} 77")
        pool.device.resume()

    bench(scenario)


MESSAGES = {
    "unknown": ["nonsense", "create", "create_thick 7", "status", "release", "delete_thin 1", "@cancel_deferred_remove x"],
    "empty": ["", " ", "\\"],
    "create_thin: counts": ["create_thin", "create_thin 7 8", "create_thin 7 8 9"],
    "create_thin: ids": [
        "create_thin word", "create_thin -1", "create_thin 16777216", "create_thin 16777217", "create_thin 4294967296",
        "create_thin 18446744073709551615", "create_thin 18446744073709551616", f"create_thin {HUGE}", "create_thin 0x7",
        "create_thin 7.0", "create_thin 7x", "create_thin ++7",
    ],
    "create_thin: duplicates": ["create_thin 0", "create_thin 1", "create_thin 5", "create_thin 05", "CREATE_THIN 0", "Create_Thin 0"],
    "create_snap: counts": ["create_snap", "create_snap 7", "create_snap 7 0 0"],
    "create_snap: ids": [
        "create_snap word 0", "create_snap 7 word", "create_snap -1 0", "create_snap 7 -1", "create_snap 16777216 0",
        "create_snap 7 16777216", "create_snap 4294967296 0", f"create_snap {HUGE} 0", f"create_snap 7 {HUGE}",
    ],
    "create_snap: duplicates": ["create_snap 0 0", "create_snap 1 0", "create_snap 0 1", "create_snap 5 0", "create_snap 0 77"],
    "create_snap: unknown origin": ["create_snap 7 77", "create_snap 7 16777215", "create_snap 7 7"],
    "delete: counts": ["delete", "delete 5 1"],
    "delete: ids": ["delete word", "delete -1", "delete 16777216", "delete 4294967297", f"delete {HUGE}", "delete 0x5"],
    "delete: unknown": ["delete 77", "delete 16777215"],
    "delete: active": ["delete 0"],
    "set_transaction_id: counts": ["set_transaction_id", "set_transaction_id 3", "set_transaction_id 3 4 5"],
    "set_transaction_id: ids": [
        "set_transaction_id word 4", "set_transaction_id 3 word", "set_transaction_id -3 4", "set_transaction_id 3 -4",
        "set_transaction_id 3 18446744073709551616", f"set_transaction_id {HUGE} 4", "set_transaction_id 0x3 4",
    ],
    "set_transaction_id: wrong": ["set_transaction_id 0 4", "set_transaction_id 4 3", "set_transaction_id 18446744073709551615 4"],
    "metadata snapshot: counts": ["reserve_metadata_snap 1", "release_metadata_snap 1", "reserve_metadata_snap now please"],
    "metadata snapshot: nothing to release": ["release_metadata_snap"],
    "long": ["create_thin " + "7" * 3000, "x" * 3000, " ".join(["create_thin"] + ["7"] * 500)],
}


@pytest.mark.parametrize("messages", MESSAGES.values(), ids=MESSAGES)
def test_message(bench, messages):
    def scenario(trace, pool, spare):
        for message in messages:
            trace.attempt(message[:100], lambda: pool.message(message))
            trace.dmsetup("message", pool.name, "0", message)

    bench(scenario)


def test_second_reserve(make_pool, compare):
    def scenario(trace, turn):
        pool = make_pool()
        Content(pool.new_thin(0, SIZE)).scatter("content", 10)
        pool.reserve_metadata_snap()
        with Unchanged(pool):
            trace.dmsetup("message", pool.name, "0", "reserve_metadata_snap")
            trace.attempt("reserve", lambda: pool.message("reserve_metadata_snap"))
        pool.release_metadata_snap()
        with Unchanged(pool):
            trace.dmsetup("message", pool.name, "0", "release_metadata_snap")
            trace.attempt("release", pool.release_metadata_snap)
        pool.stop()

    compare(scenario)


def test_message_to_other_places(bench):
    """To a volume, to a sector behind the pool's end, and to a suspended pool."""
    def scenario(trace, pool, spare):
        trace.dmsetup("message", pool.thins[0].name, "0", "create_thin 9")
        trace.dmsetup("message", pool.name, str(pool.data.sectors), "create_thin 9")
        trace.dmsetup("message", "nobody", "0", "create_thin 9")

    bench(scenario)


def test_message_to_a_suspended_pool(make_pool, compare):
    def scenario(trace, turn):
        pool = make_pool()
        pool.new_thin(0, SIZE)
        pool.device.suspend()
        for message in ("create_thin 1", "create_thin 0", "create_snap 2 0", "delete 1", "reserve_metadata_snap",
                        "release_metadata_snap", "set_transaction_id 0 1", "nonsense"):
            trace.attempt(message, lambda: pool.message(message))
        pool.device.resume()
        trace.pool(pool)
        pool.stop()

    compare(scenario)


def test_deletion_of_active_volumes(make_pool, compare):
    """Active, active twice, active only in a table that is not in use yet, and at last inactive."""
    def scenario(trace, turn):
        pool = make_pool()
        content = Content(pool.new_thin(0, SIZE))
        content.scatter("content", 5)
        twin = Thin.open(pool, 0, SIZE, name="twin")
        trace.attempt("active twice", lambda: pool.delete(0))
        twin.remove()
        trace.attempt("active", lambda: pool.delete(0))
        content.thin.suspend()
        trace.attempt("suspended", lambda: pool.delete(0))
        content.thin.resume()
        content.verify()
        pool.create_thin(1)
        content.thin.load(f"0 {SIZE // SECTOR} thin {pool.device.path} 1")
        trace.attempt("inactive table", lambda: pool.delete(1))
        content.thin.clear()
        trace.attempt("cleared table", lambda: pool.delete(1))
        content.thin.remove()
        trace.attempt("inactive", lambda: pool.delete(0))
        trace.attempt("gone", lambda: pool.delete(0))
        trace.pool(pool)
        pool.stop()

    compare(scenario)


def test_resume_with_a_pool_that_is_too_small(make_pool, compare):
    def scenario(trace, turn):
        pool = make_pool(data_size=32 * MIB)
        content = Content(pool.new_thin(0, SIZE))
        content.scatter("content", 10)
        pool.device.load(pool.table(8 * MIB // SECTOR))
        trace.attempt("resume", pool.device.resume)
        trace.attempt("status", pool.device.status)
        pool.device.reload(pool.table())
        content.verify()
        trace.pool(pool)
        pool.stop()

    compare(scenario)


def test_size_of_a_volume(bench):
    """No size of a volume is wrong for the target, however little space there is."""
    def scenario(trace, pool, spare):
        for sectors in (0, 1, 1 << 40, (1 << 63) - 8):
            create(trace, f"0 {sectors} thin {pool.device.path} 5")

    bench(scenario)


def test_io_to_the_end_of_a_large_volume(make_pool, compare):
    """Reads and writes where block numbers are at their largest."""
    def scenario(trace, turn):
        pool = make_pool()
        size = 1 << 62
        thin = pool.new_thin(0, size)
        data = os.urandom(4096)
        trace.attempt("write", lambda: thin.write(size - 4096, data))
        trace.note("read back", thin.read(size - 4096, 4096) == data)
        trace.note("zeroes before", not any(thin.read(size - 64 * KIB, 4096)))
        trace.pool(pool)
        pool.stop()

    compare(scenario)


def test_errors_are_errors(pool):
    """The comparisons above would be worthless if the C module's refusals did not reach them."""
    with pytest.raises(DmError):
        pool.message("create_thin 16777216")
    with pytest.raises(DmError):
        pool.message("nonsense")
