"""on_azure.py, against stand-ins for az, ssh and scp that know what the real ones take."""

import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

import on_azure
from conftest import heed_sigint, require_tools
from world import azure_cli, readme, sandbox

DRIVER = """\
import os, sys
import on_azure
os.environ["ON_AZURE"] = str(os.getpid())
on_azure.PAUSE_SECONDS, on_azure.SSH_SECONDS = 0, 20
sys.exit(on_azure.main())
"""


class Azure:
    """A directory that stands for it, as azure_cli.py has it, and a run against that."""

    def __init__(self, directory: Path) -> None:
        require_tools("bash")
        self.directory = directory
        bin_ = directory / "bin"
        bin_.mkdir()
        for name in ("az", "ssh", "scp"):
            program = f'exec "{sys.executable}" -S "{azure_cli.__file__}" {name} "$@"'
            (bin_ / name).write_text(f"#!/bin/sh\n{program}\n")
            (bin_ / name).chmod(0o755)
        for name in ("bash", "sh"):  # and no other program: it could reach Azure
            (bin_ / name).symlink_to(f"/bin/{name}")
        (directory / "journal").write_text(readme.block(on_azure.JOURNAL))
        path = os.pathsep.join([f"{sandbox.REPOSITORY}/tests", sandbox.REPOSITORY])
        self.environment = {"PATH": str(bin_), "PYTHONPATH": path, "HOME": str(directory)}

    def run(
        self, *options: str, broken: str = "", answer: str = "", output: int = subprocess.PIPE
    ) -> None:
        log = self.directory / "log"
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, f"--log={log}", *options],
            env={**self.environment, "BROKEN": broken},
            input=answer,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
            preexec_fn=heed_sigint,
        )
        self.status, self.out = done.returncode, done.stdout or ""
        self.log = log.read_text() if log.is_file() else ""
        assert "Traceback" not in self.out, self.out

    def read(self, name: str) -> str:
        return (self.directory / name).read_text()

    def has(self, pattern: str) -> list[str]:
        return sorted(path.stem for path in self.directory.glob(pattern))


@pytest.fixture
def azure(tmp_path: Path) -> Azure:
    return Azure(tmp_path)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Azure:
    """One in which all went well, with Ctrl-C only while the groups were deleted."""
    azure = Azure(tmp_path_factory.mktemp("good"))
    azure.run("--yes", "--location", "northeurope", broken="SIGINT late")
    return azure


def test_a_good_run_checks_all_vms_and_leaves_nothing(good: Azure) -> None:
    assert good.status == 0, good.log
    assert good.has("groups/*") == []
    assert good.has("*.boots") == ["builder", *azure_cli.SET_ADDRESSES, "myvm"]
    assert "All is well\n" in good.out
    for name in good.has("*.boots"):
        assert f"{name}: named, and its journal has the six lines\n" in good.out
    assert "myvm: its second boot was silent" in good.out
    assert "westeurope" not in good.log


def test_the_builder_gets_the_guide_in_order(good: Azure) -> None:
    text = Path(sandbox.REPOSITORY, "README.md").read_text()
    guide = text[text.index("\n### 1. ") : text.index("\n### 6. ")]
    steps = re.findall("^```sh\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    pasted = good.read("pasted")
    positions = [pasted.index(step) for step in steps]
    assert positions == sorted(positions)
    subprocess.run(["bash", "-n", "-c", pasted], check=True)


def test_what_it_names_is_its_own(good: Azure) -> None:
    groups = re.findall(r"(?:--resource-group|az group \w+ --name) (\S+)", good.read("calls"))
    (prefix,) = {name.rpartition("-")[0] for name in groups}
    assert re.fullmatch(r"azure-provisioning-\d+-[0-9a-f]{8}", prefix)


BROKEN = {
    "not ready": "ended with status 1",
    "myset000001 1: journal=Reporting Ready": "myset000001: its journal lacks, in order: Fetching",
    "myvm 1: name=localhost": "the host name is localhost, not myvm",
    "myvm 1: enabled=enabled": "myvm: the unit is enabled, not disabled",
    "myset000001 1: machine ID=id-myvm": "VMs share a machine ID",
    "myset000000 1: host key=key-myvm": "VMs share a host key",
    "myvm 2: journal=Reporting Ready": "myvm: its second boot changed something",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_goes_wrong_is_named_and_everything_is_deleted(azure: Azure, broken: str) -> None:
    azure.run(broken=broken, answer="yes\n")
    assert azure.status == 1
    assert BROKEN[broken] in azure.out
    assert BROKEN[broken] in azure.log
    assert "All is well" not in azure.out
    assert azure.has("groups/*") == []


def full_disk() -> tuple[int, int]:
    return os.open("/dev/null", os.O_RDONLY), os.open("/dev/full", os.O_WRONLY)


# A terminal that is closed; "| tee log", which the same Ctrl-C ends; a full disk, also for the log.
@pytest.mark.parametrize(
    "signal, output", [("SIGHUP", pty.openpty), ("SIGINT", os.pipe), ("SIGTERM", full_disk)]
)
def test_it_deletes_everything_also_where_it_can_tell_nobody(
    azure: Azure, signal: str, output: Callable[[], tuple[int, int]]
) -> None:
    """Interrupted while a VM is created, and once more while a group is deleted."""
    if output is full_disk:
        (azure.directory / "log").symlink_to("/dev/full")
    reader, writer = output()
    os.close(reader)
    azure.run("--yes", broken=signal, output=writer)
    os.close(writer)
    assert azure.status == 1
    assert azure.has("*.boots") == ["builder"]
    assert azure.has("groups/*") == []
    assert "INTERRUPTED" in azure.log or output is full_disk


def test_what_cannot_be_deleted_is_named(azure: Azure) -> None:
    azure.run("--yes", broken="undeletable")
    assert azure.status == 1
    (left,) = azure.has("groups/*")
    subscription, _, group = left.partition("_")
    command = f"az group delete --subscription {subscription} --name {group}"
    assert f"NOT DELETED, AND IT COSTS MONEY: run  {command}\n" in azure.out


@pytest.mark.parametrize("answer", ["", "y\n"])
def test_it_creates_nothing_before_one_says_yes(azure: Azure, answer: str) -> None:
    azure.run(answer=answer)
    assert azure.status == 2
    assert "My subscription" in azure.out
    assert "2 US dollars" in azure.out
    assert len(azure.read("calls").splitlines()) == 1


def test_the_stand_in_refuses_what_az_would() -> None:
    for command in (
        "vm create --resource-group x --name x --enable-agents false",
        "vm create --name x",
        "vm create --resource-group x --name x --security-type Trusted",
        "vm begin --name x",
    ):
        with pytest.raises(SystemExit):
            azure_cli.parse_az(shlex.split(command))


def test_openssh_takes_the_configuration(tmp_path: Path) -> None:
    require_tools("ssh")
    (tmp_path / "config").write_text(on_azure.SSH_CONFIG)
    command = ["ssh", "-G", "-F", str(tmp_path / "config"), "-J", "builder@192.0.2.2", "10.0.0.5"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "batchmode yes\n" in done.stdout
    assert done.stderr == ""
