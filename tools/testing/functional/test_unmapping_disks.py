# SPDX-License-Identifier: GPL-2.0
"""Pools on disks whose write-zeroes unmap, as those of many SSDs and LUNs do."""

import pytest

from dmtest.content import Content
from dmtest.disk import (
    KIB,
    MIB,
    fallocate,
    opened,
)
from dmtest.nvme import NvmeDisk
from dmtest.scsi import ScsiDisk

BLOCK = 64 * KIB
SIZE = 8 * MIB

FALLOC_FL_WRITE_ZEROES = 0x80

pytestmark = pytest.mark.smoke


@pytest.fixture
def make_pool_on(modules, make_pool):
    """Makes pools whose data are on the machine's only disk of a kind, "scsi", "nvme" or, one whose zeroes take up space,
    "writing scsi". Its last pool is stopped then.
    """
    made = []

    def let_go():
        while made:
            pool = made.pop()
            pool.stop()
            pool.data.close()

    def make(kind, before=lambda one: None, **options):
        let_go()
        data = NvmeDisk(modules) if kind == "nvme" else ScsiDisk(modules, 64 * MIB, unmaps=kind == "scsi")
        try:
            pool = make_pool(metadata_size=4 * MIB, data=data, start=False, **options)
        except BaseException:
            data.close()
            raise
        made.append(pool)
        before(data)
        return pool.start()

    yield make
    let_go()


@pytest.fixture(params=["scsi", "nvme"])
def kind(request):
    if request.param == "nvme" and not NvmeDisk.is_there():
        pytest.skip("no such disk")
    return request.param


def unmap_limits(device):
    return device.limit("write_zeroes_unmap_max_hw_bytes"), device.limit("write_zeroes_unmap_max_bytes")


def allocate_zeroes(path, offset, length):
    """Asks for zeroes that take up space, which is for disks whose unmapped zeroes do."""
    with opened(path) as descriptor:
        fallocate(descriptor, FALLOC_FL_WRITE_ZEROES, offset, length)


@pytest.mark.parametrize("features", [[], ["no_discard_passdown"], ["ignore_discard"]])
def test_zeroes_that_unmap(make_pool_on, compare, kind, features):
    """Volumes can be activated, and promise nothing that they do not keep: space that is zeroed is not theirs for good."""
    def scenario(trace, turn):
        pool = make_pool_on(kind, features=features)
        if isinstance(pool.data, NvmeDisk) and pool.data.limit("write_zeroes_unmap_max_hw_bytes") == 0:
            pytest.skip("this QEMU's disk has nothing to inherit")
        assert pool.data.limit("write_zeroes_unmap_max_hw_bytes") > 0, "the disk has nothing to inherit"
        content = Content(pool.new_thin(0, SIZE))
        for label, device in (("pool", pool.device), ("volume", content.thin)):
            trace.note(f"unmapping zeroes of the {label}", unmap_limits(device))
        content.write(0, SIZE)
        content.zero(2 * BLOCK, 3 * BLOCK, "zero_out")
        trace.attempt("zeroes that take up space", lambda: allocate_zeroes(content.thin.path, 0, BLOCK))
        content.verify()
        content.thin.reload(content.thin.table_text())
        pool.device.reload(pool.table())
        pool.create_snap(1, 0)
        snap = content.snapshot(pool.activate(1, SIZE))
        content.zero(6 * BLOCK, 4 * KIB, "zero_out")
        content.scatter("after", 20)
        content.verify()
        snap.verify()
        pool.stop()

    compare(scenario)


@pytest.mark.named_addition
def test_holes_are_not_mapped(make_pool_on, kind):
    content = Content(make_pool_on(kind).new_thin(0, SIZE))
    assert content.thin.limit("write_zeroes_max_bytes") > 0
    content.write(0, SIZE)
    content.zero(BLOCK, 10 * BLOCK, "punch_hole")
    assert content.thin.mapped_blocks() == 118
    content.verify()


def test_disk_that_loses_its_write_zeroes(make_pool_on, compare):
    """Before the pool is there, or later: the kernel clears one of the two limits only."""
    def lose(one):
        one.lose_write_zeroes()
        assert one.limit("write_zeroes_max_bytes") == 0
        assert one.limit("write_zeroes_unmap_max_hw_bytes") > 0

    def scenario(trace, turn):
        pool = make_pool_on("scsi", before=lose)
        content = Content(pool.new_thin(0, SIZE))
        trace.note("write-zeroes of the volume", content.thin.limit("write_zeroes_max_bytes"))
        content.scatter("without", 20)
        content.zero(BLOCK, 2 * BLOCK, "zero_out")
        content.verify()
        pool.stop()

        pool = make_pool_on("scsi")
        content = Content(pool.new_thin(0, SIZE))
        content.scatter("before", 20)
        lose(pool.data)
        content.scatter("after", 20)
        content.zero(BLOCK, 2 * BLOCK, "zero_out")
        for device, table in ((content.thin, content.thin.table_text()), (pool.device, pool.table())):
            trace.attempt("reload", lambda: device.reload(table))
        trace.attempt("another volume", lambda: pool.new_thin(1, SIZE))
        content.verify()
        pool.stop()

    compare(scenario)


@pytest.mark.fault_of_c("zeroing fails where write-zeroes turn out to be missing")
def test_disk_that_takes_its_promise_back(make_pool_on):
    """The first zeroing of a new block finds out that there are no write-zeroes, and that they are not promised any more."""
    pool = make_pool_on("writing scsi", lambda one: one.refuse_write_zeroes())
    assert pool.data.limit("write_zeroes_max_bytes") > 0
    content = Content(pool.new_thin(0, SIZE))
    for block in range(4):
        content.write(block * BLOCK + 4 * KIB, 8 * KIB)
    assert pool.data.limit("write_zeroes_max_bytes") == 0
    content.verify()
