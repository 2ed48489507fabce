"""on_azure.py, against stand-ins: it runs the guide, and deletes what it made."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import heed_sigint, require_tools
from world import azure_cli, readme
from world.sandbox import REPOSITORY

SIGNALS = [f"{number:d}" for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
COMMAND = [sys.executable, f"{REPOSITORY}/tests/on_azure.py"]


@pytest.fixture
def azure(tmp_path: Path) -> Path:
    """A directory that stands for it, as azure_cli.py has it."""
    for name in ("bin", "groups"):
        (tmp_path / name).mkdir()
    for name in ("az", "ssh", "scp"):
        program = tmp_path / "bin" / name
        stand_in = f"{sys.executable} -S {azure_cli.__file__} {name}"
        program.write_text(f'#!/bin/sh\nexec {stand_in} "$@"\n')
        program.chmod(0o755)
    require_tools("bash")  # it finds nothing else, so none could reach Azure
    (tmp_path / "bin/bash").symlink_to(str(shutil.which("bash")))
    return tmp_path


def run(
    azure: Path, command: list[str] = COMMAND, answer: str = "yes", broken: str = "", how: str = ""
) -> int:
    with open(azure / "out", "w") as out:
        return subprocess.run(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            input=answer,
            text=True,
            env={"PATH": f"{azure}/bin", "HOME": str(azure), "BROKEN": broken, "HOW": how},
            preexec_fn=heed_sigint,
            start_new_session=True,
        ).returncode


def groups(azure: Path) -> list[str]:
    return os.listdir(azure / "groups")


def test_on_azure_runs_the_guide_in_order_and_leaves_nothing(azure: Path) -> None:
    """With Ctrl-C while it deletes."""
    status = run(azure, [*COMMAND, "location=north"], broken="delete --yes", how="2")
    assert status == 0, (azure / "out").read_text()
    assert groups(azure) == []
    headings = [one.heading for one in readme.blocks() if one.language == "sh"]
    guide = headings[headings.index("## Install it") : headings.index("### 4. Generalize") + 1]
    guide.sort(key="### 3. Install".__ne__)  # it says to go on with those before it
    pasted = (azure / "pasted").read_text()
    places = [pasted.index(readme.block(heading)) for heading in guide]
    assert places == sorted(places)
    assert re.search("group create --name azure-prov.* north", (azure / "calls").read_text())


CALLS = ["vm create", "scp", "ssh.*hostname", "snapshot", "vmss create"]
ALSO_WHEN_IT_DELETES = "(vm create.*myvm|delete --yes)"


@pytest.mark.parametrize(
    "call, how",
    [*((call, "") for call in CALLS), *((ALSO_WHEN_IT_DELETES, number) for number in SIGNALS)],
)
def test_on_azure_deletes_everything_when_a_call_fails_or_it_is_interrupted(
    azure: Path, call: str, how: str
) -> None:
    assert run(azure, broken=call, how=how) == 1
    assert groups(azure) == []
    assert re.search(f"{call}.*\naz group exists .*-images", (azure / "calls").read_text())


def test_on_azure_deletes_everything_when_nobody_reads(azure: Path) -> None:
    unread = ["bash", "-c", 'set -o pipefail; "$@" 2>&1 | read', "bash", *COMMAND]
    assert run(azure, command=unread) == 1
    assert "group create" in (azure / "calls").read_text()
    assert groups(azure) == []


def test_on_azure_names_what_it_cannot_delete(azure: Path) -> None:
    assert run(azure, broken="delete --yes.*images") == 1
    (left,) = groups(azure)
    command = f"az group delete --name {left} --subscription 00000000-aaaa"
    assert f"NOT DELETED, AND IT COSTS MONEY: run  {command}\n" in (azure / "out").read_text()


def test_on_azure_says_what_it_will_create_and_asks(azure: Path) -> None:
    assert run(azure, answer="y") == 2
    for text in ("My subscription", "-builder: a VM", "-images: a snapshot", "2 US dollars"):
        assert text in (azure / "out").read_text()
    assert len((azure / "calls").read_text().splitlines()) == 1
