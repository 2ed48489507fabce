"""Cut a process, and all that it starts, off from the machine's network and host name."""

import contextlib
import ctypes
import fcntl
import os
import socket
import struct

PLATFORM_ADDRESSES = ("168.63.129.16", "169.254.169.254")

CLONE_NEWUTS, CLONE_NEWUSER, CLONE_NEWNET = 0x04000000, 0x10000000, 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFADDR, IFF_UP = 0x8913, 0x8914, 0x8916, 1


def isolate() -> str:
    """Move this process into new network and UTS namespaces; return "" or why that is impossible.

    The new network has loopback and nothing else, and loopback owns the platform's addresses: what
    is meant for Azure ends here. Without root a user namespace helps, where the kernel allows it.
    """
    try:
        if os.geteuid() == 0:
            unshare(CLONE_NEWNET | CLONE_NEWUTS)
        else:
            uid, gid = os.getuid(), os.getgid()
            unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWUTS)
            write("/proc/self/setgroups", "deny")
            write("/proc/self/uid_map", f"0 {uid} 1")
            write("/proc/self/gid_map", f"0 {gid} 1")
        bring_up_loopback()
    except OSError as error:
        return f"no namespace of our own: {error}"
    return ""


def unshare(flags: int) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def bring_up_loopback() -> None:
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))
    for number, address in enumerate(PLATFORM_ADDRESSES):
        set_address(number, address)


def set_address(number: int, address: str) -> None:
    """Give loopback the address, as its alias *number*; 0.0.0.0 takes the alias away."""
    packed = struct.pack(
        "16sHH4s8x", f"lo:{number}".encode(), socket.AF_INET, 0, socket.inet_aton(address)
    )
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as control:
        fcntl.ioctl(control, SIOCSIFADDR, packed)
