# SPDX-License-Identifier: GPL-2.0
"""thinctl: a run that goes on finds another volume or device than the one that it began with, or one that was used."""

import os
import random

import pytest

from dmtest import disk
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
    received,
    volumes,
)


class Runs:
    """Commands of their own volumes each, cut off before a step near their end."""

    # How many there are, as was found out.
    steps = {}

    def __init__(self, thinctl, progress):
        self.thinctl, self.progress = thinctl, progress
        self.number = -1

    def words(self):
        raise NotImplementedError

    def prepare(self):
        """Makes the volume of the next command."""

    def is_cut_off(self, step):
        self.number += 1
        self.progress(f"runs: {self.number}")
        self.prepare()
        self.thinctl.environment["THINCTL_CUT"] = str(step)
        code = self.thinctl.cut(*self.words(), after=200)
        del self.thinctl.environment["THINCTL_CUT"]
        return code != 0

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


class Migrations(Runs):
    def __init__(self, pool, other, *rest):
        super().__init__(*rest)
        self.pool, self.other = pool, other

    def words(self, *more):
        return "migrate", f"{self.pool.name}:{self.number}", f"{self.other.name}:{self.copy}", "--no-origin", *more

    def prepare(self):
        self.copy = 100 + self.number
        self.content = Content(self.pool.new_thin(self.number, SIZE))
        self.content.scatter(f"first {self.number}", 6, most=64)
        self.content.thin.remove()

    def left(self, *stages):
        """Whether the snapshot that was copied is there, and the copy without its id; None if it is not as good as done."""
        notes = self.thinctl.notes(self.pool, f"migrate-{self.number}.json")
        if not notes or notes["stage"] not in ("done", *stages) or self.copy not in volumes(self.other):
            return None
        self.last, self.temporary = notes["copied"], notes["temporary"]
        return self.last in volumes(self.pool), self.temporary in volumes(self.other)

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
    migrations.cut_where(lambda: migrations.left("switching") == (True, True))
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
    migrations.cut_where(lambda: migrations.left() == (True, True))
    pool.delete(migrations.number)
    pool.delete(migrations.last)
    other.delete(migrations.copy)
    for more in (), ("--delete",):
        assert f"volume {migrations.temporary} has what was copied" in thinctl.refused(*migrations.words(*more))
        received(other, migrations.temporary, migrations.content)
    assert migrations.temporary in [kept["id"] for kept in thinctl.json("kept", other.name)]


@pytest.mark.parametrize("where", ["from", "to", "lost"])
def test_gives_up_a_migration(pool, other, thinctl, migrations, where):
    def is_copying():
        notes = thinctl.notes(pool, f"migrate-{migrations.number}.json")
        if not notes or notes["stage"] != "copying" or notes["copied"] is None:
            return False
        migrations.last, migrations.temporary = notes["copied"], notes["temporary"]
        return migrations.last in volumes(pool)

    migrations.cut_where(is_copying, stride=3)
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


def test_gives_up_no_migration_that_is_as_good_as_done(pool, other, thinctl, migrations):
    migrations.cut_where(lambda: migrations.left() == (True, True))
    pool.delete(migrations.number)
    for words in (pool.name, migrations.last), (other.name, migrations.temporary):
        assert "ends its migration" in thinctl.refused("forget", *words)
    thinctl.run(*migrations.words())
    received(other, migrations.copy, migrations.content)
    assert not {migrations.last, migrations.temporary} & (volumes(pool) | volumes(other))


class Merges(Runs):
    def __init__(self, pool, origin, *rest):
        super().__init__(*rest)
        self.pool, self.origin = pool, origin

    def words(self):
        return "merge", self.pool.name, self.number, "--into", self.origin.path, "--delete"

    def prepare(self):
        self.before = random.Random(self.number).randbytes(SIZE)
        disk.write(self.origin.path, 0, self.before)
        self.content = Content(self.pool.new_thin(self.number, SIZE, origin=self.origin.path), bytearray(self.before))
        self.content.scatter(f"first {self.number}", 6, most=64)
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
