"""Many mails at once: what one destination or organization has in hand, and what it leaves to others."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import seed
from workbench import Bench

from remails.bus.client import Subscriber
from remails.bus.events import Event, Gap, Ready
from remails.db import Connection
from remails.dev.mailbox import Mailbox
from remails.dev.smtp import Action, Script
from remails.errors import Unavailable
from remails.store import addresses, queue
from remails.store.queue import Claim
from remails.vault import Pepper


def run(coroutine: object) -> None:
    asyncio.run(coroutine)  # type: ignore[arg-type]


def count(bench: Bench, condition: str) -> Callable[[], int]:
    """How many deliveries are so."""

    def ask() -> int:
        row = bench.db.run(lambda conn: conn.execute(f"SELECT count(*) FROM deliveries WHERE {condition}").fetchone())  # type: ignore[arg-type, call-overload]
        return int(row[0])

    return ask


async def until(condition: Callable[[], object], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(condition):  # on the loop it would wait for connections that the service has
            await asyncio.sleep(0.02)


def test_a_burst_to_one_destination_keeps_its_connections_busy(bench: Bench) -> None:
    """Nothing of it is sent away for longer than a moment while the server takes more: at any time, all is delivered, claimed or due."""

    async def main() -> None:
        bench.options["connections_per_destination"] = 10
        async with bench.dns(), bench.serve(script=Script(delay={"dot": 0.05})) as mx:
            for number in range(200):
                await bench.submit(f"r{number}@example.net")
            sent_away = count(
                bench, "status = 'accepted' AND claimed_by IS NULL AND next_attempt_at > now() + interval '1 s'"
            )
            left = count(bench, "status <> 'delivered'")
            async with bench.work():
                async with asyncio.timeout(60):
                    while await asyncio.to_thread(left):
                        assert await asyncio.to_thread(sent_away) == 0
                        await asyncio.sleep(0.05)
            records = await mx.wait(200)
            assert len({record.peer_port for record in records}) == 10
            row = await bench.db.call(
                lambda conn: conn.execute("SELECT sum(claim_epoch - attempts) FROM deliveries").fetchone()
            )
            assert row[0] < 100  # few were claimed in vain

    run(main())


def test_tarpits_take_no_slot_from_others(bench: Bench) -> None:
    """Case O31: three servers that take their time, each with more to do than the process may have in hand, beside a fast one."""

    async def main() -> None:
        bench.options["concurrency"] = 60
        patience = asyncio.Event()
        async with bench.dns(), AsyncExitStack() as stack:
            tarpits = []
            for number in (22, 23, 24):
                bench.zone[f"slow{number}.example", "MX"] = [f"10 mx.slow{number}.example."]
                bench.zone[f"mx.slow{number}.example", "A"] = [f"127.0.0.{number}"]
                server = bench.serve(f"127.0.0.{number}", script=Script(delay={"banner": patience}))
                tarpits.append(await stack.enter_async_context(server))
            fast = await stack.enter_async_context(bench.serve())
            for number in range(70):
                for tarpit in (22, 23, 24):
                    await bench.submit(f"s{number}@slow{tarpit}.example")
            for number in range(50):
                await bench.submit(f"f{number}@example.net")
            async with bench.work():
                await fast.wait(50)
                assert not any(tarpit.records for tarpit in tarpits)
                await until(lambda: count(bench, "status = 'delivered'")() == 50)
                assert 0 < await asyncio.to_thread(count(bench, "claimed_by IS NOT NULL")) < 60
                patience.set()
                for tarpit in tarpits:
                    records = await tarpit.wait(70)
                    assert len({record.rcpt_tos[0] for record in records}) == 70

    run(main())


def test_a_destination_that_does_not_answer_has_one_call_in_hand(bench: Bench) -> None:
    """However many mails there are for it; and it gets all of them when it answers."""

    async def main() -> None:
        patience = asyncio.Event()
        async with bench.dns(), bench.serve(script=Script(delay={"banner": patience})):
            for number in range(40):
                await bench.submit(f"r{number}@example.net")
            in_hand = count(bench, "claimed_by IS NOT NULL")
            async with bench.work():
                await until(lambda: count(bench, "cause = 'the destination does not answer'")() > 0)
                await until(lambda: in_hand() == 1)
                patience.set()
                await until(lambda: count(bench, "status = 'delivered'")() == 40)

    run(main())


def test_silent_destinations_leave_room_to_others(bench: Bench) -> None:
    """Many of them, which together could have all that the process may have in hand; and what waits for them is left alone."""

    async def main() -> None:
        bench.options["concurrency"] = 40
        patience = asyncio.Event()
        async with (
            bench.dns(),
            bench.serve() as mx,
            bench.serve("127.0.0.22", Script(delay={"banner": patience})),
            bench.work(),
        ):
            await bench.submit("first@example.net")
            await mx.wait(1)
            for number in range(60):
                bench.zone[f"silent{number}.example", "MX"] = [f"10 mx{number}.silent.example."]
                bench.zone[f"mx{number}.silent.example", "A"] = ["127.0.0.22"]
                await bench.submit(f"r@silent{number}.example")
            await until(lambda: count(bench, "claimed_by IS NOT NULL")() > 20)
            await bench.submit("second@example.net")
            await mx.wait(2)
            assert await asyncio.to_thread(count(bench, "status = 'delivered'")) <= 2
            claims = await bench.db.call(_claims)
            for number in range(3, 13):
                await bench.submit(f"r{number}@example.net")
                await mx.wait(number)
            assert await bench.db.call(_claims) - claims < 30
            patience.set()
            await until(lambda: count(bench, "status = 'delivered'")() == 72)

    run(main())


def _claims(conn: Connection) -> int:
    (claims,) = conn.execute("SELECT sum(claim_epoch) FROM deliveries").fetchone() or (0,)
    return int(claims)


def test_who_hangs_keeps_no_other_from_calling(bench: Bench) -> None:
    """A connection hangs, the next one is closed without a word: the third has its turn all the same."""

    async def main() -> None:
        bench.options["drain_timeout"] = 0.1
        banners, answers = iter([None, Action.CLOSE]), iter([Action.HANG])
        script = Script(banner=lambda _: next(banners, None), data=lambda _: next(answers, None))
        async with bench.dns(), bench.serve(script=script) as mx, bench.work():
            await bench.submit("hanging@example.net")
            await until(lambda: count(bench, "begun_at IS NOT NULL")() == 1)
            await bench.deliveries(await bench.submit("closed@example.net"))
            await bench.submit("third@example.net")
            await mx.wait(1)
            assert [record.rcpt_tos for record in mx.records] == [["third@example.net"]]

    run(main())


async def _keep_one_and_lose_one(bench: Bench, mx: Mailbox, delay: dict[str, float | asyncio.Event]) -> None:
    """The connection of the first mail is kept, and after that the one of the next mail is lost."""
    first, lost = asyncio.Event(), asyncio.Event()
    for number, (name, answer) in enumerate((("first", first), ("lost", lost)), 1):
        delay["dot"] = answer
        await bench.submit(f"{name}@example.net")
        await mx.wait(number)
    first.set()
    await until(lambda: count(bench, "status = 'delivered'")() == 1)
    lost.set()
    await until(lambda: count(bench, "attempts > 0")() == 2)
    del delay["dot"]


def test_a_kept_connection_is_no_call(bench: Bench) -> None:
    """One is kept, another one was lost since; the next mail goes over the first, and the server thinks about it for long."""

    async def main() -> None:
        bench.options |= {"drain_timeout": 0.1, "keep_connection": 30.0}
        does = {"lost@example.net": Action.CLOSE, "thinks@example.net": Action.HANG}
        delay: dict[str, float | asyncio.Event] = {}
        async with bench.dns(), bench.serve(script=Script(dot=does.get, delay=delay)) as mx:
            async with bench.work():
                await _keep_one_and_lose_one(bench, mx, delay)
                await bench.submit("thinks@example.net")
                await mx.wait(3)
                await bench.deliveries(await bench.submit("last@example.net"))
            ports = {record.rcpt_tos[0].partition("@")[0]: record.peer_port for record in mx.records}
            assert ports["thinks"] == ports["first"] not in (ports["lost"], ports["last"])

    run(main())


def test_who_ends_does_not_end_the_call_of_another(bench: Bench) -> None:
    """As before, and the kept one is lost as well, while the next mail calls in vain: there is no second call beside that."""

    async def main() -> None:
        bench.options |= {"drain_timeout": 0.1, "keep_connection": 30.0}
        does = {"lost@example.net": Action.CLOSE, "thinks@example.net": Action.CLOSE}
        calls: list[str] = []
        called, patience = asyncio.Event(), asyncio.Event()
        delay: dict[str, float | asyncio.Event] = {}

        def banner(peer: str) -> Action | None:
            calls.append(peer)
            if len(calls) < 3:
                return None
            called.set()
            return Action.HANG

        async with bench.dns(), bench.serve(script=Script(banner=banner, dot=does.get, delay=delay)) as mx:
            async with bench.work():
                await _keep_one_and_lose_one(bench, mx, delay)
                delay["dot"] = patience
                await bench.submit("thinks@example.net")
                await mx.wait(3)
                await bench.submit("calling@example.net")
                async with asyncio.timeout(10):
                    await called.wait()
                await bench.submit("waiting@example.net")
                await until(lambda: count(bench, "claimed_by IS NOT NULL")() == 3)
                patience.set()
                await until(lambda: count(bench, "cause = 'the destination does not answer'")() == 1)
            assert len(calls) == 3

    run(main())


def _have_two_servers(bench: Bench) -> None:
    bench.zone["example.net", "MX"] = ["10 first.example.net.", "20 mx.example.net."]
    bench.zone["first.example.net", "A"] = ["127.0.0.22"]


def test_a_silent_server_keeps_one_call_from_its_fellow(bench: Bench) -> None:
    """Whoever comes after that goes to the one that answers."""

    async def main() -> None:
        bench.options["drain_timeout"] = 0.1
        async with bench.dns(), bench.serve() as mx, bench.serve("127.0.0.22", Script(banner=Action.HANG)):
            _have_two_servers(bench)
            for number in range(20):
                await bench.submit(f"r{number}@example.net")
            async with bench.work():
                await mx.wait(19)

    run(main())


def test_a_server_that_is_not_secure_enough_for_one_is_no_silent_one_for_others(bench: Bench) -> None:
    """It is still the first that is asked."""

    async def main() -> None:
        insecure, banners = Script(without=frozenset({"STARTTLS"})), iter(["450 4.3.2 Later"])
        second = Script(banner=lambda _: next(banners, None))
        async with (
            bench.dns(),
            bench.serve("127.0.0.22", insecure) as first,
            bench.serve(script=second),
            bench.work(),
        ):
            _have_two_servers(bench)
            await bench.db.call(lambda conn: conn.execute("UPDATE projects SET plaintext_fallback = false"))
            await bench.deliveries(await bench.submit("strict@example.net"))
            await bench.db.call(lambda conn: conn.execute("UPDATE projects SET plaintext_fallback = true"))
            await bench.deliveries(await bench.submit("any@example.net"))
            assert [record.rcpt_tos for record in first.records] == [["any@example.net"]]

    run(main())


def test_connections_are_kept_beside_a_server_that_refuses(bench: Bench) -> None:
    """It is not asked again for each mail, nor does its fellow's connection make room for that."""

    async def main() -> None:
        bench.options["connections_per_destination"] = 5
        async with bench.dns(), bench.serve() as mx:
            _have_two_servers(bench)
            for number in range(50):
                await bench.submit(f"r{number}@example.net")
            async with bench.work():
                records = await mx.wait(50)
            assert len({record.peer_port for record in records}) <= 10

    run(main())


def test_what_is_claimed_again_while_in_hand_counts_once(bench: Bench) -> None:
    """A claim that ended while the work went on, as it does where the database was away for long, leaves nothing behind."""

    async def main() -> None:
        bench.options["concurrency"] = 10
        patience = asyncio.Event()
        async with bench.dns(), bench.serve(script=Script(delay={"dot": patience})) as mx, bench.work():
            for number in range(25):  # leaks of two each would be more than four times the room there is
                patience.clear()
                await bench.submit(f"r{number}@example.net")
                for epoch in (1, 3, 5):
                    if epoch > 1:
                        await bench.db.call(queue.free_dead_claims, -1)
                    await until(count(bench, f"claim_epoch = {epoch} AND begun_at IS NOT NULL"))
                patience.set()
                await mx.wait(3 * (number + 1))

    run(main())


class Notes(Subscriber):
    """Notes of ours, without a bus."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Event | Gap] = asyncio.Queue()

    def subscribe(self, topic: str) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[Event | Gap]:
        while True:
            yield await self.queue.get()


def test_fresh_mail_goes_ahead_of_a_storm_to_the_same_destination(bench: Bench) -> None:
    """Also when there is no room for it at first: it is not sent to the end of all that is due."""

    async def main() -> None:
        bench.options.update(connections_per_destination=2)
        notes = Notes()
        async with bench.dns(), bench.serve(script=Script(delay={"dot": 0.05})) as mx:
            for number in range(300):
                await bench.submit(f"r{number}@example.net")
            in_hand = count(bench, "claimed_by IS NOT NULL")
            async with bench.work(notes):
                await until(lambda: in_hand() > 0 and len(mx.records) > 0)
                fresh = [await bench.submit(f"fresh{number}@example.net") for number in range(3)]
                before = len(mx.records)
                notes.queue.put_nowait(Ready(bench.tenant.sources[0], fresh))
                for message_id in fresh:
                    await bench.deliveries(message_id)
                assert len(mx.records) - before < 150

    run(main())


@pytest.mark.parametrize("is_out", [False, True])
def test_a_burst_of_fresh_mail_goes_ahead_of_a_storm(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, is_out: bool
) -> None:
    """More of it than is claimed at once, also when the database was out at first; where both wait for a connection, they take turns."""
    claim = queue.claim_messages

    def after_an_outage(*args: Any, **options: Any) -> list[Claim]:
        monkeypatch.setattr(queue, "claim_messages", claim)
        raise Unavailable("as if there were no database")

    if is_out:
        monkeypatch.setattr(queue, "claim_messages", after_an_outage)

    async def main() -> None:
        bench.options.update(connections_per_destination=2, batch=5)
        notes = Notes()
        async with bench.dns(), bench.serve(script=Script(delay={"dot": 0.05})) as mx:
            for number in range(100):
                await bench.submit(f"r{number}@example.net")
            bench.db.run(lambda conn: conn.execute("UPDATE deliveries SET status = 'reattempt', attempts = 1"))
            fresh = [await bench.submit(f"fresh{number}@example.net") for number in range(15)]
            notes.queue.put_nowait(Ready(bench.tenant.sources[0], fresh))
            async with bench.work(notes):
                for message_id in fresh:
                    await bench.deliveries(message_id)
                assert len(mx.records) < 50
                assert queue.claim_messages is claim

    run(main())


def test_more_notes_than_are_claimed_at_once_do_not_wait_for_the_poll(bench: Bench) -> None:
    """Nor do the recipients of one message."""

    async def main() -> None:
        bench.options.update(poll_interval=30, batch=5)
        notes = Notes()
        async with bench.dns(), bench.serve() as mx, bench.work(notes):
            await bench.submit("first@example.net")
            await mx.wait(1)
            several = [await bench.submit(f"r{number}@example.net") for number in range(15)]
            notes.queue.put_nowait(Ready(bench.tenant.sources[0], several))
            await until(lambda: count(bench, "status = 'delivered'")() == 16, 15)
            one = await bench.submit(*(f"r{number}@example.net" for number in range(15)))
            notes.queue.put_nowait(Ready(bench.tenant.sources[0], [one]))
            await until(lambda: count(bench, "status = 'delivered'")() == 31, 10)

    run(main())


def test_an_organization_leaves_room_to_others_at_a_slow_destination(bench: Bench, pepper: Pepper) -> None:
    """A hundred mails of one organization wait there; one of another that comes last is not the last to be delivered."""

    async def main() -> None:
        other = seed.tenant(bench.db, bench.vault, pepper, name="other")
        bench.options |= {"connections_per_destination": 1, "messages_per_connection": 1}
        async with bench.dns(), bench.serve(script=Script(delay={"dot": 0.05})) as mx:
            for number in range(60):
                await bench.submit(f"r{number}@example.net")
            bench.tenant = other
            await bench.submit("late@example.net")
            async with bench.work():
                async with asyncio.timeout(30):
                    while not any(record.rcpt_tos == ["late@example.net"] for record in mx.records):
                        await asyncio.sleep(0.02)
                assert len(mx.records) < 40
                await mx.wait(61)

    run(main())


def test_an_organization_leaves_room_to_others_in_the_process(bench: Bench, pepper: Pepper) -> None:
    """It writes to more slow domains than the process may have deliveries in hand."""

    async def main() -> None:
        other = seed.tenant(bench.db, bench.vault, pepper, name="other")
        bench.options["concurrency"] = 20
        patience = asyncio.Event()
        async with (
            bench.dns(),
            bench.serve() as mx,
            bench.serve("127.0.0.22", Script(delay={"banner": patience})) as slow,
        ):
            for number in range(40):
                bench.zone[f"d{number}.example", "MX"] = [f"10 mx{number}.slow.example."]
                bench.zone[f"mx{number}.slow.example", "A"] = ["127.0.0.22"]
                await bench.submit(f"r@d{number}.example")
            async with bench.work():
                await until(lambda: count(bench, "claimed_by IS NOT NULL")() >= 10)
                bench.tenant = other
                await bench.submit("late@example.net")
                await mx.wait(1)
                assert slow.records == []
                patience.set()
                await slow.wait(40)

    run(main())


def test_an_address_that_changes_its_pool_takes_nothing_that_waits_in_line(bench: Bench) -> None:
    """A message never leaves from another pool's address, also if it was claimed before."""

    async def main() -> None:
        bench.options |= {"connections_per_destination": 1}
        asked, going_on = asyncio.Event(), asyncio.Event()
        async with bench.dns(), bench.serve(script=Script(data=lambda _: asked.set(), delay={"dot": going_on})) as mx:
            first, second = await bench.submit("a@example.net"), await bench.submit("b@example.net")
            async with bench.work() as service:
                async with asyncio.timeout(10):
                    await asked.wait()
                await until(lambda: count(bench, "claimed_by IS NOT NULL")() == 2)
                source = bench.tenant.sources[0]
                await bench.db.call(_give_to_another_pool, source)
                await until(lambda: (held := service._holdings.get(source)) and held.pool_id != bench.tenant.pool_id)
                going_on.set()
                await until(lambda: count(bench, "claimed_by IS NOT NULL")() == 0)
                rows = [(await bench.deliveries(message_id, lambda _: True)) for message_id in (first, second)]
            assert sorted((row.status, row.attempts) for each in rows for row in each.values()) == [
                ("accepted", 0),
                ("delivered", 1),
            ]
            assert len(await mx.wait(1)) == 1

    run(main())


def _give_to_another_pool(conn: Connection, ip: str) -> None:
    other = addresses.create_pool(conn, "other")
    conn.execute("UPDATE addresses SET pool_id = %s WHERE ip = %s", [other.id, ip])
