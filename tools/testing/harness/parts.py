# SPDX-License-Identifier: GPL-2.0
"""The suites of `make test`: the parts that each consists of, what these run, and what they depend on."""

import dataclasses
import os
import pathlib
import sys

from . import inputs

# What the module is built from.
MODULE = ["rust", "tools/testing/bench/load", "Kbuild", "Kconfig", "Makefile", "Cargo.toml", "scripts"]
MACHINES = ["tools/testing/run", "tools/testing/dmtest", "tools/testing/guest", "tools/testing/harness"]
CRATES = ["rust", "Cargo.toml", "Cargo.lock"]
# What tests of the scripts look at; those that are not here depend on the whole tree.
SCRIPTS = {
    "test_cores.py": ["tools/testing", "scripts"],
    "test_parts.py": ["tools/testing", "scripts"],
    "test_passes.py": ["tools/testing", "scripts"],
    "test_bench.py": ["scripts", "tools/testing", "Documentation"],
    "test_dkms.py": [*MODULE, "dkms.conf", "Cargo.lock"],
    "test_graft.py": [*MODULE, "Cargo.lock", "tools/thinctl/Cargo.toml"],
    "test_module.py": MODULE,
    "test_preflight.py": MODULE,
    "test_runs.py": ["scripts", ".ci", "Makefile", "tools/testing"],
    "test_soak.py": ["scripts", "tools/testing"],
    "test_suite.py": ["scripts", "tools/testing"],
}
# Files of the functional tests whose tests all run on the small kernel, too, in the order of the time that they take on the one that looks
# for faults. Others need file systems, disks or calls that the small one lacks.
ALTERNATING = [f"test_{name}.py" for name in (
    "lvm2", "faults", "external_origin", "metadata_space", "bad_input", "modes", "suspend", "dead_devices", "scale", "tables", "limits",
    "compare", "metadata_readers", "failures", "both_ways", "cache", "full_pool", "containerd", "discard_on_delete", "interface", "abort",
    "metadata_snap", "commit", "in_flight", "shutdown", "message_commit", "basic", "write_zeroes", "rollback", "space", "fuzzed_input",
    "two_in_a_table",
)]


@dataclasses.dataclass
class Part:
    """A command that ends with `N passed, N failed`, or is one test itself if it is `single`; `command` builds what it needs, and gives it.

    It takes so many places in the queue for the processors; with none, it asks for them by itself. `depends` is all that counts for what
    comes of it; None, if it sees by itself to what need not run again.
    """

    name: str
    command: object
    places: int = 0
    depends: object = None
    single: bool = False


class Suites:
    """Makes the parts. `build` runs a command of the tree and gives the line that it prints."""

    # Those that take longest first.
    NAMES = ["smoke", "lvm2", "functional", "thinctl", "cargo", "graft", "hostile", "leaks", "cache", "lint", "scripts", "fuzz", "kunit", "power"]

    def __init__(self, top, environment, results, passes, turn, fresh, build):
        self._top = pathlib.Path(top)
        self._environment = environment
        self._results = pathlib.Path(results)
        self._turn = turn
        self._fresh = fresh
        self._passes = ["--passes", str(passes), *(["--fresh"] if fresh else [])]
        self._build = build
        self._seed = 1 if turn == "all" else turn % 1000000 + 1

    def parts(self, name):
        """The parts of a suite."""
        return getattr(self, f"_{name}")()

    def key(self, part):
        """What a part depends on, as it is now."""
        return inputs.key([part.name, part.depends(inputs.Inputs(self._top))]) if part.depends else None

    def _test_files(self, pattern):
        return sorted(path.name for path in (self._top / "tools/testing/functional").glob(pattern))

    def _takes_turn(self, number, count):
        """Whether it is the turn of this one of as many variants."""
        return self._turn == "all" or self._turn % count == number

    def _on(self, *paths, without=(), kernels=(), more=()):
        """What a part depends on: these paths, kernels and values, and the tools."""
        def look(seen):
            return [seen.tree(*paths, without=without), [seen.kernel(self._kernel(name)) for name in kernels], seen.tools, list(more)]

        return look

    def _kernel(self, name):
        return self._environment.get(f"KERNEL_{name.upper()}", "")

    def _module(self, *words):
        return self._build("scripts/module", *words)

    def _thinctl_program(self):
        return self._build("scripts/thinctl", "tests")

    def _run(self, suite, kernel, name, *words):
        """A call of the runner of virtual machines."""
        run = str(self._top / "tools/testing/run")
        return [sys.executable, run, suite, "--kernel", self._kernel(kernel), "--results", str(self._results / name), *map(str, words)]

    def _files(self, name, suite, kernel, words):
        """Test files in virtual machines: `words` gives what else they want."""
        def command():
            return self._run(suite, kernel, name, "-j", 99, "--set", f"seed={self._seed}", *self._passes, *words())

        return Part(name, command)

    def _functional(self):
        """Without those that other suites run. `make soak` runs all.

        What can runs on the kernel that looks for faults every second time, and on the small one, which is several times as
        fast, in between.
        """
        left_out = ["test_memory_faults.py", "test_module.py", "test_snapshots.py", "test_stress.py"]
        tests = [name for name in self._test_files("test_*.py") if name not in left_out and not name.startswith("test_thinctl")]
        small = [name for number, name in enumerate(ALTERNATING) if name in tests and not self._takes_turn(number % 2, 2)]

        def part(name, kernel, files):
            return self._files(name, "functional", kernel, lambda: [
                "--module", self._module(kernel, "check"), "--load", self._module(kernel, "load"), "--append", "kmemleak=off", *files])

        watched = part("functional", "um", [name for name in tests if name not in small])
        return [watched, part("functional-plain", "plain", small)] if small else [watched]

    def _thinctl(self):
        """On pools of this module, on the small kernel. With FRESH=1, a part of the files also on pools of the C module, and a part instead
        on the kernel that looks for faults: there, it is what this module does for thinctl that is watched."""
        tests = self._test_files("test_thinctl*.py")
        more = self._fresh or self._turn == "all"
        watched = [name for number, name in enumerate(tests) if more and self._takes_turn(number % 8, 8)]
        quarter = [name for number, name in enumerate(tests) if more and self._takes_turn(number % 4, 4)]

        def part(name, kernel, module, files):
            return self._files(f"thinctl-{name}", "functional", kernel, lambda: [
                *(["--module", self._module(module)] if module else []), "--append", "kmemleak=off", "--set", f"thinctl={self._thinctl_program()}",
                *files])

        found = [
            ("watched", "um", "um", watched), ("rust", "plain", "plain", [name for name in tests if name not in watched]),
            ("c", "plain", None, quarter),
        ]
        return [part(*one) for one in found if one[3]]

    def _leaks(self):
        """Looking for lost memory more than doubles the time: it is done where functions are left in the midst; `make soak` does it with all."""
        return [self._files("leaks", "functional", "um", lambda: [
            "--module", self._module("um", "check"), "test_memory_faults.py", "test_module.py", "test_snapshots.py", "test_stress.py"])]

    def _cache(self):
        """With a cache of one page, and with none: what depends on mappings most. `make soak` does this with all tests."""
        def part(pages):
            return self._files(f"cache-{pages}", "functional", "um", lambda: [
                "--module", self._module("um", "check"), "--append", "kmemleak=off", "--parameter", f"mapping_cache_pages={pages}",
                "test_commit.py", "test_discard.py", "test_snapshots.py", "test_stress.py"])

        return [part(pages) for pages in (0, 1) if self._takes_turn(pages, 2)]

    def _smoke(self):
        """User Mode Linux runs all of these; without KVM, x86_64 takes its time."""
        return [self._quarter("smoke", lambda: ["--load", self._module("x86_64", "load")])]

    def _lvm2(self):
        return [self._quarter("lvm2", lambda: ["--set", f"thinctl={self._thinctl_program()}"])]

    def _quarter(self, suite, words):
        """The quarter of a suite's tests whose turn it is, or all of them."""
        share = "0/1" if self._turn == "all" else f"{self._turn % 4}/4"
        return self._files(suite, suite, "x86_64", lambda: [
            "--module", self._module("x86_64"), "--vng", self._environment.get("VNG", ""), "--append", "kfence.sample_interval=10", "--share", share,
            *words()])

    def _kunit(self):
        def command():
            return self._run("kunit", "um", "kunit", "--module", self._module("um", "kunit"), "--load", self._module("um", "load", "kunit"))

        return [Part("kunit", command, 1, self._on(*MODULE, *MACHINES, kernels=["um"]))]

    def _power(self):
        """Machines that are killed; power cuts in general are among the functional tests."""
        def command():
            return self._run("power", "um", "power", "--module", self._module("um", "check"), "--kills", 4, "--seed", self._seed)

        return [Part("power", command, 1, self._on(*MODULE, *MACHINES, kernels=["um"], more=[self._seed]))]

    def _fuzz(self):
        command = [sys.executable, str(self._top / "tools/testing/fuzz/run"), "--executions", "100000", "--jobs", str(os.cpu_count())]
        command += ["--seed", str(self._seed)]
        return [Part("fuzz", lambda: command, 2, self._on(*CRATES, "tools/testing/fuzz", more=[self._seed]))]

    def _hostile(self):
        """Metadata images that nobody would write."""
        def command():
            cargo = self._environment.get("CARGO", "cargo")
            self._build(cargo, "build", "--release", "--locked", "-p", "dm_thin_fuzz", "--bin", "hostile_images")
            program = pathlib.Path(self._environment.get("CARGO_TARGET_DIR", self._top / "target"), "release/hostile_images")
            module = self._module("um", "check")
            return self._run("hostile", "um", "hostile", "--module", module, "--images-program", program, "--count", 100, "--seed", self._seed)

        return [Part("hostile", command, 2, self._on(*MODULE, *MACHINES, *CRATES, "tools/testing/fuzz", kernels=["um"], more=[self._seed]))]

    def _graft(self):
        """Built into the kernel, or as a module of its tree."""
        kinds = [name for number, name in enumerate(["built-in", "module"]) if self._takes_turn(number, 2)]
        command = [str(self._top / "scripts/tests/graft"), str(self._results / "graft"), *kinds]
        paths = [*MODULE, *MACHINES, "Cargo.lock", "tools/testing/functional"]
        return [Part("graft", lambda: command, 2, self._on(*paths, kernels=["um"], more=kinds))]

    def _lint(self):
        def part(check):
            command = ["make", "-C", str(self._top), "--no-print-directory", check]
            return Part(f"lint-{check}", lambda: command, 2, self._on(".", without=[".py"], kernels=["um"]), single=True)

        return [part("fmtcheck"), part("clippy")]

    def _scripts(self):
        def part(name):
            command = [sys.executable, str(self._top / "scripts/tests/run"), name]
            depends = self._on(*SCRIPTS.get(name, ["."]), kernels=["um", "x86_64"])
            return Part(f"scripts-{name[len('test_'):-len('.py')]}", lambda: command, 1, depends)

        return [part(path.name) for path in sorted((self._top / "scripts/tests").glob("test_*.py"))]

    def _cargo(self):
        def command():
            # All else that cargo builds is for this suite only, and other suites wait for this.
            self._thinctl_program()
            return [sys.executable, str(self._top / "tools/testing/harness/cargo.py"), *self._passes]

        return [Part("cargo", command)]
