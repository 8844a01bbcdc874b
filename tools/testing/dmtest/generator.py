# SPDX-License-Identifier: GPL-2.0
"""Bios as a test wants them: our target `load`, the load generator of the benchmark."""

import subprocess

from . import disk
from .background import wait_until
from .dm import (
    Device,
    dmsetup,
    environment,
)


class Generator:
    """A device of the load generator's, on another one."""

    def __init__(self, path, name="load"):
        self.name = name
        self.path = path
        self.device = Device.create(name, f"0 8 load {path}")

    def message(self, words):
        return dmsetup("message", self.name, "0", *words.split())

    def run(self, words):
        done = self.message(f"run {words}")
        assert done.returncode == 0, done.stderr
        report = {key: int(value) for key, value in (word.split("=") for word in done.stdout.split())}
        assert list(report) == ["ns", "ios", "errors", "min", "p50", "p99", "p999", "max"]
        return report

    def close(self):
        self.device.remove()

    def start(self, words):
        """A run of reads in the background, which is under way."""
        before = disk.stat(self.path, 0)
        command = ["dmsetup", "message", self.name, "0", "run", *words.split()]
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: disk.stat(self.path, 0) > before, "the first read")
        return process
