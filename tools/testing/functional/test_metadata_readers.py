# SPDX-License-Identifier: GPL-2.0
"""Programs that read metadata snapshots of a live pool: cAdvisor, thin-send-recv and wyng-backup.

The tests run the commands that these programs run, in their order, under both modules.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import time
import xml.etree.ElementTree as ElementTree

import pytest

from dmtest import (
    disk,
    load,
    metadata,
)
from dmtest.background import wait_until
from dmtest.content import Content
from dmtest.disk import (
    KIB,
    MIB,
    SECTOR,
)
from dmtest.dm import environment

BLOCK = 64 * KIB
SIZE = 16 * MIB

F_GETPIPE_SZ = 1032
FIONREAD = 0x541B


def message(trace, pool, text):
    return trace.dmsetup("message", pool.name, "0", text)


def held(pool):
    """Whether the pool holds a metadata snapshot, as cAdvisor reads it from the whole status line."""
    return pool.device.status().split()[3] != "-"


def usage(trace, pool):
    """One turn of cAdvisor's watcher: what each volume owns alone, in bytes, by id. Releases what another one left."""
    line = subprocess.run(["dmsetup", "status", pool.name], env=environment(), capture_output=True, text=True).stdout
    if line.split()[6] != "-":
        assert message(trace, pool, "release_metadata_snap")
    assert message(trace, pool, "reserve_metadata_snap")
    command = ["thin_ls", "--no-headers", "-m", "-o", "DEV,EXCLUSIVE_BYTES", pool.metadata.path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert message(trace, pool, "release_metadata_snap")
    assert done.returncode == 0, done.stderr
    return {int(device): int(size) for device, size in (row.split() for row in done.stdout.splitlines())}


def wyng_deltas(trace, pool, pairs):
    """wyng's way to the changes between pairs of snapshots: releases blindly, then reserves once for all of them."""
    message(trace, pool, "release_metadata_snap")
    assert message(trace, pool, "reserve_metadata_snap")
    deltas = []
    for old, new in pairs:
        command = f"thin_delta -m --thin1 {old} --thin2 {new} {pool.metadata.path} | grep -v '<same .*\\/>$'"
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
        deltas.append(done.stdout)
    assert message(trace, pool, "release_metadata_snap")
    return deltas


def send(trace, pool, command, folder):
    """thin_send's way to a list of blocks: the tool's output goes to a file, which is read after the release."""
    listing = folder / "listing"
    if not message(trace, pool, "reserve_metadata_snap"):
        return None
    done = subprocess.run(f"{command} {pool.metadata.path} > {listing}", shell=True, capture_output=True, text=True)
    assert message(trace, pool, "release_metadata_snap")
    assert done.returncode == 0 and not done.stderr, done.stderr
    return listing.read_text()


def blocks(xml, *tags):
    """The blocks in elements of these tags."""
    found = set()
    for element in ElementTree.fromstring(xml).iter():
        if element.tag in tags:
            found.update(range(int(element.get("begin")), int(element.get("begin")) + int(element.get("length"))))
    return found


def receive(xml, source, target):
    """What thin_send and thin_recv do together: makes `target`, a copy of the old state, one of `source`."""
    for block in sorted(blocks(xml, "different", "right_only")):
        target.write(block * BLOCK, source.read(block * BLOCK, BLOCK))
    # thin_recv punches holes, to which the C module says EOPNOTSUPP; both are to take discards.
    for block in sorted(blocks(xml, "left_only")):
        subprocess.run(["blkdiscard", "-o", str(block * BLOCK), "-l", str(BLOCK), target.path], check=True)


class Reader:
    """A program that reserves a metadata snapshot and then takes its time."""

    def __init__(self, pool, rest="exec sleep 600"):
        script = f"dmsetup message {pool.name} 0 reserve_metadata_snap && echo reserved >&2 && {rest}"
        self._process = subprocess.Popen(
            ["sh", "-c", script], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )
        assert self._process.stderr.readline() == b"reserved\n"

    def wait_until_stuck(self):
        """Waits until it has filled its pipe, which nobody reads."""
        pipe = self._process.stdout.fileno()
        room = fcntl.fcntl(pipe, F_GETPIPE_SZ)

        def is_full():
            assert self._process.poll() is None, "the reader came to its end"
            return int.from_bytes(fcntl.ioctl(pipe, FIONREAD, bytes(4)), "little") > room - 4096

        wait_until(is_full, "the reader fills its pipe")

    def kill(self):
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


@contextlib.contextmanager
def written_to(thin):
    """fio writes to the volume all the while."""
    fio = load.Background(
        thin, "--bsrange=4k-64k", "--norandommap", "--time_based", "--runtime=3600", depth=8, verify=False,
    )
    try:
        yield
        assert fio.running(), "fio came to its end too early"
    finally:
        fio.kill()


@contextlib.contextmanager
def generations(pool):
    """Volume 0 with two snapshots of it, 1 and 2, between which it was changed; it is written to all the while.

    Gives the contents of both snapshots and the blocks that differ.
    """
    origin = Content(pool.new_thin(0, SIZE))
    origin.write(0, 64 * BLOCK)
    origin.write(100 * BLOCK, 20 * BLOCK)
    old = origin.snapshot(pool.new_snap(1, 0, SIZE))
    origin.write(10 * BLOCK, 3 * BLOCK)
    origin.write(63 * BLOCK + SECTOR, SECTOR)
    origin.write(90 * BLOCK, 15 * BLOCK)
    origin.write(200 * BLOCK, BLOCK)
    new = origin.snapshot(pool.new_snap(2, 0, SIZE))
    with written_to(origin.thin):
        yield old, new, {*range(10, 13), 63, *range(90, 105), 200}


@pytest.mark.smoke
def test_usage_of_a_busy_pool(make_pool, compare):
    """Turn after turn, volumes that nobody writes to own what they always did."""

    def scenario(trace, turn):
        pool = make_pool()
        still = Content(pool.new_thin(1, SIZE))
        still.write(0, 10 * BLOCK)
        still.snapshot(pool.new_snap(2, 1, SIZE)).write(5 * BLOCK, 8 * BLOCK)
        with written_to(pool.new_thin(0, SIZE)):
            for _ in range(5):
                time.sleep(0.1)
                found = usage(trace, pool)
                assert set(found) == {0, 1, 2}
                trace.note("still", {thin_id: found[thin_id] for thin_id in (1, 2)})
        assert usage(trace, pool) == {0: pool.thins[0].mapped()[0], 1: 5 * BLOCK, 2: 8 * BLOCK}
        pool.stop()

    compare(scenario)


def test_changes_between_snapshots(make_pool, compare):
    """wyng's view of several pairs at once, while the origin is written to."""

    def scenario(trace, turn):
        pool = make_pool()
        with generations(pool) as (_, _, changed):
            pool.create_snap(3, 2)
            for _ in range(3):
                there, same, back = wyng_deltas(trace, pool, [(1, 2), (2, 3), (2, 1)])
                assert "<same" not in there
                assert blocks(there, "different", "right_only") == changed
                assert not blocks(same, "different", "left_only", "right_only")
                assert blocks(back, "left_only") == {*range(90, 100), 200}
                trace.note("deltas", (there, same, back))
        pool.stop()

    compare(scenario)


def test_volume_is_sent_whole(make_pool, compare, tmp_path):
    """thin_dump of one volume names all that a copy in another pool needs."""

    def scenario(trace, turn):
        pool, elsewhere = make_pool(), make_pool(data_size=64 * MIB)
        with generations(pool) as (old, _, _):
            copy = old.snapshot(elsewhere.new_thin(7, SIZE))
            for form in ("thin_dump -m --dev-id 1", "thin_dump --format xml -m --dev-id 1"):
                mapped = metadata.mappings(send(trace, pool, form, tmp_path))
                assert set(mapped) == {1}
                trace.note(form, sorted(mapped[1]))
            for block in mapped[1]:
                copy.thin.write(block * BLOCK, old.thin.read(block * BLOCK, BLOCK))
        copy.verify()
        assert elsewhere.status().data_blocks[0] == 84
        pool.stop()
        elsewhere.stop()

    compare(scenario)


def test_difference_is_sent(make_pool, compare, tmp_path):
    """A copy of the older snapshot becomes one of the newer by the blocks that thin_delta names, and by no others."""

    def scenario(trace, turn):
        pool, elsewhere = make_pool(), make_pool(data_size=64 * MIB)
        with generations(pool) as (old, new, changed):
            copy = old.snapshot(elsewhere.new_thin(7, SIZE))
            copy.thin.write(0, bytes(old.data))
            xml = send(trace, pool, "thin_delta -m --snap1 1 --snap2 2", tmp_path)
            trace.note("delta", xml)
            assert blocks(xml, "different", "right_only") == changed
            receive(xml, new.thin, copy.thin)
            new.on(copy.thin).verify()
        pool.stop()
        elsewhere.stop()

    compare(scenario)


def test_difference_with_discards_is_sent(make_pool, compare, tmp_path):
    """Blocks that only the older snapshot has are discarded in the copy, too."""

    def scenario(trace, turn):
        pool, elsewhere = make_pool(), make_pool(data_size=64 * MIB)
        origin = Content(pool.new_thin(0, SIZE))
        origin.write(0, 40 * BLOCK)
        pool.new_snap(1, 0, SIZE)
        copy = Content(elsewhere.new_thin(7, SIZE))
        copy.thin.write(0, bytes(origin.data[:40 * BLOCK]))
        subprocess.run(["blkdiscard", "-o", str(8 * BLOCK), "-l", str(16 * BLOCK), origin.thin.path], check=True)
        origin.data[8 * BLOCK:24 * BLOCK] = bytes(16 * BLOCK)
        origin.write(20 * BLOCK, 2 * BLOCK)
        new = origin.snapshot(pool.new_snap(2, 0, SIZE))
        xml = send(trace, pool, "thin_delta -m --snap1 1 --snap2 2", tmp_path)
        trace.note("delta", xml)
        assert blocks(xml, "left_only") == {*range(8, 20), *range(22, 24)}
        receive(xml, new.thin, copy.thin)
        new.on(copy.thin).verify()
        assert elsewhere.status().data_blocks[0] == 26
        pool.stop()
        elsewhere.stop()

    compare(scenario)


def test_second_reader_is_turned_away(make_pool, compare, tmp_path):
    """thin_send gives up if another one holds the metadata snapshot, and takes nothing from it."""

    def scenario(trace, turn):
        pool = make_pool()
        with generations(pool):
            assert message(trace, pool, "reserve_metadata_snap")
            before = metadata.delta(pool.metadata.path, 1, 2, True)
            assert send(trace, pool, "thin_delta -m --snap1 1 --snap2 2", tmp_path) is None
            assert held(pool)
            assert metadata.delta(pool.metadata.path, 1, 2, True) == before
            assert message(trace, pool, "release_metadata_snap")
            assert send(trace, pool, "thin_delta -m --snap1 1 --snap2 2", tmp_path) == before
        pool.stop()

    compare(scenario)


@pytest.mark.smoke
@pytest.mark.parametrize("next_one", ["cadvisor", "wyng", "thin_send"])
def test_reader_that_was_killed(make_pool, compare, tmp_path, next_one):
    """Its metadata snapshot stays until someone releases it: cAdvisor and wyng do so, thin_send does not."""

    def scenario(trace, turn):
        pool = make_pool()
        with generations(pool) as (_, _, changed):
            Reader(pool).kill()
            assert held(pool)
            if next_one == "cadvisor":
                assert set(usage(trace, pool)) == {0, 1, 2}
            elif next_one == "wyng":
                delta, = wyng_deltas(trace, pool, [(1, 2)])
                assert blocks(delta, "different", "right_only") == changed
            else:
                assert send(trace, pool, "thin_delta -m --snap1 1 --snap2 2", tmp_path) is None
                assert message(trace, pool, "release_metadata_snap")
            assert not held(pool)
        pool.stop()

    compare(scenario)


def test_reader_that_was_killed_while_it_read(make_pool, compare):
    """thin_dump dies with the metadata device open and half of the mappings read."""

    def scenario(trace, turn):
        pool = make_pool(features=["skip_block_zeroing"])
        thin = pool.new_thin(0, 512 * MIB)
        for index in range(2500):
            thin.write((index * 3571) % 8192 * BLOCK, bytes(512))
        with written_to(thin):
            reader = Reader(pool, f"exec thin_dump -m {pool.metadata.path}")
            reader.wait_until_stuck()
            reader.kill()
            assert held(pool)
            assert message(trace, pool, "release_metadata_snap")
            assert message(trace, pool, "reserve_metadata_snap")
            assert len(metadata.mappings(metadata.dump(pool.metadata.path, pool.status().metadata_snap))[0]) >= 2500
            assert message(trace, pool, "release_metadata_snap")
        pool.stop()

    compare(scenario)


def test_stale_snapshot_outlives_the_pool(make_pool, compare):
    """Killed reader, removed pool, another start: the next reader finds the metadata snapshot and releases it."""

    def scenario(trace, turn):
        pool = make_pool()
        origin = Content(pool.new_thin(0, SIZE))
        origin.write(0, 10 * BLOCK)
        Reader(pool).kill()
        origin.write(5 * BLOCK, 10 * BLOCK)
        pool.restart()
        assert held(pool)
        origin = origin.on(pool.activate(0, SIZE))
        origin.verify()
        trace.note("usage", usage(trace, pool))
        assert not held(pool)
        trace.note("disk", disk.read(origin.thin.path, 0, BLOCK) == origin.data[:BLOCK])
        pool.stop()

    compare(scenario)
