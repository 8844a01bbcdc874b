# SPDX-License-Identifier: GPL-2.0
"""A pool's metadata as the userspace tools see it."""

import re
import struct
import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree


def _tool(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def check(path):
    """Fails unless thin_check is content with the metadata on the device or file `path`."""
    _tool("thin_check", path)


def clear_needs_check(path):
    """Checks the metadata and lets a pool write to them again."""
    _tool("thin_check", "--clear-needs-check-flag", path)


def dump(path, root=None):
    """The XML of thin_dump; with `root`, of the metadata snapshot there. Works on a live pool's device then."""
    xml = _tool("thin_dump", *([f"--metadata-snap={root}"] if root is not None else []), path)
    return _without_block_numbers(xml)


def restore(xml, path):
    """Writes the metadata that a dump tells of."""
    with tempfile.NamedTemporaryFile("w", suffix=".xml") as file:
        file.write(xml)
        file.flush()
        _tool("thin_restore", "-i", file.name, "-o", path)


def _without_block_numbers(xml):
    """Newer tools name what volumes share by the metadata block that holds it: number the names instead."""
    names = {}
    return re.sub(r'(<(?:def|ref) name=)"([^"]*)"', lambda m: f'{m[1]}"{names.setdefault(m[2], len(names))}"', xml)


def delta(path, left, right, root=None):
    """The XML of thin_delta between two volumes."""
    snapshot = ["--metadata-snap"] if root is not None else []
    return _tool("thin_delta", *snapshot, "--snap1", str(left), "--snap2", str(right), path)


def ls(path, root=None):
    """The rows of thin_ls as lists of words: id, mapped blocks, create time, snapshot time."""
    snapshot = ["--metadata-snap"] if root is not None else []
    text = _tool("thin_ls", "--no-headers", "-o", "DEV,MAPPED_BLOCKS,CREATE_TIME,SNAP_TIME", *snapshot, path)
    return [line.split() for line in text.splitlines() if line.strip()]


def superblock(xml):
    """The attributes of the superblock element of a dump."""
    return dict(ElementTree.fromstring(xml).attrib)


def device_ids(read):
    """The ids of all devices, from the tree of their details: `read(offset, size)` reads metadata that do not change.

    It takes the time of a few system calls, where a dump is a program that starts. The format is that of
    drivers/md/dm-thin-metadata.c and persistent-data/dm-btree-internal.h.
    """
    def below(block):
        node = read(block * 4096, 4096)
        flags, count, most = struct.unpack_from("<4xI8xII", node)
        keys = struct.unpack_from(f"<{count}Q", node, 32)
        if not flags & 1:
            return set(keys)
        return set().union(*map(below, struct.unpack_from(f"<{count}Q", node, 32 + 8 * most)))

    [root] = struct.unpack_from("<Q", read(0, 4096), 328)
    return below(root)


def devices(xml):
    """The dump's <device> elements' text forms by id: everything that belongs to the mappings."""
    found = {}
    for device in ElementTree.fromstring(xml).iter("device"):
        found[int(device.get("dev_id"))] = ElementTree.tostring(device, encoding="unicode").strip()
    return found


def mappings(xml):
    """{thin id: {virtual block: data block}} of a dump."""
    found = {}
    for device in ElementTree.fromstring(xml).iter("device"):
        blocks = found.setdefault(int(device.get("dev_id")), {})
        for element in device:
            if element.tag == "single_mapping":
                blocks[int(element.get("origin_block"))] = int(element.get("data_block"))
            elif element.tag == "range_mapping":
                origin, data = int(element.get("origin_begin")), int(element.get("data_begin"))
                for index in range(int(element.get("length"))):
                    blocks[origin + index] = data + index
    return found
