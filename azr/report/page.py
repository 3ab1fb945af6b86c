"""The page: head, summary, sections, the browser's data, and writing it to a file."""

import base64
import gc
import hashlib
import importlib.resources
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path

from azr.report.board import Board
from azr.report.curve import CURVE, write_learning_curve
from azr.report.record import RunRecord, read_run
from azr.report.samples import SampleBook
from azr.report.sections import sections
from azr.report.summary import cards, headline
from azr.report.words import duration
from azr.run.db import SAMPLE_FIELDS
from azr.run.files import write_whole

NAME = "report.html"
SHARE = 0.01
"""Of a run's time, at most so much goes into its report."""
FIRST_S = 1.0
"""Seconds that the first writing is expected to take; later ones are as long as the one before."""


def write_report(
    folders: Sequence[Path], path: Path | None = None, *, is_over: bool = False
) -> Path:
    """Writes the report of one run or several; returns its path, `report.html` of the first run.

    Raises ConfigError for a folder that is no run, OSError where the file cannot be written. A
    reader never sees half a page: it is written aside and renamed. `is_over`: see `read_run`.
    """
    runs = [read_run(folder, is_over=is_over) for folder in folders]
    path = path or runs[0].folder / NAME
    # A lone surrogate in a text is no character and has no UTF-8; it becomes a question mark.
    write_whole(path, page(runs).encode("utf-8", "replace"))
    return path


class Refresher:
    """Writes a run's own report again and again, in at most SHARE of the run's time.

    Where the next writing would take more, it is left out; only the last one is always made, and
    with it the learning curve. A failure is a warning and never ends the run.
    """

    def __init__(self, run_dir: Path, keep_series: Callable[[], None], started: float):
        """`keep_series` saves the series so far; `started` is the run's time.monotonic()."""
        self._run_dir, self._keep_series, self._started = run_dir, keep_series, started
        self._spent_s, self._next_s = 0.0, FIRST_S

    def __call__(self, warn: Callable[[str], None], *, is_over: bool = False) -> None:
        """Writes the report if it is time to; `is_over`: see `read_run`."""
        began = time.monotonic()
        is_due = self._spent_s + self._next_s <= SHARE * (began - self._started)
        if not (is_due or is_over):
            return
        with _going_on(warn, NAME):
            self._keep_series()
            write_report([self._run_dir], is_over=is_over)
        if is_over:
            with _going_on(warn, CURVE):
                write_learning_curve(self._run_dir)
        # Else what the page was made of lies about, and a long run's tasks settle in between.
        gc.collect()
        self._next_s = time.monotonic() - began
        self._spent_s += self._next_s


@contextmanager
def _going_on(warn: Callable[[str], None], name: str) -> Iterator[None]:
    """Turns whatever goes wrong in drawing a run into a warning: it is not worth the run."""
    try:
        yield
    except Exception as error:
        warn(f"{name} was not written ({type(error).__name__}: {error}); the run goes on")


def page(runs: Sequence[RunRecord]) -> str:
    """Returns the whole page as HTML."""
    board = Board(runs)
    style, script = _text("page.css"), _text("page.js")
    body = sections(board)
    place = next((i for i, (name, _, _) in enumerate(body) if name == "setup"), len(body))
    body.insert(place, ("browse", "Tasks and samples", _browser(board)))
    links = "".join(f'<a href="#{name}">{name}</a>' for name, _, _ in body)
    shown = "".join(
        f'<details class="section" id="{name}" open><summary><h2>{escape(title)}</h2></summary>'
        f"{content}</details>"
        for name, title, content in body
    )
    title = " and ".join(board.names)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>AZR: {escape(title)}</title><style>{style}</style></head><body><main>"
        f"<header>{_header(board)}</header><nav>{links}</nav>{shown}"
        f"<footer>Absolute Zero self-play, arXiv:2505.03335. Of a long run a point of a "
        "curve is the mean of several steps, and the pale line reaches from their least to their "
        "most; metrics.jsonl and run.db hold everything.</footer>"
        '</main><div id="tip" hidden></div>'
        f'<script type="application/json" id="data">{_data(board)}</script>'
        f"<script>{script}</script></body></html>\n"
    )


def _policy(script: str) -> str:
    """Returns a policy under which the page can load nothing, and run nothing but its script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _text(name: str) -> str:
    return importlib.resources.files("azr.report").joinpath(name).read_text(encoding="utf-8")


def _header(board: Board) -> str:
    parts = []
    for (run, _, colour), name in zip(board.legend, board.names, strict=True):
        named = f' class="{colour} named"' if colour else ""
        spent = run.series("time/elapsed_s").last
        time = f", {duration(spent)}" if spent is not None else ""
        parts.append(
            f'<p class="eyebrow">AZR run report · <span class="state">{run.state}</span></p>'
            f"<h1{named}>{escape(name)}</h1>"
            f'<p class="facts">step {run.step:,} of {run.target:,}{time}{_facts(run)}</p>'
            f'<p class="headline">{headline(run)}</p>{cards(run, colour)}'
        )
    return "".join(parts)


def _facts(run: RunRecord) -> str:
    wanted = ("model", "device", "GPU", "seed")
    known = {k: v for k, v in run.facts if k in wanted and v != "none"}
    return "".join(f" · {escape(k)} {escape(v)}" for k, v in known.items())


def _browser(board: Board) -> str:
    """Returns the empty browser: page.js fills it from the data block."""
    told = "".join(_extent(label, run.samples) for run, label, _ in board.legend)
    if not any(run.samples and (run.samples.shown or run.samples.tasks) for run in board.runs):
        return told
    return (
        f'{told}<div id="browser"><noscript>The browser of samples needs JavaScript; the curves '
        "above do not.</noscript></div>"
    )


def _extent(label: str, book: SampleBook | None) -> str:
    where = f"{escape(label)}: " if label else ""
    if book is None:
        return f"<p>{where}no samples were kept (--log.samples), or none could be read.</p>"
    exact = book.scanned == book.rows
    total = f"{book.total:,}" if exact else f"about {float(f'{book.total:.2g}'):,.0f}"
    return (
        f"<p>{where}{len(book.shown):,} of {total} samples and "
        f"{len(book.tasks):,} of {book.tasks_total:,} tasks are on this page, thinned so that it "
        "opens at once: every kind of outcome and reason in equal parts, evenly over the steps. "
        "All of them are in run.db.</p>"
    )


def _data(board: Board) -> str:
    """Returns the samples as JSON that is inert inside a <script>, whatever a model wrote."""
    runs = [_book(name, run.samples) for name, run in zip(board.names, board.runs, strict=True)]
    text = json.dumps({"types": board.types, "runs": runs}, separators=(",", ":"))
    # ASCII, and none of the characters with which a tag, a comment or an entity begins or ends.
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _book(name: str, book: SampleBook | None) -> dict[str, object]:
    prompts: dict[str, int] = {}
    samples = []
    for s in book.shown if book else ():
        row = {field: getattr(s, field) for field in SAMPLE_FIELDS}
        row["prompt"] = prompts.setdefault(s.prompt, len(prompts))
        samples.append([float(f"{v:.4g}") if isinstance(v, float) else v for v in row.values()])
    return {
        "name": name,
        "fields": SAMPLE_FIELDS,
        "prompts": list(prompts),
        "samples": samples,
        "tasks": book.tasks if book else (),
    }
