"""Trouble at each endpoint: it is retried until it is over, or reported when the time is."""

import signal
import socket
import subprocess
import threading
import time
from typing import List

import pytest

from azure_provisioning import LINES_MAX
from conftest import SLACK, Machine, Run, wait_until
from simulated_host import OLD_IMDS_VERSIONS, SimulatedHost, raw_fault

STEPS = {
    "goalstate": "Goal state",
    "health": "Health report",
    "compute": "Compute document",
    "name": "Plain name",
}
STATUSES = "301 302 400 401 403 404 408 409 410 429 500 502 503 504".split()
QUICK = [
    *STATUSES,
    "reset",
    "close",
    "not-http",
    "truncated",
    "truncated-chunk",
    "bad-chunk",
    "huge",
    "negative-chunk",
    "endless-chunks",
    "endless-trailers",
    "endless-100",
    "endless-headers",
    "endless-line",
    "body=",
    "body=<html>no</html>",
    'body={"name": 7}',
]
SLOW = ["silent", "slow-headers", "slow-body"]
# What is no fault: any 2xx is an acceptance, any text is a plain name, and after a 400 or a 404 to
# the compute document the plain name is asked for at once.
FINE = {
    "goalstate": [],
    "health": [
        *("truncated", "truncated-chunk", "bad-chunk", "huge", "slow-body"),
        *("negative-chunk", "endless-chunks", "endless-trailers"),
        *(fault for fault in QUICK if fault.startswith("body=")),
    ],
    "compute": ["400", "404"],
    "name": [fault for fault in QUICK if fault.startswith("body=")],
}
TROUBLE = [
    (endpoint, fault) for endpoint in STEPS for fault in QUICK if fault not in FINE[endpoint]
]
ENDLESS = [
    (endpoint, fault)
    for endpoint in STEPS
    for fault in ["500", "302", "close", *SLOW]
    if fault not in FINE[endpoint]
]


def prepare(host: SimulatedHost, endpoint: str) -> None:
    if endpoint == "name":
        host.imds_versions = OLD_IMDS_VERSIONS


@pytest.mark.parametrize("endpoint, fault", TROUBLE)
def test_trouble_that_passes_is_only_a_delay(
    host: SimulatedHost, run: Run, machine: Machine, endpoint: str, fault: str
) -> None:
    prepare(host, endpoint)
    host.misbehave(endpoint, fault, times=1)
    result = run("--timeout=10")
    assert result.status == 0
    assert len(host.accepted) == 1
    name = "web-11" if endpoint == "name" else "web000011"
    assert machine.names == [name, name]
    (line,) = result.err
    assert line.startswith(f"{STEPS[endpoint]} failed: ")
    assert "; trying again for " in line
    assert 1 <= result.seconds < 1 + SLACK


@pytest.mark.parametrize("endpoint, fault", ENDLESS)
def test_trouble_that_never_ends_is_reported_at_the_deadline(
    host: SimulatedHost, run: Run, machine: Machine, endpoint: str, fault: str
) -> None:
    prepare(host, endpoint)
    host.misbehave(endpoint, fault)
    result = run("--timeout=2")
    reported = endpoint in ("compute", "name")
    assert result.status == (3 if reported else 1)
    assert len(host.accepted) == reported
    assert machine.names == ["old-name", "old-name"]
    assert result.err[-1].startswith(f"{STEPS[endpoint]} failed: ")
    assert result.err[-1].endswith("; giving up")
    assert 2 <= result.seconds < 2 + SLACK


@pytest.mark.parametrize("service", ["wireserver", "imds"])
def test_a_service_that_comes_late_is_only_a_delay(
    host: SimulatedHost, run: Run, machine: Machine, service: str
) -> None:
    host.listen_after(service, 2.5)
    result = run()
    assert result.status == 0
    assert machine.names == ["web000011", "web000011"]
    assert len(host.accepted) == 1
    assert len(result.err) == 1
    assert "Connection refused" in result.err[0]
    assert 2.5 <= result.seconds < 3.5 + SLACK


@pytest.mark.parametrize("fault", SLOW)
def test_an_exchange_has_thirty_seconds_whatever_the_pace_of_the_peer(
    host: SimulatedHost, run: Run, fault: str
) -> None:
    host.misbehave("goalstate", fault, times=1)
    result = run()
    assert result.status == 0
    assert result.err[0].startswith("Goal state failed: timed out")
    assert 31 <= result.seconds < 31 + SLACK


def test_where_packets_vanish_a_connection_is_tried_anew_after_five_seconds(
    host: SimulatedHost, run: Run
) -> None:
    with socket.socket() as vanishing, socket.socket() as first, socket.socket() as second:
        # Linux drops connection requests to a listener whose queue is full.
        vanishing.bind(("127.0.0.1", 0))
        vanishing.listen(0)
        first.connect(vanishing.getsockname())
        second.setblocking(False)
        second.connect_ex(vanishing.getsockname())
        port = vanishing.getsockname()[1]
        result = run(f"--wireserver=http://127.0.0.1:{port}", "--timeout=7")
    assert result.status == 1
    assert result.err[0].startswith("Goal state failed: timed out")
    assert result.err[0].endswith("; trying again for 2 s")


def test_each_attempt_fetches_the_goal_state_anew(host: SimulatedHost, run: Run) -> None:
    host.misbehave("health", "stale", times=2)
    result = run()
    assert result.status == 0
    assert [request.answer for request in host.requests[:6]] == [
        "200",
        "stale",
        "200",
        "stale",
        "200",
        "200",
    ]
    assert b"<GoalStateIncarnation>3<" in host.accepted[0]


@pytest.mark.parametrize("endpoint", ["goalstate", "health", "compute"])
@pytest.mark.parametrize("status", ["429", "503"])
def test_retry_after_is_honoured(host: SimulatedHost, run: Run, endpoint: str, status: str) -> None:
    host.misbehave(endpoint, f"{status},Retry-After=3", times=1)
    result = run()
    assert result.status == 0
    assert 3 <= result.seconds < 3 + SLACK


def test_retry_after_does_not_outlast_the_deadline(host: SimulatedHost, run: Run) -> None:
    host.misbehave("goalstate", "503,Retry-After=3600")
    result = run("--timeout=2")
    assert result.status == 1
    assert 2 <= result.seconds < 2 + SLACK


def test_a_return_at_the_very_end_is_still_seen(host: SimulatedHost, run: Run) -> None:
    host.misbehave("goalstate", "503,Retry-After=60", times=1)
    assert run("--timeout=2").status == 0


def test_a_redirect_is_not_followed(host: SimulatedHost, run: Run) -> None:
    target = host.url("imds") + "/elsewhere"
    host.misbehave("goalstate", f"302,Location={target}")
    assert run("--timeout=1").status == 1
    assert {request.service for request in host.requests} == {"wireserver"}


def test_imds_trouble_does_not_delay_ready(host: SimulatedHost, command: List[str]) -> None:
    host.misbehave("imds", "silent")
    with subprocess.Popen([*command, "--timeout=3"], stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: host.accepted)
        assert process.poll() is None
    assert process.returncode == 3


def test_the_same_failure_is_printed_once(host: SimulatedHost, run: Run) -> None:
    host.misbehave("goalstate", "500")
    result = run("--timeout=5")
    assert len(host.requests) >= 5
    assert result.out == [f"Fetching the goal state from {host.url('wireserver')}"]
    assert result.err == [
        "Goal state failed: the answer is 500 Internal Server Error; trying again for 5 s",
        "Goal state failed: the answer is 500 Internal Server Error; giving up",
    ]


def test_a_failure_that_lasts_is_printed_again_after_a_minute(
    host: SimulatedHost, run: Run
) -> None:
    host.misbehave("goalstate", "500")
    result = run("--timeout=62")
    assert [line.partition("; ")[2] for line in result.err] == [
        "trying again for 62 s",
        "trying again for 2 s",
        "giving up",
    ]


def test_a_failure_that_returns_is_printed_again(host: SimulatedHost, run: Run) -> None:
    for status in ("500", "503", "500"):
        host.misbehave("goalstate", status, times=2)
    assert [line.split()[6] for line in run().err] == ["500", "503", "500"]


def test_failures_that_take_turns_do_not_flood_the_journal(host: SimulatedHost, run: Run) -> None:
    for status in ("500", "503") * 20:
        host.misbehave("goalstate", status, times=1)
    result = run("--timeout=30")
    assert len(host.requests) >= 25
    assert len(result.err) == LINES_MAX


def test_failures_that_all_differ_do_not_flood_the_journal(host: SimulatedHost, run: Run) -> None:
    for number in range(100):
        host.misbehave("goalstate", raw_fault(b"HTTP/1.1 500 Error %d\r\n\r\n" % number), times=1)
    result = run("--timeout=30")
    assert len(host.requests) >= 25
    assert len(result.err) == LINES_MAX
    assert result.err[-1].endswith("; giving up")


def test_another_failure_is_printed_at_once(host: SimulatedHost, run: Run) -> None:
    host.misbehave("goalstate", "500", times=2)
    host.misbehave("health", "503", times=2)
    result = run()
    assert [line.partition(";")[0] for line in result.err] == [
        "Goal state failed: the answer is 500 Internal Server Error",
        "Health report failed: the answer is 503 Service Unavailable",
    ]
    assert len(result.out) == len(set(result.out)), "steps, too, are printed once"


def test_what_a_peer_sends_cannot_steer_a_terminal(host: SimulatedHost, run: Run) -> None:
    host.misbehave("goalstate", "body=\x1b[2J\n", times=1)
    host.misbehave(
        "goalstate",
        raw_fault(b"HTTP/1.1 500 \x1b[31m\xff\x07" + b"x" * 9000 + b"\r\n\r\n"),
        times=1,
    )
    result = run()
    assert result.status == 0
    assert all(line.isprintable() and line.isascii() for line in result.err)
    assert all(len(line) < 500 for line in result.err)


def test_lines_come_as_they_happen(host: SimulatedHost, command: List[str]) -> None:
    host.misbehave("goalstate", "silent")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("Fetching the goal state")
        process.kill()


@pytest.mark.parametrize("endpoint", ["goalstate", "health", "compute"])
@pytest.mark.parametrize("fault", ["silent", "500"])
def test_sigterm_ends_it_at_once(
    host: SimulatedHost, command: List[str], endpoint: str, fault: str
) -> None:
    host.misbehave(endpoint, fault)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        wait_until(lambda: host.requests[-1:] and host.requests[-1].answer == fault)
        start = time.monotonic()
        process.terminate()
        assert process.wait() != 0
        assert time.monotonic() - start < SLACK


@pytest.mark.parametrize("fault", ["silent", "500"])
def test_ctrl_c_ends_it_with_one_line(host: SimulatedHost, command: List[str], fault: str) -> None:
    host.misbehave("goalstate", fault)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: host.requests)
        process.send_signal(signal.SIGINT)
        lines = process.communicate()[1].splitlines()
    assert process.returncode == 130
    assert lines[-1] == "Interrupted"
    assert [line for line in lines[:-1] if not line.startswith("Goal state failed")] == []


def test_a_reader_that_goes_away_changes_nothing(
    host: SimulatedHost, machine: Machine, command: List[str]
) -> None:
    host.misbehave("goalstate", "500", times=1)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout
        process.stdout.close()
    assert process.returncode == 0
    assert len(host.accepted) == 1
    assert machine.names == ["web000011", "web000011"]


def test_a_full_disk_for_its_output_changes_nothing(
    host: SimulatedHost, command: List[str]
) -> None:
    with open("/dev/full", "w") as full:
        assert subprocess.call(command, stdout=full, stderr=full) == 0
    assert len(host.accepted) == 1


def test_closed_output_changes_nothing(host: SimulatedHost, command: List[str]) -> None:
    closed = ["sh", "-c", 'exec "$0" "$@" >&- 2>&-', *command]
    assert subprocess.call(closed) == 0
    assert len(host.accepted) == 1


def test_ready_goes_out_within_about_a_second_of_the_return(host: SimulatedHost, run: Run) -> None:
    host.refuse("wireserver")
    returned: List[float] = []

    def bring_back() -> None:
        returned.append(time.time())
        host.listen("wireserver")

    timer = threading.Timer(3.3, bring_back)
    timer.start()
    assert run().status == 0
    (report,) = [request for request in host.requests if request.method == "POST"]
    assert report.when - returned[0] < 1 + SLACK / 2
