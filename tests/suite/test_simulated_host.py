"""The simulated host is as strict as the real one; otherwise the other tests prove nothing."""

import http.client
import json
import subprocess
import sys
from typing import Any

import pytest

from world.host import OLD_IMDS_VERSIONS, SimulatedHost, Vm
from world.machine import Machine

GOAL_STATE, HEALTH = "/machine?comp=goalstate", "/machine?comp=health"
COMPUTE = "/metadata/instance/compute?api-version=2021-02-01&format=json"
NAME = "/metadata/instance/compute/name?api-version=2017-12-01&format=text"
KEY = "/metadata/instance/compute/publicKeys/1/keyData?api-version=2021-02-01&format=text"
COMMAND = [sys.executable, "tests/simulated_host.py"]
WIRE = {"x-ms-version": "2012-11-30"}
POST = {**WIRE, "x-ms-agent-name": "test", "Content-Type": "text/xml;charset=utf-8"}
METADATA = {"Metadata": "true"}
REPORT = """<Health><GoalStateIncarnation>1</GoalStateIncarnation><Container>\
<ContainerId>{container_id}</ContainerId><RoleInstanceList><Role>\
<InstanceId>{instance_id}</InstanceId><Health><State>Ready</State></Health>\
</Role></RoleInstanceList></Container></Health>""".format(**Vm()._asdict())


@pytest.fixture
def vm() -> Vm:
    return Vm()


def ask(host: SimulatedHost, target: str, headers: dict[str, str], body: str = "") -> Any:
    """Return the status and the text of the answer; POST where there is a body."""
    service = "imds" if target.startswith("/metadata") else "wireserver"
    connection = http.client.HTTPConnection(host.url(service)[len("http://") :], timeout=5)
    connection.request("POST" if body else "GET", target, body, headers)
    response = connection.getresponse()
    answer = response.status, response.read().decode("utf-8-sig")
    connection.close()
    return answer


def without(header: str) -> dict[str, str]:
    return {name: value for name, value in POST.items() if name != header}


@pytest.mark.parametrize(
    "target, headers, body, status",
    [
        (GOAL_STATE, WIRE, "", 200),
        (GOAL_STATE.replace("?", "/?"), WIRE, "", 200),
        (GOAL_STATE, {"x-ms-version": "2015-04-05"}, "", 200),
        (GOAL_STATE, {"x-ms-version": "2000-01-01"}, "", 400),
        (GOAL_STATE, {}, "", 400),
        ("http://168.63.129.16" + GOAL_STATE, WIRE, "", 400),  # as for a proxy
        ("/other", WIRE, "", 404),
        (HEALTH, WIRE, "", 404),
        (HEALTH, POST, REPORT, 200),
        *((HEALTH, without(header), REPORT, 400) for header in POST),
        (HEALTH, POST, REPORT.replace(">1<", ">2<"), 410),
        (HEALTH, POST, REPORT.replace("<ContainerId>", "<ContainerId>x"), 400),
        (HEALTH, POST, REPORT.replace("<InstanceId>", "<InstanceId>x"), 400),
        (HEALTH, POST, REPORT.replace("Ready", "NotReady"), 400),
        (HEALTH, POST, REPORT.replace("</Health>", ""), 400),
        (HEALTH, POST, REPORT.replace("<Role>", "<Role><Extra/>"), 400),
        (HEALTH, POST, REPORT.replace("Role>", "RoleInstance>"), 400),
        (COMPUTE, METADATA, "", 200),
        (COMPUTE, {}, "", 400),
        (COMPUTE, {**METADATA, "X-Forwarded-For": "x"}, "", 400),
        (COMPUTE.replace("2021-02-01", "2999-01-01"), METADATA, "", 400),
        (COMPUTE.replace("api-version=2021-02-01", ""), METADATA, "", 400),
        (COMPUTE.replace("compute", "network"), METADATA, "", 404),
        (KEY, METADATA, "", 404),
    ],
)
def test_simulated_host_is_strict(
    host: SimulatedHost, target: str, headers: dict[str, str], body: str, status: int
) -> None:
    assert ask(host, target, headers, body)[0] == status
    assert host.accepted == ([body.encode()] if body and status == 200 else [])


def test_simulated_host_throttles_imds(host: SimulatedHost) -> None:
    assert [ask(host, NAME, METADATA)[0] for _ in range(6)] == [200] * 5 + [429]


def test_simulated_host_has_leaves_and_the_document(host: SimulatedHost) -> None:
    host.vm = Vm(public_keys=("ssh-rsa AAAA", "ssh-rsa BBBB"))
    assert ask(host, NAME, METADATA) == (200, "myvm")
    assert ask(host, KEY, METADATA) == (200, "ssh-rsa BBBB")
    document = json.loads(ask(host, COMPUTE, METADATA)[1])
    assert (document["name"], document["osProfile"]["computerName"]) == ("myvm", "myvm")
    assert [key["keyData"] for key in document["publicKeys"]] == ["ssh-rsa AAAA", "ssh-rsa BBBB"]


def test_simulated_host_with_an_old_imds_knows_nothing_after_2017(host: SimulatedHost) -> None:
    host.imds_versions = OLD_IMDS_VERSIONS
    assert ask(host, NAME, METADATA) == (200, "myvm")
    assert ask(host, NAME.replace("2017-12-01", "2018-10-01"), METADATA)[0] == 400


def test_simulated_host_can_be_used_by_hand(machine: Machine) -> None:
    faults = ["--fault=goalstate:503:1x", "--fault=imds:close:1x"]
    command = [*COMMAND, "--computer-name=byhand", *faults]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        urls = [process.stdout.readline().split()[-1] for _ in range(2)]
        options = [f"--{name}={url}" for name, url in zip(("wireserver", "imds"), urls)]
        script = [sys.executable, "tests/sandbox.py", str(machine.directory), *options]
        done = subprocess.run(script, capture_output=True, text=True, check=False)
        process.terminate()
        lines = process.stdout.read().splitlines()
    assert done.returncode == 0
    assert machine.names == ["byhand", "byhand"]
    assert [line.split()[-1] for line in lines if " -> " in line] == [
        "503",
        "200",
        "200",
        "close",
        "200",
    ]


def test_demo_ends_quietly_where_nobody_reads_on() -> None:
    command = [sys.executable, "tests/demo.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""


WITHOUT_PROC = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc; exec "$@"', "sh"]


def test_demo_without_proc_says_what_it_needs(isolated: None) -> None:
    command = [*WITHOUT_PROC, sys.executable, "tests/demo.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "demo.py: it needs Linux, with /proc\n"
