"""What an operator means: things are named as people know them, or by id. Each function raises Refused (404) for nothing."""

from contextlib import suppress
from uuid import UUID

from remails.db import Connection
from remails.errors import Refused
from remails.mail import address as mail_address
from remails.store import addresses, credentials, domains, organizations, projects, users
from remails.store.ids import OrganizationId, ProjectId


def _id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _nothing(kind: str, name: str) -> Refused:
    return Refused(550, "5.1.1", f"There is no {kind} {name!r}.", status=404)


def organization(conn: Connection, name: str) -> organizations.Organization:
    """By name or id; a name that several have is refused (409)."""
    if (key := _id(name)) and (found := organizations.get(conn, OrganizationId(key))):
        return found
    match organizations.by_name(conn, name):
        case [one]:
            return one
        case []:
            raise _nothing("organization", name)
        case several:
            ids = ", ".join(str(one.id) for one in several)
            raise Refused(550, "5.1.4", f"Several organizations are called {name!r}, give the id: {ids}.", status=409)


def project(conn: Connection, organization_id: OrganizationId, name: str) -> projects.Project:
    """One of the organization's, by name or id."""
    found = projects.by_name(conn, organization_id, name)
    if found is None and (key := _id(name)):
        found = projects.get(conn, organization_id, ProjectId(key))
    if found is None:
        raise _nothing("project", name)
    return found


def domain(conn: Connection, organization_id: OrganizationId, name: str) -> domains.Domain:
    """One of the organization's, by name."""
    with suppress(mail_address.BadAddress):
        if found := domains.by_name(conn, organization_id, mail_address.normalise_domain(name)):
            return found
    raise _nothing("domain", name)


def credential(conn: Connection, project: projects.Project, username: str) -> credentials.SmtpCredential:
    """One of the project's, by user name, with or without the organization's prefix."""
    prefixed = f"{project.organization_id.hex[:8]}-{username}"
    for found in credentials.list_smtp(conn, project.id):
        if found.username in (username, prefixed):
            return found
    raise _nothing("SMTP credential", username)


def key(conn: Connection, organization_id: OrganizationId, key_id: str) -> credentials.ApiKey:
    """One of the organization's, by id."""
    for found in credentials.list_keys(conn, organization_id):
        if str(found.id) == key_id.lower():
            return found
    raise _nothing("API key", key_id)


def user(conn: Connection, email: str) -> users.User:
    """By email address."""
    found = users.by_email(conn, email)
    if found is None:
        raise _nothing("user", email)
    return found


def pool(conn: Connection, name: str) -> addresses.Pool:
    """By name."""
    for found in addresses.list_pools(conn):
        if found.name == name:
            return found
    raise _nothing("pool", name)


def address(conn: Connection, ip: str) -> addresses.Address:
    """An outbound address, in any spelling."""
    found = addresses.get(conn, ip)
    if found is None:
        raise _nothing("outbound address", ip)
    return found


def host(conn: Connection, name: str) -> addresses.Host:
    """By name."""
    found = addresses.host_by_name(conn, name)
    if found is None:
        raise _nothing("host", name)
    return found
