"""The machine of a test, a directory as sandbox.py has it; and what holds after every run on it."""

import re
from pathlib import Path
from typing import Protocol

from world import sandbox
from world.host import SimulatedHost

SLACK = 5  # seconds that a start of Python and a busy machine may add
LABEL = "[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
HOST_NAME = re.compile(rf"(?=.{{1,64}}\Z){LABEL}(\.{LABEL})*")
OLD_NAMES = ["old-name", "old-name"]


class Machine:
    """The directory that stands for the machine; see sandbox.py."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.etc = directory / "etc"
        self.etc_hostname = self.etc / "hostname"
        sandbox.create(str(directory))

    @property
    def names(self) -> list[str]:
        """The kernel's host name and the stored one."""
        return sandbox.names(str(self.directory))


class AnyResult(Protocol):
    """Of a run as a process, or in this one."""

    @property
    def status(self) -> int: ...
    @property
    def out(self) -> list[str]: ...
    @property
    def err(self) -> list[str]: ...
    @property
    def seconds(self) -> float: ...


def check(
    result: AnyResult,
    host: SimulatedHost,
    machine: Machine,
    timeout: float,
    old_names: list[str] = OLD_NAMES,
) -> None:
    """What holds after every run, whatever went wrong. For tracebacks see conftest."""
    names = machine.names
    for name, old in zip(names, old_names):
        assert name == old or HOST_NAME.fullmatch(name), "neither old nor valid"
    named = result.status == 3 and result.err[-1].startswith("Host name failed: ")  # at once
    if result.status == 0:
        assert host.accepted
        assert names[0] == names[1]
        assert HOST_NAME.fullmatch(names[0])
    elif result.status == 1:
        assert names == old_names
    else:
        assert result.status == 3
        assert host.accepted
        assert named or names == old_names
    assert result.status == 0 or named or result.seconds >= timeout, "it gave up early"
    # Two time limits, and a second for each step of the last attempt at each.
    assert result.seconds < 2 * timeout + 5 + SLACK
    assert {path.name for path in machine.etc.iterdir()} <= {"hostname"}
    for line in result.out + result.err:
        assert line.isascii(), "it is for a terminal"
        assert line.isprintable(), "it is for a terminal"
        assert len(line) < 500
