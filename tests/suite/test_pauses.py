"""How long and how often: every pause, on a clock that the tests control."""

import os
import socket
from pathlib import Path
from typing import ClassVar, Iterator, List, Optional, Tuple

import pytest

import azure_provisioning
from conftest import HostFor
from world.clock import Run, script
from world.faults import retry_after
from world.host import SimulatedHost, raw_fault, status_fault
from world.machine import Machine

SLACK = 0.1  # seconds that the looks at the clock may take


@pytest.fixture
def run(machine: Machine, host: SimulatedHost) -> Run:
    return script(machine, host)


def test_a_healthy_boot_has_no_pause(run: Run) -> None:
    result = run()
    assert (result.status, result.pauses) == (0, [])


OLD_HOST = {"name": [1] * 60}  # the pauses until the VM's name is asked for


@pytest.mark.parametrize("endpoint", ["goalstate", "health", "computer-name", "name"])
@pytest.mark.parametrize("fault", ["500", "404", "409", "close", "body=", "not-http"])
def test_what_fails_is_tried_again_every_second(
    host_for: HostFor, run: Run, endpoint: str, fault: str
) -> None:
    host_for(endpoint).misbehave(endpoint, fault, times=7)
    result = run()
    assert result.status == 0
    accepts = (endpoint, fault) == ("health", "body=")
    pauses = len(OLD_HOST.get(endpoint, [])) + (0 if accepts else 7)
    assert result.pauses == [1] * pauses


@pytest.mark.parametrize("fault", ["404", "400", "body="])
@pytest.mark.parametrize(("options", "seconds"), [([], 60), (["--timeout=7"], 7)])
def test_the_name_of_the_vm_is_taken_only_after_a_minute_or_in_the_last_attempt(
    host: SimulatedHost, run: Run, machine: Machine, fault: str, options: List[str], seconds: int
) -> None:
    host.misbehave("computer-name", fault)
    result = run(*options)
    assert result.status == 0
    assert seconds <= result.seconds < seconds + SLACK
    assert machine.names == ["web-11", "web-11"]
    asked = [request.target.partition("?")[0][-12:] for request in host.requests[2:]]
    assert set(asked[:-1]) == {"computerName"}, "not before"
    assert asked[-1] == "compute/name", "in the same attempt"
    assert result.out[-2].endswith("; asking for the VM's name")


@pytest.mark.parametrize("fault", ["403", "410", "429", "500", "503", "close", "body=<html>"])
def test_the_name_of_the_vm_is_not_taken_where_the_host_does_not_say_that_it_has_no_other(
    host: SimulatedHost, run: Run, machine: Machine, fault: str
) -> None:
    host.misbehave("computer-name", fault)
    assert run().status == 3
    assert machine.names == ["old-name", "old-name"]
    assert not [request for request in host.requests if "compute/name" in request.target]


def test_a_computer_name_that_comes_late_is_still_the_name(
    host: SimulatedHost, run: Run, machine: Machine
) -> None:
    host.misbehave("computer-name", "404", times=59)
    assert run().status == 0
    assert machine.names == ["web000011", "web000011"]


@pytest.mark.parametrize(
    "endpoint, options, seconds",
    [
        ("goalstate", [], 1200),
        ("computer-name", [], 300),
        ("goalstate", ["--timeout=7"], 7),
        ("computer-name", ["--timeout=7"], 7),
        ("health", ["--timeout=3600"], 3600),
    ],
)
def test_at_the_deadline_there_is_one_last_attempt(
    host: SimulatedHost, run: Run, endpoint: str, options: List[str], seconds: int
) -> None:
    host.misbehave(endpoint, status_fault("429,Retry-After=60" if seconds > 1200 else "500"))
    result = run(*options)
    assert result.status == (3 if endpoint == "computer-name" else 1)
    assert seconds <= result.seconds < seconds + SLACK
    # All pauses are whole ones, but the last, which ends at the deadline.
    pause = 60 if seconds > 1200 else 1
    assert set(result.pauses[:-1]) == {pause}
    assert 0 < result.pauses[-1] <= pause
    assert result.err[-1].endswith("; giving up")


def test_ready_may_take_its_time_and_the_name_has_its_own(host: SimulatedHost, run: Run) -> None:
    host.misbehave("goalstate", "503,Retry-After=60", times=19)
    host.misbehave("computer-name", "503,Retry-After=60", times=4)
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
    assert run().pauses[len(OLD_HOST.get(endpoint, [])) :] == [pause]


def test_a_retry_after_does_not_outlast_the_deadline(host: SimulatedHost, run: Run) -> None:
    host.misbehave("goalstate", "503,Retry-After=60")
    result = run("--timeout=90")
    assert result.pauses[0] == 60
    assert 29.9 < result.pauses[1] <= 30


@pytest.mark.parametrize(("status", "accepted"), [(199, 0), (200, 1), (299, 1), (300, 0)])
def test_acceptance_is_200_to_299(
    host: SimulatedHost, run: Run, status: int, accepted: int
) -> None:
    host.misbehave("health", raw_fault(b"HTTP/1.1 %d Well\r\n\r\n" % status))
    assert run("--timeout=1").status == (0 if accepted else 1)


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
    monkeypatch.setattr(azure_provisioning, "told", {False: [], True: []})
    return clock


class Unreachable(socket.socket):
    """A socket that notes how long it may try to connect, and fails."""

    limits: ClassVar[List[Optional[float]]] = []

    def connect(self, _: object) -> None:
        self.limits.append(self.gettimeout())
        raise OSError("no route")


@pytest.mark.parametrize("uptime", [0.5, 10, 1000])
def test_a_connection_gets_five_seconds_and_no_more_than_are_left(
    clock: StoppedClock, monkeypatch: pytest.MonkeyPatch, uptime: float
) -> None:
    clock.now = uptime
    monkeypatch.setattr("socket.socket", Unreachable)
    monkeypatch.setattr(Unreachable, "limits", [])
    for seconds in (1200, 6, 4):
        with pytest.raises(OSError, match="no route"):
            azure_provisioning.exchange("http://127.0.0.1/", [], clock.now + seconds)
    assert Unreachable.limits == [5, 5, 4]


@pytest.mark.parametrize("uptime", [0.5, 1000])
def test_a_program_has_until_the_deadline(clock: StoppedClock, uptime: float) -> None:
    clock.now = uptime
    slow = ["sh", "-c", "sleep 1.5; echo done"]
    assert azure_provisioning.run(slow, clock.now + 10) == b"done\n"
    with pytest.raises(azure_provisioning.Failure, match="status -9"):
        azure_provisioning.run(slow, clock.now)


def test_a_connection_that_takes_until_the_deadline_leaves_no_time_for_an_answer(
    clock: StoppedClock, host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(socket.socket):
        def connect(self, address: Tuple[str, int]) -> None:  # type: ignore[override]
            super().connect(address)
            clock.now += 4

    monkeypatch.setattr("socket.socket", Slow)
    url = host.url("wireserver") + "/machine?comp=goalstate"
    headers = azure_provisioning.WIRESERVER_HEADERS
    assert azure_provisioning.exchange(url, headers, clock.now + 5).status == "200 OK"
    with pytest.raises(socket.timeout, match="timed out"):
        azure_provisioning.exchange(url, headers, clock.now + 4)


@pytest.mark.parametrize("late", [0, 0.5, 60])
def test_at_the_deadline_it_is_too_late_for_an_answer(
    clock: StoppedClock, host: SimulatedHost, late: float
) -> None:
    url = host.url("wireserver") + "/machine?comp=goalstate"
    with pytest.raises(socket.timeout):
        azure_provisioning.exchange(url, [], clock.now - late)


def test_the_attempt_at_the_deadline_is_the_last(clock: StoppedClock) -> None:
    attempts = []

    def attempt(options: object, deadline: float, patience: float) -> Iterator[str]:
        attempts.append((clock.now, deadline, patience))
        yield "A step"
        raise azure_provisioning.Failure("it failed")

    assert not azure_provisioning.persist(attempt, azure_provisioning.DEFAULTS, 2)
    assert attempts == [(1000, 1002, 1002), (1001, 1002, 1002), (1002, 1003, 1002)]


def test_the_name_of_the_vm_is_asked_for_from_the_very_end_of_the_minute(
    clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch_name(imds: str, leaf: Tuple[str, str], deadline: float) -> str:
        asked.append(leaf)
        raise azure_provisioning.Failure("there is none", absent=True)

    monkeypatch.setattr("azure_provisioning.fetch_name", fetch_name)
    attempt = azure_provisioning.set_name(azure_provisioning.DEFAULTS, clock.now + 9, clock.now)
    with pytest.raises(azure_provisioning.Failure):
        list(attempt)
    assert asked == [azure_provisioning.COMPUTER_NAME, azure_provisioning.VM_NAME]


def test_all_printable_characters_of_ascii_are_printed(capfd: pytest.CaptureFixture[str]) -> None:
    azure_provisioning.say("".join(map(chr, range(256))))
    visible = "".join(map(chr, range(32, 127)))
    assert capfd.readouterr().out == "?" * 32 + visible + "?" * 129 + "\n"


@pytest.mark.parametrize("uptime", [0.5, 10, 1000])
@pytest.mark.parametrize("remark", ["", "; trying again"])
def test_a_line_may_come_again_after_exactly_a_minute(
    clock: StoppedClock, capfd: pytest.CaptureFixture[str], uptime: float, remark: str
) -> None:
    clock.now = uptime
    for _ in range(5):
        azure_provisioning.tell("a line", remark)
        clock.now += 30
    assert capfd.readouterr().out.splitlines() == ["a line" + remark] * 3


@pytest.mark.parametrize("remark", ["", "; trying again"])
def test_ten_lines_of_a_kind_may_come_in_a_minute_and_then_ten_again(
    clock: StoppedClock, capfd: pytest.CaptureFixture[str], remark: str
) -> None:
    for number in range(120):
        azure_provisioning.tell(f"line {number}", remark)
        clock.now += 1
    lines = capfd.readouterr().out.splitlines()
    assert lines == [f"line {n}{remark}" for n in [*range(10), *range(60, 70)]]


def test_steps_and_failures_do_not_crowd_each_other_out(
    clock: StoppedClock, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(20):
        azure_provisioning.tell(f"step {number}")
    azure_provisioning.tell("it failed", "; trying again")
    assert len(capfd.readouterr().out.splitlines()) == 11


def test_what_was_told_is_not_remembered_for_ever(clock: StoppedClock) -> None:
    for number in range(10_000):
        azure_provisioning.tell(f"step {number}")
        azure_provisioning.tell(f"failure {number}", "; trying again")
        clock.now += 1
    assert sum(map(len, azure_provisioning.told.values())) <= 20


def test_lines_are_told_apart_by_their_first_400_characters(
    clock: StoppedClock, capfd: pytest.CaptureFixture[str]
) -> None:
    for line in ("x" * 400 + "a", "x" * 400 + "b", "x" * 399 + "a"):
        azure_provisioning.tell(line)
    assert capfd.readouterr().out.splitlines() == ["x" * 400, "x" * 399 + "a"]


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


def test_of_what_came_instead_the_first_80_bytes_are_printed(host: SimulatedHost, run: Run) -> None:
    host.misbehave("goalstate", raw_fault(b"x" * 100), times=1)
    host.misbehave("computer-name", f"body=<{'x' * 100}", times=1)
    assert [line.partition("; ")[0] for line in run().err] == [
        f"Goal state failed: the answer is cut short: {b'x' * 80!a}",
        f"Computer name failed: the answer is no name: {'<' + 'x' * 79!a}",
    ]


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


def test_failures_that_take_turns_are_printed_ten_times_a_minute(
    host: SimulatedHost, run: Run
) -> None:
    for status in ("500", "503") * 100:
        host.misbehave("goalstate", status, times=1)
    result = run("--timeout=119")
    assert len(result.err) == 10 + 10 + 1
    assert result.err[-1].endswith("; giving up")


def test_failures_that_all_differ_are_printed_ten_times_a_minute(
    host: SimulatedHost, run: Run
) -> None:
    for number in range(200):
        host.misbehave("goalstate", raw_fault(b"HTTP/1.1 500 Error %d\r\n\r\n" % number), times=1)
    result = run("--timeout=59")
    assert len(result.err) == 10 + 1
    assert result.err[-1].endswith("; giving up")


def test_a_dry_run_tries_again_like_any_other(host: SimulatedHost, run: Run) -> None:
    for endpoint in ("goalstate", "computer-name"):
        host.misbehave(endpoint, "503", times=2)
    result = run("--dry-run")
    assert (result.status, result.pauses) == (0, [1] * 4)
    assert result.out[2] == "Would report Ready:"
    assert result.out[-1] == "Would set the host name web000011"


@pytest.mark.parametrize("user", [0, 1000])
def test_only_who_is_not_root_is_told_to_be(
    host: SimulatedHost, run: Run, monkeypatch: pytest.MonkeyPatch, user: int
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setattr("azure_provisioning.STEP_SECONDS", 2)
    host.misbehave("goalstate", "silent", times=1)
    hint = " (you are not root: try again as root)" if user else ""
    assert run().err == [f"Goal state failed: timed out{hint}; trying again for 1200 s"]


def test_a_goal_state_that_changes_at_every_attempt_does_not_flood_the_journal(
    host: SimulatedHost, run: Run
) -> None:
    host.misbehave("health", "stale")
    result = run("--timeout=600")
    assert result.status == 1
    minutes = 600 // 60
    assert 5 * minutes <= len(result.out) <= 10 * minutes + 10, "nor does it fall silent"
    assert [line.partition("; ")[2] for line in result.err] == [
        *(f"trying again for {600 - 60 * minute} s" for minute in range(minutes)),
        "giving up",
    ]


def test_a_line_has_400_characters_and_ends_as_it_should(host: SimulatedHost, run: Run) -> None:
    host.vm = host.vm._replace(container_id="x" * 1000)
    host.misbehave("goalstate", raw_fault(b"HTTP/1.1 500 " + b"x" * 1000 + b"\r\n\r\n"), times=1)
    result = run()
    assert len(result.out[1]) == 400
    (line,) = result.err
    assert len(line) == 400
    assert line.endswith("x; trying again for 1200 s")
