"""Where hostnamectl does not do it, the script does; or it says that it could not."""

import errno
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import List, Tuple

import pytest

import azure_provisioning
from conftest import Run, wait_until
from world import sandbox
from world.clock import Run as RunHere
from world.host import SimulatedHost
from world.machine import SLACK, UNFIT, Machine

NAMES = ["web000011", "web000011"]
BY_HAND = "; setting the host name without hostnamectl"


@pytest.mark.parametrize("hostnamectl", UNFIT.values(), ids=UNFIT.keys())
def test_a_hostnamectl_that_is_unfit_is_done_without(
    run_here: RunHere, machine: Machine, hostnamectl: str
) -> None:
    machine.install_hostnamectl(hostnamectl)
    result = run_here()
    assert result.status == 0
    assert machine.names == NAMES
    assert [line[-len(BY_HAND) :] for line in result.err] == [BY_HAND]


def test_a_missing_hostnamectl_is_done_without(run: Run, machine: Machine) -> None:
    machine.install_hostnamectl("")
    result = run()
    assert (result.status, machine.names) == (0, NAMES)
    assert result.err == ["[Errno 2] No such file or directory: 'hostnamectl'" + BY_HAND]


def test_what_hostnamectl_says_is_printed_and_then_its_status(run: Run, machine: Machine) -> None:
    machine.install_hostnamectl(UNFIT["fails"])
    said = ["Failed to connect to bus", "hostnamectl ended with status 1" + BY_HAND]
    assert run().err == said


@pytest.mark.parametrize(
    "way",
    ["/bin/sleep 60", "exec /bin/sleep 60", "trap '' ALRM TERM; /bin/sleep 60", "kill -STOP $$"],
)
def test_a_hostnamectl_that_hangs_gets_no_more_time_than_a_step(
    run_here: RunHere, machine: Machine, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(azure_provisioning, "STEP_SECONDS", 0.5)
    machine.install_hostnamectl(f"#!/bin/sh\n{way}\n")
    start = time.monotonic()
    result = run_here()
    assert 0.5 <= time.monotonic() - start < 0.5 + SLACK
    assert (result.status, machine.names) == (0, NAMES)
    assert "timed out after 0.5 seconds" in result.err[-1]


def test_what_hostnamectl_leaves_behind_is_not_waited_for(run: Run, machine: Machine) -> None:
    machine.install_hostnamectl(sandbox.HOSTNAMECTL + "/bin/sleep 60 >/dev/null 2>&1 &\n")
    result = run()
    assert (result.status, result.err) == (0, [])
    assert result.seconds < SLACK


def test_hostnamectl_reads_nothing(command: List[str], machine: Machine) -> None:
    machine.install_hostnamectl("#!/bin/sh\nread line && exit 7\n" + sandbox.HOSTNAMECTL)
    done = subprocess.run(command, input="a line\n", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.names == NAMES


@pytest.fixture
def direct(machine: Machine) -> Machine:
    machine.install_hostnamectl("")
    return machine


def test_the_stored_name_is_one_line_that_all_may_read(run: Run, direct: Machine) -> None:
    (direct.etc / "hostname").chmod(0o600)
    old_mask = os.umask(0o077)
    try:
        assert run().status == 0
    finally:
        os.umask(old_mask)
    path = direct.etc / "hostname"
    assert path.read_bytes() == b"web000011\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(direct.etc) == ["hostname"]


@pytest.mark.parametrize("kind", ["hard link", "symbolic link", "missing"])
def test_the_stored_name_is_replaced_never_rewritten(
    run_here: RunHere, direct: Machine, kind: str
) -> None:
    path, other = direct.etc / "hostname", direct.directory / "other"
    path.rename(other)
    if kind == "hard link":
        os.link(other, path)
    if kind == "symbolic link":
        path.symlink_to(other)
    assert run_here().status == 0
    assert direct.names == NAMES
    assert other.read_text() == "old-name\n"


@pytest.mark.parametrize("hostnamectl", ["works", "is missing"])
def test_what_a_killed_run_has_left_behind_is_removed(
    run_here: RunHere, machine: Machine, hostnamectl: str
) -> None:
    if hostnamectl == "is missing":
        machine.install_hostnamectl("")
    (machine.etc / "hostname.azure-provisioning").write_text("a longer name, left by a kill")
    assert run_here().status == 0
    assert machine.names == NAMES
    assert os.listdir(machine.etc) == ["hostname"]


SHORT_WRITE = """\
import resource, subprocess, sys
from world import sandbox
import azure_provisioning as script
sandbox.take_over(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (3, 3))
script.set_host_name("web000011", 0)
"""


def test_a_name_that_is_not_stored_in_full_is_not_stored(direct: Machine) -> None:
    """A write that fails in the middle, as on a full disk; here there is a limit on its size."""
    # Without site-packages, or a measured coverage would be cut short, too.
    writing = [sys.executable, "-S", "-c", SHORT_WRITE, str(direct.directory)]
    environment = {**os.environ, "PYTHONPATH": f"{sandbox.REPOSITORY}:{sandbox.REPOSITORY}/tests"}
    done = subprocess.run(writing, env=environment, capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr
    assert direct.names[1] == "old-name"


def test_two_runs_at_once_never_leave_the_stored_name_empty_or_wrong(
    command: List[str], direct: Machine
) -> None:
    path = direct.etc / "hostname"
    for _ in range(3):
        path.write_text("old-name\n")
        runs = [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for _ in range(3)
        ]
        assert [run.wait() for run in runs] == [0, 0, 0]
        assert path.read_text() == "web000011\n"
        assert os.listdir(direct.etc) == ["hostname"]


def test_a_name_that_cannot_be_stored_is_the_kernels_all_the_same(
    host: SimulatedHost, run_here: RunHere, direct: Machine
) -> None:
    (direct.etc / "hostname").unlink()
    (direct.etc / "hostname").mkdir()
    result = run_here("--timeout=1")
    assert result.status == 3
    assert len(host.accepted) == 1
    assert (direct.directory / "kernel").read_text() == "web000011"
    assert os.listdir(direct.etc) == ["hostname"], "no temporary file is left"
    assert "Host name failed: [Errno 21] Is a directory" in result.err[1]


def test_a_name_that_cannot_be_stored_yet_is_stored_later(
    command: List[str], direct: Machine
) -> None:
    (direct.etc / "hostname").unlink()
    (direct.etc / "hostname").mkdir()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: (direct.directory / "kernel").read_text() == "web000011")
        (direct.etc / "hostname").rmdir()
    assert process.returncode == 0
    assert direct.names == NAMES


def test_the_new_name_is_on_disk_before_the_run_ends_well(
    direct: Machine, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut would show it; see the virtual machines' in test_boots.py."""
    on_disk: List[str] = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: on_disk.append(Path(f"/proc/self/fd/{fd}").read_text())
    )
    assert run_here().status == 0
    assert on_disk[-1] == "web000011\n"


# ---- Where systemd keeps IMDS to its own client


@pytest.fixture
def locked(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with a route that prohibits all but WireServer, and no systemd-imds yet."""
    connect = socket.socket.connect

    def prohibit(self: socket.socket, address: Tuple[str, int]) -> None:
        if address[0] == "127.0.0.2":
            raise PermissionError(errno.EACCES, "Permission denied")
        connect(self, address)

    monkeypatch.setattr("socket.socket.connect", prohibit)
    monkeypatch.setattr("os.geteuid", lambda: 0)  # else there is a hint
    return machine


IMDS = "--imds=http://127.0.0.2"
NOT_AVAILABLE = "echo Key not available. >&2; exit 1"


def install_systemd_imds(machine: Machine, script: str) -> None:
    program = machine.directory / "bin" / "systemd-imds"
    log = 'printf \'%s\\n\' "$*" >>"${0%/bin/*}/systemd-imds.log"'
    program.write_text(f"#!/bin/sh\n{log}\n{script}\n")
    program.chmod(0o755)


def asked(machine: Machine) -> List[str]:
    lines = (machine.directory / "systemd-imds.log").read_text().splitlines()
    return [line.replace("--cache=no /instance/compute/", "") for line in lines]


def test_where_imds_is_locked_systemd_imds_gives_the_name(
    locked: Machine, run_here: RunHere
) -> None:
    install_systemd_imds(locked, "echo a warning >&2; printf 'web000011\\n'")
    result = run_here(IMDS)
    assert (result.status, result.err) == (0, [])
    assert locked.names == NAMES
    assert asked(locked) == ["osProfile/computerName"]


@pytest.mark.parametrize("nothing", ["true", NOT_AVAILABLE])
def test_where_imds_is_locked_systemd_imds_gives_the_name_of_the_vm_in_the_end(
    locked: Machine, run_here: RunHere, nothing: str
) -> None:
    install_systemd_imds(locked, f"case $2 in */name) echo vm;; *) {nothing};; esac")
    result = run_here(IMDS, "--timeout=2")
    assert result.status == 0
    assert 2 <= result.seconds < 3
    assert locked.names == ["vm", "vm"]
    assert asked(locked) == [*["osProfile/computerName"] * 3, "name"]


@pytest.mark.parametrize(
    "script, reason",
    [
        ("echo Failed >&2; exit 1", "systemd-imds ended with status 1: Failed"),
        (NOT_AVAILABLE.replace("1", "2"), "systemd-imds ended with status 2: Key not available."),
        (
            NOT_AVAILABLE.replace("exit 1", "kill -9 $$"),
            "systemd-imds ended with status -9: Key not available.",
        ),
        ("echo '<html>'", "the answer is no name: '<html>'"),
        ("exec /bin/sleep 60", "timed out after 1 seconds"),
    ],
)
def test_a_systemd_imds_that_gives_no_name_is_a_failure_like_any_other(
    locked: Machine, run_here: RunHere, script: str, reason: str
) -> None:
    install_systemd_imds(locked, script)
    result = run_here(IMDS, "--timeout=1")
    assert result.status == 3
    assert result.err[-1].startswith("Computer name failed: ")
    assert result.err[-1].endswith(reason + "; giving up")
    assert locked.names == ["old-name", "old-name"]


def test_where_imds_is_locked_and_there_is_no_systemd_imds_it_is_a_failure_like_any_other(
    locked: Machine, run_here: RunHere
) -> None:
    result = run_here(IMDS, "--timeout=2")
    assert result.status == 3
    assert result.err[-1] == "Computer name failed: [Errno 13] Permission denied; giving up"
