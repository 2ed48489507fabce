"""Stands for az, ssh and scp: as strict about options as the real ones, with a small Azure behind.

Run as "azure_cli.py PROGRAM DIRECTORY [ARGUMENT]..."; what there is in that Azure is a file in the
directory. BROKEN in the environment names what goes wrong.
"""

import argparse
import fcntl
import getopt
import json
import os
import signal
import sys
import time
from typing import Any, Dict, List, NoReturn, Tuple

# What the README and on_azure.py use, as the help of Azure CLI 2.91 has it. Extend it from that
# help only.
COMMANDS = """\
account show
feature register --name= --namespace=
feature show --name= --namespace=
group create --location= --name=
group delete --name= [--yes]
group exists --name=
image create --name= --resource-group= --source= [--hyper-v-generation=]
provider register --namespace= [--wait]
sig create --gallery-name= --resource-group=
sig image-definition create --gallery-image-definition= --gallery-name= --offer= --os-type=\
 --publisher= --resource-group= --sku= [--architecture=] [--features=] [--hyper-v-generation=]\
 [--os-state=]
sig image-definition show --gallery-image-definition= --gallery-name= --resource-group=
sig image-version create --gallery-image-definition= --gallery-image-version= --gallery-name=\
 --resource-group= [--virtual-machine=]
snapshot create --name= --resource-group= [--source=]
vm create --name= --resource-group= [--admin-username=] [--enable-agent=] [--generate-ssh-keys]\
 [--image=] [--security-type=] [--size=]
vm deallocate --name= --resource-group=
vm generalize --name= --resource-group=
vm restart --name= --resource-group=
vm show --name= --resource-group= [--show-details]
vmss create --name= --resource-group= [--admin-username=] [--enable-agent=] [--generate-ssh-keys]\
 [--image=] [--instance-count=] [--orchestration-mode=] [--security-type=]
vmss list-instances --name= --resource-group=
vmss nic list --resource-group= --vmss-name=
"""
GLOBAL = "[--output=] [--query=] [--subscription=]"
VALUES = {
    "--enable-agent": ("false", "true"),
    "--features": ("SecurityType=TrustedLaunch",),
    "--hyper-v-generation": ("V1", "V2"),
    "--orchestration-mode": ("Flexible", "Uniform"),
    "--os-state": ("Generalized", "Specialized"),
    "--os-type": ("Linux", "Windows"),
    "--output": ("json", "jsonc", "none", "table", "tsv", "yaml", "yamlc"),
    "--security-type": ("ConfidentialVM", "Standard", "TrustedLaunch"),
}
GALLERY_IMAGE = "/galleries/gallery/images/appliance"
ADDRESSES = {"builder": "192.0.2.1", "myvm": "192.0.2.2", "othervm": "192.0.2.3"}
SET_ADDRESSES = {"myset000000": "10.0.0.5", "myset000001": "10.0.0.6"}
SUBSCRIPTION, OTHER_SUBSCRIPTION = "00000000-aaaa", "00000000-bbbb"
BROKEN = os.environ.get("BROKEN", "")


class Azure:
    """What there is, and what has happened."""

    def __init__(self) -> None:
        self.groups: List[str] = []  # SUBSCRIPTION/NAME
        self.vms: Dict[str, Dict[str, Any]] = {}
        self.images: List[str] = []
        self.pasted: List[str] = []
        self.calls: List[List[str]] = []


def fail(text: str, status: int = 2) -> NoReturn:
    print(f"ERROR: {text}", file=sys.stderr)
    sys.exit(status)


def parse_az(arguments: List[str]) -> Tuple[str, Dict[str, Any]]:
    """Return the command and its options, or end as az would, which has argparse, too."""
    for usage in COMMANDS.splitlines():
        words = [word for word in usage.split() if "--" not in word]
        if arguments[: len(words)] == words:
            break
    else:
        fail(f"not in the table: {arguments}")
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for option in [*usage.split()[len(words) :], *GLOBAL.split()]:
        name = option.strip("[=]")
        if "=" in option:
            parser.add_argument(name, required=option[0] != "[", choices=VALUES.get(name))
        else:
            parser.add_argument(name, action="store_true")
    return " ".join(words), vars(parser.parse_args(arguments[len(words) :]))


def az(azure: Azure, arguments: List[str]) -> str:
    command, options = parse_az(arguments)
    # Somebody makes another subscription the default as soon as the first was asked for.
    asked = ["az", "account", "show"] in [call[:3] for call in azure.calls[:-1]]
    subscription = options["subscription"] or (OTHER_SUBSCRIPTION if asked else SUBSCRIPTION)
    name = options.get("name", "")
    if command.startswith("group "):
        return resource_group(azure, command, f"{subscription}/{name}", options)
    group = options.get("resource_group")
    if group and f"{subscription}/{group}" not in azure.groups:
        fail("(ResourceGroupNotFound)", 3)
    if command in ("vm create", "vmss create"):
        create(azure, name, options["image"])
    elif command in ("image create", "sig image-version create"):
        source = options.get("source") or options["virtual_machine"]
        if not azure.vms[source.rpartition("/")[2]].get("generalized"):
            fail("the source is not generalized", 1)
        azure.images.append(GALLERY_IMAGE if command.startswith("sig") else name)
    elif command.startswith("vm ") and command != "vm show":
        change(azure.vms[name], command)
    if not options["query"]:
        return ""
    answers = {
        ("account show", "id"): subscription,
        ("account show", "name"): "My subscription",
        ("feature show", "properties.state"): "Registered",
        ("sig image-definition show", "id"): GALLERY_IMAGE,
        ("vm show", "id"): f"/virtualMachines/{name}",
        ("vm show", "provisioningState"): "Succeeded",
        ("vm show", "publicIps"): ADDRESSES.get(name, ""),
        ("vm show", "storageProfile.osDisk.managedDisk.id"): f"/disks/{name}",
        ("vmss list-instances", "[].[provisioningState, osProfile.computerName]"): "\n".join(
            f"Succeeded\t{one}" for one in SET_ADDRESSES
        ),
        ("vmss nic list", "[].ipConfigurations[0].privateIPAddress"): "\n".join(
            SET_ADDRESSES.values()
        ),
    }
    return answers[command, options["query"]]


def resource_group(azure: Azure, command: str, name: str, options: Dict[str, Any]) -> str:
    if command == "group exists":
        return str(name in azure.groups).lower()
    if command == "group create":
        azure.groups.append(name)
    elif not options["yes"]:
        fail("it would ask")
    elif BROKEN == "undeletable" and "images" in name:
        fail("(ScopeLocked)", 1)
    else:
        interrupt()
        azure.groups.remove(name)
    return ""


def create(azure: Azure, name: str, image: str) -> None:
    if "Debian:" not in image and image not in azure.images:
        fail(f"there is no image {image}", 3)
    if name == "myvm" and BROKEN == "not-ready":
        fail("(OSProvisioningTimedOut)", 1)
    if name == "myvm" and interrupt():
        time.sleep(600)  # unless it is ended; nothing else can be done meanwhile
    for one in SET_ADDRESSES if name == "myset" else [name]:
        azure.vms[one] = {"boots": 1}


def interrupt() -> bool:
    if BROKEN.startswith("SIG"):
        os.kill(int(os.environ["ON_AZURE"]), signal.Signals[BROKEN])
    return BROKEN.startswith("SIG")


def change(vm: Dict[str, Any], command: str) -> None:
    if command == "vm restart":
        vm["boots"] += 1
    elif command == "vm deallocate":
        vm["deallocated"] = True
    elif not vm.get("deallocated"):
        fail("it is running", 1)
    else:
        vm["generalized"] = True


def ssh(azure: Azure, arguments: List[str]) -> str:
    options, (destination, *command) = getopt.getopt(arguments, "F:J:t")
    with open(dict(options)["-F"]):
        vms = {address: name for name, address in ADDRESSES.items()}
    if dict(options).get("-J") == f"builder@{ADDRESSES['myvm']}":
        vms.update({address: name for name, address in SET_ADDRESSES.items()})
    user, _, address = destination.partition("@")
    name = vms.get(address, "")
    if user != "builder" or name not in azure.vms:
        fail(f"no route to {destination}", 255)
    boots = azure.vms[name]["boots"]
    if command == ["cat /proc/sys/kernel/random/boot_id"]:
        return f"boot-{name}-{boots}"
    if command == ["sudo", "-s"]:
        azure.pasted.append(sys.stdin.read())
        return ""
    if command == ["sudo sh"]:
        return found_in(name, boots)
    fail(f"{command}: not found", 127)


def found_in(name: str, boots: int) -> str:
    """What a look into the VM prints; the unit was installed before the builder's second boot."""
    with open(os.path.join(os.environ["HOME"], "journal")) as file:
        journal = file.read().replace("00000000", "12345678").replace("myvm set", f"{name} set")
    if BROKEN == "not-accepted" and name == "myset000001":
        journal = journal.replace("Ready accepted: 200 OK\n", "")
    if boots != (2 if name == "builder" else 1) and BROKEN != "noisy":
        journal = ""
    return "\n".join(
        [
            "localhost" if BROKEN == "unnamed" and name == "othervm" else name,
            f"machine-id-{'x' if BROKEN == 'shared-id' else name}",
            f"host-key-{'x' if BROKEN == 'shared-key' else name}",
            "enabled" if BROKEN == "still-enabled" and name == "myvm" else "disabled",
            *journal.splitlines(),
        ]
    )


def scp(azure: Azure, arguments: List[str]) -> str:
    options, (*files, target) = getopt.getopt(arguments, "F:")
    if target != f"builder@{ADDRESSES['builder']}:" or "builder" not in azure.vms:
        fail(f"no route to {target}", 255)
    for file in [dict(options)["-F"], *files]:
        with open(file):
            pass
    return ""


def load(directory: str) -> Azure:
    azure = Azure()
    with open(os.path.join(directory, "azure.json")) as file:
        vars(azure).update(json.loads(file.read() or "{}"))
    return azure


def main() -> None:
    program, directory, *arguments = sys.argv[1:]
    with open(os.path.join(directory, "azure.json"), "a+") as state:
        fcntl.flock(state, fcntl.LOCK_EX)
        azure = load(directory)
        azure.calls.append([program, *arguments])
        try:
            out = {"az": az, "ssh": ssh, "scp": scp}[program](azure, arguments)
        finally:
            state.truncate(0)
            json.dump(vars(azure), state)
    if out:
        print(out)


if __name__ == "__main__":
    main()
