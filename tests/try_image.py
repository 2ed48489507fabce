#!/usr/bin/env python3
"""Boot a disk image as Azure would, at home, and tell whether its VMs would live."""

import argparse
import contextlib
import json
import os
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

from world.boot import TAP, dhcp, start
from world.host import Request, SimulatedHost, Vm, print_request
from world.images import ASSET_TAG
from world.network import PLATFORM_ENDPOINTS, isolate

READY_SECONDS = 1200  # as long as the unit tries
SETTLE_SECONDS = 20  # after Ready, for a second report, a host name, and a lease for that
SSH_SECONDS = 600  # for an SSH server that is there, and may first make keys
OFF_SECONDS = 180  # from the power button to the end
NAME = "tried-{}"  # of the machine with this number
EPILOG = """
IMAGE is never written to, and may have any agent: what counts is what the platform sees. Nothing
leaves the network namespace in which it runs. Exit status: 0 if all promises are kept, 1 if one is
not, 2 if it could not be tried.
"""
FIRMWARE = "/usr/share/OVMF/OVMF_CODE_4M.fd"
NEEDED = ["dnsmasq", "ip", "qemu-img", "qemu-system-x86_64", "setpriv", "ssh-keyscan", FIRMWARE]
PACKAGES = "dnsmasq-base iproute2 qemu-utils qemu-system-x86 util-linux openssh-client ovmf"
ESP = bytes.fromhex("28732ac11ff8d211ba4b00a0c93ec93b")  # the type of an EFI system partition


class Trial(NamedTuple):
    """What is tried, and how."""

    image: Path
    format: str  # QEMU's name for it
    options: list[str]  # QEMU's
    timeout: float  # seconds for a boot
    directory: Path
    console: Path
    host: SimulatedHost


class Boot(NamedTuple):
    """What the platform saw of a boot; seconds count from power-on."""

    seconds: float = 0  # that it was watched
    address: str = ""  # of the last lease
    name: str = ""  # that it was asked for as
    lease: Optional[float] = None
    ready: Optional[float] = None
    accepted: int = 0  # reports
    posted: int = 0  # also those that were not
    keys: tuple[str, ...] = ()  # of its SSH server


# ---- What kind of disk it is


def qemu_img(*arguments: str) -> str:
    return subprocess.check_output(["qemu-img", *arguments], text=True)


def disk_format(image: Path) -> str:
    """Return QEMU's name for the format; a fixed VHD has its mark only at the end."""
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
    return ESP in head.read_bytes()


# ---- A boot


def new_machine(trial: Trial, number: int) -> None:
    """Have a machine with a disk of its own, as Azure makes one of the image."""
    backing = ["-b", str(trial.image.resolve()), "-F", trial.format]
    qemu_img("create", "-q", "-f", "qcow2", *backing, f"{trial.directory}/disk-{number}")
    name = NAME.format(number)
    trial.host.vm = Vm(name, name, f"container-{number}", f"instance-{number}")


def qemu(trial: Trial, number: int) -> list[str]:
    """Return the command that runs the machine with this *number*."""
    disk = f"file={trial.directory}/disk-{number},format=qcow2,if=virtio,cache=unsafe"
    return [
        *"qemu-system-x86_64 -M q35 -smp 2 -m 1024 -nodefaults -display none".split(),
        *"-device virtio-rng-pci -serial stdio".split(),
        *("-monitor", f"unix:{trial.directory}/monitor,server,nowait", "-drive", disk),
        *f"-netdev tap,id=net,ifname={TAP},script=no,downscript=no".split(),
        *("-device", f"virtio-net-pci,netdev=net,mac=00:0d:3a:00:00:0{number},romfile="),
        *("-smbios", "type=1,manufacturer=Microsoft Corporation,product=Virtual Machine"),
        *("-smbios", f"type=3,asset={ASSET_TAG}"),
        *trial.options,
    ]


def press_power_button(process: "subprocess.Popen[bytes]", directory: Path) -> None:
    missed = (OSError, subprocess.TimeoutExpired)
    with contextlib.suppress(*missed), socket.socket(socket.AF_UNIX) as control:
        control.connect(str(directory / "monitor"))
        control.sendall(b"system_powerdown\n")
        process.wait(OFF_SECONDS)


def ssh_host_keys(address: str, patience: float) -> tuple[str, ...]:
    """Return the host keys of the SSH server, if there is one in so many seconds."""
    deadline = time.monotonic() + patience
    while True:
        scan = subprocess.run(["ssh-keyscan", "-T", "20", address], capture_output=True, text=True)
        keys = tuple(line.split()[-1] for line in scan.stdout.splitlines() if line[:1] != "#")
        if keys or time.monotonic() > deadline:
            return keys
        time.sleep(1)


def look(before: Boot, start_time: float, log: Path, requests: list[Request]) -> Boot:
    """Return what was seen *before*, and since."""
    seconds, text = time.time() - start_time, log.read_text(errors="replace")
    addresses = re.findall(r"DHCPACK\(\w+\) ([\d.]+)", text)
    names = re.findall(r"client provides name: ([^\s.]+)", text)
    posts = [request for request in requests if request.method == "POST"]
    accepted = sum(request.answer == "200" for request in posts)
    return before._replace(
        seconds=seconds,
        address=addresses[-1] if addresses else "",
        name=names[-1] if names else "",
        lease=before.lease or (seconds if addresses else None),
        ready=before.ready or (seconds if accepted else None),
        accepted=accepted,
        posted=len(posts),
    )


def boot(trial: Trial, number: int, quiet: float, again: bool = False, patience: float = 0) -> Boot:
    """Boot, watch until *quiet* seconds after Ready or, if *again*, the lease; then switch off."""
    requests = trial.host.requests
    requests.clear()
    with tempfile.TemporaryDirectory(dir=trial.directory) as place, dhcp(Path(place)) as log:
        start_time, seen = time.time(), Boot()
        process = start(*qemu(trial, number), console=trial.console)
        try:
            while process.poll() is None and seen.seconds < trial.timeout:
                time.sleep(0.2)
                seen = look(seen, start_time, log, requests)
                since = seen.lease if again else seen.ready
                if since is not None and seen.seconds > since + quiet:
                    seen = seen._replace(keys=ssh_host_keys(seen.address, patience))
                    press_power_button(process, trial.directory)
                    break
        finally:
            process.kill()  # pulls the plug
            process.wait()
        return look(seen, start_time, log, requests)


# ---- The verdict


def judge(first: Boot, second: Boot, other: Boot) -> list[tuple[bool, str]]:
    """Return whether each promise is kept. The other boot is of another machine of the image."""
    times = "once" if first.accepted == 1 else f"{first.accepted} times"
    # Azure's DNS has the name that the last lease was asked for as, if any.
    dns = f"after the second boot Azure's DNS would have {second.name or 'no name'}"
    shared = set(second.keys) & set(other.keys)
    keys = f"SSH host keys of two machines: {len(second.keys)} and {len(other.keys)}"
    return [
        (first.accepted == 1, f"Ready accepted {times}, first after {first.ready or 0:.1f} s"),
        (second.posted == 0, f"the second boot reported {second.posted} times"),
        (second.name == NAME.format(1), dns),
        (bool(second.keys) == bool(other.keys) and not shared, f"{keys}, {len(shared)} shared"),
    ]


# ---- The trial


def try_image(trial: Trial) -> bool:
    print("First boot")
    new_machine(trial, 1)
    first = boot(trial, 1, SETTLE_SECONDS)
    promises = [(False, f"Ready was not accepted in {first.seconds:.0f} s")]
    if first.ready is not None:
        print("Second boot of the same disk")
        quiet = SETTLE_SECONDS + 2 * max(first.ready - (first.lease or 0), 0)
        second, other = boot(trial, 1, quiet, again=True, patience=2 * quiet), Boot()
        if second.keys:
            print("First boot of another machine")
            new_machine(trial, 2)
            other = boot(trial, 2, SETTLE_SECONDS, patience=SSH_SECONDS)
        promises = judge(first, second, other)
    print()
    for kept, text in promises:
        print(f"{'yes' if kept else 'NO':>4}  {text}")
    good = all(kept for kept, _ in promises)
    print("\nVerdict:", "good" if good else "BAD: Azure would reboot such a VM, or it is not right")
    return good


def check_programs() -> None:
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # which not every user's has
    missing = [one for one in NEEDED if not shutil.which(one, mode=os.F_OK)]
    if missing:
        raise ValueError(f"missing: {', '.join(missing)}; first: apt-get install {PACKAGES}")


def prepare(image: Path, timeout: float, kvm: bool, directory: Path, host: SimulatedHost) -> Trial:
    """Find out what the image is."""
    kind = disk_format(image)
    uefi = has_esp(image, kind, directory)
    options = ["-accel", "kvm", "-cpu", "host"] if kvm else ["-accel", "tcg", "-cpu", "max"]
    if uefi:  # without a place for its variables, which only an installer needs
        options += ["-drive", f"if=pflash,format=raw,readonly=on,file={FIRMWARE}"]
    print(f"{image}: {kind}, {'UEFI' if uefi else 'no EFI system partition: BIOS'}")
    handle, console = tempfile.mkstemp(prefix="try-image-", suffix=".console")
    os.close(handle)
    print("Console:", console, flush=True)
    return Trial(image, kind, options, timeout, directory, Path(console), host)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG)
    parser.add_argument("image", type=Path, metavar="IMAGE", help="raw, qcow2, VHD or VHDX")
    parser.add_argument("--timeout", type=float, default=READY_SECONDS, help="seconds for a boot")
    parser.add_argument("--kvm", action="store_true", help="fast; nested, it may not do UEFI")
    options = parser.parse_args()
    try:
        if os.geteuid() != 0:
            raise ValueError("it needs root")
        check_programs()
        problem = isolate()
        if problem:
            raise ValueError(problem)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
        host = SimulatedHost(Vm(), *PLATFORM_ENDPOINTS, on_request=print_request)
        with host, tempfile.TemporaryDirectory(prefix="try-image-") as name:
            trial = prepare(options.image, options.timeout, options.kvm, Path(name), host)
            return 0 if try_image(trial) else 1
    except (OSError, RuntimeError, ValueError, subprocess.CalledProcessError) as error:
        print(f"try_image.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted: nothing is left but the console's log", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
