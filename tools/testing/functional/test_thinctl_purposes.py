# SPDX-License-Identifier: GPL-2.0
"""thinctl: backup, migration, merging and replication of volumes that are in use, cut off and gone on with."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import time

import pytest

from dmtest import disk, load
from dmtest.background import wait_until
from dmtest.content import Content
from dmtest.disk import (
    KIB,
    MIB,
)
from dmtest.thinctl import (
    BUSY,
    COMMAND,
    DAMAGED,
    NOT_FOUND,
    SIZE,
    changed,
    received,
    suspended,
    volumes,
)


@pytest.fixture
def repository(thinctl):
    return thinctl.repository("backups")


@pytest.fixture
def busy():
    """Starts fio on a volume, which writes and checks what it has written until it is killed."""
    writers = []

    def start(thin):
        options = "--time_based", "--runtime=600", "--bs=4k", "--rate_iops=400", "--verify_backlog=64"
        writers.append(load.Background(thin, *options, size="8m", depth=4))
        return writers[-1]

    yield start
    for writer in writers:
        if writer.running():
            writer.kill()


def digest(data):
    return hashlib.sha256(data).hexdigest()


def digest_of(pool, volume):
    """What a volume, which is not active, contains."""
    thin = pool.activate(volume, SIZE)
    try:
        return digest(thin.read())
    finally:
        thin.remove()


def test_backups_of_twenty_generations(pool, other, thinctl, repository):
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 60)
    past = {}
    for number in range(1, 21):
        made = thinctl.json("backup", pool.name, 0, repository, "--name", "data")
        assert (made["number"], made["kind"]) == (number, "full" if number == 1 else "incremental")
        past[number] = digest(content.data)
        changed(content, number)
    assert thinctl.json("verify", repository)["generations"] == 20
    for number, wanted in past.items():
        thinctl.run("restore", repository, "data", other.name, number, "--generation", number)
        assert digest_of(other, number) == wanted
    pruned = thinctl.json("prune", repository, "data", "--keep", 8)
    assert pruned == {"made_full": 13, "removed": list(range(1, 13))}
    thinctl.refused("restore", repository, "data", other.name, 100, "--generation", 12, code=NOT_FOUND)
    for number in range(13, 21):
        thinctl.run("restore", repository, "data", other.name, 100 + number, "--generation", number)
        assert digest_of(other, 100 + number) == past[number]
    # It goes on from the snapshot of the last one, of which there is one.
    made = thinctl.json("backup", pool.name, 0, repository, "--name", "data")
    assert (made["number"], made["kind"]) == (21, "incremental")
    assert thinctl.json("backup", pool.name, 0, repository, "--name", "data") is None
    assert len(volumes(pool)) == 2
    assert not thinctl.leftovers(pool)


def test_backups_under_load(pool, other, thinctl, repository, busy):
    """What is restored is what a snapshot of the same moment holds."""
    thin = pool.new_thin(0, SIZE)
    writer = busy(thin)
    for number in range(1, 6):
        mapped = thin.mapped_blocks()
        wait_until(lambda: thin.mapped_blocks() > mapped or mapped > 100, "fio writes")
        assert thinctl.json("backup", pool.name, 0, repository, "--name", "data")["number"] == number
        kept = max(volumes(pool))
        thinctl.snapshot(pool, kept, number)
        time.sleep(0.5)
    assert writer.running()
    writer.kill()
    for number in range(1, 6):
        thinctl.run("restore", repository, "data", other.name, number, "--generation", number)
        assert digest_of(other, number) == digest_of(pool, number)


def test_backups_that_are_cut_off(pool, other, thinctl, repository):
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 60)
    choice = random.Random("backups")
    past = {}
    for turn in range(12):
        thinctl.cut("backup", pool.name, 0, repository, "--name", "data", after=choice.uniform(0.05, 0.5))
        # Nothing has changed since, whether it was made or not.
        thinctl.run("backup", pool.name, 0, repository, "--name", "data")
        number = thinctl.json("backups", repository)["data"][-1]["number"]
        past[number] = digest(content.data)
        changed(content, turn)
        assert not thinctl.leftovers(pool)
        assert len(volumes(pool)) == 2
    thinctl.run("verify", repository)
    for number in choice.sample(sorted(past), 4):
        thinctl.run("restore", repository, "data", other.name, number, "--generation", number)
        assert digest_of(other, number) == past[number]


def test_damaged_backups_are_refused(pool, other, thinctl, repository):
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 30)
    for turn in range(3):
        thinctl.run("backup", pool.name, 0, repository, "--name", "data")
        changed(content, turn)
    path = os.path.join(repository, "data", "000002.incremental.thin")
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 4]))
    assert "2 generations cannot be restored" in thinctl.refused("verify", repository, code=DAMAGED)
    thinctl.refused("restore", repository, "data", other.name, 3, code=DAMAGED)
    assert 3 not in volumes(other)
    thinctl.run("restore", repository, "data", other.name, 1, "--generation", 1)


def test_migrates_a_volume_in_use(pool, other, thinctl, busy):
    thin = pool.new_thin(0, SIZE)
    writer = busy(thin)
    wait_until(lambda: thin.mapped_blocks() > 50, "fio writes")
    moved = thinctl.json("migrate", f"{pool.name}:0", f"{other.name}:5")
    assert moved["switched"] == [thin.name] and moved["passes"] >= 2
    assert thin.table() == f"{other.device.number} 5"
    time.sleep(1)
    # fio would have seen a block that it had not written so.
    assert writer.running()
    writer.kill()
    load.run(thin, rw="randwrite", size="4m")
    thin.remove()
    assert volumes(other) == {5}
    assert volumes(pool) == {0}
    assert not thinctl.leftovers(pool) and not thinctl.leftovers(other)


def test_migrates_what_is_not_active(pool, other, thinctl):
    content = Content(pool.new_thin(0, SIZE))
    changed(content, "first")
    content.thin.remove()
    # Its blocks are parts of the other pool's, whose rest would show what an external origin has.
    assert "--no-origin" in thinctl.refused("migrate", f"{pool.name}:0", other.name, "--delete")
    assert volumes(pool) == {0} and volumes(other) == set()
    thinctl.run("migrate", f"{pool.name}:0", other.name, "--delete", "--no-origin")
    received(other, 0, content)
    assert volumes(pool) == set() and volumes(other) == {0}
    thinctl.refused("migrate", f"{pool.name}:0", other.name, code=NOT_FOUND)
    pool.create_thin(0)
    assert "there is a volume 0" in thinctl.refused("migrate", f"{pool.name}:0", other.name)


def test_migrates_although_it_is_cut_off(pool, other, thinctl):
    content = Content(pool.new_thin(0, SIZE))
    choice = random.Random("migrate")
    thin = content.thin
    turns = 0
    while True:
        changed(content, turns)
        turns += 1
        after = choice.uniform(0.05, 0.8)
        code = thinctl.cut("migrate", f"{pool.name}:0", f"{other.name}:5", after=after, how=choice.choice([signal.SIGKILL, signal.SIGTERM]))
        thinctl.settle(pool)
        thinctl.settle(other)
        assert not thinctl.leftovers(pool) and not thinctl.leftovers(other)
        # Whatever it was doing, the volume works, in its old pool or in the new one.
        assert not suspended(thin.name)
        content.verify()
        if str(other.device.number) in thin.table():
            break
        if turns > 12:
            assert thinctl.cut("migrate", f"{pool.name}:0", f"{other.name}:5", after=200) == 0
            break
        assert code
    # If it was cut off at the very end, it has to be told once more.
    if len(volumes(other)) > 1:
        thinctl.run("migrate", f"{pool.name}:0", f"{other.name}:5")
    content.verify()
    assert volumes(other) == {5}
    assert volumes(pool) == {0}


def test_nothing_that_was_killed_leaves_a_volume_suspended(make_pool, make_faulty, thinctl):
    """Whoever uses the volume cannot wait for the next run."""
    pool = make_pool(metadata=make_faulty(16 * MIB))
    other = make_pool(block_sectors=256)
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 60)

    # First it is suspended for a snapshot, then for the last pass.
    for _ in range(3):
        # A commit while it is suspended takes so long that it is seen.
        pool.metadata.delay_writes(1000)
        process = thinctl.start("migrate", f"{pool.name}:0", f"{other.name}:5", stderr=subprocess.DEVNULL, start_new_session=True)
        wait_until(lambda: suspended(content.thin.name) or process.poll() is not None, "it is suspended")
        assert process.poll() is None, "it was never seen suspended"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        pool.metadata.heal()
        wait_until(lambda: not suspended(content.thin.name), "the volume goes on")
        content.verify()
    thinctl.run("migrate", f"{pool.name}:0", f"{other.name}:5")
    content.verify()
    assert volumes(other) == {5} and volumes(pool) == {0}
    assert not thinctl.leftovers(pool) and not thinctl.leftovers(other)


def test_migrates_under_load_although_it_is_cut_off(pool, other, thinctl, busy):
    thin = pool.new_thin(0, SIZE)
    writer = busy(thin)
    choice = random.Random("migrate under load")
    words = "migrate", f"{pool.name}:0", f"{other.name}:5"
    cuts = 0
    # It has hardly begun the first time, whatever the machine.
    while cuts < 8 and thinctl.cut(*words, after=choice.uniform(0.1, 1.0) if cuts else 0.05):
        cuts += 1
        thinctl.settle(pool)
        thinctl.settle(other)
        assert not thinctl.leftovers(pool) and not thinctl.leftovers(other)
        assert not suspended(thin.name)
        assert writer.running()
    assert cuts, "it was never cut off"
    # The last cut may have come after all was done but forgetting it.
    if len(volumes(other)) > 1 or str(other.device.number) not in thin.table():
        thinctl.run(*words)
    assert thin.table() == f"{other.device.number} 5"
    time.sleep(1)
    assert writer.running()
    writer.kill()
    assert volumes(other) == {5} and volumes(pool) == {0}


def test_merges_into_an_external_origin(make_pool, make_disk, thinctl, progress):
    pool = make_pool()
    origin = make_disk(SIZE)
    disk.write(origin.path, 0, os.urandom(SIZE))
    expected = bytearray(disk.read(origin.path, 0, SIZE))
    content = Content(pool.new_thin(0, SIZE, origin=origin.path), expected)
    content.scatter("changes", 60)
    assert "in use" in thinctl.refused("merge", pool.name, 0, "--into", origin.path, code=BUSY)
    content.thin.remove()
    # A little later each time, from before it has begun until it is done. On a slow machine that takes long.
    cuts = 0
    while thinctl.cut("merge", pool.name, 0, "--into", origin.path, after=max(0.02 * cuts, 0.02 * 1.1 ** cuts)):
        cuts += 1
        progress(f"merges: {cuts} were cut off")
        thinctl.settle(pool)
        assert not thinctl.leftovers(pool)
    assert cuts, "it was never cut off"
    assert disk.read(origin.path, 0, SIZE) == bytes(content.data)
    assert volumes(pool) == {0}
    thinctl.run("merge", pool.name, 0, "--into", origin.path, "--delete")
    assert volumes(pool) == set()
    assert disk.read(origin.path, 0, SIZE) == bytes(content.data)


def test_merges_only_where_it_fits(make_pool, make_disk, thinctl):
    pool = make_pool()
    small = make_disk(SIZE // 2)
    before = disk.read(small.path, 0, SIZE // 2)
    content = Content(pool.new_thin(0, SIZE))
    content.write(SIZE - 64 * KIB, 64 * KIB)
    content.thin.remove()
    thinctl.refused("merge", pool.name, 0, "--into", small.path)
    assert disk.read(small.path, 0, SIZE // 2) == before
    assert volumes(pool) == {0}


def test_replicates_what_changes(pool, other, thinctl):
    content = Content(pool.new_thin(0, SIZE))
    command = f"{thinctl.program} receive {other.name} 7"
    for turn in range(6):
        changed(content, turn)
        sent = thinctl.json("replicate", pool.name, 0, "--to", command, "--turns", 1)
        assert sent["whole"] == (turn == 0)
        received(other, 7, content)
        assert len(volumes(pool)) == 2
    assert thinctl.json("replicate", pool.name, 0, "--to", command, "--turns", 1) is None
    # An outage, in which two things happen.
    for turn in range(2):
        changed(content, f"outage {turn}")
        thinctl.refused("replicate", pool.name, 0, "--to", "cat >/dev/null; false", "--turns", 1, code=COMMAND)
    os.rename(f"{thinctl.folder}/home/{other.name}", f"{thinctl.folder}/home/lost")
    thinctl.refused("replicate", pool.name, 0, "--to", command, "--turns", 1, code=COMMAND)
    shutil.rmtree(f"{thinctl.folder}/home/{other.name}")
    os.rename(f"{thinctl.folder}/home/lost", f"{thinctl.folder}/home/{other.name}")
    sent = thinctl.json("replicate", pool.name, 0, "--to", command, "--turns", 1)
    assert not sent["whole"]
    received(other, 7, content)
    thinctl.run("replicate", pool.name, 0, "--to", command, "--forget")
    # There is nothing of such a command, and who has mistyped it must hear of that.
    assert "thinctl kept" in thinctl.refused("replicate", pool.name, 0, "--to", command, "--forget", code=NOT_FOUND)
    # What the other command was sent is kept for it.
    assert len(volumes(pool)) == 2
    thinctl.run("replicate", pool.name, 0, "--to", "cat >/dev/null; false", "--forget")
    assert volumes(pool) == {0}
    assert not thinctl.leftovers(pool) and not thinctl.leftovers(other)


def test_replicates_although_it_is_cut_off(pool, other, thinctl):
    content = Content(pool.new_thin(0, SIZE))
    command = f"{thinctl.program} receive {other.name} 7"
    choice = random.Random("replicate")
    history = []
    for turn in range(15):
        changed(content, turn)
        history.append(bytes(content.data))
        thinctl.cut("replicate", pool.name, 0, "--to", command, "--turns", 1, after=choice.uniform(0.05, 1.2))
        thinctl.settle(pool)
        thinctl.settle(other)
        assert not thinctl.leftovers(pool) and not thinctl.leftovers(other)
        if 7 in volumes(other):
            # One of the states that there were, and none in between.
            thin = other.activate(7, SIZE)
            assert thin.read() in history
            thin.remove()
    thinctl.run("replicate", pool.name, 0, "--to", command, "--turns", 1)
    received(other, 7, content)
    assert volumes(other) == {7}
    assert len(volumes(pool)) == 2


def test_replicates_under_load_although_it_is_cut_off(pool, other, thinctl, busy):
    thin = pool.new_thin(0, SIZE)
    writer = busy(thin)
    command = f"{thinctl.program} receive {other.name} 7"
    choice = random.Random("replicate under load")
    for _ in range(8):
        thinctl.cut("replicate", pool.name, 0, "--to", command, "--every", 0, after=choice.uniform(0.5, 2.5))
        thinctl.settle(pool)
        thinctl.settle(other)
        assert not thinctl.leftovers(pool) and not thinctl.leftovers(other)
        assert writer.running()
    writer.kill()
    thinctl.run("replicate", pool.name, 0, "--to", command, "--turns", 1)
    received(other, 7, Content(thin, thin.read()))
    assert volumes(other) == {7} and len(volumes(pool)) == 2


def test_replicates_at_a_rate_under_load(pool, other, thinctl, busy):
    thin = pool.new_thin(0, SIZE)
    thin.write(0, os.urandom(4 * MIB))
    writer = busy(thin)
    begun = time.monotonic()
    thinctl.run("replicate", pool.name, 0, "--to", f"{thinctl.program} receive {other.name} 7", "--turns", 3, "--every", 1, "--rate", "2M")
    assert time.monotonic() - begun > 2
    assert writer.running()
    writer.kill()
    thinctl.run("replicate", pool.name, 0, "--to", f"{thinctl.program} receive {other.name} 7", "--turns", 1)
    received(other, 7, Content(thin, thin.read()))


def test_replicates_what_is_empty(pool, make_pool, thinctl):
    """Empty volumes of two pools look the same where they come to."""
    target = make_pool()
    second = make_pool()
    for number, one in enumerate((pool, second)):
        one.new_thin(0, SIZE)
        words = "replicate", one.name, 0, "--to", f"{thinctl.program} receive {target.name} {number}", "--turns", 1
        thinctl.run(*words)
    for number, one in reversed(list(enumerate((pool, second)))):
        content = Content(one.thins[0])
        content.scatter(number, 10)
        words = "replicate", one.name, 0, "--to", f"{thinctl.program} receive {target.name} {number}", "--turns", 1
        thinctl.run(*words)
        received(target, number, content)


def test_replicates_to_what_hangs(pool, other, thinctl):
    """The turn is given up, and the next one makes up for it."""
    content = Content(pool.new_thin(0, SIZE))
    content.write(0, SIZE)
    words = "replicate", pool.name, 0, "--turns", 1, "--patience", 1, "--to"
    hanging = f"test -e {thinctl.folder}/healed || exec sleep 1000; exec {thinctl.program} receive {other.name} 7"
    begun = time.monotonic()
    assert "took nothing" in thinctl.refused(*words, hanging, code=COMMAND)
    assert time.monotonic() - begun < 50
    assert not thinctl.leftovers(pool)
    with open(f"{thinctl.folder}/healed", "w"):
        pass
    thinctl.run("replicate", pool.name, 0, "--turns", 1, "--to", hanging)
    received(other, 7, content)
    assert len(volumes(pool)) == 2
