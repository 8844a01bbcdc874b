# SPDX-License-Identifier: GPL-2.0
"""A suspend that is broken off, and I/O that comes before everything is as it was."""

import signal
import subprocess

import pytest

from dmtest import (
    disk,
    dm,
    ioctl,
)
from dmtest.background import (
    Background,
    wait_until,
)
from dmtest.content import pattern
from dmtest.disk import (
    KIB,
    MIB,
    SECTOR,
)
from dmtest.dm import Device
from dmtest.gate import COUNTS

BLOCK = 64 * KIB
SIZE = 8 * MIB


@pytest.fixture
def make_slow_to_undo(make_disk, modules):
    """Makes a volume behind a gate, in one device: the gate is told first that a suspend is undone, and takes its time."""
    made = []

    def make(pool):
        if "dm-load" not in modules.names():
            pytest.skip("no dm-load.ko: see --load")
        modules.need("dm-load")
        disk = make_disk(SIZE)
        made.append(Device.create("slow-to-undo", "\n".join((
            f"0 {disk.sectors} gate {disk.path}",
            f"{disk.sectors} {SIZE // SECTOR} thin {pool.device.path} 0",
        ))))
        return made[-1]

    yield make
    for device in made:
        device.message("pass")
        device.remove()


def is_under_way(device, what):
    """Whether the gate has been told of a "suspend", and waits with its "undo"."""
    line = ioctl.unpack_status(ioctl.call(ioctl.TABLE_STATUS, device.name, ioctl.NOFLUSH))[0]
    return line.split()[3:][COUNTS.index(what)] == "1"


@pytest.mark.fault_of_c("I/O fails while the suspend is undone")
def test_io_while_a_suspend_is_undone(make_pool, make_faulty, make_slow_to_undo):
    """It succeeds, be it at once or when all is undone. The C module fails it, and all that comes later."""
    pool = make_pool(data=make_faulty(64 * MIB))
    pool.create_thin(0)
    device = make_slow_to_undo(pool)
    disk.write(device.path, SIZE, pattern("old", BLOCK))
    device.message("hold undo")
    pool.data.hold("reads")
    reading = Background(lambda: disk.read(device.path, SIZE, BLOCK))
    wait_until(pool.data.held, "a read that the suspend has to wait for")
    suspending = subprocess.Popen(["dmsetup", "suspend", "--noflush", device.name], env=dm.environment(), stderr=subprocess.DEVNULL)
    wait_until(lambda: is_under_way(device, "suspend"), "the suspend")
    waiting = Background(lambda: disk.write(device.path, SIZE + MIB, pattern("early", BLOCK)))
    wait_until(waiting.sleeps, "a write")
    suspending.send_signal(signal.SIGKILL)
    wait_until(lambda: is_under_way(device, "undo"), "the suspend is undone")
    writing = [Background(lambda block=block: disk.write(device.path, SIZE + block * BLOCK, pattern(block, BLOCK))) for block in (0, 5)]
    wait_until(lambda: all(one.sleeps() or not one.waits(0) for one in writing), "writes")
    device.message("pass")
    suspending.wait()
    assert [one.outcome() for one in (*writing, waiting)] == ["ok"] * 3
    pool.data.heal()
    assert reading.outcome() == "ok"
    for block in (0, 5):
        assert disk.read(device.path, SIZE + block * BLOCK, BLOCK) == pattern(block, BLOCK)
    assert disk.read(device.path, SIZE + MIB, BLOCK) == pattern("early", BLOCK)
