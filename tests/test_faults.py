"""Every fault at every step, one table; and the same invariants whatever the fault.

FAULTS are those of any HTTP server, at all four endpoints; GOAL_STATES and COMPUTE_DOCUMENTS what
the two documents may be like. What is wrong with the machine is in test_host_name.py and
test_real_system.py.
"""

import re
from typing import Any, Dict, List, Protocol

import pytest

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

HOST_NAME = re.compile("[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
ENDPOINTS = ["goalstate", "health", "compute", "name"]
SERVICES = dict(zip(ENDPOINTS, ["wireserver", "wireserver", "imds", "imds"]))
STEPS = dict(zip(ENDPOINTS, ["Goal state", "Health report", "Compute document", "Plain name"]))
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
    "status-four-digits": response(status_line="HTTP/1.1 2000 OK"),
    "status-negative": response(status_line="HTTP/1.1 -200 OK"),
    "status-future-http": response(status_line="HTTP/9.9 200 OK"),
    "status-199": response(status_line="HTTP/1.1 199 Almost"),
    "status-nul": raw_fault(b"\0" * 1000),
    "status-long": response(status_line="HTTP/1.1 200 " + "O" * 100_000),
    # Headers.
    "headers-many": response("|".join(["X-Header: x"] * 1000)),
    "headers-half": raw_fault(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "headers-none-of-http": raw_fault(b"HTTP/1.1 200 OK\r\n" + b"\xff\0\xfe" * 50_000),
    # Bodies.
    "body-empty": response("Content-Length: 0"),
    "body-missing": raw_fault(b"HTTP/1.1 200 OK\r\n\r\n"),
    "body-html": body_fault(b"<html><body>Sign in</body></html>", "text/html"),
    "body-html-utf16": body_fault("<html/>".encode("utf-16"), "text/html; charset=utf-16"),
    "body-binary": body_fault(bytes(range(256)) * 40),
    "body-nul": body_fault(b"\0" * MIB),
    "body-only-a-mark": body_fault(b"\xef\xbb\xbf"),
    "body-gzip": response(
        "Content-Encoding: gzip|Content-Length: 20", b"\x1f\x8b\x08" + b"\0" * 17
    ),
    "body-over-1-mib": body_fault(b"x" * (MIB + 1)),
    "body-shorter-than-said": framed(lambda body: length(len(body) + 1) + body),
    "body-longer-than-said": framed(lambda body: length(len(body) // 2) + body),
    "chunk-huge": raw_fault(CHUNKED + b"ffffffffffffffff\r\nx"),
    "chunk-none": raw_fault(CHUNKED),
}


def length(number: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % number


def chunked(body: bytes) -> bytes:
    chunks = (body[start : start + 7] for start in range(0, len(body), 7))
    return CHUNKED + b"".join(b"%x;x=y\r\n%s\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"


# The right answer, told in another way.
VARIANTS: Dict[str, Fault] = {
    "chunked": framed(chunked),
    "chunked-with-trailers": framed(lambda body: chunked(body)[:-2] + b"X-Trailer: x\r\n\r\n"),
    "http-1.0": framed(lambda body: b"HTTP/1.0 200 OK\r\n\r\n" + body),
    "without-length": framed(lambda body: b"HTTP/1.1 200 OK\r\n\r\n" + body),
    "without-reason": framed(lambda body: b"HTTP/1.1 200\r\n\r\n" + body),
    "keep-alive": framed(
        lambda body: length(len(body))[:-2] + b"Connection: keep-alive\r\n\r\n" + body
    ),
    "continue-first": framed(
        lambda body: b"HTTP/1.1 100 Continue\r\n\r\n" + length(len(body)) + body
    ),
    "status-203": framed(lambda body: b"HTTP/1.1 203 Changed\r\n\r\n" + body),
    "another-charset": changed_body(lambda body: body, "text/plain; charset=utf-16"),
    "unknown-charset": changed_body(lambda body: body, "x/y; charset=none-such"),
    "with-a-mark": changed_body(lambda body: b"\xef\xbb\xbf" + body.lstrip(b"\xef\xbb\xbf")),
    "with-white-space-around": changed_body(lambda body: body + b"\r\n \t\r\n"),
}


# Any text is a name, as long as one letter or digit is in it.
ANY_TEXT = ["body-html", "body-html-utf16", "body-binary", "body-longer-than-said"]
NO_TEXT = [
    "headers-half",
    "body-empty",
    "body-missing",
    "body-nul",
    "body-only-a-mark",
    "body-gzip",
]


def accepted_then(fault: Fault) -> Fault:
    """The platform accepts the report, if it is right, and then there is *fault*."""

    def accept(handler: Any) -> None:
        answer = handler.answer()
        if answer.status == 200:
            fault(handler)
        else:
            handler.send(answer)

    return accept


def outcome(endpoint: str, fault: str) -> str:
    """What is right: "fails", "passes" (it is no fault there), or "asks" for the plain name."""
    if endpoint == "health":
        # The status alone is the acceptance: whatever follows it may be wrong.
        after = "slow-body truncated truncated-chunk bad-chunk negative-chunk endless-chunks"
        after += " endless-trailers huge chunk-huge chunk-none headers-half"
        is_after = fault in after.split() or fault.startswith("body-")
        return "passes" if is_after else "fails"
    if endpoint == "compute" and fault in ("400", "404"):
        return "asks"
    if endpoint == "name" and fault in ANY_TEXT:
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
    again = run("--timeout=5")
    check(again, host, machine, 5)
    assert again.status == 0


CELLS = [(endpoint, fault) for endpoint in ENDPOINTS for fault in FAULTS]


def cells(expected: str) -> List[object]:
    return [pytest.param(*cell, id="-".join(cell)) for cell in CELLS if outcome(*cell) == expected]


@pytest.mark.parametrize("endpoint, fault", cells("fails"))
def test_a_fault_that_lasts_loses_nothing(
    host_for: HostFor, machine: Machine, run: Run, endpoint: str, fault: str
) -> None:
    host = host_for(endpoint)
    host.misbehave(endpoint, FAULTS[fault])
    step = "Host name" if endpoint == "name" and fault in NO_TEXT else ""
    fail_then_recover(host, machine, run, endpoint, step)


@pytest.mark.parametrize("endpoint, fault", [*cells("passes"), *cells("asks")])
def test_what_is_no_fault_at_a_step_is_none(
    host_for: HostFor, machine: Machine, run: Run, endpoint: str, fault: str
) -> None:
    host = host_for(endpoint)
    wrong = FAULTS[fault]
    host.misbehave(endpoint, accepted_then(wrong) if endpoint == "health" else wrong)
    result = run("--timeout=5")
    check(result, host, machine, 5)
    assert result.status == 0
    assert result.err == []


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("fault", ["reset", "close", "silent", "slow-headers", "500", "not-http"])
def test_a_fault_before_the_request_is_read_loses_nothing(
    host_for: HostFor, machine: Machine, run: Run, endpoint: str, fault: str
) -> None:
    host = host_for(endpoint)
    service = SERVICES[endpoint]
    if endpoint in ("health", "name"):  # the second request to its service
        count = iter(range(100))
        wrong = make_fault(fault)

        def every_other(handler: Any) -> None:
            if next(count) % 2:
                wrong(handler)
            else:
                super(type(handler), handler).handle()

        host.misbehave(f"{service}-accept", every_other)
    else:
        host.misbehave(f"{service}-accept", fault)
    fail_then_recover(host, machine, run, endpoint)


@pytest.mark.parametrize("service, endpoint", [("wireserver", "goalstate"), ("imds", "compute")])
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
    result = run("--timeout=5")
    check(result, host, machine, 5)
    assert (result.status, result.err) == (0, [])
    assert machine.names[0] == ("web-11" if endpoint == "name" else "web000011")


@pytest.mark.parametrize(("headers", "fits"), [(60_000, True), (70_000, False)])
def test_a_body_of_1_mib_may_be_wrapped_in_64_kib(
    host: SimulatedHost, run: Run, headers: int, fits: bool
) -> None:
    document = b'{"name": "web000011"}'.ljust(MIB)
    lines = "|".join(["X-Header: " + "x" * (headers // 10)] * 10)
    host.misbehave("compute", response(f"Content-Length: {MIB}|{lines}", document))
    result = run("--timeout=0.3")
    assert result.status == (0 if fits else 3)
    assert fits or "longer than 1 MiB" in result.err[-1]


# ---- What the documents say

NEST = 100_000
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
        "<State>", "<State {}>".format(" ".join(f"a{n}=''" for n in range(90000)))
    ),
    "many-elements": swap("<State>", "<State>" + "<a/>" * 200_000 + "<State>"),
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
BAD_COMPUTE_DOCUMENTS = {
    "null": "null",
    "a-number": "7",
    "a-string": '"web"',
    "a-list": '[{"name": "web"}]',
    "nothing-in-it": "{}",
    "profile-a-list": '{"osProfile": [], "name": "web"}',
    "profile-a-string": '{"osProfile": "computerName", "name": "web"}',
    "profile-a-number": '{"osProfile": 1, "name": "web"}',
    "computer-name-a-number": '{"osProfile": {"computerName": 7}, "name": "web"}',
    "computer-name-a-list": '{"osProfile": {"computerName": ["web"]}}',
    "computer-name-true": '{"osProfile": {"computerName": true}}',
    "name-a-number": '{"name": 1e400}',
    "name-nan": '{"name": NaN}',
    "name-an-object": '{"osProfile": null, "name": {}}',
    "names-empty": '{"osProfile": {"computerName": ""}, "name": " "}',
    "name-without-a-letter": '{"name": "..."}',
    "name-of-lone-surrogates": r'{"name": "\ud800\udc00\ud800"}',
    "deep-lists": "[" * NEST,
    "deep-objects": '{"a":' * NEST,
    "deep-in-name": '{"name": ' + "[" * NEST + "]" * NEST + "}",
    "tiny-objects": "[" + "{}," * (MIB // 3 - 10) + "{}]",
    "tiny-lists": "[" + "[]," * (MIB // 3 - 10) + "[]]",
    "many-numbers": "[" + "1," * (MIB // 2 - 10) + "1]",
    "many-members": "{" + ",".join(f'"{n}":1' for n in range(100_000)) + "}",
    "a-name-of-1-mib": '{"name": "' + "." * (MIB - 30) + '"}',
    "not-closed": '{"name": "web"',
    "two-documents": '{"name": "web"}{"name": "web"}',
    "single-quotes": "{'name': 'web'}",
    "xml": "<Health/>",
}
GOOD_COMPUTE_DOCUMENTS = {
    "duplicate-members": '{"name": 7, "name": "web000011"}',
    "huge-numbers": '{"a": 1e999, "b": ' + "9" * 100_000 + ', "name": "web000011"}',
    "nan": '{"a": [NaN, Infinity, -Infinity], "name": "web000011"}',
    "lone-surrogates": r'{"a\ud800": "\udfff", "name": "\ud800web000011\udc00"}',
    "escapes": r'{"osProfile": {"computer\u004eame": "\u0077eb000011"}}',
    "profile-null": '{"osProfile": null, "name": "web000011"}',
    "computer-name-null": '{"osProfile": {"computerName": null}, "name": "web000011"}',
    "white-space": '\r\n\t {"name" : "\\tweb000011\\n"} \n',
    "others-wrong": '{"tags": 7, "osProfile": {"computerName": "web000011", "a": []}, "name": 7}',
    "long-user-data": '{"userData": "' + "QUJD" * 22_000 + '", "name": "web000011"}',
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


@pytest.mark.parametrize("document", BAD_COMPUTE_DOCUMENTS)
def test_a_compute_document_that_is_none_loses_nothing(
    host: SimulatedHost, machine: Machine, run: Run, document: str
) -> None:
    host.misbehave("compute", body_fault(BAD_COMPUTE_DOCUMENTS[document].encode()))
    step = "Host name" if document in NO_LABEL else ""
    fail_then_recover(host, machine, run, "compute", step)
    assert machine.names == ["web000011", "web000011"]


# These are documents with a name; only no host name can be made of it.
NO_LABEL = ["name-without-a-letter", "name-of-lone-surrogates", "a-name-of-1-mib"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("document", GOOD_COMPUTE_DOCUMENTS)
def test_a_compute_document_is_understood_however_it_is_written(
    host: SimulatedHost, machine: Machine, run: Run, document: str, encoding: str
) -> None:
    host.misbehave("compute", body_fault(GOOD_COMPUTE_DOCUMENTS[document].encode(encoding)))
    result = run("--timeout=5")
    check(result, host, machine, 5)
    assert (result.status, result.err) == (0, [])
    assert machine.names == ["web000011", "web000011"]


# ---- A cross-section on every Python

CROSS_SECTION = [
    ("goalstate", "entity-bomb", BAD_GOAL_STATES["entity-bomb"]),
    ("goalstate", "many-attributes", BAD_GOAL_STATES["many-attributes"]),
    ("goalstate", "slow-headers", FAULTS["slow-headers"]),
    ("goalstate", "negative-chunk", FAULTS["negative-chunk"]),
    ("health", "503", FAULTS["503"]),
    ("health", "status-long", FAULTS["status-long"]),
    ("compute", "deep-lists", body_fault(BAD_COMPUTE_DOCUMENTS["deep-lists"].encode())),
    ("compute", "tiny-objects", body_fault(BAD_COMPUTE_DOCUMENTS["tiny-objects"].encode())),
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
