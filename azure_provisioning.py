#!/usr/bin/python3
# SPDX-License-Identifier: MIT
# Copyright 2026 the azure-provisioning contributors
"""Bring an Azure VM up without an agent: report it Ready, then set its host name."""

# It speaks HTTP itself: Debian's python3-minimal has no http.client, and to import that takes
# longer than all else until Ready. What is needed only later, or by hand, is imported there.
import io
import os
import pyexpat
import socket
import sys
import time

__version__ = "1.2.0"
USAGE = """\
Usage: azure_provisioning.py [OPTION]...

Report Ready to Azure's WireServer, then set the host name that the Instance
Metadata Service (IMDS) gives. What goes wrong with either is tried again every
second until a deadline: 20 minutes for WireServer, 5 for IMDS. Needs root.

  --dry-run          only fetch; print the report and the name, change nothing
  --timeout SECONDS  replace both deadlines (more than 0, at most 86400)
  --wireserver URL   instead of http://168.63.129.16; http://HOST[:PORT]
  --imds URL         instead of http://169.254.169.254; http://HOST[:PORT]
  --version, --help  print the version, print this

Exit status:
  0    Ready was accepted and the host name is set (--dry-run: both are known)
  1    Ready was not accepted before the deadline
  2    wrong usage; nothing was done
  3    Ready was accepted, the host name is not set
  130  interrupted
"""
DEFAULTS = {"--wireserver": "http://168.63.129.16", "--imds": "http://169.254.169.254"}
WIRESERVER_HEADERS = "x-ms-version: 2012-11-30\r\nx-ms-agent-name: azure-provisioning\r\n"
GOAL_STATE = ["GoalState/Incarnation", "Container/ContainerId", "RoleInstance/InstanceId"]
HEALTH_REPORT = """<Health><GoalStateIncarnation>{Incarnation}</GoalStateIncarnation><Container>
<ContainerId>{ContainerId}</ContainerId><RoleInstanceList><Role><InstanceId>{InstanceId}</InstanceId>
<Health><State>Ready</State></Health></Role></RoleInstanceList></Container></Health>
"""
# By step. 2020-07-15 is the first version with computerName; Azure Stack Hub knows 2017-12-01.
IMDS_LEAVES = {
    "Computer name": "/instance/compute/osProfile/computerName?api-version=2020-07-15&format=text",
    "VM name": "/instance/compute/name?api-version=2017-12-01&format=text",
}
IMDS_MARK = 0x7FFF0815  # of systemd's own client, to which 261 and newer can keep IMDS
ETC_HOSTNAME, KERNEL_HOSTNAME = "/etc/hostname", "/proc/sys/kernel/hostname"
WIRESERVER_SECONDS = 1200  # then the platform reboots the VM, and the next boot tries again
IMDS_SECONDS = 300  # as cloud-init's
PATIENCE_SECONDS = 60  # with an IMDS that knows no computer name: it may know it soon
STEP_SECONDS = 30  # one request and its whole answer
CONNECT_SECONDS = 5  # the peer is one hop away; where packets vanish, each attempt sends new ones
RETRY_SECONDS = 1
ANSWER_MAX = 256 << 10  # bytes, with all that HTTP wraps a body in
said: "dict[str, float]" = {}  # lines of attempts, and when each was last said


class GaveUp(Exception):
    """A step failed, and will not be tried again in this boot; that was said."""


class Absent(Exception):
    """The host answers that it has no such thing, or does not know what that is."""


def main() -> int:
    """Do as the command line says; return the exit status, which USAGE explains."""
    status = 2
    try:
        options = parse_arguments(sys.argv[1:]) if sys.argv[1:] else DEFAULTS
        timeout, dry_run = float(options.get("--timeout", 0)), "--dry-run" in options
        status = 1
        report_ready(options["--wireserver"], timeout or WIRESERVER_SECONDS, dry_run)
        status = 3
        name, host_name = find_name(options["--imds"], timeout or IMDS_SECONDS)
        if not dry_run:
            set_host_name(host_name)
        line = f"Would set the host name {host_name}" if dry_run else f"Host name {host_name} set"
        say(line, "" if host_name == name else f"; IMDS has {name!a}")
        status = 0
    except GaveUp:
        pass  # and that was said
    except KeyboardInterrupt:
        say("Interrupted", error=True)
        status = 130
    except Exception as error:  # of the command line: what else goes wrong is tried again or said
        say(f"azure_provisioning.py: {error} (try --help)", error=True)
    return status


def report_ready(wireserver: str, seconds: float, dry_run: bool) -> None:
    """Report Ready until the platform accepts it; raise GaveUp after so many *seconds*."""
    deadline = time.monotonic() + seconds
    while True:
        step = "Goal state"  # fetched anew for each report: a stale one is refused
        try:
            say_once(f"Fetching the goal state from {wireserver}")
            body, _ = get(wireserver + "/machine?comp=goalstate", WIRESERVER_HEADERS, deadline)
            goal_state = parse_goal_state(body)
            values = "incarnation {Incarnation}, container {ContainerId}, instance {InstanceId}"
            say_once("Goal state: " + values.format(**goal_state))
            report = build_health_report(goal_state)
            if dry_run:
                for line in ["Would report Ready:", *report.decode().splitlines()]:
                    say(line)
                return
            step = "Health report"
            say_once("Reporting Ready")
            headers = WIRESERVER_HEADERS + "Content-Type: text/xml;charset=utf-8\r\n"
            status = post(wireserver + "/machine?comp=health", headers, report, deadline)
            say(f"Ready accepted: {status}")
            return
        except Exception as error:  # whatever it was, the next attempt may put it right
            pause(step, error, deadline)


def parse_goal_state(body: bytes) -> "dict[str, str]":
    """Return GOAL_STATE's values by element: the first, anywhere, as waagent; raise ValueError."""
    tags: list[str] = []  # of the open elements
    pieces: list[str] = []  # of the text since the last tag
    texts: dict[str, str] = {}  # by PARENT/ELEMENT

    def start(tag: str, _: "dict[str, str]") -> None:
        tags.append(tag.rpartition(":")[2])
        pieces.clear()

    def end(_: str) -> None:
        texts.setdefault("/".join(tags[-2:]), "".join(pieces).strip())
        tags.pop()
        pieces.clear()

    parser = pyexpat.ParserCreate("utf-8")
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = pieces.append
    try:
        parser.Parse(body, True)
        for kind in GOAL_STATE:
            if not texts.get(kind):
                raise ValueError(f"it has no {kind}")
    except (pyexpat.ExpatError, ValueError) as error:
        raise ValueError(f"{error}; it begins with {body[:80]!a}") from error
    return {kind.partition("/")[2]: texts[kind] for kind in GOAL_STATE}


def build_health_report(goal_state: "dict[str, str]") -> bytes:
    """Return the XML, in ASCII, that reports the VM of *goal_state* Ready."""
    escapes = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"}
    values = {name: value.translate(escapes) for name, value in goal_state.items()}
    return HEALTH_REPORT.format(**values).encode("ascii", "xmlcharrefreplace")


def find_name(imds: str, seconds: float) -> "tuple[str, str]":
    """Return the name in IMDS and the host name made of it; raise GaveUp after *seconds*."""
    none_since = time.monotonic()  # since then IMDS has said only that it has no computer name
    deadline, patience = none_since + seconds, min(PATIENCE_SECONDS, seconds / 2)
    step = "Computer name"
    while True:
        try:
            say_once(f"Fetching the name from {imds}")
            return make_host_name(ask_imds(imds, IMDS_LEAVES[step], deadline))
        except Absent as error:  # an outage may begin or end with such an answer, too
            if step == "Computer name" and time.monotonic() - none_since >= patience:
                say_once(f"{step} failed: {error}; asking for the VM's name")
                step = "VM name"
                continue  # at once, and only once: the next attempt asks for the computer name
            pause(step, error, deadline)
        except Exception as error:  # whatever it was, as in report_ready()
            pause(step, error, deadline)
            none_since = time.monotonic()
        step = "Computer name"


def ask_imds(imds: str, leaf: str, deadline: float) -> bytes:
    """Return what a *leaf* of IMDS says; raise Absent if there is none, or whatever went wrong."""
    body, is_whole = get(imds + "/metadata" + leaf, "Metadata: true\r\n", deadline)
    if not is_whole:
        raise ValueError("the answer does not say where it ends, and may be cut short")
    return body


def make_host_name(body: bytes) -> "tuple[str, str]":
    """Return the name that IMDS has, and a host name made of it; raise Absent or ValueError."""
    import re  # not needed before Ready

    name = body.decode("utf-8", "replace").strip("\ufeff \t\r\n")
    if not name:
        raise Absent("the answer is empty")
    if not re.match(r'[^\s\0-\x1f\x7f-\x9f\ufffd<>{":]{1,255}\Z', name):  # as an error page has
        raise ValueError(f"the answer is no name: {name[:80]!a}")
    # A hyphen for what no host name may have: without it web1_1 and web_11 would become one.
    labels = (re.sub("[^A-Za-z0-9-]+", "-", label).strip("-") for label in name.split("."))
    host_name = ".".join(filter(None, labels))[:64].rstrip("-.")
    if not host_name:
        raise ValueError(f"no host name can be made of {name!a}")
    return name, host_name


def set_host_name(name: str) -> None:
    """Make *name* the stored host name, on disk, and then, in any case, the kernel's; or GaveUp."""
    failures = []
    for change, file in ((store_host_name, ETC_HOSTNAME), (socket.sethostname, KERNEL_HOSTNAME)):
        try:
            change(name)
        except OSError as error:
            error.filename = file  # not every error names it
            failures.append(error)
    if not failures and socket.gethostname() != name:  # until it was stored, others might set one
        failures.append(OSError(f"it is {socket.gethostname()!a} again"))
    if failures:
        pause("Host name", failures[0], deadline=0)  # long past: another attempt would fail, too


def store_host_name(name: str) -> None:
    """Write *name* to /etc/hostname, in place, whatever link or mount that is; raise OSError."""
    os.umask(0o022)  # a new file is for all to read
    with open(os.open(ETC_HOSTNAME, os.O_WRONLY | os.O_CREAT, 0o644), "wb") as file:
        file.write(name.encode() + b"\n")
        file.flush()
        file.truncate()  # only now: on a full disk the old name is better than none
        os.fsync(file.fileno())  # else a power cut may undo this, but not the disabled unit
    if os.path.realpath(ETC_HOSTNAME).startswith("/run/"):
        raise OSError(2, "It is in /run, and gone at the next boot")


def get(url: str, headers: str, deadline: float) -> "tuple[bytes, bool]":
    """GET *url*; return what read_answer() does; raise what went wrong."""
    with socket.socket() as connection:
        return read_answer(send(connection, "GET", url, headers, b"", deadline))


def post(url: str, headers: str, body: bytes, deadline: float) -> str:
    """POST *body* to *url*; return the status that accepts it, or raise what went wrong."""
    headers += f"Content-Length: {len(body)}\r\n"
    with socket.socket() as connection:
        return read_head(send(connection, "POST", url, headers, body, deadline))[0]


def send(
    connection: socket.socket, method: str, url: str, headers: str, body: bytes, deadline: float
) -> io.BufferedReader:
    """Send a request; return the stream of its answer, with what is left of a step's time."""
    _, _, peer, path = url.split("/", 3)
    host, _, port = peer.partition(":")
    head = f"{method} /{path} HTTP/1.1\r\nHost: {peer}\r\nConnection: close\r\n{headers}\r\n"
    now = time.monotonic()
    seconds = min(max(deadline - now, 1), STEP_SECONDS)  # the last attempt starts at the deadline
    connection.settimeout(min(seconds, CONNECT_SECONDS))
    try:
        connection.connect((host, int(port or "80")))
    except PermissionError:  # not always set: an image may route by marks
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, IMDS_MARK)
        connection.connect((host, int(port or "80")))
    connection.sendall(head.encode("ascii") + body)
    return io.BufferedReader(Answer(connection, now + seconds))


class Answer(io.RawIOBase):
    """What a peer sends; socket.timeout after *end* (monotonic), ValueError after 256 KiB."""

    def __init__(self, connection: socket.socket, end: float) -> None:
        self.connection, self.end, self.left = connection, end, ANSWER_MAX

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            raise socket.timeout("timed out")
        self.connection.settimeout(seconds)
        size = self.connection.recv_into(buffer)
        self.left -= size
        if self.left < 0:
            raise ValueError("the answer is longer than 256 KiB")
        return size


def read_head(answer: io.BufferedIOBase) -> "tuple[str, set[bytes], set[bytes]]":
    """Return status, lengths, codings, each as told; raise Absent or ValueError if it is no 2xx."""
    while True:
        line = read_line(answer)
        version, _, status = line.partition(b" ")
        code = status.partition(b" ")[0]
        if version not in (b"HTTP/1.0", b"HTTP/1.1") or len(code) != 3 or not code.isdigit():
            raise ValueError(f"the answer is no HTTP: {line[:80]!a}")
        headers: dict[bytes, set[bytes]] = {b"content-length": set(), b"transfer-encoding": set()}
        for header in iter(lambda: read_line(answer), b""):
            name, _, value = header.lower().partition(b":")
            if name in headers:
                headers[name].add(value.strip())
        text = status.decode("latin-1").rstrip()
        if code.startswith(b"2"):
            return text, headers[b"content-length"], headers[b"transfer-encoding"]
        if code != b"100":  # "Continue": the answer itself comes next
            raise (Absent if code in (b"400", b"404") else ValueError)(f"the answer is {text}")


def read_answer(answer: io.BufferedIOBase) -> "tuple[bytes, bool]":
    """Return the body, and whether the answer says where that ends; raise Absent or ValueError."""
    _, lengths, codings = read_head(answer)
    if codings == {b"chunked"} and not lengths:
        return read_chunks(answer), True
    if not codings and not lengths:
        return answer.read(), False
    length = b",".join(lengths)  # several are no number
    if codings or not length.isdigit():
        raise ValueError("it is not clear where the answer ends")
    return read_exactly(answer, int(length)), True


def read_chunks(answer: io.BufferedIOBase) -> bytes:
    """Return the body that comes in chunks (RFC 9112, 7.1); raise ValueError."""
    chunks, size = [], 1
    while size:
        line = read_line(answer)
        digits = line.partition(b";")[0].rstrip()
        if not digits or digits.strip(b"0123456789ABCDEFabcdef"):
            raise ValueError(f"the answer has a malformed chunk size: {line[:80]!a}")
        size = int(digits, 16)
        chunks.append(read_exactly(answer, size))
        if size and read_exactly(answer, 2) != b"\r\n":
            raise ValueError("the answer has a chunk that does not end where it says")
    while read_line(answer):
        pass  # trailers
    return b"".join(chunks)


def read_line(answer: io.BufferedIOBase) -> bytes:
    """Return the next line, without its end; raise ValueError if the answer ends before that."""
    line = answer.readline()
    if not line.endswith(b"\n"):
        raise ValueError(f"the answer is cut short: {line[:80]!a}")
    return line.rstrip(b"\r\n")


def read_exactly(answer: io.BufferedIOBase, size: int) -> bytes:
    """Return the next *size* bytes; raise ValueError if there are fewer, as beyond 256 KiB."""
    data = answer.read(min(size, ANSWER_MAX))
    if len(data) < size:
        raise ValueError(f"the answer is cut short: {data[:80]!a}")
    return data


def pause(step: str, error: Exception, deadline: float) -> None:
    """Say that a *step* failed; wait for the next attempt, or raise GaveUp after the *deadline*."""
    line, left = f"{step} failed: {str(error) or repr(error)}", deadline - time.monotonic()
    if isinstance(error, (PermissionError, socket.timeout)) and os.geteuid():
        line += " (you are not root: try again as root)"  # some images let only root connect
    if left <= 0:
        say(line, "; giving up", error=True)
        raise GaveUp(line)
    say_once(line, f"; trying again for {int(left) + 1} s", error=True)
    time.sleep(min(left, RETRY_SECONDS))


def say_once(line: str, remark: str = "", error: bool = False) -> None:
    """Say a line of an attempt, unless the same, but for its *remark*, was said within a minute."""
    now = time.monotonic()
    if line not in said or now - said[line] >= 60:
        said[line] = now
        say(line, remark, error)


def say(line: str, remark: str = "", error: bool = False) -> None:
    """Print a line at once: what a peer sent must neither break it nor steer a terminal."""
    printable = "".join(c if " " <= c <= "~" else "?" for c in line[: 400 - len(remark)] + remark)
    try:
        os.write((sys.stderr if error else sys.stdout).fileno(), printable.encode() + b"\n")
    except (AttributeError, OSError):
        pass  # it is closed, or nobody reads (a closed pipe, a full disk): go on


def parse_arguments(arguments: "list[str]") -> "dict[str, str]":
    """Return the options, as getopt names them; raise ValueError or GetoptError for wrong usage."""
    import getopt  # neither is needed in the unit
    import re

    names = ["dry-run", "timeout=", "wireserver=", "imds=", "version", "help"]
    pairs, rest = getopt.getopt(arguments, "h", names)
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!a}")
    for option, text in pairs:
        seconds = re.match(r"[0-9]+(\.[0-9]+)?\Z", text)
        url = re.match(r"http://[A-Za-z0-9_.-]+(?::([0-9]{1,5}))?/?\Z", text)
        if option == "--timeout" and not (seconds and 0 < float(text) <= 86400):
            raise ValueError(f"{option} takes more than 0, at most 86400 seconds, not {text!a}")
        if option in DEFAULTS and not (url and 0 < int(url.group(1) or "80") < 65536):
            raise ValueError(f"{option} takes http://HOST[:PORT], not {text!a}")
        if option in ("-h", "--help", "--version"):
            for line in [__version__] if option == "--version" else USAGE.splitlines():
                say(line)
            sys.exit(0)
    return {**DEFAULTS, **{option: text.rstrip("/") for option, text in pairs}}


if __name__ == "__main__":
    os._exit(main())  # all is printed; Python's own way out takes as long as setting the name
