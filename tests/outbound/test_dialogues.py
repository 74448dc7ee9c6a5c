"""Dialogues with servers that are odd: what they say counts once, for whom it was said, and connections are used again."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo

import pytest
from workbench import Bench

from remails.dev.smtp import Action, Reply, Script
from remails.errors import Unavailable
from remails.mail.sts import Policy
from remails.outbound import delivery
from remails.outbound.sts import Policies

PLAIN = frozenset({"PIPELINING"})


def run(coroutine: object) -> None:
    asyncio.run(coroutine)  # type: ignore[arg-type]


def times(count: int, reply: Reply) -> Callable[[str], Reply]:
    """A reply for the first so many times; then the server's own."""
    left = [count]

    def answer(_: str) -> Reply:
        left[0] -= 1
        return reply if left[0] >= 0 else None

    return answer


@pytest.mark.parametrize("without", [frozenset(), PLAIN])
@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        (b"550-5.7.1 a\r\n250 b\r\n", "reattempt", None),  # different codes: never a success, nor a refusal
        (b"250-a\r\n550 b\r\n", "reattempt", None),
        (b"550\r\n", "failed", 550),
        (b"550-5.1.1 one\n550 5.1.1 two\n", "failed", 550),
        (b"550 5.1.1 Empf\xe4nger\r\n", "failed", 550),
        (b"550-" + b"\r\n550-".join([b"x" * 30] * 99) + b"\r\n550 end\r\n", "failed", 550),
        (b"hello\r\n", "reattempt", None),
        (b"2500 x\r\n", "reattempt", None),
        (b"250", "reattempt", None),
    ],
)
def test_replies_of_every_kind(
    bench: Bench, reply: bytes, status: str, code: int | None, without: frozenset[str]
) -> None:
    """Case O25."""

    async def main() -> None:
        bench.options["command_timeout"] = 1.0
        script = Script(rcpt=reply, without=without)
        async with bench.dns(), bench.serve(script=script) as mx, bench.work():
            message_id = await bench.submit("a@example.net")
            row = (await bench.deliveries(message_id))["a@example.net"]
            assert (row.status, row.last_code, mx.records) == (status, code, [])
            assert row.last_reply is not None
            assert len(row.last_reply) <= 1000

    run(main())


@pytest.mark.parametrize("reply", ["250 Accepted", "252 x", "200 OK", "251 will forward"])
def test_any_2yz_at_the_dot_is_a_success(bench: Bench, reply: str) -> None:
    """Case O34."""

    async def main() -> None:
        async with bench.dns(), bench.serve(script=Script(dot=reply)), bench.work():
            message_id = await bench.submit("a@example.net")
            row = (await bench.deliveries(message_id))["a@example.net"]
            assert (row.status, row.last_code) == ("delivered", int(reply[:3]))

    run(main())


@pytest.mark.parametrize("without", [frozenset(), PLAIN])
def test_too_many_recipients_for_one_transaction_follow_at_once(bench: Bench, without: frozenset[str]) -> None:
    """Case O15: on the same connection, without waiting, each once."""

    async def main() -> None:
        asked: list[str] = []

        def two_at_a_time(address: str) -> Reply:
            asked.append(address)
            return "250 2.1.5 Ok" if len(asked) <= 2 else "452 4.5.3 too many recipients"

        script = Script(mail=lambda _: asked.clear(), rcpt=two_at_a_time, without=without)
        async with bench.dns(), bench.serve(script=script) as mx, bench.work():
            recipients = [f"r{number}@example.net" for number in range(5)]
            message_id = await bench.submit(*recipients)
            rows = await bench.deliveries(message_id, lambda row: row.status == "delivered")
            assert {row.attempts for row in rows.values()} == {1}
            records = await mx.wait(3)
            assert Counter(one for record in records for one in record.rcpt_tos) == Counter(recipients)
            assert len({record.peer_port for record in records}) == 1

    run(main())


def test_recipients_go_in_transactions_of_a_hundred(bench: Bench) -> None:
    """RFC 5321 §4.5.3.1.8."""

    async def main() -> None:
        bench.options |= {"batch": 300, "concurrency": 3000}
        recipients = [f"r{number}@example.net" for number in range(250)]
        async with bench.dns(), bench.serve() as mx:
            await bench.submit(*recipients)
            async with bench.work():
                records = await mx.wait(3)
        assert sorted(len(record.rcpt_tos) for record in records) == [50, 100, 100]
        assert len({record.peer_port for record in records}) == 1

    run(main())


@pytest.mark.parametrize("without", [frozenset(), PLAIN, frozenset({"ESMTP"})])
def test_each_command_has_its_own_result(bench: Bench, without: frozenset[str]) -> None:
    """Case O13, with and without pipelining; who was accepted gets one copy."""

    async def main() -> None:
        async with bench.dns(), bench.serve(script=Script(without=without)) as mx, bench.work():
            message_id = await bench.submit("bounce@example.net", "good@example.net", "defer@example.net")
            rows = await bench.deliveries(message_id)
            assert {name.partition("@")[0]: (row.status, row.last_code) for name, row in rows.items()} == {
                "good": ("delivered", 250),
                "bounce": ("failed", 550),
                "defer": ("reattempt", 451),
            }
            assert [record.rcpt_tos for record in await mx.wait(1)] == [["good@example.net"]]
            again = await bench.submit("bounce+2@example.net", "defer@example.net")  # nobody is accepted
            assert {row.last_code for row in (await bench.deliveries(again)).values()} == {550, 451}
            assert len(await mx.wait(1)) == 1

    run(main())


@pytest.mark.parametrize("without", [frozenset(), PLAIN])
def test_messages_share_a_connection(bench: Bench, without: frozenset[str]) -> None:
    async def main() -> None:
        bench.options |= {"connections_per_destination": 1, "messages_per_connection": 4}
        async with bench.dns(), bench.serve(script=Script(without=without)) as mx:
            for number in range(10):
                await bench.submit(f"r{number}@example.net")
            async with bench.work():
                records = await mx.wait(10)
        assert sorted(Counter(record.peer_port for record in records).values()) == [2, 4, 4]
        assert all(record.tls for record in records)
        assert all(len(record.rcpt_tos) == 1 for record in records)
        assert all([signature.ok for signature in record.dkim] == [True] for record in records)

    run(main())


@pytest.mark.parametrize("without", [frozenset(), PLAIN])
def test_a_kept_connection_that_died_neither_loses_nor_doubles(bench: Bench, without: frozenset[str]) -> None:
    """The server hangs up as soon as it has said 250; the next message goes over a new connection, as one attempt."""

    async def main() -> None:
        bench.options |= {"connections_per_destination": 1, "keep_connection": 30.0}
        async with bench.dns(), bench.serve(script=Script(without=without)) as mx, bench.work():
            for number in range(5):
                message_id = await bench.submit(f"r{number}@example.net")
                rows = await bench.deliveries(message_id)
                assert [(row.status, row.attempts) for row in rows.values()] == [("delivered", 1)]
                for connection in list(mx._connections):  # the cable is cut
                    connection.abort()
            records = await mx.wait(5)
            assert Counter(one for record in records for one in record.rcpt_tos) == Counter(
                f"r{number}@example.net" for number in range(5)
            )
            assert len({record.peer_port for record in records}) == 5

    run(main())


def test_a_kept_connection_is_closed_when_there_is_no_work(bench: Bench) -> None:
    async def main() -> None:
        bench.options["keep_connection"] = 0.2
        async with bench.dns(), bench.serve() as mx, bench.work():
            await bench.deliveries(await bench.submit("a@example.net"))
            async with asyncio.timeout(5):
                while mx._connections:
                    await asyncio.sleep(0.02)

    run(main())


def test_a_server_that_wants_fewer_connections_gets_fewer(bench: Bench) -> None:
    """Case O30: 421 for the second connection; others are not held up, and everything arrives in the end."""

    async def main() -> None:
        bench.options["first_retry"] = 0.3
        async with bench.dns():
            bench.zone["strict.example", "MX"] = ["10 mx.strict.example."]
            bench.zone["mx.strict.example", "A"] = ["127.0.0.22"]
            strict: list[Reply] = []
            most = [0]

            async with bench.serve() as fast, bench.serve("127.0.0.22") as mx:

                def banner(_: str) -> Reply:
                    others = len(mx._connections) - 1
                    most[0] = max(most[0], others)
                    strict.append("421 4.7.0 too many connections" if others > 1 else None)
                    return strict[-1]

                mx.script = Script(banner=banner)
                for number in range(20):
                    await bench.submit(f"s{number}@strict.example")
                    await bench.submit(f"f{number}@example.net")
                async with bench.work():
                    await fast.wait(20, timeout=10)
                    await mx.wait(20, timeout=50)
            assert any(strict)
            assert len([one for one in strict if one]) < 15

    run(main())


def test_after_three_ambiguous_ends_another_mx_is_tried_first(bench: Bench) -> None:
    """Case O23: with the same bytes each time."""

    async def main() -> None:
        bench.options["first_retry"] = 0.05
        async with bench.dns():
            bench.zone["example.net", "MX"] = ["10 mx.example.net.", "20 backup.example.net."]
            bench.zone["backup.example.net", "A"] = ["127.0.0.22"]
            async with bench.serve(script=Script(dot=Action.CLOSE)) as mx, bench.serve("127.0.0.22"), bench.work():
                message_id = await bench.submit("a@example.net")
                rows = await bench.deliveries(message_id, lambda row: row.status == "delivered")
                assert rows["a@example.net"].mx_host == "backup.example.net"
                kinds = [entry.kind for entry in await bench.timeline(message_id)]
                assert kinds == ["ambiguous", "ambiguous", "ambiguous", "delivered"]
                records = await mx.wait(3)
                bodies = {mx.raw(record.id).partition(b"Received:")[2] for record in records}
                assert len(bodies) == 1
                assert len({record.message_id for record in records}) == 1

    run(main())


def test_who_waits_long_is_noted_as_delayed_once(bench: Bench) -> None:
    async def main() -> None:
        bench.options |= {"first_retry": 0.05, "delayed_after": 0.15}
        async with bench.dns(), bench.serve(), bench.work():
            message_id = await bench.submit("defer@example.net")
            await bench.deliveries(message_id, lambda row: row.attempts >= 4)
            timeline = await bench.timeline(message_id)
            assert [entry.kind for entry in timeline].count("delayed") == 1
            (delayed,) = [entry for entry in timeline if entry.kind == "delayed"]
            assert delayed.cause.startswith("The recipient's server has a temporary problem. It is tried again at 20")

    run(main())


def test_the_end_is_explained_in_words(bench: Bench) -> None:
    async def main() -> None:
        async with bench.dns(), bench.serve(), bench.work():
            message_id = await bench.submit("bounce@example.net")
            await bench.deliveries(message_id)
            entry, *_ = await bench.timeline(message_id)
            assert entry.cause == "The address does not exist. It is not tried again."

    run(main())


def test_a_remote_servers_wish_is_honoured(bench: Bench) -> None:
    """Case O16: "try again in 300 seconds"."""

    async def main() -> None:
        script = Script(rcpt="451 4.7.1 Greylisted, try again in 300 seconds")
        async with bench.dns(), bench.serve(script=script), bench.work():
            message_id = await bench.submit("a@example.net")
            row = (await bench.deliveries(message_id))["a@example.net"]
            (entry,) = await bench.timeline(message_id)
            assert row.next_attempt_at is not None
            assert timedelta(seconds=299) < row.next_attempt_at - entry.at < timedelta(seconds=335)

    run(main())


def test_what_was_not_begun_is_given_back_when_told_to_stop(bench: Bench) -> None:
    async def main() -> None:
        bench.options |= {"connections_per_destination": 1}
        async with bench.dns(), bench.serve(script=Script(delay={"dot": 1.0})) as mx:
            ids = [await bench.submit(f"r{number}@example.net") for number in range(4)]
            async with bench.work():
                async with asyncio.timeout(10):
                    while not mx._connections:
                        await asyncio.sleep(0.02)
                await asyncio.sleep(0.3)  # into the dialogue
            rows = [row for one in ids for row in (await bench.deliveries(one, lambda _: True)).values()]
            assert Counter(row.status for row in rows) == {"delivered": 1, "accepted": 3}
            assert not any(row.is_claimed for row in rows)
            assert len(await mx.wait(1)) == 1

    run(main())


def test_a_size_in_other_digits_is_no_limit(bench: Bench) -> None:
    """As far as Python is concerned "\u00b2" is a digit, and no number."""

    async def main() -> None:
        script = Script(ehlo="250-mx.example.net\r\n250 SIZE \u00b2\r\n".encode())
        async with bench.dns(), bench.serve(script=script), bench.work():
            message_id = await bench.submit("a@example.net")
            row = (await bench.deliveries(message_id))["a@example.net"]
            assert (row.status, row.attempts) == ("delivered", 1)

    run(main())


def test_the_trouble_of_one_domain_leaves_no_other_one_behind(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is under way stays in hand, so that its lease is renewed and a stop waits for it."""

    async def main() -> None:
        of = Policies.of

        async def unavailable(self: Policies, domain: str) -> Policy | None:
            if domain == "example.org":
                failed.set()
                raise Unavailable("the database is away")
            return await of(self, domain)

        monkeypatch.setattr(Policies, "of", unavailable)
        asked, failed, going_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
        script = Script(data=lambda _: asked.set(), delay={"dot": going_on})
        bench.zone["example.org", "MX"] = ["10 mx.example.net."]
        async with bench.dns(), bench.serve(script=script) as mx:
            message_id = await bench.submit("a@example.net", "b@example.org")
            async with bench.work() as service:
                async with asyncio.timeout(10):
                    await asyncio.gather(asked.wait(), failed.wait())
                await bench.deliveries(message_id, lambda _: True)  # a round trip, so that what failed is settled
                assert len(service._room.held) == 2
                going_on.set()
                rows = await bench.deliveries(message_id, lambda row: row.attempts > 0 or "org" in row.recipient)
                assert rows["a@example.net"].status == "delivered"
            assert len(await mx.wait(1)) == 1

    run(main())


@pytest.mark.parametrize("hours", [-3, 3])
def test_mail_comes_due_by_the_databases_clock(bench: Bench, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """Case X09: a host whose clock goes wrong neither tries all the time nor gives up what has time."""

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Wrong":  # type: ignore[override]
            return cls.fromtimestamp(time.time() + 3600 * hours, tz)

    async def main() -> None:
        script = Script(rcpt="451 4.3.0 later")
        async with bench.dns(), bench.serve(script=script):
            message_id = await bench.submit("a@example.net", expires_in=3600)
            monkeypatch.setattr(delivery, "datetime", Wrong)
            async with bench.work():
                row = (await bench.deliveries(message_id, lambda row: row.attempts > 0 or row.status == "failed"))[
                    "a@example.net"
                ]
            (entry,) = await bench.timeline(message_id)
            assert (row.status, row.attempts) == ("reattempt", 1)
            assert row.next_attempt_at is not None
            assert timedelta(seconds=50) < row.next_attempt_at - entry.at < timedelta(seconds=70)

    run(main())
