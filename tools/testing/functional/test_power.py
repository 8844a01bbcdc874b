# SPDX-License-Identifier: GPL-2.0
"""Power cuts: the states that one may leave both devices in, made from a log of their writes, and looked into.

A state is what was flushed on each device, or written by FUA; at some moments also any part of what was in a device's cache,
torn at sectors. In all of them thin_check must be content and the volumes, by the mappings that thin_dump shows, hold
what was made stable. In some of them the pool is opened: file systems recover there.
"""

import os
import random
import signal
import subprocess
import time

import pytest

from dmtest import (
    load,
    metadata,
)
from dmtest.disk import MIB
from dmtest.dm import Device
from dmtest.history import (
    History,
    PAGE,
    promises,
    verify,
    verify_file_blocks,
    verify_files,
)
from dmtest.pool import Pool
from dmtest.replay import Replay
from dmtest.workload import (
    CHECK,
    Files,
    Steps,
    SYSTEM_SIZES,
    Workload,
    command,
    mounted,
)
from dmtest.write_log import Recorder

METADATA = 4 * MIB
DATA = 160 * MIB
FIO = 50
FIO_SIZE = 2 * MIB
BLOCK = 64 * 1024


class Overlay:
    """A disk that looks like `image`, and can be written to without changing it."""

    def __init__(self, image, name, make_disk):
        self._image = image
        self._name = name
        self._changes = make_disk(64 * MIB, f"{name}-changes")
        self.sectors = image.sectors
        self.device = None

    def start(self):
        self.device = Device.create(self._name, f"0 {self.sectors} snapshot {self._image.path} {self._changes.path} N 8")
        self.path = self.device.path
        return self

    def stop(self):
        if self.device:
            self.device.remove()
            self.device = None


class Checker:
    """Looks into the states of one log."""

    def __init__(self, replay, history, kinds, disks, make_disk, tmp_path):
        self._replay = replay
        self._history = history
        self._kinds = kinds
        self._folder = str(tmp_path / "checked")
        self._overlays = [Overlay(disk, name, make_disk) for disk, name in zip(disks, ("cut-metadata", "cut-data"))]
        self.looked = self.torn = self.opened = 0

    def _certain(self):
        return {number: volume for number, volume in self._history.volumes.items() if volume.certain}

    def look(self):
        """With the userspace tools."""
        self.looked += 1
        images = self._replay.images
        metadata.check(images["metadata"].file)
        if "start" not in self._replay.marks:
            return
        found = metadata.mappings(metadata.dump(images["metadata"].file))
        deleted = [number for number in found if number not in self._history.volumes and number != FIO]
        assert not deleted, f"volumes {deleted} are back"
        for number, volume in self._certain().items():
            assert number in found, f"volume {number} is gone"
            verify(f"volume {number}", volume, lambda page, count: self._pages(found[number], page, count))
            if volume.files:
                verify_file_blocks(f"volume {number}", volume, b"".join(map(self._block, found[number].values())))

    def _block(self, block):
        return self._replay.images["data"].read(block * BLOCK, BLOCK)

    def _pages(self, mappings, page, count):
        pages = BLOCK // PAGE
        blocks = (mappings.get(each // pages) for each in range(page, page + count, pages))
        return b"".join(bytes(BLOCK) if block is None else self._block(block) for block in blocks)

    def tear(self, choice):
        """Some of what was in the caches is on the disks; then as look()."""
        self.torn += 1
        undo = []
        for image in self._replay.images.values():
            for offset, data in image.some(choice):
                undo.append((image, offset, image.read(offset, len(data))))
                image.write(offset, data)
        try:
            self.look()
        finally:
            for image, offset, data in reversed(undo):
                image.write(offset, data)

    def open(self):
        """With a pool on it."""
        self.opened += 1
        disks = [overlay.start() for overlay in self._overlays]
        pool = Pool(*disks, name="cut")
        try:
            pool.start()
            status = pool.status()
            assert status.mode == "rw" and not status.needs_check, pool.device.status()
            if status.metadata_snap is not None:
                metadata.dump(pool.metadata.path, status.metadata_snap)
            for number, volume in self._certain().items():
                self._open_volume(pool, number, volume)
            if "start" in self._replay.marks:
                thin = pool.activate(FIO, FIO_SIZE)
                load.run(thin, "--bs=4k", rw="read")
                # Whatever was lost, there is room for more.
                thin.write(0, bytes(BLOCK))
                thin.flush()
            pool.stop()
            pool.check()
        finally:
            pool.stop()
            for overlay in self._overlays:
                overlay.stop()

    def _open_volume(self, pool, number, volume):
        kind = self._kinds.get(number)
        if not kind:
            thin = pool.activate(number, len(volume.pages) * PAGE)
            verify(f"volume {number}", volume, lambda page, count: thin.read(page * PAGE, count * PAGE))
            return
        thin = pool.activate(number, SYSTEM_SIZES[kind])
        if "start" in self._replay.marks:
            with mounted(kind, thin.path, self._folder) as folder:
                verify_files(f"{kind} on volume {number}", volume, folder)
            command(*CHECK[kind], thin.path)


class Watcher:
    """Looks at a pool's status over and over. Each time that commits, whatever the pool's worker is about."""

    def __init__(self, pool):
        command = ["sh", "-c", 'while dmsetup status "$0"; do sleep 0.02; done', pool.name]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)

    def stop(self):
        os.killpg(self._process.pid, signal.SIGKILL)
        # Until the last one of them has closed the pipe.
        self._process.communicate()


def record(make_disk, settings, progress, seed, tmp_path):
    """Works on a pool; returns the log, the steps, the kinds of file systems by volume, and counts."""
    recorder = Recorder(make_disk, METADATA, DATA, 1024 * MIB)
    steps = Steps(lambda number, step: recorder.mark(f"b{number}"), lambda number: recorder.mark(f"e{number}"))
    pool = Pool(recorder.metadata, recorder.data, name="recorded-pool").start()
    work = Workload(pool, steps, seed)
    kinds = {}
    writers = []
    watcher = None
    try:
        for number in (1, 2):
            work.create(number)
        fio = pool.new_thin(FIO, FIO_SIZE)
        load.run(fio, "--bs=64k", "--verify_interval=4k", "--end_fsync=1", rw="write")
        for number, kind in ((10, "ext4"), (11, "xfs")):
            work.create_system(number, kind, SYSTEM_SIZES[kind])
            pool.thins[number].flush()
            folder = str(tmp_path / kind)
            os.makedirs(folder)
            command("mount", pool.thins[number].path, folder)
            command("sync", "-f", folder)
            writers.append((Files(work, number, folder, seed), folder))
        recorder.mark("start")
        for writer, _ in writers:
            writer.start()
        background = load.Background(
            fio, "--bs=4k", "--fsync=16", "--time_based", "--runtime=3600", "--rate_iops=100", "--do_verify=0", depth=4,
        )
        watcher = Watcher(pool)
        turns = settings("power_turns", 80)
        for turn in range(turns):
            work.turn()
            progress(f"power: seed {seed}, {turn} of {turns} steps recorded")
            kinds.update(work.systems)
        background.kill()
        for writer, folder in writers:
            writer.finish()
    finally:
        if watcher:
            watcher.stop()
        for _, folder in writers:
            if os.path.ismount(folder):
                command("umount", folder)
        pool.stop()
        recorded = recorder.stop()
    kinds.update(work.systems)
    return recorded, steps, kinds, {"turns": turns, "files": sum(writer.written for writer, _ in writers), "steps": len(steps.steps)}


@pytest.mark.seeds("power_logs", 1)
def test_power_cuts(make_disk, modules, settings, figures, progress, tmp_path, seed):
    if "dm-load" not in modules.names():
        pytest.skip("needs --load, for the target that numbers flushes")
    for name in ("dm-log-writes", "dm-snapshot", "dm-load"):
        modules.need(name)
    began = time.monotonic()
    (entries, logs), steps, kinds, counts = record(make_disk, settings, progress, seed, tmp_path)
    disks = [make_disk(METADATA, "cut"), make_disk(DATA, "cut")]
    history = History()
    replay = Replay(entries, logs, disks[0].file, disks[1].file, history, steps.steps)
    checker = Checker(replay, history, kinds, disks, make_disk, tmp_path)
    choice = random.Random(f"power {seed}")
    # Of so many, each is looked into with a probability that makes about this number.
    total = sum(1 for entry in entries if entry.number is not None)
    promised = sum(promises(step) for step in steps.steps.values())
    share = {what: settings(f"power_{what}s", usual) / of for what, usual, of in (
        ("look", 40, total), ("tear", 20, total), ("open", 3, total), ("promise", 40, promised))}
    points = 0
    try:
        for when, point in replay.points():
            if "e1" not in replay.marks:
                continue
            try:
                if when == "before":
                    if choice.random() < share["tear"]:
                        checker.tear(choice)
                    continue
                if when == "promised":
                    if choice.random() < share["promise"]:
                        checker.look()
                    continue
                points += 1
                if choice.random() < share["look"]:
                    checker.look()
                if choice.random() < share["open"]:
                    checker.open()
            except (AssertionError, OSError) as error:
                raise AssertionError(f"seed {seed}, {when} {point}: {error}") from error
            progress(f"power: seed {seed}, {points} of {total} flushes and FUA writes, {checker.looked} states looked into")
        checker.look()
        checker.open()
    finally:
        replay.close()
        for log in logs.values():
            log.close()
    figures("power", seed=seed, points=points, looked=checker.looked, torn=checker.torn, opened=checker.opened,
            entries=len(entries), seconds=round(time.monotonic() - began), **counts)
