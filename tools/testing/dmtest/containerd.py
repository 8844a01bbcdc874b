# SPDX-License-Identifier: GPL-2.0
"""containerd's devmapper snapshotter, as far as the kernel sees it: the commands that it runs, in its order.

It knows what went wrong from dmsetup's text alone, which it turns back into an errno.
"""

import contextlib
import errno
import os
import re
import subprocess
import time
from dataclasses import dataclass

from .disk import SECTOR

FOLDER = "/dev/mapper/"
LOW_WATER = 32768

_ERRNO = {os.strerror(number).lower(): number for number in errno.errorcode}


class CallFailed(Exception):
    """A command failed; `errno` is what its text says, or None if it says none."""

    def __init__(self, output):
        super().__init__(output)
        self.errno = parse_errno(output)


def parse_errno(output):
    """The errno that follows the last "failed: " in the first of several lines."""
    first, newline, _ = output.partition("\n")
    _, found, text = first.rpartition("failed: ")
    return _ERRNO.get(text.lower()) if newline and found else None


@dataclass
class Info:
    """What `dmsetup info` tells of a device."""

    live: bool
    inactive: bool
    suspended: bool
    readonly: bool
    opened: int
    targets: int
    events: int


class Snapshotter:
    """The snapshots of a pool, by number. Every command and its answer goes into the trace.

    With `counts` false, numbers in status lines do not: file systems are made by writing zeroes, and what of that
    is provisioned depends on whether the module takes WRITE_ZEROES.
    """

    def __init__(self, trace, pool, counts=True):
        self._trace = trace
        self.pool = pool
        self.counts = counts
        self.name = pool.name

    def _run(self, *command):
        done = self._trace.program(*command)
        # Where udev runs, dmsetup says first that it was told to do without.
        errors = [line for line in done.stderr.splitlines(keepends=True) if "DM_DISABLE_UDEV" not in line]
        output = done.stdout + "".join(errors)
        if done.returncode:
            raise CallFailed(output)
        return output.strip()

    def _dmsetup(self, *arguments):
        return self._run("dmsetup", *arguments)

    def device(self, number):
        return f"{self.name}-snap-{number}"

    def path(self, number):
        return FOLDER + self.device(number)

    def _pool_table(self):
        pool = self.pool
        return (f"0 {pool.data.sectors} thin-pool {pool.metadata.path} {pool.data.path} "
                f"{pool.block_sectors} {LOW_WATER} 1 skip_block_zeroing")

    def create_pool(self):
        self._dmsetup("create", self.name, "--table", self._pool_table())

    def reload_pool(self):
        self._dmsetup("reload", self.name, "--table", self._pool_table())
        self.resume(self.name)

    def remove_pool(self):
        self._dmsetup("remove", "--retry", "--force", "--deferred", FOLDER + self.name)

    def info(self, name):
        columns = self._dmsetup(
            "info", "--columns", "--noheadings", "-o", "name,blkdevname,attr,major,minor,open,segments,events", "--separator", " ", name,
        ).split()
        attributes = columns[2]
        return Info(
            "L" in attributes, "I" in attributes, "s" in attributes, "r" in attributes, int(columns[5]), int(columns[6]), int(columns[7]),
        )

    def is_loaded(self, name):
        try:
            self.info(name)
        except CallFailed:
            return False
        return True

    def status(self, name):
        """Offset, length, target and its words."""
        offset, length, target, *words = self._dmsetup("status", name).split(" ")
        if not self.counts:
            self._trace.entries[-1] = re.sub(r"\d+", "N", self._trace.entries[-1])
        return int(offset), int(length), target, words

    def usage(self, number):
        """Bytes that the snapshot maps. Fails with ValueError if the status line does not tell."""
        return int(self.status(self.device(number))[3][0]) * SECTOR

    def create_thin(self, number):
        self._dmsetup("message", self.name, "0", f"create_thin {number}")

    def create_snap(self, number, parent):
        self._dmsetup("message", self.name, "0", f"create_snap {number} {parent}")

    def activate(self, number, size):
        self._dmsetup("create", self.device(number), "--table", f"0 {size // SECTOR} thin {FOLDER}{self.name} {number}")

    def suspend(self, name):
        self._dmsetup("suspend", name)

    def resume(self, name):
        self._dmsetup("resume", name)

    def new(self, number, size):
        """A volume without a parent; what cannot be activated is deleted again."""
        self.create_thin(number)
        self._activate_or_delete(number, size)

    def snapshot(self, number, parent, size):
        """A snapshot of `parent`, which is suspended meanwhile if it is active."""
        active = self.is_loaded(self.device(parent))
        if active:
            self.suspend(self.device(parent))
        try:
            self.create_snap(number, parent)
            self._activate_or_delete(number, size)
        finally:
            if active:
                self.resume(self.device(parent))

    def _activate_or_delete(self, number, size):
        try:
            self.activate(number, size)
        except CallFailed:
            self.delete(number)
            raise

    def commit(self, number):
        """The snapshot has its contents: it is flushed and taken out of sight."""
        self.usage(number)
        self.suspend(self.device(number))
        self.resume(self.device(number))
        self.deactivate(number, "--deferred")

    def deactivate(self, number, *options, discard=False):
        if not self.is_loaded(self.device(number)):
            return
        if discard:
            # An opener of its own finds out whether there is another.
            os.close(os.open(self.path(number), os.O_RDONLY | os.O_EXCL))
            self._run("blkdiscard", self.path(number))
        self._dmsetup("remove", "--retry", *options, self.path(number))

    def delete(self, number):
        """Deletes the snapshot; that it is gone already is no fault."""
        try:
            self._dmsetup("message", self.name, "0", f"delete {number}")
        except CallFailed as error:
            if error.errno != errno.ENODATA:
                raise

    def delete_when_idle(self, number, patience=60):
        """Deletes a snapshot of which a device may be about to go away. How often it tries is not noted."""
        end = time.monotonic() + patience
        while True:
            mark = len(self._trace.entries)
            try:
                return self.delete(number)
            except CallFailed as error:
                if error.errno != errno.EBUSY or time.monotonic() > end:
                    raise
            del self._trace.entries[mark:]
            time.sleep(0.1)

    def remove(self, number, discard=False):
        self.deactivate(number, "--force", discard=discard)
        self.delete_when_idle(number)

    def make_file_system(self, number):
        done = subprocess.run(
            ["mkfs.ext4", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", self.path(number)], capture_output=True, text=True,
        )
        assert done.returncode == 0, done.stderr

    @contextlib.contextmanager
    def mounted(self, number, folder, options="defaults"):
        folder.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "ext4", "-o", options, self.path(number), str(folder)], check=True)
        try:
            yield folder
        finally:
            subprocess.run(["umount", str(folder)], check=True)
