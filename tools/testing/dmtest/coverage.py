# SPDX-License-Identifier: GPL-2.0
"""What was executed of the module under test, if it was built to count that: `scripts/module um coverage`.

The counters are in the module's memory, so they must be read before it is unloaded.
"""

import os
import struct

FOLDER = "/sys/kernel/debug/dm-thin-coverage"
SECTIONS = "/sys/module/dm_thin_pool/sections"

# LLVM's raw profile, as compiler-rt's InstrProfData.inc describes it: magic, version, bytes of binary ids, records,
# padding, counters, padding, bytes of bitmaps, padding, bytes of names, counters' and bitmaps' place after the
# records, the names' address, virtual tables, bytes of their names, last kind of values.
HEADER = struct.Struct("<16Q")
MAGIC = 0xFF6C70726F667281
VERSION = 10
LAST_KIND = 2
RECORD_SIZE = 64


class Coverage:
    """Adds up the counters of all times that the module was loaded; `path` is the raw profile that they are written to."""

    def __init__(self, path):
        self._path = path
        self._counts = None

    def save(self):
        """Adds what the loaded module has counted. To be called once before it is unloaded."""
        if not os.path.isdir(FOLDER):
            return
        data, counts, names = (_read(os.path.join(FOLDER, name)) for name in ("data", "counts", "names"))
        counts = struct.unpack(f"<{len(counts) // 8}Q", counts)
        self._counts = [a + b for a, b in zip(self._counts, counts, strict=True)] if self._counts else counts
        with open(self._path, "wb") as file:
            file.write(raw(data, self._counts, names, _address("__llvm_prf_data"), _address("__llvm_prf_cnts"), _address("__llvm_prf_names")))


def raw(data, counts, names, data_address, counts_address, names_address):
    """A raw profile of these sections' contents."""
    header = HEADER.pack(
        MAGIC, VERSION, 0, len(data) // RECORD_SIZE, 0, len(counts), 0, 0, 0, len(names),
        (counts_address - data_address) % (1 << 64), -data_address % (1 << 64), names_address, 0, 0, LAST_KIND,
    )
    return header + data + struct.pack(f"<{len(counts)}Q", *counts) + names.ljust(-(-len(names) // 8) * 8, b"\0")


def _read(path):
    with open(path, "rb") as file:
        return file.read()


def _address(section):
    with open(os.path.join(SECTIONS, section)) as file:
        return int(file.read(), 16)
