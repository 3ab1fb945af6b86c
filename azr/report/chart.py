"""Charts as SVG text: lines with bands and direct labels, histograms, shares of a whole.

Colours are classes of page.css (`k0` to `k5`, `grey`), so that one drawing serves light, dark and
paper. Every label passes through `escape`.
"""

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from azr.accuracy import Interval
from azr.report.words import number, percent
from azr.run.series import Series

WIDTH, HEIGHT = 360, 214
LEFT, TOP, BOTTOM = 40, 12, 28
FLOOR = HEIGHT - BOTTOM
LABEL_HEIGHT = 13.0
CHAR_WIDTH = 5.9

Unit = Literal["share", "number"]
Dash = Literal["", "dashed", "dotted", "dashdot"]
Show = Callable[[float | None], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A curve: `low` and `high` bound its band; a noisy one is drawn as its running mean.

    Its label stands at its end; without one, a legend has to name it.
    Behind a running mean, and behind points that stand for several steps each, is a pale line from
    the least to the most of each point. Steps that lack a value break the curve and have a mark on
    the axis.
    """

    label: str
    series: Series
    colour: str = "k0"
    dash: Dash = ""
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    is_noisy: bool = False


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
        return FLOOR - (inside - self.y0) / (self.y1 - self.y0) * (FLOOR - TOP)


def draw_lines(title: str, lines: Sequence[Line], unit: Unit = "number", note: str = "") -> str:
    """Returns a <figure> with the curves, or "" where no line has a point."""
    svg = plot_lines(title, lines, unit)
    notes = [note, *map(_silence, lines)]
    return _figure(title, svg, "; ".join(filter(None, notes))) if svg else ""


def plot_lines(title: str, lines: Sequence[Line], unit: Unit, place: str = "") -> str:
    """Returns the <svg> of some curves, or "" where no line has a point.

    A share has the axis 0 to 100%; other values have an axis that fits them. `place` holds
    attributes for a drawing inside another.
    """
    lines = [line for line in lines if line.series or line.series.gaps]
    if not lines:
        return ""
    curves = [line for line in lines if line.series]
    scale = _scale(lines, unit)
    show = percent if unit == "share" else number
    parts = [_y_axis(scale, unit)]
    # Few enough that four-digit steps stay apart.
    parts += [
        _below(scale.x(step), f"{step:,.0f}")
        for step in _ticks(scale.x0, scale.x1)
        if step == int(step)
    ]
    parts += [_band(line, scale) for line in curves if len(line.low)]
    parts += [_curve(line, scale, show) for line in curves]
    parts += [_marks(line, scale) for line in lines if line.series.gaps]
    parts.append(_labels([line for line in curves if line.label], scale))
    ends = ((line.label, line.series.first, line.series.last) for line in curves)
    spoken = "; ".join(f"{label} from {show(a)} to {show(b)}" for label, a, b in ends)
    data = f'data-x="{scale.x0:g} {scale.x1:g}" data-y="{scale.y0:.6g} {scale.y1:.6g}"'
    box = f'data-box="{LEFT} {WIDTH - scale.right:.1f} {TOP} {FLOOR}"'
    return (
        f'<svg class="lines" {place}viewBox="0 0 {WIDTH} {HEIGHT}" role="img" data-unit="{unit}" '
        f'{data} {box} aria-label="{escape(f"{title}: {spoken}")}">{"".join(parts)}</svg>'
    )


def draw_histogram(
    title: str, early: Mapping[float, int], late: Mapping[float, int], colour: str
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
    parts = [_y_axis(scale, "share")]
    every = -(-len(bins) * 34 // (WIDTH - LEFT))
    for i, (_, _, label) in enumerate(bins):
        middle = LEFT + (i + 0.5) * width
        for values, offset, kind in ((shares[0], -bar, "early"), (shares[1], 0.0, "late")):
            y = scale.y(values[i])
            parts.append(
                f'<rect class="bar {kind} {colour}" x="{middle + offset:.1f}" y="{y:.1f}" '
                f'width="{bar:.1f}" height="{FLOOR - y:.1f}">'
                f"<title>{escape(label)}: {percent(values[i])} {kind}</title></rect>"
            )
        if i % every == 0:
            parts.append(_below(middle, label))
    svg = (
        f'<svg class="histogram" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
    return _figure(title, svg)


def draw_ladder(
    before: float,
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
    cut = "".join(
        f'<span class="part p{i % 5}" style="flex-grow:{value / total:.4f}" '
        f'title="{escape(name)} {percent(value / total)}">{escape(name)} '
        f"{percent(value / total)}</span>"
        for i, (name, value) in enumerate(parts)
    )
    return f'<div class="shares" role="img" aria-label="{escape(label)}">{cut}</div>'


def _figure(title: str, svg: str, note: str = "") -> str:
    small = f"<small>{escape(note)}</small>" if note else ""
    return f"<figure><figcaption>{escape(title)}{small}</figcaption>{svg}</figure>"


def _scale(lines: Sequence[Line], unit: Unit) -> _Scale:
    steps = [s for line in lines for s in (*line.series.steps[:1], *line.series.steps[-1:])]
    steps += [s for line in lines for gap in line.series.gaps for s in (gap.first, gap.last)]
    longest = max(len(line.label) for line in lines)
    right = 12 + min(104.0, longest * CHAR_WIDTH + 4)
    # Steps are counted from 0, whenever a metric was measured first.
    start, end = (0 if min(steps) < 0.1 * max(steps) else min(steps)), max(steps)
    shown = [
        v for x in lines for part in (x.series.low, x.series.high, x.low, x.high) for v in part
    ]
    if unit == "share" or not shown:
        return _Scale(start, end, 0.0, 1.0, right)
    low, high = min(shown), max(shown)
    if 0 <= low < 0.6 * high:
        low = 0.0
    room = 0.06 * (high - low) or abs(high) * 0.5 or 1.0
    return _Scale(start, end, low if low == 0 else low - room, high + room, right)


def _ticks(low: float, high: float) -> list[float]:
    """Returns about four round values between low and high."""
    raw = (high - low) / 4 or 1.0
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _y_axis(scale: _Scale, unit: Unit) -> str:
    is_whole = unit == "share" and scale.y1 == 1.0
    show = percent if unit == "share" else number
    parts = []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0) if is_whole else _ticks(scale.y0, scale.y1):
        y = scale.y(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - scale.right:.1f}" y1="{y:.1f}" '
            f'y2="{y:.1f}"/><text class="tick" x="{LEFT - 6}" y="{y + 3.6:.1f}" '
            f'text-anchor="end">{show(value)}</text>'
        )
    return "".join(parts)


def _below(x: float, words: str) -> str:
    """Returns words under the axis of x."""
    return (
        f'<text class="tick" x="{x:.1f}" y="{FLOOR + 15}" text-anchor="middle">'
        f"{escape(words)}</text>"
    )


def _drawn(line: Line) -> Sequence[float]:
    """Returns the values that are drawn, one for each point."""
    return line.series.smooth() if line.is_noisy else line.series.values


def _pieces(series: Series) -> list[slice]:
    """Returns the parts of a series that no step without a value lies between."""
    cuts = {bisect_left(series.steps, gap.first) for gap in series.gaps if gap.is_whole}
    ends = sorted(cuts | {0, len(series.steps)})
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


def _path(points: Iterable[tuple[float, float]], scale: _Scale) -> str:
    return "M" + "L".join(f"{scale.x(x):.2f} {scale.y(y):.2f}" for x, y in points)


def _curve(line: Line, scale: _Scale, show: Show) -> str:
    series, values = line.series, _drawn(line)
    parts = []
    if series.is_folded or (line.is_noisy and series.count > 20):
        # Up one point and down the next, which crosses the least.
        bounds = enumerate(zip(series.steps, series.low, series.high, strict=True))
        ranges = [
            [(x, v) for v in ((low, high) if i % 2 else (high, low))[low == high :]]
            for i, (x, low, high) in bounds
        ]
        raw = "".join(_path(itertools.chain(*ranges[p]), scale) for p in _pieces(series))
        parts.append(f'<path class="raw {line.colour}" d="{raw}"/>')
    style = f"line {line.colour} {line.dash}".strip()
    if len(values) == 1:
        parts.append(f'<circle class="after {line.colour}" cx="{scale.x(series.steps[0]):.1f}" '
                     f'cy="{scale.y(values[0]):.1f}" r="3"/>')  # fmt: skip
    points = list(zip(series.steps, values, strict=True))
    # A point alone is drawn as a line to itself: a dot.
    drawn = "".join(
        _path(points[p] * (2 if p.stop - p.start == 1 < len(points) else 1), scale)
        for p in _pieces(series)
    )
    parts.append(
        f'<path class="{style}" data-label="{escape(line.label)}" d="{drawn}">'
        f"<title>{escape(line.label)}: {show(series.last)}</title></path>"
    )
    return "".join(parts)


def _band(line: Line, scale: _Scale) -> str:
    there = _path(zip(line.series.steps, line.high, strict=True), scale)
    back = _path(reversed(list(zip(line.series.steps, line.low, strict=True))), scale)
    return f'<path class="band {line.colour}" d="{there}L{back[1:]}Z"/>'


def _marks(line: Line, scale: _Scale) -> str:
    d = "".join(f"M{scale.x((g.first + g.last) / 2):.1f} {FLOOR}v-7" for g in line.series.gaps)
    return f'<path class="gap {line.colour}" d="{d}"><title>{escape(_silence(line))}</title></path>'


def _silence(line: Line) -> str:
    """Returns in words where a line has no value, "" where it always has one."""
    gaps = line.series.gaps
    if not gaps:
        return ""
    missing = sum(gap.missing for gap in gaps)
    first, last = gaps[0].first, gaps[-1].last
    where = f"{first:,}" if first == last else f"{first:,} to {last:,}"
    name = f"{line.label}: " if line.label else ""
    return f"{name}no value (NaN) at {missing:,} of {missing + line.series.count:,} steps: {where}"


def _labels(lines: Sequence[Line], scale: _Scale) -> str:
    """Returns the names at the ends of the lines, pushed apart where they would overlap."""
    wanted = sorted((scale.y(_drawn(line)[-1]), i) for i, line in enumerate(lines))
    places = [y for y, _ in wanted]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + LABEL_HEIGHT)
    limit = FLOOR + 2.0
    for i in reversed(range(len(places))):
        places[i] = min(places[i], limit)
        limit = places[i] - LABEL_HEIGHT
    parts = []
    for place, (_, i) in zip(places, wanted, strict=True):
        line = lines[i]
        room = int((scale.right - 10) / CHAR_WIDTH)
        text = line.label if len(line.label) <= room else line.label[: room - 1] + "…"
        x = scale.x(line.series.steps[-1]) + 6
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


def _share_within(counts: Mapping[float, int], low: float, high: float) -> float:
    total = sum(counts.values())
    return sum(c for v, c in counts.items() if low <= v < high) / total if total else 0.0
