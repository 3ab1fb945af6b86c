"""What an evaluation shows and writes: tables on the terminal, a JSON file."""

import errno
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from azr.accuracy import Score, with_interval
from azr.config import ConfigError
from azr.evaluation.cells import Cell
from azr.evaluation.suite.items import Suite
from azr.evaluation.suite.run import KindResult
from azr.run.files import beside, write_whole

PLAIN_WIDTH = 120
"""Columns where there is no terminal to ask."""

SHOWN_FAILURES = 8

RATES = ("greedy", "well-formed", "sampled", "well-formed")


def _rates(score: Score) -> list[str]:
    return [
        text
        for _, accuracy, format_rate in score.ways()
        for text in (with_interval(accuracy), share(format_rate))
    ]


def print_family(cells: Sequence[Cell], model: str, baseline: str | None) -> None:
    """Prints accuracies, the change against the baseline, and accuracies part by part."""
    console = make_console()
    console.print(f"model           {model}", soft_wrap=True)
    whole = [cell for cell in cells if not cell.stratum]
    table = make_table("Accuracy, with 95% intervals", "tasks", "type", "n", "chance", *RATES)
    for cell in whole:
        s = cell.score
        table.add_row(cell.split, cell.type, str(s.tasks), share(s.chance), *_rates(s))
    console.print(table)
    if baseline:
        console.print(f"baseline        {baseline}", soft_wrap=True)
        console.print(_changes(whole))
    if len(whole) < len(cells):
        console.print(_parts([cell for cell in cells if cell.stratum]))


def _changes(cells: Sequence[Cell]) -> Table:
    table = make_table(
        "Against the baseline, on the same tasks",
        *("tasks", "type", "greedy", "change", "gained", "lost", "p", "sampled", "change"),
    )
    for cell in cells:
        if a := cell.against:
            g = a.greedy_change
            table.add_row(
                cell.split, cell.type,
                share(a.score.greedy), with_interval(g.difference, signed=True),
                str(g.gained), str(g.lost), f"{g.p_value:.2g}",
                share(a.score.sampled), with_interval(a.sampled_difference, signed=True),
            )  # fmt: skip
    return table


def _parts(cells: Sequence[Cell]) -> Table:
    types = list(dict.fromkeys(cell.type for cell in cells))
    table = make_table("Part by part: greedy / sampled (n)", "tasks", "part", *types)
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for cell in cells:
        s = cell.score
        text = f"{share(s.greedy)} / {share(s.sampled)} ({s.tasks})"
        rows.setdefault((cell.split, cell.stratum), {})[cell.type] = text
    for part, by_type in rows.items():
        table.add_row(*part, *(by_type.get(t, "-") for t in types))
    return table


def print_suite(
    results: Sequence[KindResult], model: str, suite: Suite, failing: Mapping[str, str]
) -> None:
    """Prints a row per kind of item, why answers were not correct, and which never can be."""
    console = make_console()
    console.print(f"model           {model}", soft_wrap=True)
    title = f"{suite.name} ({suite.layout} layout), with 95% intervals"
    table = make_table(title, "kind", "n", *RATES, *(f"pass@{k}" for k in results[0].pass_at))
    for r in results:
        pass_at = map(share, r.pass_at.values())
        table.add_row(r.kind, str(r.score.tasks), *_rates(r.score), *pass_at)
    console.print(table)
    for r in results:
        if r.reasons:
            named = ", ".join(f"{reason} {count}" for reason, count in r.reasons.items())
            console.print(f"not correct     {r.kind}: {named}", soft_wrap=True)
    if failing:
        shown = [f"{name} ({reason})" for name, reason in failing.items()][:SHOWN_FAILURES]
        more = f" and {len(failing) - len(shown)} more" if len(failing) > len(shown) else ""
        console.print(
            f"cannot pass     the suite's own answer fails here: {', '.join(shown)}{more}",
            soft_wrap=True,
        )


def show_progress(done: int, total: int) -> None:
    """Writes how many samples are graded, to stderr."""
    print(f"azr: {done} of {total} samples", file=sys.stderr)


def make_console() -> Console:
    """Returns a console that shows text as it stands, wide enough where there is no terminal."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


def make_table(title: str, *columns: str) -> Table:
    """Returns a table without lines, numbers on the right."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    for column in columns:
        words = column in ("tasks", "type", "part", "kind")
        table.add_column(column, justify="left" if words else "right", no_wrap=True)
    return table


def share(value: float) -> str:
    """Returns a share with three digits, or "-" where it is not known."""
    if math.isnan(value):
        return "-"
    return f"{value:.3g}" if value < 0.1 else f"{value:.3f}"


def check_writable(path: Path) -> None:
    """Makes the folder of a result; raises ConfigError where `write_result` could not write.

    Asked first, so that no work is lost.
    """
    with _naming_out(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside(path).touch()
        beside(path).unlink()
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder; name a file")


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Writes the result as JSON, whole or not at all, and says where.

    Raises ConfigError where it cannot be written.
    """
    text = json.dumps(_finite(result), indent=1, allow_nan=False, default=asdict) + "\n"
    with _naming_out(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    print(f"result          {path}")


def _finite(value: Any) -> Any:
    """Returns JSON values with None in place of NaN and Inf."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def _naming_out(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot write there: {error.strerror}") from error
