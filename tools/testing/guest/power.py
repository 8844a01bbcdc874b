# SPDX-License-Identifier: GPL-2.0
"""Works on a pool until the machine is killed, after having looked into what the one before left behind.

What is begun and what was acknowledged goes into a journal on the host. Its first line tells what was found at the start.
"""

import json
import os
import subprocess
import traceback

from dmtest import (
    history,
    metadata,
)
from dmtest.history import PAGE
from dmtest.modules import Modules
from dmtest.pool import Pool
from dmtest.workload import (
    CHECK,
    Files,
    Steps,
    SYSTEM_SIZES,
    Workload,
    command,
    mounted,
)

SHARED = "/run/shared"


class Ubd:
    """A disk of User Mode Linux's."""

    def __init__(self, path):
        self.path = path
        with open(f"/sys/block/{os.path.basename(path)}/size") as file:
            self.sectors = int(file.read())


class Events:
    """Lines for the host; closing the file is what makes them visible there."""

    def __init__(self, path):
        self._path = path

    def emit(self, **fields):
        with open(self._path, "a") as file:
            file.write(json.dumps(fields) + "\n")


def journals():
    """The newest journal's lines, or nothing: one whose first line is not complete does not count."""
    names = sorted((name for name in os.listdir(SHARED) if name.startswith("journal")), key=lambda name: -int(name.split(".")[1]))
    for name in names:
        with open(f"{SHARED}/{name}") as file:
            lines = file.read().split("\n")
        if len(lines) > 1:
            # What comes after the last line's end is one that was being written.
            return [json.loads(line) for line in lines[:-1]]
    return []


def remembered():
    """The history and the file systems of all that happened so far."""
    past, systems = history.History(), {}
    lines = journals()
    if not lines:
        return None, systems
    for number, state in lines[0]["volumes"].items():
        volume = history.Volume(0, certain=True)
        volume.pages = [tuple(versions) for versions in state["pages"]]
        volume.files = {name: tuple(file) for name, file in state["files"].items()}
        past.volumes[int(number)] = volume
    systems = {int(number): kind for number, kind in lines[0]["systems"].items()}
    for line in lines[1:]:
        if "begin" in line:
            step = line["step"]
            past.begin(line["begin"], step)
            if step["what"] in ("create", "snap"):
                # The number may have been another volume's.
                systems.pop(step["volume"], None)
            if step["what"] == "snap" and step["origin"] in systems:
                systems[step["volume"]] = systems[step["origin"]]
        elif "system" in line:
            systems[line["system"]] = line["kind"]
        else:
            past.end(line["end"])
    past.crash()
    return past, systems


def settled(past, systems):
    volumes = {number: {"pages": volume.pages, "files": volume.files} for number, volume in past.volumes.items()}
    return {"volumes": volumes, "systems": {number: kind for number, kind in systems.items() if number in volumes}}


def look(pool, past, systems, counts):
    """Fails unless everything is as it must be; returns the pages to be written anew, by volume."""
    metadata.check(pool.metadata.path)
    there = {int(row[0]) for row in metadata.ls(pool.metadata.path)}
    unknown = there - set(past.volumes)
    assert not unknown, f"volumes {unknown} are back"
    for number, volume in list(past.volumes.items()):
        assert number in there or not volume.certain, f"volume {number} is gone"
        if number not in there:
            del past.volumes[number]
        volume.certain, volume.leaving = True, False
    pool.start()
    status = pool.status()
    assert status.mode == "rw" and not status.needs_check, pool.device.status()
    if status.metadata_snap is not None:
        metadata.dump(pool.metadata.path, status.metadata_snap)
    mixed = {}
    for number, volume in past.volumes.items():
        kind = systems.get(number)
        if kind:
            thin = pool.activate(number, SYSTEM_SIZES[kind])
            with mounted(kind, thin.path, f"/run/check{number}") as folder:
                history.verify_files(f"{kind} on volume {number}", volume, folder)
            command(*CHECK[kind], thin.path)
            counts["files"] = counts.get("files", 0) + len(volume.files)
            if number not in (10, 11):
                thin.remove()
        elif volume.pages:
            thin = pool.activate(number, len(volume.pages) * PAGE)
            pages = history.verify(f"volume {number}", volume, lambda page, count: thin.read(page * PAGE, count * PAGE), settle=True)
            mixed[number] = pages
            counts["pages"] = counts.get("pages", 0) + len(volume.pages)
    return mixed


def work(pool, config, past, systems, mixed, events, counts):
    journal = Events(f"{SHARED}/journal.{config['boot']}")
    journal.emit(**settled(past, systems))
    steps = Steps(lambda number, step: journal.emit(begin=number, step=step), lambda number: journal.emit(end=number))
    work = Workload(pool, steps, f"{config['seed']}.{config['boot']}")
    work.version = config["boot"] * 1000000
    work.systems = {number: kind for number, kind in systems.items() if number in past.volumes}
    work.plain = [number for number in past.volumes if number in mixed]
    while len(work.plain) < 2:
        work.create(work.next_id())
    for number, kind in ((10, "ext4"), (11, "xfs")):
        if number not in work.systems:
            if number in past.volumes:
                # The machine was killed before the file system was there.
                work.delete(number)
            work.create_system(number, kind, SYSTEM_SIZES[kind])
            command("sync")
            pool.thins[number].flush()
            journal.emit(system=number, kind=kind)
    for number, pages in mixed.items():
        work.write_pages(number, pages)
    writers = []
    for number in (10, 11):
        folder = f"/run/files{number}"
        os.makedirs(folder, exist_ok=True)
        command("mount", pool.thins[number].path, folder)
        writers.append(Files(work, number, folder, config["seed"], config["boot"] * 100000).start())
    counts["boots"] = 1
    events.emit(event="verified", counts=counts)
    turns = 0
    while True:
        work.turn()
        turns += 1
        if turns % 10 == 0:
            for writer in writers:
                writer.check()
            events.emit(event="working", counts={"turns": turns, "steps": len(steps.steps)})


def run(results, config):
    events = Events(os.path.join(results, "events"))
    try:
        os.makedirs(SHARED, exist_ok=True)
        # As in init.sh: the path is all of the options.
        subprocess.run(["busybox", "mount", "-t", "hostfs", "-o", config["shared"], "none", SHARED], check=True)
        Modules(config["modules"], config["implementations"], config["parameters"]).load(config["impl"])
        events.emit(event="loaded")
        past, systems = remembered()
        pool = Pool(Ubd("/dev/ubda"), Ubd("/dev/ubdb"))
        counts, mixed = {}, {}
        if past is None:
            past = history.History()
            pool.start()
        else:
            mixed = look(pool, past, systems, counts)
        if config["last"]:
            pool.stop()
            pool.check()
            events.emit(event="verified", counts=counts)
            return 0
        work(pool, config, past, systems, mixed, events, counts)
    except BaseException:
        events.emit(event="failed", text=traceback.format_exc())
        return 1
