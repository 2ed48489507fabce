#!/usr/bin/python3
# SPDX-License-Identifier: MIT
# Copyright 2026 the azure-provisioning contributors
__doc__ = """\
Usage: azure_provisioning.py [OPTION]...

Report Ready to Azure's WireServer, then set the host name that the Instance
Metadata Service (IMDS) gives. Whatever goes wrong is tried again every second
until a deadline: 20 minutes for WireServer, 5 for IMDS. Needs root.

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
"""  # assigned: -OO would leave out a docstring
__version__ = "1.1.0"

# It speaks HTTP itself: Debian's python3-minimal has no http.client, and to import that takes
# longer than all else until Ready. What is needed only later, or by hand, is imported there.
import io
import os
import pyexpat
import socket
import sys
import time

GOAL_STATE_VALUES = ["GoalState/Incarnation", "Container/ContainerId", "RoleInstance/InstanceId"]
HEALTH_REPORT = """<Health><GoalStateIncarnation>{}</GoalStateIncarnation><Container>
<ContainerId>{}</ContainerId><RoleInstanceList><Role><InstanceId>{}</InstanceId>
<Health><State>Ready</State></Health></Role></RoleInstanceList></Container></Health>
"""
WIRESERVER_HEADERS = "x-ms-version: 2012-11-30\r\nx-ms-agent-name: azure-provisioning\r\n"
HEALTH_HEADERS = WIRESERVER_HEADERS + "Content-Type: text/xml;charset=utf-8\r\n"
# In the first api-version that has it, and in the one that the oldest hosts know.
COMPUTER_NAME = "/instance/compute/osProfile/computerName?api-version=2020-07-15&format=text"
VM_NAME = "/instance/compute/name?api-version=2019-06-01&format=text"
SYSTEMD_IMDS = "/usr/lib/systemd/systemd-imds"
ETC_HOSTNAME = "/etc/hostname"
WIRESERVER_SECONDS = 1200  # then the platform reboots the VM; after 20 minutes more it gives up
IMDS_SECONDS = 300  # as cloud-init's
PATIENCE_SECONDS = 60  # with an IMDS that knows no computer name: it may know it soon
STEP_SECONDS = 30  # one request and its whole answer, or one run of a program
CONNECT_SECONDS = 5  # the peer is one hop away; where packets vanish, each attempt sends new ones
RETRY_SECONDS = 1
ANSWER_MAX = 256 << 10  # bytes, with all that HTTP wraps a body in
DEFAULTS = {"--wireserver": "http://168.63.129.16", "--imds": "http://169.254.169.254"}
told: "dict[str, float]" = {}  # lines of attempts, and when each was last said


class Absent(Exception):
    """The host answers that it has no such thing, or does not know what that is."""


def parse_goal_state(body: bytes) -> "list[str]":
    """Return incarnation, container ID and instance ID, of each the first; raise ValueError."""
    tags: list[str] = []  # of the open elements
    pieces: list[str] = []  # of the text since an element ended
    texts: dict[str, str] = {}  # by PARENT/TAG, wherever that is, as cloud-init and waagent look

    def end(_: str) -> None:
        texts.setdefault("/".join(tags[-2:]), "".join(pieces).strip())
        tags.pop()
        pieces.clear()

    parser = pyexpat.ParserCreate("utf-8")
    parser.StartElementHandler = lambda tag, _: tags.append(tag.rpartition(":")[2])
    parser.EndElementHandler = end
    parser.CharacterDataHandler = pieces.append
    try:
        if b"<!DOCTYPE" in body:  # it could declare entities
            raise ValueError("it has a document type declaration")
        parser.Parse(body, True)
        for kind in GOAL_STATE_VALUES:
            if not texts.get(kind):
                raise ValueError(f"it has no {kind}")
    except (pyexpat.ExpatError, ValueError) as error:
        raise ValueError(f"{error}; it begins with {body[:80]!a}") from error
    return [texts[kind] for kind in GOAL_STATE_VALUES]


def build_health_report(goal_state: "list[str]") -> bytes:
    """Return the XML, in ASCII, that reports the VM of *goal_state* Ready."""
    marked = (v.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for v in goal_state)
    return HEALTH_REPORT.format(*marked).encode("ascii", "xmlcharrefreplace")


def parse_answer(data: bytes, ended: bool, to_report: bool) -> "tuple[str, bytes, bool]":
    """Return status, body, if its end was told (RFC 9112); raise EOFError, Absent or ValueError."""
    head, empty_line, rest = data.partition(b"\r\n\r\n")
    if not empty_line:
        raise EOFError  # more is to come
    status_line, *headers = lines = head.split(b"\r\n")
    version, code, *_ = [*status_line.split(b" "), b""]
    if version not in (b"HTTP/1.0", b"HTTP/1.1") or len(code) != 3 or not code.isdigit():
        raise ValueError(f"the answer is no HTTP: {status_line[:80]!a}")
    if code == b"100":  # "Continue": the answer itself comes next
        return parse_answer(rest, ended, to_report)
    status = status_line[9:].decode("latin-1").rstrip()
    if not code.startswith(b"2"):
        raise (Absent if code in (b"400", b"404") else ValueError)(f"the answer is {status}")
    if to_report or code == b"204":  # of an answer to a report only the status counts
        return status, b"", True
    # The headers that say where the body ends, or that are none and may hide one.
    framing = set() if lines == head.splitlines() else {b"a line that ends otherwise"}
    for name, colon, value in (line.lower().partition(b":") for line in headers):
        if name in (b"content-length", b"transfer-encoding") or name.split() != [name] or not colon:
            framing.add(name + colon + value.strip())
    if not framing and not ended:
        raise EOFError
    return status, cut_body(rest, framing) if framing else rest, bool(framing)


def cut_body(rest: bytes, framing: "set[bytes]") -> bytes:
    """Return the body that *rest*, what follows a head, begins with; raise EOFError, ValueError."""
    if framing == {b"transfer-encoding:chunked"}:
        return join_chunks(rest)
    name, _, length = b",".join(framing).partition(b":")  # several are no number
    if name != b"content-length" or not length.isdigit():
        raise ValueError("it is not clear where the answer ends")
    if len(rest) < int(length):
        raise EOFError
    return rest[: int(length)]


def join_chunks(data: bytes) -> bytes:
    """Return the body that *data* has in chunks (RFC 9112, 7.1); raise EOFError, ValueError."""
    stream, body, size = io.BytesIO(data), b"", 1
    while size:
        line = stream.readline()
        if not line.endswith(b"\r\n"):
            raise EOFError
        digits = line.partition(b";")[0].rstrip()
        if not digits or digits.strip(b"0123456789ABCDEFabcdef"):
            raise ValueError(f"the answer has a malformed chunk size: {line[:80]!a}")
        size = int(digits, 16)
        body += stream.read(size)
        if size and not b"\r\n".startswith(stream.read(2)):
            raise ValueError("the answer has a chunk that does not end where it says")
    if b"\r\n" not in stream.readlines():  # trailers may come before it
        raise EOFError
    return body


def exchange(url: str, headers: str, deadline: float, report: bytes) -> "tuple[str, bytes, bool]":
    """GET *url*, or POST *report* to it; as parse_answer(), or raise Absent, OSError or others."""
    _, _, peer, path = url.split("/", 3)
    host, _, port = peer.partition(":")
    method = "POST" if report else "GET"
    head = f"{method} /{path} HTTP/1.1\r\nHost: {peer}\r\nConnection: close\r\n{headers}\r\n"
    data, end = b"", time.monotonic() + step_seconds(deadline)
    with socket.socket() as connection:
        connection.settimeout(min(step_seconds(deadline), CONNECT_SECONDS))
        connection.connect((host, int(port or "80")))
        connection.sendall(head.encode("ascii") + report)
        while True:
            connection.settimeout(max(end - time.monotonic(), 0.001))
            received = connection.recv(ANSWER_MAX)
            data += received
            if len(data) > ANSWER_MAX:
                raise ValueError("the answer is longer than 256 KiB")
            try:
                return parse_answer(data, not received, bool(report))
            except EOFError:
                if not received:
                    raise ValueError(f"the answer is cut short: {data[:80]!a}") from None


def step_seconds(deadline: float) -> float:
    """Return how long a step may take: to the deadline, and in the last attempt a second."""
    return min(max(deadline - time.monotonic(), RETRY_SECONDS), STEP_SECONDS)


def report_ready(wireserver: str, seconds: float, dry_run: bool) -> bool:
    """Report Ready until the platform accepts it, for so many *seconds* at most; return if so."""
    deadline = time.monotonic() + seconds
    url = wireserver + "/machine?comp="
    while True:
        step = "Goal state"
        try:
            tell(f"Fetching the goal state from {wireserver}")
            _, body, _ = exchange(url + "goalstate", WIRESERVER_HEADERS, deadline, b"")
            goal_state = parse_goal_state(body)
            tell("Goal state: incarnation {}, container {}, instance {}".format(*goal_state))
            report = build_health_report(goal_state)
            if dry_run:
                for line in ["Would report Ready:", *report.decode().splitlines()]:
                    say(line)
                return True
            step = "Health report"
            tell("Reporting Ready")
            headers = f"{HEALTH_HEADERS}Content-Length: {len(report)}\r\n"
            status, _, _ = exchange(url + "health", headers, deadline, report)
            say(f"Ready accepted: {status}")
            return True
        except Exception as error:  # whatever it was, the next attempt may put it right
            if not pause(step, error, deadline):
                return False


def set_name(imds: str, seconds: float, dry_run: bool) -> bool:
    """Set the host name that IMDS gives, in so many *seconds* at most; return if it is set."""
    start = none_since = time.monotonic()  # none: no computer name, and no other answer
    while True:
        step, is_none = "Computer name", False
        try:
            tell(f"Fetching the name from {imds}")
            try:
                name = make_host_name(fetch(imds, COMPUTER_NAME, start + seconds))
            except Absent as error:
                is_none = True  # but an outage may end with such an answer, too
                if time.monotonic() - none_since < min(seconds, PATIENCE_SECONDS):
                    raise
                tell(f"Computer name failed: {error}; asking for the VM's name")
                step = "VM name"
                name = make_host_name(fetch(imds, VM_NAME, start + seconds))
            step = "Host name"
            if not dry_run:
                set_host_name(name, start + seconds)
            say(f"Would set the host name {name}" if dry_run else f"Host name {name} set")
            return True
        except Exception as error:  # as above
            if not pause(step, error, start + seconds):
                return False
            none_since = none_since if is_none else time.monotonic()


def pause(step: str, error: Exception, deadline: float) -> bool:
    """Say that a *step* failed; wait for the next attempt, or return False if there is none."""
    line, left = f"{step} failed: {str(error) or repr(error)}", deadline - time.monotonic()
    if isinstance(error, (PermissionError, socket.timeout)) and os.geteuid():
        line += " (you are not root: try again as root)"  # some images let only root connect
    if left <= 0:
        say(line, "; giving up", error=True)
        return False
    tell(line, f"; trying again for {int(left) + 1} s", error=True)
    time.sleep(min(left, RETRY_SECONDS))
    return True


def fetch(imds: str, leaf: str, deadline: float) -> bytes:
    """Return what a *leaf* of IMDS says; raise Absent if there is none, or whatever went wrong."""
    try:
        _, body, is_whole = exchange(imds + "/metadata" + leaf, "Metadata: true\r\n", deadline, b"")
    except PermissionError:
        # systemd 261 and newer can keep IMDS to its own client (85-imds-early.network).
        if not os.access(SYSTEMD_IMDS, os.X_OK):
            raise
        from subprocess import PIPE, run  # not needed before Ready

        command = [SYSTEMD_IMDS, "--cache=no", leaf.partition("?")[0]]
        done = run(command, stdout=PIPE, stderr=PIPE, timeout=step_seconds(deadline))
        said = done.stderr.decode("utf-8", "replace").strip()
        if done.returncode:
            kind = Absent if done.returncode == 1 and "Key not available" in said else OSError
            raise kind(f"systemd-imds ended with status {done.returncode}: {said}") from None
        return done.stdout
    if not is_whole:
        raise ValueError("the answer does not say where it ends, and may be cut short")
    return body


def make_host_name(body: bytes) -> str:
    """Return the host name that IMDS's *body* gives; raise Absent if it is empty, or ValueError."""
    import re  # not needed before Ready

    name = body.decode("utf-8", "replace").strip("\ufeff \t\r\n")
    if not name:
        raise Absent("the answer is empty")
    if not re.match(r'[^\s\0-\x1f\x7f-\x9f\ufffd<>{":]{1,255}\Z', name):  # as an error page has
        raise ValueError(f"the answer is no name: {name[:80]!a}")
    # A hyphen for what hostnamectl would drop: else web1_1 and web_11 would become one name.
    labels = (re.sub("[^A-Za-z0-9-]+", "-", label).strip("-") for label in name.split("."))
    host_name = ".".join(filter(None, labels))[:64].rstrip("-.")
    if not host_name:
        raise ValueError(f"no host name can be made of {name!a}")
    return host_name


def set_host_name(name: str, deadline: float) -> None:
    """Make *name* the kernel's host name and the stored one, on disk, or raise OSError."""
    import subprocess  # not needed before Ready

    temporary = ETC_HOSTNAME + ".azure-provisioning"
    # --static, or it takes PRETTY_HOSTNAME out of /etc/machine-info.
    command = ["hostnamectl", "--no-ask-password", "--static", "set-hostname", name]
    try:
        status = subprocess.call(command, stdin=subprocess.DEVNULL, timeout=step_seconds(deadline))
        if status:
            raise OSError(f"hostnamectl ended with status {status}")
        verify_host_name(name)
    except Exception as error:
        tell(f"{error}; setting the host name without hostnamectl", error=True)
        try:
            socket.sethostname(name)
        finally:  # the stored name is the kernel's at the next boot
            with open(temporary, "wb") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(name.encode() + b"\n")
            os.rename(temporary, ETC_HOSTNAME)
        verify_host_name(name)
    finally:
        if os.path.exists(temporary):  # of this run, or of one that was killed
            os.unlink(temporary)


def verify_host_name(name: str) -> None:
    """Return if *name* is the kernel's host name and, on disk, the stored one; or raise OSError."""
    with open(ETC_HOSTNAME, "rb") as file:
        os.fsync(file.fileno())  # else a power cut may undo the name, but not the disabled unit
        names = (socket.gethostname(), file.read().decode("utf-8", "replace").strip())
    if names != (name, name):
        raise OSError("the host name is {}, and {} is stored, not {}".format(*names, name))


def tell(line: str, remark: str = "", error: bool = False) -> None:
    """Say a line of an attempt, unless the same, but for its *remark*, was said within a minute."""
    now = time.monotonic()
    if line not in told or now - told[line] >= 60:
        told[line] = now
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
            for line in [__version__] if option == "--version" else __doc__.splitlines():
                say(line)
            sys.exit(0)
    return {option: text.rstrip("/") for option, text in pairs}


def main() -> int:
    """Do as the command line says; return the exit status."""
    try:
        options = {**DEFAULTS, **(parse_arguments(sys.argv[1:]) if sys.argv[1:] else {})}
        timeout, dry_run = float(options.get("--timeout", 0)), "--dry-run" in options
        ready = report_ready(options["--wireserver"], timeout or WIRESERVER_SECONDS, dry_run)
        named = ready and set_name(options["--imds"], timeout or IMDS_SECONDS, dry_run)
    except KeyboardInterrupt:
        say("Interrupted", error=True)
        return 130
    except Exception as error:  # of the command line: all others are tried again
        say(f"azure_provisioning.py: {error} (try --help)", error=True)
        return 2
    return 0 if named else 3 if ready else 1


if __name__ == "__main__":
    os._exit(main())  # all is printed; Python's own way out takes as long as setting the name
