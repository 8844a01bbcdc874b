# SPDX-License-Identifier: GPL-2.0
"""The two implementations of dm-thin-pool, and loading one or the other.

Both have the same module and target names, so only one can be loaded at a time.
"""

import os
import subprocess

NAME = "dm-thin-pool"
LOADED = "/sys/module/dm_thin_pool"


class Modules:
    """`folder` maps names of the kernel's modules to their files, `implementations` "c" and "rust" to dm-thin-pool's.

    An implementation without a file is part of the kernel.
    """

    def __init__(self, folder, implementations):
        self._files = folder
        self._implementations = implementations

    def file(self, implementation):
        return self._implementations[implementation]

    def load(self, implementation):
        """Makes `implementation` the loaded one."""
        file = self.file(implementation)
        if file is None:
            assert os.path.exists(LOADED) and not os.path.exists(f"{LOADED}/initstate"), f"{NAME} is not built in"
            return
        if os.path.exists(LOADED):
            if self.is_loaded(file):
                return
            self.unload()
        self.insert(file)
        assert self.is_loaded(file), f"the loaded {NAME} is not {file}"

    def insert(self, file, *parameters):
        """Loads a module file after those that it depends on. Parameters are given as to insmod."""
        depends = _run("modinfo", "-F", "depends", file).strip()
        for name in filter(None, depends.split(",")):
            self.need(name)
        _run("insmod", file, *parameters)

    def need(self, name):
        """Loads one of the kernel's own modules unless it is there already, or built in."""
        name = name.replace("_", "-")
        if name in self._files and not os.path.exists(f"/sys/module/{name.replace('-', '_')}"):
            self.insert(self._files[name])

    def unload(self):
        if os.path.exists(LOADED):
            _run("rmmod", NAME)

    @staticmethod
    def is_loaded(file):
        """Whether the loaded module was built as `file`: the build id tells."""
        try:
            with open(f"{LOADED}/notes/.note.gnu.build-id", "rb") as note, open(file, "rb") as module:
                return note.read() in module.read()
        except FileNotFoundError:
            return False


def _run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout
