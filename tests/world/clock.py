"""The script in this process, against real sockets, on a clock that only its pauses move.

An outage of twenty minutes is over at once, each pause is seen to the second, and how busy this
machine is does not matter. Everything else is as in sandbox.py: the machine, and the guard.
"""

import sys
import tempfile
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest

import azure_provisioning
from world import sandbox
from world.host import SimulatedHost
from world.machine import Machine

PAUSES_MAX = 2000


class Result(NamedTuple):
    status: int
    out: list[str]
    err: list[str]
    seconds: float  # on our clock
    pauses: list[float]


class Run(Protocol):
    def __call__(self, *options: str) -> Result: ...


class Clock:
    """Stands for the time module: all pauses, and a microsecond for each look at it.

    Sockets go on in real time.
    """

    start = 1000.0

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self.looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        return self.start + sum(self.pauses) + self.looks / 1e6

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        assert len(self.pauses) < PAUSES_MAX, "it never ends"
        self.pauses.append(seconds)


class StoppedClock:
    """Stands for the time module; it moves when a test says so. The real one starts at boot."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def temporary() -> "tempfile._TemporaryFileWrapper[str]":
    return tempfile.NamedTemporaryFile("w")


def script(machine: Machine, host: SimulatedHost) -> Run:
    """Return a function that runs the script with some options."""

    def run(*options: str) -> Result:
        clock, arguments = Clock(), ["azure_provisioning.py", *host.options(), *options]
        # Files, since the script writes past Python's buffers.
        with pytest.MonkeyPatch.context() as patch, temporary() as out, temporary() as err:
            sandbox.take_over(str(machine.directory), patch.setattr)
            patch.setattr(azure_provisioning, "time", clock)
            patch.setattr(azure_provisioning, "said", {})
            patch.setattr(sys, "argv", arguments)
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            status = azure_provisioning.main()
            seconds = clock.monotonic() - clock.start
            lines = [Path(file.name).read_text().splitlines() for file in (out, err)]
        return Result(status, lines[0], lines[1], seconds, clock.pauses)

    return run
