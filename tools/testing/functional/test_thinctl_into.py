# SPDX-License-Identifier: GPL-2.0
"""thinctl: what is looked at before a volume is written into a device, so that nothing is given up for nothing."""

import fcntl
import os
import signal
import subprocess

import pytest

from dmtest import disk, dm, ioctl
from dmtest.background import wait_until
from dmtest.content import Content
from dmtest.disk import (
    KIB,
    MIB,
    SECTOR,
)
from dmtest.pool import Thin
from dmtest.thinctl import (
    BUSY,
    DAMAGED,
    NO_ROOM,
    NOT_FOUND,
    SIZE,
)


@pytest.fixture
def backed_up(pool, thinctl):
    """A repository with a volume of which all is written, and what it holds."""
    content = Content(pool.new_thin(0, SIZE))
    content.write(0, SIZE)
    repository = thinctl.repository("backups")
    thinctl.run("backup", pool.name, 0, repository, "--name", "data")
    return repository, bytes(content.data)


@pytest.fixture
def stream(pool, thinctl):
    """The stream of a volume of which little is written, and what it holds."""
    content = Content(pool.new_thin(5, SIZE))
    content.write(4 * MIB, MIB)
    thinctl.snapshot(pool, 5, 6)
    return thinctl.send(pool, 6), bytes(content.data)


@pytest.fixture
def make_loop():
    """Makes loop devices on devices or files."""
    made = []

    def make(path):
        with disk.opened("/dev/loop-control", os.O_RDWR) as control, disk.opened(path, os.O_RDWR) as backing:
            found = f"/dev/loop{fcntl.ioctl(control, disk.LOOP_CTL_GET_FREE)}"
            device = os.open(found, os.O_RDWR | os.O_CLOEXEC)
            fcntl.ioctl(device, disk.LOOP_SET_FD, backing)
        made.append(device)
        return found

    def clear():
        while made:
            device = made.pop()
            fcntl.ioctl(device, disk.LOOP_CLR_FD)
            os.close(device)

    make.clear = clear
    yield make
    clear()


def full_thin(make_pool, data_size, **options):
    """A volume all of which is written, in a pool that has so much room."""
    made = make_pool(data_size=data_size, **options)
    thin = made.new_thin(0, SIZE)
    content = os.urandom(SIZE)
    thin.write(0, content)
    return made, thin, content


def test_what_is_shared_gives_no_room(make_pool, thinctl, backed_up):
    repository, wanted = backed_up
    small, thin, content = full_thin(make_pool, 24 * MIB)
    small.create_snap(1, 0)
    restore = "restore", repository, "data", "--into", thin.path
    assert "no room" in thinctl.refused(*restore, code=NO_ROOM)
    assert thin.read() == content
    # Half of it is its own.
    for block in range(0, SIZE // 2, MIB):
        thin.write(block, content[block:block + MIB])
    assert "no room" in thinctl.refused(*restore, code=NO_ROOM)
    assert thin.read() == content and small.status().mode == "rw"
    small.delete(1)
    thinctl.run(*restore)
    assert thin.read() == wanted
    assert not thinctl.leftovers(small)


def test_zeroes_that_hide_an_origin_take_room(make_pool, make_disk, thinctl, stream):
    stream, wanted = stream
    origin = make_disk(SIZE)
    disk.write(origin.path, 0, os.urandom(SIZE))
    small = make_pool(data_size=12 * MIB)
    thin = small.new_thin(0, SIZE, origin.path)
    content = thin.read()
    receive = "receive", "--into", thin.path
    assert "no room" in thinctl.refused(*receive, code=NO_ROOM, input=stream)
    assert thin.read() == content and small.status().data_blocks[0] == 0
    small.data.grow(20 * MIB)
    small.device.reload(small.table())
    thinctl.run(*receive, input=stream)
    assert thin.read() == wanted


def test_zeroes_where_discards_are_ignored_take_room(make_pool, thinctl, stream):
    stream, wanted = stream
    small, thin, content = full_thin(make_pool, 24 * MIB, features=["ignore_discard"])
    small.create_snap(1, 0)
    receive = "receive", "--into", thin.path
    assert "no room" in thinctl.refused(*receive, code=NO_ROOM, input=stream)
    assert thin.read() == content
    small.delete(1)
    thinctl.run(*receive, input=stream)
    assert thin.read() == wanted


@pytest.mark.parametrize("kind", ["linear", "on-linear", "several-lines", "loop"])
def test_what_lies_on_a_volume_takes_its_room(make_pool, make_disk, make_loop, thinctl, stream, kind):
    """Zeroes are written over all of it."""
    stream, wanted = stream
    small = make_pool(data_size=12 * MIB)
    thin = small.new_thin(0, SIZE + MIB)
    thin.write(0, os.urandom(MIB))
    made = []

    def device(name, table):
        made.append(dm.Device.create(name, table))
        return made[-1].path

    sectors = SIZE // SECTOR
    if kind == "loop":
        path = make_loop(thin.path)
    elif kind == "several-lines":
        base = make_disk(MIB)
        path = device("several", f"0 2048 linear {base.path} 0\n2048 {sectors - 2048} thin {small.device.path} 0")
        thin.remove()
    else:
        path = device("below", f"0 {sectors} linear {thin.path} 2048")
        if kind == "on-linear":
            path = device("above", f"0 {sectors} linear {path} 0")
    content = disk.read(path, 0, SIZE)
    receive = "receive", "--into", path
    used = small.status().data_blocks[0]
    why = thinctl.refused(*receive, code=NO_ROOM, input=stream)
    assert small.name in why and "lies on" in why and "MiB are free" in why, why
    assert disk.read(path, 0, SIZE) == content and small.status().data_blocks[0] == used
    small.data.grow(24 * MIB)
    small.device.reload(small.table())
    thinctl.run(*receive, input=stream)
    assert disk.read(path, 0, SIZE) == wanted
    assert small.status().mode == "rw"
    make_loop.clear()
    for one in reversed(made):
        one.remove()


def test_others_take_the_room_below(make_pool, thinctl, backed_up, pool):
    """While a device that lies on a volume is written to."""
    thinctl.snapshot(pool, 0, 1)
    stream = thinctl.send(pool, 1)
    small = make_pool(data_size=24 * MIB)
    thin = small.new_thin(0, SIZE)
    other = small.new_thin(1, SIZE)
    above = dm.Device.create("above", f"0 {SIZE // SECTOR} linear {thin.path} 0")
    process = thinctl.start("receive", "--into", above.path, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(stream[:len(stream) // 2])
    process.stdin.flush()
    wait_until(lambda: thin.mapped_blocks() > 0, "it has begun")
    other.write(0, os.urandom(15 * MIB))
    errors = process.communicate(stream[len(stream) // 2:])[1].decode()
    assert process.returncode == NO_ROOM and "holds a part" in errors, errors
    assert small.status().mode == "rw"
    above.remove()


def test_a_volume_that_is_active_twice_is_in_use(make_pool, make_disk, thinctl, stream):
    stream, wanted = stream
    target, thin, content = full_thin(make_pool, 64 * MIB)
    base = make_disk(MIB)
    receive = "receive", "--into", thin.path
    alias = Thin.open(target, 0, SIZE, "alias")
    assert "alias" in thinctl.refused(*receive, code=BUSY, input=stream)
    alias.remove()
    alias = dm.Device.create("part", f"0 8 linear {base.path} 0\n8 128 thin {target.device.path} 0")
    assert "part" in thinctl.refused(*receive, code=BUSY, input=stream)
    assert thin.read() == content
    alias.remove()
    above = dm.Device.create("above", f"0 {SIZE // SECTOR} linear {thin.path} 0")
    alias = Thin.open(target, 0, SIZE, "alias")
    assert "alias" in thinctl.refused("receive", "--into", above.path, code=BUSY, input=stream)
    assert thin.read() == content
    alias.remove()
    above.remove()
    thinctl.run(*receive, input=stream)
    assert thin.read() == wanted


def open_count(name):
    return ioctl.call(ioctl.DEV_STATUS, name).open_count


@pytest.fixture
def rehearsing(thinctl, backed_up):
    """Starts a restore into a volume, and halts it before it reads the backup for the first time."""
    repository, _ = backed_up
    started = []

    def start(thin, content):
        words = "restore", repository, "data", "--into", thin.path
        before = thinctl.environment
        for step in range(1, 64):
            thinctl.environment = {**before, "THINCTL_HALT": str(step)}
            process = thinctl.start(*words, stderr=subprocess.PIPE, start_new_session=True)
            thinctl.environment = before
            started.append(process)
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status), "it was never seen at work"
            # The first step once it has opened the volume, and has looked at it.
            if open_count(thin.name):
                break
            process.kill()
            process.communicate()
        assert thin.read() == content, "it was halted too late"

        def go_on():
            process.send_signal(signal.SIGCONT)
            errors = process.communicate()[1].decode()
            return process.returncode, errors

        return go_on

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_what_is_opened_during_the_rehearsal(make_pool, rehearsing):
    _, thin, content = full_thin(make_pool, 64 * MIB)
    go_on = rehearsing(thin, content)
    with disk.opened(thin.path, os.O_RDONLY):
        code, errors = go_on()
    assert code == BUSY and "has it open" in errors and "holds a part" not in errors, errors
    assert thin.read() == content


def test_what_becomes_shared_during_the_rehearsal(make_pool, rehearsing):
    target, thin, content = full_thin(make_pool, 24 * MIB)
    go_on = rehearsing(thin, content)
    target.create_snap(1, 0)
    code, errors = go_on()
    assert code == NO_ROOM and "holds a part" not in errors, errors
    assert thin.read() == content


def test_what_grows_during_the_rehearsal(make_pool, rehearsing):
    _, thin, content = full_thin(make_pool, 64 * MIB)
    go_on = rehearsing(thin, content)
    thin.reload(thin.table_text((SIZE + MIB) // SECTOR))
    code, errors = go_on()
    assert code == BUSY and "has changed" in errors and "holds a part" not in errors, errors
    assert thin.read(0, SIZE) == content


def test_what_grows_while_it_is_written(make_pool, pool, thinctl, backed_up):
    """What it has more is not zeroed, so it is not called done."""
    _, wanted = backed_up
    thinctl.snapshot(pool, 0, 1)
    stream = thinctl.send(pool, 1)
    target = make_pool(data_size=64 * MIB)
    thin = target.new_thin(0, SIZE + MIB)
    thin.write(SIZE, os.urandom(MIB))
    thin.reload(thin.table_text(SIZE // SECTOR))
    process = thinctl.start("receive", "--into", thin.path, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(stream[:len(stream) // 2])
    process.stdin.flush()
    wait_until(lambda: thin.mapped_blocks() > 32, "it has begun")
    thin.reload(thin.table_text((SIZE + MIB) // SECTOR))
    errors = process.communicate(stream[len(stream) // 2:])[1].decode()
    assert process.returncode == BUSY and "has changed" in errors, errors
    thinctl.run("receive", "--into", thin.path, input=stream)
    assert thin.read(0, SIZE) == wanted and not any(thin.read(SIZE, MIB))


def test_a_loop_device_is_a_user(make_disk, make_loop, thinctl, stream):
    stream, wanted = stream
    target = make_disk(SIZE)
    content = os.urandom(SIZE)
    disk.write(target.path, 0, content)
    loop = make_loop(target.path)
    why = thinctl.refused("receive", "--into", target.path, code=BUSY, input=stream)
    assert os.path.basename(loop) in why, why
    assert disk.read(target.path, 0, SIZE) == content
    make_loop.clear()
    thinctl.run("receive", "--into", target.path, input=stream)
    assert disk.read(target.path, 0, SIZE) == wanted


def test_the_backup_that_was_looked_at_is_written(make_pool, pool, thinctl, backed_up, rehearsing):
    """Another one is made, and the first one is removed, meanwhile."""
    repository, wanted = backed_up
    _, thin, content = full_thin(make_pool, 64 * MIB)
    go_on = rehearsing(thin, content)
    pool.thins[0].write(0, os.urandom(64 * KIB))
    thinctl.run("backup", pool.name, 0, repository, "--name", "data")
    thinctl.run("prune", repository, "data", "--keep", 1)
    code, errors = go_on()
    assert code == 0, errors
    assert thin.read() == wanted


def test_what_is_read_only_is_as_it_was(make_disk, make_pool, thinctl, stream, backed_up):
    """Nothing was written to it, and nothing else is said."""
    stream, _ = stream
    repository, _ = backed_up
    target = make_disk(SIZE)
    content = os.urandom(SIZE)
    disk.write(target.path, 0, content)
    subprocess.run(["blockdev", "--setro", target.path], check=True)
    other = make_pool()
    thin = other.new_thin(0, SIZE)
    thin.write(0, os.urandom(MIB))
    thin.remove()

    def refused(path):
        for words, input in (("receive", "--into", path), stream), (("restore", repository, "data", "--into", path), None), \
                (("merge", other.name, 0, "--into", path), None):
            why = thinctl.refused(*words, input=input)
            assert "is read-only" in why and "holds a part" not in why, why
        assert disk.read(path, 0, SIZE) == content

    refused(target.path)
    subprocess.run(["blockdev", "--setrw", target.path], check=True)
    above = dm.Device.create("above", f"0 {SIZE // SECTOR} linear {target.path} 0", readonly=True)
    refused(above.path)
    above.remove()


def test_what_is_damaged_at_once_has_given_up_nothing(make_disk, thinctl, stream):
    stream, _ = stream
    target = make_disk(SIZE)
    content = os.urandom(SIZE)
    disk.write(target.path, 0, content)
    # Of the first data, a bit is wrong.
    broken = bytearray(stream)
    broken[1000] ^= 1
    why = thinctl.refused("receive", "--into", target.path, code=DAMAGED, input=bytes(broken))
    assert "holds a part" not in why, why
    assert disk.read(target.path, 0, SIZE) == content


def test_a_device_by_its_name(make_disk, make_pool, pool, thinctl, stream, tmp_path, monkeypatch):
    """As lvm2 and dmsetup name it; nodes of these names are udev's, and need not be there."""
    stream, wanted = stream
    base = make_disk(2 * SIZE)
    volume = dm.Device.create("my--vg-a--volume", f"0 {SIZE // SECTOR} linear {base.path} 0")
    plain = dm.Device.create("plain", f"0 {SIZE // SECTOR} linear {base.path} {SIZE // SECTOR}")
    for device, names in (volume, ("my-vg/a-volume", "/dev/my-vg/a-volume", "my--vg-a--volume")), (plain, ("plain", "/dev/mapper/plain")):
        for name in names:
            disk.write(device.path, 0, os.urandom(SIZE))
            thinctl.run("receive", "--into", name, input=stream)
            assert disk.read(device.path, 0, SIZE) == wanted, name
    # What is there by that path, and is a device, comes first.
    other = make_disk(SIZE)
    monkeypatch.chdir(tmp_path)
    os.mkdir("my-vg")
    open("my-vg/a-volume", "w").close()
    disk.write(volume.path, 0, os.urandom(SIZE))
    thinctl.run("receive", "--into", "my-vg/a-volume", input=stream)
    assert disk.read(volume.path, 0, SIZE) == wanted
    os.unlink("my-vg/a-volume")
    os.symlink(other.path, "my-vg/a-volume")
    content = disk.read(volume.path, 0, SIZE)
    thinctl.run("receive", "--into", "my-vg/a-volume", input=stream)
    assert disk.read(other.path, 0, SIZE) == wanted and disk.read(volume.path, 0, SIZE) == content
    os.unlink("my-vg/a-volume")
    for name in "my-vg/nothing", "/dev/nothing", "nothing":
        for words, input in (("receive", "--into", name), stream), (("merge", pool.name, 5, "--into", name), None), \
                (("migrate", f"{pool.name}:5", f"{pool.name}:7", "--origin", name), None):
            assert "there is no device" in thinctl.refused(*words, code=NOT_FOUND, input=input), words
    # A merge goes on with the same words.
    target = make_pool()
    thin = target.new_thin(0, SIZE, volume.path)
    content = Content(thin, bytearray(thin.read()))
    content.scatter("own", 5)
    thin.remove()
    thinctl.environment["THINCTL_CUT"] = "12"
    assert thinctl.start("merge", target.name, 0, "--into", "my-vg/a-volume").wait() == -signal.SIGKILL
    del thinctl.environment["THINCTL_CUT"]
    thinctl.run("merge", target.name, 0, "--into", "my-vg/a-volume")
    assert disk.read(volume.path, 0, SIZE) == bytes(content.data)
    volume.remove()
    plain.remove()
