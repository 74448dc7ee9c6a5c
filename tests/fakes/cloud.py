"""What the fake providers have in common: requests and answers, faults, the audit of calls, and a real HTTP server.

A `Cloud` answers a request (`answer`), whichever way it came: through the HTTP server that `serving` starts, or handed in by
a test that wants no sockets. Time and waiting are `now` and `pause`, which a test may set. `own(ip, server)` is called with
each change of who has an address, so that the network of a test can follow.

`faults` is a list of rules, and below `/__fake__/` programs that are not in this process have the same:

    GET    /__fake__/state               who has what
    GET    /__fake__/calls               the audit, oldest first
    POST   /__fake__/faults [rule, ...]  add rules; DELETE takes all away
    POST   /__fake__/do/NAME {...}       what others do to the cloud: a method of it with the decorator `drift`
"""

import contextlib
import copy
import json
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

Do = Literal[
    "status",
    "apply_then_fail",
    "apply_then_reset",
    "delay",
    "delay_after",
    "hang",
    "reset",
    "stale",
    "drift",
    "truncated",
    "not_json",
    "empty",
]
"""What a fault does:

status            `status` instead of an effect, with `code`, `retry_after`, and `html` for a proxy's page
apply_then_fail   the effect, and then 500; apply_then_reset: and then a lost connection
delay             so many `seconds` before the effect; delay_after: after it, before the answer
hang              no answer and no effect; reset: a lost connection and no effect
stale             a read is answered as things were `seconds` ago
drift             the method `name` of the cloud is called with `arguments` before the effect
truncated         the effect, and half of the answer; not_json: another text; empty: nothing
"""

Handler = Callable[..., "Answer"]
Route = tuple[str, re.Pattern[str], Handler]


@dataclass(frozen=True)
class Request:
    """A request, its path without the API's prefix."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    headers: Mapping[str, str]
    body: Any
    at: float = 0.0

    @property
    def credential(self) -> str:
        """Who asks."""
        return self.headers.get("authorization", "") or self.headers.get("x-auth-token", "")


@dataclass
class Answer:
    """An answer; `body` is JSON, or text as it is."""

    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        """The body's octets."""
        if self.body is None:
            return b""
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()


class Lost(Exception):
    """The connection ends without an answer; after a wait if the server hangs."""

    def __init__(self, *, hangs: bool = False) -> None:
        super().__init__()
        self.hangs = hangs


@dataclass
class Fault:
    """A rule: matching requests, but for the first `after`, have this fault, `times` times, each with a probability."""

    do: Do
    method: str = ".*"
    path: str = ".*"
    credential: str = ".*"
    after: int = 0
    times: int | None = None
    probability: float = 1.0
    status: int = 503
    code: str = ""
    retry_after: str = ""
    html: bool = False
    seconds: float = 0.0
    name: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)

    def applies(self, request: Request, chance: random.Random) -> bool:
        """Whether this request has the fault; counts."""
        if self.times == 0 or not (
            re.fullmatch(self.method, request.method)
            and re.search(self.path, request.path)
            and re.search(self.credential, request.credential)
        ):
            return False
        if self.after > 0:
            self.after -= 1
            return False
        if chance.random() >= self.probability:
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass(frozen=True)
class Call:
    """A line of the audit. `status` 0: the connection was lost."""

    at: float
    credential: str
    method: str
    path: str
    body: Any
    status: int

    @property
    def is_write(self) -> bool:
        """Whether it was to change something."""
        return self.method != "GET"


def drift(method: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a method as something that others do to the cloud, which a fault or the control API may call."""
    method.is_drift = True  # type: ignore[attr-defined]
    return method


class Cloud:
    """A provider. A subclass has `prefix`, `routes` and `error`, keeps all its state in `world`, and may have drift."""

    prefix = ""
    server_header = "fake"
    content_type = "application/json"

    def __init__(self, world: Any, *, own: Callable[[str, str | None], None] | None = None, seed: int = 0) -> None:
        self.world = world
        self.chance = random.Random(seed)
        self.faults: list[Fault] = []
        self.calls: list[Call] = []
        self.staleness = 0.0
        """Seconds by which every read is behind."""
        self.limit: tuple[int, float] | None = None
        """So many requests in so many seconds for each credential, then 429."""
        self.now: Callable[[], float] = time.monotonic
        self.pause: Callable[[float], None] = time.sleep
        self.own = own or (lambda ip, server: None)
        self._history: list[tuple[float, Any]] = []
        self._owned: dict[str, str | None] = {}
        self._lock = threading.RLock()

    # For subclasses

    def routes(self) -> list[Route]:
        """Method, pattern of the path, and who answers: handler(world, request, *groups)."""
        raise NotImplementedError

    def error(self, status: int, code: str = "", text: str = "") -> Answer:
        """An error as this provider says it."""
        raise NotImplementedError

    def refuses(self, world: Any, request: Request) -> Answer | None:
        """The answer to a credential that is not accepted."""
        return None

    def owners(self, world: Any) -> dict[str, str | None]:
        """The name of the server that has each address."""
        raise NotImplementedError

    # Faults and drift

    def fail(self, do: Do, **rule: Any) -> Fault:
        """Add a fault."""
        with self._lock:
            self.faults.append(Fault(do, **rule))
            return self.faults[-1]

    def do(self, name: str, **arguments: Any) -> Any:
        """Let others do something to the cloud."""
        method = getattr(self, name, None)
        if not getattr(method, "is_drift", False):
            raise ValueError(f"nothing is called {name}")
        with self._lock:
            result = method(**arguments)  # type: ignore[misc]
            self.changed()
            return result

    def changed(self) -> None:
        """Remember how things are now, and have the network follow."""
        self._history.append((self.now(), copy.deepcopy(self.world)))
        owners = self.owners(self.world)
        for ip in sorted(owners.keys() | self._owned.keys()):
            if owners.get(ip) != self._owned.get(ip):
                self.own(ip, owners.get(ip))
        self._owned = owners

    # Requests

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Answer one request. Raises Lost."""
        parts = urlsplit(target)
        lower = {name.lower(): value for name, value in headers.items()}
        try:
            decoded = json.loads(body) if body else None
        except ValueError:
            decoded = None
        path = unquote(parts.path)
        if path.startswith("/__fake__/"):
            return self._control(method, path.removeprefix("/__fake__/"), decoded)
        query = tuple(parse_qsl(parts.query, keep_blank_values=True))
        request = Request(method, path.removeprefix(self.prefix), query, lower, decoded, self.now())
        status = 0
        try:
            answer = self._faulty(request)
            status = answer.status
            return answer
        finally:
            with self._lock:
                self.calls.append(Call(request.at, request.credential, method, request.path, decoded, status))

    def _faulty(self, request: Request) -> Answer:
        with self._lock:
            if self.limit is not None and self._is_over(request, *self.limit):
                answer = self.error(429)
                answer.headers["Retry-After"] = str(int(self.limit[1]))
                return answer
            faults = [fault for fault in self.faults if fault.applies(request, self.chance)]
        stale = self.staleness
        for fault in faults:  # before the effect
            match fault.do:
                case "status":
                    return self._refusal(fault)
                case "hang":
                    self.pause(fault.seconds)
                    raise Lost(hangs=True)
                case "reset":
                    raise Lost
                case "delay":
                    self.pause(fault.seconds)
                case "stale":
                    stale = fault.seconds
                case "drift":
                    self.do(fault.name, **fault.arguments)
        answer = self._served(request, stale)
        for fault in faults:  # and after it
            match fault.do:
                case "apply_then_fail":
                    return self._refusal(Fault("status", status=500))
                case "apply_then_reset":
                    raise Lost
                case "delay_after":
                    self.pause(fault.seconds)
                case "truncated":
                    text = answer.encoded().decode()
                    return Answer(answer.status, text[: len(text) // 2])
                case "not_json":
                    return Answer(answer.status, "<html>It works!</html>")
                case "empty":
                    return Answer(answer.status)
        return answer

    def _is_over(self, request: Request, most: int, seconds: float) -> bool:
        recent = [
            call for call in self.calls if call.at > request.at - seconds and call.credential == request.credential
        ]
        return len(recent) >= most

    def _refusal(self, fault: Fault) -> Answer:
        answer = Answer(fault.status, "<html>Bad</html>") if fault.html else self.error(fault.status, fault.code)
        if fault.retry_after:
            answer.headers["Retry-After"] = fault.retry_after
        return answer

    def _served(self, request: Request, stale: float) -> Answer:
        with self._lock:
            if not self._history:
                self.changed()
            world = self._past(stale) if request.method == "GET" and stale else self.world
            if refused := self.refuses(self.world, request):
                return refused
            for method, pattern, handler in self.routes():
                if method == request.method and (found := pattern.fullmatch(request.path)):
                    answer = handler(world, request, *found.groups())
                    if request.method != "GET" and answer.status < 400:
                        self.changed()
                    return answer
            return self.error(404)

    def _past(self, seconds: float) -> Any:
        then = self.now() - seconds
        return next((world for at, world in reversed(self._history) if at <= then), self._history[0][1])

    def _control(self, method: str, what: str, body: Any) -> Answer:
        with self._lock:
            match method, what.partition("/"):
                case "GET", ("state", _, _):
                    return Answer(200, {"owners": self.owners(self.world)})
                case "GET", ("calls", _, _):
                    return Answer(200, [asdict(call) for call in self.calls])
                case "POST", ("faults", _, _):
                    self.faults += [Fault(**rule) for rule in body]
                    return Answer(204)
                case "DELETE", ("faults", _, _):
                    self.faults.clear()
                    return Answer(204)
                case "POST", ("do", _, name):
                    try:
                        return Answer(200, {"result": self.do(name, **(body or {}))})
                    except (TypeError, KeyError, ValueError) as error:
                        return Answer(400, {"error": str(error)})
        return Answer(404, {"error": "no such control"})

    # Over HTTP

    @contextlib.contextmanager
    def serving(self, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
        """Serve by HTTP in threads; gives the URL that stands before every path."""
        stop = threading.Event()
        server = _Server((host, port), _handler(self, stop))
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="fake", daemon=True)
        thread.start()
        try:
            yield f"http://{host}:{server.server_port}{self.prefix}"
        finally:
            stop.set()
            server.shutdown()
            thread.join()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that give up are what these tests are about."""


def _handler(cloud: Cloud, stop: threading.Event) -> type[BaseHTTPRequestHandler]:
    class Connection(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                answer = cloud.answer(self.command, self.path, dict(self.headers.items()), body)
            except Lost as lost:
                if lost.hangs:
                    stop.wait(30)
                self.close_connection = True
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                return
            text = answer.encoded()
            self.send_response(answer.status)
            for name, value in {"Content-Type": cloud.content_type, **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815  # names that the base class looks for

        def version_string(self) -> str:
            return cloud.server_header

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's word
            pass

    return Connection
