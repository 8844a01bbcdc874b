# SPDX-License-Identifier: GPL-2.0
"""The devices that are measured, inside the virtual machine: null_blk, dm-linear, and pools of either module."""

import fcntl
import itertools
import os
import subprocess
import time

from bench import rows
from dmtest import (
    dm,
    ioctl,
)
from dmtest.dm import Device
from dmtest.pool import Pool

CONFIGFS = "/sys/kernel/config"
CACHE_LIMIT = "/sys/module/dm_thin_pool/parameters/mapping_cache_pages"
# Enough of dm-bufio for the metadata of all sizes: by default it takes 2 % of the memory.
BUFIO_BYTES = 1 * rows.GIB
# The same for the mapping cache.
CACHE_PAGES = 64 * rows.KIB


_numbers = itertools.count()


class NullBlk:
    """A null_blk device; options as in configfs."""

    def __init__(self, modules, name, size, **options):
        if not os.path.exists("/sys/module/null_blk"):
            modules.insert_named("null_blk", "nr_devices=0")
        if not os.path.ismount(CONFIGFS):
            subprocess.run(["mount", "-t", "configfs", "configfs", CONFIGFS], check=True)
        self._folder = f"{CONFIGFS}/nullb/{name}"
        self.path = f"/dev/{name}"
        self.size = size
        os.mkdir(self._folder)
        for option, value in dict(options, size=size // rows.MIB, power=1).items():
            with open(f"{self._folder}/{option}", "w") as file:
                file.write(str(value))

    @property
    def sectors(self):
        return self.size // 512

    def close(self):
        os.rmdir(self._folder)


class Begin:
    """The begin of a device."""

    def __init__(self, device, size):
        self.whole = device
        self.path = device.path
        self.size = size
        self.sectors = size // 512


class RamDisk:
    """A disk in memory (brd), with an image on it."""

    path = "/dev/ram0"

    def __init__(self, modules, image, size=rows.METADATA_BYTES):
        self._modules = modules
        modules.insert_named("brd", "rd_nr=1", f"rd_size={size // rows.KIB}")
        self.size = size
        if image:
            subprocess.run(["dd", f"if={image}", f"of={self.path}", "bs=1M", "oflag=direct", "status=none"], check=True)

    def close(self):
        self._modules.remove_named("brd")


class Load:
    """The load generator on a device."""

    def __init__(self, device, sectors):
        self._device = Device.create(f"load{next(_numbers)}", f"0 {sectors} load {device}")

    def run(self, op, pattern, size, count, **options):
        """Does the I/O and returns what the generator reports. Fails if an I/O did."""
        words = "".join(f" {key}={value}" for key, value in options.items())
        message = f"run {op} {pattern} {size} {count}{words}"
        return Report.parse(self._device.ask(message), message, count)

    def close(self):
        self._device.remove()


def numbers(reply):
    """The numbers of a reply by name."""
    return {key: int(value) for key, value in (word.split("=") for word in reply.split())}


class Report(dict):
    """The generator's numbers by name."""

    @classmethod
    def parse(cls, reply, message, count):
        report = cls(numbers(reply))
        if report["errors"]:
            raise RuntimeError(f"{message}: {report['errors']} of {report['ios']} I/Os failed")
        if report["ios"] != count:
            raise RuntimeError(f"{message}: {report['ios']} I/Os were done")
        return report


class Timed:
    """Device-mapper ioctls, and the time that the kernel takes for them."""

    def __init__(self):
        self.ns = 0

    def call(self, command, name, flags=0, target_count=0, data=b""):
        request, buffer = ioctl.prepare(command, name, flags, target_count, data)
        control = ioctl.control()
        begin = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        try:
            fcntl.ioctl(control, request, buffer)
        except OSError as error:
            raise ioctl.DmError(error.errno, error.strerror, name) from None
        self.ns += time.clock_gettime_ns(time.CLOCK_MONOTONIC) - begin

    def message(self, name, text):
        self.call(ioctl.TARGET_MSG, name, data=ioctl.MESSAGE.pack(0) + text.encode() + b"\0")

    def resume_with(self, name, table):
        """Loads a table into a device that is there, and resumes it."""
        count, data = ioctl.pack_table(table)
        self.call(ioctl.TABLE_LOAD, name, 0, count, data)
        self.call(ioctl.DEV_SUSPEND, name)


class Plain:
    """null_blk or dm-linear: the same I/O without any mapping to look up."""

    def __init__(self, data, name):
        self.name = name
        self._linear = Device.create("linear", f"0 {data.sectors} linear {data.path} 0") if name == "linear" else None
        self.paths = [self._linear.path if self._linear else data.path]
        self._sectors = data.sectors
        self._loads = []

    def loads(self, count):
        """The load generator so many times over."""
        for _ in range(len(self._loads), count):
            self._loads.append(Load(self.paths[0], self._sectors))
        return self._loads[:count]

    def close(self):
        for load in self._loads:
            load.close()
        if self._linear:
            self._linear.remove()


class Thin:
    """A pool of one module, with an image for its metadata, and its volumes."""

    STATES = {"plain": ["skip_block_zeroing"], "zeroing": []}

    def __init__(self, modules, name, size, image, data):
        modules.load(name)
        self.name = name
        self.size = size
        self.metadata = RamDisk(modules, image)
        self.pool = Pool(self.metadata, data, features=self.STATES["plain"])
        self._loads = []
        self._next = 1000
        self._shared = False
        self._fresh = 24 * rows.TIB
        self._neighbour = None
        # Of what rows share, by the method.
        self.reports = {}

    def start(self, state):
        self.pool.features = self.STATES.get(state, self.STATES["plain"])
        self.set_cache_limit(CACHE_PAGES)
        self.pool.start()
        self._activate()
        self.enter(state)

    def _activate(self):
        for number in range(self.size.volumes):
            self.pool.activate(number, rows.VOLUME_BYTES)

    def enter(self, state):
        """Brings the pool into a state that rows ask for."""
        features = self.STATES.get(state, self.STATES["plain"])
        if features != self.pool.features:
            self.pool.features = features
            self.pool.device.reload(self.pool.table())
        if state == "shared" and not self._shared:
            self.share()

    def share(self):
        """Takes a snapshot of each volume."""
        self._shared = True
        for number in range(self.size.volumes):
            self.pool.create_snap(self._new_id(), number)

    def fresh(self, length):
        """The begin of a range that is not mapped, and that nobody else is given."""
        self._fresh += length
        return self._fresh - length

    def _new_id(self):
        self._next += 1
        return self._next

    @property
    def paths(self):
        return [self.pool.thins[number].path for number in sorted(self.pool.thins)]

    def beside(self):
        """One more load generator on the first volume."""
        return Load(self.paths[0], rows.VOLUME_BYTES // 512)

    def neighbour(self):
        """A volume of which nothing was mapped at first, to be read and written while others have big work to do."""
        if not self._neighbour:
            self._neighbour = self.pool.new_thin(self._new_id(), rows.VOLUME_BYTES)
        return self._neighbour

    def loads(self, count):
        """The load generator on so many of the volumes."""
        for number in range(len(self._loads), count):
            self._loads.append(Load(self.paths[number], rows.VOLUME_BYTES // 512))
        return self._loads[:count]

    @staticmethod
    def set_cache_limit(pages):
        """The most pages of the mapping cache, where there is one."""
        if os.path.exists(CACHE_LIMIT):
            with open(CACHE_LIMIT, "w") as parameter:
                parameter.write(str(pages))

    def forget(self):
        """Empties the mapping cache, where there is one, which may take a second. The metadata stay in memory."""
        if os.path.exists(CACHE_LIMIT):
            self.set_cache_limit(0)
            end = time.monotonic() + 10
            while self.cache_stats()["pages"]:
                if time.monotonic() > end:
                    raise RuntimeError("the mapping cache does not get empty")
                time.sleep(0.1)
            self.set_cache_limit(CACHE_PAGES)

    def cache_stats(self):
        """What the pool tells of its mapping cache."""
        return numbers(self.pool.device.ask("cache_stats"))

    def _close_loads(self):
        for load in self._loads:
            load.close()
        self._loads = []

    def stop(self):
        self._close_loads()
        self.pool.stop()

    def close(self):
        left = dm.remove_all()
        if left:
            raise RuntimeError(f"devices that cannot be removed: {left}")
        self.metadata.close()

    # What rows ask of the pool. Each returns instructions.

    def create(self):
        timed = Timed()
        timed.message(self.pool.name, f"create_thin {self._new_id()}")
        return timed.ns

    def snapshot(self):
        timed = Timed()
        origin = self.pool.thins[0]
        origin.suspend()
        timed.message(self.pool.name, f"create_snap {self._new_id()} 0")
        origin.resume()
        return timed.ns

    def reserve(self):
        timed = Timed()
        timed.message(self.pool.name, "reserve_metadata_snap")
        self.pool.release_metadata_snap()
        return timed.ns

    def release(self):
        timed = Timed()
        self.pool.reserve_metadata_snap()
        timed.message(self.pool.name, "release_metadata_snap")
        return timed.ns

    def delete(self):
        timed = Timed()
        self._close_loads()
        self.pool.thins[0].remove()
        timed.message(self.pool.name, "delete 0")
        return timed.ns

    def activation(self):
        self.stop()
        timed = Timed()
        self.pool.device = Device.create_empty(self.pool.name)
        timed.resume_with(self.pool.name, self.pool.table())
        thin = Device.create_empty("activated")
        timed.resume_with(thin.name, f"0 {rows.VOLUME_BYTES // 512} thin {self.pool.device.path} 0")
        thin.remove()
        self._activate()
        return timed.ns

    def discard_mapped(self):
        """The last 4 GiB of what is mapped."""
        self.pool.thins[0].discard(self.size.per_volume * rows.BLOCK - 4 * rows.GIB, 4 * rows.GIB)

    def grow(self):
        self.pool.data = self.pool.data.whole
        self.pool.device.reload(self.pool.table())

    def discard_unmapped(self):
        begin = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self.pool.thins[0].discard(32 * rows.TIB, 16 * rows.TIB)
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC) - begin
