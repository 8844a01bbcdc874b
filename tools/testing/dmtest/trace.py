# SPDX-License-Identifier: GPL-2.0
"""What one implementation answered, step by step, in a form that can be compared to the other's."""

import errno
import hashlib
import re
import subprocess

from .dm import environment

# The lines of the kernel's log that tell about a pool's mode, its space and its metadata as a whole.
POOL_LINE = re.compile(
    r"device-mapper: thin: .*(switching pool to|reached low water mark|No free metadata blocks|metadata operation"
    r"|aborting current metadata|failed to abort|failed to set 'needs_check'|unable to switch pool|unable to grow"
    r"|growing the|too small|Disabling discard passdown|unable to service pool)"
)

# Numbers that say which device it was, not what was wrong with it.
DEVICE = re.compile(r"\b\d+:\d+\b|(/dev/)?\b(loop|dm-)\d+\b|\bpool\d+")


def normalised(text):
    return DEVICE.sub("<device>", text).strip()


class Trace:
    """The answers to a scenario; `log` is the kernel's log, from which reasons for refused tables are taken."""

    def __init__(self, log):
        self._log = log
        self._log.lines()
        self.entries = []

    def note(self, label, value):
        self.entries.append(f"{label}: {value}")

    def attempt(self, label, action):
        """Runs the action and notes success or the errno; returns whether it succeeded."""
        self._log.lines()
        try:
            action()
        except OSError as error:
            self.note(label, errno.errorcode.get(error.errno, error.errno))
            self._reasons()
            return False
        self.note(label, "ok")
        return True

    def program(self, *command):
        """Runs a program and notes its exit code and all it prints; returns the finished process."""
        self._log.lines()
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
        self.note(
            normalised(" ".join(command))[:300],
            f"exit code {done.returncode}\n{normalised(done.stdout)}\n{normalised(done.stderr)}",
        )
        self._reasons()
        return done

    def dmsetup(self, *arguments):
        """Runs dmsetup likewise; returns whether it succeeded."""
        return self.program("dmsetup", *arguments).returncode == 0

    def _reasons(self):
        for line in self._log.lines():
            if "device-mapper: table:" in line:
                self.note("reason", normalised(line))

    def log(self, text):
        """Notes the lines of the kernel's log since the last look at it that contain the text."""
        self.note(f"log of '{text}'", [normalised(line) for line in self._log.lines() if text in line])

    def log(self, once=False):
        """Notes the lines of the kernel's log that came since it was last looked at and tell what pools do.

        With `once`, a line that comes again and again is noted the first time only.
        """
        lines = [normalised(line) for line in self._log.lines() if POOL_LINE.search(line)]
        for line in dict.fromkeys(lines) if once else lines:
            self.note("log", line)

    def pool(self, pool, volumes=True):
        """Notes the status and table lines of the pool and, unless told not to, of its active volumes."""
        words = pool.device.status().split()
        if len(words) > 3 and words[3] != "-":
            # Where the metadata snapshot lies depends on when the pool last committed by itself.
            words[3] = "<root>"
        self.note("pool status", " ".join(words))
        self.note("pool table", normalised(pool.device.table()))
        for thin_id, thin in sorted(pool.thins.items()) if volumes else []:
            self.note(f"thin {thin_id} status", thin.status())
            self.note(f"thin {thin_id} table", normalised(thin.table()))


class Unchanged:
    """Fails if the lines or the metadata of a running pool differ between entry and exit."""

    def __init__(self, pool):
        self._pool = pool

    def _state(self):
        pool = self._pool
        devices = [pool.device, *pool.thins.values()]
        lines = [line for device in devices for line in (device.status(), device.table())]
        return lines, hashlib.sha256(pool.metadata.contents()).hexdigest()

    def __enter__(self):
        self._before = self._state()

    def __exit__(self, kind, error, trace):
        if error is None:
            after = self._state()
            assert after[0] == self._before[0], "bad input changed a status or table line"
            assert after[1] == self._before[1], "bad input wrote to the metadata device"


def differences(first, second):
    """The first places where two lists of entries part, as text; empty when they are equal."""
    if first == second:
        return ""
    index = next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))
    found = [f"step {index} of {max(len(first), len(second))} differs"]
    for name, entries in (("c", first), ("rust", second)):
        found += [f"  {name}: {entry[:3000]}" for entry in entries[max(0, index - 2):index + 1]]
    return "\n".join(found)
