"""What can go wrong with an answer: tables of faults and of oddities that are none.

FAULTS are those of any HTTP server, at all four endpoints; VARIANTS and OPEN_ENDED are the right
answer, told in another way; the goal states and names are what documents and texts may be like.
"""

import time
from typing import Any, Dict

from azure_provisioning import ANSWER_MAX
from world.host import (
    CHUNKED,
    Fault,
    body_fault,
    changed_body,
    framed,
    make_fault,
    raw_fault,
)
from world.host import FAULTS as NAMED_FAULTS

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


def in_two_parts(handler: Any) -> None:
    """The right answer to the end of the connection, which comes a while after the first part."""
    data = b"HTTP/1.1 200 OK\r\n\r\n" + handler.answer().body
    handler.send_raw(data[:-5])
    time.sleep(0.2)
    handler.send_raw(data[-5:])


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
    "nested": swap(CONTAINER, "<a>" * 1000 + "</a>" * 1000 + CONTAINER),
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
