# SPDX-License-Identifier: GPL-2.0
"""The commands that Documentation/metadata-snapshots.rst shows, one after the other, and what they print.

A line of a block of code that begins with "# " is a command, and what follows is its output. Numbers and what depends on
them are not compared.
"""

import os
import pathlib
import re
import subprocess
import threading

from dmtest import disk, lvm2
from dmtest.content import Content, pattern
from dmtest.disk import (
    KIB,
    MIB,
)
from dmtest.pool import Thin

DOCUMENT = pathlib.Path(__file__).parents[3] / "Documentation/metadata-snapshots.rst"

BLOCK = 64 * KIB
SIZE = 64 * MIB

# The snapshot that a backup has made, in the document.
KEPT = "16210089"

VARYING = (
    # Before the numbers: a token may contain one that stands alone ("-334-").
    (r"AQAA[\w-]+", "<token>"),
    # Sizes and numbers, with what aligns them.
    (r"\d+:\d+", "#"),
    (r"[\d,]+(\.\d+)?( [KMG]iB| B)?\b", "#"),
    (r" +", " "),
    # It is the test that has told lvm2 so.
    (r" WARNING: This metadata update is NOT backed up.\n", ""),
)


def blocks():
    """The blocks of commands: lists of (command, output)."""
    found = []
    paragraphs = re.split(r"\n\s*\n", DOCUMENT.read_text())
    for before, block in zip(paragraphs, paragraphs[1:]):
        lines = block.splitlines()
        depth = len(lines[0]) - len(lines[0].lstrip())
        lines = [line[depth:] for line in lines]
        if not before.rstrip().endswith("::") or not depth or not lines[0].startswith("# "):
            continue
        commands = []
        for line in lines:
            if line.startswith("# "):
                commands.append((line[2:], []))
            else:
                commands[-1][1].append(line)
        found.append(commands)
    return found


def plain(text):
    for pattern_, instead in VARYING:
        text = re.sub(pattern_, instead, text)
    return [line.strip() for line in text.splitlines()]


class Play:
    """What the commands find, and what somebody does beside them: methods by the beginning of the command that they precede."""

    def __init__(self, thinctl, lvm, make_pool, make_disk):
        self.thinctl, self.lvm = thinctl, lvm
        self.pool = make_pool(metadata_size=16 * MIB)
        self.other = make_pool(block_sectors=256, data_size=192 * MIB)
        self.origin = make_disk(SIZE)
        self.content = Content(self.pool.new_thin(0, SIZE))
        for block in range(260):
            if block != 136:
                self.content.write(block * BLOCK, BLOCK)
        self.stop = threading.Event()
        self.writer = None
        self.count = {}
        # What the document shows before it tells of backups.
        self.pool.create_snap(KEPT, 0)
        programs = os.path.join(thinctl.folder, "programs")
        os.mkdir(programs)
        os.symlink(thinctl.program, os.path.join(programs, "thinctl"))
        self.environment = {
            **thinctl.environment, "PATH": f"{programs}:{os.environ['PATH']}", "LVM_SYSTEM_DIR": lvm2.FOLDER, "LVM_SUPPRESS_FD_WARNINGS": "1",
        }

    def before(self, command):
        number = self.count[command] = self.count.get(command, 0) + 1
        if command.startswith("thinctl init"):
            self.pool.delete(KEPT)
        elif command.startswith("thinctl backup") and number > 1:
            self.content.scatter(command + str(number), 10)
        elif command == "thinctl snapshot pool0 0 2":
            for block in 0, 4, 68, 136, 256:
                self.content.write(block * BLOCK, BLOCK)
        elif command == "dmsetup table pool0-thin7":
            thin = self.pool.new_thin(7, SIZE, origin=self.origin.path)
            for number in range(20):
                disk.write(thin.path, number * 3 * BLOCK, pattern(number, 4 * KIB))
        elif command == "dmsetup remove pool0-thin7":
            del self.pool.thins[7]
        elif command.startswith("thinctl replicate"):
            self.again = Thin.open(self.pool, 0, SIZE, name="again")
            self.writer = threading.Thread(target=self.write)
            self.writer.start()
        elif command.startswith("thinctl ls") and number == 2:
            self.pool.reserve_metadata_snap()
        elif command.startswith("thinctl receive pool1 20 <whole"):
            self.other.delete(20)
            thin = self.other.new_thin(90, self.other.data.size)
            offset = 0
            while True:
                used, all_ = self.other.status().data_blocks
                if all_ - used < 60:
                    break
                disk.write(thin.path, offset, b"\1" * (128 * KIB))
                offset += 128 * KIB
            thin.remove()

    def after(self, command):
        if self.writer and command.startswith("thinctl replicate"):
            self.stop.set()
            self.writer.join()
            self.again.remove()
        elif command.startswith("thinctl ls") and self.count[command] == 2:
            self.pool.release_metadata_snap()

    def write(self):
        number = 0
        while not self.stop.wait(0.3):
            number += 1
            disk.write(self.again.path, 0, pattern(number, 4 * KIB))

    def sh(self, command):
        if KEPT in command:
            [kept] = self.thinctl.json("kept", "pool0")
            command = command.replace(KEPT, str(kept["id"]))
        command = command.replace("/srv/backups", os.path.join(self.thinctl.folder, "backups")).replace("/dev/loop4", self.origin.path)
        done = subprocess.run(
            ["bash", "-c", command], env=self.environment, cwd=self.thinctl.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        return done.stdout.replace(os.path.join(self.thinctl.folder, "backups"), "/srv/backups").replace(self.origin.path, "/dev/loop4")


def test_documented_commands_print_what_is_documented(thinctl, lvm, make_pool, make_disk, progress):
    play = Play(thinctl, lvm, make_pool, make_disk)
    found = blocks()
    assert len(found) >= 13 and sum(map(len, found)) >= 35
    try:
        for commands in found:
            for command, output in commands:
                progress(command)
                play.before(command)
                printed = play.sh(command)
                play.after(command)
                assert plain(printed) == plain("\n".join(output)), f"{command}\n{printed}"
    finally:
        play.stop.set()
    play.content.verify()
    # lvm2's volume is generation 2 of the backup, or what was received afterwards.
    restored = lvm.read("again", 0, SIZE)
    thin = play.pool.activate(1, SIZE)
    assert restored == thin.read()
    thin.remove()
