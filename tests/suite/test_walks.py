"""Random walks over the fault table: many faults in a row, everywhere, at once.

A walk arms faults at every endpoint, and lets the VM's identity change under way; then the script
runs, on our clock, and what check() demands of every run must hold. Then all is put right, and the
next run ends well.
"""

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import azure_provisioning
from world.clock import script
from world.faults import BODY_FAULTS, FAULTS, OPEN_ENDED, STEPS, VARIANTS, accepted_then
from world.host import OLD_IMDS_VERSIONS, Fault, SimulatedHost, Vm, make_fault
from world.machine import Machine, check

PARTS = 4  # for as many workers
STEP_SECONDS = 0.05  # of real time, for a peer that is silent or slow


ALL: dict[str, dict[str, Fault]] = {
    one: {**FAULTS, **VARIANTS, **OPEN_ENDED, "stale": make_fault("stale")} for one in STEPS
}
for name, fault in BODY_FAULTS.items():
    ALL["health"][name] = accepted_then(fault)


class Step(NamedTuple):
    endpoint: str
    fault: str
    times: int


steps = st.sampled_from([(e, f) for e in ALL for f in ALL[e]]).flatmap(
    lambda pair: st.builds(Step, st.just(pair[0]), st.just(pair[1]), st.integers(1, 4))
)


@pytest.mark.parametrize("part", range(PARTS))
def test_walk_over_all_faults_loses_nothing(
    part: int, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    @settings(
        max_examples=max(pytestconfig.getoption("--walks") // PARTS, 1),
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        computer_name=st.text(max_size=80),
        old_imds=st.booleans(),
        timeout=st.sampled_from([2, 10, 30]),
        path=st.lists(steps, max_size=12),
    )
    def walk(computer_name: str, old_imds: bool, timeout: int, path: list[Step]) -> None:
        machine = Machine(Path(tempfile.mkdtemp(dir=tmp_path), "machine"))
        vm = Vm("web_11", computer_name)
        with SimulatedHost(vm) as host, pytest.MonkeyPatch.context() as patch:
            patch.setattr(azure_provisioning, "STEP_SECONDS", STEP_SECONDS)
            host.imds_versions = OLD_IMDS_VERSIONS if old_imds else host.imds_versions
            for step in path:
                host.misbehave(step.endpoint, ALL[step.endpoint][step.fault], times=step.times)
            run = script(machine, host)
            check(run(f"--timeout={timeout}"), host, machine, timeout)

            patch.undo()
            host.recover()
            host.accepted.clear()
            host.vm = host.vm._replace(computer_name="web000011")
            again = run("--timeout=5")  # with the time that a busy machine may take
            check(again, host, machine, 5)
            assert again.status == 0
            assert machine.names == ["web-11" if old_imds else "web000011"] * 2
        shutil.rmtree(machine.directory)

    walk()
