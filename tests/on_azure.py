#!/usr/bin/env python3
"""Run the README's guide on a real Azure subscription, and check what comes of it.

It makes an image from a Marketplace VM, and creates a VM and a scale set of two from it, which are
only then there when they have reported Ready. At the end, whatever happened, it deletes all that.
NAME=VALUE replaces a variable of the guide, such as location, size or image.
"""

import argparse
import os
import re
import secrets
import shlex
import subprocess
import sys
import time

from world import readme
from world.sandbox import REPOSITORY

PLAN = """\
In the subscription {subscription} this creates two resource groups:

- {prefix}-builder: a VM, which an image is made from;
- {prefix}-images: a snapshot, a Compute Gallery with one image, a VM, a scale set of
  two VMs, their disks, network, addresses and a load balancer.

It takes 30 to 60 minutes, and should cost less than 2 US dollars; nobody has run it yet. At the
end it deletes both groups, also after an error or Ctrl-C. If ~/.ssh has no key, one is made.
"""
CREATE, CONNECT, USE = "### 1. Create the VM", "### 2. Log in", "### 6. Create VMs"
INSTALL = ["### 3. Install", "## Install it"]
INSTALL += ["### The network", "### SSH host keys", "### Azure's SSH key"]
# Where the guide, and what is added to it here, name one of the two groups.
GROUPS = re.compile(r"(--resource-group |az group \w+ --name )(images|builder)\b")
# All runs in one Bash, as if it was pasted there; when that ends, for whatever reason, it deletes.
# The VMs live for an hour, and nothing secret is sent to them: their host keys need no check.
TOOLS = """\
set -eux
exec </dev/null
az() { command az "$@" --subscription "$SUBSCRIPTION"; }
delete() {
    status=$?
    trap '' INT TERM HUP  # also for az: what is left costs money
    set +ex
    for group in "$PREFIX-images" "$PREFIX-builder"; do
        [ "$(az group exists --name "$group")" != false ] || continue
        echo "Deleting the resource group $group"
        az group delete --yes --name "$group" && continue
        echo "NOT DELETED, AND IT COSTS MONEY:" \
            "run  az group delete --name $group --subscription $SUBSCRIPTION"
        status=1
    done
    [ "$status" = 0 ] && echo 'All is well' || echo 'It did not work'
    exit "$status"
}
trap '' PIPE  # nobody reads: that must not prevent the rest
trap 'exit 1' INT TERM HUP
trap delete EXIT
options='-oBatchMode=yes -oConnectTimeout=10 -oServerAliveInterval=15 -oLogLevel=ERROR
    -oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null'
ssh() { command ssh $options "$@"; }
scp() { command scp $options "$@"; }
address_of() { az vm show "$@" --show-details --query publicIps --output tsv; }
in_vm() {  # ADDRESS COMMAND: as soon as one can log in
    for _ in {1..60}; do
        if ssh "$user@$1" true; then break; fi
        sleep 10
    done
    ssh "$user@$1" "$2"
}
look() {  # ADDRESS NAME: the script's lines; fail unless it is called so, and its unit disabled
    in_vm "$1" 'sudo journalctl -o cat -u azure-provisioning SYSLOG_IDENTIFIER=python3'
    [ "$(in_vm "$1" 'cat /proc/sys/kernel/hostname')" = "$2" ]
    [ "$(in_vm "$1" 'systemctl is-enabled azure-provisioning || true')" = disabled ]
}
"""
LOOK_AT_BUILDER = """\
az vm restart --resource-group builder --name builder
look "$address" builder
"""
LOOK_AT_VM = """\
address=$(address_of --resource-group images --name myvm)
look "$address" myvm
az vm restart --resource-group images --name myvm
look "$address" myvm
"""


def guide(prefix: str, variables: list[str]) -> str:
    """Return a script for Bash: the README's blocks in their order, and what looks at the VMs."""

    def in_builder(*headings: str) -> str:  # what reads its standard input must not read the rest
        blocks = "".join(readme.block(one) for one in headings)
        here = f"{{\nset -eu\n{blocks}}} </dev/null\nIN_VM\n"
        return f"{{\n{readme.block(CONNECT)}}} <<'IN_VM'\n{here}"

    steps = [
        *(TOOLS, readme.block(CREATE), *variables, readme.block(CREATE, 1)),
        'in_vm "$(address_of --resource-group builder --name builder)" true\n',
        *(in_builder(*INSTALL), LOOK_AT_BUILDER, readme.block("### Keep a copy")),
        *(in_builder("### 4. Generalize"), readme.block("### 5. Capture")),
        *(readme.block(USE), LOOK_AT_VM),
        # No VMs to spare, which it would then delete.
        readme.block(USE, 1).replace("vmss create", "vmss create --disable-overprovision"),
    ]
    return GROUPS.sub(rf"\1{prefix}-\2", "".join(steps))


def assignment(text: str) -> str:
    """Return the shell's NAME=VALUE, as a line for it."""
    name, value = text.split("=", 1)
    return f"{name}={shlex.quote(value)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variables", nargs="*", metavar="NAME=VALUE", type=assignment)
    options = parser.parse_args()
    account = ["az", "account", "show", "--query", "join(' ', [name, id])", "--output", "tsv"]
    subscription = subprocess.check_output(account, text=True).strip()
    prefix = f"azure-provisioning-{int(time.time())}-{secrets.token_hex(4)}"
    print(PLAN.format(subscription=subscription, prefix=prefix))
    print("Type yes to go on:", flush=True)
    if sys.stdin.readline().strip() != "yes":
        sys.exit(2)
    os.environ["PREFIX"] = prefix
    # Another one may become the default while this runs.
    os.environ["SUBSCRIPTION"] = subscription.split()[-1]
    os.chdir(REPOSITORY)
    os.execlp("bash", "bash", "-c", guide(prefix, options.variables))


if __name__ == "__main__":
    main()
