"""Whatever an answer of 256 KiB holds, a run takes less than 32 MiB, on every Python."""

import subprocess
from pathlib import Path
from typing import Iterator, List

import pytest

from azure_provisioning import ANSWER_MAX
from world import sandbox
from world.host import CHUNKED, SimulatedHost, Vm, raw_fault
from world.machine import Machine

MEMORY_MAX = 32 << 10  # KiB
PRINT_PEAK = """\
import sys, time
time.sleep = lambda seconds: None  # between attempts
sys.path.insert(0, sys.argv.pop(1))
from world import sandbox
status = sandbox.main()
(line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM:")]
print(status, line.split()[1])
"""


def filled(before: bytes, part: bytes, after: bytes = b"") -> bytes:
    """As many parts as there is space for; %05d in one is its number."""
    size = len(part % 0 if b"%" in part else part)
    count = (ANSWER_MAX - len(before) - len(after) - 1000) // size
    parts = (part % number if b"%" in part else part for number in range(count))
    return before + b"".join(parts) + after


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


OK = b"HTTP/1.1 200 OK\r\n"
ANSWERS = {
    "goalstate": [
        whole(filled(b"", b"<a>")),
        whole(filled(b"", b"<a%05d>b")),
        whole(filled(b"<a>", b"<a%05d/>", b"</a>")),
        whole(filled(b"<a ", b"a%05d='' ", b"/>")),
        whole(filled(b"<a>", b"b<!---->", b"</a>")),
        whole(filled(b"<a>", b"&#65536;", b"</a>")),
        filled(CHUNKED, b"1\r\na\r\n", b"0\r\n\r\n"),
        filled(OK, b"a:\r\n", b"\r\n"),
        filled(OK, b"Content-Length:%05d\r\n", b"\r\n"),
    ],
    "computer-name": [whole(filled(b"", b"x")), whole(filled("\U0001f600".encode(), b"x"))],
}


@pytest.fixture
def host(vm: Vm) -> Iterator[SimulatedHost]:
    with SimulatedHost(vm, imds_rate=1000) as host:
        yield host


@pytest.mark.parametrize("endpoint", ANSWERS)
def test_no_answer_takes_much_memory(
    host: SimulatedHost, machine: Machine, python: str, endpoint: str
) -> None:
    for answer in ANSWERS[endpoint]:
        host.misbehave(endpoint, raw_fault(answer), times=1)
    tests = Path(sandbox.__file__).parent.parent
    command: List[str] = [python, "-I", "-S", "-c", PRINT_PEAK, str(tests), str(machine.directory)]
    done = subprocess.run([*command, *host.options()], capture_output=True, text=True, check=True)
    status, peak = map(int, done.stdout.splitlines()[-1].split())
    assert (status, len(done.stderr.splitlines())) == (0, len(ANSWERS[endpoint]))
    assert peak < MEMORY_MAX
