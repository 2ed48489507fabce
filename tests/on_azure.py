#!/usr/bin/env python3
"""Run the README's guide on a real Azure subscription, and check what comes of it.

It takes the commands from the README: it makes an image from a Marketplace VM, creates two VMs and
a scale set of two from it, and looks at each. At the end, whatever happened, it deletes all that.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Iterable, List, NamedTuple, TextIO, Tuple

from world import readme
from world.sandbox import REPOSITORY

WARNING = """\
In the subscription {subscription} this creates, in {location}:

- the resource group {prefix}-builder: a VM, which an image is made from;
- the resource group {prefix}-images: a snapshot, a Compute Gallery with one image, two VMs,
  a scale set of two VMs, their disks, network, addresses and a load balancer.

It takes 30 to 60 minutes, and should cost less than 2 US dollars; both are estimates, since nobody
has run this yet. At the end it deletes both groups, also after an error or Ctrl-C. If there is
no SSH key in ~/.ssh, one is made. All that is done is logged in {log}.
"""
GROUPS = re.compile(r"(--resource-group |az group (?:create|delete) --name )(images|builder)\b")
Place = Tuple[str, int]  # a heading of the README, and the number of a block below it
CREATE, CONNECT = ("### 1. Create the VM", 0), ("### 1. Create the VM", 1)
PREPARE: List[Place] = [
    ("### 2. Remove the agents, keep the network", 0),
    ("### 2. Remove the agents, keep the network", 1),
    ("### 3. Install", 0),
    ("### How do I get in?", 0),
]
COPY = ("### Keep a copy", 0)
GENERALIZE: List[Place] = [("### 4. Generalize", 0), ("### 4. Generalize", 1)]
CAPTURE: List[Place] = [("### 5. Capture", 0), ("### 5. Capture", 1)]
CREATE_VM, CREATE_SET = ("### 6. Create VMs", 0), ("### 6. Create VMs", 1)
VMS = ("myvm", "othervm")  # the README's, and one more like it
SSH_SECONDS, SETTLE_SECONDS, PAUSE_SECONDS = 600, 300, 10
BOOT_ID = "/proc/sys/kernel/random/boot_id"
# They live for an hour, and nothing secret is sent to them: their host keys need no check.
SSH_CONFIG = """\
Host *
    BatchMode yes
    ConnectTimeout 10
    GlobalKnownHostsFile /dev/null
    LogLevel ERROR
    ServerAliveInterval 15
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
"""
# As if each block were pasted into the same shell, which stops at an error.
SHELL = """\
set -eu
ssh() {{ command ssh -F {config} "$@"; }}
scp() {{ command scp -F {config} "$@"; }}
[ ! -e {variables} ] || . {variables}
{text}
declare -p address image >{variables} 2>/dev/null || true
"""
# What reads its standard input must not read what comes after it.
IN_VM = """\
{{
set -eu
{text}
}} </dev/null
"""
LOOK = """\
set -e
timeout 300 systemctl is-system-running --wait >&2 || true
cat /proc/sys/kernel/hostname /etc/machine-id
cut -d " " -f 2 /etc/ssh/ssh_host_ed25519_key.pub
systemctl is-enabled azure-provisioning.service || true
journalctl --quiet --boot --output=cat --unit=azure-provisioning.service SYSLOG_IDENTIFIER=python3
"""


class Run(NamedTuple):
    prefix: str
    location: str
    directory: Path  # for what is needed while it runs
    log: TextIO


class Machine(NamedTuple):
    """What a look into a VM has found."""

    boot_id: str
    name: str
    machine_id: str
    host_key: str
    enabled: str
    journal: List[str]


class Failure(Exception):
    """A command failed, or a promise was not kept."""


def say(run: Run, text: str) -> None:
    print(text, flush=True)
    note(run, text)


def note(run: Run, text: str) -> None:
    run.log.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    run.log.flush()


def execute(run: Run, command: List[str], text: str = "") -> str:
    """Run a command with *text* as its input; log all of it, and return what it printed."""
    note(run, f"+ {' '.join(command)}")
    done = subprocess.run(
        command,
        input=text,
        stdout=subprocess.PIPE,
        stderr=run.log,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    note(run, f"status {done.returncode}\n{done.stdout}")
    if done.returncode != 0:
        raise Failure(f"{command[0]} ended with status {done.returncode}: see {run.log.name}")
    return done.stdout


def az(run: Run, *arguments: str) -> List[str]:
    return execute(run, ["az", *arguments, "--output", "tsv"]).splitlines()


def block(run: Run, place: Place) -> str:
    """Return a block of the README, with resource groups and a location of this run's own."""
    text = readme.block(*place)
    text = GROUPS.sub(rf"\1{run.prefix}-\2", text)
    return text.replace("westeurope", run.location)


def paste(run: Run, text: str, stdin: str = "") -> None:
    """Run a block on this machine."""
    values = {"config": run.directory / "ssh_config", "variables": run.directory / "variables"}
    execute(run, ["bash", "-c", SHELL.format(text=text, **values)], stdin)


def paste_into_builder(run: Run, places: Iterable[Place]) -> None:
    """Run blocks in the builder, as root, over the connection that the README makes."""
    text = IN_VM.format(text="\n".join(block(run, place) for place in places))
    note(run, text)
    paste(run, block(run, CONNECT), text)


def group(run: Run, name: str) -> str:
    return f"{run.prefix}-{name}"


def address_of(run: Run, group: str, name: str) -> str:
    query = ["--show-details", "--query", "publicIps"]
    (address,) = az(run, "vm", "show", "--resource-group", group, "--name", name, *query)
    return address


def log_in(run: Run, address: str, command: str, text: str = "", through: str = "") -> str:
    """Run a command in a VM; *through*: a VM that can reach it."""
    jump = ["-J", f"builder@{through}"] if through else []
    ssh = ["ssh", "-F", str(run.directory / "ssh_config"), *jump, f"builder@{address}"]
    return execute(run, [*ssh, command], text)


def boot_id(run: Run, address: str, other_than: str = "", through: str = "") -> str:
    """Wait until a VM lets us log in, in another boot than that; return which boot it is."""
    deadline = time.monotonic() + SSH_SECONDS
    while time.monotonic() < deadline:
        try:
            found = log_in(run, address, f"cat {BOOT_ID}", through=through).strip()
            if found != other_than:
                return found
        except Failure as error:
            note(run, f"{address} is not ready: {error}")
        time.sleep(PAUSE_SECONDS)
    raise Failure(f"could not log in to {address} in {SSH_SECONDS} s")


def look(run: Run, address: str, through: str = "", other_than: str = "") -> Machine:
    boot = boot_id(run, address, other_than, through)
    name, machine_id, host_key, enabled, *journal = log_in(
        run, address, "sudo sh", LOOK, through
    ).splitlines()
    return Machine(boot, name, machine_id, host_key, enabled, journal)


def require(condition: bool, what: str) -> None:
    if not condition:
        raise Failure(what)


def check_first_boot(run: Run, machine: Machine, name: str) -> None:
    require(machine.name == name, f"the host name is {machine.name}, not {name}")
    require(machine.enabled == "disabled", f"{name}: the unit is {machine.enabled}, not disabled")
    expected = readme.block("## See that it worked").splitlines()
    # Times of trouble add lines; that is no failure, and the log has them.
    rest = iter(machine.journal)
    for line in expected:
        pattern = re.escape(line.replace("myvm set", f"{name} set"))
        if line.startswith("Goal state: "):
            pattern = r"Goal state: incarnation \S+, container \S+, instance \S+"
        found = any(re.fullmatch(pattern, one) for one in rest)
        require(found, f"{name}: its journal lacks, in order: {line}")
    say(run, f"{name}: named, and its journal has the six lines")
    for line in machine.journal:
        note(run, f"{name}: {line}")


def restart(run: Run, group: str, name: str, before: Machine) -> Machine:
    say(run, f"{name}: restarting")
    az(run, "vm", "restart", "--resource-group", group, "--name", name)
    return look(run, address_of(run, group, name), other_than=before.boot_id)


def make_image(run: Run) -> None:
    say(run, "Creating the builder")
    paste(run, block(run, CREATE))
    address = address_of(run, group(run, "builder"), "builder")
    say(run, "Steps 2 and 3 in the builder")
    before = boot_id(run, address)
    paste_into_builder(run, PREPARE)
    az(run, "vm", "restart", "--resource-group", group(run, "builder"), "--name", "builder")
    check_first_boot(run, look(run, address, other_than=before), "builder")
    paste(run, block(run, COPY))
    say(run, "Step 4 in the builder")
    paste_into_builder(run, GENERALIZE)
    say(run, "Capturing the image")
    for place in CAPTURE:
        paste(run, block(run, place))


def check_vms(run: Run) -> None:
    images = group(run, "images")
    machines = []
    for name in VMS:
        say(run, f"Creating {name}")
        paste(run, block(run, CREATE_VM).replace("--name myvm", f"--name {name}"))
        query = ["--query", "provisioningState"]
        state = az(run, "vm", "show", "--resource-group", images, "--name", name, *query)
        require(state == ["Succeeded"], f"{name}: Azure says {state}")
        machine = look(run, address_of(run, images, name))
        check_first_boot(run, machine, name)
        machines.append(machine)

    say(run, "Creating the scale set")
    paste(run, block(run, CREATE_SET))
    names = set_names(run, images)
    # Its VMs have no address of their own, but are in the network of the first VM.
    cards = ["vmss", "nic", "list", "--resource-group", images, "--vmss-name", "myset"]
    addresses = az(run, *cards, "--query", "[].ipConfigurations[0].privateIPAddress")
    through = address_of(run, images, VMS[0])
    members = [look(run, address, through) for address in addresses]
    found = sorted(machine.name for machine in members)
    require(found == sorted(names), f"the set: its VMs are called {found}, not {names}")
    for machine in members:
        check_first_boot(run, machine, machine.name)
    machines += members

    for what, values in (
        ("machine ID", [machine.machine_id for machine in machines]),
        ("SSH host key", [machine.host_key for machine in machines]),
    ):
        require(len(set(values)) == 4, f"VMs share their {what}: {values}")
        say(run, f"Each VM has its own {what}")
    for name, machine in zip(VMS, machines):
        again = restart(run, images, name, machine)
        silent = again.journal == [] and again.enabled == "disabled"
        require(silent, f"{name}: its second boot was not silent: {again}")
        kept = (again.name, again.machine_id) == (machine.name, machine.machine_id)
        require(kept, f"{name}: it changed with its second boot: {again}")
        say(run, f"{name}: its second boot was silent")


def set_names(run: Run, group: str) -> List[str]:
    """Return the names of the scale set's VMs, once the ones that Azure made to spare are gone."""
    arguments = ["vmss", "list-instances", "--resource-group", group, "--name", "myset"]
    arguments += ["--query", "[].[provisioningState, osProfile.computerName]"]
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        rows = [row.split("\t") for row in az(run, *arguments)]
        if [state for state, _ in rows] == ["Succeeded"] * 2:
            return [name for _, name in rows]
        require(time.monotonic() < deadline, f"the set: Azure says {rows}")
        time.sleep(PAUSE_SECONDS)


def delete(run: Run) -> bool:
    """Delete what the run has made; return whether nothing is left."""
    left = []
    for name in (group(run, "images"), group(run, "builder")):
        try:
            if az(run, "group", "exists", "--name", name) != ["false"]:
                say(run, f"Deleting the resource group {name}")
                az(run, "group", "delete", "--name", name, "--yes")
        except (Failure, OSError) as error:
            left.append(name)
            note(run, str(error))
    for name in left:
        say(run, f"NOT DELETED, AND IT COSTS MONEY: run  az group delete --name {name}")
    return not left


def terminate(*_: object) -> None:
    raise KeyboardInterrupt


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--location", default="westeurope", help="an Azure region (%(default)s)")
    parser.add_argument("--log", default="on_azure.log", help="the log file (%(default)s)")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    return parser.parse_args()


def main() -> int:
    options = parse()
    missing = [one for one in ("az", "bash", "scp", "ssh") if not shutil.which(one)]
    if missing:
        print(f"not installed: {', '.join(missing)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGHUP, terminate)
    prefix = f"azure-provisioning-{int(time.time())}"
    with tempfile.TemporaryDirectory() as directory, open(options.log, "w") as log:
        run = Run(prefix, options.location, Path(directory), log)
        (run.directory / "ssh_config").write_text(SSH_CONFIG)
        try:
            (subscription,) = az(run, "account", "show", "--query", "name")
        except (Failure, ValueError):
            print("az has no subscription: run  az login", file=sys.stderr)
            return 2
        values = {"prefix": prefix, "location": options.location, "log": os.path.abspath(log.name)}
        say(run, WARNING.format(subscription=subscription, **values))
        try:
            if not options.yes and input("Type yes to go on: ").strip() != "yes":
                return 2
        except (EOFError, KeyboardInterrupt):
            return 2
        status = 1
        try:
            make_image(run)
            check_vms(run)
            status = 0
        except Failure as error:
            say(run, f"FAILED: {error}")
        except KeyboardInterrupt:
            say(run, "INTERRUPTED")
        except Exception as error:
            say(run, f"FAILED: {error!r}")
        finally:
            # From here on a second Ctrl-C must not leave anything that costs money.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            if not delete(run):
                status = 1
        say(run, "All is well" if status == 0 else "It did not work")
        print(
            "Please report it, with the log; it has the subscription's ID and IP addresses: "
            f"{values['log']}"
        )
    return status


if __name__ == "__main__":
    sys.exit(main())
