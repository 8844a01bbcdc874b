# SPDX-License-Identifier: GPL-2.0
"""Suspending and resuming pools and volumes, with and without a flush, while I/O is on its way or waits."""

import signal
import subprocess
import time

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
from dmtest.content import (
    Content,
    pattern,
)
from dmtest.disk import (
    KIB,
    MIB,
)
from test_modes import (
    FULL,
    WAIT,
    fill,
    look,
    wait_for,
)

BLOCK = 64 * KIB
SIZE = 8 * MIB

SUSPENDED = 1 << 1
INTERNALLY_SUSPENDED = 1 << 18


def flags(device):
    """Whether a device is suspended, and whether it is so internally."""
    found = ioctl.call(ioctl.DEV_STATUS, device.name).flags
    return bool(found & SUSPENDED), bool(found & INTERNALLY_SUSPENDED)


@pytest.mark.parametrize("noflush", [False, True])
def test_pool_suspends_its_volumes(make_pool, compare, noflush):
    """Internally: user space sees them active, and their I/O waits."""
    def scenario(trace, turn):
        pool = make_pool(data_size=32 * MIB)
        content = Content(pool.new_thin(0, SIZE))
        content.write(0, MIB)
        pool.create_thin(1)
        trace.note("before", flags(content.thin))
        pool.device.suspend(noflush=noflush)
        trace.note("pool", flags(pool.device))
        trace.note("volume", flags(content.thin))
        waiting = [Background(lambda: content.write(2 * MIB, BLOCK)), Background(lambda: content.thin.read(0, BLOCK)),
                   Background(content.thin.flush)]
        trace.note("all wait", all(one.waits() for one in waiting))
        # The status of a volume is there nevertheless, and the pool takes messages.
        trace.pool(pool)
        trace.attempt("create_thin 2", lambda: pool.create_thin(2))
        trace.attempt("activation", lambda: pool.activate(1, SIZE))
        trace.attempt("suspending it twice", lambda: pool.device.suspend(noflush=noflush))
        pool.device.resume()
        for one in waiting:
            trace.note("outcome", one.outcome())
        trace.note("after", (flags(pool.device), flags(content.thin)))
        look(trace, pool, "the resume")
        content.verify()
        pool.activate(1, SIZE)
        pool.stop()

    compare(scenario)


def test_volume_suspended_by_both(make_pool, compare):
    """A volume that its user suspended stays so when the pool is resumed, and the other way round."""
    def scenario(trace, turn):
        pool = make_pool(data_size=32 * MIB)
        content = Content(pool.new_thin(0, SIZE))
        content.write(0, MIB)
        content.thin.suspend()
        pool.device.suspend()
        trace.note("both", flags(content.thin))
        pool.device.resume()
        trace.note("volume alone", flags(content.thin))
        waiting = Background(lambda: content.write(0, BLOCK))
        trace.note("waits", waiting.waits())
        content.thin.resume()
        trace.note("outcome", waiting.outcome())
        content.verify()
        pool.device.suspend()
        pool.device.resume()
        trace.note("none", flags(content.thin))
        pool.stop()

    compare(scenario)


@pytest.mark.parametrize("noflush", [False, True])
def test_suspend_under_load(make_pool, noflush):
    """Pool and volume are suspended and resumed all the time while somebody writes; nothing gets lost."""
    pool = make_pool(data_size=128 * MIB)
    content = Content(pool.new_thin(0, 16 * MIB))
    load = Background(lambda: [content.scatter(("load", seed), 8) for seed in range(60)])
    rounds = 0
    while load.waits(0.02):
        for device in (pool.device, content.thin):
            device.suspend(noflush=noflush)
            device.resume()
        rounds += 1
        if rounds % 4 == 0:
            pool.device.reload(pool.table(), noflush=noflush)
    assert load.outcome() == "ok" and rounds > 2
    content.verify()


@pytest.mark.parametrize("what", ["pool", "volume", "volume and pool"])
def test_waiting_writes_are_requeued_without_flush(make_pool, compare, no_space_timeout, what):
    """Writes that wait for space let go of the volume, and go on once the pool has more."""
    def scenario(trace, turn):
        no_space_timeout(0)
        pool = make_pool(data_size=FULL)
        content = fill(pool)
        waiting = [Background(lambda: content.thin.write(FULL, pattern(0, 4 * BLOCK))),
                   Background(lambda: content.thin.write(FULL + MIB, pattern(1, 4 * KIB)))]
        wait_for(pool, "out_of_data_space")
        trace.note("all wait", all(one.waits() for one in waiting))
        look(trace, pool, "running full")
        if "volume" in what:
            content.thin.suspend(noflush=True)
            trace.note("volume", flags(content.thin))
        pool.data.grow(2 * FULL)
        if "pool" in what:
            pool.device.load(pool.table())
            pool.device.suspend(noflush=True)
            trace.note("pool", flags(pool.device))
            pool.device.resume()
        trace.note("still wait", all(one.waits() for one in waiting) if "volume" in what else None)
        if "volume" in what:
            content.thin.resume()
        if "pool" not in what:
            trace.note("still wait", all(one.waits() for one in waiting))
            pool.device.reload(pool.table())
        for one in waiting:
            trace.note("outcome", one.outcome())
        assert content.thin.read(FULL, 4 * BLOCK) == pattern(0, 4 * BLOCK)
        assert content.thin.read(FULL + MIB, 4 * KIB) == pattern(1, 4 * KIB)
        assert content.thin.read(0, FULL) == content.data[:FULL]
        look(trace, pool, "the end")
        pool.stop()

    compare(scenario)


def test_volume_with_waiting_writes_is_reloaded(make_pool, compare, no_space_timeout):
    """The new table's volume gets them."""
    def scenario(trace, turn):
        no_space_timeout(0)
        pool = make_pool(data_size=FULL)
        content = fill(pool)
        waiting = Background(lambda: content.thin.write(FULL, pattern(0, BLOCK)))
        wait_for(pool, "out_of_data_space")
        content.thin.load(content.thin.table_text())
        content.thin.suspend(noflush=True)
        content.thin.resume()
        trace.note("waits", waiting.waits())
        pool.data.grow(2 * FULL)
        pool.device.reload(pool.table())
        trace.note("outcome", waiting.outcome())
        assert content.thin.read(FULL, BLOCK) == pattern(0, BLOCK)
        pool.stop()

    compare(scenario)


def test_flushing_suspend_waits_for_the_timeout(make_pool, compare, no_space_timeout):
    """All I/O must have ended: those writes do when their time is over."""
    def scenario(trace, turn):
        no_space_timeout(WAIT)
        pool = make_pool(data_size=FULL)
        content = fill(pool)
        waiting = Background(lambda: content.thin.write(FULL, pattern(0, BLOCK)))
        wait_for(pool, "out_of_data_space")
        suspending = Background(lambda: content.thin.suspend(nolockfs=True))
        trace.note("the suspend waits", suspending.waits(1))
        trace.note("the write", waiting.outcome())
        trace.note("the suspend", suspending.outcome())
        content.thin.resume()
        content.verify()
        look(trace, pool, "the end")
        pool.stop()

    compare(scenario)


def test_interrupted_suspend_is_undone(make_pool, make_faulty, compare):
    """A suspend that has to wait for I/O and is interrupted leaves pool and volumes as they were."""
    def scenario(trace, turn):
        pool = make_pool(data=make_faulty(32 * MIB))
        content = Content(pool.new_thin(0, SIZE))
        content.write(0, MIB)
        # I/O of the pool's own device is what its suspend waits for, where it can be interrupted.
        # Reads only: commits go on.
        pool.data.hold("reads")
        reading = Background(lambda: disk.read(pool.device.path, 0, 4 * KIB))
        pool.data.wait_for_held()
        suspending = subprocess.Popen(["dmsetup", "suspend", "--nolockfs", pool.name], stderr=subprocess.DEVNULL)
        # Its volumes come first.
        wait_until(lambda: flags(content.thin)[1], "the suspend is under way")
        time.sleep(0.3)
        trace.note("suspends", suspending.poll() is None)
        suspending.send_signal(signal.SIGKILL)
        suspending.wait()
        trace.note("pool", flags(pool.device))
        trace.note("volume", flags(content.thin))
        pool.data.heal()
        trace.note("the read", reading.outcome())
        content.write(2 * MIB, BLOCK)
        content.verify()
        pool.create_thin(1)
        pool.activate(1, SIZE)
        look(trace, pool, "the end")
        pool.stop()

    compare(scenario)


@pytest.mark.fault_of_c("I/O fails until the next suspend")
def test_interrupted_suspend_of_a_volume_is_undone(make_pool, make_faulty):
    """The C module's volume goes on to give back all I/O after that, and nobody takes it: it fails."""
    pool = make_pool(data=make_faulty(32 * MIB))
    content = Content(pool.new_thin(0, SIZE))
    content.write(0, MIB)
    pool.data.hold("reads")
    reading = Background(lambda: content.thin.read(0, 4 * KIB))
    pool.data.wait_for_held()
    suspending = subprocess.Popen(["dmsetup", "suspend", "--noflush", content.thin.name], stderr=subprocess.DEVNULL)
    time.sleep(0.7)
    assert suspending.poll() is None
    suspending.send_signal(signal.SIGKILL)
    suspending.wait()
    assert flags(content.thin) == (False, False)
    pool.data.heal()
    assert reading.outcome() == "ok"
    content.write(2 * MIB, BLOCK)
    content.thin.flush()
    content.verify()


def test_reload_with_other_features(make_pool, compare):
    def scenario(trace, turn):
        pool = make_pool(data_size=32 * MIB, features=["error_if_no_space"])
        content = Content(pool.new_thin(0, SIZE))
        for step, features in enumerate((
            [], ["skip_block_zeroing"], ["no_discard_passdown"], ["read_only"], ["error_if_no_space", "read_only"],
            ["skip_block_zeroing", "no_discard_passdown", "error_if_no_space"], ["ignore_discard"], ["nonsense"], [],
        )):
            pool.features = features
            if trace.attempt(f"{features}", lambda: pool.device.load(pool.table())):
                # What counts is what is bound.
                look(trace, pool, "the load")
                pool.device.suspend()
                pool.device.resume()
            look(trace, pool, "the resume")
            trace.attempt("write", lambda: content.write(step * MIB % SIZE, BLOCK))
        content.verify()
        pool.features = []
        pool.device.reload(pool.table())
        pool.stop()

    compare(scenario)


def test_devices_of_others(make_pool, make_disk, compare):
    """One pool's devices are refused by another, which goes on as if nothing had been."""
    def scenario(trace, turn):
        first = make_pool(data_size=32 * MIB)
        second = make_pool(data_size=32 * MIB)
        spare = make_disk(32 * MIB)
        one = Content(first.new_thin(0, SIZE))
        one.write(0, MIB)

        def table(metadata, data, sectors=None):
            return f"0 {sectors or data.sectors} thin-pool {metadata.path} {data.path} 128 0"

        for label, text in (
            ("the other pool's devices", table(second.metadata, second.data)),
            ("the other pool's metadata", table(second.metadata, first.data)),
            ("the other pool's data", table(first.metadata, second.data)),
            ("another data device", table(first.metadata, spare)),
            ("another metadata device", table(spare, first.data)),
            ("both the other way round", table(first.data, first.metadata)),
        ):
            trace.attempt(label, lambda: first.device.load(text))
            trace.pool(first)
        # A third device on a pool's metadata; its data alone are nobody's business.
        for label, text in (
            ("used metadata", table(first.metadata, spare)),
            ("used metadata and data", table(first.metadata, first.data)),
        ):
            def create():
                dm.Device.create("third", text).remove()
            trace.attempt(label, create)
        one.write(MIB, MIB)
        one.verify()
        trace.pool(first)
        trace.pool(second)
        first.stop()
        second.stop()

    compare(scenario)


def test_smaller_devices_are_refused(make_pool, compare):
    def scenario(trace, turn):
        pool = make_pool(data_size=32 * MIB, metadata_size=4 * MIB)
        content = Content(pool.new_thin(0, SIZE))
        content.write(0, MIB)
        trace.log()
        pool.device.load(pool.table(sectors=16 * MIB // 512))
        pool.device.suspend()
        trace.attempt("a smaller table", pool.device.resume)
        trace.log()
        pool.device.load(pool.table())
        trace.attempt("the former size", pool.device.resume)
        content.write(MIB, MIB)
        content.verify()
        look(trace, pool, "that")
        pool.device.load(pool.table(sectors=(32 * MIB - 4 * KIB) // 512))
        pool.device.suspend()
        trace.attempt("less than a block smaller", pool.device.resume)
        pool.device.reload(pool.table())
        pool.stop()

        pool.metadata.grow(2 * MIB)
        trace.attempt("smaller metadata", pool.start)
        trace.log()
        for name in ioctl.names():
            ioctl.call(ioctl.DEV_REMOVE, name)
        pool.device = None
        pool.metadata.grow(4 * MIB)
        pool.start()
        content.on(pool.activate(0, SIZE)).verify()
        pool.stop()

    compare(scenario)


def test_growing_both_devices_online(make_pool, compare):
    def scenario(trace, turn):
        pool = make_pool(data_size=16 * MIB, metadata_size=2 * MIB)
        content = Content(pool.new_thin(0, 64 * MIB))
        content.write(0, 12 * MIB)
        pool.data.grow(32 * MIB)
        pool.metadata.grow(4 * MIB)
        pool.device.reload(pool.table())
        look(trace, pool, "both")
        content.write(16 * MIB, 12 * MIB)
        # The table is as long as it was: only the metadata device's own size counts.
        pool.metadata.grow(8 * MIB)
        pool.device.suspend()
        pool.device.resume()
        look(trace, pool, "metadata alone")
        pool.data.grow(64 * MIB)
        pool.device.suspend()
        pool.device.resume()
        look(trace, pool, "a larger data device with the old table")
        pool.device.reload(pool.table())
        look(trace, pool, "and with a new one")
        content.write(32 * MIB, 32 * MIB)
        content.verify()
        trace.note("dump", pool.dump())
        pool.stop()

    compare(scenario)
