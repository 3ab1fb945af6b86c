"""Charts as SVG text: lines with bands and direct labels, histograms, shares of a whole.

Colours are classes of page.css (`k0` to `k5`, `grey`), so that one drawing serves light, dark and
paper. Every label passes through `escape`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from azr.accuracy import Interval
from azr.report.words import number, percent

WIDTH, HEIGHT = 360, 214
LEFT, TOP, BOTTOM = 40, 12, 28
POINTS = 240
"""Points of a drawn line; a longer series is averaged into so many equal parts."""
LABEL_HEIGHT = 13.0
CHAR_WIDTH = 5.9

Unit = Literal["share", "number"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A curve: `low` and `high` bound its band; a noisy one is drawn as its running mean."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    colour: str = "k0"
    dash: Literal["", "dashed", "dotted"] = ""
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    is_noisy: bool = False
    is_labelled: bool = True


@dataclass(frozen=True, slots=True)
class _Scale:
    """Data to the places of one drawing."""

    x0: float
    x1: float
    y0: float
    y1: float
    right: float

    def x(self, value: float) -> float:
        span = self.x1 - self.x0 or 1.0
        return LEFT + (value - self.x0) / span * (WIDTH - self.right - LEFT)

    def y(self, value: float) -> float:
        inside = min(max(value, self.y0), self.y1)
        return HEIGHT - BOTTOM - (inside - self.y0) / (self.y1 - self.y0) * (HEIGHT - BOTTOM - TOP)


def draw_lines(title: str, lines: Sequence[Line], unit: Unit = "number", note: str = "") -> str:
    """Returns a <figure> with the curves, or "" where no line has a point.

    A share has the axis 0 to 100%; other values have an axis that fits them.
    """
    lines = [line for line in lines if len(line.steps)]
    if not lines:
        return ""
    scale = _scale(lines, unit)
    show = percent if unit == "share" else number
    parts = [_axes(scale, _y_ticks(scale, unit), show)]
    parts += [_band(line, scale) for line in lines if len(line.low)]
    parts += [_curve(line, scale, show) for line in lines]
    parts.append(_labels([line for line in lines if line.is_labelled], scale))
    spoken = "; ".join(
        f"{line.label} from {show(line.values[0])} to {show(line.values[-1])}" for line in lines
    )
    data = f'data-x="{scale.x0:g} {scale.x1:g}" data-y="{scale.y0:.6g} {scale.y1:.6g}"'
    place = f'data-box="{LEFT} {WIDTH - scale.right:.1f} {TOP} {HEIGHT - BOTTOM}"'
    svg = (
        f'<svg class="lines" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" data-unit="{unit}" '
        f'{data} {place} aria-label="{escape(f"{title}: {spoken}")}">{"".join(parts)}</svg>'
    )
    return _figure(title, svg, note)


def draw_histogram(
    title: str, early: dict[float, int], late: dict[float, int], colour: str, note: str = ""
) -> str:
    """Returns a <figure>: the share of each value early and late, side by side."""
    bins = _bins(sorted({*early, *late}))
    if not bins:
        return ""
    shares = [[_share_within(part, low, high) for low, high, _ in bins] for part in (early, late)]
    top = max(max(shares[0]), max(shares[1]), 1e-9)
    scale = _Scale(0, len(bins), 0.0, min(1.0, top * 1.08), 8)
    width = (WIDTH - 8 - LEFT) / len(bins)
    bar = min(26.0, width * 0.42)
    parts = [_axes(scale, _y_ticks(scale, "share"), percent, x_ticks=False)]
    every = -(-len(bins) * 34 // (WIDTH - LEFT))
    for i, (_, _, label) in enumerate(bins):
        middle = LEFT + (i + 0.5) * width
        for values, offset, kind in ((shares[0], -bar, "early"), (shares[1], 0.0, "late")):
            y = scale.y(values[i])
            parts.append(
                f'<rect class="bar {kind} {colour}" x="{middle + offset:.1f}" y="{y:.1f}" '
                f'width="{bar:.1f}" height="{HEIGHT - BOTTOM - y:.1f}">'
                f"<title>{escape(label)}: {percent(values[i])} {kind}</title></rect>"
            )
        if i % every == 0:
            parts.append(
                f'<text class="tick" x="{middle:.1f}" y="{HEIGHT - BOTTOM + 15}" '
                f'text-anchor="middle">{escape(label)}</text>'
            )
    svg = (
        f'<svg class="histogram" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
    return _figure(title, svg, note)


def draw_ladder(
    before: float | None,
    after: float,
    chance: float | None,
    bounds: Interval | None,
    colour: str,
    label: str,
) -> str:
    """Returns an SVG of one accuracy on a rail from 0 to 100%.

    A hollow dot before, a full one after with its interval, and a tick at chance.
    """

    def x(share: float) -> float:
        return 6 + 188 * share

    parts = ['<line class="rail" x1="6" x2="194" y1="9" y2="9"/>']
    if chance is not None:
        parts.append(
            f'<line class="chance" x1="{x(chance):.1f}" x2="{x(chance):.1f}" y1="2" y2="16"/>'
        )
    if bounds:
        parts.append(
            f'<line class="whisker {colour}" x1="{x(bounds.low):.1f}" x2="{x(bounds.high):.1f}" '
            'y1="9" y2="9"/>'
        )
    if before is not None:
        parts.append(f'<circle class="before {colour}" cx="{x(before):.1f}" cy="9" r="3.5"/>')
    parts.append(f'<circle class="after {colour}" cx="{x(after):.1f}" cy="9" r="5"/>')
    return (
        f'<svg class="ladder" viewBox="0 0 200 18" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def draw_shares(parts: Sequence[tuple[str, float]], label: str) -> str:
    """Returns a bar of a whole, cut into named parts; a part too small for its name is cut short.

    It is HTML, not SVG, so that words keep their shape in a bar of any width.
    """
    total = sum(value for _, value in parts)
    if not total > 0:
        return ""
    cut = "".join(
        f'<span class="part p{i % 5}" style="flex-grow:{value / total:.4f}" '
        f'title="{escape(name)} {percent(value / total)}">{escape(name)} '
        f"{percent(value / total)}</span>"
        for i, (name, value) in enumerate(parts)
    )
    return f'<div class="shares" role="img" aria-label="{escape(label)}">{cut}</div>'


def _figure(title: str, svg: str, note: str) -> str:
    small = f"<small>{escape(note)}</small>" if note else ""
    return f"<figure><figcaption>{escape(title)}{small}</figcaption>{svg}</figure>"


def _scale(lines: Sequence[Line], unit: Unit) -> _Scale:
    steps = [s for line in lines for s in (line.steps[0], line.steps[-1])]
    longest = max((len(line.label) for line in lines if line.is_labelled), default=0)
    right = 12 + min(104.0, longest * CHAR_WIDTH + 4)
    # Steps are counted from 0, whenever a metric was measured first.
    start, end = (0 if min(steps) < 0.1 * max(steps) else min(steps)), max(steps)
    if unit == "share":
        return _Scale(start, end, 0.0, 1.0, right)
    shown = [v for line in lines for v in (*_thin(line.values), *line.low, *line.high)]
    low, high = min(shown), max(shown)
    if 0 <= low < 0.6 * high:
        low = 0.0
    room = 0.06 * (high - low) or abs(high) * 0.5 or 1.0
    return _Scale(start, end, low if low == 0 else low - room, high + room, right)


def _ticks(low: float, high: float, n: int) -> list[float]:
    """Returns about n round values between low and high."""
    raw = (high - low) / max(1, n) or 1.0
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _y_ticks(scale: _Scale, unit: Unit) -> list[float]:
    if unit == "share" and scale.y1 == 1.0:
        return [0.0, 0.25, 0.5, 0.75, 1.0]
    return _ticks(scale.y0, scale.y1, 4)


def _axes(
    scale: _Scale, y_ticks: Sequence[float], show: Callable[[float], str], x_ticks: bool = True
) -> str:
    right, bottom = WIDTH - scale.right, HEIGHT - BOTTOM
    parts = []
    for value in y_ticks:
        y = scale.y(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{y + 3.6:.1f}" text-anchor="end">'
            f"{show(value)}</text>"
        )
    # Few enough that four-digit steps stay apart.
    for value in _ticks(scale.x0, scale.x1, 4) if x_ticks else ():
        if value == int(value):
            parts.append(
                f'<text class="tick" x="{scale.x(value):.1f}" y="{bottom + 15}" '
                f'text-anchor="middle">{value:,.0f}</text>'
            )
    return "".join(parts)


def _drawn(line: Line) -> tuple[list[float], list[float]]:
    """Returns the (steps, values) that are drawn: thinned, and smoothed where noisy."""
    values = _smooth(line.values) if line.is_noisy else list(line.values)
    return _thin(line.steps), _thin(values)


def _smooth(values: Sequence[float]) -> list[float]:
    """Returns the running mean over the last 2.5% of the series, 5 values at least."""
    window = max(5, len(values) // 40)
    smooth, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        smooth.append(total / min(i + 1, window))
    return smooth


def _thin(values: Sequence[float]) -> list[float]:
    """Returns at most POINTS values: the means of equal parts, but the first and the last."""
    n = len(values)
    if n <= POINTS:
        return list(values)
    cuts = [round(i * n / POINTS) for i in range(POINTS + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(cuts, cuts[1:], strict=False)]
    return [values[0], *means[1:-1], values[-1]]


def _path(xs: Sequence[float], ys: Sequence[float], scale: _Scale) -> str:
    points = (f"{scale.x(x):.2f} {scale.y(y):.2f}" for x, y in zip(xs, ys, strict=True))
    return "M" + "L".join(points)


def _curve(line: Line, scale: _Scale, show: Callable[[float], str]) -> str:
    xs, ys = _drawn(line)
    parts = []
    if line.is_noisy and line.is_labelled and len(line.values) > 20:
        raw = _path(_thin(line.steps), _thin(line.values), scale)
        parts.append(f'<path class="raw {line.colour}" d="{raw}"/>')
    style = f"line {line.colour} {line.dash}".strip()
    if len(xs) == 1:
        parts.append(f'<circle class="after {line.colour}" cx="{scale.x(xs[0]):.1f}" '
                     f'cy="{scale.y(ys[0]):.1f}" r="3"/>')  # fmt: skip
    parts.append(
        f'<path class="{style}" data-label="{escape(line.label)}" d="{_path(xs, ys, scale)}">'
        f"<title>{escape(line.label)}: {show(line.values[-1])}</title></path>"
    )
    return "".join(parts)


def _band(line: Line, scale: _Scale) -> str:
    xs = _thin(line.steps)
    there = _path(xs, _thin(line.high), scale)
    back = _path(xs[::-1], _thin(line.low)[::-1], scale)
    return f'<path class="band {line.colour}" d="{there}L{back[1:]}Z"/>'


def _labels(lines: Sequence[Line], scale: _Scale) -> str:
    """Returns the names at the ends of the lines, pushed apart where they would overlap."""
    wanted = sorted((scale.y(_drawn(line)[1][-1]), i) for i, line in enumerate(lines))
    places = [y for y, _ in wanted]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + LABEL_HEIGHT)
    limit = HEIGHT - BOTTOM + 2.0
    for i in reversed(range(len(places))):
        places[i] = min(places[i], limit)
        limit = places[i] - LABEL_HEIGHT
    parts = []
    for place, (_, i) in zip(places, wanted, strict=True):
        line = lines[i]
        room = int((scale.right - 10) / CHAR_WIDTH)
        text = line.label if len(line.label) <= room else line.label[: room - 1] + "…"
        x = scale.x(line.steps[-1]) + 6
        parts.append(
            f'<text class="label {line.colour}" x="{x:.1f}" y="{place + 3.8:.1f}">'
            f"{escape(text)}</text>"
        )
    return "".join(parts)


def _bins(values: Sequence[float]) -> list[tuple[float, float, str]]:
    """Returns (low, high, label) with low <= value < high; few values have a bin each."""
    if len(values) <= 12:
        following = [*values[1:], math.inf]
        return [(v, f, number(v)) for v, f in zip(values, following, strict=False)]
    low, high = values[0], values[-1]
    step = max((high - low) / 16, 1e-12)
    if all(v == int(v) for v in values):
        step = math.ceil(step)
    edges = [low + step * i for i in range(int((high - low) / step) + 1)]
    return [(e, e + step, number(e)) for e in edges]


def _share_within(counts: dict[float, int], low: float, high: float) -> float:
    total = sum(counts.values())
    return sum(c for v, c in counts.items() if low <= v < high) / total if total else 0.0
