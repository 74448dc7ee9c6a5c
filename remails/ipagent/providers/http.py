"""How providers are asked: JSON over HTTPS, one request at a time, bounded in time, in size and in number.

`Client` has no method that deletes. Each request has a deadline for all of it; an answer that is late, damaged or too long
means that nobody knows whether the request was done. A token bucket keeps a host within its share of the provider's rate
limit, and its last tokens are for writes: an address that has to move goes before a look at how things are. After 429
nothing is asked until the time the provider named; after 401 nothing for a minute.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final

import requests
import urllib3

from remails.config import IpAgent
from remails.ipagent.providers.protocol import Kind, ProviderError

_MOST_BYTES: Final = 8 * 1024 * 1024
_PATIENCE: Final = 2.0  # seconds that a request waits for a token
_KEPT_FOR_WRITES: Final = 2
_AFTER_DENIED: Final = 60.0
_AFTER_LIMITED: Final = 10.0
_MOST_LIMITED: Final = 600.0  # whatever Retry-After says

_KINDS: Final[Mapping[int, Kind]] = {
    401: "denied",
    403: "forbidden",
    404: "not_found",
    408: "unavailable",
    409: "conflict",
    429: "limited",
}


class Clock:
    """Monotonic time and waiting; tests have one of their own."""

    now: Callable[[], float] = staticmethod(time.monotonic)
    sleep: Callable[[float], None] = staticmethod(time.sleep)


class Bucket:
    """Tokens for requests: `burst` at once, then `rate` a second."""

    def __init__(self, rate: float, burst: int, clock: Clock) -> None:
        self._rate, self._burst, self._clock = rate, float(burst), clock
        self._tokens, self._filled = self._burst, clock.now()

    def take(self, *, write: bool) -> bool:
        """Take a token, waiting for it a little while; whether there was one. A read leaves the last ones."""
        kept = 0 if write else min(_KEPT_FOR_WRITES, self._burst - 1)
        missing = 1 + kept - self._level()
        if missing > _PATIENCE * self._rate:
            return False
        if missing > 0:
            self._clock.sleep(missing / self._rate)
            self._level()
        self._tokens -= 1
        return True

    def _level(self) -> float:
        now = self._clock.now()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        return self._tokens


class Client:
    """Asks one API.

    Args:
        name: of the provider, for texts.
        base: URL before each path.
        headers: those of every request, such as `Authorization`.
        kinds: what a status means to this provider, where that is not what it usually means.
    """

    def __init__(
        self,
        name: str,
        base: str,
        headers: Mapping[str, str],
        settings: IpAgent,
        clock: Clock,
        kinds: Mapping[int, Kind] | None = None,
    ) -> None:
        self.headers = {"Accept": "application/json", "Accept-Encoding": "identity", **headers}
        self._kinds = {**_KINDS, **(kinds or {})}
        self._name, self._base, self._timeout, self._clock = name, base.rstrip("/"), settings.provider_timeout, clock
        self._bucket = Bucket(settings.requests_per_second, settings.requests_burst, clock)
        self._one_at_a_time = threading.Lock()
        self._quiet_until = clock.now()
        self._why: ProviderError | None = None
        self.session = requests.Session()
        # A proxy or a .netrc of the environment has no say in where our token goes.
        self.session.trust_env = False

    def get(self, path: str) -> Any:
        """Read; the decoded JSON. Raises ProviderError."""
        return self._ask("GET", path, None, write=False)

    def post(self, path: str, body: object, *, write: bool = True) -> Any:
        """Have something done. Raises ProviderError."""
        return self._ask("POST", path, body, write=write)

    def put(self, path: str, body: object) -> Any:
        """Change something. Raises ProviderError."""
        return self._ask("PUT", path, body, write=True)

    def patch(self, path: str, body: object) -> Any:
        """Change something in part. Raises ProviderError."""
        return self._ask("PATCH", path, body, write=True)

    def authorize(self, headers: Mapping[str, str]) -> None:
        """Ask with another token from now on."""
        self.headers |= headers
        if self._why is not None and self._why.kind == "denied":
            self._quiet_until = self._clock.now()

    def wait(self, seconds: float) -> None:
        """Wait for something that takes the provider a while."""
        self._clock.sleep(seconds)

    def _ask(self, method: str, path: str, body: object, *, write: bool) -> Any:
        with self._one_at_a_time:
            if self._clock.now() < self._quiet_until and self._why is not None:
                raise self._why
            if not self._bucket.take(write=write):
                raise ProviderError(f"{self._name}: too many requests of ours, this one waits", "limited")
            status, headers, text = self._send(method, path, body)
            if 200 <= status < 300:
                return self._decoded(text)
            raise self._refusal(method, path, status, headers, text)

    def _send(self, method: str, path: str, body: object) -> tuple[int, Mapping[str, str], bytes]:
        deadline = self._clock.now() + self._timeout
        try:
            with self.session.request(
                method,
                self._base + path,
                json=body,
                headers=self.headers,
                timeout=self._timeout / 2,
                allow_redirects=False,
                stream=True,
            ) as response:
                return response.status_code, response.headers, self._body(response, deadline)
        except requests.RequestException as error:
            # Not its text: it may quote headers or a URL with more in it than the operator's log should keep.
            raise ProviderError(f"{self._name} does not answer: {_cause(error)}", "unavailable") from None

    def _body(self, response: requests.Response, deadline: float) -> bytes:
        text = b""
        try:
            while chunk := response.raw.read1(65536):  # whatever has come, so that a slow answer is not waited for
                text += chunk
                if len(text) > _MOST_BYTES or self._clock.now() > deadline:
                    raise requests.exceptions.ReadTimeout
        except urllib3.exceptions.HTTPError as error:
            raise requests.exceptions.ConnectionError from error
        if len(text) < int(response.headers.get("Content-Length") or 0):
            raise requests.exceptions.ConnectionError
        return text

    def _decoded(self, text: bytes) -> Any:
        try:
            return json.loads(text) if text else None
        except (ValueError, RecursionError):
            raise ProviderError(f"{self._name} answered with something that is not JSON", "unavailable") from None

    def _refusal(self, method: str, path: str, status: int, headers: Mapping[str, str], text: bytes) -> ProviderError:
        kind = self._kinds.get(status, "unavailable" if status >= 500 else "refused")
        error = ProviderError(f"{self._name} answers {method} {path} with {status}{_reason(text)}", kind)
        quiet = {401: _AFTER_DENIED, 429: _retry_after(headers.get("Retry-After", ""))}.get(status, 0.0)
        if quiet:
            self._quiet_until, self._why = self._clock.now() + quiet, error
        return error


def field(body: Any, *path: str | int) -> Any:
    """What stands at a path of decoded JSON. Raises ProviderError (`unavailable`) when the answer has another shape."""
    for step in path:
        try:
            body = body[step]
        except (KeyError, IndexError, TypeError):
            raise ProviderError(f"the answer has no {'.'.join(map(str, path))}", "unavailable") from None
    return body


def rows(body: Any, *path: str | int) -> list[dict[str, Any]]:
    """The objects in the list at a path of decoded JSON. Raises ProviderError (`unavailable`)."""
    found = field(body, *path)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ProviderError(f"the answer has no list in {'.'.join(map(str, path))}", "unavailable")
    return found


def _cause(error: requests.RequestException) -> str:
    match error:
        case requests.Timeout():
            return "no answer in time"
        case requests.exceptions.SSLError():
            return "its certificate is not accepted"
        case requests.ConnectionError():
            return "no connection"
    return type(error).__name__


def _reason(text: bytes) -> str:
    """The error as the provider says it, in any of the shapes we know: `{"error": ...}` or RFC 9457."""
    try:
        body = json.loads(text[:65536])
    except (ValueError, RecursionError):
        return ""
    if not isinstance(body, dict):
        return ""
    error = next((one for one in (body.get("error"), body.get("NeutronError")) if isinstance(one, dict)), body)
    words = [error.get(key) for key in ("error_code", "code", "title", "error_message", "message")]
    said = ": ".join(str(word)[:200] for word in words if word)
    return f" ({said})" if said else ""


def _retry_after(text: str) -> float:
    """Seconds to wait, given in either form of RFC 9110 §10.2.3."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return _AFTER_LIMITED
    return min(max(seconds, 1.0), _MOST_LIMITED) if seconds == seconds else _AFTER_LIMITED
