#!/usr/bin/python3
"""Usage: azure_provisioning.py [OPTION]...

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
"""

import collections
import contextlib
import io
import os
import re
import socket
import sys
import time
from xml.parsers import expat

sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]  # only HTTPS needs its 4 MiB
import http.client  # noqa: E402

TYPE_CHECKING = False  # type checkers take it for true; importing typing would slow the boot
if TYPE_CHECKING:
    from typing import Callable, Dict, Iterator, List, Optional, Tuple

__version__ = "0.1.0"

WIRESERVER_SECONDS, IMDS_SECONDS = 1200, 300  # as cloud-init's; the platform waits 40 minutes
WIRESERVER_HEADERS = {"x-ms-version": "2012-11-30", "x-ms-agent-name": "azure-provisioning"}
HEALTH_HEADERS = dict(WIRESERVER_HEADERS, **{"Content-Type": "text/xml;charset=utf-8"})
GOAL_STATE_PATH = "/machine?comp=goalstate"
HEALTH_PATH = "/machine?comp=health"
HEALTH_REPORT = """\
<Health>
  <GoalStateIncarnation>{0.incarnation}</GoalStateIncarnation>
  <Container>
    <ContainerId>{0.container_id}</ContainerId>
    <RoleInstanceList>
      <Role><InstanceId>{0.instance_id}</InstanceId><Health><State>Ready</State></Health></Role>
    </RoleInstanceList>
  </Container>
</Health>
"""
IMDS_HEADERS = {"Metadata": "true"}
COMPUTE_PATH = "/metadata/instance/compute?api-version=2021-02-01&format=json"
PLAIN_NAME_PATH = "/metadata/instance/compute/name?api-version=2019-06-01&format=text"
ETC_HOSTNAME = "/etc/hostname"
RETRY_SECONDS, RETRY_AFTER_MAX = 1, 60
STEP_SECONDS = 30  # one request and its whole answer, or one run of hostnamectl
CONNECT_SECONDS = 5  # the peer is one hop away; where packets vanish, each attempt sends new ones
BODY_MAX, ANSWER_MAX = 1 << 20, 17 << 16  # bytes of a body, and with what HTTP wraps it in
DEPTH_MAX, VALUE_MAX, PARTS_MAX = 50, 1000, 20000  # elements deep, characters, values; of a body
TIMEOUT_MAX = 86400  # seconds, for --timeout
REPEAT_SECONDS, LINES_MAX = 60, 20  # in that time, no line again without news, nor more lines
LINE_MAX, REASON_MAX = 400, 300  # characters, of a line and of what went wrong in it
EXIT_OK, EXIT_NOT_READY, EXIT_USAGE, EXIT_NOT_NAMED, EXIT_INTERRUPTED = 0, 1, 2, 3, 130

GoalState = collections.namedtuple("GoalState", ["incarnation", "container_id", "instance_id"])
Options = collections.namedtuple("Options", ["wireserver", "imds", "timeout", "dry_run"])
DEFAULTS = Options("http://168.63.129.16", "http://169.254.169.254", None, False)
said: "List[Tuple[str, float]]" = []  # each line printed, and when on the monotonic clock


def parse_goal_state(body: bytes) -> GoalState:
    """Return the three values that a health report repeats, stripped, from a goal state's XML.

    Of repeated elements the first counts. Raises expat.ExpatError or ValueError for what is not
    such XML, or has a document type declaration, which could declare entities.
    """
    if b"<!DOCTYPE" in body.replace(b"\0", b""):  # in UTF-16, too
        raise ValueError("it has a document type declaration")
    values = {"Incarnation": "", "ContainerId": "", "InstanceId": ""}
    fields = [
        ["GoalState", "Incarnation"],
        ["GoalState", "Container", "ContainerId"],
        ["GoalState", "Container", "RoleInstanceList", "RoleInstance", "InstanceId"],
    ]
    path: List[str] = []

    def start(name: str, _: object) -> None:
        path.append(name.rpartition(":")[2])
        if len(path) > DEPTH_MAX:
            raise ValueError("its elements are nested too deeply")

    def text(data: str) -> None:
        if path in fields:
            values[path[-1]] += data
            if len(values[path[-1]]) > VALUE_MAX:
                raise ValueError(f"its {path[-1]} is too long")

    def end(_: str) -> None:
        # What has ended takes no more text, so the values of two containers never mix.
        fields[:] = [field for field in fields if field[: len(path)] != path]
        path.pop()

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.CharacterDataHandler = text
    parser.EndElementHandler = end
    parser.ParseFile(io.BytesIO(body))  # by pieces: unlike Parse() it stops where a handler raises
    for name, value in values.items():
        if not value.strip():
            raise ValueError(f"it has no {name}")
    return GoalState(*map(str.strip, values.values()))


def build_health_report(goal_state: GoalState) -> bytes:
    """Return the XML, in ASCII, that reports the VM of *goal_state* Ready."""
    marked = (v.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for v in goal_state)
    return HEALTH_REPORT.format(GoalState(*marked)).encode("ascii", "xmlcharrefreplace")


def parse_compute_document(body: bytes) -> str:
    """Return the computer name, else the VM's, from IMDS's JSON, or raise ValueError."""
    import json  # not needed before Ready

    document = json.loads(body, parse_int=float)  # int() takes very long over a very long number
    profile = document.get("osProfile") if isinstance(document, dict) else []
    if not isinstance(profile, (dict, type(None))):
        raise ValueError("it is no JSON object with an osProfile object")
    for name in ((profile or {}).get("computerName"), document.get("name")):
        if not isinstance(name, (str, type(None))):
            raise ValueError("its name is not a string")
        if name and name.strip():
            return name
    raise ValueError("it has no computerName and no name")


def make_host_name(name: str) -> str:
    """Return *name* as an RFC 1123 label: 1 to 63 ASCII letters, digits and inner hyphens.

    Each run of other characters becomes a hyphen: hostnamectl would drop them, and so make one
    name of web1_1 and web_11. Raises ValueError if nothing is left.
    """
    label = re.sub("[^A-Za-z0-9-]+", "-", name).strip("-")[:63].rstrip("-")
    if not label:
        raise ValueError(f"no host name can be made of {name!a}")
    return label


def retry_delay(status: int, retry_after: str) -> float:
    """Return the seconds to the next attempt; only a Retry-After in whole seconds counts."""
    if status not in (429, 503) or not re.match(r"[0-9]+\Z", retry_after):
        return RETRY_SECONDS
    return min(max(float(retry_after), RETRY_SECONDS), RETRY_AFTER_MAX)


def parse_endpoint(url: str) -> str:
    """Return *url*, less a final slash, if it is http://HOST[:PORT]; otherwise raise ValueError."""
    match = re.match(r"(?ai)(http://(?:[\w.-]+|\[[\da-f:.]+\])(?::(\d{1,5}))?)/?\Z", url)
    if not match or not 1 <= int(match.group(2) or "80") <= 65535:
        raise ValueError(f"{url!a} is not http://HOST[:PORT]")
    return match.group(1)


def say(line: str, remark: str = "", error: bool = False) -> None:
    """Print *line* at once, but not twice a minute; trouble, with a *remark*, also if it is new."""
    line, now = line[:LINE_MAX], time.monotonic()
    recent = [old for old, when in said if now - when < REPEAT_SECONDS]
    known = recent[-1:] if remark else recent
    stream = sys.stderr if error else sys.stdout
    if stream is None or (line and line in known) or (remark and len(recent) >= LINES_MAX):
        return
    said.append((line, now))
    try:
        # What a peer sent must neither break the line nor steer a terminal.
        print(re.sub("[^ -~]", "?", line + remark), file=stream, flush=True)
    except OSError:
        # Nobody reads (a closed pipe, a full disk): go on, and have no error in the flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class StepFailed(Exception):
    """A step failed, with an HTTP *status* or not; try again after *delay* seconds."""

    def __init__(self, text: str, status: "Optional[int]", delay: float) -> None:
        super().__init__(text)
        self.status, self.delay = status, delay


@contextlib.contextmanager
def step(name: str) -> "Iterator[None]":
    """Turn whatever goes wrong inside into a StepFailed that names the step and the reason."""
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, (StepFailed, OSError, ValueError)) else repr(error)
        if isinstance(error, (PermissionError, TimeoutError, socket.timeout)) and os.geteuid():
            # Some images let only root reach WireServer (coreos/bugs issue 2468).
            reason += " (you are not root: try again as root)"
        status, delay = getattr(error, "status", None), getattr(error, "delay", RETRY_SECONDS)
        raise StepFailed(f"{name} failed: {reason[:REASON_MAX]}", status, delay) from error


class BoundedSocket(socket.socket):
    """A socket that reads for one answer, until *deadline* and no more bytes than *budget*."""

    deadline: float
    budget = ANSWER_MAX

    def recv_into(self, *arguments: "object") -> int:
        self.settimeout(seconds_left(self.deadline))  # it would start anew with each byte
        received = super().recv_into(*arguments)  # type: ignore[arg-type]
        self.budget -= received
        if self.budget < 0:
            raise ValueError("the answer is longer than 1 MiB")
        return received


def seconds_left(deadline: float) -> float:
    """Return the seconds until *deadline* on the monotonic clock, or raise socket.timeout."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise socket.timeout("timed out")
    return left


def exchange(url: str, headers: "Dict[str, str]", deadline: float, report: bytes = b"") -> bytes:
    """GET *url* and return the body; or POST *report* to it and return the status: "200 OK".

    Knows neither proxies nor redirects. Raises StepFailed for any status but 2xx, and OSError,
    HTTPException or ValueError for an answer that is late, broken, cut short or too long.
    """
    deadline = min(deadline, time.monotonic() + STEP_SECONDS)
    host, path = url[len("http://") :].split("/", 1)
    limit = min(CONNECT_SECONDS, seconds_left(deadline))
    with contextlib.closing(http.client.HTTPConnection(host, timeout=limit)) as connection:
        connection.connect()
        connection.sock = BoundedSocket(fileno=connection.sock.detach())
        connection.sock.deadline = deadline
        connection.sock.settimeout(seconds_left(deadline))
        connection.request("POST" if report else "GET", "/" + path, report or None, headers)
        with connection.getresponse() as response:
            status = f"{response.status} {response.reason}".strip()
            if not 200 <= response.status < 300:
                delay = retry_delay(response.status, response.getheader("Retry-After", ""))
                raise StepFailed(f"the answer is {status}", response.status, delay)
            if report:  # the status alone is the acceptance
                return status.encode()
            body = response.read()  # BoundedSocket ends it, and what is cut short is an error
            if len(body) > BODY_MAX:
                raise ValueError("the answer is longer than 1 MiB")
            if sum(map(body.count, b"={[,")) > PARTS_MAX:  # parsed, each may take 240 bytes
                raise ValueError("the answer has too many parts")
            return body


def set_host_name(name: str, deadline: float) -> None:
    """Make *name* the kernel's host name and the stored one, on disk, or raise OSError."""
    import subprocess  # not needed before Ready

    command = ["hostnamectl", "--no-ask-password", "set-hostname", name]
    limit = min(STEP_SECONDS, seconds_left(deadline))
    null = subprocess.DEVNULL
    try:
        subprocess.run(command, stdin=null, stdout=null, stderr=null, timeout=limit, check=True)
        verify_host_name(name)
    except (OSError, subprocess.SubprocessError) as error:
        say(f"{str(error).rstrip('.')}; setting the host name without hostnamectl", error=True)
        write_etc_hostname(name)
        socket.sethostname(name)
        verify_host_name(name)


def verify_host_name(name: str) -> None:
    """Return if *name* is the kernel's host name and, on disk, the stored one; or raise OSError."""
    with open(ETC_HOSTNAME, "rb") as file:
        os.fsync(file.fileno())  # else a power cut may undo the name, but not the disabled unit
        names = (socket.gethostname(), file.read(BODY_MAX).decode("utf-8", "replace").strip())
    if names != (name, name):
        raise OSError("the host name is {}, and {} is stored, not {}".format(*names, name))


def write_etc_hostname(name: str) -> None:
    """Replace /etc/hostname in one go: a power cut leaves the old name or the new one."""
    temporary = ETC_HOSTNAME + ".azure-provisioning"
    try:
        with open(temporary, "xb", buffering=0) as file:  # fails once if a kill has left one
            file.write(name.encode() + b"\n")
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.rename(temporary, ETC_HOSTNAME)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def report_ready(options: Options, deadline: float) -> None:
    """One attempt: fetch the goal state, for its current incarnation, and report Ready."""
    say(f"Fetching the goal state from {options.wireserver}")
    with step("Goal state"):
        url = options.wireserver + GOAL_STATE_PATH
        goal_state = parse_goal_state(exchange(url, WIRESERVER_HEADERS, deadline))
    say("Goal state: incarnation {}, container {}, instance {}".format(*goal_state))
    report = build_health_report(goal_state)
    if options.dry_run:
        for line in ["Would report Ready:", *report.decode().splitlines()]:
            say(line)
        return
    say("Reporting Ready")
    with step("Health report"):
        status = exchange(options.wireserver + HEALTH_PATH, HEALTH_HEADERS, deadline, report)
    say(f"Ready accepted: {status.decode()}")


def set_name(options: Options, deadline: float) -> None:
    """One attempt: ask IMDS for the name and set it."""
    say(f"Fetching the name from {options.imds}")
    raw_name = fetch_name(options.imds, deadline)
    with step("Host name"):
        name = make_host_name(raw_name)
        if options.dry_run:
            say(f"Would set the host name {name}")
            return
        set_host_name(name, deadline)
    say(f"Host name {name} set")


def fetch_name(imds: str, deadline: float) -> str:
    """Return the computer name, or from a host too old for that the VM's name."""
    try:
        with step("Compute document"):
            return parse_compute_document(exchange(imds + COMPUTE_PATH, IMDS_HEADERS, deadline))
    except StepFailed as error:
        if error.status not in (400, 404):
            raise
        say(f"{error}; asking for the plain name")
    with step("Plain name"):
        return str(exchange(imds + PLAIN_NAME_PATH, IMDS_HEADERS, deadline), "utf-8", "replace")


def persist(attempt: "Callable[[Options, float], None]", options: Options, seconds: float) -> bool:
    """Make *attempt* after *attempt* until one succeeds or the *seconds* are over; return which."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            # The last attempt has a second, too, to find that the trouble is over.
            attempt(options, max(deadline, time.monotonic() + 1))
            return True
        except Exception as error:  # whatever it was, the next attempt may put it right
            left = deadline - time.monotonic()
            if left <= 0:
                say(f"{error}; giving up", error=True)
                return False
            say(str(error), f"; trying again for {int(left) + 1} s", error=True)
            time.sleep(min(left, getattr(error, "delay", RETRY_SECONDS)))


def parse_arguments(arguments: "List[str]") -> Options:
    """Return the options; for --help, --version and wrong usage print and exit instead."""
    import getopt  # not needed in the unit

    names = ["dry-run", "timeout=", "wireserver=", "imds=", "version", "help"]
    try:
        pairs, rest = getopt.getopt(arguments, "h", names)
        if rest:
            raise ValueError(f"unexpected argument {rest[0]!a}")
        given = dict(pairs)
        if given.keys() & {"-h", "--help", "--version"}:
            for line in [__version__] if "--version" in given else __doc__.strip().splitlines():
                say(line)
            sys.exit(EXIT_OK)
        timeout = float(given["--timeout"]) if "--timeout" in given else None
        if timeout is not None and not 0 < timeout <= TIMEOUT_MAX:
            raise ValueError(f"--timeout takes more than 0 and at most {TIMEOUT_MAX} seconds")
        wireserver = parse_endpoint(given.get("--wireserver", DEFAULTS.wireserver))
        imds = parse_endpoint(given.get("--imds", DEFAULTS.imds))
        return Options(wireserver, imds, timeout, "--dry-run" in given)
    except (getopt.GetoptError, ValueError) as error:
        say(f"azure_provisioning.py: {error} (try --help)", error=True)
        sys.exit(EXIT_USAGE)


def main() -> int:
    """Do as the command line says; return the exit status."""
    options = parse_arguments(sys.argv[1:]) if sys.argv[1:] else DEFAULTS
    try:
        ready = persist(report_ready, options, options.timeout or WIRESERVER_SECONDS)
        named = ready and persist(set_name, options, options.timeout or IMDS_SECONDS)
    except KeyboardInterrupt:
        say("Interrupted", error=True)
        return EXIT_INTERRUPTED
    return EXIT_OK if named else EXIT_NOT_NAMED if ready else EXIT_NOT_READY


if __name__ == "__main__":
    sys.exit(main())
