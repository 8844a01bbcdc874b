# SPDX-License-Identifier: GPL-2.0
"""The limits of pools and volumes, which are stacked on those of data devices that are not just a disk."""

import os

import pytest

from dmtest import dm
from dmtest.disk import (
    KIB,
    MIB,
    SECTOR,
)

SIZE = 64 * MIB

# Both modules take write-zeroes of volumes in their own way. The rest is about the queue, not about limits.
NOT_COMPARED = {"write_zeroes_max_bytes", "write_zeroes_unmap_max_hw_bytes", "write_zeroes_unmap_max_bytes", "scheduler",
                "nr_requests", "stable_writes"}


# Those of volumes. The C module takes 1024 blocks at a time at most, this one whatever fits a bio.
DISCARD_SIZES = {"discard_max_bytes", "discard_max_hw_bytes"}


def limits(device):
    """What sysfs tells about a device's queue."""
    folder = f"/sys/block/dm-{device.minor}/queue"
    found = {}
    for name in sorted(os.listdir(folder)):
        if name in NOT_COMPARED or not os.path.isfile(os.path.join(folder, name)):
            continue
        try:
            with open(os.path.join(folder, name)) as file:
                found[name] = file.read().strip()
        except OSError as error:
            found[name] = f"errno {error.errno}"
    return found


def note(trace, label, pool, thin):
    """Notes all limits, one a line."""
    for name, value in limits(pool.device).items():
        trace.note(f"{label}: pool: {name}", value)
    found = limits(thin)
    for name, value in found.items():
        if name not in DISCARD_SIZES:
            trace.note(f"{label}: volume: {name}", value)
            continue
        trace.note(f"{label}: volume: {name} is not 0", value != "0")
        if value != "0":
            granularity = int(found["discard_granularity"])
            trace.note(f"{label}: volume: {name} is in whole blocks", int(value) % granularity == 0)
            assert int(value) >= 1024 * granularity or int(value) > (4 << 30) - 2 * granularity


class Stack:
    """A mapped device that looks like a disk to a pool."""

    def __init__(self, name, table, sectors):
        self.device = dm.Device.create(name, table)
        self.path = self.device.path
        self.sectors = sectors


@pytest.mark.parametrize("block_sectors", [128, 384, 640, 2048, 6144])
@pytest.mark.parametrize("kind", ["sectors of 4 KiB", "no discards", "stripes of 64 KiB", "stripes of 192 KiB", "stripes of 1 MiB"])
def test_limits(make_pool, make_disk, compare, kind, block_sectors):
    def scenario(trace, turn):
        below = []
        options = {"data_size": SIZE, "data_discards": kind != "no discards"}
        if kind.startswith("stripes"):
            chunk = int(kind.split()[2]) * (MIB if "MiB" in kind else KIB) // SECTOR
            length = SIZE // SECTOR // (2 * chunk) * (2 * chunk)
            one, two = make_disk(SIZE), make_disk(SIZE)
            below.append(Stack("below", f"0 {length} striped 2 {chunk} {one.path} 0 {two.path} 0", length))
            options["data"] = below[0]
        if kind.startswith("sectors"):
            options["data"] = make_disk(SIZE, sector_size=4 * KIB)
        pool = make_pool(metadata_size=4 * MIB, block_sectors=block_sectors, **options)
        thin = pool.new_thin(0, SIZE)
        note(trace, "default", pool, thin)
        for features in (["no_discard_passdown"], ["skip_block_zeroing"]):
            pool.features = features
            pool.device.reload(pool.table())
            thin.load(thin.table_text())
            thin.suspend()
            thin.resume()
            note(trace, features[0], pool, thin)
        trace.log()
        pool.stop()
        pool.features = ["ignore_discard"]
        pool.start()
        thin = pool.activate(0, SIZE)
        note(trace, "ignore_discard", pool, thin)
        pool.stop()
        for one in below:
            one.device.remove()

    compare(scenario)
