# SPDX-License-Identifier: GPL-2.0
"""A run's share of the tests: every so many-th of each file, whatever other files there are."""

import zlib


def share(items, number, count):
    """Leaves, of each file's tests, every `count`-th. Which file begins with its first one is drawn by the file's name."""
    seen = {}
    chosen = []
    for item in items:
        file = item.nodeid.split("::")[0]
        place = seen.setdefault(file, zlib.crc32(file.encode()))
        seen[file] += 1
        if place % count == number:
            chosen.append(item)
    items[:] = chosen
