"""Every fault at every step, and the same invariants whatever the fault.

The tables are in world/faults.py. A run is on our clock, in this process, but for those on every
Python. What is wrong with the machine is in test_host_name.py and test_real_system.py.
"""

from typing import Any, Dict, List, Protocol

import pytest

import azure_provisioning
from azure_provisioning import ANSWER_MAX
from conftest import HostFor
from conftest import Run as ProcessRun
from world.clock import Run
from world.faults import (
    BAD_GOAL_STATES,
    BAD_NAMES,
    BODY_FAULTS,
    ENDPOINTS,
    FAULTS,
    GOOD_GOAL_STATES,
    GOOD_NAMES,
    HEAD_FAULTS,
    NOTHING,
    OPEN_ENDED,
    SERVICES,
    STEPS,
    VARIANTS,
    accepted_then,
    length,
)
from world.host import DRIP_SECONDS, Fault, SimulatedHost, body_fault, make_fault, raw_fault
from world.machine import AnyResult, Machine, check

SECONDS = 2  # of our clock
SLOW = ["silent", "slow-headers", "slow-body"]


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
    assert result.err[-1].startswith(f"{STEPS[endpoint]} failed: ")
    assert result.err[-1].endswith("; giving up")

    host.recover()
    seconds = SECONDS if endpoint == "name" else 30  # a VM's name is asked for only at the end
    again = run(f"--timeout={seconds}")
    check(again, host, machine, seconds)
    assert again.status == 0


def ends_well(host: SimulatedHost, machine: Machine, run: Run, endpoint: str) -> None:
    """A run ends well without a line of trouble, but that a host too old has no computer name."""
    result = run(f"--timeout={SECONDS}")
    check(result, host, machine, SECONDS)
    assert result.status == 0
    trouble = [] if endpoint != "name" else ["Computer name failed: the answer is 400 Bad Request"]
    assert [line.partition(";")[0] for line in result.err] == trouble
    assert machine.names[0] == ("web-11" if endpoint == "name" else "web000011")


def cells(*tables: Dict[str, Fault], endpoints: List[str] = ENDPOINTS) -> List[object]:
    """All but what is no fault there, and but slow names of VMs: others take the same time."""
    left_out = {"computer-name": NOTHING, "name": SLOW}
    pairs = [(endpoint, fault) for endpoint in endpoints for table in tables for fault in table]
    return [
        pytest.param(*pair, id="-".join(pair))
        for pair in pairs
        if pair[1] not in left_out.get(pair[0], [])
    ]


@pytest.mark.parametrize(
    "endpoint, fault",
    cells(HEAD_FAULTS) + cells(BODY_FAULTS, endpoints=["goalstate", "computer-name", "name"]),
)
def test_a_fault_that_lasts_loses_nothing(
    host_for: HostFor, machine: Machine, run_here: Run, endpoint: str, fault: str
) -> None:
    host = host_for(endpoint)
    host.misbehave(endpoint, FAULTS[fault])
    fail_then_recover(host, machine, run_here, endpoint, fault)


@pytest.mark.parametrize("fault", BODY_FAULTS)
def test_of_an_answer_to_a_report_only_the_status_counts(
    host: SimulatedHost, machine: Machine, run_here: Run, fault: str
) -> None:
    host.misbehave("health", accepted_then(BODY_FAULTS[fault]))
    ends_well(host, machine, run_here, "health")
    assert [request.method for request in host.requests].count("POST") == 1


@pytest.mark.parametrize("fault", NOTHING)
def test_where_the_host_has_no_computer_name_in_the_end_the_name_of_the_vm_is_taken(
    host: SimulatedHost, machine: Machine, run_here: Run, fault: str
) -> None:
    host.misbehave("computer-name", FAULTS[fault])
    result = run_here(f"--timeout={SECONDS}")
    check(result, host, machine, SECONDS)
    assert result.status == 0
    assert result.seconds >= SECONDS
    assert machine.names == ["web-11", "web-11"]


@pytest.mark.parametrize(
    "endpoint, fault",
    cells({name: FAULTS[name] for name in [*SLOW[:2], "reset", "close", "500", "not-http"]}),
)
def test_a_fault_before_the_request_is_read_loses_nothing(
    host_for: HostFor, machine: Machine, run_here: Run, endpoint: str, fault: str
) -> None:
    host = host_for(endpoint)
    # The second request to a service in the same attempt is the report, or the one for the VM's
    # name, which is made only in the last attempt.
    earlier = {"health": 1, "name": SECONDS + 1}.get(endpoint, 0)
    count, wrong = iter(range(100)), make_fault(fault)

    def not_the_first(handler: Any) -> None:
        number = next(count)
        if number >= earlier if endpoint == "name" else number % (earlier + 1) == earlier:
            wrong(handler)
        else:
            super(type(handler), handler).handle()

    host.misbehave(f"{SERVICES[endpoint]}-accept", not_the_first)
    fail_then_recover(host, machine, run_here, endpoint, fault)


@pytest.mark.parametrize("endpoint", ["goalstate", "health", "computer-name"])
def test_an_answer_is_understood_that_comes_before_the_request_is_read(
    host: SimulatedHost, machine: Machine, run_here: Run, endpoint: str
) -> None:
    bodies = {"goalstate": host.goal_state(), "health": b"", "computer-name": b"web000011"}
    number = iter(range(10))

    def one_early(handler: Any) -> None:
        if next(number) == (endpoint == "health"):
            handler.send_raw(length(len(bodies[endpoint])) + bodies[endpoint])
        else:
            super(type(handler), handler).handle()

    host.misbehave(f"{SERVICES[endpoint]}-accept", one_early)
    result = run_here()
    assert (result.status, result.err) == (0, [])


@pytest.mark.parametrize(
    "service, endpoint", [("wireserver", "goalstate"), ("imds", "computer-name")]
)
def test_a_refused_connection_loses_nothing(
    host: SimulatedHost, machine: Machine, run_here: Run, service: str, endpoint: str
) -> None:
    host.refuse(service)
    fail_then_recover(host, machine, run_here, endpoint)


@pytest.mark.parametrize(
    "endpoint, variant", cells(VARIANTS) + cells(OPEN_ENDED, endpoints=["goalstate", "health"])
)
def test_the_right_answer_is_understood_however_it_is_told(
    host_for: HostFor, machine: Machine, run_here: Run, endpoint: str, variant: str
) -> None:
    host = host_for(endpoint)
    host.misbehave(endpoint, {**VARIANTS, **OPEN_ENDED}[variant])
    ends_well(host, machine, run_here, endpoint)


@pytest.mark.parametrize(
    "endpoint, variant", cells(OPEN_ENDED, endpoints=["computer-name", "name"])
)
def test_a_name_that_may_have_been_cut_short_is_none(
    host_for: HostFor, machine: Machine, run_here: Run, endpoint: str, variant: str
) -> None:
    host = host_for(endpoint)
    host.misbehave(endpoint, OPEN_ENDED[variant])
    fail_then_recover(host, machine, run_here, endpoint)


@pytest.mark.parametrize("more", [0, 1])
def test_an_answer_may_have_256_kib_in_all(host: SimulatedHost, run_here: Run, more: int) -> None:
    assert ANSWER_MAX == 256 * 1024
    body = host.goal_state()
    head_size = len(length(len(body), "X-Header: "))
    padding = "x" * (ANSWER_MAX - head_size - len(body) + more)
    host.misbehave("goalstate", raw_fault(length(len(body), "X-Header: " + padding) + body))
    result = run_here("--timeout=1")
    assert result.status == (1 if more else 0)
    assert not more or "longer than 256 KiB" in result.err[-1]


# ---- What the documents say


@pytest.mark.parametrize("document", BAD_GOAL_STATES)
def test_a_goal_state_that_is_none_loses_nothing(
    host: SimulatedHost, machine: Machine, run_here: Run, document: str
) -> None:
    host.misbehave("goalstate", BAD_GOAL_STATES[document])
    fail_then_recover(host, machine, run_here, "goalstate")


@pytest.mark.parametrize("document", GOOD_GOAL_STATES)
def test_a_goal_state_is_understood_however_it_is_written(
    host: SimulatedHost, machine: Machine, run_here: Run, document: str
) -> None:
    host.misbehave("goalstate", GOOD_GOAL_STATES[document])
    ends_well(host, machine, run_here, "goalstate")


@pytest.mark.parametrize("endpoint", ["computer-name", "name"])
@pytest.mark.parametrize("text", BAD_NAMES)
def test_what_is_no_name_loses_nothing(
    host_for: HostFor, machine: Machine, run_here: Run, endpoint: str, text: str
) -> None:
    host = host_for(endpoint)
    host.misbehave(endpoint, body_fault(BAD_NAMES[text].encode()))
    fail_then_recover(host, machine, run_here, endpoint)
    assert machine.hostnamectl_calls[:-1] == []


@pytest.mark.parametrize("text", GOOD_NAMES)
def test_a_name_is_understood_however_it_is_written(
    host: SimulatedHost, machine: Machine, run_here: Run, text: str
) -> None:
    written, expected = GOOD_NAMES[text]
    host.misbehave("computer-name", body_fault(written.encode()))
    result = run_here()
    assert (result.status, result.err) == (0, [])
    assert machine.names == [expected, expected]
    assert machine.hostnamectl_calls == ["--no-ask-password --static set-hostname " + expected]


# ---- A cross-section on every Python

CROSS_SECTION = {
    "goalstate": {
        "document-type": BAD_GOAL_STATES["document-type"],
        "bad-chunk": FAULTS["bad-chunk"],
        "slow-headers": FAULTS["slow-headers"],
    },
    "health": {"503": FAULTS["503"], "status-too-long": FAULTS["status-too-long"]},
    "computer-name": {
        "length-and-another": FAULTS["length-and-another"],
        "html": body_fault(BAD_NAMES["html"].encode()),
    },
}


@pytest.mark.parametrize(
    "endpoint, fault", [(e, f) for e in CROSS_SECTION for f in CROSS_SECTION[e]]
)
def test_on_every_python_a_fault_that_lasts_loses_nothing(
    host: SimulatedHost, machine: Machine, run: ProcessRun, python: str, endpoint: str, fault: str
) -> None:
    host.misbehave(endpoint, CROSS_SECTION[endpoint][fault])
    fail_then_recover(host, machine, lambda *options: run(*options, python=python), endpoint)
