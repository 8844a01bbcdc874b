# SPDX-License-Identifier: GPL-2.0
"""A pool without free blocks: space that is on its way back, the time that writes wait for it, and giving up."""

import pytest

from dmtest.background import Background
from dmtest.content import (
    Content,
    pattern,
)
from dmtest.disk import (
    KIB,
    MIB,
)
from test_modes import (
    fill,
    wait_for,
)

BLOCK = 64 * KIB
FULL = 8 * MIB

# Of seconds, for what has no reason to wait.
PATIENCE = 60


def mode_changes(kernel):
    return [line for line in kernel.lines() if "switching pool to" in line]


def start_discards(pool, content, fails):
    """Discards half of a full pool; the data device has the discards, but does not end them."""
    content.thin.flush()
    pool.data.hold("writes", fails=fails)
    discarding = Background(lambda: content.thin.discard(0, FULL // 2))
    content.data[:FULL // 2] = bytes(FULL // 2)
    pool.data.wait_for_held()
    return discarding


@pytest.mark.named_addition
@pytest.mark.parametrize("fails", [False, True], ids=["", "that fail"])
@pytest.mark.parametrize("features", [[], ["error_if_no_space"]], ids=lambda features: " ".join(features))
def test_pool_is_not_full_while_discards_are_under_way(make_pool, make_faulty, kernel, features, fails):
    """No write is refused for want of blocks that are on their way back, and the mode stays.

    The C module is full then, and stays so when the discards have ended until something else makes it commit.
    """
    pool = make_pool(data=make_faulty(FULL), metadata_size=4 * MIB, features=features)
    content = fill(pool)
    kernel.lines()
    discarding = start_discards(pool, content, fails)
    writing = Background(lambda: content.write(FULL, 3 * BLOCK))
    assert writing.waits(1)
    assert pool.status().mode == "rw"
    pool.data.heal()
    assert discarding.outcome(PATIENCE) == "ok"
    # Where discards fail, a write may, too, if it is quicker than the healing.
    assert writing.outcome(PATIENCE) in (["ok", "EIO"] if fails else ["ok"])
    content.write(FULL, 3 * BLOCK)
    assert pool.status().mode == "rw"
    assert not mode_changes(kernel)
    content.verify()
    # But when it is full, it says so once.
    content.write(FULL + MIB, FULL // 2 - 3 * BLOCK)
    too_much = Background(lambda: content.thin.write(2 * FULL - BLOCK, pattern("too much", BLOCK)))
    wait_for(pool, "out_of_data_space")
    if features:
        assert too_much.outcome(PATIENCE) == "ENOSPC"
    else:
        assert too_much.waits()
        content.discard(0, FULL)
        content.discard(FULL + MIB, BLOCK)
        assert too_much.outcome(PATIENCE) == "ok"
        wait_for(pool, "rw")
    assert len(mode_changes(kernel)) == 1 + (not features)


@pytest.mark.named_addition
@pytest.mark.parametrize("features", [[], ["error_if_no_space"]], ids=lambda features: " ".join(features))
def test_blocks_that_were_just_unmapped(make_pool, kernel, features):
    """Discards that are not passed down free blocks with the next commit, which a write does not have to wait for."""
    pool = make_pool(data_size=FULL, features=["no_discard_passdown", *features])
    content = fill(pool)
    for turn in range(4):
        kernel.lines()
        content.discard(turn % 2 * FULL, FULL)
        content.write((turn + 1) % 2 * FULL, FULL)
        assert not mode_changes(kernel)
    assert pool.status().data_blocks == (128, 128)
    content.verify()


@pytest.mark.parametrize("how", ["growth", "discard", "deletion", "suspend", "reload"])
def test_time_for_space_begins_anew(make_pool, compare, no_space_timeout, how):
    """What is left of the time that writes had before counts no more."""
    def scenario(trace, turn):
        # What would be left of this is more than anybody waits here.
        no_space_timeout(3600)
        pool = make_pool(data_size=FULL)
        other = Content(pool.new_thin(1, FULL))
        other.write(0, BLOCK)
        other.thin.remove()
        content = Content(pool.new_thin(0, 4 * FULL))
        content.write(0, FULL - BLOCK)
        waiting = Background(lambda: content.write(FULL, BLOCK))
        wait_for(pool, "out_of_data_space", "queue_if_no_space")
        trace.note("waits", waiting.waits())
        no_space_timeout(1)
        if how == "growth":
            pool.data.grow(FULL + BLOCK)
            pool.device.reload(pool.table())
        elif how == "discard":
            content.discard(0, BLOCK)
            # The C module may not commit by itself what the end of a discard frees.
            wait_for(pool, "rw")
        elif how == "deletion":
            pool.delete(1)
        elif how == "suspend":
            pool.device.suspend()
            pool.device.resume()
        else:
            pool.device.reload(pool.table())
        trace.note("the first write", waiting.outcome(PATIENCE))
        if how in ("growth", "discard", "deletion"):
            waiting = Background(lambda: content.thin.write(2 * FULL, pattern("second", BLOCK)))
            trace.note("the second write", waiting.outcome(PATIENCE))
        trace.pool(pool)
        content.verify()
        pool.data.grow(2 * FULL)
        pool.device.reload(pool.table())
        trace.pool(pool)
        content.write(3 * FULL, BLOCK)
        content.verify()
        trace.log()
        pool.stop()

    compare(scenario)
