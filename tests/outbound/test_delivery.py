"""Delivery to real mail servers: what arrives, from where, and what is remembered of it."""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from email import message_from_bytes
from typing import Any

import pytest
import seed
from workbench import Bench

from remails.db import Connection, Database
from remails.dev.dns import Code
from remails.dev.smtp import Action, Script
from remails.errors import Unavailable
from remails.store import addresses, messages, projects, suppressions
from remails.store.ids import MessageId
from remails.vault import Pepper


def run(coroutine: object) -> None:
    asyncio.run(coroutine)  # type: ignore[arg-type]


def test_a_mail_arrives_signed_from_the_chosen_address_and_is_recorded(bench: Bench) -> None:
    async def main() -> None:
        async with bench.dns(), bench.serve() as mx, bench.work():
            raw = b"From: sender@acme.example\r\nTo: a@example.net\r\nSubject: Code\r\n\r\n.dot\r\n..\r\n\r\nend\r\n"
            message_id = await bench.submit("a@example.net", raw=raw)
            (record,) = await mx.wait(1)
            assert record.peer_ip == "127.0.0.11"
            assert record.helo == "out-127-0-0-11.relay.example"
            assert record.tls is not None
            assert record.tls.version == "TLSv1.3"
            assert (record.mail_from, record.rcpt_tos) == ("sender@acme.example", ["a@example.net"])
            assert [(s.domain, s.selector, s.ok) for s in record.dkim] == [("acme.example", "remails", True)]
            received = mx.raw(record.id)
            ours, _, theirs = received.partition(b"From: ")
            assert b"From: " + theirs == raw  # not a byte of it is changed
            assert ours.startswith(b"DKIM-Signature:")
            assert b"\r\nReceived: " in ours

            row = (await bench.deliveries(message_id))["a@example.net"]
            assert (row.status, row.attempts, row.source) == ("delivered", 1, "127.0.0.11")
            assert (row.last_code, row.last_enhanced, row.mx_host, row.mx_ip) == (
                250,
                "2.0.0",
                "mx.example.net",
                "127.0.0.21",
            )
            assert row.last_reply is not None
            assert record.id in row.last_reply
            assert row.tls is not None
            assert row.tls.startswith("TLSv1.3 ")
            (entry,) = await bench.timeline(message_id)
            assert (entry.kind, entry.code, entry.source) == ("delivered", 250, "127.0.0.11")
            message = await bench.db.call(messages.get, bench.tenant.organization_id, message_id)
            assert message is not None
            assert message.status == "delivered"

    run(main())


def test_recipients_of_one_domain_share_a_transaction(bench: Bench) -> None:
    async def main() -> None:
        async with bench.dns(), bench.serve() as mx, bench.work():
            bench.zone["example.org", "MX"] = ["10 mx.example.net."]
            await bench.submit("a@example.net", "b@example.net", "c@example.org")
            records = await mx.wait(2)
            assert sorted(record.rcpt_tos for record in records) == [
                ["a@example.net", "b@example.net"],
                ["c@example.org"],
            ]

    run(main())


def test_each_recipient_has_its_own_result(bench: Bench) -> None:
    """Case O13: one accepted, one refused, one deferred."""

    async def main() -> None:
        async with bench.dns(), bench.serve() as mx, bench.work():
            message_id = await bench.submit("good@example.net", "bounce@example.net", "defer@example.net")
            rows = await bench.deliveries(message_id)
            assert {recipient: row.status for recipient, row in rows.items()} == {
                "good@example.net": "delivered",
                "bounce@example.net": "failed",
                "defer@example.net": "reattempt",
            }
            assert (rows["bounce@example.net"].last_code, rows["bounce@example.net"].last_enhanced) == (550, "5.1.1")
            assert rows["bounce@example.net"].last_reply == "No such user here"
            assert rows["defer@example.net"].next_attempt_at is not None
            assert [record.rcpt_tos for record in await mx.wait(1)] == [["good@example.net"]]

    run(main())


def test_no_such_user_is_suppressed_at_once_and_a_policy_is_not_blamed_on_the_address(bench: Bench) -> None:
    """Case O32; in every spelling of the address that submission takes for the same."""

    async def main() -> None:
        organization = bench.tenant.organization_id
        async with bench.dns(), bench.serve(), bench.work():
            for _ in range(5):
                message_id = await bench.submit('"Bounce"@example.net', "reject-data@example.net")
                await bench.deliveries(message_id, lambda row: row.finished_at is not None)
            pairs = [(organization, "bounce@example.net"), (organization, "reject-data@example.net")]
            reason = "550 5.1.1 No such user here (mx.example.net)"
            assert await bench.db.call(suppressions.active_among, pairs) == {pairs[0]: reason}
            message_id = await bench.submit("bounce@example.net")
            rows = await bench.deliveries(message_id, lambda row: row.finished_at is not None)
            row = rows["bounce@example.net"]
            assert (row.status, row.cause) == ("suppressed", f"The address is on the suppression list: {reason}")
            await bench.db.call(suppressions.remove, organization, "bounce@example.net")
            message_id = await bench.submit("bounce@example.net")
            await bench.deliveries(message_id)
            failed, suppressed = await bench.timeline(message_id)
            assert (failed.kind, suppressed.kind) == ("failed", "suppressed")
            assert failed.cause.startswith("The address does not exist.")
            assert "30 days" in suppressed.cause

    run(main())


class Unheard(Database):
    """Commits the first bounces as any, but the answer gets lost."""

    is_lost = False

    def run(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        value = super().run(fn, *args, **kwargs)
        if fn.__name__ == "_record_bounces" and not self.is_lost:
            self.is_lost = True
            raise Unavailable("database: the connection is lost")
        return value


def test_a_bounce_counts_once_though_its_commit_got_no_answer(bench: Bench) -> None:
    unheard = Unheard(bench.database, None, "unheard")

    async def main() -> None:
        async with bench.dns(), bench.serve():
            message_id = await bench.submit("bounce@example.net", "other@example.net")
            heard, bench.db = bench.db, unheard
            async with bench.work():
                await bench.deliveries(message_id, lambda row: row.finished_at is not None)
            bench.db = heard
        assert unheard.is_lost
        kinds = [entry.kind for entry in await bench.timeline(message_id)]
        assert sorted(kinds) == ["delivered", "failed", "suppressed"]
        failures = "SELECT failures FROM suppressions"
        assert await bench.db.call(lambda conn: conn.execute(failures).fetchall()) == [(1,)]

    unheard.open()
    run(main())
    unheard.close()


@pytest.mark.parametrize(
    ("zone", "status", "code", "enhanced"),
    [
        ({("example.net", "MX"): ["0 ."]}, "failed", 556, "5.1.10"),  # case O01, RFC 7505
        ({("example.net", "MX"): Code.SERVFAIL, ("example.net", "A"): ["127.0.0.21"]}, "reattempt", 451, "4.4.3"),  # O03
        ({("example.net", "MX"): Code.TIMEOUT}, "reattempt", 451, "4.4.3"),
        ({("example.net", "MX"): Code.NXDOMAIN}, "failed", 550, "5.1.2"),
        ({("example.net", "MX"): [], ("example.net", "TXT"): ["x"]}, "failed", 550, "5.4.4"),
        ({("example.net", "MX"): [], ("example.net", "A"): ["127.0.0.21"]}, "delivered", 250, "2.0.0"),  # case O02
        ({("example.net", "MX"): ["0 .", "10 mx.example.net."]}, "delivered", 250, "2.0.0"),
        ({("mx.example.net", "A"): [], ("mx.example.net", "CNAME"): ["real.example.org."], ("real.example.org", "A"): ["127.0.0.21"]}, "delivered", 250, "2.0.0"),  # case O05
        ({("mx.example.net", "A"): Code.SERVFAIL}, "reattempt", 451, "4.4.3"),
        ({("mx.example.net", "A"): [], ("mx.example.net", "AAAA"): ["::1"]}, "reattempt", 451, "4.4.4"),  # O07, the other way round
        ({("example.net", "MX"): ["10 127.0.0.21."]}, "failed", 550, "5.4.4"),  # an address is no name of a host (RFC 5321 §5.1)
        ({("example.net", "MX"): ["10 127.0.0.21.", "20 mx.example.net."]}, "delivered", 250, "2.0.0"),
    ],
)  # fmt: skip
def test_routes(
    bench: Bench, zone: dict[tuple[str, str], list[str] | Code], status: str, code: int, enhanced: str
) -> None:
    async def main() -> None:
        async with bench.dns(), bench.serve(), bench.work():
            for key, answer in zone.items():
                bench.zone[key] = answer
            message_id = await bench.submit("a@example.net")
            row = (await bench.deliveries(message_id))["a@example.net"]
            assert (row.status, row.last_code, row.last_enhanced) == (status, code, enhanced)

    run(main())


def test_a_private_address_is_no_destination_unless_allowed(bench: Bench) -> None:
    async def main() -> None:
        bench.options["allow_private_destinations"] = False
        async with bench.dns(), bench.serve() as mx, bench.work():
            message_id = await bench.submit("a@example.net")
            row = (await bench.deliveries(message_id))["a@example.net"]
            assert (row.status, row.last_enhanced, mx.records) == ("failed", "5.4.4", [])
            # What is wrong for good with one server says nothing of another one that is only unknown now.
            bench.zone["example.org", "MX"] = ["10 mx.example.net.", "20 other.example.org."]
            bench.zone["other.example.org", "A"] = Code.SERVFAIL
            message_id = await bench.submit("a@example.org")
            row = (await bench.deliveries(message_id))["a@example.org"]
            assert (row.status, row.last_enhanced) == ("reattempt", "4.4.3")

    run(main())


@pytest.mark.parametrize(
    "script",
    [
        Script(banner="554 5.7.1 blocked"),
        Script(banner="421 4.7.0 try later"),
        Script(banner=Action.CLOSE),
        Script(ehlo="421 4.3.2 shutting down"),
        Script(mail=Action.CLOSE),
        Script(rcpt="421 4.3.2 closing"),
        None,
    ],
)
def test_another_mx_is_tried_when_the_first_has_a_problem(bench: Bench, script: Script | None) -> None:
    """RFC 5321 §5.1, case O10: a server that is away or turns us away (None: nothing listens there)."""

    async def main() -> None:
        async with bench.dns():
            bench.zone["example.net", "MX"] = ["10 mx.example.net.", "20 backup.example.net."]
            bench.zone["backup.example.net", "A"] = ["127.0.0.22"]
            async with bench.serve("127.0.0.22") as backup, bench.work():
                if script is None:
                    message_id = await bench.submit("a@example.net")
                    rows = await bench.deliveries(message_id)
                else:
                    async with bench.serve(script=script):
                        message_id = await bench.submit("a@example.net")
                        rows = await bench.deliveries(message_id)
                assert (rows["a@example.net"].status, rows["a@example.net"].mx_ip) == ("delivered", "127.0.0.22")
                assert len(await backup.wait(1)) == 1

    run(main())


def test_equal_preferences_share_the_load(bench: Bench) -> None:
    async def main() -> None:
        async with bench.dns(), bench.serve() as one, bench.serve("127.0.0.22") as two, bench.work():
            bench.zone["example.net", "MX"] = ["10 mx.example.net.", "10 other.example.net."]
            bench.zone["other.example.net", "A"] = ["127.0.0.22"]
            for number in range(40):
                await bench.submit(f"r{number}@example.net")
            async with asyncio.timeout(30):
                while len(one.records) + len(two.records) < 40:
                    await asyncio.sleep(0.05)
            assert min(len(one.records), len(two.records)) >= 8

    run(main())


@pytest.mark.parametrize(
    ("script", "status", "code", "kind"),
    [
        (Script(banner="554 5.7.1 blocked"), "reattempt", 554, "deferred"),  # case O11
        (Script(mail="550 5.7.1 we do not like you"), "failed", 550, "failed"),
        (Script(mail="451 4.7.1 later"), "reattempt", 451, "deferred"),
        (Script(data="451 4.3.0 no space"), "reattempt", 451, "deferred"),
        (Script(data="554 5.5.1 no"), "failed", 554, "failed"),
        (Script(dot="451 4.3.0 no"), "reattempt", 451, "deferred"),
        (Script(dot="554 5.7.1 spam"), "failed", 554, "failed"),
        (Script(dot=Action.CLOSE), "reattempt", None, "ambiguous"),  # case O23, RFC 1047
        (Script(rcpt=Action.CLOSE), "reattempt", None, "deferred"),
        (Script(without=frozenset({"ESMTP"})), "delivered", 250, "delivered"),  # HELO
        (Script(without=frozenset({"STARTTLS"})), "delivered", 250, "delivered"),
        (Script(starttls="454 4.7.0 no TLS now"), "delivered", 250, "delivered"),  # case O17
        (Script(starttls="220 go ahead, and then nothing"), "delivered", 250, "delivered"),
    ],
)
def test_what_a_server_says_is_what_is_recorded(
    bench: Bench, script: Script, status: str, code: int | None, kind: str
) -> None:
    async def main() -> None:
        async with bench.dns(), bench.serve(script=script), bench.work():
            message_id = await bench.submit("a@example.net")
            row = (await bench.deliveries(message_id))["a@example.net"]
            assert (row.status, row.last_code) == (status, code)
            assert [entry.kind for entry in await bench.timeline(message_id)] == [kind]

    run(main())


def test_a_project_that_requires_tls_gets_no_plain_text(bench: Bench) -> None:
    async def main() -> None:
        bench.db.run(lambda conn: conn.execute("UPDATE projects SET plaintext_fallback = false"))
        async with bench.dns(), bench.serve(script=Script(without=frozenset({"STARTTLS"}))) as mx, bench.work():
            message_id = await bench.submit("a@example.net")
            row = (await bench.deliveries(message_id))["a@example.net"]
            assert (row.status, row.last_enhanced, mx.records) == ("reattempt", "4.7.4", [])

    run(main())


def test_greylisting_passes_at_the_second_try_from_the_same_address(bench: Bench) -> None:
    """Case O16."""

    async def main() -> None:
        bench.options["first_retry"] = 1.2
        async with bench.dns(), bench.serve(greylist_period=1.0) as mx, bench.work():
            message_id = await bench.submit("greylist@example.net")
            rows = await bench.deliveries(message_id, lambda row: row.status == "delivered")
            assert rows["greylist@example.net"].attempts == 2
            (record,) = await mx.wait(1)
            assert record.peer_ip == "127.0.0.11"
            assert [entry.kind for entry in await bench.timeline(message_id)] == ["deferred", "delivered"]

    run(main())


def test_a_code_is_not_tried_after_its_time(bench: Bench) -> None:
    async def main() -> None:
        bench.options["first_retry"] = 0.3
        async with bench.dns(), bench.serve() as mx, bench.work():
            message_id = await bench.submit("defer@example.net", expires_in=1.0)
            row = (await bench.deliveries(message_id, lambda row: row.finished_at is not None))["defer@example.net"]
            assert (row.status, row.last_code, row.last_reply) == ("failed", 451, "Try again later")  # its last answer
            expired = (await bench.timeline(message_id))[-1]
            assert (expired.kind, expired.code) == ("expired", None)
            assert expired.cause == "The message could not be delivered in the time it had."
            late = await bench.submit("a@example.net", expires_in=0.000001)
            row = (await bench.deliveries(late, lambda row: row.finished_at is not None))["a@example.net"]
            assert (row.status, row.attempts, mx.records) == ("failed", 0, [])

    run(main())


def test_a_project_may_set_how_long_its_mail_is_tried(bench: Bench) -> None:
    """The shorter of its limit and the message's counts, and the relay's is a bound for both."""

    def seconds(message_id: MessageId) -> float:
        message = bench.db.run(messages.get, bench.tenant.organization_id, message_id)
        assert message is not None
        return (message.expires_at - message.created_at).total_seconds()

    async def main() -> None:
        for limit, asked, expected in (
            (0, None, 345_600),
            (600, None, 600),
            (600, 60.0, 60),
            (600, 7200.0, 600),
            (10**9, None, 345_600),
        ):
            bench.db.run(projects.update, bench.tenant.organization_id, bench.tenant.project_id, expires_in=limit)
            assert seconds(await bench.submit("a@example.net", expires_in=asked)) == expected

    run(main())


def test_a_source_that_is_not_on_this_host_is_no_attempt(bench: Bench) -> None:
    """Case O09."""

    async def main() -> None:
        bench.db.run(lambda conn: conn.execute("UPDATE addresses SET bind_ip = '203.0.113.9'"))
        async with bench.dns(), bench.serve() as mx, bench.work():
            message_id = await bench.submit("a@example.net")
            async with asyncio.timeout(10):
                while not any(row.claim_epoch > 1 for row in await bench.db.call(_epochs)):
                    await asyncio.sleep(0.05)
            rows = await bench.db.call(messages.deliveries, bench.tenant.organization_id, [message_id])
            assert [(row.status, row.attempts) for row in rows] == [("accepted", 0)]
            assert mx.records == []
            bench.db.run(lambda conn: conn.execute("UPDATE addresses SET bind_ip = NULL"))
            assert (await bench.deliveries(message_id))["a@example.net"].status == "delivered"

    run(main())


def _epochs(conn: object) -> list[messages.Delivery]:
    from psycopg.rows import namedtuple_row

    with conn.cursor(row_factory=namedtuple_row) as cursor:  # type: ignore[attr-defined]
        return cursor.execute("SELECT claim_epoch FROM deliveries").fetchall()  # type: ignore[no-any-return]


def test_a_message_whose_content_is_gone_fails_in_words(bench: Bench) -> None:
    async def main() -> None:
        async with bench.dns(), bench.serve():
            message_id = await bench.submit("a@example.net")
            bench.db.run(lambda conn: conn.execute("DELETE FROM message_bodies"))
            async with bench.work():
                row = (await bench.deliveries(message_id))["a@example.net"]
                assert (row.status, row.last_reply) == ("failed", "the message's content is no longer kept")

    run(main())


def test_nothing_leaves_unsigned(bench: Bench) -> None:
    async def main() -> None:
        async with bench.dns(), bench.serve() as mx:
            message_id = await bench.submit("a@example.net")
            bench.db.run(lambda conn: conn.execute("DELETE FROM domains"))
            async with bench.work():
                row = (await bench.deliveries(message_id))["a@example.net"]
                assert (row.status, row.last_enhanced, mx.records) == ("failed", "5.7.20", [])

    run(main())


def test_a_dialogue_under_way_is_finished_when_told_to_stop(bench: Bench) -> None:
    async def main() -> None:
        begun = asyncio.Event()

        def rcpt(_address: str) -> None:
            begun.set()

        async with bench.dns(), bench.serve(script=Script(rcpt=rcpt), slow_reply=1.0) as mx:
            async with bench.work():
                slow = await bench.submit("slow@example.net")
                async with asyncio.timeout(10):
                    await begun.wait()
            rows = await bench.db.call(messages.deliveries, bench.tenant.organization_id, [slow])
            assert [row.status for row in rows] == ["delivered"]
            assert len(await mx.wait(1)) == 1
            waiting = await bench.submit("a@example.net")
            rows = await bench.db.call(messages.deliveries, bench.tenant.organization_id, [waiting])
            assert not rows[0].is_claimed  # nothing is taken any more

    run(main())


def test_what_a_server_does_not_answer_in_time_is_given_back_as_ambiguous(bench: Bench) -> None:
    """The service may take half a second to stop. What was sent may have arrived, what was not is as it was."""

    async def main() -> None:
        bench.options |= {"drain_timeout": 0.5, "connections_per_destination": 1}
        sent = asyncio.Event()
        script = Script(delay={"dot": asyncio.Event()}, dot=lambda _: sent.set())
        async with bench.dns(), bench.serve(script=script) as mx:
            async with bench.work():
                one = await bench.submit("a@example.net")
                async with asyncio.timeout(10):
                    await sent.wait()
                other = await bench.submit("b@example.net")
            assert len(await mx.wait(1)) == 1
            mx.script = Script()
            async with bench.work():  # long before a lease ends
                for id_, kinds in ((one, ["ambiguous", "delivered"]), (other, ["delivered"])):
                    await bench.deliveries(id_, lambda row: row.status == "delivered")
                    assert [entry.kind for entry in await bench.timeline(id_)] == kinds

    run(main())


def test_what_was_answered_is_not_given_back_before_it_is_recorded(bench: Bench) -> None:
    """Or another host would send it once more: the database takes longer to record it than the service may take to stop."""

    async def main() -> None:
        bench.options["drain_timeout"] = 0.2
        answered = asyncio.Event()

        def dot(_recipients: str) -> None:
            writing = ExitStack()
            conn = writing.enter_context(bench.db.transaction())
            conn.execute("LOCK TABLE timeline IN SHARE MODE")  # nobody else writes to it meanwhile
            asyncio.get_running_loop().call_later(1.0, writing.close)
            answered.set()

        async with bench.dns(), bench.serve(script=Script(dot=dot)):
            async with bench.work():
                message_id = await bench.submit("a@example.net")
                async with asyncio.timeout(10):
                    await answered.wait()
            (row,) = await bench.db.call(messages.deliveries, bench.tenant.organization_id, [message_id])
            assert row.status == "delivered"

    run(main())


def test_a_worker_that_has_lost_its_claim_sends_nothing(bench: Bench) -> None:
    """It was stopped for longer than its lease, say, and goes on in the middle of a dialogue."""

    async def main() -> None:
        def taken_over(_address: str) -> None:
            bench.db.run(
                lambda conn: conn.execute(
                    "UPDATE deliveries SET claim_epoch = claim_epoch + 1, claimed_by = NULL, next_attempt_at = now() + interval '1 hour'"
                )
            )

        # What it asked before that is old by then.
        async with bench.dns(), bench.serve(script=Script(rcpt=taken_over, delay={"data": 1.2})) as mx, bench.work():
            message_id = await bench.submit("a@example.net")
            async with asyncio.timeout(10):
                while not (timeline := await bench.timeline(message_id)):
                    await asyncio.sleep(0.02)
            assert "another worker has taken the message over" in timeline[0].text
            assert mx.records == []
            (row,) = (await bench.deliveries(message_id, lambda _: True)).values()
            assert (row.status, row.attempts) == ("accepted", 0)

    run(main())


def test_a_lease_is_renewed_while_a_slow_server_thinks(bench: Bench) -> None:
    async def main() -> None:
        bench.options["lease"] = 0.6
        async with bench.dns(), bench.serve(slow_reply=2.0) as mx, bench.work():
            message_id = await bench.submit("slow@example.net")
            rows = await bench.deliveries(message_id)
            assert rows["slow@example.net"].status == "delivered"
            assert len(await mx.wait(1)) == 1
            assert [entry.kind for entry in await bench.timeline(message_id)] == ["delivered"]

    run(main())


SEVEN_BIT = frozenset({"8BITMIME"})


def test_eight_bit_content_goes_as_it_is_where_it_may(bench: Bench) -> None:
    """Case O27, RFC 6152 §3."""
    raw = "From: sender@acme.example\r\nSubject: x\r\n\r\nGrüße\r\n".encode()

    async def main() -> None:
        async with bench.dns(), bench.work(), bench.serve() as mx:
            await bench.submit("a@example.net", raw=raw)
            (record,) = await mx.wait(1)
            assert "BODY=8BITMIME" in record.options
            assert mx.raw(record.id).endswith("Grüße\r\n".encode())

    run(main())


def test_eight_bit_content_is_written_anew_and_signed_for_a_server_without(bench: Bench) -> None:
    """Case O27: in the same attempt, on a connection that other mail uses too; SIZE is that of what is sent."""
    raw = "From: sender@acme.example\r\nSubject: x\r\n\r\nViele Grüße\r\n".encode()

    async def main() -> None:
        async with bench.dns(), bench.work(), bench.serve(script=Script(without=SEVEN_BIT)) as mx:
            for _ in range(2):
                message_id = await bench.submit("a@example.net", raw=raw)
                row = (await bench.deliveries(message_id))["a@example.net"]
                assert (row.status, row.attempts) == ("delivered", 1)
            for record in await mx.wait(2):
                received = mx.raw(record.id)
                assert received.isascii()
                assert message_from_bytes(received).get_payload(decode=True) == "Viele Grüße\r\n".encode()
                assert [signature.ok for signature in record.dkim] == [True]
                assert f"SIZE={len(received)}" in record.options
                assert not any(option.startswith("BODY=") for option in record.options)

    run(main())


def test_what_cannot_be_written_in_seven_bits_fails_and_the_address_is_not_blamed(bench: Bench) -> None:
    """Case O27: a signed part must not be touched."""
    raw = (
        "From: sender@acme.example\r\nSubject: x\r\nMIME-Version: 1.0\r\n"
        'Content-Type: multipart/signed; boundary=b; micalg="pgp-sha256"; protocol="application/pgp-signature"\r\n\r\n'
        "--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nGrüße\r\n--b\r\n"
        "Content-Type: application/pgp-signature\r\n\r\nx\r\n--b--\r\n"
    ).encode()

    async def main() -> None:
        async with bench.dns(), bench.work(), bench.serve(script=Script(without=SEVEN_BIT)) as mx:
            for _ in range(6):
                message_id = await bench.submit("b@example.net", raw=raw)
                row = (await bench.deliveries(message_id))["b@example.net"]
                assert (row.status, row.last_enhanced) == ("failed", "5.6.3")
            assert mx.records == []

    run(main())


def test_an_address_in_utf8_needs_smtputf8(bench: Bench) -> None:
    """Case O28, RFC 6531 §3.4; an IDN domain alone does not."""

    async def main() -> None:
        bench.zone["xn--bcher-kva.example", "MX"] = ["10 mx.example.net."]
        async with bench.dns(), bench.work():
            async with bench.serve() as mx:
                await bench.submit("bü@example.net", "b@bücher.example")
                records = await mx.wait(2)
                options = {record.rcpt_tos[0]: record.options for record in records}
                assert "SMTPUTF8" in options["bü@example.net"]
                assert "b@xn--bcher-kva.example" in options
            async with bench.serve(script=Script(without=frozenset({"SMTPUTF8"}))):
                message_id = await bench.submit("bü@example.net")
                row = (await bench.deliveries(message_id))["bü@example.net"]
                assert (row.status, row.last_enhanced) == ("failed", "5.6.7")

    run(main())


def test_the_timeline_has_each_server_and_what_was_said_with_it(bench: Bench) -> None:
    """Cases O10, O13: the server that did not do, then the dialogue of each recipient and of nobody else."""

    async def main() -> None:
        bench.zone["example.net", "MX"] = ["10 away.example.net.", "20 mx.example.net."]
        async with bench.dns(), bench.serve(), bench.work():
            bench.zone["example.net", "MX"] = ["10 away.example.net.", "20 mx.example.net."]
            bench.zone["away.example.net", "A"] = ["127.0.0.29"]
            message_id = await bench.submit("good@example.net", "bounce@example.net")
            rows = await bench.deliveries(message_id)
            entries = {one.delivery_id: one for one in await bench.timeline(message_id) if one.servers}
            good, bounce = (entries[rows[name].id] for name in ("good@example.net", "bounce@example.net"))
            assert good.host == "test"
            away, mx = good.servers
            assert (away["mx_host"], away["mx_ip"], away["steps"]) == ("away.example.net", "127.0.0.29", [])
            assert "cannot connect" in away["reply"]
            assert (mx["mx_host"], mx["reply"]) == ("mx.example.net", f"250 2.0.0 {good.text}")
            said = [(step["command"].partition(" ")[0], step["reply"][:3]) for step in mx["steps"]]
            assert said[:2] == [("(connect)", ""), ("(banner)", "220")]
            assert said[-4:] == [("MAIL", "250"), ("RCPT", "250"), ("DATA", "354"), ("(message)", "250")]
            assert [step["reply"] for step in mx["steps"] if step["command"] == "EHLO out-127-0-0-11.relay.example"]
            assert all(step["milliseconds"] >= 0 for step in mx["steps"])
            assert sum(step["milliseconds"] for step in mx["steps"]) <= mx["milliseconds"] + len(mx["steps"])
            told = [step for step in bounce.servers[-1]["steps"] if step["command"].startswith("RCPT")]
            assert [(step["command"], step["reply"]) for step in told] == [
                ("RCPT TO:<bounce@example.net>", "550 5.1.1 No such user here")
            ]

            later = await bench.submit("good@example.net")
            await bench.deliveries(later)
            (entry,) = await bench.timeline(later)
            steps = [step["command"].partition(" ")[0] for step in entry.servers[-1]["steps"]]
            assert steps in (["RSET", "MAIL", "RCPT", "DATA", "(message)"], [word for word, _ in said])

    run(main())


def test_domains_get_a_transaction_each_and_do_not_share_their_troubles(bench: Bench) -> None:
    """Case O35: three domains, two of them at the same servers; one is away. The same bytes for all."""

    async def main() -> None:
        async with bench.dns(), bench.serve() as mx, bench.work():
            bench.zone["b.example", "MX"] = ["10 mx.example.net."]
            bench.zone["c.example", "MX"] = ["10 away.example.net."]
            bench.zone["away.example.net", "A"] = ["127.0.0.29"]
            message_id = await bench.submit("to@example.net", "cc@b.example", "bcc@c.example", "too@example.net")
            rows = await bench.deliveries(message_id)
            assert {name: row.status for name, row in rows.items()} == {
                "to@example.net": "delivered",
                "too@example.net": "delivered",
                "cc@b.example": "delivered",
                "bcc@c.example": "reattempt",
            }
            records = await mx.wait(2)
            assert sorted(record.rcpt_tos for record in records) == [
                ["cc@b.example"],
                ["to@example.net", "too@example.net"],
            ]
            assert len({record.message_id for record in records}) == 1
            assert len({mx.raw(record.id).partition(b"Received:")[2] for record in records}) == 1

    run(main())


@pytest.fixture
def two_versions(bench: Bench, pepper: Pepper) -> Bench:
    """A sender whose pool has an address of each version of IP."""
    bench.tenant = seed.tenant(bench.db, bench.vault, pepper, name="both", sources=("::1",))
    return bench


@pytest.mark.parametrize("source", ["127.0.0.11", "::1"])
def test_broken_ipv6_does_not_keep_mail_from_a_server_with_ipv4(two_versions: Bench, source: str) -> None:
    """Case O07: in the first attempt, whichever address of the pool the mail was given."""
    bench = two_versions

    async def main() -> None:
        bench.options["connect_timeout"] = 0.5
        bench.zone["mx.example.net", "AAAA"] = ["fe80::1", "100::1"]
        async with bench.dns(), bench.serve() as mx:
            message_id = await bench.submit("a@example.net")
            bench.db.run(lambda conn: conn.execute("UPDATE deliveries SET source = %s", [source]))
            async with bench.work():
                row = (await bench.deliveries(message_id))["a@example.net"]
            assert (row.status, row.attempts, row.mx_ip) == ("delivered", 1, "127.0.0.21")
            (record,) = await mx.wait(1)
            assert (record.peer_ip, record.helo) == ("127.0.0.11", "out-127-0-0-11.relay.example")
            (entry,) = await bench.timeline(message_id)
            assert entry.source == "127.0.0.11"

    run(main())


def test_a_server_with_ipv6_only_gets_mail_from_the_address_beside(two_versions: Bench) -> None:
    bench = two_versions

    async def main() -> None:
        async with bench.dns(), bench.serve("::1") as mx:
            bench.zone["mx.example.net", "A"] = []
            bench.zone["mx.example.net", "AAAA"] = ["::1"]
            message_id = await bench.submit("a@example.net")
            bench.db.run(lambda conn: conn.execute("UPDATE deliveries SET source = '127.0.0.11'"))
            async with bench.work():
                row = (await bench.deliveries(message_id))["a@example.net"]
            assert (row.status, row.mx_ip) == ("delivered", "::1")
            (record,) = await mx.wait(1)
            assert (record.peer_ip, record.helo) == ("::1", "out---1.relay.example")

    run(main())


def test_an_address_that_went_to_another_pool_sends_nothing_of_the_old_one(bench: Bench) -> None:
    """Until `periodic` gives the mail another one."""

    async def main() -> None:
        async with bench.dns(), bench.serve() as mx:
            message_id = await bench.submit("a@example.net")

            def change(conn: Connection) -> None:
                other = addresses.create_pool(conn, "other")
                conn.execute("UPDATE addresses SET pool_id = %s", [other.id])

            bench.db.run(change)
            async with bench.work():
                async with asyncio.timeout(10):
                    while not any(row.claim_epoch > 1 for row in await bench.db.call(_epochs)):
                        await asyncio.sleep(0.05)
                rows = await bench.deliveries(message_id, lambda _: True)
                assert [(row.status, row.attempts, mx.records) for row in rows.values()] == [("accepted", 0, [])]

    run(main())
