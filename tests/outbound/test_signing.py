"""Signatures on what leaves: every active key of the domain signs, and no other."""

import asyncio

from workbench import Bench

from remails.store import domains


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
