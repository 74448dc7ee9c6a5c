"""Two kinds of plot as SVG: bars, and lines over a logarithmic axis."""

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a", "#787774", "#cb912f", "#6c8ebf", "#d44c47", "#2f2f2f")
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 760, 260, 60, 50, 60

Series = Mapping[str, Mapping[str, float]]
"""By series, by name on the axis."""


def _frame(title: str, legend: Sequence[str], body: str) -> str:
    width, height = _LEFT + _WIDTH + 20, _TOP + _HEIGHT + _BOTTOM
    keys, x = "", float(_LEFT)
    for number, name in enumerate(legend):
        keys += f'<rect x="{x:.0f}" y="30" width="10" height="10" fill="{COLOURS[number % len(COLOURS)]}"/>'
        keys += f'<text x="{x + 14:.0f}" y="40">{escape(name)}</text>'
        x += 30 + 7.2 * len(name)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n<text x="{_LEFT}" y="18" font-size="14">{escape(title)}</text>\n'
        f"{keys}\n{body}</svg>\n"
    )


def _scale(most: float) -> tuple[float, list[float]]:
    """The end of the axis and its marks."""
    step = 10 ** math.floor(math.log10(most or 1))
    step = next(step * part for part in (0.2, 0.5, 1, 2) if most / (step * part) <= 6)
    count = math.ceil(most / step)
    return count * step, [number * step for number in range(count + 1)]


def _grid(top: float, marks: Sequence[float]) -> str:
    lines = ""
    for mark in marks:
        y = _TOP + _HEIGHT - mark / top * _HEIGHT
        lines += f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        lines += f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{mark:g}</text>\n'
    return lines


def bars(title: str, given: Series, *, stacked: bool = False) -> str:
    """Groups of bars, one for each series, or one bar with the series upon each other."""
    names = list(dict.fromkeys(name for values in given.values() for name in values))
    heights = [
        sum(v.get(n, 0) for v in given.values()) if stacked else max(v.get(n, 0) for v in given.values()) for n in names
    ]
    top, marks = _scale(max(heights))
    body = _grid(top, marks)
    room = _WIDTH / len(names)
    width = room * 0.7 / (1 if stacked else len(given))
    for place, name in enumerate(names):
        x, base = _LEFT + place * room + room * 0.15, float(_TOP + _HEIGHT)
        for number, values in enumerate(given.values()):
            height = values.get(name, 0.0) / top * _HEIGHT
            left = x if stacked else x + number * width
            colour = COLOURS[number % len(COLOURS)]
            body += f'<rect x="{left:.1f}" y="{base - height:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>\n'
            base -= height if stacked else 0
        body += (
            f'<text x="{x + room * 0.35:.1f}" y="{_TOP + _HEIGHT + 18}" text-anchor="middle">{escape(name)}</text>\n'
        )
    return _frame(title, list(given), body)


def lines(title: str, given: Mapping[str, Sequence[tuple[float, float]]], below: str) -> str:
    """Lines; the axis below is logarithmic, with 0 at its left end."""
    top, marks = _scale(max(y for points in given.values() for _, y in points))
    exponents = [math.log10(x) for points in given.values() for x, _ in points if x > 0]
    low, high = math.floor(min(exponents)) - 1, math.ceil(max(exponents))

    def at(x: float) -> float:
        return _LEFT + ((math.log10(x) if x > 0 else low) - low) / (high - low) * _WIDTH

    body = _grid(top, marks)
    for exponent in range(low, high + 1):
        text = "0" if exponent == low else f"{10**exponent:,}"
        body += f'<text x="{at(10**exponent):.1f}" y="{_TOP + _HEIGHT + 18}" text-anchor="middle">{text}</text>\n'
    body += f'<text x="{_LEFT + _WIDTH / 2}" y="{_TOP + _HEIGHT + 40}" text-anchor="middle">{escape(below)}</text>\n'
    for number, points in enumerate(given.values()):
        colour = COLOURS[number % len(COLOURS)]
        places = [(at(x), _TOP + _HEIGHT - y / top * _HEIGHT) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        body += f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>\n'
        body += "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>\n' for x, y in places)
    return _frame(title, list(given), body)
