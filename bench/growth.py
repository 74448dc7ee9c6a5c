#!/usr/bin/env python3
"""What becomes of the rate when there is more of everything: waiting mail, mail due at once, organizations, processes, destinations.

    PYTHONPATH=tests python bench/growth.py [waiting storm organizations processes destinations] [--full] [--keep]

In each experiment two of our installations run, a plain one and one that has more, and are given mail in turn; what is reported is
the median of how they compare, pair by pair. Tables are filled by SQL, with rows as the services would have made them.
"""

import argparse
import base64
import contextlib
import functools
import random
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import compare
import kept
import msgspec
import psycopg
import sink as sinks
import systems
from compare import Case, Wrong
from generator import Login, Order
from groups import stop_when_told
from systems import Remails

from remails.dev.home import DOMAIN
from remails.store import credentials, domains, organizations, projects
from remails.vault import Pepper, Vault

PLAIN = Case(4, 10)
STORM_RATE = 0.2
"""Of the rate without a storm: what comes in meanwhile."""
DESTINATIONS, DEAD = 1000, 100
DOMAINS = tuple(f"sender{number}.example" for number in range(50))
SIGNERS = (DOMAIN, *DOMAINS)
_CHUNK = 100_000

_MESSAGES = """
INSERT INTO messages (id, organization_id, project_id, domain_id, pool_id, created_at, expires_at, mail_from, header_from,
    subject, message_id_header, size, eight_bit, smtputf8, recipients)
SELECT {id}, p.organization_id, p.id, dp.domain_id, pools.id, now(), now() + interval '4 days', 'shop@demo.example',
    'shop@demo.example', 'waiting' || n || repeat('.', n %% 61), '<' || n || '@demo.example>', {size}, false, false, 1
FROM generate_series(%(first)s::int, %(last)s::int) AS n,
    (SELECT * FROM projects ORDER BY created_at LIMIT 1) AS p JOIN domains_projects dp ON dp.project_id = p.id, pools
"""
_BODIES = """
INSERT INTO message_bodies (message_id, raw)
SELECT {id}, convert_to('From: shop@demo.example' || E'\\r\\nTo: r@mail.example\\r\\nSubject: waiting' || n || E'\\r\\n\\r\\n', 'UTF8')
    || substring(%(text)s::bytea FROM n %% 1000000 FOR {size} - 80)
FROM generate_series(%(first)s::int, %(last)s::int) AS n
"""
_DELIVERIES = """
INSERT INTO deliveries (message_id, organization_id, recipient, domain, status, source, attempts, next_attempt_at, last_code,
    last_enhanced, last_reply, mx_host, mx_ip)
SELECT {id}, (SELECT organization_id FROM projects ORDER BY created_at LIMIT 1), 'r' || n || '@d' || n %% 1000 || '.mail.example',
    'd' || n %% 1000 || '.mail.example', 'reattempt', ('127.0.0.' || 11 + n %% 2)::inet, 3,
    now() + interval '2 hours' + random() * interval '2 days', 451, '4.7.1', '451 4.7.1 Try again later' || repeat('.', n %% 61), 'mx.mail.example',
    '127.0.0.21'
FROM generate_series(%(first)s::int, %(last)s::int) AS n
"""
_TIMELINE = """
INSERT INTO timeline (message_id, kind, text, code, enhanced)
SELECT {id}, kind, '451 4.7.1 Try again later' || repeat('.', n %% 61), 451, '4.7.1'
FROM generate_series(%(first)s::int, %(last)s::int) AS n, unnest(ARRAY['accepted', 'deferred', 'deferred', 'deferred']) AS kind
"""
# Rows of all lengths, as services write them: of one length, they leave a little room in every page, and what comes later goes there.
_SIZE = "(1000 + n * 7919::bigint % 6001)::int"  # 4 kB in the middle, as what is sent meanwhile
_ID = "('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid"  # an old UUIDv7

_ORGANIZATIONS = """
WITH made AS (
    INSERT INTO organizations (id, name) SELECT gen_random_uuid(), 'Organization ' || n FROM generate_series(1, %(count)s::int) AS n
    RETURNING id),
projects_made AS (
    INSERT INTO projects (id, organization_id, name) SELECT gen_random_uuid(), id, 'Shop' FROM made RETURNING id, organization_id),
credentials_made AS (
    INSERT INTO smtp_credentials (id, project_id, username, digest)
    SELECT gen_random_uuid(), id, 'u-' || id, sha256(id::text::bytea) FROM projects_made),
domains_made AS (
    INSERT INTO domains (id, organization_id, name, ownership_token, verified_at, checked_at)
    SELECT gen_random_uuid(), id, 'o-' || id || '.example', 'token', now(), now() FROM made RETURNING id, organization_id),
keys_made AS (
    INSERT INTO dkim_keys (id, domain_id, selector, algorithm, private_key, record)
    SELECT gen_random_uuid(), id, 'remails', 'rsa_sha256', sha256(id::text::bytea), 'v=DKIM1' FROM domains_made)
INSERT INTO domains_projects (domain_id, project_id)
SELECT d.id, p.id FROM domains_made d JOIN projects_made p USING (organization_id)
"""


@dataclass(frozen=True)
class Span:
    """How long to measure."""

    rounds: int
    seconds: float


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One experiment's outcome; `ratio`: with more, of plain."""

    experiment: str
    what: str
    more: float
    """How many of them."""
    ratio: float
    plain: float
    """Mails a second of the plain installation, medians."""
    given: float
    """Mails a second of that which has more."""
    p99_ms: float = 0.0
    """Of fresh mail to the sink, where that is what it is about."""


def fill(system: Remails, first: int, last: int) -> None:
    """Deliveries that wait for hours yet, numbered from `first` to `last`."""
    for start in range(first, last + 1, _CHUNK):
        given = {"first": start, "last": min(last, start + _CHUNK - 1), "text": _text()}

        def insert(conn: psycopg.Connection[Any], given: dict[str, object] = given) -> None:
            conn.execute("SET LOCAL statement_timeout = 0")
            conn.execute("SET LOCAL synchronous_commit = off")  # nothing is measured yet
            for statement in (_MESSAGES, _BODIES, _DELIVERIES, _TIMELINE):
                conn.execute(statement.replace("{id}", _ID).replace("{size}", _SIZE.replace("%", "%%")).encode(), given)

        system.db.run(insert)


@functools.cache
def _text() -> bytes:
    """Lines that no compression makes shorter."""
    return base64.encodebytes(random.Random(1).randbytes(760_000)).replace(b"\n", b"\r\n")


def tidy(*installations: Remails) -> None:
    """Statistics and a checkpoint, as PostgreSQL would come to by itself; of both, since each page costs more after one."""
    for system in installations:
        with psycopg.connect(system.settings.database.dsn, autocommit=True) as conn:
            conn.execute("VACUUM ANALYZE")
            conn.execute("CHECKPOINT")


def pairs(plain: Remails, more: Remails, rate: Callable[[Remails], float], span: Span) -> tuple[float, float, float]:
    """The median of the ratios, and the medians of both rates; the two take turns at being first."""
    found = []
    for number in range(span.rounds):
        order = (plain, more) if number % 2 else (more, plain)
        rates = {id(system): rate(system) for system in order}
        found.append((rates[id(plain)], rates[id(more)]))
    return (
        statistics.median(given / base for base, given in found),
        statistics.median(base for base, _ in found),
        statistics.median(given for _, given in found),
    )


def figure(experiment: str, what: str, more: float, found: tuple[float, float, float], p99_ms: float = 0.0) -> Figure:
    """Print it and return it."""
    ratio, base, given = found
    tail = f", p99 {p99_ms:.0f} ms" if p99_ms else ""
    print(f"{experiment:>14} {what:<40} {ratio:5.2f} of plain ({given:.0f} of {base:.0f} mails/s){tail}", flush=True)
    return Figure(experiment=experiment, what=what, more=more, ratio=ratio, plain=base, given=given, p99_ms=p99_ms)


@contextlib.contextmanager
def two(
    *more_addresses: str,
    options: Mapping[str, Mapping[str, object]] | None = None,
    exchanges: Mapping[str, str] | None = None,
) -> Iterator[tuple[Remails, Remails, sinks.Sink]]:
    """A plain installation, one to have more, and the sink."""
    with contextlib.ExitStack() as stack:
        place, sink = stack.enter_context(compare.place(*more_addresses))
        plain = stack.enter_context(systems.remails(place, "plain", exchanges=exchanges))
        more = stack.enter_context(systems.remails(place, "more", options, exchanges))
        for system in (plain, more):
            compare.measure(system, sink, PLAIN, 2.0)
        yield plain, more, sink


def delivered(sink: sinks.Sink, span: Span, case: Case = PLAIN) -> Callable[[Remails], float]:
    """What measures the rate at which mail is delivered."""
    return lambda system: compare.measure(system, sink, case, span.seconds, SIGNERS).delivered


def waiting(span: Span, counts: Sequence[int]) -> list[Figure]:
    """Deliveries that are not due."""
    found, there = [], 0
    with two() as (plain, more, sink):
        for count in counts:
            fill(more, there + 1, count)
            tidy(plain, more)
            there = count
            result = pairs(plain, more, delivered(sink, span), span)
            found.append(figure("waiting", f"{count:,} deliveries that are not due", count, result))
    return found


def storm(span: Span, count: int) -> list[Figure]:
    """Very many deliveries that come due at once, and mail that comes in meanwhile."""
    with two() as (plain, more, sink):
        fill(more, 1, count)
        tidy(plain, more)
        rate = STORM_RATE * compare.measure(plain, sink, PLAIN, span.seconds).delivered
        quiet, _ = fresh(plain, sink, rate, span.seconds)
        more.db.run(_bring_due)
        before = sink.total()
        busy, others = fresh(more, sink, rate, max(8.0, span.seconds))
        print(f"{'storm':>14} p99 without: {quiet:.0f} ms; {others - before} of the storm were delivered meanwhile")
        return [figure("storm", f"{count:,} deliveries due at once", count, (1.0, rate, rate), busy)]


def _bring_due(conn: psycopg.Connection[Any]) -> None:
    conn.execute("SET LOCAL statement_timeout = 0")
    conn.execute("UPDATE deliveries SET next_attempt_at = clock_timestamp() WHERE status = 'reattempt'")


def fresh(system: Remails, sink: sinks.Sink, rate: float, seconds: float) -> tuple[float, int]:
    """The 99th percentile, in ms, from the first command to the sink of mail at a rate; and how many have come in all."""
    prefix = f"fresh-{system.home.directory.name}-"
    sent = compare.send(compare.order(system, Case(4, 20, rate=rate), prefix, seconds))
    if sent.refused:
        raise Wrong(f"refused: {sent.refused[0]}")
    deadline = time.monotonic() + 60
    while True:
        times = sink.counts()["times"]
        arrived = [times.get(f"{prefix}{number}") for number in range(len(sent.begun))]
        if all(arrived) or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    if missing := arrived.count(None):
        raise Wrong(f"{missing} fresh mails have not come after a minute")
    spans = [at - begun for at, begun in zip(arrived, sent.begun, strict=True) if at]
    return compare.percentiles(spans)[1], len(times)


def many_organizations(span: Span, counts: Sequence[int]) -> list[Figure]:
    """Organizations, of which fifty send."""
    found, there = [], 0
    with two() as (plain, more, sink):
        logins = [_sender(more, number) for number in range(len(DOMAINS))]
        more.door = replace(more.door, logins=logins)
        for count in counts:
            with more.db.transaction() as conn:
                conn.execute(_ORGANIZATIONS, {"count": count - there})
            there = count
            tidy(plain, more)
            result = pairs(plain, more, delivered(sink, span, Case(4, len(DOMAINS))), span)
            found.append(
                figure("organizations", f"{count:,} organizations, {len(DOMAINS)} of them sending", count, result)
            )
    return found


def _sender(system: Remails, number: int) -> Login:
    sealer = Vault(system.settings.credential("encryption_keys"))
    pepper = Pepper(system.settings.credential("pepper"))

    def make(conn: psycopg.Connection[Any]) -> Login:
        organization = organizations.create(conn, f"Sender {number}")
        project = projects.create(conn, organization.id, "Shop")
        name = DOMAINS[number]
        domain = domains.create(conn, sealer, organization.id, name, selector="remails", project_ids=[project.id])
        domains.save_verification(conn, domain.id, {}, verified=True)
        made, password = credentials.create_smtp(conn, pepper, project, f"sender{number}", "bench")
        return Login(made.username, password, f"shop@{name}")

    return system.db.run(make)


def processes(span: Span) -> list[Figure]:
    """More processes of a service; plain is one of each."""
    found = []
    for inbound, outbound in ((2, 1), (1, 2), (2, 2), (1, 4), (4, 4)):
        options = {"inbound": {"processes": inbound}, "outbound": {"processes": outbound}}
        with two(options=options) as (plain, more, sink):
            result = pairs(plain, more, delivered(sink, span), span)
            found.append(figure("processes", f"inbound {inbound}, outbound {outbound}", inbound + outbound, result))
    return found


def destinations(span: Span) -> list[Figure]:
    """Many destinations, of which a tenth is dead: half of these refuse connections, half do not answer at all."""
    living = [f"127.1.{number // 250}.{number % 250 + 1}" for number in range(DESTINATIONS)]
    exchanges = {f"d{number}.alive.example": ip for number, ip in enumerate(living)}
    for number, ip in enumerate(living):
        dead = number % (DESTINATIONS // DEAD) == 0
        kind = "3" if number % (2 * DESTINATIONS // DEAD) == 0 else "2"
        exchanges[f"d{number}.part.example"] = ip.replace("127.1.", f"127.{kind}.") if dead else ip
    silent = [ip for name, ip in exchanges.items() if ip.startswith("127.3.")]
    with two(*living, exchanges=exchanges) as (plain, more, sink), _silent(silent, plain.settings.outbound.port):
        case = Case(4, 10)

        def living_rate(system: Remails) -> float:
            order = compare.order(system, case, f"to-{system.home.directory.name}-{time.monotonic_ns()}-", span.seconds)
            domain = "alive.example" if system is plain else "part.example"
            return _living(msgspec.structs.replace(order, domain=domain, domains=DESTINATIONS), sink)

        result = pairs(plain, more, living_rate, span)
        return [figure("destinations", f"{DESTINATIONS:,} destinations, a tenth of them dead", DEAD, result)]


def _living(order: Order, sink: sinks.Sink) -> float:
    """The rate at which mail to the living nine tenths is delivered; Raises Wrong when one of them is lost or doubled."""
    sink.forget()
    sent = compare.send(order)
    wanted = [number for number, at in enumerate(sent.taken) if at and number % (DESTINATIONS // DEAD) != 0]
    deadline = time.monotonic() + 60
    while True:
        seen = sink.counts()
        arrived = [seen["times"].get(f"{order.prefix}{number}") for number in wanted]
        if all(arrived) or time.monotonic() > deadline:
            break
        time.sleep(0.3)
    if sent.refused or not wanted or not all(arrived) or max(seen["mails"].values()) > 1:
        raise Wrong(
            f"mails to the living were lost or doubled: {arrived.count(None)} of {len(wanted)} missing {sent.refused[:1]}"
        )
    last: float = max(at for at in arrived if at)
    return len(wanted) / (last - min(sent.begun))


@contextlib.contextmanager
def _silent(ips: Sequence[str], port: int) -> Iterator[None]:
    """Addresses at which nobody answers: the queue of each is full and nothing is taken from it."""
    with contextlib.ExitStack() as stack:
        for ip in ips:
            listener = stack.enter_context(socket.socket())
            listener.bind((ip, port))
            listener.listen(0)
            waiting_one = stack.enter_context(socket.socket())
            waiting_one.connect((ip, port))
        yield


def main() -> None:
    """Run the experiments that are asked for."""
    every = ("waiting", "storm", "organizations", "processes", "destinations")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", default=every, metavar="EXPERIMENT", help=", ".join(every))
    parser.add_argument("--full", action="store_true", help="longer, and more of everything")
    parser.add_argument("--most", type=int, help="no more of anything than this")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--keep", action="store_true", help="write bench/results/growth.json")
    options = parser.parse_args()
    if unknown := set(options.experiments) - set(every):
        parser.error(f"no such experiment: {', '.join(unknown)}")
    here = kept.machine()
    stop_when_told()
    span = Span(options.rounds or (5 if options.full else 3), options.seconds or (5.0 if options.full else 3.0))
    most = options.most or (5_000_000 if options.full else 1_000_000)

    def upto(*counts: int) -> list[int]:
        return [count for count in counts if count <= most]

    work: dict[str, Callable[[], list[Figure]]] = {
        "waiting": lambda: waiting(span, upto(10_000, 100_000, 1_000_000, 5_000_000)),
        "storm": lambda: storm(span, min(most, 100_000)),
        "organizations": lambda: many_organizations(span, upto(1000, 10_000, 100_000)),
        "processes": lambda: processes(span),
        "destinations": lambda: destinations(span),
    }
    found: list[Figure] = []
    for name in (name for name in work if name in options.experiments):
        try:
            found += work[name]()
        except Wrong as error:
            raise SystemExit(f"FAILED: {error}") from None
        if options.keep:  # after each: what comes later may fail
            kept.write("growth", here, "full" if options.full else "quick", found)


if __name__ == "__main__":
    main()
