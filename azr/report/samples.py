"""What a report shows of run.db: a thinned choice of samples and tasks, and distributions.

A run may hold millions of samples. At most `SCANNED` evenly spaced rows are looked at, and at most
`SHOWN` of them are shown, rare kinds before common ones; the page says of how many.
"""

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, TypeVar

from azr.run.db import SAMPLE_FIELDS, SampleRow

Name = TypeVar("Name")
SCANNED = 20_000
SHOWN = 1_000
SHOWN_TASKS = 500
SHOWN_CHARS = 2_000_000
"""Characters of prompts and texts on one page."""
TEXT_CHARS = 6_000
"""Of one prompt or text; the rest is cut, and said so."""
PART = 0.25
"""Early and late are the first and the last such part of the steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSample(SampleRow):
    """A sample on the page, for all of its step that agree with it."""

    step: int
    count: int


class ShownTask(NamedTuple):
    """A task on the page: `data` is its JSON."""

    step: int
    type: str
    key: str
    data: str


@dataclass(frozen=True, slots=True)
class Distribution:
    """How often each value came, early and late in the run."""

    early: Counter[float]
    late: Counter[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleBook:
    """The shown part of run.db."""

    total: int
    """Samples in run.db, counted from the scanned rows where not all were looked at."""
    rows: int
    scanned: int
    shown: Sequence[ShownSample]
    tasks_total: int
    tasks: Sequence[ShownTask]
    rewards: Mapping[tuple[str, str], Distribution]
    """By (role, type)."""
    tokens: Mapping[str, Distribution]
    """Lengths in tokens, by role."""


def read_samples(path: Path, problems: list[str]) -> SampleBook | None:
    """Returns what to show of a run.db, None where there is none; names what cannot be read."""
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True)) as db:
            db.text_factory = lambda raw: raw.decode("utf-8", "replace")
            db.row_factory = sqlite3.Row
            return _read(db)
    except sqlite3.Error as error:
        problems.append(f"run.db cannot be read: {error}")
        return None


def _quoted(path: Path) -> str:
    # as_uri() would begin with file:///, which is right too, but it refuses relative paths.
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _read(db: sqlite3.Connection) -> SampleBook:
    # Row numbers have no gaps; count(*) would read the whole file.
    rows = db.execute("SELECT coalesce(max(id), 0) FROM samples").fetchone()[0]
    stride = max(1.0, rows / SCANNED)
    # Rows are found by their numbers: the texts of the others are never read.
    scanned = db.execute(
        "WITH RECURSIVE pick(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM pick WHERE n < :n - 1)"
        " SELECT s.id, step, role, type, outcome, reason, reward, tokens, count FROM pick"
        " JOIN samples s ON s.id = 1 + CAST(n * :stride AS INTEGER)",
        {"n": min(rows, SCANNED), "stride": stride},
    ).fetchall()
    total = round(sum(row["count"] for row in scanned) * stride)
    chosen = sorted(_choose(scanned, _affordable(db, scanned)))
    tasks_total = db.execute("SELECT coalesce(max(id), 0) FROM tasks").fetchone()[0]
    every = max(1, -(-tasks_total // SHOWN_TASKS))
    tasks = db.execute(
        "WITH RECURSIVE pick(n) AS (SELECT 1 UNION ALL SELECT n + :every FROM pick"
        " WHERE n + :every <= :total) SELECT step, type, key, data FROM pick JOIN tasks ON id = n",
        {"every": every, "total": tasks_total},
    )
    return SampleBook(
        total=total,
        rows=rows,
        scanned=len(scanned),
        shown=_fetch(db, chosen),
        tasks_total=tasks_total,
        tasks=[ShownTask(step, t, _cut(key), _cut(data)) for step, t, key, data in tasks],
        rewards=_distributions(scanned, itemgetter("role", "type"), "reward"),
        tokens=_distributions(scanned, itemgetter("role"), "tokens"),
    )


def _affordable(db: sqlite3.Connection, scanned: Sequence[sqlite3.Row]) -> int:
    """Returns how many samples fit on the page, from the lengths of some of them."""
    texts = _fetch(db, [row["id"] for row in scanned[:: max(1, len(scanned) // 64)]])
    if not texts:
        return 0
    mean = sum(len(s.prompt) + len(s.text) for s in texts) / len(texts)
    return min(SHOWN, max(50, round(SHOWN_CHARS / max(1.0, mean))))


def _choose(scanned: Sequence[sqlite3.Row], n: int) -> list[int]:
    """Returns at most n row numbers: every kind in equal parts, evenly spread over the steps."""
    kinds: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row in scanned:
        kinds[row["role"], row["type"], row["outcome"], row["reason"]].append(row["id"])
    chosen: list[int] = []
    # The smallest kinds first: what they leave of their part goes to the larger ones.
    for done, ids in enumerate(sorted(kinds.values(), key=len)):
        chosen += _spread(ids, min(len(ids), (n - len(chosen)) // (len(kinds) - done)))
    return chosen


def _spread(ids: Sequence[int], n: int) -> list[int]:
    """Returns n of the ids, evenly spaced, the first and the last among them."""
    if n <= 1:
        return list(ids[:n])
    return [ids[round(i * (len(ids) - 1) / (n - 1))] for i in range(n)]


def _fetch(db: sqlite3.Connection, ids: Sequence[int]) -> list[ShownSample]:
    one = (
        "SELECT s.*, p.text AS prompt FROM samples s LEFT JOIN prompts p ON p.id = prompt_id"
        " WHERE s.id = ?"
    )
    shown = []
    for number in ids:
        for row in db.execute(one, (number,)):
            values = {field: row[field] for field in SAMPLE_FIELDS}
            for field in ("prompt", "task_key", "text"):
                values[field] = _cut(values[field] or "")
            values["is_estimate"] = bool(values["is_estimate"])
            shown.append(ShownSample(**values))
    return shown


def _cut(text: str) -> str:
    if len(text) <= TEXT_CHARS:
        return text
    half = TEXT_CHARS // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half:,} characters left out ...]\n{text[-half:]}"


def _distributions(
    scanned: Sequence[sqlite3.Row], name: Callable[[sqlite3.Row], Name], column: str
) -> dict[Name, Distribution]:
    """Returns the distributions of a column by the name of a row; NULL is no value."""
    rows = [row for row in scanned if row[column] is not None]
    last = max((row["step"] for row in rows), default=0)
    found: dict[Name, Distribution] = defaultdict(lambda: Distribution(Counter(), Counter()))
    for row in rows:
        part = found[name(row)]
        if row["step"] <= PART * last:
            part.early[row[column]] += row["count"]
        if row["step"] >= (1 - PART) * last:
            part.late[row[column]] += row["count"]
    return dict(found)
