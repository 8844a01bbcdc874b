# SPDX-License-Identifier: GPL-2.0
"""Random work on a pool whose every step is noted at its begin and its end, so that it can be cut off at any moment."""

import os
import random
import subprocess
import threading
from contextlib import contextmanager

from . import history
from .disk import MIB
from .history import PAGE

MAKE = {"ext4": ["mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"], "xfs": ["mkfs.xfs", "-q", "-K"]}
CHECK = {"ext4": ["e2fsck", "-fn"], "xfs": ["xfs_repair", "-n", "-o", "force_geometry"]}
MOUNT = {"ext4": "defaults", "xfs": "nouuid"}

# mkfs.xfs makes file systems of less than 300 MiB for its own tests only.
SMALL_XFS = {"TEST_DIR": "yes", "TEST_DEV": "yes", "QA_CHECK_FS": "yes"}

BLOCK_PAGES = 16


def command(*words):
    done = subprocess.run(words, capture_output=True, text=True, env=dict(os.environ, **SMALL_XFS))
    assert done.returncode == 0, f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout[-1500:]}{done.stderr[-1500:]}"
    return done.stdout


def make_file_system(kind, path):
    command(*MAKE[kind], path)


@contextmanager
def mounted(kind, path, folder):
    os.makedirs(folder, exist_ok=True)
    command("mount", "-t", kind, "-o", MOUNT[kind], path, folder)
    try:
        yield folder
    finally:
        command("umount", folder)


class Steps:
    """Numbers the steps and notes them; `begun(number, step)` and `ended(number)`, or else `failed(number)`, are told."""

    def __init__(self, begun, ended, failed=lambda number: None):
        self._begun = begun
        self._ended = ended
        self._failed = failed
        self._lock = threading.Lock()
        self._number = 0
        self.steps = {}

    @contextmanager
    def step(self, what, volume, **more):
        """Around the step itself."""
        step = {"what": what, "volume": volume, **more}
        with self._lock:
            self._number += 1
            number = self._number
            self.steps[number] = step
            self._begun(number, step)
        try:
            yield number
        except OSError:
            with self._lock:
                self._failed(number)
            raise
        with self._lock:
            self._ended(number)


class Workload:
    """Works on the pages of some volumes, and on the pool. Volumes with a file system get snapshots, too."""

    def __init__(self, pool, steps, seed, pages=512, most=6):
        self.pool = pool
        self.steps = steps
        self.choice = random.Random(str(seed))
        self.pages = pages
        self.most = most
        self.plain = []
        # Of volumes with a file system, its kind.
        self.systems = {}
        # Whoever holds it may take names out of a file system.
        self.names = threading.Lock()
        self.version = 0
        self._id = 100

    def next_version(self):
        self.version += 1
        return self.version

    def next_id(self):
        """A thin id that no volume has."""
        while True:
            self._id = self._id % 1000000 + 1
            if self._id > 100 and self._id not in self.plain and self._id not in self.systems:
                return self._id

    def create(self, number, pages=None):
        pages = self.pages if pages is None else pages
        with self.steps.step("create", number, pages=pages):
            self.pool.create_thin(number)
        self.pool.activate(number, pages * PAGE)
        self.plain.append(number)

    def create_system(self, number, kind, size):
        """A volume with a file system; nobody may ask for its pages."""
        with self.steps.step("create", number, pages=0):
            self.pool.create_thin(number)
        make_file_system(kind, self.pool.activate(number, size).path)
        self.systems[number] = kind

    def _range(self):
        page = self.choice.randrange(self.pages)
        return page, self.choice.randint(1, min(self.pages - page, self.choice.choice((1, 4, 40))))

    def write(self, number, stable=False):
        page, count = self._range()
        version = self.next_version()
        data = b"".join(history.page_content(version, each) for each in range(page, page + count))
        with self.steps.step("write", number, page=page, count=count, version=version, stable=stable):
            self.pool.thins[number].write(page * PAGE, data, os.O_DSYNC if stable else 0)

    def write_pages(self, number, pages):
        """Writes these pages anew, and makes the volume stable."""
        for page in pages:
            version = self.next_version()
            with self.steps.step("write", number, page=page, count=1, version=version):
                self.pool.thins[number].write(page * PAGE, history.page_content(version, page))
        self.flush(number)

    def flush(self, number):
        with self.steps.step("flush", number):
            self.pool.thins[number].flush()

    def discard(self, number):
        block = self.choice.randrange(self.pages // BLOCK_PAGES)
        count = self.choice.randint(1, min(4, self.pages // BLOCK_PAGES - block))
        with self.steps.step("discard", number, page=block * BLOCK_PAGES, count=count * BLOCK_PAGES):
            self.pool.thins[number].discard(block * BLOCK_PAGES * PAGE, count * BLOCK_PAGES * PAGE)

    def snap(self, number, origin):
        with self.names, self.steps.step("snap", number, origin=origin):
            self.pool.create_snap(number, origin)
        if origin in self.systems:
            self.systems[number] = self.systems[origin]
        else:
            self.pool.activate(number, self.pages * PAGE)
            self.plain.append(number)

    def delete(self, number):
        if number in self.pool.thins:
            self.pool.thins[number].remove()
        with self.steps.step("delete", number):
            self.pool.delete(number)
        if number in self.systems:
            del self.systems[number]
        elif number in self.plain:
            self.plain.remove(number)

    def turn(self):
        """One step, whichever comes."""
        what = self.choice.choices(
            ("write", "stable", "flush", "discard", "snap", "delete", "reserve", "system"), (40, 6, 14, 6, 5, 4, 3, 2),
        )[0]
        if what == "snap" and len(self.plain) < self.most:
            self.snap(self.next_id(), self.choice.choice(self.plain))
        elif what == "system" and self.systems:
            snaps = [number for number in self.systems if number not in self.pool.thins]
            if len(snaps) >= 3:
                self.delete(self.choice.choice(snaps))
            else:
                live = [number for number in self.systems if number in self.pool.thins]
                self.snap(self.next_id(), self.choice.choice(live))
        elif what == "delete" and len(self.plain) > 2:
            self.delete(self.choice.choice(self.plain))
        elif what == "reserve":
            # A pool that has failed has no such word.
            held = self.pool.device.status().split()[3:4]
            self.pool.message("reserve_metadata_snap" if held in ([], ["-"]) else "release_metadata_snap")
        elif what == "discard":
            self.discard(self.choice.choice(self.plain))
        elif what == "flush":
            self.flush(self.choice.choice(self.plain))
        else:
            self.write(self.choice.choice(self.plain), what == "stable")


class Files:
    """Writes files into a mounted folder in a thread of its own; each is synced, and older ones make room."""

    def __init__(self, workload, number, folder, seed, first=0):
        self._workload = workload
        self._number = number
        self._folder = folder
        self._choice = random.Random(f"files {seed} {number}")
        self._first = first
        self._stop = threading.Event()
        self._error = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.written = 0

    def start(self):
        self._thread.start()
        return self

    def _run(self):
        try:
            while not self._stop.is_set():
                self._one()
        except Exception as error:
            self._error = error

    def _one(self):
        version = f"{self._number}.{self._first + self.written}"
        name = f"file{self._first + self.written}"
        length = self._choice.choice((100, 5000, 70000))
        path = os.path.join(self._folder, name)
        with self._workload.steps.step("file", self._number, name=name, version=version, length=length):
            with open(path, "wb") as file:
                file.write(history.file_content(version, length))
                file.flush()
                os.fsync(file.fileno())
            folder = os.open(self._folder, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        self.written += 1
        names = sorted((name for name in os.listdir(self._folder) if name.startswith("file")), key=lambda name: int(name[4:]))
        for old in names[:-20]:
            with self._workload.names, self._workload.steps.step("unlink", self._number, name=old):
                os.unlink(os.path.join(self._folder, old))

    def check(self):
        """Raises what the thread died of."""
        if self._error:
            raise self._error

    def finish(self):
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "a writer of files hangs"
        self.check()


SYSTEM_SIZES = {"ext4": 24 * MIB, "xfs": 24 * MIB}
