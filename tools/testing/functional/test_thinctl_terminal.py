# SPDX-License-Identifier: GPL-2.0
"""thinctl at a terminal, where what it replicates to asks for a password, as ssh does."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import time

import pytest

from dmtest.background import wait_until
from dmtest.content import Content
from dmtest.thinctl import (
    SIZE,
    received,
    volumes,
)

# User Mode Linux may have no terminals of this kind.
pytestmark = [pytest.mark.lvm2, pytest.mark.skipif(not os.path.exists("/sys/class/tty/ptmx"), reason="this kernel has no pseudo-terminals")]

# As ssh asks: from the terminal itself, without an echo, whatever its input is.
ASK = """#!/bin/sh
stty -echo </dev/tty || exit
printf 'password: ' >/dev/tty
IFS= read -r answer </dev/tty || exit
stty echo </dev/tty
test "$answer" = secret || exit 255
exec "$@"
"""

PATIENCE = 120


class Terminal:
    """A program that is the session of a terminal of its own."""

    def __init__(self, words, environment):
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            try:
                os.execve(words[0], words, environment)
            finally:
                os._exit(127)
        self.seen = b""
        self.status = None

    def reads(self, wanted):
        end = time.monotonic() + PATIENCE
        while wanted not in self.seen:
            assert time.monotonic() < end and self.running(), self.seen
            if select.select([self.terminal], [], [], 1)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self.terminal, 4096)
        self.seen = self.seen.split(wanted, 1)[1]

    def type(self, text):
        os.write(self.terminal, text)

    def running(self):
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is None

    def ends(self):
        """Its exit code. What it writes is taken meanwhile."""
        end = time.monotonic() + PATIENCE
        while self.running():
            assert time.monotonic() < end, self.seen
            if select.select([self.terminal], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self.terminal, 4096)
        return self.status

    def close(self):
        if self.running():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.terminal)


@pytest.fixture(autouse=True)
def terminals():
    """Whoever has none mounts them."""
    there = os.path.exists("/dev/pts/ptmx")
    if not there:
        os.makedirs("/dev/pts", exist_ok=True)
        subprocess.run(["mount", "-t", "devpts", "-o", "ptmxmode=0666", "devpts", "/dev/pts"], check=True)
    yield
    if not there:
        subprocess.run(["umount", "/dev/pts"], check=True)


@pytest.fixture
def at_terminal(thinctl, terminals):
    started = []

    def start(*words):
        started.append(Terminal([thinctl.program, *map(str, words)], thinctl.environment))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def ask(thinctl):
    path = os.path.join(thinctl.folder, "ask")
    with open(path, "w") as file:
        file.write(ASK)
    os.chmod(path, 0o755)
    return path


def running(path):
    """The processes that run a script."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
            if path.encode() in file.read().split(b"\0"):
                found.append(int(name))
    return found


@pytest.mark.parametrize("how", ["exec", "pipe"])
def test_a_password_is_asked_for(pool, other, thinctl, at_terminal, ask, how):
    content = Content(pool.new_thin(0, SIZE))
    content.scatter("first", 20)
    receive = f"{ask} {thinctl.program} receive {other.name} 7"
    command = f"exec {receive}" if how == "exec" else f"cat | {receive}"
    replicate = "replicate", pool.name, 0, "--turns", 1, "--patience", PATIENCE, "--to", command
    one = at_terminal(*replicate)
    one.reads(b"password: ")
    one.type(b"secret\n")
    assert one.ends() == 0, one.seen
    # It was not shown.
    assert b"secret" not in one.seen
    received(other, 7, content)
    # A wrong one is no reason to hang.
    content.scatter("second", 5)
    one = at_terminal(*replicate)
    one.reads(b"password: ")
    one.type(b"wrong\n")
    assert one.ends() == 8, one.seen
    assert not thinctl.leftovers(pool)


def test_who_asks_can_be_broken_off(pool, thinctl, at_terminal, ask):
    Content(pool.new_thin(0, SIZE)).scatter("first", 20)
    for end in lambda one: one.type(b"\x03"), lambda one: os.kill(one.pid, signal.SIGTERM):
        one = at_terminal("replicate", pool.name, 0, "--every", 1, "--patience", PATIENCE, "--to", f"cat | {ask} cat")
        one.reads(b"password: ")
        end(one)
        assert one.ends() in (128 + signal.SIGINT, 128 + signal.SIGTERM), one.seen
        wait_until(lambda: not running(ask), "whoever asked is gone")
        assert not thinctl.leftovers(pool)
    assert len(volumes(pool)) == 2


def test_who_never_answers_is_given_up(pool, thinctl, at_terminal, ask):
    Content(pool.new_thin(0, SIZE)).scatter("first", 20)
    one = at_terminal("replicate", pool.name, 0, "--turns", 1, "--patience", 2, "--to", f"cat | {ask} cat")
    one.reads(b"password: ")
    assert one.ends() == 8, one.seen
    wait_until(lambda: not running(ask), "whoever asked is gone")
