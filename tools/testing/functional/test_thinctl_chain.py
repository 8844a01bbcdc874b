# SPDX-License-Identifier: GPL-2.0
"""thinctl: what a backup goes on from, that it is of the same volume, and whether it can be restored."""

import os

import pytest

from dmtest.content import Content
from dmtest.thinctl import (
    DAMAGED,
    SIZE,
    received,
    volumes,
)


def numbers(thinctl, repository, name="data"):
    return [one["number"] for one in thinctl.json("backups", repository)[name]]


@pytest.fixture
def first(pool, thinctl):
    """A volume that was backed up once: its content, the repository, and the words that back it up again."""
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 10)
    repository = thinctl.repository("backups")
    backup = "backup", pool.name, 0, repository, "--name", "data"
    thinctl.run(*backup)
    return content, repository, backup


def test_another_volume_is_not_taken_for_the_first(pool, other, thinctl):
    """Pruning would remove what there is of the first one."""
    first = Content(pool.new_thin(0, SIZE))
    second = Content(pool.new_thin(1, SIZE))
    first.scatter("first", 10)
    second.scatter("second", 10)
    repository = thinctl.repository("backups")
    thinctl.run("backup", pool.name, 0, repository, "--name", "data")
    for words in (), ("--full",):
        why = thinctl.refused("backup", pool.name, 1, repository, "--name", "data", *words)
        assert f"volume 0 of pool {pool.name}" in why and f"volume 1 of pool {pool.name}" in why, why
        assert "--name" in why and "--adopt" in why, why
    other.new_thin(0, SIZE)
    assert f"volume 0 of pool {other.name}" in thinctl.refused("backup", other.name, 0, repository, "--name", "data")
    assert numbers(thinctl, repository) == [1]
    # Nothing was made for it.
    assert len(volumes(pool)) == 3 and volumes(other) == {0}
    thinctl.run("backup", pool.name, 1, repository, "--name", "second")
    # The first one goes on.
    first.scatter("more", 3)
    assert thinctl.json("backup", pool.name, 0, repository, "--name", "data")["kind"] == "incremental"
    # What is pruned knows still which volume it is of.
    thinctl.run("prune", repository, "data", "--keep", 1)
    thinctl.refused("backup", pool.name, 1, repository, "--name", "data")
    thinctl.run("restore", repository, "data", other.name, 7)
    received(other, 7, first)


def test_a_volume_made_anew_is_not_taken_for_the_first(pool, thinctl, first):
    """It has the id of one that was deleted, and is not active."""
    content, repository, backup = first
    content.thin.remove()
    pool.delete(0)
    again = Content(pool.new_thin(0, SIZE))
    again.scatter("again", 3)
    again.thin.remove()
    assert "was made anew" in thinctl.refused(*backup)
    assert numbers(thinctl, repository) == [1]
    thinctl.run(*backup, "--adopt")
    thinctl.run("restore", repository, "data", pool.name, 9)
    received(pool, 9, again)


@pytest.mark.parametrize("how", ["clone", "wiped"])
def test_another_clone_is_not_taken_for_the_first(pool, thinctl, how):
    """It has the first one's id, and blocks of the template that both were made of; or the first one had nothing in the end."""
    template = Content(pool.new_thin(5, SIZE))
    template.scatter("template", 10)
    first = template.snapshot(pool.new_snap(0, 5, SIZE))
    first.scatter("first", 5)
    repository = thinctl.repository("backups")
    backup = "backup", pool.name, 0, repository, "--name", "data"
    thinctl.run(*backup)
    if how == "wiped":
        first.discard(0, SIZE)
        thinctl.run(*backup)
    first.thin.remove()
    pool.delete(0)
    second = template.snapshot(pool.new_snap(0, 5, SIZE))
    assert "was made anew" in thinctl.refused(*backup)
    second.scatter("second", 3)
    assert "was made anew" in thinctl.refused(*backup)


def test_a_snapshot_taken_anew_takes_the_place_of_the_one_before(pool, thinctl):
    """Each night somebody takes a snapshot, backs it up, and deletes it."""
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 20)
    repository = thinctl.repository("backups")
    for night in range(3):
        thinctl.snapshot(pool, 0, 1)
        made = thinctl.json("backup", pool.name, 1, repository, "--name", "data")
        assert made["kind"] == ("incremental" if night else "full")
        pool.delete(1)
        content.scatter(night, 3)
        if night < 2:
            expected = content.snapshot(content.thin)
    thinctl.run("restore", repository, "data", pool.name, 9)
    received(pool, 9, expected)


def test_a_restored_volume_goes_on_when_it_is_told_to(pool, other, thinctl, first):
    content, repository, backup = first
    thinctl.run("restore", repository, "data", other.name, 5)
    there = content.on(other.activate(5, SIZE))
    there.scatter("second", 3)
    moved = "backup", other.name, 5, repository, "--name", "data"
    thinctl.refused(*moved)
    assert thinctl.json(*moved, "--adopt")["kind"] == "full"
    there.scatter("third", 3)
    # It is its volume from then on, and the first one's no more.
    assert thinctl.json(*moved)["kind"] == "incremental"
    assert f"volume 5 of pool {other.name}" in thinctl.refused(*backup)
    assert numbers(thinctl, repository) == [1, 2, 3]
    thinctl.run("restore", repository, "data", pool.name, 9)
    received(pool, 9, there)


def test_a_pool_that_nothing_is_known_of_is_another_one(pool, thinctl, first):
    """Two pools may have one name, on two hosts or one after the other."""
    content, repository, backup = first
    thinctl.forget_all()
    why = thinctl.refused(*backup)
    assert "--home" in why and "--adopt" in why, why
    assert thinctl.json(*backup, "--adopt")["kind"] == "full"
    content.scatter("second", 3)
    assert thinctl.json(*backup)["kind"] == "incremental"


def test_backups_that_do_not_tell_their_volume_go_on(pool, thinctl, first):
    """Manifests of earlier versions say nothing of it."""
    content, repository, backup = first
    path = os.path.join(repository, "data", "000001.full.json")
    with open(path) as file:
        text = file.read()
    begin = text.index('"source"')
    with open(path, "w") as file:
        file.write(text[:begin] + text[text.index("}", begin) + 2:])
    assert "source" not in thinctl.json("backups", repository)["data"][0]
    content.scatter("second", 3)
    made = thinctl.json(*backup)
    assert made["kind"] == "incremental" and made["source"]["volume"] == 0


def spoil(path, how):
    if how == "missing":
        os.unlink(path)
    elif how == "short":
        os.truncate(path, os.path.getsize(path) - 4)
    elif how == "empty":
        os.truncate(path, 0)
    else:
        with open(path, "r+b") as file:
            file.write(b"x" * 64)


@pytest.mark.parametrize("how, file", [
    ("missing", "000001.full.thin"), ("missing", "000002.incremental.thin"), ("missing", "000003.incremental.json"),
    ("short", "000001.full.thin"), ("short", "000002.incremental.json"), ("empty", "000003.incremental.thin"),
    ("overwritten", "000001.full.json"), ("overwritten", "000002.incremental.thin"),
])
def test_a_chain_that_cannot_be_restored_is_told_of(pool, other, thinctl, how, file):
    content = Content(pool.new_thin(0, SIZE))
    repository = thinctl.repository("backups")
    backup = "backup", pool.name, 0, repository, "--name", "data"
    for number in range(1, 4):
        content.scatter(number, 5)
        thinctl.run(*backup)
    folder = os.path.join(repository, "data")
    spoil(os.path.join(folder, file), how)
    there = set(os.listdir(folder))
    before = volumes(pool)
    # Whether something has changed or not.
    for _ in range(2):
        why = thinctl.refused(*backup, code=DAMAGED)
        assert "cannot be restored" in why and "--full" in why and "verify" in why, why
        content.scatter("more", 3)
    assert volumes(pool) == before and not thinctl.leftovers(pool)
    made = thinctl.json(*backup, "--full")
    assert (made["number"], made["kind"]) == (4, "full")
    # All that was there is there still, but for a manifest without its stream.
    assert there - set(os.listdir(folder)) <= {file.replace(".thin", ".json")}
    content.scatter("last", 3)
    assert thinctl.json(*backup)["kind"] == "incremental"
    thinctl.run("restore", repository, "data", other.name, 7)
    received(other, 7, content)
    # What cannot be restored can be given up, and nothing else is.
    thinctl.run("prune", repository, "data", "--keep", 2)
    assert numbers(thinctl, repository) == [4, 5]
    thinctl.run("verify", repository)
    assert volumes(pool) == {0} | {one["id"] for one in thinctl.json("kept", pool.name)} and len(volumes(pool)) == 2


def test_damaged_backups_are_listed(pool, thinctl):
    content = Content(pool.new_thin(0, SIZE))
    repository = thinctl.repository("backups")
    for number in range(1, 4):
        content.scatter(number, 5)
        thinctl.run("backup", pool.name, 0, repository, "--name", "data")
    spoil(os.path.join(repository, "data", "000002.incremental.json"), "empty")
    process = thinctl.start("--json", "backups", repository, stdout=-1, stderr=-1)
    output = process.communicate()[0].decode()
    assert process.returncode == DAMAGED
    assert '"number":1' in output and '"number":2' in output and '"number":3' in output, output
