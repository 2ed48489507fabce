#!/usr/bin/env python3
"""Boot a disk image as Azure would, at home, and tell whether its VMs would live."""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Tuple

from world.boot import TAP, dhcp, start
from world.host import Request, SimulatedHost, Vm, arm
from world.images import ASSET_TAG, run
from world.network import PLATFORM_ENDPOINTS, isolate

READY_SECONDS = 1200  # as long as the unit tries
SETTLE_SECONDS = 10  # after Ready, for a second report and a host name
SSH_SECONDS = 300  # for an SSH server that is there, and may first make keys
OFF_SECONDS = 90  # from the power button to the end
EMULATED = 2  # times as much without KVM
# For an image that fetches one. Nobody has the other half.
SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBcs2o+rO5GPVOIwbFO0ZgR0/JH0CvN7whsU5alztJn+ nobody"

EPILOG = """\
IMAGE is never written to. What counts is what the platform sees, so the image may have any agent:
cloud-init, waagent, azure-init, this project's, or your own. Nothing leaves the network namespace
in which it runs. FAULT is what tests/simulated_host.py takes, for example goalstate:503:3x.

Exit status: 0 if all promises are kept, 1 if one is not, 2 if it could not be tried.
"""

ESP = bytes.fromhex("28732ac11ff8d211ba4b00a0c93ec93b")  # the type of an EFI system partition
# Ends QEMU with status 33, if the guest's processor does run: mov al, 16; out 0xf4, al; hlt
PROBE = bytes.fromhex("b010e6f4f4").ljust(510, b"\0") + b"\x55\xaa"


class Arch(NamedTuple):
    program: str
    package: str
    machine: str
    cpu: str  # without KVM; QEMU's own default for pointer authentication is slow
    uefi: str  # its code, and its variables; and where they come from
    variables: str
    uefi_package: str


ARCHS = {
    "x86_64": Arch(
        *("qemu-system-x86_64", "qemu-system-x86", "q35", "max"),
        *("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd", "ovmf"),
    ),
    "aarch64": Arch(
        *("qemu-system-aarch64", "qemu-system-arm", "virt", "max,pauth-impdef=on"),
        *("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd", "qemu-efi-aarch64"),
    ),
}
PACKAGES = {  # of the programs that every trial needs
    "dnsmasq": "dnsmasq-base",
    "ip": "iproute2",
    "qemu-img": "qemu-utils",
    "setpriv": "util-linux",
    "ssh-keyscan": "openssh-client",
}


class Machine(NamedTuple):
    """What to boot, and how."""

    arch: Arch
    kvm: bool
    uefi: bool
    disk: Path  # an overlay of its own
    variables: Path  # the firmware's
    console: Path
    number: int


class Boot(NamedTuple):
    """What the platform saw of a boot; seconds count from power-on."""

    lease: Optional[float]
    address: str
    name: str  # that the lease was asked for
    requests: List[Request]
    ready: Optional[float]
    seconds: float
    ended: bool  # by itself


class Promise(NamedTuple):
    kept: Optional[bool]  # None: cannot be told
    text: str


# ---- What kind of disk it is


def missing_packages(arch: Arch, uefi: bool) -> List[str]:
    programs = {**PACKAGES, arch.program: arch.package}
    missing = [package for program, package in programs.items() if not shutil.which(program)]
    if uefi and not os.path.exists(arch.uefi):
        missing.append(arch.uefi_package)
    return sorted(missing)


def disk_format(image: Path) -> str:
    """Return QEMU's name for the format; a fixed VHD has its mark only at the end."""
    with open(image, "rb") as file:
        file.seek(max(os.path.getsize(image) - 512, 0))
        if file.read(8) == b"conectix":
            return "vpc"
    info = subprocess.check_output(["qemu-img", "info", "--output=json", str(image)])
    return str(json.loads(info)["format"])


def remarks_on_vhd(image: Path) -> List[str]:
    """Say what Azure would not take; everything else must become a fixed VHD first."""
    with open(image, "rb") as file:
        file.seek(-512, os.SEEK_END)
        footer = file.read()
    (size,) = struct.unpack(">Q", footer[48:56])
    (kind,) = struct.unpack(">I", footer[60:64])
    remarks = []
    if kind != 2:
        remarks.append("Azure takes only a fixed VHD (qemu-img: -o subformat=fixed,force_size)")
    if size % (1 << 20):
        remarks.append(f"Azure takes no VHD of {size} bytes: its size must be whole MiB")
    return remarks


def has_esp(image: Path, kind: str, directory: Path) -> bool:
    """Return whether the partition table has an EFI system partition."""
    head = directory / "head"
    source, target = f"if={image}", f"of={head}"
    run("qemu-img", "dd", "-f", kind, "-O", "raw", "bs=1M", "count=1", source, target)
    data = head.read_bytes()
    if data[510:512] != b"\x55\xaa":
        raise ValueError(f"{image} has neither a partition table nor a boot sector")
    if data[512:520] == b"EFI PART":
        return ESP in data[1024 : 1024 + 128 * 128]
    return b"\xef" in data[450:512:16]


def kvm_works(arch: str, directory: Path) -> bool:
    """Return whether a guest runs with KVM; that /dev/kvm can be opened is not enough."""
    if arch != platform.machine() or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    if arch != "x86_64":
        return True
    sector = directory / "probe"
    sector.write_bytes(PROBE.ljust(1 << 20, b"\0"))
    command = [
        *f"{ARCHS[arch].program} -M pc -accel kvm -cpu host -m 64 -nodefaults".split(),
        *"-display none -device isa-debug-exit,iobase=0xf4,iosize=4".split(),
        *("-drive", f"file={sector},format=raw,if=ide"),
    ]
    with contextlib.suppress(subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, check=False, timeout=5).returncode == 33
    return False


# ---- A boot


def qemu(machine: Machine, monitor: Path) -> List[str]:
    """Return the command that runs *machine*."""
    arch = machine.arch
    firmware = []
    if machine.uefi:
        firmware = [
            *("-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={arch.uefi}"),
            *("-drive", f"if=pflash,format=raw,unit=1,file={machine.variables}"),
        ]
    return [
        *f"{arch.program} -M {arch.machine} -smp 2 -m 1024 -nodefaults -display none".split(),
        *("-accel kvm -cpu host" if machine.kvm else f"-accel tcg -cpu {arch.cpu}").split(),
        *("-serial", "stdio", "-monitor", f"unix:{monitor},server,nowait"),
        *firmware,
        *("-drive", f"file={machine.disk},format=qcow2,if=virtio,cache=unsafe"),
        *f"-netdev tap,id=net,ifname={TAP},script=no,downscript=no".split(),
        *("-device", f"virtio-net-pci,netdev=net,mac=00:0d:3a:00:00:0{machine.number},romfile="),
        *"-device virtio-rng-pci".split(),
        *("-smbios", "type=1,manufacturer=Microsoft Corporation,product=Virtual Machine"),
        *("-smbios", f"type=3,asset={ASSET_TAG}"),
    ]


def print_event(start: float, text: str) -> None:
    print(f"{time.time() - start:7.1f} s  {text}", flush=True)


@contextlib.contextmanager
def switched_on(machine: Machine, directory: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """Run the machine, and pull its plug at the end."""
    process = start(*qemu(machine, directory / "monitor"), console=machine.console)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def press_power_button(process: "subprocess.Popen[bytes]", directory: Path, seconds: float) -> None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as control:
        control.connect(str(directory / "monitor"))
        control.sendall(b"system_powerdown\n")
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            print("           it does not heed the power button: switched off", flush=True)


class Watch:
    """Follows the DHCP server's log, and the console if wanted, and prints what is new."""

    def __init__(self, log: Path, console: Path, show_console: bool) -> None:
        self.files = {log: log.stat().st_size}
        if show_console:
            self.files[console] = console.stat().st_size
        self.log, self.start = log, time.time()
        self.lease: Optional[float] = None
        self.address = self.name = ""
        self.is_firmware = False

    def look(self) -> None:
        for path in self.files:
            with open(path, "rb") as file:
                file.seek(self.files[path])
                text = file.read()
            text = text[: text.rfind(b"\n") + 1]
            self.files[path] += len(text)
            for line in text.decode("utf-8", "replace").splitlines():
                if path == self.log:
                    self.read_log(line)
                else:
                    print("           |", "".join(c if c.isprintable() else " " for c in line))

    def read_log(self, line: str) -> None:
        if "vendor class: PXEClient" in line:  # that is the firmware, which found nothing to boot
            self.is_firmware = True
        name = re.search(r"client provides name: (\S+)", line)
        lease = re.search(r"DHCPACK\(\w+\) ([\d.]+)", line)
        if name:
            self.name = name.group(1)
        if lease and self.is_firmware:
            self.is_firmware = False
        elif lease:
            self.address = lease.group(1)
            asked = f", asked for as {self.name}" if self.name else ""
            print_event(self.start, f"DHCP lease of {self.address}{asked}")
            self.lease = self.lease or time.time() - self.start


def ssh_host_keys(address: str, seconds: float) -> List[str]:
    """Return the host keys of the SSH server, if there is one within so many seconds."""
    deadline = time.monotonic() + seconds
    while address:
        done = subprocess.run(
            ["ssh-keyscan", "-T", "20", address], capture_output=True, text=True, check=False
        )
        keys = [line.split()[-1] for line in done.stdout.splitlines() if line[:1] != "#"]
        if keys or time.monotonic() > deadline:
            return keys
        time.sleep(1)
    return []


# ---- The verdict


# What a console may have, and what that means.
CONSOLE_SAYS = {
    "Press any key to proceed": "systemd-firstboot waits for a key: mask that service",
    "Kernel panic": "its kernel panicked; without KVM it may be QEMU: try --cpu=max,-cx16",
}


def likely_reasons(boot: Boot, console: str) -> List[str]:
    """Say why Ready may be missing, as the README's table of symptoms does."""
    said = [reason for words, reason in CONSOLE_SAYS.items() if words in console]
    failures = re.findall("(?:Goal state|Health report) failed: [ -~]*", console)
    return said or [*likely_reasons_outside(boot), *failures[-1:]]


def likely_reasons_outside(boot: Boot) -> List[str]:
    """Say why by what the platform saw."""
    targets = [request.target for request in boot.requests]
    reports = [request for request in boot.requests if request.method == "POST"]
    if boot.ended:
        return ["the machine went off: its console says why"]
    if reports:
        return [f"its reports were refused: the last answer was {reports[-1].answer}"]
    if any("goalstate" in target for target in targets):
        return ["it fetched the goal state and reported nothing: its journal says why"]
    if boot.requests:
        return ["it talks to the platform, but nothing in it reports Ready"]
    if boot.lease is not None:
        return [
            "nothing in it asked the platform: the unit, or another agent, is not enabled",
            "or it waits for something, or a firewall in it holds back the requests",
        ]
    return [
        "it asked for no address: there is no network manager, or one for another card",
        "(step 2 of the README), or it did not boot at all: its console says",
    ]


def judge(
    first: Boot, accepted: int, second: Optional[Boot], name: str, keys: List[List[str]]
) -> List[Promise]:
    """Return what came of each promise."""
    if first.ready is None:
        return [Promise(False, f"Ready was not accepted in {first.seconds:.0f} s")]
    once = "once" if accepted == 1 else f"{accepted} times"
    promises = [Promise(accepted == 1, f"Ready accepted {once}, first after {first.ready:.1f} s")]
    if second is None:
        return promises
    reports = [request for request in second.requests if request.method == "POST"]
    if second.lease is None:
        promises.append(Promise(False, "the second boot got no lease"))
    elif reports:
        promises.append(Promise(False, f"the second boot posted {len(reports)} times"))
    elif second.requests:
        count = f"{len(second.requests)} other requests, as of an agent that stays"
        text = f"the second boot reported nothing ({count})"
        promises.append(Promise(True, text))
    else:
        promises.append(Promise(True, f"the second boot was silent for {second.seconds:.0f} s"))
    if second.name:
        text = f"the second lease was asked for as {second.name}"
        right = second.name.split(".")[0] == name
        promises.append(Promise(right, text if right else f"{text}, not as {name}"))
    else:
        promises.append(Promise(None, "the second lease was asked for without a host name"))
    if not keys[0]:
        promises.append(Promise(None, "no SSH server"))
    elif not keys[1]:
        promises.append(Promise(None, "another machine of this image had no SSH server in time"))
    elif set(keys[0]) & set(keys[1]):
        promises.append(Promise(False, "two machines of this image share SSH host keys"))
    else:
        promises.append(Promise(True, "two machines of this image share no SSH host key"))
    return promises


MARKS = {True: "yes", False: "NO", None: "?"}


def print_verdict(promises: List[Promise], reasons: List[str], console: Path) -> bool:
    good = all(promise.kept is not False for promise in promises)
    print()
    for promise in promises:
        print(f"{MARKS[promise.kept]:>4}  {promise.text}")
    for reason in reasons:
        print("      likely:", reason)
    print("\nVerdict:", "good" if good else "BAD: Azure would reboot such a VM, or it is not right")
    print("Console:", console)
    return good


# ---- The trial


class Trial(NamedTuple):
    options: argparse.Namespace
    arch: Arch
    kvm: bool
    uefi: bool
    directory: Path
    console: Path
    host: SimulatedHost

    @property
    def pace(self) -> int:
        return 1 if self.kvm else EMULATED


def new_machine(trial: Trial, number: int) -> Machine:
    """Return a machine with a disk of its own, as Azure makes one of the image."""
    disk = trial.directory / f"disk-{number}"
    backing = ["-b", str(trial.options.image.resolve()), "-F", trial.options.format]
    run("qemu-img", "create", "-q", "-f", "qcow2", *backing, str(disk))
    variables = trial.directory / f"variables-{number}"
    if trial.uefi:
        shutil.copy(trial.arch.variables, variables)
    host = trial.host
    name = f"tried-{number}"
    host.vm = Vm(name, name, f"container-{number}", f"instance-{number}", public_keys=(SSH_KEY,))
    host.accepted.clear()
    return Machine(trial.arch, trial.kvm, trial.uefi, disk, variables, trial.console, number)


def boot(
    trial: Trial, machine: Machine, first: bool, quiet: float, keys: List[str], patience: float = 0
) -> Boot:
    """Boot, watch until *quiet* seconds after Ready or, if not *first*, the lease; then switch off.

    Before that fetch the SSH host *keys*, with some *patience*.
    """
    host = trial.host
    host.requests.clear()
    watch = Watch(trial.directory / "dnsmasq", machine.console, trial.options.console)
    host.on_request = lambda request: print_event(
        watch.start,
        f"{request.service} {request.method} {request.target} -> {request.answer}",
    )
    accepted_before = len(host.accepted)
    ready: Optional[float] = None
    with switched_on(machine, trial.directory) as process:
        watch.start = time.time()
        while process.poll() is None and time.time() - watch.start < trial.options.timeout:
            watch.look()
            if ready is None and len(host.accepted) > accepted_before:
                ready = time.time() - watch.start
            since = ready if first else watch.lease
            if since is not None and time.time() - watch.start > since + quiet:
                break
            time.sleep(0.2)
        ended = process.poll() is not None
        if not ended and (ready is not None or not first):
            keys += ssh_host_keys(watch.address, patience or 2 * quiet)
        watch.look()
        seconds = time.time() - watch.start
        if watch.lease is not None:  # else it may not even have booted
            press_power_button(process, trial.directory, OFF_SECONDS * trial.pace)
    host.on_request = lambda request: None
    watch.look()
    requests = list(host.requests)
    return Boot(watch.lease, watch.address, watch.name, requests, ready, seconds, ended)


def try_image(trial: Trial) -> bool:
    settle = SETTLE_SECONDS * trial.pace
    keys: List[List[str]] = [[], []]
    print("First boot")
    machine = new_machine(trial, 1)
    first = boot(trial, machine, True, settle, [])
    accepted, second = len(trial.host.accepted), None
    if first.ready is not None:
        print("Second boot of the same disk")
        quiet = settle + 2 * max(first.ready - (first.lease or 0), 0)
        second = boot(trial, machine, False, quiet, keys[0])
    if keys[0]:
        print("First boot of another machine")
        boot(trial, new_machine(trial, 2), True, settle, keys[1], SSH_SECONDS * trial.pace)
    promises = judge(first, accepted, second, "tried-1", keys)
    console = trial.console.read_text(errors="replace")
    reasons = likely_reasons(first, console) if first.ready is None else []
    return print_verdict(promises, reasons, trial.console)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="raw, qcow2, VHD or VHDX")
    parser.add_argument("--arch", choices=ARCHS, default=platform.machine())
    parser.add_argument("--firmware", choices=["uefi", "bios"], help="else as the partitions say")
    parser.add_argument("--cpu", help="QEMU's -cpu, without KVM")
    parser.add_argument("--console", action="store_true", help="print the serial console, too")
    parser.add_argument("--fault", action="append", default=[], help="trouble on the platform")
    parser.add_argument(
        "--timeout", type=float, default=READY_SECONDS, help="seconds for a boot (%(default)s)"
    )
    options = parser.parse_args()
    if not options.image.is_file():
        parser.error(f"there is no file {options.image}")
    return options


def prepare(options: argparse.Namespace, directory: Path) -> Tuple[bool, bool]:
    """Find out what the image is; return whether KVM works, and whether it wants UEFI firmware."""
    options.format = disk_format(options.image)
    remarks = remarks_on_vhd(options.image) if options.format == "vpc" else []
    esp = has_esp(options.image, options.format, directory)
    uefi = options.firmware == "uefi" or (options.firmware is None and esp)
    if not uefi and options.arch != "x86_64":
        raise ValueError(f"{options.arch} has no BIOS: its disks need an EFI system partition")
    kvm = kvm_works(options.arch, directory)
    what = "an EFI system partition" if esp else "no EFI system partition"
    firmware = "UEFI" if uefi else "BIOS"
    speed = "KVM" if kvm else "software emulation, which is slow"
    print(f"{options.image}: {options.format}, {what}; tried with {firmware} and {speed}")
    for remark in remarks:
        print("Note:", remark)
    return kvm, uefi


def main() -> int:
    options = parse_arguments()
    arch = ARCHS[options.arch]
    arch = arch._replace(cpu=options.cpu or arch.cpu)
    with tempfile.TemporaryDirectory(prefix="try-image-") as name:
        directory = Path(name)
        try:
            check_packages(missing_packages(arch, uefi=False))
            kvm, uefi = prepare(options, directory)
            check_packages(missing_packages(arch, uefi))
            if os.geteuid():
                raise ValueError("it needs root")
            problem = isolate()
            if problem:
                raise ValueError(problem)
            with SimulatedHost(Vm(), *PLATFORM_ENDPOINTS) as host, dhcp(directory):
                for fault in options.fault:
                    arm(host, fault)
                handle, console = tempfile.mkstemp(prefix="try-image-", suffix=".console")
                os.close(handle)
                print("Console:", console, flush=True)
                trial = Trial(options, arch, kvm, uefi, directory, Path(console), host)
                return 0 if try_image(trial) else 1
        except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
            print(f"try_image.py: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("Interrupted", file=sys.stderr)
            return 130


def check_packages(missing: List[str]) -> None:
    if missing:
        raise ValueError(f"something is missing; first: apt-get install {' '.join(missing)}")


if __name__ == "__main__":
    sys.exit(main())
