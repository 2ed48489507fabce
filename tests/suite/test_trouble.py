"""Trouble in real time: outages, slow peers, signals, and output that nobody takes."""

import signal
import socket
import subprocess
import time
from typing import List

import pytest

import azure_provisioning
from conftest import Run, heed_sigint, wait_until
from world.host import SimulatedHost
from world.machine import SLACK, Machine


@pytest.mark.parametrize("service", ["wireserver", "imds"])
def test_a_service_that_comes_late_is_only_a_delay(
    host: SimulatedHost, run: Run, machine: Machine, service: str
) -> None:
    host.listen_after(service, 1.5)
    result = run()
    assert result.status == 0
    assert machine.names == ["web000011", "web000011"]
    assert len(host.accepted) == 1
    assert len(result.err) == 1
    assert "Connection refused" in result.err[0]
    assert 1.5 <= result.seconds < 2.5 + SLACK


@pytest.mark.parametrize("fault", ["silent", "slow-headers", "slow-body"])
def test_an_exchange_ends_in_its_time_whatever_the_pace_of_the_peer(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(azure_provisioning, "STEP_SECONDS", 1)
    host.misbehave("goalstate", fault)
    url, start = host.url("wireserver") + "/machine?comp=goalstate", time.monotonic()
    with pytest.raises(socket.timeout):
        azure_provisioning.exchange(url, "", start + 1200, b"")
    assert 1 <= time.monotonic() - start < 1 + SLACK


def test_where_packets_vanish_a_connection_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(azure_provisioning, "CONNECT_SECONDS", 0.5)
    with socket.socket() as vanishing, socket.socket() as first, socket.socket() as second:
        # Linux drops connection requests to a listener whose queue is full.
        vanishing.bind(("127.0.0.1", 0))
        vanishing.listen(0)
        first.connect(vanishing.getsockname())
        second.setblocking(False)
        second.connect_ex(vanishing.getsockname())
        url, start = f"http://127.0.0.1:{vanishing.getsockname()[1]}/", time.monotonic()
        with pytest.raises(socket.timeout):
            azure_provisioning.exchange(url, "", start + 1200, b"")
    assert 0.5 <= time.monotonic() - start < 0.5 + SLACK


def test_imds_trouble_does_not_delay_ready(host: SimulatedHost, command: List[str]) -> None:
    host.misbehave("imds", "silent")
    with subprocess.Popen([*command, "--timeout=1"], stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: host.accepted)
        assert process.poll() is None
    assert process.returncode == 3


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


@pytest.mark.parametrize("redirection", ["2>&1 | true", ">/dev/full 2>&1", ">&- 2>&-", "2>&-"])
def test_output_that_nobody_takes_changes_nothing(
    host: SimulatedHost, machine: Machine, command: List[str], redirection: str
) -> None:
    host.misbehave("goalstate", "500", times=1)
    # The reader has gone before the script starts.
    shell = f'(sleep 0.2; "$@"; echo $? >&3) {redirection}'
    done = subprocess.run(
        ["bash", "-c", f"{{ {shell}; }} 3>&1 >/dev/null 2>&1", "bash", *command],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.stdout == "0\n"
    assert len(host.accepted) == 1
    assert machine.names == ["web000011", "web000011"]
