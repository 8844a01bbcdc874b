# SPDX-License-Identifier: GPL-2.0
"""thinctl: a volume that somebody uses between a run and the one that goes on with it, or beside a run."""

import contextlib
import os
import signal
import subprocess
import time

import pytest

from dmtest import disk
from dmtest.background import (
    Background,
    wait_until,
)
from dmtest.content import Content
from dmtest.disk import MIB
from dmtest.thinctl import (
    BUSY,
    DAMAGED,
    NOT_FOUND,
    REFUSED,
    SIZE,
    changed,
    received,
    volumes,
)


# At as many moments a run is cut off.
MOMENTS = 10


@pytest.fixture
def slow(make_faulty):
    """A disk that takes its time."""
    made = make_faulty(512 * MIB)
    made.delay(20)
    return made


@pytest.fixture
def slow_pool(make_pool, pool, slow):
    return make_pool(data=slow)


def use(pool, volume, content, seed):
    """Somebody activates the volume, writes here and there, and deactivates it."""
    thin = pool.activate(volume, SIZE, content.thin.origin)
    content.on(thin).scatter(seed, 4, most=16)
    thin.flush()
    thin.remove()


def moments(whole):
    """Later and later, up to about the end of a run; `whole()` is one that is not cut off."""
    begun = time.monotonic()
    whole()
    took = time.monotonic() - begun
    return [took * number / MOMENTS for number in range(1, MOMENTS)]


def test_migrates_what_was_used_after_it_was_cut_off(pool, slow_pool, thinctl, progress):
    def prepare(number):
        content = Content(pool.new_thin(number, SIZE))
        content.scatter(f"first {number}", 60)
        content.thin.remove()
        return content, ("migrate", f"{pool.name}:{number}", f"{slow_pool.name}:{100 + number}")

    cuts = 0
    _, words = prepare(0)
    for number, moment in enumerate(moments(lambda: thinctl.run(*words)), 1):
        progress(f"migrations: {number} of {MOMENTS}")
        content, words = prepare(number)
        if not thinctl.cut(*words, after=moment):
            continue
        cuts += 1
        use(pool, number, content, f"used {number}")
        thinctl.run(*words, "--delete")
        received(slow_pool, 100 + number, content)
        assert number not in volumes(pool)
    assert cuts >= 3, "it was hardly ever cut off"
    assert all(volume < 100 for volume in volumes(pool)) and len(volumes(slow_pool)) >= cuts
    assert not thinctl.leftovers(pool) and not thinctl.leftovers(slow_pool)


def test_migrates_what_becomes_inactive_during_a_pass(pool, slow_pool, thinctl):
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 60)
    slow_pool.data.hold("writes")
    process = thinctl.start("migrate", f"{pool.name}:0", f"{slow_pool.name}:5", "--delete", stdout=subprocess.DEVNULL)
    slow_pool.data.wait_for_held()
    content.scatter("used", 4)
    content.thin.flush()
    content.thin.remove()
    slow_pool.data.heal()
    assert process.wait() == 0
    received(slow_pool, 5, content)
    assert volumes(pool) == set() and volumes(slow_pool) == {5}
    assert not thinctl.leftovers(pool) and not thinctl.leftovers(slow_pool)


def test_merges_what_was_used_after_it_was_cut_off(make_pool, slow, thinctl, progress):
    pool = make_pool()

    def prepare(number):
        expected = bytearray(disk.read(slow.path, 0, SIZE))
        content = Content(pool.new_thin(number, SIZE, origin=slow.path), expected)
        content.scatter(f"first {number}", 40)
        content.thin.remove()
        return content, ("merge", pool.name, number, "--into", slow.path)

    cuts = 0
    _, words = prepare(0)
    for number, moment in enumerate(moments(lambda: thinctl.run(*words, "--delete")), 1):
        progress(f"merges: {number} of {MOMENTS}")
        content, words = prepare(number)
        if thinctl.cut(*words, after=moment):
            cuts += 1
            use(pool, number, content, f"used {number}")
        thinctl.run(*words, "--delete")
        assert disk.read(slow.path, 0, SIZE) == bytes(content.data)
        assert volumes(pool) == set()
    assert cuts >= 3, "it was hardly ever cut off"
    assert not thinctl.leftovers(pool)


def test_merging_does_not_delete_what_is_used_meanwhile(make_pool, slow, thinctl):
    pool = make_pool()
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 40)
    content.thin.remove()
    words = "merge", pool.name, 0, "--into", slow.path, "--delete"
    slow.hold("writes")
    process = thinctl.start(*words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    slow.wait_for_held()
    use(pool, 0, content, "used")
    slow.heal()
    errors = process.communicate()[1].decode()
    assert process.returncode == 5 and "was not deleted" in errors, errors
    received(pool, 0, content)
    thinctl.run(*words)
    assert volumes(pool) == set()
    assert not thinctl.leftovers(pool)


@pytest.fixture
def streams(pool, other, thinctl):
    """A volume 7 of the other pool, its content, and a stream with what has changed since, whose content is the second."""
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 60)
    thinctl.snapshot(pool, 0, 1)
    thinctl.receive(other, 7, thinctl.send(pool, 1))
    before = content.snapshot(content.thin)
    changed(content, "second")
    thinctl.snapshot(pool, 0, 2)
    return before, thinctl.send(pool, 2, "--from", 1), content


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 1], ids=lambda share: f"{share:.0%}")
def test_receives_over_nothing_that_was_used(pool, other, thinctl, streams, share):
    before, stream, content = streams
    cut = min(int(len(stream) * share), len(stream) - 1)
    thinctl.refused("receive", other.name, 7, code=DAMAGED, input=stream[:cut])
    token = thinctl.run("token", other.name, 7).decode().strip()
    rest = thinctl.send(pool, 2, "--from", 1, "--resume", token)
    use(other, 7, before, "used")
    assert "abandon" in thinctl.refused("receive", other.name, 7, input=rest)
    received(other, 7, before)
    assert "not in the state" in thinctl.refused("receive", other.name, 7, input=stream)
    thinctl.run("abandon", other.name, 7)
    received(other, 7, before)
    assert volumes(other) == {7}
    # It can still be had beside it, from where it was not used.
    thinctl.receive(other, 8, thinctl.send(pool, 2))
    received(other, 8, content)
    assert not thinctl.leftovers(other)


def test_receives_what_was_cut_off_and_not_used(pool, other, thinctl, streams):
    before, stream, content = streams
    thinctl.refused("receive", other.name, 7, code=DAMAGED, input=stream[:len(stream) // 2])
    rest = thinctl.send(pool, 2, "--from", 1, "--resume", thinctl.run("token", other.name, 7).decode().strip())
    # It was looked at.
    received(other, 7, before)
    assert "there is a volume 7" in thinctl.refused("receive", other.name, 7, "--base", 7, input=rest)
    thinctl.receive(other, 7, rest)
    received(other, 7, content)
    thinctl.receive(other, 7, rest)
    assert volumes(other) == {7}


def test_says_at_once_that_a_target_is_active(other, thinctl, streams):
    before, stream, content = streams
    thin = other.activate(7, SIZE)
    assert "active as" in thinctl.refused("receive", other.name, 7, code=BUSY, input=stream)
    # Nothing was begun.
    thinctl.refused("token", other.name, 7, code=NOT_FOUND)
    assert volumes(other) == {7}
    before.on(thin).verify()
    thin.remove()
    thinctl.receive(other, 7, stream)
    received(other, 7, content)


@pytest.mark.parametrize("used", [False, True], ids=["looked-at", "used"])
def test_puts_nothing_in_the_place_of_what_became_active(other, thinctl, streams, used):
    """The target becomes active in the middle of a stream."""
    before, stream, content = streams
    process = thinctl.start("receive", other.name, 7, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(stream[:len(stream) // 2])
    process.stdin.flush()
    wait_until(lambda: thinctl.notes(other, "partial-7.json"), "the stream has begun")
    thin = other.activate(7, SIZE)
    errors = process.communicate(stream[len(stream) // 2:])[1].decode()
    assert process.returncode == BUSY, errors
    if used:
        before.on(thin).scatter("used", 4)
        thin.flush()
    thin.remove()
    # Who looks changes nothing.
    for words in ("status",), ("ls",), ("map",):
        thinctl.run(words[0], other.name)
        assert len(volumes(other)) == 2
    received(other, 7, before)
    if used:
        assert "abandon" in thinctl.refused("receive", other.name, 7, input=stream)
        received(other, 7, before)
        thinctl.run("abandon", other.name, 7)
    else:
        begun = time.monotonic()
        thinctl.receive(other, 7, stream)
        received(other, 7, content)
        assert time.monotonic() - begun < 60
    assert volumes(other) == {7}
    assert not thinctl.leftovers(other)


def test_goes_on_with_what_was_copied(pool, other, thinctl, progress):
    """A migration is killed when all but the last pass is done, for which no snapshot was taken yet."""
    contents = []

    def words():
        number = len(contents) - 1
        return "migrate", f"{pool.name}:{number}", f"{other.name}:{100 + number}"

    def notes_before(step):
        """What a migration of its own has noted that is killed before this step, if there is something."""
        progress(f"migrations: {len(contents)}")
        contents.append(Content(pool.new_thin(len(contents), SIZE)))
        contents[-1].write(0, MIB)
        thinctl.environment["THINCTL_CUT"] = str(step)
        code = thinctl.cut(*words(), after=200)
        del thinctl.environment["THINCTL_CUT"]
        assert code in (0, -signal.SIGKILL)
        return thinctl.notes(pool, f"migrate-{len(contents) - 1}.json") or {"stage": "copying" if code else "done"}

    first, last = 1, 1024
    while last - first > 1:
        middle = (first + last) // 2
        first, last = (middle, last) if notes_before(middle)["stage"] == "copying" else (first, middle)
    notes = notes_before(last)
    assert notes["stage"] == "switching" and notes["copying"] not in volumes(pool)
    assert thinctl.json(*words())["copied"] == 0
    contents[-1].verify()
    assert contents[-1].thin.table() == f"{other.device.number} {99 + len(contents)}"


def test_says_at_once_that_another_table_is_loaded(pool, other, thinctl):
    """Its device could not be suspended in the end."""
    content = Content(pool.new_thin(0, SIZE))
    content.write(0, MIB)
    content.thin.load(content.thin.table_text())
    assert "dmsetup clear" in thinctl.refused("migrate", f"{pool.name}:0", f"{other.name}:5")
    assert volumes(pool) == {0} and volumes(other) == set()
    # Nothing was written there.
    assert other.status().data_blocks[0] == 0
    content.thin.clear()


def test_replicates_from_no_other_state_of_a_pool(pool, other, thinctl):
    """Between two turns the pool's metadata are put back to an earlier state."""
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 5)
    content.thin.remove()
    pool.stop()
    before = disk.read(pool.metadata.path, 0, pool.metadata.size)
    pool.start()
    process = thinctl.start(
        "replicate", pool.name, 0, "--to", f"{thinctl.program} receive {other.name} 7", "--every", 20, "--turns", 2,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    # What it receives with prints into the same pipe.
    while "bytes sent" not in process.stdout.readline():
        assert process.poll() is None
    number = pool.device.number
    pool.stop()
    disk.write(pool.metadata.path, 0, before)
    pool.start()
    assert pool.device.number == number
    content = content.on(pool.activate(0, SIZE))
    content.scatter("second", 3)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == REFUSED and "is not what it was" in errors, errors
    assert volumes(pool) == {0}


def test_copies_again_what_is_not_there_any_more(pool, other, thinctl, progress):
    """A migration was as good as done when it was cut off, and then somebody deleted the copy."""
    contents = []

    def words():
        number = len(contents) - 1
        return "migrate", f"{pool.name}:{number}", f"{other.name}:{100 + number}", "--no-origin"

    def is_cut_off(step):
        """A migration of its own, which is killed before this step if it has as many."""
        progress(f"migrations: {len(contents)}")
        contents.append(Content(pool.new_thin(len(contents), SIZE)))
        contents[-1].write(MIB, MIB)
        contents[-1].thin.remove()
        thinctl.environment["THINCTL_CUT"] = str(step)
        code = thinctl.cut(*words(), after=200)
        del thinctl.environment["THINCTL_CUT"]
        return code != 0

    first, last = 1, 1024
    while last - first > 1:
        middle = (first + last) // 2
        first, last = (middle, last) if is_cut_off(middle) else (first, middle)
    # It is done some steps before the last one.
    for step in range(first, 0, -1):
        is_cut_off(step)
        number = len(contents) - 1
        notes = thinctl.notes(pool, f"migrate-{number}.json")
        if notes and notes["stage"] == "done" and notes["copied"] in volumes(pool):
            break
    else:
        pytest.fail("it was never cut off where it was done")
    other.delete(100 + number)
    thinctl.run(*words(), "--delete")
    received(other, 100 + number, contents[number])
    assert number not in volumes(pool)


def test_notices_that_its_metadata_snapshot_is_gone(make_pool, make_faulty, thinctl):
    """Somebody else releases it while it is read: what was read may be anything."""
    pool = make_pool(metadata=make_faulty(16 * MIB))
    content = Content(pool.new_thin(0, SIZE))
    content.write(0, SIZE)
    thinctl.snapshot(pool, 0, 1)
    pool.metadata.hold("reads", start=8)
    process = thinctl.start("send", pool.name, 1, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    pool.metadata.wait_for_held()
    # Nothing that has to be read is needed for this.
    assert Background(pool.release_metadata_snap).outcome() == "ok"
    pool.metadata.heal()
    errors = process.communicate()[1].decode()
    assert process.returncode == BUSY and "released by somebody else" in errors, errors
    assert not thinctl.leftovers(pool)


def test_merges_what_lies_behind_the_end_or_nothing(make_pool, make_disk, thinctl):
    """The volume was made larger than its external origin, within a block."""
    pool = make_pool(block_sectors=8192)
    origin = make_disk(6 * MIB)
    for number, data in enumerate((b"data", bytes(4))):
        content = Content(pool.new_thin(number, 8 * MIB, origin=origin.path))
        disk.write(content.thin.path, 4 * MIB, b"\5" * MIB)
        disk.write(content.thin.path, 7 * MIB, data * 1024)
        content.thin.flush()
        content.thin.remove()
        words = "merge", pool.name, number, "--into", origin.path, "--delete"
        if any(data):
            thinctl.refused(*words)
            assert volumes(pool) == {0}
        else:
            thinctl.run(*words)
            assert volumes(pool) == {0}
            assert disk.read(origin.path, 4 * MIB, MIB) == b"\5" * MIB


def test_works_while_another_pool_has_failed(pool, make_pool, make_faulty, thinctl):
    failed = make_pool(metadata=make_faulty(4 * MIB))
    thin = failed.new_thin(0, SIZE)
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 5)
    failed.metadata.fail()
    with contextlib.suppress(OSError):
        thin.write(0, bytes(64 * 1024), os.O_DSYNC)
    wait_until(lambda: failed.device.status() == "Fail", "the failure")
    thinctl.snapshot(pool, 0, 1)
    received(pool, 1, content)
    thin.remove()
    failed.device.remove()
    failed.device = None
    failed.metadata.heal()
