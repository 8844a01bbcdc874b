# SPDX-License-Identifier: GPL-2.0
"""containerd's devmapper snapshotter: the same commands under both modules, and what it reads from their answers."""

import contextlib
import errno
import os

import pytest

from dmtest import disk
from dmtest.containerd import (
    CallFailed,
    Snapshotter,
    parse_errno,
)
from dmtest.content import pattern
from dmtest.disk import (
    KIB,
    MIB,
)
from dmtest.dm import Device

BLOCK = 64 * KIB
SIZE = 64 * MIB


@pytest.fixture
def play(make_pool, compare):
    """Plays `scenario(trace, snapshotter)` under both modules, on a pool that the snapshotter has made."""

    def run(scenario, counts=True):
        def turn_of(trace, turn):
            pool = make_pool(start=False)
            snapshotter = Snapshotter(trace, pool, counts)
            snapshotter.create_pool()
            pool.device = Device.existing(pool.name)
            scenario(trace, snapshotter)
            snapshotter.remove_pool()
            pool.device = None

        compare(turn_of)

    return run


def refused(number, call, *arguments):
    """The call must fail, and its text must say this errno."""
    with pytest.raises(CallFailed) as error:
        call(*arguments)
    assert error.value.errno == number, error.value


def test_text_of_an_errno():
    """The parser that the other tests rely on, with lines as dmsetup prints them."""
    text = "device-mapper: message ioctl on pool  failed: File exists\nCommand failed.\n"
    assert parse_errno(text) == errno.EEXIST
    assert parse_errno("Device does not exist.\nCommand failed.\n") is None
    assert parse_errno("message ioctl on pool  failed: File exists") is None


@pytest.mark.smoke
def test_layers_of_an_image(play, tmp_path):
    """Two layers, each a snapshot of the one below, and two containers on top that differ."""

    def scenario(trace, snaps):
        assert snaps.info(snaps.name).live
        snaps.new(1, SIZE)
        assert snaps.usage(1) == 0
        snaps.make_file_system(1)
        with snaps.mounted(1, tmp_path / "layer") as layer:
            (layer / "lost+found").rmdir()
            (layer / "base").write_text("base")
        assert 0 < snaps.usage(1) < SIZE
        snaps.commit(1)
        assert not snaps.is_loaded(snaps.device(1))

        snaps.snapshot(2, 1, SIZE)
        with snaps.mounted(2, tmp_path / "layer") as layer:
            assert (layer / "base").read_text() == "base"
            (layer / "base").write_text("changed")
            (layer / "more").write_bytes(pattern("more", MIB))
        snaps.commit(2)

        snaps.snapshot(3, 2, SIZE)
        snaps.snapshot(4, 2, SIZE)
        with snaps.mounted(3, tmp_path / "three") as three, snaps.mounted(4, tmp_path / "four") as four:
            (three / "own").write_text("three")
            (four / "own").write_text("four")
            (four / "more").unlink()
        snaps.snapshot(5, 1, SIZE)
        for number, own, base, more in ((3, "three", "changed", True), (4, "four", "changed", False), (5, None, "base", False)):
            with snaps.mounted(number, tmp_path / "look", "ro") as look:
                names = {entry.name for entry in look.iterdir()}
                assert ("own" in names, "more" in names) == (own is not None, more)
                assert own is None or (look / "own").read_text() == own
                assert (look / "base").read_text() == base
                assert not more or (look / "more").read_bytes() == pattern("more", MIB)
        for number in (3, 4, 5, 2, 1):
            snaps.remove(number)
        words = snaps.status(snaps.name)[3]
        assert words[2].startswith("0/"), words

    play(scenario, counts=False)


def test_snapshot_of_an_active_parent(play):
    """It is suspended while the snapshot is taken, and goes on afterwards."""

    def scenario(trace, snaps):
        snaps.new(1, SIZE)
        disk.write(snaps.path(1), 0, pattern("before", 4 * BLOCK))
        snaps.snapshot(2, 1, SIZE)
        assert not snaps.info(snaps.device(1)).suspended
        disk.write(snaps.path(1), BLOCK, pattern("after", BLOCK))
        assert disk.read(snaps.path(2), 0, 4 * BLOCK) == pattern("before", 4 * BLOCK)
        assert disk.read(snaps.path(1), BLOCK, BLOCK) == pattern("after", BLOCK)
        assert snaps.usage(1) == snaps.usage(2) == 4 * BLOCK
        trace.dmsetup("table", snaps.device(2))
        trace.dmsetup("status", snaps.name)
        snaps.remove(1)
        assert disk.read(snaps.path(2), 0, 4 * BLOCK) == pattern("before", 4 * BLOCK)
        snaps.remove(2)

    play(scenario)


def test_suspended_parent_is_seen_in_the_information(play):
    def scenario(trace, snaps):
        snaps.new(1, SIZE)
        snaps.suspend(snaps.device(1))
        assert snaps.info(snaps.device(1)).suspended
        snaps.create_snap(2, 1)
        snaps.activate(2, SIZE)
        snaps.resume(snaps.device(1))
        snaps.remove(1)
        snaps.remove(2)

    play(scenario)


def test_text_of_every_refusal(play):
    """Which errno containerd makes of the answer decides whether it goes on, tries again or gives up."""

    def scenario(trace, snaps):
        snaps.new(1, SIZE)
        refused(errno.EEXIST, snaps.create_thin, 1)
        refused(errno.EEXIST, snaps.create_snap, 1, 1)
        refused(errno.ENODATA, snaps.create_snap, 2, 7)
        refused(errno.EINVAL, snaps.create_thin, 1 << 24)
        refused(errno.ENODATA, snaps.activate, 7, SIZE)
        refused(errno.EBUSY, snaps.delete, 1)
        snaps.delete(7)
        assert not snaps.is_loaded(snaps.device(7))
        elsewhere = Snapshotter(trace, snaps.pool)
        elsewhere.name = "nowhere"
        refused(errno.ENXIO, elsewhere.create_thin, 1)
        refused(errno.ENXIO, elsewhere.suspend, "nowhere")
        with pytest.raises(CallFailed):
            elsewhere.activate(1, SIZE)
        trace.dmsetup("status", snaps.name)
        snaps.remove(1)

    play(scenario)


def test_failed_activation_is_rolled_back(play):
    """The name is taken: the new volume is deleted again, and its number can be used."""

    def scenario(trace, snaps):
        snaps.new(1, SIZE)
        disk.write(snaps.path(1), 0, pattern("one", BLOCK))
        trace.dmsetup("create", snaps.device(2), "--notable")
        refused(errno.EBUSY, snaps.new, 2, SIZE)
        refused(errno.EBUSY, snaps.snapshot, 2, 1, SIZE)
        assert not snaps.info(snaps.device(1)).suspended
        trace.dmsetup("remove", snaps.device(2))
        trace.dmsetup("status", snaps.name)
        snaps.snapshot(2, 1, SIZE)
        assert disk.read(snaps.path(2), 0, BLOCK) == pattern("one", BLOCK)
        snaps.remove(2)
        snaps.remove(1)

    play(scenario)


def test_device_in_use_is_removed_later(play):
    """A deferred removal leaves the volume busy until its last user closes it."""

    def scenario(trace, snaps):
        snaps.new(1, SIZE)
        disk.write(snaps.path(1), 0, pattern("one", BLOCK))
        with disk.opened(snaps.path(1)):
            snaps.deactivate(1, "--deferred")
            info = snaps.info(snaps.device(1))
            assert info.live and info.opened == 1
            for _ in range(3):
                refused(errno.EBUSY, snaps.delete, 1)
        snaps.delete_when_idle(1)
        assert snaps.status(snaps.name)[3][2].startswith("0/")
        assert not snaps.is_loaded(snaps.device(1))

    play(scenario)


def test_device_in_use_is_removed_by_force(play):
    """The removal fails in the end, but the volume is free: its device only gives errors now."""

    def scenario(trace, snaps):
        snaps.new(1, SIZE)
        disk.write(snaps.path(1), 0, pattern("one", BLOCK))
        with disk.opened(snaps.path(1)) as held:
            refused(errno.EBUSY, snaps.deactivate, 1, "--force")
            with pytest.raises(OSError):
                os.pwrite(held, bytes(BLOCK), 0)
            snaps.delete(1)
        snaps.deactivate(1)
        assert snaps.status(snaps.name)[3][2].startswith("0/")

    play(scenario)


def test_pool_is_reloaded(play):
    """As older versions do when they start on a pool that is there."""

    def scenario(trace, snaps):
        snaps.new(1, SIZE)
        disk.write(snaps.path(1), 0, pattern("one", BLOCK))
        snaps.reload_pool()
        assert not snaps.info(snaps.name).inactive
        trace.dmsetup("table", snaps.name)
        trace.dmsetup("status", snaps.name)
        assert disk.read(snaps.path(1), 0, BLOCK) == pattern("one", BLOCK)
        snaps.snapshot(2, 1, SIZE)
        snaps.remove(1)
        snaps.remove(2)

    play(scenario)


def test_after_a_reboot(play):
    """Volumes that containerd knows as active are activated again, one that was half made is left alone."""

    def scenario(trace, snaps):
        snaps.new(1, SIZE)
        disk.write(snaps.path(1), 0, pattern("one", BLOCK), os.O_DSYNC)
        snaps.create_snap(2, 1)
        snaps.deactivate(1)
        snaps.remove_pool()
        assert not snaps.is_loaded(snaps.name)
        snaps.create_pool()
        assert not snaps.is_loaded(snaps.device(1))
        snaps.activate(1, SIZE)
        assert disk.read(snaps.path(1), 0, BLOCK) == pattern("one", BLOCK)
        refused(errno.EEXIST, snaps.create_snap, 2, 1)
        snaps.snapshot(3, 1, SIZE)
        for number in (1, 2, 3):
            snaps.remove(number)

    play(scenario)


def test_discard_before_removal(play):
    """With `discard_blocks` set: the blocks come back before the volume is deleted."""

    def scenario(trace, snaps):
        snaps.new(1, SIZE)
        disk.write(snaps.path(1), 0, pattern("one", 8 * BLOCK))
        snaps.snapshot(2, 1, SIZE)
        disk.write(snaps.path(2), 0, pattern("two", 2 * BLOCK))
        assert snaps.status(snaps.name)[3][2].startswith("10/")
        snaps.remove(2, discard=True)
        assert snaps.status(snaps.name)[3][2].startswith("8/")
        assert disk.read(snaps.path(1), 0, 8 * BLOCK) == pattern("one", 8 * BLOCK)
        snaps.remove(1, discard=True)
        assert snaps.status(snaps.name)[3][2].startswith("0/")

    play(scenario)


def test_words_of_a_pool_that_failed(make_pool, make_disk, compare):
    """Its status is one word, and so is that of its volumes; usage cannot be parsed, messages are refused."""

    def scenario(trace, turn):
        pool = make_pool(start=False)
        metadata = pool.metadata
        under = Device.create("under", f"0 {metadata.sectors} linear {metadata.path} 0")
        table = f"0 {pool.data.sectors} thin-pool {under.path} {pool.data.path} 128 32768 1 skip_block_zeroing"
        trace.dmsetup("create", pool.name, "--table", table)
        pool.device = Device.existing(pool.name)
        snaps = Snapshotter(trace, pool)
        snaps.new(1, SIZE)
        disk.write(snaps.path(1), 0, pattern("one", BLOCK), os.O_DSYNC)
        under.load(f"0 {metadata.sectors} error")
        under.suspend(noflush=True)
        under.resume()
        # What fails is the commit that follows, which C does not tell who sent the message.
        with contextlib.suppress(OSError):
            pool.device.message("create_thin 2")
        assert snaps.status(snaps.name)[3] == ["Fail"]
        with pytest.raises(ValueError):
            snaps.usage(1)
        refused(errno.EOPNOTSUPP, snaps.create_snap, 3, 1)
        refused(errno.EOPNOTSUPP, snaps.delete, 1)
        trace.dmsetup("table", snaps.name)
        snaps.deactivate(1, "--force")
        snaps.remove_pool()
        pool.device = None
        under.remove()

    compare(scenario)
