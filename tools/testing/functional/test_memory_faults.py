# SPDX-License-Identifier: GPL-2.0
"""Allocations that fail, each in its turn: the call that needed it fails with ENOMEM, or does without.

Nothing hangs, what was made stable stays, the metadata are sound, and the pool goes on, at the latest once it was
checked and activated anew. That nothing was lost on the way out of a function is for kmemleak to tell, at the end of the
virtual machine.

A run takes some of the allocations: `--set memory_faults=N` takes so many of each call, and all if there are no more.
"""

import errno
import itertools

import pytest

from dmtest import (
    allocations,
    metadata,
)
from dmtest.background import Background
from dmtest.content import (
    Content,
    pattern,
)
from dmtest.disk import (
    KIB,
    MIB,
)

pytestmark = pytest.mark.skipif(not allocations.are_there(), reason="this kernel has no failing allocations")

BLOCK = 64 * KIB
SIZE = 8 * MIB
# A prime, so that its multiples reach all of fewer allocations.
STRIDE = 10007
COUNTDOWNS = {kind: allocations.Countdown(kind) for kind in allocations.KINDS}


@pytest.fixture
def most(settings):
    """How many allocations of each call fail."""
    return settings("memory_faults", 10)


@pytest.fixture
def tally(request, figures):
    """Counts what became of the faults, for the run's figures."""
    counts = dict.fromkeys(("allocations", "faults", "hidden", "refused", "repaired"), 0)
    yield counts
    figures(request.node.name, **counts)


def choose(count, few, last):
    """Which of `count` allocations fail: some, and the last ones among them."""
    if count <= few + last:
        return range(1, count + 1)
    first = {1 + index * (count - last) // few for index in range(few)}
    return sorted(first | set(range(count - last + 1, count + 1)))


def others(count, chosen):
    """Those of `count` allocations that are not chosen, each far from the one before."""
    return (1 + index * STRIDE % count for index in range(count) if 1 + index * STRIDE % count not in chosen)


class World:
    """A pool with a volume whose content is stable."""

    def __init__(self, pool, tally):
        self.pool = pool
        self.tally = tally
        self.one = Content(pool.new_thin(0, SIZE))
        self.one.write(0, MIB)
        self.one.thin.flush()
        self.ids = itertools.count(100)

    def attempt(self, action, allowed=(errno.ENOMEM,)):
        """Whether it succeeded; if not it must be for lack of memory."""
        try:
            action()
        except OSError as error:
            assert error.errno in allowed, error
            self.tally["refused"] += 1
            return False
        self.tally["hidden"] += 1
        return True

    def mend(self):
        """Has the pool checked and activated anew if it has stopped working, which it must say then."""
        words = self.pool.device.status(noflush=True).split()
        if words != ["Fail"]:
            assert words[4] in ("rw", "ro"), words
            if words[4] == "rw":
                return
            assert "needs_check" in words, words
        self.tally["repaired"] += 1
        self.pool.stop()
        metadata.clear_needs_check(self.pool.metadata.path)
        self.pool.start()
        self.one = self.one.on(self.pool.activate(0, SIZE))

    def verify(self):
        self.one.verify()
        assert self.pool.status().mode == "rw"


@pytest.fixture
def world(make_pool, tally):
    made = World(make_pool(metadata_size=4 * MIB, data_size=32 * MIB), tally)
    allocations.watch()
    return made


@pytest.mark.parametrize("how", ["format", "open"])
def test_creation_of_a_pool(make_pool, run, kernel, most, tally, how):
    """It fails with ENOMEM and a reason, and leaves nothing behind: the next one succeeds."""
    pool = make_pool(metadata_size=4 * MIB, data_size=32 * MIB)
    allocations.watch()
    pool.stop()

    def prepare():
        if how == "format":
            pool.metadata.overwrite(0, bytes(4096))

    prepare()
    tally["allocations"] = allocations.count(pool.start)
    pool.stop()
    kernel.lines()
    # What comes early takes hundreds of allocations, what comes late a few. The C module has other reasons in between.
    wanted = {"Error creating pool's kcopyd client"}
    if run["impl"] != "c":
        wanted.add("Out of memory")
        if how == "open":
            # The last allocations fail one by one here.
            wanted |= {"Error creating metadata object", "Error creating pool's workqueue", "Error allocating memory for pool"}
    reasons = set()
    chosen = choose(tally["allocations"], most, 4 if how == "format" else 48)
    for number in itertools.chain(chosen, others(tally["allocations"], chosen)):
        if number not in chosen and wanted <= reasons:
            break
        prepare()
        with allocations.nth(number) as fault:
            try:
                pool.start()
                tally["hidden"] += 1
            except OSError as error:
                assert error.errno == errno.ENOMEM, f"{number}: {error}"
                tally["refused"] += 1
        tally["faults"] += fault.injected
        reasons |= {(line.split("thin-pool: ")[1].split(" (")[0]) for line in kernel.lines() if "thin-pool: " in line}
        pool.stop()
    assert tally["faults"]
    assert wanted <= reasons, reasons
    pool.start()
    assert pool.status().mode == "rw"


# Each makes ready what it needs with nothing failing, and gives what shall be done and undone.
def create_thin(world):
    thin_id = next(world.ids)
    return lambda: world.pool.create_thin(thin_id), lambda: world.pool.delete(thin_id)


def create_snap(world):
    thin_id = next(world.ids)
    world.one.thin.suspend()
    return lambda: world.pool.message(f"create_snap {thin_id} 0"), lambda: world.pool.delete(thin_id)


def delete(world):
    thin_id = next(world.ids)
    world.pool.create_snap(thin_id, 0)
    return lambda: world.pool.delete(thin_id), lambda: None


def set_transaction_id(world):
    now = world.pool.status().transaction_id
    return lambda: world.pool.message(f"set_transaction_id {now} {now + 1}"), lambda: None


def reserve(world):
    return lambda: world.pool.message("reserve_metadata_snap"), world.pool.release_metadata_snap


def release(world):
    world.pool.reserve_metadata_snap()
    return world.pool.release_metadata_snap, lambda: None


def activate(world):
    thin_id = next(world.ids)
    world.pool.create_snap(thin_id, 0)

    def undo():
        world.pool.thins[thin_id].remove()
        world.pool.delete(thin_id)

    return lambda: world.pool.activate(thin_id, SIZE), undo


def deactivate(world):
    thin = world.pool.activate(0, SIZE) if 0 not in world.pool.thins else world.one.thin
    return thin.remove, lambda: setattr(world, "one", world.one.on(world.pool.activate(0, SIZE)))


def status(world):
    # So that it has something to commit.
    world.one.discard(2 * MIB, BLOCK)
    world.one.write(2 * MIB, BLOCK)
    return lambda: (world.pool.device.status(), world.one.thin.status()), lambda: None


def table(world):
    return lambda: (world.pool.device.table(), world.one.thin.table()), lambda: None


def read(world):
    """Look-ups fill the cache of mappings anew."""
    world.one.thin.remove()
    world.one = world.one.on(world.pool.activate(0, SIZE))
    return lambda: world.one.thin.read(0, 2 * MIB), lambda: None


def suspend_and_resume(world):
    def run():
        world.pool.device.suspend()
        world.pool.device.resume()

    return run, lambda: None


def reload(world):
    world.pool.low_water += 1
    return lambda: world.pool.device.reload(world.pool.table()), lambda: None


def grow(world):
    world.pool.data.grow(world.pool.data.size + MIB)
    world.pool.metadata.grow(world.pool.metadata.size + 64 * KIB)
    return lambda: world.pool.device.reload(world.pool.table()), lambda: None


# The C module loses a block of the metadata, which thin_check finds.
NOT_IN_C = pytest.mark.named_addition
CALLS = [
    create_thin, create_snap, delete, set_transaction_id, reserve, pytest.param(release, marks=NOT_IN_C), activate, deactivate, status,
    table, read, suspend_and_resume, reload, grow,
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_calls(world, kernel, most, tally, call):
    """What device-mapper is asked for by a program, which is told ENOMEM."""
    kernel.lines()
    run, undo = call(world)
    tally["allocations"] = allocations.count(run)
    settle(world)
    undo()
    for number in choose(tally["allocations"], most - most // 2, most // 2):
        run, undo = call(world)
        with allocations.nth(number) as fault:
            succeeded = world.attempt(run, (errno.EIO,) if call is read else (errno.ENOMEM,))
        settle(world)
        if succeeded:
            undo()
        world.mend()
        # Not each run makes as many allocations.
        tally["faults"] += fault.injected
    assert tally["faults"] or not tally["allocations"]
    world.verify()
    if call is activate and tally["refused"]:
        assert any(": thin: Out of memory" in line for line in kernel.lines())


def settle(world):
    """Nothing is left suspended."""
    for device in (world.pool.device, *world.pool.thins.values()):
        device.resume()


def write_new(world):
    """Provisions blocks, in part and whole."""
    world.one.discard(4 * MIB, MIB)
    world.one.thin.flush()
    return [("write", 4 * MIB, 4 * KIB), ("write", 4 * MIB + BLOCK, BLOCK), ("write", 4 * MIB + 4 * BLOCK, 4 * BLOCK)]


def write_shared(world):
    """Breaks sharing."""
    world.one.write(4 * MIB, 8 * BLOCK)
    thin_id = next(world.ids)
    world.pool.create_snap(thin_id, 0)
    return [("write", 4 * MIB, 4 * KIB), ("write", 4 * MIB + 2 * BLOCK, BLOCK)]


def discard(world):
    """Unmaps blocks of which some are shared."""
    world.one.write(4 * MIB, 8 * BLOCK)
    thin_id = next(world.ids)
    world.pool.create_snap(thin_id, 0)
    world.one.write(4 * MIB, 2 * BLOCK)
    world.one.thin.flush()
    return [("discard", 4 * MIB, 8 * BLOCK)]


@pytest.mark.parametrize("kind", allocations.KINDS)
@pytest.mark.parametrize("change", [write_new, write_shared, pytest.param(discard, marks=NOT_IN_C)], ids=lambda change: change.__name__)
def test_changes(world, most, tally, change, kind):
    """I/O that the pool's worker has to do with: it succeeds, or fails alone."""
    for number in range(1, most + 1):
        steps = change(world)
        with COUNTDOWNS[kind](number) as injected:
            done = [world.attempt(lambda: getattr(world.one, how)(offset, length), (errno.EIO, errno.ENOMEM)) for how, offset, length in steps]
            world.attempt(world.one.thin.flush, (errno.EIO, errno.ENOMEM))
            was_injected = injected()
        world.mend()
        for (how, offset, length), succeeded in zip(steps, done):
            if not succeeded:
                world.one.write(offset, length)
        world.one.thin.flush()
        if not was_injected:
            break
        tally["faults"] += 1
    assert tally["faults"] > 1
    world.verify()


# More than the pool keeps memory for.
MANY = 100


@pytest.mark.parametrize("shape", ["whole blocks", "parts", "shared blocks", "without zeroing"])
def test_new_blocks_come_from_what_is_kept(make_pool, shape):
    """Nothing is to be had without waiting, and the worker does not wait: what is kept goes round."""
    features = ["skip_block_zeroing"] if shape == "without zeroing" else []
    pool = make_pool(metadata_size=4 * MIB, data_size=64 * MIB, features=features)
    content = Content(pool.new_thin(0, SIZE))
    if shape == "shared blocks":
        content.write(0, SIZE)
        pool.create_snap(1, 0)
    allocations.watch()
    with allocations.failing(*allocations.KINDS, waiting=False):
        if shape == "whole blocks":
            content.write(0, SIZE)
        else:
            data = {block * BLOCK: pattern(block, 4 * KIB) for block in range(MANY)}
            writes = [Background(lambda offset=offset: content.thin.write(offset, data[offset])) for offset in data]
            assert all(write.outcome(120) == "ok" for write in writes)
            for offset, bytes_ in data.items():
                content.data[offset:offset + len(bytes_)] = bytes_
        content.thin.flush()
    assert content.thin.mapped_blocks() == (SIZE // BLOCK if shape in ("whole blocks", "shared blocks") else MANY)
    if shape != "without zeroing":
        content.verify()
    assert pool.status().mode == "rw"


@NOT_IN_C
def test_discards_without_memory(world):
    """They unmap blocks though there is no memory to pass them down; writes behind them go on."""
    one = world.one
    one.write(0, SIZE)
    with allocations.failing(*allocations.KINDS, waiting=False):
        one.discard(0, SIZE // 2)
        one.write(MIB, MIB)
        one.thin.flush()
    assert one.thin.mapped_blocks() == (SIZE // 2 + MIB) // BLOCK
    world.verify()


def test_volumes_need_no_memory_in_one_piece(make_pool):
    """Many are activated where there are no four pages in a row, and do their work."""
    # More than two pages can hold what is known of; objects of one page take two in a debug kernel.
    count = 300
    pool = make_pool(metadata_size=8 * MIB, data_size=64 * MIB)
    for number in range(count):
        pool.create_thin(number)
    allocations.watch()
    with allocations.failing("fail_page_alloc", min_order=2):
        for number in range(count):
            pool.activate(number, MIB)
    for number in (0, count // 2, count - 1):
        content = Content(pool.thins[number])
        content.write(0, MIB)
        content.verify()
