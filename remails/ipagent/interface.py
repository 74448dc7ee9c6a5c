"""This host's network interface: putting addresses on it, telling the neighbours, and whether one is there.

An address is added as a /32 or /128 with the kernel's mark of who added it (IFA_PROTO) set to ours, and with a lifetime, after
which the kernel takes it off by itself, whatever has become of us. What has our mark is ours to remove, also after a crash;
what has not is never touched. Nothing is written to a file: after a reboot no address of ours is there. An IPv6 address is added without duplicate address detection, during which nothing could be bound to it
(and the previous holder may still answer), and as deprecated, so that the kernel never chooses it by itself.

Whether an address can be used is proved by what counts for `outbound`: a socket bound to it. It needs that
`net.ipv4.ip_nonlocal_bind` is off, as it is by default; with it on, every address seems to be here.
"""

import errno
import ipaddress
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from remails.ipagent import sockets
from remails.logs import Log

MARK = 250
"""IFA_PROTO of the addresses we add; 0 to 3 are the kernel's."""

_IFA_F_NODAD = 0x02
_PATIENCE = 5.0
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x10, 0x100
_ETH_P_ARP = 0x0806
_NEIGHBOUR_ADVERTISEMENT, _OVERRIDE, _TARGET_LINK_LAYER_ADDRESS = 136, 0x20000000, 2

log = Log("remails.ipagent")


def check(ip: str, peer: tuple[str, int] | None = None) -> None:
    """Bind a TCP socket to the address, and connect to a peer from it.

    Raises OSError: EADDRNOTAVAIL when the address is not on this host, TimeoutError when no answer came within 5 seconds.
    """
    family = socket.AF_INET6 if ipaddress.ip_address(ip).version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.bind((ip, 0))
        if peer is not None:
            sock.settimeout(_PATIENCE)
            sock.connect(peer)


class Interface:
    """One network interface by name; without one, that of the default route.

    Its methods raise OSError when the kernel refuses.
    """

    def __init__(self, name: str = "") -> None:
        self._name = name

    def mac(self) -> str:
        """Its hardware address, as `aa:bb:cc:dd:ee:ff`."""
        with _netlink() as netlink:
            (link,) = netlink.get_links(self._index(netlink))
            return str(link.get("address"))

    def ours(self) -> set[str]:
        """The addresses on any interface of this host that we added."""
        with _netlink() as netlink:
            return {_address(message) for message in netlink.get_addr() if message.get("IFA_PROTO") == MARK}

    def present(self) -> set[str]:
        """All addresses of this host, whoever added them."""
        with _netlink() as netlink:
            return {_address(message) for message in netlink.get_addr()}

    def add(self, ip: str, seconds: float) -> None:
        """Have an address on the interface for so long; one that others put there stays as it is."""
        lifetime = max(1, int(seconds))
        wanted = {"prefixlen": 32, "proto": MARK, "preferred_lft": lifetime, "valid_lft": lifetime}
        if ipaddress.ip_address(ip).version == 6:
            wanted |= {"prefixlen": 128, "flags": _IFA_F_NODAD, "preferred_lft": 0}
        with _netlink() as netlink:
            there = [message for message in netlink.get_addr() if _address(message) == ip]
            if not there:
                netlink.addr("add", index=self._index(netlink), address=ip, **wanted)
            for message in there:
                if message.get("IFA_PROTO") == MARK:
                    netlink.addr("replace", index=message["index"], address=ip, **wanted)
        check(ip)

    def remove(self, ip: str) -> None:
        """Take an address of ours off and end connections from it; no matter whether it is there.

        One that we did not add stays.
        """
        with _netlink() as netlink:
            for message in [one for one in netlink.get_addr() if one.get("IFA_PROTO") == MARK and _address(one) == ip]:
                _remove(netlink, message)
                try:
                    sockets.destroy(ip)
                except OSError as error:
                    log.warning("connections from an address stay until they time out", address=ip, reason=error)

    def announce(self, ip: str) -> None:
        """Tell the neighbours whose the address is now; on a network that routes by other means it does no harm."""
        with _netlink() as netlink:
            index = self._index(netlink)
            (link,) = netlink.get_links(index)
            name = str(link.get("ifname"))
        (_announce_v6 if ipaddress.ip_address(ip).version == 6 else _announce_v4)(name, index, ip)

    def _index(self, netlink: IPRoute) -> int:
        if self._name:
            found = netlink.link_lookup(ifname=self._name)
            if not found:
                raise OSError(errno.ENODEV, f"there is no network interface {self._name}")
            return int(found[0])
        for route in (*netlink.get_default_routes(family=socket.AF_INET), *netlink.get_default_routes(socket.AF_INET6)):
            if route.get("RTA_OIF"):
                return int(route.get("RTA_OIF"))
        raise OSError(errno.ENODEV, "there is no default route, name the network interface in ipagent.interface")


def watch(lost: Callable[[str], None], stopped: Callable[[], bool]) -> None:
    """Call `lost` with each address that goes away from this host, until `stopped`; for a thread of its own."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
        sock.settimeout(0.5)
        while not stopped():
            try:
                data = sock.recv(65536)
            except TimeoutError:
                continue
            except OSError as error:
                if error.errno == errno.ENOBUFS:  # notes were dropped: the next turn of the agent sees what is missing
                    continue
                raise
            for ip in _deleted(data):
                lost(ip)


def _deleted(data: bytes) -> Iterator[str]:
    """The addresses in RTM_DELADDR messages (rtnetlink(7))."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, offset)
        if length < 16:
            return
        if kind == 21:  # RTM_DELADDR
            yield from _ifaddr(data[offset + 16 : offset + length])
        offset += (length + 3) & ~3


def _ifaddr(body: bytes) -> Iterator[str]:
    family, offset, found = body[0], 8, b""
    while offset + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, offset)
        if length < 4:
            break
        # IFA_LOCAL is the address; IFA_ADDRESS is the same where there is no peer, and the only one for IPv6.
        if kind == 2 or (kind == 1 and not found):
            found = body[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    if found:
        yield socket.inet_ntop(family, found)


@contextmanager
def _netlink() -> Iterator[IPRoute]:
    """A netlink socket whose errors are OSErrors."""
    with IPRoute() as netlink:
        try:
            yield netlink
        except NetlinkError as error:
            raise OSError(error.code, f"network interface: {error.args[1]}") from None


def _address(message: Any) -> str:
    return ipaddress.ip_address(message.get("IFA_LOCAL") or message.get("IFA_ADDRESS", "")).compressed


def _remove(netlink: IPRoute, message: Any) -> None:
    try:
        netlink.addr("del", index=message["index"], address=_address(message), prefixlen=message["prefixlen"])
    except NetlinkError as error:
        if error.code != errno.EADDRNOTAVAIL:
            raise


def _announce_v4(name: str, _index: int, ip: str) -> None:
    """Gratuitous ARP, as request and as reply: hosts differ in which they heed (RFC 5227 §3)."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ARP)) as sock:
        sock.bind((name, 0))
        mac, packed, everyone = sock.getsockname()[4], socket.inet_aton(ip), b"\xff" * 6
        for operation in (1, 2):
            header = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
            target = bytes(6) if operation == 1 else everyone
            sock.send(everyone + mac + struct.pack("!H", _ETH_P_ARP) + header + mac + packed + target + packed)


def _announce_v6(name: str, index: int, ip: str) -> None:
    """An unsolicited neighbour advertisement to all nodes (RFC 4861 §7.2.6)."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as packet:
        packet.bind((name, 0))
        mac = packet.getsockname()[4]
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        sock.bind((ip, 0))
        option = struct.pack("!BB", _TARGET_LINK_LAYER_ADDRESS, 1) + mac
        head = struct.pack("!BBHI", _NEIGHBOUR_ADVERTISEMENT, 0, 0, _OVERRIDE)  # the kernel adds the checksum
        sock.sendto(head + socket.inet_pton(socket.AF_INET6, ip) + option, ("ff02::1", 0, 0, index))
