# SPDX-License-Identifier: GPL-2.0
"""Mapped devices, and the dmsetup command where its own output is what is tested."""

import errno
import os
import subprocess
import time

from . import ioctl
from .background import PATIENCE
from .ioctl import DmError

__all__ = ["Device", "DmError", "dmsetup", "environment", "remove_all"]


class Device:
    """A mapped device. Tables are text, one "<start> <length> <type> <args>" a line."""

    def __init__(self, name):
        self.name = name
        self.minor = None

    @classmethod
    def create(cls, name, table, readonly=False):
        """Creates the device, loads its table and resumes it; leaves nothing behind when one of them fails."""
        device = cls.create_empty(name)
        try:
            device.load(table, readonly)
            device.resume()
        except BaseException:
            device.remove()
            raise
        return device

    @classmethod
    def create_empty(cls, name):
        """Creates the device without a table."""
        device = cls(name)
        device.minor = ioctl.call(ioctl.DEV_CREATE, name).minor
        return device

    @classmethod
    def existing(cls, name):
        """The device of that name, which someone else has made."""
        device = cls(name)
        device.minor = ioctl.call(ioctl.DEV_STATUS, name).minor
        return device

    @property
    def path(self):
        return f"/dev/dm-{self.minor}"

    @property
    def number(self):
        status = os.stat(self.path)
        return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"

    def load(self, table, readonly=False):
        count, data = ioctl.pack_table(table)
        ioctl.call(ioctl.TABLE_LOAD, self.name, ioctl.READONLY if readonly else 0, count, data)

    def clear(self):
        ioctl.call(ioctl.TABLE_CLEAR, self.name)

    def suspend(self, noflush=False, nolockfs=False):
        """Other threads run meanwhile."""
        flags = ioctl.SUSPEND | (ioctl.NOFLUSH if noflush else 0) | (ioctl.SKIP_LOCKFS if nolockfs else 0)
        ioctl.call(ioctl.DEV_SUSPEND, self.name, flags, size=ioctl.SMALL_BUFFER_SIZE)

    def resume(self):
        """Other threads run meanwhile."""
        ioctl.call(ioctl.DEV_SUSPEND, self.name, size=ioctl.SMALL_BUFFER_SIZE)

    def reload(self, table, noflush=False):
        self.load(table)
        self.suspend(noflush)
        self.resume()

    def message(self, text):
        """Sends the message to the target at sector 0. Other threads run meanwhile."""
        data = ioctl.MESSAGE.pack(0) + text.encode() + b"\0"
        ioctl.call(ioctl.TARGET_MSG, self.name, data=data, size=ioctl.SMALL_BUFFER_SIZE)

    def ask(self, text):
        """Sends a message that the target at sector 0 replies to in a few words; returns them. Other threads run meanwhile."""
        data = ioctl.MESSAGE.pack(0) + text.encode() + b"\0"
        reply = ioctl.call(ioctl.TARGET_MSG, self.name, data=data, size=ioctl.SMALL_BUFFER_SIZE)
        assert reply.flags & ioctl.DATA_OUT and not reply.flags & ioctl.BUFFER_FULL, f"no reply to {text}"
        return reply.data.split(b"\0", 1)[0].decode()

    def status(self, noflush=False):
        """The target's own part of the status line."""
        return self._lines(ioctl.NOFLUSH if noflush else 0)

    def table(self, inactive=False):
        """The target's own part of the table line, or of that which was loaded and is not the device's yet."""
        return self._lines(ioctl.STATUS_TABLE | (ioctl.QUERY_INACTIVE_TABLE if inactive else 0))

    def _lines(self, flags):
        reply = ioctl.call(ioctl.TABLE_STATUS, self.name, flags)
        return "\n".join(line.split(" ", 3)[3] for line in ioctl.unpack_status(reply))

    def event_nr(self):
        return ioctl.call(ioctl.DEV_STATUS, self.name).event_nr

    def limit(self, name):
        """A number of the queue's limits, as in sysfs."""
        with open(f"/sys/block/dm-{self.minor}/queue/{name}") as file:
            return int(file.read())

    def limits(self, prefix=""):
        """All limits whose names begin with `prefix`."""
        folder = f"/sys/block/dm-{self.minor}/queue"
        found = {}
        for name in sorted(os.listdir(folder)):
            if name.startswith(prefix):
                with open(os.path.join(folder, name)) as file:
                    found[name] = file.read().strip()
        return found

    def remove(self, patience=PATIENCE):
        """Removes the device, waiting up to `patience` seconds for others to close it."""
        end = time.monotonic() + patience
        while True:
            try:
                ioctl.call(ioctl.DEV_REMOVE, self.name)
                return
            except DmError as error:
                if error.errno != errno.EBUSY or time.monotonic() > end:
                    raise
            time.sleep(0.02)


def environment():
    """What programs that use device-mapper need to be told: here is no udev."""
    return dict(os.environ, DM_DISABLE_UDEV="1")


def dmsetup(*args, input=None):
    """Runs dmsetup; returns the finished process with its output as text."""
    return subprocess.run(["dmsetup", *args], input=input, env=environment(), capture_output=True, text=True)


def remove_all():
    """Removes every mapped device, whatever holds on to whatever; returns the names that stay."""
    for _ in range(4):
        left = ioctl.names()
        if not left:
            return []
        for name in left:
            try:
                ioctl.call(ioctl.DEV_SUSPEND, name)
            except DmError:
                pass
            try:
                ioctl.call(ioctl.DEV_REMOVE, name)
            except DmError:
                pass
        time.sleep(0.05)
    return ioctl.names()
