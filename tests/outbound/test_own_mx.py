"""MX lists that lead back to the relay: it sends to none that is no better than itself (RFC 5321 §5.1)."""

import asyncio

import pytest
from workbench import Bench

from remails import resolver
from remails.mail.reply import Reply
from remails.outbound.route import Router

OURS = ("out1.relay.example", "203.0.113.5")


@pytest.mark.parametrize(
    ("mx", "left"),
    [
        (["10 relay.example."], None),
        (["10 Relay.Example.", "20 other.example."], None),
        (["10 other.example.", "10 out1.relay.example."], None),
        (["5 best.example.", "10 out1.relay.example.", "10 other.example.", "20 last.example."], ["best.example"]),
        (["5 best.example.", "10 alias.example.", "20 last.example."], ["best.example"]),  # known by its address only
        (["10 alias.example.", "20 last.example."], None),
        (["5 best.example.", "20 last.example."], ["best.example", "last.example"]),
    ],
)
def test_mx_that_are_this_relay_and_all_behind_them_are_not_tried(bench: Bench, mx: list[str], left: list[str]) -> None:
    bench.zone["loop.example", "MX"] = mx
    bench.zone["alias.example", "A"] = ["203.0.113.5"]
    for number, host in enumerate(("best", "other", "last"), start=20):
        bench.zone[f"{host}.example", "A"] = [f"127.0.0.{number}"]

    async def main() -> None:
        async with bench.dns():
            router = Router(resolver.asynchronous(bench.settings().dns), "relay.example", allow_private=True)
            found = await router.resolve("loop.example", (4,), OURS)
            if isinstance(found, Reply):
                assert left is None
                assert (found.code, found.enhanced) == (550, "5.4.6")
            else:
                assert [target.host for target in found] == left

    asyncio.run(main())


def test_mail_to_a_domain_that_names_this_relay_fails_with_words(bench: Bench) -> None:
    bench.zone["loop.example", "MX"] = ["10 relay.example."]

    async def main() -> None:
        async with bench.dns(), bench.work():
            message_id = await bench.submit("a@loop.example")
            row = (await bench.deliveries(message_id, lambda row: row.status == "failed"))["a@loop.example"]
            assert row.attempts == 1
            (entry,) = await bench.timeline(message_id)
            assert (entry.cause or "").startswith("The recipient's domain names this relay as its mail server: a loop.")

    asyncio.run(main())
