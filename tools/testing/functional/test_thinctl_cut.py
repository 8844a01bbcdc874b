# SPDX-License-Identifier: GPL-2.0
"""thinctl, killed before each step that changes something, gone on with, and used in between.

With --set cut_step=1 all of the steps are tried; otherwise as many are left out, on average, between two of them.
"""

import os
import random
import signal
from subprocess import PIPE

import pytest

from dmtest import disk, ioctl
from dmtest.background import wait_until
from dmtest.content import Content
from dmtest.disk import (
    KIB,
    MIB,
)
from dmtest.thinctl import (
    DAMAGED,
    NOT_FOUND,
    REFUSED,
    volumes,
)

# Little, so that there are not too many steps, and that it is soon looked at.
SIZE = MIB
METADATA = 2 * MIB


@pytest.fixture
def pool(make_pool):
    return make_pool(metadata_size=METADATA)


@pytest.fixture
def other(make_pool, pool):
    return make_pool(metadata_size=METADATA, block_sectors=256)


class Case:
    """A command, and what must have become of the volumes after it was cut off and gone on with."""

    def __init__(self, pool, other, thinctl, make_disk, number):
        self.pool, self.other, self.thinctl, self.make_disk = pool, other, thinctl, make_disk
        self.choice = random.Random(f"{type(self).__name__} {number}")
        self.content = Content(pool.new_thin(0, SIZE))
        self.content.scatter(f"first {number}", 6, most=64)
        self.prepare()

    def prepare(self):
        """Makes what the command needs, and sets `words`, `input`."""

    input = None
    # One of how many of its steps is taken, unless fewer are left out: some have few.
    step = 12
    # Whether it matters what somebody does between the two runs.
    uses = True

    def inactive(self):
        self.content.thin.remove()

    def written(self, pool, volume, content):
        """Somebody activates a volume, looks whether it is right, writes to it, and deactivates it."""
        thin = pool.activate(volume, SIZE, content.thin.origin if pool is self.pool else None)
        there = content.on(thin)
        there.verify()
        there.scatter(f"used {self.choice.random()}", 2, most=16)
        thin.flush()
        thin.remove()

    def holds(self, pool, volume, content):
        thin = pool.activate(volume, SIZE, content.thin.origin if pool is self.pool else None)
        content.on(thin).verify()
        thin.remove()

    def ends(self, *codes):
        """Goes on, to one of these exit codes."""
        process = self.thinctl.start(*self.words, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        errors = process.communicate(self.input)[1].decode()
        assert process.returncode in codes, f"{process.returncode}: {errors}"
        return process.returncode

    def cut_off(self):
        """Looks at what is left, before anybody does anything else."""

    def use(self):
        """What somebody does between the two runs."""

    def go_on(self, used):
        """Goes on, and looks at what there is."""
        raise NotImplementedError


class Snapshot(Case):
    def prepare(self):
        self.words = "snapshot", self.pool.name, 0, 1

    def use(self):
        self.then = self.content.snapshot(self.content.thin)
        self.content.scatter("used", 2)

    def go_on(self, used):
        there = 1 in volumes(self.pool)
        then = self.then if used and there else self.content.snapshot(self.content.thin)
        self.ends(REFUSED if there else 0)
        self.content.scatter("later", 2)
        self.holds(self.pool, 1, then)
        assert volumes(self.pool) == {0, 1}


class Receive(Case):
    """A whole volume."""

    def prepare(self):
        self.thinctl.snapshot(self.pool, 0, 1)
        self.input = self.thinctl.send(self.pool, 1)
        self.words = "receive", self.other.name, 7
        self.before, self.after = None, self.content.snapshot(self.content.thin)

    def now(self):
        """What volume 7 holds, which must be all or nothing of it."""
        if 7 not in volumes(self.other):
            return None
        thin = self.other.activate(7, SIZE)
        data = thin.read()
        thin.remove()
        assert data in [bytes(one.data) for one in (self.before, self.after) if one]
        return Content(self.content.thin, bytearray(data))

    def use(self):
        self.used = self.now()
        if self.used:
            self.written(self.other, 7, self.used)

    def go_on(self, used):
        if used and self.used:
            self.ends(REFUSED)
            self.holds(self.other, 7, self.used)
            self.words = "abandon", self.other.name, 7
            self.input = None
            self.ends(0, NOT_FOUND)
            self.holds(self.other, 7, self.used)
        else:
            self.now()
            self.ends(0)
            self.holds(self.other, 7, self.after)
        assert volumes(self.other) == {7}


class ReceiveChanges(Receive):
    def prepare(self):
        super().prepare()
        self.thinctl.receive(self.other, 7, self.input)
        self.before = self.after
        self.content.scatter("second", 4, most=64)
        self.content.discard(self.choice.randrange(0, SIZE, 64 * KIB), 64 * KIB)
        self.thinctl.snapshot(self.pool, 0, 2)
        self.input = self.thinctl.send(self.pool, 2, "--from", 1)
        self.after = self.content.snapshot(self.content.thin)


class ReceiveRest(ReceiveChanges):
    def prepare(self):
        super().prepare()
        self.thinctl.refused(*self.words, code=DAMAGED, input=self.input[:len(self.input) // 2])
        token = self.thinctl.run("token", self.other.name, 7).decode().strip()
        self.input = self.thinctl.send(self.pool, 2, "--from", 1, "--resume", token)


class Migrate(Case):
    """A volume that is active."""

    # They have some 330 steps.
    step = 24

    def prepare(self):
        self.words = "migrate", f"{self.pool.name}:0", f"{self.other.name}:5"

    def use(self):
        self.content.verify()
        self.content.scatter("used", 2)

    def go_on(self, used):
        thin = self.content.thin
        there = thin.table() == f"{self.other.device.number} 5"
        self.ends(0, *([REFUSED] if there else []))
        assert thin.table() == f"{self.other.device.number} 5"
        self.content.verify()
        self.inactive()
        assert volumes(self.pool) == {0} and volumes(self.other) == {5}


class MigrateInactive(Case):
    step = 24
    delete = True
    uses_copy = uses_volume = False

    def prepare(self):
        self.inactive()
        self.words = "migrate", f"{self.pool.name}:0", f"{self.other.name}:5", "--no-origin", *["--delete"] * self.delete
        self.copy = self.content.snapshot(self.content.thin)

    def use(self):
        self.is_used = 0 in volumes(self.pool) and self.uses_volume
        self.is_copy_used = 5 in volumes(self.other) and self.uses_copy
        if self.is_used:
            self.written(self.pool, 0, self.content)
        if self.is_copy_used:
            self.written(self.other, 5, self.copy)

    def go_on(self, used):
        is_used, is_copy_used = used and self.is_used, used and self.is_copy_used
        if is_used and is_copy_used:
            code = self.ends(REFUSED, *([] if self.delete else [0]))
            self.holds(self.pool, 0, self.content)
            self.holds(self.other, 5, self.copy)
            self.stays = code == REFUSED
            return
        code = self.ends(0, NOT_FOUND, REFUSED)
        if code:
            # All was done but for what is not seen.
            assert 5 in volumes(self.other) and (0 in volumes(self.pool)) != self.delete
        elif is_used and self.delete:
            self.copy = self.content
        elif is_used and self.thinctl_copied_again():
            self.copy = self.content
        self.holds(self.other, 5, self.copy)
        assert volumes(self.other) == {5}
        assert volumes(self.pool) == (set() if self.delete else {0})
        if not self.delete:
            self.holds(self.pool, 0, self.content)

    def thinctl_copied_again(self):
        """Whether the copy was made of what there is now: if it was there before, it may be that of before."""
        thin = self.other.activate(5, SIZE)
        data = thin.read()
        thin.remove()
        return data == bytes(self.content.data)


class MigrateUsed(MigrateInactive):
    uses_volume = True


class MigrateCopyUsed(MigrateInactive):
    uses_copy = True


class MigrateBothUsed(MigrateInactive):
    uses_volume = uses_copy = True


class MigrateUsedAndKept(MigrateInactive):
    delete = False
    uses_volume = True


class Merge(Case):
    def prepare(self):
        self.content.thin.remove()
        self.pool.delete(0)
        self.disk = self.make_disk(SIZE)
        disk.write(self.disk.path, 0, self.choice.randbytes(SIZE))
        expected = bytearray(disk.read(self.disk.path, 0, SIZE))
        self.content = Content(self.pool.new_thin(0, SIZE, origin=self.disk.path), expected)
        self.content.scatter("first", 6, most=64)
        self.inactive()
        self.words = "merge", self.pool.name, 0, "--into", self.disk.path, "--delete"

    def use(self):
        if 0 in volumes(self.pool):
            self.written(self.pool, 0, self.content)

    def go_on(self, used):
        code = self.ends(0, NOT_FOUND)
        assert code == 0 or 0 not in volumes(self.pool)
        assert disk.read(self.disk.path, 0, SIZE) == bytes(self.content.data)
        assert volumes(self.pool) == set()


class InRepository(Case):
    """A repository is whole whenever a command is cut off: each generation that is listed can be restored, and is right."""

    # Each cut takes seconds.
    step = 30
    # How many generations there are before, which of them are full ones, and which must be there at any time.
    generations = 1
    full = (1,)
    stay = (1,)

    def prepare(self):
        self.repository = os.path.join(self.thinctl.folder, f"backups {self.choice.random()}")
        self.backup = "backup", self.pool.name, 0, self.repository, "--name", "data"
        self.thinctl.run("init", self.repository)
        self.right = {}
        for number in range(1, self.generations + 1):
            self.back_up(number, *["--full"] * (number in self.full))
            self.content.scatter(f"after {number}", 3, most=64)
        self.right[self.generations + 1] = self.content.snapshot(self.content.thin)

    def back_up(self, number, *words):
        self.right[number] = self.content.snapshot(self.content.thin)
        assert self.thinctl.json(*self.backup, *words)["number"] == number

    def numbers(self):
        return [one["number"] for one in self.thinctl.json("backups", self.repository).get("data", [])]

    def files(self):
        return sorted(os.path.join(folder, name) for folder, _, names in os.walk(self.repository) for name in names)

    def cut_off(self):
        self.is_whole()
        assert set(self.stay) <= set(self.numbers())

    def is_whole(self):
        files = self.files()
        self.thinctl.run("verify", self.repository)
        numbers = self.numbers()
        for number in numbers:
            self.thinctl.run("restore", self.repository, "data", self.other.name, 40, "--generation", number)
            self.holds(self.other, 40, self.right[number])
            self.other.delete(40)
        # Those who only read have left all of it as it was.
        assert self.files() == files

    def clean(self, *numbers):
        """Nothing else is left than these generations."""
        self.is_whole()
        assert self.numbers() == list(numbers)
        names = [os.path.basename(path) for path in self.files()]
        assert not any(name.startswith(".tmp-") for name in names), names
        assert len(names) == 2 + 2 * len(numbers), names


class Init(InRepository):
    step = 2
    uses = False
    generations = 0
    stay = ()

    def prepare(self):
        super().prepare()
        self.repository = os.path.join(self.thinctl.folder, f"new {self.choice.random()}")
        self.words = "init", self.repository

    def cut_off(self):
        pass

    def go_on(self, used):
        if self.ends(0, REFUSED) == REFUSED:
            assert ".repository.json" in os.listdir(self.repository)
        self.backup = "backup", self.pool.name, 0, self.repository, "--name", "data"
        self.back_up(1)
        self.clean(1)


class Backup(InRepository):
    """What has changed."""

    def prepare(self):
        super().prepare()
        self.words = self.backup

    def use(self):
        self.content.scatter("used", 2)

    def go_on(self, used):
        there = self.numbers()
        last = self.generations + 1
        self.ends(0)
        # It was there already, and what was used comes after it; or it is there now.
        expected = last + 1 if used and last in there else last
        self.right[expected] = self.content.snapshot(self.content.thin)
        self.clean(*range(1, expected + 1))
        assert len(volumes(self.pool)) == 2


class BackupFirst(Backup):
    generations = 0
    stay = ()


class Prune(InRepository):
    """Generations 1 and 2 go, 4 becomes a full one, and 3 goes."""
    generations = 5
    step = 5
    full = 1, 3
    stay = 4, 5

    def prepare(self):
        super().prepare()
        self.words = "prune", self.repository, "data", "--keep", 2

    def use(self):
        self.back_up(6)

    def go_on(self, used):
        self.ends(0)
        self.clean(*(5, 6) if used else (4, 5))


class PruneToFull(Prune):
    """The oldest one that stays is a full one."""
    uses = False
    generations = 4
    stay = 3, 4

    def go_on(self, used):
        self.ends(0)
        self.clean(3, 4)


class Restore(InRepository):
    uses = False
    generations = 3
    stay = 1, 2, 3

    def prepare(self):
        super().prepare()
        self.words = "restore", self.repository, "data", self.other.name, 7

    def go_on(self, used):
        if self.ends(0, REFUSED) == REFUSED:
            assert 7 in volumes(self.other)
        self.holds(self.other, 7, self.right[3])
        self.clean(1, 2, 3)


class RestoreInto(Restore):
    step = 3

    def prepare(self):
        super().prepare()
        self.disk = self.make_disk(SIZE)
        disk.write(self.disk.path, 0, self.choice.randbytes(SIZE))
        self.words = "restore", self.repository, "data", "--into", self.disk.path

    def go_on(self, used):
        self.ends(0)
        assert disk.read(self.disk.path, 0, SIZE) == bytes(self.right[3].data)
        self.clean(1, 2, 3)


class Replicate(Case):
    def prepare(self):
        self.words = "replicate", self.pool.name, 0, "--to", f"env -u THINCTL_CUT {self.thinctl.program} receive {self.other.name} 7", "--turns", 1
        self.thinctl.run(*self.words)
        self.content.scatter("second", 3, most=64)

    def use(self):
        self.content.scatter("used", 2)

    def go_on(self, used):
        self.ends(0)
        self.holds(self.other, 7, self.content.snapshot(self.content.thin))
        assert volumes(self.other) == {7} and len(volumes(self.pool)) == 2


def suspended():
    return [name for name in ioctl.names() if ioctl.call(ioctl.DEV_STATUS, name).flags & ioctl.SUSPEND]


def begin_anew(*pools):
    """Takes new pools of the same disks."""
    for one in pools:
        one.stop()
        one.metadata.overwrite(0, bytes(4 * KIB))
        one.start()


CASES = [
    Snapshot, Receive, ReceiveChanges, ReceiveRest, Migrate, MigrateInactive, MigrateUsed, MigrateCopyUsed, MigrateBothUsed,
    MigrateUsedAndKept, Merge, Init, BackupFirst, Backup, Prune, PruneToFull, Restore, RestoreInto, Replicate,
]


@pytest.mark.parametrize("used", [False, True], ids=["alone", "used"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_cut_off_anywhere(pool, other, thinctl, make_disk, settings, figures, progress, case, used):
    if case in (MigrateUsed, MigrateCopyUsed, MigrateBothUsed, MigrateUsedAndKept) and not used:
        pytest.skip("it is the same as MigrateInactive")
    if used and not case.uses:
        pytest.skip("it is the same alone")
    step = min(settings("cut_step", case.step), case.step)
    choice = random.Random(f"{case.__name__} {used} {settings('seed', 1)}")
    number = cuts = 0
    while True:
        number += choice.randint(1, 2 * step - 1)
        progress(f"{case.__name__}: step {number}")
        play = case(pool, other, thinctl, make_disk, number)
        before = thinctl.environment
        thinctl.environment = {**before, "THINCTL_CUT": str(number)}
        process = thinctl.start(*play.words, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        errors = process.communicate(play.input)[1].decode()
        thinctl.environment = before
        assert process.returncode in (0, -signal.SIGKILL), errors
        # Nobody who uses the volume waits for the next run.
        wait_until(lambda: not suspended(), "nothing is suspended")
        if process.returncode:
            play.cut_off()
        is_used = used and process.returncode != 0
        if is_used:
            play.use()
        if process.returncode:
            play.go_on(is_used)
        assert not suspended()
        thinctl.settle(pool)
        thinctl.settle(other)
        assert not thinctl.leftovers(pool) and not thinctl.leftovers(other)
        begin_anew(pool, other)
        # Nothing that is remembered is of use with other pools.
        thinctl.forget_all()
        if process.returncode == 0:
            break
        cuts += 1
    figures("test_cut_off_anywhere", **{f"{case.__name__} {'used' if used else 'alone'}": cuts})
    assert cuts, "it was never cut off"
