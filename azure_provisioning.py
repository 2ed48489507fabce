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
__version__ = "1.0.0"

import collections
import io
import os
import pyexpat
import socket
import sys
import time

TYPE_CHECKING = False  # type checkers take it for true; importing typing would slow the boot
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

GOAL_STATE_VALUES = [
    "GoalState/Incarnation",
    "GoalState/Container/ContainerId",
    "GoalState/Container/RoleInstanceList/RoleInstance/InstanceId",
]
HEALTH_REPORT = """\
<Health><GoalStateIncarnation>{}</GoalStateIncarnation><Container><ContainerId>{}</ContainerId>
<RoleInstanceList><Role><InstanceId>{}</InstanceId><Health><State>Ready</State></Health></Role>
</RoleInstanceList></Container></Health>
"""
ENCODINGS = ["utf-8", "utf-16", "utf-16be", "utf-16le", "us-ascii", "iso-8859-1"]  # expat's own
WIRESERVER_HEADERS = ["x-ms-version: 2012-11-30", "x-ms-agent-name: azure-provisioning"]
HEALTH_HEADERS = [*WIRESERVER_HEADERS, "Content-Type: text/xml;charset=utf-8"]
HEADERS = [b"content-length", b"transfer-encoding", b"retry-after"]  # of answers; no other counts
# In the first api-version that has it, and in the one that the oldest hosts know.
COMPUTER_NAME = ("/instance/compute/osProfile/computerName", "2020-07-15")
VM_NAME = ("/instance/compute/name", "2019-06-01")
SYSTEMD_IMDS = "/usr/lib/systemd/systemd-imds"
ETC_HOSTNAME = "/etc/hostname"
VISIBLE = bytes(range(33, 127))
HEX_DIGITS = b"0123456789ABCDEFabcdef"

WIRESERVER_SECONDS = 1200  # as cloud-init's; the platform waits 40 minutes
IMDS_SECONDS = 300  # as cloud-init's
PATIENCE_SECONDS = 60  # with an IMDS that knows no computer name: it may know it soon
STEP_SECONDS = 30  # one request and its whole answer, or one run of a program
CONNECT_SECONDS = 5  # the peer is one hop away; where packets vanish, each attempt sends new ones
RETRY_SECONDS = 1
ANSWER_MAX = 256 << 10  # bytes, with all that HTTP wraps a body in

Options = collections.namedtuple("Options", ["wireserver", "imds", "timeout", "dry_run"])
GoalState = collections.namedtuple("GoalState", ["incarnation", "container_id", "instance_id"])
Answer = collections.namedtuple("Answer", ["status", "body", "is_whole"])
DEFAULTS = Options("http://168.63.129.16", "http://169.254.169.254", timeout=0, dry_run=False)


class Failure(Exception):
    """Try again after *delay* seconds; *absent*: the host says that it has no such thing."""

    def __init__(self, text: str, absent: bool = False, delay: float = RETRY_SECONDS) -> None:
        super().__init__(text)
        self.absent, self.delay = absent, delay


def parse_goal_state(body: bytes) -> GoalState:
    """Return the three values that a health report repeats, stripped, from a goal state's XML.

    Of several elements of one name the first counts. Raises ValueError.
    """
    # Of each open element the first child of each name and, as "", its text in pieces.
    path: List[Dict[str, Any]] = [{}]

    def start(tag: str, _: object) -> None:
        element: Dict[str, Any] = {}
        path[-1].setdefault(tag.rpartition(":")[2], element)
        path.append(element)

    def declaration(_: object, encoding: "Optional[str]", __: object) -> None:
        if encoding and encoding.lower() not in ENCODINGS:
            raise ValueError("it has an unknown encoding")  # Python would keep each name for ever

    parser = pyexpat.ParserCreate()
    parser.XmlDeclHandler = declaration
    parser.buffer_text = True  # or each line would be a piece
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: path.pop()
    parser.CharacterDataHandler = lambda text: path[-1].setdefault("", []).append(text)
    try:
        if b"<!DOCTYPE" in body.replace(b"\0", b""):  # in UTF-16, too; it could declare entities
            raise ValueError("it has a document type declaration")
        if body.count(b"<") + body.count(b"=") > 2500:  # each may take 800 bytes
            raise ValueError("it has too many elements and attributes")
        parser.Parse(body, True)
        values = []
        for element_path in GOAL_STATE_VALUES:
            (element,) = path
            for name in element_path.split("/"):
                element = element.get(name, {})
            values.append("".join(element.get("", [])).strip())
            if not values[-1] or len(values[-1]) > 1000:
                raise ValueError(f"it has no {name} of at most 1000 characters")
    except (pyexpat.ExpatError, ValueError) as error:
        raise ValueError(f"{error}; it begins with {body[:80]!a}") from error
    return GoalState(*values)


def build_health_report(goal_state: GoalState) -> bytes:
    """Return the XML, in ASCII, that reports the VM of *goal_state* Ready."""
    marked = (v.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for v in goal_state)
    return HEALTH_REPORT.format(*marked).encode("ascii", "xmlcharrefreplace")


def parse_name(body: bytes) -> str:
    """Return the name that *body* is, stripped; raise ValueError, or Failure if it is empty."""
    name = body.decode("utf-8", "replace").strip("\ufeff \t\r\n")
    if not name:
        raise Failure("the answer is empty", absent=True)
    if len(name) > 255 or name.splitlines()[1:] or any(mark in name for mark in '<{"'):
        raise ValueError(f"the answer is no name: {name[:80]!a}")  # but several lines, or markup
    return name


def make_host_name(name: str) -> str:
    """Return *name* as labels of letters, digits, inner hyphens, 64 characters in all; ValueError.

    A run of other characters becomes a hyphen: hostnamectl would drop it, and make one name of
    web1_1 and web_11.
    """
    spaced = "".join(c if c in "-." or (c < "~" and c.isalnum()) else " " for c in name)
    labels = ("-".join(label.split()).strip("-") for label in spaced.split("."))
    host_name = ".".join(filter(None, labels))[:64].rstrip("-.")
    if not host_name:
        raise ValueError(f"no host name can be made of {name!a}")
    return host_name


def parse_answer(data: bytes, ended: bool, to_report: bool) -> "Optional[Answer]":
    """Return the HTTP/1 answer (RFC 9112) that *data* begins with, or None if some is missing.

    *ended*: no more will come. Of an answer *to_report* only the status counts. The body *is_whole*
    if the answer says where it ends. Raises Failure for any status but 2xx, and ValueError for what
    is malformed, ambiguous or only a part.
    """
    stream, code = io.BytesIO(data), b"100"
    while code == b"100":  # "Continue": the answer itself comes next
        status_line = stream.readline()
        version, _, status = status_line.partition(b" ")
        headers: Dict[bytes, Set[bytes]] = {name: set() for name in HEADERS}
        malformed = False
        for line in stream:
            if line in (b"\r\n", b"\n"):
                break
            name, colon, value = line.partition(b":")
            malformed |= not (colon and name) or bool(name.strip(VISIBLE)) or b"\r" in line[:-2]
            headers.get(name.lower(), set()).add(value.strip(b" \t\r\n").lower())
        else:
            return None
        code, after = status[:3], status[3:]
        is_http = version in (b"HTTP/1.0", b"HTTP/1.1") and code.isdigit()
        if not is_http or after[:1] not in b" \r\n" or b"\r" in after[:-2]:
            raise ValueError(f"the answer is no HTTP: {status_line[:80]!a}")
    text, data = status.decode("latin-1").rstrip(), stream.read()
    lengths, codings, delays = (headers[name] for name in HEADERS)
    length, delay = b",".join(lengths), b",".join(delays)  # several are no number
    if not code.startswith(b"2"):
        can_wait = code in (b"429", b"503") and delay.isdigit()
        seconds = min(max(float(delay), RETRY_SECONDS), 60) if can_wait else RETRY_SECONDS
        raise Failure(f"the answer is {text}", absent=code in (b"400", b"404"), delay=seconds)
    if to_report or code == b"204":
        return Answer(text, b"", is_whole=True)
    if malformed:
        raise ValueError("the answer has a malformed header")
    if code == b"206":
        raise ValueError("the answer is only a part")
    body: Optional[bytes]
    if not lengths and not codings:
        body = data if ended else None
    elif not lengths and codings == {b"chunked"}:
        body = join_chunks(data)
    elif not codings and length.isdigit() and len(length) < 10:
        body = data[: int(length)] if len(data) >= int(length) else None
    else:
        raise ValueError("it is not clear where the answer ends")
    return None if body is None else Answer(text, body, is_whole=bool(lengths or codings))


def join_chunks(data: bytes) -> "Optional[bytes]":
    """Return the body that *data* has in chunks (RFC 9112, 7.1), or None if some is missing."""
    stream, body = io.BytesIO(data), bytearray()
    for line in stream:
        if not line.endswith(b"\n"):
            return None
        digits = line[:-2].partition(b";")[0].rstrip(b" \t")
        is_size = digits and len(digits) < 9 and not digits.strip(HEX_DIGITS)
        if not is_size or not line.endswith(b"\r\n"):
            raise ValueError("the answer has a malformed chunk")
        size = int(digits, 16)
        if not size:  # trailers may follow, and then an empty line
            return bytes(body) if {b"\r\n", b"\n"}.intersection(stream) else None
        body += stream.read(size)
        if not b"\r\n".startswith(stream.read(2)):
            raise ValueError("the answer has a malformed chunk")
    return None


def say(line: str, remark: str = "", error: bool = False) -> None:
    """Print a line at once: what a peer sent must neither break it nor steer a terminal."""
    stream = sys.stderr if error else sys.stdout
    printable = "".join(c if " " <= c <= "~" else "?" for c in line[: 400 - len(remark)] + remark)
    try:
        if stream:
            os.write(stream.fileno(), printable.encode() + b"\n")
    except OSError:
        pass  # nobody reads (a closed pipe, a full disk): go on


told: "Dict[bool, List[Tuple[float, str]]]" = {False: [], True: []}  # steps, and failures


def tell(line: str, remark: str = "", error: bool = False) -> None:
    """Say a line of an attempt, unless it came within a minute, or ten others did.

    A failure, which has a *remark*, comes again when there was another one meanwhile.
    """
    line, now, lines = line[:400], time.monotonic(), told[bool(remark)]
    lines[:] = [(when, old) for when, old in lines if now - when < 60]
    known = [old for _, old in (lines[-1:] if remark else lines)]
    if line not in known and not lines[9:]:
        lines.append((now, line))
        say(line, remark, error)


def exchange(url: str, headers: "List[str]", deadline: float, report: bytes = b"") -> Answer:
    """GET *url*, or POST *report* to it, in waagent's form; raise as parse_answer() does.

    And OSError or ValueError where the answer is late, cut short or too long.
    """
    _, _, authority, path = url.split("/", 3)
    host, _, port = authority.partition(":")
    head = [f"{'POST' if report else 'GET'} /{path} HTTP/1.1", f"Host: {authority}", *headers]
    head += [f"Content-Length: {len(report)}"] if report else []
    request = "\r\n".join([*head, "Connection: close", "", ""]).encode("ascii") + report
    data = b""
    deadline = min(deadline, time.monotonic() + STEP_SECONDS)
    with socket.socket() as connection:
        connection.settimeout(min(seconds_to(deadline), CONNECT_SECONDS))
        connection.connect((host, int(port or "80")))
        try:
            connection.sendall(request)
        except (BrokenPipeError, ConnectionResetError):
            pass  # a host may answer, and close, before it has read the request
        while True:
            connection.settimeout(seconds_to(deadline))
            received = connection.recv(ANSWER_MAX)
            data += received
            if len(data) > ANSWER_MAX:
                raise ValueError("the answer is longer than 256 KiB")
            answer = parse_answer(data, ended=not received, to_report=bool(report))
            if answer:
                return answer
            if not received:
                raise ValueError(f"the answer is cut short: {data[:80]!a}")


def seconds_to(deadline: float) -> float:
    """Return how long it is to the *deadline*; raise socket.timeout if it is over."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise socket.timeout("timed out")
    return left


def run(command: "List[str]", deadline: float) -> bytes:
    """Run a program and return what it prints; a Failure has that if it fails or prints 4 KiB."""
    import signal  # not needed before Ready; subprocess would be four times as slow

    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            os.execvp(command[0], command)
        except OSError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(127)
    os.close(writer)
    os.set_blocking(reader, False)  # what the program leaves behind may keep the other end open
    seconds = min(max(deadline - time.monotonic(), RETRY_SECONDS), STEP_SECONDS)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    _, status = os.waitpid(child, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    with open(reader, "rb") as output:
        printed = output.read(4096) or b""
    if status or printed[4095:]:  # there may have been more
        reason = printed.decode("utf-8", "replace").strip()
        raise Failure(f"{command[0]} ended with status {status >> 8 or -status}: {reason}")
    return printed


def fetch_name(imds: str, leaf: "Tuple[str, str]", deadline: float) -> str:
    """Return the name in a leaf of IMDS's instance document, by its key and api-version."""
    path = "/metadata{}?api-version={}&format=text".format(*leaf)
    try:
        answer = exchange(imds + path, ["Metadata: true"], deadline)
    except PermissionError:
        if not os.access(SYSTEMD_IMDS, os.X_OK):
            raise
        # systemd 261 and newer can keep IMDS to its own client (85-imds-early.network).
        return parse_name(run([SYSTEMD_IMDS, "--cache=no", leaf[0]], deadline))
    if not answer.is_whole:
        raise ValueError("the answer does not say where it ends, and may be cut short")
    return parse_name(answer.body)


def set_host_name(name: str, deadline: float) -> None:
    """Make *name* the kernel's host name and the stored one, on disk, or raise OSError."""
    try:
        # --static, or it takes PRETTY_HOSTNAME out of /etc/machine-info.
        run(["hostnamectl", "--no-ask-password", "--static", "set-hostname", name], deadline)
        verify_host_name(name)
    except Exception as error:
        tell(f"{error}; setting the host name without hostnamectl", error=True)
        try:
            socket.sethostname(name)
        finally:  # the stored name is the kernel's at the next boot
            write_etc_hostname(name)
        verify_host_name(name)
    finally:
        directory, prefix = os.path.split(ETC_HOSTNAME + ".azure-provisioning")
        for file in os.listdir(directory):
            if file.startswith(prefix):  # of this run, or of one that was killed
                os.unlink(os.path.join(directory, file))


def verify_host_name(name: str) -> None:
    """Return if *name* is the kernel's host name and, on disk, the stored one; or raise OSError."""
    with open(ETC_HOSTNAME, "rb") as file:
        os.fsync(file.fileno())  # else a power cut may undo the name, but not the disabled unit
        names = (socket.gethostname(), file.read().decode("utf-8", "replace").strip())
    if names != (name, name):
        raise OSError("the host name is {}, and {} is stored, not {}".format(*names, name))


def write_etc_hostname(name: str) -> None:
    """Replace /etc/hostname in one go: a power cut leaves the old name or the new one."""
    temporary = f"{ETC_HOSTNAME}.azure-provisioning.{os.getpid()}"  # another run has its own
    with open(temporary, "xb") as file:
        file.write(name.encode() + b"\n")
        file.flush()  # all of it, or it fails; an unbuffered write may end early
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
    os.rename(temporary, ETC_HOSTNAME)


def report_ready(options: Options, deadline: float, _: float) -> "Iterator[str]":
    """One attempt: fetch the goal state, for its current incarnation, and report Ready."""
    yield "Goal state"
    tell(f"Fetching the goal state from {options.wireserver}")
    url = options.wireserver + "/machine?comp="
    goal_state = parse_goal_state(exchange(url + "goalstate", WIRESERVER_HEADERS, deadline).body)
    tell("Goal state: incarnation {}, container {}, instance {}".format(*goal_state))
    report = build_health_report(goal_state)
    if options.dry_run:
        for line in ["Would report Ready:", *report.decode().splitlines()]:
            say(line)
        return
    yield "Health report"
    tell("Reporting Ready")
    say(f"Ready accepted: {exchange(url + 'health', HEALTH_HEADERS, deadline, report).status}")


def set_name(options: Options, deadline: float, patience: float) -> "Iterator[str]":
    """One attempt: ask IMDS for the computer name, or after *patience* the VM's, and set it."""
    yield "Computer name"
    tell(f"Fetching the name from {options.imds}")
    try:
        name = fetch_name(options.imds, COMPUTER_NAME, deadline)
    except Failure as failure:
        if not failure.absent or time.monotonic() < patience:
            raise
        tell(f"Computer name failed: {failure}; asking for the VM's name")
        yield "VM name"
        name = fetch_name(options.imds, VM_NAME, deadline)
    yield "Host name"
    host_name = make_host_name(name)
    if not options.dry_run:
        set_host_name(host_name, deadline)
    say(f"Would set the host name {host_name}" if options.dry_run else f"Host name {host_name} set")


def persist(attempt: "Callable[..., Iterator[str]]", options: Options, seconds: float) -> bool:
    """Make *attempt* after *attempt* until one succeeds or the *seconds* are over; return which.

    An attempt yields the name of each of its steps as it begins, to tell which one failed.
    """
    start = time.monotonic()
    deadline, patience = start + seconds, start + min(seconds, PATIENCE_SECONDS)
    failed = ""
    while True:
        try:
            # The last attempt has a second, too, to find that the trouble is over.
            for step in attempt(options, max(deadline, time.monotonic() + 1), patience):
                failed = f"{step} failed"
            return True
        except Exception as error:  # whatever it was, the next attempt may put it right
            line = f"{failed}: {str(error) or repr(error)}"
            if isinstance(error, (PermissionError, TimeoutError, socket.timeout)) and os.geteuid():
                # Some images let only root reach WireServer (coreos/bugs issue 2468).
                line += " (you are not root: try again as root)"
            left = deadline - time.monotonic()
            if left <= 0:
                say(line, "; giving up", error=True)
                return False
            tell(line, f"; trying again for {int(left) + 1} s", error=True)
            time.sleep(min(left, getattr(error, "delay", RETRY_SECONDS)))


def parse_arguments(arguments: "List[str]") -> Options:
    """Return the options; for --help, --version and wrong usage print and exit instead."""
    import getopt  # neither is needed in the unit
    import re

    options = DEFAULTS
    names = ["dry-run", "timeout=", "wireserver=", "imds=", "version", "help"]
    try:
        pairs, rest = getopt.getopt(arguments, "h", names)
        if rest:
            raise ValueError(f"unexpected argument {rest[0]!a}")
        for option, text in pairs:
            url = re.match(r"(http://[A-Za-z0-9_.-]+(?::([0-9]{1,5}))?)/?\Z", text)
            if option in ("-h", "--help", "--version"):
                for line in [__version__] if option == "--version" else __doc__.splitlines():
                    say(line)
                sys.exit(0)
            elif option == "--dry-run":
                options = options._replace(dry_run=True)
            elif option == "--timeout":
                if not re.match(r"[0-9]+(\.[0-9]+)?\Z", text) or not 0 < float(text) <= 86400:
                    raise ValueError(
                        f"{option} takes more than 0, at most 86400 seconds, not {text!a}"
                    )
                options = options._replace(timeout=float(text))
            elif url and int(url.group(2) or "80") in range(1, 65536):
                options = options._replace(**{option[2:]: url.group(1)})
            else:
                raise ValueError(f"{option} takes http://HOST[:PORT], not {text!a}")
    except (getopt.GetoptError, ValueError) as error:
        say(f"azure_provisioning.py: {error} (try --help)", error=True)
        sys.exit(2)
    return options


def main() -> int:
    """Do as the command line says; return the exit status."""
    try:
        options = parse_arguments(sys.argv[1:]) if sys.argv[1:] else DEFAULTS
        ready = persist(report_ready, options, options.timeout or WIRESERVER_SECONDS)
        named = ready and persist(set_name, options, options.timeout or IMDS_SECONDS)
    except KeyboardInterrupt:
        say("Interrupted", error=True)
        return 130
    return 0 if named else 3 if ready else 1


if __name__ == "__main__":
    os._exit(main())  # all is printed; Python's own way out takes as long as setting the name
