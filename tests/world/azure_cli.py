"""Stands for az, ssh and scp, with a small Azure behind.

In HOME, groups/ has a directory for each resource group, "pasted" what was typed into a VM, "calls"
what was called. At a call with the pattern BROKEN it fails; if HOW is the number of a signal, all
of the terminal get that instead, as at Ctrl-C.
"""

import os
import re
import sys
from pathlib import Path

ADDRESSES = {"builder": "192.0.2.1", "myvm": "192.0.2.2"}


def az(home: Path, arguments: list[str]) -> str:
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
