"""on_azure.py, against stand-ins: it runs the guide, and deletes what it made."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from conftest import heed_sigint, require_tools
from world import azure_cli, interruption, readme
from world.sandbox import REPOSITORY

DRIVER = 'ON_AZURE=$$ exec "$0" tests/on_azure.py "$@"'


class Azure(NamedTuple):
    """A directory that stands for it, as azure_cli.py has it."""

    home: Path

    def run(self, *options: str, broken: str = "", how: str = "") -> int:
        path = {"PATH": f"{self.home}/bin", "HOME": str(self.home)}
        with open(self.home / "out", "wb") as out:
            return subprocess.run(
                ["/bin/sh", "-c", DRIVER, sys.executable, *options],
                stdout=out,
                stderr=subprocess.STDOUT,
                input=b"y\n",
                cwd=REPOSITORY,
                env={**path, "BROKEN": broken, "HOW": how},
                preexec_fn=heed_sigint,
                timeout=300,
            ).returncode

    def read(self, name: str) -> str:
        return (self.home / name).read_text()

    def groups(self) -> list[str]:
        return os.listdir(self.home / "groups")


@pytest.fixture
def azure(tmp_path: Path) -> Azure:
    for name in ("bin", "groups"):
        (tmp_path / name).mkdir()
    for name in ("az", "ssh", "scp"):
        program = tmp_path / "bin" / name
        command = f"{sys.executable} -S {azure_cli.__file__} {name}"
        program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        program.chmod(0o755)
    for name in ("bash", "sh"):  # none could reach Azure
        require_tools(name)
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    return Azure(tmp_path)


def test_on_azure_runs_the_guide_in_order_and_leaves_nothing(azure: Azure) -> None:
    """With Ctrl-C while it deletes."""
    status = azure.run("--yes", "location=north", broken="delete --yes", how="2")
    assert status == 0, azure.read("out")
    assert azure.groups() == []
    headings = [one.heading for one in readme.blocks() if one.language == "sh"]
    guide = headings[headings.index("## Install it") : headings.index("### 4. Generalize") + 1]
    guide.sort(key="### 3. Install".__ne__)  # it says to go on with those before it
    places = [azure.read("pasted").index(readme.block(heading)) for heading in guide]
    assert places == sorted(places)
    assert "az group create --name azure-provisioning-" in azure.read("calls")
    assert "--location north" in azure.read("calls")


@pytest.mark.parametrize("call", ["vm create", "scp", "ssh.*hostname", "snapshot", "vmss create"])
def test_on_azure_deletes_everything_when_a_call_fails(azure: Azure, call: str) -> None:
    assert azure.run("--yes", broken=call) == 1
    assert azure.groups() == []
    assert re.search(f"{call}.*\naz group exists .*-images", azure.read("calls"))


@pytest.mark.parametrize("number", interruption.SIGNALS)
def test_on_azure_deletes_everything_when_interrupted(azure: Azure, number: int) -> None:
    """Once while a VM is created, and again at each deletion."""
    assert azure.run("--yes", broken="vm create.*myvm|delete --yes", how=f"{number:d}") == 1
    assert azure.groups() == []
    assert "vmss create" not in azure.read("calls")


def test_on_azure_goes_on_to_delete_when_nobody_reads(azure: Azure) -> None:
    (azure.home / "out").symlink_to("/dev/full")
    assert azure.run("--yes") == 1
    assert "group create" in azure.read("calls")
    assert azure.groups() == []


def test_on_azure_names_what_it_cannot_delete(azure: Azure) -> None:
    assert azure.run("--yes", broken="delete --yes.*images") == 1
    (left,) = azure.groups()
    command = f"az group delete --name {left} --subscription 00000000-aaaa"
    assert f"NOT DELETED, AND IT COSTS MONEY: run  {command}\n" in azure.read("out")


def test_on_azure_says_what_it_will_create_and_asks(azure: Azure) -> None:
    assert azure.run() == 2
    for text in ("My subscription", "-builder: a VM", "-images: a snapshot", "2 US dollars"):
        assert text in azure.read("out")
    assert len(azure.read("calls").splitlines()) == 1


def test_azure_cli_refuses_what_az_would() -> None:
    for command in (
        "vm create --resource-group x --name x --enable-agents false",
        "vm create --name x",
        "vm begin --name x",
    ):
        with pytest.raises(SystemExit):
            azure_cli.check_az(shlex.split(command))
