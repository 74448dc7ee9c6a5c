"""Commands about what an organization sends with: domains, SMTP credentials, API keys, and the messages themselves."""

from dataclasses import asdict
from typing import get_args
from uuid import UUID

import click

from remails import domaincheck, resolver, vault
from remails.admin import named, operator, output
from remails.admin.operator import Act, connected
from remails.errors import Refused
from remails.mail import records
from remails.store import constraints, credentials, domains, messages, queue
from remails.store.domains import Algorithm
from remails.store.ids import MessageId
from remails.store.users import Role


@click.group
def domain() -> None:
    """Sender domains and their DNS records."""


@domain.command("list")
@click.argument("organization")
@output.json_option
@connected
def domain_list(act: Act, organization: str, as_json: bool) -> None:
    """List an organization's domains."""
    rows = [
        {"id": one.id, "name": one.name, "verified_at": one.verified_at, "checked_at": one.checked_at}
        for one in domains.list_(act.conn, named.organization(act.conn, organization).id)
    ]
    output.show(rows, ("id", "name", "verified_at", "checked_at"), as_json=as_json)


@domain.command("add")
@click.argument("organization")
@click.argument("name")
@click.option("--project", "names", multiple=True, help="A project that sends from it; may be repeated.")
@click.option("--selector", help="DKIM selector; without it mail.dkim_selector of the settings.")
@click.option("--algorithm", type=click.Choice(get_args(Algorithm)), default="rsa_sha256", show_default=True)
@connected
def domain_add(
    act: Act, organization: str, name: str, names: tuple[str, ...], selector: str | None, algorithm: Algorithm
) -> None:
    """Add a domain with a new DKIM key and print its id. `domain records` says what to publish."""
    owner = named.organization(act.conn, organization)
    made = domains.create(
        act.conn,
        vault.Vault(act.settings.credential("encryption_keys")),
        owner.id,
        name,
        selector=selector or act.settings.mail.dkim_selector,
        algorithm=algorithm,
        also_ed25519=act.settings.mail.dkim_ed25519,
        project_ids=[named.project(act.conn, owner.id, one).id for one in names],
    )
    act.log(owner.id, "created", "domain", made.id, {"name": made.name, "projects": list(names)})
    click.echo(str(made.id))


@domain.command("records")
@click.argument("organization")
@click.argument("name")
@output.json_option
@connected
def domain_records(act: Act, organization: str, name: str, as_json: bool) -> None:
    """Print the DNS records to publish."""
    found = named.domain(act.conn, named.organization(act.conn, organization).id, name)
    wanted = {
        record.name: record
        for key in found.dkim_keys
        if key.is_active
        for record in records.suggested(
            found.name, key.selector, key.record, act.settings.spf_include, found.ownership_token
        )
    }
    rows = [asdict(record) for record in wanted.values()]
    output.show(rows, ("name", "type", "required", "purpose", "value"), as_json=as_json)


@domain.command("check")
@click.argument("organization")
@click.argument("name")
@output.json_option
def domain_check(organization: str, name: str, as_json: bool) -> None:
    """Look at a domain's DNS records now. Exits with status 1 unless the domain may send."""
    settings = operator.settings()
    with operator.migrated(settings) as database:
        found = database.run(lambda conn: named.domain(conn, named.organization(conn, organization).id, name))
        seen = domaincheck.check_domain(database, settings, found)
        now = database.run(domains.get, found.organization_id, found.id)
    rows = [{"record": kind, **verdict} for kind, verdict in seen.items() if isinstance(verdict, dict)]
    output.show(rows, ("record", "status", "reason", "value"), as_json=as_json)
    if now is None or now.verified_at is None:
        click.get_current_context().exit(1)


@domain.command("add-key")
@click.argument("organization")
@click.argument("name")
@click.argument("selector")
@click.option("--algorithm", type=click.Choice(get_args(Algorithm)), default="rsa_sha256", show_default=True)
@output.json_option
@connected
def domain_add_key(act: Act, organization: str, name: str, selector: str, algorithm: Algorithm, as_json: bool) -> None:
    """Make another DKIM key and print the record to publish. It signs nothing before `domain activate-key`."""
    owner = named.organization(act.conn, organization)
    found = named.domain(act.conn, owner.id, name)
    sealer = vault.Vault(act.settings.credential("encryption_keys"))
    domains.add_key(act.conn, sealer, found.id, selector, algorithm, is_active=False)
    key = _key(named.domain(act.conn, owner.id, name), selector)
    act.log(owner.id, "created", "dkim key", key.id, {"domain": found.name, "selector": selector})
    row = {"name": records.dkim_name(selector, found.name), "type": "TXT", "value": key.record}
    output.show([row], ("name", "type", "value"), as_json=as_json)


@domain.command("activate-key")
@click.argument("organization")
@click.argument("name")
@click.argument("selector")
@connected
def domain_activate_key(act: Act, organization: str, name: str, selector: str) -> None:
    """Sign with a key, if its record is in DNS as it should be."""
    owner = named.organization(act.conn, organization)
    found = named.domain(act.conn, owner.id, name)
    key = _key(found, selector)
    verdict = domaincheck.look_at_key(resolver.synchronous(act.settings.dns), found, key)
    if verdict.status not in ("Success", "Warning"):
        raise constraints.invalid(f"{records.dkim_name(selector, found.name)}: {verdict.reason}.", "selector")
    domains.activate_key(act.conn, key.id)
    act.log(owner.id, "updated", "dkim key", key.id, {"domain": found.name, "selector": selector, "is_active": True})


@domain.command("remove-key")
@click.argument("organization")
@click.argument("name")
@click.argument("selector")
@connected
def domain_remove_key(act: Act, organization: str, name: str, selector: str) -> None:
    """Sign no more with a key, and forget it. Leave its record in DNS for a week: mail signed by it is on its way."""
    owner = named.organization(act.conn, organization)
    found = named.domain(act.conn, owner.id, name)
    key = _key(found, selector)
    domains.remove_key(act.conn, found.id, key.id)
    act.log(owner.id, "deleted", "dkim key", key.id, {"domain": found.name, "selector": selector})


def _key(found: domains.Domain, selector: str) -> domains.DkimKey:
    key = next((one for one in found.dkim_keys if one.selector == selector), None)
    if key is None:
        raise constraints.invalid(f"{found.name} has no DKIM key of the selector {selector!r}.", "selector")
    return key


@domain.command("remove")
@click.argument("organization")
@click.argument("name")
@connected
def domain_remove(act: Act, organization: str, name: str) -> None:
    """Remove a domain and its DKIM keys."""
    owner = named.organization(act.conn, organization)
    found = named.domain(act.conn, owner.id, name)
    domains.remove(act.conn, owner.id, found.id)
    act.log(owner.id, "deleted", "domain", found.id, {"name": found.name})


_network_option = click.option(
    "--network",
    "networks",
    multiple=True,
    help="From where it may be used, as in 198.51.100.0/24; may be repeated. Left out: from anywhere.",
)


@click.group
def credential() -> None:
    """SMTP credentials of a project."""


@credential.command("list")
@click.argument("organization")
@click.argument("project")
@output.json_option
@connected
def credential_list(act: Act, organization: str, project: str, as_json: bool) -> None:
    """List a project's SMTP credentials."""
    owner = named.project(act.conn, named.organization(act.conn, organization).id, project)
    rows = [
        {
            "id": one.id,
            "username": one.username,
            "description": one.description,
            "networks": one.networks,
            "created_at": one.created_at,
        }
        for one in credentials.list_smtp(act.conn, owner.id)
    ]
    output.show(rows, ("id", "username", "description", "networks", "created_at"), as_json=as_json)


@credential.command("create")
@click.argument("organization")
@click.argument("project")
@click.argument("username")
@click.option("--description", default="")
@_network_option
@output.json_option
@connected
def credential_create(
    act: Act,
    organization: str,
    project: str,
    username: str,
    description: str,
    networks: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make an SMTP credential; prints the user name and, this once, the password."""
    owner = named.organization(act.conn, organization)
    found = named.project(act.conn, owner.id, project)
    pepper = vault.Pepper(act.settings.credential("pepper"))
    made, cleartext = credentials.create_smtp(act.conn, pepper, found, username, description, networks)
    details = {"username": made.username, "project": found.name, "networks": made.networks}
    act.log(owner.id, "created", "smtp_credential", made.id, details)
    output.pairs({"id": made.id, "username": made.username, "password": cleartext}, as_json=as_json)


@credential.command("restrict")
@click.argument("organization")
@click.argument("project")
@click.argument("username")
@_network_option
@connected
def credential_restrict(act: Act, organization: str, project: str, username: str, networks: tuple[str, ...]) -> None:
    """Let an SMTP credential be used from these networks only; without any, from anywhere."""
    owner = named.organization(act.conn, organization)
    found = named.credential(act.conn, named.project(act.conn, owner.id, project), username)
    changed = credentials.update_smtp(act.conn, found.project_id, found.id, allowed=networks)
    assert changed is not None
    details = {"username": found.username, "networks": changed.networks}
    act.log(owner.id, "updated", "smtp_credential", found.id, details)


@credential.command("remove")
@click.argument("organization")
@click.argument("project")
@click.argument("username")
@connected
def credential_remove(act: Act, organization: str, project: str, username: str) -> None:
    """Remove an SMTP credential; whoever uses it can log in no more."""
    owner = named.organization(act.conn, organization)
    found = named.credential(act.conn, named.project(act.conn, owner.id, project), username)
    credentials.remove_smtp(act.conn, found.project_id, found.id)
    act.log(owner.id, "deleted", "smtp_credential", found.id, {"username": found.username})


@click.group
def key() -> None:
    """API keys of an organization."""


@key.command("list")
@click.argument("organization")
@output.json_option
@connected
def key_list(act: Act, organization: str, as_json: bool) -> None:
    """List an organization's API keys."""
    rows = [
        {
            "id": one.id,
            "role": one.role.value,
            "description": one.description,
            "networks": one.networks,
            "created_at": one.created_at,
        }
        for one in credentials.list_keys(act.conn, named.organization(act.conn, organization).id)
    ]
    output.show(rows, ("id", "role", "description", "networks", "created_at"), as_json=as_json)


@key.command("create")
@click.argument("organization")
@click.option("--role", type=click.Choice(["read_only", "maintainer"]), default="maintainer", show_default=True)
@click.option("--description", default="")
@_network_option
@output.json_option
@connected
def key_create(
    act: Act, organization: str, role: str, description: str, networks: tuple[str, ...], as_json: bool
) -> None:
    """Make an API key; prints its id and, this once, its secret."""
    owner = named.organization(act.conn, organization)
    pepper = vault.Pepper(act.settings.credential("pepper"))
    made, cleartext = credentials.create_key(act.conn, pepper, owner.id, description, Role(role), networks)
    details = {"role": role, "description": made.description, "networks": made.networks}
    act.log(owner.id, "created", "api_key", made.id, details)
    output.pairs({"id": made.id, "role": role, "password": cleartext}, as_json=as_json)


@key.command("restrict")
@click.argument("organization")
@click.argument("key_id", metavar="ID")
@_network_option
@connected
def key_restrict(act: Act, organization: str, key_id: str, networks: tuple[str, ...]) -> None:
    """Let an API key be used from these networks only; without any, from anywhere."""
    owner = named.organization(act.conn, organization)
    found = named.key(act.conn, owner.id, key_id)
    changed = credentials.update_key(act.conn, owner.id, found.id, allowed=networks)
    assert changed is not None
    act.log(owner.id, "updated", "api_key", found.id, {"networks": changed.networks})


@key.command("remove")
@click.argument("organization")
@click.argument("key_id", metavar="ID")
@connected
def key_remove(act: Act, organization: str, key_id: str) -> None:
    """Remove an API key."""
    owner = named.organization(act.conn, organization)
    found = named.key(act.conn, owner.id, key_id)
    credentials.remove_key(act.conn, owner.id, found.id)
    act.log(owner.id, "deleted", "api_key", found.id)


@click.group
def message() -> None:
    """Messages and what became of them."""


@message.command("list")
@click.argument("organization")
@click.option("--project", help="Only those of this project.")
@click.option("--status", "statuses", multiple=True, help="Only those of this status; may be repeated.")
@click.option("--search", help="Only those with this text in the subject or a recipient.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@output.json_option
@connected
def message_list(
    act: Act,
    organization: str,
    project: str | None,
    statuses: tuple[str, ...],
    search: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List an organization's messages, newest first."""
    owner = named.organization(act.conn, organization)
    rows = [
        {
            "id": one.id,
            "created_at": one.created_at,
            "status": one.status,
            "from": one.mail_from,
            "recipients": one.recipients,
            "subject": one.subject,
        }
        for one in messages.list_(
            act.conn,
            owner.id,
            project_id=named.project(act.conn, owner.id, project).id if project else None,
            statuses=statuses,
            search=search,
            limit=limit,
        )
    ]
    output.show(rows, ("id", "created_at", "status", "from", "recipients", "subject"), as_json=as_json)


def _message(act: Act, organization: str, message_id: UUID) -> messages.Message:
    owner = named.organization(act.conn, organization)
    found = messages.get(act.conn, owner.id, MessageId(message_id))
    if found is None:
        raise Refused(550, "5.1.1", f"There is no message {message_id}.", status=404)
    return found


@message.command("show")
@click.argument("organization")
@click.argument("message_id", metavar="ID", type=click.UUID)
@output.json_option
@connected
def message_show(act: Act, organization: str, message_id: UUID, as_json: bool) -> None:
    """Show a message, its recipients and all that happened."""
    found = _message(act, organization, message_id)
    about = {
        name: getattr(found, name)
        for name in (
            "id",
            "created_at",
            "expires_at",
            "status",
            "mail_from",
            "header_from",
            "subject",
            "message_id_header",
            "label",
            "size",
        )
    }
    recipients = [
        {
            "recipient": one.recipient,
            "status": one.status,
            "attempts": one.attempts,
            "source": one.source,
            "next_attempt_at": one.next_attempt_at,
            "last_reply": one.last_reply,
        }
        for one in messages.deliveries(act.conn, found.organization_id, [found.id])
    ]
    events = [
        {"at": one.at, "kind": one.kind, "text": one.text, "source": one.source, "mx_host": one.mx_host, "tls": one.tls}
        for one in messages.timeline(act.conn, found.organization_id, found.id)
    ]
    if as_json:
        output.pairs(about | {"deliveries": recipients, "timeline": events}, as_json=True)
        return
    output.pairs(about, as_json=False)
    for rows in (recipients, events):
        if rows:
            click.echo("\n" + output.table(rows, tuple(rows[0])))


@message.command("retry")
@click.argument("organization")
@click.argument("message_id", metavar="ID", type=click.UUID)
@connected
def message_retry(act: Act, organization: str, message_id: UUID) -> None:
    """Try a message's unfinished, failed and suppressed recipients again now."""
    found = _message(act, organization, message_id)
    # No note on the bus: a sending host looks for what is due every second anyway.
    if not queue.retry(act.conn, found.organization_id, found.id):
        raise Refused(554, "5.3.0", "Nothing to retry: all delivered, or the content is gone.", status=409)
    act.log(found.organization_id, "retried", "email", found.id)
