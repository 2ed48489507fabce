"""on_azure.py, against stand-ins for az, ssh and scp that know what the real ones take."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, NamedTuple, Optional

import pytest

import on_azure
from conftest import require_tools
from world import azure_cli, interruption, readme, sandbox

DRIVER = """\
import os, sys
import on_azure
os.environ["ON_AZURE"] = str(os.getpid())
on_azure.PAUSE_SECONDS, on_azure.SSH_SECONDS, on_azure.SETTLE_SECONDS = 0, 20, 0
sys.exit(on_azure.main())
"""


class Ended(NamedTuple):
    status: int
    out: str
    log: str
    azure: azure_cli.Azure


def make_environment(directory: Path) -> Dict[str, str]:
    """Return one in which az, ssh and scp are stand-ins, and no other program could reach Azure."""
    require_tools("bash")
    (directory / "bin").mkdir()
    for name in ("az", "ssh", "scp"):
        program = directory / "bin" / name
        command = f'"{sys.executable}" -S "{azure_cli.__file__}" {name} "{directory}" "$@"'
        program.write_text(f"#!/bin/sh\nexec {command}\n")
        program.chmod(0o755)
    for name in ("bash", "sh", "sleep"):
        (directory / "bin" / name).symlink_to(f"/bin/{name}")
    (directory / "journal").write_text(readme.block(on_azure.JOURNAL))
    path = os.pathsep.join([f"{sandbox.REPOSITORY}/tests", sandbox.REPOSITORY])
    return {"PATH": str(directory / "bin"), "PYTHONPATH": path, "HOME": str(directory)}


@pytest.fixture
def environment(tmp_path: Path) -> Dict[str, str]:
    return make_environment(tmp_path)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A run in which all went well."""
    directory = tmp_path_factory.mktemp("good")
    return run(make_environment(directory), "--yes", "--location", "northeurope")


def run(
    environment: Dict[str, str],
    *options: str,
    broken: str = "",
    answer: str = "",
    output: Optional[int] = None,
) -> Ended:
    directory = Path(environment["HOME"])
    log = directory / "log"
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, "--log", str(log), *options],
        env={**environment, "BROKEN": broken},
        input=answer,
        stdout=subprocess.PIPE if output is None else output,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
        preexec_fn=interruption.restore,
    )
    out = done.stdout or ""
    assert "Traceback" not in out, out
    said = log.read_text() if log.is_file() else ""
    return Ended(done.returncode, out, said, azure_cli.load(str(directory)))


def test_a_good_run_checks_four_vms_and_leaves_nothing(good: Ended) -> None:
    assert good.status == 0, good.log
    assert good.azure.groups == []
    assert {*good.azure.vms} == {"builder", *on_azure.VMS, *azure_cli.SET_ADDRESSES}
    assert "All is well\n" in good.out
    for name in good.azure.vms:
        assert f"{name}: named, and its journal has the six lines\n" in good.out
    for name in on_azure.VMS:
        assert f"{name}: its second boot was silent\n" in good.out
    assert "northeurope" in good.out
    assert "westeurope" not in good.log


def test_the_vm_gets_all_of_the_guide_in_order(good: Ended) -> None:
    text = Path(sandbox.REPOSITORY, "README.md").read_text()
    guide = text[text.index("\n### 1. ") : text.index("\n### 6. ")]
    steps = re.findall("^```sh\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    pasted = "".join(good.azure.pasted)
    positions = [pasted.index(step) for step in steps]
    assert positions == sorted(positions)
    assert len(good.azure.pasted) == 2, "before the copy, and after it"
    subprocess.run(["bash", "-n", "-c", pasted], check=True)


def test_what_it_names_is_its_own(good: Ended) -> None:
    groups = re.findall(r"(?:--resource-group |az group \w+ --name )(\S+)", good.log)
    (prefix,) = {name.rpartition("-")[0] for name in groups}
    assert re.fullmatch(r"azure-provisioning-\d+-[0-9a-f]{8}", prefix)


BROKEN = {
    "not-ready": "ended with status 1",
    "not-accepted": "myset000001: its journal lacks, in order: Ready accepted: 200 OK",
    "unnamed": "the host name is localhost, not othervm",
    "still-enabled": "myvm: the unit is enabled, not disabled",
    "shared-id": "VMs share their machine ID",
    "shared-key": "VMs share their SSH host key",
    "noisy": "myvm: its second boot was not silent",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_goes_wrong_is_named_and_everything_is_deleted(
    environment: Dict[str, str], broken: str
) -> None:
    ended = run(environment, broken=broken, answer="yes\n")
    assert ended.status == 1
    assert BROKEN[broken] in ended.out
    assert BROKEN[broken] in ended.log
    assert "All is well" not in ended.out
    assert ended.azure.groups == []


def closed_terminal() -> int:
    terminal, output = pty.openpty()
    os.close(terminal)
    return output


def closed_pipe() -> int:
    """As after "on_azure.py | tee log" and Ctrl-C, which ends tee, too."""
    reader, output = os.pipe()
    os.close(reader)
    return output


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize(
    "signal, output",
    [("SIGHUP", closed_terminal), ("SIGINT", closed_pipe), ("SIGTERM", full_disk)],
)
def test_nothing_that_cannot_be_told_is_left(
    environment: Dict[str, str], signal: str, output: Callable[[], int]
) -> None:
    """Interrupted while a VM is created, and once more while a group is deleted."""
    if output is full_disk:
        Path(environment["HOME"], "log").symlink_to("/dev/full")
    descriptor = output()
    ended = run(environment, "--yes", broken=signal, output=descriptor)
    os.close(descriptor)
    assert {*ended.azure.vms} == {"builder"}
    assert ended.azure.groups == []
    assert ended.status == 1
    assert "INTERRUPTED" in ended.log or output is full_disk


def test_what_cannot_be_deleted_is_named(environment: Dict[str, str]) -> None:
    ended = run(environment, "--yes", broken="undeletable")
    assert ended.status == 1
    subscription, group = ended.azure.groups[0].split("/")
    command = f"az group delete --subscription {subscription} --name {group}"
    assert f"NOT DELETED, AND IT COSTS MONEY: run  {command}\n" in ended.out


@pytest.mark.parametrize("answer", ["", "y\n"])
def test_it_creates_nothing_before_one_says_yes(environment: Dict[str, str], answer: str) -> None:
    ended = run(environment, answer=answer)
    assert ended.status == 2
    assert "My subscription" in ended.out
    assert "2 US dollars" in ended.out
    assert {tuple(call[1:3]) for call in ended.azure.calls} == {("account", "show")}


def test_what_a_managed_image_needs_instead_uses_options_that_there_are(
    environment: Dict[str, str],
) -> None:
    text = Path(sandbox.REPOSITORY, "README.md").read_text()
    register = readme.block("### Other distributions and kinds of VM")
    (make,) = re.findall(r"`(az image create [^`]+)`", text)
    capture = readme.block("### 5. Capture")
    start, end = capture.index("az sig "), capture.index("echo ")
    instead = "\n".join([capture[:start], make, capture[end:]])
    assert "az sig" not in instead
    create = readme.block("### 1. Create the VM")
    script = "\n".join(["sleep() { :; }", register, create, instead])
    subprocess.run(["bash", "-euc", script], check=True, env=environment)
    assert azure_cli.load(environment["HOME"]).images == ["appliance"]


@pytest.mark.parametrize(
    "command",
    [
        "vm create --resource-group x --name x --enable-agents false",
        "vm create --name x",
        "vm create --resource-group x --name x --security-type Trusted",
        "vm begin --name x",
        "group delete --name x",
    ],
)
def test_the_stand_in_refuses_what_az_would(environment: Dict[str, str], command: str) -> None:
    done = subprocess.run(["bash", "-c", f"az {command}"], env=environment, check=False)
    assert done.returncode == 2


def test_openssh_takes_the_configuration(tmp_path: Path) -> None:
    require_tools("ssh")
    (tmp_path / "config").write_text(on_azure.SSH_CONFIG)
    command = ["ssh", "-G", "-F", str(tmp_path / "config"), "-J", "builder@192.0.2.2", "10.0.0.5"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "batchmode yes\n" in done.stdout
    assert done.stderr == ""
