"""One message on its way: from a claim to a recorded result.

`Courier.deliver` takes all claims of one message. It loads the body once, signs once, and offers the message to each
destination domain in one transaction for all its recipients. Each result is recorded as soon as the remote server has
answered; no database connection is held during a dialogue. A result that cannot be recorded because the database is away
is kept and tried again until it can: losing it would mean a second copy.
"""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from remails.config import Outbound
from remails.errors import Unavailable
from remails.logs import Log
from remails.mail import backoff, reply
from remails.mail.reply import Outcome, Phase, Reply
from remails.outbound import transport
from remails.outbound.holdings import Holding, Holdings
from remails.outbound.route import Router, Target
from remails.store.ids import DomainId, MessageId
from remails.store.queue import Claim, Result

log = Log("remails.outbound")

Load = Callable[[MessageId], Awaitable[bytes | None]]
Record = Callable[[tuple[Claim, Result, bool]], Awaitable[None]]
Release = Callable[[Sequence[Claim], float], Awaitable[None]]

_KIND = {
    Outcome.DELIVERED: ("delivered", "delivered"),
    Outcome.DEFERRED: ("reattempt", "deferred"),
    Outcome.FAILED: ("failed", "failed"),
    Outcome.AMBIGUOUS: ("reattempt", "ambiguous"),
}
_SOON = timedelta(seconds=2)


class Signer(Protocol):
    """What puts our signature on a message."""

    async def sign(self, domain_id: DomainId, raw: bytes) -> bytes | None:
        """The signed message; None when there is no key for it."""


@dataclass(frozen=True, slots=True)
class Try:
    """What one destination came to for one recipient."""

    answer: Reply
    target: Target | None = None
    tls: str | None = None
    milliseconds: int = 0


class Courier:
    """Delivers messages.

    Args:
        load: gives a message's raw bytes, None when they are gone.
        record: stores one result durably (and whether the address itself is to blame).
        release: gives claims back untried, due again after some seconds.
    """

    def __init__(
        self,
        settings: Outbound,
        holdings: Holdings,
        router: Router,
        signer: Signer,
        *,
        load: Load,
        record: Record,
        release: Release,
    ) -> None:
        self._settings, self._holdings, self._router, self._signer = settings, holdings, router, signer
        self._load, self._record, self._release = load, record, release
        self._jitter = random.Random()  # noqa: S311  # spreads load, guards nothing

    async def deliver(self, claims: Sequence[Claim]) -> None:
        """Deliver one message to those of its recipients that are claimed."""
        now = datetime.now(UTC)
        late = [claim for claim in claims if claim.expires_at <= now]
        for claim in late:
            await self._expire(claim)
        claims = [claim for claim in claims if claim.expires_at > now]
        if not claims:
            return
        wire = await self._signed(claims[0])
        if isinstance(wire, Reply):
            await self._conclude_all(claims, dict.fromkeys((claim.recipient for claim in claims), Try(wire)))
            return
        groups: defaultdict[tuple[str, str], list[Claim]] = defaultdict(list)
        for claim in claims:
            groups[claim.source, claim.domain].append(claim)
        await asyncio.gather(*(self._offer(group, wire) for group in groups.values()))

    async def _signed(self, claim: Claim) -> bytes | Reply:
        """What goes over the wire, or why there is nothing to send."""
        raw = await self._load(claim.message_id)
        if raw is None:
            return Reply(Phase.DNS, 554, "5.6.0", "the message's content is no longer kept")
        # Without our signature it would only harm the name it is sent in.
        wire = await self._signer.sign(claim.domain_id, raw)
        return wire or Reply(Phase.DNS, 554, "5.7.20", "the sending domain was removed, or has no active DKIM key")

    async def _offer(self, claims: Sequence[Claim], wire: bytes) -> None:
        """One destination: all recipients of a domain, from one address."""
        holding = self._holdings.get(claims[0].source)
        if holding is None:
            log.warning("address not held, put back", source=claims[0].source, message=claims[0].message_id)
            await self._release(claims, self._settings.poll_interval)
            return
        version = 6 if ":" in holding.bind_ip else 4
        targets = await self._router.resolve(claims[0].domain, version=version)
        if isinstance(targets, Reply):
            await self._conclude_all(claims, dict.fromkeys((claim.recipient for claim in claims), Try(targets)))
            return
        try:
            tries = await self._walk(claims, targets, holding, wire)
        except transport.SourceMissing as missing:
            log.error("source address is not on this host, put back", reason=missing, message=claims[0].message_id)
            await self._release(claims, 5 * self._settings.poll_interval)
            return
        await self._conclude_all(claims, tries)

    async def _walk(
        self, claims: Sequence[Claim], targets: Sequence[Target], holding: Holding, wire: bytes
    ) -> dict[str, Try]:
        """Try one server after another for the recipients that another one may do better for (RFC 5321 §5.1)."""
        tries: dict[str, Try] = {}
        waiting = [claim.recipient for claim in claims]
        for target in targets:
            started = time.monotonic()
            envelope = transport.Envelope(
                mail_from=claims[0].mail_from,
                recipients=waiting,
                wire=wire,
                eight_bit=claims[0].eight_bit,
                smtputf8=claims[0].smtputf8,
                require_tls=not claims[0].plaintext_fallback,
            )
            dialogue = await transport.send(self._settings, target, holding.bind_ip, holding.ehlo_name, envelope)
            took = round((time.monotonic() - started) * 1000)
            for recipient, answer in dialogue.replies.items():
                tries[recipient] = Try(answer, target, dialogue.tls, took)
            waiting = [recipient for recipient in waiting if reply.tries_next_host(tries[recipient].answer)]
            if not waiting or self._holdings.get(holding.ip) is None:
                break
        return tries

    async def _conclude_all(self, claims: Iterable[Claim], tries: dict[str, Try]) -> None:
        await asyncio.gather(*(self._conclude(claim, tries[claim.recipient]) for claim in claims))

    async def _conclude(self, claim: Claim, tried: Try) -> None:
        now = datetime.now(UTC)
        outcome = reply.verdict(tried.answer)
        status, kind = _KIND[outcome]
        text = tried.answer.text
        again: datetime | None = None
        if status == "reattempt":
            again = self._again(claim, tried.answer, now)
            if again is None:
                status, kind, text = "failed", "expired", f"time is up; last: {tried.answer.line}"
        await self._keep(
            claim,
            Result(
                delivery_id=claim.id,
                message_id=claim.message_id,
                claim_epoch=claim.claim_epoch,
                status=status,
                kind=kind,
                text=text,
                next_attempt_at=again,
                code=tried.answer.code,
                enhanced=tried.answer.enhanced,
                source=claim.source,
                mx_host=tried.target.host if tried.target else None,
                mx_ip=tried.target.ip if tried.target else None,
                tls=tried.tls,
                milliseconds=tried.milliseconds,
            ),
            blames_address=reply.blames_address(tried.answer),
        )

    def _again(self, claim: Claim, answer: Reply, now: datetime) -> datetime | None:
        if answer.phase is Phase.RCPT and answer.code == 452 and answer.enhanced == "4.5.3":
            # RFC 5321 §4.5.3.1.10: too many recipients for one transaction, the rest in another one at once
            return min(now + _SOON, claim.expires_at)
        first = timedelta(seconds=self._settings.first_retry)
        return backoff.next_attempt(
            claim.attempts + 1, now=now, expires_at=claim.expires_at, first=first, jitter=self._jitter
        )

    async def _expire(self, claim: Claim) -> None:
        result = Result(
            delivery_id=claim.id,
            message_id=claim.message_id,
            claim_epoch=claim.claim_epoch,
            status="failed",
            kind="expired",
            text="time is up, not tried again",
            counts=False,
            source=claim.source,
        )
        await self._keep(claim, result, blames_address=False)

    async def _keep(self, claim: Claim, result: Result, *, blames_address: bool) -> None:
        while True:
            try:
                await self._record((claim, result, blames_address))
            except Unavailable as error:
                log.warning("result waits for the database", message=claim.message_id, kind=result.kind, reason=error)
                await asyncio.sleep(1)
            else:
                break
        log.info(
            result.kind,
            message=claim.message_id,
            recipient=claim.recipient,
            source=claim.source,
            mx=result.mx_host,
            mx_ip=result.mx_ip,
            tls=result.tls,
            reply=f"{result.code or ''} {result.enhanced or ''} {result.text}".strip(),
            ms=result.milliseconds,
        )
