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
WIRE = {"x-ms-version": "2012-11-30"}
POST = {**WIRE, "x-ms-agent-name": "test", "Content-Type": "text/xml;charset=utf-8"}
METADATA = {"Metadata": "true"}
REPORT = """<Health><GoalStateIncarnation>1</GoalStateIncarnation><Container>\
<ContainerId>{container_id}</ContainerId><RoleInstanceList><Role>\
<InstanceId>{instance_id}</InstanceId><Health><State>Ready</State></Health>\
</Role></RoleInstanceList></Container></Health>"""


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


@pytest.mark.parametrize("target", [GOAL_STATE, "/machine/?comp=goalstate"])
def test_goal_state_needs_a_version(host: SimulatedHost, target: str) -> None:
    assert ask(host, target, WIRE)[0] == 200
    assert ask(host, target, {"x-ms-version": "2015-04-05"})[0] == 200
    assert ask(host, target, {})[0] == 400
    assert ask(host, target, {"x-ms-version": "2000-01-01"})[0] == 400


def test_other_requests_get_404(host: SimulatedHost) -> None:
    assert ask(host, "/other", WIRE)[0] == 404
    assert ask(host, HEALTH, WIRE)[0] == 404
    assert ask(host, COMPUTE.replace("compute", "network"), METADATA)[0] == 404


def test_request_for_a_proxy_is_refused(host: SimulatedHost) -> None:
    assert ask(host, "http://168.63.129.16" + GOAL_STATE, WIRE)[0] == 400


@pytest.mark.parametrize("header", POST)
def test_report_needs_every_header(host: SimulatedHost, vm: Vm, header: str) -> None:
    report = REPORT.format(**vm._asdict())
    headers = {name: value for name, value in POST.items() if name != header}
    assert ask(host, HEALTH, headers, report)[0] == 400
    assert host.accepted == []
    assert ask(host, HEALTH, POST, report)[0] == 200
    assert host.accepted == [report.encode()]


@pytest.mark.parametrize(
    "old, new, status",
    [
        (">1<", ">2<", 410),
        ("{container_id}", "other", 400),
        ("{instance_id}", "other", 400),
        ("Ready", "NotReady", 400),
        ("</Health>", "", 400),
        ("<Role>", "<Role><Extra/>", 400),
        ("Role>", "RoleInstance>", 400),
        ("<ContainerId>{container_id}</ContainerId>", "", 400),
    ],
)
def test_report_that_is_not_right_is_refused(
    host: SimulatedHost, vm: Vm, old: str, new: str, status: int
) -> None:
    report = REPORT.replace(old, new).format(**vm._asdict())
    assert ask(host, HEALTH, POST, report)[0] == status
    assert host.accepted == []


def test_imds_needs_its_header_and_a_version(host: SimulatedHost) -> None:
    assert ask(host, COMPUTE, METADATA)[0] == 200
    assert ask(host, COMPUTE, {})[0] == 400
    assert ask(host, COMPUTE, {**METADATA, "X-Forwarded-For": "x"})[0] == 400
    assert ask(host, COMPUTE.replace("2021-02-01", "2999-01-01"), METADATA)[0] == 400


def test_imds_throttles(host: SimulatedHost) -> None:
    assert [ask(host, NAME, METADATA)[0] for _ in range(6)] == [200] * 5 + [429]


def test_imds_has_the_name_as_text_and_in_the_document(host: SimulatedHost) -> None:
    assert ask(host, NAME, METADATA) == (200, "myvm")
    document = json.loads(ask(host, COMPUTE, METADATA)[1])
    assert (document["name"], document["osProfile"]["computerName"]) == ("myvm", "myvm")


def test_imds_has_ssh_keys_one_by_one_and_as_a_list(host: SimulatedHost) -> None:
    keys = COMPUTE.replace("/compute", "/compute/publicKeys")
    first = keys.replace("publicKeys", "publicKeys/0/keyData").replace("json", "text")
    assert ask(host, keys, METADATA) == (200, "[]")
    assert ask(host, first, METADATA)[0] == 404
    host.vm = Vm(public_keys=("ssh-rsa AAAA", "ssh-rsa BBBB"))
    listed = json.loads(ask(host, keys, METADATA)[1])
    assert [key["keyData"] for key in listed] == ["ssh-rsa AAAA", "ssh-rsa BBBB"]
    assert ask(host, first, METADATA) == (200, "ssh-rsa AAAA")


def test_old_imds_knows_nothing_after_2017(host: SimulatedHost) -> None:
    host.imds_versions = OLD_IMDS_VERSIONS
    assert ask(host, NAME, METADATA) == (200, "myvm")
    assert ask(host, NAME.replace("2017-12-01", "2018-10-01"), METADATA)[0] == 400
    assert ask(host, COMPUTE, METADATA)[0] == 400


def test_simulated_host_can_be_used_by_hand(machine: Machine) -> None:
    command = [sys.executable, "tests/simulated_host.py", "--computer-name=byhand"]
    command += ["--fault=goalstate:503:1x", "--fault=imds:refused:1s"]
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
    assert [line.split()[-1] for line in lines if " -> " in line] == ["503", "200", "200", "200"]


FAULTS = ["goalstate:nonsense", "goalstate:99", "goalstate:503,Retry", "nowhere:503", "x"]
WRONG = [
    *(["--fault", fault] for fault in [*FAULTS, "health:refused", "imds:refused:2x"]),
    ["--imds", "8080"],
    ["--imds", ":8080"],
    ["--imds", "127.0.0.1:99999"],
    ["--imds", "192.0.2.1:80"],
]


@pytest.mark.parametrize("options", WRONG, ids=" ".join)
def test_simulated_host_refuses_options_that_make_no_sense(options: list[str]) -> None:
    command = [sys.executable, "tests/simulated_host.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


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
