"""Stands for az, ssh and scp: as strict about options as the real az, with a small Azure behind.

In HOME, groups/ has a directory for each resource group, "pasted" what was typed into a VM, "calls"
what was called. At a call with the pattern BROKEN it fails; if HOW is the number of a signal, all
of the terminal get that instead, as at Ctrl-C.
"""

import os
import re
import sys
from pathlib import Path

# What the README and on_azure.py use, as the help of Azure CLI 2.91 has it: extend it from there.
# After the slash is what may be missing.
COMMANDS = """\
account show /
group create --location --name /
group delete --name / --yes
group exists --name /
sig create --gallery-name --resource-group /
sig image-definition create --gallery-image-definition --gallery-name --offer --os-type --publisher\
 --resource-group --sku / --architecture --features --hyper-v-generation --os-state
sig image-definition show --gallery-image-definition --gallery-name --resource-group /
sig image-version create --gallery-image-definition --gallery-image-version --gallery-name\
 --resource-group / --virtual-machine
snapshot create --name --resource-group / --source
vm create --name --resource-group / --admin-username --enable-agent --generate-ssh-keys --image\
 --security-type --size
vm deallocate --name --resource-group /
vm generalize --name --resource-group /
vm restart --name --resource-group /
vm show --name --resource-group / --show-details
vmss create --name --resource-group / --admin-username --disable-overprovision --enable-agent\
 --generate-ssh-keys --image --instance-count --orchestration-mode --security-type --vm-sku
"""
GLOBAL = {"--output", "--query", "--subscription"}
ADDRESSES = {"builder": "192.0.2.1", "myvm": "192.0.2.2"}


def check_az(arguments: list[str]) -> None:
    """End as az would where an option is not known, or missing."""
    given = {one for one in arguments if one.startswith("--")}
    for usage in COMMANDS.splitlines():
        command, _, optional = usage.partition(" /")
        words = [one for one in command.split() if not one.startswith("--")]
        if arguments[: len(words)] == words:
            needed = set(command.split()) - set(words)
            if needed <= given <= needed | set(optional.split()) | GLOBAL:
                return
    sys.exit(f"az: no such command, or not these options: {arguments}")


def az(home: Path, arguments: list[str]) -> str:
    check_az(arguments)
    values = dict(zip(arguments, arguments[1:]))  # of options
    name, group = values.get("--name", ""), home / "groups" / values.get("--resource-group", "")
    if arguments[:2] == ["group", "exists"]:
        return str((group / name).exists()).lower()
    if arguments[0] == "group":
        (Path.mkdir if arguments[1] == "create" else Path.rmdir)(group / name)
    elif not group.exists():
        sys.exit("(ResourceGroupNotFound)")
    if arguments[0] == "account":
        return "My subscription 00000000-aaaa"
    return ADDRESSES.get(name, "") if values.get("--query") == "publicIps" else f"/id/{name}"


def ssh(home: Path, arguments: list[str]) -> str:
    *_, destination, command = arguments
    if command.startswith("cd "):
        with open(home / "pasted", "a") as pasted:
            pasted.write(sys.stdin.read())
    if "hostname" in command:
        return {f"builder@{address}": name for name, address in ADDRESSES.items()}[destination]
    return "disabled" if "is-enabled" in command else ""


def main() -> None:
    home, (program, *arguments) = Path(os.environ["HOME"]), sys.argv[1:]
    call = " ".join(sys.argv[1:])
    with open(home / "calls", "a") as calls:
        print(call, file=calls)
    if re.search(os.environ["BROKEN"] or "$^", call):
        if not os.environ["HOW"]:
            sys.exit("(OSProvisioningTimedOut)")
        os.killpg(0, int(os.environ["HOW"]))
    found = {"az": az, "ssh": ssh, "scp": lambda *_: ""}[program](home, arguments)
    print(found, end="\n" if found else "")


if __name__ == "__main__":
    main()
