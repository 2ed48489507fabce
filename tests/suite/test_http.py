"""HTTP, from front to back: read_head, read_answer, read_chunks on streams; get, post on sockets.

What a well-behaved server sends, whole or cut short, http.client is the judge of.
"""

import contextlib
import http.client
import io
import re
import socket
import threading
import time
from random import Random
from typing import Union, cast

import pytest

import azure_provisioning
from azure_provisioning import ANSWER_MAX, Absent, get, post, read_answer, read_chunks, read_head
from world.clock import StoppedClock
from world.host import SimulatedHost, raw_fault
from world.machine import SLACK

CHUNKED = "Transfer-Encoding: chunked"
NAME = azure_provisioning.IMDS_LEAVES["VM name"]
CONTINUE = b"HTTP/1.1 100 Continue\r\nContent-Length: 7\r\n\r\n"


def answer(*headers: str, status: str = "200 OK", body: str = "") -> bytes:
    head = [f"HTTP/1.1 {status}", *headers, "", ""]
    return ("\r\n".join(head) + body).encode("latin-1")


# ---- The head


@pytest.mark.parametrize(
    "status", ["200 OK", "200", "200  All is well", "201 \xe9", "299 500 Error"]
)
def test_read_head_returns_a_status_of_2xx(status: str) -> None:
    data = CONTINUE * 2 + answer("No header", "Content-Length: +5", status=status, body="zz")
    assert read_head(io.BytesIO(data))[0] == status


@pytest.mark.parametrize("code", "000 101 199 300 301 304 400 401 404 410 429 500 503 999".split())
def test_read_head_refuses_any_other_status(code: str) -> None:
    kind = Absent if code in ("400", "404") else ValueError
    with pytest.raises(kind, match=f"^the answer is {code} Why$"):
        read_head(io.BytesIO(answer("Content-Length: +5", status=f"{code} Why")))


@pytest.mark.parametrize(
    "line",
    [
        *["", "200 OK", "HTTP/1.1", "HTTP/1.1 OK", "ICY 200 OK", " HTTP/1.1 200 OK"],
        *["HTTP/1.1 2_00 OK", "HTTP/1.1 +200 OK", "HTTP/1.1 -200 OK", "HTTP/1.1 \xb2\xb0\xb0 OK"],
        *["HTTP/1.1  200 OK", "HTTP/1.1\t200 OK", "HTTP/1.1 200\tOK", "HTTP/1.1\xa0200 OK"],
        *["HTTP/1.1 20 OK", "HTTP/1.1 2000 OK", "HTTP/1.1 200OK", "HTTP/1.1 200.0 OK"],
        *["HTTP/1 200 OK", "HTTP/1.12 200 OK", "HTTP/2.0 200 OK", "http/1.1 200 OK", "x" * 99],
    ],
)
def test_read_head_refuses_any_other_line_and_shows_80_bytes(line: str) -> None:
    shown = re.escape(f"no HTTP: {line[:80].encode('latin-1')!a}")
    for before in (b"", CONTINUE):
        with pytest.raises(ValueError, match=shown + "$"):
            read_head(io.BytesIO(before + line.encode("latin-1") + b"\r\nA: b\r\n\r\n"))


def test_read_head_refuses_a_head_that_is_cut_short() -> None:
    data = answer("Content-Length: 7")
    for end in range(len(data)):
        with pytest.raises(ValueError, match="^the answer is cut short: "):
            read_head(io.BytesIO(CONTINUE + data[:end]))


# ---- The body

# By what they show: an answer, its body, and whether the answer itself says where that ends.
READ = {
    "a length": (answer("Content-Length: 3", body="abc"), b"abc", True),
    "a length of 0": (answer("Content-Length: 0"), b"", True),
    "a length, and more": (answer("Content-Length: 3", body="abcde"), b"abc", True),
    "a length, spelled otherwise": (answer("cONTENT-lENGTH:\t 003 ", body="abc"), b"abc", True),
    "a length twice": (answer("Content-Length: 3", "content-length:3", body="abc"), b"abc", True),
    "chunks": (answer(CHUNKED, body="1\r\na\r\n0\r\n\r\n"), b"a", True),
    "chunks, spelled otherwise": (answer(CHUNKED.upper(), body="0\r\n\r\n"), b"", True),
    "the end of the connection": (answer("A: b", body="abc\r\n\r\n"), b"abc\r\n\r\n", False),
    "100 before it": (CONTINUE * 2 + answer("Content-Length: 1", body="a"), b"a", True),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na", b"a", True),
}


@pytest.mark.parametrize("data, body, is_whole", READ.values(), ids=READ.keys())
def test_read_answer_returns_the_body(data: bytes, body: bytes, is_whole: bool) -> None:
    assert read_answer(io.BytesIO(data)) == (body, is_whole)


NOT_CLEAR = {
    **{f"length {value!a}": [f"Content-Length: {value}"]
       for value in ["", "+5", "-5", "1_0", "5, 5", "5 5", "0x5", "five", "\xb2"]},
    **{f"lengths 3 and {other!a}": ["Content-Length: 3", f"Content-Length: {other}"]
       for other in ["2", "03", "", "-3"]},
    **{f"coding {value!a}": [f"Transfer-Encoding: {value}"]
       for value in ["", "5", "gzip", "identity", "gzip, chunked", "chunked, chunked"]},
    "a length and a coding": ["Content-Length: 5", CHUNKED],
    "two codings": [CHUNKED, "Transfer-Encoding: gzip"],
}  # fmt: skip


@pytest.mark.parametrize("headers", NOT_CLEAR.values(), ids=NOT_CLEAR.keys())
def test_read_answer_refuses_what_does_not_tell_clearly_where_it_ends(headers: list[str]) -> None:
    with pytest.raises(ValueError, match="^it is not clear where the answer ends$"):
        read_answer(io.BytesIO(answer(*headers, body="0\r\n\r\nabcdef")))


@pytest.mark.parametrize("length", [100, ANSWER_MAX, ANSWER_MAX + 1, 1 << 60])
def test_read_answer_refuses_a_body_that_is_cut_short_and_shows_80_bytes(length: int) -> None:
    with pytest.raises(ValueError, match=f"^the answer is cut short: b'{'x' * 80}'$"):
        read_answer(io.BytesIO(answer(f"Content-Length: {length}", body="x" * 99)))


CHUNKS = {
    "two": (b"1\r\na\r\n1F\r\n" + b"b" * 31 + b"\r\n0\r\n\r\n", b"a" + b"b" * 31),
    "with extensions": (b'1 ;a="b;c"\r\na\r\n0;\r\n\r\n', b"a"),
    "with trailers": (b"1\r\na\r\n0\r\nA: b\r\nC: d\r\n\r\n", b"a"),
    "of line ends": (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
}


@pytest.mark.parametrize("data, body", CHUNKS.values(), ids=CHUNKS.keys())
def test_read_chunks_returns_the_body_and_refuses_one_that_is_cut_short(
    data: bytes, body: bytes
) -> None:
    assert read_chunks(io.BytesIO(data + b"more")) == body
    for end in range(len(data)):
        with pytest.raises(ValueError, match="^the answer (is cut short|has a malformed)"):
            read_chunks(io.BytesIO(data[:end]))


@pytest.mark.parametrize("size", ["", "+1", "0x1", "1_0", "1h", " 1", "\xb9", ";a", "z" * 99])
def test_read_chunks_refuses_a_malformed_size_and_shows_80_bytes(size: str) -> None:
    data = f"{size}\r\na\r\n0\r\n\r\n".encode("latin-1")
    shown = re.escape(ascii(size[:80].encode("latin-1")))
    with pytest.raises(ValueError, match=f"^the answer has a malformed chunk size: {shown}$"):
        read_chunks(io.BytesIO(data))


@pytest.mark.parametrize("end", ["\n0", "ab", "b\r\n", " \r\n", "\r\r"])
def test_read_chunks_refuses_a_chunk_that_does_not_end_where_it_says(end: str) -> None:
    with pytest.raises(ValueError, match="does not end where it says"):
        read_chunks(io.BytesIO(f"1\r\na{end}0\r\n\r\n\r\n".encode()))


# ---- http.client is the judge


class FakeSocket:
    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)

    def makefile(self, mode: str) -> io.BytesIO:
        return self.file


Outcome = Union[type[BaseException], tuple[int, bytes]]


def theirs(data: bytes) -> Outcome:
    response = http.client.HTTPResponse(cast(socket.socket, FakeSocket(data)))
    try:
        response.begin()
        return response.status, response.read()
    except http.client.HTTPException as error:
        return type(error)
    finally:
        response.close()


def ours(data: bytes) -> Outcome:
    try:
        return int(read_head(io.BytesIO(data))[0][:3]), read_answer(io.BytesIO(data))[0]
    except (Absent, ValueError) as error:
        return type(error)


STATUSES = [200] * 9 + [201, 203, 299, 301, 400, 404, 500, 503]
REASONS = [b"", b" ", b" OK", b" Not  Found", b" 200", b" \xe9t\xe9", b" HTTP/1.1:"]
OTHERS = [b"Server: x", b"X-Content-Length: 7", b"Transfer: chunked", b"Connection: close"]
OTHERS += [b"Content-Type:text/xml; charset=utf-8", b"a!#$%&'*+-.^_`|~9:", b"C:\t\xe9\x7f:;, "]
TRICKY = [b"\r\n", b"\n\n", b"0\r\n\r\n", b"HTTP/1.1 404 No\r\n\r\n", b"5\r\nabcde\r\n", b"\0\xff"]
SIZES = [b"%x", b"%X", b"%04x", b"%x;a", b'%X ; a="b c"', b"%x;1=2;\xff"]
LENGTHS = [b"Content-Length: %d", b"content-length:%03d\t"]
CODINGS = [b"Transfer-Encoding: chunked", b"transfer-encoding:\tCHUNKED"]


def well_formed(random: Random) -> tuple[bytes, int, bool]:
    """Return some answer, its status, and whether it says itself where it ends."""
    one, status = random.choice, random.choice(STATUSES)
    body = b"".join(random.choices([*TRICKY, b"a", b"bc", b"0123456789"], k=random.randrange(5)))
    kind = one(["length", "chunks", "end"])
    lines = [b"HTTP/1.%d %d%s" % (random.randrange(2), status, one(REASONS))]
    lines += random.choices(OTHERS, k=random.randrange(4))
    if kind == "length":
        lines.append(one(LENGTHS) % len(body))
    if kind == "chunks":
        lines.append(one(CODINGS))
        step = random.randrange(1, 20)
        parts = [body[start : start + step] for start in range(0, len(body), step)]
        body = b"".join(one(SIZES) % len(part) + b"\r\n" + part + b"\r\n" for part in parts)
        body += one(SIZES) % 0 + b"\r\n" + one([b"", b"A: b\r\n"]) + b"\r\n"
    return one([b"", CONTINUE]) + b"\r\n".join([*lines, b"", body]), status, kind != "end"


def test_read_answer_reads_what_http_client_reads_and_refuses_all_that_is_cut_short(
    pytestconfig: pytest.Config,
) -> None:
    for seed in range(pytestconfig.getoption("--oracle-cases")):
        random = Random(seed)
        data, status, tells_its_end = well_formed(random)
        refused = Absent if status in (400, 404) else ValueError
        assert ours(data) == (theirs(data) if status < 300 else refused), seed
        cut = data[: random.randrange(len(data))]
        if status >= 300:  # the head may be whole
            assert ours(cut) in (ValueError, refused), seed
        elif tells_its_end:
            assert ours(cut) is ValueError, seed
        else:  # what there is by then may be all
            assert ours(cut) in (ValueError, theirs(cut)), seed


# ---- On a connection


@pytest.fixture
def url(host: SimulatedHost) -> str:
    return host.url("wireserver") + "/machine?comp=goalstate"


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("kind", ["a length", "chunks", "the end of the connection"])
def test_get_takes_256_kib_in_all_and_not_a_byte_more(
    host: SimulatedHost, url: str, kind: str, more: int
) -> None:
    data, body, _ = READ[kind]
    padding = b"A:" + b"y" * (256 * 1024 - len(data) - 4 + more)
    data = data.replace(b"\r\n", b"\r\n" + padding + b"\r\n", 1)
    host.misbehave("goalstate", raw_fault(data))
    if more:
        with pytest.raises(ValueError, match="^the answer is longer than 256 KiB$"):
            get(url, "", time.monotonic() + 9)
    else:
        assert get(url, "", time.monotonic() + 9)[0] == body


@pytest.mark.parametrize("fault", ["silent", "slow-headers", "slow-body"])
def test_get_ends_in_its_time_whatever_the_pace_of_the_peer(
    host: SimulatedHost, url: str, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(azure_provisioning, "STEP_SECONDS", 1)
    host.misbehave("goalstate", fault)
    start = time.monotonic()
    with pytest.raises(socket.timeout):
        get(url, "", start + 1200)
    assert 1 <= time.monotonic() - start < 1 + SLACK


# To the deadline, and how long it takes to connect: how long it may wait then, and afterwards.
LIMITS: dict[tuple[float, float], list[float]] = {
    (1200, 0): [5, 30],
    (1200, 4): [5, 26],
    (29, 0): [5, 29],
    (4, 3): [4, 1],
    (0.5, 0): [1, 1],  # the last attempt
    (-9, 0): [1, 1],
    (4, 4): [4],  # too late
}


@pytest.mark.parametrize("left, takes", LIMITS)
def test_get_gives_a_connection_five_seconds_and_the_answer_what_is_left_of_thirty(
    url: str,
    stopped_clock: StoppedClock,
    monkeypatch: pytest.MonkeyPatch,
    left: float,
    takes: float,
) -> None:
    limits: list[float] = []
    connect = socket.socket.connect

    def connect_late(self: socket.socket, address: tuple[str, int]) -> None:
        stopped_clock.now += takes
        connect(self, address)

    monkeypatch.setattr("socket.socket.connect", connect_late)
    monkeypatch.setattr("socket.socket.settimeout", lambda self, limit: limits.append(limit))
    with contextlib.suppress(socket.timeout):
        get(url, "x-ms-version: 2012-11-30\r\n", stopped_clock.now + left)
    assert limits[:2] == LIMITS[left, takes]


def test_get_takes_an_answer_that_comes_before_the_request_is_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer_at_once() -> None:
            with server.accept()[0] as peer:
                peer.sendall(READ["a length"][0])

        threading.Thread(target=answer_at_once).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        assert get(url, "", time.monotonic() + 9) == (b"abc", True)


@pytest.mark.parametrize("may_mark", [True, False])
def test_get_marks_packets_as_systemd_does_only_where_others_are_prohibited(
    host: SimulatedHost, url: str, monkeypatch: pytest.MonkeyPatch, may_mark: bool
) -> None:
    marks: list[int] = []
    connect = socket.socket.connect

    def prohibit(self: socket.socket, address: tuple[str, int]) -> None:
        if f":{address[1]}" in host.url("imds") and not marks:
            raise PermissionError(13, "Permission denied")
        connect(self, address)

    def setsockopt(self: socket.socket, *option: int) -> None:
        assert option[:2] == (socket.SOL_SOCKET, socket.SO_MARK)
        if not may_mark:
            raise PermissionError(1, "Operation not permitted")
        marks.append(option[2])

    monkeypatch.setattr("socket.socket.connect", prohibit)
    monkeypatch.setattr("socket.socket.setsockopt", setsockopt)
    get(url, "x-ms-version: 2012-11-30\r\n", time.monotonic() + 9)
    assert marks == []
    if may_mark:
        assert (
            azure_provisioning.ask_imds(host.url("imds"), NAME, time.monotonic() + 9) == b"web_11"
        )
        assert marks == [0x7FFF0815]
    else:
        with pytest.raises(PermissionError):
            azure_provisioning.ask_imds(host.url("imds"), NAME, time.monotonic() + 9)


def test_ask_imds_refuses_an_answer_that_may_have_been_cut_short(host: SimulatedHost) -> None:
    host.misbehave("name", raw_fault(READ["the end of the connection"][0]))
    with pytest.raises(ValueError, match="does not say where it ends"):
        azure_provisioning.ask_imds(host.url("imds"), NAME, time.monotonic() + 9)


@pytest.mark.parametrize("body", ["", "Content-Length: +5\r\n\r\nx", "Content-Length: 9\r\n\r\nx"])
def test_post_wants_only_the_status(host: SimulatedHost, body: str) -> None:
    data = b"HTTP/1.1 299 As you wish\r\n" + (body or "\r\n").encode()
    host.misbehave("health", raw_fault(data))
    url = host.url("wireserver") + "/machine?comp=health"
    assert post(url, "", b"a report", time.monotonic() + 9) == "299 As you wish"
    (request,) = host.requests
    assert (request.method, request.body) == ("POST", b"a report")
