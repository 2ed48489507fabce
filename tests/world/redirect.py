"""Send connections elsewhere, as Azure's GuestProxyAgent does: with eBPF, on a control group."""

import ctypes
import os
import platform
import socket
import struct
import sys
from pathlib import Path

SYS_BPF = {"x86_64": 321, "aarch64": 280}
PROG_LOAD, PROG_ATTACH = 5, 8
CGROUP_SOCK_ADDR, CGROUP_INET4_CONNECT, ALLOW_MULTI = 18, 10, 2
# Of instructions: 32 bits wide each but for the last two.
LOAD, STORE, MOVE, SKIP_UNLESS_EQUAL, MOVE_64, EXIT = 0x61, 0x63, 0xB4, 0x56, 0xB7, 0x95
CONTEXT, VALUE, RESULT = 1, 2, 0  # registers: a struct bpf_sock_addr, what is moved, 1 to connect
IP4, PORT = 4, 24  # in the context, in network order


def redirect(group: Path, targets: dict[str, tuple[str, int]]) -> None:
    """Have what connects from the control group to an address of *targets* reach its target."""
    program = instruction(LOAD, VALUE, CONTEXT, IP4)
    for address, (host, port) in targets.items():
        program += instruction(SKIP_UNLESS_EQUAL, VALUE, offset=4, number=ip4(address))
        program += instruction(MOVE, VALUE, number=ip4(host))
        program += instruction(STORE, CONTEXT, VALUE, IP4)
        program += instruction(MOVE, VALUE, number=socket.htons(port))
        program += instruction(STORE, CONTEXT, VALUE, PORT)
    program += instruction(MOVE_64, RESULT, number=1) + instruction(EXIT)
    code, licence = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b"MIT")
    pointers = (ctypes.addressof(code), ctypes.addressof(licence))
    load = struct.pack(
        "IIQQ44xI", CGROUP_SOCK_ADDR, len(program) // 8, *pointers, CGROUP_INET4_CONNECT
    )
    loaded, target = bpf(PROG_LOAD, load), os.open(group, os.O_RDONLY)
    bpf(PROG_ATTACH, struct.pack("IIII", target, loaded, CGROUP_INET4_CONNECT, ALLOW_MULTI))
    os.close(target)
    os.close(loaded)  # the group keeps it


def instruction(code: int, to: int = 0, source: int = 0, offset: int = 0, number: int = 0) -> bytes:
    return struct.pack("BBhi", code, source << 4 | to, offset, number)


def ip4(address: str) -> int:
    """Return the address as the number that its four bytes are in this machine's memory."""
    return int.from_bytes(socket.inet_aton(address), sys.byteorder, signed=True)


def bpf(command: int, attributes: bytes) -> int:
    """Make the system call; return the file descriptor, or 0; raise OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = SYS_BPF[platform.machine()]
    result = int(libc.syscall(number, command, attributes, len(attributes)))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf: {os.strerror(ctypes.get_errno())}")
    return result
