"""The simulated host is as strict as the real one; otherwise the other tests prove nothing."""

import http.client
import json
import subprocess
import sys
from typing import Any

import pytest

from world.host import SimulatedHost, Vm
from world.machine import Machine

GOAL_STATE, HEALTH = "/machine?comp=goalstate", "/machine?comp=health"
# As cloud-init asks for it, which an image that is tried may have.
DOCUMENT = "/metadata/instance?api-version=2019-06-01"
NAME = "/metadata/instance/compute/osProfile/computerName?api-version=2020-07-15&format=text"
COMMAND = [sys.executable, "tests/simulated_host.py"]
WIRE = {"x-ms-version": "2012-11-30"}
POST = {**WIRE, "x-ms-agent-name": "test", "Content-Type": "text/xml;charset=utf-8"}
METADATA = {"Metadata": "true"}
REPORT = """<Health><GoalStateIncarnation>1</GoalStateIncarnation><Container>\
<ContainerId>{container_id}</ContainerId><RoleInstanceList><Role>\
<InstanceId>{instance_id}</InstanceId><Health><State>Ready</State></Health>\
</Role></RoleInstanceList></Container></Health>""".format(**Vm()._asdict())


def ask(host: SimulatedHost, target: str, headers: dict[str, str], body: str = "") -> Any:
    """Return the status and the text of the answer; POST where there is a body."""
    service = "imds" if target.startswith("/metadata") else "wireserver"
    connection = http.client.HTTPConnection(host.url(service)[len("http://") :], timeout=5)
    connection.request("POST" if body else "GET", target, body, headers)
    response = connection.getresponse()
    answer = response.status, response.read().decode("utf-8-sig")
    connection.close()
    return answer


@pytest.mark.parametrize(
    "target, headers, body, status",
    [
        (GOAL_STATE, WIRE, "", 200),
        (GOAL_STATE, {}, "", 400),
        ("http://168.63.129.16" + GOAL_STATE, WIRE, "", 400),  # as for a proxy
        (HEALTH, WIRE, "", 404),
        (HEALTH, POST, REPORT, 200),
        *((HEALTH, {**POST, header: ""}, REPORT, 400) for header in POST),
        (HEALTH, POST, REPORT.replace(">1<", ">2<"), 410),
        (HEALTH, POST, REPORT.replace("<ContainerId>", "<ContainerId>x"), 400),
        (HEALTH, POST, REPORT.replace("<InstanceId>", "<InstanceId>x"), 400),
        (HEALTH, POST, REPORT.replace("Ready", "NotReady"), 400),
        (HEALTH, POST, REPORT.replace("</Health>", ""), 400),
        (HEALTH, POST, REPORT.replace("Role>", "RoleInstance>"), 400),
        (NAME, METADATA, "", 200),
        (NAME, {}, "", 400),
        (NAME.replace("2020-07-15", "2999-01-01"), METADATA, "", 400),
        (NAME.replace("2020-07-15", "2019-06-01"), METADATA, "", 404),
    ],
)
def test_simulated_host_is_strict(
    host: SimulatedHost, target: str, headers: dict[str, str], body: str, status: int
) -> None:
    assert ask(host, target, headers, body)[0] == status
    assert host.accepted == ([body.encode()] if body and status == 200 else [])


def test_simulated_host_throttles_imds(host: SimulatedHost) -> None:
    statuses = [ask(host, NAME, METADATA)[0] for _ in range(6)]
    assert statuses == [200] * 5 + [429]


def test_simulated_host_has_a_document_for_cloud_init(host: SimulatedHost) -> None:
    document = json.loads(ask(host, DOCUMENT, METADATA)[1])
    assert document["compute"]["name"] == "web_11"


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
    answers = [line.split()[-1] for line in lines if " -> " in line]
    assert answers == ["503", "200", "200", "close", "200"]


def test_demo_ends_quietly_where_nobody_reads_on() -> None:
    command = [sys.executable, "tests/demo.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
