# SPDX-License-Identifier: GPL-2.0
"""Swap on a thin volume: memory is short, and what makes it less short goes through the pool's worker.

The disks are in memory that is theirs already, so that they need no more for what is written to them.
"""

import contextlib
import ctypes
import os
import subprocess
import sys

import pytest

from dmtest import (
    allocations,
    disk,
    kmsg,
)
from dmtest.disk import (
    KIB,
    MIB,
)

SIZE = 96 * MIB
# How much of it is used in the end. Some of that is a place in the swap that a page has and was not written to yet.
WANTED = 32 * MIB
WRITTEN = WANTED // 2

# Takes memory, writing to each page, until so much swap is in use, and reads all of it again.
HOG = """
import mmap, sys
STEP = 1 << 20
taken = []
def used():
    with open("/proc/swaps") as file:
        return int(file.read().splitlines()[1].split()[3]) << 10
while used() < int(sys.argv[1]):
    taken.append(mmap.mmap(-1, STEP, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    for offset in range(0, STEP, 4096):
        taken[-1][offset:offset + 8] = (len(taken) * STEP + offset).to_bytes(8, "little")
# What was read back is given back, so that there is room for the rest: without any, pages would take their places in the
# swap along into memory until there are none, and the kernel takes no page from a process then.
taken.reverse()
for number in range(1, len(taken) + 1):
    memory = taken.pop()
    for offset in range(0, STEP, 4096):
        assert memory[offset:offset + 8] == (number * STEP + offset).to_bytes(8, "little"), (number, offset)
    memory.close()
print("done")
"""


class RamDisk:
    """A disk of the module brd, all of which is in memory."""

    def __init__(self, number, size):
        self.path = f"/dev/ram{number}"
        self.size = size
        self.sectors = size // disk.SECTOR
        for offset in range(0, size, MIB):
            disk.write(self.path, offset, bytes(MIB))


@pytest.fixture
def ram_disks(modules):
    """Two disks in memory, with some more room than the swap has."""
    size = SIZE + 16 * MIB
    modules.insert_named("brd", "rd_nr=2", f"rd_size={size // KIB}")
    yield RamDisk(0, size), RamDisk(1, size)
    modules.remove_named("brd")


@pytest.fixture
def swap(ram_disks, make_pool):
    """A volume that is used as swap."""
    metadata, data = ram_disks
    pool = make_pool(metadata=metadata, data=data, features=["no_discard_passdown"])
    thin = pool.new_thin(0, SIZE)
    subprocess.run(["mkswap", thin.path], check=True, capture_output=True)
    library = ctypes.CDLL(None, use_errno=True)
    assert library.swapon(thin.path.encode(), 0) == 0, os.strerror(ctypes.get_errno())
    yield thin
    assert library.swapoff(thin.path.encode()) == 0, os.strerror(ctypes.get_errno())
    pool.stop()


def use_too_much_memory(progress):
    """Has a process use more memory than there is; it must get along."""
    # If there is too little memory after all, this process is the one to go.
    hog = subprocess.Popen(
        [sys.executable, "-c", HOG, str(WANTED)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: open("/proc/self/oom_score_adj", "w").write("1000"),
    )
    for seconds in range(900):
        with contextlib.suppress(subprocess.TimeoutExpired):
            hog.wait(1)
            break
        progress(f"swap: {seconds} s")
    else:
        hog.kill()
    output, errors = hog.communicate()
    assert output == "done\n", f"{hog.returncode}: {errors}"


def test_more_memory_than_there_is(swap, progress):
    """Each page that is swapped out for the first time provisions a block, or a part of one."""
    kmsg.mark(kmsg.MEMORY_IS_SHORT)
    use_too_much_memory(progress)
    assert swap.mapped()[0] >= WRITTEN


@pytest.mark.skipif(not allocations.are_there(), reason="this kernel has no failing allocations")
def test_nothing_to_be_had_without_waiting(swap, progress):
    """As above, while the pool gets no memory unless it waits for it, which it must not."""
    allocations.watch()
    with allocations.failing("failslab", waiting=False):
        use_too_much_memory(progress)
    assert swap.mapped()[0] >= WRITTEN
