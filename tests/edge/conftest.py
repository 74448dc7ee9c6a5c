"""An edge on loopback with two real hosts behind it: `remails api` and `remails inbound` each, on one database."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import seed
from edge.proxy import EDGE, HOSTS, Edge, Front, Ports, Service
from inbound.running import make_certificate
from playbooks.play import Ansible, ansible_in

from remails.config import Api, Bans, Inbound, Mail, Metrics, Settings
from remails.config import Database as DatabaseSettings
from remails.db import Database
from remails.vault import Pepper, Vault


@pytest.fixture(scope="session")
def ansible(tmp_path_factory: pytest.TempPathFactory) -> Ansible:
    """Run one of Ansible's programs."""
    return ansible_in(tmp_path_factory.mktemp("ansible"))


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Certificate, key, and both in one file, as HAProxy wants them."""
    folder = tmp_path_factory.mktemp("tls")
    made = make_certificate(folder)
    both = folder / "both.pem"
    both.write_text(Path(made.certificate).read_text(encoding="ascii") + Path(made.key).read_text(encoding="ascii"))
    return made.certificate, made.key, str(both)


@pytest.fixture(scope="module")
def front(
    ansible: Ansible,
    tmp_path_factory: pytest.TempPathFactory,
    module_database: DatabaseSettings,
    credentials: Path,
    certificate: tuple[str, str, str],
    vault: Vault,
    pepper: Pepper,
) -> Iterator[Front]:
    """The whole, and a tenant who may send."""
    folder = tmp_path_factory.mktemp("edge")
    ports = Ports.free()
    db = Database(module_database, None, "test")
    db.open()
    tenant = seed.tenant(db, vault, pepper)
    with contextlib.ExitStack() as stack:
        stack.callback(db.close)
        edge = Edge(ansible, folder, ports, certificate[2])
        stack.callback(edge.stop)
        services: dict[str, Service] = {}
        for host, ip in HOSTS.items():
            settings = Settings(
                host=host,
                mail=Mail(hostname="mail.relay.example"),
                database=module_database,
                credentials_directory=str(credentials),
                bans=Bans(allow=()),
                metrics=Metrics(host=ip, port=ports.metrics + 1),
                api=Api(
                    listen=f"{ip}:{ports.api}",
                    url="https://relay.example",
                    workers=1,
                    threads=4,
                    trusted_proxies=1,
                    proxy_trusted=(f"{EDGE}/32",),
                ),
                inbound=Inbound(
                    host=ip,
                    smtps_port=ports.smtp[0],
                    submission_port=ports.smtp[1],
                    alternate_port=ports.smtp[2],
                    tls_certificate=certificate[0],
                    tls_key=certificate[1],
                    proxy_trusted=(f"{EDGE}/32",),
                    drain_timeout=5,
                ),
            )
            for word in ("api", "inbound"):
                services[f"{host} {word}"] = Service(folder, settings, word)
        for service in services.values():
            stack.callback(service.stop)
        made = Front(edge, services, tenant, db)
        made.whole()
        yield made
