"""say and say_once: what is said, and how often; the journal and a terminal can take it."""

import pytest

from azure_provisioning import say, say_once
from world.clock import Run, StoppedClock
from world.host import SimulatedHost


def test_say_prints_all_printable_characters_of_ascii(capfd: pytest.CaptureFixture[str]) -> None:
    say("".join(map(chr, range(256))))
    visible = "".join(map(chr, range(32, 127)))
    assert capfd.readouterr().out == "?" * 32 + visible + "?" * 129 + "\n"


def test_say_prints_at_most_400_characters_and_the_remark_whole(
    capfd: pytest.CaptureFixture[str],
) -> None:
    say("x" * 1000, "; giving up", error=True)
    assert capfd.readouterr().err == "x" * 389 + "; giving up\n"


@pytest.mark.parametrize("uptime", [0.5, 10, 1000])
def test_say_once_says_a_line_again_after_exactly_a_minute(
    stopped_clock: StoppedClock, capfd: pytest.CaptureFixture[str], uptime: float
) -> None:
    stopped_clock.now = uptime
    for number in range(5):
        say_once("a line", f"; remark {number}")
        stopped_clock.now += 30
    assert capfd.readouterr().out.splitlines() == [f"a line; remark {n}" for n in (0, 2, 4)]


def test_say_once_says_every_minute_what_still_fails(host: SimulatedHost, run_here: Run) -> None:
    host.misbehave("goalstate", "500")
    result = run_here("--timeout=125")
    assert [line.partition("; ")[2] for line in result.err] == [
        "trying again for 125 s",
        "trying again for 65 s",
        "trying again for 5 s",
        "giving up",
    ]
    assert len(result.out) == 3, "the step, too, is printed every minute"


def test_say_once_says_another_failure_at_once_and_those_that_take_turns_every_minute(
    host: SimulatedHost, run_here: Run
) -> None:
    for status in ("500", "503") * 60:
        host.misbehave("goalstate", status, times=1)
    assert [line.split()[6] for line in run_here().err] == ["500", "503", "500", "503"]
