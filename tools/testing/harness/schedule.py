# SPDX-License-Identifier: GPL-2.0
"""Plays suites: all parts of all of them wait in one queue for the processors. Their lines are shown as they come, and counted."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

from . import cores, passes

GUARD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "guard.py")
COUNTS = re.compile(r"(?:^|[^0-9])([0-9]+) passed[,;] ([0-9]+) failed")
# What a part takes of which nothing is known.
USUAL = 100


class Unbuilt(Exception):
    """What a part needs could not be built."""


class Processes:
    """The commands at work. None outlives this process; all of them end by end()."""

    def __init__(self):
        self._running = set()
        self._lock = threading.Lock()
        self._ended = False

    def run(self, command, folder, environment, show):
        """Runs a command; gives its exit code, its seconds and those of a processor. `show` is given each of its lines."""
        began = time.monotonic()
        with self._lock:
            if self._ended:
                return 1, 0, 0
            process = subprocess.Popen(
                [sys.executable, GUARD, *command], cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, start_new_session=True, text=True, errors="replace",
            )
            self._running.add(process)
        for line in process.stdout:
            show(line.rstrip("\n"))
        _, status, usage = os.wait4(process.pid, 0)
        with self._lock:
            self._running.discard(process)
            # Whatever it has left behind in its group ends as well.
            process.stdin.close()
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, time.monotonic() - began, usage.ru_utime + usage.ru_stime

    def end(self):
        """Ends all, first asking them to."""
        with self._lock:
            self._ended = True
            running = set(self._running)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in running:
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    pass
            end = time.monotonic() + 5
            while running & self._running and time.monotonic() < end:
                time.sleep(0.05)


class Suite:
    """What is known of a suite: counts, seconds, and its lines, which go to a log, too."""

    def __init__(self, name, logs):
        self.name = name
        self.passed = self.failed = self.unchanged = 0
        self.seconds = self.processor = 0.0
        self.lines = []
        self._log = open(os.path.join(logs, f"{name}.log"), "w")
        self._lock = threading.Lock()

    def show(self, line):
        with self._lock:
            self.lines.append(line)
            print(line, file=self._log, flush=True)
            print(f"{self.name}: {line}", flush=True)

    def add(self, passed, failed, unchanged=0, processor=0.0):
        with self._lock:
            self.passed += passed
            self.failed += failed
            self.unchanged += unchanged
            self.processor += processor

    def row(self):
        """Its line of the table."""
        counts = f"{self.passed:5} passed, {self.failed} failed"
        return f"{self.name:11} {counts} in {self.seconds:.0f} s, {self.processor:.0f} s of a processor"


class Schedule:
    """Plays the suites that `suites` makes, each with a thread for each of its parts."""

    def __init__(self, top, environment, logs, passes_folder, fresh):
        self._top = top
        self._logs = logs
        self._processes = Processes()
        self._passes = passes.Passes(passes_folder, fresh)
        self._times = os.path.join(logs, "parts.times")
        self._took = read(self._times)
        self._lock = threading.Lock()
        # cargo's builds wait for each other anyway, but nothing else needs to wait for them.
        self._building = {kind: threading.Lock() for kind in ("module", "cargo")}
        self._built = {}
        self._here = threading.local()
        queue = cores.Queue()
        queue.start()
        self._queue = queue
        self._environment = {**environment, cores.VARIABLE: queue.path}
        os.environ[cores.VARIABLE] = queue.path

    def build(self, *command):
        """Builds something, once; gives the last line that the command prints to standard output. One of each kind after the other."""
        with self._building["module" if command[0] == "scripts/module" else "cargo"]:
            if command not in self._built:
                lines = []
                # What it says goes to the log; what it prints is the answer.
                script = 'exec 3>&1; answer=$("$@" 2>&3) || exit; echo "answer: $answer"'
                suite = self._here.suite

                def show(line):
                    lines.append(line)
                    if not line.startswith("answer: "):
                        suite.show(line)

                status, _, processor = self._processes.run(["bash", "-c", script, "build", *command], self._top, self._environment, show)
                suite.add(0, 0, processor=processor)
                answers = [line.removeprefix("answer: ") for line in lines if line.startswith("answer: ")]
                self._built[command] = answers[-1] if status == 0 and answers else None
            if self._built[command] is None:
                raise Unbuilt(f"{' '.join(command)} failed")
            return self._built[command]

    def play(self, suites, names):
        """Plays the suites of these names at once; gives them as they end."""
        ended = []
        turn = threading.Condition()

        def one(name):
            suite = Suite(name, self._logs)
            began = time.monotonic()
            try:
                threads = [threading.Thread(target=self._guarded, args=(suites, suite, part)) for part in suites.parts(name)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            except Exception as error:  # Whatever it is, the other suites go on.
                suite.show(f"{type(error).__name__}: {error}")
                suite.add(0, 1)
            if not suite.passed and not suite.failed:
                suite.add(0, 1)
            suite.seconds = time.monotonic() - began
            with turn:
                ended.append(suite)
                turn.notify()

        for name in names:
            threading.Thread(target=one, args=(name,), daemon=True).start()
        for _ in names:
            with turn:
                turn.wait_for(lambda: ended)
                suite = ended.pop(0)
            yield suite
        self._passes.forget()

    def _guarded(self, suites, suite, part):
        self._here.suite = suite
        try:
            self._part(suites, suite, part)
        except Unbuilt as error:
            suite.show(f"{part.name}: {error}")
            suite.add(0, 1)
        except Exception as error:
            suite.show(f"{part.name}: {type(error).__name__}: {error}")
            suite.add(0, 1)

    def _part(self, suites, suite, part):
        key = suites.key(part)
        before = self._passes.find(key) if key else None
        if before:
            suite.show(f"{part.name}: unchanged, {before['passed']} passed")
            suite.add(before["passed"], 0, before["passed"])
            return
        command = part.command()
        lines = []

        def show(line):
            lines.append(line)
            suite.show(line)

        if part.places:
            # Who has a place does not wait for another one.
            environment = {name: value for name, value in self._environment.items() if name != cores.VARIABLE}
            with cores.Place(part.places, self._took.get(part.name, USUAL)) as place:
                if place.processor is not None:
                    environment[cores.PROCESSOR] = str(place.processor)
                status, seconds, processor = self._processes.run(command, self._top, environment, show)
        else:
            status, seconds, processor = self._processes.run(command, self._top, self._environment, show)
        passed, failed, unchanged = tally(lines)
        if part.single:
            passed, failed = (1, 0) if status == 0 else (0, 1)
        if not failed and (status != 0 or not passed):
            failed = 1
        suite.add(passed, failed, unchanged, processor)
        if not failed:
            with self._lock:
                self._took[part.name] = round(seconds, 1)
                write(self._times, self._took)
            # What was changed while it ran is not what passed.
            if key and suites.key(part) == key:
                self._passes.keep(key, {"passed": passed})

    def end(self):
        self._processes.end()


def tally(lines):
    """What the last line that tells of it says: how many passed, failed, and were unchanged."""
    for line in reversed(lines):
        found = COUNTS.search(line)
        if found:
            unchanged = re.search(r"of these ([0-9]+) unchanged", line)
            return int(found[1]), int(found[2]), int(unchanged[1]) if unchanged else 0
    return 0, 0, 0


def read(path):
    try:
        with open(path) as file:
            return json.load(file)
    except (FileNotFoundError, ValueError):
        return {}


def write(path, value):
    with open(f"{path}.new", "w") as file:
        json.dump(value, file, indent=0)
    os.replace(f"{path}.new", path)
