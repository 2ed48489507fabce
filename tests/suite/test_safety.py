"""Whatever a test does wrong, nothing reaches Azure's addresses or renames the machine."""

import socket
import subprocess
import sys

import pytest

from world import sandbox
from world.machine import Machine
from world.network import PLATFORM_ADDRESSES

FAIL_AT_THE_LAST_STEP = """\
import os
from world import network

def fail():
    raise PermissionError

def seen():
    return [os.readlink("/proc/self/ns/" + name) for name in ("mnt", "net", "user", "uts")]

network.bring_up_loopback = fail
before = seen(), {**os.environ}
assert network.isolate().startswith("not isolated (")
assert (seen(), {**os.environ}) == before
"""


def test_isolation_that_fails_at_its_last_step_changes_nothing() -> None:
    where = {"PYTHONPATH": f"{sandbox.REPOSITORY}/tests"}
    subprocess.run([sys.executable, "-c", FAIL_AT_THE_LAST_STEP], env=where, check=True)


def test_no_packet_can_leave() -> None:
    """In a namespace there is no way; elsewhere conftest's guard lets no test go it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, pytest.raises(
        OSError, match="unreachable|not isolated"
    ):
        probe.connect(("192.0.2.1", 80))


@pytest.mark.parametrize("address", [*PLATFORM_ADDRESSES, "10.0.0.1"])
def test_the_sandbox_ends_before_it_connects_elsewhere(machine: Machine, address: str) -> None:
    command = [sys.executable, sandbox.__file__, str(machine.directory)]
    done = subprocess.run(
        [*command, f"--wireserver=http://{address}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == f"sandbox: refused to connect to {address}\n"


def test_the_sandbox_has_no_programs_but_its_own(machine: Machine) -> None:
    code = (
        "import os, sys; sys.path.insert(0, 'tests'); sys.argv[1:] = [sys.argv[1], '--version'];"
        "import sandbox, atexit; atexit.register(lambda: print(os.environ['PATH'])); sandbox.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(machine.directory)],
        capture_output=True,
        text=True,
        check=True,
        cwd=sandbox.REPOSITORY,
    )
    assert done.stdout.splitlines()[-1] == str(machine.directory / "bin")
