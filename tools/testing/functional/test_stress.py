# SPDX-License-Identifier: GPL-2.0
"""Everything at once: verifying writers while the pool and its volumes are worked on."""

import random
import time

import pytest

from dmtest import (
    load,
    metadata,
)
from dmtest.content import Content
from dmtest.disk import MIB

SIZE = 16 * MIB
WRITERS = 3
SECONDS = 12


@pytest.mark.smoke
def test_everything_at_once(make_pool, run):
    """fio verifies what it wrote; snapshots change only by what the test does; the metadata must stay sound."""
    pool = make_pool(data_size=1024 * MIB, features=["discard_on_delete"] if run["impl"] == "rust" else [])
    writers = [
        load.Background(
            pool.new_thin(number, SIZE), "--bsrange=4k-128k", "--time_based", f"--runtime={SECONDS}", "--fsync=50",
            "--verify_backlog=64", engine=engine, depth=8,
        )
        for number, engine in zip(range(WRITERS), ("libaio", "io_uring", "psync"))
    ]
    choice = random.Random("everything")
    kept = {}
    held = None
    number = 100
    turns = 0
    while all(writer.running() for writer in writers):
        turns += 1
        what = choice.randrange(10)
        if what <= 2 and len(kept) < 10:
            number += 1
            origin = choice.choice([*range(WRITERS), *kept])
            snap = pool.new_snap(number, origin, SIZE)
            kept[number] = Content(snap, bytearray(snap.read()))
        elif what == 3 and kept:
            content = kept.pop(choice.choice(sorted(kept)))
            content.verify()
            content.thin.remove()
            pool.delete(content.thin.id)
        elif what == 4 and kept:
            kept[choice.choice(sorted(kept))].scatter(turns, 4)
        elif what in (8, 9) and kept:
            content = kept[choice.choice(sorted(kept))]
            start = choice.randrange(SIZE // 4096)
            length = choice.randint(1, SIZE // 4096 - start)
            if what == 8:
                content.discard(start * 4096, length * 4096)
            else:
                content.zero(start * 4096, length * 4096, "zero_out")
        elif what == 5:
            if held is None:
                root = pool.reserve_metadata_snap()
                held = root, metadata.dump(pool.metadata.path, root)
            else:
                assert metadata.dump(pool.metadata.path, held[0]) == held[1], "the metadata snapshot changed"
                pool.release_metadata_snap()
                held = None
        elif what == 6:
            pool.device.reload(pool.table())
        else:
            thin = pool.thins[choice.randrange(WRITERS)]
            thin.reload(thin.table_text())
        time.sleep(0.02)
    for writer in writers:
        writer.finish()
    assert turns > 2, "the machine was too slow to show anything"
    for content in kept.values():
        content.verify()
