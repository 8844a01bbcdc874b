# SPDX-License-Identifier: GPL-2.0
"""The kernel's log: reading it, marking it, and the lines that no test may cause."""

import os
import re

MARK = "dmtest: "
# A mark: up to the next one, allocations fail on purpose.
ALLOCATIONS_FAIL = "allocations fail"
# The same where there is less memory than is asked for: whoever waits for it may wait long, if the machine is slow.
MEMORY_IS_SHORT = "memory is short"
STALL = re.compile(r"page allocation stall for \d+ secs")
NO_MEMORY = re.compile(
    r"vmalloc error: size|page allocation failure|FAULT_INJECTION: forcing a failure"
    r"|__kmem_cache_create_args\(.*\) failed with error -12"
)

BAD = re.compile(
    r"\bBUG\b|\bWARNING\b|\bOops\b|KASAN|KFENCE|KCSAN|KMSAN|UBSAN|ODEBUG|Kernel panic|panicked at|general protection"
    # Before anything else runs, kmemleak says that it was told to do without.
    r"|unreferenced object|(?<!\[    0\.000000\] )kmemleak: (?!Kernel memory leak detector initialized|Automatic memory scanning)"
    r"|possible recursive locking|circular locking|inconsistent lock state|inversion.*detected|suspicious RCU"
    r"|lockdep is turned off|held lock freed|still has locks held|lock held when returning"
    r"|sleeping function called|scheduling while atomic|bad unlock balance|soft lockup|hard lockup|self-detected stall"
    r"|detected stalls|INFO: task .* blocked|refcount_t:|list_(add|del) corruption|Call Trace:|^\s*not ok\b"
)

# kmemleak's own allocations fail as well; this one does no harm.
NO_SCAN_AREA = "kmemleak: Cannot allocate a scan area"

# A process that ends while its asynchronous I/O is torn down: User Mode Linux's flush_tlb_mm() walks its memory
# without a lock, and lockdep says so, if it is slow enough, and is off from then on.
RCU = "WARNING: suspicious RCU usage"
TEARDOWN = "Workqueue: events free_ioctx"
REPORT_LINES = 40


class Log:
    """Reads the kernel's log from where it stood when the object was made."""

    def __init__(self, start=False):
        self._file = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not start:
            os.lseek(self._file, 0, os.SEEK_END)

    def lines(self):
        """All lines that came since the last call."""
        found = []
        while True:
            try:
                record = os.read(self._file, 8192).decode(errors="replace")
            except BlockingIOError:
                return found
            except BrokenPipeError:
                found.append("(lines of the kernel log were lost)")
                continue
            found.append(record.split(";", 1)[1].split("\n", 1)[0])

    def close(self):
        os.close(self._file)


def bad(lines):
    """Those of the lines that mean a fault of the kernel; our own marks do not.

    Where allocations fail on purpose, or take long, the kernel may say so, with a stack.
    """
    found = []
    on_purpose = is_short = told = False
    for number, line in enumerate(lines):
        if MARK in line:
            on_purpose, is_short = ALLOCATIONS_FAIL in line, MEMORY_IS_SHORT in line
        elif is_of_teardown(lines, number):
            told = True
        elif (on_purpose and NO_MEMORY.search(line)) or ((on_purpose or is_short) and STALL.search(line)):
            told = True
        elif on_purpose and NO_SCAN_AREA in line:
            pass
        elif told and "Call Trace:" in line:
            told = False
        elif BAD.search(line):
            found.append(line)
    return found


def is_of_teardown(lines, number):
    """Whether the fault that a line tells of is that of User Mode Linux when it tears down asynchronous I/O."""
    return RCU in lines[number] and any(TEARDOWN in line for line in lines[number:number + REPORT_LINES])


def mark(text):
    """Writes a line of our own into the kernel's log."""
    with open("/dev/kmsg", "w") as log:
        log.write(f"<6>{MARK}{text}\n")


def checks_locking():
    """Whether lockdep is at work; None for a kernel without it."""
    try:
        with open("/proc/lockdep_stats") as stats:
            state = re.search(r"debug_locks:\s+(\d)", stats.read())
    except FileNotFoundError:
        return None
    return state is not None and state[1] == "1"
