# SPDX-License-Identifier: GPL-2.0
"""thinctl: what it must know, hold or heed from one step to the next, however long that takes."""

import contextlib
import os
import signal
import subprocess
import time

import pytest

from dmtest import dm
from dmtest.content import Content
from dmtest.disk import SECTOR
from dmtest.thinctl import (
    SIZE,
    Halts,
    goes_on,
    received,
    volumes,
)


def halted(thinctl, step, *words):
    """Starts it, until it stops before a step; gives the process, which has not ended."""
    process, is_halted = thinctl.halted(step, *words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if not is_halted:
        pytest.fail(f"it was not halted before step {step}: {process.communicate()[1]}")
    return process


def test_keeps_what_it_has_sent(pool, other, thinctl, mounted):
    """The snapshot could not be noted when it was taken, but when it was sent."""
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 3)
    home = mounted("tmpfs", "size=64k", "tmpfs")
    # It is halted nowhere.
    receive = f"THINCTL_HALT= THINCTL_HOME={thinctl.folder}/other {thinctl.program} receive {other.name} 7"
    words = "replicate", pool.name, 0, "--to", receive
    thinctl.environment["THINCTL_HOME"] = str(home)
    for step in range(1, 200):
        process = halted(thinctl, step, *words, "--turns", 3, "--every", 1)
        # The next step is to note it.
        if volumes(pool) != {0}:
            break
        process.kill()
        process.communicate()
        thinctl.settle(pool)
    with open(home / "ballast", "wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while ballast.write(bytes(1 << 12)) == 1 << 12:
            pass
    process.send_signal(signal.SIGCONT)
    assert "the next turn tries again" in process.stderr.readline()
    os.unlink(home / "ballast")
    process.communicate(timeout=200)
    assert process.returncode == 0
    received(other, 7, content)
    [kept] = thinctl.json("kept", pool.name)
    assert volumes(pool) == {0, kept["id"]}
    content.scatter("second", 3)
    assert not thinctl.json(*words, "--turns", 1)["whole"]
    received(other, 7, content)


class Replacements(Halts):
    """Streams that change volumes of their own."""

    def __init__(self, pool, other, *rest):
        super().__init__(*rest, pool, other)
        self.other = other
        content = Content(pool.new_thin(0, SIZE))
        content.scatter("first", 6)
        self.thinctl.snapshot(pool, 0, 1)
        content.scatter("second", 6)
        self.thinctl.snapshot(pool, 0, 2)
        self.content = content
        self.whole, self.changes = self.thinctl.send(pool, 1), self.thinctl.send(pool, 2, "--from", 1)
        self.path = os.path.join(self.thinctl.folder, "changes")
        with open(self.path, "wb") as file:
            file.write(self.changes)

    def prepare(self):
        self.id = 6 + self.number
        self.thinctl.receive(self.other, self.id, self.whole)
        return "receive", self.other.name, self.id

    def halted(self, step, *more, **options):
        with open(self.path, "rb") as file:
            return super().halted(step, *more, stdin=file, **options)

    def notes(self):
        return self.thinctl.notes(self.other, f"partial-{self.id}.json")


@pytest.mark.parametrize("way", ["receive", "abandon"])
def test_gives_up_nothing_whose_place_is_gone(pool, other, thinctl, progress, way):
    """It has deleted the volume whose place it takes, and is killed; then somebody makes another one."""
    changes = Replacements(pool, other, thinctl, progress)
    for step in range(changes.first(lambda: False) + 2, 0, -1):
        process, is_halted = changes.halted(step)
        notes = changes.notes()
        if is_halted and notes and notes["complete"] and changes.id not in volumes(other):
            break
        if is_halted:
            goes_on(process)
    else:
        pytest.fail("it was never halted there")
    process.kill()
    process.wait()
    thinctl.settle(other)
    new = Content(other.new_thin(changes.id, SIZE))
    new.scatter("new", 4)
    new.thin.remove()
    assert "another one since" in thinctl.refused("receive", other.name, changes.id, input=changes.changes)
    assert "another one since" in thinctl.refused("abandon", other.name, changes.id)
    received(other, changes.id, new)
    received(other, notes["temporary"], changes.content)
    other.delete(changes.id)
    thinctl.run(way, other.name, changes.id, input=changes.changes)
    received(other, changes.id, changes.content)
    assert notes["temporary"] not in volumes(other) and not changes.notes()


class OverOrigin(Halts):
    """Migrations of inactive volumes with an external origin."""

    def __init__(self, pool, other, *rest):
        super().__init__(*rest, pool, other)
        self.pool, self.other = pool, other

    def prepare(self):
        self.content = Content(self.pool.new_thin(self.number, SIZE))
        self.content.scatter("first", 3)
        self.content.thin.remove()
        target = f"{self.other.name}:{100 + self.number}"
        return "migrate", f"{self.pool.name}:{self.number}", target, "--origin", "/dev/mapper/origin"

    def has_copied(self):
        notes = self.thinctl.notes(self.pool, f"migrate-{self.number}.json")
        # Those of one that is done are gone.
        return (notes and notes["copied"]) or 100 + self.number in volumes(self.other)


def test_its_origin_stays(pool, other, make_disk, thinctl, progress):
    """An external origin is known by its number, which another device could get between two passes."""
    disk = make_disk(SIZE)
    assert dm.dmsetup("create", "origin", "--table", f"0 {SIZE // SECTOR} linear {disk.path} 0").returncode == 0
    migrations = OverOrigin(pool, other, thinctl, progress)
    try:
        first = migrations.first(migrations.has_copied)
        # What a step is may differ by a few from one run to the next.
        for step in range(first, first + 12):
            process, is_halted = migrations.halted(step)
            notes = thinctl.notes(pool, f"migrate-{migrations.number}.json")
            if is_halted and notes and notes["stage"] == "copying" and notes["copied"]:
                break
            goes_on(process)
        else:
            pytest.fail("it was never halted between two passes")
        removed = dm.dmsetup("remove", "origin")
        assert "busy" in removed.stderr
        assert goes_on(process) == 0
    finally:
        assert dm.dmsetup("remove", "origin").returncode == 0
    received(other, 100 + migrations.number, migrations.content)


def test_turns_that_have_nothing_to_do_rest(pool, thinctl):
    """However soon they are to follow each other."""
    pool.new_thin(0, SIZE).write(0, bytes(SECTOR))
    words = "replicate", pool.name, 0, "--to", "cat >/dev/null", "--every", 0
    process = thinctl.start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "bytes sent" in process.stdout.readline()
    begun = time.monotonic()
    assert "nothing has changed" in process.stdout.readline()
    assert "nothing has changed" in process.stdout.readline()
    assert "nothing has changed" in process.stdout.readline()
    assert time.monotonic() - begun > 1.5
    process.terminate()
    process.communicate()
    # Nor do those that fail.
    words = "replicate", pool.name, 0, "--to", "cat >/dev/null; false", "--every", 0
    process = thinctl.start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    begun = time.monotonic()
    for _ in range(3):
        while "tries again" not in process.stderr.readline():
            assert process.poll() is None
    assert time.monotonic() - begun > 1.5
    process.terminate()
    process.communicate()


def test_heeds_no_signal_that_is_ignored(pool, thinctl):
    """As with nohup, when the terminal goes."""
    pool.new_thin(0, SIZE).write(0, bytes(SECTOR))
    words = "replicate", pool.name, 0, "--to", "cat >/dev/null", "--every", 1
    process = thinctl.start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert "bytes sent" in process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    for _ in range(5):
        assert "nothing has changed" in process.stdout.readline()
    process.terminate()
    process.communicate()
    assert process.returncode
