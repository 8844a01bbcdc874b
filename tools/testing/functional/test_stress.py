# SPDX-License-Identifier: GPL-2.0
"""Everything at once: verifying writers while the pool and its volumes are worked on, and memory is short.

`--set stress_seconds=<n>` makes a round longer, `--set stress_rounds=<n>` plays several, the first with `--set seed=<n>`.
"""

import os
import random
import subprocess
import time
from contextlib import contextmanager

import pytest

from dmtest import (
    load,
    metadata,
)
from dmtest.content import Content
from dmtest.disk import (
    KIB,
    MIB,
)
from dmtest.watchdog import (
    Watchdog,
    blocked_tasks,
)

SIZE = 8 * MIB
WRITERS = 3
PATIENCE = 100

# What is left when memory is made short.
SHORT = 96 * MIB
FILLING = bytes(4 * MIB)


def available():
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) * KIB for line in file if line.startswith("MemAvailable:"))


@contextmanager
def short_of_memory():
    """Little memory is free meanwhile; what can be given back has to be."""
    # A file system of its own, for the disks' must not become full.
    folder = "/run/hog"
    os.makedirs(folder, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100%", "hog", folder], check=True)
    try:
        with open(f"{folder}/file", "wb", buffering=0) as file:
            while available() > SHORT:
                file.write(FILLING)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


class Stress:
    """One round. Each method named do_* is something that is done to the pool, as often as `weights` says."""

    WEIGHTS = {
        "snapshot": 6, "delete": 3, "change": 4, "discard": 5, "zero": 2, "metadata_snap": 3, "reload_pool": 3, "reload_volume": 4,
        "suspend_pool": 2, "suspend_volume": 3, "grow_data": 1, "grow_metadata": 1, "drop_caches": 2, "memory": 1, "origin": 2,
    }

    def __init__(self, make_pool, impl, seed):
        self.choice = random.Random(f"stress {seed}")
        features = ["discard_on_delete"] if impl == "rust" and self.choice.random() < 0.5 else []
        features += ["no_discard_passdown"] if self.choice.random() < 0.3 else []
        self.pool = make_pool(
            metadata_size=4 * MIB, data_size=128 * MIB, block_sectors=self.choice.choice((128, 128, 256, 1024)), features=features,
        )
        self.kept = {}
        self.held = None
        self.number = 100
        self.turns = 0
        self.done = {}

    def start(self, seconds):
        """The writers begin."""
        self.writers = [
            load.Background(
                self.pool.new_thin(number, SIZE), "--bsrange=4k-128k", "--time_based", f"--runtime={seconds}", "--fsync=50",
                "--verify_backlog=64", engine=engine, depth=8,
            )
            for number, engine in zip(range(WRITERS), ("libaio", "io_uring", "psync"))
        ]

    def turn(self):
        self.turns += 1
        self._make_room()
        what = self.choice.choices(list(self.WEIGHTS), list(self.WEIGHTS.values()))[0]
        if getattr(self, f"do_{what}")() is not False:
            self.done[what] = self.done.get(what, 0) + 1
        return what

    def _make_room(self):
        """Nobody may wait for space: it would be us who have to make some."""
        used, total = self.pool.status().data_blocks
        if (total - used) * self.pool.block_size < 4 * SIZE:
            self.pool.data.grow(self.pool.data.size + 8 * SIZE)
            self.pool.device.reload(self.pool.table())

    def _one(self):
        return self.kept[self.choice.choice(sorted(self.kept))] if self.kept else None

    def _thin(self):
        return self.pool.thins[self.choice.choice([*range(WRITERS), *self.kept])]

    def do_snapshot(self):
        if len(self.kept) >= 8:
            return False
        self.number += 1
        origin = self.choice.choice([*range(WRITERS), *self.kept])
        snap = self.pool.new_snap(self.number, origin, SIZE)
        self.kept[self.number] = Content(snap, bytearray(snap.read()))

    def do_delete(self):
        if not self.kept:
            return False
        content = self.kept.pop(self.choice.choice(sorted(self.kept)))
        content.verify()
        content.thin.remove()
        self.pool.delete(content.thin.id)

    def do_origin(self):
        """A snapshot of a snapshot that is thrown away at once."""
        if not self.kept:
            return False
        content = self._one()
        self.number += 1
        copy = content.snapshot(self.pool.new_snap(self.number, content.thin.id, SIZE))
        content.scatter((self.turns, "origin"), 2)
        copy.scatter((self.turns, "copy"), 2)
        content.verify()
        copy.verify()
        copy.thin.remove()
        self.pool.delete(self.number)

    def do_change(self):
        if not self.kept:
            return False
        self._one().scatter(self.turns, 4)

    def _range(self):
        start = self.choice.randrange(SIZE // 4096)
        return start * 4096, self.choice.randint(1, SIZE // 4096 - start) * 4096

    def do_discard(self):
        if not self.kept:
            return False
        content = self._one()
        # All mappings are known before, and must not be afterwards; blocks that somebody else has, too, keep what they hold.
        self.number += 1
        self.pool.create_snap(self.number, content.thin.id)
        content.verify()
        content.discard(*self._range())
        content.verify()
        self.pool.delete(self.number)

    def do_zero(self):
        if not self.kept:
            return False
        self._one().zero(*self._range(), "zero_out")

    def do_metadata_snap(self):
        if self.held is None:
            root = self.pool.reserve_metadata_snap()
            self.held = root, metadata.dump(self.pool.metadata.path, root)
        else:
            assert metadata.dump(self.pool.metadata.path, self.held[0]) == self.held[1], "the metadata snapshot changed"
            self.pool.release_metadata_snap()
            self.held = None

    def do_reload_pool(self):
        self.pool.device.reload(self.pool.table(), noflush=self.choice.random() < 0.5)

    def do_reload_volume(self):
        thin = self._thin()
        thin.reload(thin.table_text(), noflush=self.choice.random() < 0.5)

    def do_suspend_pool(self):
        self.pool.device.suspend(noflush=self.choice.random() < 0.5)
        time.sleep(self.choice.uniform(0, 0.05))
        self.pool.device.resume()

    def do_suspend_volume(self):
        thin = self._thin()
        thin.suspend(noflush=self.choice.random() < 0.5, nolockfs=self.choice.random() < 0.5)
        time.sleep(self.choice.uniform(0, 0.05))
        thin.resume()

    def do_grow_data(self):
        if self.pool.data.size >= 512 * MIB:
            return False
        self.pool.data.grow(self.pool.data.size + self.choice.randint(1, 8) * MIB)
        self.pool.device.reload(self.pool.table())

    def do_grow_metadata(self):
        if self.pool.metadata.size >= 32 * MIB:
            return False
        self.pool.metadata.grow(self.pool.metadata.size + MIB)
        self.pool.device.reload(self.pool.table())

    def do_drop_caches(self):
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("3")

    def do_memory(self):
        with short_of_memory():
            self.do_change()
            self.do_reload_volume()

    def finish(self):
        for writer in self.writers:
            writer.finish()
        for content in self.kept.values():
            content.verify()
        status = self.pool.status()
        assert status.mode == "rw" and not status.needs_check, self.pool.device.status()


@pytest.mark.smoke
@pytest.mark.seeds("stress_rounds", 1)
def test_everything_at_once(make_pool, run, settings, figures, progress, seed):
    """fio verifies what it wrote; snapshots change only by what the test does; the metadata must stay sound."""
    smoke = run["mark"] == "smoke"
    seconds = settings("stress_seconds", 12 if smoke else 20)
    began = time.monotonic()
    with Watchdog(PATIENCE * (2 if smoke else 1)) as watchdog:
        stress = Stress(make_pool, run["impl"], seed)
        stress.start(seconds)
        try:
            # On a slow machine the writers may be done before anything was.
            while stress.turns < 10 or all(writer.running() for writer in stress.writers):
                watchdog.beat(stress.turn())
                progress(f"stress: seed {seed}, {time.monotonic() - began:.0f} s, {stress.turns} turns")
                time.sleep(0.02)
            watchdog.beat("the writers' end")
            stress.finish()
        except BaseException:
            for writer in stress.writers:
                writer.kill()
            raise
    figures("stress", seed=seed, seconds=round(time.monotonic() - began), turns=stress.turns, **stress.done)


def test_watchdog(tmp_path, kernel):
    """It barks when nothing moves, and says who waits; it is quiet otherwise."""
    ends = []
    with Watchdog(3, str(tmp_path / "log"), ends.append) as watchdog:
        for _ in range(5):
            time.sleep(1)
            watchdog.beat("quiet")
        assert not ends
        time.sleep(5)
        assert ends == [1]
    text = (tmp_path / "log").read_text()
    assert "since: quiet" in text and "test_watchdog" in text
    assert isinstance(blocked_tasks(), list)
