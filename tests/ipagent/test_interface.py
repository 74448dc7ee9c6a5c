"""The network interface: real addresses, neighbours and connections, in network namespaces of our own. Needs root."""

import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import namespaces
import pytest
from namespaces import inside, ip

from remails.ipagent.fence import Fence
from remails.ipagent.interface import MARK, Interface, check, watch
from remails.ipagent.sockets import destroy

pytestmark = [
    pytest.mark.needs("ip"),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

IP, IP6 = "203.0.113.7", "2001:db8::7"


def _until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


@pytest.fixture
def network() -> Iterator[str]:
    """Two hosts and a router."""
    with namespaces.running() as name:
        yield name


@pytest.fixture
def nic(network: str) -> Iterator[Interface]:
    """The interface of host a, in whose network the test runs."""
    with inside(f"{network}-a"):
        yield Interface()


def test_an_address_of_ours_is_added_with_our_mark_and_a_lifetime_and_removed(nic: Interface) -> None:
    nic.add(IP, 100)
    assert (nic.ours(), IP in nic.present()) == ({IP}, True)
    check(IP)
    shown = ip("-d", "addr", "show", "dev", "eth0")
    assert f"inet {IP}/32" in shown
    assert "valid_lft 100sec" in shown or "valid_lft 99sec" in shown
    nic.add(IP, 1000)
    assert "valid_lft 1000sec" in ip("addr", "show", "dev", "eth0")
    assert " src 198.51.100.11 " in ip("route", "get", "192.0.2.1"), "the kernel never chooses it by itself"
    nic.remove(IP)
    nic.remove(IP)
    assert nic.ours() == set()
    with pytest.raises(OSError) as error:
        check(IP)
    assert error.value.errno == errno.EADDRNOTAVAIL


def test_an_ipv6_address_can_be_bound_at_once_and_is_never_chosen_by_the_kernel(nic: Interface) -> None:
    nic.add(IP6, 100)
    check(IP6)
    nic.add(IP6, 100)
    shown = ip("-6", "addr", "show", "dev", "eth0")
    assert f"inet6 {IP6}/128" in shown
    assert "deprecated" in shown
    assert nic.ours() == {IP6}
    nic.announce(IP6)
    nic.remove(IP6)
    assert IP6 not in nic.present()


def test_addresses_of_others_are_never_touched(nic: Interface) -> None:
    ip("addr", "add", f"{IP}/32", "dev", "eth0")
    before = ip("addr", "show", "dev", "eth0")
    nic.add(IP, 10)
    nic.remove(IP)
    nic.remove("198.51.100.11")
    assert ip("addr", "show", "dev", "eth0") == before
    assert nic.ours() == set()


def test_the_kernel_takes_an_address_off_when_nobody_prolongs_it(nic: Interface) -> None:
    nic.add(IP, 1)
    _until(lambda: IP not in nic.present())


def test_neighbours_learn_who_has_the_address_now(network: str) -> None:
    """Without the announcement the router would go on sending to the host before."""
    a, b = Interface(), Interface("eth0")

    def reaches(end: str) -> bool:
        with inside(f"{network}-{end}"), socket.socket() as server:
            server.bind((IP, 0))
            server.listen()
            port = server.getsockname()[1]
            with inside(f"{network}-r"), contextlib.suppress(OSError), socket.create_connection((IP, port), 0.5):
                return True
        return False

    with inside(f"{network}-a"):
        a.add(IP, 100)
        a.announce(IP)
    assert reaches("a")
    with inside(f"{network}-b"):
        b.add(IP, 100)
        b.announce(IP)
    assert reaches("b")


def test_connections_from_an_address_that_is_removed_end_at_once(network: str, nic: Interface) -> None:
    nic.add(IP, 100)
    nic.announce(IP)
    with inside(f"{network}-r"):
        server = socket.create_server(("198.51.100.1", 0))
    port = server.getsockname()[1]
    with (
        server,
        socket.create_connection(("198.51.100.1", port), 5, source_address=(IP, 0)) as ours,
        socket.create_connection(("198.51.100.1", port), 5) as other,
    ):
        nic.remove(IP)
        with pytest.raises(ConnectionAbortedError):
            ours.recv(1)
        other.send(b"x")
        assert destroy("198.51.100.11") == 1
        assert destroy(IP) == 0


def test_an_address_that_others_take_off_is_back_at_once_and_one_that_is_given_up_is_not(network: str) -> None:
    with inside(f"{network}-a"):
        nic = Interface()
        clock = time.monotonic
        fence = Fence(30.0, nic, clock)
        lost: list[str] = []
        fence.hold([IP], clock())
        assert fence.put(IP, IP)
        stop = threading.Event()

        def run() -> None:
            with inside(f"{network}-a"):
                watch(lambda ip: (lost.append(ip), fence.restore(ip))[0], stop.is_set)

        watcher = threading.Thread(target=run)
        watcher.start()
        try:
            _until(lambda: _flushed(fence, lost))
            _until(lambda: IP in nic.present())
            count = len(lost)
            fence.drop(IP)
            _until(lambda: len(lost) > count)
            assert IP not in nic.present()
        finally:
            stop.set()
            watcher.join()


def _flushed(fence: Fence, lost: list[str]) -> bool:
    """Take it off until the watcher has seen it; what went before it watched is gone until somebody puts it back."""
    fence.put(IP, IP)
    ip("addr", "flush", "dev", "eth0", "to", IP)
    time.sleep(0.05)
    return bool(lost)


def test_after_its_deadline_an_address_is_off_whatever_else_happens(nic: Interface) -> None:
    now = [0.0]
    fence = Fence(30.0, nic, lambda: now[0])
    fence.hold([IP], 0.0)
    fence.put(IP, IP)
    now[0] = 21.0
    assert fence.check() == []
    assert nic.ours() == {IP}
    now[0] = 22.0
    assert fence.check() == [IP]
    assert nic.ours() == set()
    assert not fence.put(IP, IP), "nor put back"


def test_there_is_no_such_interface(network: str) -> None:
    with inside(f"{network}-a"), pytest.raises(OSError, match="there is no network interface eth7"):
        Interface("eth7").add(IP, 10)
    with inside(f"{network}-s"), pytest.raises(OSError, match="there is no default route"):
        Interface().add(IP, 10)


def test_the_mark_is_none_of_the_kernels() -> None:
    assert MARK > 3
