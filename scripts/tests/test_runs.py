# SPDX-License-Identifier: GPL-2.0
"""The scripts that run others count and report what those did."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
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
        # What the run is told that these tests are part of is not for the runs that they make.
        ours = {name: value for name, value in os.environ.items() if name not in ("FRESH", "TURN", "DM_THIN_CORES")}
        self.env = {**ours, "DM_THIN_CACHE": f"{self.room}/cache"}

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

    def wait_for(self, condition):
        for _ in range(100):
            if condition():
                return
            time.sleep(0.1)
        self.fail("waited in vain")


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

    HARNESS = ["__init__", "cargo", "cores", "failures", "guard", "inputs", "parts", "passes", "schedule"]

    def setUp(self):
        super().setUp()
        self.copy("scripts/test", "scripts/packages", *(f"tools/testing/harness/{name}.py" for name in self.HARNESS))
        self.fake("scripts/setup", '#!/bin/sh\n[ "$1" = env ] || exit 0\n'
                  f"echo export CARGO={self.room}/cargo KERNEL_UM=/um KERNEL_PLAIN=/plain KERNEL_X86_64=/x VNG=/vng\n")
        self.fake("scripts/module", "#!/bin/sh\necho /module.ko\n")
        self.fake("scripts/thinctl", "#!/bin/sh\necho /thinctl\n")
        self.fake("scripts/tests/test_some.py", "")
        self.fake("scripts/tests/run", "print('scripts: 5 passed, 0 failed')\n")
        self.fake_cargo("for i in 3 4; do echo test result: ok. $i passed\\; 0 failed\\; 1 ignored; done")
        self.fake_vms("print(sys.argv[1] + ': 20 passed, 0 failed, 1 skipped in 3 s')")

    def fake_cargo(self, tests, documents="echo test result: ok. 0 passed\\; 0 failed"):
        """Has cargo build a program that does `tests`."""
        self.fake("crate/program", f"#!/bin/sh\n{tests}\n")
        told = {"reason": "compiler-artifact", "profile": {"test": True}, "executable": f"{self.room}/crate/program",
                "manifest_path": f"{self.room}/crate/Cargo.toml", "target": {"name": "tests"}}
        self.fake("cargo", f"#!/bin/sh\ncase $* in\n*--no-run*) echo '{json.dumps(told)}' ;;\n*) {documents} ;;\nesac\n")

    def fake_vms(self, body):
        self.fake("tools/testing/run", f"import sys\n{body}\n")

    def play(self, *suites, **environment):
        return subprocess.run([sys.executable, self.room / "scripts/test", *suites], cwd=self.room, env={**self.env, **environment},
                              capture_output=True, text=True, check=False)

    def outcome(self, *suites, **environment):
        result = self.play(*suites, **environment)
        return result.returncode, result.stdout.splitlines()[-1]

    def test_adds_up(self):
        self.assertEqual(self.outcome("scripts", "cargo", "kunit", "functional", "smoke"),
                         (0, "total: 72 passed, 0 failed"))

    def test_table(self):
        """Each suite has a line, with the seconds that it took; the table is kept."""
        self.fake_cargo("sleep 2; echo test result: FAILED. 3 passed\\; 1 failed; exit 1")
        shown = self.play("scripts", "cargo").stdout
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

    def test_turn_is_kept(self):
        """It is that of the commit with FRESH=1, and stays what it was without."""
        self.fake_vms("print(*sys.argv[1:]); print('it: 7 passed, 0 failed')")

        def seed(**environment):
            return re.search(r"seed=(\d+)", self.play("leaks", **environment).stdout)[1]

        self.assertEqual(seed(), "1")
        self.assertEqual([seed(TURN="6"), seed()], ["7", "7"])
        self.assertEqual([seed(TURN="all"), seed()], ["1", "7"])
        self.assertEqual([seed(FRESH="1"), seed()], ["1", "1"])

    def test_turn_that_is_no_number(self):
        self.env["TURN"] = "x"
        self.assertNotEqual(self.play("scripts").returncode, 0)

    def test_all_at_once(self):
        """Each waits for the other, so one after the other would not end."""
        for name, other in (("a", "b"), ("b", "a")):
            script = (f"touch {self.room}/{name}\nfor i in $(seq 100); do\n"
                      f"[ ! -e {self.room}/{other} ] || exec echo test result: it: 1 passed\\; 0 failed\nsleep 0.1\ndone\nexit 1\n")
            if name == "a":
                self.fake_cargo(script)
            else:
                self.fake("wait", f"#!/bin/sh\n{script}")
                self.fake("scripts/tests/run", f"import os\nos.execv('{self.room}/wait', ['wait'])\n")
        self.assertEqual(self.outcome("scripts", "cargo"), (0, "total: 2 passed, 0 failed"))

    def test_lines_tell_their_suite(self):
        self.assertIn("scripts: scripts: 5 passed, 0 failed\n", self.play("scripts").stdout)

    def test_failures_count(self):
        self.fake_vms("print('smoke: 18 passed, 2 failed'); sys.exit(1)")
        self.assertEqual(self.outcome("smoke", "scripts"), (1, "total: 23 passed, 2 failed"))

    def test_failures_are_named_at_the_end(self):
        """What failed, and the beginning and the end of why, stands between the table and the total."""
        self.fake_vms(
            "print('FAILED     1.2 s  test_a.py::one')\n"
            "print('    [call]\\n        assert f() == 2\\n    E   assert 1 == 2\\n    E    +  where 1 = f()\\n    \\n    a.py:12: AssertionError')\n"
            "print('passed     0.1 s  test_a.py::two\\nFAILED     0.0 s  test_a.py::three\\nit: 18 passed, 2 failed')")
        shown = self.play("smoke", "scripts").stdout.splitlines()
        self.assertEqual([line for line in shown[shown.index("") + 1:] if line.startswith("smoke: ")], [
            "smoke: FAILED     1.2 s  test_a.py::one", "smoke:     E   assert 1 == 2", "smoke:     E    +  where 1 = f()",
            "smoke:     a.py:12: AssertionError", "smoke: FAILED     0.0 s  test_a.py::three",
        ])

    def test_failure_without_a_name(self):
        self.fake("cargo", "#!/bin/sh\necho error: could not compile\nexit 101\n")
        shown = self.play("cargo").stdout.splitlines()
        self.assertEqual(shown[-2:], ["cargo: error: could not compile", "total: 0 passed, 1 failed"])

    def test_no_summary_is_a_failure(self):
        self.fake_vms("sys.exit(0)")
        self.assertEqual(self.outcome("kunit", "scripts"), (1, "total: 5 passed, 1 failed"))

    def test_exit_code_counts(self):
        self.fake_vms("print('kunit: 9 passed, 0 failed'); sys.exit(1)")
        self.assertEqual(self.outcome("kunit"), (1, "total: 9 passed, 1 failed"))

    def test_broken_module_is_a_failure(self):
        self.fake("scripts/module", "#!/bin/sh\necho what is wrong >&2\nexit 2\n")
        result = self.play("kunit", "scripts")
        self.assertEqual((result.returncode, result.stdout.splitlines()[-1]), (1, "total: 5 passed, 1 failed"))
        self.assertIn("kunit: what is wrong\n", result.stdout)

    def test_broken_program_of_cargos_is_a_failure(self):
        self.fake_cargo("echo test result: ok. 3 passed\\; 0 failed; exit 3")
        self.assertEqual(self.outcome("cargo"), (1, "total: 3 passed, 1 failed"))
        self.fake_cargo("echo test result: ok. 3 passed\\; 0 failed", "exit 3")
        self.assertEqual(self.outcome("cargo"), (1, "total: 3 passed, 1 failed"))

    def test_broken_cargo_is_a_failure(self):
        self.fake("cargo", "#!/bin/sh\necho error: could not compile\nexit 101\n")
        self.assertEqual(self.outcome("cargo", "scripts"), (1, "total: 5 passed, 1 failed"))

    def test_broken_setup_is_a_failure(self):
        self.fake("scripts/setup", "#!/bin/sh\nexit 1\n")
        self.assertEqual(self.outcome(), (1, "total: 0 passed, 1 failed"))

    def test_unknown_suite(self):
        result = self.play("nonsense")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("no suite nonsense", result.stderr)

    def test_unchanged(self):
        """What has passed does not run again, and counts all the same."""
        total = "total: 12 passed, 0 failed"
        self.fake(".gitignore", "cache/\n")
        self.call("git", "init", "-q")
        self.assertEqual(self.outcome("scripts", "cargo"), (0, total))
        for name in ("scripts/tests/run", "crate/program"):
            self.assertNotIn("unchanged", self.play("scripts", "cargo", FRESH="1").stdout)
            shown = self.play("scripts", "cargo").stdout
            self.assertEqual(shown.splitlines()[-1], total)
            self.assertIn("scripts: scripts-some: unchanged, 5 passed\n", shown)
            self.assertRegex(shown, r"cargo: unchanged +crate tests, 7 passed\n")
            self.assertRegex(shown, r"cargo: unchanged +examples in the documentation, 0 passed\n")
            (self.room / name).write_text((self.room / name).read_text() + "\n")
            shown = self.play("scripts", "cargo").stdout
            # The script's test depends on the whole tree.
            self.assertEqual("unchanged, 5" in shown, False)
            self.assertEqual("crate tests, 7 passed" in shown, name != "crate/program")

    def test_what_fails_is_not_kept(self):
        self.fake("scripts/tests/run", "print('scripts: 5 passed, 1 failed')\n")
        for _ in range(2):
            shown = self.play("scripts").stdout
            self.assertNotIn("unchanged", shown)
            self.assertEqual(shown.splitlines()[-1], "total: 5 passed, 1 failed")

    def test_what_changes_meanwhile_is_not_kept(self):
        self.fake("scripts/tests/run", f"open('{self.room}/new', 'a').write('x')\nprint('scripts: 5 passed, 0 failed')\n")
        for _ in range(2):
            self.assertNotIn("unchanged", self.play("scripts").stdout)

    def test_who_has_a_place_waits_for_no_other(self):
        self.fake_vms("import os; print('in the queue:', 'DM_THIN_CORES' in os.environ); print('it: 7 passed, 0 failed')")
        shown = self.play("leaks", "kunit").stdout
        self.assertIn("leaks: in the queue: True\n", shown)
        self.assertIn("kunit: in the queue: False\n", shown)

    def test_passes_are_for_the_machines(self):
        self.fake_vms("print(*sys.argv[1:]); print('it: 7 passed, 0 failed')")
        self.assertRegex(self.play("leaks").stdout, rf"--passes {self.room}/cache/passes (?!--fresh)")
        self.assertRegex(self.play("leaks", FRESH="1").stdout, rf"--passes {self.room}/cache/passes --fresh")

    def test_interrupted(self):
        """All that it has started ends with it."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
            pid = self.room / f"pid{number}"
            self.fake_vms(f"import os, time\nopen('{pid}', 'w').write(str(os.getpid()))\ntime.sleep(100)")
            with subprocess.Popen([sys.executable, self.room / "scripts/test", "kunit"], env=self.env,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                self.wait_for(lambda: pid.exists() and pid.read_text().strip())
                process.send_signal(number)
                self.assertEqual(process.wait(timeout=20), -number if number == signal.SIGKILL else 130)
            stat = pathlib.Path("/proc", pid.read_text().strip(), "stat")
            self.wait_for(lambda: not stat.exists() or ") Z " in stat.read_text())


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
