"""The PROXY protocol, versions 1 and 2: a proxy of ours says in front of everything else who its client is.

https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt. The header comes before TLS. It is read from the socket to its last
octet and not further, so that what follows is left to whoever speaks with the client. Only what comes from a trusted peer is
read here: anybody else could claim to be anybody.
"""

import asyncio
import ipaddress
import re
import socket
import struct

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_LONGEST_V1 = 107  # octets, CRLF included (§2.1)
_LONGEST_V2 = 2048  # octets after the fixed part: the addresses and what a proxy may add (TLV)
_V1 = re.compile(r"PROXY TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) ([0-9]{1,5}) ([0-9]{1,5})")
_TCP4, _TCP6 = 0x11, 0x21


class BadHeader(Exception):
    """What a trusted peer sent is no PROXY header."""


async def client(sock: socket.socket) -> str | None:
    """Read a header; the client's address, or None where the peer speaks for itself (UNKNOWN, LOCAL).

    Raises:
        BadHeader: it is none.
        EOFError: the connection ended before.
        OSError: the connection is lost.
    """
    start = await _read(sock, len(_SIGNATURE))
    if start == _SIGNATURE:
        return await _version_2(sock)
    if start.startswith(b"PROXY "):
        return await _version_1(sock, start)
    raise BadHeader("no PROXY header")


async def _version_1(sock: socket.socket, line: bytes) -> str | None:
    while not line.endswith(b"\r\n"):
        if len(line) >= _LONGEST_V1:
            raise BadHeader("header without an end")
        line += await _read(sock, 1)  # the header has no length, and what comes after it is not ours
    text = line[:-2].decode("latin-1")
    if text == "PROXY UNKNOWN" or text.startswith("PROXY UNKNOWN "):
        return None
    found = _V1.fullmatch(text)
    if found is None or any(int(port) > 65535 for port in found.group(4, 5)):
        raise BadHeader("malformed header")
    _address(found[3], int(found[1]))
    return _address(found[2], int(found[1]))


async def _version_2(sock: socket.socket) -> str | None:
    version_command, family, length = struct.unpack("!BBH", await _read(sock, 4))
    if version_command not in (0x20, 0x21) or length > _LONGEST_V2:
        raise BadHeader("unknown version or command, or header too long")
    addresses = await _read(sock, length)
    if version_command == 0x20:  # LOCAL: the proxy's own check of our health
        return None
    size = {_TCP4: 4, _TCP6: 16}.get(family)
    if size is None:
        return None  # §2.2: another family is taken for UNSPEC, and the peer's address is used
    if length < 2 * size + 4:
        raise BadHeader("addresses are cut short")
    return _plain(ipaddress.ip_address(addresses[:size]))


async def _read(sock: socket.socket, size: int) -> bytes:
    """Exactly so many octets. Raises EOFError when there are no more."""
    loop = asyncio.get_running_loop()
    read = b""
    while len(read) < size:
        block = await loop.sock_recv(sock, size - len(read))
        if not block:
            raise EOFError("closed before the end of the PROXY header")
        read += block
    return read


def _address(text: str, version: int) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise BadHeader("malformed address") from None
    if address.version != version:
        raise BadHeader("address of the other family")
    return _plain(address)


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """As text; an IPv4 address that is mapped into IPv6 is written as IPv4."""
    return str(getattr(address, "ipv4_mapped", None) or address)
