"""Whatever a test does wrong, nothing reaches Azure's addresses or renames the machine."""

import socket
import subprocess
import sys

import pytest

from conftest import Run
from world import sandbox
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


def test_isolate_changes_nothing_where_its_last_step_fails() -> None:
    where = {"PYTHONPATH": f"{sandbox.REPOSITORY}/tests"}
    subprocess.run([sys.executable, "-c", FAIL_AT_THE_LAST_STEP], env=where, check=True)


def test_isolate_lets_no_packet_leave() -> None:
    """In a namespace there is no way; elsewhere conftest's guard lets no test go it."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe,
        pytest.raises(OSError, match="unreachable|not isolated"),
    ):
        probe.connect(("192.0.2.1", 80))


@pytest.mark.parametrize("address", [*PLATFORM_ADDRESSES, "10.0.0.1"])
def test_sandbox_ends_before_it_connects_elsewhere(run: Run, address: str) -> None:
    result = run(f"--wireserver=http://{address}")
    assert (result.status, result.err) == (1, [f"sandbox: refused to connect to {address}"])
