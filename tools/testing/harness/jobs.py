# SPDX-License-Identifier: GPL-2.0
"""What the runner can do: functional tests, the smoke selection of them, KUnit, kills, the demo and the benchmark."""

import importlib.util
import os
import re
import shutil
import sys
import time

from . import bench, collect, cores, hostile, ktap, passes, power, suite
from .vm import (
    ROOT,
    Uml,
    Virtme,
)

FUNCTIONAL = os.path.join(ROOT, "functional")
NAME = "dm-thin-pool"
# For how many seconds a machine may say nothing before its first test. With others at work on the host it takes its time.
BOOT_LIMIT = 300
# Files whose tests run with modules that are far from the kernel.
FAR = ("test_module.py",)
PROGRAMS = ["dmsetup", "thin_check", "thin_dump", "thin_delta", "thin_ls", "fio", "mkfs.ext4", "mkfs.xfs", "modinfo", "lvm", "dmeventd"]


class Missing(Exception):
    """Something that the run needs is not there."""


def run(options):
    return {
        "functional": functional, "smoke": marked, "lvm2": marked, "kunit": kunit, "demo": demo, "bench": benchmark, "power": kills,
        "hostile": hostile_images,
    }[options.suite](options)


def functional(options):
    need_programs()
    config = configuration(options, "functional")
    tests = suite.files(FUNCTIONAL, options.tests, suite.known_times(times_of(options)))
    if options.expression:
        tests = collect.chosen(FUNCTIONAL, tests, config)

    def make_vm(name, share):
        return Uml(options.kernel, os.path.join(options.results, name), Uml.FAR_MEMORY if share[0].split("::")[0] in FAR else Uml.MEMORY)

    def share_out(tests, took):
        return suite.shares(tests, took, FAR)

    return play(options, config, tests, share_out, make_vm, options.jobs, 1)


def marked(options):
    """The tests with the suite's mark, on x86_64, all in one machine."""
    need_programs()
    if not options.vng:
        raise Missing("vng (virtme-ng) is not installed; name it with --vng")
    config = dict(configuration(options, "functional"), mark=options.suite, share=options.share)
    tests = collect.chosen(FUNCTIONAL, suite.files(FUNCTIONAL, options.tests, {}), config)

    def make_vm(name, share):
        return Virtme(options.kernel, os.path.join(options.results, name), options.vng, nvme=64 << 20)

    return play(options, config, tests, lambda tests, took: [tests] if tests else [], make_vm, 1, 2)


def play(options, config, tests, share_out, make_vm, at_once, places):
    """Runs the test files but for those that have passed before and would not find anything changed."""
    results = suite.Results(options.suite)
    known = passes.Passes(options.passes, options.fresh) if options.passes else None
    keys = {}
    if known:
        # Virtme-ng is not among the packages; the folder that it is installed in names its version.
        kept = passes.Files(options.kernel, config, [options.vng] if places > 1 else [])
        keys = {name: kept.key(name) for name in tests}
        values = {name: kept.value(setting) for name, setting in config["settings"].items()}
    for name, key in keys.items():
        before = known.find(key, config["settings"], kept.value)
        if before:
            results.add_unchanged(name, before)
            tests = [test for test in tests if test != name]
    took = suite.seconds_of_files(suite.known_times(times_of(options)))
    passed = []

    def make(share, processor):
        label = "x86_64" if at_once == 1 and places > 1 else share[0].split("::")[0].removesuffix(".py")
        return suite.Run(
            label, lambda name: make_vm(name, share), dict(config, tests=share), results,
            options.test_timeout or 240, BOOT_LIMIT, lambda *found: passed.append(found), processor,
        )

    status = suite.run(results, share_out(tests, took), at_once, make, times_of(options), options.report, places)
    if passed and known:
        # What was changed while its test ran is not what passed.
        kept.look()
        for name, counts, asked in passed:
            given = {setting: config["settings"].get(setting, "") for setting in asked}
            if keys.get(name) == kept.key(name) and all(values.get(setting, "") == kept.value(text) for setting, text in given.items()):
                known.keep(keys[name], counts, {setting: values.get(setting, "") for setting in asked})
    return status


def times_of(options):
    """The file that keeps what tests took from one run to the next; `options.results` itself is emptied."""
    return f"{options.results}.times"


def kunit(options):
    config = configuration(options, "kunit")
    if "c" == options.impl:
        raise Missing("kunit needs --module or --impl built-in")
    vm = Uml(options.kernel, os.path.join(options.results, "kunit"), Uml.FAR_MEMORY)
    vm.processor = cores.processor()
    vm.start(config, ["kunit.enable=1", "kunit.autorun=1"])
    wait(vm, options.test_timeout or 120)
    results = suite.Results("kunit")
    for test, outcome, text in ktap.parse(vm.read("kunit.log").splitlines()):
        results.add(test, outcome, 0, text)
    complaints = suite.complaints(vm)
    if vm.status() != 0 or complaints:
        tail = complaints or vm.read("console.log").splitlines()[-60:]
        results.add("kunit kernel log", "failed", 0, f"{vm.console}:\n" + "\n".join(tail))
    return results.finish()


def benchmark(options):
    need_programs("thin_restore")
    if not options.vng:
        raise Missing("vng (virtme-ng) is not installed; name it with --vng")
    if not options.load:
        raise Missing("bench needs the load generator: --load")
    config = configuration(options, "bench")
    # The run goes on with these if they are built anew meanwhile.
    for files, name in ((config["implementations"], "rust"), (config["modules"], "dm-load")):
        if name in files:
            files[name] = shutil.copy(files[name], os.path.join(options.results, f"{name}.ko"))
    with open(os.path.join(options.kernel, "include", "config", "kernel.release")) as file:
        config["release"] = file.read().strip()
    return bench.run(options, config)


def kills(options):
    need_programs()
    return power.run(options, configuration(options, "power"))


def hostile_images(options):
    need_programs()
    if not options.images_program:
        raise Missing("hostile needs the program that makes images: --images-program")
    return hostile.run(options, configuration(options, "hostile"))


def demo(options):
    """Shows the guest's demo as it runs, without the kernel's own lines around it."""
    need_programs()
    vm = Uml(options.kernel, os.path.join(options.results, "demo"))
    vm.processor = cores.processor()
    vm.start(configuration(options, "demo"), ["quiet", "loglevel=1"])
    limit = options.test_timeout or 120
    shown = 0
    alive = True
    while alive and vm.seconds() < limit:
        time.sleep(0.05)
        alive = vm.running()
        text = part(vm.read("console.log").replace("\r", ""), "demo starts\n", "demo ends\n")
        if not sys.stdout.isatty():
            text = re.sub("\033\\[[0-9]*m", "", text)
        sys.stdout.write(text[shown:])
        sys.stdout.flush()
        shown = len(text)
    vm.kill()
    complaints = suite.complaints(vm)
    if complaints:
        print("\nThe demo FAILED: the kernel complained.\n" + "\n".join(complaints), flush=True)
    elif vm.status() is None:
        print(f"\nThe demo FAILED: it broke off; its console is in {vm.console}.", flush=True)
    return 0 if vm.status() == 0 and not complaints else 1


def part(text, start, end):
    """The whole lines of `text` between two marks."""
    begin = text.find(start)
    if begin < 0:
        return ""
    stop = text.find(end, begin)
    return text[begin + len(start):stop if stop >= 0 else text.rfind("\n") + 1]


def wait(vm, limit):
    while vm.running() and vm.seconds() < limit:
        time.sleep(0.05)
    vm.kill()


def configuration(options, job):
    """The guest's orders."""
    options.kernel = os.path.abspath(options.kernel)
    modules = kernel_modules(options.kernel)
    implementations = {}
    if options.impl == "built-in":
        if NAME in modules or not built_in(options.kernel):
            raise Missing(f"{NAME} is not built into {options.kernel}")
        implementations["built-in"] = None
    elif NAME in modules:
        implementations["c"] = modules.pop(NAME)
    elif job in ("functional", "bench", "hostile") or not options.module:
        raise Missing(f"no {NAME}.ko in {options.kernel}")
    if options.module:
        implementations["rust"] = os.path.abspath(options.module)
        if not os.path.exists(options.module):
            raise Missing(f"no such file: {options.module}")
    if options.impl not in implementations:
        raise Missing(f"--impl {options.impl} needs --module")
    if options.load:
        modules["dm-load"] = os.path.abspath(options.load)
        if not os.path.exists(options.load):
            raise Missing(f"no such file: {options.load}")
    shutil.rmtree(options.results, ignore_errors=True)
    os.makedirs(options.results)
    return {
        "job": job, "modules": modules, "implementations": implementations, "impl": options.impl,
        "expression": options.expression, "mark": "", "share": (0, 1), "tests": [], "append": options.append,
        "parameters": options.parameter, "settings": dict(setting.split("=", 1) for setting in options.set),
    }


def kernel_modules(folder):
    """All module files of a kernel's build folder by name."""
    try:
        with open(os.path.join(folder, "modules.order")) as order:
            objects = order.read().split()
    except FileNotFoundError:
        raise Missing(f"{folder} is not the folder of a built kernel") from None
    files = [os.path.join(folder, name.removesuffix(".o") + ".ko") for name in objects]
    return {os.path.basename(file).removesuffix(".ko"): file for file in files if os.path.exists(file)}


def built_in(folder):
    """Whether dm-thin-pool is part of the kernel."""
    with open(os.path.join(folder, "modules.builtin")) as file:
        return any(os.path.basename(line.strip()) == f"{NAME}.ko" for line in file)


def need_programs(*more):
    path = os.pathsep.join(["/usr/sbin", "/usr/bin", "/sbin", "/bin"])
    missing = [program for program in [*PROGRAMS, *more] if not shutil.which(program, path=path)]
    if importlib.util.find_spec("pytest") is None:
        missing.append("pytest for /usr/bin/python3")
    if missing:
        raise Missing(f"not installed: {', '.join(missing)}")
