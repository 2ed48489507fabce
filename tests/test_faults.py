"""Every fault at every step, one table; and the same invariants whatever the fault.

FAULTS are those of any HTTP server, at all four endpoints; GOAL_STATES and NAMES what the document
and the texts may be like. What is wrong with the machine is in test_host_name.py and
test_real_system.py.
"""

import re
import time
from typing import Any, Dict, List, Protocol

import pytest

import azure_provisioning
from azure_provisioning import ANSWER_MAX
from conftest import SLACK, HostFor, Machine, Run
from simulated_host import (
    CHUNKED,
    Fault,
    SimulatedHost,
    body_fault,
    changed_body,
    framed,
    make_fault,
    raw_fault,
)
from simulated_host import FAULTS as NAMED_FAULTS

LABEL = "[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
HOST_NAME = re.compile(rf"(?=.{{1,64}}\Z){LABEL}(\.{LABEL})*")
ENDPOINTS = ["goalstate", "health", "computer-name", "name"]
SERVICES = dict(zip(ENDPOINTS, ["wireserver", "wireserver", "imds", "imds"]))
STEPS = dict(zip(ENDPOINTS, ["Goal state", "Health report", "Computer name", "VM name"]))
MIB = 1 << 20


def response(headers: str = "", body: bytes = b"", status_line: str = "HTTP/1.1 200 OK") -> Fault:
    """An answer with a status line, headers and a body that may not belong together."""
    head = "".join(f"{line}\r\n" for line in [status_line, *headers.split("|"), ""] if line)
    return raw_fault(head.encode("latin-1") + b"\r\n" + body)


def retry_after(status: int, value: str) -> Fault:
    return response(f"Retry-After: {value}|Content-Length: 0", b"", f"HTTP/1.1 {status} Wait")


STATUSES = "300 301 302 400 401 403 404 408 409 410 429 500 502 503 504".split()
FAULTS: Dict[str, Fault] = {
    **{status: make_fault(status) for status in STATUSES},
    # With a redirect to where the right answer is.
    "302-location": make_fault("302,Location=/machine?comp=goalstate"),
    # A Retry-After that is present, absurd, or not in whole seconds.
    "503-retry-1": retry_after(503, "1"),
    "503-retry-absurd": retry_after(503, "9" * 500),
    "503-retry-negative": retry_after(503, "-5"),
    "503-retry-fraction": retry_after(503, "1.5"),
    "503-retry-date": retry_after(503, "Wed, 21 Oct 2026 07:28:00 GMT"),
    "429-retry-empty": retry_after(429, ""),
    # Reset, closed, silent, slow, endless, truncated, badly chunked, 64 MiB.
    **{name: fault for name, fault in NAMED_FAULTS.items() if name != "stale"},
    # Status lines.
    "status-none": raw_fault(b"\r\n\r\n"),
    "status-only-a-version": raw_fault(b"HTTP/1.1\r\n\r\n"),
    "status-half": raw_fault(b"HTTP/1.1 20"),
    "status-a-word": response(status_line="HTTP/1.1 abc OK"),
    "status-two-digits": response(status_line="HTTP/1.1 20 OK"),
    "status-underscore": response(status_line="HTTP/1.1 2_00 OK"),
    "status-plus": response(status_line="HTTP/1.1 +200 OK"),
    "status-two-spaces": response(status_line="HTTP/1.1  200 OK"),
    "status-other-digits": response(status_line="HTTP/1.1 \xb2\xb0\xb0 OK"),
    "status-four-digits": response(status_line="HTTP/1.1 2000 OK"),
    "status-negative": response(status_line="HTTP/1.1 -200 OK"),
    "status-future-http": response(status_line="HTTP/9.9 200 OK"),
    "status-199": response(status_line="HTTP/1.1 199 Almost"),
    "status-nul": raw_fault(b"\0" * 1000),
    "status-long": response(status_line="HTTP/1.1 200 " + "O" * 100_000),
    "status-too-long": response(status_line="HTTP/1.1 200 " + "O" * ANSWER_MAX),
    # Headers.
    "headers-many": response("|".join(["X-Header: x"] * 1000)),
    "headers-half": raw_fault(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "headers-full-of-cr": response("|".join([":\r" * 5000] * 16)),
    "headers-tiny": raw_fault(b"HTTP/1.1 200 OK\r\n" + b":\r\n" * (ANSWER_MAX // 3)),
    "headers-none-of-http": raw_fault(b"HTTP/1.1 200 OK\r\n" + b"\xff\0\xfe" * 50_000),
    # Bodies.
    "body-empty": response("Content-Length: 0"),
    "body-missing": raw_fault(b"HTTP/1.1 200 OK\r\n\r\n"),
    "body-html": body_fault(b"<html><body>Sign in</body></html>", "text/html"),
    "body-html-utf16": body_fault("<html/>".encode("utf-16"), "text/html; charset=utf-16"),
    "body-binary": body_fault(bytes(range(256)) * 40),
    "body-nul": body_fault(b"\0" * (ANSWER_MAX // 2)),
    "body-only-a-mark": body_fault(b"\xef\xbb\xbf"),
    "body-gzip": response(
        "Content-Encoding: gzip|Content-Length: 20", b"\x1f\x8b\x08" + b"\0" * 17
    ),
    "body-over-256-kib": body_fault(b"x" * (ANSWER_MAX + 1)),
    "body-of-1-mib": body_fault(b"x" * MIB),
    "body-shorter-than-said": framed(lambda body: length(len(body) + 1) + body),
    "body-longer-than-said": framed(lambda body: length(len(body) // 2) + body),
    # What is ambiguous.
    "length-and-another": framed(lambda body: length(len(body), f"Content-Length: {MIB}") + body),
    "length-and-chunked": framed(lambda body: length(5, "Transfer-Encoding: chunked") + body),
    "length-underscore": framed(lambda body: head("Content-Length: 1_0") + body[:10]),
    "length-plus": framed(lambda body: head(f"Content-Length: +{len(body)}") + body),
    "length-negative": framed(lambda body: head("Content-Length: -5") + body),
    "length-none": framed(lambda body: head("Content-Length: ") + body),
    "length-absurd": framed(lambda body: head("Content-Length: " + "9" * 5000) + body),
    "coding-gzip": framed(lambda body: head("Transfer-Encoding: gzip, chunked") + body),
    "header-malformed": framed(lambda body: length(len(body), "no colon") + body),
    "header-folded": framed(lambda body: length(len(body), "X-Header: x\r\n more") + body),
    "chunk-huge": raw_fault(CHUNKED + b"ffffffffffffffff\r\nx"),
    "chunk-none": raw_fault(CHUNKED),
}


def head(*headers: str) -> bytes:
    return "".join(f"{line}\r\n" for line in ["HTTP/1.1 200 OK", *headers, ""]).encode()


def length(number: int, *headers: str) -> bytes:
    return head(f"Content-Length: {number}", *headers)


def chunked(body: bytes) -> bytes:
    chunks = (body[start : start + 7] for start in range(0, len(body), 7))
    return CHUNKED + b"".join(b"%x;x=y\r\n%s\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"


def stays_open(handler: Any) -> None:
    """The right answer, and then the host keeps the connection open, as IMDS does."""
    handler.send(handler.answer())
    handler.host.stopping.wait()


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# The right answer, told in another way.
VARIANTS: Dict[str, Fault] = {
    "chunked": framed(chunked),
    "chunked-with-trailers": framed(lambda body: chunked(body)[:-2] + b"X-Trailer: x\r\n\r\n"),
    "chunked-after-continue": framed(lambda body: CONTINUE + chunked(body)),
    "http-1.0": framed(lambda body: length(len(body)).replace(b"1.1", b"1.0") + body),
    "without-reason": framed(lambda body: length(len(body)).replace(b" OK", b"") + body),
    "keep-alive": framed(lambda body: length(len(body), "Connection: keep-alive") + body),
    "stays-open": stays_open,
    "continue-first": framed(lambda body: CONTINUE + length(len(body)) + body),
    "continue-often": framed(lambda body: CONTINUE * 9000 + length(len(body)) + body),
    "status-203": framed(lambda body: length(len(body)).replace(b"200", b"203") + body),
    "the-same-length-twice": framed(
        lambda body: length(len(body), f"content-length:{len(body)}") + body
    ),
    "only-lf": framed(lambda body: length(len(body)).replace(b"\r", b"") + body),
    "many-headers": framed(lambda body: length(len(body), *["X-Header: x"] * 1000) + body),
    "another-charset": changed_body(lambda body: body, "text/plain; charset=utf-16"),
    "unknown-charset": changed_body(lambda body: body, "x/y; charset=none-such"),
    "with-a-mark": changed_body(lambda body: b"\xef\xbb\xbf" + body.lstrip(b"\xef\xbb\xbf")),
    "with-white-space-around": changed_body(lambda body: body + b"\r\n \t\r\n"),
}
# The same, but nobody can tell whether that was all of it: good enough where XML has to be closed,
# not for a name.
OPEN_ENDED: Dict[str, Fault] = {
    "http-1.0-open": framed(lambda body: b"HTTP/1.0 200 OK\r\n\r\n" + body),
    "without-length": framed(lambda body: b"HTTP/1.1 200 OK\r\n\r\n" + body),
    "status-203-open": framed(lambda body: b"HTTP/1.1 203 Changed\r\n\r\n" + body),
}


def accepted_then(fault: Fault) -> Fault:
    """The platform accepts the report, if it is right, and then there is *fault*."""

    def accept(handler: Any) -> None:
        answer = handler.answer()
        if answer.status == 200:
            fault(handler)
        else:
            handler.send(answer)

    return accept


# To a report the status is the whole answer, once its head is there: the rest may be wrong.
NO_2XX_HEAD = [*STATUSES, "302-location", "503-retry", "429-retry", "status-", "headers-", "reset"]
NO_2XX_HEAD += ["close", "silent", "slow-headers", "endless-100", "endless-headers"]
NO_2XX_HEAD += ["endless-line", "not-http"]
WHOLE_HEAD = ["status-long", "headers-many", "headers-full-of-cr"]
NOTHING = ["400", "404", "body-empty", "body-only-a-mark"]  # the host says that there is no name


def outcome(endpoint: str, fault: str) -> str:
    """What is right: "fails", "passes" (it is no fault there), or "asks" for the VM's name."""
    if endpoint == "health":
        fails = fault.startswith(tuple(NO_2XX_HEAD)) and fault not in WHOLE_HEAD
        return "fails" if fails else "passes"
    if endpoint == "computer-name" and fault in NOTHING:
        return "asks"
    if endpoint in ("computer-name", "name") and fault == "body-longer-than-said":
        return "passes"
    return "fails"


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
    """What holds after every run, whatever went wrong. For memory and tracebacks see conftest."""
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
    # Two deadlines, and a second for the last attempt at each.
    assert result.seconds < 2 * timeout + 2 + SLACK
    assert {path.name for path in machine.etc.iterdir()} <= {"hostname"}
    for line in result.out + result.err:
        assert line.isascii(), "it is for a terminal"
        assert line.isprintable(), "it is for a terminal"
        assert len(line) < 500


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
    body = host.goal_state()
    head_size = len(length(len(body), "X-Header: "))
    padding = "x" * (ANSWER_MAX - head_size - len(body) + more)
    host.misbehave("goalstate", raw_fault(length(len(body), "X-Header: " + padding) + body))
    result = run("--timeout=0.3")
    assert result.status == (1 if more else 0)
    assert not more or "longer than 256 KiB" in result.err[-1]


# ---- What the documents say

NEST = 20_000
BOMB = "<!DOCTYPE x [<!ENTITY a 'ha'>{}]>".format(
    "".join(f"<!ENTITY {b} '{f'&{a};' * 10}'>" for a, b in zip("abcdefghi", "bcdefghij"))
)


def swap(old: str, new: str) -> Fault:
    """The right answer with one text for another."""
    return changed_body(lambda body: body.replace(old.encode(), new.encode()))


ID = "00000000-1111-2222-3333-444444444444"
CONTAINER, NO_CONTAINER = f"<ContainerId>{ID}</ContainerId>", "<ContainerId>x</ContainerId>"
INSTANCE = "<InstanceId>55555555-6666-7777-8888-999999999999._myvm</InstanceId>"
ROLE = "<RoleInstance>\r\n        <InstanceId>"
BAD_GOAL_STATES = {
    "entity-bomb": swap("<GoalState", f"{BOMB}<GoalState"),
    "entity-bomb-in-a-value": swap(ID, f"{BOMB}&j;"),
    "external-entity": swap("<GoalState", "<!DOCTYPE x SYSTEM 'file:///etc/hostname'><GoalState"),
    "unknown-entity": swap(ID, "&unknown;"),
    "deep": swap(CONTAINER, "<a>" * NEST + CONTAINER),
    "deep-and-closed": swap(CONTAINER, "<a>" * NEST + "</a>" * NEST + CONTAINER),
    "not-closed": swap("</GoalState>", ""),
    "many-attributes": swap(
        "<State>", "<State {}>".format(" ".join(f"a{n:x}=''" for n in range(25_000)))
    ),
    "many-elements": swap("<State>", "<State>" + "<a/>" * 50_000 + "</State><State>"),
    "many-names": swap("<State>", "".join(f"<a{n:x}/>" for n in range(30_000)) + "<State>"),
    "a-value-of-1-mib": swap(ID, "x" * MIB),
    "utf-16-announced": swap('encoding="utf-8"', 'encoding="utf-16"'),
    "unknown-encoding": swap('encoding="utf-8"', 'encoding="none-such"'),
    "control-character": swap(ID, "\1"),
    "no-incarnation": swap("<Incarnation>1</Incarnation>", ""),
    "empty-incarnation": swap("<Incarnation>1<", "<Incarnation><"),
    "no-container-id": swap(CONTAINER, ""),
    "no-instance": swap(INSTANCE, ""),
    "nested-value": swap(ID, f"<a>{ID}</a>"),
    "another-root": swap("GoalState", "GoalStat"),
    "json": body_fault(b'{"GoalState": {"Incarnation": 1}}'),
}
GOOD_GOAL_STATES = {
    "comments": swap(ID, f"<!-- a -->{ID[:9]}<!-- b -->{ID[9:]}"),
    "cdata": swap(ID, f"<![CDATA[{ID}]]>"),
    "white-space": swap(ID, f"\r\n\t {ID} \r\n"),
    "character-references": swap(ID, f"&#48;{ID[1:]}"),
    "processing-instruction": swap("<Container>", "<?a b?><Container>"),
    "nested": swap(CONTAINER, "<a>" * 2000 + "</a>" * 2000 + CONTAINER),
    "attributes": swap("<ContainerId>", "<ContainerId a='b' c=\"d\">"),
    "default-namespace": swap("<GoalState ", "<GoalState xmlns='http://example.org/' "),
    "repeated-value": swap(CONTAINER, CONTAINER + NO_CONTAINER),
    "repeated-instance": swap(
        "</RoleInstance>", "</RoleInstance><RoleInstance><InstanceId>x</InstanceId></RoleInstance>"
    ),
    "value-elsewhere-first": swap("<Machine>", "<Machine><ContainerId>x</ContainerId>"),
    "utf-16": changed_body(
        lambda body: body.decode("utf-8-sig").replace("utf-8", "utf-16").encode("utf-16")
    ),
}
# What IMDS may say instead of a name. A plain text can be anything.
BAD_NAMES = {
    "html": "<html><body>Sign in</body></html>",
    "json": '{"error": "Not found"}',
    "json-string": '"web000011"',
    "json-list": '["web000011"]',
    "xml": "<?xml version='1.0'?><Error/>",
    "two-lines": "web000011\nweb000011",
    "two-lines-crlf": "web000011\r\nweb000011",
    "two-lines-cr": "web000011\rweb000011",
    "two-lines-unicode": "web000011\u2028web000011",
    "256-characters": "x" * 256,
    "half-of-the-limit": "x" * (ANSWER_MAX // 2),
    "a-name-of-1-mib": "x" * MIB,
    # These are names; only no host name can be made of them.
    "no-letter": "...",
    "no-ascii": "\u4e2d\u6587",
    "control-characters": "\x1f\x8b\x08" + "\0" * 17,
}
NO_HOST_NAME = ["no-letter", "no-ascii", "control-characters"]
GOOD_NAMES = {
    "white-space": ("\r\n\t web000011 \r\n", "web000011"),
    "byte-order-mark": ("\ufeffweb000011", "web000011"),
    "dots": ("head01.test.local", "head01.test.local"),
    "64-characters": ("x" * 64, "x" * 64),
    "255-characters": ("x" * 255, "x" * 64),
    "other-characters": ("na\u00efve web_11;reboot", "na-ve-web-11-reboot"),
    "nul": ("web\x0011", "web-11"),
}


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
