"""Stands for az, ssh and scp: as strict about options as the real ones, with a small Azure behind.

What there is in that Azure is in HOME: groups/ has a directory for each resource group, NAME.boots
a line for each boot of a VM, "pasted" what was typed into one, "calls" what was called. BROKEN in
the environment names what goes wrong.
"""

import argparse
import fcntl
import getopt
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

# What the README and on_azure.py use, as the help of Azure CLI 2.91 has it: extend it from there.
COMMANDS = """\
account show
group create --location= --name=
group delete --name= [--yes]
group exists --name=
sig create --gallery-name= --resource-group=
sig image-definition create --gallery-image-definition= --gallery-name= --offer=\
 --os-type=Linux|Windows --publisher= --resource-group= --sku= [--architecture=Arm64|x64]\
 [--features=SecurityType=TrustedLaunch|SecurityType=TrustedLaunchSupported]\
 [--hyper-v-generation=V1|V2] [--os-state=Generalized|Specialized]
sig image-definition show --gallery-image-definition= --gallery-name= --resource-group=
sig image-version create --gallery-image-definition= --gallery-image-version= --gallery-name=\
 --resource-group= [--virtual-machine=]
snapshot create --name= --resource-group= [--source=]
vm create --name= --resource-group= [--admin-username=] [--enable-agent=false|true]\
 [--generate-ssh-keys] [--image=] [--security-type=ConfidentialVM|Standard|TrustedLaunch] [--size=]
vm deallocate --name= --resource-group=
vm generalize --name= --resource-group=
vm restart --name= --resource-group=
vm show --name= --resource-group= [--show-details]
vmss create --name= --resource-group= [--admin-username=] [--disable-overprovision]\
 [--enable-agent=false|true] [--generate-ssh-keys] [--image=] [--instance-count=]\
 [--orchestration-mode=Flexible|Uniform] [--vm-sku=]\
 [--security-type=ConfidentialVM|Standard|TrustedLaunch]
vmss list-instances --name= --resource-group=
vmss nic list --resource-group= --vmss-name=
"""
GLOBAL = "[--output=] [--query=] [--subscription=]"
GALLERY_IMAGE = "/galleries/gallery/images/appliance"
ADDRESSES = {"builder": "192.0.2.1", "myvm": "192.0.2.2"}
SET_ADDRESSES = {"myset000000": "10.0.0.5", "myset000001": "10.0.0.6"}
DEFAULTS = ("00000000-aaaa", "00000000-bbbb")  # subscriptions: the default, and the next one
BROKEN, HOME = os.environ.get("BROKEN", ""), Path(os.environ["HOME"])


def append(name: str, text: str) -> None:
    with open(HOME / name, "a") as file:
        file.write(text)


def parse_az(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the command and its options, or end as az would, which has argparse, too."""
    for usage in COMMANDS.splitlines():
        words = [word for word in usage.split() if "--" not in word]
        if arguments[: len(words)] == words:
            break
    else:
        sys.exit(f"not in the table: {arguments}")
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for option in [*usage.split()[len(words) :], *GLOBAL.split()]:
        name, value, choices = option.strip("[]").partition("=")
        if value:
            known = choices.split("|") if choices else None
            parser.add_argument(name, required=option[0] != "[", choices=known)
        else:
            parser.add_argument(name, action="store_true")
    return " ".join(words), vars(parser.parse_args(arguments[len(words) :]))


def az(arguments: list[str]) -> str:
    command, options = parse_az(arguments)
    # Somebody sets another default as soon as one has asked for it.
    asked = (HOME / "calls").read_text().count("az account show") - (command == "account show")
    subscription = options["subscription"] or DEFAULTS[asked > 0]
    name = options.get("name", "")
    if command.startswith("group "):
        return resource_group(command, HOME / "groups" / f"{subscription}_{name}", options)
    group = options.get("resource_group")
    if group and not (HOME / "groups" / f"{subscription}_{group}").exists():
        sys.exit("(ResourceGroupNotFound)")
    if command in ("vm create", "vmss create"):
        create(name, options["image"])
    elif command == "vm restart":
        append(f"{name}.boots", "again\n")
    elif command == "vm generalize":
        (HOME / "generalized").touch()
    elif command == "sig image-version create" and not (HOME / "generalized").exists():
        sys.exit("the source is not generalized")
    answers = {
        ("account show", "[id, name]"): f"{subscription}\nMy subscription",
        ("sig image-definition show", "id"): GALLERY_IMAGE,
        ("vm show", "id"): f"/virtualMachines/{name}",
        ("vm show", "publicIps"): ADDRESSES.get(name, ""),
        ("vm show", "storageProfile.osDisk.managedDisk.id"): f"/disks/{name}",
        ("vmss list-instances", "[].osProfile.computerName"): "\n".join(SET_ADDRESSES),
        ("vmss nic list", "[].ipConfigurations[0].privateIPAddress"): "10.0.0.5\n10.0.0.6",
    }
    return answers[command, options["query"]] if options["query"] else ""


def resource_group(command: str, group: Path, options: dict[str, Any]) -> str:
    if command == "group exists":
        return str(group.exists()).lower()
    if command == "group create":
        group.mkdir(parents=True)
    elif BROKEN == "undeletable" and "images" in group.name:
        sys.exit("(ScopeLocked)")
    elif options["yes"]:  # else it would ask
        if BROKEN.startswith("SIG") and "images" in group.name:
            interrupt()
        group.rmdir()
    return ""


def create(name: str, image: str) -> None:
    if ("Debian:" if name == "builder" else GALLERY_IMAGE) not in image:
        sys.exit(f"{image} is not for {name}")
    if name == "myvm" and BROKEN == "not ready":
        sys.exit("(OSProvisioningTimedOut)")
    if name == "myvm" and re.fullmatch(r"SIG\w+", BROKEN):
        interrupt()
        time.sleep(600)  # unless it is ended; nothing else can be done meanwhile
    for one in SET_ADDRESSES if name == "myset" else [name]:
        append(f"{one}.boots", "first\n")


def interrupt() -> None:
    os.kill(int(os.environ["ON_AZURE"]), signal.Signals[BROKEN.split()[0]])


def ssh(arguments: list[str]) -> str:
    options, (destination, command) = getopt.getopt(arguments, "F:J:t")
    through = dict(options).get("-J") == f"builder@{ADDRESSES['myvm']}"
    reachable = SET_ADDRESSES if through else ADDRESSES
    name = {f"builder@{address}": name for name, address in reachable.items()}[destination]
    boots = (HOME / f"{name}.boots").read_text().splitlines()
    if command == "sudo sh":
        return found_in(name, len(boots))
    append("pasted", sys.stdin.read())
    return ""


def found_in(name: str, boots: int) -> str:
    """What a look into the VM prints; the unit was installed before the builder's second boot."""
    first = boots == (2 if name == "builder" else 1)
    journal = (HOME / "journal").read_text().replace("00000000", "12345678")
    found = {
        "boot ID": f"boot-{name}-{boots}",
        "name": name,
        "machine ID": f"id-{name}",
        "host key": f"key-{name}",
        "enabled": "disabled",
        "journal": journal.replace("myvm set", f"{name} set") if first else "",
    }
    broken = re.fullmatch(rf"{name} {boots}: (.+)=(.+)", BROKEN)
    if broken:
        found[broken[1]] = broken[2]
    return "\n".join(found.values())


def scp(arguments: list[str]) -> str:
    _, (*files, target) = getopt.getopt(arguments, "F:")
    if target != f"builder@{ADDRESSES['builder']}:" or not all(map(os.path.exists, files)):
        sys.exit(f"{files} or {target}: not found")
    return ""


def main() -> None:
    program, *arguments = sys.argv[1:]
    with open(HOME / "calls", "a") as calls:
        fcntl.flock(calls, fcntl.LOCK_EX)
        print(program, *arguments, file=calls, flush=True)
        out = {"az": az, "ssh": ssh, "scp": scp}[program](arguments).strip()
        print(out, end="\n" if out else "")


if __name__ == "__main__":
    main()
