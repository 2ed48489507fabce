"""Every fault at every step, and the same invariants whatever the fault.

The tables are in world/faults.py. What is wrong with the machine is in test_host_name.py and
test_real_system.py.
"""

import time
from typing import Any, List

import pytest

import azure_provisioning
from azure_provisioning import ANSWER_MAX
from conftest import HostFor, Run
from world.faults import (
    BAD_GOAL_STATES,
    BAD_NAMES,
    ENDPOINTS,
    FAULTS,
    GOOD_GOAL_STATES,
    GOOD_NAMES,
    ID,
    NO_HOST_NAME,
    OPEN_ENDED,
    SERVICES,
    STEPS,
    VARIANTS,
    accepted_then,
    length,
    outcome,
)
from world.host import Fault, SimulatedHost, body_fault, make_fault, raw_fault
from world.machine import SLACK, Machine, check


def timeout_for(endpoint: str, seconds: float) -> float:
    """Return how long a run may take that ends well: the VM's name is asked for only at the end."""
    return 0.3 if endpoint == "name" else seconds


def fail_then_recover(
    host: SimulatedHost, machine: Machine, run: Run, endpoint: str, step: str = ""
) -> None:
    """A run with the fault that the host has fails at *endpoint*; the next one ends well."""
    result = run("--timeout=0.3")
    check(result, host, machine, 0.3)
    reported = SERVICES[endpoint] == "imds"
    assert result.status == (3 if reported else 1)
    assert len(host.accepted) == reported
    assert result.err[-1].startswith(f"{step or STEPS[endpoint]} failed: ")
    assert result.err[-1].endswith("; giving up")

    host.recover()
    timeout = timeout_for(endpoint, 5)
    again = run(f"--timeout={timeout}")
    check(again, host, machine, timeout)
    assert again.status == 0


def ends_well(host: SimulatedHost, machine: Machine, run: Run, endpoint: str) -> None:
    """A run ends well without a line of trouble, but that a host too old has no computer name."""
    timeout = timeout_for(endpoint, 5)
    result = run(f"--timeout={timeout}")
    check(result, host, machine, timeout)
    assert result.status == 0
    trouble = [] if endpoint != "name" else ["Computer name failed: the answer is 400 Bad Request"]
    assert [line.partition(";")[0] for line in result.err] == trouble


CELLS = [(endpoint, fault) for endpoint in ENDPOINTS for fault in FAULTS]


def cells(expected: str) -> List[object]:
    return [pytest.param(*cell, id="-".join(cell)) for cell in CELLS if outcome(*cell) == expected]


@pytest.mark.parametrize("endpoint, fault", cells("fails"))
def test_a_fault_that_lasts_loses_nothing(
    host_for: HostFor, machine: Machine, run: Run, endpoint: str, fault: str
) -> None:
    host = host_for(endpoint)
    host.misbehave(endpoint, FAULTS[fault])
    no_host_name = SERVICES[endpoint] == "imds" and fault == "body-gzip"  # no letter is in it
    fail_then_recover(host, machine, run, endpoint, "Host name" if no_host_name else "")


@pytest.mark.parametrize("endpoint, fault", cells("passes"))
def test_what_is_no_fault_at_a_step_is_none(
    host_for: HostFor, machine: Machine, run: Run, endpoint: str, fault: str
) -> None:
    host = host_for(endpoint)
    wrong = FAULTS[fault]
    host.misbehave(endpoint, accepted_then(wrong) if endpoint == "health" else wrong)
    ends_well(host, machine, run, endpoint)


@pytest.mark.parametrize("endpoint, fault", cells("asks"))
def test_where_the_host_has_no_computer_name_in_the_end_the_name_of_the_vm_is_taken(
    host: SimulatedHost, machine: Machine, run: Run, endpoint: str, fault: str
) -> None:
    host.misbehave(endpoint, FAULTS[fault])
    result = run("--timeout=0.3")
    check(result, host, machine, 0.3)
    assert result.status == 0
    assert result.seconds >= 0.3
    assert machine.names == ["web-11", "web-11"]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("fault", ["reset", "close", "silent", "slow-headers", "500", "not-http"])
def test_a_fault_before_the_request_is_read_loses_nothing(
    host_for: HostFor, machine: Machine, run: Run, endpoint: str, fault: str
) -> None:
    host = host_for(endpoint)
    service = SERVICES[endpoint]
    if endpoint in ("health", "name"):  # the second request to its service, in the same attempt
        count, wrong = iter(range(100)), make_fault(fault)

        def not_the_first(handler: Any) -> None:
            number = next(count)  # the VM's name is asked for in the last of two attempts
            if number >= 2 if endpoint == "name" else number % 2:
                wrong(handler)
            else:
                super(type(handler), handler).handle()

        host.misbehave(f"{service}-accept", not_the_first)
    else:
        host.misbehave(f"{service}-accept", fault)
    fail_then_recover(host, machine, run, endpoint)


@pytest.mark.parametrize("endpoint", ["goalstate", "health", "computer-name"])
def test_an_answer_is_understood_that_comes_before_the_request_is_read(
    host: SimulatedHost, run: Run, endpoint: str
) -> None:
    bodies = {"goalstate": host.goal_state(), "health": b"", "computer-name": b"web000011"}
    number = iter(range(10))

    def one_early(handler: Any) -> None:
        if next(number) == (endpoint == "health"):
            handler.send_raw(length(len(bodies[endpoint])) + bodies[endpoint])
        else:
            super(type(handler), handler).handle()

    host.misbehave(f"{SERVICES[endpoint]}-accept", one_early)
    result = run("--timeout=5")
    assert (result.status, result.err) == (0, [])


def test_an_answer_is_understood_that_comes_before_the_request_is_sent(host: SimulatedHost) -> None:
    """It fills the connection, which the host then resets."""
    host.misbehave("wireserver-accept", lambda handler: handler.send_raw(length(0)))
    url, deadline = host.url("wireserver") + "/machine?comp=health", time.monotonic() + SLACK
    answer = azure_provisioning.exchange(url, [], deadline, b"x" * (16 << 20))
    assert answer.status == "200 OK"


@pytest.mark.parametrize(
    "service, endpoint", [("wireserver", "goalstate"), ("imds", "computer-name")]
)
def test_a_refused_connection_loses_nothing(
    host: SimulatedHost, machine: Machine, run: Run, service: str, endpoint: str
) -> None:
    host.refuse(service)
    fail_then_recover(host, machine, run, endpoint)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_right_answer_is_understood_however_it_is_told(
    host_for: HostFor, machine: Machine, run: Run, endpoint: str, variant: str
) -> None:
    host = host_for(endpoint)
    host.misbehave(endpoint, VARIANTS[variant])
    ends_well(host, machine, run, endpoint)
    assert machine.names[0] == ("web-11" if endpoint == "name" else "web000011")


@pytest.mark.parametrize("endpoint", ["goalstate", "health"])
@pytest.mark.parametrize("variant", OPEN_ENDED)
def test_an_answer_to_the_end_of_the_connection_is_understood(
    host: SimulatedHost, machine: Machine, run: Run, endpoint: str, variant: str
) -> None:
    host.misbehave(endpoint, OPEN_ENDED[variant])
    ends_well(host, machine, run, endpoint)


@pytest.mark.parametrize("endpoint", ["computer-name", "name"])
@pytest.mark.parametrize("variant", OPEN_ENDED)
def test_a_name_that_may_have_been_cut_short_is_none(
    host_for: HostFor, machine: Machine, run: Run, endpoint: str, variant: str
) -> None:
    host = host_for(endpoint)
    host.misbehave(endpoint, OPEN_ENDED[variant])
    fail_then_recover(host, machine, run, endpoint)


@pytest.mark.parametrize("more", [0, 1])
def test_an_answer_may_have_256_kib_in_all(host: SimulatedHost, run: Run, more: int) -> None:
    assert ANSWER_MAX == 256 * 1024
    body = host.goal_state()
    head_size = len(length(len(body), "X-Header: "))
    padding = "x" * (ANSWER_MAX - head_size - len(body) + more)
    host.misbehave("goalstate", raw_fault(length(len(body), "X-Header: " + padding) + body))
    result = run("--timeout=0.3")
    assert result.status == (1 if more else 0)
    assert not more or "longer than 256 KiB" in result.err[-1]


# ---- What the documents say


@pytest.mark.parametrize("document", BAD_GOAL_STATES)
def test_a_goal_state_that_is_none_loses_nothing(
    host: SimulatedHost, machine: Machine, run: Run, document: str
) -> None:
    host.vm = host.vm._replace(container_id=ID)
    host.misbehave("goalstate", BAD_GOAL_STATES[document])
    fail_then_recover(host, machine, run, "goalstate")


@pytest.mark.parametrize("document", GOOD_GOAL_STATES)
def test_a_goal_state_is_understood_however_it_is_written(
    host: SimulatedHost, machine: Machine, run: Run, document: str
) -> None:
    host.misbehave("goalstate", GOOD_GOAL_STATES[document])
    result = run("--timeout=5")
    check(result, host, machine, 5)
    assert (result.status, result.err) == (0, [])


def test_values_are_reported_as_they_are(host: SimulatedHost, machine: Machine, run: Run) -> None:
    host.vm = host.vm._replace(container_id="a&b<c>\"d'", instance_id="\u00e9\u4e2d\U0001f600 ]]>")
    result = run("--timeout=5")
    check(result, host, machine, 5)
    assert (result.status, result.err) == (0, [])


@pytest.mark.parametrize("endpoint", ["computer-name", "name"])
@pytest.mark.parametrize("text", BAD_NAMES)
def test_what_is_no_name_loses_nothing(
    host_for: HostFor, machine: Machine, run: Run, endpoint: str, text: str
) -> None:
    host = host_for(endpoint)
    host.misbehave(endpoint, body_fault(BAD_NAMES[text].encode()))
    fail_then_recover(host, machine, run, endpoint, "Host name" if text in NO_HOST_NAME else "")


@pytest.mark.parametrize("text", GOOD_NAMES)
def test_a_name_is_understood_however_it_is_written(
    host: SimulatedHost, machine: Machine, run: Run, text: str
) -> None:
    written, expected = GOOD_NAMES[text]
    host.misbehave("computer-name", body_fault(written.encode()))
    result = run("--timeout=5")
    check(result, host, machine, 5)
    assert (result.status, result.err) == (0, [])
    assert machine.names == [expected, expected]


# ---- A cross-section on every Python

CROSS_SECTION = [
    ("goalstate", "entity-bomb", BAD_GOAL_STATES["entity-bomb"]),
    ("goalstate", "many-attributes", BAD_GOAL_STATES["many-attributes"]),
    ("goalstate", "slow-headers", FAULTS["slow-headers"]),
    ("goalstate", "negative-chunk", FAULTS["negative-chunk"]),
    ("health", "503", FAULTS["503"]),
    ("health", "status-too-long", FAULTS["status-too-long"]),
    ("goalstate", "deep", BAD_GOAL_STATES["deep"]),
    ("goalstate", "headers-full-of-cr", FAULTS["headers-full-of-cr"]),
    ("health", "status-underscore", FAULTS["status-underscore"]),
    ("health", "headers-tiny", FAULTS["headers-tiny"]),
    ("computer-name", "length-underscore", FAULTS["length-underscore"]),
    ("computer-name", "endless-chunks", FAULTS["endless-chunks"]),
    ("computer-name", "html", body_fault(BAD_NAMES["html"].encode())),
    ("name", "truncated-chunk", FAULTS["truncated-chunk"]),
]


@pytest.mark.parametrize(
    "endpoint, fault", [pytest.param(e, f, id=f"{e}-{n}") for e, n, f in CROSS_SECTION]
)
def test_on_every_python_a_fault_that_lasts_loses_nothing(
    host_for: HostFor, machine: Machine, run: Run, python: str, endpoint: str, fault: Fault
) -> None:
    host = host_for(endpoint)
    host.misbehave(endpoint, fault)
    fail_then_recover(host, machine, lambda *options: run(*options, python=python), endpoint)
