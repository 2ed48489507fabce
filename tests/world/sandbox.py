"""Run the real script on a machine of its own, without root: sandbox.py DIR [OPTION]...

DIR, which is made if need be, stands for the machine: DIR/etc/hostname is the stored host name,
DIR/kernel the kernel's. The script is imported and its main() called, with just those places
replaced, and with a guard that ends it if it would connect anywhere but to loopback. Runs on every
Python that the script runs on.
"""

import os
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SCRIPT = os.path.join(REPOSITORY, "azure_provisioning.py")


def create(directory: str) -> None:
    """Make *directory*, new or empty, a machine with the host name old-name."""
    os.makedirs(os.path.join(directory, "etc"))
    write(os.path.join(directory, "etc", "hostname"), "old-name\n")
    write(os.path.join(directory, "kernel"), "old-name")


def names(directory: str) -> "list[str]":
    """Return the machine's two host names: the kernel's and the stored one, "" if there is none."""
    try:
        stored = read(os.path.join(directory, "etc", "hostname")).strip()
    except OSError:
        stored = ""
    return [read(os.path.join(directory, "kernel")), stored]


def write(path: str, text: str) -> None:
    """At once, as the kernel does: another run may read."""
    with open(f"{path}.{os.getpid()}", "w") as file:
        file.write(text)
    os.rename(file.name, path)


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def take_over(directory: str, replace: "Callable[[Any, str, object], None]" = setattr) -> None:
    """Have *directory* be the machine for azure_provisioning; *replace* does it, and may undo it.

    And end the process if it would connect to anything but loopback.
    """
    import azure_provisioning  # not for those who only create a machine

    kernel = os.path.join(directory, "kernel")
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: "tuple[str, int]") -> None:
        if not (address[0].startswith("127.") or address[0] == "::1"):
            sys.exit(f"sandbox: refused to connect to {address[0]}")
        connect(self, address)

    replace(socket.socket, "connect", guarded)
    replace(socket, "gethostname", lambda: read(kernel))
    replace(socket, "sethostname", lambda name: write(kernel, name))
    replace(azure_provisioning, "ETC_HOSTNAME", os.path.join(directory, "etc", "hostname"))


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: sandbox.py DIR [OPTION]..., with the options of azure_provisioning.py")
    directory = os.path.abspath(sys.argv.pop(1))
    if not os.path.exists(os.path.join(directory, "kernel")):
        create(directory)
    sys.path.insert(0, REPOSITORY)
    import azure_provisioning

    take_over(directory)
    return azure_provisioning.main()


if __name__ == "__main__":
    sys.exit(main())
