# SPDX-License-Identifier: GPL-2.0
"""thinctl, as its users call it."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile

from . import ioctl
from .disk import (
    KIB,
    MIB,
)

# The size of the volumes in its tests.
SIZE = 16 * MIB

# The exit codes, as its manual page tells.
FAILED, USAGE, NOT_FOUND, BUSY, REFUSED, DAMAGED, METADATA, COMMAND, NO_ROOM = range(1, 10)


class Thinctl:
    """The program, with a folder of its own for what it remembers."""

    def __init__(self, program):
        self.program = program
        self.folder = tempfile.mkdtemp(prefix="thinctl")
        self.environment = {**os.environ, **{f"THINCTL_{name.upper()}": os.path.join(self.folder, name) for name in ("home", "run")}}

    def start(self, *words, **options):
        """Starts it, and gives the process."""
        return subprocess.Popen([self.program, *map(str, words)], env=self.environment, **options)

    def _ends(self, *words, code, input):
        """Runs it to its end, which must be with exit code `code`; gives what it printed, and its messages."""
        process = self.start(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        output, errors = process.communicate(input)
        errors = errors.decode()
        assert process.returncode == code, f"{' '.join(map(str, words))}: ended with {process.returncode}: {errors}"
        return output, errors

    def run(self, *words, input=None):
        """Runs it to its end, and gives what it printed."""
        return self._ends(*words, code=0, input=input)[0]

    def messages(self, *words):
        """Runs it to its end, and gives its messages."""
        return self._ends(*words, code=0, input=None)[1]

    def json(self, *words):
        return json.loads(self.run("--json", *words))

    def refused(self, *words, code=REFUSED, input=None):
        """Runs it, must be refused with exit code `code`, and gives the message."""
        errors = self._ends(*words, code=code, input=input)[1]
        assert "panicked" not in errors, errors
        return errors

    def cut(self, *words, after, how=signal.SIGKILL, stdout=subprocess.DEVNULL):
        """Runs it for `after` seconds at most, then sends it a signal. Gives its exit code."""
        with open(os.path.join(self.folder, "log"), "ab") as log:
            process = self.start(*words, stdin=subprocess.DEVNULL, stdout=stdout, stderr=log, start_new_session=True)
            try:
                process.wait(after)
            except subprocess.TimeoutExpired:
                # What it has started goes with it, as at the end of a machine.
                end_session(process.pid, how)
            return process.wait()

    def halted(self, step, *words, cut=0, **options):
        """Starts it, until it is halted before step `step`; it is to be killed before step `cut`.

        Gives the process, and whether it was halted: it has ended otherwise.
        """
        before = self.environment
        self.environment = {**before, "THINCTL_HALT": str(step), "THINCTL_CUT": str(cut)}
        # Nobody halts a group that no shell could let go on.
        process = self.start(*words, **{"stderr": subprocess.DEVNULL, **options}, start_new_session=True)
        self.environment = before
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            return process, True
        process.returncode = os.waitstatus_to_exitcode(status)
        return process, False

    def send(self, pool, volume, *words):
        """The stream of a volume."""
        return self.run("send", pool.name, volume, *words)

    def receive(self, pool, volume, stream, *words):
        """Makes a volume of a stream."""
        self.run("receive", pool.name, volume, *words, input=stream)

    def repository(self, name):
        """Makes a repository for backups, and gives its path."""
        path = os.path.join(self.folder, name)
        self.run("init", path)
        return path

    def snapshot(self, pool, origin, volume):
        self.run("snapshot", pool.name, origin, volume)

    def notes(self, pool, name):
        """What it remembers in a file; None if there is none. It is not asked for, as it may be at work."""
        try:
            with open(os.path.join(self.environment["THINCTL_HOME"], pool.name, name)) as file:
                return json.load(file)
        except FileNotFoundError:
            return None

    def settle(self, pool):
        """What it does first: undoes what was cut off."""
        self.run("status", pool.name)

    def forget_all(self):
        """Deletes what it remembers."""
        for kind in "HOME", "RUN":
            shutil.rmtree(self.environment[f"THINCTL_{kind}"], ignore_errors=True)

    def leftovers(self, pool):
        """What is left of its devices, of the metadata snapshot, and of its journals."""
        left = [name for name in ioctl.names() if name.startswith("thinctl-")]
        if pool.status().metadata_snap is not None:
            left.append("the metadata snapshot")
        for kind in "HOME", "RUN":
            for _, _, files in os.walk(self.environment[f"THINCTL_{kind}"]):
                left += [name for name in files if name.startswith(("run-", ".extents"))]
        return left


def end_session(session, how):
    """Sends a signal to all processes of a session, of whatever group."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(int(name)) == session:
                os.kill(int(name), how)


def suspended(name):
    return bool(ioctl.call(ioctl.DEV_STATUS, name).flags & ioctl.SUSPEND)


def guards_of(process):
    """The processes that undo what it leaves."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/stat") as stat, open(f"/proc/{pid}/cmdline", "rb") as words:
            parent = int(stat.read().rpartition(") ")[2].split()[1])
            if parent == process.pid and words.read().split(b"\0")[1:2] == [b"guard"]:
                found.append(int(pid))
    return found


class Halts:
    """Runs of a command of thinctl's that are halted before a step, each with what `prepare` makes for it.

    Later steps must find what `is_there` sees at an earlier one.
    """

    def __init__(self, thinctl, progress, *pools):
        self.thinctl, self.progress, self.number = thinctl, progress, 0
        # The first run for a pool makes folders, which are steps.
        for pool in pools:
            thinctl.settle(pool)

    def prepare(self):
        """Makes what the next one needs, and gives its words."""
        raise NotImplementedError

    def halted(self, step, *more, cut=0, **options):
        """Starts one, which is to be killed before step `cut`. Gives the process, and whether it was halted."""
        self.number += 1
        self.progress(f"runs: {self.number}")
        return self.thinctl.halted(step, *self.prepare(), *more, cut=cut, **options)

    def first(self, is_there):
        """The first step at which `is_there()`."""
        return first_step(self.halted, is_there)


def first_step(halted, is_there):
    """The first step at which `is_there()`, as at all later ones; `halted` starts a run that is halted before a step."""
    last, step = 0, 1024
    while step - last > 1:
        middle = (last + step) // 2
        process, is_halted = halted(middle)
        if not is_halted or is_there():
            step = middle
        else:
            last = middle
        if is_halted:
            goes_on(process)
    return step


def goes_on(process):
    """Lets a process that was halted go on to its end; gives its exit code."""
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=200)
    return process.returncode


def full_pipe():
    """Both ends of a pipe that takes nothing more until somebody reads."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    return reader, writer


def volumes(pool):
    """The ids of all volumes of a pool."""
    return pool.device_ids()


def changed(content, seed):
    """Writes here and there, and discards a part."""
    content.scatter(seed, 20)
    choice = random.Random(str(seed))
    offset = choice.randrange(0, SIZE - MIB, 64 * KIB)
    content.discard(offset, choice.randrange(64 * KIB, MIB, 64 * KIB))


def received(pool, volume, content):
    """Compares a volume, which is not active, with what it must hold."""
    thin = pool.activate(volume, SIZE)
    content.on(thin).verify()
    thin.remove()
