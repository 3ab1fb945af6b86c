"""Puts what was measured and counted into the documents: `python -m bench.figures [--check]`.

A place for a figure has marks around it, which viewers do not show; the text between is this
script's:

    <!--gpu NAME-->...<!--/gpu-->
        NAME is one of `bench/gpu_record.py: FIGURES`: the figure of the newest record under
        bench/results/ that holds it, with its card, or that nothing was measured
    <!--cpu CASE; ROW; WHAT-->...<!--/cpu-->
        of the newest record of CPU_MACHINE with this row of this case: a number of the row or of
        its facts, or one of DERIVED, without its unit
    <!--lines PATH ...-->...<!--/lines-->
        lines of code of the folders and patterns, in hundreds

`--check` writes nothing and tells which places read otherwise; lines may be 5% off. Only the
standard library is used here.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu_record import FIGURES, SCHEMA

ROOT = Path(__file__).resolve().parent.parent
PLACE = re.compile(r"<!--(gpu|cpu|lines) (.*?)-->(.*?)<!--/\1-->", re.DOTALL)
NOT_MEASURED = "not measured on a GPU"
CPU_MACHINE = "amd-epyc-2-cores"
"""The folder of bench/results/ with the records of the machine that the documents speak of."""
DERIVED: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "inverse": lambda row: 1 / row["ratio"],
    "percent": lambda row: 100 * row["ratio"],
    "ms": lambda row: 1e3 / row["items_per_s"],
    "us": lambda row: 1e6 / row["items_per_s"],
    "ns": lambda row: 1e9 / row["items_per_s"],
}
"""Of a row of a bench: its ratio the other way round or in percent, and the time of one item."""
CODE = {".py", ".c", ".h", ".js", ".css"}


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure as a document shows it."""

    value: float
    unit: str
    card: str
    date: str
    """ISO 8601, of the measurement."""

    def __str__(self) -> str:
        card = self.card.removeprefix("NVIDIA ")
        if self.unit == "frac":
            return f"{100 * self.value:.3g}% ({card})"
        digits = f"{self.value:,.0f}" if abs(self.value) >= 100 else f"{self.value:.3g}"
        return f"{digits}{'' if self.unit == 'x' else ' '}{self.unit} ({card})"


def newest(root: Path = ROOT) -> dict[str, Measured]:
    """Returns every figure that a record of a GPU holds, by name, as it was measured last."""
    found: dict[str, Measured] = {}
    for path in sorted(root.glob("bench/results/*/record.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema"] != SCHEMA or record.get("rehearsal") or not record["hardware"]["gpus"]:
            raise ValueError(f"{path}: not a record of schema {SCHEMA} from a GPU")
        card = record["hardware"]["gpus"][0]["name"]
        for name, figure in record["figures"].items():
            one = Measured(figure["value"], figure["unit"], card, figure["date"])
            if name not in found or found[name].date < one.date:
                found[name] = one
    return found


def bench_rows(root: Path = ROOT) -> dict[tuple[str, str], dict[str, Any]]:
    """Returns the rows of CPU_MACHINE by the names of case and row, as they were measured last."""
    paths = (root / "bench" / "results" / CPU_MACHINE).glob("*.json")
    records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return {
        (case["name"], row["name"]): row
        for record in sorted(records, key=lambda record: record["date"])
        for case in record["results"]
        for row in case["rows"]
        if row["status"] == "ok"
    }


def lines_of(paths: str, root: Path = ROOT) -> str:
    """Returns the lines of code of folders and patterns, in hundreds; ValueError without any."""
    found = [file for path in paths.split() for file in root.glob(path)]
    files = {file for path in found for file in (path.rglob("*") if path.is_dir() else [path])}
    count = sum(len(file.read_bytes().splitlines()) for file in files if file.suffix in CODE)
    if not count:
        raise ValueError(f"no code in {paths}")
    return f"{round(count, -2):,}"


def measured(place: str, rows: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """Returns the number of a place `CASE; ROW; WHAT`, three digits of it."""
    case, name, what = place.split("; ")
    row = rows[case, name]
    value = DERIVED[what](row) if what in DERIVED else {**row, **row.get("facts", {})}[what]
    digits = f"{value:.3g}"
    return f"{float(digits):,.0f}" if abs(value) >= 100 else digits


def filler(root: Path = ROOT) -> Callable[[re.Match[str]], str]:
    """Returns what fills a place; it raises ValueError for one that names no figure."""
    figures, rows = newest(root), bench_rows(root)

    def fill(place: re.Match[str]) -> str:
        kind, name, _ = place.groups()
        try:
            if kind == "lines":
                text = lines_of(name, root)
            elif kind == "cpu":
                text = measured(name, rows)
            elif name in FIGURES:
                text = figures.get(name, NOT_MEASURED)
            else:
                raise KeyError(name)
        except (KeyError, ValueError) as error:
            raise ValueError(f"<!--{kind} {name}-->: no figure of that name") from error
        return f"<!--{kind} {name}-->{text}<!--/{kind}-->"

    return fill


def documents(root: Path = ROOT) -> Iterator[Path]:
    """Yields the documents that may have places for figures."""
    yield from (root / "README.md", *sorted((root / "docs").glob("*.md")))


def _agree(old: re.Match[str], now: re.Match[str]) -> bool:
    if old[1] != "lines" or not old[3]:
        return old[3] == now[3]
    before, after = (int(place[3].replace(",", "")) for place in (old, now))
    return abs(before - after) <= max(100, 0.05 * after)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Returns the exit code: 1 where --check finds a document that reads otherwise."""
    parser = argparse.ArgumentParser(prog="python -m bench.figures", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, say what differs")
    options = parser.parse_args(arguments)
    fill, stale = filler(root), False
    for path in documents(root):
        text = path.read_text(encoding="utf-8")
        new = PLACE.sub(fill, text)
        if new != text and not options.check:
            path.write_text(new, encoding="utf-8")
        for old, now in zip(PLACE.finditer(text), PLACE.finditer(new), strict=True):
            if not _agree(old, now):
                stale = True
                print(f"{path.relative_to(root)}: {now[2]}: {old[3]!r}, now {now[3]!r}")
    return int(options.check and stale)


if __name__ == "__main__":
    sys.exit(main())
