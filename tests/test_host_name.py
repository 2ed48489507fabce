"""Where hostnamectl does not do it, the script does; or it says that it could not."""

import os
import re
import stat
import subprocess
import time
from typing import List

import pytest

import sandbox
from conftest import SLACK, Machine, Run
from simulated_host import SimulatedHost

NAMES = ["web000011", "web000011"]
LOG = 'printf "%s\\n" "$*" >>"${0%/bin/*}/hostnamectl.log"\n'
UNFIT = {
    "fails": "#!/bin/sh\n" + LOG + "echo Failed to connect to bus >&2; exit 1\n",
    "is killed": "#!/bin/sh\n" + LOG + "kill -9 $$\n",
    "does nothing": "#!/bin/sh\n" + LOG,
    "sets an earlier name": sandbox.HOSTNAMECTL.replace('"$name"', '"edited"'),
    "sets a later name": sandbox.HOSTNAMECTL.replace('"$name"', '"x"'),
    "sets only the kernel's": "\n".join(
        line for line in sandbox.HOSTNAMECTL.splitlines() if "etc/hostname" not in line
    ),
    "sets only the stored one": "\n".join(
        line for line in sandbox.HOSTNAMECTL.splitlines() if not line.endswith('/kernel"')
    ),
    "fails after it set the name": sandbox.HOSTNAMECTL + "exit 1\n",
    "is no program": "no program",
}


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
    assert "No such file or directory: 'hostnamectl'" in result.err[0]


def test_a_hostnamectl_that_hangs_gets_thirty_seconds(run: Run, machine: Machine) -> None:
    # Its child keeps the output open, as a password agent would.
    machine.install_hostnamectl("#!/bin/sh\n/bin/sleep 60\n")
    result = run()
    assert result.status == 0
    assert machine.names == NAMES
    assert 30 <= result.seconds < 30 + SLACK
    assert re.search(r"timed out after (30|29\.9\d*) seconds", result.err[0])


def test_a_hostnamectl_that_hangs_gets_no_more_than_the_deadline(
    run: Run, machine: Machine
) -> None:
    machine.install_hostnamectl("#!/bin/sh\nexec /bin/sleep 60\n")
    result = run("--timeout=2")
    assert result.status == 0
    assert result.seconds < 2 + SLACK


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


@pytest.mark.parametrize("kind", ["file", "FIFO", "link"])
def test_what_is_in_the_place_of_the_temporary_file_is_removed(
    run: Run, direct: Machine, kind: str
) -> None:
    path = direct.etc / "hostname.azure-provisioning"
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


def test_a_name_that_cannot_be_stored_is_not_set_at_all(
    host: SimulatedHost, run: Run, direct: Machine
) -> None:
    (direct.etc / "hostname").unlink()
    (direct.etc / "hostname").mkdir()
    result = run("--timeout=1")
    assert result.status == 3
    assert len(host.accepted) == 1
    assert (direct.directory / "kernel").read_text() == "old-name"
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
