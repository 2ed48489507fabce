"""The parser of HTTP answers, held against http.client and against a plain list of faults.

Each answer goes to three judges: the script; http.client; and find_fault(), which has regular
expressions, where the script takes bytes apart. The script must refuse what has a fault, for that
reason, and of all else make what http.client makes of it. So it is the stricter one: FAULTS says
where and why. DIFFERENCES says where http.client is wrong, or stricter still.
"""

import http.client
import io
import itertools
import re
import socket
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple, Union, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import azure_provisioning as script

PARTS = 4  # for as many workers


def answer(*headers: str, status: str = "200 OK", body: str = "") -> bytes:
    head = [f"HTTP/1.1 {status}", *headers, "", ""]
    return ("\r\n".join(head) + body).encode("latin-1")


CHUNKED = "Transfer-Encoding: chunked"


class Known(NamedTuple):
    """A reason to refuse an answer: how the script calls it, and why http.client does not."""

    words: str
    why: str
    example: bytes  # which http.client takes


FAULTS: Dict[str, Known] = {
    "head cut short": Known(
        "cut short",
        "http.client takes the end of the connection for that of the head",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0",
    ),
    "malformed status line": Known(
        "is no HTTP",
        "http.client splits it at any white space, CR too, reads its number as Python does, and"
        " takes versions of HTTP that there are not",
        answer(status="2_00 OK"),
    ),
    "malformed header line": Known(
        "malformed header",
        "http.client drops it, and all that follow: RFC 9112 5.1 wants no space before the colon",
        answer("Content-Length : 1", body="ab"),
    ),
    "bare CR in a header": Known(
        "malformed header",
        "http.client ends a line there: RFC 9112 2.2 has it refused, or taken for a space",
        answer("A: b\rContent-Length: 1", "Content-Length: 2", body="ab"),
    ),
    "part of a body": Known(
        "only a part",
        "http.client leaves it to its caller what 206 means",
        answer("Content-Length: 1", status="206 Partial Content", body="a"),
    ),
    "length and coding": Known(
        "not clear",
        "http.client goes by the coding: RFC 9112 6.3 calls that an attack or an error",
        answer("Content-Length: 1", CHUNKED, body="0\r\n\r\n"),
    ),
    "two lengths": Known(
        "not clear",
        "http.client goes by the first: RFC 9112 6.3 calls that an error",
        answer("Content-Length: 1", "Content-Length: 2", body="ab"),
    ),
    "length is no number": Known(
        "not clear",
        "http.client reads it as Python does, or else to the end: to RFC 9112 6.3 it is an error",
        answer("Content-Length: 1_0", body="abcdefghijk"),
    ),
    "length of over 9 digits": Known(
        "not clear",
        "http.client reads leading zeros, too; without them it is over our limit anyway",
        answer("Content-Length: 0000000001", body="a"),
    ),
    "unknown coding": Known(
        "not clear",
        "http.client returns the body as it is coded",
        answer("Transfer-Encoding: gzip, chunked", body="0\r\n\r\n"),
    ),
    "chunk size is no number": Known(
        "malformed chunk",
        "http.client reads it as Python does",
        answer(CHUNKED, body="0x1\r\na\r\n0\r\n\r\n"),
    ),
    "chunk size of over 8 digits": Known(
        "malformed chunk",
        "http.client reads leading zeros, too; without them it is over our limit anyway",
        answer(CHUNKED, body="000000000\r\n\r\n"),
    ),
    "bare LF after a chunk size": Known(
        "malformed chunk|cut short",
        "http.client reads lines: RFC 9112 2.2 lets only those of a head end so",
        answer(CHUNKED, body="1\na\r\n0\r\n\r\n"),
    ),
    "malformed chunk end": Known(
        "malformed chunk",
        "http.client skips two bytes, whatever they are",
        answer(CHUNKED, body="1\r\nabc0\r\n\r\n"),
    ),
    "chunks cut short": Known(
        "cut short",
        "http.client takes the end of the connection for that of the chunks",
        answer(CHUNKED, body="1\r\na\r\n0\r\n"),
    ),
}
BODY_CUT_SHORT = "body cut short"  # the one fault that http.client never takes


class Difference(NamedTuple):
    """Where http.client makes something else of an answer that has no fault."""

    why: str
    example: bytes
    status: int  # as the script reads it
    body: Optional[bytes]


DIFFERENCES: Dict[str, Difference] = {
    "over 100 lines in a head": Difference(
        "a limit of http.client's; ours is 256 KiB for the whole answer",
        answer(*["A: b"] * 100, body="a"),
        *(200, b"a"),
    ),
    "line of over 65536 bytes": Difference(
        "a limit of http.client's; ours is 256 KiB for the whole answer",
        answer("A: " + "b" * 65536, body="a"),
        *(200, b"a"),
    ),
    "separator in a status line": Difference(
        "1C to 1F alone are no reason to http.client, but part of the number",
        answer(status="200 \x1c", body="a"),
        *(200, b"a"),
    ),
    "status below 100": Difference(
        "to http.client it is no HTTP; to us a failure, as all but 2xx",
        answer(status="099 What"),
        *(99, None),
    ),
    "204 with a coding": Difference(
        "http.client reads chunks, where by RFC 9112 6.3 there is no body",
        answer(CHUNKED, status="204 No Content", body="1\r\na\r\n0\r\n\r\n"),
        *(204, b""),
    ),
    "white space after a coding": Difference(
        "http.client takes it for a part of the value; by RFC 9112 5 it is none",
        answer(CHUNKED + " ", body="1\r\na\r\n0\r\n\r\n"),
        *(200, b"a"),
    ),
}


class Fault(Exception):
    pass


def read_heads(rest: io.BytesIO) -> List[List[bytes]]:
    """Return the lines of each head, the answer's own last; *rest* is then at the body."""
    heads: List[List[bytes]] = []
    while not heads or heads[-1][0][9:12] == b"100":
        lines = [rest.readline()]
        while not lines[1:] or lines[-1] not in (b"\n", b"\r\n"):
            lines.append(rest.readline())
            if not lines[-1].endswith(b"\n"):
                raise Fault("head cut short")
        heads.append(lines[:-1])
        if not re.fullmatch(rb"HTTP/1\.[01] \d\d\d( [^\r\n]*)?\r?\n", lines[0]):
            raise Fault("malformed status line")
    return heads


def values(lines: List[bytes], name: bytes) -> List[bytes]:
    pairs = [line.partition(b":") for line in lines[1:]]
    return [value.strip(b" \t\r\n").lower() for key, _, value in pairs if key.lower() == name]


def check_chunks(rest: bytes) -> None:
    while True:
        line, end, rest = rest.partition(b"\r\n")
        size = line.partition(b";")[0].rstrip(b" \t")
        if b"\n" in line:
            raise Fault("bare LF after a chunk size")
        if not end:
            raise Fault("chunks cut short")
        if not size or size.strip(b"0123456789ABCDEFabcdef"):
            raise Fault("chunk size is no number")
        if len(size) > 8:
            raise Fault("chunk size of over 8 digits")
        length = int(size, 16)
        if not length:
            break
        if len(rest) < length + 2 and b"\r\n".startswith(rest[length:]):
            raise Fault(BODY_CUT_SHORT)
        if rest[length : length + 2] != b"\r\n":
            raise Fault("malformed chunk end")
        rest = rest[length + 2 :]
    if not {b"\n", b"\r\n"}.intersection(io.BytesIO(rest)):
        raise Fault("chunks cut short")


def find_fault(data: bytes) -> str:
    """Name what is wrong with an answer, by its bytes alone; if nothing is, return ""."""
    rest = io.BytesIO(data)
    try:
        lines = read_heads(rest)[-1]
        if lines[0][9:12] == b"204" or not lines[0][9:].startswith(b"2"):
            return ""
        lengths, codings = values(lines, b"content-length"), values(lines, b"transfer-encoding")
        length = lengths[0] if lengths else b"0"
        if any(not re.match(rb"[!-9;-~]+:", line) for line in lines[1:]):
            return "malformed header line"
        if any(re.search(rb"\r(?!\n)", line) for line in lines[1:]):
            return "bare CR in a header"
        if lines[0][9:12] == b"206":
            return "part of a body"
        if lengths and codings:
            return "length and coding"
        if len(set(lengths)) > 1:
            return "two lengths"
        if not length or length.strip(b"0123456789"):
            return "length is no number"
        if len(length) > 9:
            return "length of over 9 digits"
        if set(codings) - {b"chunked"}:
            return "unknown coding"
        if codings:
            check_chunks(rest.read())
        return BODY_CUT_SHORT if len(rest.read()) < int(length) else ""
    except Fault as fault:
        return str(fault)


def find_differences(data: bytes) -> List[str]:
    """Name all that may have http.client differ about an answer without a fault."""
    heads = read_heads(io.BytesIO(data))
    lines = heads[-1]
    codings = [line for line in lines if line.lower().startswith(b"transfer-encoding:")]
    found = {
        "over 100 lines in a head": max(map(len, heads)) > 100,  # the empty line counts, too
        "line of over 65536 bytes": max(map(len, io.BytesIO(data))) > 65536,
        "separator in a status line": any(re.search(rb"[\x1c-\x1f]", head[0]) for head in heads),
        "status below 100": lines[0][9:10] == b"0",
        "204 with a coding": lines[0][9:12] == b"204" and codings,
        "white space after a coding": any(re.search(rb"[ \t]\r?\n", line) for line in codings),
    }
    assert found.keys() == DIFFERENCES.keys()
    return [name for name, is_so in found.items() if is_so]


class Verdict(NamedTuple):
    """A status of 0 stands for a refusal; without a body, it is cut short, or the script's."""

    status: int
    body: Optional[bytes] = None
    refusal: str = ""


class FakeSocket:
    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)

    def makefile(self, mode: str) -> io.BytesIO:
        return self.file


def theirs(data: bytes) -> Verdict:
    response = http.client.HTTPResponse(cast(socket.socket, FakeSocket(data)))
    try:
        response.begin()
    except http.client.HTTPException:
        return Verdict(0)
    try:
        return Verdict(response.status, response.read())
    except (http.client.HTTPException, OverflowError):  # OverflowError: a length of 20 digits
        return Verdict(response.status)
    finally:
        response.close()


Outcome = Union[None, script.Answer, Tuple[object, ...]]


def outcome(data: bytes, ended: bool, to_report: bool = False) -> Outcome:
    """What parse_answer() returns, or as a tuple what it raises."""
    try:
        return script.parse_answer(data, ended, to_report)
    except script.Failure as failure:
        return script.Failure, str(failure), failure.absent, failure.delay
    except ValueError as error:
        return ValueError, str(error)


def ours(data: bytes) -> Verdict:
    result = outcome(data, ended=True)
    if isinstance(result, script.Answer):
        assert result.status[0] == "2"
        return Verdict(int(result.status[:3]), result.body)
    kind, *reason = result or (ValueError, "cut short")
    if kind is ValueError:
        return Verdict(0, None, str(reason[0]))
    match = re.match("the answer is ([013-9][0-9]{2})( |$)", str(reason[0]))
    assert match, reason
    return Verdict(int(match.group(1)) or -1)  # 000 is a status, too


def agree(mine: Verdict, other: Verdict) -> bool:
    """Whether both say the same; of what is no success only the status counts."""
    if 200 <= mine.status < 300:
        return mine[:2] == other[:2]
    return mine.status == other.status


def judge(data: bytes) -> None:
    """Have all three judge *data*."""
    mine, other, fault = ours(data), theirs(data), find_fault(data)
    if mine.refusal:
        if fault == BODY_CUT_SHORT:
            words, is_whole = "cut short", other.body is not None
            assert not is_whole or find_differences(data), "http.client finds the body whole"
        else:
            assert fault in FAULTS, f"refused without a known reason: {mine.refusal}"
            words = FAULTS[fault].words
        assert re.search(words, mine.refusal), f"refused for another reason than {fault}"
    else:
        assert not fault, "not refused"
        assert agree(mine, other) or find_differences(data), f"http.client says {other}"


# Well-formed answers, and what they must be read as.


class Sample(NamedTuple):
    head: bytes  # with all 100 Continue before it, and the empty line
    status: int
    framing: str  # "length", "chunks", "end" (of the connection), or "none", where a head is all
    framed: bytes  # the body, as it is sent
    body: bytes

    @property
    def data(self) -> bytes:
        return self.head + self.framed


STATUSES = [
    *(101, 103, 201, 202, 204, 207, 208, 226, 299),
    *(301, 304, 400, 404, 410, 429, 500, 503, 999),
]
REASONS = [b"", b" ", b" OK", b" Not  Found", b" 200", b" \xe9t\xe9\t", b" HTTP/1.1 404 OK:"]
TRICKY = [b"\r\n", b"\n\n", b"0\r\n\r\n", b"HTTP/1.1 404 No\r\n\r\n", b"5\r\nabcde\r\n", b"\0\xff"]
EXTENSIONS = [b"", b"", b";a", b' ; a="b c"', b";", b" \t", b";1=2;\xff"]
OTHER_HEADERS = [
    b"Server: x",
    b"Content-Length-2: 7",
    b"X-Content-Length: 7",
    b"Transfer: chunked",
    b"Content-Type:text/xml; charset=utf-8",
    b"Connection: close",
    b"Retry-After: 5",
    b"a!#$%&'*+-.^_`|~9:",
    b"b: Content-Length: 7",
    b"C:\t\xe9\x00\x7f:;, ",
]

# From ready-made lists, in few draws: these take nearly all of the time.


def some(*parts: bytes) -> st.SearchStrategy[Tuple[bytes, ...]]:
    """None, one or two of them, in any order."""
    return st.sampled_from([p for count in range(3) for p in itertools.permutations(parts, count)])


others = some(*OTHER_HEADERS)
spaces = st.sampled_from([b"", b" ", b"\t", b" \t "])
bodies = st.one_of(st.binary(max_size=20), some(*TRICKY).map(b"".join))
interims = st.sampled_from(
    [
        *[b""] * 9,
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.0 100\nContent-Length: 7\r\n\n" * 2,
        b"HTTP/1.1 100 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    ]
)
ends = st.sampled_from([[b"\r\n"], [b"\r\n"], [b"\n"], [b"\r\n", b"\n"], [b"\n", b"\r\n"]])


def spelled(name: str) -> st.SearchStrategy[bytes]:
    """A header's name, in any mixture of capitals and small letters."""
    names = [name, name.lower(), name.upper(), name.swapcase()]
    return st.sampled_from([name.encode() for name in names])


names_of_length, names_of_coding = spelled("Content-Length"), spelled("Transfer-Encoding")
chunked, digits = spelled("chunked"), st.sampled_from([b"%d", b"%d", b"%03d", b"%09d"])
first_lines = st.sampled_from(list(itertools.product([b"HTTP/1.0", b"HTTP/1.1"], REASONS)))
sizes = st.sampled_from(list(itertools.product([b"%x", b"%X", b"%02x", b"%08X"], EXTENSIONS)))
statuses = st.sampled_from([200] * len(STATUSES) + STATUSES)
framings = st.sampled_from(["length", "chunks", "end"])


def terminated(lines: Iterable[bytes], pattern: List[bytes]) -> bytes:
    return b"".join(line + end for line, end in zip(lines, itertools.cycle(pattern)))


@st.composite
def chunks(draw: st.DrawFn) -> Tuple[bytes, bytes]:
    """A body in chunks, and what it is."""
    parts = [part for part in draw(st.lists(bodies, max_size=3)) if part]
    framed = b""
    for part in [*parts, b""]:
        size, extension = draw(sizes)
        framed += size % len(part) + extension + b"\r\n" + part + (b"\r\n" if part else b"")
    return framed + terminated([*draw(others), b""], draw(ends)), b"".join(parts)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    status, (version, reason), headers = draw(statuses), draw(first_lines), list(draw(others))
    framing = "none" if status == 204 else draw(framings)
    body = framed = b"" if status == 204 else draw(bodies)
    if framing == "length":
        value = draw(spaces) + draw(digits) % len(body) + draw(spaces)
        for _ in range(draw(st.integers(1, 2))):
            headers.insert(draw(st.integers(0, 3)), draw(names_of_length) + b":" + value)
    elif framing == "chunks":
        framed, body = draw(chunks())
        line = draw(names_of_coding) + b":" + draw(spaces) + draw(chunked)
        headers.insert(draw(st.integers(0, 2)), line)
    lines = [version + b" %d" % status + reason, *headers, b""]
    return Sample(draw(interims) + terminated(lines, draw(ends)), status, framing, framed, body)


# What becomes of them on a bad day.

TOKENS = [
    *(b"%c" % byte for byte in b"0012345569afxX+-__..\r\r\n\n:: ;,\t\0\x0b\x1c\x85\xa0\xb2\xff"),
    *(b"\r\n", b"\r\n\r\n", b"\n\n", b" \r\n", b"\r\n ", b"\0\0", b"0x", b"00000000", b"999999999"),
    *(b"100", b"204", b"304", b"429", b"HTTP/1.1 ", b"HTTP/1.1 200 OK\r\n", b"\r\n0\r\n\r\n"),
    *(b"chunked", b"gzip, ", b", chunked"),
]
LINES = [
    b"%s: %s\r\n" % pair
    for pair in itertools.product(
        [b"Content-Length", b"Transfer-Encoding"], [b"", b"1", b"5", b"chunked", b"gzip, chunked"]
    )
]


class Mutation(NamedTuple):
    kind: str
    here: int
    there: int
    token: bytes


MARK = re.compile(rb"\b|[\r\n:;]")
numbers = st.integers(0, 0xFFFF)
mutations = st.builds(
    Mutation,
    st.sampled_from(
        "insert insert replace replace delete copy copy-line add-line swap-lines cut".split()
    ),
    numbers,
    numbers,
    st.sampled_from(TOKENS),
)


def place(data: bytes, number: int) -> int:
    """Somewhere in *data*, mostly where something begins or ends, below the first line."""
    marks = [match.start() for match in MARK.finditer(data, data.find(b"\n") + 1)]
    if number % 4 and marks:
        return marks[number // 4 % len(marks)]
    return number // 4 % (len(data) + 1)


def mutate(data: bytes, mutation: Mutation) -> bytes:
    here, there = place(data, mutation.here), place(data, mutation.there)
    lines = data.splitlines(keepends=True)
    one, other = (number % max(len(lines), 1) for number in mutation[1:3])
    if mutation.kind == "insert":
        return data[:here] + mutation.token + data[here:]
    if mutation.kind == "replace":
        return data[:here] + mutation.token + data[here + len(mutation.token) :]
    if mutation.kind == "delete":
        return data[:here] + data[here + 1 + mutation.there % 3 :]
    if mutation.kind == "copy":
        return data[:here] + data[min(here, there) : max(here, there)] + data[here:]
    if mutation.kind == "cut":
        return data[:here]
    if mutation.kind == "add-line":
        lines.insert(one, LINES[mutation.there % len(LINES)])
    if lines and mutation.kind == "copy-line":
        lines.insert(other, lines[one])
    if lines and mutation.kind == "swap-lines":
        lines[one], lines[other] = lines[other], lines[one]
    return b"".join(lines)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = draw(samples()).data
    for mutation in draw(st.lists(mutations, min_size=1, max_size=3)):
        data = mutate(data, mutation)
    return data


Cases = Callable[[float], settings]


@pytest.fixture
def cases(pytestconfig: pytest.Config) -> Cases:
    """Settings for a share of the cases that the command line asks for."""

    def cases(share: float) -> settings:
        count = pytestconfig.getoption("--oracle-cases")
        return settings(
            max_examples=max(int(count * share), 1),
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )

    return cases


@pytest.mark.parametrize("part", range(PARTS))
def test_of_whatever_is_taken_http_client_makes_the_same(part: int, cases: Cases) -> None:
    @cases(0.75 / PARTS)
    @given(mutated())
    def compare(data: bytes) -> None:
        judge(data)

    compare()


def test_a_well_formed_answer_is_read_as_http_client_reads_it(cases: Cases) -> None:
    @cases(0.25)
    @given(samples())
    def compare(sample: Sample) -> None:
        assert not find_fault(sample.data)
        assert agree(ours(sample.data), theirs(sample.data))
        if sample.status // 100 == 2:
            assert ours(sample.data) == (sample.status, sample.body, "")
        else:
            assert ours(sample.data) == (sample.status, None, "")

    compare()


def test_an_answer_that_is_cut_anywhere_is_judged_as_any_other(cases: Cases) -> None:
    @cases(0.01)
    @given(samples())
    def compare(sample: Sample) -> None:
        for end in range(len(sample.data)):
            judge(sample.data[:end])

    compare()


def test_an_answer_is_there_with_its_last_byte_and_no_sooner(cases: Cases) -> None:
    @cases(0.05)
    @given(samples(), bodies)
    def compare(sample: Sample, more: bytes) -> None:
        is_success = sample.status // 100 == 2
        last = sample.data if is_success else sample.head  # of a failure only the head counts
        expected = outcome(sample.data, ended=True)
        is_whole = not is_success or sample.framing != "end"
        for end in range(len(sample.data)):
            there = is_whole and end >= len(last)
            assert outcome(sample.data[:end], ended=False) == (expected if there else None)
        assert outcome(sample.data, ended=False) == (expected if is_whole else None)
        if is_success:
            assert isinstance(expected, script.Answer)
            assert (expected.body, expected.is_whole) == (sample.body, is_whole)
        if is_whole:
            assert outcome(sample.data + more, ended=False) == expected
            assert outcome(sample.data + more, ended=True) == expected

    compare()


def test_no_verdict_changes_with_what_comes_later(cases: Cases) -> None:
    @cases(0.05)
    @given(mutated())
    def compare(data: bytes) -> None:
        verdict = outcome(data, ended=False)
        assert verdict in (None, outcome(data, ended=True))
        for end in reversed(range(len(data))):
            sooner = outcome(data[:end], ended=False)
            assert sooner in (None, verdict)
            verdict = sooner

    compare()


def test_of_an_answer_to_a_report_only_the_status_counts(cases: Cases) -> None:
    @cases(0.05)
    @given(samples(), st.lists(st.sampled_from(TOKENS + OTHER_HEADERS)), bodies)
    def compare(sample: Sample, junk: List[bytes], body: bytes) -> None:
        garbage = re.sub(rb"[\r\n]*\n", b"\r\n", b"".join(junk)).strip(b"\r\n")
        lines = re.sub(rb"\r?\n\Z", b"", sample.head) + garbage  # without the empty line
        head = lines + (b"\r\n\r\n" if garbage else b"\r\n")
        for ended in (False, True):
            verdict = outcome(head + body, ended, to_report=True)
            if sample.status // 100 == 2:
                assert isinstance(verdict, script.Answer)
                assert (verdict.body, verdict.is_whole) == (b"", True)
                assert int(verdict.status[:3]) == sample.status
            else:
                assert isinstance(verdict, tuple)
                assert verdict[0] is script.Failure
            assert outcome(head, ended, to_report=True) == verdict
            for stop in range(len(head)):
                assert outcome(head[:stop], ended, to_report=True) is None

    compare()


# What must hold, one by one.


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_refused_that_http_client_takes(fault: str) -> None:
    example = FAULTS[fault].example
    assert find_fault(example) == fault
    assert re.search(FAULTS[fault].words, ours(example).refusal)
    assert theirs(example).status in (200, 206)
    assert theirs(example).body is not None


@pytest.mark.parametrize("name", DIFFERENCES)
def test_where_http_client_differs_the_script_keeps_to_the_rules(name: str) -> None:
    _, example, status, body = DIFFERENCES[name]
    assert not find_fault(example)
    assert find_differences(example) == [name]
    assert ours(example) == (status, body, "")
    assert not agree(ours(example), theirs(example))


def parse(data: bytes, ended: bool = False, to_report: bool = False) -> Optional[script.Answer]:
    return script.parse_answer(data, ended, to_report)


@pytest.mark.parametrize("to_report", [False, True])
@pytest.mark.parametrize(
    "line",
    [
        "",
        "200 OK",
        "HTTP/1.1",
        "HTTP/1.1 OK",
        "HTTP/1.1 2_00 OK",
        "HTTP/1.1 +200 OK",
        "HTTP/1.1 -200 OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1 \xb2\xb0\xb0 OK",
        "HTTP/1.1 \uff12\uff10\uff10 OK",
        "HTTP/1.1 \u0662\u0660\u0660 OK",
        "HTTP/1.1 20 OK",
        "HTTP/1.1 2000 OK",
        "HTTP/1.1 0200 OK",
        "HTTP/1.1 200OK",
        "HTTP/1.1 200.0 OK",
        "HTTP/1.1 200\tOK",
        "HTTP/1.1 200\r\r",
        "HTTP/1.1 200 OK\r\r",
        "HTTP/1.1 200 OK\rContent-Length: 0",
        "HTTP/1.1\t200 OK",
        "HTTP/1.1\xa0200 OK",
        "HTTP/1.1200 OK",
        "HTTP/1_1 200 OK",
        "HTTP/1.12 200 OK",
        "HTTP/1.x 200 OK",
        "HTTP/1 200 OK",
        "HTTP/0.9 200 OK",
        "HTTP/2.0 200 OK",
        "http/1.1 200 OK",
        "ICY 200 OK",
        " HTTP/1.1 200 OK",
        "\r\nHTTP/1.1 200 OK",
        "<!-- HTTP/1.1 200 OK",
    ],
)
def test_no_other_status_line_is_an_acceptance(line: str, to_report: bool) -> None:
    for before in (b"", answer(status="100 Continue")):
        for after in (b"\r\n\r\n", b"\n\n", b"\r\nContent-Length: 0\r\n\r\n"):
            with pytest.raises(ValueError, match="the answer is no HTTP"):
                parse(before + line.encode() + after, ended=True, to_report=to_report)


def test_of_what_is_no_http_the_first_80_bytes_are_shown() -> None:
    with pytest.raises(ValueError, match="the answer is no HTTP") as raised:
        parse(b"x" * 100 + b"\r\n\r\n")
    assert str(raised.value).endswith(" " + ascii(b"x" * 80))


@pytest.mark.parametrize("header", ["A: b\rc", "A: \rb", "A: b\r", "A:\r"])
def test_a_bare_cr_in_a_header_is_refused_wherever_it_is(header: str) -> None:
    with pytest.raises(ValueError, match="malformed header"):
        parse(answer(header, "Content-Length: 0"))


@pytest.mark.parametrize("header", ["A\x7f: b", "\x7f: b", "A\x80: b", "A\x1f: b", "A : b"])
def test_a_header_has_a_name_of_visible_characters(header: str) -> None:
    with pytest.raises(ValueError, match="malformed header"):
        parse(answer(header, "Content-Length: 0"))


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
@pytest.mark.parametrize(
    "rest, status",
    [
        (" 200 OK", "200 OK"),
        (" 200", "200"),
        (" 200 ", "200"),
        (" 200  All is well ", "200  All is well"),
        (" 201 \xe9", "201 \xe9"),
        (" 299 500 Error", "299 500 Error"),
    ],
)
def test_the_status_is_the_number_and_the_reason_if_there_is_one(
    version: str, rest: str, status: str
) -> None:
    head = (version + rest).encode("latin-1")
    assert parse(head + b"\r\nContent-Length: 1\r\n\r\na") == (status, b"a", True)
    assert parse(head + b"\r\n\r\n", to_report=True) == (status, b"", True)


@pytest.mark.parametrize(
    "status", "000 101 199 103 300 301 304 400 401 404 410 429 500 503 999".split()
)
@pytest.mark.parametrize("to_report", [False, True])
def test_whatever_is_not_2xx_is_a_failure_even_if_the_rest_is_malformed(
    status: str, to_report: bool
) -> None:
    data = answer("No header", "Content-Length: +5", CHUNKED, status=f"{status} Why", body="zz\r\n")
    with pytest.raises(script.Failure, match=f"^the answer is {status} Why$") as caught:
        parse(data, to_report=to_report)
    assert caught.value.absent == (status in ("400", "404"))
    assert caught.value.delay == 1


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "value, delay",
    [
        ("0", 1),
        ("1", 1),
        ("2", 2),
        ("59", 59),
        ("60", 60),
        ("61", 60),
        ("007", 7),
        ("\t7 ", 7),
        pytest.param("9" * 5000, 60, id="5000-digits"),
    ],
)
def test_a_failure_lasts_as_long_as_the_host_says_but_a_minute_at_most(
    status: int, value: str, delay: int
) -> None:
    for name in ("Retry-After", "retry-after", "RETRY-AFTER"):
        with pytest.raises(script.Failure) as caught:
            parse(answer(f"{name}:{value}", status=f"{status} Busy"))
        assert caught.value.delay == delay


@pytest.mark.parametrize(
    "value",
    [
        *"-5 +5 5.5 5_0 1e1 0x5 \xb2 inf nan".split(),
        *["", "5, 6", "5 6", "Wed, 21 Oct 2026 07:28:00 GMT"],
    ],
)
def test_a_wait_that_is_not_in_whole_seconds_is_not_heeded(value: str) -> None:
    with pytest.raises(script.Failure) as caught:
        parse(answer(f"Retry-After: {value}", status="503 Busy"))
    assert caught.value.delay == 1


def test_of_two_different_waits_none_is_heeded() -> None:
    with pytest.raises(script.Failure) as caught:
        parse(answer("Retry-After: 5", "Retry-After: 6", status="503 Busy"))
    assert caught.value.delay == 1


@pytest.mark.parametrize("status", ["301 Moved", "400 No", "404 Not Found", "500 Error", "502 Bad"])
def test_other_failures_tell_no_wait(status: str) -> None:
    with pytest.raises(script.Failure) as caught:
        parse(answer("Retry-After: 5", status=status))
    assert caught.value.delay == 1


def test_a_wait_in_a_100_continue_is_not_that_of_the_answer() -> None:
    before = answer("Retry-After: 5", status="100 Continue")
    with pytest.raises(script.Failure) as caught:
        parse(before + answer(status="503 Busy"))
    assert caught.value.delay == 1


@pytest.mark.parametrize("to_report", [False, True])
def test_100_continue_is_not_the_answer(to_report: bool) -> None:
    before = answer("Content-Length: 7", "No header", status="100 Continue") + answer(status="100")
    after = answer("Content-Length: 1", body="a")
    for ended in (False, True):
        assert parse(before, ended, to_report) is None
    assert parse(before + after, to_report=to_report) == parse(after, to_report=to_report)


@pytest.mark.parametrize("headers", [[], ["Content-Length: 5"], ["Content-Length: +5"], [CHUNKED]])
def test_204_has_no_body(headers: List[str]) -> None:
    data = answer(*headers, status="204 No Content", body="abcde")
    assert parse(data) == ("204 No Content", b"", True)


def test_a_head_may_end_its_lines_with_bare_lf() -> None:
    data = b"HTTP/1.1 200 OK\nA: b\nContent-Length: 3\n\na\r\n"
    assert parse(data) == ("200 OK", b"a\r\n", True)
    data = b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n1\r\na\r\n0\r\nA: b\n\n"
    assert parse(data) == ("200 OK", b"a", True)


@pytest.mark.parametrize(
    "line",
    [
        *["No colon", ": no name", ":A: b", "A : b", "A b: c", " folded: b", "\tfolded"],
        *["A\xe9: b", "A\0: b", "A\rB: c", "\rA: b", "\r"],
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_a_malformed_header_line_is_an_error(line: str, first: bool) -> None:
    lines = [line, "Content-Length: 1"] if first else ["Content-Length: 1", line]
    with pytest.raises(ValueError, match="malformed header"):
        parse(answer(*lines, body="a"))
    assert parse(answer(*lines), to_report=True)


@pytest.mark.parametrize(
    "name", ["Content-Length", "content-length", "CONTENT-LENGTH", "cONTENT-lENGTH"]
)
@pytest.mark.parametrize("value", ["3", " 3", "3 ", "\t 3\t ", " 003", " 000000003"])
def test_a_length_ends_the_body_and_what_follows_is_ignored(name: str, value: str) -> None:
    data = answer(f"{name}:{value}", body="abcde")
    for ended in (False, True):
        assert parse(data, ended) == ("200 OK", b"abc", True)
        assert parse(data[:-3], ended) is None


def test_a_length_of_0_waits_for_nothing() -> None:
    assert parse(answer("Content-Length: 0")) == ("200 OK", b"", True)


@pytest.mark.parametrize(
    "value",
    [
        *"+5 -5 -0 1_0 5, 5; 5.0 5e0 0x5 five chunked \xb2 5\0 1000000000 0000000005".split(),
        *["", "5, 6", "5, 5", "5 5", "\xa05", "\x0b5"],
        pytest.param("9" * 5000, id="5000-digits"),
    ],
)
def test_a_length_is_nothing_but_up_to_nine_digits(value: str) -> None:
    with pytest.raises(ValueError, match="not clear where the answer ends"):
        parse(answer(f"Content-Length: {value}", body="abcdefghijk"))


@pytest.mark.parametrize("other", ["2", "03", "3, 3", "", "-3"])
@pytest.mark.parametrize("first", [False, True])
def test_two_different_lengths_are_an_error(other: str, first: bool) -> None:
    lines = ["Content-Length: 3", "Server: x", f"content-length: {other}"]
    with pytest.raises(ValueError, match="not clear where the answer ends"):
        parse(answer(*(lines if first else reversed(lines)), body="abcde"))


def test_the_same_length_twice_is_one() -> None:
    data = answer("Content-Length: 3", "Server: x", "content-length:3 ", body="abcde")
    assert parse(data) == ("200 OK", b"abc", True)


@pytest.mark.parametrize("length", ["1", "0", "", "5", "chunked", "gzip"])
@pytest.mark.parametrize("coding", ["1", "", "chunked", "gzip", "identity"])
@pytest.mark.parametrize("first", [False, True])
def test_a_length_beside_a_coding_is_an_error(length: str, coding: str, first: bool) -> None:
    lines = [f"Content-Length: {length}", f"Transfer-Encoding: {coding}"]
    for ended in (False, True):
        with pytest.raises(ValueError, match="not clear where the answer ends"):
            parse(answer(*(lines if first else reversed(lines)), body="0\r\n\r\n"), ended)


@pytest.mark.parametrize(
    "value",
    [
        *'gzip identity chunked;q=1 xchunked chunke chunked\0 "chunked"'.split(),
        *["", "gzip, chunked", "chunked, gzip", "chunked, chunked", "\x0bchunked"],
    ],
)
def test_chunked_is_the_one_coding_that_is_known(value: str) -> None:
    with pytest.raises(ValueError, match="not clear where the answer ends"):
        parse(answer(f"Transfer-Encoding: {value}", body="0\r\n\r\n"))


def test_of_two_codings_both_count() -> None:
    for lines in ([CHUNKED, "Transfer-Encoding: gzip"], ["Transfer-Encoding: gzip", CHUNKED]):
        with pytest.raises(ValueError, match="not clear where the answer ends"):
            parse(answer(*lines, body="0\r\n\r\n"))


@pytest.mark.parametrize("line", [CHUNKED, CHUNKED.lower(), CHUNKED.upper(), CHUNKED + "\t "])
@pytest.mark.parametrize(
    "chunks, body",
    [
        ("0\r\n\r\n", b""),
        ("0000\r\n\r\n", b""),
        ("1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", b"abc"),
        ("a\r\n0123456789\r\n0A\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2),
        ("00000001\r\na\r\n00000000\r\n\r\n", b"a"),
        ('1;a="b;c"\r\na\r\n1 ;\xe9\r\nb\r\n1\t\r\nc\r\n0;a\r\n\r\n', b"abc"),
        ("4\r\n\r\n\r\n\r\n7\r\n0\r\n\r\n1\r\r\n0\r\n\r\n", b"\r\n\r\n0\r\n\r\n1\r"),
        ("1\r\na\r\n0\r\nContent-Length: 7\r\nNo header\r\n\r\n", b"a"),
    ],
    ids="none zeros two hexadecimal padded extensions line-ends trailers".split(),
)
def test_chunks_are_joined_and_what_follows_is_ignored(line: str, chunks: str, body: bytes) -> None:
    data = answer(line, body=chunks)
    for ended in (False, True):
        assert parse(data, ended) == parse(data + b"more", ended) == ("200 OK", body, True)
        assert parse(data[:-1], ended) is None


@pytest.mark.parametrize(
    "size",
    [
        *"+1 -1 -0 0x1 1_0 1h 1\0 \xb9 ;a 000000001 fffffffff".split(),
        *["", " ", " 1", "1 1", "1\x0b", "1\r", "1\n", "1;\n"],
    ],
)
def test_a_chunk_size_is_nothing_but_up_to_eight_hexadecimal_digits(size: str) -> None:
    for chunks in (f"{size}\r\na\r\n0\r\n\r\n", f"1\r\na\r\n{size}\r\n\r\n"):
        with pytest.raises(ValueError, match="malformed chunk"):
            parse(answer(CHUNKED, body=chunks))


@pytest.mark.parametrize("end", ["", "\n", "\r", "\n\r", "\r\r\n", "ab", "b\r\n", "\r0", " \r\n"])
def test_a_chunk_ends_where_its_size_says(end: str) -> None:
    with pytest.raises(ValueError, match="malformed chunk"):
        parse(answer(CHUNKED, body=f"1\r\na{end}0\r\n\r\n"))


def test_a_body_without_framing_goes_to_the_end_of_the_connection() -> None:
    data = answer("Connection: close", body="abc\r\n\r\n")
    assert parse(data) is None
    assert parse(data, ended=True) == ("200 OK", b"abc\r\n\r\n", False)
    assert parse(answer(), ended=True) == ("200 OK", b"", False)


@pytest.mark.parametrize("length", ["Content-Length: 1", CHUNKED, "A: b"])
def test_a_report_is_accepted_when_the_head_is_there(length: str) -> None:
    data = answer(length, "No header", "Content-Length: +5", "Content-Length: 6")
    for ended in (False, True):
        assert parse(data[:-1], ended, to_report=True) is None
        assert parse(data, ended, to_report=True) == ("200 OK", b"", True)
        assert parse(data + b"zz\r\n\r\n", ended, to_report=True) == ("200 OK", b"", True)


@pytest.mark.parametrize(
    "data", [b"", b"\r\n", b"\0" * 1000, b"<html>\r\n", b"HTTP/1.1 200 OK\r\n"]
)
@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("to_report", [False, True])
def test_without_an_empty_line_nothing_is_said(data: bytes, ended: bool, to_report: bool) -> None:
    assert parse(data, ended, to_report) is None


@pytest.mark.parametrize(
    "headers, delay",
    [
        (b"A: b\r\nRetry-After: 7\r\n", 7),
        (b"Retry-After: 7\r\nA: b\r\n", 7),
        (b"RETRY-after:7 \t\nA: b\n", 7),
        (b"A: Retry-After: 7\r\nXRetry-After: 7\r\nRetry-After-X: 7\r\n", 1),
        (b"", 1),
        (b"Retry-After:\r\n", 1),
        (b"Retry-After: 7\r\nretry-after:  7 \r\n", 7),
        (b"Retry-After: 7\r\nRetry-After: 8\r\n", 1),
    ],
    ids="last first spaces other-names none empty same-twice different".split(),
)
def test_a_header_is_found_by_its_name(headers: bytes, delay: int) -> None:
    with pytest.raises(script.Failure) as failure:
        parse(b"HTTP/1.1 503 Wait\r\n" + headers + b"\r\n")
    assert failure.value.delay == delay
