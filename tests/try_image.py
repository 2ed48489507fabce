#!/usr/bin/env python3
"""Boot a disk image as Azure would, at home, and tell whether its VMs would live."""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, Optional

from world import interruption
from world.boot import TAP, dhcp, start
from world.host import Request, SimulatedHost, Vm
from world.images import ASSET_TAG
from world.network import PLATFORM_ENDPOINTS, isolate

READY_SECONDS = 1200  # as long as the unit tries
SETTLE_SECONDS = 20  # after Ready, for a second report, a host name, and a lease for that
SSH_SECONDS = 600  # for an SSH server that is there, and may first make keys
OFF_SECONDS = 180  # from the power button to the end
LAST_WORDS = 10  # lines of the console that are shown when there is no Ready
# For an image that fetches one. Nobody has the other half.
SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBcs2o+rO5GPVOIwbFO0ZgR0/JH0CvN7whsU5alztJn+ nobody"
EPILOG = """\
IMAGE is never written to, and may have any agent: what counts is what the platform sees. Nothing
leaves the network namespace in which it runs.

Exit status: 0 if all promises are kept, 1 if one is not, 2 if it could not be tried.
"""
ESP = bytes.fromhex("28732ac11ff8d211ba4b00a0c93ec93b")  # the type of an EFI system partition
# Ends QEMU with status 33, if the guest's processor does run: finit, which UEFI begins with, and
# which some nested KVM cannot do; mov al, 16; out 0xf4, al; hlt
PROBE = bytes.fromhex("9bdbe3b010e6f4f4").ljust(510, b"\0") + b"\x55\xaa"
PROBING = """\
qemu-system-x86_64 -M pc -accel kvm -cpu host -m 64 -nodefaults -display none
-device isa-debug-exit,iobase=0xf4,iosize=4 -drive file=probe,format=raw,if=ide
"""


class Arch(NamedTuple):
    machine: str
    cpu: str  # without KVM; QEMU's own default for pointer authentication is slow
    code: str  # UEFI's
    variables: str
    packages: str


ARCHS = {
    "x86_64": Arch(
        *("q35", "max", "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
        "qemu-system-x86 ovmf",
    ),
    "aarch64": Arch(
        *("virt", "max,pauth-impdef=on"),
        *("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),
        "qemu-system-arm qemu-efi-aarch64",
    ),
}
PROGRAMS = "dnsmasq ip qemu-img setpriv ssh-keyscan".split()
PACKAGES = "dnsmasq-base iproute2 qemu-utils util-linux openssh-client"


class Trial(NamedTuple):
    """What is tried, and how."""

    image: Path
    format: str  # QEMU's name for it
    uefi: bool
    kvm: bool
    options: argparse.Namespace
    directory: Path
    console: Path
    host: SimulatedHost


Promise = tuple[Optional[bool], str]  # whether it is kept; None: cannot be told


# ---- What kind of disk it is


def check_programs(arch: str) -> None:
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # which not every user's has
    for one in (*PROGRAMS, f"qemu-system-{arch}", ARCHS[arch].code):
        if not shutil.which(one, mode=os.F_OK):
            packages = f"{PACKAGES} {ARCHS[arch].packages}"
            raise ValueError(f"{one} is missing; first: apt-get install {packages}")


def qemu_img(*arguments: str) -> str:
    done = subprocess.run(["qemu-img", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise ValueError(done.stderr.partition("\n")[0])
    return done.stdout


def disk_format(image: Path) -> str:
    """Return QEMU's name for the format; a fixed VHD has its mark only at the end."""
    size = image.stat().st_size
    if size < 512:
        raise ValueError(f"{image} is no disk: it has {size} bytes")
    with open(image, "rb") as file:
        file.seek(-512, os.SEEK_END)
        if file.read(8) == b"conectix":
            return "vpc"
    return str(json.loads(qemu_img("info", "--output=json", str(image)))["format"])


def has_esp(image: Path, kind: str, directory: Path) -> bool:
    """Return whether the partition table has an EFI system partition."""
    head = directory / "head"
    places = (f"if={image}", f"of={head}")
    qemu_img("dd", "-f", kind, "-O", "raw", "bs=1M", "count=1", *places)
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
    (directory / "probe").write_bytes(PROBE.ljust(1 << 20, b"\0"))
    command = ["timeout", "5", *PROBING.split()]
    return subprocess.run(command, cwd=directory, capture_output=True).returncode == 33


# ---- A boot


class Boot:
    """What the platform sees of a boot; seconds count from power-on. It prints what is new."""

    def __init__(self, host: SimulatedHost, log: Path) -> None:
        self.host, self.log, self.read = host, log, log.stat().st_size
        host.accepted.clear()
        self.start = time.time()
        self.lease: Optional[float] = None
        self.ready: Optional[float] = None
        self.address = self.name = ""  # of the last lease, and that it was asked for
        self.requests: list[Request] = []
        self.reports = 0  # that were accepted
        self.keys: list[str] = []  # of its SSH server
        self.seconds = 0.0  # that it was watched

    def now(self) -> float:
        return time.time() - self.start

    def tell(self, text: str) -> None:
        print(f"{self.now():7.1f} s  {text}", flush=True)

    def take_request(self, request: Request) -> None:
        self.tell(f"{request.service} {request.method} {request.target} -> {request.answer}")
        self.requests.append(request)
        self.reports = len(self.host.accepted)
        if self.reports:
            self.ready = self.ready or self.now()

    def look_at_leases(self) -> None:
        """Read what is new in the DHCP server's log."""
        with open(self.log, "rb") as file:
            file.seek(self.read)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]
        self.read += len(text)
        for line in text.decode("utf-8", "replace").splitlines():
            name = re.search(r"client provides name: (\S+)", line)
            lease = re.search(r"DHCPACK\(\w+\) ([\d.]+)", line)
            self.name = name.group(1) if name else self.name
            if lease:
                self.address, self.lease = lease.group(1), self.lease or self.now()
                asked = f", asked for as {self.name}" if self.name else ""
                self.tell(f"DHCP lease of {self.address}{asked}")


def qemu(trial: Trial, number: int) -> list[str]:
    """Return the command that runs the machine with this *number*."""
    arch, cpu = ARCHS[trial.options.arch], trial.options.cpu or ARCHS[trial.options.arch].cpu
    firmware = [
        *("-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={arch.code}"),
        *("-drive", f"if=pflash,format=raw,unit=1,file={trial.directory}/variables-{number}"),
        # Else it would ask for a lease itself when it finds nothing to boot.
        *"-fw_cfg name=opt/org.tianocore/IPv4PXESupport,string=n".split(),
    ]
    disk = f"file={trial.directory}/disk-{number},format=qcow2,if=virtio,cache=unsafe"
    return [
        *f"qemu-system-{trial.options.arch} -M {arch.machine} -smp 2 -m 1024".split(),
        *("-accel kvm -cpu host" if trial.kvm else f"-accel tcg -cpu {cpu}").split(),
        *"-nodefaults -display none -device virtio-rng-pci -serial stdio".split(),
        *("-monitor", f"unix:{trial.directory}/monitor,server,nowait"),
        *(*(firmware if trial.uefi else []), "-drive", disk),
        *f"-netdev tap,id=net,ifname={TAP},script=no,downscript=no".split(),
        *("-device", f"virtio-net-pci,netdev=net,mac=00:0d:3a:00:00:0{number},romfile="),
        *("-smbios", "type=1,manufacturer=Microsoft Corporation,product=Virtual Machine"),
        *("-smbios", f"type=3,asset={ASSET_TAG}"),
    ]


def press_power_button(process: "subprocess.Popen[bytes]", directory: Path) -> None:
    missed = (OSError, subprocess.TimeoutExpired)
    with contextlib.suppress(*missed), socket.socket(socket.AF_UNIX) as control:
        control.connect(str(directory / "monitor"))
        control.sendall(b"system_powerdown\n")
        process.wait(OFF_SECONDS)


def ssh_host_keys(address: str, seconds: float) -> list[str]:
    """Return the host keys of the SSH server, if there is one within so many seconds."""
    deadline = time.monotonic() + seconds
    keys: list[str] = []
    while address and not keys and time.monotonic() < deadline:
        time.sleep(1)
        scan = subprocess.run(["ssh-keyscan", "-T", "20", address], capture_output=True, text=True)
        keys = [line.split()[-1] for line in scan.stdout.splitlines() if line[:1] != "#"]
    return keys


def boot(trial: Trial, number: int, quiet: float, again: bool = False, patience: float = 0) -> Boot:
    """Boot, watch until *quiet* seconds after Ready or, if *again*, the lease; then switch off.

    Before that fetch the SSH host keys, with some *patience*.
    """
    # Interrupted while it is started, one would not know what to end.
    signal.pthread_sigmask(signal.SIG_BLOCK, interruption.SIGNALS)
    process = start(*qemu(trial, number), console=trial.console)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, interruption.SIGNALS)
        seen = Boot(trial.host, trial.directory / "dnsmasq")
        trial.host.on_request = seen.take_request
        while process.poll() is None and seen.now() < trial.options.timeout:
            seen.look_at_leases()
            since = seen.lease if again else seen.ready
            if since is not None and seen.now() > since + quiet:
                seen.keys = ssh_host_keys(seen.address, patience or 2 * quiet)
                break
            time.sleep(0.2)
        seen.look_at_leases()
        seen.seconds = seen.now()
        if seen.lease is not None:  # else it may not even have booted
            press_power_button(process, trial.directory)
    finally:
        process.kill()  # pulls the plug
        process.wait()
    trial.host.on_request = lambda request: None
    return seen


# ---- The verdict


def judge(first: Boot, others: list[Boot], name: str) -> list[Promise]:
    """Return what came of each promise. The others are the second boot, and another machine's."""
    if first.ready is None:
        return [(False, f"Ready was not accepted in {first.seconds:.0f} s")]
    times = "once" if first.reports == 1 else f"{first.reports} times"
    second, *machines = others
    # Azure's DNS has the name that the last lease was asked for as, if any.
    dns = f"after the second boot Azure's DNS would have {second.name or 'no name'}"
    has_name = second.name.split(".")[0] == name
    return [
        (first.reports == 1, f"Ready accepted {times}, first after {first.ready:.1f} s"),
        judge_silence(second),
        (True, dns) if has_name else (None if second.name else False, f"{dns}, not {name}"),
        judge_keys(second.keys, [key for machine in machines for key in machine.keys]),
    ]


def judge_silence(second: Boot) -> Promise:
    reports = sum(request.method == "POST" for request in second.requests)
    if second.lease is None:
        return False, "the second boot got no lease"
    if reports:
        return False, f"the second boot posted {reports} times"
    if second.requests:
        count = f"{len(second.requests)} other requests, as of an agent that stays"
        return True, f"the second boot reported nothing ({count})"
    return True, f"the second boot was silent for {second.seconds:.0f} s"


def judge_keys(keys: list[str], others: list[str]) -> Promise:
    if not keys:
        return None, "no SSH server"
    if not others:
        return None, "another machine of this image had no SSH server in time"
    if set(keys) & set(others):
        return False, "two machines of this image share SSH host keys"
    return True, "two machines of this image share no SSH host key"


# ---- The trial


def new_machine(trial: Trial, number: int) -> str:
    """Have a machine with a disk of its own, as Azure makes one of the image; return its name."""
    backing = ["-b", str(trial.image.resolve()), "-F", trial.format]
    qemu_img("create", "-q", "-f", "qcow2", *backing, f"{trial.directory}/disk-{number}")
    if trial.uefi:
        variables = ARCHS[trial.options.arch].variables
        shutil.copy(variables, trial.directory / f"variables-{number}")
    name = f"tried-{number}"
    ids = (f"container-{number}", f"instance-{number}")
    trial.host.vm = Vm(name, name, *ids, public_keys=(SSH_KEY,))
    return name


def try_image(trial: Trial) -> bool:
    print("First boot")
    name = new_machine(trial, 1)
    first, others = boot(trial, 1, SETTLE_SECONDS), []
    if first.ready is not None:
        print("Second boot of the same disk")
        quiet = SETTLE_SECONDS + 2 * max(first.ready - (first.lease or 0), 0)
        others.append(boot(trial, 1, quiet, again=True))
    if any(one.keys for one in others):
        print("First boot of another machine")
        new_machine(trial, 2)
        others.append(boot(trial, 2, SETTLE_SECONDS, patience=SSH_SECONDS))
    print()
    promises = judge(first, others, name)
    for kept, text in promises:
        print(f"{ {True: 'yes', False: 'NO', None: '?'}[kept]:>4}  {text}")
    good = all(kept is not False for kept, _ in promises)
    print("\nVerdict:", "good" if good else "BAD: Azure would reboot such a VM, or it is not right")
    print("Console:", trial.console)
    if first.ready is None:  # its last words are likely the reason
        print(*trial.console.read_text(errors="replace").splitlines()[-LAST_WORDS:], sep="\n")
    return good


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="raw, qcow2, VHD or VHDX")
    parser.add_argument("--arch", choices=ARCHS, default=platform.machine())
    parser.add_argument("--cpu", help="QEMU's -cpu, without KVM")
    parser.add_argument("--timeout", type=float, default=READY_SECONDS, help="seconds for a boot")
    return parser.parse_args()


def prepare(options: argparse.Namespace, directory: Path, host: SimulatedHost) -> Trial:
    """Find out what the image is."""
    image, kind = options.image, disk_format(options.image)
    uefi = has_esp(image, kind, directory)
    if not uefi and options.arch != "x86_64":
        raise ValueError(f"{options.arch} has no BIOS: its disks need an EFI system partition")
    kvm = kvm_works(options.arch, directory)
    firmware = "an EFI system partition: UEFI" if uefi else "no EFI system partition: BIOS"
    speed = "KVM" if kvm else "software emulation, which is slow"
    print(f"{image}: {kind}, {firmware}; tried with {speed}")
    handle, console = tempfile.mkstemp(prefix="try-image-", suffix=".console")
    os.close(handle)
    print("Console:", console, flush=True)
    return Trial(image, kind, uefi, kvm, options, directory, Path(console), host)


def main() -> int:
    options = parse_arguments()
    try:
        if os.geteuid() != 0:
            raise ValueError("it needs root")
        if not options.image.is_file():
            raise ValueError(f"there is no file {options.image}")
        check_programs(options.arch)
        problem = isolate()
        if problem:
            raise ValueError(problem)
        interruption.heed()
        with tempfile.TemporaryDirectory(prefix="try-image-") as name:
            directory = Path(name)
            with SimulatedHost(Vm(), *PLATFORM_ENDPOINTS) as host, dhcp(directory):
                return 0 if try_image(prepare(options, directory, host)) else 1
    except (OSError, RuntimeError, ValueError) as error:
        print(f"try_image.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted: nothing is left but the console's log", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
