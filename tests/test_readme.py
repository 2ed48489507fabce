"""The README is true: what of it can be run without a boot; test_boots.py has the rest."""

import json
import subprocess
import sys

import pytest

import readme
import sandbox
from conftest import require_tools
from namespace import PLATFORM_ENDPOINTS, new_network
from simulated_host import SimulatedHost, Vm

SHELL = [block for block in readme.blocks() if block.language in ("bash", "sh")]


def shell(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.heading)
def test_shell_blocks_have_no_syntax_error(block: readme.Block) -> None:
    require_tools("bash", "sh")
    for program in {"bash", block.language}:
        assert shell(program, "-n", "-c", block.text) == ""


def test_all_blocks_of_the_guide_are_labelled() -> None:
    languages = {"bash", "bicep", "sh", "terraform", "text"}
    assert {block.language for block in readme.blocks()} == languages


def test_it_has_the_help_word_for_word() -> None:
    said = shell(sys.executable, "-I", "-S", sandbox.SCRIPT, "--help")
    assert readme.block("## When something is wrong", 3) == said


@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize("endpoint, requests", [("goalstate", 1), ("health", 2), ("compute", 3)])
def test_the_platform_by_hand_ends_at_the_first_error(endpoint: str, requests: int) -> None:
    require_tools("curl")
    with new_network(), SimulatedHost(Vm(), *PLATFORM_ENDPOINTS) as host:
        host.misbehave(endpoint, "503")
        done = subprocess.run(["sh", "-c", readme.block("## The platform by hand")], check=False)
    assert done.returncode != 0
    assert len(host.requests) == requests


@pytest.mark.usefixtures("isolated")
def test_the_platform_by_hand_reports_ready_and_shows_the_name() -> None:
    require_tools("curl", "sed", "tr")
    vm = Vm(name="web_11", computer_name="web000011", container_id="a & <b>")
    with new_network(), SimulatedHost(vm, *PLATFORM_ENDPOINTS) as host:
        out = shell("sh", "-euc", readme.block("## The platform by hand"))
    assert len(host.accepted) == 1
    assert json.loads(out)["osProfile"]["computerName"] == "web000011"
