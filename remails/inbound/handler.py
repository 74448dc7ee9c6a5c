"""What the dialogue is about: who may log in, who may send, and what becomes of a message.

`session` calls a method for each step; it returns the reply to success, or raises. `explain` is the only place where a
`Refused`, an outage or a mistake of ours becomes an SMTP reply. Messages that end while others are being committed go into
the next transaction together, and each is answered only after its commit.
"""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from remails import metrics, submission
from remails.bus.client import Publisher
from remails.config import Mail
from remails.db import Coalescer, Connection, Database
from remails.errors import Full, Refused, Unavailable
from remails.guard import Guard, network_of
from remails.inbound import auth
from remails.inbound.intake import Incoming
from remails.inbound.lookup import Lookup
from remails.inbound.transaction import Client, Envelope
from remails.logs import Log
from remails.mail import address, dsn, message
from remails.store import credentials, ids, suppressions
from remails.store.ids import MessageId, OrganizationId
from remails.submission import Accepted, Sender, Submission
from remails.throttle import Throttle
from remails.vault import Pepper

log = Log("remails.inbound")

_MOST_SLOWED = 500
_PACE = 0.01
"""Most seconds from one batch to the next, so that those who come together share a commit."""
_SMALL = 512 * 1024
"""Weight of a batch that is checked and stored in some milliseconds."""
_RECIPIENT = 1024
"""Bytes of mail that cost as much as one more recipient: a row of the queue, and all that is made and asked for it."""
_OUTCOMES = {"4.7.0": "banned", "5.7.1": "elsewhere"}


class Handler:
    """The policy behind all sessions of a process."""

    def __init__(self, db: Database, publisher: Publisher, pepper: Pepper, mail: Mail, guard: Guard) -> None:
        self._db, self._publisher, self._mail, self._guard = db, publisher, mail, guard
        self._slowed = 0
        self._authenticate = auth.Authenticator(db, pepper)
        self._throttle = Throttle()
        self._may_send: Lookup[tuple[Sender, str], bool] = Lookup(db, self._check_senders)
        self._suppressed: Lookup[tuple[OrganizationId, str], bool] = Lookup(db, _check_recipients)
        self._submit: Coalescer[Submission, Accepted | Refused] = Coalescer(
            self._submit_all, weight=_weight, pace=_PACE
        )

    async def log_in(self, client: Client, mechanism: str, initial: bytes | None, ask: auth.Ask) -> str:
        """AUTH: have the exchange of `mechanism`, then look whom the login speaks for."""
        login = await auth.MECHANISMS[mechanism](initial, ask)
        try:
            if self._guard.banned(network_of(client.address)):  # since it connected
                raise Refused(454, "4.7.0", "Too many failed logins from your network, try again later", status=429)
            client.sender = await self._authenticate(login, client.address)
        except Refused as refusal:
            client.failed_logins += 1
            log.warning("login failed", client=client.address, user=login.username)
            metrics.LOGINS.add(door="smtp", outcome=_OUTCOMES.get(refusal.enhanced, "failed"))
            if refusal.enhanced == "5.7.8":  # the right password in the wrong place is no guess
                await self._slow(self._guard.failed(network_of(client.address), login.username, login.password))
            raise
        except Unavailable as error:
            metrics.LOGINS.add(door="smtp", outcome="put_off")
            log.warning("login put off", client=client.address, reason=error)
            return "454 4.7.0 Temporary authentication failure"  # RFC 4954 §6
        client.username = login.username
        metrics.LOGINS.add(door="smtp", outcome="succeeded")
        return "235 2.7.0 Authentication successful"

    async def _slow(self, seconds: float) -> None:
        """Keep a guesser waiting. So many at once, and no more: those who wait hold a connection of ours."""
        if seconds and self._slowed < _MOST_SLOWED:
            self._slowed += 1
            try:
                await asyncio.sleep(seconds)
            finally:
                self._slowed -= 1

    async def begin(self, client: Client, envelope: Envelope, path: str, smtputf8: bool) -> str:
        """MAIL: take the envelope sender, if its domain is the client's."""
        if not path:
            text = "A sender address is needed: this is a submission service, bounces are not taken here"
            raise Refused(550, "5.7.1", text, status=422)
        sender = _address(path, smtputf8, "5.1.7")
        assert client.sender is not None
        envelope.suppresses = await self._may_send((client.sender, sender.domain))
        envelope.reverse_path, envelope.smtp_utf8 = sender, smtputf8
        return "250 2.1.0 Sender ok"

    async def add_recipient(self, client: Client, envelope: Envelope, path: str, asked: dsn.AskedOf) -> str:
        """RCPT: take one more recipient, unless mail to it is suppressed."""
        if len(envelope.forward_paths) >= self._mail.max_recipients:
            # RFC 5321 §4.5.3.1.10: those taken so far stay, the client sends the message again to the others.
            text = f"Too many recipients, at most {self._mail.max_recipients} for one message"
            raise Refused(452, "4.5.3", text, status=422)
        recipient = _address(path, envelope.smtp_utf8, "5.1.3")
        if envelope.suppresses:
            assert client.sender is not None
            await self._suppressed((client.sender.organization_id, recipient.key))
        envelope.forward_paths.append(recipient)
        if asked != dsn.NOT_ASKED:
            envelope.asked_of.setdefault(recipient, asked)
        return "250 2.1.5 Recipient ok"

    async def store(self, client: Client, envelope: Envelope, incoming: Incoming) -> str:
        """DATA: store the message; the reply comes after the commit."""
        started = time.monotonic()
        async with incoming.whole() as content:
            given = self._submission(client, envelope, content)
            try:
                # One that needed a file is stored beside the others, so that they need not wait for it.
                outcome = (await self._submit_all([given]))[0] if incoming.is_in_file else await self._submit(given)
            except Exception as error:
                error.add_note(f"message {given.id} from {client.address}")
                raise
        if isinstance(outcome, Refused):
            raise outcome
        log.info(
            "accepted",
            message=outcome.id,
            client=client.address,
            user=client.username,
            size=incoming.size,
            recipients=len(given.recipients),
            repeated=outcome.is_repeated or None,
            milliseconds=round((time.monotonic() - started) * 1000),
        )
        return f"250 2.6.0 Accepted as {outcome.id}"

    def explain(self, error: Exception) -> str:
        """The reply to what went wrong. An outage or a mistake of ours is never a permanent error."""
        if isinstance(error, Refused):
            return error.reply
        if isinstance(error, Full):
            log.warning("put off", reason=error)
            return submission.no_room().reply
        if isinstance(error, Unavailable):
            log.warning("put off", reason=error)
            return "451 4.3.0 Temporarily unavailable, try again later"
        log.exception("internal error")
        return "451 4.3.0 Internal error, try again later"

    async def flush(self) -> None:
        """Wait until all that was handed in is stored or refused."""
        await self._submit.flush()

    async def _submit_all(self, batch: Sequence[Submission]) -> Sequence[Accepted | Refused]:
        # What takes a while to read through goes to a thread, so that it does not hold up other sessions.
        go = self._db.visit if sum(map(_weight, batch)) <= _SMALL else self._db.thread
        return await go(submission.submit, self._db, self._publisher, self._mail, batch, self._throttle)

    def _check_senders(
        self, conn: Connection, asked: Sequence[tuple[Sender, str]]
    ) -> dict[tuple[Sender, str], bool | Refused]:
        """Whether they may send; those who may, whether their organization suppresses any address at all."""
        suppressing = suppressions.organizations_among(conn, {sender.organization_id for sender, _ in asked})
        answers: dict[tuple[Sender, str], bool | Refused] = {}
        for sender, domain in asked:
            try:
                _check_credential(conn, sender)
                submission.check_sender(conn, sender, domain, self._throttle)
                answers[sender, domain] = sender.organization_id in suppressing
            except Refused as refusal:
                answers[sender, domain] = refusal
        return answers

    def _submission(self, client: Client, envelope: Envelope, content: bytes) -> Submission:
        assert client.sender is not None and envelope.reverse_path is not None
        id_ = MessageId(ids.new())
        return Submission(
            sender=client.sender,
            mail_from=envelope.reverse_path,
            recipients=tuple(envelope.forward_paths),
            raw=content,
            id=id_,
            asked=envelope.asked,
            asked_of=envelope.asked_of,
            received=message.received_field(
                client=client.host_name or "",
                client_ip=client.address,
                hostname=self._mail.hostname,
                protocol="UTF8SMTPSA" if envelope.smtp_utf8 else "ESMTPSA",  # RFC 3848, RFC 6531 §4.3
                ident=str(id_),
                now=datetime.now(UTC),
                tls=f"{client.ssl['version']} {client.ssl['cipher']}" if client.ssl else None,
            ),
        )


def _weight(given: Submission) -> int:
    """What a mail adds to the work of a batch, in bytes."""
    return len(given.raw) + len(given.recipients) * _RECIPIENT


def _address(path: str, smtputf8: bool, enhanced: str) -> address.Address:
    """Read a path; raises Refused with the given enhanced code for a bad one."""
    if path.endswith("]"):
        # An address literal would have us connect to whatever host a client names.
        raise Refused(550, "5.1.2", "Address literals are not accepted, give a domain", status=422)
    if not smtputf8 and not path.isascii():
        # RFC 6531 §3.5
        raise Refused(553, "5.6.7", "An address that is not ASCII needs SMTPUTF8 in the MAIL command", status=422)
    try:
        return address.parse(path)
    except address.BadAddress as error:
        raise Refused(553, enhanced, f"Bad address: {error}", status=422) from None


def _check_recipients(
    conn: Connection, asked: Sequence[tuple[OrganizationId, str]]
) -> dict[tuple[OrganizationId, str], bool | Refused]:
    suppressed = suppressions.active_among(conn, asked)
    text = "Mail to this address is suppressed, take it off the suppression list to send to it again"
    refusal = Refused(550, "5.7.1", text, status=422, field="to")
    return {pair: refusal if pair in suppressed else False for pair in asked}


def _check_credential(conn: Connection, sender: Sender) -> None:
    """A session may outlive the credential that opened it."""
    assert sender.smtp_credential_id is not None
    if credentials.get_smtp(conn, sender.project_id, sender.smtp_credential_id) is None:
        raise Refused(550, "5.7.1", "The credential of this session was removed", status=401)
