"""`remails doctor`: what is wrong on this host, and what to do.

Each check is a function that yields findings: settings first, then what they name. `FAIL` means that a service of this
host cannot do its work, `warn` that it can but somebody should look. Which services a host has is read from systemd (units wanted by
`remails.target`); where there are none, as on a developer's machine, all are looked at.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import click
import dns.resolver
import msgspec
from cryptography import x509

from remails import config, resolver, vault
from remails.admin import operator, output
from remails.bus import client
from remails.bus import keys as bus_keys
from remails.errors import ConfigError, Unavailable
from remails.ipagent import providers, reverse
from remails.ipagent.providers import ProviderError
from remails.store import addresses, certificates, leases, migrate, server

TARGET = Path("/etc/systemd/system/remails.target.wants")

CREDENTIALS = {
    "api": ("database_password", "encryption_keys", "pepper", "bus_client_key"),
    "inbound": ("database_password", "pepper", "bus_client_key"),
    "outbound": ("database_password", "encryption_keys", "bus_client_key"),
    "bus": ("bus_server_key",),
    "periodic": ("database_password", "bus_client_key", "encryption_keys", "acme_eab_key", "acme_dns_key"),
    "ipagent": ("database_password", "bus_client_key", "provider_token"),
}
"""What each service reads; its unit loads the same."""

SKEW_WARN, SKEW_FAIL = 1.0, 10.0
CERTIFICATE_WARN = timedelta(days=14)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the answer."""

    status: Literal["ok", "warn", "FAIL"]
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Host:
    """What is looked at."""

    settings: config.Settings
    services: frozenset[str]


@click.command
@click.option(
    "--service",
    "services",
    multiple=True,
    type=click.Choice([*CREDENTIALS]),
    help="Look at this service; may be repeated.",
)
@output.json_option
def doctor(services: tuple[str, ...], as_json: bool) -> None:
    """Say what is wrong on this host, and what to do. Exits with status 1 if anything fails."""
    found = []
    for finding in examine(click.get_current_context().obj, frozenset(services)):
        found.append(finding)
        if not as_json:
            click.echo(f"{finding.status:4} {finding.name}: {output.cell(finding.text)}")
    if as_json:
        output.show(map(asdict, found), ("status", "name", "text"), as_json=True)
    if any(finding.status == "FAIL" for finding in found):
        click.get_current_context().exit(1)


def examine(path: str | None, services: frozenset[str] = frozenset()) -> Iterator[Finding]:
    """All findings about this host, as they are made."""
    try:
        settings = config.load(path)
    except ConfigError as error:
        yield Finding("FAIL", "settings", str(error))
        return
    host = Host(settings, services or installed() or frozenset(CREDENTIALS))
    yield Finding("ok", "settings", f"host {settings.host}, services {', '.join(sorted(host.services))}")
    for check in CHECKS:
        yield from check(host)


def installed() -> frozenset[str]:
    """The services that systemd starts on this host."""
    return frozenset(word for word in CREDENTIALS if (TARGET / f"remails-{word}.service").exists())


# Credentials


def credentials(host: Host) -> Iterator[Finding]:
    """Present, readable, private, well-formed, and belonging to the keys in the settings."""
    for name in sorted({name for word in host.services for name in CREDENTIALS[word]}):
        if name in _unneeded(host.settings):
            continue
        if name != "database_password" or not _has_no_password(host.settings):
            yield _credential(host.settings, name, host.settings.credential_path(name))


def _unneeded(settings: config.Settings) -> set[str]:
    """Credentials that these settings make no use of."""
    used = {
        "provider_token": settings.ipagent.provider != "static",
        "acme_eab_key": settings.certificates.external_account,
        "acme_dns_key": settings.certificates.dns_key_name,
    }
    return {name for name, use in used.items() if not use}


def _has_no_password(settings: config.Settings) -> bool:
    """It is optional; the database says whether it wants one."""
    with suppress(ConfigError):
        return settings.database_password() is None
    return False


def _credential(settings: config.Settings, name: str, path: Path) -> Finding:
    try:
        text = settings.credential(name)
        mode = path.stat().st_mode
        if mode & 0o007:
            return Finding("FAIL", f"credential {name}", f"everybody may read or write {path}, run: chmod o= {path}")
        _parse(settings, name, text)
    except ConfigError as error:
        return Finding("FAIL", f"credential {name}", str(error).removeprefix(f"credential {name}: "))
    return Finding("ok", f"credential {name}", "present, private and well-formed")


def _parse(settings: config.Settings, name: str, text: str) -> None:
    match name:
        case "encryption_keys":
            vault.Vault(text)
        case "pepper":
            vault.Pepper(text)
        case "bus_server_key":
            if bus_keys.public_key(text, name) != settings.bus.server_public_key:
                raise ConfigError("does not belong to bus.server_public_key of the settings, take both from one set")
        case "bus_client_key":
            known = settings.bus.client_public_keys
            if bus_keys.public_key(text, name) not in known and known:
                raise ConfigError("does not belong to any of bus.client_public_keys, so brokers would not let us in")


# Database


def database(host: Host) -> Iterator[Finding]:
    """Reachable, complete, durable, and of the same time as we."""
    if host.services == {"bus"}:
        return
    start = time.monotonic()
    try:
        with operator.database(host.settings) as opened:
            reached = time.monotonic() - start
            missing = opened.run(migrate.missing)
            with opened.transaction() as conn:
                before = time.time()
                state = server.state(conn)
                middle = (before + time.time()) / 2
    except (ConfigError, Unavailable) as error:
        yield Finding("FAIL", "database", str(error).removeprefix("database: "))
        return
    yield Finding("ok", "database", f"PostgreSQL {state.version} answered after {reached * 1000:.0f} ms")
    if missing:
        yield Finding("FAIL", "migrations", f"missing: {', '.join(missing)}; run: remails migrate")
    else:
        yield Finding("ok", "migrations", "complete")
    yield durability(state)
    yield skew(state.now.timestamp() - middle)


def durability(state: server.State) -> Finding:
    """Whether "committed" means what we promise."""
    if state.is_standby:
        return Finding("FAIL", "durability", "this server is a standby; database.dsn has to name the primary")
    off = [name for name in ("fsync", "full_page_writes") if not getattr(state, name)]
    if state.synchronous_commit == "off":
        off.append("synchronous_commit")
    if off:
        return Finding(
            "FAIL", "durability", f"{', '.join(off)} is off: a crash would lose mail; turn it on in postgresql.conf"
        )
    return Finding("ok", "durability", f"fsync is on, synchronous_commit is {state.synchronous_commit}")


def skew(seconds: float) -> Finding:
    """How far the database's clock is ahead of ours."""
    text = f"the database's clock is {abs(seconds):.1f} s {'ahead' if seconds > 0 else 'behind'}"
    if abs(seconds) < SKEW_WARN:
        return Finding("ok", "clock", "the same time as the database, within a second")
    return Finding("FAIL" if abs(seconds) >= SKEW_FAIL else "warn", "clock", f"{text}; run NTP on both")


# Bus


def bus(host: Host) -> Iterator[Finding]:
    """A note goes through each broker."""
    if host.services == {"bus"}:
        return  # it has no key to speak with
    settings = host.settings.bus
    if not settings.endpoints:
        yield Finding("warn", "bus", "bus.endpoints is empty: mail leaves all the same, but a second later")
    for endpoint in settings.endpoints:
        yield _round_trip(host.settings, msgspec.structs.replace(settings, endpoints=(endpoint,)))


def _round_trip(settings: config.Settings, one: config.Bus) -> Finding:
    name = f"bus {one.endpoints[0].publish}"
    try:
        seconds = asyncio.run(client.round_trip(one, settings.credential("bus_client_key")))
    except ConfigError as error:
        return Finding("FAIL", name, str(error))
    except TimeoutError:
        why = "no note came back within 2 s; is remails-bus running there, are ports and keys right?"
        return Finding("FAIL", name, why)
    return Finding("ok", name, f"a note came back after {seconds * 1000:.0f} ms")


# Provider


def provider(host: Host) -> Iterator[Finding]:
    """Known, its settings and token there, and it answers with the addresses this host holds."""
    if "ipagent" not in host.services:
        return
    try:
        found = providers.make(host.settings)
    except ConfigError as error:
        yield Finding("FAIL", "provider", str(error))
        return
    except OSError as error:
        yield Finding("FAIL", "provider", f"this host's interface cannot be read: {error.strerror or error}")
        return
    if not found.is_remote:
        yield Finding("ok", "provider", f"{found.name}: addresses have to be on the host, nobody is asked")
        return
    start = time.monotonic()
    try:
        found.look(())
    except ProviderError as error:
        yield Finding("FAIL" if error.kind in ("denied", "forbidden") else "warn", "provider", str(error))
        return
    yield Finding("ok", "provider", f"{found.name} answers after {(time.monotonic() - start) * 1000:.0f} ms")


# Outbound addresses


def outbound(host: Host) -> Iterator[Finding]:
    """The addresses this host holds: usable, and with a reverse name that leads back."""
    if not host.services & {"outbound", "ipagent"}:
        return
    try:
        with operator.migrated(host.settings) as opened:
            me = opened.run(addresses.host_by_name, host.settings.host)
            held = {one.ip: one for one in opened.run(leases.held_by, me.id)} if me else {}
            mine = [one for one in opened.run(addresses.list_) if me and one.lease_host == me.id]
    except (ConfigError, Unavailable):
        yield Finding("warn", "addresses", "not looked at, for want of the database")
        return
    if me is None:
        yield Finding("FAIL", "addresses", f"{host.settings.host} is not registered; start remails-ipagent")
    elif not mine:
        yield Finding("warn", "addresses", f"{host.settings.host} holds none, so no mail leaves from here")
    for one in mine:
        yield _address(one, one.ip in held)
        if one.ip in held:
            yield _reverse(host.settings, one)


def _address(one: addresses.Address, usable: bool) -> Finding:
    name = f"address {one.ip}"
    if not usable:
        why = (
            f"is {one.state}, {one.last_error or 'not ready or its lease is over'}; see: journalctl -u remails-ipagent"
        )
        return Finding("FAIL", name, why)
    family = socket.AF_INET6 if ":" in one.source else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.bind((one.source, 0))
    except OSError as error:
        why = f"cannot be bound ({error.strerror}); is {one.source} on an interface of this host?"
        return Finding("FAIL", name, why)
    return Finding("ok", name, "ready, leased and bound")


def _reverse(settings: config.Settings, one: addresses.Address) -> Finding:
    name = f"reverse name of {one.ip}"
    if trouble := reverse.trouble(resolver.synchronous(settings.dns), one.ip, one.ptr_name):
        return Finding("warn", name, trouble)
    return Finding("ok", name, f"{one.ptr_name}, both ways")


# Certificate of inbound


def certificate(host: Host) -> Iterator[Finding]:
    """Each readable, belonging to its key, and not about to expire; the first one of our name."""
    if "inbound" not in host.services:
        return
    ours = host.settings.inbound
    yield _certificate("certificate", ours.tls_certificate, ours.tls_key, host.settings.mail.hostname)
    for pair in ours.certificates:
        yield _certificate(f"certificate {pair.certificate}", pair.certificate, pair.key, None)


def _certificate(name: str, path: str, key: str, hostname: str | None) -> Finding:
    try:
        found = x509.load_pem_x509_certificate(Path(path).read_bytes())
        Path(key).read_bytes()
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path, key, password=lambda: "")
    except ValueError:
        return Finding("FAIL", name, f"{path} does not begin with a certificate in PEM")
    except ssl.SSLError as error:
        mismatch = error.reason == "KEY_VALUES_MISMATCH"
        why = (
            "certificate and key do not belong together"
            if mismatch
            else f"{key} is no private key in PEM without password"
        )
        return Finding("FAIL", name, f"cannot use {path} with {key}: {why}")
    except OSError as error:
        return Finding("FAIL", name, f"cannot read {error.filename}: {error.strerror}")
    return _validity(name, found, hostname, datetime.now(UTC))


def _validity(name: str, found: x509.Certificate, hostname: str | None, now: datetime) -> Finding:
    left = found.not_valid_after_utc - now
    names: list[str] = []
    with suppress(x509.ExtensionNotFound):
        extension = found.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = extension.value.get_values_for_type(x509.DNSName)
    if left <= timedelta(0):
        return Finding("FAIL", name, f"expired on {found.not_valid_after_utc:%Y-%m-%d}; renew it")
    if left < CERTIFICATE_WARN:
        return Finding("warn", name, f"expires in {left.days} days; renew it")
    if hostname is None and not names:
        return Finding("warn", name, "is for no name, so no client will ever get it")
    if hostname is not None and hostname not in names and "*." + hostname.partition(".")[2] not in names:
        return Finding("warn", name, f"is for {', '.join(names) or 'no name'}, but clients connect to {hostname}")
    return Finding("ok", name, f"for {', '.join(names)}, valid for {left.days} more days")


def renewal(host: Host) -> Iterator[Finding]:
    """What lies in the database for all hosts: renewed in time, and issued at all."""
    if "periodic" not in host.services:
        return
    try:
        with operator.migrated(host.settings) as opened:
            rows = opened.run(certificates.list_)
    except (ConfigError, Unavailable):
        yield Finding("warn", "renewal", "not looked at, for want of the database")
        return
    if host.settings.certificates.directory and not any(row.name == certificates.RELAY for row in rows):
        yield Finding("warn", "renewal", "no certificate was asked for yet; does a periodic service lead?")
    for row in rows:
        name, until = f"renewal of {row.name}", row.not_after - datetime.now(UTC) if row.not_after else None
        if row.failures:
            why = f"failed {row.failures} times, last at {output.cell(row.failed_at)}: {row.failure}"
            yield Finding("FAIL" if until is None or until < CERTIFICATE_WARN else "warn", name, why)
        elif until is None:
            yield Finding("warn", name, "nothing is issued yet")
        elif until < CERTIFICATE_WARN:
            yield Finding("warn", name, f"ends in {until.days} days; run: remails certificate renew, or import")
        else:
            yield Finding("ok", name, f"{row.source}, serial {row.serial}, valid for {until.days} more days")


# DNS


def nameservers(host: Host) -> Iterator[Finding]:
    """Each nameserver answers."""
    if not host.services & {"api", "outbound", "periodic"}:
        return
    try:
        ask = resolver.synchronous(host.settings.dns)
    except ConfigError as error:
        yield Finding("FAIL", "dns", str(error))
        return
    ask.cache = None
    for nameserver in list(ask.nameservers):
        ask.nameservers = [nameserver]
        yield _answers(ask, str(nameserver), host.settings.mail.hostname)
        if host.settings.dns.validating:
            yield _validates(ask, str(nameserver))


def _validates(ask: dns.resolver.Resolver, nameserver: str) -> Finding:
    found = resolver.ask(ask, ".", "SOA")  # the root is signed
    if found.is_secure:
        return Finding("ok", f"dnssec {nameserver}", "validates")
    return Finding("FAIL", f"dnssec {nameserver}", "does not validate DNSSEC, so there is no DANE; see dns.validating")


def _answers(ask: dns.resolver.Resolver, nameserver: str, hostname: str) -> Finding:
    start = time.monotonic()
    found = resolver.ask(ask, hostname, "A")
    match found.ended:
        case resolver.Ended.FAILED:
            return Finding("FAIL", f"dns {nameserver}", f"{found.reason}; see dns.nameservers")
        case resolver.Ended.NO_DOMAIN:
            return Finding("warn", f"dns {nameserver}", f"answers, but mail.hostname {hostname} does not exist")
    return Finding("ok", f"dns {nameserver}", f"answers after {(time.monotonic() - start) * 1000:.0f} ms")


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


CHECKS: Iterable[Callable[[Host], Iterator[Finding]]] = (
    credentials,
    database,
    bus,
    provider,
    outbound,
    certificate,
    renewal,
    nameservers,
)
