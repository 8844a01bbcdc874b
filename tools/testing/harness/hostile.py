# SPDX-License-Identifier: GPL-2.0
"""Hostile metadata images in VMs: ours must answer each one, and the C module's answers stand beside it.

Images of both modules are the same. A kernel that dies or hangs is what came of the image that was played, and the rest goes
on in a new VM.
"""

import collections
import json
import os
import sys
import time

from . import cores
from .vm import Uml

# Images for one VM, as long as nothing happens.
BATCH = 40
# Seconds without progress after which a VM counts as hung, while it boots and during an image.
BOOT_LIMIT = 180
LIMIT = 90
# What good metadata may answer: no such volume, there is one already, in use, no space.
USUAL = {"ok", "ENODATA", "EEXIST", "EBUSY", "ENOSPC"}
CAUSES = ("KASAN", "kernel BUG at", "BUG:", "Oops", "panicked at", "Kernel panic", "WARNING", "UBSAN", "lockdep is off", "INFO: task")


class Share:
    """One VM that plays some images, and another one after it if it breaks off."""

    def __init__(self, label, numbers, make_vm, config, processor):
        self.label = label
        self.processor = processor
        self.answers = {}
        self.trouble = ""
        self._numbers = list(numbers)
        self._make_vm = make_vm
        self._config = config
        self._boots = 0
        self._boot()

    def _boot(self):
        self._boots += 1
        self._vm = self._make_vm(f"{self.label}.{self._boots}")
        self._vm.processor = self.processor
        self._is_up = False
        self._current = None
        self._ended = False
        self._since = time.monotonic()
        self._vm.start(dict(self._config, numbers=self._numbers), ["oops=panic", "kasan_multi_shot"])

    def step(self):
        """Looks after the VM; whether there is more to do."""
        alive = self._vm.running()
        self._events()
        hung = alive and time.monotonic() - self._since > (LIMIT if self._is_up else BOOT_LIMIT)
        if alive and not hung:
            return True
        self._vm.kill()
        if self._ended:
            return False
        if self._current is not None:
            tail = self._vm.read("console.log").replace("\r", "").splitlines()[-200:]
            begin = max((n for n, line in enumerate(tail) if f"image {self._current['image']}" in line), default=0)
            self._answer({"about": self._current, "outcome": "hung" if hung else "died", "cause": cause(tail[begin:]), "log": tail[begin:][:60]})
        elif self._vm.status() is None:
            # Not by an image: nothing that the rest would not meet, too.
            self.trouble += "\n".join(["the VM stopped between images", *self._vm.read("console.log").splitlines()[-60:]])
            self._numbers.clear()
        if not self._numbers:
            return False
        self._boot()
        return True

    def _events(self):
        for line in self._vm.new_lines("events"):
            event = json.loads(line)
            self._is_up = True
            self._since = time.monotonic()
            if event["event"] == "start":
                self._current = event["about"]
            elif event["event"] == "result":
                self._answer(event)
                self._current = None
            else:
                self._ended = True
                self.trouble += event["leaks"]

    def _answer(self, answer):
        self.answers[answer["about"]["image"]] = answer
        self._numbers.remove(answer["about"]["image"])

    def kill(self):
        self._vm.kill()


def cause(lines):
    """The line of a console that says best why it is the last."""
    for word in CAUSES:
        for line in lines:
            if word in line:
                return line.split("] ", 1)[-1].strip()
    return ""


def outcome(answer):
    """What came of an image, in one word."""
    if "outcome" in answer:
        return answer["outcome"]
    if answer["complaints"]:
        return "complaint"
    if answer["steps"][0][1] != "ok":
        return "refused"
    if any(step == "remove all" for step, _ in answer["steps"]):
        return "stuck"
    modes = answer["modes"]
    if "Fail" in modes:
        return "failed"
    if any("needs_check" in mode or mode.startswith("ro") for mode in modes):
        return "read-only"
    return "worked" if all(found in USUAL for _, found in answer["steps"]) else "errors"


def play(options, config, numbers, label):
    """Plays the images, several VMs at once; gives the answers by number, and what else went wrong."""
    waiting = [numbers[n:n + BATCH] for n in range(0, len(numbers), BATCH)]
    active, done = [], []
    began = last = time.monotonic()

    def make_vm(name):
        return Uml(options.kernel, os.path.join(options.results, name))

    try:
        while waiting or active:
            while waiting and len(active) < options.jobs:
                share = waiting.pop(0)
                processor = cores.least_used(other.processor for other in active)
                active.append(Share(f"{label}-{share[0]}", share, make_vm, config, processor))
            for share in list(active):
                if not share.step():
                    active.remove(share)
                    done.append(share)
            if time.monotonic() - last > 10:
                last = time.monotonic()
                count = sum(len(share.answers) for share in [*active, *done])
                rate = count / (last - began)
                left = f"{(len(numbers) - count) / rate:.0f} s left" if rate else "?"
                print(f"hostile {label}: {count} of {len(numbers)}, {rate:.1f}/s, {left}", file=sys.stderr, flush=True)
            time.sleep(0.05)
    finally:
        for share in active:
            share.kill()
    answers = {}
    for share in done:
        answers.update(share.answers)
    return answers, "".join(share.trouble for share in done)


def judge(answer):
    """What is wrong with an answer of our module, or nothing."""
    kind = outcome(answer)
    if kind in ("died", "hung", "complaint", "stuck"):
        return f"{kind}: {answer.get('cause') or answer.get('complaints') or answer.get('steps')}"
    about = answer["about"]
    if about["edits"]:
        return ""
    # Good metadata: all works, and they stay good. In a pool without space, that may be the end of it.
    if kind != "worked" and not (about["base"] == "full" and kind == "read-only"):
        return f"{kind}: {[step for step in answer['steps'] if step[1] not in USUAL]} {answer['modes']}"
    return "" if about["checked"] and about["checked_after"] else "thin_check is not content"


def run(options, config):
    """`--images-program` makes images, `--count` of them from `--first` on; `--beside` gives them to the C module, too."""
    numbers = list(range(options.first, options.first + options.count))
    config = dict(config, images=os.path.abspath(options.images_program), seed=options.seed)
    began = time.monotonic()
    answers, trouble = play(options, config, numbers, config["impl"])
    failed = 0
    for number in numbers:
        answer = answers.get(number)
        wrong = "did not run" if answer is None else judge(answer) if config["impl"] == "rust" else ""
        if wrong:
            failed += 1
            print(f"FAILED image {number}: {wrong}\n    {json.dumps((answer or {}).get('about'))}")
            for line in (answer or {}).get("log", [])[:40]:
                print(f"    {line}")
            print(f"    replay: {' '.join([*sys.argv[:2], '--images-program', options.images_program, '--kernel', options.kernel])} "
                  f"--module {options.module} --seed {options.seed} --first {number} --count 1")
    if trouble:
        failed += 1
        print(f"FAILED: memory was lost, or a VM\n{trouble}")
    table = {config["impl"]: collections.Counter(outcome(answer) for answer in answers.values())}
    both = {config["impl"]: answers}
    if options.beside:
        both["c"], _ = play(options, dict(config, impl="c"), numbers, "c")
        table["c"] = collections.Counter(outcome(answer) for answer in both["c"].values())
        table["pairs"] = pairs(answers, both["c"], numbers)
    with open(os.path.join(options.results, "answers.json"), "w") as file:
        json.dump(both, file, indent=1)
    seconds = round(time.monotonic() - began, 1)
    for name, counts in table.items():
        print(f"{name}: " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
    if options.report:
        with open(options.report, "w") as file:
            figures = {"images": len(numbers), "seed": options.seed, "first": options.first, "seconds": seconds, "failed": failed, "outcomes": table}
            if options.beside:
                figures["c_causes"] = collections.Counter(answer.get("cause") or first(answer) for answer in both["c"].values() if outcome(answer) in ("died", "hung", "complaint"))
            file.write(json.dumps({"hostile": figures}) + "\n")
    print(f"hostile: {len(numbers) - min(failed, len(numbers))} passed, {failed} failed in {seconds:.0f} s", flush=True)
    return 1 if failed else 0


def first(answer):
    return cause(answer.get("complaints", [])) or "".join(answer.get("complaints", [])[:1])


def pairs(ours, theirs, numbers):
    """How often which outcome of ours met which of the C module's."""
    return collections.Counter(f"ours {outcome(ours[n])}, C {outcome(theirs[n])}" for n in numbers if n in ours and n in theirs)
