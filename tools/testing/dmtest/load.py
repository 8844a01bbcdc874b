# SPDX-License-Identifier: GPL-2.0
"""fio jobs: I/O that checks itself."""

import subprocess


def job(thin, *options, rw="randwrite", size="100%", engine="libaio", depth=16, jobs=1, verify=True):
    """The command of a fio job on the whole of `thin`."""
    command = [
        "fio", "--name=dmtest", f"--filename={thin.path}", "--direct=1", f"--rw={rw}", f"--size={size}", f"--ioengine={engine}",
        f"--iodepth={depth}", f"--numjobs={jobs}", "--output-format=terse", "--group_reporting", "--eta=never",
        "--randrepeat=1", "--allrandrepeat=1", "--verify_state_save=0",
    ]
    if verify:
        command += ["--verify=crc32c", "--verify_fatal=1", "--do_verify=1"]
    return command + list(options)


def run(*args, **options):
    """Runs a job to its end; fails if an I/O failed or a block did not read back as it was written."""
    done = subprocess.run(job(*args, **options), capture_output=True, text=True)
    assert done.returncode == 0, f"fio: {done.stdout[-1500:]}{done.stderr[-1500:]}"


class Background:
    """A job that runs while the test does other things."""

    def __init__(self, *args, **options):
        # As threads, the jobs end with fio when it is killed.
        command = [*job(*args, **options), "--thread"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def running(self):
        return self._process.poll() is None

    def kill(self):
        self._process.kill()
        self._process.communicate()

    def finish(self):
        """Waits for the end and fails as run() does."""
        output = self._process.communicate()[0]
        assert self._process.returncode == 0, f"fio: {output[-3000:]}"
