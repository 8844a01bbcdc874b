# SPDX-License-Identifier: GPL-2.0
"""Loading and unloading the module."""

import os
import subprocess

import pytest

from dmtest.content import Content
from dmtest.disk import MIB
from dmtest.dm import (
    Device,
    dmsetup,
)

SIZE = 8 * MIB


def test_targets_and_versions():
    lines = [line.split() for line in dmsetup("targets").stdout.splitlines()]
    versions = {line[0]: line[1] for line in lines}
    assert versions["thin-pool"] == "v1.24.0"
    assert versions["thin"] == "v1.24.0"


def test_far_from_the_kernel(pool, run):
    """Further than 32 bits reach: code and data of the kernel are found there nevertheless."""
    if run["impl"] == "built-in":
        pytest.skip("part of the kernel")
    with open("/proc/modules") as modules:
        [module] = [int(line.split()[5], 16) for line in modules if line.startswith("dm_thin_pool ")]
    with open("/proc/kallsyms") as symbols:
        kernel = next(int(line.split()[0], 16) for line in symbols if line.split()[2] == "_stext")
    assert module - kernel > 1 << 31
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("far", 5)
    content.verify()


def test_parameters():
    folder = "/sys/module/dm_thin_pool/parameters"
    mode = os.stat(f"{folder}/no_space_timeout").st_mode & 0o777
    assert mode == 0o644


def test_parameters_given_at_load(modules, run):
    """To insmod; or on the kernel's command line, of which the run then needs some."""
    if run["impl"] == "built-in":
        given = [word.removeprefix("dm_thin_pool.") for word in run["append"] if word.startswith("dm_thin_pool.")]
    else:
        given = ["no_space_timeout=33", "snapshot_copy_throttle=44"]
        modules.unload()
        modules.insert(modules.file(run["impl"]), *given)
    values = dict(word.split("=") for word in given)
    assert set(values) == {"no_space_timeout", "snapshot_copy_throttle"}
    for name, value in values.items():
        with open(f"/sys/module/dm_thin_pool/parameters/{name}") as parameter:
            assert parameter.read().strip() == value
    if run["impl"] != "built-in":
        modules.unload()


def test_pool_that_fails_leaves_no_memory(make_disk, modules, run):
    """Nor if there was no other one: what its statics refer to is lost with the module, and found after the last test."""
    modules.unload()
    modules.load(run["impl"])
    metadata, data = make_disk(4 * MIB), make_disk(4 * MIB)
    metadata.overwrite(0, b"\xff" * 4096)
    with pytest.raises(OSError):
        Device.create("pool", f"0 {data.sectors} thin-pool {metadata.path} {data.path} 128 0")
    modules.unload()


def test_module_in_use_is_not_unloaded(pool):
    done = subprocess.run(["rmmod", "dm-thin-pool"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "in use" in done.stderr
    pool.create_thin(0)


@pytest.mark.smoke
def test_contents_through_unload_and_reload(pool, modules, run):
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("before", 30)
    snap = content.snapshot(pool.new_snap(1, 0, SIZE))
    for turn in range(4):
        pool.stop()
        modules.unload()
        assert not os.path.exists("/sys/module/dm_thin_pool")
        modules.load(run["impl"])
        pool.start()
        content = content.on(pool.activate(0, SIZE))
        snap = snap.on(pool.activate(1, SIZE))
        content.verify()
        snap.verify()
        content.scatter(turn, 10)
        snap.scatter(("snap", turn), 10)


def test_unload_right_after_removal(make_pool, modules, run):
    """Nothing of a pool may still run when its last device is gone."""
    for _ in range(8):
        pool = make_pool()
        content = Content(pool.new_thin(0, SIZE))
        content.scatter("busy", 5)
        pool.stop()
        modules.unload()
        modules.load(run["impl"])


def test_nothing_is_left_in_memory(pool):
    """The buffers of the metadata device go with the pool."""
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("buffers", 30)
    pool.stop()
    with open("/sys/module/dm_bufio/parameters/current_allocated_bytes") as allocated:
        assert int(allocated.read()) == 0
