"""Every fault of world/faults.py, and what must hold whatever the fault, on the tests' clock.

All answers are read by the same code: all faults come at one step, a cross-section at the others.
"""

import tempfile
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import azure_provisioning
from conftest import Run as ProcessRun
from world.clock import Run, script
from world.faults import (
    BODY_FAULTS,
    FAULTS,
    OPEN_ENDED,
    SERVICES,
    STEPS,
    VARIANTS,
    accepted_then,
)
from world.host import DRIP_SECONDS, SimulatedHost, Vm
from world.machine import AnyResult, Machine, check

SECONDS = 2  # of our clock
WALKERS = 4  # for as many workers
SLOW = ["silent", "slow-headers", "slow-body"]
# One of each kind: no connection, no answer, no HTTP, another status, a body cut short.
SOME = ["silent", "reset", "not-http", "503", "truncated-chunk"]


class AnyRun(Protocol):
    def __call__(self, *options: str) -> AnyResult: ...


def fail_then_recover(
    host: SimulatedHost, machine: Machine, run: AnyRun, endpoint: str, fault: str = ""
) -> None:
    """A run with the fault that the host has fails at *endpoint*; the next one ends well."""
    with pytest.MonkeyPatch.context() as patch:
        if fault in SLOW:  # in real time, which our clock does not see
            patch.setattr(azure_provisioning, "STEP_SECONDS", DRIP_SECONDS * 0.8)
        result = run(f"--timeout={SECONDS}")
    check(result, host, machine, SECONDS)
    reported = SERVICES[endpoint] == "imds"
    assert result.status == (3 if reported else 1)
    assert len(host.accepted) == reported
    assert any(line.startswith(f"{STEPS[endpoint]} failed: ") for line in result.err)
    assert result.err[-1].endswith("; giving up")

    host.recover()
    again = run("--timeout=30")
    check(again, host, machine, 30)
    assert again.status == 0


def ends_well(host: SimulatedHost, machine: Machine, run: Run) -> None:
    """A run ends well without a line of trouble."""
    result = run(f"--timeout={SECONDS}")
    check(result, host, machine, SECONDS)
    assert (result.status, result.err) == (0, [])
    assert machine.names[0] == "web000011"


CELLS = [
    *(("goalstate", fault) for fault in FAULTS),
    *(("health", fault) for fault in [*SOME[:-1], "status-half", "endless-headers"]),
    *(("computer-name", fault) for fault in [*SOME, "body-html"]),
    *(("name", fault) for fault in [*SOME[1:], "404"]),
]


@pytest.mark.parametrize("endpoint, fault", CELLS)
def test_fault_that_lasts_loses_nothing(
    host: SimulatedHost, machine: Machine, run_here: Run, endpoint: str, fault: str
) -> None:
    if endpoint == "name":
        host.misbehave("computer-name", "404")
    host.misbehave(endpoint, FAULTS[fault])
    fail_then_recover(host, machine, run_here, endpoint, fault)


@pytest.mark.parametrize("fault", BODY_FAULTS)
def test_fault_after_the_status_of_an_accepted_report_does_not_count(
    host: SimulatedHost, machine: Machine, run_here: Run, fault: str
) -> None:
    host.misbehave("health", accepted_then(BODY_FAULTS[fault]))
    ends_well(host, machine, run_here)
    assert [request.method for request in host.requests].count("POST") == 1


@pytest.mark.parametrize("endpoint", ["goalstate", "computer-name"])
def test_refused_connection_loses_nothing(
    host: SimulatedHost, machine: Machine, run_here: Run, endpoint: str
) -> None:
    host.refuse(SERVICES[endpoint])
    fail_then_recover(host, machine, run_here, endpoint)


@pytest.mark.parametrize(
    "endpoint, variant",
    [
        *(("goalstate", variant) for variant in [*VARIANTS, *OPEN_ENDED]),
        *(("health", variant) for variant in ["continue-first", "stays-open", "http-1.0-open"]),
        *(("computer-name", variant) for variant in ["chunked", "stays-open", "with-a-mark"]),
    ],
)
def test_right_answer_is_understood_however_it_is_told(
    host: SimulatedHost, machine: Machine, run_here: Run, endpoint: str, variant: str
) -> None:
    host.misbehave(endpoint, {**VARIANTS, **OPEN_ENDED}[variant])
    ends_well(host, machine, run_here)


# ---- Many in a row, everywhere, at once

ALL = {**FAULTS, **VARIANTS, **OPEN_ENDED}
steps = st.tuples(st.sampled_from([*STEPS]), st.sampled_from([*ALL]), st.integers(1, 4))


@pytest.mark.parametrize("part", range(WALKERS))
def test_walk_over_all_faults_loses_nothing(
    part: int, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    walks = max(pytestconfig.getoption("--walks") // WALKERS, 1)

    @settings(max_examples=walks, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(steps, max_size=12), st.text(max_size=80), st.sampled_from([2, 10, 30]))
    def walk(path: list[tuple[str, str, int]], computer_name: str, timeout: int) -> None:
        machine = Machine(Path(tempfile.mkdtemp(dir=tmp_path), "machine"))
        with SimulatedHost(Vm("web_11", computer_name)) as host:
            host.imds_rate = 1000
            for endpoint, name, times in path:
                only_status_counts = endpoint == "health" and name in BODY_FAULTS
                fault = accepted_then(ALL[name]) if only_status_counts else ALL[name]
                host.misbehave(endpoint, fault, times=times)
            run = script(machine, host)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(azure_provisioning, "STEP_SECONDS", 0.05)  # of real time
                result = run(f"--timeout={timeout}")
            check(result, host, machine, timeout)
            host.recover()
            host.accepted.clear()
            host.vm = Vm("web_11", "web000011")
            again = run("--timeout=5")
            check(again, host, machine, 5)
            assert (again.status, machine.names) == (0, ["web000011", "web000011"])

    walk()


# ---- A cross-section on every Python

EACH_KIND = [
    *(("goalstate", fault) for fault in ["body-html", "bad-chunk", "slow-headers"]),
    *(("health", fault) for fault in ["503", "endless-line"]),
    *(("computer-name", fault) for fault in ["body-html", "length-and-another"]),
]


@pytest.mark.parametrize("endpoint, fault", EACH_KIND)
def test_fault_on_every_python_loses_nothing(
    host: SimulatedHost, machine: Machine, run: ProcessRun, python: str, endpoint: str, fault: str
) -> None:
    host.misbehave(endpoint, FAULTS[fault])
    fail_then_recover(host, machine, lambda *options: run(*options, python=python), endpoint)
