# SPDX-License-Identifier: GPL-2.0
"""thinctl: volumes that become smaller and larger. Their metadata do not tell how large they are."""

import pytest

from dmtest.content import Content
from dmtest.disk import SECTOR
from dmtest.thinctl import SIZE

HALF = SIZE // 2


def resized(content, size, beyond=b""):
    """The same volume with another size; `beyond` is what is seen behind its former end."""
    content.thin.remove()
    data = bytes(content.data) + beyond
    return Content(content.thin.pool.activate(0, size), bytearray(data[:size].ljust(size, b"\0")))


def compare(pool, volume, data):
    thin = pool.activate(volume, len(data))
    Content(thin, bytearray(data)).verify()
    thin.remove()


@pytest.mark.parametrize("less", [HALF, SECTOR, 64 * 1024 + SECTOR], ids=["half", "sector", "more than a block"])
def test_a_volume_that_becomes_smaller_and_larger_again(pool, other, thinctl, less):
    """What was beyond its end is still mapped, and is seen again later."""
    repository = thinctl.repository("backups")

    def backup():
        return thinctl.json("backup", pool.name, 0, repository, "--name", "data")

    content = Content(pool.new_thin(0, SIZE))
    content.write(0, SIZE)
    past = []

    def step():
        number = len(past) + 1
        made = backup()
        past.append(bytes(content.data))
        assert made["number"] == number and made["header"]["size"] >= content.thin.size
        thinctl.snapshot(pool, 0, number)
        stream = thinctl.send(pool, number, *(["--from", number - 1] if number > 1 else []))
        thinctl.receive(other, 7, stream)
        compare(other, 7, past[-1])

    step()
    whole = bytes(content.data)
    for turn in range(2):
        content = resized(content, SIZE - less)
        content.scatter(f"smaller {turn}", 10)
        step()
        content = resized(content, SIZE, whole[SIZE - less:])
        content.scatter(f"larger {turn}", 10, most=8)
        step()
        whole = bytes(content.data)
    listed = thinctl.json("backups", repository)["data"]
    for made, data in zip(listed, past, strict=True):
        number = made["number"]
        thinctl.run("restore", repository, "data", other.name, 20 + number, "--generation", number)
        compare(other, 20 + number, data)
    thinctl.json("diff", pool.name, 1, 2)
    thinctl.run("verify", repository)


def test_a_size_that_was_cut_off(pool, other, thinctl):
    """The first backup ends before the end of the last block, which is seen when the volume becomes larger."""
    content = Content(pool.new_thin(0, SIZE))
    content.write(0, SIZE)
    whole = bytes(content.data)
    repository = thinctl.repository("backups")
    backup = "backup", pool.name, 0, repository, "--name", "data"
    replicate = "replicate", pool.name, 0, "--to", f"{thinctl.program} receive {other.name} 7", "--turns", 1
    content = resized(content, SIZE - SECTOR)
    assert thinctl.json(*backup)["header"]["size"] == SIZE - SECTOR
    thinctl.run(*replicate)
    content = resized(content, SIZE, whole[-SECTOR:])
    content.write(0, SECTOR)
    assert thinctl.json(*backup)["header"]["size"] == SIZE
    thinctl.run(*replicate)
    thinctl.run("restore", repository, "data", other.name, 1)
    for volume in 1, 7:
        compare(other, volume, content.data)


def test_sizes_of_generations(pool, thinctl):
    """One that has nothing beyond its end is as large as it is again with --full."""
    repository = thinctl.repository("backups")

    def backup(*words):
        made = thinctl.json("backup", pool.name, 0, repository, "--name", "data", *words)
        return made["kind"], made["header"]["size"]

    content = Content(pool.new_thin(0, SIZE))
    content.write(0, SIZE)
    assert backup() == ("full", SIZE)
    content.discard(HALF, HALF)
    content = resized(content, HALF)
    assert backup() == ("incremental", SIZE)
    content.write(0, SECTOR)
    told = thinctl.messages("backup", pool.name, 0, repository, "--name", "data")
    assert f"has {HALF} bytes, and what is restored has {SIZE}" in told
    assert backup("--full") == ("full", HALF)
    content.write(0, SECTOR)
    assert backup() == ("incremental", HALF)
    content = resized(content, SIZE, bytes(HALF))
    content.write(SIZE - SECTOR, SECTOR)
    assert backup() == ("incremental", SIZE)
    # It is not known how large one is that is not active.
    content.write(0, SECTOR)
    content.thin.remove()
    assert backup() == ("incremental", SIZE)
    thinctl.run("verify", repository)


def test_what_became_larger_and_is_not_active(pool, other, thinctl):
    """Only an active volume tells its size: the size of the last generation does not cut off what was written since."""
    content = Content(pool.new_thin(0, SIZE))
    content.write(0, SIZE)
    whole = bytes(content.data)
    repository = thinctl.repository("backups")
    backup = "backup", pool.name, 0, repository, "--name", "data"
    content = resized(content, SIZE - 9 * SECTOR)
    assert thinctl.json(*backup)["header"]["size"] == SIZE - 9 * SECTOR
    content = resized(content, SIZE, whole[-9 * SECTOR:])
    content.write(SIZE - 4 * SECTOR, 4 * SECTOR)
    content.thin.remove()
    thinctl.run(*backup)
    thinctl.run("restore", repository, "data", other.name, 1)
    compare(other, 1, content.data)
