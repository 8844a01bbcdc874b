# SPDX-License-Identifier: GPL-2.0
"""Random tables and messages, made by spoiling good ones: both modules must answer the same, and go on working.

How many, and from which seed: `--set fuzzed_lines=20000 --set seed=7`.
"""

import errno
import os
import random
import re

import pytest

from dmtest import ioctl
from dmtest.content import Content
from dmtest.disk import MIB, SECTOR
from dmtest.dm import Device
from dmtest.ioctl import DmError
from dmtest.trace import normalised

# Lines of each kind by default, and how many are given to one pool.
LINES = 100
ROUND = 500
SEED = 1

NUMBERS = [
    b"0", b"1", b"2", b"5", b"64", b"127", b"128", b"129", b"192", b"256", b"2097152", b"2097153", b"16777215", b"16777216", b"4294967295",
    b"4294967296", b"9223372036854775807", b"9223372036854775808", b"18446744073709551615", b"18446744073709551616", b"9" * 40, b"-1",
    b"-0", b"+5", b"0x80", b"007", b"1e3", b"5.0", b"\xd9\xa3", b"12 8", b"1\\ 2",
]
FEATURES = [b"skip_block_zeroing", b"ignore_discard", b"no_discard_passdown", b"read_only", b"error_if_no_space"]
DEVICES = [b"/dev/null", b"/dev/nowhere", b"/dev", b"/", b"", b"249:1000", b"0:0", b"1:2:3", b"7", b"4294967296:1", b"/dev/../dev/null"]
ODD = [b"\xff\xfe\x80", "\u00e4\u4e2d".encode(), b"\\", b"\\\\", b"'", b'"', b"%s%n%x", b"\x01\x7f", b"x" * 300, b"y" * 5000, b"a\tb", b"\x0b"]
MESSAGES = [
    [b"create_thin", b"{id}"], [b"create_snap", b"{id}", b"{id}"], [b"delete", b"{id}"], [b"set_transaction_id", b"{tid}", b"{tid}"],
    [b"reserve_metadata_snap"], [b"release_metadata_snap"], [b"create_thick", b"{id}"], [b"trim", b"{id}", b"10"],
]
# Ours alone has these.
ADDITIONS = re.compile(rb"cache_stats|discard_progress|discard_on_delete")


class Maker:
    """Makes lines; the same ones for a seed. `names` are the devices by their letters."""

    def __init__(self, seed, names):
        self._random = random.Random(seed)
        self._names = {key: value.encode() for key, value in names.items()}

    def _device(self):
        return self._random.choice([*self._names.values(), *DEVICES])

    def _pool(self):
        chance = self._random
        count = chance.choice([0, 0, 1, 2, 3])
        features = [chance.choice(FEATURES) for _ in range(count)]
        words = [self._names["m"], self._names["d"], b"128", chance.choice([b"0", b"7", b"100000"])]
        return words + ([str(count).encode(), *features] if count or chance.random() < 0.3 else [])

    def _thin(self):
        words = [self._names["p"], self._random.choice([b"0", b"1", b"5"])]
        return words + ([self._names["d"]] if self._random.random() < 0.2 else [])

    def _spoil(self, words, additions=()):
        """Changes words, mostly one or two of them."""
        chance = self._random
        words = list(words)
        for _ in range(chance.choice([0, 1, 1, 1, 2, 2, 5])):
            at = chance.randrange(len(words) + 1)
            kind = chance.randrange(9)
            if kind == 0:
                words.insert(at, chance.choice([*NUMBERS, *FEATURES, *ODD, *additions]))
            elif not words:
                continue
            elif kind == 1:
                del words[at % len(words)]
            elif kind == 2:
                words[at % len(words)] = chance.choice(NUMBERS)
            elif kind == 3:
                words[at % len(words)] = self._device()
            elif kind == 4:
                words[at % len(words)] = chance.choice(ODD)
            elif kind == 5:
                other = chance.randrange(len(words))
                words[at % len(words)], words[other] = words[other], words[at % len(words)]
            elif kind == 6:
                word = bytearray(words[at % len(words)])
                if word:
                    word[chance.randrange(len(word))] = chance.randrange(1, 256)
                words[at % len(words)] = bytes(word)
            elif kind == 7:
                words[at % len(words)] = words[at % len(words)].upper()
            else:
                words += [chance.choice(FEATURES)] * chance.choice([1, 8, 100])
        if chance.random() < 0.02:
            return bytes(chance.randrange(1, 256) for _ in range(chance.choice([1, 10, 200, 4000])))
        return chance.choice([b" ", b" ", b" ", b"  ", b"\t", b"\n"]).join(words)

    def table(self):
        """Target, start, length and arguments."""
        chance = self._random
        kind = chance.choice(["thin-pool", "thin-pool", "thin"])
        text = self._spoil(self._pool() if kind == "thin-pool" else self._thin())
        if kind == "thin" and self._names["p"] in text.split()[2:3]:
            # A pool as the external origin of its own volume is told from others in one of the modules only.
            text = b""
        if kind == "thin-pool" and text.split()[:1] in [[self._names[name]] for name in ("p", "pd", "t")]:
            # New metadata would be written over what the pool's volumes have.
            text = b""
        start = chance.choice([0] * 9 + [8])
        length = chance.choice([8192] * 6 + [0, 1, 8, 128, 1 << 40, (1 << 63) + 5, (1 << 64) - 1])
        return kind, start, length, text

    def message(self):
        chance = self._random
        words = [
            str(chance.choice([0, 1, 2, 3, 5, 8])).encode() if word in (b"{id}", b"{tid}") else word for word in chance.choice(MESSAGES)
        ]
        return self._spoil(words)


def answer(call, *arguments, **named):
    """The name of the errno, or "ok" and the reply."""
    try:
        return "ok", call(*arguments, **named)
    except DmError as error:
        return errno.errorcode.get(error.errno, str(error.errno)), None


def load(name, kind, start, length, text):
    """Loads a table of one line, which may be any bytes."""
    data = ioctl.SPEC.pack(start, length, 0, 0, kind.encode()) + text + b"\0"
    ioctl.call(ioctl.TABLE_LOAD, name, 0, 1, data.ljust(-(-len(data) // 8) * 8, b"\0"))


def give_table(trace, spare, pool, line, reload):
    """Loads a table, for the device "fuzzed" or for the pool itself; what the former accepts is resumed."""
    label = f"{line[0]} {line[1]} {line[2]} {line[3][:200]!r}"
    if reload:
        found, _ = answer(load, pool.name, *line)
        trace.note(f"reload {label}", found)
        if found == "ok":
            pool.device.clear()
        return
    found, _ = answer(load, "fuzzed", *line)
    trace.note(label, found)
    if found != "ok":
        return
    device = Device.existing("fuzzed")
    if line[0] == "thin-pool" and b"read_only" in line[3]:
        # Its metadata are new, so that all of the data device is more than they know of: only one of the modules fails then.
        device.clear()
        return
    trace.note("resumed", answer(device.resume)[0])
    found, text = answer(device.status)
    trace.note("status", (found, normalised(text or "")))
    found, text = answer(device.table)
    trace.note("table", (found, normalised(text or "")))
    device.remove()
    Device.create_empty("fuzzed")
    for disk in spare:
        disk.overwrite(0, bytes(1 * MIB))


def named(folder, pool, spare, thin):
    """Names of devices that are the same in each run, as bytes of them are changed."""
    devices = {
        "m": spare[0].path, "d": spare[1].path, "pm": pool.metadata.path, "pd": pool.data.path, "p": pool.device.path, "t": thin.path,
    }
    names = {}
    for letter, path in devices.items():
        names[letter] = os.path.join(folder, letter)
        if os.path.lexists(names[letter]):
            os.unlink(names[letter])
        os.symlink(path, names[letter])
    return names


@pytest.fixture
def rounds(make_pool, make_disk, compare, tmp_path, settings):
    """Plays `scenario(trace, pool, thin, spare, maker, count)` on a pool for each round of lines."""

    def run(scenario):
        lines, seed = settings("fuzzed_lines", LINES), settings("seed", SEED)

        def turn(trace, number):
            for begin in range(0, lines, ROUND):
                pool = make_pool(metadata_size=4 * MIB)
                spare = [make_disk(4 * MIB, "spare") for _ in range(2)]
                thin = pool.new_thin(0, 1 * MIB)
                content = Content(thin)
                content.scatter("content", 10)
                pool.create_snap(1, 0)
                pool.create_thin(5)
                trace.note("seed", seed + begin)
                maker = Maker(seed + begin, named(tmp_path, pool, spare, thin))
                scenario(trace, pool, thin, spare, maker, min(ROUND, lines - begin))
                content.verify()
                pool.stop()
                pool.check()
                for disk in spare:
                    disk.close()

        compare(turn)

    return run


def test_tables(rounds):
    def scenario(trace, pool, thin, spare, maker, count):
        before = pool.device.status(), pool.device.table(), thin.table()
        Device.create_empty("fuzzed")
        for number in range(count):
            paths = [disk.path for disk in spare]
            give_table(trace, spare, pool, maker.table(), reload=number % 7 == 6)
            assert paths == [disk.path for disk in spare], "a disk has moved"
        Device.existing("fuzzed").remove()
        assert (pool.device.status(), pool.device.table(), thin.table()) == before, "a table changed the pool"

    rounds(scenario)


def test_messages(rounds):
    def scenario(trace, pool, thin, spare, maker, count):
        for number in range(count):
            text = maker.message()
            if ADDITIONS.search(text):
                continue
            name = thin.name if number % 11 == 10 else pool.name
            sector = [0, 0, 0, 0, 0, 0, 0, 0, 8, 1 << 40][number % 10]
            found, _ = answer(ioctl.call, ioctl.TARGET_MSG, name, data=ioctl.MESSAGE.pack(sector) + text + b"\0")
            trace.note(f"{sector} {text[:200]!r}", found)
            if number % 20 == 0:
                trace.pool(pool)
        for thin_id in range(10):
            found, _ = answer(pool.delete, thin_id)
            trace.note(f"delete {thin_id}", found)

    rounds(scenario)


def test_lines_are_random_and_repeatable():
    names = {letter: f"/dev/{letter}" for letter in ("m", "d", "pm", "pd", "p", "t")}
    first, again, other = (Maker(seed, names) for seed in (1, 1, 2))
    lines = [first.table() for _ in range(300)]
    assert lines == [again.table() for _ in range(300)]
    assert lines != [other.table() for _ in range(300)]
    assert len(set(lines)) > 250
    assert any(length // SECTOR and len(text) > 1000 for _, _, length, text in lines)
