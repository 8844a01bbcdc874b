# SPDX-License-Identifier: GPL-2.0
"""Where a row's instructions go: QEMU is stopped again and again and asked where the processor is."""

import bisect
import collections
import json
import os
import re
import socket
import subprocess
import tempfile

FILTER = "/usr/lib/llvm-22/bin/llvm-cxxfilt"
STATE = re.compile(r"RIP=([0-9a-f]+).* CPL=(\d).* HLT=(\d)", re.S)


class Symbols:
    """The functions of a kernel and its modules, from /proc/kallsyms."""

    def __init__(self, lines):
        found = sorted((int(address, 16), name) for address, kind, name, *_ in (line.split() for line in lines) if kind in "tTwW")
        self._addresses = [address for address, _ in found]
        self._names = [name for _, name in found]

    def find(self, address):
        """The function's name, and how far in it the address is."""
        at = bisect.bisect_right(self._addresses, address) - 1
        return (self._names[at], address - self._addresses[at]) if at >= 0 else ("?", address)


class Monitor:
    """QEMU's machine protocol."""

    def __init__(self):
        # The path of a socket must be short.
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        self._path = os.path.join(self._folder.name, "qmp")
        self.option = f"-qmp unix:{self._path},server=on,wait=off"
        self._file = None

    def _connect(self):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(10)
        connection.connect(self._path)
        self._file = connection.makefile("rw")
        self._file.readline()
        self._ask(["qmp_capabilities", {}])

    def _ask(self, *commands):
        """The answers to commands that are sent all at once."""
        self._file.write("".join(json.dumps({"execute": name, "arguments": arguments}) + "\n" for name, arguments in commands))
        self._file.flush()
        answers = []
        while len(answers) < len(commands):
            message = json.loads(self._file.readline())
            if "error" in message:
                raise RuntimeError(f"QEMU: {message['error']}")
            if "return" in message:
                answers.append(message["return"])
        return answers

    def where(self):
        """(address, ring, whether it is halted)"""
        if not self._file:
            self._connect()
        state = self._ask(["stop", {}], ["human-monitor-command", {"command-line": "info registers"}], ["cont", {}])[1]
        address, ring, halted = STATE.search(state).groups()
        return int(address, 16), int(ring), halted == "1"


class Profile:
    """Samples, and the table that comes of them."""

    def __init__(self):
        self._functions = collections.Counter()
        self._places = collections.Counter()
        self._total = 0

    def add(self, symbols, address, ring, halted):
        self._total += 1
        if halted or ring == 3:
            self._functions["(idle)" if halted else "(user space)"] += 1
            return
        name, offset = symbols.find(address)
        self._functions[name] += 1
        self._places[f"{name}+{offset:#x}"] += 1

    def table(self, functions=45, places=15):
        """The most frequent functions with their shares, then the most frequent addresses."""
        lines = [f"{self._total} samples"]
        for counter, most in ((self._functions, functions), (self._places, places)):
            lines += [f"{100 * count / self._total:6.2f} %  {name}" for name, count in counter.most_common(most)] + [""]
        return readable(lines)


def readable(lines):
    """With Rust's names as in its sources."""
    if not os.path.exists(FILTER):
        return lines
    done = subprocess.run([FILTER], input="\n".join(lines), capture_output=True, text=True, check=True)
    return [re.sub(r"\[[0-9a-f]{16}\]", "", line) for line in done.stdout.splitlines()]
