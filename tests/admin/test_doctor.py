"""`remails doctor`: each thing that can be wrong is found, and nothing else."""

import json
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dnssec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fakes.upcloud import UpCloud
from terminal import Terminal, settings

from remails import config
from remails.admin import doctor
from remails.bus import keys as bus_keys
from remails.bus import service as bus_service
from remails.db import Database
from remails.dev import dns
from remails.store import addresses, leases, server

IP = "127.0.0.11"
PTR = "out1.relay.example"
POINTER = ".".join(reversed(IP.split("."))) + ".in-addr.arpa"


@dataclass
class World:
    """A host that is well, and what can be broken on it."""

    terminal: Terminal
    zone: dns.StaticZone
    certificate: Path
    key: Path

    def findings(self, *services: str) -> dict[str, tuple[str, str]]:
        """Status and text by name."""
        words = [word for service in services for word in ("--service", service)]
        result = self.terminal.run("doctor", "--json", *words)
        found = {row["name"]: (row["status"], row["text"]) for row in json.loads(result.stdout)}
        assert result.exit_code == any(status == "FAIL" for status, _ in found.values())
        return found

    def trouble(self, *services: str) -> dict[str, tuple[str, str]]:
        """What is not ok, but for the durability of a PostgreSQL that is made for tests."""
        found = self.findings(*services)
        return {name: found[name] for name in found if found[name][0] != "ok" and name != "durability"}

    def replace(self, old: str, new: str) -> None:
        """Change the settings."""
        text = self.terminal.path.read_text()
        assert old in text
        self.terminal.path.write_text(text.replace(old, new))


def _write_certificate(
    certificate: Path, key: Path, *, name: str = "relay.example", days: float = 60, with_key: bool = True
) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(subject, subject, private.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=90))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(private, SHA256())
    )
    certificate.write_bytes(made.public_bytes(Encoding.PEM))
    if with_key:
        key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _broker(publish: str, subscribe: str, credentials: Path) -> Iterator[None]:
    broker = bus_service.Broker(
        config.Bus(
            listen_publish=publish,
            listen_subscribe=subscribe,
            client_public_keys=((credentials / "bus_client_key.pub").read_text(),),
        ),
        (credentials / "bus_server_key").read_text(),
    )
    broker.thread.start()
    yield
    broker.close()


@pytest.fixture
def world(
    terminal: Terminal,
    database: config.Database,
    db: Database,
    credentials: Path,
    nameserver: tuple[dns.StaticZone, int],
    tmp_path: Path,
) -> Iterator[World]:
    """A host with every service, an address and a certificate, and all of it well."""
    zone, dns_port = nameserver
    zone["relay.example", "A"], zone[PTR, "A"], zone[POINTER, "PTR"] = ["192.0.2.25"], [IP], [f"{PTR}."]
    publish, subscribe = (f"tcp://127.0.0.1:{_free_port()}" for _ in range(2))
    made = World(terminal, zone, tmp_path / "certificate.pem", tmp_path / "key.pem")
    _write_certificate(made.certificate, made.key)
    more = f"""
[bus]
endpoints = [{{ publish = "{publish}", subscribe = "{subscribe}" }}]
server_public_key = "{(credentials / "bus_server_key.pub").read_text()}"
client_public_keys = ["{(credentials / "bus_client_key.pub").read_text()}"]
[dns]
nameservers = ["127.0.0.1:{dns_port}"]
timeout = 1
[inbound]
tls_certificate = "{made.certificate}"
tls_key = "{made.key}"
"""
    private = tmp_path / "credentials"
    shutil.copytree(credentials, private)
    terminal.path.write_text(settings(private, database.dsn, more))
    with db.transaction() as conn:
        pool = addresses.create_pool(conn, "shared", is_default=True)
        addresses.add(conn, IP, pool.id, "static", PTR)
        host = addresses.register_host(conn, "test", "static", "", "", 5, "1.0")
        (leased,) = leases.claim(conn, host.id, 3600, 5)
        leases.set_state(conn, leased.ip, leased.lease_epoch, "ready")
    with _broker(publish, subscribe, credentials):
        yield made


def test_a_host_that_is_well(world: World) -> None:
    found = world.findings()

    assert world.trouble() == {}
    assert {
        *("settings", "credential encryption_keys", "credential pepper", "credential bus_client_key"),
        *("credential bus_server_key", "database", "migrations", "durability", "clock", "certificate"),
        *(f"address {IP}", f"reverse name of {IP}"),
    } <= set(found)
    assert sum(name.startswith("bus tcp://") for name in found) == 1
    assert sum(name.startswith("dns ") for name in found) == 1


def test_text_has_a_line_for_each(world: World) -> None:
    (world.terminal.path.parent / "credentials" / "pepper").unlink()

    result = world.terminal.run("doctor")

    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert len(lines) == len(world.findings())
    assert {line[:5] for line in lines} == {"ok   ", "FAIL "}
    assert any(line.startswith("FAIL credential pepper: cannot read ") for line in lines)


def test_exit_status_of_a_host_that_is_well(world: World) -> None:
    assert world.terminal.run("doctor", "--service", "bus").exit_code == 0


def test_settings_that_are_wrong_are_all_that_is_said(terminal: Terminal) -> None:
    terminal.path.write_text("host = 1")

    result = terminal.run("doctor")
    assert result.exit_code == 1
    assert result.stdout.startswith("FAIL settings: ") and result.stdout.count("\n") == 1


def test_only_what_the_services_of_the_host_need(world: World) -> None:
    (world.terminal.path.parent / "credentials" / "pepper").unlink()
    world.certificate.unlink()

    assert set(world.trouble()) == {"credential pepper", "certificate"}
    assert world.trouble("outbound", "ipagent") == {}
    assert set(world.findings("bus")) == {"settings", "credential bus_server_key"}


@pytest.mark.parametrize("word", list(doctor.CREDENTIALS))
def test_units_load_the_credentials_that_are_looked_at(word: str) -> None:
    unit = (Path(__file__).parents[2] / "systemd" / f"remails-{word}.service").read_text()

    loaded = re.findall(r"^LoadCredential=([a-z_]+):", unit, re.MULTILINE)
    assert sorted(loaded) == sorted(doctor.CREDENTIALS[word])


def test_services_are_those_that_systemd_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TARGET", tmp_path)
    assert doctor.installed() == set()
    for unit in ("remails-bus.service", "remails-api.service", "remails-api.socket", "other.service"):
        (tmp_path / unit).touch()
    assert doctor.installed() == {"bus", "api"}


# Credentials


@pytest.mark.parametrize("name", ["encryption_keys", "pepper", "bus_server_key", "bus_client_key"])
def test_credential_that_everybody_can_read(world: World, name: str) -> None:
    (world.terminal.path.parent / "credentials" / name).chmod(0o644)

    ((found, (status, text)),) = world.trouble().items()
    assert (found, status) == (f"credential {name}", "FAIL") and "chmod o=" in text


@pytest.mark.parametrize("name", ["encryption_keys", "pepper", "bus_server_key", "bus_client_key"])
def test_credential_that_is_none(world: World, name: str) -> None:
    (world.terminal.path.parent / "credentials" / name).write_text("secret nonsense")

    status, text = world.trouble()[f"credential {name}"]
    assert status == "FAIL" and "nonsense" not in text


@pytest.mark.parametrize("name", ["bus_server_key", "bus_client_key"])
def test_bus_key_of_another_installation(world: World, name: str) -> None:
    (world.terminal.path.parent / "credentials" / name).write_text(bus_keys.generate_keys()[1])

    status, text = world.trouble()[f"credential {name}"]
    assert status == "FAIL" and "does not belong" in text


# Database


def test_database_that_is_away(world: World, database: config.Database) -> None:
    world.replace(database.dsn, "host=127.0.0.1 port=1 dbname=x user=x")

    trouble = world.trouble()
    assert trouble["database"][0] == "FAIL" and "refused" in trouble["database"][1]
    for later in ("addresses", "renewal"):
        assert trouble.pop(later) == ("warn", "not looked at, for want of the database")
    assert set(trouble) == {"database"}


def test_migrations_that_are_missing(world: World, db: Database) -> None:
    with db.transaction() as conn:
        conn.execute("DELETE FROM _yoyo_migration WHERE migration_id LIKE '0001.%'")

    status, text = world.trouble()["migrations"]
    assert status == "FAIL" and "0001." in text and "remails migrate" in text


def test_a_commit_that_is_none(world: World, database: config.Database) -> None:
    world.replace(database.dsn, f"{database.dsn} options='-c synchronous_commit=off'")

    status, text = world.findings()["durability"]
    assert status == "FAIL" and "synchronous_commit is off: a crash would lose mail" in text


def test_a_server_that_is_a_standby_or_unsafe(db: Database) -> None:
    well = replace(db.run(server.state), fsync=True, full_page_writes=True)

    assert doctor.durability(well).status == "ok"
    assert "standby" in doctor.durability(replace(well, is_standby=True)).text
    for unsafe in (replace(well, fsync=False), replace(well, full_page_writes=False)):
        assert doctor.durability(unsafe).status == "FAIL"


@pytest.mark.parametrize(
    ("seconds", "status"), [(0.2, "ok"), (-0.9, "ok"), (1.5, "warn"), (-3.0, "warn"), (11.0, "FAIL"), (-3600.0, "FAIL")]
)
def test_clocks_apart(seconds: float, status: str) -> None:
    found = doctor.skew(seconds)
    assert found.status == status
    assert status == "ok" or ("ahead" if seconds > 0 else "behind") in found.text


# Bus


def test_broker_that_is_away(world: World) -> None:
    away = f"tcp://127.0.0.1:{_free_port()}"
    world.replace("endpoints = [", f'endpoints = [{{ publish = "{away}", subscribe = "{away}" }}, ')

    ((name, (status, text)),) = world.trouble("outbound", "ipagent").items()
    assert (name, status) == (f"bus {away}", "FAIL") and "no note came back" in text


def test_broker_with_another_key(world: World, credentials: Path) -> None:
    other = bus_keys.generate_keys()[0]
    world.replace((credentials / "bus_server_key.pub").read_text(), other)

    assert [name for name in world.trouble("periodic") if name.startswith("bus ")]


def test_no_bus_is_only_slow(world: World) -> None:
    text = world.terminal.path.read_text()
    world.terminal.path.write_text(re.sub(r"endpoints = .*\n", "", text))

    assert world.trouble()["bus"][0] == "warn"


# Outbound addresses


def test_host_without_address(world: World, db: Database) -> None:
    db.run(leases.release, IP, 1)

    assert world.trouble() == {"addresses": ("warn", "test holds none, so no mail leaves from here")}


def test_host_that_never_registered(world: World) -> None:
    world.replace('host = "test"', 'host = "other"')

    status, text = world.trouble()["addresses"]
    assert status == "FAIL" and "other is not registered" in text


def test_address_in_error(world: World, db: Database) -> None:
    db.run(leases.set_state, IP, 1, "error", "the provider said no")

    ((name, (status, text)),) = world.trouble().items()
    assert (name, status) == (f"address {IP}", "FAIL") and "the provider said no" in text


def test_address_whose_lease_is_over(world: World, db: Database) -> None:
    with db.transaction() as conn:
        conn.execute("UPDATE addresses SET lease_until = now() - interval '1 s'")

    assert world.trouble()[f"address {IP}"][0] == "FAIL"


def test_address_that_is_on_no_interface(world: World, db: Database) -> None:
    with db.transaction() as conn:
        conn.execute("UPDATE addresses SET bind_ip = '192.0.2.77'")

    status, text = world.trouble()[f"address {IP}"]
    assert status == "FAIL" and "192.0.2.77" in text


def test_reverse_name(world: World) -> None:
    pointer = (POINTER, "PTR")
    name = f"reverse name of {IP}"

    world.zone[pointer] = ["host7.provider.example."]
    assert world.trouble() == {name: ("warn", f"is host7.provider.example, but has to be {PTR}")}
    del world.zone[pointer]
    assert world.trouble()[name][0] == "warn"
    world.zone[pointer] = [f"{PTR}."]
    world.zone[PTR, "A"] = ["192.0.2.1"]
    assert world.trouble() == {name: ("warn", f"{PTR} leads to 192.0.2.1, not back")}


# Certificate


@pytest.mark.parametrize(
    ("days", "status", "words"),
    [(-1, "FAIL", "expired"), (5.5, "warn", "expires in 5 days"), (20.5, "ok", "20 more days")],
)
def test_age_of_the_certificate(world: World, days: float, status: str, words: str) -> None:
    _write_certificate(world.certificate, world.key, days=days)

    found = world.findings("inbound")["certificate"]
    assert found[0] == status and words in found[1]


@pytest.mark.parametrize(("name", "status"), [("*.example", "ok"), ("other.example", "warn")])
def test_name_of_the_certificate(world: World, name: str, status: str) -> None:
    _write_certificate(world.certificate, world.key, name=name)

    assert world.findings("inbound")["certificate"][0] == status


def test_certificate_of_another_key(world: World) -> None:
    _write_certificate(world.certificate, world.key, with_key=False)

    status, text = world.trouble("inbound")["certificate"]
    assert status == "FAIL" and "do not belong together" in text


def test_every_certificate_is_looked_at(world: World, tmp_path: Path) -> None:
    """Also those for other names (SNI)."""
    pairs = [(tmp_path / f"{name}.pem", tmp_path / f"{name}.key") for name in ("good", "old", "missing")]
    _write_certificate(*pairs[0], name="mail.brand.example")
    _write_certificate(*pairs[1], name="mail.other.example", days=-1)
    given = ", ".join(f'{{ certificate = "{certificate}", key = "{key}" }}' for certificate, key in pairs)
    world.replace("tls_key =", f"certificates = [{given}]\ntls_key =")

    found = world.findings("inbound")
    assert found["certificate"][0] == "ok"
    status, text = found[f"certificate {pairs[0][0]}"]
    assert (status, text.startswith("for mail.brand.example, valid for ")) == ("ok", True)
    assert found[f"certificate {pairs[1][0]}"][0] == "FAIL"
    assert found[f"certificate {pairs[2][0]}"] == ("FAIL", f"cannot read {pairs[2][0]}: No such file or directory")


@pytest.mark.parametrize("which", ["certificate", "key"])
@pytest.mark.parametrize("content", [None, b"nonsense"])
def test_certificate_that_cannot_be_used(world: World, which: str, content: bytes | None) -> None:
    path: Path = getattr(world, which)
    path.unlink() if content is None else path.write_bytes(content)

    status, text = world.trouble("inbound")["certificate"]
    words = "cannot read" if content is None else "in PEM"
    assert status == "FAIL" and str(path) in text and words in text and "_ssl" not in text


# DNS


@pytest.mark.parametrize("code", [dns.Code.SERVFAIL, dns.Code.REFUSED, dns.Code.TIMEOUT])
def test_nameserver_that_fails(world: World, code: dns.Code) -> None:
    world.zone["relay.example", "A"] = code

    ((name, (status, text)),) = world.trouble().items()
    assert name.startswith("dns ") and status == "FAIL" and text


def test_our_own_name_that_does_not_exist(world: World) -> None:
    world.zone["relay.example", "A"] = dns.Code.NXDOMAIN

    ((name, (status, text)),) = world.trouble().items()
    assert name.startswith("dns ") and status == "warn" and "relay.example" in text


def test_each_nameserver_is_asked(world: World) -> None:
    world.replace("nameservers = [", f'nameservers = ["127.0.0.1:{_free_port()}", ')

    found = [status for name, (status, _) in world.findings("periodic").items() if name.startswith("dns ")]
    assert found == ["FAIL", "ok"]


def test_the_agents_provider(world: World, tmp_path: Path) -> None:
    token = tmp_path / "credentials" / "provider_token"
    text = world.terminal.path.read_text()

    def said(more: str) -> tuple[str, str]:
        world.terminal.path.write_text(f"{text}\n[ipagent]\n{more}")
        return world.findings("ipagent")["provider"]

    assert said('provider = "static"')[0] == "ok"
    status, why = said('provider = "upclod"')
    assert status == "FAIL"
    assert why == "ipagent.provider: unknown provider 'upclod', known are: hetzner, openstack, static, upcloud"
    status, why = said('provider = "upcloud"\nserver_ref = "uuid-1"')
    assert status == "FAIL"
    assert why.startswith("credential provider_token: ")
    token.write_text("ucat_right")
    token.chmod(0o600)
    cloud = UpCloud()
    cloud.world.tokens = ["ucat_right"]
    with cloud.serving() as url:
        settings = (
            f'provider = "upcloud"\nserver_ref = "uuid-1"\nport_ref = "02:00:00:00:00:01"\nprovider_url = "{url}"'
        )
        assert said(settings)[0] == "ok"
        token.write_text("ucat_wrong")
        status, why = said(settings)
    assert status == "FAIL"
    assert "with 401" in why
    assert "ucat_wrong" not in why
    assert said(settings)[0] == "warn", "nobody is there"


def test_a_resolver_that_does_not_validate(world: World) -> None:
    world.replace("[dns]\n", "[dns]\nvalidating = true\n")

    ((name, (status, text)),) = world.trouble("periodic").items()
    assert name.startswith("dnssec ") and status == "FAIL" and "dns.validating" in text


@pytest.mark.needs("knotd", "unbound")
def test_a_resolver_that_validates(world: World, tmp_path: Path) -> None:
    made = tmp_path / "dnssec"
    made.mkdir()
    with dnssec.serve(made, {"": "relay.example. A 192.0.2.25\n"}) as served:
        world.terminal.path.write_text(
            re.sub(
                r"nameservers = .*",
                f'nameservers = ["127.0.0.1:{served.resolver}"]\nvalidating = true',
                world.terminal.path.read_text(),
            )
        )
        found = {name: status for name, (status, _) in world.findings("periodic").items() if name.startswith("dns")}
    assert found == {f"dns Do53:127.0.0.1@{served.resolver}": "ok", f"dnssec Do53:127.0.0.1@{served.resolver}": "ok"}
