# SPDX-License-Identifier: GPL-2.0
"""thinctl: whoever suspends a volume is alone with it, and needs nothing that lies on it."""

import fcntl
import os
import shutil
import signal
import subprocess
import threading

import pytest

from dmtest import ioctl, load
from dmtest.background import wait_until
from dmtest.content import Content
from dmtest.disk import MIB
from dmtest.dm import dmsetup
from dmtest.thinctl import (
    BUSY,
    SIZE,
    received,
    volumes,
)


def suspended(name):
    return bool(ioctl.call(ioctl.DEV_STATUS, name).flags & ioctl.SUSPEND)


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
        # A commit while it is suspended takes so long that it is seen.
        pool.metadata.delay_writes(200)
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
        process = thinctl.start("snapshot", pool.name, 0, 2)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        assert not suspended(content.thin.name) and volumes(pool) == {0, 1}
        content.scatter("meanwhile", 5)
    assert process.wait(200) == 0
    assert volumes(pool) == {0, 1, 2}


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


@pytest.mark.lvm2
def test_waits_for_lvm2(make_disk, kernel, modules, run, thinctl):
    from dmtest import lvm2
    from dmtest.trace import Trace

    modules.install(run["impl"])
    lvm = lvm2.Lvm2(Trace(kernel), [make_disk(400 * MIB)])
    try:
        lvm.run("lvcreate", "-q", "-L", "200m", "-T", "vg/pool", "-Zn", "--poolmetadatasize", "4m")
        lvm.run("lvcreate", "-q", "-V", "16m", "-T", "vg/pool", "-n", "data", "-Wn")
        with open("/run/lock/lvm/V_vg", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            process = thinctl.start("backup", "vg/pool", "vg/data", thinctl.repository("backups"), "--name", "data")
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(2)
            assert not suspended("vg-data")
        assert process.wait(200) == 0
        assert not os.path.exists("/run/lock/lvm/V_vg")
        lvm.run("lvcreate", "-q", "-s", "-n", "later", "vg/data")
    finally:
        lvm.call("lvchange", "-an", "vg")
        lvm.close()
