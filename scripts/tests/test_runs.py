# SPDX-License-Identifier: GPL-2.0
"""The scripts that run others count and report what those did."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

TOP = pathlib.Path(__file__).resolve().parents[2]


class Room(unittest.TestCase):
    """A folder of its own, with our scripts as they are and fakes beside them."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.room = pathlib.Path(folder.name)
        self.env = {**os.environ, "DM_THIN_CACHE": f"{self.room}/cache"}

    def copy(self, *names):
        for name in names:
            path = self.room / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TOP / name, path)

    def fake(self, name, body):
        path = self.room / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body)
        path.chmod(0o755)

    def call(self, *command):
        return subprocess.run(
            command, cwd=self.room, env=self.env, capture_output=True, text=True, check=False)


class Ci(Room):
    """`.ci/run` ends with one plain line, whatever `make test` does."""

    def outcome(self, make):
        self.copy(".ci/run")
        self.fake("bin/make", f"#!/bin/sh\n{make}\n")
        self.env["PATH"] = f"{self.room}/bin:{os.environ['PATH']}"
        result = self.call(self.room / ".ci/run")
        return result.returncode, result.stdout.splitlines()[-1]

    def test_passes(self):
        self.assertEqual(self.outcome("echo total: 12 passed, 0 failed"),
                         (0, "12 passed, 0 failed"))

    def test_fails(self):
        self.assertEqual(self.outcome("echo total: 12 passed, 10 failed; exit 2"),
                         (1, "12 passed, 10 failed"))

    def test_breaks_off(self):
        self.assertEqual(self.outcome("echo lint: 2 passed, 0 failed; exit 2"),
                         (1, "0 passed, 1 failed"))


class Test(Room):
    """`scripts/test` adds up its suites."""

    def setUp(self):
        super().setUp()
        self.copy("scripts/test", "scripts/lib.sh")
        self.fake("scripts/setup", '#!/bin/sh\n[ "$1" = env ] || exit 0\n'
                  f"echo export CARGO={self.room}/cargo KERNEL_UM=/um KERNEL_PLAIN=/plain KERNEL_X86_64=/x VNG=/vng\n")
        self.fake("scripts/module", "#!/bin/sh\necho /module.ko\n")
        self.fake("scripts/thinctl", "#!/bin/sh\necho /thinctl\n")
        self.fake("scripts/tests/run", "#!/bin/sh\necho scripts: 5 passed, 0 failed\n")
        self.fake("cargo", "#!/bin/sh\nfor i in 3 4; do\n"
                  "echo test result: ok. $i passed\\; 0 failed\\; 1 ignored\ndone\n")
        self.fake_vms("print(sys.argv[1] + ': 20 passed, 0 failed, 1 skipped in 3 s')")

    def fake_vms(self, body):
        self.fake("tools/testing/run", f"import sys\n{body}\n")

    def outcome(self, *suites):
        result = self.call(self.room / "scripts/test", *suites)
        return result.returncode, result.stdout.splitlines()[-1]

    def test_adds_up(self):
        self.assertEqual(self.outcome("scripts", "cargo", "kunit", "functional", "smoke"),
                         (0, "total: 72 passed, 0 failed"))

    def test_table(self):
        """Each suite has a line, with the seconds that it took; the table is kept."""
        self.fake("cargo", "#!/bin/sh\nsleep 2\necho test result: ok. 3 passed\\; 1 failed\n")
        shown = self.call(self.room / "scripts/test", "scripts", "cargo").stdout
        table = (self.room / "cache/results/table").read_text()
        self.assertIn(f"\n\n{table}", shown)
        kept = table.splitlines()
        lines = [re.fullmatch(r"(\w+) +(\d+ passed, \d+ failed) in (\d+) s, \d+ s of a processor", line).groups() for line in kept]
        self.assertEqual([line[:2] for line in lines],
                         [("setup", "0 passed, 0 failed"), ("scripts", "5 passed, 0 failed"), ("cargo", "3 passed, 1 failed")])
        self.assertGreaterEqual(int(lines[2][2]), 2)
        self.outcome("scripts")
        self.assertEqual(len((self.room / "cache/results/table").read_text().splitlines()), 2)

    def test_parts_of_a_suite(self):
        self.env["TURN"] = "all"
        self.assertEqual(self.outcome("cache"), (0, "total: 40 passed, 0 failed"))
        self.fake_vms("'mapping_cache_pages=0' in sys.argv or print('it: 7 passed, 0 failed')")
        self.assertEqual(self.outcome("cache"), (1, "total: 7 passed, 1 failed"))

    def test_turns(self):
        """Variants take turns; none is forgotten."""
        self.fake_vms("print(*sys.argv[1:]); print('it: 7 passed, 0 failed')")
        for number in range(3):
            self.fake(f"tools/testing/functional/test_thinctl_{number}.py", "")
        self.fake("scripts/tests/graft", "#!/bin/sh\necho graft: $#: $2 $3: 5 passed, 0 failed\n")
        played, seeds = [], []
        for turn in ("0", "1", "all"):
            self.env["TURN"] = turn
            self.assertEqual(self.call(self.room / "scripts/test", "cache", "thinctl", "graft").returncode, 0)
            logs = "".join((self.room / f"cache/results/{suite}.log").read_text() for suite in ("cache", "thinctl", "graft"))
            without_module = [line for line in logs.splitlines() if "thinctl=" in line and "--module" not in line]
            self.assertEqual(logs.count("--module"), 3)
            halves = self.call(self.room / "scripts/test", "smoke").stdout
            seeds.append(re.findall(r"seed=(\d+)", halves + logs))
            played.append({
                *re.findall(r"--share \d/2|--share 0/1", halves.replace("0/1", "0/2 --share 1/2")),
                *re.findall(r"mapping_cache_pages=\d", logs), *re.findall(r"built-in|module(?=: 5| : 5)", logs),
                *(word for line in without_module for word in line.split() if word.endswith(".py")),
            })
        self.assertEqual(played[0] | played[1], played[2])
        self.assertEqual(len(played[2]), 9)
        self.assertFalse(played[0] & played[1])
        self.assertEqual([set(each) for each in seeds], [{"1"}, {"2"}, {"1"}])

    def test_turns_of_what_is_watched(self):
        """Each file of thinctl's tests is played under this module, and by turns on the kernel that looks for faults."""
        self.fake_vms("print(*sys.argv[1:]); print('it: 7 passed, 0 failed')")
        files = {f"test_thinctl_{number}.py" for number in range(5)}
        for name in files:
            self.fake(f"tools/testing/functional/{name}", "")
        watched = []
        for turn in ("0", "1", "2", "3", "all"):
            self.env["TURN"] = turn
            self.assertEqual(self.call(self.room / "scripts/test", "thinctl").returncode, 0)
            lines = (self.room / "cache/results/thinctl.log").read_text().splitlines()
            played = {
                part: [word for line in lines if f"results/thinctl-{part} " in line for word in line.split() if word in files]
                for part in ("watched", "rust")
            }
            self.assertEqual(sorted(played["watched"] + played["rust"]), sorted(files))
            watched.append(played["watched"])
        self.assertEqual(sorted(sum(watched[:4], [])), sorted(files))
        self.assertEqual(sorted(watched[4]), sorted(files))

    def test_turn_that_is_no_number(self):
        self.env["TURN"] = "x"
        self.assertNotEqual(self.call(self.room / "scripts/test", "scripts").returncode, 0)

    def test_two_at_once(self):
        """Each waits for the other, so one after the other would not end."""
        for name, other in (("scripts/tests/run", "b"), ("cargo", "a")):
            mine = "a" if other == "b" else "b"
            self.fake(name, f"#!/bin/sh\ntouch {self.room}/{mine}\nfor i in $(seq 100); do\n"
                      f"[ ! -e {self.room}/{other} ] || exec echo it: 1 passed\\; 0 failed\nsleep 0.1\ndone\nexit 1\n")
        self.assertEqual(self.outcome("scripts", "cargo"), (0, "total: 2 passed, 0 failed"))

    def test_lines_tell_their_suite(self):
        shown = self.call(self.room / "scripts/test", "scripts").stdout
        self.assertIn("scripts: scripts: 5 passed, 0 failed\n", shown)

    def test_failures_count(self):
        self.fake_vms("print('smoke: 18 passed, 2 failed'); sys.exit(1)")
        self.assertEqual(self.outcome("smoke", "scripts"), (1, "total: 23 passed, 2 failed"))

    def test_failures_are_named_at_the_end(self):
        """What failed, and the beginning and the end of why, stands between the table and the total."""
        self.fake_vms(
            "print('FAILED     1.2 s  test_a.py::one')\n"
            "print('    [call]\\n        assert f() == 2\\n    E   assert 1 == 2\\n    E    +  where 1 = f()\\n    \\n    a.py:12: AssertionError')\n"
            "print('passed     0.1 s  test_a.py::two\\nFAILED     0.0 s  test_a.py::three\\nit: 18 passed, 2 failed')")
        shown = self.call(self.room / "scripts/test", "smoke", "scripts").stdout.splitlines()
        self.assertEqual([line for line in shown[shown.index("") + 1:] if line.startswith("smoke: ")], [
            "smoke: FAILED     1.2 s  test_a.py::one", "smoke:     E   assert 1 == 2", "smoke:     E    +  where 1 = f()",
            "smoke:     a.py:12: AssertionError", "smoke: FAILED     0.0 s  test_a.py::three",
        ])

    def test_failure_without_a_name(self):
        self.fake("cargo", "#!/bin/sh\necho error: could not compile\nexit 101\n")
        shown = self.call(self.room / "scripts/test", "cargo").stdout.splitlines()
        self.assertEqual(shown[-2:], ["cargo: error: could not compile", "total: 0 passed, 1 failed"])

    def test_no_summary_is_a_failure(self):
        self.fake_vms("sys.exit(0)")
        self.assertEqual(self.outcome("kunit", "scripts"), (1, "total: 5 passed, 1 failed"))

    def test_exit_code_counts(self):
        self.fake_vms("print('kunit: 9 passed, 0 failed'); sys.exit(1)")
        self.assertEqual(self.outcome("kunit"), (1, "total: 9 passed, 1 failed"))

    def test_broken_module_is_a_failure(self):
        self.fake("scripts/module", "#!/bin/sh\nexit 2\n")
        self.assertEqual(self.outcome("kunit", "scripts"), (1, "total: 5 passed, 1 failed"))

    def test_broken_cargo_is_a_failure(self):
        self.fake("cargo", "#!/bin/sh\necho error: could not compile\nexit 101\n")
        self.assertEqual(self.outcome("cargo", "scripts"), (1, "total: 5 passed, 1 failed"))

    def test_broken_setup_is_a_failure(self):
        self.fake("scripts/setup", "#!/bin/sh\nexit 1\n")
        self.assertEqual(self.outcome(), (1, "total: 0 passed, 1 failed"))

    def test_unknown_suite(self):
        result = self.call(self.room / "scripts/test", "nonsense")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("no suite nonsense", result.stderr)


class Run(Room):
    """Steps of the set-up log, and end with it."""

    def setUp(self):
        super().setUp()
        self.copy("scripts/lib.sh")
        self.log = self.room / "log"

    def script(self, body):
        self.fake("scripts/it", f'#!/bin/bash\n. "$(dirname "$0")/lib.sh"\n{body}\n')
        return self.room / "scripts/it"

    def test_output_is_logged(self):
        result = self.call(self.script(f"run step {self.log} last_line echo hello; echo done"))
        self.assertEqual((result.returncode, result.stdout), (0, "done\n"))
        self.assertIn("step", result.stderr)
        self.assertIn("hello", self.log.read_text())

    def test_failure_shows_the_log(self):
        body = f"f() {{ echo what went wrong; return 3; }}\nrun step {self.log} last_line f; echo done"
        result = self.call(self.script(body))
        self.assertEqual((result.returncode, result.stdout), (1, ""))
        self.assertIn("what went wrong", result.stderr)
        self.assertIn(f"step failed; the whole log is {self.log}", result.stderr)

    def test_ended_with_all_that_it_started(self):
        pid = self.room / "pid"
        body = f"f() {{ sleep 100 & echo $! >{pid}; wait; }}\nrun step {self.log} last_line f"
        with subprocess.Popen([self.script(body)], env=self.env,
                              stderr=subprocess.DEVNULL) as process:
            self.wait_for(lambda: pid.exists() and pid.read_text().strip())
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(timeout=10), 130)
        stat = pathlib.Path("/proc", pid.read_text().strip(), "stat")
        self.wait_for(lambda: not stat.exists() or ") Z " in stat.read_text())

    def wait_for(self, condition):
        for _ in range(100):
            if condition():
                return
            time.sleep(0.1)
        self.fail("waited in vain")
