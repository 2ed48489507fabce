#!/usr/bin/env python3
"""Show a first boot, the real script against a simulated Azure host; no root, no changes."""

import os
import subprocess
import sys
import tempfile

from world import sandbox
from world.host import SimulatedHost, Vm, print_request


def main() -> int:
    vm = Vm("web_11", "web000011", instance_id="55555555-6666-7777-8888-999999999999._web_11")
    with tempfile.TemporaryDirectory() as directory, SimulatedHost(vm) as host:
        machine = os.path.join(directory, "machine")
        sandbox.create(machine)
        kernel, _ = sandbox.names(machine)
        called = f"{vm.name} with the computer name {vm.computer_name}"
        print(f"A simulated Azure host has a VM {called}.")
        print(f"On a simulated machine that is still called {kernel}, the script prints:\n")
        sys.stdout.flush()
        status = subprocess.call([sys.executable, sandbox.__file__, machine, *host.options()])
        print(f"\nand exits with status {status}. The platform received:\n")
        for request in host.requests:
            print_request(request)
        print(f"\nHealth reports accepted: {len(host.accepted)}")
        kernel, stored = sandbox.names(machine)
        print(f"Simulated machine: the kernel's host name is {kernel}, /etc/hostname has {stored}")
        return status


if __name__ == "__main__":
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # piped to "head", which has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still buffered
        status = 1
    sys.exit(status)
