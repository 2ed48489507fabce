"""Trouble in real time: outages, slow peers, signals, and output that nobody takes."""

import signal
import subprocess

import pytest

from conftest import heed_sigint, wait_until
from world.host import SimulatedHost
from world.machine import Machine


def test_ready_is_not_delayed_by_trouble_with_imds(host: SimulatedHost, command: list[str]) -> None:
    host.misbehave("imds", "silent")
    with subprocess.Popen([*command, "--timeout=1"], stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: host.accepted)
        assert process.poll() is None
    assert process.returncode == 3


@pytest.mark.parametrize("fault", ["silent", "500"])
def test_ctrl_c_ends_it_with_one_line(host: SimulatedHost, command: list[str], fault: str) -> None:
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
def test_say_changes_nothing_where_nobody_takes_it(
    host: SimulatedHost, machine: Machine, command: list[str], redirection: str
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
