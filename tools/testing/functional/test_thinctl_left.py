# SPDX-License-Identifier: GPL-2.0
"""thinctl: what cannot be resumed at once is resumed as soon as it can be, and somebody is told of it."""

import contextlib
import os
import time

import pytest

from dmtest.background import wait_until
from dmtest.content import Content
from dmtest.disk import MIB
from dmtest.dm import Device
from dmtest.thinctl import (
    SIZE,
    Halts,
    goes_on,
    suspended,
    volumes,
)


class Snapshots(Halts):
    """Of volume 0."""

    # The first step after it is suspended, as was found out.
    step = None

    def __init__(self, pool, *rest):
        super().__init__(*rest)
        self.pool = pool
        self.content = Content(pool.new_thin(0, SIZE))
        self.content.scatter("first", 6)
        self.thin = self.content.thin

    def prepare(self):
        return "snapshot", self.pool.name, 0, 100 + self.number

    def after(self):
        if not self.step:
            type(self).step = self.first(lambda: suspended(self.thin.name) or 100 + self.number in volumes(self.pool))
        return self.step

    def suspended(self, **options):
        """One that is halted while it has the volume suspended."""
        # What a step is may differ by a few from one run to the next.
        for step in range(self.after(), self.after() + 12):
            process, is_halted = self.halted(step, **options)
            if is_halted and suspended(self.thin.name):
                return process
            if is_halted:
                goes_on(process)
        pytest.fail("it was never halted while the volume was suspended")

    def runs(self):
        """The volume runs again, soon."""
        wait_until(lambda: not suspended(self.thin.name), "the volume goes on")
        self.content.scatter("later", 3)
        self.content.verify()


@pytest.fixture
def snapshots(pool, thinctl, progress):
    made = Snapshots(pool, thinctl, progress)
    yield made
    # For those that have failed.
    for name in made.thin.name, "moved":
        with contextlib.suppress(OSError):
            if suspended(name):
                Device.existing(name).load(made.thin.table_text())
                Device.existing(name).resume()


@pytest.fixture
def bad(make_disk):
    """A table that can be loaded, but that no device can be resumed with: a snapshot would take over from one that runs."""
    origin, exceptions = make_disk(SIZE), make_disk(4 * MIB)
    table = f"0 {origin.sectors} snapshot {origin.path} {exceptions.path} P 8"
    running = Device.create("runs", table)
    yield table
    running.remove()


def full_pipe():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    return reader, writer


def test_guard_waits_for_nobody(thinctl, pool, snapshots, bad):
    """What it says goes to a pipe that nobody reads."""
    reader, writer = full_pipe()
    process = snapshots.suspended(stderr=writer)
    os.close(writer)
    snapshots.thin.load(bad)
    process.kill()
    process.wait()
    wait_until(lambda: " P " in snapshots.thin.table(), "its guard has tried")
    assert suspended(snapshots.thin.name)
    snapshots.thin.load(snapshots.thin.table_text())
    snapshots.runs()
    with open(reader, "rb") as said:
        assert b"resume" in said.read()
    thinctl.settle(pool)
    assert not thinctl.leftovers(pool)


def test_guard_does_not_give_up(thinctl, pool, snapshots, bad):
    process = snapshots.suspended()
    snapshots.thin.load(bad)
    process.kill()
    process.wait()
    time.sleep(14)
    assert suspended(snapshots.thin.name)
    snapshots.thin.load(snapshots.thin.table_text())
    snapshots.runs()
    thinctl.settle(pool)
    assert not thinctl.leftovers(pool)


def test_guard_minds_no_notes_of_others(thinctl, pool, snapshots):
    """Those that come first are damaged."""
    process = snapshots.suspended()
    folder = os.path.join(thinctl.environment["THINCTL_RUN"], pool.name)
    for end, text in ("json", "["), ("lock", ""):
        with open(os.path.join(folder, f"run-0.{end}"), "w") as file:
            file.write(text)
    process.kill()
    process.wait()
    snapshots.runs()
    for end in "json", "lock":
        os.unlink(os.path.join(folder, f"run-0.{end}"))
    thinctl.settle(pool)
    assert not thinctl.leftovers(pool)
