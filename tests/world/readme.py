"""Take from the README what the tests hold it to."""

from pathlib import Path
from typing import List, NamedTuple

from world.sandbox import REPOSITORY


class Block(NamedTuple):
    heading: str  # the line, with its number signs
    language: str
    text: str


def blocks() -> List[Block]:
    """Return the README's code blocks."""
    found: List[Block] = []
    heading, inside = "", False
    for line in Path(REPOSITORY, "README.md").read_text().splitlines(keepends=True):
        if line.startswith("```"):
            inside = not inside
            if inside:
                found.append(Block(heading, line[3:].strip(), ""))
        elif inside:
            found[-1] = found[-1]._replace(text=found[-1].text + line)
        elif line.startswith("#"):
            heading = line.strip()
    return found


def block(heading: str, number: int = 0) -> str:
    """Return a code block below the line *heading*, before the next heading."""
    return [one.text for one in blocks() if one.heading == heading][number]
