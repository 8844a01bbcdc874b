# SPDX-License-Identifier: GPL-2.0
"""A commit fails while others change the metadata, or look into them: nothing of the lost transaction is left, and what
was committed before can be read all the time.
"""

import pytest

from dmtest import (
    ioctl,
    metadata,
)
from dmtest.background import (
    Background,
    wait_until,
)
from dmtest.content import (
    Content,
    pattern,
)
from dmtest.disk import (
    KIB,
    MIB,
)

BLOCK = 64 * KIB
SIZE = 8 * MIB
BLOCKS = 16
CACHE = "/sys/module/dm_thin_pool/parameters/mapping_cache_pages"


@pytest.fixture(autouse=True)
def nothing_goes_on(make_pool):
    """Whatever becomes of a test, its threads end before its pools do."""
    yield
    for one in Forever.all:
        one.stop()
    Forever.all.clear()


@pytest.fixture
def without_cache():
    """Each mapping is looked up in the metadata, as if there were too many to be kept."""
    with open(CACHE) as parameter:
        usual = parameter.read()
    with open(CACHE, "w") as parameter:
        parameter.write("0")
    yield
    with open(CACHE, "w") as parameter:
        parameter.write(usual)


def commit(pool, urgent=False):
    """Somebody looks at the pool's status, for which it commits."""
    return Background(lambda: ioctl.call(ioctl.TABLE_STATUS, pool.name, size=ioctl.SMALL_BUFFER_SIZE), urgent)


def mode(pool):
    return pool.device.status(noflush=True).split()[4:5]


def fail_nodes(pool):
    """The tree cannot be written."""
    pool.metadata.fail("write")
    pool.metadata.let_pass("flush")


def fail_first_flush(pool):
    """The tree is written, but cannot be made stable."""
    pool.metadata.wait_for("flush")
    pool.metadata.fail("flush")
    pool.metadata.release()


def fail_superblock(pool):
    """The tree is stable when the superblock cannot be written."""
    pool.metadata.wait_for("flush")
    pool.metadata.fail("write")
    pool.metadata.let_pass("flush")


def fail_second_flush(pool):
    """The superblock is written, but cannot be made stable."""
    pool.metadata.wait_for("flush")
    pool.metadata.hold("write")
    pool.metadata.release()
    pool.metadata.wait_for("write")
    pool.metadata.fail("flush")
    pool.metadata.let_pass("write")


def fail_data(pool):
    """The data cannot be made stable."""
    pool.data.fail("flush")
    pool.metadata.let_pass("flush")


FAULTS = [fail_nodes, fail_first_flush, fail_superblock, fail_second_flush, fail_data]


def start(make_pool, make_gate, volumes):
    pool = make_pool(metadata=make_gate(4 * MIB), data=make_gate(64 * MIB), features=["skip_block_zeroing"])
    contents = [Content(pool.new_thin(thin_id, SIZE)) for thin_id in range(volumes)]
    for content in contents:
        content.write(0, BLOCKS * BLOCK)
        content.thin.flush()
    return pool, contents


def heal(pool):
    pool.metadata.heal()
    pool.data.heal()


class Forever:
    """`action(turn)` again and again until finish(), whatever comes of it; finish() gives the first error."""

    all = []

    def __init__(self, action):
        Forever.all.append(self)
        self._stop = False
        self._error = None
        self.turns = 0

        def run():
            while not self._stop:
                try:
                    action(self.turns)
                except OSError as error:
                    self._error = self._error or error
                self.turns += 1

        self._thread = Background(run)

    def stop(self):
        self._stop = True

    def finish(self):
        self.stop()
        assert self._thread.outcome() == "ok"
        return self._error


def change(content, length):
    """Changes a volume again and again: new blocks, some of which are flushed, and discards."""
    def action(turn):
        offset = (BLOCKS + turn % (SIZE // BLOCK - BLOCKS)) * BLOCK
        content.thin.write(offset, pattern(turn, length))
        if turn % 8 == 7:
            content.thin.flush()
        if turn % 4 == 3:
            content.thin.discard(offset, BLOCK)

    return Forever(action)


def read(content):
    """Reads what was committed again and again."""
    def action(turn):
        offset = turn * 3 % BLOCKS * BLOCK
        assert content.thin.read(offset, 4 * KIB) == content.data[offset:offset + 4 * KIB]

    return Forever(action)


@pytest.mark.fault_of_c("commits that fail one after the other make the pool fail for good")
@pytest.mark.parametrize("fault", FAULTS)
def test_commit_fails_among_changes(make_pool, make_gate, without_cache, fault):
    """Several volumes are provisioned and read meanwhile."""
    pool, contents = start(make_pool, make_gate, 4)
    for turn in range(3):
        # The first change makes stable what was found at the start, and nobody can look into the metadata meanwhile. And the worker
        # does the look-ups of what is not in memory.
        pool.create_thin(100 + turn)
        for content in contents:
            content.thin.read(0, BLOCKS * BLOCK)
        before = metadata.devices(metadata.dump(pool.metadata.copy("before")))
        reading = [read(content) for content in contents]
        wait_until(lambda: all(one.turns for one in reading), "somebody reads")
        pool.metadata.hold("flush")
        changing = [change(content, 4 * KIB if number % 2 else BLOCK) for number, content in enumerate(contents)]
        looking = commit(pool, urgent=turn % 2 == 0)
        fault(pool)
        wait_until(lambda: mode(pool) == ["ro"], "read-only mode")
        # Now everything could be written.
        heal(pool)
        enough = [one.turns + 10 for one in reading]
        wait_until(lambda: all(one.turns > turns for one, turns in zip(reading, enough)), "the reads go on")
        for one in changing:
            one.finish()
        errors = [one.finish() for one in reading]
        assert looking.outcome() == "ok"
        assert errors == [None] * len(contents), f"turn {turn}: reading what was committed"
        for content in contents:
            assert content.thin.read(0, BLOCKS * BLOCK) == content.data[:BLOCKS * BLOCK]
        pool.stop()
        after = metadata.devices(metadata.dump(pool.metadata.copy("after")))
        assert after == before or fault is fail_second_flush, f"turn {turn}: something was committed"
        metadata.clear_needs_check(pool.metadata.path)
        pool.start()
        contents = [content.on(pool.activate(number, SIZE)) for number, content in enumerate(contents)]


@pytest.mark.named_addition
def test_look_up_between_failure_and_rollback(make_pool, make_gate, without_cache):
    """A commit has failed, and who has to roll it back waits for its turn. What is read meanwhile is there.

    In the C module nobody looks anything up while a commit is under way.
    """
    pool, contents = start(make_pool, make_gate, 2)
    pool.restart()
    content = contents[0].on(pool.activate(0, SIZE))
    other = pool.activate(1, SIZE)
    content.write(BLOCKS * BLOCK, BLOCK)
    content.thin.flush()
    content.thin.read(0, BLOCKS * BLOCK)
    pool.metadata.hold("flush", "read")
    content.thin.write((BLOCKS + 1) * BLOCK, pattern("lost", BLOCK))
    looking = commit(pool)
    pool.metadata.wait_for("flush")
    # Somebody looks into metadata that must be read first; nobody changes them meanwhile.
    asking = Background(lambda: ioctl.call(ioctl.TABLE_STATUS, other.name, size=ioctl.SMALL_BUFFER_SIZE))
    pool.metadata.wait_for("read")
    pool.metadata.fail("flush")
    pool.metadata.release()
    wait_until(looking.sleeps, "the rollback")
    reading = [Background(lambda block=block: content.thin.read(block * BLOCK, BLOCK)) for block in range(BLOCKS)]
    wait_until(lambda: all(one.sleeps() or not one.waits(0) for one in reading), "the reads")
    pool.metadata.let_pass("read")
    assert [one.outcome() for one in [*reading, asking, looking]] == ["ok"] * (BLOCKS + 2)
    wait_until(lambda: mode(pool) == ["ro"], "read-only mode")
    heal(pool)
    assert content.thin.read(0, BLOCKS * BLOCK) == content.data[:BLOCKS * BLOCK]


@pytest.mark.parametrize("restarted", [False, True])
def test_snapshot_that_is_there_although_its_commit_failed(make_pool, make_gate, restarted):
    """The superblock with it was written, but could not be made stable. Its origin does not write into its blocks."""
    pool, (content,) = start(make_pool, make_gate, 1)
    pool.create_thin(100)
    content.thin.suspend()
    pool.metadata.hold("flush")
    asking = Background(lambda: pool.message("create_snap 1 0"))
    fail_second_flush(pool)
    asking.outcome()
    wait_until(lambda: mode(pool) == ["ro"], "read-only mode")
    heal(pool)
    content.thin.resume()
    if restarted:
        content.thin.remove()
        content = content.on(pool.activate(0, SIZE))
    # What is looked up twice is cached.
    for _ in range(3):
        assert content.thin.read(0, BLOCKS * BLOCK) == content.data[:BLOCKS * BLOCK]
    refused = 0
    for block in range(BLOCKS):
        try:
            content.thin.write(block * BLOCK, pattern("after", BLOCK))
        except OSError:
            refused += 1
    pool.stop()
    metadata.clear_needs_check(pool.metadata.path)
    assert set(metadata.devices(metadata.dump(pool.metadata.path))) == {0, 1, 100}
    assert refused == BLOCKS
    pool.start()
    content.on(pool.activate(1, SIZE)).verify()


@pytest.mark.fault_of_c("nothing flushes the superblock")
@pytest.mark.parametrize("features", [[], ["read_only"]], ids=["writable", "read-only"])
def test_superblock_is_stable_before_anything_is_written(make_pool, make_gate, features):
    """A crash may have come between a superblock and the flush behind it, and the disk show it all the same. What is written to
    blocks that it maps, and flushed, must not be lost with it. The C module does without.
    """
    pool, (content,) = start(make_pool, make_gate, 1)
    pool.stop()
    pool.features = features
    pool.metadata.hold("flush")
    starting = Background(pool.start)
    pool.metadata.wait_for("flush")
    assert starting.waits(0)
    pool.metadata.release()
    assert starting.outcome() == "ok"
    # Once is enough.
    content = content.on(pool.activate(0, SIZE))
    content.write(0, BLOCK)
    content.thin.flush()
    assert pool.metadata.held("flush") == 0
    pool.metadata.let_pass("flush")


@pytest.mark.fault_of_c("nothing flushes the superblock")
def test_superblock_that_a_read_only_pool_cannot_make_stable(make_pool, make_gate):
    """A flush that fails may have lost what was written before, and one that succeeds later says nothing of that."""
    pool, (content,) = start(make_pool, make_gate, 1)
    pool.stop()
    pool.features = ["read_only"]
    pool.metadata.fail("flush")
    pool.start()
    content = content.on(pool.activate(0, SIZE))
    content.thin.write(0, pattern("again", BLOCK))
    with pytest.raises(OSError):
        content.thin.flush()
    heal(pool)
    with pytest.raises(OSError):
        content.thin.flush()
    pool.features = []
    pool.device.reload(pool.table())
    assert mode(pool) == ["ro"] and pool.status().needs_check
    # The superblock that says so has been written and flushed.
    content.thin.flush()
    content.thin.remove()
    pool.stop()
    metadata.clear_needs_check(pool.metadata.path)
    pool.start()
    assert mode(pool) == ["rw"]
    thin = pool.activate(0, SIZE)
    thin.write(0, pattern("stable", BLOCK))
    thin.flush()


@pytest.mark.fault_of_c("the flush succeeds")
def test_flush_of_what_a_crash_may_undo(make_pool, make_gate):
    """The superblock was written, but no flush succeeds, so nobody knows what a loss of power leaves. A volume that is activated
    then has no changes of its own, but its blocks may be those of the lost transaction. The C module says that they are stable.
    """
    pool, (content,) = start(make_pool, make_gate, 1)
    pool.create_thin(100)
    content.write(BLOCKS * BLOCK, BLOCK)
    pool.metadata.hold("flush")
    looking = commit(pool)
    fail_second_flush(pool)
    looking.outcome()
    wait_until(lambda: mode(pool) == ["ro"], "read-only mode")
    content.thin.remove()
    content = content.on(pool.activate(0, SIZE))
    content.thin.write(BLOCKS * BLOCK, pattern("again", BLOCK))
    with pytest.raises(OSError):
        content.thin.flush()
    heal(pool)
    with pytest.raises(OSError):
        content.thin.flush()
    content.thin.remove()
    pool.stop()
    metadata.clear_needs_check(pool.metadata.path)
    pool.start()
    thin = pool.activate(0, SIZE)
    thin.write(0, pattern("stable", BLOCK))
    thin.flush()
