"""Settings: one TOML file, decoded into frozen, typed structs, and a directory of credentials.

`load` reads the file named by `--config`, `$REMAILS_CONFIG` or the default path. msgspec refuses an unknown key or
a wrong type and names its path, so a typing error in `remails.toml` is one sentence and not a surprise at night.
Secrets are not in the file: `Settings.credential` reads them from `$CREDENTIALS_DIRECTORY`, which systemd fills for
each unit by `LoadCredential=`, or else from `credentials_directory`. Settings are passed; nothing here is global.
"""

import contextlib
import ipaddress
import os
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct, field

from remails.errors import ConfigError

DEFAULT_PATH = "/etc/remails/remails.toml"

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0)]
Positive = Annotated[int, Meta(ge=1)]


class Database(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to reach PostgreSQL."""

    dsn: str
    """A libpq connection string without password; several hosts are allowed."""
    connections: Positive = 4
    """Most connections of one process; also the number of its database threads."""
    connect_timeout: Positive = 3
    wait_timeout: Seconds = 5.0
    """Longest wait for a free connection, then the client is told to come back (451, 503)."""
    statement_timeout: Seconds = 30.0


class BusEndpoint(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One `bus` host, as the others reach it."""

    publish: str
    """Where publishers connect, e.g. `tcp://10.0.0.5:5561`."""
    subscribe: str
    """Where subscribers connect, e.g. `tcp://10.0.0.5:5562`."""


class Bus(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The best-effort bus. Publishers publish to every endpoint, subscribers listen to every one."""

    endpoints: tuple[BusEndpoint, ...] = ()
    listen_publish: str = "tcp://127.0.0.1:5561"
    listen_subscribe: str = "tcp://127.0.0.1:5562"
    server_public_key: str = ""
    """CURVE public key of the brokers (Z85, 40 characters)."""
    client_public_keys: tuple[str, ...] = ()
    """CURVE public keys that a broker lets in; two while a key is being changed."""


class Dns(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which resolver is asked. Empty: that of the system (`/etc/resolv.conf`)."""

    nameservers: tuple[str, ...] = ()
    """`address` or `address:port`; an IPv6 address with port as `[address]:port`."""
    validating: bool = False
    """Whether the nameservers, all on this host, validate DNSSEC. Their word is believed then, and DANE is used."""
    timeout: Seconds = 5.0


class Mail(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is the same for mail from every door."""

    hostname: str
    """The relay's name: banner, `Received` fields, Message-IDs we add."""
    max_size: Positive = 40 * 1024 * 1024
    """Largest message in bytes."""
    max_recipients: Positive = 1000
    dkim_selector: str = "remails"
    dkim_ed25519: bool = False
    """Whether new domains get an Ed25519 key beside the RSA one, at `<dkim_selector>-ed25519`: mail is signed with both."""
    spf_include: str = ""
    """Name that customers include in their SPF record; empty: the relay's hostname."""
    expire_after: Seconds = 4 * 86400.0
    """A delivery that did not succeed after so many seconds has failed (RFC 5321 §4.5.4.1)."""
    idempotency_keep: Annotated[float, Meta(ge=86400)] = 2 * 86400.0
    """Seconds for which a mail that is sent again under the same idempotency key is not stored again."""


class Api(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """REST API and web pages."""

    listen: str = "127.0.0.1:8000"
    """Used when systemd passes no socket."""
    url: str = "http://127.0.0.1:8000"
    """How people reach the pages; decides whether cookies are `Secure`."""
    workers: Positive = 2
    threads: Positive = 8
    environment: str = "production"
    """Shown in /api/config; anything but `production` is kept out of search engines."""
    trusted_proxies: Annotated[int, Meta(ge=0)] = 0
    """How many proxies of ours stand in front and set X-Forwarded-For."""
    proxy_trusted: tuple[str, ...] = ()
    """Networks of those that are asked by them; what anybody else says of its client is not believed. Empty: whoever comes is one."""


class Certificate(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A certificate (with its chain) and its key, in PEM."""

    certificate: str
    key: str


class Inbound(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """SMTP submission. A port of 0 leaves that listener out; systemd's sockets go before the ports."""

    host: str = "127.0.0.1"
    smtps_port: Port = 465
    submission_port: Port = 587
    alternate_port: Port = 2525
    tls_certificate: str = "/etc/remails/tls/relay.pem"
    tls_key: str = "/etc/remails/tls/relay.pem"
    """They may be one file, or two. Changed files are used for new connections within seconds, without a restart."""
    certificates: tuple[Certificate, ...] = ()
    """More of them; a client that names a host (SNI) gets the one for that name, any other client the one above."""
    processes: Positive = 1
    """So many share the listeners of this host; each has the connections to the database of `database.connections`."""
    timeout: Seconds = 300.0
    """A client that is silent for so many seconds is told 421 (RFC 5321 §4.5.3.2.7)."""
    max_connections: Positive = 2000
    """Of one process."""
    max_connections_per_client: Positive = 100
    """From one IPv4 address or IPv6 /64 network, to one process; trusted proxies speak for their clients."""
    proxy_trusted: tuple[str, ...] = ()
    """Networks of proxies that begin every connection with a PROXY header (version 1 or 2), and say so who the client is."""
    receive_memory: Positive = 64 * 1024 * 1024
    """Bytes of messages being received that one process keeps in memory; large ones, and what is beyond, go to files."""
    receive_disk: Positive = 4 * 1024 * 1024 * 1024
    """Bytes of such files; a message that finds no room is told to come back (452)."""
    receive_directory: str = "/var/tmp"  # noqa: S108  # only files without names
    """Where they are; not a file system in memory. They have no names and are gone with the process."""
    drain_timeout: Seconds = 30.0


class Bans(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Clients that guess at passwords, at every door. An IPv6 client is its /64 network."""

    guesses: Positive = 10
    """Different guesses of one network in `window` seconds that ban it."""
    window: Seconds = 600.0
    duration: Seconds = 900.0
    """How long the first ban is; each further one is twice as long as that before, up to `longest`."""
    longest: Seconds = 86400.0
    allow: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    """Networks that are never slowed or banned. Those of `inbound.proxy_trusted` are not either."""
    sync_interval: Seconds = 2.0
    """How often a process tells the others what it has counted, and hears whom they have banned."""


class Outbound(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Delivery."""

    port: Port = 25
    """Port of the remote servers (RFC 5321 §4.5.4.1); another one only in a demo world."""
    allow_private_destinations: bool = False
    """Whether a recipient's MX may be in a loopback, private or link-local range."""
    processes: Positive = 1
    """So many share the work of this host; signing takes most of a processor. They share the two limits that follow."""
    concurrency: Positive = 500
    """Most deliveries of this host in hand at a time."""
    connections_per_destination: Positive = 20
    """Most connections from one address to one destination (its set of MX hosts); fewer where it asks for less."""
    messages_per_connection: Positive = 100
    keep_connection: Seconds = 2.0
    """A connection without work is closed after so many seconds."""
    recipients_per_transaction: Positive = 100
    """RFC 5321 §4.5.3.1.8: every server takes so many."""
    batch: Positive = 50
    """Most deliveries claimed by one statement; no more than a tenth of `concurrency`."""
    lease: Seconds = 60.0
    """A claim lasts so long and is renewed while work goes on; after a crash others wait for its end."""
    poll_interval: Seconds = 1.0
    connect_timeout: Seconds = 30.0
    command_timeout: Seconds = 300.0
    """RFC 5321 §4.5.3.2: MAIL and RCPT five minutes."""
    data_timeout: Seconds = 600.0
    """RFC 5321 §4.5.3.2.6: ten minutes for the reply to the final dot."""
    block_timeout: Seconds = 180.0
    """RFC 5321 §4.5.3.2.5: three minutes for a block of the message to be taken."""
    ca_file: str = ""
    """Certificate authorities in PEM that are believed where TLS must be valid; empty: those of the system."""
    sts_port: Port = 443
    """Port of the hosts that have MTA-STS policies (RFC 8461 §3.3); another one only in a demo world."""
    sts_timeout: Seconds = 60.0
    """Longest time for fetching one policy; mail to its domain waits in the queue meanwhile."""
    drain_timeout: Seconds = 120.0
    first_retry: Seconds = 60.0
    delayed_after: Seconds = 4 * 3600.0
    """A delivery that waits for so long is noted as delayed, once."""


class Periodic(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Repeating tasks and how often they run, in seconds."""

    notify_interval: Seconds = 10.0
    claims_interval: Seconds = 5.0
    domains_interval: Seconds = 300.0
    domains_older_than: Seconds = 20 * 3600.0
    retention_interval: Seconds = 3600.0
    usage_interval: Seconds = 60.0
    balance_interval: Seconds = 30.0
    """How often it is checked that what was accepted is final or waits."""
    watch_interval: Seconds = 15.0
    """How often what waits is counted for the metrics; less often where that takes long."""
    certificates_interval: Seconds = 15.0
    host_timeout: Seconds = 30.0
    """A host whose heartbeat is older than this is taken for dead."""


class IpAgent(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The cloud IP agent of a sending host."""

    provider: str = "static"
    provider_url: str = ""
    """Where its API is; empty: its public one. For OpenStack the identity service, e.g. `https://keystone.example/v3`."""
    provider_timeout: Seconds = 8.0
    """Longest time one request may take, from connecting to the last byte."""
    requests_per_second: Seconds = 2.0
    requests_burst: Positive = 5
    """So many requests may follow each other at once; then `requests_per_second`."""
    server_ref: str = ""
    """The provider's id of this server."""
    zone: str = ""
    interface: str = ""
    """The network interface that gets the addresses; empty: that of the default route."""
    port_ref: str = ""
    """What addresses are attached to, where that is not the server: for UpCloud the MAC address of the interface (empty:
    read from it), for OpenStack the id of the port."""
    fixed_addresses: tuple[str, ...] = ()
    """For OpenStack: the port's own addresses, one for each address that this host may hold."""
    set_reverse_names: bool = True
    """Whether `ptr_name` of an address is published as its reverse name, where the provider has that in its API."""
    probes: tuple[str, ...] = ()
    """`address:port` of servers of yours that answer on the mail port: an address is ready only once a connection from it
    to the first probe of its family came about. Empty: not tried."""
    lease: Seconds = 30.0
    interval: Seconds = 5.0
    max_addresses: Positive = 5
    drain_timeout: Seconds = 120.0
    """An address that is to be given back waits so long for what is being sent from it."""
    dry_run: bool = False
    """Say what would be done, and do nothing."""


class Certificates(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The relay's own certificate, where an authority issues it by ACME (RFC 8555). See docs/certificates.md."""

    directory: str = ""
    """URL of the authority's directory, such as `https://acme-v02.api.letsencrypt.org/directory`; empty: no ACME."""
    names: tuple[str, ...] = ()
    """Host names that it is for; empty: the relay's hostname, and that of `api.url` where it is reached by HTTPS."""
    contact: str = ""
    """Mail address that the authority may write to."""
    ca_file: str = ""
    """Authorities in PEM that are believed when speaking to the directory; empty: the usual ones."""
    key_type: Literal["ecdsa", "rsa"] = "ecdsa"
    """ECDSA on P-256, or RSA with 2048 bits. Each certificate has a key of its own."""
    external_account: str = ""
    """Id of an account that one has to have with the authority (RFC 8555 §7.3.4); its key is the credential `acme_eab_key`."""
    challenge: Literal["http-01", "dns-01"] = "http-01"
    """How we prove that a name is ours: on its port 80, which has to lead to api; or in its DNS."""
    dns_server: str = ""
    """`address` or `address:port` of a server that takes dynamic updates (RFC 2136), for dns-01."""
    dns_key_name: str = ""
    """Name of the TSIG key for it; the key itself, in base64, is the credential `acme_dns_key`."""
    dns_key_algorithm: str = "hmac-sha256"
    dns_hook: str = ""
    """A program in place of such a server, run as `PROGRAM add|remove NAME VALUE`; it sets a TXT record and ends with 0."""
    dns_wait: Annotated[float, Meta(ge=0)] = 15.0
    """Seconds until a changed record is at all servers of its zone."""
    timeout: Seconds = 120.0
    """Longest time until a certificate is issued."""
    key_number: Positive = 1
    """Another one makes another key of which hosts fetch the certificate: for when one of them was in foreign hands."""


class Metrics(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Numbers for Prometheus, at `/metrics`; see docs/metrics.md."""

    host: str = ""
    """The address of this host to listen on, such as 127.0.0.1 or that of an internal network; empty: nowhere."""
    port: Port = 9470
    """Of api; inbound has the next one, then outbound, bus, periodic and ipagent."""


class Logs(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Logging."""

    level: str = "INFO"


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings of one host."""

    host: str
    """This host's name, unique in the fleet."""
    mail: Mail
    database: Database
    credentials_directory: str = "/etc/remails/credentials"
    bus: Bus = field(default_factory=Bus)
    dns: Dns = field(default_factory=Dns)
    api: Api = field(default_factory=Api)
    inbound: Inbound = field(default_factory=Inbound)
    bans: Bans = field(default_factory=Bans)
    outbound: Outbound = field(default_factory=Outbound)
    periodic: Periodic = field(default_factory=Periodic)
    ipagent: IpAgent = field(default_factory=IpAgent)
    certificates: Certificates = field(default_factory=Certificates)
    metrics: Metrics = field(default_factory=Metrics)
    logs: Logs = field(default_factory=Logs)

    def credential_path(self, name: str) -> Path:
        """The file of one credential."""
        return Path(os.environ.get("CREDENTIALS_DIRECTORY") or self.credentials_directory) / name

    def credential(self, name: str) -> str:
        """The text of one credential, without the line end.

        Raises:
            ConfigError: when it is missing or unreadable; the text names the file.
        """
        path = self.credential_path(name)
        try:
            text = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text file"
            raise ConfigError(f"credential {name}: cannot read {path} ({reason})") from None
        if not text:
            raise ConfigError(f"credential {name}: {path} is empty")
        return text

    def database_password(self) -> str | None:
        """The credential `database_password`; None where there is none, as with peer authentication. Raises ConfigError.

        While the password is being changed it has two lines, the new one first.
        """
        with contextlib.suppress(PermissionError):  # which `credential` puts in words
            if not self.credential_path("database_password").exists():
                return None
        return self.credential("database_password")

    def bus_client_key(self) -> str:
        """The credential `bus_client_key`; empty where there is no bus. Raises ConfigError."""
        return self.credential("bus_client_key") if self.bus.endpoints else ""

    def provider_token(self) -> str:
        """The credential `provider_token`. Raises ConfigError."""
        return self._optional("provider_token", f"ipagent.provider is {self.ipagent.provider}")

    def acme_eab_key(self) -> str:
        """The credential `acme_eab_key`. Raises ConfigError."""
        return self._optional("acme_eab_key", "certificates.external_account is set")

    def acme_dns_key(self) -> str:
        """The credential `acme_dns_key`. Raises ConfigError."""
        return self._optional("acme_dns_key", "certificates.dns_key_name is set")

    def _optional(self, name: str, why: str) -> str:
        """A credential that is not needed everywhere; the unit gives "-" where there is no such file."""
        text = self.credential(name)
        if text == "-":
            raise ConfigError(f"credential {name}: missing, and {why}")
        return text

    @property
    def certificate_names(self) -> tuple[str, ...]:
        """The host names that the relay's own certificate has to be for."""
        pages = [self.api.url.removeprefix("https://").partition("/")[0]] if self.api.url.startswith("https://") else []
        names = [*self.certificates.names] or [self.mail.hostname, *(name.partition(":")[0] for name in pages)]
        return tuple(dict.fromkeys(name.lower() for name in names))

    @property
    def spf_include(self) -> str:
        """The name customers include in their SPF record."""
        return self.mail.spf_include or self.mail.hostname


def load(path: str | None = None) -> Settings:
    """Read the settings of this host.

    Raises:
        ConfigError: the file cannot be read, or a key is wrong; the text names the file and the key.
    """
    chosen = Path(path or os.environ.get("REMAILS_CONFIG") or DEFAULT_PATH)
    try:
        data = chosen.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read settings {chosen}: {error.strerror}; set REMAILS_CONFIG or --config") from None
    return decode(data, str(chosen))


def decode(data: bytes, source: str = "settings") -> Settings:
    """Decode the TOML text of the settings; `source` names it in errors."""
    try:
        settings = msgspec.toml.decode(data, type=Settings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_plain(str(error))}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from None
    for nameserver in settings.dns.nameservers:
        endpoint(nameserver, 53, f"{source}: dns.nameservers")
    if settings.dns.validating:
        hosts = [endpoint(text, 53)[0] for text in settings.dns.nameservers]
        # RFC 7672 §2.1.1: whoever stands between us and the resolver could forge its word.
        if not hosts or not all(ipaddress.ip_address(host).is_loopback for host in hosts):
            raise ConfigError(f"{source}: dns.validating: only with dns.nameservers on this host, such as 127.0.0.1")
    endpoint(settings.api.listen, 8000, f"{source}: api.listen")
    _check_acme(settings.certificates, source)
    for probe in settings.ipagent.probes:
        endpoint(probe, 25, f"{source}: ipagent.probes")
    for section in ("api", "inbound"):
        for network in getattr(settings, section).proxy_trusted:
            _check_network(network, f"{source}: {section}.proxy_trusted")
    for network in settings.bans.allow:
        _check_network(network, f"{source}: bans.allow")
    if settings.logs.level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ConfigError(f"{source}: logs.level: expected DEBUG, INFO, WARNING or ERROR, got {settings.logs.level!r}")
    return settings


def _check_acme(certificates: Certificates, source: str) -> None:
    if certificates.dns_server:
        endpoint(certificates.dns_server, 53, f"{source}: certificates.dns_server")
    if certificates.challenge == "dns-01" and not (certificates.dns_server or certificates.dns_hook):
        raise ConfigError(f"{source}: certificates.challenge: dns-01 needs dns_server or dns_hook")
    if certificates.challenge == "http-01" and any(name.startswith("*.") for name in certificates.names):
        raise ConfigError(f"{source}: certificates.names: names with a star need the challenge dns-01")


def _check_network(text: str, name: str) -> None:
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        raise ConfigError(f"{name}: expected a network such as 10.0.0.0/24: {error}") from None


def endpoint(text: str, default_port: int, name: str = "address") -> tuple[str, int]:
    """Split `address`, `address:port` or `[address]:port`; raises ConfigError naming the setting."""
    host, port = text, str(default_port)
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        ipaddress.ip_address(host)
        number = int(port)
    except ValueError:
        raise ConfigError(f"{name}: expected an address and port such as 127.0.0.1:53, got {text!r}") from None
    if not 0 <= number <= 65535:
        raise ConfigError(f"{name}: port {number} is not between 0 and 65535")
    return host, number


def _plain(error: str) -> str:
    """Turn msgspec's "text - at `$.a.b`" into "a.b: text"."""
    text, _, path = error.partition(" - at ")
    path = path.strip("`").removeprefix("$").removeprefix(".")
    if "unknown field" in text:
        key = text.rsplit("`", 2)[1]
        return f"{path + '.' if path else ''}{key}: unknown key"
    if "missing required field" in text:
        key = text.rsplit("`", 2)[1]
        return f"{path + '.' if path else ''}{key}: missing"
    return f"{path}: {text[:1].lower()}{text[1:]}" if path else text
