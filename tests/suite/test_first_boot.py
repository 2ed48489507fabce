"""A healthy platform: what is reported, named, printed and returned."""

import re

import pytest

from conftest import Run
from world.host import OLD_IMDS_VERSIONS, SimulatedHost, Vm, body_fault
from world.machine import Machine


def test_a_healthy_first_boot_on_every_python(
    host: SimulatedHost, machine: Machine, run: Run, python: str
) -> None:
    result = run(python=python)
    assert (result.status, result.err) == (0, [])
    assert len(host.accepted) == 1
    assert machine.names == ["web000011", "web000011"]


def test_the_steps_are_printed_one_line_each(host: SimulatedHost, run: Run) -> None:
    assert run().out == [
        f"Fetching the goal state from {host.url('wireserver')}",
        f"Goal state: incarnation 1, container {host.vm.container_id}, "
        f"instance {host.vm.instance_id}",
        "Reporting Ready",
        "Ready accepted: 200 OK",
        f"Fetching the name from {host.url('imds')}",
        "Host name web000011 set",
    ]


def test_the_platform_hears_three_requests_in_this_order(host: SimulatedHost, run: Run) -> None:
    run()
    assert [(request.method, request.target) for request in host.requests] == [
        ("GET", "/machine?comp=goalstate"),
        ("POST", "/machine?comp=health"),
        (
            "GET",
            "/metadata/instance/compute/osProfile/computerName?api-version=2020-07-15&format=text",
        ),
    ]


def test_the_report_is_of_the_current_incarnation(host: SimulatedHost, run: Run) -> None:
    host.incarnation = 17
    assert run().status == 0
    assert b"<GoalStateIncarnation>17</GoalStateIncarnation>" in host.accepted[0]


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206, 299])
def test_any_2xx_is_acceptance(host: SimulatedHost, run: Run, status: int) -> None:
    host.misbehave("health", str(status))
    result = run()
    assert result.status == 0
    assert any(line.startswith(f"Ready accepted: {status}") for line in result.out)


def test_acceptance_is_the_status_whatever_becomes_of_the_body(
    host: SimulatedHost, run: Run
) -> None:
    host.misbehave("health", "truncated")
    assert run().status == 0
    assert [request.method for request in host.requests].count("POST") == 1


def test_hostnamectl_sets_the_name_and_is_called_once(machine: Machine, run: Run) -> None:
    run()
    assert machine.hostnamectl_calls == ["--no-ask-password --static set-hostname web000011"]


@pytest.mark.parametrize(
    "vm, expected",
    [
        (Vm("SET_1a2b", None), "SET-1a2b"),
        (Vm("my.vm(1)", ""), "my.vm-1"),
    ],
)
def test_where_there_is_no_computer_name_the_name_of_the_vm_is_set(
    run: Run, machine: Machine, expected: str
) -> None:
    assert run("--timeout=0.3").status == 0
    assert machine.names == [expected, expected]


def test_a_host_too_old_for_the_computer_name_is_asked_for_the_plain_name(
    host: SimulatedHost, run: Run, machine: Machine
) -> None:
    host.imds_versions = OLD_IMDS_VERSIONS
    result = run("--timeout=0.3")
    assert result.status == 0
    assert machine.names == ["web-11", "web-11"]
    leaves = [request.target.rpartition("/")[2].partition("?")[0] for request in host.requests[2:]]
    assert leaves == ["computerName", "computerName", "name"], "in the last attempt, and only there"


def test_a_name_that_is_no_utf_8_is_a_name_all_the_same(
    host: SimulatedHost, run: Run, machine: Machine
) -> None:
    host.misbehave("computer-name", body_fault(b"caf\xe91"))
    assert run().status == 0
    assert machine.names == ["caf-1", "caf-1"]


HOSTILE = {
    "$(touch pwned)": "touch-pwned",
    "`touch pwned`": "touch-pwned",
    "vm; touch pwned": "vm-touch-pwned",
    "vm\0x": "vm-x",
    "--help": "help",
    "../../etc/passwd": "etc-passwd",
    "n" * 255: "n" * 64,
    "na\u00efve\u20ac": "na-ve",
    "\x1b[31mred": "31mred",
    "%s%n(0)": "s-n-0",
}


@pytest.mark.parametrize(
    "vm, expected",
    [(Vm("vm", name), expected) for name, expected in HOSTILE.items()],
    ids=map(ascii, HOSTILE),
)
def test_a_hostile_name_is_only_a_name(run: Run, machine: Machine, expected: str) -> None:
    result = run()
    assert result.status == 0
    assert machine.names == [expected, expected]
    assert machine.hostnamectl_calls == ["--no-ask-password --static set-hostname " + expected]
    assert all(line.isprintable() and line.isascii() for line in result.out + result.err)


@pytest.mark.parametrize("vm", [Vm("vm", "vm\ntouch pwned"), Vm("vm", "n" * 256), Vm("vm", "<vm>")])
def test_a_hostile_name_that_is_none_is_not_set(run: Run, machine: Machine) -> None:
    result = run("--timeout=0.3")
    assert result.status == 3
    assert machine.names == ["old-name", "old-name"]
    assert machine.hostnamectl_calls == []


def host_name_after(
    host: SimulatedHost, machine: Machine, run: Run, *faults: str
) -> "tuple[int, str]":
    for fault in faults:
        host.misbehave("computer-name", fault, times=1)
    return run("--timeout=5").status, machine.names[0]


@pytest.mark.parametrize("fault", ["400", "404", "body="])
def test_an_imds_that_is_ill_for_a_moment_does_not_cost_the_computer_name(
    host: SimulatedHost, machine: Machine, run: Run, fault: str
) -> None:
    """As where its answer lacks osProfile for once (Azure/azure-init issue 134)."""
    assert host_name_after(host, machine, run, fault, fault) == (0, "web000011")


@pytest.mark.parametrize("name", ["head01.test.local", "n" * 64])
def test_the_name_that_was_given_is_the_name_that_is_set(
    host: SimulatedHost, machine: Machine, run: Run, name: str
) -> None:
    host.vm = host.vm._replace(computer_name=name)
    assert host_name_after(host, machine, run) == (0, name)
    assert machine.names == [name, name]


@pytest.mark.parametrize("vm", [Vm("vm", "..")])
def test_a_name_of_which_nothing_is_left_is_not_set(
    host: SimulatedHost, run: Run, machine: Machine
) -> None:
    result = run("--timeout", "1")
    assert result.status == 3
    assert len(host.accepted) == 1
    assert machine.names == ["old-name", "old-name"]
    assert "no host name can be made of '..'" in result.err[0]


def test_proxies_in_the_environment_are_ignored(run: Run) -> None:
    proxy = "http://127.0.0.1:9"
    names = ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY")
    result = run(env={**dict.fromkeys(names, proxy), "no_proxy": ""})
    assert (result.status, result.err) == (0, [])


def test_a_second_run_does_no_harm(host: SimulatedHost, run: Run, machine: Machine) -> None:
    assert [run().status, run().status] == [0, 0]
    assert len(host.accepted) == 2
    assert machine.names == ["web000011", "web000011"]


def test_a_dry_run_sends_only_gets_and_changes_nothing(
    host: SimulatedHost, run: Run, machine: Machine
) -> None:
    result = run("--dry-run")
    assert (result.status, result.err) == (0, [])
    assert {request.method for request in host.requests} == {"GET"}
    assert machine.names == ["old-name", "old-name"]
    assert machine.hostnamectl_calls == []
    report = "\n".join(result.out)
    assert "<GoalStateIncarnation>1</GoalStateIncarnation>" in report
    assert f"<InstanceId>{host.vm.instance_id}</InstanceId>" in report
    assert result.out[-1] == "Would set the host name web000011"


def test_a_dry_run_prints_the_report_that_a_run_would_post(host: SimulatedHost, run: Run) -> None:
    dry = "\n".join(run("--dry-run").out)
    run()
    match = re.search("<Health>.*</Health>$", dry, re.DOTALL | re.MULTILINE)
    assert match
    assert match.group() + "\n" == host.accepted[0].decode()


def test_a_dry_run_has_the_exit_statuses_of_a_run(host: SimulatedHost, run: Run) -> None:
    host.refuse("imds")
    assert run("--dry-run", "--timeout=1").status == 3
    host.refuse("wireserver")
    assert run("--dry-run", "--timeout=1").status == 1
