"""The script in this process, against real sockets, on a clock on which a pause takes no time.

An outage of twenty minutes is over at once, and each pause is seen to the second. Everything else
is as in sandbox.py: the machine, and the guard.
"""

import io
import sys
import time
from typing import List, NamedTuple, Protocol

import pytest

import azure_provisioning
import sandbox
from conftest import Machine
from simulated_host import SimulatedHost

PAUSES_MAX = 2000


class Result(NamedTuple):
    status: int
    out: List[str]
    err: List[str]
    seconds: float  # on our clock
    pauses: List[float]


class Run(Protocol):
    def __call__(self, *options: str) -> Result: ...


class Clock:
    """Stands for the time module: real time, and all pauses."""

    def __init__(self) -> None:
        self.pauses: List[float] = []
        self.start = time.monotonic()

    def monotonic(self) -> float:
        return time.monotonic() + sum(self.pauses)

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        assert len(self.pauses) < PAUSES_MAX, "it never ends"
        self.pauses.append(seconds)


def script(machine: Machine, host: SimulatedHost) -> Run:
    """Return a function that runs the script with some options."""

    def run(*options: str) -> Result:
        clock, out, err = Clock(), io.StringIO(), io.StringIO()
        arguments = ["azure_provisioning.py", *host.options(), *options]
        with pytest.MonkeyPatch.context() as patch:
            sandbox.take_over(str(machine.directory), patch.setattr)
            patch.setattr(azure_provisioning, "time", clock)
            patch.setattr(azure_provisioning, "said", [])
            patch.setattr(sys, "argv", arguments)
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            status = azure_provisioning.main()
        seconds = clock.monotonic() - clock.start
        lines = out.getvalue().splitlines(), err.getvalue().splitlines()
        return Result(status, *lines, seconds, clock.pauses)

    return run
