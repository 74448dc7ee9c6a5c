#!/usr/bin/env python3
"""How large a fleet must be: arithmetic with the processor times that bench/compare.py measured.

    PYTHONPATH=tests python bench/simulation.py [--busy 0.5]

A day's mail does not come evenly: `PROFILE` is the share of each hour in a country's day, and within the busiest hour a minute may
bring `BURST` times its even share. Hosts are counted so that in that minute no processor of theirs is busier than `busy`, with one host more
of each kind than needed, since any one may be lost. What a mail costs is that at half of the highest rate, for that is how busy they are:
batches are smaller then, and each mail pays more for its share. Every part scales with the mails a second, since nothing in a service is shared with
another host's but PostgreSQL, of which one is primary: what a second costs there is what limits all.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass

import kept
import msgspec

PROFILE = (
    1,
    0.6,
    0.5,
    0.5,
    0.6,
    1.2,
    2.5,
    4.5,
    6.5,
    7.6,
    7.5,
    7.0,
    6.6,
    6.6,
    6.7,
    6.6,
    6.3,
    6.0,
    5.6,
    5.2,
    4.5,
    3.4,
    2.3,
    1.7,
)
"""Shares of the hours, in percent, about."""
BURST = 2.0
CORES = {"edge": 2, "inbound": 4, "outbound": 4, "postgresql": 16}
"""Of one host of each kind."""
KINDS = {
    "inbound": ("inbound", "bus", "periodic", "api"),
    "outbound": ("outbound", "ipagent"),
    "postgresql": ("postgresql",),
}
"""Which processes run on which kind of host."""
WAL_PER_MAIL = 3.0
"""Octets written to the log for each octet of mail: the body once, rows and indexes about as much again, and full pages."""
ROUND_TRIPS = 4
"""For one mail over a kept connection, with what a large provider's server takes to answer."""
HALF, ALONE = "4k_s50_half", "4k_s1"
"""Cases of bench/compare.py: at half of the highest rate, and where no mail shares a batch with another."""


@dataclass(frozen=True)
class Fleet:
    """What so many mails a day need."""

    mails_a_day: int
    peak: float
    """Mails a second in the busiest minute."""
    hosts: Mapping[str, int]
    database_cores: float
    """Of one PostgreSQL primary in that minute, fully busy."""
    connections: float
    """Open to the world's mail servers in that minute, at 50 ms a round trip."""


def fleet(mails_a_day: int, cpu_ms: Mapping[str, float], busy: float = 0.5) -> Fleet:
    """Reckon it. `cpu_ms`: of each group of processes, for each mail."""
    peak = mails_a_day * max(PROFILE) / sum(PROFILE) / 3600 * BURST
    hosts = {}
    for kind, words in KINDS.items():
        cores = peak * sum(cpu_ms.get(word, 0.0) for word in words) / 1000
        needed = max(1, math.ceil(cores / (CORES[kind] * busy)))
        hosts[kind] = needed + 1 if kind != "postgresql" else needed
    database = peak * cpu_ms.get("postgresql", 0.0) / 1000
    return Fleet(mails_a_day, peak, hosts, database, peak * ROUND_TRIPS * 0.05)


def limit(cpu_ms: Mapping[str, float], cores: int = CORES["postgresql"], busy: float = 0.5) -> float:
    """Mails a second at which one PostgreSQL of so many cores is as busy as it should be."""
    return cores * busy / (cpu_ms["postgresql"] / 1000)


def blocks(cpu_ms: Mapping[str, float], alone_ms: Mapping[str, float]) -> dict[str, str]:
    """For docs/performance.md; `alone_ms` of mails that share no batch."""
    if "postgresql" not in cpu_ms:
        return {}
    rows = [
        "| mails a day | a second in the busiest minute | inbound | outbound | PostgreSQL | cores of PostgreSQL, busy | connections out |"
    ]
    rows.append("|" + " --- |" * 7)
    for millions in (1, 10, 100):
        one = fleet(millions * 1_000_000, cpu_ms)
        count = one.hosts["postgresql"]
        servers = "1" if count == 1 else f"{count} shards"
        rows.append(
            f"| {millions} million | {one.peak:.0f} | {one.hosts['inbound']} | {one.hosts['outbound']} | {servers} | "
            f"{one.database_cores:.1f} | {one.connections:.0f} |"
        )
    most = limit(cpu_ms)
    a_day = most / BURST * 3600 * sum(PROFILE) / max(PROFILE)
    text = (
        f"One PostgreSQL with {CORES['postgresql']} cores, half busy in the busiest minute, is good for {most:,.0f} mails a second "
        f"then, which is {a_day / 1e6:.0f} million a day of this profile. The log comes to {most * 4096 * WAL_PER_MAIL / 1e6:.0f} MB a second "
        f"at 4 kB a mail (reckoned with {WAL_PER_MAIL:g} octets of log for each octet of mail)."
    )
    if "postgresql" in alone_ms:
        text += f" Were the mails of so many processes to share no batch any more, it would be {limit(alone_ms):,.0f} a second."
    return {"fleet": "\n".join(rows), "limit": text}


def main() -> None:
    """Print it."""
    from compare import Round
    from report import Compared

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=float, default=0.5, help="how busy a processor may be in the busiest minute")
    options = parser.parse_args()
    part = kept.read("compare")
    if part is None:
        raise SystemExit("nothing was measured yet: make bench")
    cpu_ms = Compared(msgspec.convert(part.figures, list[Round])).groups("remails", HALF)
    if "postgresql" not in cpu_ms:
        raise SystemExit("ours was not measured at half of its highest rate: make bench")
    for millions in (1, 10, 100):
        print(fleet(millions * 1_000_000, cpu_ms, options.busy))
    print(f"PostgreSQL: {limit(cpu_ms, busy=options.busy):.0f} mails a second")


if __name__ == "__main__":
    main()
