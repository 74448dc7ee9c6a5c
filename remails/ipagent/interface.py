"""This host's network interface: whether an address is on it.

The proof is the one that counts for `outbound`: a socket bound to the address. Nothing is sent. It needs that
`net.ipv4.ip_nonlocal_bind` is off, as it is by default; with it on, every address seems to be here.
"""

import ipaddress
import socket


def check(ip: str) -> None:
    """Bind a TCP socket to the address. Raises OSError (EADDRNOTAVAIL) when it is not on this host."""
    family = socket.AF_INET6 if ipaddress.ip_address(ip).version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.bind((ip, 0))
