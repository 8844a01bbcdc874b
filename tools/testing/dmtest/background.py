# SPDX-License-Identifier: GPL-2.0
"""I/O that may have to wait: it runs in a thread, and its outcome is looked at later."""

import errno
import threading
import time


class Background:
    """`action` in a thread of its own."""

    def __init__(self, action):
        self._action = action
        self._outcome = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            self._action()
            self._outcome = "ok"
        except OSError as error:
            self._outcome = errno.errorcode.get(error.errno, str(error.errno))

    def waits(self, seconds=0.3):
        """Whether it has not come to an end, and does not within `seconds`."""
        self._thread.join(seconds)
        return self._thread.is_alive()

    def outcome(self, patience=20.0):
        """Waits for the end; "ok" or the name of the errno."""
        self._thread.join(patience)
        assert not self._thread.is_alive(), f"still not done after {patience} s"
        return self._outcome


def wait_until(condition, what, patience=20.0):
    """Waits until `condition()` is true."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {patience} s"
        time.sleep(0.02)
