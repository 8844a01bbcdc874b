# SPDX-License-Identifier: GPL-2.0
"""The superblock of a pool's metadata, as bytes to be spoiled."""

import struct

BLOCK_SIZE = 4096
CHECKSUM_XOR = 160774

# Offset and struct format of the fields that the tests touch.
FIELDS = {
    "flags": (4, "<I"),
    "blocknr": (8, "<Q"),
    "magic": (32, "<Q"),
    "version": (40, "<I"),
    "time": (44, "<I"),
    "transaction_id": (48, "<Q"),
    "held_root": (56, "<Q"),
    "data_space_map_root": (64, "<Q"),
    "data_bitmap_root": (80, "<Q"),
    "metadata_space_map_root": (192, "<Q"),
    "data_mapping_root": (320, "<Q"),
    "device_details_root": (328, "<Q"),
    "data_block_size": (336, "<I"),
    "metadata_block_size": (340, "<I"),
    "metadata_nr_blocks": (344, "<Q"),
    "compat_flags": (352, "<I"),
    "compat_ro_flags": (356, "<I"),
    "incompat_flags": (360, "<I"),
}


def _table():
    entries = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        entries.append(value)
    return entries


_TABLE = _table()


def crc32c(data):
    """CRC32C as the kernel's crc32c(~0, data): without the final inversion."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc


class Superblock:
    """A superblock that can be changed field by field."""

    def __init__(self, block):
        self.block = bytearray(block[:BLOCK_SIZE])

    def get(self, field):
        offset, form = FIELDS[field]
        return struct.unpack_from(form, self.block, offset)[0]

    def set(self, field, value):
        offset, form = FIELDS[field]
        struct.pack_into(form, self.block, offset, value)
        return self

    def seal(self):
        """Sets the checksum that belongs to the present contents."""
        struct.pack_into("<I", self.block, 0, crc32c(self.block[4:]) ^ CHECKSUM_XOR)
        return self

    def sealed(self):
        """Whether the checksum is right."""
        return struct.unpack_from("<I", self.block, 0)[0] == crc32c(self.block[4:]) ^ CHECKSUM_XOR
