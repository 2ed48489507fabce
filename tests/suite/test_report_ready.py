"""report_ready and pause: what is tried again, when, and until when, on the tests' clock."""

import socket

import pytest

from azure_provisioning import GaveUp, pause, report_ready
from world.clock import Run, StoppedClock
from world.host import SimulatedHost

SLACK = 0.1  # seconds that the looks at the clock may take


def test_report_ready_sends_two_requests_and_tells_each_step(
    host: SimulatedHost, stopped_clock: StoppedClock, capfd: pytest.CaptureFixture[str]
) -> None:
    report_ready(host.url("wireserver"), 1200, dry_run=False)
    assert [(one.method, one.target, one.answer) for one in host.requests] == [
        ("GET", "/machine?comp=goalstate", "200"),
        ("POST", "/machine?comp=health", "200"),
    ]
    ids = f"container {host.vm.container_id}, instance {host.vm.instance_id}"
    assert capfd.readouterr().out.splitlines() == [
        f"Fetching the goal state from {host.url('wireserver')}",
        f"Goal state: incarnation 1, {ids}",
        "Reporting Ready",
        "Ready accepted: 200 OK",
    ]


def test_report_ready_fetches_the_goal_state_anew_for_each_report(
    host: SimulatedHost, run_here: Run
) -> None:
    host.misbehave("health", "stale", times=2)
    assert run_here().status == 0
    answers = [request.answer for request in host.requests]
    assert answers == ["200", "stale", "200", "stale", "200", "200", "200"]
    assert b"<GoalStateIncarnation>3<" in host.accepted[0]


def test_report_ready_names_the_step_that_failed(host: SimulatedHost, run_here: Run) -> None:
    host.misbehave("goalstate", "500", times=2)
    host.misbehave("health", "503", times=2)
    result = run_here()
    assert [line.partition(";")[0] for line in result.err] == [
        "Goal state failed: the answer is 500 Internal Server Error",
        "Health report failed: the answer is 503 Service Unavailable",
    ]
    assert len(result.out) == len(set(result.out)), "steps, too, are printed once"


def test_report_ready_in_a_dry_run_only_shows_the_report(
    host: SimulatedHost, run_here: Run
) -> None:
    for endpoint in ("goalstate", "computer-name"):
        host.misbehave(endpoint, "503", times=2)
    result = run_here("--dry-run")
    assert (result.status, result.pauses) == (0, [1] * 4), "it tries again like any other"
    assert {request.method for request in host.requests} == {"GET"}
    assert result.out[2] == "Would report Ready:"
    shown = "\n".join(result.out[3:-2]) + "\n"
    assert run_here().status == 0
    assert shown == host.accepted[0].decode()


# ---- Attempts


@pytest.mark.parametrize("endpoint", ["goalstate", "health", "computer-name"])
@pytest.mark.parametrize("fault", ["500", "404", "503,Retry-After=60", "close", "not-http"])
def test_pause_has_what_fails_tried_again_every_second(
    host: SimulatedHost, run_here: Run, endpoint: str, fault: str
) -> None:
    host.misbehave(endpoint, fault, times=7)
    result = run_here()
    assert (result.status, result.pauses) == (0, [1] * 7)


@pytest.mark.parametrize(
    "endpoint, options, seconds",
    [
        ("goalstate", [], 1200),
        ("computer-name", [], 300),
        ("health", ["--timeout=7.5"], 7.5),
        ("computer-name", ["--timeout=7"], 7),
    ],
)
def test_pause_leaves_time_for_one_last_attempt_at_the_deadline(
    host: SimulatedHost, run_here: Run, endpoint: str, options: list[str], seconds: float
) -> None:
    host.misbehave(endpoint, "500")
    result = run_here(*options)
    assert result.status == (3 if endpoint == "computer-name" else 1)
    assert seconds <= result.seconds < seconds + SLACK
    # All pauses are whole ones, but the last, which ends at the deadline.
    assert set(result.pauses[:-1]) == {1}
    assert 0 < result.pauses[-1] <= 1
    assert result.err[-1].endswith("; giving up")


def test_pause_says_for_how_long_it_goes_on(
    stopped_clock: StoppedClock, capfd: pytest.CaptureFixture[str]
) -> None:
    pause("A step", OSError("why"), stopped_clock.now + 90)
    assert capfd.readouterr() == ("", "A step failed: why; trying again for 91 s\n")
    assert stopped_clock.now == 1001


def test_pause_gives_up_at_the_very_deadline(
    stopped_clock: StoppedClock, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(GaveUp):
        pause("A step", OSError("why"), stopped_clock.now)
    assert capfd.readouterr() == ("", "A step failed: why; giving up\n")


@pytest.mark.parametrize("user", [0, 1000])
@pytest.mark.parametrize("error", [PermissionError("why"), socket.timeout("why")])
def test_pause_tells_only_who_is_not_root_to_be(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], user: int, error: OSError
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)
    hint = " (you are not root: try again as root)" if user else ""
    with pytest.raises(GaveUp):
        pause("A step", error, 0)
    assert capfd.readouterr().err == f"A step failed: why{hint}; giving up\n"


def test_pause_names_an_error_that_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(GaveUp):
        pause("A step", MemoryError(), 0)
    assert capfd.readouterr().err == "A step failed: MemoryError(); giving up\n"
