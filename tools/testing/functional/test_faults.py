# SPDX-License-Identifier: GPL-2.0
"""Disks that fail in many places and ways while a pool is worked on: nothing that was acknowledged is lost, nobody hangs.

Every step that succeeds must be there afterwards, when the disk works again and thin_check has cleared the flag that says that
the metadata need a check; steps that failed may have happened or not.
"""

import random
import subprocess
import time

import pytest

from dmtest import (
    history,
    metadata,
)
from dmtest.disk import (
    KIB,
    MIB,
    SECTOR,
)
from dmtest.dm import DmError
from dmtest.history import PAGE
from dmtest.watchdog import Watchdog
from dmtest.workload import (
    Steps,
    Workload,
)

METADATA = 4 * MIB
DATA = 64 * MIB
BLOCK = 64 * KIB
METADATA_SECTORS = 8

LOSES = pytest.mark.fault_of_c("a flush after a rollback can succeed")


class Trial:
    """A pool on disks that can fail, worked on at random; what it must hold is noted."""

    def __init__(self, make_pool, make_faulty, impl, seed, **options):
        # A message that cannot be committed succeeds in the C module, and discards succeed and do nothing in a pool that is read-only.
        self._may_be_lost = ("create", "snap", "delete", "discard") if impl == "c" else ("discard",)
        self.past = history.History()
        self.steps = Steps(self.past.begin, self._ended, self.past.fail)
        self.pool = make_pool(metadata=make_faulty(METADATA), data=make_faulty(DATA), **options)
        self.work = Workload(self.pool, self.steps, seed)
        self.errors = self.turns = 0
        for number in (1, 2):
            self.work.create(number)
        for _ in range(20):
            self.work.turn()
        for number in self.work.plain:
            self.work.flush(number)

    def _ended(self, number):
        if self.steps.steps[number]["what"] in self._may_be_lost and self.mode() != "rw":
            self.past.fail(number)
        else:
            self.past.end(number)

    def turn(self, count, watchdog):
        """Works, and does not mind errors."""
        for _ in range(count):
            watchdog.beat(f"turn {self.turns}: {self.pool.device.status(noflush=True)}")
            self.turns += 1
            try:
                self.work.turn()
            except OSError:
                self.errors += 1
                self._forget()

    def _forget(self):
        """Volumes that could not be deleted are left alone, as they are not active."""
        self.work.plain = [number for number in self.work.plain if number in self.pool.thins]
        if len(self.work.plain) < 1:
            raise AssertionError("no volume is left")

    def mode(self):
        words = self.pool.device.status(noflush=True).split()
        return words[4] if len(words) > 4 else words[0]

    def reopen(self):
        """Removes everything and activates it again, on disks as they are now."""
        self.pool.stop()
        self.pool.start()
        for number in self.work.plain:
            self.pool.activate(number, self.work.pages * PAGE)

    def repair(self):
        """On disks that work again: the flag is cleared, and everything must be there."""
        self.pool.metadata.heal()
        self.pool.data.heal()
        self.pool.stop()
        metadata.clear_needs_check(self.pool.metadata.path)
        self.check()

    def check(self):
        self.past.crash()
        there = {int(row[0]) for row in metadata.ls(self.pool.metadata.path)}
        self.pool.start()
        assert self.mode() == "rw", self.pool.device.status()
        assert not there - set(self.past.volumes), "volumes are there that were never made, or had been deleted"
        for number, volume in list(self.past.volumes.items()):
            assert number in there or not volume.certain, f"volume {number} is gone"
            if number not in there:
                del self.past.volumes[number]
                continue
            volume.certain, volume.leaving, volume.doubtful = True, False, set()
            thin = self.pool.activate(number, len(volume.pages) * PAGE)
            history.verify(f"volume {number}", volume, lambda page, count: thin.read(page * PAGE, count * PAGE), settle=True)
        self.work.plain = list(self.past.volumes)
        for number in self.work.plain[:2]:
            self.work.write(number)
            self.work.flush(number)


@pytest.fixture
def make_trial(make_pool, make_faulty, run):
    def make(seed, **options):
        return Trial(make_pool, make_faulty, run["impl"], seed, **options)

    return make


@pytest.fixture
def watchdog():
    with Watchdog(100) as dog:
        yield dog


def in_use(trial, choice, tmp_path):
    """Some metadata block without which thin_check is not content with the stopped pool."""
    image = trial.pool.metadata.contents()
    used = [block for block in range(METADATA // 4096) if any(image[block * 4096:(block + 1) * 4096])]
    path = str(tmp_path / "image")
    with open(path, "wb") as file:
        file.write(image)
    for block in choice.sample(used, len(used)):
        with open(path, "r+b") as file:
            file.seek(block * 4096)
            file.write(bytes(4096))
            file.flush()
            needed = subprocess.run(["thin_check", path], capture_output=True).returncode
            file.seek(block * 4096)
            file.write(image[block * 4096:(block + 1) * 4096])
        if needed:
            return block
    raise AssertionError("nothing is in use")


@pytest.mark.fault_of_c("metadata that cannot be read leave wrong reference counts")
@pytest.mark.seeds("fault_rounds", 1)
@pytest.mark.parametrize("writes", [False, True], ids=["reads", "both"])
def test_bad_metadata_blocks(make_trial, watchdog, settings, figures, progress, tmp_path, writes, seed):
    """A block of the metadata device that is in use cannot be read, or written either, while the pool is worked on."""
    trial = make_trial(seed)
    choice = random.Random(f"blocks {seed} {writes}")
    needed = not_opened = 0
    modes = {}
    most = settings("fault_blocks", 8)
    for turn in range(most):
        trial.pool.stop()
        block = in_use(trial, choice, tmp_path)
        before = trial.errors
        trial.pool.metadata.fail_sectors(block * METADATA_SECTORS, METADATA_SECTORS, writes=writes)
        try:
            trial.reopen()
            trial.turn(12, watchdog)
        except DmError:
            not_opened += 1
        watchdog.beat(f"block {block}")
        mode = trial.mode() if trial.pool.device else "none"
        modes[mode] = modes.get(mode, 0) + 1
        needed += trial.errors > before or mode != "rw"
        trial.repair()
        progress(f"faults: {turn + 1} of {most} blocks")
    assert set(modes) <= {"rw", "ro", "Fail", "none"}
    assert needed or most < 8, "nothing that failed was ever needed"
    figures(f"bad metadata blocks{', writes too' if writes else ''}", seed=seed, blocks=most, needed=needed, not_opened=not_opened,
            errors=trial.errors, **modes)


@pytest.mark.seeds("fault_rounds", 1)
@pytest.mark.parametrize("sectors", [METADATA_SECTORS, METADATA // SECTOR], ids=["superblock", "any"])
def test_metadata_write_that_fails(make_trial, watchdog, settings, figures, progress, sectors, seed):
    """A single write fails, of the superblock or whichever comes next. The pool is read-only, and keeps what it had promised."""
    trial = make_trial(seed)
    choice = random.Random(f"write {seed} {sectors}")
    most = settings("fault_blocks", 8)
    for turn in range(most):
        trial.turn(choice.randrange(15), watchdog)
        before = trial.errors
        trial.pool.metadata.fail_sectors(0, sectors, reads=False)
        end = time.monotonic() + 100
        while trial.errors == before and trial.mode() == "rw":
            assert time.monotonic() < end, "nothing was written"
            trial.turn(1, watchdog)
        trial.pool.metadata.heal()
        trial.turn(8, watchdog)
        assert trial.pool.status().mode == "ro" and trial.pool.status().needs_check, trial.pool.device.status()
        trial.repair()
        progress(f"faults: {turn + 1} of {most} writes")
    figures(f"metadata writes, {'the superblock' if sectors == METADATA_SECTORS else 'any'}", seed=seed, failed=most, errors=trial.errors)


@pytest.mark.seeds("fault_rounds", 1)
@pytest.mark.parametrize("device", [pytest.param("metadata", marks=LOSES), "data", pytest.param("either", marks=LOSES)])
@pytest.mark.parametrize("how", ["error_writes", "error_reads", ""], ids=["writes", "reads", "both"])
def test_disk_that_comes_and_goes(make_trial, watchdog, settings, figures, device, how, seed):
    """For a second it works, for the next one it does not."""
    trial = make_trial(f"{seed} {device}")
    disks = [getattr(trial.pool, name) for name in ("metadata", "data") if device in (name, "either")]
    for disk in disks:
        disk.come_and_go(1, 1, how)
    end = time.monotonic() + settings("fault_seconds", 2.5)
    while time.monotonic() < end:
        trial.turn(5, watchdog)
    mode = trial.mode()
    assert mode in ("rw", "ro", "Fail")
    if device == "data" and how == "error_reads":
        assert mode == "rw", "data that cannot be read are no reason to change the mode"
    trial.repair()
    figures(f"come and go, {device}, {how or 'both'}", seed=seed, turns=trial.turns, errors=trial.errors, **{mode: 1})


def test_dusty_metadata(make_trial, modules, watchdog):
    """Blocks that cannot be read fail what needs them, and nothing else once they can be read again; writing heals them."""
    modules.need("dm-dust")
    trial = make_trial("dust")
    trial.pool.stop()
    disk = trial.pool.metadata
    disk.become_dusty(4096)
    image = disk.contents()
    blocks = [block for block in range(1, METADATA // 4096) if any(image[block * 4096:(block + 1) * 4096])]
    for block in blocks:
        disk.device.message(f"addbadblock {block}")
    disk.device.message("enable")
    with pytest.raises(OSError):
        trial.pool.start()
    trial.pool.stop()
    disk.device.message("disable")
    trial.pool.start()
    disk.device.message("enable")
    # What opening the pool has read is known; the rest fails.
    errors = 0
    for number in trial.work.plain:
        try:
            trial.pool.activate(number, trial.work.pages * PAGE).read(0, BLOCK)
        except OSError:
            errors += 1
    assert errors == len(trial.work.plain), "mappings were found without being read"
    for block in blocks:
        disk.device.message(f"removebadblock {block}")
    trial.repair()


def test_dusty_data(make_trial, modules, watchdog):
    """A bad block fails its reads and what must copy it; it is good again once it is written."""
    modules.need("dm-dust")
    trial = make_trial("dusty data")
    one = trial.pool.thins[1]
    trial.work.choice = random.Random("dust")
    content = history.page_content(77000000, 0) * (BLOCK // PAGE)
    one.write(0, content)
    one.flush()
    trial.pool.data.become_dusty(SECTOR)
    block = metadata.mappings(trial.pool.dump())[1][0]
    for sector in range(block * BLOCK // SECTOR, block * BLOCK // SECTOR + 8):
        trial.pool.data.device.message(f"addbadblock {sector}")
    trial.pool.data.device.message("enable")
    with pytest.raises(OSError):
        one.read(0, PAGE)
    assert one.read(PAGE, PAGE) == content[:PAGE], "the rest of the block can be read"
    trial.pool.create_snap(900, 1)
    with pytest.raises(OSError):
        # The rest of the block would have to be copied.
        one.write(4 * PAGE, bytes(PAGE))
    assert one.read(4 * PAGE, PAGE) == content[:PAGE]
    assert trial.mode() == "rw"
    one.write(0, content)
    assert one.read(0, BLOCK) == content
    with pytest.raises(OSError):
        trial.pool.activate(900, trial.work.pages * PAGE).read(0, PAGE)
    trial.pool.data.device.message("disable")
    assert trial.pool.thins[900].read(0, BLOCK) == content


@pytest.mark.parametrize("byte", [1, 9, 40, 200, 4000])
def test_corrupt_metadata_reads(make_trial, watchdog, byte):
    """Checksums find every byte that is not what was written; nothing is lost by it."""
    trial = make_trial("corrupt")
    trial.pool.stop()
    trial.pool.metadata.turn_flakey(f"corrupt_bio_byte {byte} r 165 0")
    with pytest.raises(DmError):
        trial.pool.start()
    trial.pool.stop()
    trial.pool.metadata.heal()
    trial.reopen()
    trial.pool.metadata.turn_flakey(f"corrupt_bio_byte {byte} r 165 0")
    trial.turn(15, watchdog)
    trial.repair()


def test_writes_that_get_lost(make_trial, make_disk, watchdog, figures):
    """Disks that lie promise nothing, but harm no more than the pool; thin_repair gets a pool out of what there is, or says no."""
    repaired = 0
    for turn, device in enumerate(["data", "metadata"] * 3):
        trial = make_trial(f"lost {turn}")
        getattr(trial.pool, device).turn_flakey("drop_writes")
        trial.turn(20, watchdog)
        trial.pool.stop()
        trial.pool.metadata.heal()
        trial.pool.data.heal()
        if device == "data":
            trial.pool.check()
        spare = make_disk(METADATA)
        done = subprocess.run(["thin_repair", "-i", trial.pool.metadata.path, "-o", spare.path], capture_output=True, text=True)
        watchdog.beat("thin_repair")
        if done.returncode == 0:
            trial.pool.metadata = spare
            trial.pool.start()
            assert trial.mode() == "rw"
            for number in metadata.mappings(trial.pool.dump()):
                trial.pool.activate(number, trial.work.pages * PAGE).read()
            repaired += 1
        else:
            metadata_disk = trial.pool.metadata
            metadata_disk.disk.overwrite(0, spare.contents())
    assert repaired >= 3, "what dropped no metadata can be repaired"
    figures("lost writes", pools=turn + 1, repaired=repaired)


def test_stretches_of_bad_data(make_trial, watchdog, figures):
    """A bad stretch of the data device fails the writes that go there, and those only; its blocks are used again afterwards."""
    trial = make_trial("stretch")
    sectors = DATA // SECTOR
    for start in range(0, sectors, sectors // 8):
        trial.pool.data.fail_sectors(start, sectors // 8, reads=False)
        trial.turn(10, watchdog)
        assert trial.mode() == "rw", "no metadata and no flush have failed"
    trial.repair()
    figures("stretches of data", turns=trial.turns, errors=trial.errors)
