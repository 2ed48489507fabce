"""set_host_name: in place, on disk, then the kernel's. test_real_system.py has the mounts."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from azure_provisioning import GaveUp, set_host_name
from world import sandbox
from world.clock import Run
from world.host import SimulatedHost
from world.machine import Machine

NAME = "web000011"


@pytest.fixture
def machine(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    sandbox.take_over(str(machine.directory), monkeypatch.setattr)
    monkeypatch.setattr("os.geteuid", lambda: 0)  # else there is a hint
    return machine


@pytest.mark.parametrize("old", ["old-name\n", "", "a-much-longer-name.test.local\nmore\n", NAME])
def test_set_host_name_writes_in_place(machine: Machine, old: str) -> None:
    machine.etc_hostname.write_text(old)
    machine.etc_hostname.chmod(0o640)
    before = machine.etc_hostname.stat()
    set_host_name(NAME)
    assert machine.etc_hostname.read_bytes() == b"web000011\n"
    assert machine.names == [NAME, NAME]
    after = machine.etc_hostname.stat()
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    assert os.listdir(machine.etc) == ["hostname"]


@pytest.mark.parametrize("kind", ["hard link", "symbolic link", "dangling link"])
def test_set_host_name_writes_through_a_link(machine: Machine, kind: str) -> None:
    other = machine.directory / "other"
    machine.etc_hostname.rename(other)
    if kind == "hard link":
        os.link(other, machine.etc_hostname)
    else:
        machine.etc_hostname.symlink_to(other)
    if kind == "dangling link":
        other.unlink()
    set_host_name(NAME)
    assert other.read_text() == f"{NAME}\n"
    assert machine.names == [NAME, NAME]
    assert machine.etc_hostname.is_symlink() == (kind != "hard link")


def test_set_host_name_makes_a_new_file_that_all_may_read(machine: Machine) -> None:
    machine.etc_hostname.unlink()
    old_mask = os.umask(0o077)
    try:
        set_host_name(NAME)
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE(machine.etc_hostname.stat().st_mode) == 0o644
    assert machine.names == [NAME, NAME]


def test_set_host_name_has_the_name_on_disk_before_the_kernel_has_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut would show the former; a network manager that comes between, the latter."""
    seen: list[str] = []
    set_kernels = socket.sethostname

    def fsync(file: int) -> None:
        seen.append(Path(f"/proc/self/fd/{file}").read_text())

    def sethostname(name: str) -> None:
        seen.append("kernel")
        set_kernels(name)

    monkeypatch.setattr("os.fsync", fsync)
    monkeypatch.setattr("socket.sethostname", sethostname)
    set_host_name(NAME)
    assert seen == ["web000011\n", "kernel"]


FULL = """\
import resource, sys
from world import sandbox
import azure_provisioning as script
sandbox.take_over(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
script.store_host_name("web000011")
"""


def test_store_host_name_keeps_the_old_name_where_the_new_one_cannot_be_written(
    machine: Machine,
) -> None:
    """As on a full disk; here there is a limit on a file's size."""
    # Without site-packages, or a measured coverage could not be written, too.
    writing = [sys.executable, "-S", "-c", FULL, str(machine.directory)]
    environment = {**os.environ, "PYTHONPATH": f"{sandbox.REPOSITORY}:{sandbox.REPOSITORY}/tests"}
    done = subprocess.run(writing, env=environment, capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr
    assert machine.etc_hostname.read_text() == "old-name\n"


def refuse(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_set_host_name_sets_the_kernels_where_it_cannot_store_it_and_gives_up_at_once(
    host: SimulatedHost, machine: Machine, run_here: Run
) -> None:
    machine.etc_hostname.unlink()
    machine.etc_hostname.mkdir()
    result = run_here()
    assert (result.status, result.pauses, len(host.accepted)) == (3, [], 1)
    assert sandbox.read(str(machine.directory / "kernel")) == NAME
    reason = f"[Errno 21] Is a directory: '{machine.etc_hostname}'"
    assert result.err == [f"Host name failed: {reason}; giving up"]


def test_set_host_name_stores_a_name_that_the_kernel_refuses(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("socket.sethostname", refuse)
    with pytest.raises(GaveUp):
        set_host_name(NAME)
    reason = "[Errno 1] Operation not permitted: '/proc/sys/kernel/hostname'"
    assert capfd.readouterr().err == f"Host name failed: {reason}; giving up\n"
    assert machine.names == ["old-name", NAME]


@pytest.mark.parametrize("user", [0, 1000])
def test_set_host_name_names_the_first_failure_and_tells_only_others_to_be_root(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    user: int,
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setattr("os.fsync", refuse)  # does not name the file
    monkeypatch.setattr("socket.sethostname", refuse)
    hint = " (you are not root: try again as root)" if user else ""
    with pytest.raises(GaveUp):
        set_host_name(NAME)
    reason = f"[Errno 1] Operation not permitted: '{machine.etc_hostname}'"
    assert capfd.readouterr().err == f"Host name failed: {reason}{hint}; giving up\n"


@pytest.mark.parametrize("other", ["by-dhcp", "x", "web0000111"])
def test_set_host_name_notices_another_name_that_was_set_meanwhile(
    machine: Machine, other: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: other)
    with pytest.raises(GaveUp):
        set_host_name(NAME)
    assert capfd.readouterr().err == f"Host name failed: it is '{other}' again; giving up\n"


def test_set_host_name_may_run_twice_at_once(command: list[str], machine: Machine) -> None:
    for _ in range(3):
        machine.etc_hostname.write_text("old-name\n")
        runs = [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for _ in range(3)
        ]
        assert [run.wait() for run in runs] == [0, 0, 0]
        assert machine.etc_hostname.read_text() == "web000011\n"


def test_set_host_name_does_not_count_a_name_that_is_gone_at_the_next_boot(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.path.realpath", lambda path: "/run/hostname")
    with pytest.raises(GaveUp):
        set_host_name(NAME)
    assert machine.names == [NAME, NAME], "for this boot it is set"
    assert "It is in /run, and gone at the next boot" in capfd.readouterr().err
