"""The script as it is, with the platform's own addresses and the kernel's own host name.

In namespaces only: network and host name are this process's own (see world/network.py), /etc is
each run's own.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Callable

import pytest

from conftest import UNIT_FLAGS, require, require_tools
from world import sandbox
from world.host import SimulatedHost
from world.machine import SLACK
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
"$@" || status=$?
echo "kernel: $(hostname)"
echo "stored: $(cat /etc/hostname 2>/dev/null || true)"
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
) -> tuple[int, list[str]]:
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


def test_main_without_options_does_the_whole_job(host: SimulatedHost, python: str) -> None:
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
def test_network_that_comes_late_is_only_a_delay(
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


NEW_NAME = ["kernel: web000011", "stored: web000011"]
FULL = "head -c 8k /dev/zero >/etc/full || true"  # but for what is there
MOUNTS = {
    "a bind mount": "echo x >/run/other; mount --bind /run/other /etc/hostname",
    "nobody's, and locked": "chmod 444 /etc/hostname; chown 65534 /etc/hostname || true",
    "on a full disk": FULL,
    "a link to another file system": """
        mkdir /etc/other; mount -t tmpfs tmpfs /etc/other; ln -sf other/hostname /etc/hostname
    """,
}


@pytest.mark.parametrize("prepare", MOUNTS.values(), ids=MOUNTS.keys())
def test_store_host_name_works_where_etc_hostname_is(host: SimulatedHost, prepare: str) -> None:
    status, lines = boot(prepare=prepare)
    assert (status, lines[-3:-1]) == (0, NEW_NAME)


REFUSALS = {
    "read-only": ("mount -o remount,ro,bind /etc", "[Errno 30] Read-only file system", "old-name"),
    "full, and it is empty": (f": >/etc/hostname; {FULL}", "[Errno 28] No space left", ""),
    "full, and it is missing": (f"rm /etc/hostname; {FULL}", "[Errno 28] No space left", ""),
    "a directory": ("rm /etc/hostname; mkdir /etc/hostname", "[Errno 21] Is a directory", ""),
    "a link into /run": (
        "ln -sf ../run/name /etc/hostname",
        "[Errno 2] It is in /run",
        "web000011",
    ),
    "a link to nowhere": ("ln -sf /no/such /etc/hostname", "[Errno 2] No such file", ""),
}


@pytest.mark.parametrize("prepare, reason, stored", REFUSALS.values(), ids=REFUSALS.keys())
def test_set_host_name_sets_the_kernels_at_least_where_etc_is(
    host: SimulatedHost, prepare: str, reason: str, stored: str
) -> None:
    start = time.monotonic()
    status, lines = boot(prepare=prepare)
    assert time.monotonic() - start < SLACK, "it is final for this boot"
    assert (status, lines[-3:-1]) == (3, ["kernel: web000011", f"stored: {stored}"])
    (line,) = [line for line in lines if "failed" in line]
    assert line.startswith(f"Host name failed: {reason}")
    assert line.endswith(": '/etc/hostname'; giving up")
    assert len(host.accepted) == 1


def test_main_without_root_fails_with_a_hint(host: SimulatedHost) -> None:
    require(os.environ["ROOT"], "only root can become nobody")
    require_tools("setpriv", NOBODYS_PYTHON)
    status, lines = boot(prefix=NOBODY, python=NOBODYS_PYTHON)
    hint = " (you are not root: try again as root); giving up"
    assert f"Host name failed: [Errno 13] Permission denied: '/etc/hostname'{hint}" in lines
    assert (status, len(host.accepted)) == (3, 1)
