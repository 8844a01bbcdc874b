# SPDX-License-Identifier: GPL-2.0
"""Somebody's commit fails while the worker waits to commit: what the worker promises then was rolled back."""

import os

import pytest

from dmtest import (
    disk,
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
from dmtest.worker import (
    Stops,
    sleeps,
)

BLOCK = 64 * KIB
SIZE = 4 * MIB

# The C module succeeds, too, where what it was to make permanent was lost.
pytestmark = pytest.mark.fault_of_c("what waits for a commit that fails can succeed")


def look(pool):
    """Somebody looks at the pool's status, for which it commits. When that fails, nobody who has waited for the metadata gets at
    them before the rollback."""
    return Background(lambda: ioctl.call(ioctl.TABLE_STATUS, pool.name, size=ioctl.SMALL_BUFFER_SIZE), urgent=True)


def fail(pool, looking):
    """Somebody's commit fails, the flush of which is held. When that is noted in the metadata, all works again."""
    pool.metadata.hold("read")
    pool.metadata.fail("flush")
    pool.metadata.release()
    # What was committed last is looked for.
    pool.metadata.wait_for("read")
    pool.metadata.heal()
    assert looking.outcome() == "ok"
    wait_until(lambda: pool.device.status(noflush=True).split()[4:5] == ["ro"], "read-only mode")


def fail_the_commit_of_another(pool, stops):
    """The worker is stopped and about to commit. Before it does, somebody else's commit begins, and fails."""
    looking = look(pool)
    # It has the right to change the metadata, and waits for the worker, which is reading them.
    wait_until(looking.sleeps, "somebody commits")
    pool.metadata.hold("flush")
    stops.end()
    pool.metadata.wait_for("flush")
    wait_until(sleeps, "the worker waits for its turn")
    fail(pool, looking)


def writes(path):
    """How many writes a disk has ended."""
    return disk.stat(path, 4)


def is_idle(path):
    """Whether nothing is on its way to a disk."""
    with open(f"/sys/block/{os.path.basename(path)}/inflight") as file:
        return file.read().split() == ["0", "0"]


def start(make_pool, make_gate, volumes, stops, **options):
    """A pool with content on its first volumes, and the ids of others that nobody has read since it was started."""
    pool = make_pool(metadata=make_gate(4 * MIB), data_size=64 * MIB, **options)
    contents = [Content(pool.new_thin(thin_id, SIZE)) for thin_id in range(volumes)]
    for content in contents:
        content.write(0, 4 * BLOCK)
    others = list(range(volumes, volumes + stops))
    for thin_id in others:
        pool.new_thin(thin_id, SIZE).write(0, pattern(thin_id, BLOCK))
    pool.restart()
    contents = [content.on(pool.activate(thin_id, SIZE)) for thin_id, content in enumerate(contents)]
    for content in contents:
        # What changes take is in memory after this.
        content.write(8 * BLOCK, BLOCK)
        content.discard(8 * BLOCK, BLOCK)
        content.thin.flush()
        content.verify()
    return pool, contents, others


def reopen(pool, contents):
    """The pool after a repair, with what it had promised."""
    pool.stop()
    pool.metadata.heal()
    metadata.clear_needs_check(pool.metadata.path)
    pool.start()
    return [content.on(pool.activate(thin_id, SIZE)) for thin_id, content in contents.items()]


def test_flush(make_pool, make_gate):
    """A flush of what was rolled back fails."""
    pool, (content,), _ = start(make_pool, make_gate, 1, 0)
    for block in range(8, SIZE // BLOCK):
        content.thin.flush()
        before = bytes(content.data)
        pool.metadata.hold("flush")
        content.write(block * BLOCK, BLOCK)
        looking = look(pool)
        pool.metadata.wait_for("flush")
        if not sleeps():
            break
        # It was the worker that committed, as it does each second.
        pool.metadata.let_pass("flush")
        assert looking.outcome() == "ok"
    else:
        pytest.skip("the machine is too slow: the worker was always quicker")
    flushing = Background(content.thin.flush)
    wait_until(sleeps, "the worker waits for its turn")
    fail(pool, looking)
    if flushing.outcome() != "ok":
        content.data[:] = before
    content, = reopen(pool, {0: content})
    content.verify()


@pytest.mark.parametrize("covers", ["block", "part"])
@pytest.mark.parametrize("zeroing", [True, False])
def test_write_with_fua(make_pool, make_gate, covers, zeroing):
    """One to a new block, which is lost if it fails, and there if it succeeds.

    Most go on after the commit and look for their block again then: this guards that they do.
    """
    features = [] if zeroing else ["skip_block_zeroing"]
    pool, (content,), others = start(make_pool, make_gate, 1, 3, features=features)
    before = bytes(content.data)
    stops = Stops(pool, others, SIZE)
    stops.stop()
    before_it = writes(pool.data.path)
    length = BLOCK if covers == "block" else 4 * KIB
    writing = Background(lambda: content.write(8 * BLOCK, length, os.O_DSYNC))
    wait_until(writing.sleeps, "the write")
    stops.stop()
    if zeroing:
        # One round provisions the block, the next one finds it written or zeroed, and inserts its mapping.
        wait_until(lambda: writes(pool.data.path) > before_it and is_idle(pool.data.path), "the data are written")
        stops.stop()
    fail_the_commit_of_another(pool, stops)
    if writing.outcome() != "ok":
        content.data[:] = before
    content, = reopen(pool, {0: content})
    content.verify()


def test_discard(make_pool, make_gate):
    """Of blocks that two volumes shared. Both have them again after the rollback, with their data."""
    pool, (content,), others = start(make_pool, make_gate, 1, 2)
    snap = content.snapshot(pool.new_snap(9, 0, SIZE))
    stops = Stops(pool, others, SIZE)
    stops.stop()
    discarding = [Background(lambda one=one: one.thin.discard(0, 4 * BLOCK)) for one in (content, snap)]
    for one in discarding:
        wait_until(one.sleeps, "the discard")
    stops.stop()
    fail_the_commit_of_another(pool, stops)
    for one in discarding:
        one.outcome()
    for one in reopen(pool, {0: content, 9: snap}):
        one.verify()
