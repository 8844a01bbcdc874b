# SPDX-License-Identifier: GPL-2.0
"""Disks: loop devices on sparse files in memory, and direct I/O on block devices."""

import ctypes
import fcntl
import itertools
import mmap
import os
import shutil
import struct
import subprocess
from contextlib import contextmanager

SECTOR = 512
KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

FOLDER = "/run/disks"

FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
BLKDISCARD = 0x1277
BLKZEROOUT = 0x127F
LOOP_SET_FD = 0x4C00
LOOP_CLR_FD = 0x4C01
LOOP_SET_CAPACITY = 0x4C07
LOOP_SET_BLOCK_SIZE = 0x4C09
LOOP_CTL_REMOVE = 0x4C81
LOOP_CTL_GET_FREE = 0x4C82

_live = []
_numbers = itertools.count()


class Disk:
    """A loop device of `size` bytes. Its backing file may be read and copied at any time.

    `sector_size` is the smallest that it reads and writes, if it is not the usual one.
    """

    def __init__(self, name, size, discards=True, sector_size=SECTOR):
        folder = FOLDER if discards else no_discards()
        self.file = os.path.join(folder, f"{name}.{next(_numbers)}")
        os.makedirs(folder, exist_ok=True)
        with open(self.file, "wb") as backing:
            backing.truncate(size)
        self._sector_size = sector_size
        self._is_spoilt = False
        self._attach()

    def _attach(self):
        control = os.open("/dev/loop-control", os.O_RDWR)
        backing = os.open(self.file, os.O_RDWR)
        try:
            self.path = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
            self._device = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            fcntl.ioctl(self._device, LOOP_SET_FD, backing)
        finally:
            os.close(backing)
            os.close(control)
        _live.append(self)
        if self._sector_size != SECTOR:
            try:
                fcntl.ioctl(self._device, LOOP_SET_BLOCK_SIZE, self._sector_size)
            except OSError:
                self.close()
                raise

    @property
    def size(self):
        return os.path.getsize(self.file)

    @property
    def sectors(self):
        return self.size // SECTOR

    def allocated(self):
        """The bytes that the backing file takes up."""
        return os.stat(self.file).st_blocks * SECTOR

    def grow(self, size):
        os.truncate(self.file, size)
        fcntl.ioctl(self._device, LOOP_SET_CAPACITY)

    def copy(self, name):
        """Copies the present contents into a file and returns its path."""
        target = os.path.join(FOLDER, name)
        shutil.copyfile(self.file, target)
        return target

    def contents(self):
        with open(self.file, "rb") as backing:
            return backing.read()

    def overwrite(self, offset, data):
        """Changes the contents behind the device's back; nobody may have it open."""
        with open(self.file, "r+b") as backing:
            backing.seek(offset)
            backing.write(data)
        # The device's own page cache must not keep what was there before.
        self._detach()
        self._attach()

    def lose_write_cache(self):
        """As a disk that keeps all it was given: nobody flushes it."""
        with open(f"/sys/block/{os.path.basename(self.path)}/queue/write_cache", "w") as file:
            file.write("write through")
        self._is_spoilt = True

    def break_write_zeroes(self):
        """The device goes on promising write-zeroes, but they fail from now on; it has no discards any more."""
        with open(f"/sys/block/{os.path.basename(self.path)}/queue/discard_max_bytes", "w") as limit:
            limit.write("0")
        self._is_spoilt = True

    def _detach(self):
        fcntl.ioctl(self._device, LOOP_CLR_FD)
        os.close(self._device)
        _live.remove(self)
        if self._is_spoilt:
            # The next one would have what was set.
            with opened("/dev/loop-control", os.O_RDWR) as control:
                fcntl.ioctl(control, LOOP_CTL_REMOVE, int(self.path.removeprefix("/dev/loop")))

    def close(self):
        if self in _live:
            self._detach()
            os.unlink(self.file)


def no_discards():
    """A folder whose files cannot get holes, so that loop devices on them have neither discards nor write-zeroes."""
    folder = "/run/no-discards"
    if not os.path.ismount(folder):
        os.makedirs(folder, exist_ok=True)
        subprocess.run(["mount", "-t", "ramfs", "ramfs", folder], check=True)
    return folder


def close_all():
    """Detaches every disk that is left and removes all files; returns how many disks there were."""
    left = list(_live)
    for disk in left:
        disk.close()
    shutil.rmtree(FOLDER, ignore_errors=True)
    return len(left)


@contextmanager
def opened(path, flags=os.O_RDWR | os.O_DIRECT):
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read(path, offset, length, how=0):
    """Reads from a block device past all caches; `how` are flags such as os.RWF_NOWAIT."""
    with opened(path, os.O_RDONLY | os.O_DIRECT) as descriptor, mmap.mmap(-1, length) as buffer:
        done = os.preadv(descriptor, [buffer], offset, how)
        if done != length:
            raise OSError(f"{path}: read {done} of {length} bytes at {offset}")
        return buffer[:]


def write(path, offset, data, flags=0, how=0):
    """Writes to a block device past all caches.

    `flags` may add os.O_DSYNC, which makes it FUA or FLUSH; `how` are flags such as os.RWF_NOWAIT.
    """
    with opened(path, os.O_WRONLY | os.O_DIRECT | flags) as descriptor, mmap.mmap(-1, len(data)) as buffer:
        buffer[:] = data
        done = os.pwritev(descriptor, [buffer], offset, how)
        if done != len(data):
            raise OSError(f"{path}: wrote {done} of {len(data)} bytes at {offset}")


def stat(path, field):
    """What the kernel has counted for a block device: a field of Documentation/block/stat.rst, the first one being 0."""
    with open(f"/sys/block/{os.path.basename(os.path.realpath(path))}/stat") as file:
        return int(file.read().split()[field])


def flush(path):
    """Sends a FLUSH to a block device."""
    with opened(path, os.O_RDWR) as descriptor:
        os.fsync(descriptor)


def discard(path, offset, length):
    """Discards a range of a block device."""
    with opened(path, os.O_RDWR) as descriptor:
        fcntl.ioctl(descriptor, BLKDISCARD, struct.pack("=QQ", offset, length))


def zero_out(path, offset, length):
    """Zeroes a range of a block device, which may go on taking up space; WRITE_ZEROES where there is such a thing."""
    with opened(path, os.O_RDWR) as descriptor:
        fcntl.ioctl(descriptor, BLKZEROOUT, struct.pack("=QQ", offset, length))


def punch_hole(path, offset, length):
    """Zeroes a range of a block device, which shall not take up space after that."""
    with opened(path, os.O_RDWR) as descriptor:
        fallocate(descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)


def fallocate(descriptor, mode, offset, length):
    """The system call, which Python has only without a mode."""
    library = ctypes.CDLL(None, use_errno=True)
    library.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if library.fallocate(descriptor, mode, offset, length) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
