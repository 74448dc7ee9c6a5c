"""Signatures on what leaves: every active key of the domain signs, and no other."""

import asyncio
import gc
from typing import Any

import pytest
from workbench import Bench

from remails.mail import dkim
from remails.outbound import signing
from remails.store import domains

MAIL = b"From: a@s.example\r\n\r\n"


def test_a_domain_with_two_keys_signs_with_both(bench: Bench) -> None:
    """RFC 8463 §3: Ed25519 beside RSA; a key that waits for its record signs nothing yet."""

    async def main() -> None:
        (domain,) = await bench.db.call(domains.list_, bench.tenant.organization_id)
        await bench.db.call(domains.add_key, bench.vault, domain.id, "small", "ed25519")
        await bench.db.call(
            lambda conn: domains.add_key(conn, bench.vault, domain.id, "later", "ed25519", is_active=False)
        )
        async with bench.dns(), bench.serve() as mx, bench.work():
            await bench.submit("a@example.net")
            (record,) = await mx.wait(1)
            assert [(one.selector, one.algorithm, one.ok) for one in record.dkim] == [
                ("remails", "rsa-sha256", True),
                ("small", "ed25519-sha256", True),
            ]

    asyncio.run(main())


def test_keys_of_domains_that_no_longer_send_are_forgotten(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(signing, "KEEP", 0.0)
        signer = signing.Signing(bench.db, bench.vault)
        before = _keys()
        for number in range(5):
            made = await bench.db.call(
                domains.create,
                bench.vault,
                bench.tenant.organization_id,
                f"s{number}.example",
                selector="remails",
                project_ids=[],
            )
            assert await signer.sign(made.id, MAIL)
        assert _keys() - before == 1

    asyncio.run(main())


def test_the_keys_of_a_domain_are_asked_for_once_however_many_mails_leave(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        (domain,) = await bench.db.call(domains.list_, bench.tenant.organization_id)
        signer, asked, ask = signing.Signing(bench.db, bench.vault), [], bench.db.call

        async def call(*arguments: Any) -> Any:
            asked.append(arguments)
            return await ask(*arguments)

        monkeypatch.setattr(signing, "KEEP", 0.0)  # they hold no longer at once
        await signer.sign(domain.id, MAIL)
        monkeypatch.setattr(bench.db, "call", call)
        assert all(await asyncio.gather(*(signer.sign(domain.id, MAIL) for _ in range(20))))
        assert len(asked) == 1

    asyncio.run(main())


def _keys() -> int:
    return sum(isinstance(one, dkim.Key) for one in gc.get_objects())
