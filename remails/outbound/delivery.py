"""One message on its way: from a claim to a recorded result.

`Courier.deliver` takes all claims of one message and offers the message to each destination domain in one transaction for all its
recipients there. The body is signed once for all of them when there is a slot, and if it is large only loaded then. Each result is
recorded as soon as the remote server has answered; no database connection is held during a dialogue. A result that cannot
be recorded because the database is away is kept and tried again until it can: losing it would mean a second copy.
"""

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar

import msgspec

from remails.config import Outbound
from remails.errors import Unavailable
from remails.logs import Log
from remails.mail import backoff, bounce, dsn, retry, sevenbit
from remails.mail.bounce import Blame
from remails.mail.reply import Phase, Reply
from remails.mail.retry import Decision, Outcome
from remails.outbound import transport
from remails.outbound.destinations import Busy, Destination, Destinations
from remails.outbound.holdings import Holding, Holdings
from remails.outbound.protocol import Exchange
from remails.outbound.route import Router, Target
from remails.outbound.rules import Rules
from remails.outbound.security import Secured, Security
from remails.outbound.sts import Pending
from remails.outbound.transport import Envelope, Place
from remails.store import sources
from remails.store.ids import DomainId
from remails.store.queue import SMALL, Begun, Claim, Result

log = Log("remails.outbound")

T = TypeVar("T")

Load = Callable[[Claim], Awaitable[bytes | None]]
Begin = Callable[[Begun], asyncio.Future[bool]]
Record = Callable[[tuple[Claim, Result, Blame]], Awaitable[None]]
Release = Callable[[Sequence[Claim], float, str | None], Awaitable[None]]

_KIND = {
    Outcome.DELIVERED: ("delivered", "delivered"),
    Outcome.DEFERRED: ("reattempt", "deferred"),
    Outcome.FAILED: ("failed", "failed"),
    Outcome.AMBIGUOUS: ("reattempt", "ambiguous"),
}


class Signer(Protocol):
    """What puts our signature on a message."""

    async def sign(self, domain_id: DomainId, raw: bytes) -> bytes | None:
        """The signed message; None when there is no key for it."""


@dataclass(frozen=True, slots=True)
class Try:
    """What one destination came to for one recipient."""

    answer: Reply
    target: Target | None = None
    secured: Secured | None = None
    milliseconds: int = 0
    is_alone: bool = True
    """Whether the answer was for this recipient and nobody else."""
    servers: tuple[dict[str, Any], ...] = ()
    """What was said with each server that was tried, as the timeline keeps it."""
    source: str | None = None
    """The address it left from, where that is not the delivery's own."""


class _Message:
    """The bytes of one message, loaded and signed when they are needed first."""

    def __init__(self, claim: Claim, raw: bytes | None, load: Load, signer: Signer) -> None:
        self._claim, self._raw, self._load, self._signer = claim, raw, load, signer
        self._lock = asyncio.Lock()
        self._wire: bytes | Reply | None = None
        self._seven_bit: list[bytes | None] = []

    async def load(self) -> None:
        """Have the message at hand."""
        async with self._lock:
            if self._raw is None and self._wire is None:
                self._raw = await self._load(self._claim)

    async def wire(self) -> bytes | Reply:
        """What goes over the wire, or why there is nothing to send."""
        async with self._lock:
            if self._wire is None:
                self._wire = await self._signed()
            return self._wire

    async def seven_bit(self) -> bytes | None:
        """The same for a server that takes no octets above 127; None when it cannot be said so."""
        async with self._lock:
            if not self._seven_bit:
                raw = await self._load(self._claim)
                encoded = await asyncio.to_thread(sevenbit.encode, raw) if raw is not None else None
                self._seven_bit.append(await self._signer.sign(self._claim.domain_id, encoded) if encoded else None)
            return self._seven_bit[0]

    async def _signed(self) -> bytes | Reply:
        raw, self._raw = self._raw, None
        if raw is None:
            raw = await self._load(self._claim)
        if raw is None:
            return Reply(Phase.LOCAL, 554, "5.6.0", "the message's content is no longer kept")
        # Without our signature it would only harm the name it is sent in.
        wire = await self._signer.sign(self._claim.domain_id, raw)
        return wire or Reply(Phase.LOCAL, 554, "5.7.20", "the sending domain was removed, or has no active DKIM key")


@dataclass(frozen=True, slots=True)
class _Errand:
    """A message for the recipients of one domain: where it may go, by what rules, and from where."""

    claims: Sequence[Claim]
    targets: Sequence[Target]
    rules: Mapping[str, Security | Reply]
    holdings: Mapping[int, Holding]
    """By version of IP: the deliveries' own address, and perhaps one beside it."""
    message: _Message


class Courier:
    """Delivers messages.

    Args:
        load: gives a claim's raw message, None when it is gone.
        begin: notes durably that a message is about to be sent; false when the claim is no longer ours.
        record: stores one result durably (and how surely the address itself is to blame).
        release: gives claims back untried, due again after some seconds, perhaps with the reason.
    """

    def __init__(
        self,
        settings: Outbound,
        holdings: Holdings,
        router: Router,
        rules: Rules,
        signer: Signer,
        destinations: Destinations,
        *,
        load: Load,
        begin: Begin,
        record: Record,
        release: Release,
    ) -> None:
        self._settings, self._holdings, self._router = settings, holdings, router
        self._rules, self._signer, self._destinations = rules, signer, destinations
        self._load, self._begin, self._record, self._release = load, begin, record, release
        self._jitter = random.Random()  # noqa: S311  # spreads load, guards nothing

    async def deliver(self, claims: Sequence[Claim], raw: bytes | None = None) -> None:
        """Deliver one message to those of its recipients that are claimed; `raw` is the message, where it is at hand."""
        groups: defaultdict[tuple[str, str], list[Claim]] = defaultdict(list)
        for claim in await self._in_time(claims):
            groups[claim.source, claim.domain].append(claim)
        message = _Message(claims[0], raw, self._load, self._signer)
        if len(groups) == 1:
            await self._offer(next(iter(groups.values())), message)
            return
        offers = (self._offer(group, message) for group in groups.values())
        ended = await asyncio.gather(*offers, return_exceptions=True)  # none is left behind by the trouble of another
        for error in filter(None, ended):
            raise error

    async def _in_time(self, claims: Sequence[Claim]) -> Sequence[Claim]:
        """Those that may still be tried; the others have failed."""
        late = [claim for claim in claims if claim.expires_at <= claim.now()]
        if not late:
            return claims
        await asyncio.gather(*map(self._expire, late))
        return [claim for claim in claims if claim not in late]

    async def _offer(self, claims: Sequence[Claim], message: _Message) -> None:
        """One destination: all recipients of a domain, from one address."""
        first = claims[0]
        holding = self._holding(first)
        if holding is None:
            log.warning("address not held, put back", source=first.source, message=first.message_id)
            await self._release(claims, self._settings.poll_interval, None)
            return
        beside = self._holdings.beside(holding, sources.key(first.project_id, first.domain))
        holdings = {one.version: one for one in (holding, beside) if one is not None}
        ours = {name for one in holdings.values() for name in (one.ehlo_name, one.ip)}
        targets = await self._router.resolve(first.domain, tuple(holdings), ours)
        if isinstance(targets, Reply):
            await self._conclude_all(claims, targets)
            return
        destination = self._destinations.get((holding.ip, tuple(sorted({target.host for target in targets}))))
        try:
            # Before a slot is taken, which is for talking only
            rules = await self._rules.of(first.domain, targets, strict=not first.plaintext_fallback)
            with destination.admitted(claims, {target.ip for target in targets}):
                if first.size <= SMALL:
                    await message.load()
                async with destination.slot(first):
                    # The line may have been long.
                    if self._holding(first) is None:
                        raise Busy("its address left this host, or its pool, meanwhile", self._settings.poll_interval)
                    claims = await self._in_time(claims)
                    recording = await self._talk(destination, _Errand(claims, targets, rules, holdings, message))
                await _all(recording)
        except (Busy, Pending) as busy:
            log.info("not now", message=first.message_id, domain=first.domain, reason=busy)
            await self._release(claims, busy.delay * self._jitter.uniform(1.0, 1.2), str(busy))
        except transport.SourceMissing as missing:
            log.error("source address is not on this host, put back", reason=missing, message=first.message_id)
            await self._release(claims, 5 * self._settings.poll_interval, None)

    def _holding(self, claim: Claim) -> Holding | None:
        """The address a claim leaves from, if it is here and of the message's pool; else `periodic` chooses another one."""
        holding = self._holdings.get(claim.source)
        return holding if holding is not None and holding.pool_id == claim.pool_id else None

    async def _talk(self, destination: Destination, errand: _Errand) -> list[Awaitable[None]]:
        """Offer the message, and let the destination's window follow what came of it; what is left is to record the results."""
        if not errand.claims:
            return []
        wire = await errand.message.wire()
        if isinstance(wire, Reply):
            return [self._conclude_all(errand.claims, wire)]
        begun_at = time.monotonic()
        recording, answers = await self._walk(destination, errand, wire)
        decisive = next((answer for answer in answers if retry.decide(answer).throttles), answers[0])
        destination.heed(decisive, begun_at, throttles=retry.decide(decisive).throttles)
        return recording

    async def _walk(
        self, destination: Destination, errand: _Errand, wire: bytes
    ) -> tuple[list[Awaitable[None]], list[Reply]]:
        """Try one server after another for the recipients that another one may do better for (RFC 5321 §5.1).

        What one server has settled is recorded while the next one is tried.
        """
        tries: dict[str, Try] = {}
        recording: list[Awaitable[None]] = []
        waiting = {claim.recipient: claim for claim in errand.claims}
        own = errand.claims[0].source
        # A server that has left us without a last word three times is tried after its fellows (O23), and so is one that did not
        # answer of late.
        avoided = {host for claim in errand.claims for host in claim.avoided}
        missing: transport.SourceMissing | None = None
        for target in sorted(errand.targets, key=lambda one: one.host in avoided or destination.calls.is_mute(one.ip)):
            security, holding = errand.rules[target.host], errand.holdings[6 if ":" in target.ip else 4]
            if isinstance(security, Reply):
                for recipient in waiting:
                    tries[recipient] = Try(
                        security, target, servers=_servers(tries.get(recipient), target, security, 0)
                    )
                continue
            started = time.monotonic()
            place = Place(target, holding.bind_ip, holding.ehlo_name, security)
            envelope = self._envelope(list(waiting.values()), target, errand.message, wire)
            try:
                replies, session = await destination.send(place, envelope)
            except transport.SourceMissing as error:
                missing = error
                continue
            took = round((time.monotonic() - started) * 1000)
            shared = Counter(map(id, replies.values()))
            source = holding.ip if holding.ip != own else None
            for recipient, answer in replies.items():
                secured = session.secured if session else Secured(security.policy)
                servers = _servers(
                    tries.get(recipient), target, answer, took, session.dialogue(recipient) if session else ()
                )
                alone = shared[id(answer)] == 1
                tries[recipient] = Try(answer, target, secured, took, alone, servers, source)
            settled = [recipient for recipient, answer in replies.items() if not retry.decide(answer).next_host]
            results = [self._conclude(waiting.pop(recipient), tries[recipient]) for recipient in settled]
            if not waiting or self._holdings.get(own) is None:
                recording += results
                break
            recording += map(asyncio.create_task, results)
        if missing is not None and not tries:
            raise missing
        recording += [self._conclude(claim, tries[name]) for name, claim in waiting.items()]
        return recording, [tried.answer for tried in tries.values()]

    def _envelope(self, claims: Sequence[Claim], target: Target, message: _Message, wire: bytes) -> Envelope:
        def begin(recipients: Sequence[str]) -> dict[str, asyncio.Future[bool]]:
            return {
                claim.recipient: self._begin(Begun(claim.id, claim.claim_epoch, target.host, target.ip))
                for claim in claims
                if claim.recipient in recipients
            }

        first, recipients = claims[0], [claim.recipient for claim in claims]
        return Envelope(
            first.mail_from,
            recipients,
            wire,
            first.eight_bit,
            message.seven_bit,
            first.smtputf8,
            begin,
            asked=dsn.Asked(first.dsn_ret, first.dsn_envid),
            asked_of={claim.recipient: dsn.AskedOf(claim.dsn_notify, claim.dsn_orcpt) for claim in claims},
        )

    async def _conclude_all(self, claims: Iterable[Claim], answer: Reply) -> None:
        await _all([self._conclude(claim, Try(answer)) for claim in claims])

    async def _conclude(self, claim: Claim, tried: Try) -> None:
        now = claim.now()
        decision = retry.decide(tried.answer)
        status, kind = _KIND[decision.outcome]
        again: datetime | None = None
        if status == "reattempt":
            again = self._again(claim, tried.answer, now)
            if again is None:
                status, kind = "failed", "expired"
        await self._keep(
            claim,
            Result(
                delivery_id=claim.id,
                message_id=claim.message_id,
                claim_epoch=claim.claim_epoch,
                status=status,
                kind=kind,
                text=tried.answer.text,
                next_attempt_at=again,
                code=tried.answer.code,
                enhanced=tried.answer.enhanced,
                source=tried.source or claim.source,
                mx_host=tried.target.host if tried.target else None,
                mx_ip=tried.target.ip if tried.target else None,
                tls=tried.secured.tls if tried.secured else None,
                milliseconds=tried.milliseconds,
                cause=_in_words(decision, status, again),
                is_delayed=again is not None
                and (now - claim.created_at).total_seconds() >= self._settings.delayed_after,
                tls_policy=tried.secured.policy if tried.secured else None,
                tls_verified=tried.secured.verified if tried.secured else None,
                tls_note=tried.secured.note if tried.secured else "",
                servers=msgspec.json.encode(tried.servers).decode(),
            ),
            bounce.blame(tried.answer, claim.recipient, is_alone=tried.is_alone) if status == "failed" else Blame.NONE,
        )

    def _again(self, claim: Claim, answer: Reply, now: datetime) -> datetime | None:
        return backoff.next_attempt(
            claim.attempts + 1,
            now=now,
            expires_at=claim.expires_at,
            first=timedelta(seconds=self._settings.first_retry),
            jitter=self._jitter,
            asked=retry.wait_asked(answer),
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
            cause="The message could not be delivered in the time it had.",
        )
        await self._keep(claim, result, Blame.NONE)

    async def _keep(self, claim: Claim, result: Result, blame: Blame) -> None:
        while True:
            try:
                await self._record((claim, result, blame))
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
            tls_policy=result.tls_policy,
            tls_verified=result.tls_verified,
            reply=f"{result.code or ''} {result.enhanced or ''} {result.text}".strip(),
            ms=result.milliseconds,
        )


async def _all(work: Sequence[Awaitable[T]]) -> list[T]:
    """Wait for all of them; most mails have one recipient, for whom no task is needed."""
    return [await work[0]] if len(work) == 1 else await asyncio.gather(*work)


def _servers(
    before: Try | None, target: Target, answer: Reply, took: int, dialogue: Sequence[Exchange] = ()
) -> tuple[dict[str, Any], ...]:
    """The servers tried before, and this one."""
    this = {"mx_host": target.host, "mx_ip": target.ip, "reply": answer.line, "milliseconds": took, "steps": dialogue}
    return (*(before.servers if before else ()), this)


def _in_words(decision: Decision, status: str, again: datetime | None) -> str:
    """The cause, and what happens next."""
    if status == "failed" and decision.outcome is not Outcome.FAILED:
        return f"{decision.cause} The time to deliver it is over: it is not tried again."
    if status == "failed":
        return f"{decision.cause} It is not tried again."
    if again is not None:
        return f"{decision.cause} It is tried again at {again:%Y-%m-%d %H:%M:%S} UTC."
    return decision.cause
