"""A client that says exactly what it is told, and reads replies one by one."""

import base64
import re
import socket
import ssl
from collections.abc import Sequence
from types import TracebackType

from seed import Tenant

PATIENCE = 15.0  # seconds for a reply

Step = tuple[str | bytes, str]
"""What is sent (text gets its CRLF, bytes go as they are), and what the reply begins with, as a regular expression."""


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def plain(username: str, password: str, authzid: str = "") -> str:
    return b64(f"{authzid}\0{username}\0{password}")


class Dialogue:
    """One connection."""

    def __init__(self, port: int, *, smtps: bool = False, source: str = "127.0.0.1", host: str = "127.0.0.1") -> None:
        self.sock = socket.create_connection((host, port), PATIENCE, (source, 0))
        self._rest = b""
        if smtps:
            self._wrap()

    def __enter__(self) -> "Dialogue":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.sock.close()

    def _wrap(self) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.sock = context.wrap_socket(self.sock)

    def send(self, octets: bytes) -> None:
        self.sock.sendall(octets)

    def _line(self) -> bytes:
        while b"\n" not in self._rest:
            got = self.sock.recv(65536)
            if not got:
                raise EOFError(self._rest)
            self._rest += got
        line, _, self._rest = self._rest.partition(b"\n")
        return line + b"\n"

    def reply(self) -> str:
        """The next reply, all its lines, without the last line end."""
        lines = [self._line()]
        while lines[-1][3:4] == b"-":
            lines.append(self._line())
        text = b"".join(lines).decode("ascii")
        assert text.endswith("\r\n") and text.count("\n") == text.count("\r\n")
        if not re.match(r"220 mail\.|250[ -]mail\.|3[35]4 ", text):
            # RFC 2034 §4: every other reply has an enhanced status code of the same class.
            assert re.match(r"([245])\d\d \1\.\d\.\d{1,2} \S", text), text
        return text.removesuffix("\r\n")

    def say(self, line: str) -> str:
        self.send(line.encode() + b"\r\n")
        return self.reply()

    def closed(self) -> bool:
        """Whether the server closes now, and says nothing more."""
        assert self._rest == b"", self._rest
        try:
            return self.sock.recv(65536) == b""
        except ConnectionError:
            return True

    def in_step(self) -> None:
        """Check that every reply so far was read and that the session goes on."""
        assert self._rest == b""
        assert self.say("NOOP") == "250 2.0.0 OK"

    def start_tls(self) -> None:
        assert self.say("STARTTLS").startswith("220 2.0.0 ")
        self._wrap()

    def log_in(self, tenant: Tenant) -> "Dialogue":
        """Banner, EHLO, STARTTLS where that is needed, AUTH."""
        assert self.reply().startswith("220 ")
        if "STARTTLS" in self.say("EHLO client.example"):
            self.start_tls()
            self.say("EHLO client.example")
        assert self.say(f"AUTH PLAIN {plain(tenant.smtp_username, tenant.smtp_password)}").startswith("235 2.7.0 ")
        return self

    def play(self, steps: Sequence[Step]) -> None:
        """Go through steps."""
        for what, expected in steps:
            self.send(what if isinstance(what, bytes) else what.encode() + b"\r\n")
            if expected:
                reply = self.reply()
                assert re.match(expected, reply), f"{what!r}: wanted {expected}, got {reply!r}"

    def envelope(self, sender: str, *recipients: str) -> None:
        """MAIL, RCPT and DATA, up to 354."""
        self.play([(f"MAIL FROM:<{sender}>", "250 2.1.0 ")])
        self.play([(f"RCPT TO:<{recipient}>", "250 2.1.5 ") for recipient in recipients or ("b@example.net",)])
        self.play([("DATA", "354 ")])
