"""The README is true: what of it can be run without a boot; test_boots.py has the rest."""

import subprocess
import sys

import pytest

from conftest import require_tools
from world import readme, sandbox
from world.host import SimulatedHost

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
    assert readme.block("## When something is wrong", 2) == said


BY_HAND = readme.block("## The platform by hand")


@pytest.mark.parametrize(
    "endpoint, requests", [("goalstate", 1), ("health", 2), ("computer-name", 3)]
)
def test_the_platform_by_hand_ends_at_the_first_error(
    platform_host: SimulatedHost, endpoint: str, requests: int
) -> None:
    require_tools("curl")
    platform_host.misbehave(endpoint, "503")
    assert subprocess.run(["sh", "-c", BY_HAND], check=False).returncode != 0
    assert len(platform_host.requests) == requests


def test_the_platform_by_hand_reports_ready_and_shows_the_name(
    platform_host: SimulatedHost,
) -> None:
    require_tools("curl", "sed", "tr")
    platform_host.vm = platform_host.vm._replace(container_id="a & <b>")
    out = shell("sh", "-euc", BY_HAND)
    assert len(platform_host.accepted) == 1
    assert out == "web000011\n"
