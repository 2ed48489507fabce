"""The unit, as far as that can be told without booting it."""

import re
import subprocess
from pathlib import Path
from typing import List

from conftest import require, require_tools
from world import sandbox

UNIT = Path(sandbox.REPOSITORY, "azure-provisioning.service")


def values(directive: str) -> List[str]:
    return re.findall(rf"^{directive}=(.*)$", UNIT.read_text(), re.MULTILINE)


def test_only_the_success_of_the_script_disables_it() -> None:
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


def test_it_waits_for_the_network() -> None:
    assert values("Wants") == values("After") == ["network-online.target"]
    assert values("WantedBy") == ["multi-user.target"]


def test_it_may_talk_to_the_platform_and_its_proxy_and_to_nothing_else() -> None:
    assert values("IPAddressDeny") == ["any"]
    assert values("IPAddressAllow") == ["168.63.129.16 169.254.169.254 127.0.0.1"]
    assert values("RestrictAddressFamilies") == ["AF_INET AF_UNIX"]


def test_it_loads_on_systemd_237() -> None:
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


def test_systemd_has_nothing_to_say_about_it() -> None:
    require_tools("/bin/systemctl", "/usr/bin/python3")
    assert analyze("verify", "--man=no") == ""


def test_its_exposure_is_at_most_two_and_a_half() -> None:
    match = re.search(r"Overall exposure level .*: ([\d.]+)", analyze("security", "--offline=yes"))
    assert match
    assert float(match.group(1)) <= 2.5
