"""Puts what a GPU was measured to do into the documents: `python -m bench.figures [--check]`.

A place for a figure reads `<!--gpu NAME-->...<!--/gpu-->`, whose marks viewers do not show; NAME is
one of `bench/gpu_record.py: FIGURES`. The text between is this script's: the figure of the newest
record under bench/results/ that holds it, with its card, or that nothing was measured. `--check`
writes nothing and tells which places read otherwise. Only the standard library is used here.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.gpu_record import FIGURES, SCHEMA

ROOT = Path(__file__).resolve().parent.parent
PLACE = re.compile(r"<!--gpu (.*?)-->(.*?)<!--/gpu-->", re.DOTALL)
NOT_MEASURED = "not measured on a GPU"


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


def filled(text: str, figures: dict[str, Measured]) -> str:
    """Returns a document with its places filled; ValueError for one that names no figure."""

    def fill(place: re.Match[str]) -> str:
        name = place[1]
        if name not in FIGURES:
            raise ValueError(f"<!--gpu {name}-->: no figure of bench/gpu_record.py")
        return f"<!--gpu {name}-->{figures.get(name, NOT_MEASURED)}<!--/gpu-->"

    return PLACE.sub(fill, text)


def documents(root: Path = ROOT) -> Iterator[Path]:
    """Yields the documents that may have places for figures."""
    yield from (root / "README.md", *sorted((root / "docs").glob("*.md")))


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Returns the exit code: 1 where --check finds a document that reads otherwise."""
    parser = argparse.ArgumentParser(prog="python -m bench.figures", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, say what differs")
    options = parser.parse_args(arguments)
    figures, stale = newest(root), 0
    for path in documents(root):
        text = path.read_text(encoding="utf-8")
        new = filled(text, figures)
        if new == text:
            continue
        stale += 1
        if not options.check:
            path.write_text(new, encoding="utf-8")
        for old, now in zip(PLACE.finditer(text), PLACE.finditer(new), strict=True):
            if old[2] != now[2]:
                print(f"{path.relative_to(root)}: {now[1]}: {old[2]!r}, now {now[2]!r}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
