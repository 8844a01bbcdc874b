# SPDX-License-Identifier: GPL-2.0
"""Runs a command that must not outlive the runner: `guard.py COMMAND...`, in a process group of its own.

Standard input is a pipe that the runner holds and never writes to. However the runner ends, also by SIGKILL, the
pipe ends with it, and then the whole group is killed.
"""

import os
import signal
import subprocess
import sys
import threading


def watch():
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


def main():
    threading.Thread(target=watch, daemon=True).start()
    return subprocess.call(sys.argv[1:], stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
