"""Lines to paste: how to send a first mail with the tools people have, filled in as far as we know.

A secret stands in a line only on the page that shows it once; elsewhere the tool asks for it.
"""

import shlex
from dataclasses import dataclass

from remails.api.state import state
from remails.store.credentials import ApiKey, SmtpCredential
from remails.store.domains import Domain
from remails.store.projects import Project


@dataclass(frozen=True, slots=True)
class Start:
    """What an organization has of what it takes to send."""

    project: Project | None = None
    domain: Domain | None = None
    smtp: SmtpCredential | None = None
    key: ApiKey | None = None

    @property
    def sender(self) -> str:
        """An address to send from."""
        return f"hello@{self.domain.name if self.domain else 'your-domain.example'}"


@dataclass(frozen=True, slots=True)
class Port:
    """A port for submission and how TLS begins on it."""

    number: int
    tls: str


def server() -> str:
    """The host that takes submissions."""
    return state().settings.mail.hostname


def ports() -> list[Port]:
    """The ports that are open, the one to be preferred first (RFC 8314 §3.3)."""
    inbound = state().settings.inbound
    known = [
        Port(inbound.smtps_port, "TLS from the start"),
        Port(inbound.submission_port, "STARTTLS"),
        Port(inbound.alternate_port, "STARTTLS, where 587 is blocked"),
    ]
    return [port for port in known if port.number]


def swaks(start: Start, password: str | None = None) -> str:
    """A mail by SMTP; swaks asks for the password that is not in the line."""
    inbound = state().settings.inbound
    port, tls = (
        (inbound.submission_port or inbound.alternate_port, "--tls")
        if inbound.submission_port or inbound.alternate_port
        else (inbound.smtps_port, "--tls-on-connect")
    )
    secret = f" --auth-password {shlex.quote(password)}" if password else ""
    user = start.smtp.username if start.smtp else "USERNAME"
    return (
        f"swaks --server {shlex.quote(server())}:{port} {tls} --auth-user {shlex.quote(user)}{secret} \\\n"
        f"  --from {shlex.quote(start.sender)} --to you@example.org --header 'Subject: Hello'"
    )


def curl(start: Start, secret: str | None = None) -> str:
    """A mail by the REST API; curl asks for the secret that is not in the line."""
    user = str(start.key.id) if start.key else "API_KEY_ID"
    organization = start.project.organization_id if start.project else "ORGANIZATION"
    project = start.project.id if start.project else "PROJECT"
    url = f"{state().settings.api.url.rstrip('/')}/api/organizations/{organization}/projects/{project}/emails"
    body = f'{{"from": "{start.sender}", "to": "you@example.org", "subject": "Hello", "text_body": "It works."}}'
    user = f"{user}:{secret}" if secret else user
    return f"curl --user {shlex.quote(user)} {shlex.quote(url)} \\\n  --json {shlex.quote(body)}"
