"""Take from the README what the tests hold it to."""

import re
from pathlib import Path
from typing import NamedTuple

from world.sandbox import REPOSITORY


class Block(NamedTuple):
    heading: str  # the line, with its number signs
    language: str
    text: str


def blocks() -> list[Block]:
    """Return the README's code blocks."""
    text, heading = Path(REPOSITORY, "README.md").read_text(), ""
    found = []
    for line, language, code in re.findall(r"(?ms)^(#+ [^\n]*)|^```(\w*)\n(.*?)^```$", text):
        heading = line or heading
        if not line:
            found.append(Block(heading, language, code))
    return found


def block(heading: str, number: int = 0) -> str:
    """Return a code block below the line *heading*, before the next heading."""
    return [one.text for one in blocks() if one.heading == heading][number]


def drop_ins() -> list[str]:
    """Return the drop-ins of "Adapt the unit", in their order."""
    text = Path(REPOSITORY, "README.md").read_text()
    (section,) = re.findall("(?ms)^## Adapt the unit\n(.*?)^## ", text)
    rows = re.findall(r"^\| .*? \|(.*)\|$", section, re.MULTILINE)[2:]
    return ["".join(f"{line}\n" for line in re.findall("`([^`]*[]=][^`]*)`", row)) for row in rows]
