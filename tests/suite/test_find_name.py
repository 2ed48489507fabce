"""find_name: when the VM's name is taken for want of a computer name, on the tests' clock."""

import pytest

import azure_provisioning
from azure_provisioning import Absent, GaveUp, find_name
from world.clock import Run, StoppedClock
from world.host import OLD_IMDS_VERSIONS, SimulatedHost
from world.machine import Machine

SLACK = 0.1  # seconds that the looks at the clock may take


def asked(host: SimulatedHost) -> list[str]:
    """Return the leaves that IMDS was asked for."""
    leaves = [one.target.partition("?")[0] for one in host.requests if one.service == "imds"]
    return [leaf.rpartition("/")[2] for leaf in leaves]


@pytest.mark.parametrize("fault", ["404", "400", "body="])
@pytest.mark.parametrize("options, seconds", [([], 60), (["--timeout=7"], 4)])
def test_find_name_takes_the_vms_after_a_minute_or_half_the_time_without_a_computer_name(
    host: SimulatedHost,
    run_here: Run,
    machine: Machine,
    fault: str,
    options: list[str],
    seconds: int,
) -> None:
    host.misbehave("computer-name", fault)
    result = run_here(*options)
    assert result.status == 0
    assert seconds <= result.seconds < seconds + SLACK
    assert machine.names == ["web-11", "web-11"]
    assert asked(host) == ["computerName"] * (seconds + 1) + ["name"], "in the same attempt"
    assert result.out[-2].endswith("; asking for the VM's name")


@pytest.mark.parametrize("uptime", [10, 1000])
def test_find_name_asks_for_the_vms_from_the_very_end_of_the_minute(
    stopped_clock: StoppedClock, monkeypatch: pytest.MonkeyPatch, uptime: float
) -> None:
    stopped_clock.now = uptime
    leaves: list[str] = []

    def ask_imds(imds: str, leaf: str, deadline: float) -> bytes:
        leaves.append(leaf)
        assert deadline == uptime + 300
        if "computerName" in leaf:
            raise Absent("there is none")
        return b"vm_1"

    monkeypatch.setattr(azure_provisioning, "ask_imds", ask_imds)
    assert find_name("", 300) == ("vm_1", "vm-1")
    steps = ["Computer name"] * 61 + ["VM name"]
    assert leaves == [azure_provisioning.IMDS_LEAVES[step] for step in steps]


def test_find_name_gets_the_vms_from_an_azure_stack_hub(
    host: SimulatedHost, run_here: Run, machine: Machine
) -> None:
    host.imds_versions = OLD_IMDS_VERSIONS
    assert OLD_IMDS_VERSIONS[-1] == "2017-12-01"
    result = run_here()
    assert (result.status, machine.names) == (0, ["web-11", "web-11"])
    assert 60 <= result.seconds < 60 + SLACK


def test_find_name_takes_a_computer_name_that_comes_late(
    host: SimulatedHost, run_here: Run, machine: Machine
) -> None:
    host.misbehave("computer-name", "404", times=60)
    assert run_here().status == 0
    assert machine.names == ["web000011", "web000011"]


@pytest.mark.parametrize(
    "outage",
    [["503"] * 66 + ["404"], ["reset"] * 62 + ["body="], ["404"] * 59 + ["503", "404"]],
    ids=["IMDS down, then ill", "no IMDS, then nothing", "none, but for an error"],
)
def test_find_name_does_not_take_an_outage_for_no_computer_name(
    host: SimulatedHost, run_here: Run, machine: Machine, outage: list[str]
) -> None:
    for fault in outage:
        host.misbehave("computer-name", fault, times=1)
    assert run_here().status == 0
    assert machine.names == ["web000011", "web000011"]


def test_find_name_does_not_stay_with_the_vms_once_it_has_asked_for_it(
    host: SimulatedHost, run_here: Run, machine: Machine
) -> None:
    """An IMDS that says 404 to everything for a while, and then knows both names."""
    host.misbehave("computer-name", "404", times=70)
    host.misbehave("name", "404", times=10)
    result = run_here()
    assert (result.status, machine.names) == (0, ["web000011", "web000011"])
    assert asked(host) == [*["computerName"] * 60, *["computerName", "name"] * 10, "computerName"]


@pytest.mark.parametrize("endpoint", ["computer-name", "name"])
@pytest.mark.parametrize("fault", ["503", "body=<html>"])
def test_find_name_starts_the_minute_anew_after_any_other_answer(
    host: SimulatedHost, run_here: Run, machine: Machine, endpoint: str, fault: str
) -> None:
    host.misbehave("computer-name", "404", times=1000 if endpoint == "name" else 30)
    host.misbehave(endpoint, fault, times=1)
    host.misbehave("computer-name", "404")
    result = run_here()
    assert (result.status, machine.names) == (0, ["web-11", "web-11"])
    seconds = 60 + 1 + (60 if endpoint == "name" else 30)
    assert seconds <= result.seconds < seconds + SLACK


@pytest.mark.parametrize("fault", ["403", "410", "429", "500", "503", "close", "body=<html>"])
def test_find_name_has_rather_no_name_than_a_wrong_one(
    host: SimulatedHost, run_here: Run, machine: Machine, fault: str
) -> None:
    """Also where the host says in the last attempts that it has none."""
    host.misbehave("computer-name", fault, times=290)
    host.misbehave("computer-name", "404")
    result = run_here()
    assert (result.status, machine.names) == (3, ["old-name", "old-name"])
    assert set(asked(host)) == {"computerName"}
    assert 300 <= result.seconds < 300 + SLACK


def test_find_name_gives_up_where_the_vms_is_not_to_be_had_either(
    host: SimulatedHost, run_here: Run
) -> None:
    host.misbehave("imds", "404")
    assert run_here().err[-1] == "VM name failed: the answer is 404 Not Found; giving up"


def test_find_name_gives_up_at_its_deadline(stopped_clock: StoppedClock) -> None:
    with pytest.raises(GaveUp):
        find_name("http://127.0.0.1:1", 2)
    assert stopped_clock.now == 1002
