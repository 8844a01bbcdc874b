# SPDX-License-Identifier: GPL-2.0
"""The tests' own tools: what they are for is to see faults."""

import os
import select
import subprocess
import sys
import time

import pytest

from dmtest import (
    disk,
    kmemleak,
    kmsg,
    metadata,
)
from dmtest.background import (
    Background,
    wait_until,
)
from dmtest.content import Content
from dmtest.disk import (
    KIB,
    MIB,
)
from dmtest.trace import differences
from harness import ktap

TESTING = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

REPORT = """KTAP version 1
1..2
    KTAP version 1
    # Subtest: first
    # module: dm_thin_pool
    1..3
    # good.speed: normal
    ok 1 good
    # wrong: ASSERTION FAILED at file:1
    not ok 2 wrong
    ok 3 left out # SKIP for a reason
# first: pass:1 fail:1 skip:1 total:3
not ok 1 first
    KTAP version 1
    # Subtest: second
    1..1
    ok 1 good
ok 2 second""".splitlines()


def outcomes(lines):
    return {name: outcome for name, outcome, _ in ktap.parse(lines)}


def test_ktap():
    assert outcomes(REPORT) == {
        "first::good": "passed", "first::wrong": "failed", "first::left out": "skipped", "second::good": "passed",
    }
    assert "ASSERTION FAILED" in dict((name, text) for name, _, text in ktap.parse(REPORT))["first::wrong"]


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_ktap_that_breaks_off(missing):
    assert "failed" in [outcome for name, outcome in outcomes(REPORT[:-missing]).items() if name != "first::wrong"]


def test_ktap_of_a_suite_that_fails_by_itself():
    lines = [line.replace("not ok 2 wrong", "ok 2 wrong") for line in REPORT]
    assert outcomes(lines)["first"] == "failed"


# Like User Mode Linux: makes a session of its own where it can, and has another process.
MACHINE = """
import os, subprocess
try:
    os.setsid()
except PermissionError:
    pass
print(os.getpid(), flush=True)
subprocess.run(["sleep", "1000"])
"""
# Starts it as the runner does.
RUNNER = """
import subprocess, sys
machine = [sys.executable, "-c", sys.argv[2]]
subprocess.Popen([sys.executable, sys.argv[1], *machine], stdin=subprocess.PIPE, start_new_session=True).wait()
"""


def test_no_machine_outlives_a_runner_that_is_killed():
    guard = os.path.join(TESTING, "harness", "guard.py")
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, guard, MACHINE], stdout=subprocess.PIPE)
    machine = f"/proc/{int(runner.stdout.readline())}"
    assert os.path.exists(machine)
    runner.kill()
    runner.wait()
    # Each of the machine's processes holds the other end of this pipe.
    assert select.select([runner.stdout], [], [], 30)[0], "it runs on"
    assert runner.stdout.read() == b""
    end = time.monotonic() + 30
    while os.path.exists(machine) and time.monotonic() < end:
        time.sleep(0.05)
    assert not os.path.exists(machine)


FAULTS = [
    "BUG: kernel NULL pointer dereference, address: 0000000000000000",
    "WARNING: CPU: 0 PID: 12 at drivers/md/dm.c:1",
    "Oops: 0002 [#1] PREEMPT SMP",
    "BUG: KASAN: slab-use-after-free in thin_map",
    "WARNING: possible recursive locking detected",
    "WARNING: possible circular locking dependency detected",
    "WARNING: suspicious RCU usage",
    "INFO: task dmsetup:77 blocked for more than 40 seconds.",
    "rust_kernel: panicked at rust/dm_thin/lib.rs:1:1:",
    "Kernel panic - not syncing: Fatal exception",
    "    not ok 2 wrong",
    "list_add corruption. prev->next should be next",
    "UBSAN: array-index-out-of-bounds in drivers/md/dm.c:1:1",
    "ODEBUG: free active (active state 0) object: 00000000 object type: work_struct hint: thin",
    "BUG: KFENCE: use-after-free read in thin_map+0x1/0x2",
    "BUG: KCSAN: data-race in thin_map / thin_endio",
    "unreferenced object 0x0000000061f9b500 (size 128):",
    "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
    "kmemleak: Kernel memory leak detector disabled",
]
HARMLESS = [
    "KernelAddressSanitizer initialized (generic)",
    "[    0.000000] kmemleak: Kernel memory leak detector disabled",
    "kmemleak: Kernel memory leak detector initialized (mem pool available: 15841)",
    "dm_thin_pool: loading out-of-tree module taints kernel.",
    "device-mapper: thin: Creation of new thinly-provisioned device with id 0 failed.",
    "device-mapper: table: 254:1: thin-pool: Invalid block size (-EINVAL)",
    "device-mapper: space map metadata: unable to allocate new metadata block",
    "    ok 1 good",
    "dmtest: start test_harness.py::test_bad_lines_are_found[Oops]",
]


def test_faults_are_told_from_other_lines():
    assert kmsg.bad([*HARMLESS, *FAULTS]) == FAULTS


def test_failed_allocations_may_be_told():
    told = ["python3: vmalloc error: size 4096, vm_struct allocation failed", "Stack:", "Call Trace:", " [<610f2037>] show_stack+0x1e7/0x200"]
    on_purpose = f"{kmsg.MARK}{kmsg.ALLOCATIONS_FAIL}"
    assert kmsg.bad(told) == ["Call Trace:"]
    assert kmsg.bad([on_purpose, *told, *told]) == []
    assert kmsg.bad([on_purpose, *told, FAULTS[0], "Call Trace:"]) == [FAULTS[0], "Call Trace:"]
    assert kmsg.bad([on_purpose, f"{kmsg.MARK}start", *told]) == ["Call Trace:"]
    stalled = ["python3: page allocation stall for 11 secs: order:0", "Call Trace:"]
    assert kmsg.bad(stalled) == ["Call Trace:"]
    assert kmsg.bad([f"{kmsg.MARK}{kmsg.MEMORY_IS_SHORT}", *stalled, *told]) == ["Call Trace:"]
    assert kmsg.bad([on_purpose, *stalled, *told]) == []


def test_a_fault_of_user_mode_linux_is_told_from_others():
    report = ["=====", "WARNING: suspicious RCU usage", "lib/maple_tree.c:720 suspicious rcu_dereference_check() usage!"]
    stack = ["Call Trace:", " [<610f2037>] show_stack+0x1e7/0x200"]
    assert kmsg.bad([*report, "Workqueue: events free_ioctx", *stack]) == []
    assert kmsg.bad([*report, "Workqueue: dm-thin", *stack]) == ["WARNING: suspicious RCU usage", "Call Trace:"]
    assert kmsg.bad([*report, "Workqueue: events free_ioctx", *stack, FAULTS[0]]) == [FAULTS[0]]


def test_log_is_seen(kernel):
    kernel.lines()
    kmsg.mark("seen")
    assert any("dmtest: seen" in line for line in kernel.lines())


def test_lockdep_is_at_work():
    assert kmsg.checks_locking() is not False


def test_memory_is_checked(run):
    """User Mode Linux is built with all that checks memory, and so is the module; on x86_64 there is none of it."""
    with open("/proc/kallsyms") as file:
        symbols = {line.split()[2] for line in file}
    at_work = {"kasan_report", "kmemleak_alloc", "should_failslab", "__ubsan_handle_out_of_bounds"} & symbols
    assert len(at_work) in (0, 4), at_work
    if at_work and run["impl"] == "rust":
        with open(run["implementations"]["rust"], "rb") as file:
            assert b"__asan_report_load8_noabort" in file.read()


@pytest.mark.smoke
def test_kfence_is_at_work():
    """Where the command line asks for it: it looks after some of the memory that is allocated."""
    with open("/proc/cmdline") as line:
        if "kfence.sample_interval" not in line.read():
            pytest.skip("it is off")
    with open("/sys/kernel/debug/kfence/stats") as stats:
        found = dict(line.split(": ") for line in stats.read().splitlines())
    assert found["enabled"] == "1" and int(found["total allocations"]) > 0, found


def test_leaks_are_looked_for():
    """Where there is kmemleak, it is at work: once it has lost track of something, it refuses to scan."""
    if kmemleak.is_there():
        kmemleak.scan()


def test_changed_content_is_noticed(pool):
    content = Content(pool.new_thin(0, MIB))
    content.scatter("content", 5)
    content.verify()
    content.data[70 * KIB] ^= 1
    with pytest.raises(AssertionError):
        content.verify()


def test_spoiled_metadata_is_noticed(make_disk):
    spoiled = make_disk(4 * MIB)
    disk.write(spoiled.path, 0, b"\xff" * 4096)
    with pytest.raises(AssertionError):
        metadata.check(spoiled.path)


def test_differences():
    assert not differences(["a", "b"], ["a", "b"])
    assert "step 1" in differences(["a", "b"], ["a", "c"])
    assert "step 2" in differences(["a", "b"], ["a", "b", "c"])


def test_gate(make_gate):
    """It holds what it is told to, in order, and lets it go or fail; all else passes."""
    gate = make_gate(4 * MIB)
    old, new = (bytes([byte]) * 4 * KIB for byte in (1, 2))
    disk.write(gate.path, 0, old)
    gate.hold("write", "flush")
    writing = [Background(lambda at=at: disk.write(gate.path, at * KIB, new)) for at in (0, 4)]
    gate.wait_for("write", 2)
    flushing = Background(lambda: disk.flush(gate.path))
    gate.wait_for("flush")
    assert gate.held("write") == 2 and gate.held("read") == 0
    assert disk.read(gate.path, 0, 4 * KIB) == old
    disk.discard(gate.path, 8 * KIB, 4 * KIB)
    gate.release()
    wait_until(lambda: gate.held("write") == 1, "one was released")
    gate.fail("write")
    gate.release()
    assert sorted(one.outcome() for one in writing) == ["EIO", "ok"]
    assert flushing.waits(0)
    gate.let_pass("flush")
    assert flushing.outcome() == "ok"
    with pytest.raises(OSError):
        disk.write(gate.path, 0, new)
    gate.heal()
    disk.write(gate.path, 0, old)
    gate.hold("read")
    reading = Background(lambda: disk.read(gate.path, 0, 4 * KIB))
    gate.wait_for("read")
    # A suspend waits for nothing that the gate holds.
    gate.device.suspend()
    gate.device.resume()
    assert reading.outcome() == "ok"
