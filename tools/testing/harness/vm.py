# SPDX-License-Identifier: GPL-2.0
"""Virtual machines that run guest/init.sh on the host's own file tree."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
INIT = os.path.join(ROOT, "guest", "init.sh")
GUARD = os.path.join(ROOT, "harness", "guard.py")


class Vm:
    """One run of a VM, from boot to power off. `results` is where it leaves its logs and events."""

    def __init__(self, kernel, results):
        self.kernel = kernel
        self.results = results
        # The processor that a machine of one thread of work is kept on, if any.
        self.processor = None
        self._process = None
        self._read = {}

    def start(self, config, arguments=()):
        """Boots with `config` as the guest's orders and `arguments` added to the kernel's command line."""
        shutil.rmtree(self.results, ignore_errors=True)
        os.makedirs(self.results)
        with open(os.path.join(self.results, "config.json"), "w") as file:
            json.dump(config, file, indent=1)
        self.console = os.path.join(self.results, "console.log")
        self.began = time.monotonic()
        with open(self.console, "wb") as console:
            # A session of its own, so that every process of the VM can be ended at once.
            self._process = subprocess.Popen(
                [sys.executable, GUARD, *self._command([*config["append"], *arguments])], stdin=subprocess.PIPE, stdout=console,
                stderr=subprocess.STDOUT, start_new_session=True, env=self._environment(),
            )
        if self.processor is not None:
            # The guard has not started anything yet; if it has, that machine takes its time.
            os.sched_setaffinity(self._process.pid, {self.processor})

    def _environment(self):
        return dict(os.environ)

    def running(self):
        return self._process.poll() is None

    def seconds(self):
        return time.monotonic() - self.began

    def kill(self):
        """Ends the VM, whatever state it is in."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        self._process.stdin.close()

    def status(self):
        """The exit code of the guest's work, or None when it did not get that far."""
        try:
            with open(os.path.join(self.results, "status")) as file:
                return int(file.read())
        except (FileNotFoundError, ValueError):
            return None

    def read(self, name):
        """The text of a file in the results folder, or nothing."""
        try:
            with open(os.path.join(self.results, name), errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def new_lines(self, name):
        """The whole lines that a file in the results folder got since the last call."""
        begin = self._read.get(name, 0)
        try:
            with open(os.path.join(self.results, name), "rb") as file:
                file.seek(begin)
                fresh = file.read()
        except FileNotFoundError:
            return []
        fresh = fresh[:fresh.rfind(b"\n") + 1]
        self._read[name] = begin + len(fresh)
        return fresh.decode(errors="replace").splitlines()


class Uml(Vm):
    """User Mode Linux: the kernel is a program. Its memory takes none of the host's before it is used."""

    MEMORY = "1G"
    # Modules are behind the memory: behind so much, 32 bits do not reach from there to the kernel.
    FAR_MEMORY = "4G"

    def __init__(self, kernel, results, memory=MEMORY):
        super().__init__(os.path.join(kernel, "linux"), results)
        self._memory = memory
        self._scratch = tempfile.TemporaryDirectory(prefix="uml-")

    def _command(self, arguments):
        return [
            self.kernel, f"mem={self._memory}", f"uml_dir={self._scratch.name}", "rootfstype=hostfs", "rootflags=/", "ro",
            f"init={INIT}", f"DMTEST={self.results}", "con=null", "con0=null,fd:1", "ssl=null", "log_buf_len=4M",
            # System calls of its processes come by a filter of the host's instead of by ptrace, which costs several times as much.
            "panic=-1", "seccomp=auto", *arguments,
        ]

    def _environment(self):
        return dict(os.environ, TMPDIR=self._scratch.name) if not os.path.isdir("/dev/shm") else dict(os.environ)

    def kill(self):
        super().kill()
        self._scratch.cleanup()


class Virtme(Vm):
    """x86_64 in QEMU without KVM, started by virtme-ng.

    `qemu` are more options of QEMU's; `first` asks for precedence over other processes, which takes root; `nvme` is the
    size in bytes of an NVMe disk.
    """

    def __init__(self, kernel, results, vng, cpus=2, memory="2G", qemu=(), first=False, nvme=0):
        super().__init__(os.path.join(kernel, "arch", "x86", "boot", "bzImage"), results)
        self.vng = vng
        self._first = first
        self._nvme = nvme
        if nvme:
            qemu = [*qemu, f"-drive if=none,id=nvme,format=raw,file={self._disk()}", "-device nvme,serial=dmtest,drive=nvme"]
        self._machine = ["--cpus", str(cpus), "--memory", memory, *(f"--qemu-opts={option}" for option in qemu)]

    def _disk(self):
        return os.path.join(self.results, "nvme.img")

    def _environment(self):
        # vng starts a second program of its own from the path.
        folder = os.path.dirname(os.path.abspath(self.vng))
        return dict(os.environ, PATH=os.pathsep.join([folder, os.environ.get("PATH", "")]))

    def start(self, config, arguments=()):
        super().start(config, arguments)
        if self._first:
            try:
                os.setpriority(os.PRIO_PROCESS, self._process.pid, -15)
                # The kernel shares processors out among sessions before it does among processes.
                with open(f"/proc/{self._process.pid}/autogroup", "w") as file:
                    file.write("-15")
            except OSError:
                pass

    def _command(self, arguments):
        if self._nvme:
            with open(self._disk(), "wb") as file:
                file.truncate(self._nvme)
        # The disk's interrupts are shared, and QEMU may take longer to lower one than the kernel to ask a hundred thousand times.
        appended = [part for argument in ["noirqdebug", *arguments] for part in ("-a", argument)]
        return [
            self.vng, "-v", "--run", self.kernel, "--disable-kvm", *self._machine,
            f"--rwdir=/run/results={self.results}", *appended, "--", f"DMTEST={shlex.quote(self.results)} {shlex.quote(INIT)}",
        ]
