# SPDX-License-Identifier: GPL-2.0
"""thinctl: what it says when it cannot do what it was told, by which exit code, and what it prints when it was done."""

import os
import shutil
import re
import signal
import subprocess

import pytest

from dmtest import dm
from dmtest.content import Content
from dmtest.disk import MIB
from dmtest.thinctl import (
    DAMAGED,
    FAILED,
    NOT_FOUND,
    REFUSED,
    SIZE,
    USAGE,
    volumes,
)

# The first id that is thinctl's own, and the first that is none.
FIRST_OWN = 1 << 23
NO_ID = 1 << 24


@pytest.fixture
def repository(pool, thinctl):
    """A repository with two generations of volume 0."""
    content = Content(pool.new_thin(0, SIZE))
    path = thinctl.repository("backups")
    for number in range(2):
        content.scatter(number, 5)
        thinctl.run("backup", pool.name, 0, path, "--name", "data")
    return path


def test_there_is_no_such_volume(pool, other, thinctl, make_disk):
    pool.new_thin(0, SIZE)
    target = make_disk(SIZE).path
    empty = thinctl.repository("backups")
    for id in 7, FIRST_OWN + 7:
        for words in (
            ("map", pool.name, id), ("diff", pool.name, 0, id), ("diff", pool.name, id, 0), ("snapshot", pool.name, id, 5),
            ("send", pool.name, id), ("backup", pool.name, id, empty), ("merge", pool.name, id, "--into", target),
            ("replicate", pool.name, id, "--to", "cat >/dev/null", "--turns", 1), ("forget", pool.name, id),
            ("token", pool.name, id), ("abandon", pool.name, id), ("migrate", f"{pool.name}:{id}", f"{other.name}:5"),
        ):
            assert str(id) in thinctl.refused(*words, code=NOT_FOUND), words
    assert volumes(pool) == {0} and volumes(other) == set()
    assert not thinctl.leftovers(pool) and not thinctl.leftovers(other)


def test_an_id_has_24_bits(pool, other, thinctl, repository, make_disk):
    """Those of the upper half can be named, and nothing is made there."""
    target = make_disk(SIZE).path
    pool.create_thin(NO_ID - 1)
    for id in NO_ID, 1 << 32, 1 << 64:
        for words in (
            ("map", pool.name, id), ("diff", pool.name, 0, id), ("snapshot", pool.name, id, 5), ("send", pool.name, 0, "--from", id),
            ("backup", pool.name, id, repository), ("merge", pool.name, id, "--into", target), ("forget", pool.name, id),
            ("replicate", pool.name, id, "--to", "cat >/dev/null"), ("token", pool.name, id), ("abandon", pool.name, id),
            ("migrate", f"{pool.name}:{id}", other.name), ("receive", other.name, 5, "--base", id),
        ):
            assert str(NO_ID - 1) in thinctl.refused(*words, code=USAGE), words
    for id in FIRST_OWN, NO_ID - 1, NO_ID, 1 << 32:
        for words in (
            ("snapshot", pool.name, 0, id), ("receive", other.name, id), ("restore", repository, "data", other.name, id),
            ("migrate", f"{pool.name}:0", f"{other.name}:{id}"),
        ):
            assert str(FIRST_OWN) in thinctl.refused(*words, code=USAGE), words
    assert "POOL:ID" in thinctl.refused("migrate", pool.name, other.name, code=USAGE)
    # Somebody else may have made some there.
    assert "name another one" in thinctl.refused("migrate", f"{pool.name}:{NO_ID - 1}", other.name, "--no-origin", code=USAGE)
    assert thinctl.run("map", pool.name, NO_ID - 1)
    thinctl.run("migrate", f"{pool.name}:{NO_ID - 1}", f"{other.name}:5", "--no-origin", "--delete")
    thinctl.run("restore", repository, "data", other.name, FIRST_OWN - 1)
    assert volumes(other) == {5, FIRST_OWN - 1}


def test_what_is_no_pool(pool, thinctl, make_disk):
    thin = pool.new_thin(0, SIZE)
    base = make_disk(MIB)
    above = dm.Device.create("other", f"0 8 linear {base.path} 0")
    for name, why in (
        ("/dev/null", "no pool"), (base.path, "no pool"), ("/etc/passwd", "no pool"), ("other", "linear"), (above.path, "linear"),
        (thin.name, "thin"), (thin.path, "thin"),
    ):
        assert why in thinctl.refused("status", name, code=REFUSED), name
    above.remove()
    for name in "nothing", "vg/nothing", "/dev/vg/nothing", "/dev/mapper/nothing":
        assert "there is no active pool" in thinctl.refused("status", name, code=NOT_FOUND), name
    assert thinctl.json("status", pool.device.path) == thinctl.json("status", pool.name)


def test_wrong_command_lines(pool, other, thinctl, repository):
    for words in (
        ("prune", repository, "data", "--keep", 0), ("prune", repository, "data", "--keep", -1), ("prune", repository, "data"),
        ("migrate", f"{pool.name}:", other.name), ("migrate", f"{pool.name}:0", f"{other.name}:x"), ("nothing",), (),
        ("restore", repository, "data"), ("restore", repository, "data", other.name),
    ):
        thinctl.refused(*words, code=USAGE)
    # However the two are called.
    [thin] = pool.thins.values()
    for words in (
        (f"{pool.name}:0", pool.name), (f"{pool.name}:0", f"{pool.device.path}:0"), (f"{pool.device.path}:{thin.name}", f"{pool.name}:0"),
    ):
        assert "to itself" in thinctl.refused("migrate", *words, code=USAGE), words
    assert [one["number"] for one in thinctl.json("backups", repository)["data"]] == [1, 2]


def test_nothing_comes(pool, thinctl, make_disk):
    """What should have sent a stream has failed, and says so itself."""
    target = make_disk(SIZE).path
    for words in ("receive", pool.name, 5), ("receive", "--into", target):
        why = thinctl.refused(*words, code=DAMAGED, input=b"")
        assert "standard input is empty" in why and "holds a part" not in why, why
    assert volumes(pool) == set() and thinctl.json("kept", pool.name) == []


def as_nobody(thinctl, *words):
    os.chmod(thinctl.folder, 0o777)
    # The program may lie where nobody else gets to.
    program = os.path.join(thinctl.folder, "thinctl")
    if not os.path.exists(program):
        shutil.copy(thinctl.program, program)
    done = subprocess.run([program, *words], env=thinctl.environment, capture_output=True, text=True, user=65534, group=65534, extra_groups=[])
    return done.returncode, done.stderr


def test_who_is_not_root(pool, thinctl):
    for words in ("status", pool.name), ("ls", pool.name), ("receive", pool.name, "5"):
        code, errors = as_nobody(thinctl, *words)
        assert code == FAILED and "must be run as root" in errors, errors
    # What does without pools does without root.
    path = os.path.join(thinctl.folder, "anybody's")
    code, errors = as_nobody(thinctl, "init", path)
    assert code == 0, errors
    code, errors = as_nobody(thinctl, "verify", path)
    assert code == 0, errors


@pytest.mark.parametrize("words", [["diff", "POOL", "1", "0"], ["--json", "diff", "POOL", "1", "0"], ["ls", "POOL"], ["status", "POOL"],
                                   ["map", "POOL"], ["kept", "POOL"], ["send", "POOL", "1"], ["backups", "REPOSITORY"]],
                         ids=lambda words: " ".join(words))
def test_nobody_reads_it(pool, thinctl, words):
    content = Content(pool.new_thin(0, SIZE))
    content.write(0, SIZE)
    thinctl.snapshot(pool, 0, 1)
    for block in range(0, SIZE, 128 * 1024):
        content.write(block, 512)
    repository = thinctl.repository("backups")
    thinctl.run("backup", pool.name, 0, repository)
    words = [{"POOL": pool.name, "REPOSITORY": repository}.get(word, word) for word in words]
    reader, writer = os.pipe()
    os.close(reader)
    process = thinctl.start(*words, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    errors = process.communicate()[1].decode()
    assert (process.returncode, errors) == (128 + signal.SIGPIPE, "")
    # Nor is there any room for it.
    with open("/dev/full", "wb") as full:
        process = thinctl.start(*words, stdout=full, stderr=subprocess.PIPE)
        errors = process.communicate()[1].decode()
    assert process.returncode == FAILED and "No space left" in errors, errors
    assert not thinctl.leftovers(pool)


def commands(thinctl):
    folder = os.path.join(thinctl.folder, "manual")
    thinctl.run("generate", folder)
    return {name.split(".")[0].replace("thinctl-", ""): os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".1")}


def test_exit_codes_are_told_everywhere(thinctl):
    def table(text):
        text = re.sub(r"\\f.|\\&|\\", "", text[text.index("Exit codes"):].replace(r"\*(Aq", "'"))
        return re.sub(r"\s+", " ", re.sub(r"^\.\w+$", "", text, flags=re.MULTILINE)).split(".SH")[0].split(" SH ")[0].strip()

    right = table(thinctl.run("--help").decode())
    for code in range(10):
        assert f" {code} " in right
    assert "128+" in right and "141" in right
    for name, path in commands(thinctl).items():
        with open(path) as file:
            page = file.read()
        assert "Exit codes" in page, name
        assert table(page) == right, name
        if name != "thinctl":
            assert table(thinctl.run(name, "--help").decode()) == right, name


def test_what_was_restored_is_told(pool, other, thinctl, repository, make_disk):
    told = thinctl.run("restore", repository, "data", other.name, 7).decode()
    assert re.fullmatch(rf"data of \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC, {SIZE} bytes with \d+ bytes of data, is volume 7 of pool {other.name}\n", told), told
    target = make_disk(SIZE).path
    told = thinctl.run("restore", repository, "data", "--into", target, "--generation", 1).decode()
    assert told.endswith(f"is in {target}\n"), told


def test_backups_are_listed_with_sizes_and_dates(thinctl, repository):
    lines = thinctl.run("backups", repository).decode().splitlines()
    assert lines[0].split() == ["NAME", "GENERATION", "KIND", "MADE", "(UTC)", "SIZE", "DATA", "STORED"]
    made = thinctl.json("backups", repository)["data"]
    for line, one, kind in zip(lines[1:], made, ("full", "incremental"), strict=True):
        words = line.split()
        assert words[:3] == ["data", str(one["number"]), kind] and words[5:7] == ["16.0", "MiB"], line
        date = subprocess.run(["date", "-u", "-d", f"@{one['created']}", "+%Y-%m-%d %H:%M:%S"], capture_output=True, text=True, check=True)
        assert words[3:5] == date.stdout.split()
        assert len(words) == 11
