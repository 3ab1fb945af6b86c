"""The metrics of a run as series of bounded length, folded while the run writes.

However long a run is, its steps share at most `POINTS` bins: when they no longer fit, neighbours
merge. A bin of a metric keeps the least and the most of its values, their sum, and how many of its
steps had none (null in metrics.jsonl: a NaN or Inf, or nothing to average over). A `Fold` is kept
beside metrics.jsonl, so that a reader parses only the lines behind it.
"""

import json
import math
import operator
import zlib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import BinaryIO, NamedTuple

from azr.run.files import json_parts, write_whole

POINTS = 240
"""Bins of the longest series; a merge leaves half as many."""
LARGEST = 1e100
"""From here on a sum or a square could be more than a float holds."""
LONGEST = 2**22
"""Bytes of a line that is read; a longer one, of NULs say, is damaged."""
PENDING = 256
"""Rows that are folded at once, which is faster than one by one."""
NAMED = 5
"""Damaged lines that are named by their numbers; the others are counted."""


class Gap(NamedTuple):
    """Steps that lack a value of a metric, among those of one bin."""

    first: int
    last: int
    missing: int
    is_whole: bool
    """No step of the bin has a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A metric over the steps at which it was measured, one point for each bin."""

    steps: Sequence[float] = ()
    """The middle of each bin; the first and the last are those of the series."""
    values: Sequence[float] = ()
    """The mean of each bin; the first and the last are those of the series."""
    first: float | None = None
    last: float | None = None
    """The first value and the last, None of nothing."""
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    """The least and the most of each bin."""
    sums: Sequence[float] = ()
    counts: Sequence[int] = ()
    """The sum of each bin's values, and how many they are."""
    gaps: Sequence[Gap] = ()

    def __bool__(self) -> bool:
        return bool(self.steps)

    @property
    def count(self) -> int:
        """How many values there are."""
        return sum(self.counts)

    @property
    def is_folded(self) -> bool:
        """Whether a point stands for several values."""
        return self.count > len(self.steps)

    def at(self, step: float) -> float | None:
        """Returns the value at a step, on the line between the points beside it."""
        i = bisect_left(self.steps, step)
        if i in (0, len(self.steps)):
            return self.first if i == 0 else self.last
        (x0, x1), (y0, y1) = self.steps[i - 1 : i + 1], self.values[i - 1 : i + 1]
        return y0 + (step - x0) / (x1 - x0) * (y1 - y0)

    def smooth(self) -> list[float]:
        """Returns the running mean over the last 2.5% of the points, 5 values at least."""
        points = len(self.steps)
        window = max(math.ceil(5 * points / max(1, self.count)), round(points / 40))
        smooth = []
        for end in range(1, points + 1):
            start = max(0, end - window)
            smooth.append(sum(self.sums[start:end]) / sum(self.counts[start:end]))
        return smooth


@dataclass(slots=True)
class _Bin:
    """What is kept of the values of a metric in one bin."""

    first: int
    last: int
    count: int = 0
    missing: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def merge(self, other: "_Bin") -> None:
        self.first, self.last = min(self.first, other.first), max(self.last, other.last)
        self.count, self.missing = self.count + other.count, self.missing + other.missing
        self.total += other.total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)


@dataclass(slots=True)
class _Metric:
    """The bins of a metric by number, and its first and last (step, value)."""

    first: Sequence = (math.inf, 0.0)
    last: Sequence = (-1, 0.0)
    bins: dict[int, _Bin] = field(default_factory=dict)

    def series(self) -> Series:
        bins = [self.bins[number] for number in sorted(self.bins)]
        full = [b for b in bins if b.count]
        steps: list[float] = [(b.first + b.last) / 2 for b in full]
        values = [b.total / b.count for b in full]
        if full:
            (steps[0], values[0]), (steps[-1], values[-1]) = self.first, self.last
        return Series(
            steps=steps,
            values=values,
            first=self.first[1] if full else None,
            last=self.last[1] if full else None,
            low=[b.low for b in full],
            high=[b.high for b in full],
            sums=[b.total for b in full],
            counts=[b.count for b in full],
            gaps=[Gap(b.first, b.last, b.missing, not b.count) for b in bins if b.missing],
        )


class Line(NamedTuple):
    """A line of a JSONL file."""

    row: dict | None
    """None where it is no object with a `step`: cut short, or damaged."""
    size: int
    """Bytes."""
    crc: int
    """CRC-32 of the file up to its end."""
    is_ended: bool = True


class Fold:
    """A metrics.jsonl, folded up to a byte of it.

    Row by row or many at once, as the run writes or from the file: the result is the same.
    """

    def __init__(self):
        self.position, self.crc, self.lines = 0, 0, 0
        """Bytes of the file so far, their CRC-32, and lines."""
        self.last_step = -1
        self.damaged, self.damaged_lines = 0, []
        """Lines that are no rows: how many, and the numbers of the first."""
        self._wrong: dict[str, str] = {}
        """The first value of each metric that cannot be drawn."""
        self._start, self._end, self._width = None, 0, 1
        """The first step and the last, and how many steps share a bin."""
        self._metrics: dict[str, _Metric] = {}
        self._pending: list[dict] = []  # rows that fall in one bin

    def add(self, line: Line) -> None:
        """Takes the next line of the file."""
        self.position, self.crc = self.position + line.size, line.crc
        self.lines += 1
        if line.row is not None:
            self.add_row(line.row)
        else:
            self.damaged += 1
            self.damaged_lines = [*self.damaged_lines, self.lines][:NAMED]

    def add_row(self, row: dict) -> None:
        """Takes the metrics of a step."""
        step = self.last_step = row["step"]
        start, end = (step, step) if self._start is None else (self._start, self._end)
        start, end = min(start, step), max(end, step)
        if end // self._width - start // self._width >= POINTS:
            self._flush()
            self._widen(start, end)
        self._start, self._end = start, end
        number = step // self._width
        if self._pending and (
            len(self._pending) == PENDING or self._pending[0]["step"] // self._width != number
        ):
            self._flush()
        self._pending.append(row)

    def series(self) -> dict[str, Series]:
        """Returns every metric by its name, those first that were measured first."""
        self._flush()
        return {name: metric.series() for name, metric in self._metrics.items()}

    def problems(self) -> list[str]:
        """Returns what is left out, a sentence each."""
        self._flush()
        found = [
            f"metrics.jsonl: {name} is {what}, and left out" for name, what in self._wrong.items()
        ]
        if self.damaged:
            found.insert(0, f"metrics.jsonl: {describe_damage(self.damaged, self.damaged_lines)}")
        return found

    def _widen(self, start: int, end: int) -> None:
        """Doubles the width of the bins until all steps have room."""
        before = self._width
        while end // self._width - start // self._width >= POINTS:
            self._width *= 2
        factor = self._width // before
        for metric in self._metrics.values():
            bins, metric.bins = metric.bins, {}
            for number, part in bins.items():
                metric.bins.setdefault(number // factor, _Bin(part.first, part.last)).merge(part)

    def _flush(self) -> None:
        """Folds the pending rows."""
        rows, self._pending = self._pending, []
        columns: dict[str, list] = defaultdict(list)
        for row in rows:
            for name, value in row.items():
                columns[name].append(value)
        steps = columns.pop("step", [])
        for name, column in columns.items():
            if len(column) == len(rows):
                self._fold(name, steps, column)
            else:
                self._fold(name, [row["step"] for row in rows if name in row], column)

    def _fold(self, name: str, steps: list[int], column: list) -> None:
        """Folds the values of one metric at some steps, all of one bin."""
        least, most = _bounds(name)
        is_plain = set(map(type, column)) == {float}  # the usual case, and the fast one
        low, high = (min(column), max(column)) if is_plain else (-math.inf, math.inf)
        measured, missing = steps, 0
        if low < least or high > most:
            pairs = []
            for step, value in zip(steps, column, strict=True):
                if value is None:
                    missing += 1
                elif is_number(value) and least <= value <= most:
                    pairs.append((step, float(value)))
                else:
                    self._wrong.setdefault(name, f"{short(value)} at step {step}")
            if not pairs and not missing:
                return
            measured, column = [step for step, _ in pairs], [value for _, value in pairs]
            low, high = min(column, default=math.inf), max(column, default=-math.inf)
        metric = self._metrics.setdefault(name, _Metric())
        b = metric.bins.setdefault(steps[0] // self._width, _Bin(steps[0], steps[0]))
        b.first, b.last = min(b.first, steps[0]), max(b.last, steps[-1])
        b.count, b.missing = b.count + len(column), b.missing + missing
        b.low, b.high = min(b.low, low), max(b.high, high)
        # One after the other, so that the sum does not depend on how many come at once.
        b.total = reduce(operator.add, column, b.total)
        if measured and measured[0] < metric.first[0]:
            metric.first = (measured[0], column[0])
        if measured and measured[-1] >= metric.last[0]:
            metric.last = (measured[-1], column[-1])

    # Beside metrics.jsonl

    def save(self, path: Path) -> None:
        """Keeps what was taken of `path` in a file beside it."""
        self._flush()
        state = {name: getattr(self, name) for name in _STATE} | {
            "metrics": (
                [name, m.first, m.last, [(n, *_VALUES(b)) for n, b in m.bins.items()]]
                for name, m in self._metrics.items()
            )
        }
        text = "".join(json_parts(state)).encode()
        write_whole(path.with_name(FOLDED), b"%d\n" % zlib.crc32(text) + text)

    @classmethod
    def load(cls, path: Path) -> "Fold":
        """Returns what is kept of `path`, of which not a byte has changed; else an empty one."""
        fold = cls()
        with suppress(OSError, ValueError, KeyError, TypeError):
            check, text = path.with_name(FOLDED).read_bytes().split(b"\n", 1)
            state = json.loads(text) if int(check) == zlib.crc32(text) else {}
            metrics = {
                name: _Metric(first, last, {n: _Bin(*values) for n, *values in bins})
                for name, first, last, bins in state["metrics"]
            }
            if _checksum(path, state["position"]) == state["crc"]:
                for name in _STATE:
                    setattr(fold, name, state[name])
                fold._metrics = metrics
        return fold


def read_fold(path: Path, last_step: float = math.inf) -> Fold:
    """Returns a metrics.jsonl folded: all of it, or the whole lines up to that of `last_step`.

    Only what lies behind the part that is kept folded is parsed. Raises OSError where there is no
    file.
    """
    fold = Fold.load(path)
    if fold.last_step > last_step:
        fold = Fold()
    with open(path, "rb") as file:
        file.seek(fold.position)
        for line in read_lines(file, fold.crc):
            is_after = fold.last_step == last_step or (line.row and line.row["step"] > last_step)
            if is_after or (last_step < math.inf and not line.is_ended):
                break
            fold.add(line)
    return fold


def read_lines(file: BinaryIO, crc: int = 0) -> Iterator[Line]:
    """Yields the lines of a JSONL file; `crc` is that of what was read before."""
    while text := file.readline(LONGEST):
        size, crc, row = len(text), zlib.crc32(text, crc), _row(text)
        while not text.endswith(b"\n") and (rest := file.readline(LONGEST)):
            text, row = rest, None
            size, crc = size + len(text), zlib.crc32(text, crc)
        yield Line(row, size, crc, text.endswith(b"\n"))


def describe_damage(count: int, numbers: Sequence[int]) -> str:
    """Returns in words which lines of a file are left out: how many, and the first of them."""
    if count == 1:
        return f"line {numbers[0]} is cut short or damaged, and left out"
    *words, last = map(str, numbers)
    if count > len(numbers):
        words, last = [*words, last], f"{count - len(numbers):,} more"
    return f"lines {', '.join(words)} and {last} are cut short or damaged, and left out"


def is_number(value: object) -> bool:
    """Whether a value of a JSON file is a number that can be summed and drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def is_count(value: object) -> bool:
    """Whether a value of a JSON file is a number of things, a step say."""
    return isinstance(value, int) and is_number(value) and value >= 0


def short(value: object) -> str:
    """Returns a value as it is named in a complaint."""
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"


FOLDED = "metrics.folded.json"
_STATE = (
    "position", "crc", "lines", "last_step", "damaged", "damaged_lines",
    "_wrong", "_start", "_end", "_width",
)  # fmt: skip
_VALUES = operator.attrgetter("first", "last", "count", "missing", "total", "low", "high")
# NaN and Infinity, which JSON does not know, stand for no value, as null does.
_DECODER = json.JSONDecoder(parse_constant=lambda name: None)


def _row(line: bytes) -> dict | None:
    try:
        row = _DECODER.decode(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and is_count(row.get("step")) else None


def _bounds(name: str) -> tuple[float, float]:
    """Returns between which values a metric can be drawn."""
    if name.startswith("eval/"):
        if name.endswith(("_accuracy", "/chance")):
            return 0.0, 1.0  # else there is no interval
        if name.endswith("/tasks"):
            return 1.0, LARGEST
    return -LARGEST, LARGEST


def _checksum(path: Path, size: int) -> int | None:
    """Returns the CRC-32 of the first bytes of a file, None where it has fewer."""
    crc = 0
    with open(path, "rb") as file:
        while size and (part := file.read(min(size, 2**20))):
            size, crc = size - len(part), zlib.crc32(part, crc)
    return None if size else crc
