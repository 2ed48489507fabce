"""WireServer and IMDS as one program, for tests and by hand; see its --help.

It answers as Azure has been seen to, and is strict where Azure is: about headers,
api-versions, the structure of the health report and the three values in it. Each endpoint can be
told to misbehave for some requests or some seconds.
"""

import argparse
import collections
import contextlib
import http.server
import json
import re
import socket
import socketserver
import struct
import threading
import time
from typing import Any, Callable, NamedTuple, Optional, Union
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

WIRESERVER_VERSIONS = ("2012-11-30", "2015-04-05")
OLD_IMDS_VERSIONS = ("2017-08-01", "2017-12-01")  # as on Azure Stack Hub
NEW_IMDS_VERSIONS = "2018-10-01 2019-06-01 2020-07-15 2021-02-01 2023-11-15 2025-04-07".split()
IMDS_VERSIONS = (*OLD_IMDS_VERSIONS, *NEW_IMDS_VERSIONS)
COMPUTER_NAME_SINCE = "2020-07-15"
IMDS_REQUESTS_A_SECOND = 5
FOR_EVER = float("inf")
ENDPOINTS = {
    "wireserver": ("goalstate", "health", "versions"),
    "imds": ("computer-name", "name", "public-key", "compute"),
}

GOAL_STATE = """\
<?xml version="1.0" encoding="utf-8"?>
<GoalState xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
           xsi:noNamespaceSchemaLocation="goalstate10.xsd">
  <Version>2012-11-30</Version>
  <Incarnation>{incarnation}</Incarnation>
  <Machine><ExpectedState>Started</ExpectedState></Machine>
  <Container>
    <ContainerId>{container_id}</ContainerId>
    <RoleInstanceList>
      <RoleInstance>
        <InstanceId>{instance_id}</InstanceId>
        <State>Started</State>
      </RoleInstance>
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
    headers: "dict[str, str]"
    body: bytes
    answer: str


class Answer(NamedTuple):
    status: int
    body: bytes = b""
    content_type: str = "text/plain"
    headers: "tuple[tuple[str, str], ...]" = ()


Fault = Callable[["Handler"], None]


def status_fault(text: str) -> Fault:
    """503, or with headers 302,Location=/: an error page with that status."""
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


def close(handler: "Handler") -> None:
    """The connection ends without an answer."""


def silent(handler: "Handler") -> None:
    """The connection stays open, nothing comes."""
    handler.host.stopping.wait()


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
    "close": close,
    "silent": silent,
    "slow-headers": endless(OK + b"X-Slow: ", b"x", DRIP_SECONDS),
    "slow-body": endless(OK + b"Content-Length: 100000\r\n\r\n", b"x", DRIP_SECONDS),
    "truncated": raw_fault(OK + b"Content-Length: 1000\r\n\r\n<GoalState>"),
    "truncated-chunk": raw_fault(CHUNKED + b"ff\r\n<GoalState>"),
    "bad-chunk": raw_fault(CHUNKED + b"xyz\r\n<Goal"),
    "endless-chunks": endless(CHUNKED, (b"1;" + b"x" * 1000 + b"\r\nx\r\n") * 100),
    "endless-headers": endless(OK, b"X-Header: x\r\n" * 100),
    "endless-line": endless(OK + b"X-Header: ", b"x" * 100_000),
    "not-http": raw_fault(b"SSH-2.0-OpenSSH_9.2p1\r\n"),
    "huge": endless(OK + b"Content-Length: 67108864\r\n\r\n", b"x" * 1_000_000),
    "stale": stale,
}


def make_fault(text: str) -> Fault:
    """The fault that a command line names: one of FAULTS, body=TEXT, or a status."""
    if text in FAULTS:
        return FAULTS[text]
    if text.startswith("body="):
        return body_fault(text[len("body=") :].encode())
    if re.fullmatch(r"[2-5]\d\d(,[\w-]+=[^,]*)*", text):
        return status_fault(text)
    raise ValueError(f"{text!r} is no status, no body=TEXT and none of {', '.join(FAULTS)}")


class ArmedFault:
    """A fault for an endpoint that lasts for some requests, until some time, or for ever."""

    def __init__(self, name: str, fault: Fault, times: float, until: float) -> None:
        self.name, self.fault, self.times, self.until = name, fault, times, until

    def take(self) -> bool:
        """Return whether it still applies; each call uses up one time."""
        self.times -= 1
        return self.times >= 0 and time.monotonic() < self.until


class SimulatedHost:
    """An Azure host with one VM on it; "with" starts and ends its two services."""

    def __init__(
        self,
        vm: Optional[Vm] = None,
        wireserver: "tuple[str, int]" = ("127.0.0.1", 0),
        imds: "tuple[str, int]" = ("127.0.0.1", 0),
        imds_versions: "tuple[str, ...]" = IMDS_VERSIONS,
        imds_rate: int = IMDS_REQUESTS_A_SECOND,
        on_request: Callable[[Request], None] = lambda _: None,
    ) -> None:
        self.vm = vm or Vm()
        self.incarnation = 1
        self.imds_versions = imds_versions
        self.on_request = on_request
        self.requests: list[Request] = []
        self.accepted: list[bytes] = []  # health reports
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.imds_times: collections.deque[float] = collections.deque(maxlen=imds_rate)
        self.faults: dict[str, list[ArmedFault]] = collections.defaultdict(list)
        self.servers: dict[str, Server] = {}
        for service, address in (("wireserver", wireserver), ("imds", imds)):
            self.servers[service] = Server(self, service, address)

    def __enter__(self) -> "SimulatedHost":
        for service in self.servers:
            self.listen(service)
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for service in self.servers:
            self.refuse(service)
        for server in self.servers.values():
            server.server_close()

    def url(self, service: str) -> str:
        address, port = self.servers[service].server_address[:2]
        return f"http://{address!s}:{port}"

    def options(self) -> "list[str]":
        """Return the options that point the script at this host."""
        return [f"--{service}={self.url(service)}" for service in self.servers]

    def refuse(self, service: str) -> None:
        """Refuse connections from now on; the port stays taken."""
        self.servers[service].stop_listening()

    def listen(self, service: str) -> None:
        """Accept connections from now on."""
        self.servers[service].start_listening()

    def listen_after(self, service: str, seconds: float) -> None:
        """Refuse connections for *seconds*."""
        self.refuse(service)

        def return_to_service() -> None:
            if not self.stopping.wait(min(seconds, threading.TIMEOUT_MAX)):
                self.listen(service)

        threading.Thread(target=return_to_service, daemon=True).start()

    def misbehave(
        self,
        endpoint: str,
        fault: Union[str, Fault],
        times: float = FOR_EVER,
        seconds: float = FOR_EVER,
    ) -> None:
        """Answer *endpoint*, or all of a service, with *fault*; faults queue up.

        At the endpoints wireserver-accept and imds-accept a fault does not wait for a request.
        """
        name, fault = (fault, make_fault(fault)) if isinstance(fault, str) else ("raw", fault)
        until = time.monotonic() + seconds
        for one in ENDPOINTS.get(endpoint, (endpoint,)):
            self.faults[one].append(ArmedFault(name, fault, times, until))

    def recover(self) -> None:
        """Have no fault any more, and accept connections."""
        self.faults.clear()
        for service in self.servers:
            self.listen(service)

    def fault_for(self, endpoint: str) -> Optional[ArmedFault]:
        with self.lock:
            queue = self.faults[endpoint]
            while queue:
                if queue[0].take():
                    return queue[0]
                queue.pop(0)
        return None

    def goal_state(self) -> bytes:
        fields = dict(self.vm._asdict(), incarnation=self.incarnation)
        values = {name: escape(str(value)) for name, value in fields.items()}
        return b"\xef\xbb\xbf" + GOAL_STATE.format(**values).encode()

    def health(self, headers: "dict[str, str]", body: bytes) -> Answer:
        """Judge a health report."""
        if not headers.get("x-ms-agent-name"):
            return Answer(400, b"x-ms-agent-name is missing")
        if headers.get("content-type", "").replace(" ", "").lower() != "text/xml;charset=utf-8":
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
        path = "/home/azureuser/.ssh/authorized_keys"
        keys = [{"keyData": key, "path": path} for key in self.vm.public_keys]
        document: dict[str, Any] = {"name": self.vm.name, "osType": "Linux", "publicKeys": keys}
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
    """One of the two services. It takes its port at once, but listens only when told to."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, host: SimulatedHost, service: str, address: "tuple[str, int]") -> None:
        self.host, self.service = host, service
        super().__init__(address, Handler, bind_and_activate=False)
        try:
            self.server_bind()
        except OSError:
            self.server_close()
            raise
        self.thread: Optional[threading.Thread] = None

    def server_bind(self) -> None:
        # A listener that stops listening loses a port that the kernel chose for it, but keeps one
        # that it asked for by number: so learn a free one, then ask for it while it is still held.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        with self.socket:
            self.socket = socket.socket(self.address_family, self.socket_type)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(self.server_address)

    def handle_error(self, *_: object) -> None:
        """Be silent: a client that goes away in the middle is what a test wants to see."""

    def start_listening(self) -> None:
        if self.thread is None:
            self.server_activate()
            self.thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
            self.thread.start()

    def stop_listening(self) -> None:
        if self.thread is not None:
            self.shutdown()
            self.thread.join()
            self.thread = None
            # On Linux this ends listening, and keeps the port.
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RD)


class Handler(http.server.BaseHTTPRequestHandler):
    """One request: what to answer, or which fault."""

    protocol_version = "HTTP/1.1"
    server: Server

    @property
    def host(self) -> SimulatedHost:
        return self.server.host

    def handle(self) -> None:
        armed = self.host.fault_for(f"{self.server.service}-accept")
        if not armed:
            super().handle()
            return
        with contextlib.suppress(OSError):  # before a request is read
            armed.fault(self)

    def handle_request(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        armed = self.host.fault_for(self.endpoint())
        with contextlib.suppress(OSError):
            if armed:
                self.close_connection = True  # else it stays open, unless the client asks to close
                self.record(armed.name)
                armed.fault(self)
            else:
                answer = self.answer()
                self.record(str(answer.status))
                self.send(answer)

    do_GET = do_POST = do_PUT = do_HEAD = handle_request

    def endpoint(self) -> str:
        url = urlsplit(self.path)
        if self.server.service == "wireserver":
            return parse_qs(url.query).get("comp", [""])[0]
        ends = {"computerName": "computer-name", "name": "name", "keyData": "public-key"}
        return ends.get(url.path.rpartition("/")[2], "compute")

    def header_dict(self) -> "dict[str, str]":
        return {name.lower(): value for name, value in self.headers.items()}

    def answer(self) -> Answer:
        """What a host without any fault answers."""
        if not self.path.startswith("/") or "Host" not in self.headers:
            return Answer(400, b"a request for a proxy, or without Host")
        return self.wireserver() if self.server.service == "wireserver" else self.imds()

    def wireserver(self) -> Answer:
        request = (self.command, self.path.replace("/machine/?", "/machine?"))
        if request == ("GET", "/?comp=versions"):
            versions = "".join(f"<Version>{v}</Version>" for v in WIRESERVER_VERSIONS)
            text = f"<Versions><Supported>{versions}</Supported></Versions>"
            return Answer(200, text.encode(), "text/xml; charset=utf-8")
        headers = self.header_dict()
        if headers.get("x-ms-version") not in WIRESERVER_VERSIONS:
            return Answer(400, b"x-ms-version is missing or not supported")
        if request == ("GET", "/machine?comp=goalstate"):
            return Answer(200, self.host.goal_state(), "text/xml; charset=utf-8")
        if request == ("POST", "/machine?comp=health"):
            return self.host.health(headers, self.body)
        return Answer(404, b"no such resource")

    def imds(self) -> Answer:
        headers, url = self.header_dict(), urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        version = query.get("api-version", "")

        def error(status: int, text: str) -> Answer:
            return Answer(status, json.dumps({"error": text}).encode(), "application/json")

        if headers.get("metadata", "").lower() != "true":
            return error(400, "Bad request. Required metadata header not specified")
        if "x-forwarded-for" in headers:
            return error(400, "Bad request. X-Forwarded-For is not allowed")
        if version not in self.host.imds_versions:
            return error(400, "Bad request. api-version is missing or not known")
        if self.command != "GET":
            return error(405, "Method not allowed")
        times = self.host.imds_times
        if len(times) == times.maxlen and time.monotonic() - times[0] < 1:
            return error(429, "Too many requests")
        times.append(time.monotonic())
        document: Any = {"compute": self.host.compute(version)}
        root, *keys = url.path.rstrip("/").split("/metadata/instance")
        if root or not keys:
            return error(404, "Not found")
        for key in filter(None, keys[0].split("/")):
            if isinstance(document, list):
                document = dict(zip(map(str, range(len(document))), document))
            if not isinstance(document, dict) or key not in document:
                return error(404, "Not found")
            document = document[key]
        if query.get("format", "json") == "json":
            return Answer(200, json.dumps(document).encode(), "application/json; charset=utf-8")
        if query["format"] == "text" and isinstance(document, str):
            return Answer(200, document.encode(), "text/plain; charset=utf-8")
        return error(400, "Bad request. The format is not supported")

    def record(self, outcome: str) -> None:
        service, headers = self.server.service, self.header_dict()
        when = time.time()
        request = Request(when, service, self.command, self.path, headers, self.body, outcome)
        self.host.requests.append(request)
        self.host.on_request(request)

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
    if not address or not 0 <= int(port) <= 65535:
        raise ValueError(text)
    return address, int(port)


def arm(host: SimulatedHost, text: str) -> None:
    """Arm the fault of a command line: ENDPOINT:FAULT[:3x|:10s]; SERVICE:refused[:10s]."""
    endpoint, _, rest = text.partition(":")
    kind, _, length = rest.rpartition(":") if rest[-1:] in "xs" and ":" in rest else (rest, "", "")
    times = int(length[:-1]) if length.endswith("x") else FOR_EVER
    seconds = float(length[:-1]) if length.endswith("s") else FOR_EVER
    known = [*ENDPOINTS, *(one for endpoints in ENDPOINTS.values() for one in endpoints)]
    if endpoint not in known:
        raise ValueError(f"{endpoint!r} is none of {', '.join(known)}")
    if kind != "refused":
        host.misbehave(endpoint, kind, times, seconds)
    elif endpoint not in ENDPOINTS or times != FOR_EVER:
        raise ValueError("only wireserver or imds can be refused, for seconds or for ever")
    else:
        host.listen_after(endpoint, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A simulated Azure host: WireServer and IMDS, on loopback by default.",
        epilog=(
            "FAULT is ENDPOINT:KIND or ENDPOINT:KIND:3x (requests) or ENDPOINT:KIND:10s (seconds "
            "from the start); more of one endpoint come one after the other. ENDPOINT is "
            "goalstate, health, versions, computer-name, name (the VM's), public-key (for SSH), "
            "compute (the document), or all of wireserver or imds. KIND is a "
            "status such as 503 or 302,Location=/, body=TEXT, refused (of wireserver or imds), "
            "or one of: " + ", ".join(FAULTS) + "."
        ),
    )
    parser.add_argument("--wireserver", type=parse_address, default="127.0.0.1:0", metavar="A:P")
    parser.add_argument("--imds", type=parse_address, default="127.0.0.1:0", metavar="A:P")
    parser.add_argument("--name", default="myvm", help="the VM resource's name")
    parser.add_argument("--computer-name", metavar="NAME", help="if missing, there is none")
    parser.add_argument(
        "--public-key", action="append", default=[], metavar="KEY", help="for SSH (repeatable)"
    )
    parser.add_argument("--old-imds", action="store_true", help="know no api-version after 2017")
    parser.add_argument("--fault", action="append", default=[], help="misbehave (repeatable)")
    options = parser.parse_args()
    vm = Vm(options.name, options.computer_name, public_keys=tuple(options.public_key))
    versions = OLD_IMDS_VERSIONS if options.old_imds else IMDS_VERSIONS
    try:
        host = SimulatedHost(
            vm, options.wireserver, options.imds, versions, on_request=print_request
        )
    except OSError as error:
        parser.error(f"cannot listen there: {error}")
    with host:
        for text in options.fault:
            try:
                arm(host, text)
            except ValueError as error:
                parser.error(f"--fault {text}: {error}")
        print("WireServer:", host.url("wireserver"), flush=True)
        print("IMDS:      ", host.url("imds"), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
