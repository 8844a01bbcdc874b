# SPDX-License-Identifier: GPL-2.0
"""Answers that only an unusual pool gives: one that failed, needs a check, or is short of metadata.

What a pool answers as a rule is in the other files; Documentation/compatibility.rst has all of it with its tests.
"""

import os
import re

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
from dmtest.dm import (
    Device,
    dmsetup,
)
from dmtest.pool import Thin

BLOCK = 64 * KIB
SIZE = 16 * MIB

MESSAGES = [
    "create_thin 7", "create_snap 8 0", "delete 1", "set_transaction_id 0 1", "reserve_metadata_snap", "release_metadata_snap",
    "nonsense", "create_thin",
]


class Under:
    """A device below a pool's metadata that can be made to fail."""

    def __init__(self, metadata, modules):
        modules.need("dm-flakey")
        self._metadata = metadata
        self._device = Device.create("under", self._table("linear"))
        self.path = self._device.path

    def _table(self, how):
        path, sectors = self._metadata.path, self._metadata.sectors
        return {
            "linear": f"0 {sectors} linear {path} 0",
            "no writes": f"0 {sectors} flakey {path} 0 0 100 1 error_writes",
            "nothing": f"0 {sectors} error",
        }[how]

    def become(self, how):
        self._device.reload(self._table(how), noflush=True)

    def remove(self):
        self._device.remove()


@pytest.fixture
def breakable(make_pool, compare, modules):
    """Runs `scenario(trace, pool, under)` on a pool with volumes 0, active, and 1, whose metadata device can be made to fail."""

    def run(scenario):
        def turn_of(trace, turn):
            pool = make_pool(start=False)
            under = Under(pool.metadata, modules)
            pool.device = Device.create(pool.name, f"0 {pool.data.sectors} thin-pool {under.path} {pool.data.path} 128 0")
            pool.new_thin(0, SIZE).write(0, pattern("zero", 8 * BLOCK), os.O_DSYNC)
            pool.create_thin(1)
            scenario(trace, pool, under)
            for name in ("extra", "none"):
                if dmsetup("info", name).returncode == 0:
                    Device(name).remove()
            pool.stop()
            under.become("linear")
            under.remove()

        compare(turn_of)

    return run


def look(trace, pool):
    """The lines of pool and volume 0, the number of events, and what messages, tables and I/O are answered."""
    trace.dmsetup("status", pool.name)
    # C counts blocks as mapped that a rollback has taken back.
    trace.note("highest", pool.thins[0].status().split()[-1])
    trace.dmsetup("table", pool.name)
    trace.note("events", pool.device.event_nr())
    for message in MESSAGES:
        trace.dmsetup("message", pool.name, "0", message)
    trace.attempt("read", lambda: pool.thins[0].read(0, BLOCK))
    trace.attempt("read nothing", lambda: pool.thins[0].read(12 * MIB, BLOCK))
    trace.attempt("write", lambda: pool.thins[0].write(0, pattern("again", BLOCK)))
    trace.attempt("provision", lambda: pool.thins[0].write(12 * MIB, pattern("new", BLOCK)))


def fail_writes_of_metadata(pool, under):
    """The commit of a new mapping fails; the metadata device is sound again afterwards."""
    under.become("no writes")
    with pytest.raises(OSError):
        pool.thins[0].write(4 * MIB, pattern("lost", BLOCK), os.O_DSYNC)
    under.become("linear")


def test_pool_that_failed(breakable):
    """Fail, as the only word; no volume is activated any more."""

    def scenario(trace, pool, under):
        under.become("nothing")
        trace.attempt("write", lambda: pool.thins[0].write(4 * MIB, pattern("lost", BLOCK), os.O_DSYNC))
        look(trace, pool)
        assert pool.device.status() == pool.thins[0].status() == "Fail"
        trace.dmsetup("create", "extra", "--table", f"0 2048 thin {pool.device.path} 1")
        trace.attempt("reload", lambda: pool.thins[0].reload(pool.thins[0].table_text()))
        pool.thins[0].resume()

    breakable(scenario)


def test_pool_that_needs_a_check(breakable):
    """Read-only until it is repaired, through reloads; neither device grows."""

    def scenario(trace, pool, under):
        fail_writes_of_metadata(pool, under)
        look(trace, pool)
        words = pool.device.status().split()
        assert words[4] == "ro" and words[7] == "needs_check"
        pool.data.grow(pool.data.size + 64 * MIB)
        table = f"0 {pool.data.sectors} thin-pool {under.path} {pool.data.path} 128 0"
        trace.attempt("larger", lambda: pool.device.reload(table))
        trace.dmsetup("status", pool.name)
        pool.device.resume()
        trace.attempt("provision", lambda: pool.thins[0].write(12 * MIB, pattern("new", BLOCK)))

    breakable(scenario)


def test_read_only_pool(make_pool, make_disk, compare):
    """As its table wants it; not for a device that has yet to be formatted."""

    def scenario(trace, turn):
        pool = make_pool()
        pool.new_thin(0, SIZE).write(0, pattern("zero", 8 * BLOCK))
        pool.create_thin(1)
        pool.features = ["read_only"]
        pool.restart()
        pool.activate(0, SIZE)
        look(trace, pool)
        trace.dmsetup("create", "extra", "--table", f"0 2048 thin {pool.device.path} 1")
        trace.dmsetup("remove", "extra")
        pool.stop()
        table = f"0 {pool.data.sectors} thin-pool {make_disk(16 * MIB).path} {pool.data.path} 128 0 1 read_only"
        trace.dmsetup("create", "empty", "--table", table)

    compare(scenario)


def test_full_pool(make_pool, compare):
    """error_if_no_space: nothing waits, and deletion brings it back."""

    def scenario(trace, turn):
        pool = make_pool(data_size=8 * MIB, low_water=10, features=["error_if_no_space"])
        pool.new_thin(0, SIZE).write(0, pattern("zero", 8 * MIB))
        pool.create_thin(1)
        trace.note("events", pool.device.event_nr())
        look(trace, pool)
        trace.dmsetup("create", "extra", "--table", f"0 2048 thin {pool.device.path} 1")
        trace.attempt("write", lambda: disk.write("/dev/mapper/extra", 0, bytes(BLOCK)))
        trace.dmsetup("remove", "extra")
        pool.thins[0].remove()
        pool.delete(0)
        trace.dmsetup("status", pool.name)
        trace.note("events", pool.device.event_nr())
        pool.stop()

    compare(scenario)


def test_status_that_cannot_be_told(breakable):
    """Error, as the only word, where the line cannot be made up; the pool goes on."""

    def scenario(trace, pool, under):
        # Started anew, the pool has not read the volume's mappings yet.
        pool.thins[0].remove()
        pool.device.remove()
        pool.device = Device.create(pool.name, f"0 {pool.data.sectors} thin-pool {under.path} {pool.data.path} 128 0")
        thin = pool.activate(0, SIZE)
        under.become("nothing")
        trace.note("volume", thin.status())
        assert thin.status() == "Error"
        under.become("linear")
        trace.note("volume afterwards", thin.status())
        trace.note("pool afterwards", pool.device.status())

    breakable(scenario)


def test_discard_support_does_not_change(make_pool, compare):
    def scenario(trace, turn):
        for first, second in (([], ["ignore_discard"]), (["ignore_discard"], [])):
            pool = make_pool(features=first)
            pool.features = second
            trace.dmsetup("reload", pool.name, "--table", pool.table())
            trace.dmsetup("status", pool.name)
            pool.features = first
            trace.dmsetup("reload", pool.name, "--table", pool.table())
            pool.device.clear()
            pool.stop()

    compare(scenario)


def test_metadata_device_that_shrinks(make_pool, make_disk, compare):
    """The pool is not resumed with it, and is none the worse for that."""

    def scenario(trace, turn):
        pool = make_pool(start=False)
        under = Device.create("under", f"0 {8 * MIB // SECTOR} linear {pool.metadata.path} 0")
        table = f"0 {pool.data.sectors} thin-pool {under.path} {pool.data.path} 128 0"
        pool.device = Device.create(pool.name, table)
        thin = pool.new_thin(0, SIZE)
        thin.write(0, pattern("zero", BLOCK), os.O_DSYNC)
        pool.device.suspend()
        under.reload(f"0 {4 * MIB // SECTOR} linear {pool.metadata.path} 0")
        pool.device.load(table)
        trace.attempt("resume", pool.device.resume)
        under.reload(f"0 {8 * MIB // SECTOR} linear {pool.metadata.path} 0")
        trace.attempt("resume", pool.device.resume)
        trace.note("content", thin.read(0, BLOCK) == pattern("zero", BLOCK))
        trace.note("status", pool.device.status())
        pool.stop()
        under.remove()

    compare(scenario)


def test_out_of_metadata_space(make_pool, compare):
    """An event at the threshold, another one as the pool becomes read-only; a larger device brings it back."""

    def scenario(trace, turn):
        pool = make_pool(metadata_size=256 * KIB, features=["skip_block_zeroing"])
        thin = pool.new_thin(0, 1 << 40)
        threshold = pool.status().metadata_low_water
        below = None
        for index in range(1000):
            try:
                # With each snapshot, the writes after it need nodes of their own.
                pool.create_snap(100 + index, 0)
                thin.write(index * 523 * BLOCK, pattern(index, 4096), os.O_DSYNC)
            except OSError as error:
                trace.note("refused", (index, error))
                break
            used, total = pool.status().metadata_blocks
            if below is None and total - used < threshold:
                below = index
                trace.note("events at the threshold", pool.device.event_nr())
        else:
            pytest.fail("the metadata do not get full")
        assert below is not None
        words = pool.device.status().split()
        trace.note("mode", words[4:])
        assert words[4] == "ro"
        trace.note("events", pool.device.event_nr())
        trace.attempt("read", lambda: thin.read(0, 4096))
        trace.attempt("create", lambda: pool.create_thin(5))
        trace.attempt("snapshot", lambda: pool.message("create_snap 6 0"))
        pool.metadata.grow(4 * MIB)
        needs_check = pool.status().needs_check
        trace.attempt("reload", lambda: pool.device.reload(pool.table()))
        trace.note("mode", pool.device.status().split()[4:])
        if not needs_check:
            trace.attempt("write", lambda: thin.write(1 << 39, pattern("more", 4096)))
        pool.stop()

    compare(scenario)


def test_throttle_parameter():
    """It is read and written while the module is loaded, as a percentage; what makes no sense is taken all the same."""
    path = "/sys/module/dm_thin_pool/parameters/snapshot_copy_throttle"
    assert os.stat(path).st_mode & 0o777 == 0o644
    with open(path) as parameter:
        usual = parameter.read()
    for value in ("1", "50", "0", "200", usual.strip()):
        with open(path, "w") as parameter:
            parameter.write(value)
        with open(path) as parameter:
            assert parameter.read().strip() == value


# Larger discards at once, and WRITE_ZEROES, are ours alone.
OWN_LIMITS = re.compile(r"(discard|write_zeroes).*max.*_bytes")


@pytest.mark.parametrize("sectors", [128, 384])
@pytest.mark.parametrize("features", [[], ["ignore_discard"], ["no_discard_passdown"], ["read_only"]], ids=" ".join)
def test_limits_of_the_queues(make_pool, compare, features, sectors):
    """All that the block layer tells of pool and volume."""

    def scenario(trace, turn):
        pool = make_pool(block_sectors=sectors)
        pool.new_thin(0, SIZE)
        pool.features = features
        pool.restart()
        thin = pool.activate(0, SIZE)
        for name, device in (("pool", pool.device), ("volume", thin)):
            folder = f"/sys/block/{os.path.basename(device.path)}/queue"
            for limit in sorted(os.listdir(folder)):
                try:
                    with open(f"{folder}/{limit}") as file:
                        value = file.read().strip()
                except OSError as error:
                    value = error.strerror
                if OWN_LIMITS.search(limit):
                    assert name == "pool" or not limit.startswith("discard") or (value == "0") == (features == ["ignore_discard"])
                else:
                    trace.note(f"{name}: {limit}", value)
        pool.stop()

    compare(scenario)


def test_features_of_the_targets(make_pool, make_disk, compare):
    """Whether they stand alone in a table, whether they may be changed for another one, and what may be loaded read-only."""

    def scenario(trace, turn):
        pool = make_pool()
        spare = make_disk(4 * MIB)
        trace.dmsetup("reload", pool.name, "--table", f"0 8192 linear {spare.path} 0")
        pool.new_thin(0, SIZE)
        trace.dmsetup("reload", pool.thins[0].name, "--table", f"0 8192 linear {spare.path} 0")
        pool.thins[0].clear()
        trace.dmsetup("reload", "--readonly", pool.name, "--table", pool.table())
        trace.dmsetup("create", "readonly", "--readonly", "--table", f"0 2048 thin {pool.device.path} 0")
        trace.attempt("write", lambda: disk.write("/dev/mapper/readonly", 0, bytes(4096)))
        trace.dmsetup("remove", "readonly")
        mixed = f"0 2048 thin {pool.device.path} 0\n2048 2048 linear {spare.path} 0"
        trace.dmsetup("create", "mixed", "--table", mixed)
        trace.attempt("write", lambda: disk.write("/dev/mapper/mixed", MIB - 4096, bytes(8192)))
        trace.dmsetup("status", "mixed")
        trace.dmsetup("remove", "mixed")
        pool.stop()

    compare(scenario)


def test_volume_of_another_pool_cannot_replace_one(make_pool, compare):
    """A table may name another pool: the device is then a volume of that one."""

    def scenario(trace, turn):
        first, second = make_pool(), make_pool()
        thin = first.new_thin(0, SIZE)
        thin.write(0, pattern("first", BLOCK))
        second.create_thin(0)
        trace.attempt("reload", lambda: thin.reload(f"0 {SIZE // SECTOR} thin {second.device.path} 0"))
        trace.note("zeroes", not any(thin.read(0, BLOCK)))
        trace.note("status", thin.status())
        again = Thin.open(first, 0, SIZE, name="again")
        trace.note("first", again.read(0, BLOCK) == pattern("first", BLOCK))
        again.remove()
        first.stop()
        second.stop()

    compare(scenario)


def io_counts(device):
    """Reads, sectors read, writes, sectors written, as /sys/block tells."""
    return tuple(disk.stat(device.path, field) for field in (0, 2, 4, 6))


def test_statistics_of_the_pool(make_pool, compare):
    """What its volumes do counts as I/O of the pool's device."""
    def scenario(trace, turn):
        pool = make_pool()
        content = Content(pool.new_thin(0, 8 * MIB))
        content.write(0, 4 * MIB)
        content.thin.flush()
        before = io_counts(pool.device)
        for offset in range(0, 4 * MIB, 64 * KIB):
            content.write(offset, 4 * KIB)
            content.thin.read(offset, 64 * KIB)
        trace.note("mapped", [after - then for after, then in zip(io_counts(pool.device), before)])
        pool.stop()

    compare(scenario)
