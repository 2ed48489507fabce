#!/usr/bin/env python3
"""Measure what a first boot costs; print Markdown tables of this one run.

Side by side, against the simulated host, in a network namespace that has nothing else: the bare
interpreter, the script as the unit runs it, and a Bash script that does the same, where there is
curl. And under the systemd of an image: the time from the unit's start to Ready.
"""

import argparse
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from world import boot, images, sandbox
from world.host import Request, SimulatedHost, Vm
from world.network import PLATFORM_ENDPOINTS, isolate

SCRIPT, UNIT = images.PROJECT
PYTHON = "/usr/bin/python3"
BARE = "`python3 -I -S -c pass`"

# For Bash and old editions: sets the names of this namespace; a real one could name the machine.
HOSTNAMECTL = """\
#!/bin/sh
for name; do :; done
printf %s "$name" >/proc/sys/kernel/hostname
printf '%s\\n' "$name" >/etc/hostname
"""
# What images without an agent have today: bare calls, one attempt of each, and XML taken apart as
# text.
BASH = r"""
set -euo pipefail
wireserver=http://168.63.129.16/machine
headers=(--header 'x-ms-version: 2012-11-30' --header 'x-ms-agent-name: bash')
goal_state=$(curl --silent --fail "${headers[@]}" "$wireserver?comp=goalstate")
incarnation=$(grep '<Incarnation>' <<<"$goal_state" | sed 's/.*<Incarnation>//;s/<.*//')
container=$(grep '<ContainerId>' <<<"$goal_state" | sed 's/.*<ContainerId>//;s/<.*//')
instance=$(grep '<InstanceId>' <<<"$goal_state" | sed 's/.*<InstanceId>//;s/<.*//')
report="<Health>
<GoalStateIncarnation>$incarnation</GoalStateIncarnation>
<Container><ContainerId>$container</ContainerId><RoleInstanceList>
<Role><InstanceId>$instance</InstanceId><Health><State>Ready</State></Health></Role>
</RoleInstanceList></Container></Health>"
headers+=(--header 'Content-Type: text/xml;charset=utf-8')
curl --silent --fail "${headers[@]}" --data-binary "$report" "$wireserver?comp=health"
leaf='compute/osProfile/computerName?api-version=2020-07-15&format=text'
imds=http://169.254.169.254/metadata/instance
hostnamectl set-hostname "$(curl --silent --fail --header 'Metadata: true' "$imds/$leaf")"
"""
# What a unit has that is no sandbox.
KEPT = r"\[|Wants=|After=|Type=|ExecStart=|StandardOutput=|WantedBy="
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


class Sample(NamedTuple):
    ready: float  # seconds from the start of the process; 0 if there was no report
    wall: float
    cpu: float
    requests: int


def subjects(checkouts: list[Path]) -> dict[str, list[str]]:
    """Return what is measured: a command by its name."""
    start = re.search(f"^ExecStart=(.*)/usr/local/sbin/{SCRIPT}$", read_unit(checkouts[0]), re.M)
    assert start
    found = {BARE: [PYTHON, "-I", "-S", "-c", "pass"]}
    for checkout in checkouts:
        script = str(checkout / SCRIPT)
        found[f"`{os.path.relpath(script)}`, as in the unit"] = [*start[1].split(), script]
    if shutil.which("bash") and shutil.which("curl"):
        found["Bash with `curl`, `grep` and `sed`"] = ["bash", "-c", BASH]
    return found


def read_unit(checkout: Path) -> str:
    return (checkout / UNIT).read_text()


def measure(command: list[str], host: SimulatedHost) -> Sample:
    host.requests.clear()
    started, start = time.time(), time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - start
    process.returncode = status
    if status:
        sys.exit(f"{command} ended with {status}")
    reports = [one.when for one in host.requests if one.method == "POST"]
    ready = reports[0] - started if reports else 0
    return Sample(ready, wall, usage.ru_utime + usage.ru_stime, len(host.requests))


def compare_processes(rounds: int, checkouts: list[Path]) -> None:
    version = subprocess.check_output([PYTHON, "--version"], text=True).strip()
    print(f"{version}, Linux {platform.release()}, {os.cpu_count()} CPUs; {rounds} rounds\n")
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        (directory / "hostnamectl").write_text(HOSTNAMECTL)
        (directory / "hostnamectl").chmod(0o755)
        (directory / "hostname").write_text("localhost\n")
        images.run("mount", "--bind", str(directory / "hostname"), "/etc/hostname")
        os.environ["PATH"] = f"{directory}:{os.environ['PATH']}"
        commands = subjects(checkouts)
        samples: dict[str, list[Sample]] = {name: [] for name in commands}
        with SimulatedHost(Vm(), *PLATFORM_ENDPOINTS, imds_rate=1000) as host:
            for _ in range(rounds):  # in turns: what else the machine does hits all alike
                for name, command in commands.items():
                    samples[name].append(measure(command, host))
        images.run("umount", "/etc/hostname")
    bare = statistics.median(sample.wall for sample in samples[BARE])
    print("| | Ready after | wall time | CPU time | requests |\n|" + " --- |" * 5)
    for name, results in samples.items():
        *times, requests = map(statistics.median, zip(*results))
        cells = [f"{one * 1000:.1f} ms ({one / bare:.2f})" if one else "-" for one in times]
        print("|", " | ".join([name, *cells, f"{requests:.0f}"]), "|")


def install_units(root: Path, subjects: list[tuple[Path, str]], rounds: int) -> None:
    """Have the disk boot into starting the units in turns, each with the script of its checkout."""
    units = [f"measured-{number}" for number in range(len(subjects))]
    system = root / "etc/systemd/system"
    for unit, (checkout, text) in zip(units, subjects):
        script = Path(shutil.copy(checkout / SCRIPT, root / f"usr/local/sbin/{unit}.py"))
        script.chmod(0o755)
        own_names = text.replace(UNIT, f"{unit}.service").replace(SCRIPT, script.name)
        (system / f"{unit}.service").write_text(own_names)
    boot.install_witness(root)
    (root / "witness.sh").write_text(IN_TURNS.format(rounds=rounds, units=" ".join(units)))
    (system / "witness.service.d").mkdir()
    # So that they stay loaded, with their times, when they are done.
    refer = f"[Unit]\nAfter={' '.join(f'{unit}.service' for unit in units)}\n"
    (system / "witness.service.d/refer.conf").write_text(refer)
    (system.parent / "system.conf.d").mkdir()
    limit = "[Manager]\nDefaultStartLimitIntervalSec=0\n"
    (system.parent / "system.conf.d/limit.conf").write_text(limit)
    (system / "systemd-firstboot.service").symlink_to("/dev/null")


def compare_units(name: str, rounds: int, checkouts: list[Path]) -> None:
    own = read_unit(checkouts[0])
    bare = "\n".join(line for line in own.splitlines() if re.match(KEPT, line))
    subjects = {"without its sandbox": (checkouts[0], bare)}
    for checkout in checkouts:
        subjects[f"`{os.path.relpath(checkout / UNIT)}`"] = (checkout, read_unit(checkout))
    cache = Path(sandbox.REPOSITORY, ".pytest_cache/d/images")  # the tests' own
    cache.mkdir(parents=True, exist_ok=True)
    image = images.build(name, cache)
    reports: list[float] = []

    def take(request: Request) -> None:
        if (request.method, request.answer) == ("POST", "200"):
            reports.append(time.monotonic())  # systemd's clock, too

    with tempfile.TemporaryDirectory() as place, images.fresh_disk(image, Path(place, "0")) as root:
        install_units(root, list(subjects.values()), rounds)
        host = SimulatedHost(Vm(), *PLATFORM_ENDPOINTS, imds_rate=1000, on_request=take)
        with host, boot.running_container(root) as process:
            seconds = BOOT_SECONDS + rounds * len(subjects) * UNIT_SECONDS
            boot.wait(process, root.parent / "console", seconds)
        started = [int(line) / 1e6 for line in (root / "started").read_text().split()]
    if len(started) != len(reports):
        sys.exit(f"{len(started)} units were started, {len(reports)} reports accepted")
    times = [ready - start for start, ready in zip(started, reports)]
    medians = [statistics.median(times[place :: len(subjects)]) for place in range(len(subjects))]
    print(f"\n| {name}, {rounds} rounds | unit start to Ready |\n| --- | --- |")
    for subject, one in zip(subjects, medians):
        print(f"| {subject} | {one * 1000:.1f} ms ({one / medians[0]:.2f}) |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rounds", type=int, nargs="?", default=20, metavar="ROUNDS")
    parser.add_argument("--other", type=Path, metavar="DIR", help="a checkout to compare with")
    parser.add_argument(
        "--boot",
        choices=images.IMAGES,
        action="append",
        default=[],
        help="start the unit in this, too, a container; as root, repeatable",
    )
    options = parser.parse_args()
    problem = isolate()
    if problem:
        sys.exit(f"benchmark: {problem}")
    checkouts = [Path(sandbox.REPOSITORY), *([options.other] if options.other else [])]
    compare_processes(options.rounds, checkouts)
    for name in options.boot:
        compare_units(name, options.rounds, checkouts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
