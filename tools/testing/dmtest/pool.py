# SPDX-License-Identifier: GPL-2.0
"""Pools and thin volumes."""

from dataclasses import dataclass

from . import disk, metadata
from .background import PATIENCE
from .dm import Device
from .disk import SECTOR


@dataclass
class PoolStatus:
    """A pool's status line, field by field; block counts are (used, total)."""

    transaction_id: int
    metadata_blocks: tuple
    data_blocks: tuple
    metadata_snap: int
    mode: str
    discard: str
    no_space: str
    needs_check: bool
    metadata_low_water: int

    @classmethod
    def parse(cls, line):
        fields = line.split()
        assert len(fields) == 9, f"unexpected status line: {line}"

        def pair(text):
            return tuple(int(number) for number in text.split("/"))

        return cls(
            int(fields[0]), pair(fields[1]), pair(fields[2]), None if fields[3] == "-" else int(fields[3]),
            fields[4], fields[5], fields[6], fields[7] == "needs_check", int(fields[8]),
        )


class Pool:
    """A pool on two disks, and the thin volumes that are active on it."""

    def __init__(self, metadata_disk, data_disk, block_sectors=128, low_water=0, features=(), name="pool"):
        self.metadata = metadata_disk
        self.data = data_disk
        # What a test puts on top of the disks, if it does: the table names it then.
        self.metadata_path = None
        self.data_path = None
        self.block_sectors = block_sectors
        self.low_water = low_water
        self.features = list(features)
        self.name = name
        self.device = None
        self.thins = {}

    @property
    def block_size(self):
        """Bytes in a data block."""
        return self.block_sectors * SECTOR

    def table(self, sectors=None):
        features = f" {len(self.features)} {' '.join(self.features)}" if self.features else ""
        return (f"0 {sectors or self.data.sectors} thin-pool {self.metadata_path or self.metadata.path} {self.data_path or self.data.path} "
                f"{self.block_sectors} {self.low_water}{features}")

    def start(self):
        self.device = Device.create(self.name, self.table())
        return self

    def stop(self):
        """Removes the thin volumes and the pool."""
        for thin in list(self.thins.values()):
            thin.remove()
        if self.device:
            self.device.remove()
            self.device = None

    def restart(self):
        """Removes the pool and creates it again on the same disks; thin volumes are left inactive."""
        self.stop()
        return self.start()

    def check(self):
        """Runs thin_check on the metadata; the pool must not be active."""
        metadata.check(self.metadata.path)

    def message(self, text):
        self.device.message(text)

    def status(self):
        return PoolStatus.parse(self.device.status())

    def create_thin(self, thin_id):
        self.message(f"create_thin {thin_id}")

    def create_snap(self, thin_id, origin_id):
        """Takes a snapshot; the origin is suspended meanwhile if it is active."""
        origin = self.thins.get(origin_id)
        if origin:
            origin.suspend()
        try:
            self.message(f"create_snap {thin_id} {origin_id}")
        finally:
            if origin:
                origin.resume()

    def delete(self, thin_id):
        self.message(f"delete {thin_id}")

    def reserve_metadata_snap(self):
        """Takes a metadata snapshot and returns its root from the status line."""
        self.message("reserve_metadata_snap")
        root = self.status().metadata_snap
        assert root is not None, "no root in the status line after reserve_metadata_snap"
        return root

    def release_metadata_snap(self):
        self.message("release_metadata_snap")

    def activate(self, thin_id, size, origin=None):
        """Activates the volume `thin_id` with `size` bytes; `origin` is the path of its external origin."""
        thin = Thin.open(self, thin_id, size, origin=origin)
        self.thins[thin_id] = thin
        return thin

    def new_thin(self, thin_id, size, origin=None):
        self.create_thin(thin_id)
        return self.activate(thin_id, size, origin)

    def new_snap(self, thin_id, origin_id, size, origin=None):
        self.create_snap(thin_id, origin_id)
        return self.activate(thin_id, size, origin)

    def dump(self):
        """The mappings as they are now: suspends the pool, copies its metadata and dumps the copy."""
        self.device.suspend()
        try:
            copy = self.metadata.copy("quiesced")
        finally:
            self.device.resume()
        return metadata.dump(copy)

    def device_ids(self):
        """The ids of all volumes as they are now: suspends the pool, and reads its metadata."""
        below = getattr(self.metadata, "disk", self.metadata)
        self.device.suspend()
        try:
            return metadata.device_ids(lambda offset, length: disk.read(below.path, offset, length))
        finally:
            self.device.resume()


class Thin(Device):
    """An active thin volume."""

    pool = None

    @classmethod
    def open(cls, pool, thin_id, size, name=None, origin=None):
        table = cls._table(pool, thin_id, size // SECTOR, origin)
        thin = cls.create(name or f"{pool.name}-thin{thin_id}", table)
        thin.pool = pool
        thin.id = thin_id
        thin.size = size
        thin.origin = origin
        return thin

    @staticmethod
    def _table(pool, thin_id, sectors, origin):
        return f"0 {sectors} thin {pool.device.path} {thin_id}" + (f" {origin}" if origin else "")

    def table_text(self, sectors=None):
        return self._table(self.pool, self.id, sectors or self.size // SECTOR, self.origin)

    def remove(self, patience=PATIENCE):
        super().remove(patience)
        if self.pool and self.pool.thins.get(self.id) is self:
            del self.pool.thins[self.id]

    def read(self, offset=0, length=None):
        return disk.read(self.path, offset, self.size - offset if length is None else length)

    def write(self, offset, data, flags=0):
        disk.write(self.path, offset, data, flags)

    def flush(self):
        disk.flush(self.path)

    def discard(self, offset, length):
        disk.discard(self.path, offset, length)

    def zero_out(self, offset, length):
        disk.zero_out(self.path, offset, length)

    def punch_hole(self, offset, length):
        disk.punch_hole(self.path, offset, length)

    def mapped_blocks(self):
        """How many blocks are mapped, as the status line tells."""
        return self.mapped()[0] // self.pool.block_size

    def mapped(self):
        """Mapped bytes and the highest mapped byte, or None, as the status line tells."""
        mapped, highest = self.status().split()
        return int(mapped) * SECTOR, None if highest == "-" else int(highest) * SECTOR + SECTOR - 1
