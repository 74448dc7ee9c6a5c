"""Ending TCP connections from an address that is not ours any more (sock_diag(7)).

A connection stays when its source address goes: what is sent is dropped, and whoever waits for an answer waits for minutes. Ended
by the kernel (SOCK_DESTROY), it fails at once with ECONNABORTED.
"""

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY, _DESTROY, _DONE, _ERROR = 20, 21, 3, 2
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_LISTEN = 10
_STATES = 0xFFF & ~(1 << _LISTEN)
_ID = slice(4, 52)  # in inet_diag_msg: ports, addresses, interface, cookie


def destroy(source: str) -> int:
    """End every TCP connection from the address; how many. Raises OSError: not allowed, or not in this kernel."""
    wanted = ipaddress.ip_address(source).packed
    family = socket.AF_INET6 if len(wanted) == 16 else socket.AF_INET
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as netlink:
        netlink.settimeout(2)
        netlink.send(_message(_BY_FAMILY, _REQUEST | _DUMP, _request(family, bytes(48))))
        found = [identity for identity in _dump(netlink) if identity[4 : 4 + len(wanted)] == wanted]
        for identity in found:
            netlink.send(_message(_DESTROY, _REQUEST | _ACK, _request(family, identity)))
            _expect(netlink.recv(65536))
    return len(found)


def _request(family: int, identity: bytes) -> bytes:
    """struct inet_diag_req_v2."""
    return struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, _STATES) + identity


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 0, 0) + body


def _dump(netlink: socket.socket) -> Iterator[bytes]:
    while True:
        data, offset = netlink.recv(1 << 20), 0
        while offset + 16 <= len(data):
            length, kind = struct.unpack_from("=IH", data, offset)
            if kind == _DONE:
                return
            if kind == _ERROR:
                _expect(data[offset:])
            yield data[offset + 16 : offset + length][_ID]
            offset += (length + 3) & ~3


def _expect(data: bytes) -> None:
    (code,) = struct.unpack_from("=i", data, 16)
    if code and -code != errno.ENOENT:  # that one has ended by itself
        raise OSError(-code, f"connections cannot be ended: {os.strerror(-code)}")
