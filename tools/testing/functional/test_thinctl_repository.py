# SPDX-License-Identifier: GPL-2.0
"""thinctl's repositories: that they are there, who writes into them, and what the pool keeps for them."""

import fcntl
import os
import re
import shutil
import signal
import subprocess

from dmtest.background import wait_until
from dmtest.content import Content
from dmtest.disk import KIB
from dmtest.thinctl import (
    BUSY,
    COMMAND,
    DAMAGED,
    FAILED,
    NOT_FOUND,
    SIZE,
    received,
    volumes,
)


def test_makes_no_repository_by_itself(pool, thinctl):
    """A file system that is not mounted is no reason to fill the one below it."""
    Content(pool.new_thin(0, SIZE)).scatter("first", 20)
    folder = os.path.join(thinctl.folder, "mount point")
    os.mkdir(folder)
    for path in folder, os.path.join(folder, "new"):
        assert "thinctl init" in thinctl.refused("backup", pool.name, 0, path, "--name", "data", code=NOT_FOUND)
    assert os.listdir(folder) == []
    assert volumes(pool) == {0}
    other = os.path.join(thinctl.folder, "notes")
    with open(other, "w") as file:
        file.write("notes")
    for path, what in (other, "is a file"), (os.path.join(other, "new"), "is a file"), (thinctl.folder, "notes"):
        why = thinctl.refused("backup", pool.name, 0, path, "--name", "data")
        assert what in why and "thinctl init" not in why, why
    thinctl.run("init", folder)
    assert "already" in thinctl.refused("init", folder)
    assert thinctl.json("backup", pool.name, 0, folder, "--name", "data")["number"] == 1
    assert not thinctl.leftovers(pool)


def test_one_writes_into_a_repository(pool, other, thinctl):
    """The pools may be those of two hosts: each has its own volume, and they meet in the repository."""
    repository = thinctl.repository("backups")
    for one in pool, other:
        Content(one.new_thin(0, SIZE)).write(0, SIZE)
    process = thinctl.start("backup", pool.name, 0, repository, "--name", "data", "--rate", "4M")
    try:
        while not any(name.startswith(".tmp-") for _, _, names in os.walk(repository) for name in names):
            assert process.poll() is None, "it was not seen at work"
        # It takes its time from here on.
        process.send_signal(signal.SIGSTOP)
        assert "writing into it" in thinctl.refused("backup", other.name, 0, repository, "--name", "data", code=BUSY)
        assert "writing into it" in thinctl.refused("prune", repository, "data", "--keep", 1, code=BUSY)
    finally:
        process.send_signal(signal.SIGCONT)
        assert process.wait() == 0
    assert volumes(other) == {0}
    assert [one["number"] for one in thinctl.json("backups", repository)["data"]] == [1]
    thinctl.run("verify", repository)


def test_repositories_in_turn(pool, other, thinctl):
    """Each goes on from a snapshot of its own, also after it was moved, and one that vanished can be forgotten."""
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 30)

    def backup(repository):
        content.scatter(f"turn {len(kinds)}", 5)
        kinds.append(thinctl.json("backup", pool.name, 0, repository, "--name", "data")["kind"])

    def kept():
        return {one["id"]: one["place"] for one in thinctl.json("kept", pool.name) if one["owner"] == "backup" and one["exists"]}

    kinds = []
    one, two = thinctl.repository("one"), thinctl.repository("two")
    for repository in one, two, one, two, one:
        backup(repository)
    assert kinds == ["full", "full", "incremental", "incremental", "incremental"]
    assert sorted(kept().values()) == [f"data in {one}", f"data in {two}"]
    lost = next(id for id, place in kept().items() if place.endswith(two))
    shutil.rmtree(two)
    backup(one)
    three = thinctl.repository("three")
    backup(three)
    moved = os.path.join(thinctl.folder, "moved")
    os.rename(one, moved)
    backup(moved)
    assert kinds[5:] == ["incremental", "full", "incremental"]
    assert sorted(kept().values()) == sorted(f"data in {place}" for place in (moved, two, three))
    assert volumes(pool) == {0, *kept()}
    thinctl.run("forget", pool.name, lost)
    assert sorted(kept().values()) == sorted(f"data in {place}" for place in (moved, three))
    assert volumes(pool) == {0, *kept()}
    for number, repository in enumerate((moved, three), 20):
        backup(repository)
        thinctl.run("restore", repository, "data", other.name, number)
        received(other, number, content)
    assert kinds[8:] == ["incremental", "incremental"]
    # What is forgotten costs time, and nothing else.
    for snapshot in kept():
        thinctl.run("forget", pool.name, snapshot)
    assert volumes(pool) == {0}
    backup(moved)
    assert kinds[-1] == "full"
    assert not thinctl.leftovers(pool)


def test_a_lost_marker_is_made_anew(pool, other, thinctl):
    """As the message tells: what was there is there again, and backups go on with a full one."""
    content = Content(pool.new_thin(0, SIZE))
    repository = thinctl.repository("backups")
    backup = "backup", pool.name, 0, repository, "--name", "data"
    for number in range(2):
        content.scatter(number, 5)
        thinctl.run(*backup)
    marker = os.path.join(repository, ".repository.json")
    os.unlink(marker)
    why = thinctl.refused(*backup, code=DAMAGED)
    with open(marker, "w") as file:
        file.write(re.search(r"write (\S+) into", why)[1])
    thinctl.run("restore", repository, "data", other.name, 7)
    received(other, 7, content)
    assert thinctl.json(*backup)["kind"] == "full"
    content.scatter("more", 5)
    assert thinctl.json(*backup)["kind"] == "incremental"
    thinctl.run("verify", repository)
    thinctl.run("restore", repository, "data", other.name, 8)
    received(other, 8, content)


def test_tells_what_it_keeps(pool, other, thinctl):
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 30)
    thinctl.snapshot(pool, 0, 1)
    assert thinctl.json("kept", pool.name) == []
    repository = thinctl.repository("backups")
    thinctl.run("backup", pool.name, 0, repository, "--name", "data")
    receive = f"{thinctl.program} receive {other.name} 7"
    thinctl.run("replicate", pool.name, 0, "--to", receive, "--turns", 1)
    thinctl.refused("replicate", pool.name, 0, "--to", "cat >/dev/null; false", "--turns", 1, code=COMMAND)
    thinctl.refused("receive", other.name, 8, code=DAMAGED, input=thinctl.send(pool, 1)[:-100])

    def kept(pool):
        return {(one["owner"], one["place"]): one["id"] for one in thinctl.json("kept", pool.name) if one["exists"]}

    owners = kept(pool)
    assert set(owners) == {("backup", f"data in {repository}"), ("replicate", receive), ("replicate", "cat >/dev/null; false")}
    assert volumes(pool) == {0, 1, *owners.values()}
    assert [owner for owner, _ in kept(other)] == ["receive"] and volumes(other) == {7, *kept(other).values()}
    assert "abandon" in thinctl.refused("forget", other.name, next(iter(kept(other).values())))
    thinctl.refused("forget", pool.name, 1, code=NOT_FOUND)
    assert len(thinctl.run("kept", pool.name).splitlines()) == 4
    # One that somebody else has deleted is told of, and can be forgotten.
    pool.delete(owners["backup", f"data in {repository}"])
    assert set(kept(pool)) == set(owners) - {("backup", f"data in {repository}")}
    assert len(thinctl.json("kept", pool.name)) == 3
    for snapshot in owners.values():
        thinctl.run("forget", pool.name, snapshot)
    assert thinctl.json("kept", pool.name) == [] and volumes(pool) == {0, 1}
    assert thinctl.json("backup", pool.name, 0, repository, "--name", "data")["kind"] == "full"


def test_diff_keeps_nobody_waiting(pool, thinctl):
    """Whoever reads its output may take their time."""
    content = Content(pool.new_thin(0, SIZE))
    content.write(0, SIZE)
    thinctl.snapshot(pool, 0, 1)
    for block in range(0, SIZE // (64 * KIB), 2):
        content.write(block * 64 * KIB, 512)
    whole = thinctl.run("diff", pool.name, 1, 0)
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    process = thinctl.start("diff", pool.name, 1, 0, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    wait_until(lambda: fcntl.ioctl(reader, 0x541B, bytes(4)) != bytes(4), "it prints")
    assert process.poll() is None and pool.status().metadata_snap is None
    assert len(thinctl.json("ls", pool.name)["volumes"]) == 2
    with os.fdopen(reader, "rb") as file:
        assert file.read() == whole
    assert process.wait() == 0


def test_follows_nothing_that_others_have_put_there(pool, other, thinctl):
    """A link or a pipe in a repository, which may be anybody's, is neither read nor written to, nor waited for."""
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 20)
    secret = os.path.join(thinctl.folder, "secret")
    with open(secret, "w") as file:
        file.write("secret" * 100)
    elsewhere = os.path.join(thinctl.folder, "elsewhere")
    os.mkdir(elsewhere)
    left = os.path.join(elsewhere, ".tmp-left")
    open(left, "w").close()

    def put(path, kind):
        if os.path.lexists(path):
            os.unlink(path)
        if kind == "link":
            os.symlink(secret, path)
        else:
            os.mkfifo(path)

    def refused(*words, code=FAILED):
        process = thinctl.start(*words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            errors = process.communicate(timeout=60)[1].decode()
        finally:
            process.kill()
        assert process.returncode == code and "secret" not in errors, errors
        return errors

    for kind in "link", "pipe":
        repository = thinctl.repository(f"lock-{kind}")
        put(os.path.join(repository, ".lock"), kind)
        assert "no regular file" in refused("backup", pool.name, 0, repository, "--name", "data")
        repository = thinctl.repository(f"marker-{kind}")
        put(os.path.join(repository, ".repository.json"), kind)
        assert "no regular file" in refused("backup", pool.name, 0, repository, "--name", "data")
        for suffix in "json", "thin":
            repository = thinctl.repository(f"{suffix}-{kind}")
            thinctl.run("backup", pool.name, 0, repository, "--name", "data")
            put(os.path.join(repository, "data", f"000001.full.{suffix}"), kind)
            assert "no regular file" in refused("restore", repository, "data", other.name, 9)
            refused("verify", repository, code=DAMAGED)
    repository = thinctl.repository("folder")
    os.symlink(elsewhere, os.path.join(repository, "data"))
    assert "no folder" in refused("backup", pool.name, 0, repository, "--name", "data", code=DAMAGED)
    assert "no folder" in refused("prune", repository, "data", "--keep", 1, code=DAMAGED)
    thinctl.run("backup", pool.name, 0, repository, "--name", "more")
    assert os.listdir(elsewhere) == [".tmp-left"]
    with open(secret) as file:
        assert file.read() == "secret" * 100
