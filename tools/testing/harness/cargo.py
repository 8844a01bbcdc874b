# SPDX-License-Identifier: GPL-2.0
"""Builds cargo's tests and runs each program of them, at once as far as the queue for the processors lets it: see --help."""

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from harness import cores, inputs, passes  # noqa: E402

CARGO = os.environ.get("CARGO", "cargo")
RESULT = re.compile(r"^test result: .* ([0-9]+) passed; ([0-9]+) failed", re.MULTILINE)
# What a program takes of which nothing is known.
USUAL = 30


class Programs:
    """Plays the programs and counts what they tell."""

    def __init__(self, known):
        self._known = known
        self._lock = threading.Lock()
        self.passed = self.failed = self.unchanged = 0

    def play(self, name, command, folder, environment, key, seconds):
        """Runs one, unless it has passed before; its lines are shown once it has ended. `key()` is what it depends on."""
        before = key()
        found = self._known.find(before) if self._known else None
        if found:
            with self._lock:
                print(f"unchanged          {name}, {found['passed']} passed", flush=True)
                self.passed += found["passed"]
                self.unchanged += found["passed"]
            return
        with cores.Place(1, seconds):
            began = time.monotonic()
            done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        counts = [(int(passed), int(failed)) for passed, failed in RESULT.findall(done.stdout)]
        passed, failed = sum(one[0] for one in counts), sum(one[1] for one in counts)
        if not failed and (done.returncode or not counts):
            failed = 1
        with self._lock:
            print(f"{name}, {time.monotonic() - began:.1f} s:\n{done.stdout.rstrip()}", flush=True)
            self.passed += passed
            self.failed += failed
        # Also that there are no tests in it is worth knowing: it takes as long to build.
        if self._known and not failed and counts and key() == before:
            self._known.keep(before, {"passed": passed})


def programs():
    """Builds the programs; gives what cargo tells of each. Exits if they cannot be built."""
    command = [CARGO, "test", "--workspace", "--locked", "--no-run", "--message-format=json-render-diagnostics"]
    with cores.Place(2, 1000):
        done = subprocess.run(command, cwd=inputs.TOP, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print("\n".join(line for line in done.stdout.splitlines() if not line.startswith("{")), flush=True)
        sys.exit(done.returncode)
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [one for one in told if one.get("reason") == "compiler-artifact" and one["profile"]["test"] and one.get("executable")]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passes", metavar="FOLDER", help="keep there what has passed, and do not run it again while all it depends on is the same")
    parser.add_argument("--fresh", action="store_true", help="run also what has passed; keep it all the same")
    options = parser.parse_args()
    playing = Programs(passes.Passes(options.passes, options.fresh) if options.passes else None)
    threads = []

    def start(*arguments):
        threads.append(threading.Thread(target=playing.play, args=arguments))
        threads[-1].start()

    for one in programs():
        folder = os.path.dirname(one["manifest_path"])
        name = f"{os.path.relpath(folder, inputs.TOP)} {one['target']['name']}"

        def key(program=one["executable"], folder=folder, name=name):
            seen = inputs.Inputs()
            # What the program was built from is in it; the folder has what it reads.
            own = seen.tree(os.path.relpath(folder, inputs.TOP), "rust", "Cargo.toml", "Cargo.lock")
            return inputs.key(["cargo", name, seen.file(program), own, seen.tools])

        # As cargo itself would start it; what has failed is printed, and not written into the tree, which others look at meanwhile.
        environment = {**os.environ, "CARGO_MANIFEST_DIR": folder, "CARGO": CARGO, "PROPTEST_DISABLE_FAILURE_PERSISTENCE": "1"}
        start(name, [one["executable"]], folder, environment, key, USUAL)

    def documents():
        seen = inputs.Inputs()
        return inputs.key(["cargo documents", seen.tree(".", without=[".py"]), seen.tools])

    start("examples in the documentation", [CARGO, "test", "--workspace", "--locked", "--doc"], inputs.TOP, None, documents, USUAL)
    for thread in threads:
        thread.join()
    counts = f" (of these {playing.unchanged} unchanged)" if playing.unchanged else ""
    print(f"cargo: {playing.passed} passed, {playing.failed} failed{counts}", flush=True)
    return 0 if playing.passed and not playing.failed else 1


if __name__ == "__main__":
    sys.exit(main())
