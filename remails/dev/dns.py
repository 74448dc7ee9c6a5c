"""The demo world's DNS: one small server, authoritative for every name there is.

    datagram or TCP frame --> dnspython parses it --> Zone.answer(name, type), in a thread
                                                        | a list: the records ([] = the name has none of that type)
                                                        | a Code: no such name, or a failure to play
    wire format <-- CNAMEs followed inside the zone, an SOA below "no", TC when UDP is too small

A `Zone` is anything with that one method; it may block (the product's demo zone reads the database), so it is called in
the server's own few threads. They are not the loop's shared ones: whoever waits for a DNS answer in a shared thread
would otherwise wait for the thread it sits in. `StaticZone` is the zone of the tests.

The time to live is 0 unless told otherwise, so that an answer changed in the zone is the answer to the next question.
"""

import asyncio
import contextlib
import enum
import logging
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

log = logging.getLogger(__name__)

UDP_SIZE = 1232  # octets; DNS flag day 2020: never fragmented
UDP_SIZE_WITHOUT_EDNS = 512  # RFC 1035 §4.2.1
TCP_SIZE = 65_535
TCP_IDLE = 10.0  # seconds (RFC 7766 §6.2.3: "of the order of a few seconds")
CHAIN = 8  # CNAMEs followed for one question
IN_HAND = 512  # questions and connections; more are dropped, as by any busy server
SOA = ". . 1 1 1 1 "  # followed by how long "no" may be cached (RFC 2308 §4)
IN = dns.rdataclass.IN


class Code(enum.Enum):
    """An answer that is not a list of records."""

    NXDOMAIN = dns.rcode.NXDOMAIN
    SERVFAIL = dns.rcode.SERVFAIL
    REFUSED = dns.rcode.REFUSED
    TIMEOUT = None  # no answer at all


class Zone(Protocol):
    """Where the answers come from."""

    def answer(self, name: str, rdtype: str) -> list[str] | Code:
        """The rdata at `name` (lower case, no final dot) of type `rdtype` ("MX"), in presentation form.

        TXT is the plain text, without quotes, of any length. Called in a thread. When the answer is [] or NXDOMAIN,
        the server asks again for the name's CNAME.
        """
        ...


class StaticZone:
    """A zone in a dictionary that may be changed at any time: `zone["example.net", "MX"] = ["10 mx.example.net"]`.

    `del` takes an answer away; a name with no entry is NXDOMAIN. `*.example.net` stands for what RFC 4592 says.
    `queries` is what the server asked, in order: a CNAME question follows each answer that held nothing.
    """

    def __init__(self, records: Mapping[tuple[str, str], list[str] | Code] | None = None) -> None:
        self.queries: list[tuple[str, str]] = []
        self._records = {_key(*key): answer for key, answer in (records or {}).items()}

    # Changes replace the dictionary: the server's threads may be reading the old one.
    def __setitem__(self, key: tuple[str, str], answer: list[str] | Code) -> None:
        self._records = {**self._records, _key(*key): answer}

    def __delitem__(self, key: tuple[str, str]) -> None:
        self._records = {k: answer for k, answer in self._records.items() if k != _key(*key)}

    def answer(self, name: str, rdtype: str) -> list[str] | Code:
        """The records at the name, or at the wildcard that stands for it."""
        self.queries.append((name, rdtype))
        records = self._records
        names = {owner for owner, _ in records}
        source = _source(name, names)
        if (source, rdtype) in records:
            return records[source, rdtype]
        return [] if _exists(source, names) else Code.NXDOMAIN


def _key(name: str, rdtype: str) -> tuple[str, str]:
    return name.lower().rstrip("."), rdtype.upper()


def _exists(name: str, names: set[str]) -> bool:
    """Whether the name has records or a name below it has (an empty non-terminal, RFC 4592 §2.2.2)."""
    return name in names or any(owner.endswith("." + name) for owner in names)


def _source(name: str, names: set[str]) -> str:
    """The owner of the records for `name`: itself, or the wildcard below its closest encloser (RFC 4592 §3.3.1)."""
    encloser = name
    while encloser and not _exists(encloser, names):
        encloser = encloser.partition(".")[2]
    return name if encloser == name else f"*.{encloser}".rstrip(".")


class Server:
    """A DNS server on one port, UDP and TCP. Port 0 asks for a free one; after `start` it stands in `port`."""

    def __init__(self, zone: Zone, host: str = "127.0.0.1", port: int = 0, *, ttl: int = 0, threads: int = 8) -> None:
        self.zone = zone
        self.host = host
        self.port = port
        self.ttl = ttl
        self._threads = ThreadPoolExecutor(threads, "dns-zone")
        self._tasks: set[asyncio.Task[None]] = set()
        self._tcp: asyncio.Server | None = None
        self._udp: asyncio.DatagramTransport | None = None

    async def start(self) -> None:
        """Listen. Raises OSError if the address is taken."""
        for attempts_left in reversed(range(10 if self.port == 0 else 1)):
            self._tcp = await asyncio.start_server(self._connected, self.host, self.port)
            port = self._tcp.sockets[0].getsockname()[1]
            try:
                await self._listen_udp(port)
            except OSError:  # a free TCP port may be somebody's UDP port
                self._tcp.close()
                if not attempts_left:
                    raise
            else:
                self.port = port
                return

    async def close(self) -> None:
        """Stop listening and leave open questions unanswered."""
        if self._udp:
            self._udp.close()
        if self._tcp:
            self._tcp.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _listen_udp(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        self._udp, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), local_addr=(self.host, port))

    def datagram(self, wire: bytes, peer: Any) -> None:
        """Take one UDP question in hand."""
        if len(self._tasks) < IN_HAND:
            self._spawn(self._answer_datagram(wire, peer))

    # A plain function: Python 3.11 logs an error when it has to cancel a coroutine it started itself.
    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) < IN_HAND:
            self._spawn(self._answer_stream(reader, writer))
        else:
            writer.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer_datagram(self, wire: bytes, peer: Any) -> None:
        answer = await self._respond(wire, udp=True)
        if answer and self._udp:
            self._udp.sendto(answer, peer)

    async def _answer_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the questions of one TCP connection, one after the other (RFC 7766)."""
        with contextlib.closing(writer), contextlib.suppress(EOFError, ConnectionError, TimeoutError):
            while True:
                async with asyncio.timeout(TCP_IDLE):
                    wire = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
                if answer := await self._respond(wire, udp=False):
                    writer.write(len(answer).to_bytes(2) + answer)
                    await writer.drain()

    async def _respond(self, wire: bytes, *, udp: bool) -> bytes | None:
        """The answer in wire format; None for what deserves none."""
        try:
            query = dns.message.from_wire(wire)
        except (dns.exception.DNSException, ValueError):
            return None
        if query.flags & dns.flags.QR:
            return None
        loop = asyncio.get_running_loop()
        response = await loop.run_in_executor(self._threads, self._answer, query)
        return response.to_wire(max_size=_size(query, udp), prefer_truncation=True) if response else None

    def _answer(self, query: dns.message.Message) -> dns.message.Message | None:
        """The answer to one question, or None for a TIMEOUT. Runs in a thread."""
        response = dns.message.make_response(query, recursion_available=True, our_payload=UDP_SIZE)
        response.flags |= dns.flags.AA
        if query.opcode() != dns.opcode.QUERY:
            response.set_rcode(dns.rcode.NOTIMP)
        elif len(query.question) != 1:
            response.set_rcode(dns.rcode.FORMERR)
        elif query.question[0].rdclass != IN:
            response.set_rcode(dns.rcode.REFUSED)
        else:
            try:
                code = self._fill(response, query.question[0].name, query.question[0].rdtype)
            except Exception:  # the service loop: a zone that breaks is a SERVFAIL, and the next question is served
                log.exception("the zone failed at %s", query.question[0])
                code = Code.SERVFAIL
            if code is Code.TIMEOUT:
                return None
            response.set_rcode(dns.rcode.Rcode(code.value if code else dns.rcode.NOERROR))
        return response

    def _fill(self, response: dns.message.Message, name: dns.name.Name, rdtype: dns.rdatatype.RdataType) -> Code | None:
        """Put records into the answer section, through CNAMEs (RFC 1034 §4.3.2); the code of the last name, if any."""
        for _ in range(CHAIN):
            found = self.zone.answer(_text(name), dns.rdatatype.to_text(rdtype))
            match found:
                case [_, *_]:
                    response.answer.append(self._rrset(name, rdtype, found))
                    return None
                case Code.SERVFAIL | Code.REFUSED | Code.TIMEOUT:
                    return found
            match [] if rdtype == dns.rdatatype.CNAME else self.zone.answer(_text(name), "CNAME"):
                case [target, *_]:
                    response.answer.append(self._rrset(name, dns.rdatatype.CNAME, [target]))
                    name = dns.name.from_text(target)
                case _:
                    response.authority.append(self._rrset(dns.name.root, dns.rdatatype.SOA, [SOA + str(self.ttl)]))
                    return Code.NXDOMAIN if found is Code.NXDOMAIN else None
        return Code.SERVFAIL

    def _rrset(self, name: dns.name.Name, rdtype: dns.rdatatype.RdataType, texts: list[str]) -> dns.rrset.RRset:
        return dns.rrset.from_rdata_list(name, self.ttl, [_rdata(rdtype, text) for text in texts])


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: Server) -> None:
        self._server = server

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._server.datagram(data, addr)


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


def _rdata(rdtype: dns.rdatatype.RdataType, text: str) -> dns.rdata.Rdata:
    if rdtype == dns.rdatatype.TXT:
        text = _character_strings(text.encode("utf-8", "surrogateescape"))
    return dns.rdata.from_text(IN, rdtype, text, origin=dns.name.root, relativize=False)


def _character_strings(text: bytes) -> str:
    """The text as quoted strings of at most 255 octets (RFC 1035 §3.3.14)."""
    chunks = [text[i : i + 255] for i in range(0, len(text), 255)] or [b""]
    return " ".join('"' + "".join(f"\\{octet:03d}" for octet in chunk) + '"' for chunk in chunks)


def _size(query: dns.message.Message, udp: bool) -> int:
    if not udp:
        return TCP_SIZE
    return min(UDP_SIZE, max(query.payload, UDP_SIZE_WITHOUT_EDNS)) if query.edns >= 0 else UDP_SIZE_WITHOUT_EDNS
