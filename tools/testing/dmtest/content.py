# SPDX-License-Identifier: GPL-2.0
"""What a volume must contain: a model in memory, changed along with the volume and compared to it."""

import hashlib
import random

from .disk import SECTOR


def pattern(key, length):
    """`length` bytes that depend on `key` alone."""
    return hashlib.shake_128(str(key).encode()).digest(length)


class Content:
    """A thin volume together with the bytes that it must hold."""

    def __init__(self, thin, data=None):
        self.thin = thin
        self.data = bytearray(thin.size) if data is None else data
        self._writes = 0

    def write(self, offset, length, flags=0):
        self._writes += 1
        data = pattern((self.thin.name, offset, length, self._writes), length)
        self.thin.write(offset, data, flags)
        self.data[offset:offset + length] = data

    def discard(self, offset, length):
        """Discards a range. The whole blocks in it read as zeroes then, the rest of it stays as it is."""
        self.thin.discard(offset, length)
        block = self.thin.pool.block_size
        begin = -(-offset // block) * block
        end = max(begin, (offset + length) // block * block)
        self.data[begin:end] = bytes(end - begin)

    def zero(self, offset, length, how):
        """Zeroes a range with the method of that name: zero_out or punch_hole."""
        getattr(self.thin, how)(offset, length)
        self.data[offset:offset + length] = bytes(length)

    def scatter(self, seed, count, most=256):
        """`count` writes at random places, each of 1 to `most` sectors."""
        choice = random.Random(str(seed))
        sectors = self.thin.size // SECTOR
        for _ in range(count):
            length = choice.randint(1, min(most, sectors))
            self.write(choice.randint(0, sectors - length) * SECTOR, length * SECTOR)

    def snapshot(self, thin):
        """The model of a snapshot `thin` of this volume."""
        return Content(thin, bytearray(self.data))

    def on(self, thin):
        """The same model for the volume activated anew as `thin`."""
        return Content(thin, self.data)

    def verify(self, step=4 << 20):
        for offset in range(0, self.thin.size, step):
            length = min(step, self.thin.size - offset)
            found = self.thin.read(offset, length)
            expected = self.data[offset:offset + length]
            if found != expected:
                for sector in range(0, length, SECTOR):
                    if found[sector:sector + SECTOR] != expected[sector:sector + SECTOR]:
                        state = "zeroes" if not any(found[sector:sector + SECTOR]) else "other data"
                        raise AssertionError(f"{self.thin.name}: sector {(offset + sector) // SECTOR} holds {state}")
