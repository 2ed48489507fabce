#!/usr/bin/env python3
"""Run the README's guide on a real Azure subscription, and check what comes of it.

It takes the commands from the README: it makes an image from a Marketplace VM, creates a VM and a
scale set of two from it, and looks at each. At the end, whatever happened, it deletes all that.
"""

import argparse
import contextlib
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from subprocess import PIPE, Popen
from typing import NamedTuple

from world import interruption, readme
from world.sandbox import REPOSITORY

# All that ties this to the README: its guide's blocks are run in their order, those in Bash here,
# those for sh as root in the builder. They name the resource groups images and builder, the
# location westeurope, the VM myvm and the scale set myset. Its headings begin so:
CREATE, COPY, CAPTURE, USE = "### 1. ", "### Keep a copy", "### 5. ", "### 6. "
HERE, BUILDER = "bash", "sh"
GROUPS = re.compile(r"(--resource-group |az group \w+ --name )(images|builder)\b")
JOURNAL = "## See that it worked"

WARNING = """\
In the subscription {name} this creates, in {location}:

- the resource group {prefix}-builder: a VM, which an image is made from;
- the resource group {prefix}-images: a snapshot, a Compute Gallery with one image, a VM,
  a scale set of two VMs, their disks, network, addresses and a load balancer.

It takes 30 to 60 minutes, and should cost less than 2 US dollars; both are estimates, since nobody
has run this yet. At the end it deletes both groups, also after an error or Ctrl-C. If there is
no SSH key in ~/.ssh, one is made. All that is done is logged in {log}.
"""
SSH_SECONDS, PAUSE_SECONDS = 600, 10
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
az() {{ command az "$@" --subscription {subscription}; }}
ssh() {{ command ssh -F '{directory}/ssh_config' "$@"; }}
scp() {{ command scp -F '{directory}/ssh_config' "$@"; }}
[ ! -e '{directory}/variables' ] || . '{directory}/variables'
{text}
compgen -v | while read -r _name; do
    case $_name in [a-z]*) declare -p "$_name" ;; esac
done >'{directory}/variables'
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
cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/hostname /etc/machine-id
cut -d " " -f 2 /etc/ssh/ssh_host_ed25519_key.pub
systemctl show --property=UnitFileState --value azure-provisioning.service
journalctl --quiet --boot --output=cat --unit=azure-provisioning.service SYSLOG_IDENTIFIER=python3
"""


class Run(NamedTuple):
    prefix: str
    location: str
    subscription: str  # its ID: another one may become the default while this runs
    directory: Path  # for what is needed while it runs
    log: Path


class Machine(NamedTuple):
    """What a look into a VM has found."""

    boot_id: str
    name: str
    machine_id: str
    host_key: str
    enabled: str
    journal: list[str]


class Failure(Exception):
    """A command failed, or a promise was not kept."""


# What cannot be told must not prevent the rest, which may be deleting: these two never fail.


def say(run: Run, text: str) -> None:
    note(run, text)
    with contextlib.suppress(OSError):  # the terminal was closed, or tee has ended
        os.write(1, f"{text}\n".encode(errors="replace"))  # print would try again at the end


def note(run: Run, text: str) -> None:
    line = f"{time.strftime('%H:%M:%S')} {text}\n"
    with contextlib.suppress(OSError), open(run.log, "ab") as log:  # the disk may be full
        log.write(line.encode(errors="replace"))


def execute(run: Run, command: list[str], text: str = "") -> str:
    """Run a command with *text* as its input; log all of it, and return what it printed."""
    note(run, f"+ {' '.join(command)}\n{text}")
    with Popen(
        command,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        text=True,
        errors="replace",
        cwd=REPOSITORY,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(text)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                # And what it has started, which must not go on to create what is being deleted.
                os.killpg(process.pid, signal.SIGKILL)
            raise
    note(run, f"{err}status {process.returncode}\n{out}")
    if process.returncode != 0:
        raise Failure(f"{command[0]} ended with status {process.returncode}: see {run.log}")
    return out


def az(run: Run, command: str, *options: str) -> list[str]:
    subscription = ["--subscription", run.subscription] if run.subscription else []
    command_line = ["az", *command.split(), *options, *subscription, "--output", "tsv"]
    return execute(run, command_line).splitlines()


def blocks(run: Run, place: str, start: str, end: str = "") -> list[str]:
    """Return blocks below the heading *start*, or until *end*, with names of this run's own."""
    found, inside = [], False
    for one in readme.blocks():
        if one.heading.startswith(start):
            inside = True
        elif not end or one.heading.startswith(end):
            inside = False
        if inside and one.language == place:
            text = GROUPS.sub(rf"\1{run.prefix}-\2", one.text)
            found.append(text.replace("westeurope", run.location))
    return found


def paste(run: Run, text: str, *in_vm: str) -> None:
    """Run a block on this machine, and blocks in the root shell that it opens in the builder."""
    script = SHELL.format(text=text, directory=run.directory, subscription=run.subscription)
    stdin = IN_VM.format(text="\n".join(in_vm)) if in_vm else ""
    execute(run, ["bash", "-c", script], stdin)


def address_of(run: Run, group: str, name: str) -> str:
    query = ["--show-details", "--query", "publicIps"]
    (address,) = az(run, "vm show", "--resource-group", group, "--name", name, *query)
    return address


def look(run: Run, address: str, other_than: str = "", through: str = "") -> Machine:
    """Wait until a VM lets us log in, in another boot; *through*: a VM that can reach it."""
    jump = ["-J", f"builder@{through}"] if through else []
    ssh = ["ssh", "-F", str(run.directory / "ssh_config"), *jump, f"builder@{address}", "sudo sh"]
    deadline = time.monotonic() + SSH_SECONDS
    while time.monotonic() < deadline:
        try:
            boot_id, name, machine_id, key, enabled, *journal = execute(run, ssh, LOOK).splitlines()
            if boot_id != other_than:
                return Machine(boot_id, name, machine_id, key, enabled, journal)
        except Failure as error:
            note(run, f"{address} is not ready: {error}")
        time.sleep(PAUSE_SECONDS)
    raise Failure(f"could not log in to {address} in {SSH_SECONDS} s")


def require(condition: bool, what: str) -> None:
    if not condition:
        raise Failure(what)


def check_first_boot(run: Run, machine: Machine, name: str) -> None:
    require(machine.name == name, f"the host name is {machine.name}, not {name}")
    require(machine.enabled == "disabled", f"{name}: the unit is {machine.enabled}, not disabled")
    # Times of trouble add lines; that is no failure, and the log has them.
    rest = iter(machine.journal)
    for line in readme.block(JOURNAL).splitlines():
        pattern = re.escape(line.replace("myvm set", f"{name} set"))
        if line.startswith("Goal state: "):
            pattern = r"Goal state: incarnation \S+, container \S+, instance \S+"
        found = any(re.fullmatch(pattern, one) for one in rest)
        require(found, f"{name}: its journal lacks, in order: {line}")
    say(run, f"{name}: named, and its journal has the six lines")


def make_image(run: Run) -> None:
    say(run, "Creating the builder")
    *creating, connect = blocks(run, HERE, CREATE, COPY)
    for text in creating:
        paste(run, text)
    builder = f"{run.prefix}-builder"
    address = address_of(run, builder, "builder")
    before = look(run, address)
    say(run, "Step 3 in the builder")
    paste(run, connect, *blocks(run, BUILDER, CREATE, COPY))
    az(run, "vm restart", "--resource-group", builder, "--name", "builder")
    check_first_boot(run, look(run, address, before.boot_id), "builder")
    for text in blocks(run, HERE, COPY, CAPTURE):
        paste(run, text)
    say(run, "Step 4 in the builder")
    paste(run, connect, *blocks(run, BUILDER, COPY, CAPTURE))
    say(run, "Capturing the image")
    for text in blocks(run, HERE, CAPTURE):
        paste(run, text)


def check_vms(run: Run) -> None:
    images = f"{run.prefix}-images"
    create_vm, create_set = blocks(run, HERE, USE)
    say(run, "Creating the VM")
    paste(run, create_vm)
    address = address_of(run, images, "myvm")
    vm = look(run, address)
    check_first_boot(run, vm, "myvm")

    say(run, "Creating the scale set")
    # No VMs to spare, which it would then delete.
    paste(run, create_set.replace("vmss create", "vmss create --disable-overprovision"))
    query = ["--query", "[].osProfile.computerName"]
    names = az(run, "vmss list-instances", "--resource-group", images, "--name", "myset", *query)
    # They have no address of their own, but are in the network of the first VM.
    query = ["--query", "[].ipConfigurations[0].privateIPAddress"]
    cards = az(run, "vmss nic list", "--resource-group", images, "--vmss-name", "myset", *query)
    members = [look(run, card, through=address) for card in cards]
    found = sorted(machine.name for machine in members)
    require(found == sorted(names), f"the set: its VMs are called {found}, not {names}")
    for machine in members:
        check_first_boot(run, machine, machine.name)

    machines = [vm, *members]
    require(len({one.machine_id for one in machines}) == 3, f"VMs share a machine ID: {machines}")
    require(len({one.host_key for one in machines}) == 3, f"VMs share a host key: {machines}")
    say(run, "Each VM has its own machine ID and SSH host key")
    az(run, "vm restart", "--resource-group", images, "--name", "myvm")
    again = look(run, address, vm.boot_id)
    silent = vm._replace(boot_id=again.boot_id, journal=[])
    require(again == silent, f"myvm: its second boot changed something: {again}")
    say(run, "myvm: its second boot was silent, and changed nothing")


def delete(run: Run) -> bool:
    """Delete what the run has made; return whether nothing is left."""
    left = []
    for name in (f"{run.prefix}-images", f"{run.prefix}-builder"):
        try:
            if az(run, "group exists", "--name", name) != ["false"]:
                say(run, f"Deleting the resource group {name}")
                az(run, "group delete", "--name", name, "--yes")
        except Exception as error:
            left.append(name)
            note(run, repr(error))
    for name in left:
        command = f"az group delete --subscription {run.subscription} --name {name}"
        say(run, f"NOT DELETED, AND IT COSTS MONEY: run  {command}")
    return not left


def make_and_check(run: Run) -> bool:
    try:
        try:
            make_image(run)
            check_vms(run)
        finally:
            # What comes now must not be interrupted: what is left costs money.
            interruption.ignore()
    except KeyboardInterrupt:
        say(run, "INTERRUPTED")
    except Failure as error:
        say(run, f"FAILED: {error}")
    except Exception as error:
        say(run, f"FAILED: {error!r}")
    else:
        return True
    return False


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--location", default="westeurope", help="an Azure region (%(default)s)")
    parser.add_argument("--log", default="on_azure.log", help="the log file (%(default)s)")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    options = parser.parse_args()
    missing = [one for one in ("az", "bash", "scp", "ssh") if not shutil.which(one)]
    if missing:
        parser.error(f"not installed: {', '.join(missing)}")
    return options


def main() -> int:
    options = parse()
    interruption.heed()
    prefix = f"azure-provisioning-{int(time.time())}-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as directory:
        run = Run(prefix, options.location, "", Path(directory), Path(options.log).resolve())
        try:
            (run.directory / "ssh_config").write_text(SSH_CONFIG)
            run.log.write_text("")
            subscription, name = az(run, "account show", "--query", "[id, name]")
            run = run._replace(subscription=subscription)
            say(run, WARNING.format(name=name, **run._asdict()))
            if not options.yes:
                say(run, "Type yes to go on:")
                if sys.stdin.readline().strip() != "yes":
                    return 2
        except (Failure, ValueError):
            say(run, "az has no subscription: run  az login")
            return 2
        except (OSError, KeyboardInterrupt) as error:
            say(run, f"Nothing was created. {error}")
            return 2
        good = make_and_check(run)
        good = delete(run) and good
    say(run, "All is well" if good else "It did not work")
    what = "it has the subscription's ID and IP addresses"
    say(run, f"Please report it, with the log; {what}: {run.log}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
