#!/usr/bin/env python3
"""From what was measured last: bench/results/summary.json, the plots, and the figures in docs/performance.md.

    PYTHONPATH=tests python bench/report.py

It measures nothing. What was not measured is left out, or said to be missing; no figure comes from anywhere else.
"""

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import kept
import msgspec
import pictures
import simulation
from compare import Round, ratios
from growth import Figure

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
RATIOS = ("postfix_4k_s10", "postfix_4k_s50", "postfix_50k_s10", "exim_4k_s10", "haraka_4k_s10")
GOALS = {"postfix_4k_s10": 1.5, "postfix_4k_s50": 1.5, "postfix_50k_s10": 1.2, "exim_4k_s10": 4.0}
NAMES = {"remails": "Remails", "postfix": "Postfix", "exim": "Exim", "haraka": "Haraka"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _case(case: str) -> str:
    size, sessions, *more = case.split("_")
    words = {"once": ", a connection and login for each mail", "half": ", at half of its highest rate"}
    count = int(sessions[1:])
    return f"{size[:-1]} kB, {count} session{'s' * (count > 1)}{''.join(words[one] for one in more)}"


class Compared:
    """What bench/compare.py found."""

    def __init__(self, rounds: Sequence[Round]) -> None:
        self.rounds = rounds
        self.systems = [name for name in NAMES if any(one.system == name for one in rounds)]
        self.cases = list(dict.fromkeys(one.case for one in rounds))
        self.full = [case for case in self.cases if not case.endswith("_half")]

    def median(self, system: str, case: str, value: Callable[[Round], float]) -> float | None:
        """Of all rounds; None: not measured."""
        found = [value(one) for one in self.rounds if (one.system, one.case) == (system, case)]
        return statistics.median(found) if found else None

    def groups(self, system: str, case: str) -> dict[str, float]:
        """Milliseconds of processor time by group of processes."""
        rounds = [one for one in self.rounds if (one.system, one.case) == (system, case)]
        return (
            {name: statistics.median(one.cpu_ms[name] for one in rounds) for name in rounds[0].cpu_ms} if rounds else {}
        )

    def each(self, value: Callable[[Round], float], form: str = "{:.0f}", cases: Sequence[str] = ()) -> str:
        """A table: a row for each case, a column for each system."""
        rows = []
        for case in cases or self.full:
            cells = [self.median(system, case, value) for system in self.systems]
            rows.append([_case(case), *("-" if cell is None else form.format(cell) for cell in cells)])
        return table(["", *(NAMES[name] for name in self.systems)], rows)


def _compare(found: Compared) -> dict[str, str]:
    blocks = {}
    rows = []
    delivered, cpu = ratios(found.rounds), ratios(found.rounds, "cpu")
    for case in found.full:
        cells = [
            f"{delivered[key]:.2f}" if (key := f"{name}_{case}") in delivered else "-" for name in found.systems[1:]
        ]
        rows.append([_case(case), *cells, f"{cpu[key]:.2f}" if (key := f"postfix_{case}") in cpu else "-"])
    head = ["", *(f"rate / {NAMES[name]}'s" for name in found.systems[1:]), "processor time / Postfix's"]
    goals = [
        [
            f"rate / {NAMES[name.split('_')[0]]}'s, {_case(name.split('_', 1)[1])}",
            f"at least {goal}",
            f"{delivered[name]:.2f}" if name in delivered else "not measured",
        ]
        for name, goal in GOALS.items()
    ]
    goals += _latency_goals(found)
    blocks["goals"] = table(["", "goal", "measured"], goals)
    blocks["ratios"] = table(head, rows) + _left_out(found)
    blocks["rates"] = found.each(lambda one: one.delivered)
    blocks["accepted"] = found.each(lambda one: one.accepted)
    blocks["cpu"] = found.each(lambda one: one.cpu_ms["all"], "{:.2f}")
    latency = []
    for case in found.cases:
        for name in found.systems:
            quantiles = [
                found.median(name, case, value)
                for value in (
                    lambda one: one.accept_ms[0],
                    lambda one: one.accept_ms[1],
                    lambda one: one.arrive_ms[0],
                    lambda one: one.arrive_ms[1],
                )
            ]
            if quantiles[0] is not None:
                latency.append([_case(case), NAMES[name], *(f"{one:.1f}" for one in quantiles if one is not None)])
    blocks["latency"] = table(["", "", "taken p50", "taken p99", "arrived p50", "arrived p99"], latency)
    groups = {case: found.groups("remails", case) for case in ("4k_s10", "50k_s10", simulation.HALF)}
    names = [name for name in groups["4k_s10"] if name != "all"]
    blocks["groups"] = table(
        ["processes", *(_case(case) for case in groups if groups[case])],
        [[name, *(f"{values.get(name, 0):.2f}" for values in groups.values() if values)] for name in names],
    )
    blocks["memory"] = _memory(found)
    return blocks


def _left_out(found: Compared) -> str:
    """Who was not there all the time, for whoever reads the ratios."""
    times = {name: sum(one.system == name and one.case in found.full for one in found.rounds) for name in NAMES}
    said = [
        f"{NAMES[name]} lost mail and was left out after {count} of {times['remails']} measurements."
        if count
        else f"{NAMES[name]} was not measured."
        for name, count in times.items()
        if count < times["remails"]
    ]
    return "\n\n" * bool(said) + " ".join(said)


def _latency_goals(found: Compared) -> list[list[str]]:
    rows = []
    for case in (case for case in found.cases if case.endswith("_half")):
        arrive = found.median("remails", case, lambda one: one.arrive_ms[1])
        accept = found.median("remails", case, lambda one: one.accept_ms[1])
        if arrive is not None and accept is not None:
            rows.append(
                [
                    "from the first command to the sink, p99 at half of the highest rate",
                    "under 150 ms",
                    f"{arrive:.0f} ms",
                ]
            )
            rows.append(
                [
                    "from the first command to the 250, p99 at half of the highest rate",
                    "under 50 ms",
                    f"{accept:.0f} ms",
                ]
            )
            break
    cpu = ratios(found.rounds, "cpu")
    if "postfix_4k_s10" in cpu:
        rows.append(["processor time / Postfix's, 4 kB, 10 sessions", "below 1", f"{cpu['postfix_4k_s10']:.2f}"])
    if largest := _largest(found):
        word, most = max(largest.items(), key=lambda item: item[1])
        rows.append(["memory of a service's process", "under 150 MB", f"{most:.0f} MB ({word})"])
    return rows


def _largest(found: Compared) -> dict[str, float]:
    ours = [one for one in found.rounds if one.system == "remails" and one.case.startswith("4k")]
    words = [word for word in (ours[0].memory_mb if ours else {}) if word not in ("postgresql", "names")]
    return {word: max(one.memory_mb[word]["largest"] for one in ours) for word in words}


def _memory(found: Compared) -> str:
    rows = [[word, f"{most:.0f}"] for word, most in _largest(found).items()]
    text = table(["service", "largest process (RSS, MB)"], rows)
    totals = {
        name: max(sum(g["total"] for g in one.memory_mb.values()) for one in found.rounds if one.system == name)
        for name in found.systems
    }
    return (
        text
        + "\n\nAll processes together (PSS): "
        + ", ".join(f"{NAMES[n]} {mb:.0f} MB" for n, mb in totals.items())
        + "."
    )


def _plots(found: Compared) -> dict[str, str]:
    drawn = {}
    relative = ratios(found.rounds)
    drawn["rates"] = pictures.bars(
        "Delivered mails a second",
        {
            NAMES[name]: {
                case.replace("_", " "): rate
                for case in found.full
                if (rate := found.median(name, case, lambda one: one.delivered)) is not None
            }
            for name in found.systems
        },
    )
    bars = {
        f"rate of ours / {NAMES[name]}'s": {
            k: v
            for k, v in ((case.replace("_", " "), relative.get(f"{name}_{case}")) for case in found.full)
            if v is not None
        }
        for name in found.systems
        if name in ("postfix", "haraka")
    }
    if any(bars.values()):
        drawn["ratios"] = pictures.bars(
            "How many times as fast: median of the rounds' pairs", {k: v for k, v in bars.items() if v}
        )
    stacks: dict[str, dict[str, float]] = {}
    for case in (case for case in ("4k_s10", "50k_s10") if case in found.full):
        for name in found.systems:
            for group, ms in found.groups(name, case).items():
                if group != "all" and ms >= 0.02:
                    stacks.setdefault(group, {})[f"{NAMES[name]} {case.split('_')[0]}"] = ms
    measured = {name for values in stacks.values() for name in values}
    order = [bar for size in ("4k", "50k") for name in found.systems if (bar := f"{NAMES[name]} {size}") in measured]
    stacks = {group: {name: values.get(name, 0.0) for name in order} for group, values in stacks.items()}
    if stacks:
        drawn["cpu"] = pictures.bars("Processor time for each mail, ms (10 sessions)", stacks, stacked=True)
    return drawn


def _micro(part: kept.Part) -> str:
    return table(
        ["", "a second", "own processor time, ms", "PostgreSQL's, ms"],
        [
            [one["what"], f"{one['per_s']:,.0f}", f"{one['own_ms']:.3f}", f"{one['postgresql_ms']:.3f}"]
            for one in part.figures
        ],
    )


def _growth(figures: Sequence[Figure]) -> str:
    rows = [
        [one.what, "-" if one.p99_ms else f"{one.ratio:.2f}", f"{one.p99_ms:.0f} ms" if one.p99_ms else "-"]
        for one in figures
    ]
    return table(["", "rate / that of a plain installation", "fresh mail to the sink, p99"], rows)


def _growth_goals(figures: Sequence[Figure]) -> str:
    rows = []
    for one in figures:
        match one.experiment:
            case "waiting" if one.more == 1_000_000:
                rows.append(["rate with 1,000,000 waiting", "at least 0.90", f"{one.ratio:.2f}"])
            case "storm":
                rows.append(
                    [f"p99 of fresh mail in a storm of {one.more:,.0f}", "under 1000 ms", f"{one.p99_ms:.0f} ms"]
                )
            case "destinations":
                rows.append(["rate with a tenth of the destinations dead", "at least 0.95", f"{one.ratio:.2f}"])
    return table(["", "goal", "measured"], rows)


def _growth_plot(figures: Sequence[Figure]) -> str | None:
    given = {
        words: [(0.0, 1.0), *((one.more, one.ratio) for one in figures if one.experiment == name)]
        for name, words in (("waiting", "deliveries that are not due"), ("organizations", "organizations"))
    }
    given = {words: points for words, points in given.items() if len(points) > 1}
    return pictures.lines("Rate, of that of a plain installation", given, "how many") if given else None


def summary(parts: Mapping[str, kept.Part], found: Compared | None) -> dict[str, object]:
    """As it is kept in bench/results/summary.json."""
    measured = ratios(found.rounds) if found else {}
    figures: dict[str, object] = {name: part.figures for name, part in parts.items() if name != "compare"}
    if found:
        figures["compare"] = {
            f"{system}_{case}": {
                "accepted_per_s": found.median(system, case, lambda one: one.accepted),
                "delivered_per_s": found.median(system, case, lambda one: one.delivered),
                "accept_ms_p50": found.median(system, case, lambda one: one.accept_ms[0]),
                "accept_ms_p99": found.median(system, case, lambda one: one.accept_ms[1]),
                "arrive_ms_p50": found.median(system, case, lambda one: one.arrive_ms[0]),
                "arrive_ms_p99": found.median(system, case, lambda one: one.arrive_ms[1]),
                "cpu_ms": found.groups(system, case),
            }
            for system in found.systems
            for case in found.cases
            if found.median(system, case, lambda one: one.delivered) is not None
        }
        figures["cpu_ratios"] = ratios(found.rounds, "cpu")
        figures["memory_mb"] = _largest(found)
    first = next(iter(parts.values()))
    return {
        "ratios": {name: round(measured[name], 3) for name in RATIOS if name in measured},
        "figures": figures,
        "machine": first.machine,
        "commit": first.commit,
    }


def main() -> None:
    """Write all of it."""
    parts = {name: part for name in ("compare", "growth", "micro") if (part := kept.read(name)) is not None}
    if not parts:
        raise SystemExit("nothing was measured yet: make bench")
    found = Compared(msgspec.convert(parts["compare"].figures, list[Round])) if "compare" in parts else None
    blocks = _compare(found) if found else {}
    blocks["machine"] = _machine(parts)
    plots = _plots(found) if found else {}
    if found:
        blocks |= simulation.blocks(*(found.groups("remails", case) for case in (simulation.HALF, simulation.ALONE)))
    if "micro" in parts:
        blocks["micro"] = _micro(parts["micro"])
    if "growth" in parts:
        growth = msgspec.convert(parts["growth"].figures, list[Figure])
        blocks["growth"], blocks["growth_goals"] = _growth(growth), _growth_goals(growth)
        if (drawn := _growth_plot(growth)) is not None:
            plots["growth"] = drawn
    for name, text in plots.items():
        (kept.DIRECTORY / f"{name}.svg").write_text(text)
    said = msgspec.json.format(msgspec.json.encode(summary(parts, found)))
    (kept.DIRECTORY / "summary.json").write_bytes(said + b"\n")
    PAGE.write_text(filled(PAGE.read_text(), blocks))


def filled(page: str, blocks: Mapping[str, str]) -> str:
    """The page with each block between its two comments; one that was not measured says so."""

    def block(found: re.Match[str]) -> str:
        return f"{found[1]}\n{blocks.get(found[2], 'Not measured yet.')}\n{found[3]}"

    return re.sub(r"(<!-- measured: (\w+) -->)\n.*?\n?(<!-- end -->)", block, page, flags=re.DOTALL)


def _machine(parts: Mapping[str, kept.Part]) -> str:
    rows = [
        [
            name,
            part.mode,
            f"`{part.commit}`",
            f"{part.machine.cpu}, {part.machine.cores} cores",
            f"{part.machine.busy_before}",
        ]
        for name, part in parts.items()
    ]
    one = next(iter(parts.values())).machine
    text = table(["part", "mode", "commit", "machine", "processors busy before"], rows)
    return f"{text}\n\nPython {one.python}, {one.postgresql}, Linux {one.kernel}, {one.memory_gb:.0f} GB."


if __name__ == "__main__":
    main()
