"""Our DKIM signatures: the keys of the senders' domains, opened once and kept parsed for a minute."""

import asyncio
import time
from dataclasses import dataclass

from remails.db import Database
from remails.mail import dkim
from remails.store import domains
from remails.store.ids import DkimKeyId, DomainId
from remails.vault import Vault

KEEP = 60.0
_ASKING = 1.0  # seconds for which keys hold longer, while one asks for them anew
_LARGE = 256 * 1024


@dataclass(frozen=True, slots=True)
class _Identity:
    key_id: DkimKeyId
    domain: str
    selector: str
    key: dkim.Key


class Signing:
    """Signs messages with the active keys of their domain; RSA and Ed25519 where a domain has both."""

    def __init__(self, db: Database, vault: Vault) -> None:
        self._db, self._vault = db, vault
        self._identities: dict[DomainId, tuple[float, list[_Identity]]] = {}
        """Of each domain that has sent of late, and until when they hold (monotonic); the earliest first."""

    async def sign(self, domain_id: DomainId, raw: bytes) -> bytes | None:
        """The message with a signature field for each key on top; None when its domain has no key, or is gone.

        A large message is signed in a thread, so that it does not hold up the others.
        """
        identities = await self._of(domain_id)
        if not identities:
            return None
        if len(raw) > _LARGE:
            return await asyncio.to_thread(self._signed, identities, raw)
        return self._signed(identities, raw)

    def _signed(self, identities: list[_Identity], raw: bytes) -> bytes:
        now = int(time.time())
        fields = [dkim.sign(raw, domain=i.domain, selector=i.selector, key=i.key, now=now) for i in identities]
        return b"".join([*fields, raw])

    async def _of(self, domain_id: DomainId) -> list[_Identity]:
        until, identities = self._identities.get(domain_id, (0.0, []))
        if until > time.monotonic():
            return identities
        if identities:  # one asks for all who come meanwhile
            self._identities[domain_id] = (time.monotonic() + _ASKING, identities)
        keys = await self._db.call(domains.signing_keys, [domain_id])
        known = {identity.key_id: identity.key for identity in identities}  # a key that has signed does so faster
        identities = [
            _Identity(key.key_id, key.domain, key.selector, known.get(key.key_id) or self._key(key)) for key in keys
        ]
        now = time.monotonic()
        self._identities.pop(domain_id, None)
        self._identities[domain_id] = (now + KEEP, identities)
        self._forget(now - KEEP)
        return identities

    def _key(self, key: domains.SigningKey) -> dkim.Key:
        return dkim.load(self._vault.open(key.sealed, f"dkim:{key.key_id}"))

    def _forget(self, before: float) -> None:
        """Of who has not sent since then nothing is kept: there may be very many domains, and keys that were taken away."""
        while self._identities[first := next(iter(self._identities))][0] < before:
            del self._identities[first]
