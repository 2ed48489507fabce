"""Boot a disk, as a container or as a virtual machine, and learn how the boot ended.

Both run in the caller's network, which must be one of its own; see network.new_network().
"""

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, STDOUT
from typing import Callable, NamedTuple

from world.images import ASSET_TAG, run

CONTAINER_SECONDS, VM_SECONDS = 200, 600  # for a boot, on a busy machine

# The unit's deadlines are the real ones, so the end of the boot is the only sign to wait for.
WITNESS = """\
systemctl is-system-running --wait >/witness.running
systemd-analyze time >/witness.startup
while [ -e /hold ]; do sleep 0.1; done
# What is disabled must not start again in this boot either.
systemctl is-enabled --quiet azure-provisioning.service || systemctl start multi-user.target
{
    echo "== running"; cat /witness.running
    echo "== multi_user"; systemctl is-active multi-user.target
    echo "== failed"; systemctl --failed --plain --no-legend | cut -d" " -f1
    echo "== enabled"; systemctl is-enabled azure-provisioning.service
    echo "== stale"; systemctl show --property=NeedDaemonReload --value multi-user.target
    echo "== result"; systemctl show --property=Result --value azure-provisioning.service
    echo "== status"; systemctl show --property=ExecMainStatus --value azure-provisioning.service
    echo "== kernel_name"; cat /proc/sys/kernel/hostname
    echo "== stored_name"; cat /etc/hostname
    echo "== hostnamed"; hostnamectl --static || cat /etc/hostname  # without D-Bus nobody is asked
    echo "== journal"; journalctl --sync
    journalctl --boot --output=cat --unit=azure-provisioning.service SYSLOG_IDENTIFIER=python3
} >/witness.partial 2>/dev/null
mv /witness.partial /witness
systemctl --force poweroff
"""
WITNESS_UNIT = """\
[Service]
ExecStart=/bin/sh /witness.sh
[Install]
WantedBy=multi-user.target
"""


class Report(NamedTuple):
    """What the witness saw at the end of a boot; if that was good, the defaults."""

    kernel_name: str
    stored_name: str
    hostnamed: str  # the name that it tells
    journal: list[str]  # the script's lines
    running: str = "running"
    multi_user: str = "active"
    failed: str = ""  # units, one a line
    enabled: str = "disabled"
    stale: str = "no"
    result: str = "success"
    status: str = "0"


def install_witness(root: Path) -> None:
    """Have the machine write a report to its disk at the end of each boot, and power off."""
    (root / "witness.sh").write_text(WITNESS)
    (root / "etc/systemd/system/witness.service").write_text(WITNESS_UNIT)
    run("chroot", str(root), "systemctl", "enable", "witness.service")


def parse_report(text: str) -> Report:
    values = dict(re.findall(r"^== (\w+)\n((?:(?!== ).*\n)*)", text, re.MULTILINE))
    assert values.keys() == set(Report._fields), "the machine is off, and its report is not whole"
    journal = values.pop("journal").splitlines()
    return Report(journal=journal, **{name: value.strip() for name, value in values.items()})


def start(*command: str, console: Path) -> "subprocess.Popen[bytes]":
    """Start a program that ends with this process, whatever happens to it."""
    command = ("setpriv", "--pdeathsig=KILL", *command)
    with open(console, "ab") as output:
        return subprocess.Popen(command, stdin=DEVNULL, stdout=output, stderr=STDOUT)


def wait(process: "subprocess.Popen[bytes]", console: Path, seconds: float) -> None:
    """Wait until the machine has powered itself off; else show what it said last."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)
    if process.returncode != 0:
        said = console.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"the machine did not power off ({process.returncode}):\n{said}")


# ---- The network of a machine

TAP, GATEWAY = "tap0", "10.0.0.1"
PLUG = f"ip tuntap add {TAP} mode tap"  # for a virtual machine
CABLE = f"ip link add {TAP} type veth peer name eth0"  # for a container
PLUGGED = "--network-interface=eth0"  # to its other end: for boot_container()


@contextlib.contextmanager
def dhcp(directory: Path, device: str = PLUG) -> Iterator[Path]:
    """Have DHCP, as Azure has it, on a device that a command makes; return the server's log."""
    run(*device.split())
    run("ip", "address", "add", f"{GATEWAY}/24", "dev", TAP)
    run("ip", "link", "set", TAP, "up")
    routes = f"168.63.129.16/32,{GATEWAY},169.254.169.254/32,{GATEWAY},0.0.0.0/0,{GATEWAY}"
    log = directory / "dnsmasq"
    server = start(
        *"dnsmasq --conf-file=/dev/null --keep-in-foreground --port=0 --leasefile-ro".split(),
        *"--no-ping --user=root --group=root".split(),  # another user would forget --pdeathsig
        *f"--pid-file --interface={TAP} --bind-interfaces --dhcp-range=10.0.0.4,10.0.0.9".split(),
        f"--dhcp-option=option:classless-static-route,{routes}",
        *"--dhcp-option-force=245,168.63.129.16 --log-dhcp --log-facility=-".split(),
        console=log,
    )
    try:
        yield log
    finally:
        server.kill()
        server.wait()
        with contextlib.suppress(RuntimeError):  # the other end may be gone, and so this one
            run("ip", "link", "delete", TAP)


# ---- Containers: systemd-nspawn

# Whatever the machine that runs the tests has: the guest's systemd sees one hierarchy of control
# groups.
LAUNCH = """\
echo 0 >"$1/cgroup.procs"
mount -t sysfs -o ro sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /run
shift; exec "$@"
"""


def boot_container(
    root: Path, *options: str, meanwhile: Callable[[], None] = lambda: None
) -> Report:
    """Boot the disk, wait until the boot has ended and the machine is off; return the report.

    *options* are systemd-nspawn's. While the disk has a file "hold", the machine stays on.
    """
    with running_container(root, *options) as process:
        meanwhile()
        wait(process, root.parent / "console", CONTAINER_SECONDS)
    report = root / "witness"
    text = report.read_text()
    report.unlink()
    return parse_report(text)


@contextlib.contextmanager
def running_container(root: Path, *options: str) -> "Iterator[subprocess.Popen[bytes]]":
    """Start a container from the disk; kill it, if it still runs, at the end."""
    # A control group of its own: in the same one, two guests would end each other's services.
    hierarchy = root.parent / "cgroup"
    hierarchy.mkdir(exist_ok=True)
    run("mount", "-t", "cgroup2", "cgroup2", str(hierarchy))
    group = hierarchy / f"azure-provisioning-test-{os.getpid()}"
    group.mkdir()
    try:
        process = start(
            *"unshare --mount --mount-proc --pid --fork --kill-child".split(),
            *("sh", "-euc", LAUNCH, "sh", str(group)),
            *"systemd-nspawn --boot --register=no --keep-unit --console=read-only".split(),
            *"--resolv-conf=off --timezone=off --link-journal=no".split(),
            *(*options, f"--directory={root}"),
            console=root.parent / "console",
        )
        # The guest ends with systemd-nspawn. To kill unshare instead would not wait for that end.
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        try:
            yield process
        finally:
            while process.poll() is None:
                run("sh", "-c", 'kill -KILL "$@" || :', "sh", *children.read_text().split())
                time.sleep(0.05)
    finally:
        run("find", str(group), *"-depth -type d -exec rmdir {} +".split())
        run("umount", str(hierarchy))


# ---- Virtual machines: QEMU, software emulation


class Emulation(NamedTuple):
    program: str
    machine: str


# By what the machine that runs the tests is; the images are of its architecture.
EMULATIONS = {"x86_64": Emulation("qemu-system-x86_64", "-M pc -cpu qemu64,-svm,+rdrand")}
# Without norandmaps each process has its code at other addresses, and QEMU translates it anew: a
# boot takes a third longer. Without its turn in time, the kernel's check of its timer panics, and
# that of its clock has it take a slower one.
KERNEL_OPTIONS = (
    "console=ttyS0 root=/dev/vda rw mitigations=off norandmaps no_timer_check tsc=reliable"
)


def boot_vm(emulation: Emulation, root: Path, append: str = "") -> Report:
    """Boot a copy of the disk, the same one each time, with options for its kernel.

    Else it is like boot_container().
    """
    disk = disk_of(root)
    with running_vm(emulation, root, disk, append) as process:
        wait(process, root.parent / "console", VM_SECONDS)
    show = ["debugfs", "-R", "cat /witness", str(disk)]
    text = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    run("debugfs", "-w", "-R", "rm /witness", str(disk))
    return parse_report(text)


def disk_of(root: Path) -> Path:
    disk = root.parent / "disk"
    if not disk.exists():
        run("mke2fs", "-q", "-t", "ext4", "-d", str(root), str(disk), "1G")
    return disk


@contextlib.contextmanager
def running_vm(
    emulation: Emulation, root: Path, disk: Path, append: str, disk_format: str = "raw"
) -> "Iterator[subprocess.Popen[bytes]]":
    """Start a virtual machine from the disk, with *root*'s kernel; kill it at the end."""
    (kernel,), (initrd,) = root.glob("boot/vmlinuz-*"), root.glob("boot/initrd.img-*")
    with dhcp(root.parent):
        process = start(
            *f"{emulation.program} -nodefaults -no-reboot -display none -serial stdio".split(),
            *f"{emulation.machine} -accel tcg,tb-size=512 -m 512".split(),
            *("-kernel", str(kernel), "-initrd", str(initrd), "-append"),
            f"{KERNEL_OPTIONS} {append}",
            *("-drive", f"file={disk},if=virtio,format={disk_format},cache=unsafe"),
            *f"-netdev tap,id=net,ifname={TAP},script=no,downscript=no".split(),
            *"-device virtio-net-pci,netdev=net".split(),
            *("-smbios", f"type=3,asset={ASSET_TAG}"),
            console=root.parent / "console",
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


# To show a missing fsync: the journal is written every second, data every minute, and not before
# the journal nor when a file takes the place of another one, as ext4 does by default.
LOSSY = "rootflags=data=writeback,noauto_da_alloc,commit=1 sysctl.vm.dirty_writeback_centisecs=6000"


@contextlib.contextmanager
def losing_power(emulation: Emulation, root: Path) -> Iterator[Callable[[], Path]]:
    """Boot a copy of the disk; a call returns what would be left of it if QEMU was killed then.

    Lost is what the guest has not written, and what it has not flushed: until then only QEMU itself
    knows where in its layer the data is. The witness is away: it would flush, and power off.
    """
    layer = root.parent / "layer"
    options = "-q -f qcow2 -o cluster_size=4k -F raw -b".split()
    run("qemu-img", "create", *options, str(disk_of(root)), str(layer))
    numbers = itertools.count()
    append = f"{LOSSY} systemd.mask=witness.service"
    with running_vm(emulation, root, layer, append, disk_format="qcow2") as process:

        def cut() -> Path:
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            left = shutil.copyfile(layer, f"{layer}.{next(numbers)}")
            process.send_signal(signal.SIGCONT)
            return Path(left)

        yield cut


def recover(layer: Path, root: Path) -> None:
    """Replay the file system's journal, and have its content in the new directory *root*."""
    disk = root.with_suffix(".recovered")
    run("qemu-img", "convert", "-O", "raw", str(layer), str(disk))
    run("sh", "-euc", 'e2fsck -p "$1" || [ $? -eq 1 ]', "sh", str(disk))  # 1: it was put right
    root.mkdir()
    run("debugfs", "-R", f"rdump / {root}", str(disk))
    disk.unlink()
