# SPDX-License-Identifier: GPL-2.0
"""lvm2 on a volume group of its own, with a configuration of its own and without udev."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time

from . import (
    disk,
    dm,
    metadata,
)
from .content import pattern
from .disk import MIB

FOLDER = "/run/lvm2"

CONFIGURATION = """
devices {{
	scan = [ "/dev" ]
	filter = [ {devices}, "r|.*|" ]
	use_devicesfile = 0
	obtain_device_list_from_udev = 0
	external_device_info_source = "none"
	hints = "none"
}}
activation {{
	# Touching the 8 MiB that it reserves by default takes most of a command's time here.
	reserved_memory = 256
	udev_sync = 0
	udev_rules = 0
	verify_udev_operations = 1
	monitoring = {monitoring}
	thin_pool_autoextend_threshold = {threshold}
	thin_pool_autoextend_percent = {percent}
}}
dmeventd {{
	thin_command = "lvm lvextend --use-policies"
}}
global {{
	locking_dir = "/run/lock/lvm"
	use_lvmpolld = 0
	event_activation = 0
	# User Mode Linux itself does not take all locks that lockdep wants when asynchronous I/O ends.
	use_aio = 0
	thin_check_executable = "{thin_check}"
}}
backup {{
	backup = 0
	archive = 0
}}
"""

# Columns of lvs that tell who, where and when, and one that depends on when the pool commits by itself.
VARYING = re.compile(r".*_uuid|lv_time.*|lv_host|lv_kernel_(major|minor)|metadata_percent")

# What logs its calls and does what it is asked for.
THIN_CHECK = """#!/bin/sh
echo "$@" >>{log}
exec /usr/sbin/thin_check "$@"
"""


class Lvm2:
    """The volume group `vg` on `disks`. lvm2 loads the module by itself when it needs it."""

    def __init__(self, trace, disks):
        self.trace = trace
        self.disks = disks
        shutil.rmtree(FOLDER, ignore_errors=True)
        os.makedirs(FOLDER)
        os.makedirs("/run/lock/lvm", exist_ok=True)
        self.checks = os.path.join(FOLDER, "thin_check.log")
        self._script("thin_check", THIN_CHECK.format(log=self.checks))
        self.configure()
        self.run("pvcreate", "-q", *[one.path for one in disks])
        self.run("vgcreate", "-q", "-s", "1m", "vg", *[one.path for one in disks])

    def _script(self, name, text):
        path = os.path.join(FOLDER, name)
        with open(path, "w") as file:
            file.write(text)
        os.chmod(path, 0o755)

    def configure(self, monitoring=0, threshold=100, percent=20):
        devices = ", ".join(f'"a|^{one.path}$|"' for one in self.disks)
        with open(os.path.join(FOLDER, "lvm.conf"), "w") as file:
            file.write(CONFIGURATION.format(
                devices=devices, monitoring=monitoring, threshold=threshold, percent=percent,
                thin_check=os.path.join(FOLDER, "thin_check"),
            ))

    def call(self, *words):
        environment = dict(os.environ, LVM_SYSTEM_DIR=FOLDER, LVM_SUPPRESS_FD_WARNINGS="1")
        return subprocess.run(["lvm", *words], env=environment, capture_output=True, text=True)

    def run(self, *words):
        """Runs a command, which must succeed; returns what it printed."""
        output = self._succeed(*words)
        self.trace.note(self._plain(f"lvm {' '.join(words)}"), self._plain(output))
        return output

    def _succeed(self, *words):
        done = self.call(*words)
        assert done.returncode == 0, f"lvm {' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def refused(self, *words):
        """Runs a command, which must fail; returns what it complained about."""
        done = self.call(*words)
        assert done.returncode != 0, f"lvm {' '.join(words)} did not fail\n{done.stdout}{done.stderr}"
        self.trace.note(self._plain(f"lvm {' '.join(words)}"), f"{done.returncode} {self._plain(done.stderr)}")
        return done.stderr

    def _plain(self, text):
        for number, one in enumerate(self.disks):
            text = re.sub(rf"{one.path}\b", f"<disk {number}>", text)
        return re.sub(r"\b\d+:\d+\b", "<device>", text)

    def lvs(self, name, *columns):
        """Columns of a volume as text; a single one, or a list."""
        report = json.loads(self.run("lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "-a", "-o", ",".join(columns), f"vg/{name}"))
        [row] = report["report"][0]["lv"]
        values = [row[column] for column in columns]
        return values[0] if len(values) == 1 else values

    def columns(self):
        """Notes every column of every volume."""
        report = json.loads(self._succeed("lvs", "-a", "--reportformat", "json", "--units", "b", "-o", "lv_all,seg_all", "vg"))
        for row in report["report"][0]["lv"]:
            for name, value in row.items():
                if not VARYING.fullmatch(name):
                    self.trace.note(f"{row['lv_name']} {name}", self._plain(value))

    def path(self, name):
        return f"/dev/mapper/vg-{name}"

    def write(self, name, offset, data):
        disk.write(self.path(name), offset, data)

    def read(self, name, offset, length):
        return disk.read(self.path(name), offset, length)

    def place(self, name):
        """The disk that the first extents of a volume are on, and the offset there in bytes."""
        device, extents = self.run("lvs", "-a", "--noheadings", "-o", "seg_pe_ranges", f"vg/{name}").split()[0].rsplit(":", 1)
        start = self.run("pvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "pe_start", device).strip()
        [found] = [one for one in self.disks if one.path == device]
        return found, int(start) + int(extents.split("-")[0]) * MIB

    def check(self):
        """Runs thin_check on the metadata of the pool `pool`, which no one may use any more."""
        self._succeed("vgchange", "-an", "vg")
        self._succeed("lvchange", "-y", "-ay", "vg/pool_tmeta")
        metadata.check(self.path("pool_tmeta"))
        self._succeed("lvchange", "-an", "vg/pool_tmeta")

    def close(self):
        """Ends dmeventd and removes the volume group."""
        stop_dmeventd()
        self.call("vgremove", "-ff", "vg")
        shutil.rmtree(FOLDER, ignore_errors=True)


class Group(Lvm2):
    """The volume group, its pool `pool`, and in that the volume `data`, which is active."""

    # The device of the pool.
    pool = "vg-pool-tpool"

    def __init__(self, trace, disks):
        super().__init__(trace, disks)
        self.run("lvcreate", "-q", "-L", "128m", "-T", "vg/pool")
        self.make("data")

    def make(self, name, size=16 * MIB):
        """Makes a volume, as users are told to."""
        self.run("lvcreate", "-q", "-V", f"{size}b", "-T", "vg/pool", "-n", name)
        return self.path(name)

    def scatter(self, name, seed, count=20, size=16 * MIB):
        choice = random.Random(str(seed))
        for number in range(count):
            length = choice.randint(1, 64) * 4096
            self.write(name, choice.randrange(0, size - length, 4096), pattern((seed, number), length))

    def content(self, name, size=16 * MIB):
        return self.read(name, 0, size)

    def dump(self):
        """The pool's metadata of this moment."""
        assert dm.dmsetup("message", self.pool, "0", "reserve_metadata_snap").returncode == 0
        try:
            root = dm.dmsetup("status", self.pool).stdout.split()[6]
            return metadata.dump(self.path("pool_tmeta"), int(root))
        finally:
            assert dm.dmsetup("message", self.pool, "0", "release_metadata_snap").returncode == 0

    def ids(self):
        return set(metadata.devices(self.dump()))

    def books(self):
        """What lvm2 knows of its volumes."""
        columns = "lv_name,lv_uuid,lv_attr,lv_size,thin_id,origin,transaction_id,lv_health_status,lv_active"
        report = self.call("lvs", "-a", "--reportformat", "json", "--units", "b", "-o", columns, "vg")
        assert report.returncode == 0, report.stderr
        return json.loads(report.stdout)["report"][0]["lv"]

    def everything(self):
        """What must be the same if nothing was changed."""
        return self.books(), self.dump()


def dmeventd():
    """The process id of dmeventd, or None."""
    try:
        with open("/run/dmeventd.pid") as file:
            number = int(file.read())
        os.kill(number, 0)
        return number
    except (FileNotFoundError, ValueError, ProcessLookupError):
        return None


def stop_dmeventd(patience=60):
    number = dmeventd()
    if number is None:
        return
    os.kill(number, signal.SIGKILL)
    end = time.monotonic() + patience
    while dmeventd() is not None and time.monotonic() < end:
        time.sleep(0.05)
    for name in ("dmeventd.pid", "dmeventd-server", "dmeventd-client"):
        if os.path.exists(f"/run/{name}"):
            os.unlink(f"/run/{name}")
