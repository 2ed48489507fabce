"""Trouble in real time: outages, slow peers, signals, and output that nobody takes."""

import signal
import socket
import subprocess
import time
from typing import List

import pytest

from conftest import Run, heed_sigint, wait_until
from world.host import SimulatedHost, raw_fault
from world.machine import SLACK, Machine

SLOW = ["silent", "slow-headers", "slow-body"]


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
    assert result.err == ["Goal state failed: timed out; trying again for 1170 s"]
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


@pytest.mark.parametrize("endpoint", ["goalstate", "health", "computer-name"])
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
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_sigint,
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
    returns = time.time() + 3.3
    host.listen_after("wireserver", 3.3)
    assert run().status == 0
    (report,) = [request for request in host.requests if request.method == "POST"]
    assert report.when - returns < 1 + SLACK / 2
