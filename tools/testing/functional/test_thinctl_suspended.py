# SPDX-License-Identifier: GPL-2.0
"""thinctl: whoever suspends a volume is alone with it, and needs nothing that lies on it."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import threading
import time

import pytest

from dmtest import ioctl, load
from dmtest.background import wait_until
from dmtest.content import Content
from dmtest.disk import MIB
from dmtest.dm import dmsetup
from dmtest.thinctl import (
    BUSY,
    SIZE,
    full_pipe,
    guards_of,
    received,
    suspended,
    volumes,
)


@pytest.fixture
def pool(make_pool, make_faulty):
    """Its metadata are on a disk that can be slow."""
    return make_pool(metadata=make_faulty(16 * MIB))


@pytest.fixture
def root(pool, thinctl, mounted):
    """A volume with a file system that the program lies on, with all that it remembers and what it prints."""
    thin = pool.new_thin(0, 384 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=1,nodiscard", thin.path], check=True)
    folder = mounted(thin.path)
    thinctl.program = shutil.copy(thinctl.program, folder)
    thinctl.environment["THINCTL_HOME"] = str(folder / "home")

    def run(*words, patience=200):
        with open(folder / "log", "ab") as log:
            process = thinctl.start(*words, stdout=log, stderr=log)
            try:
                return process.wait(patience)
            except subprocess.TimeoutExpired:
                hangs = suspended(thin.name)
                if hangs:
                    thin.resume()
                process.kill()
                process.wait()
                pytest.fail(f"{words[0]} has not come to an end; {'the volume was suspended' if hangs else ''}")

    run.folder, run.thin = folder, thin
    return run


def test_snapshots_what_it_lies_on(pool, root, thinctl):
    for number in range(1, 4):
        assert root("snapshot", pool.name, 0, number) == 0
        (root.folder / f"file {number}").write_bytes(os.urandom(MIB))
    assert root("init", thinctl.folder + "/backups") == 0
    assert root("backup", pool.name, 0, thinctl.folder + "/backups") == 0
    assert not suspended(root.thin.name)
    assert {0, 1, 2, 3} < volumes(pool)
    assert not thinctl.leftovers(pool)


def test_migrates_nothing_that_it_writes_to(pool, other, root, thinctl):
    assert root("migrate", f"{pool.name}:0", f"{other.name}:5") == 5
    assert "lies on pool0-thin0" in (root.folder / "log").read_text()
    assert not suspended(root.thin.name)
    assert volumes(pool) == {0} and volumes(other) == set()


def test_resumes_what_it_lies_on_although_it_is_killed(pool, root, thinctl):
    """Its guard does not need what is suspended, either."""
    for number in range(1, 4):
        # A commit while it is suspended takes so long that it is seen; there are some before, too.
        pool.metadata.delay_writes(1000)
        process = thinctl.start("snapshot", pool.name, 0, number, stderr=subprocess.DEVNULL, start_new_session=True)
        wait_until(lambda: suspended(root.thin.name) or process.poll() is not None, "it is suspended")
        assert process.poll() is None, "it was never seen suspended"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        pool.metadata.heal()
        wait_until(lambda: not suspended(root.thin.name), "the volume goes on")
        (root.folder / f"file {number}").write_bytes(os.urandom(4096))
        os.sync()
    assert root("snapshot", pool.name, 0, 10) == 0


def begins(pool, thin, thinctl, *words, **options):
    """Starts it, until the volume is suspended: what it makes then cannot be committed before the metadata are healed."""
    # There is nothing left to commit that would be held before.
    pool.status()
    pool.metadata.hold("writes")
    process = thinctl.start(*words, stderr=subprocess.PIPE, **options)
    # Until it has seen that all is suspended, it would suspend it again.
    wait_until(
        lambda: process.poll() is not None or (suspended(thin.name) and pool.metadata.held()), "it is suspended, and commits")
    assert process.poll() is None, "it was never seen suspended"
    return process


def test_takes_no_snapshot_of_what_was_resumed(pool, thinctl):
    """Somebody else resumes the volume meanwhile: it may have a write in a block that is shared by now."""
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 10)
    process = begins(pool, content.thin, thinctl, "snapshot", pool.name, 0, 1)
    content.thin.resume()
    pool.metadata.heal()
    errors = process.communicate(timeout=200)[1].decode()
    assert process.returncode == BUSY and "resumed" in errors, errors
    assert volumes(pool) == {0} and not thinctl.leftovers(pool)
    thinctl.snapshot(pool, 0, 1)


def ends(process):
    """Waits for its end, which must be a good one."""
    try:
        errors = process.communicate(timeout=100)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        pytest.fail("it has not come to an end")
    assert process.returncode == 0, errors


def state(process):
    with open(f"/proc/{process.pid}/stat") as file:
        return file.read().rpartition(") ")[2].split()[0]


def test_tells_nothing_to_what_is_suspended(pool, other, root, thinctl):
    """Somebody was killed, and left a device that somebody else has open. What it says about it goes to the volume."""
    thinctl.environment["THINCTL_HOME"] = os.path.join(thinctl.folder, "home")
    thinctl.settle(pool)
    home = os.path.join(thinctl.environment["THINCTL_HOME"], pool.name)
    assert dmsetup("create", "left-behind", "--table", "0 8 error").returncode == 0
    try:
        with open(os.path.join(home, "run-1.json"), "w") as file:
            json.dump([{"what": "device", "name": "left-behind"}], file)
        open(os.path.join(home, "run-1.lock"), "w").close()
        with open("/dev/mapper/left-behind", "rb"):
            assert root("migrate", f"{pool.name}:0", f"{other.name}:5") == 0
        assert "left-behind" in (root.folder / "log").read_text()
        thinctl.settle(pool)
        assert "left-behind" not in ioctl.names()
    finally:
        if "left-behind" in ioctl.names():
            assert dmsetup("remove", "left-behind").returncode == 0
    assert not suspended(root.thin.name)


def test_deletes_later_what_it_cannot_now(pool, thinctl):
    """Somebody has resumed the volume, so the snapshot is not what it must be; and somebody else has activated that."""
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 3)
    repository = thinctl.repository("backups")
    pool.metadata.delay_writes(1000)
    process = thinctl.start("backup", pool.name, 0, repository, stderr=subprocess.PIPE)
    wait_until(lambda: suspended(content.thin.name) and pool.metadata.held(), "it takes its snapshot")
    content.thin.resume()
    process.send_signal(signal.SIGSTOP)
    pool.metadata.heal()
    wait_until(lambda: state(process) == "T", "it stops")
    [id] = volumes(pool) - {0}
    snapshot = pool.activate(id, SIZE)
    process.send_signal(signal.SIGCONT)
    errors = process.communicate(timeout=200)[1].decode()
    assert process.returncode == BUSY and "resumed" in errors, errors
    assert volumes(pool) == {0, id}
    snapshot.remove()
    thinctl.settle(pool)
    assert volumes(pool) == {0} and not thinctl.leftovers(pool)


@pytest.mark.parametrize("halt", ["SIGTSTP", "SIGTTIN", "SIGTTOU"])
def test_is_not_halted_while_it_is_suspended(pool, thinctl, halt):
    """A terminal can halt it otherwise."""
    thin = pool.new_thin(0, SIZE)
    thin.write(0, os.urandom(4 * MIB))
    # Nobody halts a group that no shell could let go on.
    process = begins(pool, thin, thinctl, "snapshot", pool.name, 0, 1, process_group=0)
    process.send_signal(getattr(signal, halt))
    pool.metadata.heal()
    ends(process)
    assert not suspended(thin.name)
    process = thinctl.start("send", pool.name, 1, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0)
    assert process.stdout.read(1)
    process.send_signal(getattr(signal, halt))
    wait_until(lambda: state(process) == "T", "it is halted")
    process.send_signal(signal.SIGCONT)
    ends(process)


def test_resumes_a_device_of_another_name(pool, thinctl):
    thin = pool.new_thin(0, SIZE)
    process = begins(pool, thin, thinctl, "snapshot", pool.name, 0, 1)
    process.send_signal(signal.SIGSTOP)
    assert dmsetup("rename", thin.name, "renamed").returncode == 0
    try:
        process.send_signal(signal.SIGCONT)
        pool.metadata.heal()
        ends(process)
        assert not suspended("renamed")
    finally:
        assert dmsetup("rename", "renamed", thin.name).returncode == 0
    assert not thinctl.leftovers(pool)


def test_has_a_guard_each_time(pool, thinctl):
    """Its guard is killed before it suspends the volume again."""
    thin = pool.new_thin(0, SIZE)
    turns = os.path.join(thinctl.folder, "turns")
    words = "replicate", pool.name, 0, "--to", f"cat >/dev/null; echo >>{turns}", "--every", 1
    process = thinctl.start(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_until(lambda: os.path.exists(turns), "the first turn")
        [guard] = guards_of(process)
        os.kill(guard, signal.SIGKILL)
        # There is something to commit before, too.
        pool.metadata.delay_writes(1000)
        thin.write(0, os.urandom(4096))
        wait_until(lambda: suspended(thin.name), "it is suspended")
    finally:
        process.kill()
        process.wait()
    pool.metadata.heal()
    wait_until(lambda: not suspended(thin.name), "the volume goes on")


@contextlib.contextmanager
def deaf_udev():
    """What tells that there is udevd, which answers nobody."""
    os.makedirs("/run/udev", exist_ok=True)
    open("/run/udev/control", "w").close()
    try:
        yield
    finally:
        os.unlink("/run/udev/control")


@contextlib.contextmanager
def no_semaphores():
    """There are as many as there may be."""
    limits = "/proc/sys/kernel/sem"
    with open(limits) as file:
        before = file.read()
    made = subprocess.run(["ipcmk", "-S", "1"], check=True, capture_output=True, text=True).stdout.split()[-1]
    try:
        with open(limits, "w") as file:
            file.write("250 32000 32 1")
        yield
    finally:
        with open(limits, "w") as file:
            file.write(before)
        subprocess.run(["ipcrm", "-s", made], check=True)


@pytest.mark.parametrize("hindrance", [deaf_udev, no_semaphores], ids=lambda hindrance: hindrance.__name__)
def test_resumes_without_udev(pool, thinctl, hindrance):
    """A volume is active twice."""
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 10)
    assert dmsetup("create", "second", "--table", content.thin.table_text()).returncode == 0
    try:
        with deaf_udev(), hindrance() if hindrance is not deaf_udev else contextlib.nullcontext():
            for words in ("snapshot", pool.name, 0, 1), ("status", pool.name):
                ends(thinctl.start(*words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
        assert not suspended(content.thin.name) and not suspended("second")
    finally:
        for name in content.thin.name, "second":
            if suspended(name):
                assert dmsetup("resume", name).returncode == 0
        assert dmsetup("remove", "second").returncode == 0
    content.scatter("second", 10)
    assert volumes(pool) == {0, 1}
    assert not thinctl.leftovers(pool)


def test_many_suspend_one_volume(pool, thinctl):
    """What a snapshot holds does not change any more, whoever else suspends and resumes the volume."""
    thin = pool.new_thin(0, SIZE)
    options = "--time_based", "--runtime=600", "--bs=4k", "--rate_iops=400", "--verify_backlog=64"
    writer = load.Background(thin, *options, size="2m", depth=4)
    try:
        failed = []

        def take(first):
            for number in range(first, first + 3):
                process = thinctl.start("snapshot", pool.name, 0, number, stderr=subprocess.PIPE)
                errors = process.communicate()[1]
                if process.returncode:
                    failed.append(errors)

        takers = [threading.Thread(target=take, args=(100 * number,)) for number in range(1, 4)]
        for taker in takers:
            taker.start()
        for taker in takers:
            taker.join()
        assert not failed
        assert not suspended(thin.name)
        taken = sorted(volumes(pool) - {0})
        assert len(taken) == 9
        first = {}
        for number in taken:
            snapshot = pool.activate(number, SIZE)
            first[number] = snapshot.read(0, 2 * MIB)
            snapshot.remove()
        assert writer.running()
    finally:
        writer.kill()
    for number in taken:
        snapshot = pool.activate(number, SIZE)
        assert snapshot.read(0, 2 * MIB) == first[number]
        snapshot.remove()
    assert not thinctl.leftovers(pool)


def test_waits_for_who_has_a_volume(pool, thinctl):
    """A lock that somebody holds is waited for; the volume goes on meanwhile."""
    content = Content(pool.new_thin(0, SIZE))
    thinctl.snapshot(pool, 0, 1)
    folder = os.path.join(thinctl.environment["THINCTL_RUN"], pool.name)
    with open(os.path.join(folder, "volume-0.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Nobody halts a group that no shell could let go on.
        process = thinctl.start("snapshot", pool.name, 0, 2, process_group=0)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        # Others may wait for what it has locked.
        process.send_signal(signal.SIGTSTP)
        assert not suspended(content.thin.name) and volumes(pool) == {0, 1}
        content.scatter("meanwhile", 5)
    assert process.wait(200) == 0
    assert volumes(pool) == {0, 1, 2}


def test_no_halt_breaks_a_suspend_off(pool, thinctl):
    """It waits in the kernel, as somebody has suspended the pool, when a terminal wants to halt it."""
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 3)
    thinctl.settle(pool)
    folder = os.path.join(thinctl.environment["THINCTL_RUN"], pool.name)

    def is_noted():
        notes = [name for name in os.listdir(folder) if name.startswith("run-") and name.endswith(".json")]
        with contextlib.suppress(FileNotFoundError):
            return any('"suspended"' in open(os.path.join(folder, name)).read() for name in notes)

    with open(os.path.join(folder, "volume-0.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = thinctl.start("snapshot", pool.name, 0, 1, stderr=subprocess.PIPE, process_group=0)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        pool.device.suspend()
    try:
        wait_until(is_noted, "it is about to suspend the volume")
        for _ in range(5):
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.2)
            process.send_signal(signal.SIGTSTP)
    finally:
        pool.device.resume()
    ends(process)
    assert volumes(pool) == {0, 1} and not suspended(content.thin.name)
    content.verify()


def test_resumes_where_it_cannot_note_it(pool, other, thinctl, mounted):
    """Where it notes what is suspended there is room for that, and not for noting that it is resumed."""
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 3)
    run = mounted("tmpfs", "size=64k", "tmpfs")
    thinctl.environment["THINCTL_RUN"] = str(run)
    thinctl.environment["THINCTL_HOME"] = os.path.join(thinctl.folder, "home")
    thinctl.settle(pool)
    page = os.sysconf("SC_PAGESIZE")
    with open(run / "ballast", "wb", buffering=0) as ballast:
        free = os.statvfs(run).f_bavail * os.statvfs(run).f_frsize
        assert ballast.write(bytes(free - page)) == free - page
    words = "replicate", pool.name, 0, "--to", f"THINCTL_RUN={thinctl.folder} {thinctl.program} receive {other.name} 7"
    assert not thinctl.messages(*words, "--turns", 2, "--every", 1)
    received(other, 7, content)


def test_leaves_alone_what_was_suspended_before(pool, thinctl):
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 10)
    assert dmsetup("create", "second", "--table", content.thin.table_text()).returncode == 0
    content.thin.suspend()
    thinctl.snapshot(pool, 0, 1)
    assert suspended(content.thin.name) and not suspended("second")
    content.thin.resume()
    # It is not made, and both go on.
    assert "there is a volume 1" in thinctl.refused("snapshot", pool.name, 0, 1)
    assert not suspended(content.thin.name) and not suspended("second")
    assert dmsetup("remove", "second").returncode == 0
    pool.reserve_metadata_snap()
    thinctl.refused("migrate", f"{pool.name}:0", f"{pool.name}:5", code=BUSY)
    assert not suspended(content.thin.name)
    pool.release_metadata_snap()


@pytest.fixture
def vg(make_disk, kernel, modules, run):
    """A volume of lvm2's, vg/data."""
    from dmtest import lvm2
    from dmtest.trace import Trace

    modules.install(run["impl"])
    lvm = lvm2.Lvm2(Trace(kernel), [make_disk(400 * MIB)])
    try:
        lvm.run("lvcreate", "-q", "-L", "200m", "-T", "vg/pool", "-Zn", "--poolmetadatasize", "4m")
        lvm.run("lvcreate", "-q", "-V", "16m", "-T", "vg/pool", "-n", "data", "-Wn")
        yield lvm
    finally:
        lvm.call("lvchange", "-an", "vg")
        lvm.close()


@contextlib.contextmanager
def locked_by_lvm2():
    with open("/run/lock/lvm/V_vg", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_first_in_queue(process):
    """Whether nobody of thinctl's tries before it to lock what lvm2 has locked."""
    with contextlib.suppress(FileNotFoundError):
        return any(os.readlink(entry.path).endswith("/V_vg:aux") for entry in os.scandir(f"/proc/{process.pid}/fd"))
    return False


@pytest.mark.lvm2
def test_waits_for_lvm2(vg, thinctl):
    with locked_by_lvm2():
        words = "backup", "vg/pool", "vg/data", thinctl.repository("backups"), "--name", "data"
        process = thinctl.start(*words, stderr=subprocess.PIPE, text=True, process_group=0)
        # lvm2's commands wait for who waits for the lock, so that must not be halted.
        assert "waiting" in process.stderr.readline()
        process.send_signal(signal.SIGTSTP)
        assert not suspended("vg-data")
    assert process.wait(200) == 0
    assert not os.path.exists("/run/lock/lvm/V_vg")
    vg.run("lvcreate", "-q", "-s", "-n", "later", "vg/data")


def test_no_message_makes_lvm2_wait(vg, thinctl):
    """Nobody reads what thinctl says."""
    reader, writer = full_pipe()
    words = "backup", "vg/pool", "vg/data", thinctl.repository("backups"), "--name", "data"
    with locked_by_lvm2():
        process = thinctl.start(*words, stderr=writer)
        os.close(writer)
        wait_until(lambda: is_first_in_queue(process), "it tries to lock it")
        # It says that it waits after two seconds.
        time.sleep(6)
    vg.run("lvcreate", "-q", "-s", "-n", "later", "vg/data")
    with open(reader, "rb") as said:
        assert b"waiting" in said.read()
    assert process.wait(200) == 0
