# SPDX-License-Identifier: GPL-2.0
"""What volumes may hold after a crash: told of the begin and the end of every step, it says what each page and file may be.

A page of 4 KiB holds what was last made stable, or any of the versions written to it since; never anything older, and
never anything else. Every version of every page is a content of its own, so that whatever turns up can be told.
"""

import functools
import hashlib

PAGE = 4096
SECTOR = 512

# No file system puts less together.
FILE_BLOCK = 1024

# A step is a dictionary, fit for JSON: `what` names it, and `volume` is its thin id.
#   write    pages from `page` on, `count` of them, get the content `version`; with `stable`, by FUA
#   discard  pages from `page` on, `count` of them, read as zeroes
#   flush    all that was written before is stable at the end of it
#   create   a volume of `pages` pages
#   snap     of the volume `origin`, as it is
#   delete
#   file     `name` with the content `version` of `length` bytes is in the volume's file system, stable at the end of it
#   unlink   `name` may go


@functools.lru_cache(maxsize=8192)
def page_content(version, page):
    """The bytes of a page; version 0 is zeroes."""
    return hashlib.shake_128(f"{version}.{page}".encode()).digest(PAGE) if version else bytes(PAGE)


@functools.lru_cache(maxsize=1024)
def file_content(version, length):
    return hashlib.shake_128(f"file {version}".encode()).digest(length)


def promises(step):
    """Whether something is stable at the end of the step that was not before."""
    return step["what"] in ("flush", "file") or bool(step.get("stable"))


class Volume:
    """One volume: for each page its possible versions, the stable one first and the newest last."""

    def __init__(self, pages, certain=False):
        self.pages = [(0,)] * pages
        self.files = {}
        # Of these it is not known what a failed step made of them.
        self.doubtful = set()
        # Whether it must be there, and whether it may hold something else than this because it is being deleted.
        self.certain = certain
        self.leaving = False

    def snapshot(self):
        copy = Volume(0)
        copy.pages = [versions if page in self.doubtful else versions[-1:] for page, versions in enumerate(self.pages)]
        copy.doubtful = set(self.doubtful)
        copy.files = dict(self.files)
        return copy


class History:
    """All volumes of a pool."""

    def __init__(self):
        self.volumes = {}
        self._open = {}

    def begin(self, number, step):
        """The step of that number begins; from here on its effects may be there."""
        self._open[number] = step
        what, volume = step["what"], self.volumes.get(step["volume"])
        if what in ("write", "discard"):
            version = step.get("version", 0)
            for page in range(step["page"], step["page"] + step["count"]):
                volume.pages[page] += (version,)
        elif what == "create":
            self.volumes[step["volume"]] = Volume(step["pages"])
        elif what == "snap":
            self.volumes[step["volume"]] = self.volumes[step["origin"]].snapshot()
        elif what == "delete":
            volume.certain = False
            volume.leaving = True
        elif what == "unlink":
            volume.files.pop(step["name"], None)

    def end(self, number):
        """The step came back with success: what it promises must be there."""
        step = self._open.pop(number)
        what, volume = step["what"], self.volumes.get(step["volume"])
        if what == "write":
            volume.doubtful.difference_update(range(step["page"], step["page"] + step["count"]))
        if what == "flush":
            volume.pages = [versions if page in volume.doubtful else versions[-1:] for page, versions in enumerate(volume.pages)]
        elif what == "write" and step.get("stable"):
            for page in range(step["page"], step["page"] + step["count"]):
                volume.pages[page] = volume.pages[page][-1:]
        elif what in ("create", "snap"):
            volume.certain = True
        elif what == "delete":
            del self.volumes[step["volume"]]
        elif what == "file":
            volume.files[step["name"]] = (step["version"], step["length"])

    def fail(self, number):
        """The step came back with an error: anything may have become of it."""
        step = self._open.pop(number)
        volume = self.volumes.get(step["volume"])
        if step["what"] in ("write", "discard"):
            volume.doubtful.update(range(step["page"], step["page"] + step["count"]))

    def crash(self):
        """What was under way will never end. Content that is not certain is settled by settle()."""
        self._open.clear()


def page_state(found, page, versions):
    """Which of `versions` the bytes `found` are, None if a mixture of them by sectors; raises ValueError for anything else."""
    for version in reversed(versions):
        if found == page_content(version, page):
            return version
    for offset in range(0, PAGE, SECTOR):
        sector = found[offset:offset + SECTOR]
        if not any(sector == page_content(version, page)[offset:offset + SECTOR] for version in versions):
            state = "zeroes" if not any(sector) else "neither of them"
            raise ValueError(f"page {page}, sector {offset // SECTOR}: may hold versions {versions}, holds {state}")
    return None


def verify(name, volume, read, settle=False):
    """Fails unless all of `volume`'s pages are as they may be; `read(page, count)` gives their bytes.

    With `settle`, the volume holds what was found, and nothing else, from here on; returns the pages that hold mixtures.
    """
    mixed = []
    step = 256
    for start in range(0, len(volume.pages), step):
        count = min(step, len(volume.pages) - start)
        found = memoryview(read(start, count))
        for index in range(count):
            page = start + index
            try:
                state = page_state(bytes(found[index * PAGE:(index + 1) * PAGE]), page, volume.pages[page])
            except ValueError as error:
                raise AssertionError(f"{name}: {error}") from None
            if settle and state is None:
                mixed.append(page)
            elif settle:
                volume.pages[page] = (state,)
    return mixed


def verify_file_blocks(name, volume, contents):
    """Fails unless `contents`, all that is on the volume, have the data of all files that must be there, wherever they are."""
    blocks = {contents[at:at + FILE_BLOCK] for at in range(0, len(contents), FILE_BLOCK)}
    for file, (version, length) in volume.files.items():
        content = file_content(version, length)
        for at in range(0, length - FILE_BLOCK + 1, FILE_BLOCK):
            assert content[at:at + FILE_BLOCK] in blocks, f"{name}: {file}: the data at {at} are nowhere"


def verify_files(name, volume, folder):
    """Fails unless all files that must be there are in the mounted `folder`."""
    for file, (version, length) in volume.files.items():
        try:
            with open(f"{folder}/{file}", "rb") as opened:
                found = opened.read()
        except OSError as error:
            raise AssertionError(f"{name}: {file}: {error.strerror}") from None
        assert found == file_content(version, length), f"{name}: {file} is not what was made stable"
