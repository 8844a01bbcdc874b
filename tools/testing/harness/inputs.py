# SPDX-License-Identifier: GPL-2.0
"""What a test depends on, as hashes: parts of the tree as they lie there, committed or not, other files, and the versions of tools."""

import functools
import glob
import hashlib
import json
import os
import platform
import re
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOP = os.path.dirname(os.path.dirname(ROOT))
# What programs are linked with, or run by, beside the packages that are asked for.
LIBRARIES = re.compile(r"(lib|python3)")


def key(parts):
    """One hash of many, and of what else makes up a JSON object."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class Inputs:
    """A look at what is there; each thing is looked at once. For what has changed meanwhile, make another one."""

    def __init__(self, top=TOP):
        self._top = top
        self._digests = {}

    def file(self, path):
        """The content of a file; also that there is none counts."""
        path = os.path.join(self._top, path)
        if path not in self._digests:
            self._digests[path] = digest(path)
        return self._digests[path]

    def tree(self, *names, without=()):
        """The files below these names, from the top of the tree on, but for those whose names end like `without`."""
        chosen = [
            name for name in self._names
            if any(wanted in (".", name) or name.startswith(f"{wanted}/") for wanted in names) and not name.endswith(tuple(without))
        ]
        return key([(name, self.file(name), os.access(os.path.join(self._top, name), os.X_OK)) for name in chosen])

    @functools.cached_property
    def _names(self):
        """All files but those that git ignores."""
        command = ["git", "-C", self._top, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        try:
            listed = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True).stdout
            return sorted({name for name in listed.split("\0") if name and os.path.lexists(os.path.join(self._top, name))})
        except (OSError, subprocess.CalledProcessError):
            return sorted(walk(self._top))

    def kernel(self, folder):
        """A built kernel: what is booted, its modules, and how it was configured."""
        images = [os.path.join(folder, name) for name in ("linux", "arch/x86/boot/bzImage", ".config", "modules.order", "modules.builtin")]
        try:
            with open(os.path.join(folder, "modules.order")) as order:
                modules = [os.path.join(folder, line.removesuffix(".o") + ".ko") for line in order.read().split()]
        except FileNotFoundError:
            modules = []
        return key([(os.path.relpath(path, folder), self.file(path)) for path in [*images, *modules]])

    @functools.cached_property
    def tools(self):
        """The versions of what tests call, and of the host's kernel."""
        with open(os.path.join(self._top, "scripts/packages")) as file:
            wanted = {line.strip() for line in file if line.strip() and not line.startswith("#")}
        try:
            shown = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${Version} ${db:Status-Abbrev}\n"], stdout=subprocess.PIPE, text=True).stdout
        except OSError:
            shown = ""
        versions = sorted(line for line in shown.splitlines() if line.split()[0] in wanted or LIBRARIES.match(line))
        return key([versions, platform.release()])

    def value(self, text):
        """What is given to a test: a file counts by its content, not by its name."""
        return self.file(text) if text and os.path.isabs(text) and os.path.isfile(text) else text


def digest(path):
    if os.path.islink(path):
        return f"link {os.readlink(path)}"
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha1").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return "none"
    except IsADirectoryError:
        return f"folder {sorted(glob.glob(f'{path}/**', recursive=True))}"


def walk(top):
    for folder, folders, names in os.walk(top):
        folders[:] = [name for name in folders if name not in (".git", "target", "__pycache__")]
        yield from (os.path.relpath(os.path.join(folder, name), top) for name in names)
