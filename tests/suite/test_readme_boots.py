"""The README's blocks and drop-ins, each in a system that boots; see test_boots.py."""

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import require_tools, wait_until
from test_boots import LINES, RELEASES, assert_nothing_happens_at, good_end
from world import readme
from world.boot import (
    CABLE,
    CONTAINER_SECONDS,
    PLUGGED,
    Emulation,
    boot_container,
    boot_vm,
    dhcp,
    install_witness,
    make_disk,
    running_container,
)
from world.host import SimulatedHost, Vm
from world.images import ALL, GENERALIZE, fresh_disk, in_checkout, install, run

UNIT = "azure-provisioning.service"
NAME_FIRST, READY_LAST, OTHER_TARGET, ELSEWHERE, READ_ONLY, DNS = readme.drop_ins()
NETWORKD = "systemd-networkd systemd-networkd-wait-online"


@pytest.fixture
def installed(image: Path, tmp_path: Path) -> Iterator[Path]:
    """The disk of a machine that has all of the README's blocks, and has never booted."""
    require_tools("systemd-nspawn")
    with fresh_disk(image, tmp_path / "machine") as root:
        install(root)
        install_witness(root)
        yield root


@pytest.fixture
def root(installed: Path) -> Path:
    """The same, without a network of its own."""
    in_checkout(installed, f"systemctl disable {NETWORKD}")
    return installed


@pytest.fixture
def host(platform_host: SimulatedHost) -> SimulatedHost:
    platform_host.vm = Vm()  # the one in the README
    return platform_host


def write(root: Path, file: str, text: str) -> None:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text)


def adapt(root: Path, drop_in: str, unit: str = UNIT) -> None:
    directory = f"etc/systemd/system/{unit}.d"
    write(root, f"{directory}/{len(list((root / directory).glob('*')))}.conf", drop_in)


def add_service(root: Path, name: str, command: str) -> None:
    service = f"[Service]\nType=oneshot\nExecStart={command}\nStandardOutput=append:/said\n"
    write(root, f"etc/systemd/system/{name}", f"{service}[Install]\nWantedBy=other.target\n")


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


def assert_it_boots_in_a_network_of_its_own(root: Path, host: SimulatedHost, *options: str) -> None:
    """And that the DHCP server, where Azure's DNS has a name from, knows it after that boot."""
    host.requests.clear()
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
        assert_nothing_happens_at(lambda: boot_container(root, PLUGGED), host, "myvm")


@pytest.mark.parametrize("release", RELEASES)
def test_it_boots_with_two_cards_where_a_preset_disables_what_no_other_enables(
    installed: Path, host: SimulatedHost
) -> None:
    """As a first boot has it in some distributions. One of the cards gets no lease."""
    adapt(installed, DNS)
    write(installed, VENDOR_PRESET, "disable *\n")
    in_checkout(installed, "systemctl preset-all")
    wanted = installed / "etc/systemd/system/multi-user.target.wants"
    assert not (wanted / "witness.service").is_symlink()
    in_checkout(installed, "systemctl enable witness")
    run("sh", "-euc", SECOND_CARD)
    start = time.monotonic()
    assert_it_boots_in_a_network_of_its_own(installed, host, PLUGGED.replace("eth0", "eth1"))
    assert time.monotonic() - start < 90, "it waits for a lease on all cards"


@pytest.mark.parametrize("release, manager", [("debian-12-managers", one) for one in MANAGERS])
def test_it_boots_with_another_network_manager(
    root: Path, host: SimulatedHost, manager: str
) -> None:
    adapt(root, DNS.replace("systemd-networkd", manager))
    in_checkout(root, f"{OTHERS}\n{MANAGERS[manager]}")
    assert_it_boots_in_a_network_of_its_own(root, host)


# virtio_net stands for mana. The second card is below another, as with Accelerated Networking.
RULES = "etc/udev/rules.d/10-azure-unmanaged-sriov.rules"
SLAVE = "00:0d:3a:00:00:02"
SLAVE_CARD = f"-netdev hubport,id=two,hubid=0 -device virtio-net-pci,netdev=two,mac={SLAVE}"
ENSLAVE = f"""\
modprobe bonding max_bonds=1
for card in /sys/class/net/e*; do
    grep -q {SLAVE} "$card/address" || continue
    echo "+${{card##*/}}" >/sys/class/net/bond0/bonding/slaves
    udevadm trigger --action=change --settle "$card"
done
"""
ENSLAVE_UNIT = """\
[Unit]
DefaultDependencies=no
Wants=systemd-udev-settle.service
After=systemd-udev-settle.service
Before=systemd-networkd.service
[Service]
Type=oneshot
ExecStart=/bin/sh -eu /enslave.sh
[Install]
WantedBy=systemd-networkd.service
"""
SHOW_CARDS = """\
[Service]
SyslogIdentifier=python3
ExecStartPre=/bin/sh -c 'for one in /sys/class/net/e*/ifindex; do \
grep ADMIN_STATE /run/systemd/netif/links/$(cat $one); done'
"""


@pytest.mark.parametrize("release", ["debian-13"])
def test_a_virtual_machine_leaves_a_card_below_another_one_alone(
    emulation: Emulation, installed: Path, host: SimulatedHost
) -> None:
    rules = (installed / RULES).read_text()
    (installed / RULES).write_text(rules.replace("mana|", "mana|virtio_net|"))
    write(installed, "enslave.sh", ENSLAVE)
    write(installed, "etc/systemd/system/enslave.service", ENSLAVE_UNIT)
    in_checkout(installed, "systemctl enable enslave")
    adapt(installed, SHOW_CARDS)
    adapt(installed, ELSEWHERE)  # this is no other place
    machine = emulation._replace(machine=f"{emulation.machine} {SLAVE_CARD}")
    with dhcp(installed.parent):
        report = boot_vm(machine, make_disk(installed), installed / "boot")
    cards = ["ADMIN_STATE=unmanaged", "ADMIN_STATE=configured"]
    assert report == good_end("myvm", [*cards, *LINES])
    assert len(host.accepted) == 1


# ---- Drop-ins

TARGET = "[Unit]\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n"


@pytest.mark.parametrize("release", ["debian-11", "debian-testing"])
def test_the_unit_reports_after_an_application_and_before_a_service_in_another_target(
    root: Path, host: SimulatedHost
) -> None:
    add_service(root, "application.service", "/bin/sh -c 'sleep 1; cat /proc/sys/kernel/hostname'")
    add_service(root, "late.service", "/bin/cat /proc/sys/kernel/hostname")
    adapt(root, NAME_FIRST, "late.service")
    adapt(root, READY_LAST)
    adapt(root, OTHER_TARGET.replace("graphical.target", "other.target"))
    adapt(root, DNS)  # there is no network manager to tell
    write(root, "etc/systemd/system/other.target", TARGET)
    in_checkout(
        root,
        f"""
        sed -i s/multi-user/other/ /etc/systemd/system/witness.service
        systemctl set-default other.target; systemctl reenable {UNIT} late witness
    """,
    )
    report = boot_container(root)
    assert report == good_end("myvm")
    assert (root / "said").read_text() == "localhost\nmyvm\n"
    assert_nothing_happens_at(lambda: boot_container(root), host, "myvm")


NOTHING_DONE = good_end("localhost", [])._replace(enabled="enabled")


@pytest.mark.parametrize("release", ["debian-12"])
def test_where_the_application_fails_nothing_is_reported(root: Path, host: SimulatedHost) -> None:
    add_service(root, "application.service", "/bin/false")
    adapt(root, READY_LAST)
    failed = ["application.service"]
    assert boot_container(root) == NOTHING_DONE._replace(running="degraded", failed=failed)
    assert host.requests == []


@pytest.mark.parametrize("release", ["debian-11"])
def test_elsewhere_than_on_azure_the_unit_is_skipped(root: Path, host: SimulatedHost) -> None:
    adapt(root, ELSEWHERE)
    report = boot_container(root)
    assert report._replace(status="0") == NOTHING_DONE._replace(result="exec-condition")
    assert host.requests == []


@pytest.mark.parametrize("release", ["debian-13"])
def test_where_etc_is_read_only_each_boot_sets_the_kernels_name(
    root: Path, host: SimulatedHost
) -> None:
    adapt(root, READ_ONLY)
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
    "etc/netplan/50-cloud-init.yaml": "network: {version: 2}\n",
    "etc/fstab": "/dev/disk/cloud/azure_resource-part1 /mnt auto comment=cloudconfig 0 2\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 builder\n",
}
IN_THE_BUILDER = f"{readme.block('### 1. Create the VM')}root=/\n{readme.block('### 3. Install')}"


@pytest.mark.parametrize("release", ["debian-12-agents"])
def test_it_boots_after_the_agents_were_removed_as_the_guide_says(
    image: Path, tmp_path: Path, host: SimulatedHost
) -> None:
    host.vm = Vm(public_keys=(new_key(tmp_path / "key"),))
    with fresh_disk(image, tmp_path / "machine") as root:
        for name, text in CLOUD_INIT_RAN.items():
            write(root, name, text)
        in_checkout(root, f"useradd --create-home builder\n{IN_THE_BUILDER * 2}{ALL}")
        assert (root / "etc/hosts").read_text() == "127.0.0.1 localhost\n"
        assert (root / "etc/fstab").read_text() == ""
        gone = "var/lib/cloud etc/netplan/50-cloud-init.yaml usr/bin/cloud-init usr/sbin/waagent"
        assert [name for name in gone.split() if (root / name).exists()] == []
        adapt(root, DNS)
        install_witness(root)
        assert_it_boots_in_a_network_of_its_own(root, host)


KEYS = ("ecdsa", "ed25519", "rsa")
IDENTITY = ["etc/machine-id", *(f"etc/ssh/ssh_host_{kind}_key.pub" for kind in KEYS)]
SECRETS = ["root/.bash_history", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed"]


def identity(root: Path) -> list[str]:
    return [(root / file).read_text() for file in IDENTITY]


@pytest.mark.parametrize("release", ["debian-12", "debian-testing"])
def test_machines_of_one_image_share_no_identity(
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
        host.vm = Vm(name=name, computer_name=name)
        host.accepted.clear()
        with fresh_disk(root, tmp_path / name) as machine:
            assert boot_container(machine) == good_end(name, [*LINES[:-1], f"Host name {name} set"])
            assert len(host.accepted) == 1
            identities.append(identity(machine))
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
def test_the_ssh_key_from_azure_logs_in_also_after_a_reboot_without_imds(
    root: Path, tmp_path: Path, host: SimulatedHost
) -> None:
    require_tools("ssh", "ssh-keygen")
    right, baked_in = tmp_path / "right", tmp_path / "baked_in"
    host.vm = Vm(public_keys=(new_key(right),))
    # What the user could write in its home directory does not count.
    write(root, "home/builder/.ssh/authorized_keys", f"{new_key(baked_in)}\n")
    in_checkout(root, "chown -R builder: /home/builder; systemctl disable witness")
    for _ in range(2):
        with running_container(root):
            wait_until(lambda: log_in(right).endswith("\nbuilder\n"), CONTAINER_SECONDS)
            assert "Permission denied (publickey" in log_in(baked_in)
        host.refuse("imds")
