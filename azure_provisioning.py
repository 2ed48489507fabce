#!/usr/bin/python3
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
__version__ = "0.2.0"

import collections
import contextlib
import os
import pyexpat
import re
import socket
import sys
import time

TYPE_CHECKING = False  # type checkers take it for true; importing typing would slow the boot
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Tuple, Union

WIRESERVER_HEADERS = ["x-ms-version: 2012-11-30", "x-ms-agent-name: azure-provisioning"]
HEALTH_HEADERS = [*WIRESERVER_HEADERS, "Content-Type: text/xml;charset=utf-8"]
HEALTH_REPORT = """\
<Health><GoalStateIncarnation>{}</GoalStateIncarnation><Container><ContainerId>{}</ContainerId>
<RoleInstanceList><Role><InstanceId>{}</InstanceId><Health><State>Ready</State></Health></Role>
</RoleInstanceList></Container></Health>
"""
# In the first api-version that has it, and in the one that the oldest hosts know.
COMPUTER_NAME = ("/instance/compute/osProfile/computerName", "2020-07-15")
VM_NAME = ("/instance/compute/name", "2019-06-01")
SYSTEMD_IMDS = "/usr/lib/systemd/systemd-imds"
ETC_HOSTNAME = "/etc/hostname"

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
    found: Dict[str, Any] = {"Incarnation": {}, "ContainerId": {}, "InstanceId": {}}
    roles = {"RoleInstance": {"InstanceId": found["InstanceId"]}}
    container = {"ContainerId": found["ContainerId"], "RoleInstanceList": roles}
    # Of each open element the children that are wanted, each once, and as None its text.
    path: List[Any] = [{"GoalState": {"Incarnation": found["Incarnation"], "Container": container}}]
    parser = pyexpat.ParserCreate()
    parser.buffer_text = True  # or each line would be a string of its own
    parser.StartElementHandler = lambda tag, _: path.append(path[-1].pop(tag.split(":")[-1], {}))
    parser.CharacterDataHandler = lambda text: path[-1].setdefault(None, []).append(text)
    parser.EndElementHandler = lambda _: path.pop()
    try:
        if b"<!DOCTYPE" in body.replace(b"\0", b""):  # in UTF-16, too; it could declare entities
            raise ValueError("it has a document type declaration")
        if body.count(b"<") + body.count(b"=") > 10000:  # each may take 150 bytes
            raise ValueError("it has too many elements and attributes")
        parser.Parse(body, True)
        for tag, element in found.items():
            found[tag] = "".join(element.get(None, [])).strip()
            if not found[tag]:
                raise ValueError(f"it has no {tag}")
    except (pyexpat.ExpatError, ValueError) as error:
        raise ValueError(f"{error}; it begins with {body[:80]!a}") from error
    return GoalState(*found.values())


def build_health_report(goal_state: GoalState) -> bytes:
    """Return the XML, in ASCII, that reports the VM of *goal_state* Ready."""
    marked = (v.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for v in goal_state)
    return HEALTH_REPORT.format(*marked).encode("ascii", "xmlcharrefreplace")


def parse_name(body: bytes) -> str:
    """Return the name that *body* is, stripped; raise ValueError, or Failure if it is empty."""
    name = body.decode("utf-8", "replace").strip("\ufeff \t\r\n")
    if not name:
        raise Failure("the answer is empty", absent=True)
    if len(name) > 255 or len(name.splitlines()) > 1 or re.search('[<{"]', name):
        raise ValueError(f"the answer is no name: {name[:80]!a}")  # but several lines, or markup
    return name


def make_host_name(name: str) -> str:
    """Return *name* as labels of letters, digits, inner hyphens, 64 characters in all; ValueError.

    A run of other characters becomes a hyphen: hostnamectl would drop it, and make one name of
    web1_1 and web_11.
    """
    labels = (re.sub("[^A-Za-z0-9-]+", "-", label).strip("-") for label in name.split("."))
    host_name = ".".join(filter(None, labels))[:64].rstrip("-.")
    if not host_name:
        raise ValueError(f"no host name can be made of {name!a}")
    return host_name


def parse_answer(data: bytes, ended: bool, to_report: bool) -> "Optional[Answer]":
    """Return the HTTP/1 answer (RFC 9112) that *data* begins with, or None if some is missing.

    *ended*: no more will come. Of an answer *to_report* only the status counts. The body *is_whole*
    if the answer says where it ends. Raises Failure for any status but 2xx, and ValueError for what
    is malformed or ambiguous.
    """
    status = "100"
    while status.startswith("100"):  # "Continue": the answer itself comes next
        head, *rest = re.split(rb"\r?\n\r?\n", data, maxsplit=1)
        if not rest:
            return None
        match = re.match(rb"HTTP/1\.[0-9] ([0-9]{3}( [^\r\n]*)?)(\r?\n|\Z)", head)
        if not match:
            raise ValueError(f"the answer is no HTTP: {head[:80]!a}")
        status, data = match.group(1).decode("latin-1").rstrip(), rest[0]
    if not status.startswith("2"):
        after = header_value(head, b"Retry-After") or b""
        can_wait = status[:3] in ("429", "503") and after.isdigit()
        delay = min(max(float(after), RETRY_SECONDS), 60) if can_wait else RETRY_SECONDS
        raise Failure(f"the answer is {status}", absent=status[:3] in ("400", "404"), delay=delay)
    if to_report or status.startswith("204"):
        return Answer(status, b"", is_whole=True)
    if re.search(rb"\n(?![!-9;-~]+:)|\r(?!\n)", head):
        raise ValueError("the answer has a malformed header")
    length, coding = header_value(head, b"Content-Length"), header_value(head, b"Transfer-Encoding")
    if length is None and coding is None:
        return Answer(status, data, is_whole=False) if ended else None
    if length is None and coding == b"chunked":
        body = join_chunks(data)
    elif length is not None and coding is None and re.match(rb"[0-9]{1,9}\Z", length):
        body = data[: int(length)] if len(data) >= int(length) else None
    else:
        raise ValueError("it is not clear where the answer ends")
    return None if body is None else Answer(status, body, is_whole=True)


def header_value(head: bytes, name: bytes) -> "Optional[bytes]":
    """Return what the header *name* says, in small letters; if it says several things, all."""
    lines = re.findall(rb"\n" + name + rb":(.*)", head, re.IGNORECASE)
    return b",".join({line.strip(b" \t\r").lower() for line in lines}) if lines else None


def join_chunks(data: bytes) -> "Optional[bytes]":
    """Return the body that *data* has in chunks (RFC 9112, 7.1), or None if some is missing."""
    body, end = b"", 0
    while True:
        start = data.find(b"\r\n", end) + 2
        if start < 2:
            return None
        match = re.match(rb"([0-9A-Fa-f]{1,8})[ \t]*(;.*)?\r\n", data[end:start])
        end = start + int(match.group(1), 16) if match else start
        if match and end == start:  # the last one; trailers may follow, and then an empty line
            return body if re.search(rb"\n\r?\n", data[start - 1 :]) else None
        if not match or not b"\r\n".startswith(data[end : end + 2]):
            raise ValueError("the answer has a malformed chunk")
        body += data[start:end]
        end += 2


def say(line: str, remark: str = "", error: bool = False) -> None:
    """Print a line at once: what a peer sent must neither break it nor steer a terminal."""
    stream = sys.stderr if error else sys.stdout
    printable = re.sub("[^ -~]", "?", line[: 400 - len(remark)] + remark)
    with contextlib.suppress(OSError):  # nobody reads (a closed pipe, a full disk): go on
        if stream:
            os.write(stream.fileno(), printable.encode() + b"\n")


told: "Dict[bool, List[Tuple[float, str]]]" = {False: [], True: []}  # steps, and failures


def tell(line: str, remark: str = "", error: bool = False) -> None:
    """Say a line of an attempt, unless it came within a minute, or ten others did.

    A failure, which has a *remark*, comes again when there was another one meanwhile.
    """
    now, lines = time.monotonic(), told[bool(remark)]
    lines[:] = [(when, old) for when, old in lines if now - when < 60]
    known = [old for _, old in (lines[-1:] if remark else lines)]
    if line not in known and len(lines) < 10:
        lines.append((now, line))
        say(line, remark, error)


class step:
    """Turn whatever goes wrong inside into a Failure that names the step and the reason.

    contextlib.contextmanager would keep each failed answer in memory (cpython issue 129280).
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: object, __: object) -> None:
        if not isinstance(error, Exception):
            return
        reason = str(error) or repr(error)
        if isinstance(error, (PermissionError, TimeoutError, socket.timeout)) and os.geteuid():
            # Some images let only root reach WireServer (coreos/bugs issue 2468).
            reason += " (you are not root: try again as root)"
        absent, delay = getattr(error, "absent", False), getattr(error, "delay", RETRY_SECONDS)
        raise Failure(f"{self.name} failed: {reason}", absent, delay) from error


def exchange(url: str, headers: "List[str]", deadline: float, report: bytes = b"") -> Answer:
    """GET *url*, or POST *report* to it, in waagent's form; raise as parse_answer() does.

    And OSError or ValueError where the answer is late, cut short or too long.
    """
    _, _, authority, path = url.split("/", 3)
    host, _, port = authority.partition(":")
    head = [f"{'POST' if report else 'GET'} /{path} HTTP/1.1", f"Host: {authority}", *headers]
    head += [f"Content-Length: {len(report)}"] if report else []
    request = "\r\n".join([*head, "Connection: close", "", ""]).encode("ascii") + report
    data, now = b"", time.monotonic()
    deadline = min(deadline, now + STEP_SECONDS)
    with socket.socket() as connection:
        connection.settimeout(min(max(deadline - now, 0.001), CONNECT_SECONDS))
        connection.connect((host, int(port or "80")))
        # A host may answer, and close, before it has read the request.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request)
        while time.monotonic() < deadline:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            received = connection.recv(ANSWER_MAX + 1 - len(data))
            data += received
            if len(data) > ANSWER_MAX:
                raise ValueError("the answer is longer than 256 KiB")
            answer = parse_answer(data, ended=not received, to_report=bool(report))
            if answer:
                return answer
            if not received:
                raise ValueError(f"the answer is cut short: {data[:80]!a}")
    raise socket.timeout("timed out")


def run(command: "List[str]", deadline: float) -> bytes:
    """Run a program and return what it prints, 4 KiB at most; a Failure has it where it fails."""
    import subprocess  # not needed before Ready

    null, limit = subprocess.DEVNULL, min(deadline - time.monotonic(), STEP_SECONDS)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)  # what the program leaves behind may keep the other end open
    with open(reader, "rb", 0) as output, open(writer, "wb", 0) as pipe:
        status = subprocess.call(command, stdin=null, stdout=pipe, stderr=pipe, timeout=limit)
        printed = output.read(4096) or b""
    if status:
        reason = printed.decode("utf-8", "replace").strip()
        raise Failure(f"{command[0]} ended with status {status}: {reason}")
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
                with contextlib.suppress(OSError):
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
    with open(temporary, "xb", buffering=0) as file:
        file.write(name.encode() + b"\n")
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
    os.rename(temporary, ETC_HOSTNAME)


def report_ready(options: Options, deadline: float, _: float) -> None:
    """One attempt: fetch the goal state, for its current incarnation, and report Ready."""
    tell(f"Fetching the goal state from {options.wireserver}")
    with step("Goal state"):
        url = options.wireserver + "/machine?comp=goalstate"
        goal_state = parse_goal_state(exchange(url, WIRESERVER_HEADERS, deadline).body)
    tell("Goal state: incarnation {}, container {}, instance {}".format(*goal_state))
    report = build_health_report(goal_state)
    if options.dry_run:
        for line in ["Would report Ready:", *report.decode().splitlines()]:
            say(line)
        return
    tell("Reporting Ready")
    with step("Health report"):
        url = options.wireserver + "/machine?comp=health"
        say(f"Ready accepted: {exchange(url, HEALTH_HEADERS, deadline, report).status}")


def set_name(options: Options, deadline: float, patience: float) -> None:
    """One attempt: ask IMDS for the computer name, or after *patience* the VM's, and set it."""
    tell(f"Fetching the name from {options.imds}")
    try:
        with step("Computer name"):
            name = fetch_name(options.imds, COMPUTER_NAME, deadline)
    except Failure as failure:
        if not failure.absent or time.monotonic() < patience:
            raise
        tell(f"{failure}; asking for the VM's name")
        with step("VM name"):
            name = fetch_name(options.imds, VM_NAME, deadline)
    with step("Host name"):
        host_name = make_host_name(name)
        if not options.dry_run:
            set_host_name(host_name, deadline)
    say(f"Would set the host name {host_name}" if options.dry_run else f"Host name {host_name} set")


def persist(attempt: "Callable[..., None]", options: Options, seconds: float) -> bool:
    """Make *attempt* after *attempt* until one succeeds or the *seconds* are over; return which."""
    start = time.monotonic()
    deadline, patience = start + seconds, start + min(seconds, PATIENCE_SECONDS)
    while True:
        try:
            # The last attempt has a second, too, to find that the trouble is over.
            attempt(options, max(deadline, time.monotonic() + 1), patience)
            return True
        except Exception as error:  # whatever it was, the next attempt may put it right
            left = deadline - time.monotonic()
            if left <= 0:
                say(str(error), "; giving up", error=True)
                return False
            tell(str(error), f"; trying again for {int(left) + 1} s", error=True)
            time.sleep(min(left, getattr(error, "delay", RETRY_SECONDS)))


def parse_option(option: str, text: str) -> "Union[str, float]":
    """Return the value of --timeout, in seconds, or a URL without a final slash; or ValueError."""
    if option == "--timeout":
        if re.match(r"[0-9]+(\.[0-9]+)?\Z", text) and 0 < float(text) <= 86400:
            return float(text)
        raise ValueError(f"--timeout takes more than 0, at most 86400 seconds, not {text!a}")
    url = re.match(r"(?a)(http://[\w.-]+(?::(\d{1,5}))?)/?\Z", text)
    if url and 0 < int(url.group(2) or 80) < 65536:
        return url.group(1)
    raise ValueError(f"{option} takes http://HOST[:PORT], not {text!a}")


def parse_arguments(arguments: "List[str]") -> Options:
    """Return the options; for --help, --version and wrong usage print and exit instead."""
    import getopt  # not needed in the unit

    names = ["dry-run", "timeout=", "wireserver=", "imds=", "version", "help"]
    try:
        pairs, rest = getopt.getopt(arguments, "h", names)
        if rest:
            raise ValueError(f"unexpected argument {rest[0]!a}")
        options = DEFAULTS._replace(dry_run=("--dry-run", "") in pairs)
        for option, text in pairs:
            if option in ("-h", "--help", "--version"):
                for line in [__version__] if option == "--version" else __doc__.splitlines():
                    say(line)
                sys.exit(0)
            if option[2:] in options._fields:
                options = options._replace(**{option[2:]: parse_option(option, text)})
        return options
    except (getopt.GetoptError, ValueError) as error:
        say(f"azure_provisioning.py: {error} (try --help)", error=True)
        sys.exit(2)


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
    sys.exit(main())
