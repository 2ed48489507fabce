#!/usr/bin/env python3
"""Show a first boot, the real script against a simulated Azure host; no root, no changes."""

import os
import subprocess
import sys
import tempfile

import sandbox
from simulated_host import SimulatedHost, Vm


def main() -> int:
    vm = Vm(name="web_11", computer_name="web000011")
    with tempfile.TemporaryDirectory() as directory, SimulatedHost(vm) as host:
        machine = os.path.join(directory, "machine")
        sandbox.create(machine)
        urls = [f"--{service}={host.url(service)}" for service in ("wireserver", "imds")]
        command = [sys.executable, os.path.join("tests", "sandbox.py"), machine, *urls]
        print("The script, on a VM named localhost, prints:\n", flush=True)
        status = subprocess.call(command, cwd=sandbox.REPOSITORY)
        print(f"\nand exits with status {status}. The platform received:\n")
        for request in host.requests:
            print(f"{request.service}: {request.method} {request.target} -> {request.answer}")
            for line in request.body.decode().splitlines():
                print("    " + line)
        print(f"\nHealth reports accepted: {len(host.accepted)}")
        print("Host name of the kernel:", sandbox.read(os.path.join(machine, "kernel")))
        stored = sandbox.read(os.path.join(machine, "etc", "hostname")).strip()
        print("Host name in /etc/hostname:", stored)
        return status or len(host.accepted) != 1 or stored != vm.computer_name


if __name__ == "__main__":
    sys.exit(main())
