# SPDX-License-Identifier: GPL-2.0
"""What the suites of `make test` run: variants take turns, and none is forgotten."""

import collections
import pathlib
import re
import sys
import unittest

TOP = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP / "tools" / "testing"))

from harness import parts  # noqa: E402

FUNCTIONAL = {path.name for path in (TOP / "tools/testing/functional").glob("test_*.py")}
KERNELS = {"KERNEL_UM": "/um", "KERNEL_PLAIN": "/plain", "KERNEL_X86_64": "/x86_64", "VNG": "/vng", "CARGO": "/cargo"}
# After so many turns, all variants have played.
ROUND = 8


def play(suite, turn, fresh=True):
    """The commands of a suite's parts by their names."""
    suites = parts.Suites(TOP, KERNELS, "/results", "/passes", turn, fresh, lambda *words: f"/{'-'.join(words)}")
    return {part.name: part.command() for part in suites.parts(suite)}


def files(command):
    return {word for word in command if word.startswith("test_")}


class Turns(unittest.TestCase):
    def played(self, suite, turn, fresh=True):
        """The files that a suite plays, by part."""
        return {name: files(command) for name, command in play(suite, turn, fresh).items()}

    def test_functional(self):
        """Each file on some kernel, and at least every second time on the one that looks for faults."""
        wanted = {name for name in FUNCTIONAL if not re.match("test_(thinctl|memory_faults|module|snapshots|stress)", name)}
        watched = []
        for turn in range(ROUND):
            played = self.played("functional", turn)
            self.assertEqual(sum(map(len, played.values())), len(wanted))
            self.assertEqual(set.union(*played.values()), wanted)
            watched.append(played["functional"])
        for before, after in zip(watched, watched[1:]):
            self.assertEqual(before | after, wanted)
        self.assertEqual(self.played("functional", "all"), {"functional": wanted})

    def test_thinctl(self):
        """Each file on this module, in a round once on the kernel that looks for faults, and twice on the C module."""
        wanted = {name for name in FUNCTIONAL if name.startswith("test_thinctl")}
        count = collections.Counter()
        for turn in range(ROUND):
            played = self.played("thinctl", turn)
            self.assertEqual(played["thinctl-rust"] | played["thinctl-watched"], wanted)
            self.assertFalse(played["thinctl-rust"] & played["thinctl-watched"])
            for part in "thinctl-watched", "thinctl-c":
                count.update((part, name) for name in played[part])
            self.assertEqual(self.played("thinctl", turn, False), {"thinctl-rust": wanted})
        self.assertEqual(count, {**{("thinctl-watched", name): 1 for name in wanted}, **{("thinctl-c", name): 2 for name in wanted}})
        for fresh in False, True:
            self.assertEqual(self.played("thinctl", "all", fresh), {"thinctl-watched": wanted, "thinctl-c": wanted})

    def test_their_kernels_and_modules(self):
        def given(command):
            return command[command.index("--kernel") + 1], command[command.index("--module") + 1] if "--module" in command else None

        self.assertEqual({name: given(command) for suite in ("functional", "thinctl") for name, command in play(suite, 0).items()}, {
            "functional": ("/um", "/scripts/module-um-check"), "functional-plain": ("/plain", "/scripts/module-plain-check"),
            "thinctl-watched": ("/um", "/scripts/module-um"), "thinctl-rust": ("/plain", "/scripts/module-plain"), "thinctl-c": ("/plain", None),
        })

    def test_others(self):
        """What the turns play of the other suites, in a round, is what all plays."""
        for suite, pattern, wanted in (
            ("smoke", r"--share (\S+)", {f"{number}/4" for number in range(4)}), ("lvm2", r"--share (\S+)", {f"{number}/4" for number in range(4)}),
            ("cache", r"mapping_cache_pages=(\d)", {"0", "1"}), ("graft", r"/results/graft (.*)", {"built-in", "module"}),
        ):
            played = {
                match for turn in range(ROUND) for command in play(suite, turn).values() for match in re.findall(pattern, " ".join(map(str, command)))
            }
            self.assertEqual(played, wanted, suite)

    def test_all(self):
        for suite in "smoke", "lvm2":
            self.assertIn("--share 0/1", " ".join(play(suite, "all")[suite]))
        self.assertEqual(set(play("cache", "all")), {"cache-0", "cache-1"})
        self.assertEqual(play("graft", "all")["graft"][2:], ["built-in", "module"])

    def test_seed(self):
        for turn, seed in ((0, 1), (1, 2), (1000005, 6), ("all", 1)):
            self.assertIn(f"seed={seed}", play("leaks", turn)["leaks"])
            self.assertEqual(play("power", turn)["power"][-1], str(seed))


class Depends(unittest.TestCase):
    def test_files_are_there(self):
        """What parts are said to depend on exists."""
        names = {*parts.MODULE, *parts.MACHINES, *parts.CRATES, *(name for names in parts.SCRIPTS.values() for name in names)}
        self.assertEqual([name for name in sorted(names) if not (TOP / name).exists()], [])
        tests = [f"scripts/tests/{name}" for name in parts.SCRIPTS] + [f"tools/testing/functional/{name}" for name in parts.ALTERNATING]
        self.assertEqual([name for name in tests if not (TOP / name).exists()], [])

    def test_seeds(self):
        """Another seed is another key, for what is random."""
        def keys(turn):
            suites = parts.Suites(TOP, KERNELS, "/results", "/passes", turn, False, None)
            return {part.name: suites.key(part) for suite in parts.Suites.NAMES for part in suites.parts(suite) if part.depends}

        one, two, other = keys(0), keys(0), keys(2)
        self.assertEqual(one, two)
        self.assertEqual({name for name in one if one[name] != other[name]}, {"power", "fuzz", "hostile"})
        self.assertNotEqual(keys(1)["graft"], one["graft"])


if __name__ == "__main__":
    unittest.main()
