"""A demo installation's files, all in one directory: settings, credentials, certificate, data, and who the demo is.

remails.toml     as Ansible would render it, but with unprivileged ports on loopback
credentials/     a fresh set
tls/             a self-signed certificate
demo.json        the demo's login and secrets, shown at each start; the database has only their digests
postgresql/      the data; mailbox/ what the demo world received
"""

import datetime
import errno
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from remails import config, db, vault
from remails.bus import keys as bus_keys
from remails.errors import ConfigError
from remails.store import addresses, credentials, domains, organizations, projects, users

HOSTNAME = "relay.demo.example"
DOMAIN = "demo.example"
SOURCES = ("127.0.0.11", "127.0.0.12")
_SETTINGS = """\
host = "dev"
credentials_directory = "{directory}/credentials"

[mail]
hostname = "{hostname}"

[database]
dsn = "{dsn} dbname=remails"

[bus]
endpoints = [{{ publish = "tcp://127.0.0.1:{bus_publish}", subscribe = "tcp://127.0.0.1:{bus_subscribe}" }}]
listen_publish = "tcp://127.0.0.1:{bus_publish}"
listen_subscribe = "tcp://127.0.0.1:{bus_subscribe}"
server_public_key = "{server_public_key}"
client_public_keys = ["{client_public_key}"]

[dns]
nameservers = ["127.0.0.1:{dns}"]

[api]
listen = "127.0.0.1:{api}"
url = "http://127.0.0.1:{api}"
environment = "development"

[inbound]
host = "127.0.0.1"
smtps_port = {smtps}
submission_port = {submission}
alternate_port = {alternate}
tls_certificate = "{directory}/tls/certificate.pem"
tls_key = "{directory}/tls/key.pem"

[outbound]
port = {mailbox}
allow_private_destinations = true
lease = {lease}
drain_timeout = 10

[periodic]
domains_interval = 10
"""


class Ports(msgspec.Struct, frozen=True):
    """The ports of a demo installation, counted from a base."""

    mailbox: int
    dns: int
    api: int
    mailbox_page: int
    smtps: int
    submission: int
    alternate: int
    bus_publish: int
    bus_subscribe: int

    @classmethod
    def from_base(cls, base: int) -> "Ports":
        """The usual last digits of each protocol's port above the base."""
        return cls(
            base + 25, base + 53, base + 80, base + 81, base + 465, base + 587, base + 525, base + 561, base + 562
        )


class Demo(msgspec.Struct, frozen=True):
    """Who the demo is, secrets included."""

    email: str
    password: str
    organization_id: str
    project_id: str
    smtp_username: str
    smtp_password: str
    api_key: str
    api_secret: str


class Home:
    """The directory of one demo installation."""

    def __init__(self, directory: Path, ports: Ports, *, lease: float = 60) -> None:
        self.directory, self.ports, self._lease = directory.absolute(), ports, lease
        self.settings_path = self.directory / "remails.toml"

    def make(self) -> None:
        """Make the directory. Raises ConfigError where that is not allowed."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if not os.access(self.directory, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            text = f"cannot write to {self.directory} ({error.strerror}); --directory chooses another place"
            raise ConfigError(text) from None

    def prepare(self, dsn: str) -> config.Settings:
        """Write what is missing, and the settings anew; returns them."""
        for name in ("credentials", "tls"):
            (self.directory / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        server = self._bus_key("bus_server_key")
        client = self._bus_key("bus_client_key")
        self._keep("encryption_keys", lambda: vault.new_encryption_key("1"))
        self._keep("pepper", lambda: vault.new_secret(48))
        if not (self.directory / "tls" / "key.pem").exists():
            self.make_certificate()
        text = _SETTINGS.format(
            directory=_in_toml(self.directory),
            hostname=HOSTNAME,
            dsn=_in_toml(dsn),
            lease=self._lease,
            server_public_key=server,
            client_public_key=client,
            **msgspec.structs.asdict(self.ports),
        )
        self.settings_path.write_text(text)
        return config.decode(text.encode(), str(self.settings_path))

    def _bus_key(self, name: str) -> str:
        return bus_keys.public_key(self._keep(name, lambda: bus_keys.generate_keys()[1]), name)

    def _keep(self, name: str, make: Callable[[], str]) -> str:
        path = self.directory / "credentials" / name
        if not path.exists():
            _write_private(path, make())
        return path.read_text()

    def make_certificate(self) -> None:
        """Write tls/certificate.pem and tls/key.pem, for localhost and the relay's name."""
        (self.directory / "tls").mkdir(mode=0o700, parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=3650))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.DNSName(HOSTNAME)]), False)
            .sign(key, hashes.SHA256())
        )
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (self.directory / "tls" / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        _write_private(self.directory / "tls" / "key.pem", pem.decode())

    def seed(self, database: db.Database, settings: config.Settings) -> Demo:
        """Make the demo's organization with all it needs, once; returns who it is."""
        path = self.directory / "demo.json"
        if path.exists():
            return msgspec.json.decode(path.read_bytes(), type=Demo)
        sealer, pepper = (
            vault.Vault(settings.credential("encryption_keys")),
            vault.Pepper(settings.credential("pepper")),
        )
        with database.transaction() as conn:
            demo = _seed(conn, settings, sealer, pepper)
        _write_private(path, msgspec.json.format(msgspec.json.encode(demo)).decode())
        return demo


def _seed(conn: db.Connection, settings: config.Settings, sealer: vault.Vault, pepper: vault.Pepper) -> Demo:
    pool = addresses.default_pool(conn) or addresses.create_pool(conn, "shared", is_default=True)
    for number, ip in enumerate(SOURCES, 1):
        addresses.add(conn, ip, pool.id, "static", f"out{number}.{HOSTNAME}")
    email, password = "demo@demo.example", "demo-" + secrets.token_hex(5)
    user = users.create(conn, email, "Demo", vault.hash_password(password), is_admin=True)
    organization = organizations.create(conn, "Demo")
    users.add_member(conn, user.id, organization.id, users.Role.admin)
    project = projects.create(conn, organization.id, "Demo project")
    domains.create(
        conn, sealer, organization.id, DOMAIN, selector=settings.mail.dkim_selector, project_ids=[project.id]
    )
    smtp, smtp_password = credentials.create_smtp(conn, pepper, project, "demo", "The demo's SMTP credential")
    key, secret = credentials.create_key(conn, pepper, organization.id, "The demo's API key", users.Role.maintainer)
    return Demo(
        email=email,
        password=password,
        organization_id=str(organization.id),
        project_id=str(project.id),
        smtp_username=smtp.username,
        smtp_password=smtp_password,
        api_key=str(key.id),
        api_secret=secret,
    )


def _in_toml(text: object) -> str:
    """As it stands within the quotes of a TOML string; JSON escapes nothing that TOML does not."""
    return json.dumps(str(text), ensure_ascii=False)[1:-1]


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
