# SPDX-License-Identifier: GPL-2.0
"""Metadata images to begin with: made by thin_restore, and kept."""

import hashlib
import os
import random
import subprocess

from bench import rows

# Blocks that lie together on the data device, as if a file system had written 1 MiB at a time.
RUN = 16
FORMAT = 1


def lines(size):
    """The XML of the size's metadata. Which runs lie where looks random and is always the same."""
    data_blocks = rows.DATA_BYTES // rows.BLOCK
    places = list(range(size.mapped // RUN))
    random.Random(size.mapped).shuffle(places)
    yield f'<superblock uuid="" time="0" transaction="1" flags="0" version="2" data_block_size="{rows.BLOCK // 512}" nr_data_blocks="{data_blocks}">'
    for volume in range(size.volumes):
        yield f'<device dev_id="{volume}" mapped_blocks="{size.per_volume}" transaction="0" creation_time="0" snap_time="0">'
        for begin in range(0, size.per_volume, RUN):
            yield f'<range_mapping origin_begin="{begin}" data_begin="{places.pop() * RUN}" length="{RUN}" time="0"/>'
        yield "</device>"
    yield "</superblock>"


def image(size, folder):
    """The image's path; it is made if it is not there."""
    version = subprocess.run(["thin_restore", "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256(f"{FORMAT} {size} {RUN} {rows.METADATA_BYTES} {rows.DATA_BYTES} {rows.BLOCK} {version}".encode()).hexdigest()[:12]
    path = os.path.join(folder, f"{size.name.replace('/', '-')}-{key}.img")
    if not os.path.exists(path):
        os.makedirs(folder, exist_ok=True)
        make(size, path + ".new")
        os.rename(path + ".new", path)
    return path


def make(size, path):
    xml = path + ".xml"
    with open(xml, "w") as file:
        file.writelines(line + "\n" for line in lines(size))
    with open(path, "wb") as file:
        file.truncate(rows.METADATA_BYTES)
    done = subprocess.run(["thin_restore", "-q", "-i", xml, "-o", path], capture_output=True, text=True)
    os.unlink(xml)
    if done.returncode != 0:
        raise RuntimeError(f"thin_restore: {done.stdout}{done.stderr}")
    subprocess.run(["thin_check", "-q", path], check=True)
    with open(path, "r+b") as file:
        file.truncate(used(file))


def used(file):
    """The bytes of a sparse file up to the end of its last data."""
    end = 0
    size = os.fstat(file.fileno()).st_size
    while end < size:
        try:
            end = os.lseek(file.fileno(), os.lseek(file.fileno(), end, os.SEEK_DATA), os.SEEK_HOLE)
        except OSError:
            break
    return end
