"""What can go wrong with an answer: tables of faults and of oddities that are none."""

import time
from typing import Any

from azure_provisioning import ANSWER_MAX
from world.host import CHUNKED, Fault, body_fault, changed_body, framed, make_fault, raw_fault
from world.host import FAULTS as NAMED

STEPS = {
    "goalstate": "Goal state",
    "health": "Health report",
    "computer-name": "Computer name",
    "name": "VM name",
}
SERVICES = dict(zip(STEPS, ["wireserver", "wireserver", "imds", "imds"]))


def head(*headers: str, status: str = "HTTP/1.1 200 OK") -> bytes:
    return "".join(f"{line}\r\n" for line in [status, *headers, ""]).encode("latin-1")


def length(number: int, *headers: str) -> bytes:
    return head(f"Content-Length: {number}", *headers)


def chunked(body: bytes) -> bytes:
    chunks = (body[start : start + 7] for start in range(0, len(body), 7))
    return CHUNKED + b"".join(b"%x;x=y\r\n%s\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"


# No clear answer with 2xx: a fault at every endpoint.
STATUSES = "300 301 302 400 401 403 404 408 409 410 429 500 502 503 504".split()
HEAD_FAULTS: dict[str, Fault] = {
    **{status: make_fault(status) for status in STATUSES},
    "302-location": make_fault("302,Location=/machine?comp=goalstate"),  # the right answer is there
    **{name: NAMED[name] for name in ("reset", "close", "silent", "slow-headers", "not-http")},
    **{name: NAMED[name] for name in ("endless-headers", "endless-line")},
    "status-none": raw_fault(b"\r\n\r\n"),
    "status-half": raw_fault(b"HTTP/1.1 20"),
    "status-underscore": raw_fault(head(status="HTTP/1.1 2_00 OK")),
    "status-future-http": raw_fault(head(status="HTTP/9.9 200 OK")),
    "status-199": raw_fault(head(status="HTTP/1.1 199 Almost")),
    "status-too-long": raw_fault(head(status="HTTP/1.1 200 " + "O" * ANSWER_MAX)),
    "headers-half": raw_fault(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "only-continue": raw_fault(b"HTTP/1.1 100 Continue\r\n\r\n"),
}
# A clear 2xx, which is all that counts of an answer to a report; else a fault.
BODY_FAULTS: dict[str, Fault] = {
    **{name: NAMED[name] for name in ("slow-body", "truncated", "truncated-chunk", "bad-chunk")},
    **{name: NAMED[name] for name in ("endless-chunks", "huge")},
    "body-empty": raw_fault(length(0)),
    "body-missing": raw_fault(head()),
    "body-only-a-mark": body_fault(b"\xef\xbb\xbf"),
    "body-html": body_fault(b"<html><body>Sign in</body></html>", "text/html"),
    "body-binary": body_fault(bytes(range(256)) * 40),
    "body-over-256-kib": body_fault(b"x" * (ANSWER_MAX + 1)),
    "body-shorter-than-said": framed(lambda body: length(len(body) + 1) + body),
    "length-and-another": framed(lambda body: length(len(body), "Content-Length: 7") + body),
    "length-and-chunked": framed(lambda body: length(5, "Transfer-Encoding: chunked") + body),
    "length-underscore": framed(lambda body: head("Content-Length: 1_0") + body[:10]),
    "length-negative": framed(lambda body: head("Content-Length: -5") + body),
    "coding-gzip": framed(lambda body: head("Transfer-Encoding: gzip, chunked") + body),
}
FAULTS = {**HEAD_FAULTS, **BODY_FAULTS}


def stays_open(handler: Any) -> None:
    """The right answer, and then the host keeps the connection open, as IMDS does."""
    handler.send(handler.answer())
    handler.host.stopping.wait()


def in_two_parts(handler: Any) -> None:
    """The right answer to the end of the connection, which comes a while after the first part."""
    data = head() + handler.answer().body
    handler.send_raw(data[:-5])
    time.sleep(0.1)
    handler.send_raw(data[-5:])


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# The right answer, told in another way.
VARIANTS: dict[str, Fault] = {
    "chunked": framed(chunked),
    "chunked-with-trailers": framed(lambda body: chunked(body)[:-2] + b"X-Trailer: x\r\n\r\n"),
    "http-1.0": framed(lambda body: length(len(body)).replace(b"1.1", b"1.0") + body),
    "without-reason": framed(lambda body: length(len(body)).replace(b" OK", b"") + body),
    "keep-alive": framed(lambda body: length(len(body), "Connection: keep-alive") + body),
    "stays-open": stays_open,
    "continue-first": framed(lambda body: CONTINUE + length(len(body)) + body),
    "status-203": framed(lambda body: length(len(body)).replace(b"200", b"203") + body),
    "the-same-length-twice": framed(
        lambda body: length(len(body), f"content-length:{len(body)}") + body
    ),
    "body-longer-than-said": framed(lambda body: length(len(body)) + body + b"more"),
    "many-headers": framed(lambda body: length(len(body), *["X-Header: x"] * 1000) + body),
    "with-a-mark": changed_body(lambda body: b"\xef\xbb\xbf" + body.lstrip(b"\xef\xbb\xbf")),
    "with-white-space-around": changed_body(lambda body: body + b"\r\n \t\r\n"),
}
# The same, but nobody can tell whether that was all of it: good enough where XML has to be closed,
# not for a name.
OPEN_ENDED: dict[str, Fault] = {
    "http-1.0-open": framed(lambda body: b"HTTP/1.0 200 OK\r\n\r\n" + body),
    "without-length": framed(lambda body: head() + body),
    "in-two-parts": in_two_parts,
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


# ---- What the documents say


def swap(old: str, new: str) -> Fault:
    """The right answer with one text for another."""
    return changed_body(lambda body: body.replace(old.encode(), new.encode()))


ID = "00000000-1111-2222-3333-444444444444"
BAD_GOAL_STATES = {
    "not-closed": swap("</GoalState>", ""),
    "control-character": swap(ID, "\1"),
    "no-instance": swap("RoleInstance>", "Other>"),
    "another-root": swap("GoalState", "GoalStat"),
    "json": body_fault(b'{"GoalState": {"Incarnation": 1}}'),
}
GOOD_GOAL_STATES = {
    "comments": swap(ID, f"<!-- a -->{ID[:9]}<!-- b -->{ID[9:]}"),
    "attributes": swap("<ContainerId>", "<ContainerId a='b' c=\"d\">"),
    "default-namespace": swap("<GoalState ", "<GoalState xmlns='http://example.org/' "),
    "repeated-value": swap("</ContainerId>", "</ContainerId><ContainerId>x</ContainerId>"),
    "another-encoding-announced": swap('encoding="utf-8"', 'encoding="utf-16"'),
}
# What IMDS may say instead of a name.
BAD_NAMES = {
    "html": "<html><body>Sign in</body></html>",
    "json-string": '"web000011"',
    "a-line-of-text": "Service Unavailable",
    "two-lines": "web000011\r\nweb000011",
    "no-letter": "...",
}
GOOD_NAMES = {
    "white-space": ("\r\n\t web000011 \r\n", "web000011"),
    "dots": ("head01.test.local", "head01.test.local"),
    "other-characters": ("na\u00efve_web(11);$(reboot)`x`", "na-ve-web-11-reboot-x"),
    "an-option": ("--help", "help"),
}
