"""What an evaluation shows and writes: tables on the terminal, a JSON file."""

import errno
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from azr.accuracy import with_interval
from azr.config import ConfigError
from azr.evaluation.result import Cell
from azr.evaluation.subject import Subject
from azr.run.files import beside, write_whole

PLAIN_WIDTH = 120
"""Columns where there is no terminal to ask."""


def print_family(cells: Sequence[Cell], subject: Subject, baseline: str | None) -> None:
    """Prints accuracies, the change against the baseline, and accuracies part by part."""
    console = make_console()
    console.print(f"model           {subject.model}", soft_wrap=True)
    whole = [cell for cell in cells if not cell.stratum]
    table = make_table(
        "Accuracy, with 95% intervals",
        *("tasks", "type", "n", "chance", "greedy", "well-formed", "sampled", "well-formed"),
    )
    for cell in whole:
        sampled = cell.sampled
        table.add_row(
            cell.split,
            cell.type,
            str(cell.tasks),
            share(cell.chance),
            with_interval(cell.greedy.accuracy),
            share(cell.greedy.format_rate),
            with_interval(sampled.accuracy) if sampled else "-",
            share(sampled.format_rate if sampled else None),
        )
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
        a = cell.against
        if a is None:
            continue
        table.add_row(
            cell.split,
            cell.type,
            share(a.greedy.accuracy.value),
            with_interval(a.greedy_change.difference, signed=True),
            str(a.greedy_change.gained),
            str(a.greedy_change.lost),
            f"{a.greedy_change.p_value:.2g}",
            share(a.sampled.accuracy.value if a.sampled else None),
            with_interval(a.sampled_difference, signed=True) if a.sampled_difference else "-",
        )
    return table


def _parts(cells: Sequence[Cell]) -> Table:
    types = list(dict.fromkeys(cell.type for cell in cells))
    table = make_table("Part by part: greedy / sampled (n)", "tasks", "part", *types)
    rows: dict[tuple[str, str], dict[str, Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.split, cell.stratum), {})[cell.type] = cell
    for (split, stratum), by_type in rows.items():
        texts = []
        for t in types:
            cell = by_type.get(t)
            sampled = cell.sampled.accuracy.value if cell and cell.sampled else None
            texts.append(
                f"{share(cell.greedy.accuracy.value)} / {share(sampled)} ({cell.tasks})"
                if cell
                else "-"
            )
        table.add_row(split, stratum, *texts)
    return table


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


def share(value: float | None) -> str:
    """Returns a share with three digits, or "-" where there is none."""
    return (
        "-"
        if value is None or value != value
        else f"{value:.3g}"
        if value < 0.1
        else f"{value:.3f}"
    )


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


def write_result(path: Path, result: Mapping[str, Any]) -> Path:
    """Writes the result as JSON, whole or not at all; returns the path.

    Raises ConfigError where it cannot be written.
    """
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    with _naming_out(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    return path


@contextmanager
def _naming_out(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot write there: {error.strerror}") from error
