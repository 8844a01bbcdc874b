# SPDX-License-Identifier: GPL-2.0
"""lvm2's thin volumes. lvm2 has the kernel load the module, as on any machine where it was installed."""

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dmtest import (
    disk,
    dm,
    ioctl,
    lvm2,
    metadata,
    superblock,
)
from dmtest.content import pattern
from dmtest.disk import (
    KIB,
    MIB,
    SECTOR,
)
from dmtest.thinctl import NOT_FOUND
from dmtest.trace import (
    Trace,
    differences,
)

BLOCK = 64 * KIB

pytestmark = pytest.mark.lvm2


@pytest.fixture
def play(run, both, modules, make_disk, kernel):
    """Plays `scenario(lvm)` with the module under test or, if the run is not only for lvm2, with both; equal answers are wanted."""
    running = []

    def play(scenario, disks=1, size=400 * MIB, make=make_disk):
        traces = []
        for implementation in [run["impl"]] if run["mark"] == "lvm2" else both:
            modules.install(implementation)
            lvm = lvm2.Lvm2(Trace(kernel), [make(size) for _ in range(disks)])
            running.append(lvm)
            scenario(lvm)
            assert modules.is_loaded(modules.file(implementation)), "lvm2 has used another module"
            lvm.check()
            running.remove(lvm)
            lvm.close()
            for one in lvm.disks:
                one.close()
            assert not ioctl.names(), "lvm2 has left devices"
            traces.append(lvm.trace.entries)
        found = differences(*traces) if len(traces) == 2 else ""
        if found:
            pytest.fail(found, pytrace=False)

    yield play
    for lvm in running:
        lvm.close()
    modules.uninstall()


def fill(lvm, name, blocks, tag="fill"):
    for block in blocks:
        lvm.write(name, block * BLOCK, pattern((tag, block), BLOCK))


def check(lvm, name, blocks, tag="fill"):
    for block in blocks:
        assert lvm.read(name, block * BLOCK, BLOCK) == pattern((tag, block), BLOCK), f"{name}: block {block}"


def wait_for(condition, patience=60):
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


def test_module_is_found(run, both, modules, make_pool):
    """By modprobe, and by the kernel when a table asks for the target; once it is gone again, the kernel's own is."""
    for implementation in (run["impl"], both[0]):
        modules.install(implementation)
        subprocess.run(["modprobe", "dm-thin-pool"], check=True)
        assert modules.is_loaded(modules.file(implementation))
    modules.install(run["impl"])
    pool = make_pool()
    assert modules.is_loaded(modules.file(run["impl"]))
    pool.stop()
    modules.uninstall()


def test_snapshots_and_columns(play):
    def scenario(lvm):
        lvm.run("lvcreate", "-q", "-L", "64m", "-T", "vg/pool")
        lvm.run("lvcreate", "-q", "-V", "100m", "-T", "vg/pool", "-n", "one")
        fill(lvm, "one", range(256))
        assert lvm.lvs("pool", "data_percent") == "25.00"
        lvm.run("lvcreate", "-q", "-s", "-n", "two", "vg/one")
        lvm.run("lvcreate", "-q", "-s", "-kn", "-n", "three", "vg/two")
        lvm.run("lvchange", "-ay", "-K", "vg/two")
        fill(lvm, "two", range(0, 256, 4), "two")
        check(lvm, "one", range(256))
        check(lvm, "two", range(0, 256, 4), "two")
        check(lvm, "two", range(1, 256, 4))
        check(lvm, "three", range(256))
        assert lvm.lvs("pool", "lv_attr", "transaction_id", "discards", "zero", "lv_when_full", "chunk_size", "thin_count") == [
            "twi-aotz--", "3", "passdown", "zero", "queue", str(BLOCK), "3",
        ]
        assert lvm.lvs("two", "lv_attr", "origin", "thin_id") == ["Vwi-a-tz-k", "one", "2"]
        # Not to be compared: how many metadata blocks there are depends on when the pool commits by itself.
        assert 10 < float(lvm.call("lvs", "--noheadings", "-o", "metadata_percent", "vg/pool").stdout) < 20
        lvm.columns()
        lvm.run("lvremove", "-q", "-f", "vg/one", "vg/three")
        check(lvm, "two", range(0, 256, 4), "two")
        assert lvm.lvs("pool", "thin_count") == "1"

    play(scenario)


def test_merge(play):
    """At once where the origin is not in use, else when it is activated the next time."""
    def scenario(lvm):
        lvm.run("lvcreate", "-q", "-L", "64m", "-V", "32m", "-T", "vg/pool", "-n", "one")
        fill(lvm, "one", range(64), "old")
        lvm.run("lvcreate", "-q", "-s", "-n", "snap", "vg/one")
        fill(lvm, "one", range(64), "new")
        lvm.run("lvconvert", "-q", "--merge", "vg/snap")
        check(lvm, "one", range(64), "old")
        assert "snap" not in lvm.run("lvs", "--noheadings", "-o", "lv_name", "vg").split()
        lvm.run("lvcreate", "-q", "-s", "-n", "snap", "vg/one")
        with disk.opened(lvm.path("one"), os.O_RDWR):
            fill(lvm, "one", range(64), "newer")
            lvm.run("lvconvert", "-q", "--merge", "vg/snap")
        check(lvm, "one", range(64), "newer")
        lvm.run("lvchange", "-an", "vg/one")
        lvm.run("lvchange", "-ay", "vg/one")
        check(lvm, "one", range(64), "old")
        assert lvm.run("lvs", "--noheadings", "-o", "lv_name", "vg").split() == ["one", "pool"]

    play(scenario)


def test_changes(play):
    """What can be changed of a pool and its volumes, most of it while they are in use."""
    def scenario(lvm):
        lvm.run("lvcreate", "-q", "-L", "32m", "-V", "64m", "-T", "vg/pool", "-n", "one")
        fill(lvm, "one", range(256))
        lvm.run("lvchange", "-q", "--errorwhenfull", "y", "vg/pool")
        assert " error_if_no_space " in dm.dmsetup("status", "vg-pool-tpool").stdout
        lvm.run("lvchange", "-q", "--zero", "n", "vg/pool")
        assert " skip_block_zeroing " in dm.dmsetup("table", "vg-pool-tpool").stdout
        lvm.refused("lvchange", "-q", "--discards", "ignore", "vg/pool")
        lvm.run("lvrename", "-q", "vg/one", "vg/two")
        lvm.run("lvchange", "-q", "-pr", "vg/two")
        lvm.columns()
        with pytest.raises(OSError):
            lvm.write("two", 0, bytes(BLOCK))
        lvm.run("lvchange", "-q", "-prw", "vg/two")
        fill(lvm, "two", range(256, 512))
        with pytest.raises(OSError):
            lvm.write("two", 512 * BLOCK, bytes(BLOCK))
        lvm.columns()
        lvm.run("vgchange", "-q", "-an", "vg")
        lvm.run("lvchange", "-q", "--discards", "ignore", "vg/pool")
        lvm.run("vgchange", "-q", "-ay", "vg")
        assert " ignore_discard " in dm.dmsetup("status", "vg-pool-tpool").stdout
        check(lvm, "two", range(512))
        lvm.columns()

    play(scenario)


def test_file_system(play, mounted):
    """A snapshot of a mounted file system is one; what is freed comes back by fstrim, but not what the snapshot holds."""
    def scenario(lvm):
        lvm.run("lvcreate", "-q", "-L", "64m", "-V", "48m", "-T", "vg/pool", "-n", "one")
        subprocess.run(["mkfs.ext4", "-q", lvm.path("one")], check=True)
        # Otherwise ext4 goes on writing in the background.
        folder = mounted(lvm.path("one"), "noinit_itable")

        def used():
            # What a transaction of the journal has freed can be trimmed after its end.
            subprocess.run(["sync", "-f", str(folder)], check=True)
            subprocess.run(["fstrim", str(folder)], check=True)
            return float(lvm.call("lvs", "--noheadings", "-o", "data_percent", "vg/pool").stdout)

        for name in ("kept", "freed"):
            (folder / name).write_bytes(pattern(name, 8 * MIB))
        full = used()
        (folder / "freed").unlink()
        trimmed = used()
        assert trimmed < full - 10
        lvm.run("lvcreate", "-q", "-s", "-kn", "-n", "snap", "vg/one")
        (folder / "kept").unlink()
        assert used() > trimmed - 2
        snap = mounted(lvm.path("snap"))
        assert (snap / "kept").read_bytes() == pattern("kept", 8 * MIB)
        for one in (snap, folder):
            subprocess.run(["umount", str(one)], check=True)

    play(scenario)


def test_resize(play):
    """Data, metadata and volumes, while they are in use."""
    def scenario(lvm):
        lvm.run("lvcreate", "-q", "-L", "32m", "--poolmetadatasize", "4m", "-V", "32m", "-T", "vg/pool", "-n", "one")
        fill(lvm, "one", range(500))
        lvm.run("lvextend", "-q", "-L", "96m", "vg/pool")
        lvm.run("lvextend", "-q", "--poolmetadatasize", "+8m", "vg/pool")
        lvm.run("lvextend", "-q", "-L", "80m", "vg/one")
        fill(lvm, "one", range(500, 1280))
        check(lvm, "one", range(0, 1280, 7))
        assert lvm.lvs("pool", "lv_size", "data_percent") == [str(96 * MIB), "83.33"]
        assert lvm.lvs("pool_tmeta", "lv_size") == str(12 * MIB)
        lvm.columns()
        lvm.run("lvreduce", "-q", "-f", "-L", "40m", "vg/one")
        check(lvm, "one", range(0, 640, 7))

    play(scenario)


def test_autoextension(play):
    """dmeventd, woken by the low water mark, extends the pool; writes that found it full go on."""
    def scenario(lvm):
        lvm.configure(monitoring=1, threshold=70, percent=50)
        lvm.run("lvcreate", "-q", "-L", "32m", "-V", "200m", "-T", "vg/pool", "-n", "one")
        assert lvm2.dmeventd() is not None, "dmeventd does not run"
        fill(lvm, "one", range(400))
        wait_for(lambda: int(lvm.call("lvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "lv_size", "vg/pool").stdout) > 32 * MIB)
        # More than the pool has by then, so that dmeventd has to do it again while writes wait.
        fill(lvm, "one", range(400, 1600))
        check(lvm, "one", range(0, 1600, 9))
        name = "vg-pool-tpool"
        assert " rw " in dm.dmsetup("status", name).stdout

    play(scenario)


def test_external_origin(play):
    def scenario(lvm):
        lvm.run("lvcreate", "-q", "-L", "64m", "-T", "vg/pool")
        lvm.run("lvcreate", "-q", "-L", "20m", "-n", "base", "vg")
        fill(lvm, "base", range(320))
        lvm.run("lvchange", "-an", "vg/base")
        lvm.run("lvchange", "-pr", "vg/base")
        lvm.run("lvcreate", "-q", "-s", "--thinpool", "vg/pool", "-n", "clone", "vg/base")
        check(lvm, "clone", range(320))
        assert lvm.lvs("clone", "origin", "data_percent") == ["base", "0.00"]
        lvm.write("clone", 10 * BLOCK + 4 * KIB, pattern("part", 4 * KIB))
        fill(lvm, "clone", range(100, 120), "new")
        block = lvm.read("clone", 10 * BLOCK, BLOCK)
        expected = bytearray(pattern(("fill", 10), BLOCK))
        expected[4 * KIB:8 * KIB] = pattern("part", 4 * KIB)
        assert block == bytes(expected)
        lvm.run("lvcreate", "-q", "-s", "-kn", "-n", "second", "vg/clone")
        check(lvm, "second", range(100, 120), "new")
        check(lvm, "second", range(120, 320))
        lvm.columns()
        lvm.run("vgchange", "-q", "-an", "vg")
        lvm.run("vgchange", "-q", "-ay", "vg")
        check(lvm, "clone", range(100, 120), "new")
        check(lvm, "clone", range(120, 320))
        check(lvm, "base", range(320))

    play(scenario)


@pytest.mark.parametrize("mode", ["ignore", "nopassdown", "passdown"])
def test_discards(play, mode):
    def scenario(lvm):
        lvm.run("lvcreate", "-q", "-L", "64m", "--discards", mode, "-V", "64m", "-T", "vg/pool", "-n", "one")
        fill(lvm, "one", range(512))
        assert lvm.lvs("pool", "discards") == mode
        full = lvm.disks[0].allocated()
        done = subprocess.run(["blkdiscard", "-l", str(16 * MIB), lvm.path("one")], capture_output=True)
        assert (done.returncode != 0) == (mode == "ignore")
        used = lvm.lvs("one", "data_percent")
        assert used == ("50.00" if mode == "ignore" else "25.00")
        given_back = full - lvm.disks[0].allocated()
        assert given_back >= 16 * MIB if mode == "passdown" else given_back < MIB
        check(lvm, "one", range(256, 512))
        if mode != "ignore":
            other = "nopassdown" if mode == "passdown" else "passdown"
            lvm.run("lvchange", "-q", "--discards", other, "vg/pool")
            assert lvm.lvs("pool", "discards") == other
            subprocess.run(["blkdiscard", lvm.path("one")], check=True)
            assert lvm.lvs("one", "data_percent") == "0.00"

    play(scenario)


def test_activation_checks_the_metadata(play):
    """thin_check runs when the pool is activated; damaged metadata are refused, and repaired."""
    def scenario(lvm):
        lvm.run("lvcreate", "-q", "-L", "64m", "--poolmetadatasize", "4m", "-V", "64m", "-T", "vg/pool", "-n", "one")
        fill(lvm, "one", range(0, 900, 3))
        lvm.run("vgchange", "-q", "-an", "vg")
        open(lvm.checks, "w").close()
        lvm.run("vgchange", "-q", "-ay", "vg")
        with open(lvm.checks) as file:
            assert file.read(), "thin_check was not called"
        check(lvm, "one", range(0, 900, 3))
        lvm.run("vgchange", "-q", "-an", "vg")

        # A repair of what is in order changes nothing.
        lvm.run("lvconvert", "-q", "-y", "--repair", "vg/pool")
        lvm.run("lvchange", "-q", "-ay", "vg/one")
        check(lvm, "one", range(0, 900, 3))
        lvm.run("vgchange", "-q", "-an", "vg")
        lvm.run("lvremove", "-q", "-f", "vg/pool_meta0")

        where, offset = lvm.place("pool_tmeta")
        # The root of the data space map's index: what it leads to can be counted again.
        damaged = superblock.Superblock(where.contents()[offset:offset + 4096]).get("data_bitmap_root")
        with disk.opened(where.path, os.O_RDWR | os.O_SYNC) as file:
            os.pwrite(file, b"\xff" * 4096, offset + damaged * 4096)
        lvm.refused("lvchange", "-q", "-ay", "vg/one")
        lvm.run("lvconvert", "-q", "-y", "--repair", "vg/pool")
        lvm.run("lvchange", "-q", "-ay", "vg/one")
        check(lvm, "one", range(0, 900, 3))
        assert lvm.lvs("pool", "lv_health_status") == ""
        lvm.columns()
        fill(lvm, "one", range(1, 900, 3))
        check(lvm, "one", range(1, 900, 3))

    play(scenario)


@pytest.mark.parametrize("error_when_full", ["y", "n"])
def test_out_of_space(play, error_when_full):
    """The columns tell; extension and removal help."""
    def scenario(lvm):
        lvm.run("lvcreate", "-q", "-L", "16m", "--errorwhenfull", error_when_full, "-V", "64m", "-T", "vg/pool", "-n", "one")
        lvm.run("lvcreate", "-q", "-V", "64m", "--thinpool", "vg/pool", "-n", "two")
        fill(lvm, "one", range(256))
        with ThreadPoolExecutor() as others:
            written = others.submit(fill, lvm, "two", range(20))
            wait_for(lambda: "out_of_data_space" in dm.dmsetup("status", "vg-pool-tpool").stdout)
            if error_when_full == "y":
                assert written.exception() is not None
            lvm.lvs("pool", "lv_attr", "lv_health_status", "lv_when_full", "data_percent")
            lvm.lvs("two", "lv_attr", "lv_health_status")
            if error_when_full == "y":
                lvm.run("lvremove", "-q", "-f", "vg/one")
                fill(lvm, "two", range(20))
            else:
                lvm.run("lvextend", "-q", "-L", "64m", "vg/pool")
                written.result()
        check(lvm, "two", range(20))
        assert lvm.lvs("pool", "lv_health_status") == ""

    play(scenario)


@pytest.mark.parametrize("what", ["metadata", "data"])
def test_health_of_a_dead_device(play, make_faulty, what):
    """The disk below dies while there is nothing to commit. lvs itself does not find that, a status line that may flush does."""
    def scenario(lvm):
        lvm.run("lvcreate", "-q", "-T", "-L", "1m", "--errorwhenfull", "y", "vg/pool")
        lvm.run("lvcreate", "-q", "-V", "2m", "-T", "vg/pool", "-n", "one")
        fill(lvm, "one", range(4))
        assert dm.dmsetup("status", "vg-pool-tpool").returncode == 0
        if what == "metadata":
            where, offset = lvm.place("pool_tmeta")
            # Part of the superblock.
            where.fail_sectors(offset // SECTOR + 6, 2)
        else:
            where, _ = lvm.place("pool_tdata")
            where.fail_writes()
        assert lvm.lvs("pool", "lv_attr")[8] == "-"
        dm.dmsetup("status", "vg-pool-tpool")
        lvm.lvs("pool", "lv_attr", "lv_health_status", "lv_check_needed")
        lvm.lvs("one", "lv_attr", "lv_health_status")
        where.heal()
        lvm.run("vgchange", "-q", "-an", "vg")
        if what == "data":
            lvm.run("lvconvert", "-q", "-y", "--repair", "vg/pool")
        lvm.run("lvchange", "-q", "-ay", "vg/one")
        check(lvm, "one", range(4))
        lvm.lvs("pool", "lv_attr", "lv_health_status")

    play(scenario, disks=2, make=make_faulty)


def test_moving_the_data(play):
    """pvmove of the pool's data while a volume is written to."""
    def scenario(lvm):
        source, target = (one.path for one in lvm.disks)
        lvm.run("lvcreate", "-q", "-L", "48m", "-V", "48m", "-T", "vg/pool", "-n", "one", source)
        fill(lvm, "one", range(0, 300))
        with ThreadPoolExecutor() as others:
            written = others.submit(fill, lvm, "one", range(300, 600))
            # It tells how far it is, which is not the same each time.
            moved = lvm.call("pvmove", "-q", "-i", "1", "-n", "pool_tdata", source, target)
            assert moved.returncode == 0, moved.stderr
            written.result()
        check(lvm, "one", range(600))
        assert lvm.place("pool_tdata")[0].path == target

    play(scenario, disks=2, size=200 * MIB)


def test_metadata_snapshot(play):
    """lvm2 leaves one alone that somebody else has reserved."""
    def scenario(lvm):
        lvm.run("lvcreate", "-q", "-L", "32m", "-V", "32m", "-T", "vg/pool", "-n", "one")
        fill(lvm, "one", range(64))
        assert dm.dmsetup("message", "vg-pool-tpool", "0", "reserve_metadata_snap").returncode == 0

        def held():
            root = dm.dmsetup("status", "vg-pool-tpool").stdout.split()[6]
            return root, metadata.dump(lvm.path("pool_tmeta"), int(root))

        before = held()
        lvm.run("lvcreate", "-q", "-s", "-n", "snap", "vg/one")
        fill(lvm, "one", range(32), "new")
        lvm.run("lvextend", "-q", "-L", "64m", "vg/pool")
        lvm.run("lvextend", "-q", "--poolmetadatasize", "+4m", "vg/pool")
        lvm.run("lvremove", "-q", "-f", "vg/snap")
        assert held() == before
        lvm.run("vgchange", "-q", "-an", "vg")
        lvm.run("vgchange", "-q", "-ay", "vg")
        assert held() == before
        assert dm.dmsetup("message", "vg-pool-tpool", "0", "release_metadata_snap").returncode == 0
        check(lvm, "one", range(32), "new")
        check(lvm, "one", range(32, 64))

    play(scenario)


def test_thinctl_knows_names_of_lvm2(play, thinctl):
    """A pool by its name in lvm2, while lvm2 has it: send, receive and back up; lvm2 does not mind."""
    def scenario(lvm):
        lvm.run("lvcreate", "-L", "100M", "-T", "vg/pool")
        lvm.run("lvcreate", "-V", "64M", "-T", "vg/pool", "-n", "data")
        fill(lvm, "data", range(100))
        lvm.run("lvcreate", "-s", "vg/data", "-n", "then")
        fill(lvm, "data", range(50, 120), "later")
        listed = thinctl.json("ls", "vg/pool")["volumes"]
        assert [(volume["id"], volume["mapped"]) for volume in listed] == [(1, 120), (2, 100)]
        assert listed[1]["exclusive"] == 50
        # The snapshot of lvm2 is not active; the volume is, and in use.
        lvm.run("lvcreate", "-V", "64M", "-T", "vg/pool", "-n", "copy")
        thinctl.run("receive", "--into", lvm.path("copy"), input=thinctl.run("send", "vg/pool", 2))
        check(lvm, "copy", range(100))
        thinctl.run("backup", "vg/pool", "vg/data", thinctl.repository(f"backups of {os.path.basename(lvm.disks[0].file)}"), "--name", "data")
        assert thinctl.refused("migrate", "vg/pool:vg/data", "vg/pool:7").count("lvm2") == 1
        assert len(thinctl.json("ls", "vg/pool")["volumes"]) == 4
        assert "volume 1" in thinctl.refused("replicate", "/dev/vg/pool", 1, "--to", "true", "--forget", code=NOT_FOUND)
        lvm.run("lvcreate", "-s", "vg/data", "-n", "more")
        lvm.run("lvremove", "-y", "vg/then")
        check(lvm, "data", range(50))
        check(lvm, "data", range(50, 120), "later")

    play(scenario)
