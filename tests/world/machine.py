"""The machine of a test, a directory as sandbox.py has it; and what holds after every run on it."""

import re
from pathlib import Path
from typing import List, Protocol

from world import sandbox
from world.host import SimulatedHost

SLACK = 5  # seconds that a start of Python and a busy machine may add
LABEL = "[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
HOST_NAME = re.compile(rf"(?=.{{1,64}}\Z){LABEL}(\.{LABEL})*")
LOG = 'printf "%s\\n" "$*" >>"${0%/bin/*}/hostnamectl.log"\n'
UNFIT = {
    "fails": "#!/bin/sh\n" + LOG + "echo Failed to connect to bus >&2; exit 1\n",
    "is killed": "#!/bin/sh\n" + LOG + "kill -9 $$\n",
    "does nothing": "#!/bin/sh\n" + LOG,
    "sets an earlier name": sandbox.HOSTNAMECTL.replace('"$name"', '"edited"'),
    "sets a later name": sandbox.HOSTNAMECTL.replace('"$name"', '"x"'),
    "sets only the kernel's": "\n".join(
        line for line in sandbox.HOSTNAMECTL.splitlines() if "etc/hostname" not in line
    ),
    "sets only the stored one": "\n".join(
        line for line in sandbox.HOSTNAMECTL.splitlines() if not line.endswith('/kernel"')
    ),
    "fails after it set the name": sandbox.HOSTNAMECTL + "exit 1\n",
    "is no program": "no program",
}


class Machine:
    """The directory that stands for the machine; see sandbox.py."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.etc = directory / "etc"
        sandbox.create(str(directory))

    def install_hostnamectl(self, script: str) -> None:
        """Replace the stand-in; an empty *script* removes it."""
        program = self.directory / "bin" / "hostnamectl"
        program.unlink()
        if script:
            program.write_text(script)
            program.chmod(0o755)

    @property
    def names(self) -> List[str]:
        """The kernel's host name and the stored one."""
        return sandbox.names(str(self.directory))

    @property
    def hostnamectl_calls(self) -> List[str]:
        log = self.directory / "hostnamectl.log"
        return log.read_text().splitlines() if log.exists() else []


class AnyResult(Protocol):
    """Of a run as a process, or in this one."""

    @property
    def status(self) -> int: ...
    @property
    def out(self) -> List[str]: ...
    @property
    def err(self) -> List[str]: ...
    @property
    def seconds(self) -> float: ...


OLD_NAMES = ["old-name", "old-name"]


def check(
    result: AnyResult,
    host: SimulatedHost,
    machine: Machine,
    timeout: float,
    old_names: List[str] = OLD_NAMES,
) -> None:
    """What holds after every run, whatever went wrong. For tracebacks see conftest."""
    names = machine.names
    for name, old in zip(names, old_names):
        assert name == old or HOST_NAME.fullmatch(name), "neither old nor valid"
    if result.status == 0:
        assert host.accepted
        assert names[0] == names[1]
        assert HOST_NAME.fullmatch(names[0])
    elif result.status == 1:
        assert names == old_names
    else:
        assert result.status == 3
        assert host.accepted
    assert result.status == 0 or result.seconds >= timeout, "it gave up early"
    # Two deadlines, and a second for each step of the last attempt at each.
    assert result.seconds < 2 * timeout + 5 + SLACK
    assert {path.name for path in machine.etc.iterdir()} <= {"hostname"}
    for line in result.out + result.err:
        assert line.isascii(), "it is for a terminal"
        assert line.isprintable(), "it is for a terminal"
        assert len(line) < 500
