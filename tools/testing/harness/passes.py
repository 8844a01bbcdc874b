# SPDX-License-Identifier: GPL-2.0
"""What has passed is kept, by a hash of all that it depends on, and need not run again while that stays the same."""

import json
import os
import re
import tempfile
import time

from . import inputs

# What was not looked up for so many seconds is forgotten.
AGE = 30 * 24 * 3600
LIBRARY = ("tools/testing/run", "tools/testing/dmtest", "tools/testing/guest", "tools/testing/harness", "tools/testing/functional/conftest.py")
FUNCTIONAL = "tools/testing/functional"
# A test that looks around in the tree depends on all of it, unless it is known where it looks.
LOOKS_AROUND = re.compile(r"__file__|\b__spec__\b|\binspect\b|\broot(?:path|dir)\b|\bfspath\b|\bsys\.path\b")
LOOKS_AT = {
    "test_harness.py": ["tools/testing/harness"],
    "test_thinctl_recipes.py": ["Documentation/metadata-snapshots.rst"],
}
IMPORT = re.compile(r"^\s*(?:from|import) (test_\w+)", re.MULTILINE)


class Passes:
    """The folder where they are. When `fresh`, nothing is found there, but what passes is kept all the same."""

    def __init__(self, folder, fresh=False):
        self._folder = folder
        self._fresh = fresh

    def find(self, key, settings=None, value=lambda text: text):
        """What was kept with this key, if it passed with the same `settings`, as far as it asked for them then, or None.

        `value` gives what counts of a setting.
        """
        if self._fresh:
            return None
        try:
            with open(self._path(key)) as file:
                found = json.load(file)
            os.utime(self._path(key))
        except (OSError, ValueError):
            return None
        for one in found:
            if all(setting == value((settings or {}).get(name, "")) for name, setting in one["asked"].items()):
                return one
        return None

    def keep(self, key, counts, asked=None):
        """Notes that it passed, with these counts; `asked` are the settings that it asked for, as `value` gave them."""
        os.makedirs(self._folder, exist_ok=True)
        entry = {**counts, "asked": asked or {}}
        try:
            with open(self._path(key)) as file:
                found = [one for one in json.load(file) if one["asked"] != entry["asked"]]
        except (OSError, ValueError):
            found = []
        with tempfile.NamedTemporaryFile("w", dir=self._folder, delete=False) as file:
            json.dump([entry, *found[:50]], file)
        os.replace(file.name, self._path(key))

    def forget(self):
        """Removes what has not been of use for long."""
        try:
            files = [entry.path for entry in os.scandir(self._folder) if entry.stat().st_mtime < time.time() - AGE]
        except FileNotFoundError:
            return
        for path in files:
            os.unlink(path)

    def _path(self, key):
        return os.path.join(self._folder, key)


class Files:
    """The keys of test files that run in virtual machines: `config` are the machine's orders."""

    def __init__(self, kernel, config, more=()):
        self._kernel = kernel
        self._config = config
        self._more = list(more)
        self.look()

    def look(self):
        """Forgets what was seen: from now on, keys are of what is there now."""
        self._inputs = inputs.Inputs()
        config = self._config
        self._common = {
            "kernel": self._inputs.kernel(self._kernel),
            "modules": [(name, self._inputs.file(file)) for name, file in sorted(config["modules"].items())],
            "implementations": [(name, file and self._inputs.file(file)) for name, file in sorted(config["implementations"].items())],
            "library": self._inputs.tree(*LIBRARY),
            "tools": self._inputs.tools,
            "orders": {name: config[name] for name in ("job", "impl", "expression", "mark", "share", "append", "parameters")},
            "more": self._more,
        }

    def key(self, test):
        """The key of a file, or of a single test of it."""
        sources = self._sources(test.split("::")[0], set())
        paths = [f"{FUNCTIONAL}/{name}" for name in sources]
        for name in sources:
            if LOOKS_AROUND.search(self._text(name)):
                paths += LOOKS_AT.get(name, ["."])
        tests = self._inputs.tree(*paths)
        return inputs.key({**self._common, "test": test, "tests": tests})

    def value(self, text):
        return self._inputs.value(text)

    def _sources(self, name, seen):
        """The file, and those whose code it uses."""
        if name not in seen:
            seen.add(name)
            for other in IMPORT.findall(self._text(name)):
                self._sources(f"{other}.py", seen)
        return sorted(seen)

    @staticmethod
    def _text(name):
        try:
            with open(os.path.join(inputs.TOP, FUNCTIONAL, name)) as file:
                return file.read()
        except FileNotFoundError:
            return ""
