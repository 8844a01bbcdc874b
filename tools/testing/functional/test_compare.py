# SPDX-License-Identifier: GPL-2.0
"""Scenarios that both implementations play on disks of the same size: every line, errno and dump must be equal."""

import random

import pytest

from dmtest import metadata
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


def play(trace, pool, seed, steps):
    """Random messages and I/O, right and wrong ones, each followed by a look at all lines."""
    choice = random.Random(seed)
    contents = {}
    for step in range(steps):
        known = sorted(contents)
        any_id = choice.choice([choice.randrange(12), choice.randrange(12), 1 << 24])
        what = choice.random()
        if what < 0.12:
            if trace.attempt(f"create_thin {any_id}", lambda: pool.create_thin(any_id)):
                contents[any_id] = Content(pool.activate(any_id, SIZE))
        elif what < 0.28:
            origin = choice.choice(known) if known and choice.random() < 0.9 else choice.randrange(12)
            if trace.attempt(f"create_snap {any_id} {origin}", lambda: pool.create_snap(any_id, origin)):
                contents[any_id] = contents[origin].snapshot(pool.activate(any_id, SIZE))
        elif what < 0.38:
            if any_id in contents and choice.random() < 0.8:
                contents.pop(any_id).thin.remove()
            trace.attempt(f"delete {any_id}", lambda: pool.delete(any_id))
        elif what < 0.44:
            trace.attempt("reserve", lambda: pool.message("reserve_metadata_snap"))
        elif what < 0.50:
            trace.attempt("release", lambda: pool.message("release_metadata_snap"))
        elif what < 0.55:
            expected = choice.choice([pool.status().transaction_id, 99])
            message = f"set_transaction_id {expected} {step}"
            trace.attempt(message, lambda: pool.message(message))
        elif what < 0.58:
            pool.restart()
            for thin_id in known:
                contents[thin_id] = contents[thin_id].on(pool.activate(thin_id, SIZE))
        elif what < 0.61:
            pool.device.reload(pool.table())
        elif known:
            content = contents[choice.choice(known)]
            content.scatter((seed, step), choice.randint(1, 4))
            content.thin.flush()
        trace.pool(pool)
        if step % 10 == 9:
            trace.note("dump", pool.dump())
    for content in contents.values():
        content.verify()
    return contents


@pytest.mark.parametrize("seed", ["one", "two", "three"])
def test_random_scenario(make_pool, compare, seed):
    def scenario(trace, turn):
        pool = make_pool()
        play(trace, pool, seed, 100)
        pool.stop()
        trace.note("at the end", metadata.dump(pool.metadata.path))

    compare(scenario)


@pytest.mark.smoke
def test_random_scenario_with_large_blocks(make_pool, compare):
    def scenario(trace, turn):
        pool = make_pool(block_sectors=384, features=["skip_block_zeroing"])
        play(trace, pool, "large blocks", 40)
        pool.stop()
        trace.note("at the end", metadata.dump(pool.metadata.path))

    compare(scenario)


def test_growing_and_shrinking_tree(make_pool, compare):
    """Mappings in an order that splits nodes everywhere; deletions that merge them again."""
    def scenario(trace, turn):
        pool = make_pool(data_size=1024 * MIB, features=["skip_block_zeroing"])
        thin = pool.new_thin(0, 512 * MIB)
        for index in range(1200):
            thin.write((index * 3571) % 8192 * BLOCK, pattern(index, 512))
            if index % 200 == 199:
                pool.create_snap(index, 0)
                trace.pool(pool)
        trace.note("dump", pool.dump())
        for index in range(199, 1200, 400):
            pool.delete(index)
            trace.pool(pool)
        trace.note("dump", pool.dump())
        pool.stop()

    compare(scenario)


def test_running_full(make_pool, compare):
    """Until the last block, then deletion brings the pool back."""
    def scenario(trace, turn):
        pool = make_pool(data_size=8 * MIB, low_water=32)
        content = Content(pool.new_thin(0, 16 * MIB))
        for block in range(0, 128, 8):
            content.write(block * BLOCK, 8 * BLOCK)
            trace.pool(pool)
            trace.note("events", pool.device.event_nr())
        content.thin.remove()
        pool.delete(0)
        trace.pool(pool)
        content = Content(pool.new_thin(1, 16 * MIB))
        content.write(0, 4 * MIB)
        content.verify()
        trace.pool(pool)
        pool.stop()

    compare(scenario)
