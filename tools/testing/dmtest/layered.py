# SPDX-License-Identifier: GPL-2.0
"""The model of a volume with an external origin."""

from .content import Content


class Layered(Content):
    """A thin volume with something below it: the bytes of its external origin, or nothing.

    The model knows which blocks are mapped, and so what the volume holds when it is activated anew with another
    external origin, or none, or in another size.
    """

    def __init__(self, thin, below=b"", blocks=None):
        super().__init__(thin, bytearray())
        self._blocks = {} if blocks is None else blocks
        self._put_on(below)

    def _put_on(self, below):
        block = self.thin.pool.block_size
        count = -(-self.thin.size // block)
        self._below = below[:count * block].ljust(count * block, b"\0")
        self.data = bytearray(self._below)
        for number, data in self._blocks.items():
            if number < count:
                self.data[number * block:(number + 1) * block] = data

    def _touched(self, offset, length):
        block = self.thin.pool.block_size
        return range(offset // block, -(-(offset + length) // block))

    def _map(self, offset, length):
        block = self.thin.pool.block_size
        for number in self._touched(offset, length):
            self._blocks[number] = bytes(self.data[number * block:(number + 1) * block])

    def write(self, offset, length, flags=0):
        super().write(offset, length, flags)
        self._map(offset, length)

    def zero(self, offset, length, how):
        super().zero(offset, length, how)
        self._map(offset, length)

    def discard(self, offset, length):
        super().discard(offset, length)
        block = self.thin.pool.block_size
        for number in range(-(-offset // block), (offset + length) // block):
            self._blocks.pop(number, None)
            self.data[number * block:(number + 1) * block] = self._below[number * block:(number + 1) * block]

    def mapped_blocks(self):
        return len(self._blocks)

    def snapshot(self, thin, below=b""):
        return Layered(thin, below, dict(self._blocks))

    def on(self, thin, below=b""):
        return Layered(thin, below, self._blocks)

    def resumed(self, below):
        """The volume has been resumed, and its external origin is larger now."""
        self._put_on(below)
