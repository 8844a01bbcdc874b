# SPDX-License-Identifier: GPL-2.0
"""Memory that nothing refers to any more, as the kernel's kmemleak finds it."""

import bisect
import glob
import os
import re
import subprocess
import time

FILE = "/sys/kernel/debug/kmemleak"
# What kmemleak keeps silent about for so many seconds after it was allocated.
MIN_AGE = 5

ADDRESS = re.compile(r"^( +)0x([0-9a-f]+)$", re.MULTILINE)


def is_there():
    """Whether this kernel has kmemleak, and was not told to do without."""
    with open("/proc/cmdline") as line:
        return os.path.exists(FILE) and "kmemleak=off" not in line.read().split()


def symbols(module):
    """Where the functions of a loaded module are, as sorted pairs of address and name; what find() needs once it is unloaded."""
    return sorted((address, name) for address, name, owner in _functions() if owner == f"[{module}]")


def own_functions():
    """Where the function that keeps count of objects is: its address, and that of the next function; none without kmemleak."""
    kernel = sorted((address, name) for address, name, owner in _functions() if not owner)
    for (start, name), (end, _) in zip(kernel, kernel[1:]):
        if name == "__alloc_object":
            return start, end
    return 0, 0


def _functions():
    with open("/proc/kallsyms") as file:
        for line in file:
            address, kind, name, *owner = line.split()
            if kind in "tT":
                yield int(address, 16), name, "".join(owner)


def scan():
    """Looks at all memory once. Fails if kmemleak has switched itself off."""
    with open(FILE, "w") as control:
        control.write("scan")


def find(named=()):
    """Looks for all that was lost, and returns kmemleak's reports of it; `named` are symbols() of modules that are gone."""
    time.sleep(MIN_AGE + 0.5)
    # Caches of the slab allocator go on naming objects that they have handed out, until they are emptied and used anew.
    for shrink in glob.glob("/sys/kernel/slab/*/shrink"):
        with open(shrink, "w") as control:
            control.write("1")
    for _ in range(20):
        subprocess.run(["true"], check=True)
    # An object that has changed since the last scan is not reported.
    scan()
    scan()
    with open(FILE) as file:
        return ADDRESS.sub(lambda found: found[1] + _name(int(found[2], 16), named), file.read())


def _name(address, named):
    index = bisect.bisect(named, (address, "\x7f")) - 1
    return f"{named[index][1]}+{address - named[index][0]:#x}" if index >= 0 else f"{address:#x}"
