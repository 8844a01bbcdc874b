# SPDX-License-Identifier: GPL-2.0
"""thinctl: streams, the metadata snapshot's one slot, and what is left when it is cut off."""

import random
import signal
import subprocess
import time

import pytest

from dmtest import (
    disk,
    ioctl,
)
from dmtest.content import Content
from dmtest.disk import (
    KIB,
    MIB,
)
from dmtest.thinctl import (
    BUSY,
    DAMAGED,
    NOT_FOUND,
    SIZE,
    changed,
    received,
    volumes,
)


def test_sends_a_volume(pool, other, thinctl):
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 50)
    thinctl.snapshot(pool, 0, 1)
    then = Content(content.thin, bytearray(content.data))
    content.scatter("later", 50)
    thinctl.receive(other, 7, thinctl.send(pool, 1))
    received(other, 7, then)
    assert volumes(other) == {7}
    assert volumes(pool) == {0, 1}
    assert not thinctl.leftovers(pool) and not thinctl.leftovers(other)


def test_sends_what_has_changed(pool, other, thinctl):
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 50)
    thinctl.snapshot(pool, 0, 1)
    stream = thinctl.send(pool, 1)
    thinctl.receive(other, 7, stream)
    for turn in range(2, 8):
        changed(content, turn)
        thinctl.snapshot(pool, 0, turn)
        stream = thinctl.send(pool, turn, "--from", turn - 1)
        if turn % 2:
            # A volume of its own, or the same one in its next state.
            thinctl.receive(other, 7, stream)
        else:
            thinctl.receive(other, 100 + turn, stream, "--base", 7)
            received(other, 100 + turn, content)
            thinctl.receive(other, 7, stream)
        received(other, 7, content)
    assert volumes(other) == {7, 102, 104, 106}
    assert not thinctl.leftovers(pool) and not thinctl.leftovers(other)


def test_sends_back_what_was_received(pool, other, thinctl):
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 50)
    thinctl.snapshot(pool, 0, 1)
    thinctl.receive(other, 7, thinctl.send(pool, 1))
    thin = other.activate(7, SIZE)
    there = content.snapshot(thin)
    thinctl.snapshot(other, 7, 8)
    changed(there, "there")
    thinctl.snapshot(other, 7, 9)
    thin.remove()
    thinctl.receive(pool, 1, thinctl.send(other, 9, "--from", 8))
    received(pool, 1, there)


def test_writes_zeroes_where_it_cannot_discard(make_pool, thinctl):
    pool = make_pool()
    # Blocks whose size is no power of two, and a pool that ignores discards.
    others = make_pool(block_sectors=384), make_pool(features=["ignore_discard"])
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 60)
    thinctl.snapshot(pool, 0, 1)
    for other in others:
        thinctl.receive(other, 0, thinctl.send(pool, 1))
    content.discard(0, SIZE // 2)
    thinctl.snapshot(pool, 0, 2)
    for other in others:
        thinctl.receive(other, 0, thinctl.send(pool, 2, "--from", 1))
        received(other, 0, content)


def test_reads_only_what_has_changed(pool, thinctl):
    def sectors_read():
        return disk.stat(pool.data.path, 2)

    content = Content(pool.new_thin(0, SIZE))
    content.write(0, SIZE)
    thinctl.snapshot(pool, 0, 1)
    blocks = range(3, SIZE // (64 * KIB), 5)
    for block in blocks:
        content.write(block * 64 * KIB, 4096)
    content.thin.flush()
    thinctl.snapshot(pool, 0, 2)
    before = sectors_read()
    thinctl.send(pool, 2, "--from", 1)
    changed = len(blocks) * 64 * KIB
    assert changed <= (sectors_read() - before) * 512 <= changed * 1.01


def test_refuses_a_target_in_another_state(pool, other, thinctl):
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 50)
    thinctl.snapshot(pool, 0, 1)
    content.scatter("second", 5)
    thinctl.snapshot(pool, 0, 2)
    whole, change = thinctl.send(pool, 1), thinctl.send(pool, 2, "--from", 1)
    assert "there is no volume 7" in thinctl.refused("receive", other.name, 7, input=change)
    thinctl.receive(other, 7, whole)
    assert "there is a volume 7" in thinctl.refused("receive", other.name, 7, input=thinctl.send(pool, 2))
    # One sector written, and one block discarded.
    for number, act in enumerate((lambda thin: thin.write(0, bytes(512)), lambda thin: thin.discard(0, MIB))):
        thinctl.snapshot(other, 7, 20 + number)
        thin = other.activate(20 + number, SIZE)
        act(thin)
        thin.remove()
        assert "not in the state" in thinctl.refused("receive", other.name, 20 + number, input=change)
    other.create_thin(30)
    assert "not in the state" in thinctl.refused("receive", other.name, 30, input=change)
    assert volumes(other) == {7, 20, 21, 30}
    thinctl.receive(other, 7, change)
    received(other, 7, content)


def test_refuses_to_send_what_is_written_to(pool, thinctl):
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 5)
    assert "active as" in thinctl.refused("send", pool.name, 0)
    content.thin.remove()
    assert "take a snapshot" in thinctl.refused("send", pool.name, 0)
    thinctl.refused("send", pool.name, 5, code=NOT_FOUND)
    thinctl.refused("send", "nothing", 5, code=NOT_FOUND)
    assert not thinctl.leftovers(pool)


def test_damaged_streams_do_no_harm(pool, other, thinctl):
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 50)
    thinctl.snapshot(pool, 0, 1)
    thinctl.receive(other, 7, thinctl.send(pool, 1))
    before = content.snapshot(None)
    changed(content, "second")
    thinctl.snapshot(pool, 0, 2)
    stream = thinctl.send(pool, 2, "--from", 1)
    choice = random.Random("damage")
    for turn in range(8):
        place = choice.randrange(len(stream))
        damaged = bytearray(stream)
        if turn % 2:
            damaged = damaged[:place]
        else:
            damaged[place] ^= 1 << choice.randrange(8)
        thinctl.refused("receive", other.name, 7, code=DAMAGED, input=bytes(damaged))
        received(other, 7, before)
    # What came before the damage may be kept, under another id, to go on from.
    assert not thinctl.leftovers(other)
    thinctl.receive(other, 7, stream)
    received(other, 7, content)
    assert volumes(other) == {7}


def test_goes_on_where_a_stream_was_cut_off(pool, other, thinctl):
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 80)
    thinctl.snapshot(pool, 0, 1)
    stream = thinctl.send(pool, 1)
    thinctl.refused("token", other.name, 7, code=NOT_FOUND)
    thinctl.refused("receive", other.name, 7, code=DAMAGED, input=stream[:len(stream) // 2])
    token = thinctl.run("token", other.name, 7).decode().strip()
    rest = thinctl.send(pool, 1, "--resume", token)
    assert len(rest) < len(stream) * 0.7
    # It is of use for that volume only.
    assert "was not received" in thinctl.refused("receive", other.name, 8, input=rest)
    changed(content, "later")
    thinctl.snapshot(pool, 0, 2)
    assert "token" in thinctl.refused("send", pool.name, 2, "--resume", token)
    thinctl.receive(other, 7, rest)
    thinctl.receive(other, 7, thinctl.send(pool, 2, "--from", 1))
    received(other, 7, content)
    assert volumes(other) == {7}


def test_gives_up_what_was_cut_off(pool, other, thinctl):
    Content(pool.new_thin(0, SIZE)).scatter("first", 80)
    thinctl.snapshot(pool, 0, 1)
    thinctl.refused("receive", other.name, 7, code=DAMAGED, input=thinctl.send(pool, 1)[:-100])
    assert len(volumes(other)) == 1
    thinctl.run("abandon", other.name, 7)
    assert volumes(other) == set()
    thinctl.refused("abandon", other.name, 7, code=NOT_FOUND)


def test_leaves_the_metadata_snapshot_of_others_alone(pool, thinctl):
    Content(pool.new_thin(0, SIZE)).scatter("first", 5)
    thinctl.snapshot(pool, 0, 1)
    root = pool.reserve_metadata_snap()
    assert "--force" in thinctl.refused("send", pool.name, 1, code=BUSY)
    assert pool.status().metadata_snap == root
    thinctl.send(pool, 1, "--force")
    assert pool.status().metadata_snap is None


def test_is_recognised_when_it_was_killed(pool, thinctl, progress):
    """A metadata snapshot that a killed one has left is released, and one that somebody else took afterwards is not."""
    Content(pool.new_thin(0, SIZE)).scatter("first", 20)
    thinctl.snapshot(pool, 0, 1)
    found = turn = 0
    while turn < 10 or not found:
        assert turn < 200, "it was never killed while it had the metadata snapshot"
        turn += 1
        progress(f"killed {turn} times")
        process = thinctl.start("send", pool.name, 1, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while pool.status().metadata_snap is None and process.poll() is None:
            pass
        time.sleep(0.001 * (turn % 10))
        process.kill()
        process.wait()
        if pool.status().metadata_snap is None:
            # As another program might: thinctl must not take it for its own.
            root = pool.reserve_metadata_snap()
            thinctl.run("snapshot", pool.name, 0, 100 + turn)
            assert pool.status().metadata_snap == root
            pool.release_metadata_snap()
        else:
            found += 1
            thinctl.run("snapshot", pool.name, 0, 100 + turn)
            assert pool.status().metadata_snap is None
        assert not thinctl.leftovers(pool)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["term", "kill"])
def test_nothing_is_left_when_it_is_cut_off(pool, other, thinctl, how):
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 60)
    thinctl.snapshot(pool, 0, 1)
    stream = thinctl.send(pool, 1)
    path = f"{thinctl.folder}/stream"
    with open(path, "wb") as file:
        file.write(stream)
    choice = random.Random(f"cut {how}")
    for turn in range(15):
        thinctl.cut("send", pool.name, 1, after=choice.uniform(0, 0.25), how=how)
        if how != signal.SIGKILL:
            assert not thinctl.leftovers(pool)
        with open(path, "rb") as file:
            process = thinctl.start("receive", other.name, 7, stdin=file, start_new_session=True)
            time.sleep(choice.uniform(0, 0.4))
            process.send_signal(how)
            code = process.wait()
        if how != signal.SIGKILL:
            assert not thinctl.leftovers(other)
        thinctl.run("snapshot", pool.name, 0, 1000 + turn)
        if 7 in volumes(other):
            received(other, 7, content)
            other.delete(7)
            assert code in (0, 128 + how, -how)
    thinctl.receive(other, 7, stream)
    received(other, 7, content)
    assert volumes(other) == {7}
    assert not thinctl.leftovers(pool) and not thinctl.leftovers(other)
    assert not [name for name in ioctl.names() if name.startswith("thinctl")]


def test_shows_what_there_is(pool, thinctl):
    content = Content(pool.new_thin(0, SIZE))
    content.write(0, 4 * MIB)
    thinctl.snapshot(pool, 0, 1)
    content.write(MIB, MIB)
    content.discard(3 * MIB, MIB)
    content.write(8 * MIB, MIB)
    status = thinctl.json("status", pool.name)
    assert status["mode"] == "rw" and status["used_data_blocks"] == (4 + 1 + 1) * 16 and status["metadata_snap"] is None
    listed = {volume["id"]: volume for volume in thinctl.json("ls", pool.name)["volumes"]}
    assert (listed[0]["mapped"], listed[0]["exclusive"], listed[0]["shared"]) == (64, 32, 32)
    assert (listed[1]["mapped"], listed[1]["exclusive"], listed[1]["shared"]) == (64, 32, 32)
    ranges = [(one["kind"], one["begin"], one["length"]) for one in thinctl.json("diff", pool.name, 1, 0, "--same")["ranges"]]
    assert ranges == [("same", 0, 16), ("differ", 16, 16), ("same", 32, 16), ("left_only", 48, 16), ("right_only", 128, 16)]
    ranges = [(one["kind"], one["begin"], one["length"]) for one in thinctl.json("diff", pool.name, 1, "pool0-thin0")["ranges"]]
    assert ranges == [("differ", 16, 16), ("left_only", 48, 16), ("right_only", 128, 16)]
    drawn = thinctl.json("map", pool.name)
    assert (drawn["exclusive"], drawn["shared"], drawn["blocks"]) == (64, 32, status["data_blocks"])
    assert (thinctl.json("map", pool.name, 0)["blocks"], thinctl.json("map", pool.name, 0)["shared"]) == (SIZE // (64 * KIB), 32)
    path = f"{thinctl.folder}/map.svg"
    thinctl.run("map", pool.name, "--svg", path)
    with open(path) as file:
        assert file.read(4) == "<svg"
    for words in ("status",), ("ls",), ("map",), ("diff", 1, 0):
        assert thinctl.run(words[0], pool.name, *words[1:])
    assert not thinctl.leftovers(pool)


def test_shows_what_a_read_only_pool_has(make_pool, thinctl):
    """Such a pool takes no message, and so no metadata snapshot. Nothing can be sent of it."""
    pool = make_pool()
    content = Content(pool.new_thin(0, SIZE))
    content.write(0, 4 * MIB)
    thinctl.snapshot(pool, 0, 1)
    content.write(MIB, MIB)

    def shown():
        return [thinctl.run(*words) for words in (("ls", pool.name), ("map", pool.name), ("diff", pool.name, 1, 0, "--same"))]

    before = shown()
    pool.stop()
    pool.features = ["read_only"]
    pool.start()
    assert thinctl.json("status", pool.name)["mode"] == "ro"
    assert shown() == before
    assert "read-only" in thinctl.refused("send", pool.name, 1)
    assert not thinctl.leftovers(pool)
