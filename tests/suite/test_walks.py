"""Random walks over the fault table: many faults in a row, everywhere, at once.

A walk arms faults at every endpoint, lets the VM's identity change under way, and gives the machine
an /etc/hostname of some kind; then the script runs, on our clock, and what check() demands of every
run must hold. Then all is put right, and the next run ends well.
"""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import azure_provisioning
from world.clock import script
from world.faults import (
    BAD_GOAL_STATES,
    BAD_NAMES,
    BODY_FAULTS,
    FAULTS,
    GOOD_GOAL_STATES,
    GOOD_NAMES,
    OPEN_ENDED,
    STEPS,
    VARIANTS,
    accepted_then,
)
from world.host import OLD_IMDS_VERSIONS, Fault, SimulatedHost, Vm, body_fault
from world.machine import Machine, check

PARTS = 4  # for as many workers
STEP_SECONDS = 0.05  # of real time, for a peer that is silent or slow


def move_on(handler: Any) -> None:
    """The VM gets another identity just before the request, which is answered as it deserves."""
    host = handler.host
    host.incarnation += 1
    number = host.incarnation
    host.vm = host.vm._replace(container_id=f"container-{number}", instance_id=f"instance-{number}")
    handler.send(handler.answer())


NAMES = [*BAD_NAMES.items(), *((name, written) for name, (written, _) in GOOD_NAMES.items())]
FOR_ENDPOINT: dict[str, dict[str, Fault]] = {
    "goalstate": {**BAD_GOAL_STATES, **GOOD_GOAL_STATES},
    "health": {"accepted-and-closed": accepted_then(FAULTS["close"])},
    "computer-name": {f"text-{name}": body_fault(text.encode()) for name, text in NAMES},
    "name": {f"text-{name}": body_fault(text.encode()) for name, text in NAMES},
}
ALL: dict[str, dict[str, Fault]] = {
    e: {**FAULTS, **VARIANTS, **OPEN_ENDED, **FOR_ENDPOINT[e], "moves-on": move_on} for e in STEPS
}
for name, fault in BODY_FAULTS.items():
    ALL["health"][name] = accepted_then(fault)


class Step(NamedTuple):
    endpoint: str
    fault: str
    times: int


steps = st.sampled_from([(e, f) for e in STEPS for f in ALL[e]]).flatmap(
    lambda pair: st.builds(Step, st.just(pair[0]), st.just(pair[1]), st.integers(1, 4))
)


class Setting(NamedTuple):
    """What the machine and the platform are like during a walk."""

    etc_hostname: str
    old_imds: bool
    computer_name: str
    timeout: int


settings_of_a_walk = st.builds(
    Setting,
    st.sampled_from(["is a file", "is missing", "is a link", "is a directory"]),
    st.booleans(),
    st.text(max_size=80),
    st.sampled_from([2, 10, 30]),
)


def arrange(setting: Setting, machine: Machine, host: SimulatedHost) -> None:
    path = machine.etc_hostname
    if setting.etc_hostname != "is a file":
        path.unlink()
    if setting.etc_hostname == "is a link":
        path.symlink_to(machine.directory / "target")
    if setting.etc_hostname == "is a directory":
        path.mkdir()
    host.imds_versions = OLD_IMDS_VERSIONS if setting.old_imds else host.imds_versions


def walk(directory: Path, setting: Setting, path: list[Step]) -> None:
    machine = Machine(directory)
    vm = Vm(name="web_11", computer_name=setting.computer_name)
    with SimulatedHost(vm, imds_rate=1000) as host, pytest.MonkeyPatch.context() as patch:
        patch.setattr(azure_provisioning, "STEP_SECONDS", STEP_SECONDS)
        arrange(setting, machine, host)
        old_names = machine.names
        for step in path:
            host.misbehave(step.endpoint, ALL[step.endpoint][step.fault], times=step.times)
        run = script(machine, host)
        result = run(f"--timeout={setting.timeout}")
        check(result, host, machine, setting.timeout, old_names)

        patch.undo()
        host.recover()
        host.accepted.clear()
        host.vm = host.vm._replace(computer_name="web000011")
        if machine.etc_hostname.is_dir():
            machine.etc_hostname.rmdir()
        again = run("--timeout=5")  # with the time that a busy machine may take
        check(again, host, machine, 5)
        assert again.status == 0
        name = "web-11" if setting.old_imds else "web000011"
        assert machine.names == [name, name]
    shutil.rmtree(directory)


@pytest.mark.parametrize("part", range(PARTS))
def test_walk_over_all_faults_loses_nothing(
    part: int, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    count = 0

    @settings(
        max_examples=pytestconfig.getoption("--walks") // PARTS,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(settings_of_a_walk, st.lists(steps, max_size=12))
    def walks(setting: Setting, path: list[Step]) -> None:
        nonlocal count
        count += 1
        walk(tmp_path / str(count), setting, path)

    walks()
