"""Stands for az, ssh and scp: as strict about options as the real ones, with a small Azure behind.

Run as "azure_cli.py PROGRAM DIRECTORY [ARGUMENT]..."; what there is in that Azure is a file in the
directory. BROKEN in the environment names what goes wrong.
"""

import getopt
import json
import os
import sys
from typing import Any, Dict, List, NamedTuple, NoReturn, Tuple

# What the README and on_azure.py use, as the help of Azure CLI 2.91 has it: options that a command
# needs, others that it takes, and flags, which have no value. Extend it from that help only.
COMMANDS: Dict[str, Tuple[str, str, str]] = {
    "account show": ("", "", ""),
    "feature register": ("--name --namespace", "", ""),
    "feature show": ("--name --namespace", "", ""),
    "group create": ("--location --name", "", ""),
    "group delete": ("--name", "", "--yes"),
    "group exists": ("--name", "", ""),
    "image create": ("--name --resource-group --source", "--hyper-v-generation", ""),
    "provider register": ("--namespace", "", "--wait"),
    "sig create": ("--gallery-name --resource-group", "", ""),
    "sig image-definition create": (
        "--gallery-image-definition --gallery-name --offer --os-type --publisher --resource-group"
        " --sku",
        "--architecture --features --hyper-v-generation --os-state",
        "",
    ),
    "sig image-definition show": (
        "--gallery-image-definition --gallery-name --resource-group",
        "",
        "",
    ),
    "sig image-version create": (
        "--gallery-image-definition --gallery-image-version --gallery-name --resource-group",
        "--virtual-machine",
        "",
    ),
    "snapshot create": ("--name --resource-group", "--source", ""),
    "vm create": (
        "--name --resource-group",
        "--admin-username --enable-agent --image --security-type --size",
        "--generate-ssh-keys",
    ),
    "vm deallocate": ("--name --resource-group", "", ""),
    "vm generalize": ("--name --resource-group", "", ""),
    "vm restart": ("--name --resource-group", "", ""),
    "vm show": ("--name --resource-group", "", "--show-details"),
    "vmss create": (
        "--name --resource-group",
        "--admin-username --enable-agent --image --instance-count --orchestration-mode"
        " --security-type",
        "--generate-ssh-keys",
    ),
    "vmss list-instances": ("--name --resource-group", "", ""),
    "vmss nic list": ("--resource-group --vmss-name", "", ""),
}
GLOBAL = "--output --query"
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
# Of OpenSSH 9.2.
SSH_OPTIONS = "46AaB:b:CcD:E:e:F:fGgI:i:J:KkL:l:MmNnO:o:P:p:Q:qR:S:sTtVvW:w:XxYy"
SCP_OPTIONS = "346ABCc:D:F:i:J:l:Oo:P:pqRrS:sTvX:"
GALLERY_IMAGE = "/galleries/gallery/images/appliance"
ADDRESSES = {"builder": "192.0.2.1", "myvm": "192.0.2.2", "othervm": "192.0.2.3"}
SET_ADDRESSES = {"myset000000": "10.0.0.5", "myset000001": "10.0.0.6"}
BROKEN = os.environ.get("BROKEN", "")


class Azure(NamedTuple):
    """What there is, and what has happened."""

    groups: List[str]
    vms: Dict[str, Dict[str, Any]]
    images: List[str]
    pasted: List[str]
    calls: List[List[str]]


def fail(text: str, status: int = 2) -> NoReturn:
    print(f"ERROR: {text}", file=sys.stderr)
    sys.exit(status)


def parse_az(arguments: List[str]) -> Tuple[str, Dict[str, str]]:
    """Return the command and its options, or end as az would."""
    words = []
    while arguments and not arguments[0].startswith("-"):
        words.append(arguments.pop(0))
    command = " ".join(words)
    if command not in COMMANDS:
        fail(f"{command!r} is not in the table")
    needed, optional, flags = (text.split() for text in COMMANDS[command])
    options: Dict[str, str] = {}
    while arguments:
        name = arguments.pop(0)
        if name in flags:
            options[name] = ""
        elif name not in [*needed, *optional, *GLOBAL.split()]:
            fail(f"unrecognized arguments: {name}")
        elif not arguments or arguments[0].startswith("--"):
            fail(f"{name}: expected one argument")
        else:
            options[name] = arguments.pop(0)
            if options[name] not in VALUES.get(name, [options[name]]):
                fail(f"{name}: invalid choice: {options[name]}")
            if not options[name]:
                fail(f"{name} is empty")
    missing = [name for name in needed if name not in options]
    if missing:
        fail(f"the following arguments are required: {missing}")
    return command, options


def az(azure: Azure, arguments: List[str]) -> str:
    command, options = parse_az(arguments)
    name, query = options.get("--name", ""), options.get("--query", "")
    if options.get("--resource-group", "x") not in [*azure.groups, "x"]:
        fail("(ResourceGroupNotFound)", 3)
    if command.startswith("group "):
        return resource_group(azure, command, name, options)
    if command in ("vm create", "vmss create"):
        return create(azure, name, options)
    if command == "image create" or command == "sig image-version create":
        source = options.get("--source") or options["--virtual-machine"]
        if not azure.vms[source.rpartition("/")[2]].get("generalized"):
            fail("the source is not generalized", 1)
        azure.images.append(GALLERY_IMAGE if command.startswith("sig") else name)
        return ""
    if command.startswith("vm ") and command != "vm create":
        if name not in azure.vms:
            fail("(ResourceNotFound)", 3)
        return existing_vm(azure.vms[name], command, name, query)
    answers = {
        ("account show", "name"): "My subscription",
        ("feature show", "properties.state"): "Registered",
        ("sig image-definition show", "id"): GALLERY_IMAGE,
        ("vmss list-instances", "[].[provisioningState, osProfile.computerName]"): "\n".join(
            f"Succeeded\t{one}" for one in SET_ADDRESSES
        ),
        ("vmss nic list", "[].ipConfigurations[0].privateIPAddress"): "\n".join(
            SET_ADDRESSES.values()
        ),
    }
    if query and (command, query) not in answers:
        fail(f"no answer to {query}")
    return answers.get((command, query), "")


def resource_group(azure: Azure, command: str, name: str, options: Dict[str, str]) -> str:
    if command == "group create":
        azure.groups.append(name)
    elif command == "group exists":
        return str(name in azure.groups).lower()
    elif "--yes" not in options:
        fail("it would ask")
    elif BROKEN == "undeletable" and "images" in name:
        fail("(ScopeLocked)", 1)
    else:
        azure.groups.remove(name)
    return ""


def create(azure: Azure, name: str, options: Dict[str, str]) -> str:
    image = options["--image"]
    if "Debian:" not in image and image not in azure.images:
        fail(f"there is no image {image}", 3)
    if name == "myvm" and BROKEN == "not-ready":
        fail("(OSProvisioningTimedOut)", 1)
    if name == "myvm" and BROKEN == "interrupted":
        # What a terminal does to all of its programs.
        os.kill(int(os.environ["ON_AZURE"]), 2)
        sys.exit(130)
    for one in SET_ADDRESSES if name == "myset" else [name]:
        azure.vms[one] = {"boots": 1}
    return ""


def existing_vm(vm: Dict[str, Any], command: str, name: str, query: str) -> str:
    if command == "vm restart":
        vm["boots"] += 1
    elif command == "vm deallocate":
        vm["deallocated"] = True
    elif command == "vm generalize":
        if not vm.get("deallocated"):
            fail("it is running", 1)
        vm["generalized"] = True
    else:
        answers = {
            "id": f"/virtualMachines/{name}",
            "provisioningState": "Succeeded",
            "publicIps": ADDRESSES[name],
            "storageProfile.osDisk.managedDisk.id": f"/disks/{name}",
        }
        if query not in answers:
            fail(f"no answer to {query}")
        return answers[query]
    return ""


def ssh(azure: Azure, arguments: List[str]) -> str:
    try:
        options, rest = getopt.getopt(arguments, SSH_OPTIONS)
    except getopt.GetoptError as error:
        fail(str(error), 255)
    with open(dict(options)["-F"]):
        destination, *command = rest
    user, _, address = destination.partition("@")
    vms = {**{address: name for name, address in ADDRESSES.items()}}
    if dict(options).get("-J") == f"builder@{ADDRESSES['myvm']}":
        vms.update({address: name for name, address in SET_ADDRESSES.items()})
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
    first = boots == (2 if name == "builder" else 1)
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from world import readme

    journal = readme.block("## See that it worked").replace("00000000", "12345678")
    journal = journal.replace("myvm set", f"{name} set")
    if BROKEN == "not-accepted" and name == "myset000001":
        journal = journal.replace("Ready accepted: 200 OK\n", "")
    if not first and BROKEN != "noisy":
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
    try:
        options, rest = getopt.getopt(arguments, SCP_OPTIONS)
    except getopt.GetoptError as error:
        fail(str(error), 1)
    with open(dict(options)["-F"]):
        *files, target = rest
    if target != f"builder@{ADDRESSES['builder']}:" or "builder" not in azure.vms:
        fail(f"no route to {target}", 255)
    for file in files:
        with open(file):
            pass
    return ""


def main() -> None:
    program, directory, *arguments = sys.argv[1:]
    state = os.path.join(directory, "azure.json")
    try:
        with open(state) as file:
            azure = Azure(**json.load(file))
    except FileNotFoundError:
        azure = Azure([], {}, [], [], [])
    azure.calls.append([program, *arguments])
    try:
        out = {"az": az, "ssh": ssh, "scp": scp}[program](azure, arguments)
    finally:
        with open(state, "w") as file:
            json.dump(azure._asdict(), file)
    if out:
        print(out)


if __name__ == "__main__":
    main()
