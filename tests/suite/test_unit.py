"""The unit, as far as that can be told without booting it."""

import re
import subprocess
from pathlib import Path

from conftest import require_tools
from world import sandbox

UNIT = Path(sandbox.REPOSITORY, "azure-provisioning.service")


def values(directive: str) -> list[str]:
    return re.findall(rf"^{directive}=(.*)$", UNIT.read_text(), re.MULTILINE)


def test_unit_is_disabled_only_by_the_success_of_the_script() -> None:
    assert values("Type") == ["oneshot"]
    # A oneshot service runs its ExecStart= lines in order and stops at the first that fails,
    # unless a "-" says otherwise or a status counts as success.
    assert values("ExecStart") == [
        "/usr/bin/python3 -I -S /usr/local/sbin/azure_provisioning.py",
        "/bin/systemctl disable azure-provisioning.service",
    ]
    assert values("SuccessExitStatus") == []
    assert re.findall("^.*(?:disable|mask|rm ).*$", UNIT.read_text(), re.MULTILINE) == [
        "ExecStart=/bin/systemctl disable azure-provisioning.service"
    ]


def test_unit_waits_for_the_network() -> None:
    assert values("Wants") == values("After") == ["network-online.target"]
    assert values("WantedBy") == ["multi-user.target"]


def test_unit_gets_no_warning_from_systemd() -> None:
    require_tools("systemd-analyze", "/bin/systemctl", "/usr/bin/python3")
    command = ["systemd-analyze", "verify", "--man=no", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""


def test_unit_has_no_directive_that_could_keep_the_script_from_running() -> None:
    """A sandbox, a condition, a time limit: test_unit_boots.py has what they would fail on."""
    assert set(re.findall(r"^(\w+)=", UNIT.read_text(), re.MULTILINE)) == {
        *["Description", "Documentation", "Wants", "After"],
        *["Type", "ExecStart", "StandardOutput", "WantedBy"],
    }
