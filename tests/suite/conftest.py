"""What the tests share: isolation, a simulated host, a machine, the script as a process."""

import collections
import contextlib
import fcntl
import itertools
import json
import os
import platform
import pwd
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional

import pytest

from world import images, interpreters, sandbox
from world.boot import EMULATIONS, Emulation
from world.host import OLD_IMDS_VERSIONS, SimulatedHost, Vm
from world.machine import MEMORY_MAX, Machine
from world.network import PLATFORM_ENDPOINTS, isolate, new_network

NEWEST = "debian-testing"  # an image, whose Python is newer than what machines have

# Before anything else runs, and before pytest-xdist starts its workers, which inherit it: from here
# on nothing can reach Azure's addresses, or change the machine's host name, even by mistake.
# Where the kernel refuses, sandbox.py's guard remains, and tests that need more are skipped.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["ROOT"] = "" if os.geteuid() else "yes"  # in a user namespace everybody looks it
    os.environ.setdefault("USER", pwd.getpwuid(os.geteuid()).pw_name)  # names pytest's directory
    os.environ["NOT_ISOLATED"] = isolate()
    if "PYTHONS" not in os.environ:  # mutants.py needs only one
        os.environ["PYTHONS"] = json.dumps({**interpreters.find(), NEWEST: NEWEST})
NOT_ISOLATED = os.environ["NOT_ISOLATED"]
PYTHONS: Dict[str, str] = json.loads(os.environ["PYTHONS"])
VMS_AT_ONCE = 3  # more are no faster on two cores, and then too slow for what waits for them
UNIT_FLAGS = ["-I", "-S"]
# Coverage needs site-packages: where it is measured, what is no matter of memory has them.
MEASURED_FLAGS = ["-I"] if "COVERAGE_PROCESS_START" in os.environ else UNIT_FLAGS


def pytest_report_header() -> List[str]:
    isolation = NOT_ISOLATED or "loopback only, in a network namespace of our own"
    return [f"network: {isolation}", f"script runs on: CPython {', '.join(PYTHONS)}"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--images", help="boot these, by name; see world/images.py")
    parser.addoption("--power-cuts", type=int, default=28, help="machines to boot and kill")
    parser.addoption(
        "--vm-power-cuts", type=int, default=10, help="of virtual machines, ten of a boot"
    )
    parser.addoption("--walks", type=int, default=400, help="random walks over the fault table")
    parser.addoption("--oracle-cases", type=int, default=4000, help="answers to compare judges on")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--images"):  # before the modules that make tests of them
        images.select(config.getoption("--images"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "python" in metafunc.fixturenames:
        metafunc.parametrize("python", PYTHONS.values(), ids=PYTHONS.keys(), indirect=True)


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    """Have two workers begin with the virtual machines: as many as there are cores in CI.

    Each worker gets a block of the list; one that is done takes over from another.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    trials: List[pytest.Item] = []  # of images: they take longest
    others: List[pytest.Item] = []
    rest: List[pytest.Item] = []
    for item in items:
        names = getattr(item, "fixturenames", ())
        (trials if "emulated" in names else others if "emulation" in names else rest).append(item)
    slow = trials + others
    first, second = slow[::2], slow[1::2]
    fill = max(len(items) // workers - len(first), 0)
    items[:] = first + rest[:fill] + second + rest[fill:]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    properties = [pair for report in reports for pair in report.user_properties]
    reached = collections.Counter(value for name, value in properties if name == "power cut")
    if reached:
        cuts = ", ".join(f"{value}: {count}" for value, count in sorted(reached.items()))
        terminalreporter.write_line(f"power cuts, by what had happened before: {cuts}")


def require(condition: object, what: str) -> None:
    """Skip the test with a reason; where CI runs, which installs everything, fail instead."""
    if not condition:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


def require_tools(*programs: str) -> None:
    missing = [program for program in programs if not shutil.which(program)]
    require(not missing, f"not installed: {', '.join(missing)}")


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def heed_sigint() -> None:
    """Before a program starts: who started the tests may have had it ignored, as "nohup … &" does."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def isolated() -> None:
    require(not NOT_ISOLATED, NOT_ISOLATED)


@pytest.fixture
def emulation(isolated: None, pytestconfig: pytest.Config) -> Iterator[Emulation]:
    """How to run a virtual machine here, when fewer than VMS_AT_ONCE tests have one."""
    emulation = EMULATIONS.get(platform.machine())
    require(emulation, f"QEMU's options for {platform.machine()} are missing in world/boot.py")
    assert emulation
    require(os.environ["ROOT"], "only root can run a virtual machine in a network of its own")
    require_tools(emulation.program, *"debugfs dnsmasq ip mke2fs".split())
    assert pytestconfig.cache
    slots = pytestconfig.cache.mkdir("slots")
    for number in itertools.cycle(range(VMS_AT_ONCE)):
        with open(slots / str(number), "w") as slot, contextlib.suppress(BlockingIOError):
            fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield emulation
            return
        time.sleep(0.2)


@pytest.fixture
def emulated(emulation: Emulation) -> None:
    """There is a way to run a virtual machine here."""


@pytest.fixture
def image(release: str, isolated: None, pytestconfig: pytest.Config) -> Path:
    """The root file system of a Debian."""
    return built_image(release, pytestconfig)


def built_image(name: str, config: pytest.Config) -> Path:
    require(os.environ["ROOT"], "only root can build and boot a root file system")
    require_tools("mmdebstrap", "mount", "nsenter", "setpriv", "unshare")
    require(name in images.IMAGES, f"{name} is not among --images")
    assert config.cache
    return images.build(name, config.cache.mkdir("images"))


@pytest.fixture
def python(request: pytest.FixtureRequest, pytestconfig: pytest.Config, tmp_path: Path) -> str:
    """An interpreter to run the script on."""
    if request.param != NEWEST:
        return str(request.param)
    request.getfixturevalue("isolated")
    return interpreters.from_image(built_image(NEWEST, pytestconfig), tmp_path / "python3")


@pytest.fixture
def vm() -> Vm:
    """The VM on the simulated host; a test that wants another one overrides this."""
    return Vm(name="web_11", computer_name="web000011")


@pytest.fixture
def host(vm: Vm) -> Iterator[SimulatedHost]:
    with SimulatedHost(vm) as host:
        yield host


@pytest.fixture
def platform_host(vm: Vm, isolated: None) -> Iterator[SimulatedHost]:
    """A host with the platform's addresses, in a network that no other test uses."""
    with new_network(), SimulatedHost(vm, *PLATFORM_ENDPOINTS) as host:
        yield host


HostFor = Callable[[str], SimulatedHost]


@pytest.fixture
def host_for(host: SimulatedHost) -> HostFor:
    """A host that hears the request to an endpoint."""

    def host_for(endpoint: str) -> SimulatedHost:
        if endpoint == "name":
            host.imds_versions = OLD_IMDS_VERSIONS
        return host

    return host_for


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


class Result(NamedTuple):
    status: int
    out: List[str]
    err: List[str]
    seconds: float


Run = Callable[..., Result]


@pytest.fixture
def command(host: SimulatedHost, machine: Machine) -> List[str]:
    """The script on *machine*, against *host*."""
    return [
        sys.executable,
        *MEASURED_FLAGS,
        "-W",
        "error",
        sandbox.__file__,
        str(machine.directory),
        *host.options(),
    ]


@pytest.fixture
def run(command: List[str], machine: Machine) -> Run:
    """Run the script to its end; no run ever prints a traceback, or takes much memory."""

    def run(
        *options: str, python: str = sys.executable, env: Optional[dict[str, str]] = None
    ) -> Result:
        start = time.monotonic()
        done = subprocess.run(
            [python, *UNIT_FLAGS, *command[1 + len(MEASURED_FLAGS) :], *options],
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert machine.peak_memory < MEMORY_MAX
        seconds = time.monotonic() - start
        return Result(done.returncode, done.stdout.splitlines(), done.stderr.splitlines(), seconds)

    return run
