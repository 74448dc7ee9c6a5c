"""The one door: every mail, from SMTP or REST, comes in through `submit`.

`submit` is the policy, read top to bottom: may this sender send at all, is there room, are the domains of envelope and From header its own
(on a label boundary) and verified, is it too fast, is its quota used up, who is suppressed, and from which address will it
leave. Rate and quota count messages, whatever the number of their recipients. What passes is stored in one transaction for the
whole batch; only after the commit does the caller hear "accepted" and the bus a note. A message that is refused leaves nothing
behind; its neighbours in the batch are not touched by it.
"""

import contextlib
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from remails import metrics
from remails.bus import client, events
from remails.config import Mail
from remails.db import Connection, Database
from remails.errors import Refused
from remails.mail import address, dsn, idempotency, message
from remails.store import holds, messages, queue, senders, sources, usage
from remails.store import idempotency as kept_keys
from remails.store.idempotency import Kept
from remails.store.ids import ApiKeyId, MessageId, OrganizationId, PoolId, ProjectId, SmtpCredentialId
from remails.store.rates import Rate
from remails.throttle import Drawn, Throttle


@dataclass(frozen=True, slots=True)
class Sender:
    """Who speaks, as proved by AUTH or an API key."""

    organization_id: OrganizationId
    project_id: ProjectId
    smtp_credential_id: SmtpCredentialId | None = None
    api_key_id: ApiKeyId | None = None


@dataclass(frozen=True, slots=True)
class Submission:
    """A mail as handed in.

    Args:
        id: chosen by the door, so that `received` can name it.
        received: a complete Received field, which is put on top of `raw`.
        asked: what the sender wants to be told of the message.
        asked_of: the same of single recipients.
        idempotency_key: goes before the key in the message's header; with one, the same mail is stored once.
        expires_in: seconds after which it is no longer tried, when shorter than the relay's own limit.
    """

    sender: Sender
    mail_from: address.Address
    recipients: tuple[address.Address, ...]
    raw: bytes
    id: MessageId
    received: bytes
    label: str | None = None
    expires_in: float | None = None
    idempotency_key: str | None = None
    asked: dsn.Asked = dsn.NOTHING
    asked_of: Mapping[address.Address, dsn.AskedOf] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Accepted:
    """It is committed, and ours to deliver."""

    id: MessageId
    created_at: datetime
    message_id_header: str
    expires_at: datetime | None = None
    """Until when it is tried; None where that was said before."""
    is_repeated: bool = False
    """Whether it was stored before, under the same idempotency key."""


@dataclass(frozen=True, slots=True)
class _Mail:
    """A submission on its way through the policy."""

    given: Submission
    prepared: message.Prepared
    project: senders.Project | None = None
    domain: senders.Domain | None = None
    pool_id: PoolId | None = None
    idempotency: Kept | None = None
    """What is to be kept under its key, if it has one."""

    @property
    def at(self) -> datetime:
        """When it came in, by the database's clock: hosts may be wrong, and its time is reckoned from this (case X09)."""
        assert self.project is not None
        return self.project.asked_at


_Outcome = _Mail | Accepted | Refused


def check_sender(conn: Connection, sender: Sender, domain: str, throttle: Throttle | None = None) -> None:
    """Refuse a sender already at MAIL FROM, before the client has sent the whole mail. Counts nothing.

    Raises:
        Refused: the organization may not send, or not now; or `domain` is not the project's, or not verified.
    """
    known = senders.look_up(conn, [_asked(sender, domain)])
    project = _allowed(known.projects.get(_key(sender)))
    _room(project)
    _own_domain(known, sender, domain)
    if project.rate is not None and (
        wait := (throttle or Throttle()).wait(conn, project.organization_id, project.rate)
    ):
        raise _too_fast(project.rate, wait)
    if project.message_quota is not None:
        _within_quota(project, usage.used_since(conn, project.organization_id, project.quota_since))


def submit(
    db: Database,
    publisher: client.Publisher,
    settings: Mail,
    submissions: Sequence[Submission],
    throttle: Throttle | None = None,
) -> list[Accepted | Refused]:
    """Take mails in: all of them in one transaction, each with its own outcome, in order.

    Args:
        throttle: what this process holds of the organizations' rates; without one each call asks anew.

    Raises:
        Unavailable: the database cannot be reached; nothing is known to be stored.
    """
    now = datetime.now(UTC)  # for header fields only: when it came and how long it has is told by the database's clock
    throttle = throttle or Throttle()
    started = time.monotonic()
    outcomes: list[_Outcome] = [_prepare(given, settings, now) for given in submissions]
    with db.statements() as conn:
        known = _look_up(conn, _mails(outcomes))
        outcomes = _check_projects(known, outcomes)
        outcomes = _find_repeated(conn, outcomes)
        outcomes = _each(outcomes, _check_room, "room")
        outcomes = _check_domains(known, outcomes)
        with contextlib.nullcontext() if _writes_once(_mails(outcomes)) else conn.transaction():
            outcomes, drawn = _check_rates(conn, outcomes, throttle)
            outcomes = _check_quotas(conn, outcomes)
            outcomes = _take_keys(conn, outcomes)
            stored = _store(conn, settings, known, _mails(outcomes))
    throttle.keep(drawn)
    metrics.SUBMIT_SECONDS.observe(time.monotonic() - started)
    for mail in _mails(outcomes):
        metrics.MESSAGES_ACCEPTED.add(door=_door(mail.given))
    for note in _notes(stored):
        publisher.publish(note)  # only after the commit
    return [
        Accepted(outcome.given.id, outcome.at, outcome.prepared.message_id, _expires_at(outcome, settings))
        if isinstance(outcome, _Mail)
        else outcome
        for outcome in outcomes
    ]


def _look_up(conn: Connection, mails: Sequence[_Mail]) -> senders.Known:
    recipients = {
        (mail.given.sender.organization_id, recipient.key) for mail in mails for recipient in mail.given.recipients
    }
    return senders.look_up(conn, {one for mail in mails for one in _domains(mail)}, recipients)


def _writes_once(mails: Sequence[_Mail]) -> bool:
    """Whether nothing is written for them but the messages, by one statement, which needs no BEGIN and no COMMIT."""
    return all(
        mail.project is not None
        and mail.project.rate is None
        and mail.project.message_quota is None
        and mail.project.block_status == "not_blocked"
        and mail.domain is not None
        and mail.domain.hold_reason is None
        and mail.idempotency is None
        and len(mail.prepared.raw) <= messages.LARGE
        for mail in mails
    )


def _each(outcomes: Iterable[_Outcome], check: Callable[[_Mail], _Mail | Accepted], reason: str) -> list[_Outcome]:
    """Apply a check to what is not decided yet; `reason` is what a refusal is counted under."""
    result: list[_Outcome] = []
    for outcome in outcomes:
        if not isinstance(outcome, _Mail):
            result.append(outcome)
            continue
        try:
            result.append(check(outcome))
        except Refused as refusal:
            metrics.MESSAGES_REFUSED.add(door=_door(outcome.given), reason=reason)
            result.append(refusal)
    return result


def _door(given: Submission) -> str:
    return "smtp" if given.sender.smtp_credential_id is not None else "api"


def _mails(outcomes: Iterable[_Outcome]) -> list[_Mail]:
    return [outcome for outcome in outcomes if isinstance(outcome, _Mail)]


def _prepare(given: Submission, settings: Mail, now: datetime) -> _Mail | Refused:
    if not given.recipients:
        return Refused(554, "5.5.1", "No valid recipients", status=422, field="to")
    if len(given.recipients) > settings.max_recipients:
        text = f"Too many recipients, at most {settings.max_recipients} for one message"
        return Refused(552, "5.5.3", text, status=422, field="to")
    if len(given.raw) > settings.max_size:
        text = f"Message of {len(given.raw)} bytes is larger than the limit of {settings.max_size}"
        return Refused(552, "5.3.4", text, status=413)
    try:
        prepared = message.prepare(
            given.raw,
            received=given.received,
            fallback_id=f"{given.id}@{given.mail_from.domain}",
            now=now,
            hostname=settings.hostname,
            label=given.label,
        )
        return _Mail(given, prepared, idempotency=_to_keep(given, prepared, now))
    except Refused as refusal:
        return refusal


def _to_keep(given: Submission, prepared: message.Prepared, now: datetime) -> Kept | None:
    key = prepared.idempotency_key
    if given.idempotency_key is not None:
        try:
            key = idempotency.key(given.idempotency_key)
        except idempotency.BadKey as error:
            raise Refused(554, "5.6.0", str(error), status=422, field="Idempotency-Key") from None
    if key is None:
        return None
    recipients = sorted({str(recipient) for recipient in given.recipients})
    fingerprint = idempotency.fingerprint(
        [str(given.mail_from), *recipients, given.label or "", str(given.expires_in or "")], given.raw
    )
    return Kept(given.sender.project_id, key, given.id, fingerprint, prepared.message_id, now)


def _allowed(project: senders.Project | None) -> senders.Project:
    if project is None:
        raise Refused(550, "5.7.1", "There is no such project, or it does not belong to this sender", status=404)
    if project.block_status in ("no_sending_or_receiving", "full_freeze"):
        raise Refused(550, "5.7.1", "This organization is blocked from sending, contact the operator", status=403)
    return project


def _check_projects(known: senders.Known, outcomes: list[_Outcome]) -> list[_Outcome]:
    def check(mail: _Mail) -> _Mail:
        project = _allowed(known.projects.get(_key(mail.given.sender)))
        kept = mail.idempotency and replace(mail.idempotency, created_at=project.asked_at)
        return replace(mail, project=project, idempotency=kept)

    return _each(outcomes, check, "sender")


def _check_room(mail: _Mail) -> _Mail:
    assert mail.project is not None
    _room(mail.project)
    return mail


def no_room() -> Refused:
    """A disk is full, or nearly so: the client is to come back later."""
    # RFC 3463 §3.4: X.3.1 is the mail system that is full.
    text = "There is no room for the message just now, try again later"
    return Refused(452, "4.3.1", text, status=503, retry_after=60)


def _room(project: senders.Project) -> None:
    """While PostgreSQL can still do all that delivery asks of it: with its disk full to the last it would stop."""
    if project.is_storage_short:
        raise no_room()


def _find_repeated(conn: Connection, outcomes: list[_Outcome]) -> list[_Outcome]:
    """What was stored before is answered as it was then, whatever else has changed."""
    wanted = {mail.idempotency.place for mail in _mails(outcomes) if mail.idempotency is not None}
    if not wanted:
        return outcomes
    known = kept_keys.find(conn, wanted)

    def check(mail: _Mail) -> _Mail | Accepted:
        earlier = known.get(mail.idempotency.place) if mail.idempotency is not None else None
        return _as_before(mail, earlier) if earlier is not None else mail

    return _each(outcomes, check, "key")


def _take_keys(conn: Connection, outcomes: list[_Outcome]) -> list[_Outcome]:
    """Keep what is going to be stored; of the same key, given twice at once, one comes first."""
    first: dict[kept_keys.Place, Kept] = {}
    for mail in _mails(outcomes):
        if mail.idempotency is not None:
            first.setdefault(mail.idempotency.place, mail.idempotency)
    if not first:
        return outcomes
    taken = kept_keys.take(conn, list(first.values()))
    first |= kept_keys.find(conn, first.keys() - taken) if len(taken) < len(first) else {}

    def check(mail: _Mail) -> _Mail | Accepted:
        if mail.idempotency is None or first[mail.idempotency.place] is mail.idempotency:
            return mail
        return _as_before(mail, first[mail.idempotency.place])

    return _each(outcomes, check, "key")


def _as_before(mail: _Mail, earlier: Kept) -> Accepted:
    assert mail.idempotency is not None
    if mail.idempotency.fingerprint != earlier.fingerprint:
        text = "The idempotency key was used before, for another message; take a new key for this one"
        raise Refused(554, "5.6.0", text, status=422, field="Idempotency-Key")
    return Accepted(earlier.message_id, earlier.created_at, earlier.message_id_header, is_repeated=True)


def _key(sender: Sender) -> tuple[ProjectId, OrganizationId]:
    return sender.project_id, sender.organization_id


def _asked(sender: Sender, domain: str) -> senders.Asked:
    return sender.project_id, sender.organization_id, domain, tuple(address.parents(domain))


def _domains(mail: _Mail) -> list[senders.Asked]:
    """What is to be known of a mail's sender: the domains of envelope and From header are all its own."""
    domains = (mail.given.mail_from.domain, *mail.prepared.from_domains)
    return [_asked(mail.given.sender, domain) for domain in domains]


def _own_domain(known: senders.Known, sender: Sender, domain: str, what: str = "sender") -> senders.Domain:
    found = known.domains.get((sender.project_id, domain))
    if found is None:
        text = f"The {what} domain {domain} is not set up for this project, add it under Domains"
        raise Refused(550, "5.7.1", text, status=422, field="from")
    if found.verified_at is None:
        text = f"The {what} domain {found.name} is not verified yet, publish its DNS records first"
        raise Refused(550, "5.7.1", text, status=422, field="from")
    return found


def _check_domains(known: senders.Known, outcomes: list[_Outcome]) -> list[_Outcome]:
    def check(mail: _Mail) -> _Mail:
        _own_domain(known, mail.given.sender, mail.given.mail_from.domain)
        signing, *_ = [
            _own_domain(known, mail.given.sender, domain, "From header's") for domain in mail.prepared.from_domains
        ]
        assert mail.project is not None
        pool_id = signing.pool_id or mail.project.pool_id
        if pool_id is None:
            raise RuntimeError("there is no pool: `remails pool create --default` makes one")
        return replace(mail, domain=signing, pool_id=pool_id)

    return _each(outcomes, check, "domain")


def _check_rates(conn: Connection, outcomes: list[_Outcome], throttle: Throttle) -> tuple[list[_Outcome], Drawn]:
    wanted: dict[OrganizationId, tuple[Rate, int]] = {}
    for mail in _mails(outcomes):
        if mail.project is not None and mail.project.rate is not None:
            _, number = wanted.get(mail.project.organization_id, (None, 0))
            wanted[mail.project.organization_id] = mail.project.rate, number + 1
    drawn = throttle.draw(conn, wanted)
    left = dict(drawn.tokens)

    def check(mail: _Mail) -> _Mail:
        assert mail.project is not None
        id_ = mail.project.organization_id
        if mail.project.rate is not None:
            if left[id_] == 0:
                raise _too_fast(mail.project.rate, drawn.retry_after.get(id_, 1))
            left[id_] -= 1
        return mail

    return _each(outcomes, check, "rate"), drawn


def _too_fast(rate: Rate, wait: float) -> Refused:
    seconds = max(math.ceil(wait), 1)
    text = f"This organization may send {rate}; try again in {seconds} seconds"
    return Refused(451, "4.7.1", text, status=429, retry_after=seconds)


def _check_quotas(conn: Connection, outcomes: list[_Outcome]) -> list[_Outcome]:
    limited = {
        mail.project.organization_id: mail.project
        for mail in _mails(outcomes)
        if mail.project is not None and mail.project.message_quota is not None
    }
    if not limited:
        return outcomes
    senders.lock_quotas(conn, limited)
    used = Counter({id_: usage.used_since(conn, id_, project.quota_since) for id_, project in limited.items()})

    def check(mail: _Mail) -> _Mail:
        assert mail.project is not None
        project = limited.get(mail.project.organization_id)
        if project is not None and project.message_quota is not None:
            _within_quota(project, used[project.organization_id])
            used[project.organization_id] += 1
        return mail

    return _each(outcomes, check, "quota")


def _within_quota(project: senders.Project, used: int) -> None:
    if project.message_quota is not None and used >= project.message_quota:
        text = f"The monthly quota of {project.message_quota} messages is used up until {project.quota_reset:%Y-%m-%d}"
        until = max(math.ceil((project.quota_reset - project.asked_at).total_seconds()), 1)
        raise Refused(452, "4.7.1", text, status=429, retry_after=until)


def _store(conn: Connection, settings: Mail, known: senders.Known, mails: Sequence[_Mail]) -> list[messages.NewMessage]:
    if not mails:
        return []
    stored = [_new_message(mail, settings, known) for mail in mails]
    messages.insert_many(conn, stored)
    held = {new.id: one.cause for new in stored for one in new.deliveries if one.status == "held"}
    if held:
        queue.note_many(conn, [queue.Note(id_, None, "held", cause=cause) for id_, cause in held.items()])
    return stored


def _expires_at(mail: _Mail, settings: Mail) -> datetime:
    """The shortest of what the message, its project and the relay allow."""
    assert mail.project is not None
    limits = (mail.given.expires_in, mail.project.expires_in, settings.expire_after)
    return mail.at + timedelta(seconds=min(limit for limit in limits if limit))


def _new_message(mail: _Mail, settings: Mail, known: senders.Known) -> messages.NewMessage:
    given, prepared, sender = mail.given, mail.prepared, mail.given.sender
    assert mail.domain is not None
    assert mail.pool_id is not None
    assert mail.project is not None
    waiting = _waiting(mail.project, mail.domain)
    candidates = known.pools.get(mail.pool_id, [])

    def delivery(recipient: address.Address) -> messages.NewDelivery:
        # The same project reaches the same domain from the same address: greylisting and reputation want it so.
        source = sources.choose(candidates, sources.key(sender.project_id, recipient.domain))
        asked = given.asked_of.get(recipient, dsn.NOT_ASKED)
        status, held_for, cause = waiting
        reason = known.suppressed.get((sender.organization_id, recipient.key))
        if reason is not None:
            status, held_for = "suppressed", None
            cause = "The address is on the suppression list" + (f": {reason}" if reason else ".")
        return messages.NewDelivery(
            recipient=str(recipient),
            domain=recipient.domain,
            status=status,
            source=source,
            cause=cause,
            held_for=held_for,
            dsn_notify=asked.notify,
            dsn_orcpt=asked.orcpt,
        )

    return messages.NewMessage(
        id=given.id,
        organization_id=sender.organization_id,
        project_id=sender.project_id,
        domain_id=mail.domain.id,
        smtp_credential_id=sender.smtp_credential_id,
        api_key_id=sender.api_key_id,
        pool_id=mail.pool_id,
        created_at=mail.at,
        expires_at=_expires_at(mail, settings),
        mail_from=str(given.mail_from),
        header_from=prepared.header_from,
        subject=prepared.subject,
        message_id_header=prepared.message_id,
        label=prepared.label,
        eight_bit=prepared.eight_bit,
        smtputf8=prepared.utf8_headers or any(a.needs_smtputf8 for a in (given.mail_from, *given.recipients)),
        dsn_ret=given.asked.ret,
        dsn_envid=given.asked.envid,
        raw=prepared.raw,
        deliveries=tuple(delivery(recipient) for recipient in dict.fromkeys(given.recipients)),
    )


def _waiting(project: senders.Project, domain: senders.Domain) -> tuple[str, str | None, str]:
    """The status of a delivery that comes in now, what it is held for, and why."""
    if project.block_status != "not_blocked":
        return "held", "block", holds.BLOCKED
    if domain.hold_reason is not None:
        return "held", "domain", domain.hold_reason
    return "accepted", None, ""


def _notes(stored: Iterable[messages.NewMessage]) -> list[events.Ready]:
    by_source: defaultdict[str, dict[MessageId, None]] = defaultdict(dict)
    for new in stored:
        for delivery in new.deliveries:
            if delivery.source is not None and delivery.status == "accepted":
                by_source[delivery.source][new.id] = None
    return [events.Ready(source, list(ids)) for source, ids in by_source.items()]
