"""What the tests share: isolation, a simulated host, a machine, the script as a process."""

import collections
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

import azure_provisioning
from world import clock, images, interpreters, sandbox
from world.boot import EMULATIONS, Emulation
from world.host import SimulatedHost, Vm
from world.machine import Machine
from world.network import PLATFORM_ENDPOINTS, isolate, new_network

# Before anything else runs, and before pytest-xdist starts its workers, which inherit it: from here
# on nothing can reach Azure's addresses, or change the machine's host name, even by mistake.
# Where that is refused nothing changes: guards remain, here and in sandbox.py, and what needs more
# is skipped.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["ROOT"] = "" if os.geteuid() else "yes"  # in a user namespace everybody looks it
    os.environ.setdefault("USER", str(os.geteuid()))  # names pytest's directory
    os.environ["NOT_ISOLATED"] = isolate()
    if "PYTHONS" not in os.environ:  # by name; one is enough for what is run again and again
        os.environ["PYTHONS"] = json.dumps(interpreters.find())
NOT_ISOLATED = os.environ["NOT_ISOLATED"]
PYTHONS: dict[str, str] = json.loads(os.environ["PYTHONS"])
# These explain a failure best, so it is reported there first.
FIRST = "command_line documents http set_host_name say report_ready find_name".split()
BOOTS_TAKE = "as root, about 10 minutes on two cores, and 2 GB below .pytest_cache"
UNIT_FLAGS = ["-I", "-S"]
# Coverage needs site-packages.
MEASURED_FLAGS = ["-I"] if "COVERAGE_PROCESS_START" in os.environ else UNIT_FLAGS


def guard(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        address = arguments[1][0]
        if not address.startswith(("127.", "::1", "localhost")):
            raise OSError(f"not isolated: refused to connect to {address}")


if NOT_ISOLATED:
    sys.addaudithook(guard)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--boots", action="store_true", help=f"boot real systems: {BOOTS_TAKE}")
    parser.addoption("--power-cuts", type=int, default=28, help="machines to boot and kill")
    parser.addoption("--vm-power-cuts", type=int, default=10, help="of VMs, ten of a boot")
    parser.addoption("--walks", type=int, default=200, help="random walks over the fault table")
    parser.addoption("--oracle-cases", type=int, default=10000, help="answers to compare judges on")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "python" in metafunc.fixturenames:
        metafunc.parametrize("python", PYTHONS.values(), ids=PYTHONS.keys())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put them in order, without what boots, if that was not asked for."""
    places = {f"test_{name}": place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(FIRST)))
    fixtures = {item: set(getattr(item, "fixturenames", ())) for item in items}
    if not config.getoption("--boots"):
        items[:] = [item for item in items if not fixtures[item] & {"image", "emulation"}]
    # Virtual machines first, since they take longest: the disk that is made for it, and beside it,
    # one by one, all others. More at once would be too slow for what waits for them.
    vms = [item for item in reversed(items) if "emulation" in fixtures[item]]
    for number, item in enumerate(vms):
        item.add_marker(pytest.mark.xdist_group("other vms" if number else "disk"))
    items[:] = [*vms, *(item for item in items if item not in vms)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Have a reason to skip be told once, and not once for each place where a test was skipped."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple):
        report.longrepr = (__file__, require.__code__.co_firstlineno, report.longrepr[2])
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not terminalreporter.config.getoption("--boots"):
        what = "containers, virtual machines and trials of images"
        terminalreporter.write_line(f"left out: {what}; --boots runs them: {BOOTS_TAKE}")
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
    """Before a program starts: who started the tests may ignore it, as "nohup … &" does."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def isolated() -> None:
    require(not NOT_ISOLATED, NOT_ISOLATED)


@pytest.fixture
def emulation(isolated: None) -> Emulation:
    """How to run a virtual machine here."""
    require(os.environ["ROOT"], "only root can run a virtual machine in a network of its own")
    here = EMULATIONS.get(platform.machine())
    require(here, f"{platform.machine()} is missing in world/boot.py")
    assert here
    require_tools(here.program, "debugfs", "dnsmasq", "ip", "mke2fs")
    return here


@pytest.fixture
def image(release: str, isolated: None, pytestconfig: pytest.Config) -> Path:
    """The root file system of a Debian."""
    require(os.environ["ROOT"], "only root can build and boot a root file system")
    require_tools("mmdebstrap", "mount", "nsenter", "setpriv", "unshare")
    assert pytestconfig.cache
    return images.build(release, pytestconfig.cache.mkdir("images"))


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


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


@pytest.fixture
def run_here(machine: Machine, host: SimulatedHost) -> clock.Run:
    """Run the script in this process, on a clock that only its pauses move."""
    return clock.script(machine, host)


@pytest.fixture
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> clock.StoppedClock:
    stopped = clock.StoppedClock()
    monkeypatch.setattr(azure_provisioning, "time", stopped)
    monkeypatch.setattr(azure_provisioning, "said", {})
    return stopped


Run = Callable[..., clock.Result]


@pytest.fixture
def command(host: SimulatedHost, machine: Machine) -> list[str]:
    """The script on *machine*, against *host*."""
    python = [sys.executable, *MEASURED_FLAGS, "-Werror"]
    return [*python, sandbox.__file__, str(machine.directory), *host.options()]


@pytest.fixture
def run(command: list[str]) -> Run:
    """Run the script to its end; no run ever prints a traceback."""

    def run(
        *options: str, python: str = sys.executable, env: Optional[dict[str, str]] = None
    ) -> clock.Result:
        start = time.monotonic()
        done = subprocess.run(
            [python, *command[1:], *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            env={**os.environ, **(env or {})},
        )
        seconds = time.monotonic() - start
        assert "Traceback" not in done.stderr, done.stderr
        out, err = done.stdout.splitlines(), done.stderr.splitlines()
        return clock.Result(done.returncode, out, err, seconds, pauses=[])

    return run
