# SPDX-License-Identifier: GPL-2.0
"""Reading KUnit's results."""

import re

RESULT = re.compile(r"^( *)(not )?ok \d+ ?-? ?([^#]*?)\s*(?:#\s*(.*))?$")
SUBTEST = re.compile(r"^ *# Subtest: (.*)$")


PLAN = re.compile(r"^( *)1\.\.(\d+)$")


def parse(lines):
    """The test cases of a KTAP report as (name, outcome, text) with outcome passed, failed or skipped.

    Cases are indented below their suite. What else is wrong counts as a failure of its own: a suite
    that fails without a failing case, one without an end, and fewer results than were announced.
    """
    found = []
    suite = None
    announced = {"": 0, "    ": 0}
    seen = {"": 0, "    ": 0}
    notes = []
    failed = False
    for line in lines:
        subtest = SUBTEST.match(line)
        if subtest and suite is None:
            suite, notes, failed = subtest[1], [], False
            continue
        plan = PLAN.match(line)
        if plan and plan[1] in announced:
            announced[plan[1]] += int(plan[2])
            continue
        result = RESULT.match(line)
        if not result:
            notes.append(line)
            continue
        indent, wrong, name, directive = result.groups()
        if indent in seen:
            seen[indent] += 1
        if len(indent) == 4 and suite:
            if wrong:
                outcome, failed = "failed", True
            else:
                outcome = "skipped" if (directive or "").upper().startswith("SKIP") else "passed"
            found.append((f"{suite}::{name}", outcome, "\n".join(notes) if wrong else ""))
            notes = []
        elif not indent:
            if wrong and not failed:
                found.append((name, "failed", "\n".join(notes)))
            suite = None
    if suite is not None:
        found.append((suite, "failed", "the suite did not come to its end\n" + "\n".join(notes)))
    if seen != announced:
        text = f"{announced['']} suites and {announced['    ']} cases were announced, {seen['']} and {seen['    ']} reported"
        found.append(("plan", "failed", text))
    return found
