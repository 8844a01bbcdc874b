# SPDX-License-Identifier: GPL-2.0
"""thinctl: how much a migration copies while the volume is suspended, and for how long it is."""

import json
import os
import re
import signal
import subprocess

import pytest

from dmtest.background import wait_until
from dmtest.content import Content
from dmtest.disk import MIB
from dmtest.thinctl import (
    BUSY,
    SIZE,
    Halts,
    goes_on,
    suspended,
    volumes,
)


@pytest.fixture
def other(make_pool, pool, make_faulty):
    """Writes to it may have to wait."""
    return make_pool(data=make_faulty(256 * MIB), block_sectors=256)


class Migrations(Halts):
    """Of volumes in use."""

    # The first step after it is written down that the last pass comes, as was found out.
    step = None

    def __init__(self, pool, other, *rest):
        super().__init__(*rest, pool, other)
        self.pool, self.other = pool, other

    def prepare(self):
        self.content = Content(self.pool.new_thin(self.number, SIZE))
        self.content.write(0, MIB // 2)
        self.words = "--json", "migrate", f"{self.pool.name}:{self.number}", f"{self.other.name}:{100 + self.number}"
        return self.words

    def switches(self):
        notes = self.thinctl.notes(self.pool, f"migrate-{self.number}.json")
        return notes is not None and notes["stage"] == "switching"

    def too_late(self, seconds=2, **options):
        """One whose last pass waits for its target, so long that the volume was resumed; it has changed since."""
        process = self.halted_before("--suspended-seconds", seconds, stdout=subprocess.DEVNULL, **options)
        self.content.write(4 * MIB, MIB)
        self.other.data.hold("writes")
        process.send_signal(signal.SIGCONT)
        self.other.data.wait_for_held()
        if seconds > 60:
            # Somebody else resumes it.
            self.content.thin.resume()
        wait_until(lambda: not suspended(self.content.thin.name), "the volume goes on")
        self.content.scatter("meanwhile", 5)
        self.content.thin.flush()
        return process

    def halted_before(self, *more, **options):
        """One that is halted before the last pass, for which the volume is not suspended yet."""
        if not self.step:
            type(self).step = self.first(lambda: self.switches() or 100 + self.number in volumes(self.other))
        # What a step is may differ by a few from one run to the next.
        for step in range(self.step, self.step + 12):
            process, is_halted = self.halted(step, *more, **options)
            if is_halted and self.switches() and not suspended(self.content.thin.name):
                return process
            if is_halted:
                goes_on(process)
        pytest.fail("it was never halted before the last pass")

    def is_moved(self):
        return self.content.thin.table() == f"{self.other.device.number} {100 + self.number}"

    def ends(self):
        """The same command goes on, and ends well."""
        moved = self.thinctl.json(*self.words[1:])
        self.content.verify()
        assert self.is_moved()
        assert not self.thinctl.leftovers(self.pool) and not self.thinctl.leftovers(self.other)
        return moved


@pytest.fixture
def migrations(pool, other, thinctl, progress):
    return Migrations(pool, other, thinctl, progress)


def test_copies_little_while_it_is_suspended(migrations):
    """Much is written right before."""
    process = migrations.halted_before("--suspended-bytes", "1M", stdout=subprocess.PIPE)
    migrations.content.write(4 * MIB, 4 * MIB)
    process.send_signal(signal.SIGCONT)
    moved = json.loads(process.communicate(timeout=200)[0])
    assert process.returncode == 0
    assert moved["copied_suspended"] <= MIB and moved["copied"] >= 4 * MIB
    migrations.content.verify()
    assert migrations.is_moved()


def test_gives_up_where_too_much_changes(pool, other, thinctl, mounted):
    """A file system writes something each time it is frozen."""
    thin = pool.new_thin(0, 64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=1,nodiscard", thin.path], check=True)
    folder = mounted(thin.path)
    data = os.urandom(MIB)
    (folder / "file").write_bytes(data)
    words = "migrate", f"{pool.name}:0", f"{other.name}:5"
    errors = thinctl.refused(*words, "--suspended-bytes", 0, code=BUSY)
    assert re.search(rf"[0-9.]+ [KM]iB of {thin.name} .* 0 B may be: see --suspended-bytes", errors), errors
    assert not suspended(thin.name)
    assert thin.table() == f"{pool.device.number} 0"
    (folder / "other file").write_bytes(data)
    # It goes on with what was copied.
    moved = thinctl.json(*words)
    assert moved["copied"] < 16 * MIB and moved["switched"] == [thin.name]
    assert (folder / "file").read_bytes() == data
    assert volumes(other) == {5} and volumes(pool) == {0}
    assert not thinctl.leftovers(pool) and not thinctl.leftovers(other)


@pytest.mark.parametrize("killed", [False, True], ids=["waits", "killed"])
def test_does_not_stay_suspended_for_what_waits(migrations, thinctl, killed):
    """The other pool takes no writes."""
    said = os.path.join(thinctl.folder, "said")
    with open(said, "w") as file:
        process = migrations.too_late(stderr=file)
    assert not migrations.is_moved()
    if killed:
        process.kill()
    migrations.other.data.heal()
    process.wait(200)
    if not killed:
        with open(said) as file:
            assert process.returncode == BUSY and "--suspended-seconds" in file.read()
    assert not migrations.is_moved()
    migrations.content.scatter("later", 5)
    migrations.ends()


@pytest.mark.parametrize("seconds", [2, 600], ids=["late", "in time"])
def test_does_not_switch_after_others_have_written(migrations, thinctl, seconds):
    """It was resumed, as it was suspended for too long or by somebody else, written to, and suspended again by somebody else."""
    process = migrations.too_late(seconds)
    migrations.content.thin.suspend()
    migrations.other.data.heal()
    process.wait(200)
    migrations.content.thin.resume()
    assert process.returncode == BUSY and not migrations.is_moved()
    migrations.content.verify()
    migrations.ends()


def test_no_table_of_who_was_killed_becomes_the_volumes(migrations, thinctl):
    """It loads its table too late, and is killed before it can take it away. Somebody else has suspended the volume again."""
    other = migrations.other
    named = migrations.first(lambda: 100 + migrations.number in volumes(other))
    # What a step is may differ by a few from one run to the next.
    for step in range(named - 4, named + 12):
        process, is_halted = migrations.halted(step, "--suspended-seconds", 2, cut=step + 1, stdout=subprocess.DEVNULL)
        content = migrations.content
        thin = content.thin
        # The next step is to load it.
        if is_halted and suspended(thin.name) and 100 + migrations.number in volumes(other) and not thin.table(inactive=True):
            break
        goes_on(process)
        # What the next one would undo were some steps more.
        thinctl.settle(migrations.pool)
        thinctl.settle(other)
    else:
        pytest.fail("it was never halted there")
    wait_until(lambda: not suspended(thin.name), "the volume goes on")
    content.scatter("meanwhile", 5)
    thin.flush()
    thin.suspend()
    assert goes_on(process) == -signal.SIGKILL
    wait_until(lambda: not suspended(thin.name), "the volume goes on")
    assert not migrations.is_moved() and not thin.table(inactive=True)
    content.verify()
    migrations.ends()
