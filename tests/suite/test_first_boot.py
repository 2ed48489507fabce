"""A healthy platform: what is reported, named, printed and returned."""

import re

from conftest import Run
from world.host import SimulatedHost
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


def test_hostnamectl_sets_the_name_and_is_called_once(machine: Machine, run: Run) -> None:
    run()
    assert machine.hostnamectl_calls == ["--no-ask-password --static set-hostname web000011"]


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
