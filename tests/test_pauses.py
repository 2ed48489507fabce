"""How long and how often: every pause, on a clock that the tests control."""

import http.client
import os
import socket
from pathlib import Path
from typing import List

import pytest

import azure_provisioning
from conftest import HostFor, Machine
from on_our_clock import Run, script
from simulated_host import SimulatedHost, body_fault, raw_fault, status_fault
from test_faults import retry_after

SLACK = 0.9  # seconds of real time that the requests may take


@pytest.fixture
def run(machine: Machine, host: SimulatedHost) -> Run:
    return script(machine, host)


def test_a_healthy_boot_has_no_pause(run: Run) -> None:
    result = run()
    assert (result.status, result.pauses) == (0, [])


@pytest.mark.parametrize("endpoint", ["goalstate", "health", "compute", "name"])
@pytest.mark.parametrize("fault", ["500", "404", "409", "close", "body=", "not-http"])
def test_what_fails_is_tried_again_every_second(
    host_for: HostFor, run: Run, endpoint: str, fault: str
) -> None:
    host_for(endpoint).misbehave(endpoint, fault, times=7)
    result = run()
    assert result.status == 0
    falls_back = (endpoint, fault) == ("compute", "404")
    accepts = (endpoint, fault) == ("health", "body=")
    assert result.pauses == ([] if falls_back or accepts else [1] * 7)


@pytest.mark.parametrize(
    "endpoint, options, seconds",
    [
        ("goalstate", [], 1200),
        ("compute", [], 300),
        ("goalstate", ["--timeout=7"], 7),
        ("compute", ["--timeout=7"], 7),
        ("health", ["--timeout=3600"], 3600),
    ],
)
def test_at_the_deadline_there_is_one_last_attempt(
    host: SimulatedHost, run: Run, endpoint: str, options: List[str], seconds: int
) -> None:
    host.misbehave(endpoint, status_fault("429,Retry-After=60" if seconds > 1200 else "500"))
    result = run(*options)
    assert result.status == (3 if endpoint == "compute" else 1)
    assert seconds <= result.seconds < seconds + SLACK
    # All pauses are whole ones, but the last, which ends at the deadline.
    pause = 60 if seconds > 1200 else 1
    assert set(result.pauses[:-1]) == {pause}
    assert 0 < result.pauses[-1] <= pause
    assert result.err[-1].endswith("; giving up")


def test_ready_may_take_its_time_and_the_name_has_its_own(host: SimulatedHost, run: Run) -> None:
    host.misbehave("goalstate", "503,Retry-After=60", times=19)
    host.misbehave("compute", "503,Retry-After=60", times=4)
    result = run()
    assert result.status == 0
    assert result.pauses == [60] * 23


@pytest.mark.parametrize(
    "status, value, pause",
    [
        (503, "0", 1),
        (503, "1", 1),
        (503, "2", 2),
        (429, "59", 59),
        (429, "60", 60),
        (503, "61", 60),
        (503, "9" * 1000, 60),
        (503, "-5", 1),
        (503, "2.5", 1),
        (503, "Wed, 21 Oct 2026 07:28:00 GMT", 1),
        (500, "30", 1),
        (502, "30", 1),
        (404, "30", 1),
    ],
)
@pytest.mark.parametrize("endpoint", ["goalstate", "health", "name"])
def test_a_retry_after_is_heeded(
    host_for: HostFor, run: Run, endpoint: str, status: int, value: str, pause: int
) -> None:
    host_for(endpoint).misbehave(endpoint, retry_after(status, value), times=1)
    assert run().pauses == [pause]


def test_a_retry_after_does_not_outlast_the_deadline(host: SimulatedHost, run: Run) -> None:
    host.misbehave("goalstate", "503,Retry-After=60")
    result = run("--timeout=90")
    assert result.pauses[0] == 60
    assert 29 <= result.pauses[1] <= 30


@pytest.mark.parametrize(("status", "accepted"), [(199, 0), (200, 1), (299, 1), (300, 0)])
def test_acceptance_is_200_to_299(
    host: SimulatedHost, run: Run, status: int, accepted: int
) -> None:
    host.misbehave("health", raw_fault(b"HTTP/1.1 %d Well\r\n\r\n" % status))
    assert run("--timeout=1").status == (0 if accepted else 1)


@pytest.mark.parametrize(("size", "fits"), [(1 << 20, True), ((1 << 20) + 1, False)])
def test_a_body_may_have_1_mib(host: SimulatedHost, run: Run, size: int, fits: bool) -> None:
    host.misbehave("compute", body_fault(b'{"name": "web000011"}'.ljust(size)))
    assert run("--timeout=1").status == (0 if fits else 3)


@pytest.mark.parametrize(("count", "fits"), [(20_000, True), (20_001, False)])
def test_a_body_may_have_20_000_parts(
    host: SimulatedHost, run: Run, count: int, fits: bool
) -> None:
    members = ",".join(['"a":[{}]'] * ((count - 2) // 3))  # three marks each, with the comma
    marks = "=" * (count - members.count(",") - 2 * members.count("[") - 2)
    host.misbehave("compute", body_fault(f'{{{members},"name":"web000011{marks}"}}'.encode()))
    assert run("--timeout=1").status == (0 if fits else 3)


class StoppedClock:
    """Stands for the time module; it moves when a test says so. The real one starts at boot."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0, "it would never end"
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    clock = StoppedClock()
    monkeypatch.setattr(azure_provisioning, "time", clock)
    monkeypatch.setattr(azure_provisioning, "said", [])
    return clock


@pytest.mark.parametrize("uptime", [0.5, 10, 1000])
def test_until_the_deadline_there_are_seconds_left(clock: StoppedClock, uptime: float) -> None:
    clock.now = uptime
    assert azure_provisioning.seconds_left(uptime + 1200) == 1200


def test_at_the_deadline_it_is_too_late(clock: StoppedClock) -> None:
    for late in (0, 0.5, 60):
        with pytest.raises(socket.timeout):
            azure_provisioning.seconds_left(clock.now - late)


def test_a_connection_gets_five_seconds_and_no_more_than_are_left(
    clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: List[float] = []

    class Unreachable(http.client.HTTPConnection):
        def connect(self) -> None:
            assert self.timeout is not None
            limits.append(self.timeout)
            raise OSError("no route")

    monkeypatch.setattr("http.client.HTTPConnection", Unreachable)
    for seconds in (1200, 6, 4):
        with pytest.raises(OSError, match="no route"):
            azure_provisioning.exchange("http://127.0.0.1/", {}, clock.now + seconds)
    assert limits == [5, 5, 4]


def test_the_attempt_at_the_deadline_is_the_last(clock: StoppedClock) -> None:
    attempts = []

    def attempt(options: object, deadline: float) -> None:
        attempts.append((clock.now, deadline))
        raise azure_provisioning.StepFailed("it failed", None, 1)

    assert not azure_provisioning.persist(attempt, azure_provisioning.DEFAULTS, 2)
    assert attempts == [(1000, 1002), (1001, 1002), (1002, 1003)]


@pytest.mark.parametrize("uptime", [0.5, 10, 1000])
def test_a_line_may_come_again_after_exactly_a_minute(
    clock: StoppedClock, capsys: pytest.CaptureFixture[str], uptime: float
) -> None:
    clock.now = uptime
    for _ in range(5):
        azure_provisioning.say("a line")
        clock.now += 30
    assert capsys.readouterr().out.splitlines() == ["a line"] * 3


def test_where_there_are_more_than_twenty_lines_no_trouble_is_added(
    clock: StoppedClock, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(21):
        azure_provisioning.say(f"step {number}")
    azure_provisioning.say("it failed", "; trying again")
    assert len(capsys.readouterr().out.splitlines()) == 21


# ---- What would show only at a power cut, or in another order


def test_the_new_name_is_on_disk_before_it_takes_the_old_ones_place(
    machine: Machine, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: List[str] = []
    rename = os.rename

    def note_fsync(number: int) -> None:
        events.append("on disk: " + Path(f"/proc/self/fd/{number}").read_text())

    def note_rename(old: str, new: str) -> None:
        events.append("in place")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    machine.install_hostnamectl("")
    assert run().status == 0
    assert events == ["on disk: web000011\n", "in place", "on disk: web000011\n"]


# ---- What is printed, and when


def test_a_failure_that_lasts_is_printed_every_minute(host: SimulatedHost, run: Run) -> None:
    host.misbehave("goalstate", "500")
    result = run("--timeout=125")
    assert [line.partition("; ")[2] for line in result.err] == [
        "trying again for 125 s",
        "trying again for 65 s",
        "trying again for 5 s",
        "giving up",
    ]
    assert len(result.out) == 3, "the step, too, is printed every minute"


def test_a_failure_that_changes_is_printed_at_once(host: SimulatedHost, run: Run) -> None:
    for status in ("500", "503", "500"):
        host.misbehave("goalstate", status, times=2)
    assert [line.split()[6] for line in run().err] == ["500", "503", "500"]


def test_failures_that_take_turns_are_printed_twenty_times_a_minute(
    host: SimulatedHost, run: Run
) -> None:
    for status in ("500", "503") * 100:
        host.misbehave("goalstate", status, times=1)
    result = run("--timeout=119")
    # Each minute has one line for the step.
    assert len(result.err) == 19 + 19 + 1
    assert result.err[-1].endswith("; giving up")


def test_failures_that_all_differ_are_printed_twenty_times_a_minute(
    host: SimulatedHost, run: Run
) -> None:
    for number in range(200):
        host.misbehave("goalstate", raw_fault(b"HTTP/1.1 500 Error %d\r\n\r\n" % number), times=1)
    result = run("--timeout=59")
    assert len(result.err) == 19 + 1
    assert result.err[-1].endswith("; giving up")


@pytest.mark.parametrize("user", [0, 1000])
def test_only_who_is_not_root_is_told_to_be(
    host: SimulatedHost, run: Run, monkeypatch: pytest.MonkeyPatch, user: int
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setattr("azure_provisioning.STEP_SECONDS", 0.1)
    host.misbehave("goalstate", "silent", times=1)
    hint = " (you are not root: try again as root)" if user else ""
    assert run().err == [f"Goal state failed: timed out{hint}; trying again for 1200 s"]


def test_a_line_has_400_characters_and_a_reason_300(host: SimulatedHost, run: Run) -> None:
    host.vm = host.vm._replace(container_id="x" * 1000)
    host.misbehave("goalstate", raw_fault(b"HTTP/1.1 500 " + b"x" * 1000 + b"\r\n\r\n"), times=1)
    result = run()
    assert len(result.out[1]) == 400
    (line,) = result.err
    assert len(line.partition(";")[0]) == len("Goal state failed: ") + 300
