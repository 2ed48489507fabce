"""The README's blocks and drop-ins, each in a system that boots; see test_boots.py."""

import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import test_boots
from conftest import require_tools, wait_until
from test_boots import UNIT, UNITS, add_drop_in, assert_next_boot_is_silent, good_end, write
from world import boot, readme
from world.boot import CABLE, PLUGGED, Emulation, boot_container, dhcp
from world.host import SimulatedHost, Vm
from world.images import ALL, GENERALIZE, fresh_disk, in_checkout, run

installed, root, host = test_boots.installed, test_boots.root, test_boots.host

NAME_FIRST, READY_LAST, OTHER_TARGET, ELSEWHERE, READ_ONLY, DNS = readme.drop_ins()


# ---- A network of its own, which DHCP brings up some time in the boot

VENDOR_PRESET = "usr/lib/systemd/system-preset/99-default.preset"
SECOND_CARD = "ip link add unplugged type veth peer name eth1; ip link set unplugged up"
OTHERS = "systemctl disable networking NetworkManager NetworkManager-wait-online"
MANAGERS = {
    "NetworkManager": "systemctl enable NetworkManager NetworkManager-wait-online",
    "networking": """\
printf 'auto eth0\\niface eth0 inet dhcp\\n' >/etc/network/interfaces.d/eth0
systemctl enable networking
""",
}


def assert_both_boots_are_good_with_dhcp(root: Path, host: SimulatedHost, *options: str) -> None:
    """And that the DHCP server, where Azure's DNS has a name from, knows it after the first."""
    hold = root / "hold"
    hold.touch()
    with dhcp(root.parent, CABLE) as log:

        def until_the_name_is_known() -> None:
            leases = r"DHCPACK\(\S+ \S+ \S+ ?(.*)"  # each with the name that it was asked with
            known = (["", "myvm"], ["localhost", "myvm"])
            wait_until(lambda: re.findall(leases, log.read_text()) in known)
            hold.unlink()

        # No line tells of trouble: the unit has waited for the network.
        report = boot_container(root, PLUGGED, *options, meanwhile=until_the_name_is_known)
    assert report == good_end("myvm")
    assert len(host.accepted) == 1
    with dhcp(root.parent, CABLE):
        assert_next_boot_is_silent(root, host, PLUGGED)


@test_boots.each_release
def test_first_boot_with_two_cards_where_a_preset_disables_what_no_other_enables(
    installed: Path, host: SimulatedHost
) -> None:
    """As a first boot has it in some distributions. One of the cards gets no lease."""
    add_drop_in(installed, DNS)
    write(installed, VENDOR_PRESET, "disable *\n")
    in_checkout(installed, "systemctl preset-all")
    assert not (installed / UNITS / "multi-user.target.wants/witness.service").is_symlink()
    in_checkout(installed, "systemctl enable witness")
    run("sh", "-euc", SECOND_CARD)
    start = time.monotonic()
    assert_both_boots_are_good_with_dhcp(installed, host, PLUGGED.replace("eth0", "eth1"))
    assert time.monotonic() - start < 90, "it waits for a lease on all cards"


@pytest.mark.parametrize("release, manager", [("debian-12-managers", one) for one in MANAGERS])
def test_first_boot_with_another_network_manager(
    root: Path, host: SimulatedHost, manager: str
) -> None:
    add_drop_in(root, DNS.replace("systemd-networkd", manager))
    in_checkout(root, f"{OTHERS}\n{MANAGERS[manager]}")
    assert_both_boots_are_good_with_dhcp(root, host)


# virtio_net stands for mana. The second card is below another, as with Accelerated Networking.
RULES = "etc/udev/rules.d/10-azure-unmanaged-sriov.rules"
SLAVE = "00:0d:3a:00:00:02"
SLAVE_CARD = f"-netdev hubport,id=two,hubid=0 -device virtio-net-pci,netdev=two,mac={SLAVE}"
ENSLAVE = f"""\
modprobe bonding max_bonds=1
card=$(dirname $(grep -l {SLAVE} /sys/class/net/e*/address))
echo "+${{card##*/}}" >/sys/class/net/bond0/bonding/slaves
udevadm trigger --action=change --settle "$card"
"""
BEFORE_NETWORKD = """\
[Unit]
Wants=systemd-udev-settle.service
After=systemd-udev-settle.service
[Service]
ExecStartPre=+/bin/sh -eu /enslave.sh
"""
SHOW_CARDS = """\
[Service]
SyslogIdentifier=python3
ExecStartPre=/bin/sh -c 'for one in /sys/class/net/e*/ifindex; do \
grep ADMIN_STATE /run/systemd/netif/links/$(cat $one); done'
"""


@pytest.mark.parametrize("release", ["debian-13"])
def test_virtual_machine_leaves_a_card_below_another_one_alone(
    emulation: Emulation, installed: Path, host: SimulatedHost
) -> None:
    rules = (installed / RULES).read_text()
    write(installed, RULES, rules.replace("mana|", "mana|virtio_net|"))
    write(installed, "enslave.sh", ENSLAVE)
    add_drop_in(installed, BEFORE_NETWORKD, "systemd-networkd.service")
    add_drop_in(installed, SHOW_CARDS)
    add_drop_in(installed, ELSEWHERE)  # this is no other place
    machine = emulation._replace(machine=f"{emulation.machine} {SLAVE_CARD}")
    report = boot.boot_vm(machine, installed)
    cards = ["ADMIN_STATE=unmanaged", "ADMIN_STATE=configured"]
    assert report == good_end("myvm", [*cards, *test_boots.LINES])
    assert len(host.accepted) == 1


# ---- Drop-ins

TARGET = "[Unit]\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n"
USE_TARGET = f"""\
sed -i s/multi-user/other/ /{UNITS}/witness.service
systemctl set-default other.target
systemctl reenable {UNIT} late witness
"""


def add_service(root: Path, name: str, command: str) -> None:
    service = f"[Service]\nType=oneshot\nExecStart={command}\nStandardOutput=append:/said\n"
    write(root, f"{UNITS}/{name}.service", f"{service}[Install]\nWantedBy=other.target\n")


@pytest.mark.parametrize("release", ["debian-11", "debian-testing"])
def test_drop_in_has_the_unit_wait_for_one_service_and_another_target_for_the_unit(
    root: Path, host: SimulatedHost
) -> None:
    add_service(root, "application", "/bin/sh -c 'sleep 1; cat /proc/sys/kernel/hostname'")
    add_service(root, "late", "/bin/cat /proc/sys/kernel/hostname")
    add_drop_in(root, NAME_FIRST, "late.service")
    add_drop_in(root, READY_LAST)
    add_drop_in(root, OTHER_TARGET.replace("graphical.target", "other.target"))
    add_drop_in(root, DNS)  # there is no network manager to tell
    write(root, f"{UNITS}/other.target", TARGET)
    in_checkout(root, USE_TARGET)
    assert boot_container(root) == good_end("myvm")
    assert (root / "said").read_text() == "localhost\nmyvm\n"
    assert_next_boot_is_silent(root, host)


@pytest.mark.parametrize(
    "drop_in, seen",
    [
        (READY_LAST, {"running": "degraded", "failed": "application.service"}),
        (ELSEWHERE, {"result": "exec-condition"}),
    ],
    ids=["application-fails", "not-on-azure"],
)
@pytest.mark.parametrize("release", ["debian-11"])
def test_drop_in_has_nothing_done(
    root: Path, host: SimulatedHost, drop_in: str, seen: dict[str, Any]
) -> None:
    add_service(root, "application", "/bin/false")
    add_drop_in(root, drop_in)
    nothing_done = good_end("localhost", [])._replace(enabled="enabled")
    assert boot_container(root) == nothing_done._replace(**seen)
    assert host.requests == []


@pytest.mark.parametrize("release", ["debian-13"])
def test_drop_in_for_a_read_only_etc_sets_the_kernels_name_at_each_boot(
    root: Path, host: SimulatedHost
) -> None:
    add_drop_in(root, READ_ONLY)
    for _ in range(2):
        report = boot_container(root, f"--bind-ro={root}/etc:/etc")
        assert report.kernel_name == "myvm"
        assert report.journal[-1].startswith("Host name failed: [Errno 30] Read-only file system")
        assert (report.running, report.enabled, report.status) == ("running", "enabled", "3")
    assert len(host.accepted) == 2


# ---- Images, made as the guide says

# What a cloud-init leaves that has run; here none is ever started.
CLOUD_INIT_RAN = {
    "run/cloud-init/status.json": '{"v1": {"stage": null, "init": {"errors": [], "finished": 1}}}',
    "run/cloud-init/result.json": '{"v1": {"errors": []}}',
    "var/lib/cloud/instance/id": "builder",
    "etc/netplan/50.yaml": "network: {version: 2}\n",
    "etc/fstab": "/dev/disk/cloud/azure_resource-part1 /mnt auto comment=cloudconfig 0 2\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 builder\n",
}
IN_THE_BUILDER = f"{readme.block('### 1. Create the VM')}root=/\n{readme.block('### 3. Install')}"


@pytest.mark.parametrize("release", ["debian-12-agents"])
def test_first_boot_after_the_guide_has_removed_the_agents(
    image: Path, tmp_path: Path, host: SimulatedHost
) -> None:
    host.vm = Vm(public_keys=(new_key(tmp_path / "key"),))
    with fresh_disk(image, tmp_path / "machine") as root:
        for name, text in CLOUD_INIT_RAN.items():
            write(root, name, text)
        in_checkout(root, f"useradd --create-home builder\n{IN_THE_BUILDER * 2}{ALL}")
        assert (root / "etc/hosts").read_text() == "127.0.0.1 localhost\n"
        assert (root / "etc/fstab").read_text() == ""
        for name in "var/lib/cloud etc/netplan/50.yaml usr/bin/cloud-init usr/sbin/waagent".split():
            assert not (root / name).exists()
        add_drop_in(root, DNS)
        boot.install_witness(root)
        assert_both_boots_are_good_with_dhcp(root, host)


HOST_KEYS = [f"etc/ssh/ssh_host_{kind}_key.pub" for kind in ("ecdsa", "ed25519", "rsa")]
SECRETS = ["root/.bash_history", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed"]


def identity(root: Path) -> list[str]:
    return [(root / file).read_text() for file in ("etc/machine-id", *HOST_KEYS)]


@pytest.mark.parametrize("release", ["debian-12", "debian-testing"])
def test_image_shares_no_identity_with_its_machines(
    root: Path, tmp_path: Path, host: SimulatedHost
) -> None:
    assert boot_container(root) == good_end("myvm")
    for file in SECRETS:
        (root / file).unlink(missing_ok=True)
        write(root, file, "a secret")
    identities = [identity(root)]
    in_checkout(root, f"root=/\n{GENERALIZE}")
    assert [file for file in SECRETS if (root / file).exists()] == []
    logs = [path for path in (root / "var/log").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in logs) == 0
    for name in ("one", "two"):
        with fresh_disk(root, tmp_path / name) as machine:
            assert boot_container(machine) == good_end("myvm")
            identities.append(identity(machine))
    assert len(host.accepted) == 3
    for values in zip(*identities):
        assert all(values)
        assert len(set(values)) == 3, "the builder and its two machines share it"


SSH_OPTIONS = "-o BatchMode=yes -o IdentitiesOnly=yes -o IdentityAgent=none -o ConnectTimeout=5"
SSH_OPTIONS += " -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"


def new_key(file: Path) -> str:
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file))
    return file.with_suffix(".pub").read_text().strip()


def log_in(key: Path) -> str:
    """Try to log in to the machine, whose network this process is in; return what ssh says."""
    command = f"exec ssh -F none -i {key} {SSH_OPTIONS} builder@127.0.0.1 id -un 2>&1 </dev/null"
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True).stdout


@pytest.mark.parametrize("release", ["debian-12", "debian-testing"])
def test_ssh_key_from_azure_logs_in_also_after_a_reboot_without_imds(
    root: Path, tmp_path: Path, host: SimulatedHost
) -> None:
    require_tools("ssh", "ssh-keygen")
    right, baked_in = tmp_path / "right", tmp_path / "baked_in"
    host.vm = Vm(public_keys=(new_key(right),))
    # What the user could write in its home directory does not count.
    write(root, "home/builder/.ssh/authorized_keys", f"{new_key(baked_in)}\n")
    in_checkout(root, "chown -R builder: /home/builder; systemctl disable witness")
    for _ in range(2):
        with boot.running_container(root):
            wait_until(lambda: log_in(right).endswith("\nbuilder\n"), boot.CONTAINER_SECONDS)
            assert "Permission denied (publickey" in log_in(baked_in)
        host.refuse("imds")
