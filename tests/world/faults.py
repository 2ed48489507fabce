"""What can go wrong with an answer, and what only looks like it, to be used at every step."""

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
HEAD_FAULTS: dict[str, Fault] = {
    **{one: make_fault(one) for one in "300 400 401 403 404 408 410 429 500 502 503".split()},
    "302-location": make_fault("302,Location=/machine?comp=goalstate"),  # the right answer is there
    **{name: NAMED[name] for name in ("reset", "close", "silent", "slow-headers", "not-http")},
    **{name: NAMED[name] for name in ("endless-headers", "endless-line")},
    "status-half": raw_fault(b"HTTP/1.1 20"),
    "only-continue": raw_fault(b"HTTP/1.1 100 Continue\r\n\r\n"),
}
# A clear 2xx, which is all that counts of an answer to a report; else a fault.
BODY_FAULTS: dict[str, Fault] = {
    **{name: NAMED[name] for name in ("slow-body", "truncated", "truncated-chunk", "bad-chunk")},
    "endless-chunks": NAMED["endless-chunks"],
    "body-empty": raw_fault(length(0)),
    "body-html": body_fault(b"<html><body>Sign in</body></html>", "text/html"),
    "body-over-256-kib": body_fault(b"x" * (ANSWER_MAX + 1)),
    "body-shorter-than-said": framed(lambda body: length(len(body) + 1) + body),
    "length-and-another": framed(lambda body: length(len(body), "Content-Length: 7") + body),
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
    "http-1.0": framed(lambda body: length(len(body)).replace(b"1.1", b"1.0") + body),
    "stays-open": stays_open,
    "continue-first": framed(lambda body: CONTINUE + length(len(body)) + body),
    "many-headers": framed(lambda body: length(len(body), *["X-Header: x"] * 1000) + body),
    "with-a-mark": changed_body(lambda body: b"\xef\xbb\xbf" + body.lstrip(b"\xef\xbb\xbf")),
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
