# SPDX-License-Identifier: GPL-2.0
"""What the runner can do: functional tests, the smoke selection of them, KUnit and the demo."""

import importlib.util
import os
import shutil
import sys
import time

from . import ktap, suite
from .vm import (
    ROOT,
    Uml,
    Virtme,
)

FUNCTIONAL = os.path.join(ROOT, "functional")
NAME = "dm-thin-pool"
PROGRAMS = ["dmsetup", "thin_check", "thin_dump", "thin_delta", "thin_ls", "fio", "mkfs.ext4", "mkfs.xfs", "modinfo"]


class Missing(Exception):
    """Something that the run needs is not there."""


def run(options):
    return {"functional": functional, "smoke": smoke, "kunit": kunit, "demo": demo}[options.suite](options)


def functional(options):
    need_programs()
    config = configuration(options, "functional")
    results = suite.Results("functional")

    def make(share):
        label = share.split("::")[0].removesuffix(".py")
        return suite.Run(
            label, lambda name: Uml(options.kernel, os.path.join(options.results, name)), dict(config, tests=[share]),
            results, test_limit=options.test_timeout or 120, boot_limit=30,
        )

    return suite.run(results, suite.files(FUNCTIONAL, options.tests), options.jobs, make)


def smoke(options):
    need_programs()
    if not options.vng:
        raise Missing("vng (virtme-ng) is not installed; name it with --vng")
    config = dict(configuration(options, "functional"), mark="smoke")
    results = suite.Results("smoke")

    def make(share):
        return suite.Run(
            share, lambda name: Virtme(options.kernel, os.path.join(options.results, name), options.vng),
            dict(config, tests=suite.files(FUNCTIONAL, options.tests)),
            results, test_limit=options.test_timeout or 240, boot_limit=180,
        )

    return suite.run(results, ["x86_64"], 1, make)


def kunit(options):
    config = configuration(options, "kunit")
    if "rust" not in config["implementations"]:
        raise Missing("kunit needs --module")
    vm = Uml(options.kernel, os.path.join(options.results, "kunit"))
    vm.start(config, ["kunit.enable=1"])
    wait(vm, options.test_timeout or 120)
    results = suite.Results("kunit")
    for test, outcome, text in ktap.parse(vm.read("kunit.log").splitlines()):
        results.add(test, outcome, 0, text)
    complaints = suite.complaints(vm)
    if vm.status() != 0 or complaints:
        tail = complaints or vm.read("console.log").splitlines()[-60:]
        results.add("kunit kernel log", "failed", 0, f"{vm.console}:\n" + "\n".join(tail))
    return results.finish()


def demo(options):
    need_programs()
    vm = Uml(options.kernel, os.path.join(options.results, "demo"))
    vm.start(configuration(options, "demo"), ["quiet", "loglevel=1"])
    shown = 0
    while True:
        alive = vm.running()
        text = vm.read("console.log").replace("\r", "")
        start = text.find("demo starts\n")
        if start >= 0:
            end = text.rfind("demo ends")
            shown_text = text[start + len("demo starts\n"):end if end >= 0 else text.rfind("\n") + 1]
            sys.stdout.write(shown_text[shown:])
            sys.stdout.flush()
            shown = len(shown_text)
        if not alive or vm.seconds() > (options.test_timeout or 120):
            break
        time.sleep(0.05)
    vm.kill()
    complaints = suite.complaints(vm)
    if vm.status() == 0 and not complaints:
        return 0
    print("\n".join(complaints) or f"The demo broke off; its console is in {vm.console}.", flush=True)
    return 1


def wait(vm, limit):
    while vm.running() and vm.seconds() < limit:
        time.sleep(0.05)
    vm.kill()


def configuration(options, job):
    """The guest's orders."""
    options.kernel = os.path.abspath(options.kernel)
    modules = kernel_modules(options.kernel)
    implementations = {}
    if NAME in modules:
        implementations["c"] = modules.pop(NAME)
    elif job == "functional" or not options.module:
        raise Missing(f"no {NAME}.ko in {options.kernel}")
    if options.module:
        implementations["rust"] = os.path.abspath(options.module)
        if not os.path.exists(options.module):
            raise Missing(f"no such file: {options.module}")
    if options.impl not in implementations:
        raise Missing(f"--impl {options.impl} needs --module")
    shutil.rmtree(options.results, ignore_errors=True)
    os.makedirs(options.results)
    return {
        "job": job, "modules": modules, "implementations": implementations, "impl": options.impl,
        "expression": options.expression, "mark": "", "tests": [],
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


def need_programs():
    path = os.pathsep.join(["/usr/sbin", "/usr/bin", "/sbin", "/bin"])
    missing = [program for program in PROGRAMS if not shutil.which(program, path=path)]
    if importlib.util.find_spec("pytest") is None:
        missing.append("pytest for /usr/bin/python3")
    if missing:
        raise Missing(f"not installed: {', '.join(missing)}")
