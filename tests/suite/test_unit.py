"""The unit, as far as that can be told without booting it."""

import re
import subprocess
from pathlib import Path

from conftest import require, require_tools
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


def test_unit_loads_on_systemd_237() -> None:
    assert values("Restart") == [], "refused for a oneshot service before systemd 244"
    first, *more = values("SystemCallFilter")
    assert first.startswith("~"), "of a list of allowed groups 237 would keep what it knows"
    # The groups that systemd 237 knows.
    known = "@clock @cpu-emulation @debug @module @mount @obsolete @privileged @raw-io @reboot"
    assert set(first[1:].split()) <= {*known.split(), "@resources", "@swap"}
    assert more == ["sethostname"]


def analyze(*arguments: str) -> str:
    require_tools("systemd-analyze")
    command = ["systemd-analyze", *arguments, str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    require("unrecognized option" not in done.stderr, "systemd-analyze is older than 250")
    return done.stdout + done.stderr


def test_unit_gets_no_warning_from_systemd() -> None:
    require_tools("/bin/systemctl", "/usr/bin/python3")
    assert analyze("verify", "--man=no") == ""


def test_unit_has_only_directives_that_no_accident_keeps_the_script_from_running_for() -> None:
    """What needs a mount namespace, a filter of addresses, a condition: each has lost a VM."""
    text = UNIT.read_text()
    assert set(re.findall(r"^(\w+)=", text, re.MULTILINE)) == {
        *["Description", "Documentation", "Wants", "After", "WantedBy"],
        *["Type", "ExecStart", "StandardOutput"],
        *["CapabilityBoundingSet", "RestrictAddressFamilies", "SystemCallFilter"],
        *["SystemCallErrorNumber", "LockPersonality", "RestrictNamespaces", "RestrictRealtime"],
        "RestrictSUIDSGID",
    }
    assert values("CapabilityBoundingSet") == ["CAP_SYS_ADMIN CAP_DAC_OVERRIDE CAP_NET_ADMIN"]
    assert values("RestrictAddressFamilies") == ["AF_INET AF_UNIX"]
