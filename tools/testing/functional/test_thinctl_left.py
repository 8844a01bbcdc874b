# SPDX-License-Identifier: GPL-2.0
"""thinctl: what cannot be resumed at once is resumed as soon as it can be, and somebody is told of it."""

import contextlib
import os
import signal
import subprocess
import time

import pytest

from dmtest.background import wait_until
from dmtest.content import Content
from dmtest.disk import MIB
from dmtest.dm import (
    Device,
    dmsetup,
)
from dmtest.thinctl import (
    BUSY,
    FAILED,
    SIZE,
    Halts,
    full_pipe,
    goes_on,
    suspended,
    volumes,
)


class Snapshots(Halts):
    """Of volume 0."""

    # The first step after it is suspended, as was found out.
    step = None

    def __init__(self, pool, *rest):
        super().__init__(*rest, pool)
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


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_says_what_stays_suspended(thinctl, pool, snapshots, bad, kind):
    if kind == "file":
        path = os.path.join(thinctl.folder, "said")
        reader, writer = os.open(path, os.O_RDONLY | os.O_CREAT), os.open(path, os.O_WRONLY | os.O_APPEND)
    else:
        reader, writer = os.pipe()
    process = snapshots.suspended(stderr=writer)
    os.close(writer)
    snapshots.thin.load(bad)
    assert goes_on(process) == FAILED
    # Its guard may have the other end of the pipe.
    said = os.read(reader, 4096).decode()
    os.close(reader)
    assert f"{snapshots.thin.name} could not be resumed" in said
    assert suspended(snapshots.thin.name)
    snapshots.thin.load(snapshots.thin.table_text())
    snapshots.runs()
    thinctl.settle(pool)
    assert not thinctl.leftovers(pool)


def test_says_it_to_the_kernel(thinctl, pool, snapshots, bad, mounted, kernel):
    """What it says goes to a file on the volume."""
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=1,nodiscard", snapshots.thin.path], check=True)
    folder = mounted(snapshots.thin.path)
    with open(folder / "log", "w") as log:
        process = snapshots.suspended(stderr=log)
    try:
        snapshots.thin.load(bad)
        kernel.lines()
        assert goes_on(process) == FAILED
        assert any(f"thinctl: {snapshots.thin.name} could not be resumed" in line for line in kernel.lines())
    finally:
        snapshots.thin.load(snapshots.thin.table_text())
    wait_until(lambda: not suspended(snapshots.thin.name), "the volume goes on")
    # Its guard has the file open, too.
    wait_until(lambda: subprocess.run(["umount", folder], stderr=subprocess.DEVNULL).returncode == 0, "its guard ends")
    thinctl.settle(pool)
    assert not thinctl.leftovers(pool)


class Backups(Snapshots):
    step = None

    def prepare(self):
        self.before = volumes(self.pool)
        return "backup", self.pool.name, 0, self.repository, "--name", f"data{self.number}"

    def after(self):
        if not self.step:
            type(self).step = self.first(lambda: suspended(self.thin.name) or volumes(self.pool) - self.before)
        return self.step


def test_backs_nothing_up_that_was_resumed(pool, thinctl, progress):
    """Somebody else resumes the volume meanwhile: it may have a write in a block that is shared by now."""
    backups = Backups(pool, thinctl, progress)
    backups.repository = thinctl.repository("backups")
    process = backups.suspended(stderr=subprocess.PIPE)
    backups.thin.resume()
    process.send_signal(signal.SIGCONT)
    errors = process.communicate(timeout=200)[1].decode()
    assert process.returncode == BUSY and "resumed" in errors, errors
    assert volumes(pool) == backups.before and not thinctl.leftovers(pool)
    thinctl.run(*backups.prepare())


@pytest.mark.parametrize("ended", [False, True], ids=["fails", "terminated"])
def test_writes_no_notes_to_what_stays_suspended(pool, thinctl, progress, bad, mounted, ended):
    """What it remembers lies on the volume, and whoever writes there cannot be ended."""
    backups = Backups(pool, thinctl, progress)
    backups.repository = thinctl.repository("backups")
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=1,nodiscard", backups.thin.path], check=True)
    folder = mounted(backups.thin.path)
    thinctl.environment["THINCTL_HOME"] = str(folder / "home")
    thinctl.settle(pool)
    process = backups.suspended()
    try:
        backups.thin.load(bad)
        process.send_signal(signal.SIGCONT)
        if ended:
            process.send_signal(signal.SIGTERM)
        process.wait(60)
        assert suspended(backups.thin.name)
    finally:
        backups.thin.load(backups.thin.table_text())
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not suspended(backups.thin.name), "the volume goes on", 20)
        is_resumed = not suspended(backups.thin.name)
        if not is_resumed:
            backups.thin.resume()
    assert is_resumed
    thinctl.settle(pool)
    assert not thinctl.leftovers(pool)
    wait_until(lambda: subprocess.run(["umount", folder], stderr=subprocess.DEVNULL).returncode == 0, "its guard ends")


def test_rests_with_nothing_suspended(pool, thinctl, snapshots, bad):
    """The next turn comes in ten minutes, and its guard has to wait for its end."""
    snapshots.prepare = lambda: ("replicate", pool.name, 0, "--to", "cat >/dev/null", "--every", 600, "--turns", 2)
    process = None
    try:
        for step in range(1, 100):
            process, is_halted = snapshots.halted(step)
            assert is_halted
            if suspended(snapshots.thin.name):
                break
            process.kill()
            process.wait()
            thinctl.settle(pool)
        snapshots.thin.load(bad)
        process.send_signal(signal.SIGCONT)
        # For some seconds it tries itself.
        time.sleep(8)
        snapshots.thin.load(snapshots.thin.table_text())
        snapshots.runs()
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(60)
    thinctl.settle(pool)
    assert not thinctl.leftovers(pool)


@pytest.fixture
def takes_its_name(pool, snapshots):
    """Renames the volume, and gives its name to another one."""
    pool.create_thin(1)
    made = []

    def take():
        name = snapshots.thin.name
        assert dmsetup("rename", name, "moved").returncode == 0
        made.append(Device.create(name, f"0 {SIZE // 512} thin {pool.device.number} 1"))
        return made[-1]

    def give_back():
        made.pop().remove()
        assert dmsetup("rename", "moved", snapshots.thin.name).returncode == 0

    take.back = give_back
    yield take
    if made:
        made[-1].resume()
        give_back()


def is_noted(thinctl, pool):
    """Whether the volume is suspended, or about to be."""
    folder = os.path.join(thinctl.environment["THINCTL_RUN"], pool.name)
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            if name.startswith("run-") and name.endswith(".json") and '"suspended"' in open(os.path.join(folder, name)).read():
                return True
    return False


def about_to_suspend(thinctl, pool, snapshots, cut=None):
    """A snapshot that is halted right before it suspends the volume, and is killed so many steps later."""
    for step in range(snapshots.after() - 1, snapshots.after() + 12):
        process, is_halted = snapshots.halted(step, cut=step + cut if cut else 0)
        if is_halted and is_noted(thinctl, pool) and not suspended(snapshots.thin.name):
            return process
        if is_halted:
            goes_on(process)
    pytest.fail("it was never halted there")


def test_resumes_what_it_did_not_want_to_suspend(thinctl, pool, snapshots, takes_its_name):
    """Another device has got the name, and is suspended; then it is killed."""
    for cut in range(1, 9):
        process = about_to_suspend(thinctl, pool, snapshots, cut)
        other = takes_its_name()
        goes_on(process)
        wait_until(lambda: not suspended(other.name) and not suspended("moved"), f"both go on, after {cut} steps")
        thinctl.settle(pool)
        takes_its_name.back()
        assert not thinctl.leftovers(pool)
    snapshots.runs()


def test_does_not_forget_what_it_did_not_want_to_suspend(thinctl, pool, snapshots, bad, takes_its_name):
    """It cannot be resumed at once."""
    process = about_to_suspend(thinctl, pool, snapshots)
    other = takes_its_name()
    other.load(bad)
    assert goes_on(process) == FAILED
    assert suspended(other.name) and not suspended("moved")
    other.load(f"0 {SIZE // 512} thin {pool.device.number} 1")
    wait_until(lambda: not suspended(other.name), "it goes on")
    takes_its_name.back()
    snapshots.runs()
    thinctl.settle(pool)
    assert not thinctl.leftovers(pool)
