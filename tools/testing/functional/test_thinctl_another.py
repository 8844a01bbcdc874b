# SPDX-License-Identifier: GPL-2.0
"""thinctl: a run that goes on finds another volume or device than the one that it began with, or one that was used."""

import contextlib
import fcntl
import os
import random
import shutil
import signal
import subprocess

import pytest

from dmtest import disk, ioctl
from dmtest.background import wait_until
from dmtest.content import Content
from dmtest.disk import (
    KIB,
    MIB,
)
from dmtest.dm import dmsetup
from dmtest.thinctl import (
    BUSY,
    DAMAGED,
    SIZE,
    first_step,
    goes_on,
    received,
    suspended,
    volumes,
)


class Runs:
    """Commands of their own volumes each, cut off before a step near their end.

    What `prepare` makes is alike each time, so that all have as many steps.
    """

    # How many there are, as was found out.
    steps = {}

    def __init__(self, pools, thinctl, progress):
        self.pools, self.thinctl, self.progress = pools, thinctl, progress
        self.number = -1

    def words(self):
        raise NotImplementedError

    def prepare(self):
        """Makes the volume of the next command."""

    def is_cut_off(self, step):
        # What the run before has left would be undone by this one, which were some steps more.
        for pool in self.pools:
            self.thinctl.settle(pool)
        self.number += 1
        self.progress(f"runs: {self.number}")
        self.prepare()
        self.thinctl.environment["THINCTL_CUT"] = str(step)
        code = self.thinctl.cut(*self.words(), after=200)
        del self.thinctl.environment["THINCTL_CUT"]
        return code == -signal.SIGKILL

    def cut_where(self, wanted, stride=1):
        """Cuts one off at the last step at which `wanted()`; only one of `stride` is tried."""
        if type(self) not in self.steps:
            first, last = 1, 1024
            while last - first > 1:
                middle = (first + last) // 2
                first, last = (middle, last) if self.is_cut_off(middle) else (first, middle)
            self.steps[type(self)] = first
        for step in range(self.steps[type(self)] + 1, 0, -stride):
            if self.is_cut_off(step) and wanted():
                return
        pytest.fail("it was never cut off there")

    def cut_after(self, is_there, wanted):
        """Cuts one off at a step at which `wanted()`, soon after the first one at which `is_there()`, as at all later ones."""
        last, step = 0, 1024
        while step - last > 1:
            middle = (last + step) // 2
            last, step = (middle, step) if self.is_cut_off(middle) and not is_there() else (last, middle)
        # What a step is may differ by a few from one run to the next.
        for near in range(step, step + 12):
            if self.is_cut_off(near) and wanted():
                return
        pytest.fail("it was never cut off there")


class Migrations(Runs):
    def __init__(self, pool, other, *rest):
        super().__init__((pool, other), *rest)
        self.pool, self.other = pool, other

    def words(self, *more):
        return "migrate", f"{self.pool.name}:{self.number}", f"{self.other.name}:{self.copy}", "--no-origin", *more

    def prepare(self):
        self.copy = 100 + self.number
        self.content = Content(self.pool.new_thin(self.number, SIZE))
        self.content.scatter("first", 6, most=64)
        self.content.thin.remove()

    def left(self, *stages):
        """Whether the snapshot that was copied is there, and the copy without its id; None if it is not as good as done."""
        notes = self.thinctl.notes(self.pool, f"migrate-{self.number}.json")
        if not notes or notes["stage"] not in ("done", *stages) or self.copy not in volumes(self.other):
            return None
        self.last, self.temporary = notes["copied"], notes["temporary"]
        return self.last in volumes(self.pool), self.temporary in volumes(self.other)

    def has_copied(self):
        """Whether it has copied a snapshot, which is there, and is not as good as done."""
        notes = self.thinctl.notes(self.pool, f"migrate-{self.number}.json")
        if not notes or notes["stage"] != "copying" or notes["copied"] is None:
            return False
        self.last, self.temporary = notes["copied"], notes["temporary"]
        return self.last in volumes(self.pool)

    def use(self):
        now = self.content.snapshot(self.content.thin)
        thin = self.pool.activate(self.number, SIZE)
        now.on(thin).scatter("used", 2, most=16)
        thin.flush()
        thin.remove()
        return now


@pytest.fixture
def migrations(pool, other, thinctl, progress):
    return Migrations(pool, other, thinctl, progress)


def test_takes_no_other_volume_for_the_one_that_was_migrated(pool, other, thinctl, migrations):
    """Its admin deletes it, as it was migrated, and makes another one, which gets its id."""
    migrations.cut_where(lambda: migrations.left("switching") == (True, True), stride=5)
    number, copy = migrations.number, migrations.copy
    pool.delete(number)
    new = Content(pool.new_thin(number, SIZE))
    new.scatter("new", 6, most=64)
    new.thin.remove()
    for more in (), ("--delete",):
        assert "another one" in thinctl.refused(*migrations.words(*more))
        received(other, copy, migrations.content)
        received(pool, number, new)
    assert migrations.left("switching") == (True, True)
    # Both stay.
    thinctl.run("forget", pool.name, migrations.last)
    assert not thinctl.notes(pool, f"migrate-{number}.json")
    assert migrations.last not in volumes(pool) and migrations.temporary not in volumes(other)
    received(other, copy, migrations.content)
    received(pool, number, new)


@pytest.mark.parametrize("delete", [False, True], ids=["kept", "deleted"])
@pytest.mark.parametrize("temporary", [True, False], ids=["early", "late"])
def test_takes_no_empty_volume_for_the_copy(pool, other, thinctl, migrations, temporary, delete):
    """Somebody deletes the copy, and makes an empty volume of its id. No snapshot was taken in between."""
    def wanted():
        notes = thinctl.notes(pool, f"migrate-{migrations.number}.json")
        stage = notes and notes["stage"]
        return stage == ("switching" if temporary else "done") and migrations.left("switching") == (True, temporary)

    if temporary:
        migrations.cut_after(lambda: migrations.copy in volumes(other), wanted)
    else:
        migrations.cut_where(wanted)
    other.delete(migrations.copy)
    other.new_thin(migrations.copy, SIZE).remove()
    assert "another one" in thinctl.refused(*migrations.words(*["--delete"] * delete))
    received(pool, migrations.number, migrations.content)
    if temporary:
        received(other, migrations.temporary, migrations.content)


class ActiveMigrations(Migrations):
    """Halted at one step, and killed at a later one."""

    def words(self, *more):
        return "migrate", f"{self.pool.name}:{self.number}", f"{self.other.name}:{self.copy}", *more

    def prepare(self):
        for pool in self.pool, self.other:
            for thin in list(pool.thins.values()):
                thin.remove()
        self.copy = 100 + self.number
        self.content = Content(self.pool.new_thin(self.number, SIZE))
        self.content.scatter("first", 6, most=64)

    def notes(self):
        return self.thinctl.notes(self.pool, f"migrate-{self.number}.json")

    def suspended(self):
        return suspended(self.content.thin.name)

    def halted(self, step, cut=0):
        """Gives the process, and whether it was halted."""
        self.number += 1
        self.progress(f"runs: {self.number}")
        self.prepare()
        return self.thinctl.halted(step, *self.words(), cut=cut, stdout=subprocess.DEVNULL)

    def named(self):
        """The first step after the copy has got its id."""
        return first_step(self.halted, lambda: self.copy in volumes(self.other))

    def switches(self):
        """The first step after it has written down that it switches."""
        def is_there():
            notes = self.notes()
            return self.copy in volumes(self.other) or (notes is not None and notes["stage"] == "switching")

        return first_step(self.halted, is_there)


@pytest.fixture
def active(pool, other, thinctl, progress):
    return ActiveMigrations(pool, other, thinctl, progress)


def test_leaves_nothing_behind_that_was_written_before_the_switch(pool, other, thinctl, active):
    """Somebody resumes the volume at any moment of the switch, and it is written to."""
    named, seen = active.named(), False
    # What a step is may differ by a few from one run to the next.
    while not seen:
        for step in range(named - 2, named + 6):
            process, is_halted = active.halted(step)
            assert is_halted
            is_wanted = active.suspended() and active.copy in volumes(other)
            if is_wanted:
                # The new table may be there already.
                seen = seen or not active.content.thin.table(inactive=True)
                active.content.thin.resume()
                active.content.scatter("used", 2, most=16)
                active.content.thin.flush()
            goes_on(process)
            if is_wanted:
                assert not active.suspended()
                active.content.verify()
                # Nor is there a table that becomes the device's later.
                active.content.thin.suspend()
                active.content.thin.resume()
                active.content.verify()


def test_shows_nothing_of_a_pass_that_is_gone(pool, other, thinctl, active):
    """It is cut off while it copies, its snapshot is deleted, and what was new in that is discarded."""
    # What is written before the last pass takes its snapshot is in no other one.
    step = cut = active.switches()
    while True:
        cut += 1
        process, is_halted = active.halted(step, cut)
        assert is_halted
        thin = active.content.thin
        offset = SIZE - MIB
        active.content.write(offset, MIB)
        thin.flush()
        assert goes_on(process) == -signal.SIGKILL, "it was never cut off there"
        wait_until(lambda: not active.suspended(), "the volume goes on")
        notes = active.notes()
        if notes["stage"] != "switching" or notes["copying"] not in volumes(pool) or active.copy in volumes(other):
            continue
        thinctl.settle(pool)
        thinctl.settle(other)
        temporary = other.activate(notes["temporary"], SIZE)
        is_there = temporary.read(offset, MIB) == bytes(active.content.data[offset:])
        temporary.remove()
        if is_there:
            break
    pool.delete(notes["copying"])
    active.content.discard(offset, MIB)
    thinctl.run(*active.words())
    assert thin.table() == f"{other.device.number} {active.copy}"
    active.content.verify()


def test_lets_others_have_their_turn_while_it_waits(pool, other, thinctl, active):
    """Somebody has the metadata snapshot for long, right before the last pass."""
    step = active.switches()
    folder = {kind: os.path.join(thinctl.environment[f"THINCTL_{kind}"], pool.name) for kind in ("HOME", "RUN")}
    with open(os.path.join(folder["HOME"], "slot.lock"), "w") as slot:
        while True:
            step -= 1
            process, is_halted = active.halted(step)
            assert is_halted and step
            is_free = not os.path.exists(os.path.join(folder["RUN"], f"volume-{active.number}.lock"))
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_free:
                    break
                fcntl.flock(slot, fcntl.LOCK_UN)
            goes_on(process)
        process.send_signal(signal.SIGCONT)
        thinctl.snapshot(pool, active.number, 10 ** 6)
        assert process.poll() is None
    process.communicate(timeout=200)
    assert process.returncode == 0
    assert active.content.thin.table() == f"{other.device.number} {active.copy}"


def test_does_not_call_a_copy_right_that_is_stale(pool, other, thinctl, migrations):
    """What tells whether the volume was used is deleted already."""
    migrations.cut_where(lambda: (migrations.left() or [True])[0] is False)
    now = migrations.use()
    assert "was used since" in thinctl.refused(*migrations.words())
    received(other, migrations.copy, migrations.content)
    received(pool, migrations.number, now)
    assert not thinctl.notes(pool, f"migrate-{migrations.number}.json")


@pytest.mark.parametrize("used", [False, True], ids=["alone", "used"])
@pytest.mark.parametrize("delete", [False, True], ids=["kept", "deleted"])
def test_ends_although_the_copy_without_its_id_is_deleted(pool, other, thinctl, migrations, used, delete):
    migrations.cut_where(lambda: migrations.left() == (True, False))
    now = migrations.use() if used else migrations.content
    words = migrations.words(*["--delete"] * delete)
    if used:
        assert "was used since" in thinctl.refused(*words)
    else:
        thinctl.run(*words)
    received(other, migrations.copy, migrations.content)
    if used or not delete:
        received(pool, migrations.number, now)
    assert (migrations.number in volumes(pool)) == (used or not delete)
    assert not {migrations.last, migrations.temporary} & (volumes(pool) | volumes(other))
    assert not thinctl.notes(pool, f"migrate-{migrations.number}.json")


def test_does_not_forget_a_copy_that_may_be_the_last_one(pool, other, thinctl, migrations):
    """Somebody deletes all but the copy without its id."""
    migrations.cut_where(lambda: migrations.left() == (True, True), stride=5)
    pool.delete(migrations.number)
    pool.delete(migrations.last)
    other.delete(migrations.copy)
    for more in (), ("--delete",):
        assert f"volume {migrations.temporary} has what was copied" in thinctl.refused(*migrations.words(*more))
        received(other, migrations.temporary, migrations.content)
    assert migrations.temporary in [kept["id"] for kept in thinctl.json("kept", other.name)]


@pytest.mark.parametrize("where", ["from", "to", "lost"])
def test_gives_up_a_migration(pool, other, thinctl, migrations, where):
    migrations.cut_where(migrations.has_copied, stride=3)
    number = migrations.number
    if where == "lost":
        for thin in list(other.thins.values()):
            thin.remove()
        other.stop()
        thinctl.run("forget", pool.name, migrations.last)
        other.start()
        other.delete(migrations.temporary)
    else:
        thinctl.run("forget", *((pool.name, migrations.last) if where == "from" else (other.name, migrations.temporary)))
    assert not thinctl.notes(pool, f"migrate-{number}.json")
    assert migrations.last not in volumes(pool) and migrations.temporary not in volumes(other)
    received(pool, number, migrations.content)
    thinctl.run("migrate", f"{pool.name}:{number}", f"{other.name}:500", "--no-origin")
    received(other, 500, migrations.content)


def test_gives_up_nothing_that_may_be_all_there_is(pool, other, thinctl, migrations):
    """The volume is gone, and its copy is not there."""
    migrations.cut_where(migrations.has_copied, stride=3)
    pool.delete(migrations.number)
    kept = (pool, migrations.last), (other, migrations.temporary)
    for there, volume in kept:
        assert "is gone" in thinctl.refused("forget", there.name, volume)
    for there, volume in kept:
        received(there, volume, migrations.content)


def test_gives_up_no_migration_that_is_as_good_as_done(pool, other, thinctl, migrations):
    migrations.cut_where(lambda: migrations.left() == (True, True), stride=5)
    pool.delete(migrations.number)
    for words in (pool.name, migrations.last), (other.name, migrations.temporary):
        assert "ends its migration" in thinctl.refused("forget", *words)
    thinctl.run(*migrations.words())
    received(other, migrations.copy, migrations.content)
    assert not {migrations.last, migrations.temporary} & (volumes(pool) | volumes(other))


class Merges(Runs):
    def __init__(self, pool, origin, *rest):
        super().__init__((pool,), *rest)
        self.pool, self.origin = pool, origin

    def words(self):
        return "merge", self.pool.name, self.number, "--into", self.origin.path, "--delete"

    def prepare(self):
        self.before = random.Random(self.number).randbytes(SIZE)
        disk.write(self.origin.path, 0, self.before)
        self.content = Content(self.pool.new_thin(self.number, SIZE, origin=self.origin.path), bytearray(self.before))
        self.content.scatter("first", 6, most=64)
        self.content.thin.remove()


def test_merges_all_of_it_into_what_is_another_device_now(pool, make_disk, thinctl, progress):
    """As good as all was done when it was cut off; then the same words lead to another device."""
    merges = Merges(pool, make_disk(SIZE), thinctl, progress)

    def is_written():
        notes = thinctl.notes(pool, f"merge-{merges.number}.json")
        return notes and notes["written"] and merges.number in volumes(pool)

    merges.cut_where(is_written)
    disk.write(merges.origin.path, 0, merges.before)
    thinctl.run(*merges.words())
    assert disk.read(merges.origin.path, 0, SIZE) == bytes(merges.content.data)
    assert merges.number not in volumes(pool)


def test_gives_up_a_merge(pool, make_disk, thinctl, progress):
    merges = Merges(pool, make_disk(SIZE), thinctl, progress)

    def is_unwritten():
        merges.notes = thinctl.notes(pool, f"merge-{merges.number}.json")
        return merges.notes and not merges.notes["written"]

    merges.cut_where(is_unwritten, stride=3)
    thinctl.run("forget", pool.name, merges.notes["snapshot"])
    assert not thinctl.notes(pool, f"merge-{merges.number}.json")
    assert merges.notes["snapshot"] not in volumes(pool) and merges.number in volumes(pool)
    thin = pool.activate(merges.number, SIZE, merges.origin.path)
    merges.content.on(thin).verify()
    thin.remove()


def test_merges_no_volume_that_has_the_id_of_another(pool, make_disk, thinctl, progress):
    """The one that was half merged is deleted, and another one is made."""
    merges = Merges(pool, make_disk(SIZE), thinctl, progress)

    def is_unwritten():
        merges.notes = thinctl.notes(pool, f"merge-{merges.number}.json")
        return merges.notes and not merges.notes["written"] and merges.notes["snapshot"] in volumes(pool)

    merges.cut_where(is_unwritten, stride=3)
    pool.delete(merges.number)
    again = Content(pool.new_thin(merges.number, SIZE))
    again.scatter("again", 6)
    again.thin.remove()
    there = disk.read(merges.origin.path, 0, SIZE)
    assert "another one" in thinctl.refused(*merges.words())
    assert disk.read(merges.origin.path, 0, SIZE) == there
    # All that is left of the first one.
    snapshot = merges.notes["snapshot"]
    assert {snapshot, merges.number} <= volumes(pool)
    pool.activate(snapshot, SIZE).remove()
    thinctl.run("forget", pool.name, snapshot)
    thinctl.run(*merges.words())
    assert merges.number not in volumes(pool)


@pytest.mark.parametrize("snapshot", [True, False], ids=["early", "late"])
def test_merges_no_volume_that_was_made_after_the_end(pool, make_disk, thinctl, progress, snapshot):
    """All was done but forgetting it, the volume deleted too, and another one is made."""
    merges = Merges(pool, make_disk(SIZE), thinctl, progress)

    def is_done():
        notes = merges.notes = thinctl.notes(pool, f"merge-{merges.number}.json")
        there = volumes(pool)
        return notes and notes["written"] and merges.number not in there and (notes["snapshot"] in there) == snapshot

    merges.cut_where(is_done)
    new = Content(pool.new_thin(merges.number, SIZE))
    new.scatter("new", 6)
    new.thin.remove()
    assert "another one" in thinctl.refused(*merges.words())
    assert disk.read(merges.origin.path, 0, SIZE) == bytes(merges.content.data)
    received(pool, merges.number, new)
    # Nothing is kept any more; the same command begins with the other one.
    assert not thinctl.notes(pool, f"merge-{merges.number}.json") and merges.notes["snapshot"] not in volumes(pool)
    thinctl.run(*merges.words())
    assert merges.number not in volumes(pool)


def test_gives_up_no_merge_that_has_the_last_content(pool, make_disk, thinctl, progress):
    """What the volume was to be merged into is too small, and the volume is gone."""
    merges = Merges(pool, make_disk(SIZE // 2), thinctl, progress)

    def prepare():
        merges.content = Content(pool.new_thin(merges.number, SIZE))
        merges.content.write(SIZE - MIB, MIB)
        merges.content.thin.remove()

    def is_unwritten():
        merges.notes = thinctl.notes(pool, f"merge-{merges.number}.json")
        return merges.notes and not merges.notes["written"] and merges.notes["snapshot"] in volumes(pool)

    merges.prepare = prepare
    merges.cut_where(is_unwritten, stride=3)
    pool.delete(merges.number)
    assert "bytes only" in thinctl.refused(*merges.words())
    received(pool, merges.notes["snapshot"], merges.content)


def test_merges_into_nothing_that_is_used(pool, other, make_disk, thinctl):
    content = Content(pool.new_thin(0, SIZE))
    content.write(0, MIB)
    below = make_disk(SIZE)
    before = disk.read(below.path, 0, SIZE)
    # Its table says that it has no external origin.
    for path in below.path, content.thin.path:
        assert "not its external origin" in thinctl.refused("merge", pool.name, 0, "--into", path)
    content.verify()
    content.thin.remove()
    # Nobody has the pool open as long as none of its volumes is active.
    assert "is pool" in thinctl.refused("merge", pool.name, 0, "--into", other.device.path)
    assert "is pool" in thinctl.refused("merge", pool.name, 0, "--into", pool.device.path)
    assert dmsetup("create", "over", "--table", f"0 {SIZE // 512} linear {below.path} 0").returncode == 0
    assert dmsetup("create", "on-pool", "--table", f"0 {SIZE // 512} linear {other.device.path} 0").returncode == 0
    try:
        assert "is pool" in thinctl.refused("merge", pool.name, 0, "--into", "/dev/mapper/on-pool")
        with open("/dev/mapper/over", "rb"):
            assert "open" in thinctl.refused("merge", pool.name, 0, "--into", "/dev/mapper/over", code=BUSY)
        assert disk.read(below.path, 0, SIZE) == before
        received(pool, 0, content)
        thinctl.run("merge", pool.name, 0, "--into", "/dev/mapper/over")
    finally:
        for name in "over", "on-pool":
            assert dmsetup("remove", name).returncode == 0
    assert disk.read(below.path, 0, MIB) == bytes(content.data[:MIB])


def test_puts_no_older_stream_in_place(pool, other, thinctl):
    """A stream that came whole waits for its place, and another one comes."""
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 6)
    thinctl.snapshot(pool, 0, 1)
    thinctl.receive(other, 7, thinctl.send(pool, 1))
    streams, contents = {}, {1: content.snapshot(content.thin)}
    for number in 2, 3:
        content.scatter(f"change {number}", 4)
        thinctl.snapshot(pool, 0, number)
        contents[number] = content.snapshot(content.thin)
        streams[number] = thinctl.send(pool, number, "--from", 1)
    after = thinctl.send(pool, 3, "--from", 2)

    def come():
        """The second state comes whole, and finds its place in use."""
        thinctl.refused("receive", other.name, 7, code=DAMAGED, input=streams[2][:-1])
        token = thinctl.run("token", other.name, 7).decode().strip()
        notes = os.path.join(thinctl.environment["THINCTL_HOME"], other.name, "partial-7.json")
        with open(notes) as file:
            text = file.read()
        rest = thinctl.send(pool, 2, "--from", 1, "--resume", token)
        assert '"complete": false' in text
        with open(notes, "w") as file:
            file.write(text.replace('"complete": false', '"complete": true'))
        return rest

    come()
    assert "abandon" in thinctl.refused("receive", other.name, 7, input=streams[3])
    received(other, 7, contents[1])
    assert len(volumes(other)) == 2
    # What it is to go on from is put in place.
    thinctl.receive(other, 7, after)
    received(other, 7, contents[3])
    assert volumes(other) == {7}


def test_has_not_received_what_was_deleted(pool, other, thinctl, progress):
    """Somebody deletes what has come right before it is put in place."""
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 6)
    thinctl.snapshot(pool, 0, 1)
    # It does not read it while it is halted.
    path = os.path.join(thinctl.folder, "stream")
    with open(path, "wb") as file:
        file.write(thinctl.send(pool, 1))
    number, seen = 6, 0
    for step in range(1, 200):
        number += 1
        progress(f"step {step}")
        before = thinctl.environment
        thinctl.environment = {**before, "THINCTL_HALT": str(step)}
        with open(path, "rb") as file:
            process = thinctl.start("receive", other.name, number, stdin=file, stderr=subprocess.PIPE)
        thinctl.environment = before
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            process.returncode = os.waitstatus_to_exitcode(status)
            process.communicate()
            break
        notes = thinctl.notes(other, f"partial-{number}.json")
        there = volumes(other)
        if notes and notes["complete"] and notes["temporary"] in there and number not in there:
            # It may still be active.
            with contextlib.suppress(ioctl.DmError):
                other.delete(notes["temporary"])
                seen += 1
        process.send_signal(signal.SIGCONT)
        errors = process.communicate(timeout=200)[1]
        assert (process.returncode == 0) == (number in volumes(other)), errors
    assert seen


def test_looks_at_all_targets_of_a_device(pool, other, thinctl):
    """A volume may be one of several targets."""
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 6)
    content.thin.remove()
    sectors = SIZE // 512
    table = f"0 8 error\n8 {sectors} thin {pool.device.number} 0\n"
    assert dmsetup("create", "several", input=table).returncode == 0
    try:
        for words in ("migrate", f"{pool.name}:0", f"{other.name}:5", "--no-origin"), ("send", pool.name, 0):
            assert "several" in thinctl.refused(*words)
            assert volumes(other) == set() and volumes(pool) == {0}
        thinctl.snapshot(pool, 0, 1)
    finally:
        assert dmsetup("remove", "several").returncode == 0
    received(pool, 1, content)


@pytest.mark.parametrize("keep", [1, 2, 3], ids=lambda keep: f"{keep} kept")
def test_prunes_nothing_if_what_stays_is_damaged(pool, other, thinctl, keep):
    """Two chains: the second one is damaged."""
    repository = thinctl.repository("backups")
    content = Content(pool.new_thin(0, SIZE))
    past = {}
    for number in range(1, 6):
        content.write((number - 1) * 128 * KIB, 64 * KIB)
        if number == 3:
            [kept] = thinctl.json("kept", pool.name)
            thinctl.run("forget", pool.name, kept["id"])
        made = thinctl.json("backup", pool.name, 0, repository, "--name", "data")
        assert made["kind"] == ("full" if number in (1, 3) else "incremental")
        past[number] = content.snapshot(content.thin)
    path = os.path.join(repository, "data", "000003.full.thin")
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0xff]))
    thinctl.refused("prune", repository, "data", "--keep", keep, code=DAMAGED)
    for number in 1, 2:
        thinctl.run("restore", repository, "data", other.name, number, "--generation", number)
        received(other, number, past[number])
    assert len(thinctl.json("backups", repository)["data"]) == 5


@pytest.mark.parametrize("how", ["cut off", "overwritten"])
def test_goes_on_from_no_damaged_full_copy(pool, other, thinctl, how):
    """Pruning was cut off when the full copy was there, which is damaged since; what it replaces is not."""
    repository = thinctl.repository("backups")
    content = Content(pool.new_thin(0, SIZE))
    past = {}
    for number in range(1, 4):
        content.write((number - 1) * 128 * KIB, 64 * KIB)
        thinctl.run("backup", pool.name, 0, repository, "--name", "data")
        past[number] = content.snapshot(content.thin)
    pruned = os.path.join(thinctl.folder, "pruned")
    shutil.copytree(repository, pruned)
    thinctl.run("prune", pruned, "data", "--keep", 1)
    for name in os.listdir(os.path.join(pruned, "data")):
        if name.startswith("000003.full."):
            shutil.copy(os.path.join(pruned, "data", name), os.path.join(repository, "data"))
    path = os.path.join(repository, "data", "000003.full.thin")
    if how == "cut off":
        os.truncate(path, os.path.getsize(path) // 2)
    else:
        with open(path, "r+b") as file:
            file.seek(os.path.getsize(path) // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 0xff]))
    content.write(MIB, 64 * KIB)
    thinctl.run("backup", pool.name, 0, repository, "--name", "data")
    past[4] = content.snapshot(content.thin)
    for number in past:
        thinctl.run("restore", repository, "data", other.name, number, "--generation", number)
        received(other, number, past[number])
    # What was damaged is made anew.
    thinctl.run("prune", repository, "data", "--keep", 2)
    thinctl.run("restore", repository, "data", other.name, 13, "--generation", 3)
    received(other, 13, past[3])


def test_replicates_from_a_pool_that_is_another_device(pool, other, thinctl):
    """It is deactivated between two turns, and gets another number. The volume must be suspended all the same."""
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 6)
    turns = os.path.join(thinctl.folder, "turns")
    receive = f"{thinctl.program} receive {other.name} 7; echo >>{turns}"
    words = "replicate", pool.name, 0, "--to", receive, "--every", 10, "--turns", 2
    process = thinctl.start(*words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: os.path.exists(turns), "the first turn")
        # It may still be about to delete what it does not need any more.
        wait_until(lambda: len(volumes(pool)) == 2, "its end")
        content.thin.remove()
        before = pool.device.number
        pool.stop()
        assert dmsetup("create", "between", "--table", "0 8 error").returncode == 0
        pool.start()
        assert pool.device.number != before
        content = content.on(pool.activate(0, SIZE))
        content.scatter("second", 6)
        # What is not written back yet is seen only if the volume is suspended.
        flushed = content.snapshot(content.thin)
        errors = process.communicate(timeout=200)[1]
    finally:
        process.kill()
        process.communicate()
        if "between" in ioctl.names():
            assert dmsetup("remove", "between").returncode == 0
    assert process.returncode == 0, errors
    assert b"tries again" not in errors, errors
    received(other, 7, flushed)
