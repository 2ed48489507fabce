"""on_azure.py, against stand-ins for az, ssh and scp that know what the real ones take."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

import pytest

import on_azure
from conftest import heed_sigint, require_tools
from world import azure_cli, readme, sandbox

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


def run(environment: Dict[str, str], *options: str, broken: str = "", answer: str = "") -> Ended:
    directory = Path(environment["HOME"])
    log = directory / "log"
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, "--log", str(log), *options],
        env={**environment, "BROKEN": broken},
        input=answer,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
        preexec_fn=heed_sigint,
    )
    assert "Traceback" not in done.stdout, done.stdout
    return Ended(done.returncode, done.stdout, log.read_text(), state(directory))


def state(directory: Path) -> azure_cli.Azure:
    file = directory / "azure.json"
    values: Dict[str, Any] = json.loads(file.read_text())
    return azure_cli.Azure(**values)


def az_calls(azure: azure_cli.Azure, *words: str) -> List[List[str]]:
    return [call for call in azure.calls if tuple(call[1 : 1 + len(words)]) == words]


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


def test_the_vm_gets_the_readmes_steps_in_order(good: Ended) -> None:
    pasted = good.azure.pasted
    places = [on_azure.PREPARE, on_azure.GENERALIZE]
    assert len(pasted) == len(places)
    for text, blocks in zip(pasted, places):
        positions = [text.index(readme.block(*place)) for place in blocks]
        assert positions == sorted(positions)
        subprocess.run(["bash", "-n", "-c", text], check=True)


def test_what_it_names_is_its_own(good: Ended) -> None:
    azure = good.azure
    options = ("--resource-group", "--name")
    groups = {call[call.index(options[0]) + 1] for call in azure.calls if options[0] in call}
    groups |= {call[call.index(options[1]) + 1] for call in az_calls(azure, "group")}
    (prefix,) = {name.rpartition("-")[0] for name in groups}
    assert re.fullmatch(r"azure-provisioning-\d+", prefix)


BROKEN = {
    "not-ready": "ended with status 1",
    "not-accepted": "myset000001: its journal lacks, in order: Ready accepted: 200 OK",
    "unnamed": "the host name is localhost, not othervm",
    "still-enabled": "myvm: the unit is enabled, not disabled",
    "shared-id": "VMs share their machine ID",
    "shared-key": "VMs share their SSH host key",
    "noisy": "myvm: its second boot was not silent",
    "interrupted": "INTERRUPTED",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_goes_wrong_is_named_and_everything_is_deleted(
    environment: Dict[str, str], broken: str
) -> None:
    ended = run(environment, "--yes", broken=broken)
    assert ended.status == 1
    assert BROKEN[broken] in ended.out
    assert BROKEN[broken] in ended.log
    assert "All is well" not in ended.out
    assert ended.azure.groups == []


def test_what_cannot_be_deleted_is_named(environment: Dict[str, str]) -> None:
    ended = run(environment, "--yes", broken="undeletable")
    assert ended.status == 1
    (group,) = ended.azure.groups
    assert f"NOT DELETED, AND IT COSTS MONEY: run  az group delete --name {group}\n" in ended.out


@pytest.mark.parametrize("answer", ["", "no\n", "y\n"])
def test_it_creates_nothing_before_one_says_yes(environment: Dict[str, str], answer: str) -> None:
    ended = run(environment, answer=answer)
    assert ended.status == 2
    assert "My subscription" in ended.out
    assert "2 US dollars" in ended.out
    assert [call[1:3] for call in ended.azure.calls] == [["account", "show"]]


def test_yes_is_enough(environment: Dict[str, str]) -> None:
    assert run(environment, answer="yes\n", broken="not-ready").azure.vms


def test_every_block_of_the_guide_is_run() -> None:
    text = Path(sandbox.REPOSITORY, "README.md").read_text()
    guide = text[
        text.index("\n### 1. ") : text.index("\n### Other distributions and kinds of VM\n")
    ]
    headings = re.findall("^### .*$", guide, re.MULTILINE)
    blocks = [one for one in readme.blocks() if one.heading in headings]
    places = []
    for heading in headings:
        languages = [one.language for one in blocks if one.heading == heading]
        places += [(heading, i) for i, one in enumerate(languages) if one in ("bash", "sh")]
    run = [on_azure.CREATE, on_azure.CONNECT, *on_azure.PREPARE, on_azure.COPY]
    run += [*on_azure.GENERALIZE, *on_azure.CAPTURE, on_azure.CREATE_VM, on_azure.CREATE_SET]
    assert sorted(places) == sorted(run)


def test_what_a_managed_image_needs_instead_uses_options_that_there_are(
    environment: Dict[str, str],
) -> None:
    text = Path(sandbox.REPOSITORY, "README.md").read_text()
    register = readme.block("### Other distributions and kinds of VM")
    (make,) = re.findall(r"`(az image create [^`]+)`", text)
    capture = readme.block(*on_azure.CAPTURE[0])
    start, end = capture.index("az sig "), capture.index("echo ")
    instead = "\n".join([capture[:start], make, capture[end:]])
    assert "az sig" not in instead
    create = readme.block(*on_azure.CREATE)
    script = "\n".join(["sleep() { :; }", register, create, instead])
    subprocess.run(["bash", "-euc", script], check=True, env=environment)
    assert state(Path(environment["HOME"])).images == ["appliance"]


@pytest.mark.parametrize(
    "command",
    [
        "az vm create --resource-group x --name x --enable-agents false",
        "az vm create --name x",
        "az vm create --resource-group x --name x --security-type Trusted",
        "az vm begin --name x",
        "az group delete --name x",
        "ssh -F /dev/null -d builder@192.0.2.1",
        "scp -F /dev/null -n x builder@192.0.2.1:",
    ],
)
def test_the_stand_ins_refuse_what_the_real_ones_would(
    environment: Dict[str, str], command: str
) -> None:
    done = subprocess.run(["bash", "-c", command], env=environment, check=False)
    assert done.returncode != 0


def test_openssh_takes_the_configuration(tmp_path: Path) -> None:
    require_tools("ssh")
    (tmp_path / "config").write_text(on_azure.SSH_CONFIG)
    command = ["ssh", "-G", "-F", str(tmp_path / "config"), "-J", "builder@192.0.2.2", "10.0.0.5"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "batchmode yes\n" in done.stdout
    assert done.stderr == ""
