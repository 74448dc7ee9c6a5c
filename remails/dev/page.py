"""The mailbox's page: a read-only web server on loopback.

    /                     the newest mails; ?before=<id> for older ones
    /messages/<id>        one mail: facts, header fields, text
    /messages/<id>.eml    its bytes
    /messages.json        the records, oldest first; ?since=<id> for those after that one
    /style.css

What a mail holds was written by a stranger: every value goes through `escape`, the Content-Security-Policy allows
nothing but our stylesheet, HTML parts are shown as source, and a Host that is a name of somebody else's is turned away
(DNS rebinding would let a web site read the mails).
"""

import asyncio
import contextlib
import email
import email.policy
import ipaddress
import logging
import re
from collections.abc import Iterable, Mapping
from email.message import Message
from html import escape
from typing import NamedTuple
from urllib.parse import parse_qsl, quote

import msgspec

from remails.dev import archive

log = logging.getLogger(__name__)

HEAD_SIZE = 16_384  # octets of request line and header fields
HEAD_TIME = 10.0  # seconds for them to arrive
CONNECTIONS = 64
ROWS = 100  # mails on one page
TEXT_SIZE = 200_000  # characters shown of one part
PARTS = 50  # parts shown of one mail

POLICY = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Connection": "close",
}
HTML = "text/html; charset=utf-8"
TEXT = "text/plain; charset=utf-8"


class Response(NamedTuple):
    """What is sent back."""

    status: str
    kind: str
    body: bytes
    headers: Mapping[str, str] = {}


class Page:
    """The web server over an archive. `magic` is shown as the table of magic local parts."""

    def __init__(self, mails: archive.Archive, magic: Mapping[str, str], host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._mails = mails
        self._magic = magic
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Raises OSError."""
        self._server = await asyncio.start_server(self._connected, self.host, self.port, limit=HEAD_SIZE)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop, and drop what is under way."""
        if self._server:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # A plain function: Python 3.11 logs an error when it has to cancel a coroutine it started itself.
    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= CONNECTIONS:
            writer.close()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(EOFError, ConnectionError, TimeoutError):
            try:
                async with asyncio.timeout(HEAD_TIME):
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            except asyncio.LimitOverrunError:
                head, response = "", _plain("431 Request Header Fields Too Large")
            else:
                response = await self._respond(head)
            writer.write(_wire(response, with_body=not head.startswith("HEAD ")))
            await writer.drain()

    async def _respond(self, head: str) -> Response:
        """The response to a request, given its head (RFC 9112 §3)."""
        line, *fields = head.split("\r\n")
        method, _, rest = line.partition(" ")
        target, _, version = rest.partition(" ")
        hosts = [field[5:].strip() for field in fields if field.lower().startswith("host:")]
        if not target.startswith("/") or not version.startswith("HTTP/1."):
            return _plain("400 Bad Request")
        if method not in ("GET", "HEAD"):
            return _plain("405 Method Not Allowed", {"Allow": "GET, HEAD"})
        if len(hosts) != 1 or not _is_ours(hosts[0]):
            return _plain("421 Misdirected Request")
        try:
            return await self._route(target)
        except FileNotFoundError:
            return _plain("404 Not Found")
        except Exception:  # the service loop: the next request is served
            log.exception("cannot show %s", target)
            return _plain("500 Internal Server Error")

    async def _route(self, target: str) -> Response:
        path, _, query = target.partition("?")
        arguments = dict(parse_qsl(query))
        match path:
            case "/":
                return self._list(arguments.get("before", ""))
            case "/messages.json":
                return Response("200 OK", "application/json", self._json(arguments.get("since", "")))
            case "/style.css":
                return Response("200 OK", "text/css; charset=utf-8", STYLE.encode())
        return await self._mail(path.removeprefix("/messages/"))

    def _json(self, since: str) -> bytes:
        return msgspec.json.encode(self._mails.since(since))

    def _list(self, before: str) -> Response:
        records = self._mails.records
        ids = [record.id for record in records]
        end = ids.index(before) if before in ids else len(ids)
        start = max(0, end - ROWS)
        older = f'<p><a href="/?before={ids[start]}">Older</a></p>' if start else ""
        rows = "".join(_row(record) for record in reversed(records[start:end]))
        body = _table("mails", COLUMNS, rows) if rows else "<p>No mail yet.</p>"
        count = f"<p>{len(records)} kept, the newest first.</p>"
        return _html("Development mailbox", count + body + older + self._rules())

    def _rules(self) -> str:
        rows = "".join(f"<tr><td><code>{escape(part)}@</code><td>{escape(text)}" for part, text in self._magic.items())
        return (
            "<h2>Magic addresses</h2><p>At any domain; a <code>+tag</code> may follow. Everything else is accepted.</p>"
            + _table("rules", ["Address", "What happens"], rows)
        )

    async def _mail(self, name: str) -> Response:
        record = self._mails.get(name.removesuffix(".eml"))
        if not record:
            raise FileNotFoundError
        raw = await asyncio.to_thread(self._mails.raw, record.id)
        if name.endswith(".eml"):
            headers = {"Content-Disposition": f'attachment; filename="{record.id}.eml"'}
            return Response("200 OK", "message/rfc822", raw, headers)
        return await asyncio.to_thread(_page, record, raw)


def _is_ours(host: str) -> bool:
    """Whether a Host field names this machine: an address or localhost, with any port."""
    name = re.sub(r":\d+$", "", host.lower())
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name.strip("[]"))
        return True
    return name == "localhost" or name.endswith(".localhost")


def _wire(response: Response, *, with_body: bool) -> bytes:
    fields = {
        "Content-Type": response.kind,
        "Content-Length": str(len(response.body)),
        **HEADERS,
        **response.headers,
    }
    head = f"HTTP/1.1 {response.status}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return head.encode("ascii") + b"\r\n" + (response.body if with_body else b"")


def _plain(status: str, headers: Mapping[str, str] = {}) -> Response:
    return Response(status, TEXT, f"{status}\n".encode(), headers)


def _html(title: str, body: str) -> Response:
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="/style.css">'
        f"<main><h1>{escape(title)}</h1>{body}</main></html>"
    )
    return Response("200 OK", HTML, page.encode("utf-8", "replace"))


COLUMNS = ["Received (UTC)", "Subject", "From", "To", "Source address", "TLS", "DKIM"]


def _table(name: str, columns: Iterable[str], rows: str) -> str:
    head = "".join(f'<th scope="col">{column}' for column in columns)
    return f'<div class="scroll"><table class="{name}"><thead><tr>{head}<tbody>{rows}</table></div>'


def _row(record: archive.Record) -> str:
    subject = f'<a href="/messages/{quote(record.id)}">{escape(record.subject or "(no subject)")}</a>'
    cells = [
        _time(record),
        subject,
        escape(record.header_from),
        escape(_few(record.rcpt_tos)),
        escape(record.peer_ip),
        _tls(record),
        _dkim(record),
    ]
    return "<tr>" + "".join(f"<td>{cell}" for cell in cells)


def _few(addresses: list[str]) -> str:
    shown, more = addresses[:3], len(addresses) - 3
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _time(record: archive.Record) -> str:
    return f'<time datetime="{record.received_at.isoformat()}">{record.received_at:%Y-%m-%d %H:%M:%S}</time>'


def _tls(record: archive.Record) -> str:
    return escape(record.tls.version) if record.tls else '<span class="none">no</span>'


def _dkim(record: archive.Record) -> str:
    """The verdicts in words, coloured besides."""
    if not record.dkim:
        return '<span class="none">not signed</span>'
    return "<br>".join(
        f'<span class="{"ok" if s.ok else "fail"}">{"ok" if s.ok else "fail"}: {escape(s.domain)}</span>'
        for s in record.dkim
    )


def _page(record: archive.Record, raw: bytes) -> Response:
    """One mail. Parses it: takes a thread."""
    facts = {
        "Received": _time(record) + " UTC",
        "Source address": escape(f"{record.peer_ip} port {record.peer_port}, helo {record.helo}"),
        "Sent to": escape(record.local_ip),
        "TLS": escape(f"{record.tls.version}, {record.tls.cipher}") if record.tls else _tls(record),
        "Envelope sender": escape(f"<{record.mail_from}>"),
        "Recipients": escape(", ".join(record.rcpt_tos)),
        "MAIL parameters": escape(" ".join(record.options) or "none"),
        "Our reply": escape(record.reply or "none: the connection was closed"),
        "DKIM": "<br>".join(_signature(s) for s in record.dkim) or _dkim(record),
        "Size": f'{record.size} octets, <a href="/messages/{quote(record.id)}.eml">raw</a>',
    }
    rows = "".join(f'<tr><th scope="row">{name}<td>{value}' for name, value in facts.items())
    fields = raw.partition(b"\r\n\r\n")[0].decode("utf-8", "replace")[:TEXT_SIZE]
    return _html(
        record.subject or "(no subject)",
        f'<p><a href="/">All mails</a></p><div class="scroll"><table class="facts"><tbody>{rows}</table></div>'
        f"<h2>Header fields</h2><pre>{escape(fields)}</pre>{_parts(raw)}",
    )


def _signature(signature: archive.Signature) -> str:
    words = f"d={signature.domain} s={signature.selector} a={signature.algorithm}"
    if signature.ok:
        return f'<span class="ok">ok</span> {escape(words)}'
    return f'<span class="fail">fail: {escape(signature.reason)}</span> {escape(words)}'


def _parts(raw: bytes) -> str:
    try:
        message = email.message_from_bytes(raw, policy=email.policy.compat32)
        leaves = [part for part in message.walk() if not part.is_multipart()]
    except RecursionError:
        return "<p>The parts are nested too deeply to be shown.</p>"
    more = f"<p>and {len(leaves) - PARTS} more parts.</p>" if len(leaves) > PARTS else ""
    return "".join(_part(part) for part in leaves[:PARTS]) + more


def _part(part: Message) -> str:
    payload = part.get_payload(decode=True)
    content = payload if isinstance(payload, bytes) else b""
    kind = part.get_content_type()
    heading = f"<h2>{escape(kind)}</h2>"
    if part.get_content_maintype() != "text":
        return f"{heading}<p>{escape(str(part.get_filename() or 'no file name'))}, {len(content)} octets</p>"
    return f"{heading}<pre>{escape(_decode(content, str(part.get_content_charset() or 'utf-8'))[:TEXT_SIZE])}</pre>"


def _decode(content: bytes, charset: str) -> str:
    try:
        return content.decode(charset, "replace")
    except (LookupError, ValueError):  # no such charset, or not one for text
        return content.decode("latin-1")


STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --page: #fcfcfd; --line: #d9d9e0; --quiet: #60646c;
  --link: #0b58a5; --ok: #18794e; --fail: #c62a2f; --well: #f0f0f3 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #edeef0; --page: #111113; --line: #363a3f; --quiet: #b0b4ba;
    --link: #70b8ff; --ok: #3dd68c; --fail: #ff9592; --well: #212225 } }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 80rem; margin: 0 auto; padding: 1.5rem }
h1 { font-size: 1.4rem; overflow-wrap: anywhere } h2 { font-size: 1.05rem; margin-top: 2rem }
a { color: var(--link) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line) }
th { color: var(--quiet); font-weight: 600; white-space: nowrap }
td { overflow-wrap: anywhere } .mails td:first-child { white-space: nowrap }
.mails td:nth-child(n + 5) { overflow-wrap: normal }
.facts th, .rules td:first-child { width: 12rem }
time { font-variant-numeric: tabular-nums }
.ok { color: var(--ok) } .fail { color: var(--fail); font-weight: 600 } .none { color: var(--quiet) }
pre { background: var(--well); padding: .75rem; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere }
"""
