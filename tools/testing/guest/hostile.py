# SPDX-License-Identifier: GPL-2.0
"""Inside the VM: pools on hostile metadata images, the same steps on each."""

import contextlib
import errno
import json
import os
import subprocess

from dmtest import disk, dm, kmemleak, kmsg
from dmtest.disk import Disk, KIB, SECTOR
from dmtest.dm import Device
from dmtest.modules import Modules

FOLDER = "/run/hostile"
VOLUME = 64 * 1024 * KIB
BLOCK = 64 * KIB
VOLUMES = (0, 1, 2, 3)
# Blocks of volumes: mapped in most of the images, in some, beyond all.
READS = (0, 7, 42, 120, 399, 1000)


class Image:
    """One image, and what came of it: steps with their errno, or text."""

    def __init__(self, about):
        self.about = about
        self.steps = []
        self.modes = []

    def step(self, name, call, *arguments):
        """Does one step; gives what the call gives, or None after an error."""
        try:
            found = call(*arguments)
        except OSError as error:
            self.steps.append([name, errno.errorcode.get(error.errno, error.errno)])
            return None
        self.steps.append([name, "ok"])
        return found

    def mode(self, pool):
        """Notes the pool's mode, from its status line."""
        line = self.step("status", pool.status)
        words = (line or "").split()
        if "Fail" in words or "Error" in words:
            self.modes.append("Fail")
        elif len(words) > 7:
            self.modes.append(words[4] + (" needs_check" if words[7] == "needs_check" else ""))

    def run(self, metadata, data):
        size = self.about["data_blocks"] * self.about["block_sectors"]
        table = f"0 {size} thin-pool {metadata.path} {data.path} {self.about['block_sectors']} 0 1 error_if_no_space"
        pool = self.step("load", Device.create, "pool", table)
        if pool is None:
            return
        self.mode(pool)
        thins = {number: self._activate(pool, number) for number in VOLUMES}
        for number, thin in thins.items():
            if thin:
                self._use(thin, number)
        self.mode(pool)
        for text in ("create_thin 77", "create_snap 79 1", "reserve_metadata_snap", "release_metadata_snap", "set_transaction_id 0 5"):
            self.step(text, pool.message, text)
        new = self._activate(pool, 77)
        if new:
            self.step("write 77", disk.write, new.path, 0, bytes(4 * BLOCK))
            self.step("flush 77", disk.flush, new.path)
            self.step("remove 77", new.remove)
        for number, thin in thins.items():
            if thin:
                self.step(f"status {number}", thin.status)
                self.step(f"remove {number}", thin.remove)
        for text in ("delete 77", "delete 79", "delete 2", "delete 1", "delete 0", "delete 3"):
            self.step(text, pool.message, text)
        self.mode(pool)
        self.step("suspend", pool.suspend)
        self.step("resume", pool.resume)
        self.mode(pool)
        self.step("remove", pool.remove)
        pool = self.step("load again", Device.create, "pool", table)
        if pool:
            self.mode(pool)
            self.step("remove again", pool.remove)

    def _activate(self, pool, number):
        return self.step(f"activate {number}", Device.create, f"thin{number}", f"0 {VOLUME // SECTOR} thin {pool.path} {number}")

    def _use(self, thin, number):
        for block in READS:
            self.step(f"read {number} {block}", disk.read, thin.path, block * BLOCK, BLOCK)
        for block in (3, 42, 500):
            self.step(f"write {number} {block}", disk.write, thin.path, block * BLOCK, bytes([number + 1]) * BLOCK)
        self.step(f"write part of {number}", disk.write, thin.path, 11 * BLOCK + 8 * KIB, bytes(4 * KIB))
        self.step(f"flush {number}", disk.flush, thin.path)
        self.step(f"discard {number}", disk.discard, thin.path, 20 * BLOCK, 30 * BLOCK)
        self.step(f"discard all of {number}", disk.discard, thin.path, 100 * BLOCK, VOLUME - 100 * BLOCK)


def thin_check(path):
    """Whether thin_check is content."""
    return subprocess.run(["thin_check", "-q", path], capture_output=True).returncode == 0


def play(about):
    image = Image(about)
    path = os.path.join(FOLDER, str(about["image"]))
    if not about["edits"]:
        about["checked"] = thin_check(path)
    size = os.path.getsize(path)
    data = Disk("data", about["data_blocks"] * about["block_sectors"] * SECTOR)
    metadata = Disk("metadata", size)
    with open(path, "rb") as file:
        metadata.overwrite(0, file.read())
    os.unlink(path)
    try:
        image.run(metadata, data)
        left = dm.remove_all()
        if left:
            image.steps.append(["remove all", f"left: {left}"])
        elif not about["edits"]:
            about["checked_after"] = thin_check(metadata.path)
    finally:
        with contextlib.suppress(OSError):
            data.close()
            metadata.close()
    return image


def hostile(results, config):
    """Plays the images that the orders name; ends early after a complaint of the kernel, as nothing can be trusted then."""
    modules = Modules(config["modules"], config["implementations"], config["parameters"])
    modules.load(config["impl"])
    os.makedirs(FOLDER, exist_ok=True)
    made = subprocess.run([config["images"], str(config["seed"]), FOLDER, *map(str, config["numbers"])], capture_output=True, text=True, check=True)
    log = kmsg.Log()

    def emit(event, **fields):
        # Closing the file is what makes the line visible on the host.
        with open(os.path.join(results, "events"), "a") as file:
            file.write(json.dumps({"event": event, **fields}) + "\n")

    for line in made.stdout.splitlines():
        about = json.loads(line)
        emit("start", image=about["image"], about=about)
        kmsg.mark(f"image {about['image']}")
        image = play(about)
        complaints = kmsg.bad(log.lines())
        if kmsg.checks_locking() is False:
            complaints.append("lockdep is off")
        emit("result", image=about["image"], about=about, steps=image.steps, modes=image.modes, complaints=complaints[:20])
        if complaints:
            break
    else:
        leaks = ""
        if kmemleak.is_there() and config["impl"] == "rust":
            symbols = kmemleak.symbols("dm_thin_pool")
            modules.unload()
            leaks = kmemleak.find(symbols)
        emit("end", leaks=leaks)
    return 0
