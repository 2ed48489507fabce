"""Take from the README what the tests hold it to."""

import re
from pathlib import Path

from sandbox import REPOSITORY


def block(heading: str) -> str:
    """Return the first code block below the line *heading*, before the next heading."""
    text = Path(REPOSITORY, "README.md").read_text()
    section = text.partition(f"\n{heading}\n")[2]
    match = re.match(r"(?:(?!#|```).*\n)*```\w+\n((?:(?!```).*\n)*)```\n", section)
    assert match, f"README.md has no code block below {heading!r}"
    return match.group(1)
