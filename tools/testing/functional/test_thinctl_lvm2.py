# SPDX-License-Identifier: GPL-2.0
"""thinctl in pools of lvm2: what is left to lvm2, and whole volumes that are written into devices."""

import glob
import json
import os
import random
import signal
import subprocess

import pytest

from dmtest import disk, dm, metadata
from dmtest.content import Content
from dmtest.disk import (
    KIB,
    MIB,
)
from dmtest.thinctl import (
    BUSY,
    COMMAND,
    DAMAGED,
    NO_ROOM,
    REFUSED,
    SIZE,
    received,
    volumes,
)

BLOCK = 64 * KIB

# thinctl's own volumes have ids from here on.
FIRST_OWN = 1 << 23


@pytest.fixture
def stream(make_pool, lvm, thinctl):
    """The stream of a volume of another pool, its content, and that pool."""
    pool = make_pool()
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 40)
    thinctl.snapshot(pool, 0, 1)
    content.thin.remove()
    return thinctl.send(pool, 1), content, pool


@pytest.fixture
def backed_up(lvm, thinctl):
    """A repository with two generations of the volume, and what they hold."""
    repository = thinctl.repository("backups")
    past = []
    for turn in range(2):
        lvm.scatter("data", turn)
        disk.discard(lvm.path("data"), turn * 4 * MIB, 2 * MIB)
        thinctl.run("backup", "vg/pool", "vg/data", repository, "--name", "data")
        past.append(lvm.content("data"))
    return repository, past


def notes(thinctl, name):
    """What thinctl remembers of any pool in a file of this name."""
    for path in glob.glob(os.path.join(thinctl.environment["THINCTL_HOME"], "*", name)):
        with open(path) as file:
            return json.load(file)
    return None


# On x86_64, too: the others would take a quarter of an hour there.
@pytest.mark.lvm2
def test_raw_ids_are_left_to_lvm2(lvm, thinctl, stream, backed_up):
    """lvm2 gives out the highest id of its books plus one, and takes what has it already for the new volume."""
    stream, _, pool = stream
    repository, _ = backed_up
    before = lvm.everything()
    for number in 2, 10:
        for words, input in (
                (("restore", repository, "data", "vg/pool", number), None),
                (("receive", "vg/pool", number), stream),
                (("receive", "vg/pool", number, "--base", 1), stream),
                (("snapshot", "vg/pool", 1, number), None),
                (("migrate", f"{pool.name}:1", f"vg/pool:{number}"), None),
        ):
            why = thinctl.refused(*words, input=input)
            assert "belongs to lvm2" in why and "lvcreate" in why, why
            assert lvm.everything() == before
    why = thinctl.refused("replicate", pool.name, 1, "--to", f"{thinctl.program} receive vg/pool 10", "--turns", 1, code=COMMAND)
    assert "belongs to lvm2" in why
    assert lvm.everything() == before
    assert volumes(pool) - {0, 1} == {notes(thinctl, "replicate-1-*.json")["pending"]}
    # What is new is empty.
    lvm.make("new")
    assert not any(lvm.content("new"))
    assert not thinctl.leftovers(pool)


@pytest.mark.lvm2
def test_deletion_is_left_to_lvm2(lvm, make_pool, make_disk, thinctl):
    pool, origin = make_pool(), make_disk(SIZE)
    lvm.scatter("data", "first")
    content = lvm.content("data")
    lvm.run("lvchange", "-an", "vg/data")
    before = lvm.everything()
    migrate = "migrate", "vg/pool:1", f"{pool.name}:5", "--no-origin"
    merge = "merge", "vg/pool", 1, "--into", origin.path
    for words in migrate, merge:
        why = thinctl.refused(*words, "--delete")
        assert "belongs to lvm2" in why and "lvremove" in why, why
        assert lvm.everything() == before
    assert volumes(pool) == set() and not any(disk.read(origin.path, 0, SIZE))
    # Without it, both are done, by a snapshot that does not stay.
    thinctl.run(*migrate)
    received(pool, 5, Content(None, bytearray(content)))
    thinctl.run(*merge)
    assert disk.read(origin.path, 0, SIZE) == content
    assert lvm.books() == before[0] and lvm.ids() == {1}
    lvm.run("lvchange", "-ay", "vg/data")
    assert lvm.content("data") == content
    assert not thinctl.leftovers(pool)


def test_backups_go_on_after_a_merge_of_lvm2(lvm, make_pool, thinctl, backed_up):
    """The volume is what was its snapshot, with an id of its own."""
    repository, past = backed_up
    lvm.run("lvcreate", "-q", "-s", "-n", "then", "vg/data")
    lvm.scatter("data", "later")
    lvm.run("lvchange", "-an", "vg/data")
    lvm.run("lvconvert", "-q", "--merge", "vg/then")
    lvm.run("lvchange", "-ay", "vg/data")
    assert lvm.content("data") == past[-1] and {1, 2} & lvm.ids() == {2}
    lvm.scatter("data", "last", 3)
    backup = "backup", "vg/pool", "vg/data", repository, "--name", "data"
    assert thinctl.json(*backup)["kind"] == "incremental"
    pool = make_pool()
    thinctl.run("restore", repository, "data", pool.name, 7)
    received(pool, 7, Content(None, bytearray(lvm.content("data"))))


def test_migration_goes_on_only_if_it_could_begin(lvm, make_pool, thinctl):
    """lvm2 has activated the volume since it was cut off, right after its copy has got its id."""
    pool = make_pool()
    lvm.scatter("data", "first")
    content = lvm.content("data")
    lvm.run("lvchange", "-an", "vg/data")
    words = "migrate", "vg/pool:1", f"{pool.name}:5", "--no-origin"
    environment = thinctl.environment
    for step in range(1, 1000):
        thinctl.environment = {**environment, "THINCTL_CUT": str(step)}
        code = thinctl.cut(*words, after=60)
        thinctl.environment = environment
        assert code == -signal.SIGKILL, "it was never cut off there"
        if (notes(thinctl, "migrate-1.json") or {}).get("stage") == "switching" and 5 in volumes(pool):
            break
    thinctl.settle(pool)
    lvm.run("lvchange", "-ay", "vg/data")
    lvm.scatter("data", "used", 3)
    before = lvm.everything(), pool.dump(), notes(thinctl, "migrate-1.json")
    assert "belongs to lvm2" in thinctl.refused(*words)
    assert (lvm.everything(), pool.dump(), notes(thinctl, "migrate-1.json")) == before
    received(pool, 5, Content(None, bytearray(content)))
    # It goes on when it may.
    content = lvm.content("data")
    lvm.run("lvchange", "-an", "vg/data")
    thinctl.run(*words)
    received(pool, 5, Content(None, bytearray(content)))
    assert volumes(pool) == {5} and lvm.ids() == {1}
    assert not thinctl.leftovers(pool)


def test_migration_into_a_pool_of_lvm2_does_not_go_on(lvm, make_pool, thinctl):
    """One that was begun by a thinctl that did not refuse it."""
    pool = make_pool()
    Content(pool.new_thin(0, SIZE)).scatter("first", 20)
    thinctl.settle(pool)
    assert dm.dmsetup("message", lvm.pool, "0", f"create_thin {FIRST_OWN + 77}").returncode == 0
    folder = os.path.join(thinctl.environment["THINCTL_HOME"], pool.name)
    path = os.path.join(folder, "migrate-0.json")
    migration = {"to_pool": lvm.pool, "to_id": 10, "temporary": FIRST_OWN + 77, "copied": None, "copying": None, "before": None, "stage": "copying"}
    with open(path, "w") as file:
        json.dump(migration, file)
    before = lvm.everything(), pool.dump()
    assert "belongs to lvm2" in thinctl.refused("migrate", f"{pool.name}:0", "vg/pool:10")
    assert (lvm.everything(), pool.dump(), notes(thinctl, "migrate-0.json")) == (*before, migration)
    pool.thins[0].remove()
    assert dm.dmsetup("message", lvm.pool, "0", f"delete {FIRST_OWN + 77}").returncode == 0


def test_restores_into_a_volume(lvm, thinctl, backed_up):
    """One generation after the other into the same volume: nothing of what it held stays, and nothing else changes."""
    repository, past = backed_up
    lvm.make("other")
    lvm.scatter("other", "other")
    lvm.run("lvcreate", "-q", "-s", "-n", "then", "vg/other")
    # It is larger, and all of it was written.
    target = lvm.make("target", SIZE + 4 * MIB)
    disk.write(target, 0, os.urandom(SIZE + 4 * MIB))
    others = {name: lvm.content(name) for name in ("data", "other")}
    books = lvm.books()
    devices = metadata.devices(lvm.dump())
    for number, content in (1, past[0]), (2, past[1]), (1, past[0]):
        thinctl.run("restore", repository, "data", "--into", target, "--generation", number)
        assert lvm.content("target") == content and not any(lvm.read("target", SIZE, 4 * MIB))
    assert {name: lvm.content(name) for name in others} == others
    now = metadata.devices(lvm.dump())
    assert lvm.books() == books and set(now) == set(devices)
    changed = {number for number in now if now[number] != devices[number]}
    assert changed == {int(lvm.lvs("target", "thin_id"))}
    # Only what has data takes up blocks.
    assert float(lvm.lvs("target", "data_percent")) < 100 * len(past[0]) / (SIZE + 4 * MIB)
    lvm.make("more")
    assert not any(lvm.content("more"))


def test_receives_into_a_volume(lvm, thinctl, stream):
    stream, content, pool = stream
    target = lvm.make("target")
    lvm.scatter("target", "old")
    thinctl.run("receive", "--into", target, input=stream)
    assert lvm.content("target") == content.data
    # Nobody can tell whether it still holds that when changes of it come.
    thin = pool.activate(0, SIZE)
    content.on(thin).scatter("second", 5)
    thinctl.snapshot(pool, 0, 2)
    thin.remove()
    before = lvm.everything()
    change = thinctl.send(pool, 2, "--from", 1)
    assert "only a whole volume" in thinctl.refused("receive", "--into", target, input=change)
    # What continues another one is begun anew.
    thinctl.refused("receive", pool.name, 9, code=DAMAGED, input=stream[:len(stream) // 2])
    rest = thinctl.send(pool, 1, "--resume", thinctl.run("token", pool.name, 9).decode().strip())
    assert "from its beginning" in thinctl.refused("receive", "--into", target, input=rest)
    assert lvm.everything() == before
    thinctl.run("receive", "--into", target, input=thinctl.send(pool, 2))
    assert lvm.content("target") == content.data
    for words in ("receive", pool.name, 9, "--into", target), ("receive", "--into", target, "--base", 1), ("receive",):
        thinctl.refused(*words, code=2)
    thinctl.run("abandon", pool.name, 9)


def test_goes_on_after_it_was_killed(lvm, thinctl, stream, backed_up):
    """Whatever came of it, and whatever was done to the volume in between, it is written from its beginning."""
    stream, content, _ = stream
    repository, past = backed_up
    target = lvm.make("target")
    choice = random.Random("into")
    environment = thinctl.environment
    cases = (("restore", repository, "data", "--into", target), None, past[1]), (("receive", "--into", target), stream, bytes(content.data))
    for words, input, wanted in cases:
        step = cuts = 0
        while True:
            step += choice.randint(1, 12)
            lvm.scatter("target", step, 8)
            thinctl.environment = {**environment, "THINCTL_CUT": str(step)}
            process = thinctl.start(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            process.communicate(input)
            thinctl.environment = environment
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL
            cuts += 1
            lvm.scatter("target", f"between {step}", 2)
            thinctl.run(*words, input=input)
            assert lvm.content("target") == wanted
        assert cuts > 3
        assert lvm.content("target") == wanted


def test_a_stream_that_ends_too_early(lvm, thinctl, stream):
    stream, content, _ = stream
    target = lvm.make("target")
    why = thinctl.refused("receive", "--into", target, code=DAMAGED, input=stream[:-100])
    assert "holds a part" in why, why
    thinctl.run("receive", "--into", target, input=stream)
    assert lvm.content("target") == content.data


def test_nothing_is_given_up_for_a_damaged_backup(lvm, thinctl, backed_up):
    repository, past = backed_up
    [path] = glob.glob(os.path.join(repository, "data", "000002.*.thin"))
    with open(path, "r+b") as file:
        file.seek(-2000, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 4]))
    target = lvm.make("target")
    lvm.scatter("target", "old")
    before = lvm.everything(), lvm.content("target")
    restore = "restore", repository, "data", "--into", target
    assert "holds a part" not in thinctl.refused(*restore, code=DAMAGED)
    assert (lvm.everything(), lvm.content("target")) == before
    thinctl.run(*restore, "--generation", 1)
    assert lvm.content("target") == past[0]


def test_what_does_not_fit_is_not_begun(lvm, thinctl, backed_up):
    repository, past = backed_up
    restore = "restore", repository, "data", "--into"
    small = lvm.make("small", SIZE - 4 * MIB)
    lvm.scatter("small", "old", size=SIZE - 4 * MIB)
    before = lvm.everything(), lvm.content("small", SIZE - 4 * MIB)
    assert f"has {SIZE - 4 * MIB} bytes, and the volume has {SIZE}" in thinctl.refused(*restore, small)
    assert (lvm.everything(), lvm.content("small", SIZE - 4 * MIB)) == before

    # A pool that is full but for what the volume itself has.
    target = lvm.make("target")
    disk.write(target, 0, os.urandom(SIZE))
    rest = lvm.make("rest", 256 * MIB)
    offset = 0
    while True:
        used, blocks = map(int, dm.dmsetup("status", lvm.pool).stdout.split()[5].split("/"))
        if blocks - used <= 4:
            break
        disk.write(rest, offset, os.urandom(MIB if blocks - used > 20 else BLOCK))
        offset += MIB
    more = lvm.make("more")
    before = lvm.everything()
    assert "no room" in thinctl.refused(*restore, more, code=NO_ROOM)
    assert lvm.everything() == before
    thinctl.run(*restore, target)
    assert lvm.content("target") == past[1]


def test_what_is_in_use_is_not_written_to(lvm, thinctl, backed_up, make_pool, mounted):
    repository, past = backed_up
    restore = "restore", repository, "data", "--into"
    target = lvm.make("target", 2 * SIZE)
    subprocess.run(["mkfs.ext4", "-q", target], check=True)
    before = lvm.books()
    folder = mounted(target, "noinit_itable")
    (folder / "file").write_bytes(b"here")
    assert "in use" in thinctl.refused(*restore, target, code=BUSY)
    subprocess.run(["umount", str(folder)], check=True)
    # A machine that has it as its disk may not have opened it exclusively.
    with disk.opened(target, os.O_RDONLY):
        assert "has it open" in thinctl.refused(*restore, target, code=BUSY)
    folder = mounted(target)
    assert (folder / "file").read_bytes() == b"here"
    subprocess.run(["umount", str(folder)], check=True)
    assert lvm.books() == before
    # The pool itself, by all of its names; and what it lies on.
    books = lvm.everything()
    lvm.run("lvchange", "-an", "vg/data", "vg/target")
    for name, code in ("pool", REFUSED), ("pool-tpool", BUSY), ("pool_tdata", BUSY), ("pool_tmeta", BUSY):
        thinctl.refused(*restore, lvm.path(name), code=code)
    lvm.run("lvchange", "-ay", "vg/data", "vg/target")
    assert lvm.everything() == books and lvm.content("data") == past[1]
    pool = make_pool()
    assert "is pool" in thinctl.refused(*restore, pool.device.path)
    file = os.path.join(thinctl.folder, "file")
    with open(file, "wb") as made:
        made.truncate(SIZE)
    assert "no block device" in thinctl.refused(*restore, file)
    thinctl.run(*restore, target)
    assert lvm.content("target") == past[1]


@pytest.mark.parametrize("kind", ["ignores-discards", "odd-blocks", "not-zeroed", "external-origin", "linear", "disk", "disk-without-discards"])
def test_zeroes_are_read_where_the_backup_has_nothing(lvm, thinctl, stream, make_pool, make_disk, kind):
    stream, content, _ = stream
    size = SIZE + 8 * MIB
    if kind in ("ignores-discards", "odd-blocks", "not-zeroed"):
        pool = make_pool(
            block_sectors=384 if kind == "odd-blocks" else 256,
            features={"ignores-discards": ["ignore_discard"], "not-zeroed": ["skip_block_zeroing"]}.get(kind, []),
        )
        # What its blocks held before.
        old = pool.new_thin(9, size)
        old.write(0, os.urandom(size))
        old.remove()
        pool.delete(9)
        thin = pool.new_thin(0, size)
        path = thin.path
    elif kind == "external-origin":
        lvm.run("lvcreate", "-q", "-L", f"{size}b", "-n", "base", "vg")
        disk.write(lvm.path("base"), 0, os.urandom(size))
        lvm.run("lvchange", "-an", "vg/base")
        lvm.run("lvchange", "-pr", "vg/base")
        lvm.run("lvcreate", "-q", "-s", "--thinpool", "vg/pool", "-n", "target", "vg/base")
        path = lvm.path("target")
    elif kind == "linear":
        lvm.run("lvcreate", "-q", "-Wn", "-L", f"{size}b", "-n", "target", "vg")
        path = lvm.path("target")
    else:
        path = make_disk(size, discards=kind == "disk").path
    for seed in range(2):
        choice = random.Random(seed)
        for _ in range(12):
            disk.write(path, choice.randrange(0, size - MIB, 4 * KIB), choice.randbytes(choice.randint(1, 256) * 4 * KIB))
        thinctl.run("receive", "--into", path, input=stream)
        assert disk.read(path, 0, SIZE) == content.data
        assert not any(disk.read(path, SIZE, size - SIZE))


def test_no_id_is_given_to_two_volumes(lvm, thinctl):
    """thinctl keeps nothing where lvm2 may come to its ids, or has come to them."""
    repository = thinctl.repository("backups")
    backup = "backup", "vg/pool", "vg/data", repository, "--name", "data"
    lvm.scatter("data", "first")
    for number, told in (FIRST_OWN // 2, "counts on from there"), (FIRST_OWN + 5, f"delete {FIRST_OWN + 5}"):
        assert dm.dmsetup("message", lvm.pool, "0", f"create_thin {number}").returncode == 0
        before = lvm.everything()
        why = thinctl.refused(*backup)
        assert told in why, why
        assert lvm.everything() == before
        assert dm.dmsetup("message", lvm.pool, "0", f"delete {number}").returncode == 0
    for turn in range(3):
        thinctl.run(*backup)
        lvm.make(f"new{turn}")
        lvm.scatter("data", turn)
        assert not any(lvm.content(f"new{turn}"))
    [kept] = thinctl.json("kept", "vg/pool")
    assert kept["id"] >= FIRST_OWN and lvm.ids() == {1, 2, 3, 4, kept["id"]}
    assert lvm.lvs("pool", "transaction_id") == "4"
    thinctl.run("forget", "vg/pool", kept["id"])
    assert lvm.ids() == {1, 2, 3, 4}
