#!/usr/bin/env python3
"""Measure what a first boot costs; print Markdown tables of this one run.

Side by side, against the simulated host, in a network namespace that has nothing else: the bare
interpreter, the script as the unit runs it, and the README's shell commands, where there is curl.
And under the systemd of an image: the time from the unit's start to Ready.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from world import boot, images, readme, sandbox
from world.host import Request, SimulatedHost, Vm
from world.network import PLATFORM_ENDPOINTS, isolate

SCRIPT, UNIT = images.PROJECT
PYTHON = "/usr/bin/python3"
# For editions before 1.2.0; a real one could name this machine.
HOSTNAMECTL = "#!/bin/sh\nfor name; do :; done\necho $name >/etc/hostname\n"
BY_HAND = f"set -o pipefail; {readme.block('## The platform by hand').strip()} | tail -n 1"
# In the container, instead of the witness. Each unit disables itself, and is enabled before.
IN_TURNS = """\
systemctl is-system-running --wait
for round in $(seq {rounds}); do
    for unit in {units}; do
        systemctl enable --quiet $unit
        echo localhost >/etc/hostname
        systemctl start $unit
        systemctl show --property=InactiveExitTimestampMonotonic --value $unit >>/started
    done
done
systemctl --force poweroff
"""
BOOT_SECONDS, UNIT_SECONDS = 200, 2  # at most, for a boot, and for a unit with what goes with it


def subjects(checkouts: list[Path]) -> dict[str, list[str]]:
    """Return what is measured: a command by its name."""
    found = {"`python3 -I -S -c pass`": [PYTHON, "-I", "-S", "-c", "pass"]}
    for checkout in checkouts:
        script = str(checkout / SCRIPT)
        found[f"`{os.path.relpath(script)}`, as in the unit"] = [PYTHON, "-I", "-S", script]
    if shutil.which("bash") and shutil.which("curl"):
        found["Bash with `curl` and `sed`"] = ["bash", "-c", f"{BY_HAND} >/etc/hostname"]
    return found


def measure(command: list[str], host: SimulatedHost) -> tuple[float, float, float]:
    """Return the seconds until Ready, if it is reported, and all of them, and of CPU time."""
    host.requests.clear()
    started, start = time.time(), time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, process.returncode, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - start
    if process.returncode:
        sys.exit(f"{command} ended with {process.returncode}")
    reports = [one.when - started for one in host.requests if one.method == "POST"]
    return (reports[0] if reports else 0), wall, usage.ru_utime + usage.ru_stime


def compare_processes(rounds: int, checkouts: list[Path]) -> None:
    version = subprocess.check_output([PYTHON, "--version"], text=True).strip()
    print(f"{version}, Linux {platform.release()}, {os.cpu_count()} CPUs; {rounds} rounds\n")
    commands = subjects(checkouts)
    samples: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as place:
        stub, name = Path(place, "hostnamectl"), Path(place, "hostname")
        stub.write_text(HOSTNAMECTL)
        stub.chmod(0o755)
        name.write_text("localhost\n")
        images.run("mount", "--bind", str(name), "/etc/hostname")  # our own mounts end with us
        os.environ["PATH"] = f"{place}:{os.environ['PATH']}"
        with SimulatedHost(Vm(), *PLATFORM_ENDPOINTS) as host:
            host.imds_rate = 1000
            for _ in range(rounds):  # in turns: what else the machine does hits all alike
                for subject, command in commands.items():
                    samples[subject].append(measure(command, host))
        images.run("umount", "/etc/hostname")
    print("| | Ready after | wall time | CPU time |\n|" + " --- |" * 4)
    for subject, results in samples.items():
        cells = [f"{statistics.median(one) * 1000:.1f} ms" for one in zip(*results)]
        print("|", " | ".join([subject, *cells]), "|")


def install_units(root: Path, checkouts: list[Path], rounds: int) -> None:
    """Have the disk boot into starting the units in turns, each with the script of its checkout."""
    units = [f"measured-{number}" for number in range(len(checkouts))]
    system = root / "etc/systemd/system"
    for unit, checkout in zip(units, checkouts):
        script = Path(shutil.copy(checkout / SCRIPT, root / f"usr/local/sbin/{unit}.py"))
        script.chmod(0o755)
        text = (checkout / UNIT).read_text()
        own_names = text.replace(UNIT, f"{unit}.service").replace(SCRIPT, script.name)
        (system / f"{unit}.service").write_text(own_names)
    boot.install_witness(root)
    (root / "witness.sh").write_text(IN_TURNS.format(rounds=rounds, units=" ".join(units)))
    (system / "witness.service.d").mkdir()
    # So that they stay loaded, with their times, when they are done; and may start so often.
    refer = f"[Unit]\nAfter={' '.join(f'{unit}.service' for unit in units)}\n"
    (system / "witness.service.d/refer.conf").write_text(refer)
    (system.parent / "system.conf").write_text("[Manager]\nDefaultStartLimitIntervalSec=0\n")
    (system / "systemd-firstboot.service").symlink_to("/dev/null")


def compare_units(image: str, rounds: int, checkouts: list[Path]) -> None:
    cache = Path(sandbox.REPOSITORY, ".pytest_cache/d/images")  # the tests' own
    cache.mkdir(parents=True, exist_ok=True)
    tree = images.build(image, cache)
    reports: list[float] = []

    def take(request: Request) -> None:
        if (request.method, request.answer) == ("POST", "200"):
            reports.append(time.monotonic())  # systemd's clock, too

    with tempfile.TemporaryDirectory() as place, images.fresh_disk(tree, Path(place, "0")) as root:
        install_units(root, checkouts, rounds)
        host = SimulatedHost(Vm(), *PLATFORM_ENDPOINTS, on_request=take)
        host.imds_rate = 1000
        with host, boot.running_container(root) as process:
            seconds = BOOT_SECONDS + rounds * len(checkouts) * UNIT_SECONDS
            boot.wait(process, root.parent / "console", seconds)
        started = [int(line) / 1e6 for line in (root / "started").read_text().split()]
    if len(started) != len(reports):
        sys.exit(f"{len(started)} units were started, {len(reports)} reports accepted")
    times = [ready - start for start, ready in zip(started, reports)]
    print(f"\n| {image}, {rounds} rounds | unit start to Ready |\n| --- | --- |")
    for number, checkout in enumerate(checkouts):
        median = statistics.median(times[number :: len(checkouts)])
        print(f"| `{os.path.relpath(checkout / UNIT)}` | {median * 1000:.1f} ms |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rounds", type=int, nargs="?", default=20, metavar="ROUNDS")
    parser.add_argument("--other", type=Path, metavar="DIR", help="a checkout to compare with")
    parser.add_argument("--boot", choices=images.IMAGES, help="as root: start the unit in it")
    options = parser.parse_args()
    problem = isolate()
    if problem:
        sys.exit(f"benchmark: {problem}")
    checkouts = [Path(sandbox.REPOSITORY), *([options.other] if options.other else [])]
    compare_processes(options.rounds, checkouts)
    if options.boot:
        compare_units(options.boot, options.rounds, checkouts)


if __name__ == "__main__":
    main()
