# SPDX-License-Identifier: GPL-2.0
"""Allocations of memory that fail: one that is made below the module under test, chosen by its number.

The kernel's fault injection looks at the stack of each allocation, slab objects and pages alike, and lets those pass
that have no function of the module on it. What device-mapper, dm-bufio and the block layer allocate on the module's
behalf is thereby included.
"""

import os
from contextlib import contextmanager

from . import kmemleak, kmsg

FOLDER = "/sys/kernel/debug"
# What counts as one kind of allocation, with a counter of its own.
KINDS = ("failslab", "fail_page_alloc")
UNLIMITED = -1
# More than anything here allocates.
MANY = 1 << 30


def are_there():
    """Whether this kernel can have allocations fail."""
    return all(os.path.isdir(os.path.join(FOLDER, kind)) for kind in KINDS)


def watch(module="dm_thin_pool"):
    """Confines faults to allocations below the module, which must be loaded. None fails yet."""
    functions = [address for address, _ in kmemleak.symbols(module)]
    # kmemleak's own allocations do not count: it does without.
    leaks = kmemleak.own_functions()
    for kind in KINDS:
        for name, value in (
            ("probability", 0), ("interval", 1), ("times", UNLIMITED), ("space", 0), ("verbose", 0), ("task-filter", "N"),
            ("ignore-gfp-wait", "N"), ("stacktrace-depth", 32), ("require-start", functions[0]), ("require-end", functions[-1] + 4096),
            ("reject-start", leaks[0]), ("reject-end", leaks[1]),
        ):
            _set(kind, name, value)
    kmsg.mark(kmsg.ALLOCATIONS_FAIL)
    _set("fail_page_alloc", "min-order", 0)
    _set("fail_page_alloc", "ignore-gfp-highmem", "N")


class Nth:
    """What became of nth(): `left` are the allocations that were still to be made before the one that fails."""

    left = None

    @property
    def injected(self):
        return self.left == 0


@contextmanager
def nth(number):
    """The allocation of this number, from 1, that this thread makes below the module fails. Gives an Nth."""
    found = Nth()
    task = os.open("/proc/thread-self/fail-nth", os.O_RDWR)
    os.pwrite(task, str(number).encode(), 0)
    try:
        yield found
    finally:
        found.left = int(os.pread(task, 16, 0))
        os.pwrite(task, b"0", 0)
        os.close(task)


def count(action):
    """How many allocations `action` makes below the module, in this thread."""
    with nth(MANY) as found:
        action()
    return MANY - found.left


@contextmanager
def failing(*kinds, waiting=True, min_order=0):
    """All allocations of these kinds fail that are made below the module, in any thread; watch() was called before.

    Those that may wait for memory are left out unless `waiting`, and so are those of less than 2^`min_order` pages.
    """
    settings = [("ignore-gfp-wait", "N" if waiting else "Y", "N"), ("min-order", min_order, 0)]
    for kind in kinds:
        for name, value, _ in settings:
            _set_if_there(kind, name, value)
        _set(kind, "times", UNLIMITED)
        _set(kind, "probability", 100)
    try:
        yield
    finally:
        for kind in kinds:
            _set(kind, "probability", 0)
            for name, _, value in settings:
                _set_if_there(kind, name, value)


class Countdown:
    """Has an allocation of any thread below the module fail, chosen by its number among those of its kind.

    The kernel counts them since it was booted, tells nobody, and lets one fail whenever its count is a multiple of the
    interval. It starts at 0 and counts only while the interval is above 1, so there may be but one of these per kind
    and boot, which always knows where the count is.
    """

    def __init__(self, kind):
        self._kind = kind
        self._counted = 0

    @contextmanager
    def __call__(self, number):
        """The allocation of this number, from 1, fails. Gives a function that tells whether it did."""
        interval = self._counted + number
        _set(self._kind, "interval", interval)
        _set(self._kind, "times", 1)
        _set(self._kind, "probability", 100)
        try:
            yield self._has_failed
        finally:
            failed = self._has_failed()
            _set(self._kind, "probability", 0)
            if not failed:
                self._spend()
            _set(self._kind, "times", UNLIMITED)
            if interval > 1:
                self._counted = interval

    def _has_failed(self):
        while True:
            try:
                return _get(self._kind, "times") == "0"
            except OSError:
                # It was an allocation of ours, for that file.
                pass

    def _spend(self):
        """Uses up what is left of the interval with allocations of this thread's own."""
        start, end = (_get(self._kind, name) for name in ("require-start", "require-end"))
        _set(self._kind, "task-filter", "Y")
        _set(self._kind, "require-start", 0)
        _set(self._kind, "require-end", (1 << 64) - 1)
        task = os.open("/proc/thread-self/make-it-fail", os.O_WRONLY)
        left, right = os.pipe()
        os.write(task, b"1")
        try:
            _set(self._kind, "probability", 100)
            while not self._has_failed():
                try:
                    os.write(right, bytes(4096))
                    os.read(left, 4096)
                except OSError:
                    pass
        finally:
            _set(self._kind, "probability", 0)
            os.pwrite(task, b"0", 0)
            for file in (task, left, right):
                os.close(file)
            _set(self._kind, "task-filter", "N")
            _set(self._kind, "require-start", start)
            _set(self._kind, "require-end", end)


def _set_if_there(kind, name, value):
    if os.path.exists(os.path.join(FOLDER, kind, name)):
        _set(kind, name, value)


def _set(kind, name, value):
    with open(os.path.join(FOLDER, kind, name), "w") as file:
        file.write(str(value))


def _get(kind, name):
    with open(os.path.join(FOLDER, kind, name)) as file:
        return file.read().strip()
