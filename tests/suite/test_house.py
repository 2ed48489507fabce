"""The order of the tests' own house: imports run one way."""

import ast
from pathlib import Path
from typing import Set

import pytest

from world.sandbox import REPOSITORY

TESTS = Path(REPOSITORY, "tests")
COMMANDS = {path.stem for path in TESTS.glob("*.py")}
SUITE = {path.stem for path in (TESTS / "suite").glob("*.py")}


def imported(path: Path) -> Set[str]:
    """Return the first names of the modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("path", sorted((TESTS / "world").glob("*.py")), ids=lambda path: path.stem)
def test_the_world_uses_neither_the_commands_nor_the_tests(path: Path) -> None:
    assert imported(path) & (COMMANDS | SUITE) == set()


@pytest.mark.parametrize("path", sorted(TESTS.glob("*.py")), ids=lambda path: path.stem)
def test_a_command_uses_the_world_and_no_test(path: Path) -> None:
    assert imported(path) & SUITE == set()


@pytest.mark.parametrize("name", sorted(SUITE))
def test_no_test_uses_another(name: str) -> None:
    assert imported(TESTS / "suite" / f"{name}.py") & (SUITE - {"conftest"}) == set()
