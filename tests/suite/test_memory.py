"""An answer of 256 KiB, whatever it holds, never takes much memory, on every Python."""

import subprocess
from pathlib import Path

from azure_provisioning import ANSWER_MAX
from world import sandbox
from world.faults import chunked
from world.host import OK, SimulatedHost, raw_fault
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
PAGE = b"<html>" + b"<p>Sign in</p>" * (ANSWER_MAX // 14 - 100)
ANSWERS = [
    OK + b"Content-Length: %d\r\n\r\n" % len(PAGE) + PAGE,
    chunked(PAGE[: ANSWER_MAX // 3]),
]


def test_memory_is_bounded_for_any_answer(
    host: SimulatedHost, machine: Machine, python: str
) -> None:
    for answer in ANSWERS:
        host.misbehave("goalstate", raw_fault(answer), times=1)
    host.misbehave("goalstate", "endless-headers", times=1)
    host.misbehave("computer-name", raw_fault(ANSWERS[0]), times=1)
    tests = Path(sandbox.__file__).parent.parent
    command = [python, "-I", "-S", "-c", PRINT_PEAK, str(tests), str(machine.directory)]
    done = subprocess.run([*command, *host.options()], capture_output=True, text=True, check=True)
    status, peak = map(int, done.stdout.splitlines()[-1].split())
    assert status == 0
    assert sum(request.answer != "200" for request in host.requests) == len(ANSWERS) + 2
    assert peak < MEMORY_MAX, done.stderr
