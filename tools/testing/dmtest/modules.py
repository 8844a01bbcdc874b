# SPDX-License-Identifier: GPL-2.0
"""The two implementations of dm-thin-pool, and loading one or the other.

Both have the same module and target names, so only one can be loaded at a time.
"""

import functools
import os
import shutil
import subprocess

NAME = "dm-thin-pool"
LOADED = "/sys/module/dm_thin_pool"


class Modules:
    """`folder` maps names of the kernel's modules to their files, `implementations` "c" and "rust" to dm-thin-pool's.

    An implementation without a file is part of the kernel. `parameters` are those that ours is loaded with;
    `coverage` is told before it is unloaded.
    """

    def __init__(self, folder, implementations, parameters=(), coverage=None):
        self._files = folder
        self._implementations = implementations
        self._parameters = list(parameters)
        self._coverage = coverage

    def names(self):
        """The kernel's modules that there are."""
        return list(self._files)

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
        self.insert(file, *(self._parameters if implementation == "rust" else []))
        assert self.is_loaded(file), f"the loaded {NAME} is not {file}"

    def insert(self, file, *parameters):
        """Loads a module file after those that it depends on. Parameters are given as to insmod."""
        for name in _depends(file):
            self.need(name)
        _run("insmod", file, *parameters)

    def need(self, name):
        """Loads one of the kernel's own modules unless it is there already, or built in."""
        loaded = name.replace("-", "_")
        # The files of some have the one, of others the other.
        for known in (name.replace("_", "-"), loaded):
            if known in self._files and not os.path.exists(f"/sys/module/{loaded}"):
                self.insert(self._files[known])

    def insert_named(self, name, *parameters):
        """Loads one of the kernel's own modules, which must not be there yet, with these parameters."""
        self.insert(self._files[name], *parameters)

    @staticmethod
    def remove_named(name):
        _run("rmmod", name)

    def unload(self):
        if os.path.exists(f"{LOADED}/initstate"):
            if self._coverage:
                self._coverage.save()
            _run("rmmod", NAME)

    def install(self, implementation):
        """Lets modprobe, and so the kernel and lvm2, find `implementation` where its installation puts it. None is loaded then."""
        self.unload()
        root = f"/run/modules/{implementation}"
        release = os.uname().release
        folder = f"{root}/lib/modules/{release}"
        shutil.rmtree(root, ignore_errors=True)
        for name in ("kernel", "updates"):
            os.makedirs(os.path.join(folder, name))
        for file in [*self._files.values(), self._implementations["c"]]:
            os.symlink(file, os.path.join(folder, "kernel", os.path.basename(file)))
        if implementation != "c":
            os.symlink(self.file(implementation), os.path.join(folder, "updates", f"{NAME}.ko"))
        for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
            open(os.path.join(folder, name), "w").close()
        _run("depmod", "-b", root, release)
        # The root file system is read-only, so modprobe is told to look elsewhere: by its environment, and for
        # the kernel, which has none of its own, by a script.
        os.environ["MODPROBE_OPTIONS"] = f"-d {root}"
        script = "/run/modules/modprobe"
        with open(script, "w") as file:
            file.write(f'#!/bin/sh\nexec /sbin/modprobe -d {root} "$@"\n')
        os.chmod(script, 0o755)
        self._set_modprobe(script)

    def uninstall(self):
        """Undoes install()."""
        os.environ.pop("MODPROBE_OPTIONS", None)
        self._set_modprobe("/sbin/modprobe")

    @staticmethod
    def _set_modprobe(path):
        with open("/proc/sys/kernel/modprobe", "w") as file:
            file.write(path)

    @staticmethod
    def is_loaded(file):
        """Whether the loaded module was built as `file`: the build id tells."""
        try:
            with open(f"{LOADED}/notes/.note.gnu.build-id", "rb") as note:
                return _contains(file, note.read())
        except FileNotFoundError:
            return False


@functools.cache
def _depends(path):
    """The names of the modules that the one in a file needs."""
    return [name for name in _run("modinfo", "-F", "depends", path).strip().split(",") if name]


@functools.cache
def _contains(path, content):
    """Whether a file, which may be large, has this content somewhere."""
    with open(path, "rb") as file:
        return content in file.read()


def _run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout
