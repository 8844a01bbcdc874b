# SPDX-License-Identifier: GPL-2.0
"""Volumes that must go while writes wait for space, as when a machine is shut down; and what growth saves before that."""

import os
import subprocess

import pytest

from dmtest import (
    dm,
    ioctl,
)
from dmtest.background import (
    Background,
    wait_until,
)
from dmtest.content import (
    Content,
    pattern,
)
from dmtest.disk import (
    KIB,
    MIB,
    SECTOR,
)
from test_modes import (
    FULL,
    fill,
    wait_for,
)

BLOCK = 64 * KIB
SPACE = 24 * MIB
SIZE = 64 * MIB
# Of seconds, for what has no reason to wait.
PATIENCE = 120

# How a device loses its table without waiting for the writes that it has.
WAYS = {
    "wiped": ["wipe_table", "--noflush", "--nolockfs"],
    "by force": ["remove", "--force", "--noflush", "--nolockfs"],
}


def give_up(thin, how):
    """Takes its table from a device."""
    if how == "replaced":
        thin.load(f"0 {thin.size // SECTOR} error")
        thin.suspend(noflush=True, nolockfs=True)
        thin.resume()
    else:
        # While it is open the device itself stays, which dmsetup calls a failure.
        dm.dmsetup(*WAYS[how], thin.name)


@pytest.mark.parametrize("seconds", [0, 3600])
@pytest.mark.parametrize("how", [*WAYS, "replaced"])
def test_device_goes_while_its_writes_wait(make_pool, no_space_timeout, how, seconds):
    """They fail at once, and nothing else is lost."""
    no_space_timeout(seconds)
    pool = make_pool(data_size=FULL, metadata_size=4 * MIB)
    content = fill(pool)
    other = Content(pool.new_snap(1, 0, 2 * FULL), bytearray(content.data))
    writing = [Background(lambda at=at: content.thin.write(FULL + at * BLOCK, pattern("late", BLOCK))) for at in range(3)]
    wait_for(pool, "out_of_data_space")
    assert all(one.waits() for one in writing)
    give_up(content.thin, how)
    assert [one.outcome(PATIENCE) for one in writing] == 3 * ["EIO"]
    del pool.thins[0]
    if content.thin.name in ioctl.names():
        content.thin.remove()
    other.verify()
    # Whoever has the pool grown afterwards finds what was there before.
    pool.data.grow(2 * FULL)
    pool.device.reload(pool.table())
    content = content.on(pool.activate(0, 2 * FULL))
    content.verify()
    content.write(FULL, BLOCK)
    content.verify()
    other.verify()


@pytest.fixture
def ext4(make_pool, no_space_timeout, tmp_path):
    """A mounted file system with a file that it has no room for. Gives pool, volume, folder and content of the file."""
    no_space_timeout(0)
    pool = make_pool(data_size=SPACE, metadata_size=4 * MIB)
    thin = pool.new_thin(0, SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", "-J", "size=4", thin.path], check=True)
    folder = tmp_path / "mounted"
    folder.mkdir()
    subprocess.run(["mount", "-o", "errors=continue", thin.path, str(folder)], check=True)
    data = pattern("a file", SPACE)
    (folder / "file").write_bytes(data)
    yield pool, thin, folder, data
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)])


def unmounting(folder):
    """Unmounts in the background, which writes all that the page cache has."""
    return Background(lambda: subprocess.run(["umount", str(folder)], capture_output=True))


def test_file_system_is_given_up(ext4):
    """Unmounting waits for space, and no longer than there is a table that may get some."""
    pool, thin, folder, _ = ext4
    going = unmounting(folder)
    wait_for(pool, "out_of_data_space")
    assert going.waits(1)
    give_up(thin, "wiped")
    assert going.outcome(PATIENCE) == "ok"
    wait_until(lambda: not os.path.ismount(folder), "unmounted", PATIENCE)
    thin.remove()
    assert pool.status().mode == "out_of_data_space"


def test_growth_saves_a_file_system(ext4):
    """All that was waiting is there."""
    pool, thin, folder, data = ext4
    going = unmounting(folder)
    wait_for(pool, "out_of_data_space")
    assert going.waits(1)
    pool.data.grow(2 * SPACE)
    pool.device.reload(pool.table())
    assert going.outcome(PATIENCE) == "ok"
    assert not os.path.ismount(folder)
    subprocess.run(["fsck.ext4", "-fn", thin.path], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "ro", thin.path, str(folder)], check=True)
    assert (folder / "file").read_bytes() == data
