# SPDX-License-Identifier: GPL-2.0
"""Becomes a command that must not outlive the runner: `guard.py COMMAND...`, as the leader of a process group.

Standard input is a pipe to which the runner holds the other end. However the runner ends, also by SIGKILL, that end
is closed, and then a process that stays beside the command kills the whole group.
"""

import os
import signal
import sys


def watch():
    # Who reads what the command says waits for the end of all that could say something.
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


def main():
    # User Mode Linux must be the group's leader, or it leaves the group, and have no children that it knows nothing of.
    if os.fork() == 0:
        if os.fork() == 0:
            watch()
        os._exit(0)
    os.wait()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
