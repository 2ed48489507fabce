"""The script as it is, with the platform's own addresses and the kernel's own host name.

In namespaces only: network and host name are this process's own (see world/network.py), /etc is
each run's own. PATH has no hostnamectl: a real one would reach the machine's systemd through D-Bus.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from typing import List, Sequence, Tuple

import pytest

from conftest import UNIT_FLAGS, require, require_tools, wait_until
from world import sandbox
from world.host import SimulatedHost
from world.network import PLATFORM_ADDRESSES, set_address

pytestmark = pytest.mark.usefixtures("isolated")

NOBODYS_PYTHON = "/usr/bin/python3"  # others may be where nobody may not look
MACHINE = """\
mount -t tmpfs -o size=8k tmpfs /etc
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


@pytest.fixture
def host(platform_host: SimulatedHost) -> SimulatedHost:
    return platform_host


def boot(
    *options: str, prepare: str = "", python: str = sys.executable, prefix: Sequence[str] = ()
) -> Tuple[int, List[str]]:
    """Run the script on a machine of its own; return its status, and its output and the names."""
    require_tools("unshare", "hostname", "mount")
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "--uts",
            "sh",
            "-ec",
            MACHINE.format(prepare=prepare),
            "sh",
            *prefix,
            python,
            *UNIT_FLAGS,
            sandbox.SCRIPT,
            *options,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.returncode, done.stdout.splitlines()


def test_without_any_option_it_does_the_whole_job(host: SimulatedHost, python: str) -> None:
    status, lines = boot(python=python)
    assert status == 0
    assert lines[0] == "Fetching the goal state from http://168.63.129.16"
    assert lines[-3:] == ["kernel: web000011", "stored: web000011", "files: hostname"]
    assert len(host.accepted) == 1


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (0, "Goal state failed: [Errno 101] Network is unreachable; trying again for 1200 s"),
        (1, "Computer name failed: [Errno 101] Network is unreachable; trying again for 300 s"),
    ],
)
def test_a_network_that_comes_late_is_only_a_delay(
    host: SimulatedHost, number: int, line: str
) -> None:
    set_address(number, "0.0.0.0")

    def come_up() -> None:
        if number:
            wait_until(lambda: host.accepted)
        time.sleep(6)  # a busy machine takes some of it to start Python
        set_address(number, PLATFORM_ADDRESSES[number])

    thread = threading.Thread(target=come_up)
    thread.start()
    status, lines = boot()
    thread.join()
    assert status == 0
    assert line in lines
    assert lines[-3:-1] == ["kernel: web000011", "stored: web000011"]
    assert len(host.accepted) == 1


def test_where_etc_is_read_only_the_kernel_has_the_name_all_the_same(host: SimulatedHost) -> None:
    status, lines = boot("--timeout=1", prepare="mount -o remount,ro,bind /etc")
    assert status == 3
    assert lines[-3:] == ["kernel: web000011", "stored: old-name", "files: hostname"]
    assert any("Read-only file system" in line for line in lines)
    assert len(host.accepted) == 1


def test_where_the_disk_is_full_the_kernel_has_the_name_all_the_same(host: SimulatedHost) -> None:
    fill = "head -c 8k /dev/zero >/etc/full 2>/dev/null || true"
    status, lines = boot("--timeout=1", prepare=fill)
    assert status == 3
    assert lines[-3:] == ["kernel: web000011", "stored: old-name", "files: full hostname"]
    assert any("No space left on device" in line for line in lines)


def test_output_that_breaks_where_there_is_no_dev_null_changes_nothing(
    host: SimulatedHost,
) -> None:
    broken = ["sh", "-c", 'exec "$@" >/dev/full 2>&1', "sh"]
    without = "mount -t tmpfs tmpfs /mnt; mknod /mnt/full c 1 7; mount --move /mnt /dev"
    status, lines = boot(prepare=without, prefix=["/bin/" + broken[0], *broken[1:]])
    assert status == 0
    assert lines[:2] == ["kernel: web000011", "stored: web000011"], "and no line of the script's"
    assert len(host.accepted) == 1


def run_as(user: List[str], *options: str) -> Tuple[int, str]:
    """Run the script behind *user*, with an /etc of its own; return its status and stderr."""
    require(os.environ["ROOT"], "only root can become nobody")
    require(os.path.exists(NOBODYS_PYTHON), f"{NOBODYS_PYTHON} is not installed")
    require_tools("setpriv")
    setup = 'mount -t tmpfs -o mode=755 tmpfs /etc; user=$1; shift; PATH=/nowhere exec $user "$@"'
    command = ["unshare", "--mount", "sh", "-ec", setup, "sh", " ".join(user)]
    with open(sandbox.SCRIPT) as script:  # nobody may not look where the checkout is
        done = subprocess.run(
            [*command, NOBODYS_PYTHON, "-I", "-S", "-", *options],
            stdin=script,
            capture_output=True,
            text=True,
            check=False,
        )
    return done.returncode, done.stderr


def test_a_kernel_that_refuses_the_name_has_it_after_the_next_boot(host: SimulatedHost) -> None:
    require_tools("setpriv")
    status, lines = boot("--timeout=1", prefix=["/usr/bin/setpriv", "--bounding-set=-sys_admin"])
    assert status == 3
    assert any("Host name failed: [Errno 1] Operation not permitted" in line for line in lines)
    assert lines[-3:] == ["kernel: old-name", "stored: web000011", "files: hostname"]
    assert len(host.accepted) == 1


ROOT: List[str] = []
NOBODY = ["/usr/bin/setpriv", "--reuid=65534", "--clear-groups", "--inh-caps=-all"]


def test_without_the_right_to_set_the_name_there_is_a_hint(host: SimulatedHost) -> None:
    status, err = run_as(NOBODY, "--timeout=1")
    assert status == 3
    assert len(host.accepted) == 1
    assert "Permission denied" in err
    assert "(you are not root: try again as root)" in err


@pytest.mark.parametrize(("user", "hinted"), [(NOBODY, True), (ROOT, False)])
def test_a_connection_that_times_out_gets_a_hint(
    host: SimulatedHost, user: List[str], hinted: bool
) -> None:
    host.misbehave("goalstate", "silent")
    status, err = run_as(user, "--timeout=1", "--dry-run")
    assert status == 1
    assert "timed out" in err
    assert ("timed out (you are not root: try again as root)" in err) == hinted


def test_no_packet_can_leave() -> None:
    names = [name for _, name in socket.if_nameindex()]
    assert names == ["lo"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, pytest.raises(
        OSError, match="unreachable"
    ):
        probe.connect(("192.0.2.1", 80))
