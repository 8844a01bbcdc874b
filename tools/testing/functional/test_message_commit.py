# SPDX-License-Identifier: GPL-2.0
"""Messages and the commits that make what they did permanent."""

import pytest

from dmtest import metadata
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
from dmtest.dm import DmError
from test_failures import repair

BLOCK = 64 * KIB
SIZE = 4 * MIB

MESSAGES = ["create_thin 5", "create_snap 5 0", "delete 1", "set_transaction_id 0 7", "reserve_metadata_snap", "release_metadata_snap"]


def start(make_pool, disk, message):
    """A pool that the message can be sent to, with nothing to commit."""
    pool = make_pool(metadata=disk, data_size=32 * MIB)
    content = Content(pool.new_thin(0, SIZE))
    content.write(0, MIB)
    content.thin.flush()
    pool.create_thin(1)
    if message == "release_metadata_snap":
        pool.reserve_metadata_snap()
    pool.status()
    return pool, content


def state(pool):
    """All that messages change, as the metadata device has it."""
    xml = metadata.dump(pool.metadata.copy("state"))
    words = pool.device.status(noflush=True).split()
    return metadata.superblock(xml)["transaction"], sorted(metadata.mappings(xml)), words[3] if len(words) > 3 else None


def reopen(pool):
    pool.stop()
    pool.metadata.heal()
    repair(pool)
    pool.start()


@pytest.mark.fault_of_c("messages succeed whatever becomes of their commit")
@pytest.mark.parametrize("message", MESSAGES)
def test_message_that_cannot_be_committed(make_pool, make_faulty, message):
    """It fails, and nothing of it is there. The C module tells the mode only."""
    pool, content = start(make_pool, make_faulty(4 * MIB), message)
    before = state(pool)
    pool.metadata.fail_writes()
    with pytest.raises(DmError):
        pool.message(message)
    status = pool.status()
    assert status.mode == "ro" and status.needs_check
    content.verify()
    reopen(pool)
    pool.status()
    assert state(pool) == before
    # Now it can be done.
    pool.message(message)
    assert state(pool) != before


@pytest.mark.fault_of_c("messages succeed whatever becomes of their commit")
@pytest.mark.parametrize("message", MESSAGES)
def test_message_that_somebody_else_rolls_back(make_pool, make_gate, message):
    """Whoever is quicker to commit what the message did fails. The message does, too."""
    pool, content = start(make_pool, make_gate(4 * MIB), message)
    before = state(pool)
    pool.metadata.hold("flush")
    content.thin.write(2 * MIB, pattern("new", BLOCK))
    # It commits what there is first.
    sending = Background(lambda: pool.message(message))
    pool.metadata.wait_for("flush")
    # These wait for their turn, which may come right after what the message does.
    flushing = Background(content.thin.flush)
    wait_until(flushing.sleeps, "the flush")
    pool.metadata.release()
    pool.metadata.wait_for("flush")
    pool.metadata.release()
    pool.metadata.wait_for("flush")
    pool.metadata.fail("write", "flush")
    pool.metadata.release()
    outcome = sending.outcome()
    flushing.outcome()
    assert outcome != "ok"
    reopen(pool)
    pool.status()
    assert state(pool) == before


@pytest.mark.parametrize("message", MESSAGES)
def test_message_that_succeeded_survives(make_pool, make_faulty, message):
    """Nothing that is written after it gets to the disk."""
    pool, content = start(make_pool, make_faulty(4 * MIB), message)
    before = state(pool)
    pool.message(message)
    pool.metadata.turn_flakey("drop_writes")
    after = state(pool)
    assert after != before
    content.thin.write(2 * MIB, pattern("lost", BLOCK))
    pool.stop()
    pool.metadata.heal()
    pool.start()
    assert state(pool) == after
    content.on(pool.activate(0, SIZE)).verify()
