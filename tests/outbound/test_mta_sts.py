"""MTA-STS from end to end: a policy host speaks HTTPS, DNS names it, mail goes where the policy allows (RFC 8461)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import authority
import pytest
import uvloop
from authority import Authority, Issued, issue
from prometheus_client import REGISTRY
from workbench import Bench, free_port

from remails import resolver
from remails.config import Database as DatabaseSettings
from remails.config import Outbound
from remails.db import Database
from remails.dev.dns import Code
from remails.dev.smtp import Script
from remails.errors import Unavailable
from remails.mail.sts import Mode
from remails.outbound.sts import Policies, Unfetched, fetch
from remails.store import sts

CA = Authority()
MX = CA.issue("mx.example.net")
POLICY_HOST = CA.issue("mta-sts.example.net")
ENFORCE = "version: STSv1\r\nmode: enforce\r\nmx: mx.example.net\r\nmax_age: 604800\r\n"
TESTING = ENFORCE.replace("enforce", "testing")
NONE = ENFORCE.replace("enforce", "none")


@dataclass
class PolicyHost:
    """A web server with one page. `status`, `kind` and `body` may be changed; `raw` replaces the whole response."""

    body: str = ENFORCE
    status: str = "200 OK"
    kind: str = "text/plain; charset=utf-8"
    extra: str = ""
    raw: bytes | None = None
    pause: float = 0
    gate: asyncio.Event | None = None
    """Answers wait for it."""
    certificate: Issued = POLICY_HOST
    requests: list[str] = field(default_factory=list)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            await asyncio.sleep(self.pause)
            if self.gate is not None:
                await self.gate.wait()
            head = f"HTTP/1.1 {self.status}\r\nContent-Type: {self.kind}\r\n{self.extra}"
            body = self.body.encode()
            length = "" if "Transfer-Encoding" in head else f"Content-Length: {len(body)}\r\n"
            writer.write(self.raw or f"{head}{length}\r\n".encode() + body)
            await writer.drain()
        writer.close()


@dataclass
class World:
    """A bench with a policy host for example.net, which has a record in DNS."""

    bench: Bench
    directory: Path
    https: PolicyHost = field(default_factory=PolicyHost)
    port: int = field(default_factory=free_port)

    @contextlib.asynccontextmanager
    async def run(self, *, sts_timeout: float = 2.0) -> AsyncIterator["World"]:
        """All but the mail server and the service."""
        (self.directory / "roots.pem").write_text(CA.root.pem())
        self.bench.options |= {
            "ca_file": str(self.directory / "roots.pem"),
            "sts_port": self.port,
            "sts_timeout": sts_timeout,
        }
        context = self.https.certificate.context(self.directory)
        server = await asyncio.start_server(self.https.answer, "127.0.0.31", self.port, ssl=context)
        try:
            async with self.bench.dns():
                self.bench.zone["_mta-sts.example.net", "TXT"] = ["v=STSv1; id=1;"]
                self.bench.zone["mta-sts.example.net", "A"] = ["127.0.0.31"]
                yield self
        finally:
            server.close()

    def policies(self) -> Policies:
        """As another process, which remembers nothing."""
        settings = self.bench.settings()
        return Policies(self.bench.db, resolver.asynchronous(settings.dns), settings.outbound)

    async def fetch(self, **options: object) -> object:
        """Fetch without keeping."""
        settings = self.bench.settings()
        outbound = Outbound(**{**self.bench.options, "allow_private_destinations": True, **options})  # type: ignore[arg-type]
        return await fetch("example.net", resolver.asynchronous(settings.dns), outbound)


@pytest.fixture
def world(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr("remails.outbound.sts._FRESH", 0.0)
    return World(bench, tmp_path)


def serving(certificate: Issued, directory: Path) -> dict[str, object]:
    return {"tls": certificate.context(directory)}


GOOD, BAD, PLAIN = MX, issue("mx.example.net"), None


@pytest.mark.parametrize(
    ("policy", "certificate", "status", "rule", "verified", "note"),
    [
        (ENFORCE, GOOD, "delivered", "sts", True, ""),
        (ENFORCE, BAD, "reattempt", "sts", None, ""),
        (ENFORCE, PLAIN, "reattempt", "sts", None, ""),
        (ENFORCE.replace("mx.example", "other.example"), GOOD, "reattempt", None, None, ""),
        (ENFORCE.replace("mx: mx", "mx: 192.0.2.56\r\nmx: *"), GOOD, "delivered", "sts", True, ""),  # O21
        (ENFORCE.replace("mx: mx.example.net", "mx: *.net"), GOOD, "reattempt", None, None, ""),  # O21
        (TESTING, GOOD, "delivered", "sts-testing", True, ""),
        (TESTING, BAD, "delivered", "sts-testing", False, "no authority"),
        (TESTING, PLAIN, "delivered", "sts-testing", None, "offers no TLS"),
        (TESTING.replace("mx.example", "other.example"), GOOD, "delivered", "sts-testing", True, "does not name"),
        (NONE, PLAIN, "delivered", "opportunistic", None, "offers no TLS"),
        ("", BAD, "delivered", "opportunistic", False, "no authority"),  # no policy at all
    ],
)
def test_mail_goes_where_the_policy_allows(
    world: World,
    tmp_path: Path,
    policy: str,
    certificate: Issued | None,
    status: str,
    rule: str | None,
    verified: bool | None,
    note: str,
) -> None:
    """Case O21."""

    async def main() -> None:
        world.https.body = policy
        without = Script(without=frozenset({"STARTTLS"})) if certificate is None else None
        options = serving(certificate, tmp_path) if certificate is not None else {}
        async with world.run(), world.bench.serve(script=without, **options) as mx, world.bench.work():
            message_id = await world.bench.submit("a@example.net")
            row = (await world.bench.deliveries(message_id))["a@example.net"]
            (entry,) = await world.bench.timeline(message_id)
            assert (row.status, entry.tls_policy, entry.tls_verified) == (status, rule, verified), entry
            assert note in entry.tls_note
            assert bool(entry.tls_note) == bool(note)
            if rule is not None:
                shown = {True: "verified", False: "unverified", None: "none"}[verified]
                assert REGISTRY.get_sample_value("remails_attempts_secured_total", {"policy": rule, "tls": shown})
            if status == "delivered":
                (record,) = await mx.wait(1)
                assert (record.tls is None) == (certificate is None)
            else:
                assert mx.records == []  # not in the clear, and not to that server at all
                assert (row.last_code, (row.last_enhanced or "")[:3]) == (None, "4.7")
                assert "MTA-STS policy" in (row.last_reply or "")

    uvloop.run(main())


def test_another_mx_that_the_policy_names_is_taken(world: World, tmp_path: Path) -> None:
    """Case O21: what does not match is passed over, not waited for."""

    async def main() -> None:
        async with world.run():
            world.bench.zone["example.net", "MX"] = ["10 old.example.org.", "20 mx.example.net."]
            world.bench.zone["old.example.org", "A"] = ["127.0.0.22"]
            async with (
                world.bench.serve("127.0.0.22") as old,
                world.bench.serve(**serving(MX, tmp_path)) as mx,
                world.bench.work(),
            ):
                await world.bench.submit("a@example.net")
                assert len(await mx.wait(1)) == 1
                assert old.records == []

    uvloop.run(main())


def test_a_policy_is_the_domains_and_not_the_servers(world: World) -> None:
    """Case O21: another domain at the same MX, without a policy, is under none."""

    async def main() -> None:
        async with world.run(), world.bench.serve(), world.bench.work():
            world.bench.zone["example.org", "MX"] = ["10 mx.example.net."]
            message_id = await world.bench.submit("a@example.net", "b@example.org")
            rows = await world.bench.deliveries(message_id)
            assert {name: row.status for name, row in rows.items()} == {
                "a@example.net": "reattempt",
                "b@example.org": "delivered",
            }

    uvloop.run(main())


def test_a_kept_policy_cannot_be_taken_away_by_hiding_it(world: World) -> None:
    """RFC 8461 §5.1: it counts until it ends, in other processes too; and is not fetched again meanwhile."""

    async def main() -> None:
        async with world.run():
            first = await world.policies().of("example.net")
            assert first is not None
            for answer in ([], Code.SERVFAIL, Code.NXDOMAIN, ["v=STSv1; id=1;", "v=STSv1; id=2;"]):
                world.bench.zone["_mta-sts.example.net", "TXT"] = answer
                assert await world.policies().of("example.net") == first
            assert len(world.https.requests) == 1
            assert world.https.requests[0].startswith(
                "GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: mta-sts.example.net\r\n"
            )
            await world.bench.db.call(lambda conn: conn.execute("UPDATE sts_policies SET expires_at = now()"))
            assert await world.policies().of("example.net") is None

    uvloop.run(main())


def test_a_new_id_brings_the_new_policy(world: World) -> None:
    async def main() -> None:
        async with world.run():
            policies = world.policies()
            assert (await policies.of("example.net")).mode is Mode.ENFORCE  # type: ignore[union-attr]
            world.https.body = NONE
            assert (await policies.of("example.net")).mode is Mode.ENFORCE  # type: ignore[union-attr]
            world.bench.zone["_mta-sts.example.net", "TXT"] = ["v=STSv1; id=2;"]
            assert (await policies.of("example.net")).mode is Mode.NONE  # type: ignore[union-attr]
            assert len(world.https.requests) == 2

    uvloop.run(main())


def test_a_fetch_that_fails_leaves_the_old_policy_and_is_not_repeated_at_once(world: World) -> None:
    """RFC 8461 §3.3, §5.1."""

    async def main() -> None:
        async with world.run():
            policies = world.policies()
            assert await policies.of("example.net") is not None
            world.https.status = "404 Not Found"
            world.bench.zone["_mta-sts.example.net", "TXT"] = ["v=STSv1; id=2;"]
            for _ in range(3):
                assert (await policies.of("example.net")).mode is Mode.ENFORCE  # type: ignore[union-attr]
            assert len(world.https.requests) == 2

    uvloop.run(main())


def test_many_mails_at_once_fetch_once(world: World) -> None:
    async def main() -> None:
        async with world.run():
            world.https.pause = 0.2
            policies = world.policies()
            found = await asyncio.gather(*(policies.of("example.net") for _ in range(20)))
            assert {policy.mode for policy in found if policy is not None} == {Mode.ENFORCE}
            assert len(world.https.requests) == 1

    uvloop.run(main())


def test_a_slow_policy_host_holds_no_claims(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mail goes back into the queue while the fetch goes on, and out when it has ended."""

    async def main() -> None:
        world.https.gate = asyncio.Event()
        monkeypatch.setattr("remails.outbound.sts._PATIENCE", 0.1)
        monkeypatch.setattr("remails.outbound.sts.Pending.delay", 0.3)
        async with world.run(sts_timeout=60.0), world.bench.serve(**serving(MX, tmp_path)) as mx, world.bench.work():
            message_id = await world.bench.submit("a@example.net")
            rows = await world.bench.deliveries(message_id, lambda row: bool(row.cause))
            assert rows["a@example.net"].cause == "the MTA-STS policy of example.net is being fetched"
            world.https.gate.set()
            rows = await world.bench.deliveries(message_id, lambda row: row.status == "delivered")
            assert rows["a@example.net"].attempts == 1
            assert len(await mx.wait(1)) == len(world.https.requests) == 1

    uvloop.run(main())


def test_dns_is_not_asked_for_each_mail(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr("remails.outbound.sts._FRESH", 5.0)
        async with world.run():
            policies = world.policies()
            for _ in range(5):
                assert await policies.of("example.net") is not None
            assert world.bench.zone.queries.count(("_mta-sts.example.net", "TXT")) == 1

    uvloop.run(main())


def test_a_record_that_cannot_be_looked_up_holds_up_one_mail_and_not_each(world: World) -> None:
    async def main() -> None:
        async with world.run():
            policies = world.policies()
            world.bench.zone["_mta-sts.example.net", "TXT"] = Code.SERVFAIL
            for _ in range(5):
                assert await policies.of("example.net") is None
            asked = [name for name, kind in world.bench.zone.queries if (name, kind) == ("_mta-sts.example.net", "TXT")]
            assert len(asked) <= 3  # one question, as often as the resolver repeats it

    uvloop.run(main())


def test_policies_are_fetched_again_before_they_end(world: World) -> None:
    async def main() -> None:
        async with world.run():
            await world.policies().of("example.net")
            await world.policies().refresh()
            assert len(world.https.requests) == 1  # nothing is due
            world.https.body = TESTING
            later = timedelta(days=1)
            shift = "UPDATE sts_policies SET refresh_at = refresh_at - %s, expires_at = expires_at - %s"
            await world.bench.db.call(lambda conn: conn.execute(shift, [later, later]))  # a day has gone by
            await asyncio.gather(*(world.policies().refresh() for _ in range(3)))  # three hosts
            assert len(world.https.requests) == 2
            kept = await world.bench.db.call(sts.get, "example.net")
            assert kept is not None
            assert kept.policy.mode is Mode.TESTING

    uvloop.run(main())


def test_without_the_database_mail_waits_rather_than_go_unprotected(world: World, tmp_path: Path) -> None:
    async def main() -> None:
        away = Database(DatabaseSettings(dsn=f"host={tmp_path} dbname=x", wait_timeout=0.2), None, "test")
        async with world.run():
            settings = world.bench.settings()
            policies = Policies(away, resolver.asynchronous(settings.dns), settings.outbound)
            with pytest.raises(Unavailable):
                await policies.of("example.net")

    uvloop.run(main())


ANSWERS = [
    ({"status": "301 Moved", "extra": "Location: https://example.org/\r\n"}, "it answers 301"),  # O21: no redirects
    ({"status": "404 Not Found"}, "it answers 404"),
    ({"status": "500 Oops"}, "it answers 500"),
    ({"kind": "text/html"}, "text/html, not text/plain"),
    ({"body": "x" * 70_000}, "too large"),  # O21: 64 kB
    ({"body": "y" * 7_000_000}, "too large"),
    ({"body": "<html>"}, "no `name: value`"),
    ({"raw": b"hello\r\n\r\n"}, "no HTTP"),
    ({"raw": b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 999\r\n\r\nversion: STSv1"}, "no HTTP"),
    ({"pause": 30}, "longer than 0.3 seconds"),
    ({"certificate": issue("mta-sts.example.net")}, "its certificate is not valid: self-signed"),
    ({"certificate": CA.issue("example.net")}, "its certificate is not valid: Hostname mismatch"),
    ({"certificate": CA.issue("mta-sts.example.net", ends=-authority.DAY / 2)}, "certificate has expired"),
]


@pytest.mark.parametrize(("changes", "why"), ANSWERS, ids=[str(row[1]) for row in ANSWERS])
def test_what_is_no_answer(world: World, changes: dict[str, object], why: str) -> None:
    """RFC 8461 §3.3, case O21."""

    async def main() -> None:
        for name, value in changes.items():
            setattr(world.https, name, value)
        async with world.run():
            with pytest.raises(Unfetched, match=why):
                await world.fetch(sts_timeout=0.3 if "pause" in changes else 5.0)

    uvloop.run(main())


@pytest.mark.parametrize(
    "changes",
    [
        {"certificate": CA.issue("*.example.net")},
        {"extra": "Transfer-Encoding: chunked\r\n", "body": f"{len(ENFORCE):x}\r\n{ENFORCE}\r\n0\r\n\r\n"},
        {"kind": "TEXT/Plain"},
        {"raw": b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n" + ENFORCE.encode()},
    ],
)
def test_what_is_an_answer(world: World, changes: dict[str, object]) -> None:
    async def main() -> None:
        for name, value in changes.items():
            setattr(world.https, name, value)
        async with world.run():
            assert await world.fetch() is not None

    uvloop.run(main())


def test_a_policy_host_in_a_private_network_is_not_asked(world: World) -> None:
    """The name is a stranger's: it must not lead to our own services."""

    async def main() -> None:
        async with world.run():
            with pytest.raises(Unfetched, match="has no address"):
                await world.fetch(allow_private_destinations=False)
            assert world.https.requests == []

    uvloop.run(main())


def test_the_first_address_that_answers_will_do(world: World) -> None:
    async def main() -> None:
        async with world.run():
            world.bench.zone["mta-sts.example.net", "A"] = ["127.0.0.32", "127.0.0.31"]
            assert await world.fetch() is not None
            world.bench.zone["mta-sts.example.net", "A"] = ["127.0.0.32"]
            with pytest.raises(Unfetched, match=r"127\.0\.0\.32"):
                await world.fetch()

    uvloop.run(main())
