#!/usr/bin/env python3
"""Measure what a first boot costs; print Markdown tables of this one run.

Usage: benchmark.py [ROUNDS]

Side by side: the bare interpreter, the script as the unit runs it, Bash scripts that do the same
with curl, and what cloud-init and waagent do to report Ready, where these are installed. Then: how
soon Ready is accepted after an outage, and what the unit adds to a real boot (as root, with what
the tests of boots need).
All of it against the simulated host, in a network namespace that has nothing else.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Tuple

from world import boot, images, sandbox
from world.host import SimulatedHost, Vm
from world.network import PLATFORM_ENDPOINTS, isolate, new_network

ROUNDS, BOOTS = 20, 5
OUTAGES, REPEATS = (1, 10, 60), 5  # seconds; runs of each, all at the same time
RELEASE = "debian-12"
PYTHON = "/usr/bin/python3"
BARE, SCRIPT = "`python3 -I -S -c pass`", "`azure_provisioning.py`, as in the unit"

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
BASH_SCRIPTS: Dict[str, Tuple[str, List[str]]] = {
    "Bash with `grep` and `sed`, `curl` three times": (WITH_GREP_AND_SED, []),
    "Bash with `grep` and `sed`, `curl` twice: the name is known": (WITH_GREP_AND_SED, ["myvm"]),
    "Bash alone, `curl` twice: the name is known": (WITH_BASH_ALONE, ["myvm"]),
}
# How each tells its version, and reports Ready.
AGENTS = {
    "cloud-init": (
        "from cloudinit.version import version_string as v; print(v())",
        "from cloudinit.sources.helpers.azure import get_metadata_from_fabric as report\n"
        "report('168.63.129.16')\n",
    ),
    "waagent": (
        "from azurelinuxagent.common.version import AGENT_VERSION as v; print(v)",
        "from azurelinuxagent.common.protocol.goal_state import GoalState\n"
        "from azurelinuxagent.common.protocol.wire import WireClient\n"
        "client = WireClient('168.63.129.16')\n"
        "client._goal_state = GoalState(client)\n"
        "client.report_health('Ready', None, None)\n",
    ),
}
# Runs a command and prints the most memory that it had, in KiB. The shell is in between because a
# process starts with the size of the one that it was copied from.
PEAK_MEMORY = '"$@" >/dev/null 2>&1 || exit; exec "$0" -I -S -c "$CODE"'
PRINT_PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"


class Sample(NamedTuple):
    wall: float  # seconds, all of these
    cpu: float
    ready: float  # from the start of the process; 0 if there was no report
    requests: int


def subjects(directory: Path) -> Dict[str, List[str]]:
    """Return what is measured: a command by its name."""
    unit = Path(sandbox.REPOSITORY, "azure-provisioning.service").read_text()
    start = re.search("^ExecStart=(.*)/usr/local/sbin/azure_provisioning.py$", unit, re.MULTILINE)
    assert start
    found = {BARE: [PYTHON, "-I", "-S", "-c", "pass"]}
    found[SCRIPT] = [*start.group(1).split(), sandbox.SCRIPT]
    if shutil.which("bash") and shutil.which("curl"):
        for number, (name, (extract, arguments)) in enumerate(BASH_SCRIPTS.items()):
            script = directory / f"{number}.sh"
            script.write_text(BASH.replace("EXTRACT", extract))
            found[name] = ["bash", str(script), *arguments]
    for name, (version, report_ready) in AGENTS.items():
        probe = [PYTHON, "-c", version]
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            label = f"{name} {done.stdout.strip()}: its report of Ready alone"
            found[label] = [PYTHON, "-c", report_ready]
    return found


def measure(command: List[str], host: SimulatedHost, reports_ready: bool) -> Sample:
    host.requests.clear()
    started, start = time.time(), time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - start
    process.returncode = status
    assert process.stderr
    with process.stderr:
        said = process.stderr.read().decode()
    reports = [one.when for one in host.requests if one.method == "POST" and one.answer == "200"]
    if status or bool(reports) != reports_ready:
        sys.exit(f"benchmark: {command} did not report Ready (status {status}): {said}")
    ready = reports[0] - started if reports else 0
    return Sample(wall, usage.ru_utime + usage.ru_stime, ready, len(host.requests))


def peak_memory(command: List[str]) -> float:
    """Return MiB, of the largest process."""
    shell = ["/bin/sh", "-c", PEAK_MEMORY, PYTHON, *command]
    environment = {**os.environ, "CODE": PRINT_PEAK}
    return int(subprocess.check_output(shell, env=environment)) / 1024


def files_opened(command: List[str], directory: Path) -> str:
    strace = shutil.which("strace")
    if not strace:
        return "-"
    trace = directory / "trace"
    options = ["--follow-forks", "--trace=open,openat", f"--output={trace}"]
    subprocess.run([strace, *options, *command], capture_output=True, check=True)
    return str(len(re.findall(r" = [0-9]+$", trace.read_text(), re.MULTILINE)))


def print_table(header: List[str], rows: Iterable[List[str]]) -> None:
    for row in [header, ["---"] * len(header), *rows]:
        print("|", " | ".join(row), "|", flush=True)
    print()


def print_costs(rounds: int, directory: Path) -> None:
    """Take turns, so that whatever else the machine does hits all alike."""
    program = directory / "hostnamectl"
    program.write_text(HOSTNAMECTL)
    program.chmod(0o755)
    stored = directory / "hostname"
    stored.write_text("localhost\n")
    images.run("mount", "--bind", str(stored), "/etc/hostname")
    os.environ["PATH"] = f"{directory}:{os.environ['PATH']}"

    commands = subjects(directory)
    samples: Dict[str, List[Sample]] = {name: [] for name in commands}
    with SimulatedHost(Vm(), *PLATFORM_ENDPOINTS, imds_rate=1000) as host:
        for _ in range(rounds):
            for name, command in commands.items():
                samples[name].append(measure(command, host, name != BARE))
        memory = {name: peak_memory(command) for name, command in commands.items()}
        files = {name: files_opened(command, directory) for name, command in commands.items()}
    medians = {
        name: Sample(*map(statistics.median, zip(*results))) for name, results in samples.items()
    }
    bare = medians[BARE]

    def cell(seconds: float, bare_seconds: float) -> str:
        return f"{seconds * 1000:.0f} ms ({seconds / bare_seconds:.2f})" if seconds else "-"

    header = "|Ready after|wall time|CPU time|peak memory|requests|files opened".split("|")
    print_table(
        header,
        (
            [
                name,
                cell(median.ready, bare.wall),
                cell(median.wall, bare.wall),
                cell(median.cpu, bare.cpu),
                f"{memory[name]:.1f} MiB ({memory[name] / memory[BARE]:.2f})",
                f"{median.requests:.0f}",
                files[name],
            ]
            for name, median in medians.items()
        ),
    )


def recovery(outage: float) -> float:
    """Return how long after an outage of so many seconds the report is accepted."""
    with tempfile.TemporaryDirectory() as machine, SimulatedHost() as host:
        returns = time.time() + outage
        host.listen_after("wireserver", outage)
        command = [PYTHON, "-I", "-S", sandbox.__file__, f"{machine}/machine", *host.options()]
        subprocess.run(command, capture_output=True, check=True)
        (report,) = [request for request in host.requests if request.method == "POST"]
        return report.when - returns


def print_recoveries() -> None:
    # The script tries every second: the ends of the outages are spread over one.
    outages = [seconds + part / REPEATS for seconds in OUTAGES for part in range(REPEATS)]
    with ThreadPoolExecutor(len(outages)) as pool:
        results = list(pool.map(recovery, outages))
    print_table(
        ["WireServer refuses for", f"Ready accepted after its return, longest of {REPEATS}"],
        (
            [f"{seconds} s", f"{max(results[place * REPEATS :][:REPEATS]):.1f} s"]
            for place, seconds in enumerate(OUTAGES)
        ),
    )


def boot_once(image: Path, with_unit: bool) -> float:
    """Return the seconds until systemd calls a container's first boot finished."""
    with tempfile.TemporaryDirectory() as directory, new_network():
        place = Path(directory, "machine")
        with images.fresh_disk(image, place) as root, SimulatedHost(Vm(), *PLATFORM_ENDPOINTS):
            images.install(root)
            boot.install_witness(root)
            if not with_unit:
                images.in_checkout(root, "systemctl disable azure-provisioning.service")
            boot.boot_container(root)
            text = (root / "witness.startup").read_text()
    finished = re.search(r"finished in (?:.* = )?(?:([\d.]+)s|(\d+)ms)", text)
    assert finished, text
    return float(finished.group(1) or 0) + int(finished.group(2) or 0) / 1000


def print_boots(root: bool) -> None:
    tools = ("mmdebstrap", "nsenter", "setpriv", "systemd-nspawn", "unshare")
    if not root or not all(map(shutil.which, tools)):
        print("Boots are measured as root, where there are", ", ".join(tools))
        return
    cache = Path(sandbox.REPOSITORY, ".pytest_cache/d/images")
    cache.mkdir(parents=True, exist_ok=True)
    image = images.build(RELEASE, cache)
    times: Dict[bool, List[float]] = {False: [], True: []}
    for _ in range(BOOTS):
        for with_unit, results in times.items():
            results.append(boot_once(image, with_unit))
    print_table(
        [f"first boot of a {RELEASE} container", f"startup finished after, median of {BOOTS}"],
        (
            ["with the unit" if with_unit else "without", f"{statistics.median(results):.2f} s"]
            for with_unit, results in times.items()
        ),
    )


def main() -> int:
    if sys.argv[2:] or not all(re.fullmatch("[1-9][0-9]*", one) for one in sys.argv[1:]):
        sys.exit(__doc__)
    rounds = int(sys.argv[1]) if sys.argv[1:] else ROUNDS
    root, problem = os.geteuid() == 0, isolate()
    if problem:
        sys.exit(f"benchmark: {problem}")
    if not os.path.exists("/etc/hostname"):
        sys.exit("benchmark: there is no /etc/hostname, in the place of which it could put its own")
    version = subprocess.check_output([PYTHON, "--version"], text=True).strip()
    print(f"{version}, Linux {platform.release()}, {os.cpu_count()} CPUs; {rounds} rounds\n")
    with tempfile.TemporaryDirectory() as directory:
        print_costs(rounds, Path(directory))
    print_recoveries()
    print_boots(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
