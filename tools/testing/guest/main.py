# SPDX-License-Identifier: GPL-2.0
"""What runs inside the test VM: reads its orders from config.json in the folder given, writes events there."""

import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)


def functional(results, config):
    import pytest
    from guest.plugin import Events

    selection = ["-k", config["expression"]] if config["expression"] else []
    if config["mark"]:
        selection += ["-m", config["mark"]]
    # The rest of a run that broke off names its tests one by one.
    tests = [os.path.join(ROOT, "functional", test) for test in config["tests"]]
    return pytest.main(
        ["-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", "--rootdir", os.path.join(ROOT, "functional"), *selection, *tests],
        plugins=[Events(results, config)],
    )


def kunit(results, config):
    from dmtest import kmemleak, kmsg
    from dmtest.coverage import Coverage
    from dmtest.modules import Modules

    leaks = ""
    built_in = config["impl"] == "built-in"
    log = kmsg.Log(start=built_in)
    if not built_in:
        modules = Modules(config["modules"], config["implementations"], config["parameters"], Coverage(os.path.join(results, "profraw")))
        modules.insert(modules.file("rust"))
        symbols = kmemleak.symbols("dm_thin_pool")
        modules.unload()
        modules.need("dm-load")
        if kmemleak.is_there():
            leaks = kmemleak.find(symbols)
            print(leaks, flush=True)
    with open(os.path.join(results, "kunit.log"), "w") as report:
        report.write("\n".join(log.lines()) + "\n")
    return 1 if leaks else 0


def demo(results, config):
    from dmtest.modules import Modules

    modules = Modules(config["modules"], config["implementations"], config["parameters"])
    modules.load(config["impl"])
    print("demo starts", flush=True)
    return subprocess.run([os.path.join(ROOT, "demo", "demo")]).returncode


def bench(results, config):
    from bench import run
    from dmtest.modules import Modules

    return run.run(results, config, Modules(config["modules"], config["implementations"]))


def power(results, config):
    from guest import power

    return power.run(results, config)


def hostile(results, config):
    from guest import hostile

    return hostile.hostile(results, config)


def main():
    results = sys.argv[1]
    with open(os.path.join(results, "config.json")) as file:
        config = json.load(file)
    work = {"functional": functional, "kunit": kunit, "demo": demo, "bench": bench, "power": power, "hostile": hostile}[config["job"]]
    return work(results, config)


if __name__ == "__main__":
    sys.exit(main())
