# SPDX-License-Identifier: GPL-2.0
"""A test that stands still is told where everybody waits, and ended."""

import faulthandler
import glob
import os
import threading
import time

LOG = "/run/results/hang.log"


class Watchdog:
    """Wants beat() to be called every `seconds`; else it writes down what all tasks wait for and ends the whole run."""

    def __init__(self, seconds, log=LOG, end=os._exit):
        self._seconds = seconds
        self._log = log
        self._end = end
        self._last = time.monotonic()
        self._what = "the start"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def beat(self, what):
        self._last = time.monotonic()
        self._what = what

    def _watch(self):
        while not self._stop.wait(0.5):
            if time.monotonic() - self._last > self._seconds:
                self._bark()
                return

    def _bark(self):
        with open(self._log, "w") as log:
            log.write(f"no progress for {self._seconds} s since: {self._what}\n")
            log.write("\n".join(blocked_tasks()) + "\n")
            log.flush()
            faulthandler.dump_traceback(log)
        with open(self._log) as log:
            text = log.read()
        for line in text.splitlines():
            # The end of the console is what the host shows.
            with open("/dev/kmsg", "w") as kmsg:
                kmsg.write(f"<3>watchdog: {line[:900]}")
        self._end(1)

    def stop(self):
        self._stop.set()
        self._thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def blocked_tasks():
    """A line for each task that waits uninterruptibly, with its kernel stack where there is one."""
    lines = []
    for folder in sorted(glob.glob("/proc/[0-9]*/task/[0-9]*")):
        try:
            with open(f"{folder}/stat") as file:
                name, state = file.read().rsplit(")", 1)
            if state.split()[0] != "D":
                continue
            with open(f"{folder}/stack") as file:
                stack = [line.split()[-1] for line in file]
        except OSError:
            continue
        lines.append(f"{name}): {' < '.join(stack)}")
    return lines
