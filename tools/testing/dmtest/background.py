# SPDX-License-Identifier: GPL-2.0
"""I/O that may have to wait: it runs in a thread, and its outcome is looked at later."""

import errno
import os
import threading
import time

# For how many seconds something is waited for that comes sooner or later, if all is well.
PATIENCE = 60.0


class Background:
    """`action` in a thread of its own, which gives way to nobody if it is `urgent`."""

    def __init__(self, action, urgent=False):
        self._action = action
        self._urgent = urgent
        self._outcome = None
        # How often it had run when it was seen asleep, and how often that was the same.
        self._runs, self._seen_asleep = None, 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        if self._urgent:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        try:
            self._action()
            self._outcome = "ok"
        except OSError as error:
            self._outcome = errno.errorcode.get(error.errno, str(error.errno))

    def waits(self, seconds=0.3):
        """Whether it has not come to an end, and does not within `seconds`."""
        self._thread.join(seconds)
        return self._thread.is_alive()

    def sleeps(self):
        """Whether it waits in the kernel, for I/O or for a lock, and has done so for a while; to be asked again and again.

        Only once it has not run for a while: on User Mode Linux, threads take turns in user space, and wait for theirs
        like that, too.
        """
        try:
            with open(f"/proc/self/task/{self._thread.native_id}/status") as file:
                words = dict(line.split(None, 1) for line in file if line.startswith(("State:", "voluntary_ctxt_switches:")))
        except OSError:
            return False
        runs = words["voluntary_ctxt_switches:"] if words["State:"].startswith("D") else None
        self._seen_asleep = self._seen_asleep + 1 if runs is not None and runs == self._runs else 0
        self._runs = runs
        return self._seen_asleep >= 5

    def outcome(self, patience=PATIENCE):
        """Waits for the end; "ok" or the name of the errno."""
        self._thread.join(patience)
        assert not self._thread.is_alive(), f"still not done after {patience} s"
        return self._outcome


def wait_until(condition, what, patience=PATIENCE):
    """Waits until `condition()` is true."""
    assert is_soon(condition, patience), f"{what}: not within {patience} s"


def is_soon(condition, seconds=1.0):
    """Whether `condition()` gets true within `seconds`. For what must not be: it costs the time only where all is well."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
