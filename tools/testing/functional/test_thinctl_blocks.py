# SPDX-License-Identifier: GPL-2.0
"""thinctl between pools whose blocks have different sizes: what is seen in the rest of a block."""

import os

import pytest

from dmtest import disk
from dmtest.content import Content
from dmtest.disk import (
    KIB,
    MIB,
)
from dmtest.thinctl import (
    REFUSED,
    SIZE,
    received,
    volumes,
)

# The target's blocks, which hold parts of the source's.
LARGER = pytest.mark.parametrize("sectors", [256, 384], ids=lambda sectors: f"{sectors // 2} KiB")


@pytest.fixture
def with_origin(pool, make_disk):
    """A volume whose external origin is smaller than it is, and not full of zeroes."""
    origin = make_disk(SIZE - 512 * KIB)
    data = os.urandom(origin.size)
    disk.write(origin.path, 0, data)
    content = Content(pool.new_thin(0, SIZE, origin=origin.path), bytearray(data) + bytearray(SIZE - origin.size))
    content.scatter("first", 30, most=32)
    return content


@LARGER
def test_migrates_what_has_an_external_origin(pool, make_pool, thinctl, with_origin, sectors):
    content = with_origin
    other = make_pool(block_sectors=sectors)
    thinctl.run("migrate", f"{pool.name}:0", f"{other.name}:5")
    assert content.thin.table().startswith(f"{other.device.number} 5 ")
    content.verify()


@LARGER
def test_wants_to_know_of_an_external_origin(pool, make_pool, thinctl, with_origin, sectors):
    content = with_origin
    other = make_pool(block_sectors=sectors)
    words = "migrate", f"{pool.name}:0", f"{other.name}:5", "--delete"
    content.thin.remove()
    assert "--origin" in thinctl.refused(*words, code=REFUSED)
    assert volumes(pool) == {0} and volumes(other) == set()
    thinctl.run(*words, "--origin", content.thin.origin)
    thin = other.activate(5, SIZE, content.thin.origin)
    content.on(thin).verify()
    thin.remove()
    # Back again, where blocks are copied whole.
    thinctl.run("migrate", f"{other.name}:5", f"{pool.name}:6")
    thin = pool.activate(6, SIZE, content.thin.origin)
    content.on(thin).verify()
    thin.remove()


@pytest.mark.parametrize("sectors", [256, 384, 4096], ids=lambda sectors: f"{sectors // 2} KiB")
def test_shows_nothing_of_what_blocks_held_before(pool, make_pool, thinctl, sectors):
    other = make_pool(data_size=64 * MIB, data_discards=False, block_sectors=sectors, features=["skip_block_zeroing"])
    before = Content(other.new_thin(0, 60 * MIB))
    for offset in range(0, 60 * MIB, 4 * MIB):
        before.write(offset, 4 * MIB)
    before.thin.remove()
    other.delete(0)

    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 12, most=32)
    thinctl.snapshot(pool, 0, 1)
    thinctl.receive(other, 7, thinctl.send(pool, 1))
    received(other, 7, content)
    content.scatter("second", 12, most=32)
    content.discard(0, 4 * MIB)
    thinctl.snapshot(pool, 0, 2)
    stream = thinctl.send(pool, 2, "--from", 1)
    thinctl.receive(other, 7, stream)
    received(other, 7, content)
    other.delete(7)
    thinctl.run("migrate", f"{pool.name}:0", f"{other.name}:8")
    content.verify()
