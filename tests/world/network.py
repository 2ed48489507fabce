"""Cut a process, and all that it starts, off from the machine's network, host name and mounts."""

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

PLATFORM_ADDRESSES = WIRESERVER, IMDS = ("168.63.129.16", "169.254.169.254")
PLATFORM_ENDPOINTS = ((WIRESERVER, 80), (IMDS, 80))

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 1 << 26, 1 << 28, 1 << 30
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18
SIOCSIFFLAGS, SIOCSIFADDR, IFF_UP = 0x8914, 0x8916, 1

# Remedies where namespaces are refused. In a chroot "/" is often no mount point.
FOR_ROOT = "give root all its capabilities (docker run --privileged), or leave the chroot"
UBUNTU = "on Ubuntu sysctl kernel.apparmor_restrict_unprivileged_userns=0"
FOR_OTHERS = f"run as root, or allow user namespaces ({UBUNTU})"


def isolate() -> str:
    """Move this process into namespaces of its own; or change nothing, and return why and a remedy.

    The new network has loopback and nothing else, and loopback owns the platform's addresses: what
    is meant for Azure ends here. What is mounted goes away with the last process. Without root a
    user namespace helps, where the kernel allows it. OUTER_NETWORK in the environment is then the
    network that was left, for what must download something.
    """
    is_root = os.geteuid() == 0
    child = os.fork()
    if child == 0:  # it finds out: where a step fails, those before it are done
        status = 0
        try:
            enter_namespaces(is_root)
        except OSError as error:
            status = error.errno or errno.EPERM
        finally:
            os._exit(status)
    number = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if number != 0:
        return f"not isolated ({os.strerror(number)}): {FOR_ROOT if is_root else FOR_OTHERS}"
    enter_namespaces(is_root)
    return ""


def enter_namespaces(is_root: bool) -> None:
    uid, gid, namespaces = os.getuid(), os.getgid(), CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS
    outer_network = os.open("/proc/self/ns/net", os.O_RDONLY)
    os.environ["OUTER_NETWORK"] = f"/proc/{os.getpid()}/fd/{outer_network}"
    call("unshare", namespaces if is_root else CLONE_NEWUSER | namespaces)
    if not is_root:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    bring_up_loopback()


@contextlib.contextmanager
def new_network() -> Iterator[None]:
    """Move this thread, and what it starts, into one more network like isolate()'s, for a while.

    Sockets, threads and processes that are made in it stay there.
    """
    with open("/proc/thread-self/ns/net") as home:
        call("unshare", CLONE_NEWNET)
        try:
            bring_up_loopback()
            yield
        finally:
            call("setns", home.fileno(), CLONE_NEWNET)


def call(function: str, *arguments: object) -> None:
    """Call a function of libc for which os has none before Python 3.12; raise OSError."""
    if getattr(ctypes.CDLL(None, use_errno=True), function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    for number, address in enumerate(PLATFORM_ADDRESSES):
        set_address(number, address)


def set_address(number: int, address: str) -> None:
    """Give loopback the address, as its alias *number*; 0.0.0.0 takes the alias away."""
    packed = socket.inet_aton(address)
    request = struct.pack("16sHH4s8x", b"lo:%d" % number, socket.AF_INET, 0, packed)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFADDR, request)
