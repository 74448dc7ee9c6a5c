"""Which TCP ports of a host can be reached from somewhere: a connect scan, as an outsider or another host would make it."""

import contextlib
import errno
import resource
import select
import socket
from collections.abc import Iterable, Sequence

from hosts import Fleet

EVERY = range(1, 65536)
AT_ONCE = 3000
PATIENCE = 1.0  # seconds; a port whose packets are dropped does not answer at all


def reachable(fleet: Fleet, end: str, ip: str, ports: Sequence[int] = EVERY) -> set[int]:
    """The ports that accept a connection from that end of the network."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each port of a batch takes a descriptor
    found: set[int] = set()
    with fleet.network(end):
        for start in range(0, len(ports), AT_ONCE):
            found |= _accepting(ip, ports[start : start + AT_ONCE])
    return found


def _accepting(ip: str, ports: Iterable[int]) -> set[int]:
    accepting = set()
    with contextlib.ExitStack() as stack:
        poll, waiting = select.epoll(), {}
        stack.callback(poll.close)
        for port in ports:
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            if sock.connect_ex((ip, port)) == errno.EINPROGRESS:
                waiting[sock.fileno()] = sock, port
                poll.register(sock, select.EPOLLOUT)
        while waiting and (events := poll.poll(PATIENCE)):
            for descriptor, _ in events:
                sock, port = waiting.pop(descriptor)
                poll.unregister(descriptor)
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    accepting.add(port)
    return accepting
