#!/usr/bin/env python3
"""Measure what a first boot costs; print a Markdown table of this one run.

Usage: benchmark.py [ROUNDS [SCRIPT]]

Side by side: the bare interpreter, the script as the unit runs it, SCRIPT (another edition of it),
and Bash scripts that do the same with curl, where that is installed. All of it against the
simulated host, in a network namespace that has nothing else.
"""

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

from world import images, sandbox
from world.host import SimulatedHost, Vm
from world.network import PLATFORM_ENDPOINTS, isolate

PYTHON = "/usr/bin/python3"
BARE = "`python3 -I -S -c pass`"

# Sets the names of this namespace; a real one could name the machine.
HOSTNAMECTL = """\
#!/bin/sh
for name; do :; done
printf %s "$name" >/proc/sys/kernel/hostname
printf '%s\\n' "$name" >/etc/hostname
"""
# What images without an agent have today: bare calls, one attempt of each, and XML taken apart as
# text. Sets the name that is its argument, or else IMDS's.
BASH = """\
set -euo pipefail
wireserver=http://168.63.129.16/machine
imds=http://169.254.169.254/metadata/instance
headers=(--header 'x-ms-version: 2012-11-30' --header 'x-ms-agent-name: bash')

goal_state=$(curl --silent --fail "${headers[@]}" "$wireserver?comp=goalstate")
EXTRACT
report="<Health>
<GoalStateIncarnation>$incarnation</GoalStateIncarnation>
<Container><ContainerId>$container</ContainerId><RoleInstanceList>
<Role><InstanceId>$instance</InstanceId><Health><State>Ready</State></Health></Role>
</RoleInstanceList></Container></Health>"
headers+=(--header 'Content-Type: text/xml;charset=utf-8')
curl --silent --fail "${headers[@]}" --data-binary "$report" "$wireserver?comp=health"

leaf='compute/osProfile/computerName?api-version=2020-07-15&format=text'
name=${1-$(curl --silent --fail --header 'Metadata: true' "$imds/$leaf")}
hostnamectl set-hostname "$name"
"""
# As samples do it; and in the fastest way there is.
WITH_GREP_AND_SED = r"""
incarnation=$(grep '<Incarnation>' <<<"$goal_state" | sed 's/.*<Incarnation>//;s/<.*//')
container=$(grep '<ContainerId>' <<<"$goal_state" | sed 's/.*<ContainerId>//;s/<.*//')
instance=$(grep '<InstanceId>' <<<"$goal_state" | sed 's/.*<InstanceId>//;s/<.*//')
"""
WITH_BASH_ALONE = r"""
[[ $goal_state =~ '<Incarnation>'([^<]*) ]] && incarnation=${BASH_REMATCH[1]}
[[ $goal_state =~ '<ContainerId>'([^<]*) ]] && container=${BASH_REMATCH[1]}
[[ $goal_state =~ '<InstanceId>'([^<]*) ]] && instance=${BASH_REMATCH[1]}
"""
# By name: how it extracts, and its arguments.
BASH_SCRIPTS: dict[str, tuple[str, list[str]]] = {
    "Bash with `grep` and `sed`, `curl` three times": (WITH_GREP_AND_SED, []),
    "Bash with `grep` and `sed`, `curl` twice: the name is known": (WITH_GREP_AND_SED, ["myvm"]),
    "Bash alone, `curl` twice: the name is known": (WITH_BASH_ALONE, ["myvm"]),
}


class Sample(NamedTuple):
    ready: float  # seconds from the start of the process; 0 if there was no report
    wall: float
    cpu: float
    requests: int


def subjects(directory: Path, other: str) -> dict[str, list[str]]:
    """Return what is measured: a command by its name."""
    unit = Path(sandbox.REPOSITORY, "azure-provisioning.service").read_text()
    start = re.search("^ExecStart=(.*)/usr/local/sbin/azure_provisioning.py$", unit, re.MULTILINE)
    assert start
    found = {BARE: [PYTHON, "-I", "-S", "-c", "pass"]}
    for script in [sandbox.SCRIPT, *([other] if other else [])]:
        found[f"`{os.path.relpath(script)}`, as in the unit"] = [*start.group(1).split(), script]
    if shutil.which("bash") and shutil.which("curl"):
        for number, (name, (extract, arguments)) in enumerate(BASH_SCRIPTS.items()):
            file = directory / f"{number}.sh"
            file.write_text(BASH.replace("EXTRACT", extract))
            found[name] = ["bash", str(file), *arguments]
    return found


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
    cpu = usage.ru_utime + usage.ru_stime
    return Sample(ready, wall, cpu, len(host.requests))


def main() -> int:
    if sys.argv[3:] or not all(re.fullmatch("[1-9][0-9]*", one) for one in sys.argv[1:2]):
        sys.exit(__doc__)
    rounds, other = int(sys.argv[1]) if sys.argv[1:] else 20, (sys.argv[2:] or [""])[0]
    problem = isolate()
    if problem:
        sys.exit(f"benchmark: {problem}")
    version = subprocess.check_output([PYTHON, "--version"], text=True).strip()
    print(f"{version}, Linux {platform.release()}, {os.cpu_count()} CPUs; {rounds} rounds\n")
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        (directory / "hostnamectl").write_text(HOSTNAMECTL)
        (directory / "hostnamectl").chmod(0o755)
        (directory / "hostname").write_text("localhost\n")
        images.run("mount", "--bind", str(directory / "hostname"), "/etc/hostname")
        os.environ["PATH"] = f"{directory}:{os.environ['PATH']}"
        commands = subjects(directory, other)
        samples: dict[str, list[Sample]] = {name: [] for name in commands}
        with SimulatedHost(Vm(), *PLATFORM_ENDPOINTS, imds_rate=1000) as host:
            for _ in range(rounds):  # in turns: what else the machine does hits all alike
                for name, command in commands.items():
                    samples[name].append(measure(command, host))
    bare = statistics.median(sample.wall for sample in samples[BARE])
    print("| | Ready after | wall time | CPU time | requests |\n|" + " --- |" * 5)
    for name, results in samples.items():
        *times, requests = map(statistics.median, zip(*results))
        cells = [f"{one * 1000:.0f} ms ({one / bare:.2f})" if one else "-" for one in times]
        print("|", " | ".join([name, *cells, f"{requests:.0f}"]), "|")
    return 0


if __name__ == "__main__":
    sys.exit(main())
