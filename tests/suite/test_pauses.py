"""How long and how often, and what is said of it: on a clock that the tests control."""

import socket
from typing import Any, ClassVar, List, Optional, Tuple

import pytest

import azure_provisioning
from conftest import HostFor
from world.clock import Run
from world.host import SimulatedHost, Vm, raw_fault
from world.machine import Machine

SLACK = 0.1  # seconds that the looks at the clock may take


def test_a_healthy_boot_has_no_pause(run_here: Run) -> None:
    result = run_here()
    assert (result.status, result.pauses) == (0, [])


OLD_HOST = {"name": [1] * 60}  # the pauses until the VM's name is asked for


@pytest.mark.parametrize("endpoint", ["goalstate", "health", "computer-name", "name"])
@pytest.mark.parametrize("fault", ["500", "404", "503,Retry-After=60", "close", "not-http"])
def test_what_fails_is_tried_again_every_second(
    host_for: HostFor, run_here: Run, endpoint: str, fault: str
) -> None:
    host_for(endpoint).misbehave(endpoint, fault, times=7)
    result = run_here()
    assert result.status == 0
    assert result.pauses == [*OLD_HOST.get(endpoint, []), *[1] * 7]


# ---- When the VM's name is taken for want of a computer name


def asked(host: SimulatedHost) -> List[str]:
    """Return the leaves that IMDS was asked for."""
    leaves = [one.target.partition("?")[0] for one in host.requests if one.service == "imds"]
    return [leaf.rpartition("/")[2] for leaf in leaves]


@pytest.mark.parametrize("fault", ["404", "400", "body="])
@pytest.mark.parametrize(("options", "seconds"), [([], 60), (["--timeout=7"], 7)])
def test_the_name_of_the_vm_is_taken_only_after_a_minute_or_in_the_last_attempt(
    host: SimulatedHost,
    run_here: Run,
    machine: Machine,
    fault: str,
    options: List[str],
    seconds: int,
) -> None:
    host.misbehave("computer-name", fault)
    result = run_here(*options)
    assert result.status == 0
    assert seconds <= result.seconds < seconds + SLACK
    assert machine.names == ["web-11", "web-11"]
    *before, last = asked(host)
    assert set(before) == {"computerName"}, "not before"
    assert last == "name", "in the same attempt"
    assert result.out[-2].endswith("; asking for the VM's name")


@pytest.mark.parametrize(
    "outage",
    [["503"] * 66 + ["404"], ["reset"] * 62 + ["body="], ["404"] * 59 + ["503", "404"]],
    ids=["IMDS down, then ill", "no IMDS, then nothing", "none, but for an error"],
)
def test_an_outage_does_not_count_as_having_no_computer_name(
    host: SimulatedHost, run_here: Run, machine: Machine, outage: List[str]
) -> None:
    for fault in outage:
        host.misbehave("computer-name", fault, times=1)
    assert run_here().status == 0
    assert machine.names == ["web000011", "web000011"]


def test_after_anything_else_the_minute_without_a_computer_name_starts_anew(
    host: SimulatedHost, run_here: Run, machine: Machine
) -> None:
    host.misbehave("computer-name", "503", times=10)
    host.misbehave("computer-name", "404")
    result = run_here()
    assert result.status == 0
    assert machine.names == ["web-11", "web-11"]
    assert 70 <= result.seconds < 70 + SLACK


@pytest.mark.parametrize("other", ["503", "close", "body=Service Unavailable"])
@pytest.mark.parametrize("seconds", [7, 61])
def test_in_the_last_attempt_too_there_is_rather_no_name_than_a_wrong_one(
    host: SimulatedHost, run_here: Run, machine: Machine, other: str, seconds: int
) -> None:
    host.misbehave("computer-name", other, times=2)
    host.misbehave("computer-name", "404")
    assert run_here(f"--timeout={seconds}").status == 3
    assert machine.names == ["old-name", "old-name"]
    assert set(asked(host)) == {"computerName"}


def test_trouble_with_the_vms_name_does_not_start_the_minute_anew(
    host: SimulatedHost, run_here: Run, machine: Machine
) -> None:
    host.misbehave("computer-name", "404")
    host.misbehave("name", "503", times=3)
    result = run_here()
    assert result.status == 0
    assert 63 <= result.seconds < 63 + SLACK
    assert machine.names == ["web-11", "web-11"]


@pytest.mark.parametrize("fault", ["403", "410", "429", "500", "503", "close", "body=<html>"])
def test_the_name_of_the_vm_is_not_taken_where_the_host_does_not_say_that_it_has_no_other(
    host: SimulatedHost, run_here: Run, machine: Machine, fault: str
) -> None:
    host.misbehave("computer-name", fault)
    assert run_here().status == 3
    assert machine.names == ["old-name", "old-name"]
    assert set(asked(host)) == {"computerName"}


def test_a_computer_name_that_comes_late_is_still_the_name(
    host: SimulatedHost, run_here: Run, machine: Machine
) -> None:
    host.misbehave("computer-name", "404", times=59)
    assert run_here().status == 0
    assert machine.names == ["web000011", "web000011"]


# ---- Deadlines


@pytest.mark.parametrize(
    "endpoint, options, seconds",
    [
        ("goalstate", [], 1200),
        ("computer-name", [], 300),
        ("health", ["--timeout=7.5"], 7.5),
        ("computer-name", ["--timeout=7"], 7),
    ],
)
def test_at_the_deadline_there_is_one_last_attempt(
    host: SimulatedHost, run_here: Run, endpoint: str, options: List[str], seconds: float
) -> None:
    host.misbehave(endpoint, "500")
    result = run_here(*options)
    assert result.status == (3 if endpoint == "computer-name" else 1)
    assert seconds <= result.seconds < seconds + SLACK
    # All pauses are whole ones, but the last, which ends at the deadline.
    assert set(result.pauses[:-1]) == {1}
    assert 0 < result.pauses[-1] <= 1
    assert result.err[-1].endswith("; giving up")


def test_a_return_at_the_very_end_is_still_seen(host: SimulatedHost, run_here: Run) -> None:
    host.misbehave("goalstate", "503", times=2)
    assert run_here("--timeout=2").status == 0


def test_ready_may_take_its_time_and_the_name_has_its_own(
    host: SimulatedHost, run_here: Run
) -> None:
    host.misbehave("goalstate", "503", times=1199)
    host.misbehave("computer-name", "503", times=299)
    result = run_here()
    assert (result.status, len(result.pauses)) == (0, 1199 + 299)


class StoppedClock:
    """Stands for the time module; it moves when a test says so. The real one starts at boot."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    clock = StoppedClock()
    monkeypatch.setattr(azure_provisioning, "time", clock)
    monkeypatch.setattr(azure_provisioning, "told", {})
    return clock


@pytest.mark.parametrize("uptime", [10, 1000])
def test_the_name_of_the_vm_is_asked_for_from_the_very_end_of_the_minute(
    clock: StoppedClock, monkeypatch: pytest.MonkeyPatch, uptime: float
) -> None:
    clock.now = uptime
    asked: List[str] = []

    def fetch(imds: str, leaf: str, deadline: float) -> bytes:
        asked.append(leaf)
        assert deadline == uptime + 300
        if leaf == azure_provisioning.COMPUTER_NAME:
            raise azure_provisioning.Absent("there is none")
        return b"vm"

    def set_host_name(name: str, deadline: float) -> None:
        assert (name, deadline) == ("vm", uptime + 300)

    monkeypatch.setattr(azure_provisioning, "fetch", fetch)
    monkeypatch.setattr(azure_provisioning, "set_host_name", set_host_name)
    assert azure_provisioning.set_name("", 300, dry_run=False)
    assert asked == [azure_provisioning.COMPUTER_NAME] * 61 + [azure_provisioning.VM_NAME]


def test_an_attempt_that_fails_at_the_very_deadline_was_the_last(clock: StoppedClock) -> None:
    assert not azure_provisioning.pause("A step", OSError("why"), clock.now)


@pytest.mark.parametrize(
    "left, seconds", [(1200, 30), (30, 30), (29, 29), (1.5, 1.5), (1, 1), (0.5, 1), (0, 1), (-9, 1)]
)
def test_a_step_has_thirty_seconds_or_until_the_deadline_but_a_second_in_the_last_attempt(
    clock: StoppedClock, left: float, seconds: float
) -> None:
    assert azure_provisioning.step_seconds(clock.now + left) == seconds


class Peer(socket.socket):
    """A socket that notes how long it may wait, and whose connection takes some time."""

    limits: ClassVar[List[Optional[float]]] = []
    clock: ClassVar[Any] = None
    takes: ClassVar[float] = 0

    def connect(self, address: Tuple[str, int]) -> None:  # type: ignore[override]
        self.limits.append(self.gettimeout())
        self.clock.now += self.takes
        super().connect(address)

    def recv(self, *arguments: int) -> bytes:
        self.limits.append(self.gettimeout())
        return super().recv(*arguments)


@pytest.mark.parametrize(
    "left, takes, limits",
    [
        (1200, 0, [5, 30]),  # to connect, and then for the rest
        (1200, 4, [5, 26]),
        (6, 0, [5, 6]),
        (4, 3, [4, 1]),
        (4, 4, [4, 0.001]),  # too late: as good as nothing, where 0 would have another meaning
        (4, 60, [4, 0.001]),
    ],
)
def test_a_connection_gets_five_seconds_and_the_answer_what_it_leaves(
    clock: StoppedClock,
    host: SimulatedHost,
    monkeypatch: pytest.MonkeyPatch,
    left: float,
    takes: float,
    limits: List[float],
) -> None:
    monkeypatch.setattr("socket.socket", Peer)
    for name, value in {"limits": [], "clock": clock, "takes": takes}.items():
        monkeypatch.setattr(Peer, name, value)
    host.misbehave("goalstate", "silent" if takes >= left else "close")
    url = host.url("wireserver") + "/machine?comp=goalstate"
    with pytest.raises(socket.timeout if takes >= left else ValueError):
        azure_provisioning.exchange(url, "", clock.now + left, b"")
    assert Peer.limits == limits


# ---- What is said, and when


def test_all_printable_characters_of_ascii_are_printed(capfd: pytest.CaptureFixture[str]) -> None:
    azure_provisioning.say("".join(map(chr, range(256))))
    visible = "".join(map(chr, range(32, 127)))
    assert capfd.readouterr().out == "?" * 32 + visible + "?" * 129 + "\n"


@pytest.mark.parametrize("uptime", [0.5, 10, 1000])
def test_a_line_may_come_again_after_exactly_a_minute(
    clock: StoppedClock, capfd: pytest.CaptureFixture[str], uptime: float
) -> None:
    clock.now = uptime
    for number in range(5):
        azure_provisioning.tell("a line", f"; remark {number}")
        clock.now += 30
    assert capfd.readouterr().out.splitlines() == [f"a line; remark {n}" for n in (0, 2, 4)]


def test_of_what_came_instead_the_first_80_bytes_are_printed(
    host: SimulatedHost, run_here: Run
) -> None:
    host.misbehave("goalstate", raw_fault(b"x" * 100), times=1)
    host.misbehave("computer-name", f"body=<{'x' * 100}", times=1)
    assert [line.partition("; ")[0] for line in run_here().err] == [
        f"Goal state failed: the answer is cut short: {b'x' * 80!a}",
        f"Computer name failed: the answer is no name: {'<' + 'x' * 79!a}",
    ]


def test_a_failure_that_lasts_is_printed_every_minute(host: SimulatedHost, run_here: Run) -> None:
    host.misbehave("goalstate", "500")
    result = run_here("--timeout=125")
    assert [line.partition("; ")[2] for line in result.err] == [
        "trying again for 125 s",
        "trying again for 65 s",
        "trying again for 5 s",
        "giving up",
    ]
    assert len(result.out) == 3, "the step, too, is printed every minute"


def test_another_failure_is_printed_at_once_and_those_that_take_turns_every_minute(
    host: SimulatedHost, run_here: Run
) -> None:
    for status in ("500", "503") * 60:
        host.misbehave("goalstate", status, times=1)
    assert [line.split()[6] for line in run_here().err] == ["500", "503", "500", "503"]


def test_the_step_that_fails_is_named(host: SimulatedHost, run_here: Run) -> None:
    host.misbehave("goalstate", "500", times=2)
    host.misbehave("health", "503", times=2)
    result = run_here()
    assert [line.partition(";")[0] for line in result.err] == [
        "Goal state failed: the answer is 500 Internal Server Error",
        "Health report failed: the answer is 503 Service Unavailable",
    ]
    assert len(result.out) == len(set(result.out)), "steps, too, are printed once"


def test_each_attempt_fetches_the_goal_state_anew(host: SimulatedHost, run_here: Run) -> None:
    host.misbehave("health", "stale", times=2)
    assert run_here().status == 0
    answers = [request.answer for request in host.requests]
    assert answers == ["200", "stale", "200", "stale", "200", "200", "200"]
    assert b"<GoalStateIncarnation>3<" in host.accepted[0]


def test_a_dry_run_tries_again_like_any_other(host: SimulatedHost, run_here: Run) -> None:
    for endpoint in ("goalstate", "computer-name"):
        host.misbehave(endpoint, "503", times=2)
    result = run_here("--dry-run")
    assert (result.status, result.pauses) == (0, [1] * 4)
    assert result.out[2] == "Would report Ready:"
    assert result.out[-1] == "Would set the host name web000011"


@pytest.mark.parametrize("user", [0, 1000])
def test_only_who_is_not_root_is_told_to_be(
    host: SimulatedHost, run_here: Run, monkeypatch: pytest.MonkeyPatch, user: int
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setattr("azure_provisioning.STEP_SECONDS", 1)
    host.misbehave("goalstate", "silent", times=1)
    hint = " (you are not root: try again as root)" if user else ""
    assert run_here().err == [f"Goal state failed: timed out{hint}; trying again for 1200 s"]


def test_what_one_attempt_a_second_says_is_within_what_journald_takes(
    host: SimulatedHost, run_here: Run
) -> None:
    """By default 10,000 lines in 30 seconds; here every line differs."""
    host.misbehave("health", "stale")
    result = run_here("--timeout=600")
    assert result.status == 1
    assert len(result.out) + len(result.err) < 600 * 5


def test_a_line_has_400_characters_and_ends_as_it_should(
    host: SimulatedHost, run_here: Run
) -> None:
    host.vm = Vm("vm", "web000011", container_id="x" * 1000)
    host.misbehave("goalstate", raw_fault(b"HTTP/1.1 500 " + b"x" * 1000 + b"\r\n\r\n"), times=1)
    result = run_here()
    assert len(result.out[1]) == 400
    (line,) = result.err
    assert len(line) == 400
    assert line.endswith("x; trying again for 1200 s")
