# SPDX-License-Identifier: GPL-2.0
"""What is measured: the rows of the benchmark, the sizes of pools, and the bars that figures have to meet."""

import fnmatch
from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

# The blocks of all pools.
BLOCK = 64 * KIB
# Of a volume, whatever is mapped of it.
VOLUME_BYTES = 64 * TIB
# Of the data device, which stores nothing.
DATA_BYTES = 1 * TIB
# What the data device has grown to when it did.
GROWN_BYTES = 8 * TIB
METADATA_BYTES = 1 * GIB

SUBJECTS = ("null_blk", "linear", "c", "rust")
PER_IO = "instructions per I/O"
PER_CALL = "instructions per call"


@dataclass(frozen=True)
class Size:
    """How much is mapped before a row begins: so many blocks, spread evenly over so many volumes."""

    mapped: int
    volumes: int

    @property
    def name(self):
        number, unit = (self.mapped // MIB, "Mi") if self.mapped >= MIB else (self.mapped // KIB, "Ki")
        return f"{number}{unit}" + (f"/{self.volumes}" if self.volumes > 1 else "")

    @property
    def per_volume(self):
        return self.mapped // self.volumes


SIZES = [Size(mapped, volumes) for volumes in (1, 64) for mapped in (32 * KIB, MIB, 8 * MIB)]
MAIN = Size(MIB, 1)
MANY = Size(MIB, 64)


class Row:
    """What the kinds of rows have in common: `name`, `text` for people, `state` of the pool, and these."""

    unit = PER_CALL
    # The number of CPUs of the virtual machine; with one, its clock counts instructions.
    cpus = 1
    # Whether null_blk and dm-linear are measured, too.
    baseline = False

    def in_size(self, size):
        return True


@dataclass(frozen=True)
class Io(Row):
    """A row of I/O by the load generator: `count` requests of `bytes`, shared out among the volumes.

    `area` tells which slots there are:
    spread: as many slots as requests, at equal distances over all that was mapped from the start
    leaves: one slot for every 512 blocks in the first half of it
    third, fourth: one slot after the other from the beginning of the third or fourth quarter of it
    fresh: one slot after the other in a range of the row's own that is not mapped
    sparse: such a range in which three of four slots stay free
    written: such a range, in which all was written before

    `state` is that of the pool: plain, zeroing for one that zeroes new blocks, or shared once every volume has a snapshot.
    """

    name: str
    text: str
    op: str
    pattern: str
    bytes: int
    count: int
    area: str
    state: str = "plain"
    baseline: bool = True
    # Reads every slot, or writes it, before the clock starts.
    warm: bool = False
    # Empties the mapping cache before every round.
    cold: bool = False
    # Each request has a block of its own, however small it is.
    each_block: bool = False
    options: str = ""

    unit = PER_IO


@dataclass(frozen=True)
class Call(Row):
    """A row about something that is asked of the pool, `repeat` times; `method` of machine.Thin does it."""

    name: str
    text: str
    method: str
    repeat: int
    state: str = "calls"
    # The most mappings of a volume, beyond which it takes too long.
    most: int = 8 * MIB
    only: Size = None

    def in_size(self, size):
        return size.per_volume <= self.most and self.only in (None, size)


class AtMain(Row):
    """A row of one size only."""

    def in_size(self, size):
        return size == MAIN


@dataclass(frozen=True)
class Fio(AtMain):
    """4 KiB I/O by fio with io_uring: a look from user space. The figure contains what fio itself spends."""

    name: str
    text: str
    op: str
    state: str = "plain"

    unit = PER_IO
    baseline = True


@dataclass(frozen=True)
class Latency(AtMain):
    """Reads that hit, from a device that takes 5 ms, while someone else writes: `field` of the generator's report.

    With `commits`, the other writes to new blocks with FUA, and each write ends in a commit. Otherwise nothing is
    there to be committed.
    """

    name: str
    text: str
    field: str
    commits: bool
    state: str = "slow"

    unit = "ns"


@dataclass(frozen=True)
class Neighbour(AtMain):
    """Reads of a small volume that hit, from the same device, while the pool is asked for something big: `field` of the report.

    `method` of machine.Thin does that, once for all rows that name it: they tell of the same reads.
    """

    name: str
    text: str
    field: str
    method: str
    state: str = "slow"

    unit = "ns"


@dataclass(frozen=True)
class Memory(AtMain):
    """What the mapping cache takes; `method` of memory.Cache tells it. Only ours has one."""

    name: str
    text: str
    method: str
    unit: str
    state: str = "memory"


@dataclass(frozen=True)
class Scale(Row):
    """How many times the reads of one thread two of them do, on one volume or on two."""

    name: str
    text: str
    volumes: int
    state: str = "plain"

    unit = "times one thread"
    cpus = 2
    baseline = True

    def in_size(self, size):
        return size == MANY


LIGHT = 16 * KIB
HEAVY = 4 * KIB

ROWS = [
    Io("read-4k-random", "4 KiB read, mapped", "read", "random", 4 * KIB, LIGHT, "spread", warm=True),
    Io("read-4k-seq", "the same, sequential", "read", "seq", 4 * KIB, LIGHT, "third", warm=True),
    Io("write-4k-random", "4 KiB write, mapped", "write", "random", 4 * KIB, LIGHT, "spread", warm=True),
    Io("write-4k-seq", "the same, sequential", "write", "seq", 4 * KIB, LIGHT, "third", warm=True),
    Io("write-4k-fua16", "the same, random, each 16th with FUA", "write", "random", 4 * KIB, LIGHT, "spread", warm=True, options="fua_every=16"),
    Io("read-4k-cold", "4 KiB read, metadata in memory but no mapping cached", "read", "shuffle", 4 * KIB, 2 * KIB, "leaves",
       warm=True, cold=True),
    Io("read-4k-unmapped", "4 KiB read of what is not mapped", "read", "random", 4 * KIB, LIGHT, "fresh", baseline=False),
    Io("provision-64k-seq", "64 KiB write to new blocks", "write", "seq", 64 * KIB, HEAVY, "fresh"),
    Io("provision-64k-random", "the same, random", "write", "shuffle", 64 * KIB, HEAVY, "sparse"),
    Io("provision-4k-random", "4 KiB write to new blocks that are not zeroed, random", "write", "shuffle", 4 * KIB, HEAVY, "sparse"),
    Io("provision-64k-fua16", "64 KiB write to new blocks, each 16th with FUA, which commits", "write", "shuffle", 64 * KIB, HEAVY, "sparse",
       options="fua_every=16"),
    Io("discard-64k", "discard of mapped blocks, one by one, random", "discard", "shuffle", 64 * KIB, HEAVY, "written", baseline=False),
    Io("discard-64m", "discard of 1024 mapped blocks at once", "discard", "seq", 64 * MIB, 8, "written", baseline=False),
    Call("discard-16t-unmapped", "BLKDISCARD of 16 TiB that are not mapped", "discard_unmapped", 1, state="plain", only=MAIN),
    Io("provision-zero-64k-seq", "64 KiB write to new blocks, the pool zeroes", "write", "seq", 64 * KIB, HEAVY, "fresh", state="zeroing"),
    Io("provision-zero-64k-random", "the same, random", "write", "shuffle", 64 * KIB, HEAVY, "sparse", state="zeroing"),
    Io("provision-zero-4k-seq", "4 KiB write to new blocks that are zeroed", "write", "seq", 4 * KIB, HEAVY, "fresh", state="zeroing",
       each_block=True),
    Io("provision-zero-4k-random", "the same, random", "write", "shuffle", 4 * KIB, HEAVY, "sparse", state="zeroing"),
    Io("read-4k-shared-random", "4 KiB read, shared with a snapshot", "read", "random", 4 * KIB, LIGHT, "spread", state="shared", warm=True),
    Io("read-4k-shared-seq", "the same, sequential", "read", "seq", 4 * KIB, LIGHT, "third", state="shared", warm=True),
    Io("break-64k", "64 KiB write that breaks sharing, without copy", "write", "shuffle", 64 * KIB, HEAVY, "third", state="shared"),
    Io("break-4k", "4 KiB write that breaks sharing, with copy", "write", "shuffle", 4 * KIB, HEAVY, "fourth", state="shared"),
    Io("break-64k-first", "the same, without copy, the first write in its part of the metadata", "write", "shuffle", 64 * KIB, KIB, "leaves",
       state="shared"),
    Call("create", "create_thin", "create", 8),
    Call("snapshot", "create_snap of a volume with all that is mapped of it", "snapshot", 8),
    Call("reserve", "reserve_metadata_snap", "reserve", 8),
    Call("release", "release_metadata_snap", "release", 8),
    Call("activation", "creating pool and volume on what is there: tables loaded and resumed", "activation", 4),
    Call("delete", "delete of a volume with all that is mapped of it", "delete", 1, state="delete", most=MIB),
    Fio("fio-read-4k", "fio with io_uring, random reads of what is mapped", "randread"),
    Fio("fio-write-4k", "the same, writes", "randwrite"),
    Latency("latency-p999", "4 KiB read from a device that takes 5 ms, beside writes to mapped blocks; 99.9 % of the reads take no longer", "p999", False),
    Latency("latency-p999-commit", "the same beside writes to new blocks with FUA, each of which commits", "p999", True),
    Latency("latency-max", "the longest read, without commits", "max", False),
    Latency("latency-max-commit", "the longest read, with commits", "max", True),
    Neighbour("latency-p999-discard", "4 KiB read of a volume while 4 GiB of another one are discarded, all mapped", "p999", "discard_mapped"),
    Neighbour("latency-max-discard", "the longest of these reads", "max", "discard_mapped"),
    Neighbour("latency-p999-grow", "4 KiB read of a volume while the pool grows from 1 TiB to 8 TiB", "p999", "grow"),
    Neighbour("latency-max-grow", "the longest of these reads", "max", "grow"),
    # The last ones on their pool: the volume is gone then.
    Neighbour("latency-p999-delete", "4 KiB read of a volume while another one is deleted with all that is mapped of it", "p999", "delete"),
    Neighbour("latency-max-delete", "the longest of these reads", "max", "delete"),
    Memory("memory-dense", "memory for a mapping in the cache, a range of blocks read", "dense", "bytes per mapping"),
    Memory("memory-spread", "the same, one of 64 blocks read", "spread", "bytes per mapping"),
    Memory("memory-limit", "pages of the mapping cache, the limit being 64", "limit", "pages"),
    Memory("memory-drop-caches", "what the cache keeps when the kernel is told to drop caches", "drop_caches", "percent"),
    Memory("memory-pressure", "what the cache keeps when memory is short", "pressure", "percent"),
    Scale("scale-1-volume", "4 KiB random reads by two threads on one volume, two CPUs", 1),
    Scale("scale-2-volumes", "the same, each thread on a volume of its own", 2),
]

# Rows of one line are measured one after the other in a pool that begins anew from its image.
STATES = [("plain", "zeroing", "shared"), ("calls",), ("delete",), ("slow",), ("memory",)]


def by_name(name):
    return next(row for row in ROWS if row.name == name)


def size_by_name(name):
    return next(size for size in SIZES if size.name == name)


def select(patterns, sizes):
    """The (row, size) pairs that match: patterns of names as a shell's, sizes by name; empty means all."""
    chosen = [row for row in ROWS if not patterns or any(fnmatch.fnmatchcase(row.name, pattern) for pattern in patterns)]
    return [(row, size) for size in SIZES if not sizes or size.name in sizes for row in chosen if row.in_size(size)]


@dataclass(frozen=True)
class Bar:
    """What a figure of ours may be at most, or with `least` at least.

    That is the ratio to the figure of `to`, in the row `to_row` if it is another one, or without `to` the figure itself.
    """

    row: str
    limit: float
    to: str = "c"
    size: str = MAIN.name
    to_row: str = None
    least: bool = False

    @property
    def name(self):
        if not self.to:
            return "rust"
        return f"rust/{self.to_row or self.to}"

    def met(self, value):
        return value >= self.limit if self.least else value <= self.limit


def _bars():
    for row in ("read-4k-random", "write-4k-random"):
        for size, linear in (("1Mi", 1.15), ("8Mi/64", 1.20)):
            yield Bar(row, linear, "linear", size)
            yield Bar(row, 0.50, "c", size)
    yield Bar("read-4k-shared-random", 1.20, "linear")
    yield Bar("read-4k-shared-random", 0.35)
    for row, limit in (
        ("read-4k-cold", 0.90), ("provision-64k-seq", 0.50), ("provision-64k-random", 0.50), ("break-64k", 0.55), ("break-4k", 0.70),
        ("discard-64k", 0.50), ("discard-64m", 0.50), ("discard-16t-unmapped", 0.01), ("snapshot", 1.00), ("reserve", 1.00), ("release", 1.00),
        ("delete", 0.80), ("activation", 1.00),
    ):
        yield Bar(row, limit)
    yield Bar("latency-p999-commit", 1.10, "rust", to_row="latency-p999")
    yield Bar("memory-limit", 64, "")
    yield Bar("memory-drop-caches", 50, "")
    yield Bar("memory-pressure", 90, "")
    yield Bar("scale-1-volume", 1.80, "", MANY.name, least=True)


BARS = list(_bars())
