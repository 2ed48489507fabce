"""The script as it is, with the platform's own addresses and the kernel's own host name.

In namespaces only: network and host name are this process's own (see world/network.py), /etc is
each run's own. PATH has no hostnamectl: a real one would reach the machine's systemd through D-Bus.
"""

import os
import subprocess
import sys
from typing import Callable, List, Sequence, Tuple

import pytest

from conftest import UNIT_FLAGS, require, require_tools
from world import sandbox
from world.host import SimulatedHost
from world.network import PLATFORM_ADDRESSES, set_address

pytestmark = pytest.mark.usefixtures("isolated")

MACHINE = """\
mount -t tmpfs -o mode=755 tmpfs /run
cp "$0" /run/azure_provisioning.py  # nobody may not look where the checkout is
mount -t tmpfs -o mode=755,size=8k tmpfs /etc
hostname old-name
echo old-name >/etc/hostname
{prepare}
status=0
PATH=/nowhere "$@" || status=$?
echo "kernel: $(hostname)"
echo "stored: $(cat /etc/hostname)"
echo "files: $(ls -A /etc | xargs)"
exit $status
"""
NOBODY = "/usr/bin/setpriv --reuid=65534 --clear-groups --inh-caps=-all".split()
NOBODYS_PYTHON = "/usr/bin/python3"  # others may be where nobody may not look


@pytest.fixture
def host(platform_host: SimulatedHost) -> SimulatedHost:
    return platform_host


def boot(
    *options: str,
    prepare: str = "",
    prefix: Sequence[str] = (),
    python: str = sys.executable,
    hear: Callable[[str], None] = lambda line: None,
) -> Tuple[int, List[str]]:
    """Run the script on a machine of its own; return its status, and its output and the names."""
    require_tools("unshare", "hostname", "mount")
    machine = ["unshare", "--mount", "--uts", "sh", "-ec", MACHINE.format(prepare=prepare)]
    script = [*prefix, python, *UNIT_FLAGS, "/run/azure_provisioning.py", *options]
    lines = []
    with subprocess.Popen(
        [*machine, sandbox.SCRIPT, *script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            hear(lines[-1])
    assert not any("Traceback" in line for line in lines), lines
    return process.returncode, lines


def test_without_any_option_it_does_the_whole_job(host: SimulatedHost, python: str) -> None:
    status, lines = boot(python=python)
    assert status == 0
    assert lines[0] == "Fetching the goal state from http://168.63.129.16"
    assert lines[-3:] == ["kernel: web000011", "stored: web000011", "files: hostname"]
    assert len(host.accepted) == 1


@pytest.mark.parametrize(
    ("number", "complaint"),
    [
        (0, "Goal state failed: [Errno 101] Network is unreachable; trying again for 1200 s"),
        (1, "Computer name failed: [Errno 101] Network is unreachable; trying again for 300 s"),
    ],
)
def test_a_network_that_comes_late_is_only_a_delay(
    host: SimulatedHost, number: int, complaint: str
) -> None:
    set_address(number, "0.0.0.0")

    def come_up(line: str) -> None:
        if line == complaint:
            set_address(number, PLATFORM_ADDRESSES[number])

    status, lines = boot(hear=come_up)
    assert status == 0
    assert lines[-3:-1] == ["kernel: web000011", "stored: web000011"]
    assert len(host.accepted) == 1


@pytest.mark.parametrize(
    ("prepare", "complaint", "files"),
    [
        ("mount -o remount,ro,bind /etc", "Read-only file system", "hostname"),
        ("head -c 8k /dev/zero >/etc/full || true", "No space left on device", "full hostname"),
    ],
)
def test_where_the_name_cannot_be_stored_the_kernel_has_it_all_the_same(
    host: SimulatedHost, prepare: str, complaint: str, files: str
) -> None:
    status, lines = boot("--timeout=1", prepare=prepare)
    assert status == 3
    assert lines[-3:] == ["kernel: web000011", "stored: old-name", f"files: {files}"]
    assert any(complaint in line for line in lines)
    assert len(host.accepted) == 1


def test_output_that_breaks_where_there_is_no_dev_null_changes_nothing(
    host: SimulatedHost,
) -> None:
    full = "mount -t tmpfs -o mode=755 tmpfs /mnt; : >/mnt/full; mount --bind /dev/full /mnt/full"
    broken = ["/bin/sh", "-c", 'exec "$@" >/dev/full 2>&1', "sh"]
    status, lines = boot(prepare=f"{full}; mount --move /mnt /dev", prefix=broken)
    assert status == 0
    assert lines[:2] == ["kernel: web000011", "stored: web000011"], "and no line of the script's"
    assert len(host.accepted) == 1


def test_a_kernel_that_refuses_the_name_has_it_after_the_next_boot(host: SimulatedHost) -> None:
    require_tools("setpriv")
    status, lines = boot("--timeout=1", prefix=["/usr/bin/setpriv", "--bounding-set=-sys_admin"])
    assert status == 3
    assert any("Host name failed: [Errno 1] Operation not permitted" in line for line in lines)
    assert lines[-3:] == ["kernel: old-name", "stored: web000011", "files: hostname"]
    assert len(host.accepted) == 1


def boot_as(user: List[str], *options: str) -> Tuple[int, str]:
    require(os.environ["ROOT"], "only root can become nobody")
    require_tools("setpriv", NOBODYS_PYTHON)
    status, lines = boot("--timeout=1", *options, prefix=user, python=NOBODYS_PYTHON)
    return status, "\n".join(lines)


def test_without_the_right_to_set_the_name_there_is_a_hint(host: SimulatedHost) -> None:
    status, said = boot_as(NOBODY)
    assert status == 3
    assert len(host.accepted) == 1
    assert "Permission denied" in said
    assert "(you are not root: try again as root)" in said


@pytest.mark.parametrize(("user", "hinted"), [(NOBODY, True), ([], False)])
def test_a_connection_that_times_out_gets_a_hint(
    host: SimulatedHost, user: List[str], hinted: bool
) -> None:
    host.misbehave("goalstate", "silent")
    status, said = boot_as(user, "--dry-run")
    assert status == 1
    assert "timed out" in said
    assert ("timed out (you are not root: try again as root)" in said) == hinted
