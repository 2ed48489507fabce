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
from conftest import Run
from world import sandbox
from world.clock import Run as OnOurClock
from world.clock import script
from world.host import SimulatedHost
from world.machine import SLACK, UNFIT, Machine

NAMES = ["web000011", "web000011"]


@pytest.mark.parametrize("hostnamectl", UNFIT.values(), ids=UNFIT.keys())
def test_a_hostnamectl_that_is_unfit_is_done_without(
    run: Run, machine: Machine, hostnamectl: str
) -> None:
    machine.install_hostnamectl(hostnamectl)
    result = run()
    assert result.status == 0
    assert machine.names == NAMES
    assert len(result.err) == 1
    assert result.err[0].endswith("; setting the host name without hostnamectl")


def test_a_missing_hostnamectl_is_done_without(run: Run, machine: Machine) -> None:
    machine.install_hostnamectl("")
    result = run()
    assert result.status == 0
    assert machine.names == NAMES
    assert result.err == [
        "hostnamectl ended with status 127: [Errno 2] No such file or directory; "
        "setting the host name without hostnamectl"
    ]


def test_a_hostnamectl_that_hangs_gets_thirty_seconds(run: Run, machine: Machine) -> None:
    # Its child keeps the output open, as a password agent would.
    machine.install_hostnamectl("#!/bin/sh\n/bin/sleep 60\n")
    result = run()
    assert result.status == 0
    assert machine.names == NAMES
    assert 30 <= result.seconds < 30 + SLACK
    assert result.err[0].startswith("hostnamectl ended with status -9: ; setting")


def test_a_hostnamectl_that_hangs_gets_no_more_than_the_deadline(
    run: Run, machine: Machine
) -> None:
    machine.install_hostnamectl("#!/bin/sh\nexec /bin/sleep 60\n")
    result = run("--timeout=2")
    assert result.status == 0
    assert result.seconds < 2 + SLACK


@pytest.mark.parametrize("way", ["trap '' ALRM; /bin/sleep 60", "kill -STOP $$"])
def test_a_hostnamectl_that_hangs_and_heeds_no_alarm_is_ended(
    run: Run, machine: Machine, way: str
) -> None:
    machine.install_hostnamectl(f"#!/bin/sh\n{way}\n")
    result = run("--timeout=2")
    assert result.status == 0
    assert result.seconds < 2 + SLACK


@pytest.mark.parametrize("size", [0, 1, 4095])
def test_what_a_program_prints_is_returned(size: int) -> None:
    printing = ["head", f"--bytes={size}", "/dev/zero"]
    assert azure_provisioning.run(printing, time.monotonic() + 9) == b"\0" * size


@pytest.mark.parametrize("size", [4096, 9999])
def test_what_may_be_only_a_part_of_what_a_program_prints_is_a_failure(size: int) -> None:
    with pytest.raises(azure_provisioning.Failure, match="head ended with status 0: ") as failure:
        azure_provisioning.run(["head", f"--bytes={size}", "/dev/zero"], time.monotonic() + 9)
    assert str(failure.value).count("\0") == 4096


SHORT_WRITE = """\
import resource, sys
import azure_provisioning as script
script.ETC_HOSTNAME = sys.argv[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (3, 3))
script.write_etc_hostname("web000011")
"""


def test_a_name_is_stored_in_full_or_not_at_all(tmp_path: Path) -> None:
    """A write that ends early, here at a limit on file sizes, does not fail at first."""
    stored = tmp_path / "hostname"
    stored.write_text("old-name\n")
    writing = [sys.executable, "-c", SHORT_WRITE, str(stored)]
    done = subprocess.run(
        writing, cwd=sandbox.REPOSITORY, capture_output=True, text=True, check=False
    )
    assert "File too large" in done.stderr
    assert stored.read_text() == "old-name\n"


def test_hostnamectl_reads_nothing(command: List[str], machine: Machine) -> None:
    machine.install_hostnamectl("#!/bin/sh\nread line && exit 7\n" + sandbox.HOSTNAMECTL)
    done = subprocess.run(command, input="a line\n", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.names == NAMES


@pytest.fixture
def on_our_clock(machine: Machine, host: SimulatedHost) -> OnOurClock:
    return script(machine, host)


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


def test_the_stored_name_is_replaced_never_rewritten(run: Run, direct: Machine) -> None:
    os.link(direct.etc / "hostname", direct.directory / "old")
    assert run().status == 0
    assert (direct.directory / "old").read_text() == "old-name\n"


def test_a_missing_etc_hostname_is_made(run: Run, direct: Machine) -> None:
    (direct.etc / "hostname").unlink()
    assert run().status == 0
    assert direct.names == NAMES


def test_a_symbolic_link_is_replaced_and_not_followed(run: Run, direct: Machine) -> None:
    target = direct.directory / "target"
    target.write_text("old-name\n")
    (direct.etc / "hostname").unlink()
    (direct.etc / "hostname").symlink_to(target)
    assert run().status == 0
    assert direct.names == NAMES
    assert target.read_text() == "old-name\n"


@pytest.mark.parametrize("hostnamectl", ["works", "is missing"])
@pytest.mark.parametrize("kind", ["file", "FIFO", "link"])
def test_what_a_killed_run_has_left_behind_is_removed(
    run: Run, machine: Machine, kind: str, hostnamectl: str
) -> None:
    if hostnamectl == "is missing":
        machine.install_hostnamectl("")
    direct = machine
    path = direct.etc / "hostname.azure-provisioning.17"
    target = direct.directory / "target"
    target.write_text("untouched")
    if kind == "file":
        path.write_text("a half-written name, left by a kill")
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to(target)
    result = run()
    assert result.status == 0
    assert result.seconds < 1 + SLACK
    assert target.read_text() == "untouched"
    assert direct.names == NAMES
    assert os.listdir(direct.etc) == ["hostname"]


@pytest.mark.parametrize("kind", ["file", "FIFO", "link"])
def test_what_is_in_the_place_of_the_temporary_file_is_removed(
    direct: Machine, on_our_clock: OnOurClock, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A process ID comes again, most of all at boot."""
    monkeypatch.setattr("os.getpid", lambda: 17)
    path = direct.etc / "hostname.azure-provisioning.17"
    target = direct.directory / "target"
    target.write_text("untouched")
    if kind == "file":
        path.write_text("a half-written name, left by a kill")
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to(target)
    assert on_our_clock().status == 0
    assert target.read_text() == "untouched"
    assert direct.names == NAMES
    assert os.listdir(direct.etc) == ["hostname"]


def test_two_runs_at_once_never_leave_the_stored_name_empty(
    command: List[str], direct: Machine
) -> None:
    path = direct.etc / "hostname"
    for _ in range(5):
        path.write_text("old-name\n")
        runs = [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for _ in range(3)
        ]
        while any(run.poll() is None for run in runs):
            assert path.read_text() in ("old-name\n", "web000011\n")
        assert [run.returncode for run in runs] == [0, 0, 0]
        assert os.listdir(direct.etc) == ["hostname"]


def test_the_reason_that_hostnamectl_gives_is_printed(run: Run, machine: Machine) -> None:
    machine.install_hostnamectl(UNFIT["fails"])
    assert run().err == [
        "hostnamectl ended with status 1: Failed to connect to bus; "
        "setting the host name without hostnamectl"
    ]


def test_a_name_that_cannot_be_stored_is_the_kernels_all_the_same(
    host: SimulatedHost, run: Run, direct: Machine
) -> None:
    (direct.etc / "hostname").unlink()
    (direct.etc / "hostname").mkdir()
    result = run("--timeout=1")
    assert result.status == 3
    assert len(host.accepted) == 1
    assert (direct.directory / "kernel").read_text() == "web000011"
    assert os.listdir(direct.etc) == ["hostname"], "no temporary file is left"
    assert "Host name failed: [Errno 21] Is a directory" in result.err[1]


def test_a_name_that_cannot_be_stored_yet_is_stored_later(
    run: Run, command: List[str], direct: Machine
) -> None:
    (direct.etc / "hostname").unlink()
    (direct.etc / "hostname").mkdir()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(1.5)
        (direct.etc / "hostname").rmdir()
    assert process.returncode == 0
    assert direct.names == NAMES


# ---- Where systemd keeps IMDS to its own client


LEAF = "/instance/compute/{}"
SYSTEMD_IMDS = '#!/bin/sh\nprintf \'%s\\n\' "$*" >>"${0%/bin/*}/systemd-imds.log"\n'


@pytest.fixture
def locked(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with a route that prohibits all but WireServer, and no systemd-imds yet."""
    connect = socket.socket.connect

    def prohibit(self: socket.socket, address: Tuple[str, int]) -> None:
        if address[0] == "127.0.0.2":
            raise PermissionError(errno.EACCES, "Permission denied")
        connect(self, address)

    monkeypatch.setattr("socket.socket.connect", prohibit)
    return machine


IMDS = "--imds=http://127.0.0.2"


def install_systemd_imds(machine: Machine, script: str) -> None:
    program = machine.directory / "bin" / "systemd-imds"
    program.write_text(SYSTEMD_IMDS + script)
    program.chmod(0o755)


def asked(machine: Machine) -> List[str]:
    return (machine.directory / "systemd-imds.log").read_text().splitlines()


def test_where_imds_is_locked_systemd_imds_gives_the_name(
    locked: Machine, on_our_clock: OnOurClock
) -> None:
    install_systemd_imds(locked, "printf web000011\n")
    result = on_our_clock(IMDS)
    assert (result.status, result.err) == (0, [])
    assert locked.names == NAMES
    assert asked(locked) == ["--cache=no " + LEAF.format("osProfile/computerName")]


def test_where_imds_is_locked_systemd_imds_gives_the_name_of_the_vm_in_the_end(
    locked: Machine, on_our_clock: OnOurClock
) -> None:
    """If it says nothing. It fails alike where the host says 404 and where it is out of reach."""
    install_systemd_imds(locked, "case $2 in */name) echo vm;; esac\n")
    result = on_our_clock(IMDS)
    assert result.status == 0
    assert 60 <= result.seconds < 60 + SLACK
    assert locked.names == ["vm", "vm"]
    assert asked(locked)[-2:] == [
        "--cache=no " + LEAF.format(leaf) for leaf in ("osProfile/computerName", "name")
    ]


@pytest.mark.parametrize(
    "script, reason",
    [
        (
            "echo Failed to connect >&2; exit 1",
            "systemd-imds ended with status 1: Failed to connect",
        ),
        ("echo '<html>'", "the answer is no name: '<html>'"),
        ("echo one; echo two", r"the answer is no name: 'one\ntwo'"),
    ],
)
def test_a_systemd_imds_that_gives_no_name_is_a_failure_like_any_other(
    locked: Machine, on_our_clock: OnOurClock, script: str, reason: str
) -> None:
    install_systemd_imds(locked, script)
    result = on_our_clock(IMDS, "--timeout=2")
    assert result.status == 3
    assert result.err[-1].startswith("Computer name failed: ")
    assert result.err[-1].endswith(reason + "; giving up")
    assert locked.names == ["old-name", "old-name"]


def test_where_imds_is_locked_and_there_is_no_systemd_imds_it_is_a_failure_like_any_other(
    locked: Machine, on_our_clock: OnOurClock
) -> None:
    result = on_our_clock(IMDS, "--timeout=2")
    assert result.status == 3
    assert result.err[-1].startswith("Computer name failed: [Errno 13] Permission denied")
