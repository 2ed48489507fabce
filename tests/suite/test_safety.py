"""Whatever a test does wrong, nothing reaches Azure's addresses or renames the machine."""

import subprocess
import sys

import pytest

from world import sandbox
from world.machine import Machine
from world.network import PLATFORM_ADDRESSES


@pytest.mark.parametrize("address", [*PLATFORM_ADDRESSES, "10.0.0.1"])
def test_the_sandbox_ends_before_it_connects_elsewhere(machine: Machine, address: str) -> None:
    command = [sys.executable, sandbox.__file__, str(machine.directory)]
    done = subprocess.run(
        [*command, f"--wireserver=http://{address}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == f"sandbox: refused to connect to {address}\n"


def test_the_sandbox_has_no_programs_but_its_own(machine: Machine) -> None:
    code = (
        "import os, sys; sys.path.insert(0, 'tests'); sys.argv[1:] = [sys.argv[1], '--version'];"
        "import sandbox, atexit; atexit.register(lambda: print(os.environ['PATH'])); sandbox.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(machine.directory)],
        capture_output=True,
        text=True,
        check=True,
        cwd=sandbox.REPOSITORY,
    )
    assert done.stdout.splitlines()[-1] == str(machine.directory / "bin")
