# SPDX-License-Identifier: GPL-2.0
"""thinctl: what it remembers of pools, and messages that nobody can read."""

import os
import time

from dmtest.content import Content
from dmtest.thinctl import (
    BUSY,
    NOT_FOUND,
    SIZE,
    volumes,
)


def test_each_pool_has_its_own_folder(make_pool, thinctl):
    """Also if their names differ only in what cannot be in the name of a file."""
    pools = [make_pool(start=False) for _ in range(3)]
    for one, name in zip(pools, ("pool.1", "pool_1", "pool:1")):
        one.name = name
        one.start()
    repository = thinctl.repository("backups")
    for one in pools:
        Content(one.new_thin(0, SIZE)).scatter(one.name, 10)
        thinctl.run("backup", one.name, 0, repository, "--name", one.name)
    for one in pools:
        [kept] = thinctl.json("kept", one.name)
        assert kept["exists"] and kept["place"] == f"{one.name} in {repository}"
        assert volumes(one) == {0, kept["id"]}
    assert len(os.listdir(thinctl.environment["THINCTL_HOME"])) == 3


def test_removes_what_was_never_finished(pool, thinctl):
    thinctl.settle(pool)
    folder = os.path.join(thinctl.environment["THINCTL_HOME"], pool.name)
    for name, age in ("old", 7200), ("new", 0):
        path = os.path.join(folder, f".tmp-states.json-{name}")
        open(path, "w").close()
        os.utime(path, (time.time() - age,) * 2)
    thinctl.settle(pool)
    assert [name for name in os.listdir(folder) if name.startswith(".tmp-")] == [".tmp-states.json-new"]


def test_ends_as_ever_if_nobody_can_read_why(pool, thinctl):
    with open("/dev/full", "w") as full:
        assert thinctl.start("status", "nothing", stderr=full).wait() == NOT_FOUND
    pool.reserve_metadata_snap()
    with open("/dev/full", "w") as full:
        assert thinctl.start("ls", pool.name, stderr=full).wait() == BUSY
    pool.release_metadata_snap()
