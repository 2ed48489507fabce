"""The order of the tests' own house: imports run one way."""

import ast
from pathlib import Path
from typing import Set

from world.sandbox import REPOSITORY

TESTS = Path(REPOSITORY, "tests")
COMMANDS = {path.stem for path in TESTS.glob("*.py")}
SUITE = {path.stem for path in (TESTS / "suite").glob("*.py")}
# What the files of each directory must not import.
FORBIDDEN = {"world": COMMANDS | SUITE, "": SUITE, "suite": SUITE - {"conftest"}}


def imported(path: Path) -> Set[str]:
    """Return the first names of the modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def test_the_tests_use_the_commands_and_those_the_world() -> None:
    for directory, forbidden in FORBIDDEN.items():
        for path in (TESTS / directory).glob("*.py"):
            assert imported(path) & forbidden == set(), path
