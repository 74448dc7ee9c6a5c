#!/usr/bin/env python3
"""Ours beside Postfix, Exim and Haraka: the same mail through each in turn, to the same sink, on the same processors.

    make bench                                   the usual, under ten minutes
    make bench BENCH=long                        more rounds, longer ones
    PYTHONPATH=tests python bench/compare.py --systems remails postfix --sizes 4 --sessions 10 --rounds 5

All of them run all the time, and one is given mail at a time; the order turns from round to round. What counts is how two of them
compare within a round; the median of that is reported. It fails when one of our mails was lost, came twice, was not signed, or was not recorded
as delivered. Another system that loses one is stopped, and left out from there on.
"""

import argparse
import contextlib
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import kept
import msgspec
import sink as sinks
import systems
from generator import Order, Result
from groups import stop_when_told
from systems import Place, Remails, System
from workbench import free_port

from remails.dev.home import DOMAIN, Home, Ports
from remails.mail import dkim

HERE = Path(__file__).parent
PATIENCE = 20.0  # seconds without an arrival after which what is missing is lost
SIZES = {4: 4096, 50: 50_000}  # kB: octets


class Case(msgspec.Struct, frozen=True, order=True):
    """What is measured: a size in kB and a number of sessions."""

    size: int
    sessions: int
    once: bool = False
    rate: float = 0.0

    @property
    def name(self) -> str:
        """As in the results."""
        return f"{self.size}k_s{self.sessions}{'_once' * self.once}{'_half' * bool(self.rate)}"


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of one system in one round."""

    system: str
    case: str
    mails: int
    accepted: float
    """Mails a second that it took."""
    delivered: float
    """Mails a second from the first command to the last arrival at the sink."""
    accept_ms: list[float]
    """Median and 99th percentile from the first command to the 250."""
    arrive_ms: list[float]
    """The same, to the arrival at the sink."""
    cpu_ms: dict[str, float]
    """Processor time of each group of processes, for each mail."""
    memory_mb: dict[str, dict[str, float]]
    flushes: float = 0.0
    """For each mail: how often the write-ahead log went to the disk."""


class Wrong(Exception):
    """A mail was lost, came twice, or was not as it should be."""


def send(order: Order) -> Result:
    """Have the generator carry it out."""
    done = subprocess.run(
        [sys.executable, HERE / "generator.py"], input=msgspec.json.encode(order), stdout=subprocess.PIPE, check=True
    )
    return msgspec.json.decode(done.stdout, type=Result)


def wait(sink: sinks.Sink, count: int) -> None:
    """Until so many have come, or none comes any more."""
    seen, since = -1, time.monotonic()
    while (total := sink.total()) < count and time.monotonic() - since < PATIENCE:
        if total != seen:
            seen, since = total, time.monotonic()
        time.sleep(0.05)


def order(system: System, case: Case, prefix: str, seconds: float) -> Order:
    """What the generator is to do."""
    return Order(
        port=system.door.port,
        logins=list(system.door.logins),
        domain=systems.SEEN,
        prefix=prefix,
        size=SIZES[case.size],
        sessions=case.sessions,
        seconds=seconds,
        rate=case.rate,
        once=case.once,
    )


_numbers = itertools.count()


def measure(system: System, sink: sinks.Sink, case: Case, seconds: float, signers: Sequence[str] = (DOMAIN,)) -> Round:
    """Give one system mail for so long, and see all of it arrive, signed by one of these domains if ours.

    Raises:
        Wrong: a mail was lost, came twice, or was not as it should be.
    """
    prefix = f"{system.name}{next(_numbers)}x"
    sink.forget()
    sunk, before = sink.counts()["cpu"], system.cpu()
    flushed = system.flushes() if isinstance(system, Remails) else 0
    sent = send(order(system, case, prefix, seconds))
    taken = [number for number, at in enumerate(sent.taken) if at]
    wait(sink, len(taken))
    system.settle()
    seen, after = sink.counts(), system.cpu()
    check(system, sent, seen, prefix, signers)
    mails = len(taken)
    cpu = {name: (after[name] - before[name]) * 1000 / mails for name in after}
    first = min(sent.begun)
    arrived = [seen["times"][f"{prefix}{number}"] for number in taken]
    return Round(
        system=system.name,
        case=case.name,
        mails=mails,
        accepted=mails / (max(sent.taken) - first),
        delivered=mails / (max(arrived) - first),
        accept_ms=percentiles([sent.taken[number] - sent.begun[number] for number in taken]),
        arrive_ms=percentiles([at - sent.begun[number] for number, at in zip(taken, arrived, strict=True)]),
        cpu_ms=cpu
        | {"generator": sent.cpu * 1000 / mails, "sink": (seen["cpu"] - sunk) * 1000 / mails, "all": sum(cpu.values())},
        memory_mb=system.memory(),
        flushes=(system.flushes() - flushed) / mails if isinstance(system, Remails) else 0.0,
    )


def percentiles(seconds: Sequence[float]) -> list[float]:
    """Median and 99th percentile in milliseconds."""
    ordered = sorted(seconds)
    return [1000 * statistics.median(ordered), 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]]


def check(system: System, sent: Result, seen: dict[str, object], prefix: str, signers: Sequence[str]) -> None:
    """Of mails whose names begin with the prefix. Raises Wrong, in words."""
    mails = seen["mails"]
    assert isinstance(mails, dict)
    taken = {f"{prefix}{number}" for number, at in enumerate(sent.taken) if at}
    if sent.refused:
        raise Wrong(f"{system.name}: {len(sent.refused)} sessions ended early: {sent.refused[0]}")
    lost = taken - mails.keys()
    doubled = [name for name, count in mails.items() if count > 1]
    stray = [name for name in mails if not name.startswith(prefix)]
    found = [f"{len(lost)} of {len(taken)} mails were lost"] * bool(lost)
    found += [f"{len(doubled)} mails came more than once"] * bool(doubled)
    found += [f"{len(stray)} mails came that were not sent in this round"] * bool(stray)
    found += ["no mail was taken"] * (not taken)
    if isinstance(system, Remails):
        samples = seen["samples"]
        assert isinstance(samples, list)
        found += [f"{seen['unsigned']} mails were not signed"] * bool(seen["unsigned"])
        found += _unverified(system, samples, signers)
        if left := system.unfinished():
            found.append(f"{left} deliveries are not recorded as delivered")
    if found:
        raise Wrong(f"{system.name}: {'; '.join(found)}")


def _unverified(system: Remails, samples: Sequence[bytes], signers: Sequence[str]) -> list[str]:
    keys = system.keys()
    reasons = []
    for raw in samples:
        verdicts = dkim.verify(raw, lambda name: [keys[name.rstrip(".")]])
        if not any(verdict.ok and verdict.domain in signers for verdict in verdicts):
            reasons.append(f"a signature does not verify: {verdicts}")
    return reasons


@contextlib.contextmanager
def place(*more: str) -> Iterator[tuple[Place, sinks.Sink]]:
    """A directory on the disk, a certificate, and the sink, which listens on `more` addresses too."""
    with tempfile.TemporaryDirectory(prefix="remails-bench-", dir="/var/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        Home(directory, Ports.from_base(20_000)).make_certificate()
        port = free_port()
        with sinks.running([systems.SINK_IP, *more], port) as sink:
            yield Place(directory, directory / "tls/certificate.pem", directory / "tls/key.pem", port), sink


def run(names: Sequence[str], cases: Sequence[Case], rounds: int, seconds: float, half: float) -> list[Round]:
    """All rounds, the systems in turn; then as many of `half` seconds, with ours and Postfix at half of their own highest rate."""
    found: list[Round] = []
    with contextlib.ExitStack() as stack:
        given, sink = stack.enter_context(place())
        running: dict[System, contextlib.ExitStack] = {}
        for name in names:
            ending = stack.enter_context(contextlib.ExitStack())
            running[ending.enter_context(systems.STARTERS[name](given))] = ending

        def measured(system: System, case: Case, seconds: float) -> list[Round]:
            try:
                return [measure(system, sink, case, seconds)]
            except Wrong as error:
                if isinstance(system, Remails):
                    raise
                print(f"{error}: {system.name} is left out from here on", flush=True)
            running.pop(system).close()  # what it still has would come while others are measured
            return []

        for system in list(running):
            measured(system, Case(4, 10), 2.0)  # what is compiled or opened at the first use
        for number, case in itertools.product(range(rounds), cases):
            if not (here := list(running)):
                raise Wrong("all were left out")
            turn = (number + cases.index(case)) % len(here)
            for system in here[turn:] + here[:turn]:
                _tell(found, measured(system, case, seconds))
        halves = {
            system: max(median(found, system.name, case.name) for case in cases if case.size == 4) / 2
            for system in running
            if half and system.name in ("remails", "postfix")
        }
        for _ in range(rounds):
            for system in [one for one in halves if one in running]:
                _tell(found, measured(system, Case(4, 50, rate=halves[system]), half))
    return found


def _tell(found: list[Round], more: Sequence[Round]) -> None:
    found += more
    for one in more:
        print(line(one), flush=True)


def median(rounds: Sequence[Round], system: str, case: str) -> float:
    """Of the delivered rate."""
    return statistics.median(one.delivered for one in rounds if (one.system, one.case) == (system, case))


def line(one: Round) -> str:
    """For who watches."""
    groups = " ".join(f"{name} {ms:.2f}" for name, ms in one.cpu_ms.items() if ms >= 0.005)
    return (
        f"{one.case:>9} {one.system:>8}: taken {one.accepted:6.0f}/s, delivered {one.delivered:6.0f}/s; p50/p99 ms: taken "
        f"{one.accept_ms[0]:.1f}/{one.accept_ms[1]:.0f}, arrived {one.arrive_ms[0]:.0f}/{one.arrive_ms[1]:.0f}; cpu ms: {groups}"
    )


def ratios(rounds: Sequence[Round], value: str = "delivered") -> dict[str, float]:
    """How many times each other system's rate ours is: pair by pair, then the median."""
    series: dict[tuple[str, str], list[float]] = {}
    for one in rounds:
        figure = one.cpu_ms["all"] if value == "cpu" else getattr(one, value)
        series.setdefault((one.system, one.case), []).append(figure)
    found = {}
    for (system, case), theirs in series.items():
        if system != "remails" and ("remails", case) in series:
            # Each of one round; who was left out has none of the last.
            pairs = zip(series["remails", case], theirs, strict=False)
            found[f"{system}_{case}"] = statistics.median(our / their for our, their in pairs)
    return found


def main() -> None:
    """Measure, print, and keep the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", default=list(systems.STARTERS), choices=list(systems.STARTERS))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--sessions", nargs="+", type=int, default=[1, 10, 50])
    parser.add_argument("--once", action="store_true", help="a connection with login for each mail")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="for which each is given mail in a round")
    parser.add_argument("--half", type=float, default=0.0, help="seconds at half of the highest rate")
    parser.add_argument("--full", action="store_true", help="longer")
    parser.add_argument("--keep", action="store_true", help="write bench/results/compare.json")
    options = parser.parse_args()
    if options.half and 4 not in options.sizes:
        parser.error("--half is measured with mails of 4 kB")
    here = kept.machine()
    stop_when_told()
    names = [name for name in options.systems if not _left_out(name, options.full)]
    cases = [Case(size, sessions, options.once) for size in options.sizes for sessions in options.sessions]
    if options.full:
        cases.append(Case(4, 10, True))
    try:
        rounds = run(
            names,
            cases,
            options.rounds or (7 if options.full else 3),
            options.seconds or (6.0 if options.full else 3.0),
            options.half,
        )
    except Wrong as error:
        raise SystemExit(f"FAILED: {error}") from None
    print("\nours to theirs, median of the rounds' pairs:")
    for value, words in (
        ("delivered", "delivered a second"),
        ("accepted", "taken a second"),
        ("cpu", "processor time"),
    ):
        print(f"  {words}: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios(rounds, value).items()))
    if options.keep:
        kept.write("compare", here, "full" if options.full else "quick", rounds)


def _left_out(name: str, strict: bool) -> bool:
    lacking = systems.missing(name)
    if lacking and strict:
        raise SystemExit(f"{name} cannot be measured: {lacking} not here (tests/prepare bench, as root)")
    if lacking:
        print(f"{name} is left out: {lacking} not here (tests/prepare bench, as root)")
    return bool(lacking)


if __name__ == "__main__":
    main()
