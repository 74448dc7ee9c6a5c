"""The service as it is started on hosts: its process, the kernel's interfaces, a fake UpCloud over HTTP. Needs root."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import namespaces
import pytest
from fakes.upcloud import UpCloud
from namespaces import inside, ip

from remails import config
from remails.db import Database
from remails.store import addresses

pytestmark = [
    pytest.mark.needs("ip"),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

IPS = ["203.0.113.7", "203.0.113.8"]
LEASE = 12


def _until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


class Hosts:
    """The hosts a and b, and the cloud in the network of r."""

    def __init__(self, network: str, cloud: UpCloud, url: str, database: config.Database, directory: Path) -> None:
        self.network, self.cloud = network, cloud
        self._url, self._database, self._directory = url, database, directory
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, end: str) -> None:
        """Start the agent of a host, which reads the MAC address of its interface by itself."""
        directory = self._directory / end
        directory.mkdir(exist_ok=True)
        (directory / "provider_token").write_text(f"ucat_{end}")
        (directory / "remails.toml").write_text(
            f"""
            host = "{end}"
            credentials_directory = "{directory}"
            mail.hostname = "relay.example.com"
            database.dsn = "{self._database.dsn}"
            [ipagent]
            provider = "upcloud"
            provider_url = "{self._url}"
            provider_timeout = 4.0
            server_ref = "uuid-{end}"
            zone = "nl-ams1"
            lease = {LEASE}
            interval = 0.5
            requests_per_second = 10
            """
        )
        code = "from remails import config; from remails.ipagent import service; service.main(config.load())"
        with (directory / "log").open("ab") as log:
            self.processes[end] = subprocess.Popen(
                ["ip", "netns", "exec", f"{self.network}-{end}", sys.executable, "-c", code],
                env={**os.environ, "REMAILS_CONFIG": str(directory / "remails.toml")},
                stderr=log,
            )

    def on(self, end: str) -> set[str]:
        """Which of the addresses are on the interface of a host."""
        shown = ip("-n", f"{self.network}-{end}", "addr", "show", "dev", "eth0")
        return {one for one in IPS if f"inet {one}/32" in shown}

    def reaches(self, address: str, end: str) -> bool:
        """Whether the router reaches the address at that host."""
        with inside(f"{self.network}-{end}"), socket.socket() as server:
            server.bind((address, 0))
            server.listen()
            with inside(f"{self.network}-r"), suppress(OSError):
                socket.create_connection((address, server.getsockname()[1]), 2).close()
                return True
        return False


@pytest.fixture
def hosts(database: config.Database, tmp_path: Path) -> Iterator[Hosts]:
    """Everything but the agents."""
    with ExitStack() as stack:
        network = stack.enter_context(namespaces.running())
        cloud = UpCloud()
        for end in ("a", "b"):
            link = ip("-n", f"{network}-{end}", "-o", "link", "show", "dev", "eth0")
            cloud.add_server(end, link.partition("link/ether ")[2].split()[0], uuid=f"uuid-{end}")
            cloud.world.tokens.append(f"ucat_{end}")
        for one in IPS:
            cloud.add_address(one)
        with inside(f"{network}-r"):
            url = stack.enter_context(cloud.serving(namespaces.ADDRESSES["r"]))
        made = Hosts(network, cloud, url, database, tmp_path)
        try:
            yield made
        finally:
            for process in made.processes.values():
                process.kill()
                process.wait()


def test_addresses_move_from_a_host_whose_agent_is_killed_to_one_that_lives(hosts: Hosts, db: Database) -> None:
    """In between nobody tells the kernel of the first one to take them off: it does so by itself."""
    pool = db.run(addresses.create_pool, "shared")
    for one in IPS:
        db.run(addresses.add, one, pool.id, "upcloud", "mx.example.com", zone="nl-ams1")

    def holders() -> set[tuple[str, object]]:
        names = {host.id: host.name for host in db.run(addresses.list_hosts)}
        return {(one.state, names.get(one.lease_host)) for one in db.run(addresses.list_)}  # type: ignore[arg-type]

    hosts.start("a")
    _until(lambda: holders() == {("ready", "a")})
    assert hosts.on("a") == set(IPS)
    assert all(hosts.reaches(one, "a") for one in IPS)

    hosts.start("b")
    _until(lambda: len(db.run(addresses.list_hosts)) == 2)
    hosts.processes["a"].send_signal(signal.SIGKILL)
    both = False

    def moved() -> bool:
        nonlocal both
        both = both or bool(hosts.on("a") & hosts.on("b"))
        return holders() == {("ready", "b")}

    _until(moved)
    assert (hosts.on("a"), hosts.on("b"), both) == (set(), set(IPS), False)
    assert all(hosts.reaches(one, "b") for one in IPS)
    assert set(hosts.cloud.owners(hosts.cloud.world).values()) == {"b"}
    assert all(call.method != "DELETE" for call in hosts.cloud.calls)

    ip("-n", f"{hosts.network}-b", "addr", "flush", "dev", "eth0", "to", IPS[0])
    _until(lambda: hosts.on("b") == set(IPS), 5)

    hosts.processes["b"].send_signal(signal.SIGTERM)
    assert hosts.processes["b"].wait(20) == 0
    assert hosts.on("b") == set(IPS), "a restart interrupts nothing"
    hosts.start("b")
    time_of_start = time.monotonic()
    _until(lambda: time.monotonic() - time_of_start > LEASE / 2 and holders() == {("ready", "b")})
    assert hosts.on("b") == set(IPS)
