"""A sender with all it needs, for tests: organization, project, verified domain, credentials, pool and addresses."""

import re
from dataclasses import dataclass
from uuid import UUID

from remails.db import Connection, Database
from remails.mail import address
from remails.store import addresses, credentials, domains, ids, leases, organizations, projects, users
from remails.store.ids import HostId, MessageId, OrganizationId, PoolId, ProjectId
from remails.submission import Sender, Submission
from remails.vault import Pepper, Vault, hash_password

PASSWORD = "correct horse battery"


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who sends in a test."""

    organization_id: OrganizationId
    project_id: ProjectId
    domain: str
    pool_id: PoolId
    host_id: HostId
    sources: tuple[str, ...]
    email: str
    smtp_username: str
    smtp_password: str
    api_key: UUID
    api_secret: str

    @property
    def sender(self) -> Sender:
        """As submission knows it."""
        return Sender(self.organization_id, self.project_id)

    def submission(
        self, *recipients: str, raw: bytes | None = None, mail_from: str | None = None, subject: str = "Hello"
    ) -> Submission:
        """A mail from this tenant."""
        sender = mail_from or f"sender@{self.domain}"
        text = (
            raw
            if raw is not None
            else f"From: {sender}\r\nTo: x@example.net\r\nSubject: {subject}\r\n\r\nHi\r\n".encode()
        )
        return Submission(
            sender=self.sender,
            mail_from=address.parse(sender),
            recipients=tuple(address.parse(recipient) for recipient in recipients or ("to@example.net",)),
            raw=text,
            id=MessageId(ids.new()),
            received=b"Received: from test by relay.example; Wed, 25 Nov 2026 00:00:00 +0000\r\n",
        )


def tenant(
    db: Database,
    vault: Vault,
    pepper: Pepper,
    *,
    name: str = "acme",
    host: str = "test",
    sources: tuple[str, ...] = ("127.0.0.11",),
    message_quota: int | None = None,
) -> Tenant:
    """Make one; `<name>.example` is its domain. Its addresses are leased to `host` and ready."""
    with db.transaction() as conn:
        pool = addresses.default_pool(conn) or addresses.create_pool(conn, "shared", is_default=True)
        known = {row.ip for row in addresses.list_(conn)}
        for source in sources:
            if source not in known:
                addresses.add(conn, source, pool.id, "static", f"out-{re.sub('[.:]', '-', source)}.relay.example")
        registered = addresses.register_host(conn, host, "static", "", "", 50, "test")
        for leased in leases.claim(conn, registered.id, 3600, 50):
            leases.set_state(conn, leased.ip, leased.lease_epoch, "ready")
        organization = organizations.create(conn, name, message_quota=message_quota)
        project = projects.create(conn, organization.id, f"{name} project")
        email = f"admin@{name}.example"
        user = users.create(conn, email, f"{name} admin", hash_password(PASSWORD))
        users.add_member(conn, user.id, organization.id, users.Role.admin)
        domain = domains.create(
            conn, vault, organization.id, f"{name}.example", selector="remails", project_ids=[project.id]
        )
        domains.save_verification(conn, domain.id, {}, verified=True)
        smtp, smtp_password = credentials.create_smtp(conn, pepper, project, name, "test")
        key, secret = credentials.create_key(conn, pepper, organization.id, "test", users.Role.maintainer)
    return Tenant(
        organization_id=organization.id,
        project_id=project.id,
        domain=domain.name,
        pool_id=pool.id,
        host_id=registered.id,
        sources=sources,
        email=email,
        smtp_username=smtp.username,
        smtp_password=smtp_password,
        api_key=key.id,
        api_secret=secret,
    )


def use(
    conn: Connection, organization_id: OrganizationId, project_id: ProjectId, messages: int, recipients: int
) -> None:
    """Count so much as used now, as the messages themselves would."""
    conn.execute(
        "INSERT INTO usage_log (organization_id, project_id, messages, recipients) VALUES (%s, %s, %s, %s)",
        [organization_id, project_id, messages, recipients],
    )
