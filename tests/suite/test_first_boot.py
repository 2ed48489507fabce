"""A healthy platform: what is reported, named, printed and returned."""

from conftest import Run
from world.host import SimulatedHost
from world.machine import Machine


def test_first_boot_on_every_python(
    host: SimulatedHost, machine: Machine, run: Run, python: str
) -> None:
    result = run(python=python)
    assert (result.status, result.err) == (0, [])
    assert len(host.accepted) == 1
    assert machine.names == ["web000011", "web000011"]


def test_proxies_are_ignored(run: Run) -> None:
    proxy = "http://127.0.0.1:9"
    names = ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY")
    result = run(env={**dict.fromkeys(names, proxy), "no_proxy": ""})
    assert (result.status, result.err) == (0, [])


def test_second_run_does_no_harm(host: SimulatedHost, run: Run, machine: Machine) -> None:
    assert [run().status, run().status] == [0, 0]
    assert len(host.accepted) == 2
    assert machine.names == ["web000011", "web000011"]
