# SPDX-License-Identifier: GPL-2.0
"""thinctl's repositories: that they are there, who writes into them, and what the pool keeps for them."""

import os

from dmtest.content import Content
from dmtest.thinctl import (
    BUSY,
    NOT_FOUND,
    SIZE,
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
        assert "writing into it" in thinctl.refused("backup", other.name, 0, repository, "--name", "data", code=BUSY)
        assert "writing into it" in thinctl.refused("prune", repository, "data", "--keep", 1, code=BUSY)
    finally:
        assert process.wait() == 0
    assert volumes(other) == {0}
    assert [one["number"] for one in thinctl.json("backups", repository)["data"]] == [1]
    thinctl.run("verify", repository)
