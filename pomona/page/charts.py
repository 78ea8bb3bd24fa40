"""Charts as inline SVG: no script, nothing loaded. Colours come from the page's variables, so that both themes work."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from html import escape

WIDTH, LABEL, VALUE = 520, 140, 140  # of a bar chart: the whole, the names at its left, the numbers at its right
BAR, GAP, THIN = 17, 8, 6
MOST_DOTS = 40  # on a curve: more would hide it
NAME = 75  # how wide the name of a line is: names do not lie on each other


@dataclasses.dataclass(frozen=True)
class Bar:
    """One row of a bar chart: a length made of parts, or none and the reason."""

    name: str
    group: str
    """Which colour the row has, where it has one part."""
    parts: tuple[float, ...]
    text: str
    """What is written at the end of the bar, or instead of it."""


def bars(title: str, rows: Sequence[Bar], most: float | None = None) -> str:
    """Horizontal bars; several parts of one bar lie end to end in the colours part0, part1, ...

    Args:
        most: where a line marks the limit of all rows.
    """
    longest = max([most or 0.0, *(sum(row.parts) for row in rows)]) or 1.0
    room = WIDTH - LABEL - VALUE
    shapes, y = [], 0
    for row in rows:
        x = float(LABEL)
        shapes.append(_text(LABEL - 10, y + BAR - 4, row.name, "end"))
        for number, part in enumerate(row.parts):
            width = part / longest * room
            colour = row.group if len(row.parts) == 1 else f"part{number}"
            shapes.append(f'<rect class="{colour}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}"/>')
            x += width
        end = LABEL + room if most and row.parts else x  # beyond the limit's line
        shapes.append(_text(end + 8, y + BAR - 4, row.text, "start", "value" if row.parts else "none"))
        y += BAR + GAP
    if most:
        x = LABEL + most / longest * room
        shapes.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="-4" y2="{y - GAP + 4}"/>')
    return _svg(title, y, shapes)


def grouped(title: str, rows: Sequence[Bar]) -> str:
    """Thin bars one under the other for each row, all rows to their own longest."""
    room, shapes, y = WIDTH - LABEL - VALUE, [], 0
    for row in rows:
        height = max(1, len(row.parts)) * THIN
        shapes.append(_text(LABEL - 10, y + height / 2 + 5, row.name, "end"))
        longest = max(row.parts, default=0.0) or 1.0
        for number, part in enumerate(row.parts):
            width = max(part / longest * room, 1.0 if part else 0.0)
            place = f'x="{LABEL}" y="{y + number * THIN}" width="{width:.1f}" height="{THIN - 1}"'
            shapes.append(f'<rect class="part{number}" {place}/>')
        shapes.append(_text(LABEL + room + 8 if row.parts else LABEL, y + height / 2 + 5, row.text, "start", "value"))
        y += max(height, BAR) + GAP
    return _svg(title, y, shapes)


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    group: str
    points: tuple[tuple[float, float], ...]


def lines(title: str, rows: Sequence[Line], x_text: Callable[[float], str], y_text: Callable[[float], str]) -> str:
    """Lines on two logarithmic axes, with a dot for each point, named at their last one."""
    points = [point for row in rows for point in row.points]
    if not points:
        return ""
    left, right, height = 74, 86, 260
    x_ticks, y_ticks = (_ticks([point[i] for point in points]) for i in (0, 1))

    def place(value: float, ticks: Sequence[float], start: float, end: float) -> float:
        low, high = math.log(ticks[0]), math.log(ticks[-1])
        return start + (math.log(value) - low) / (high - low) * (end - start)

    shapes = []
    for tick in x_ticks:
        x = place(tick, x_ticks, left, WIDTH - right)
        shapes.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>')
        shapes.append(_text(x, height + 18, x_text(tick), "middle", "tick"))
    for tick in y_ticks:
        y = place(tick, y_ticks, height, 0)
        shapes.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        shapes.append(_text(left - 8, y + 4, y_text(tick), "end", "tick"))
    names: list[tuple[float, float]] = []
    for row in rows:
        spots = [(place(x, x_ticks, left, WIDTH - right), place(y, y_ticks, height, 0)) for x, y in row.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        shapes.append(f'<polyline class="stroke-{row.group}" points="{path}"/>')
        shapes += [f'<circle class="{row.group}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in spots]
        x, y = spots[-1]
        while any(abs(x - other_x) < NAME and abs(y - other_y) < 14 for other_x, other_y in names):
            y += 7
        names.append((x, y))
        shapes.append(_text(x + 9, y + 4, row.name, "start", "value"))
    return _svg(title, height + 26, shapes)


def curves(title: str, rows: Sequence[Line], x_name: str) -> str:
    """Curves on two linear axes; the title says what they are. Nothing where there is no point."""
    points = [point for row in rows for point in row.points]
    if not points:
        return ""
    x_ticks, y_ticks = _round_ticks([0.0, *(x for x, _ in points)]), _round_ticks([y for _, y in points])
    longest = max(len(f"{tick:,.10g}") for tick in y_ticks)
    left, right, height = max(44, 16 + 7 * longest), 12, 170

    def place(value: float, ticks: Sequence[float], start: float, end: float) -> float:
        return start + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (end - start)

    shapes = []
    for tick in x_ticks:
        x = place(tick, x_ticks, left, WIDTH - right)
        last = tick == x_ticks[-1]
        shapes.append(_text(x, height + 18, f"{tick:,.10g}", "end" if last else "middle", "tick"))
    for tick in y_ticks:
        y = place(tick, y_ticks, height, 0)
        shapes.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        shapes.append(_text(left - 8, y + 4, f"{tick:,.10g}", "end", "tick"))
    shapes.append(_text((left + WIDTH - right) / 2, height + 36, x_name, "middle", "tick"))
    for row in rows:
        spots = [(place(x, x_ticks, left, WIDTH - right), place(y, y_ticks, height, 0)) for x, y in row.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        shapes.append(f'<polyline class="stroke-{row.group}" points="{path}"/>')
        if len(spots) <= MOST_DOTS:
            shapes += [f'<circle class="{row.group}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in spots]
    return _svg(title, height + 44, shapes)


def legend(names: Sequence[tuple[str, str]]) -> str:
    """Colour squares with their names: (class, name)."""
    items = (f'<span><i class="{escape(colour)}"></i>{escape(name)}</span>' for colour, name in names)
    return f'<p class="legend">{" ".join(items)}</p>'


def _ticks(values: Sequence[float]) -> list[float]:
    """1, 2, 5, 10, ... from below the least value to above the largest."""
    low, high = min(values), max(values)
    steps = [digit * 10.0**power for power in range(-9, 16) for digit in (1, 2, 5)]
    first = max((i for i, step in enumerate(steps) if step <= low * 0.98), default=0)
    last = min((i for i, step in enumerate(steps) if step >= high * 1.02), default=len(steps) - 1)
    return steps[first : last + 1]


def _round_ticks(values: Sequence[float]) -> list[float]:
    """Three to seven round numbers at equal distances, from below the least value to above the largest."""
    low, high = min(values), max(values)
    spread = high - low or abs(high) or 1.0
    size = 10.0 ** math.floor(math.log10(spread))
    step = next(part * size for part in (0.2, 0.5, 1.0, 2.0) if spread / (part * size) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _text(x: float, y: float, content: str, anchor: str, kind: str = "name") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def _svg(title: str, height: float, shapes: Sequence[str]) -> str:
    box = f'viewBox="0 -6 {WIDTH} {height + 12:.0f}" role="img" aria-label="{escape(title)}"'
    return f"<figure><figcaption>{escape(title)}</figcaption><svg {box}>{''.join(shapes)}</svg></figure>"
