# SPDX-License-Identifier: GPL-2.0
"""The device-mapper ioctls, as far as the tests need them.

Calling the kernel directly gives the exact errno of every operation, and costs a
fraction of starting dmsetup, of which some tests need thousands.
"""

import fcntl
import os
import struct
from dataclasses import dataclass

CONTROL = "/dev/mapper/control"

# struct dm_ioctl: version[3], data_size, data_start, target_count, open_count,
# flags, event_nr, padding, dev, name[128], uuid[129], data[7].
HEADER = struct.Struct("=3I 3I i 3I Q 128s 129s 7x")
# struct dm_target_spec: sector_start, length, status, next, target_type[16].
SPEC = struct.Struct("=QQiI16s")
MESSAGE = struct.Struct("=Q")

DEV_CREATE = 3
DEV_REMOVE = 4
DEV_SUSPEND = 6
DEV_STATUS = 7
TABLE_LOAD = 9
TABLE_CLEAR = 10
TABLE_STATUS = 12
TARGET_MSG = 14
LIST_DEVICES = 2

READONLY = 1 << 0
SUSPEND = 1 << 1
STATUS_TABLE = 1 << 4
BUFFER_FULL = 1 << 8
SKIP_LOCKFS = 1 << 10
NOFLUSH = 1 << 11
QUERY_INACTIVE_TABLE = 1 << 12
DATA_OUT = 1 << 16

BUFFER_SIZE = 16384
# With no more than this, Python lets other threads run during an ioctl.
SMALL_BUFFER_SIZE = 1024

_control = None


class DmError(OSError):
    """A device-mapper ioctl failed; `errno` is the kernel's."""


@dataclass
class Reply:
    flags: int
    event_nr: int
    open_count: int
    dev: int
    target_count: int
    data: bytes

    @property
    def minor(self):
        return (self.dev & 0xFF) | ((self.dev >> 12) & ~0xFF)

    @property
    def major(self):
        return (self.dev >> 8) & 0xFFF


def control():
    """The descriptor that the ioctls go to."""
    global _control
    if _control is None:
        _control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    return _control


def prepare(command, name, flags=0, target_count=0, data=b"", event_nr=0, size=BUFFER_SIZE):
    """The request and the buffer of one ioctl on the device `name`."""
    size = max(size, HEADER.size + len(data))
    header = HEADER.pack(4, 0, 0, size, HEADER.size, target_count, 0, flags, event_nr, 0, 0, name.encode(), b"")
    request = (3 << 30) | (HEADER.size << 16) | (0xFD << 8) | command
    return request, bytearray((header + data).ljust(size, b"\0"))


def call(command, name, flags=0, target_count=0, data=b"", event_nr=0, size=BUFFER_SIZE):
    """Runs one ioctl on the device `name` and returns its Reply. Raises DmError."""
    request, buffer = prepare(command, name, flags, target_count, data, event_nr, size)
    try:
        fcntl.ioctl(control(), request, buffer)
    except OSError as error:
        raise DmError(error.errno, error.strerror, name) from None
    _, _, _, size, start, count, opened, flags, event_nr, _, dev, _, _ = HEADER.unpack_from(buffer)
    return Reply(flags, event_nr, opened, dev, count, bytes(buffer[start:size]))


def pack_table(table):
    """Turns the lines of a table, each "<start> <length> <type> <args>", into ioctl data."""
    lines = table.strip().splitlines()
    packed = b""
    for line in lines:
        start, length, kind, *args = line.split(" ", 3)
        text = (args[0] if args else "").encode() + b"\0"
        following = -(-(SPEC.size + len(text)) // 8) * 8
        packed += (SPEC.pack(int(start), int(length), 0, following, kind.encode()) + text).ljust(following, b"\0")
    return len(lines), packed


def unpack_status(reply):
    """The lines of a TABLE_STATUS reply, as dmsetup prints them."""
    lines = []
    offset = 0
    for _ in range(reply.target_count):
        start, length, _, following, kind = SPEC.unpack_from(reply.data, offset)
        text = reply.data[offset + SPEC.size:].split(b"\0", 1)[0].decode()
        lines.append(f"{start} {length} {kind.rstrip(bytes(1)).decode()} {text}")
        offset = following
    return lines


def names():
    """The names of all mapped devices."""
    data = call(LIST_DEVICES, "").data
    found = []
    offset = 0
    while len(data) >= offset + 12:
        dev, following = struct.unpack_from("=QI", data, offset)
        if dev:
            found.append(data[offset + 12:].split(b"\0", 1)[0].decode())
        if not following:
            break
        offset += following
    return found
