# SPDX-License-Identifier: GPL-2.0
"""Fixtures of the functional tests.

`pool` is a running pool, `make_pool` makes one to the test's wishes. Whatever a test does,
its pools are removed afterwards, thin_check must be content with each one's metadata,
no device may be left, and the kernel's log must hold no complaint.
"""

import os
import shutil
import subprocess

import pytest

from dmtest import disk, dm, ioctl, kmsg
from dmtest.background import wait_until
from dmtest.disk import (
    Disk,
    MIB,
    SECTOR,
)
from dmtest.faulty import Faulty
from dmtest.gate import Gate
from dmtest.generator import Generator
from dmtest.lvm2 import Group
from dmtest.pool import Pool
from dmtest.thinctl import Thinctl
from dmtest.trace import (
    Trace,
    differences,
)

NO_SPACE_TIMEOUT = "/sys/module/dm_thin_pool/parameters/no_space_timeout"


@pytest.fixture(scope="session")
def run(pytestconfig):
    """The run's configuration."""
    return pytestconfig.dmtest.config


@pytest.fixture(scope="session")
def settings(run):
    """`settings(name, usual)`: a number that the run was given with --set, or else the usual one."""
    def setting(name, usual):
        return type(usual)(run["settings"].get(name, usual))

    return setting


@pytest.fixture(scope="session")
def figures(pytestconfig):
    """`figures(test, **numbers)` puts numbers into the run's report."""
    return pytestconfig.dmtest.figures


@pytest.fixture(scope="session")
def progress(pytestconfig):
    """`progress(text)` tells how far a test is that takes long; it does not count as hung then."""
    return pytestconfig.dmtest.progress


@pytest.fixture(scope="session")
def modules(pytestconfig):
    return pytestconfig.dmtest.modules


@pytest.fixture(scope="session")
def both(run):
    """The two implementations that are compared: C first. Where there is but one, that one twice."""
    return ("c", "rust") if "rust" in run["implementations"] else (run["impl"], run["impl"])


@pytest.fixture(autouse=True)
def additions(request, run):
    """The C module is not asked for what it does not have, nor tried where it is known to fail."""
    if run["impl"] != "c":
        return
    if request.node.get_closest_marker("named_addition"):
        pytest.skip("an addition of ours")
    fault = request.node.get_closest_marker("fault_of_c")
    if fault:
        pytest.skip(f"the C module fails here: {fault.args[0]}")


@pytest.fixture(autouse=True)
def kernel(run, modules, additions):
    """Loads the module under test, and watches over the kernel while the test runs. Gives the kernel's log."""
    modules.load(run["impl"])
    log = kmsg.Log()
    watched = kmsg.Log()
    yield log
    left = dm.remove_all()
    disks = disk.close_all()
    lines = watched.lines()
    log.close()
    watched.close()
    assert not left, f"devices that cannot be removed: {left}"
    assert not disks, f"{disks} disks were left open"
    assert not kmsg.bad(lines), "the kernel complained:\n" + "\n".join(lines)
    excused = any(kmsg.is_of_teardown(lines, number) for number in range(len(lines)))
    assert excused or kmsg.checks_locking() is not False, "the kernel has switched lockdep off"


@pytest.fixture
def make_disk(kernel):
    """Makes disks of the given size in bytes."""
    disks = []

    def make(size, name=None, discards=True, sector_size=SECTOR):
        made = Disk(name or f"disk{len(disks)}", size, discards, sector_size)
        disks.append(made)
        return made

    yield make
    for made in disks:
        made.close()


@pytest.fixture
def make_faulty(make_disk, modules):
    """Makes disks of the given size in bytes that can be told to fail."""
    made = []

    def make(size):
        for name in ("dm-flakey", "dm-delay"):
            modules.need(name)
        made.append(Faulty(make_disk(size)))
        return made[-1]

    make.made = made
    yield make
    for one in made:
        one.close()


@pytest.fixture
def make_gate(make_disk, make_faulty, modules):
    """Makes disks of the given size in bytes whose I/O waits or fails when they are told so."""
    if "dm-load" not in modules.names():
        pytest.skip("no dm-load.ko: see --load")
    modules.need("dm-load")

    def make(size):
        make_faulty.made.append(Gate(make_disk(size)))
        return make_faulty.made[-1]

    return make


@pytest.fixture
def make_generator(make_pool, modules):
    """Makes load generators on volumes."""
    if "dm-load" not in modules.names():
        pytest.skip("no dm-load.ko: see --load")
    modules.need("dm-load")
    made = []

    def make(thin):
        made.append(Generator(thin.path, f"generator{len(made)}"))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def make_pool(make_disk, make_faulty):
    """Makes pools on new disks, or on those given, and starts them, unless told not to."""
    pools = []

    def make(metadata_size=16 * MIB, data_size=512 * MIB, start=True, data_discards=True, metadata=None, data=None,
             **options):
        number = len(pools)
        made = Pool(
            metadata or make_disk(metadata_size, f"metadata{number}"),
            data or make_disk(data_size, f"data{number}", data_discards),
            name=f"pool{number}",
            **options,
        )
        pools.append(made)
        return made.start() if start else made

    yield make
    for made in make_faulty.made:
        made.heal()
    for made in pools:
        made.stop()
    assert set(ioctl.names()) == {name for made in make_faulty.made for name in made.names()}, "devices were left"
    for made in pools:
        made.check()


@pytest.fixture
def pool(make_pool):
    """A pool with 64 KiB blocks."""
    return make_pool()


@pytest.fixture
def compare(both, modules, kernel):
    """Runs `scenario(trace, turn)` under each implementation; both must answer the same at every step."""

    def run(scenario):
        traces = []
        for turn, implementation in enumerate(both):
            modules.load(implementation)
            trace = Trace(kernel)
            scenario(trace, turn)
            traces.append(trace.entries)
        assert traces[0], "the scenario noted nothing"
        found = differences(*traces)
        if found:
            pytest.fail(found, pytrace=False)

    return run


@pytest.fixture
def no_space_timeout():
    """Sets the module's parameter of this name; the usual value returns afterwards."""
    def set_to(seconds):
        with open(NO_SPACE_TIMEOUT, "w") as parameter:
            parameter.write(str(seconds))

    yield set_to
    if os.path.exists(NO_SPACE_TIMEOUT):
        set_to(60)


@pytest.fixture
def mounted(tmp_path):
    """Mounts file systems; gives the function `mount(device, options, kind) -> folder`."""
    folders = []

    def mount(device, options="defaults", kind="auto"):
        folder = tmp_path / f"mount{len(folders)}"
        folder.mkdir()
        subprocess.run(["mount", "-t", kind, "-o", options, device, str(folder)], check=True, capture_output=True)
        folders.append(folder)
        return folder

    yield mount
    for folder in reversed(folders):
        if os.path.ismount(folder):
            # A process that was started from there may be about to end.
            wait_until(lambda: subprocess.run(["umount", str(folder)]).returncode == 0, f"nobody uses {folder}")


def pytest_generate_tests(metafunc):
    """A test marked `seeds(name, usual)` is played as often as --set <name>=<n> says; its first seed is --set seed=<n>."""
    marker = metafunc.definition.get_closest_marker("seeds")
    if marker:
        given = metafunc.config.dmtest.config["settings"]
        first = int(given.get("seed", 1))
        metafunc.parametrize("seed", range(first, first + int(given.get(marker.args[0], marker.args[1]))))


def pytest_configure(config):
    config.addinivalue_line("markers", "seeds(name, usual): random; played with as many seeds as the setting says")
    config.addinivalue_line("markers", "named_addition: the C module has no such thing")
    config.addinivalue_line("markers", "fault_of_c(what): the C module has this fault, which Documentation/reliability.rst tells of")
    config.addinivalue_line("markers", "lvm2: lvm2 on top; runs on x86_64 as well")
    config.addinivalue_line("markers", "smoke: belongs to the short selection that runs on x86_64")


@pytest.fixture
def thinctl(settings):
    """The program of --set thinctl=<path>, which remembers nothing yet."""
    program = settings("thinctl", "")
    if not program:
        pytest.skip("there is no --set thinctl=<path>")
    made = Thinctl(program)
    yield made
    # What lies on what a test has mounted is gone.
    shutil.rmtree(made.folder, ignore_errors=True)


@pytest.fixture
def other(make_pool, pool):
    """A second pool, with blocks of another size."""
    return make_pool(block_sectors=256)


@pytest.fixture
def lvm(run, modules, make_disk, make_pool, kernel):
    """A volume group of lvm2 with the pool `pool` and in that the volume `data`, under the module under test."""
    modules.install(run["impl"])
    group = Group(Trace(kernel), [make_disk(400 * MIB, "lvm2")])
    yield group
    try:
        group.check()
    finally:
        group.close()
        modules.uninstall()
