"""WireServer and IMDS as one program, for tests and by hand; see its --help.

It answers as Azure has been seen to, and is strict where Azure is: about headers,
api-versions, the structure of the health report and the values in it. Each endpoint can be
told to misbehave for some requests.
"""

import argparse
import http.server
import itertools
import json
import re
import socket
import socketserver
import struct
import sys
import threading
import time
from email.message import Message
from typing import Any, Callable, Iterator, NamedTuple, Optional, Union
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

WIRESERVER_VERSIONS = ("2012-11-30", "2015-04-05")
OLD_IMDS_VERSIONS = ("2017-08-01", "2017-12-01")  # as on Azure Stack Hub
COMPUTER_NAME_SINCE = "2020-07-15"
IMDS_VERSIONS = (*OLD_IMDS_VERSIONS, "2019-06-01", COMPUTER_NAME_SINCE, "2021-02-01")
FOR_EVER = sys.maxsize
ENDPOINTS = {
    "wireserver": ("goalstate", "health"),
    "imds": ("computer-name", "name", "public-key"),
}

GOAL_STATE = """\
<?xml version="1.0" encoding="utf-8"?>
<GoalState xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
  <Version>2012-11-30</Version>
  <Incarnation>{incarnation}</Incarnation>
  <Machine><ExpectedState>Started</ExpectedState></Machine>
  <Container>
    <ContainerId>{container_id}</ContainerId>
    <RoleInstanceList>
      <RoleInstance><InstanceId>{instance_id}</InstanceId><State>Started</State></RoleInstance>
    </RoleInstanceList>
  </Container>
</GoalState>
""".replace("\n", "\r\n")


class Vm(NamedTuple):
    """What the platform knows of the VM. *computer_name* None: made from a specialized disk."""

    name: str = "myvm"
    computer_name: Optional[str] = "myvm"
    container_id: str = "00000000-1111-2222-3333-444444444444"
    instance_id: str = "55555555-6666-7777-8888-999999999999._myvm"
    public_keys: "tuple[str, ...]" = ()  # for SSH


class Request(NamedTuple):
    """One request as it came in, and the status or the fault that it was answered with."""

    when: float
    service: str
    method: str
    target: str
    headers: Message
    body: bytes
    answer: str


class Answer(NamedTuple):
    status: int
    body: bytes = b""
    content_type: str = "text/plain"
    headers: "tuple[tuple[str, str], ...]" = ()


Fault = Callable[["Handler"], None]


def status_fault(text: str) -> Fault:
    """503, or with a header 302,Location=/: an error page with that status."""
    status, *headers = text.split(",")
    pairs = tuple((name, value) for name, _, value in (h.partition("=") for h in headers))
    page = f"<html><body><h1>{status}</h1></body></html>".encode()
    return lambda handler: handler.send(Answer(int(status), page, "text/html", pairs))


def body_fault(body: bytes, content_type: str = "text/plain") -> Fault:
    """A perfectly good 200 with *body*."""
    return lambda handler: handler.send(Answer(200, body, content_type))


def changed_body(change: Callable[[bytes], bytes]) -> Fault:
    """The right answer, but for its body."""

    def fault(handler: "Handler") -> None:
        answer = handler.answer()
        handler.send(answer._replace(body=change(answer.body)))

    return fault


def framed(frame: Callable[[bytes], bytes]) -> Fault:
    """The right answer's body in another HTTP message, then the end of the connection."""
    return lambda handler: handler.send_raw(frame(handler.answer().body))


def raw_fault(data: bytes) -> Fault:
    """Exactly these bytes, then the end of the connection."""
    return lambda handler: handler.send_raw(data)


def reset(handler: "Handler") -> None:
    """The connection ends with a reset."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def endless(prefix: bytes, again: bytes, seconds: float = 0) -> Fault:
    """More and more, with pauses of so many *seconds* or as fast as it goes."""

    def fault(handler: "Handler") -> None:
        handler.send_raw(prefix)
        while not handler.host.stopping.wait(seconds):
            handler.send_raw(again)

    return fault


OK, DRIP_SECONDS = b"HTTP/1.1 200 OK\r\n", 0.5
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def stale(handler: "Handler") -> None:
    """The goal state moves on just before the request, which is then answered as it deserves."""
    handler.host.incarnation += 1
    handler.send(handler.answer())


FAULTS: "dict[str, Fault]" = {
    "reset": reset,
    "close": raw_fault(b""),
    "silent": endless(b"", b"", 1),
    "slow-headers": endless(OK + b"X-Slow: ", b"x", DRIP_SECONDS),
    "slow-body": endless(OK + b"Content-Length: 100000\r\n\r\n", b"x", DRIP_SECONDS),
    "truncated": raw_fault(OK + b"Content-Length: 1000\r\n\r\n<GoalState>"),
    "truncated-chunk": raw_fault(CHUNKED + b"ff\r\n<GoalState>"),
    "bad-chunk": raw_fault(CHUNKED + b"xyz\r\n<Goal"),
    "endless-chunks": endless(CHUNKED, (b"1;" + b"x" * 1000 + b"\r\nx\r\n") * 100),
    "endless-headers": endless(OK, b"X-Header: x\r\n" * 100),
    "endless-line": endless(OK + b"X-Header: ", b"x" * 100_000),
    "not-http": raw_fault(b"SSH-2.0-OpenSSH_9.2p1\r\n"),
    "stale": stale,
}


def make_fault(text: str) -> Fault:
    """The fault of this KIND; see EPILOG."""
    if text in FAULTS:
        return FAULTS[text]
    if text.startswith("body="):
        return body_fault(text[len("body=") :].encode())
    if re.fullmatch(r"[2-5]\d\d(,[\w-]+=[^,]*)*", text):
        return status_fault(text)
    raise ValueError(f"there is no fault {text}")


class SimulatedHost:
    """An Azure host with one VM on it; "with" starts and ends its two services."""

    def __init__(
        self,
        vm: Optional[Vm] = None,
        wireserver: "tuple[str, int]" = ("127.0.0.1", 0),
        imds: "tuple[str, int]" = ("127.0.0.1", 0),
        on_request: Callable[[Request], None] = lambda _: None,
    ) -> None:
        self.vm = vm or Vm()
        self.incarnation = 1
        self.imds_versions: tuple[str, ...] = IMDS_VERSIONS
        self.imds_rate = 5  # requests a second
        self.imds_times: list[float] = []
        self.on_request = on_request
        self.requests: list[Request] = []
        self.accepted: list[bytes] = []  # health reports
        self.stopping = threading.Event()
        self.faults: dict[str, Iterator[tuple[str, Fault]]] = {}  # those to come, by endpoint
        addresses = {"wireserver": wireserver, "imds": imds}
        self.servers = {name: Server(self, name, one) for name, one in addresses.items()}

    def __enter__(self) -> "SimulatedHost":
        self.recover()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for service, server in self.servers.items():
            self.refuse(service)
            server.server_close()

    def url(self, service: str) -> str:
        address, port = self.servers[service].server_address[:2]
        return f"http://{address!s}:{port}"

    def options(self) -> "list[str]":
        """Return the options that point the script at this host."""
        return [f"--{service}={self.url(service)}" for service in self.servers]

    def refuse(self, service: str) -> None:
        """Refuse connections from now on; the port stays taken."""
        server = self.servers[service]
        if server.thread is not None:
            server.shutdown()
            server.thread.join()
            server.thread = None
            server.socket.shutdown(socket.SHUT_RD)  # ends listening, and keeps the port

    def listen(self, service: str) -> None:
        """Accept connections from now on."""
        server = self.servers[service]
        if server.thread is None and not self.stopping.is_set():
            server.server_activate()
            server.thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            server.thread.start()

    def misbehave(self, endpoint: str, fault: Union[str, Fault], times: int = FOR_EVER) -> None:
        """Answer *endpoint*, or all of a service, with *fault*; faults queue up."""
        named = (fault, make_fault(fault)) if isinstance(fault, str) else ("raw", fault)
        for one in ENDPOINTS.get(endpoint, (endpoint,)):
            before = self.faults.get(one, ())
            self.faults[one] = itertools.chain(before, itertools.repeat(named, times))

    def recover(self) -> None:
        """Have no fault any more, and accept connections."""
        self.faults.clear()
        for service in self.servers:
            self.listen(service)

    def goal_state(self) -> bytes:
        fields = dict(self.vm._asdict(), incarnation=self.incarnation)
        values = {name: escape(str(value)) for name, value in fields.items()}
        return b"\xef\xbb\xbf" + GOAL_STATE.format(**values).encode()

    def health(self, headers: Message, body: bytes) -> Answer:
        """Judge a health report."""
        if not headers["x-ms-agent-name"]:
            return Answer(400, b"x-ms-agent-name is missing")
        if headers.get("Content-Type", "").replace(" ", "").lower() != "text/xml;charset=utf-8":
            return Answer(400, b"Content-Type is not text/xml;charset=utf-8")
        try:
            values = report_values(body)
        except (ElementTree.ParseError, ValueError) as error:
            return Answer(400, f"not a health report: {error}".encode())
        if values[0] != str(self.incarnation):
            return Answer(410, b"not the current incarnation")
        if values[1:] != [self.vm.container_id, self.vm.instance_id, "Ready"]:
            return Answer(400, b"not this VM, or not Ready")
        self.accepted.append(body)
        return Answer(200)

    def compute(self, version: str) -> "dict[str, Any]":
        keys = [{"keyData": key} for key in self.vm.public_keys]
        document: dict[str, Any] = {"name": self.vm.name, "publicKeys": keys}
        if version >= COMPUTER_NAME_SINCE and self.vm.computer_name is not None:
            document["osProfile"] = {"computerName": self.vm.computer_name}
        return document


# Each element of a health report in its order, and how many children it has.
REPORT = [
    *(("Health", 2), ("GoalStateIncarnation", 0), ("Container", 2), ("ContainerId", 0)),
    *(("RoleInstanceList", 1), ("Role", 2), ("InstanceId", 0), ("Health", 1), ("State", 0)),
]


def report_values(body: bytes) -> "list[str]":
    """Return incarnation, container ID, instance ID and state of a report of exactly that shape."""
    elements = list(ElementTree.fromstring(body).iter())
    shape = [(element.tag, len(element)) for element in elements]
    if shape != REPORT:
        raise ValueError(f"it has {shape}, not {REPORT}")
    return [element.text or "" for element in elements if len(element) == 0]


class Server(socketserver.ThreadingTCPServer):
    """One of the two services. It can refuse connections, and keeps its port."""

    allow_reuse_address = daemon_threads = True
    block_on_close = False
    thread: Optional[threading.Thread] = None

    def __init__(self, host: SimulatedHost, service: str, address: "tuple[str, int]") -> None:
        self.host, self.service = host, service
        super().__init__(address, Handler)

    def server_bind(self) -> None:
        # A listener that stops listening loses a port that the kernel chose for it, but keeps one
        # that it asked for by number: so learn a free one, then ask for it while it is still held.
        super().server_bind()
        with self.socket:
            self.socket = socket.socket(self.address_family, self.socket_type)
            super().server_bind()

    def handle_error(self, *_: object) -> None:
        """Be silent: a client that goes away in the middle is what a test wants to see."""


class Handler(http.server.BaseHTTPRequestHandler):
    """One request: what to answer, or which fault."""

    protocol_version = "HTTP/1.1"
    server: Server

    @property
    def host(self) -> SimulatedHost:
        return self.server.host

    def handle_request(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        named = next(self.host.faults.get(self.endpoint(), iter(())), None)
        if named:
            outcome, fault = named
            self.close_connection = True  # else it stays open, unless the client asks to close
        else:
            answer = self.answer()
            outcome, fault = str(answer.status), lambda handler: handler.send(answer)
        seen = (self.server.service, self.command, self.path, self.headers, self.body, outcome)
        request = Request(time.time(), *seen)
        self.host.requests.append(request)
        self.host.on_request(request)
        fault(self)

    do_GET = do_POST = handle_request

    def endpoint(self) -> str:
        url = urlsplit(self.path)
        if self.server.service == "wireserver":
            return parse_qs(url.query).get("comp", [""])[0]
        ends = {"computerName": "computer-name", "name": "name", "keyData": "public-key"}
        return ends.get(url.path.rpartition("/")[2], "compute")

    def answer(self) -> Answer:
        """What a host without any fault answers."""
        if not self.path.startswith("/") or "Host" not in self.headers:
            return Answer(400, b"a request for a proxy, or without Host")
        return self.wireserver() if self.server.service == "wireserver" else self.imds()

    def wireserver(self) -> Answer:
        request = (self.command, self.path.replace("/machine/?", "/machine?"))
        if self.headers["x-ms-version"] not in WIRESERVER_VERSIONS:
            return Answer(400, b"x-ms-version is missing or not supported")
        if request == ("GET", "/machine?comp=goalstate"):
            return Answer(200, self.host.goal_state(), "text/xml; charset=utf-8")
        if request == ("POST", "/machine?comp=health"):
            return self.host.health(self.headers, self.body)
        return Answer(404, b"no such resource")

    def imds(self) -> Answer:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        version = query.get("api-version", "")
        if self.headers.get("Metadata", "").lower() != "true":
            return Answer(400, b"the header Metadata is missing")
        if version not in self.host.imds_versions:
            return Answer(400, b"api-version is missing or not known")
        now = time.monotonic()
        self.host.imds_times = [one for one in self.host.imds_times if now - one < 1] + [now]
        if len(self.host.imds_times) > self.host.imds_rate:
            return Answer(429, b"too many requests")
        # A client asks for a leaf; cloud-init, in an image that is tried, for all of it, as JSON.
        document: Any = {"metadata": {"instance": {"compute": self.host.compute(version)}}}
        try:
            for key in url.path.strip("/").split("/"):
                document = document[int(key) if isinstance(document, list) else key]
        except (LookupError, TypeError, ValueError):
            return Answer(404, b"not found")
        if query.get("format") == "text" and isinstance(document, str):
            return Answer(200, document.encode(), "text/plain; charset=utf-8")
        return Answer(200, json.dumps(document).encode(), "application/json; charset=utf-8")

    def send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    def send_raw(self, data: bytes) -> None:
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Requests are recorded, not logged."""


def print_request(request: Request) -> None:
    when = time.strftime("%H:%M:%S", time.localtime(request.when))
    print(when, request.service, request.method, request.target, "->", request.answer, flush=True)
    for line in request.body.decode("utf-8", "replace").splitlines():
        print("    " + line, flush=True)


def parse_address(text: str) -> "tuple[str, int]":
    address, _, port = text.rpartition(":")
    return address, int(port)


def arm(host: SimulatedHost, text: str) -> None:
    """Arm the fault of a command line: ENDPOINT:KIND[:3x]."""
    known = [*ENDPOINTS, *ENDPOINTS["wireserver"], *ENDPOINTS["imds"]]
    fault = re.fullmatch(rf"({'|'.join(known)}):(.*?)(?::(\d+)x)?", text)
    if not fault:
        raise ValueError(f"fault {text} has none of the endpoints {', '.join(known)}")
    host.misbehave(fault[1], fault[2], int(fault[3] or FOR_EVER))


EPILOG = """
FAULT is ENDPOINT:KIND or ENDPOINT:KIND:3x, for as many requests. ENDPOINT is goalstate, health,
computer-name, name (the VM's), public-key (for SSH), or all of wireserver or imds. KIND is a
status such as 503 or 302,Location=/, body=TEXT, or one of: {}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A simulated Azure host: WireServer and IMDS.",
        epilog=EPILOG.format(", ".join(FAULTS)),
    )
    for service in ENDPOINTS:
        parser.add_argument(
            f"--{service}", type=parse_address, default="127.0.0.1:0", metavar="ADDRESS:PORT"
        )
    parser.add_argument("--name", default="myvm", help="the VM resource's name")
    parser.add_argument("--computer-name", metavar="NAME", help="if missing, there is none")
    parser.add_argument("--fault", action="append", default=[], help="misbehave (repeatable)")
    options = parser.parse_args()
    vm, addresses = Vm(options.name, options.computer_name), (options.wireserver, options.imds)
    try:
        with SimulatedHost(vm, *addresses, on_request=print_request) as host:
            for text in options.fault:
                arm(host, text)
            print("WireServer:", host.url("wireserver"), flush=True)
            print("IMDS:      ", host.url("imds"), flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        pass
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
