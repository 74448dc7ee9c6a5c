#!/usr/bin/env python3
"""How the window of a destination follows a server that takes fewer connections for a while, as a picture.

    python bench/feedback.py --dsn "host=/run/postgresql" [--out bench/feedback.svg]

The server takes any number of connections for ten seconds, then four, and after twenty more seconds any number again; what comes
beyond is sent away with 421, as large providers do. The picture shows the window, the limit, and the mails that arrived or were
sent away in each second.
"""

import argparse
import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

import delivery as bench_delivery
import sink as sinks
import uvloop
from workbench import Bench

LIMITS = [(0.0, 0), (10.0, 4), (30.0, 0)]
SECONDS = 45
CEILING = 20
PAUSE = 0.1  # seconds for each answer: some 50 mails a second at most by ten connections


@dataclass(frozen=True)
class Moment:
    """What was seen at one time."""

    at: float
    window: int
    arrived: int
    refused: int


async def watch(bench: Bench, sink: sinks.Sink) -> list[Moment]:
    """Look twice a second."""
    seen: list[Moment] = []
    loop = asyncio.get_running_loop()
    bench.options |= {"connections_per_destination": CEILING, "first_retry": 1.0, "messages_per_connection": 20}
    async with bench.dns(), bench.work() as service:
        sink.begin()
        started = loop.time()
        while (at := loop.time() - started) < SECONDS:
            windows = [one.window.limit for one in service._destinations._by_key.values()]
            counts = sink.counts()
            seen.append(Moment(at, max(windows, default=5), sum(counts["mails"].values()), counts["refused"]))
            await asyncio.sleep(0.5)
        bench.db.run(lambda conn: conn.execute("DELETE FROM deliveries WHERE status <> 'delivered'"))
    return seen


def picture(seen: list[Moment]) -> str:
    """An SVG of it."""
    width, height, left, top = 900, 180, 50, 30

    def x(at: float) -> float:
        return left + at / SECONDS * width

    def line(points: list[tuple[float, float]], most: float, base: float, colour: str) -> str:
        path = " ".join(f"{x(at):.1f},{base - value / most * height:.1f}" for at, value in points)
        return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'

    pairs = list(zip(seen, seen[2:], strict=False))
    arrived = [(b.at, (b.arrived - a.arrived) / (b.at - a.at)) for a, b in pairs]
    refused = [(b.at, (b.refused - a.refused) / (b.at - a.at)) for a, b in pairs]
    most = max(rate for _, rate in arrived + refused)
    first, second = top + height, 2 * top + 2 * height + 20
    limits = [(at, limit or CEILING) for at, limit in LIMITS]
    steps = [
        point
        for (at, limit), (end, _) in zip(limits, [*limits[1:], (SECONDS, 0)], strict=True)
        for point in ((at, float(limit)), (end, float(limit)))
    ]
    ticks = "".join(
        f'<text x="{x(at)}" y="{second + 18}" text-anchor="middle">{at} s</text>' for at in range(0, SECONDS + 1, 5)
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {second + 30}" font-family="sans-serif" font-size="13">
<rect width="100%" height="100%" fill="white"/>
<text x="{left}" y="18">Connections: <tspan fill="#888">what the server takes</tspan>, <tspan fill="#06c">our window</tspan> (0 to {CEILING})</text>
{line(steps, CEILING, first, "#888")}
{line([(one.at, one.window) for one in seen], CEILING, first, "#06c")}
<text x="{left}" y="{first + 40}">A second: <tspan fill="#080">mails that arrived</tspan>, <tspan fill="#c00">connections sent away with 421</tspan> (0 to {most:.0f})</text>
{line(arrived, most, second, "#080")}
{line(refused, most, second, "#c00")}
{ticks}
</svg>
"""


def main() -> None:
    """Run the experiment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".svg"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, bench_delivery.prepared(options.dsn, Path(directory)) as bench:
        bench_delivery.fill(bench, 6000, 1000)
        with sinks.running("127.0.0.21", bench.port, delay=PAUSE, limits=LIMITS) as sink:
            seen = uvloop.run(watch(bench, sink))
    options.out.write_text(picture(seen))
    limited = [one for one in seen if LIMITS[1][0] < one.at < LIMITS[2][0]]
    print(
        f"{seen[-1].arrived} arrived, {seen[-1].refused} connections sent away; "
        f"window {min(one.window for one in limited)} to {max(one.window for one in limited[8:])} while four were taken"
    )


if __name__ == "__main__":
    main()
