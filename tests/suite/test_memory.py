"""However much a peer sends, and however often, the script stays below MEMORY_MAX.

The fixture "run" looks at that after every run of any test; these are the worst that are known,
each many times in a row.
"""

from pathlib import Path
from typing import Any, Dict, Iterator

import pytest

from azure_provisioning import ANSWER_MAX
from conftest import Run, wait_until
from world.host import SimulatedHost, Vm, raw_fault
from world.machine import Machine

ATTEMPTS = 20
SPACE = ANSWER_MAX - 1000  # for a head of its own
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def filled(before: bytes, part: bytes, after: bytes = b"") -> bytes:
    """As many parts as there is space for."""
    return before + part * ((SPACE - len(before) - len(after)) // len(part)) + after


def numbered(part: str) -> bytes:
    """Parts that differ."""
    return "".join(
        part.format(number) for number in range(SPACE // len(part.format(99999)))
    ).encode()


HEADS: Dict[str, bytes] = {
    "header lines without a name": filled(OK, b":\r\n") + b"\r\n",
    "header lines of CR": filled(OK, b":\r") + b"\r\n\r\n",
    "header lines of nothing but LF": filled(OK, b"a\n") + b"\n",
    "different headers": OK + numbered("{}:\r\n") + b"\r\n",
    "different lengths": OK + numbered("Content-Length:{}\r\n") + b"\r\n",
    "different waits": b"HTTP/1.1 503 Busy\r\n" + numbered("Retry-After:{}\r\n") + b"\r\n",
    "a long reason": b"HTTP/1.1 500 " + filled(b"", b"\xe9") + b"\r\n\r\n",
    "100 Continue": filled(b"", b"HTTP/1.1 100\n\n"),
    "chunks of one byte": CHUNKED + filled(b"", b"1\r\n \r\n") + b"0\r\n\r\n",
    "trailers": CHUNKED + b"0\r\n" + filled(b"", b"a\n") + b"\r\n",
    "one line without an end": b"x" * ANSWER_MAX,
}
EMOJI = "\U0001f600".encode()
GOAL_STATE = b"<GoalState><Incarnation>1</Incarnation><Container><ContainerId>c</ContainerId>"
ROLE = b"<RoleInstanceList><RoleInstance><InstanceId>%s</InstanceId></RoleInstance>"
END = b"</RoleInstanceList></Container></GoalState>"
PARTS = range(2400)  # nearly as many as a goal state may have
GOAL_STATES: Dict[str, bytes] = {
    "too many elements": numbered("<a{}/>"),
    "different elements": b"".join(b"<a%044d/>" % n for n in PARTS),
    "different attributes": b"<a " + b"".join(b"a%044d='' " % n for n in PARTS) + b"/>",
    "few elements, with long names": b"".join(b"<%s/>" % (b"%05d" % n * 99) for n in range(500)),
    "a name of colons": filled(b"<a>b" * 2400 + b"<", "\u0101:".encode(), b"\xc4\x81>"),
    "depth": filled(b"<a>" * 1200, b" ", b"</a>" * 1200),
    "depth with text": b"<a>b" * 1200 + b"</a>" * 1200,
    "depth with different elements and text": b"".join(b"<a%040d>b" % n for n in PARTS),
    "text in pieces": b"abcde<!---->" * 2400,
    "text in sections": b"<![CDATA[%s]]>" % (b"b" * 90) * 2400,
    "text in lines": filled(b"", b"a\r\n"),
    "text in references": filled(b"", b"&#65536;"),
    "a value to be escaped": ROLE % filled(b"<![CDATA[", b"<", b"]]>"),
    "a value of ampersands": ROLE % filled(b"", b"&amp;"),
    "a value to be escaped that is wide": ROLE % (EMOJI + filled(b"<![CDATA[", b"<", b"]]>")),
    "a value of emoji": ROLE % filled(b"", EMOJI),
}
NAMES: Dict[str, bytes] = {
    "letters": filled(b"", b"x"),
    "emoji": filled(b"", EMOJI),
    "an emoji and letters": filled(EMOJI, b"x"),
    "no UTF-8": filled(b"", b"\xff"),
    "lines": filled(b"", b"x\n"),
    "spaces": filled(b"x", b" ", b"x"),
}


def with_length(body: bytes) -> bytes:
    return OK + b"Content-Length: %d\r\n\r\n" % len(body) + body


ATTACKS = {
    "goalstate": [
        *HEADS.values(),
        *(with_length(GOAL_STATE + part + END) for part in GOAL_STATES.values()),
    ],
    "health": list(HEADS.values()),
    "computer-name": [*HEADS.values(), *map(with_length, NAMES.values())],
}


@pytest.fixture
def host(vm: Vm) -> Iterator[SimulatedHost]:
    with SimulatedHost(vm, imds_rate=10**6) as host:
        yield host


def withstands(host: SimulatedHost, run: Run, endpoint: str, data: bytes) -> None:
    host.misbehave(endpoint, raw_fault(data))
    assert run(f"--timeout={ATTEMPTS}", env={"PAUSES": "no"}).status in (0, 1, 3)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("endpoint", ATTACKS)
def test_a_head_takes_little_memory_however_often(
    host: SimulatedHost, run: Run, endpoint: str, name: str
) -> None:
    withstands(host, run, endpoint, HEADS[name])


@pytest.mark.parametrize("name", GOAL_STATES)
def test_a_goal_state_takes_little_memory_however_often(
    host: SimulatedHost, run: Run, name: str
) -> None:
    withstands(host, run, "goalstate", with_length(GOAL_STATE + GOAL_STATES[name] + END))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_takes_little_memory_however_often(host: SimulatedHost, run: Run, name: str) -> None:
    withstands(host, run, "computer-name", with_length(NAMES[name]))


@pytest.mark.parametrize("endpoint", ATTACKS)
def test_all_of_them_in_turn_take_little_memory_on_every_python(
    host: SimulatedHost, run: Run, endpoint: str, python: str
) -> None:
    """As much as is kept of one attempt would add up: Python 3.12 and newer once did."""
    for data in ATTACKS[endpoint]:
        host.misbehave(endpoint, raw_fault(data), times=2)
    result = run("--timeout=100", python=python, env={"PAUSES": "no"})
    assert result.status == 0


def test_new_values_at_every_attempt_take_little_memory(host: SimulatedHost, run: Run) -> None:
    number = iter(range(10**6))

    def another(handler: Any) -> None:
        host.vm = host.vm._replace(container_id=f"{next(number)}" * 100)
        raw_fault(b"HTTP/1.1 410 Gone %d\r\n\r\n" % next(number))(handler)

    host.misbehave("health", another)
    assert run("--timeout=1000", env={"PAUSES": "no"}).status == 1


@pytest.mark.parametrize("kind", ["prints and goes on", "prints and ends"])
def test_a_program_that_prints_without_end_takes_little_memory(
    run: Run, machine: Machine, kind: str
) -> None:
    """And ends: what nobody reads any more has it die of a broken pipe."""
    child = "while :; do echo y; done"
    end = "" if kind == "prints and goes on" else "echo $! >${0%/bin/*}/child"
    machine.install_hostnamectl(f"#!/bin/sh\n{child} {'&' if end else ''}\n{end}\n")
    result = run("--timeout=2")
    assert (result.status, machine.names) == (0, ["web000011", "web000011"])
    if end:
        child_id = int((machine.directory / "child").read_text())
        wait_until(lambda: not Path(f"/proc/{child_id}").exists())
