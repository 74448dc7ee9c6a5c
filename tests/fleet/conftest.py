"""The fleet of the tests: twelve hosts and the world, up for the whole run. Only with REMAILS_FLEET=1 (`make fleet`), as root.

REMAILS_FLEET_NAME=word keeps the fleet of that name when the run ends, and takes it up again in the next one.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployment import Customer, Deployment
from hosts import CGROUPS, Fleet
from world import World

STRICT = os.environ.get("CI") == "true" or os.environ.get("REMAILS_TEST_STRICT") == "1"
WANTED = os.environ.get("REMAILS_FLEET") == "1"
TOOLS = (
    *("systemd-nspawn", "mmdebstrap", "apt-ftparchive", "nft", "ip", "ssh", "nsenter", "setpriv"),
    *("qemu-system-x86_64", "mke2fs"),
)

# The hosts of a database cluster have the same PostgreSQL, and those who keep its backups the same pgBackRest.
RELEASES = {
    "app1": "bookworm",
    "app2": "bookworm",
    "out1": "bookworm",
    "out2": "bookworm",
    "out3": "trixie",
    "data1": "bookworm",
    "data2": "bookworm",
    "data3": "bookworm",
    "edge1": "bookworm",
    "edge2": "trixie",
    "watch1": "bookworm",
    "place1": "trixie",  # somebody else's computer, where independent copies of the backups go
}

ORDER = {"test_fleet.py": -1, "test_backups.py": 1, "test_major.py": 2}


def pytest_configure(config: pytest.Config) -> None:
    """Register our markers."""
    config.addinivalue_line(
        "markers", "fleet: needs the fleet of hosts, so root and minutes; only with REMAILS_FLEET=1"
    )
    config.addinivalue_line("markers", "long: many playbooks or losses, so many minutes; not part of every CI run")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the fleet out of an ordinary run; in one with it the new fleet is looked at first, and the database made anew last."""
    items.sort(key=lambda item: ORDER.get(item.path.name, 0))
    if not WANTED:
        left_out = [item for item in items if item.get_closest_marker("fleet")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def _obstacle() -> str:
    """Why there can be no fleet on this machine; or nothing."""
    if os.geteuid() != 0:
        return "the fleet needs root, for namespaces and systemd-nspawn"
    missing = [tool for tool in TOOLS if not shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]
    return f"the fleet needs {', '.join(missing)}" if missing else ""


@pytest.fixture(scope="session")
def ground() -> Iterator[Fleet]:
    """A network with a world and no hosts: a test that brings its own needs no others."""
    if obstacle := _obstacle():
        (pytest.fail if STRICT else pytest.skip)(obstacle)
    _end_what_was_left()
    kept = os.environ.get("REMAILS_FLEET_NAME")
    ground = Fleet(kept or f"r{os.getpid()}")
    try:
        if not ground.hosts:
            ground.up()
        yield ground
    finally:
        if not kept:
            ground.down()


@pytest.fixture(scope="session")
def fleet(ground: Fleet, world: World) -> Fleet:
    """The hosts, bare, all booted."""
    for name, release in RELEASES.items():
        if name not in ground.hosts:
            ground.add(name, release)
    assert {name: ground.hosts[name].wait() for name in RELEASES} == dict.fromkeys(RELEASES, "running")
    return ground


def _end_what_was_left() -> None:
    """A run that was killed could not end its fleet; its name tells whether it is still there."""
    for cgroup in CGROUPS.glob("fleet-r*"):
        pid = cgroup.name.removeprefix("fleet-r")
        if pid.isdecimal() and not Path("/proc", pid).exists():
            Fleet(f"r{pid}").down()


@pytest.fixture(scope="session")
def world(ground: Fleet) -> World:
    """DNS, and the receivers' mail server."""
    return World(ground)


@pytest.fixture(params=RELEASES)
def host(request: pytest.FixtureRequest) -> str:
    """Each host, by name."""
    return str(request.param)


@pytest.fixture(params=["data1", "out3"])
def spare(request: pytest.FixtureRequest) -> str:
    """A host of each Debian, by name."""
    return str(request.param)


@pytest.fixture(scope="session")
def deployment(fleet: Fleet, world: World) -> Deployment:
    """The installation, by site.yml on bare hosts, with addresses."""
    made = Deployment(fleet, world)
    if not made.is_there():
        began = time.monotonic()
        made.site().ok()
        made.ready()
        made.took = time.monotonic() - began
    return made


@pytest.fixture(scope="session")
def customers(deployment: Deployment) -> dict[str, Customer]:
    """Two organizations: ACME has a pool of its own, Other sends from the shared one."""
    run = f"{time.time():.0f}"
    return {"acme": deployment.customer(f"Acme{run}", "acme"), "other": deployment.customer(f"Other{run}")}


@pytest.fixture
def whole(deployment: Deployment) -> Iterator[None]:
    """Afterwards every host is on and every address ready."""
    yield
    off = [host for host in deployment.fleet.hosts.values() if host.leader() is None]
    for host in off:
        host.start()
        host.wait()
    if off:
        deployment.ready()
