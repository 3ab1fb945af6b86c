"""Compares the newest bench run with the newest committed records of the same hardware.

`make bench-compare`. The run is `bench/results/latest.json` (or the file named on the command
line). Each comparison in it is held against the newest committed record of the same hardware that
has it: a record may cover one bench file only. Figures are the ratios peer / ours of the run and
of the record; a ratio that fell by more than 10% is marked and makes the exit code 1.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.record import LATEST, RESULTS, SCHEMA

LIMIT = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One peer's ratio in the run and in the record; None where it was not measured."""

    comparison: str
    peer: str
    before: float | None
    now: float | None
    record: str

    @property
    def fell(self) -> bool:
        """Whether the ratio fell by more than the limit."""
        return (
            self.before is not None
            and self.now is not None
            and self.now < self.before * (1 - LIMIT)
        )

    def line(self) -> str:
        before = "not measured" if self.before is None else f"{self.before:.3g}x"
        now = "not measured" if self.now is None else f"{self.now:.3g}x"
        change = ""
        if self.before is not None and self.now is not None:
            change = f"  {self.now / self.before - 1:+.0%}"
        mark = "   <-- FELL" if self.fell else ""
        return f"  {self.comparison} / {self.peer}: {before} -> {now}{change}{mark}"


def committed(folder: Path) -> list[Path]:
    """The records of a folder that git tracks; all of them where there is no git."""
    try:
        done = subprocess.run(
            ["git", "ls-files", "-z", "--", "*.json"],
            cwd=folder,
            capture_output=True,
            text=True,
        )
    except OSError:
        return sorted(folder.glob("*.json"))
    if done.returncode != 0:
        return sorted(folder.glob("*.json"))
    return [folder / name for name in done.stdout.split("\0") if name]


def load(path: Path) -> dict:
    """A record read from a file; a ValueError that names the file if it is none."""
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not a bench record of schema {SCHEMA}")
    return record


def ratios(record: dict) -> Iterator[tuple[str, dict[str, float | None]]]:
    """(comparison, {peer: ratio or None}) of a record."""
    for result in record["results"]:
        rows = {row["name"]: row.get("ratio") for row in result["rows"] if row["name"] != "ours"}
        yield f"{result['bench']}: {result['name']}", rows


def changes(run: dict, records: Iterable[dict]) -> tuple[list[Change], list[str]]:
    """(every peer's change, comparisons that no record has), records in any order."""
    newest_first = sorted(records, key=lambda record: record["date"], reverse=True)
    # The run's own committed copy would compare it with itself.
    older = [dict(ratios(record)) for record in newest_first if record["date"] != run["date"]]
    names = [
        f"{record['date'][:10]}, commit {str(record['commit'])[:9]}"
        for record in newest_first
        if record["date"] != run["date"]
    ]
    found, new = [], []
    for comparison, now in ratios(run):
        match = next((i for i, peers in enumerate(older) if comparison in peers), None)
        if match is None:
            new.append(comparison)
            continue
        before = older[match][comparison]
        found += [
            Change(
                comparison=comparison,
                peer=peer,
                before=before.get(peer),
                now=now.get(peer),
                record=names[match],
            )
            for peer in dict.fromkeys([*before, *now])
        ]
    return found, new


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: nothing fell, or nothing to compare with; 1: marked; 2: no run to compare."""
    parser = argparse.ArgumentParser(prog="bench.compare_records", description=__doc__)
    parser.add_argument("run", nargs="?", type=Path, default=LATEST, help="default: %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    options = parser.parse_args(arguments)
    if not options.run.exists():
        print(f"no bench run at {options.run}: run `make bench` first", file=sys.stderr)
        return 2
    try:
        run = load(options.run)
        folder = options.results / run["slug"]
        records = [load(path) for path in committed(folder)] if folder.is_dir() else []
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    found, new = changes(run, records)
    if not found:
        print(f"no committed record of this hardware ({run['slug']}) has these benches yet;")
        print("`make bench ARGS=--record` writes one to commit")
        return 0
    for record in dict.fromkeys(change.record for change in found):
        print(f"against the record of {record} on {run['slug']}:")
        for change in found:
            if change.record == record:
                print(change.line())
    for comparison in new:
        print(f"  {comparison}: in no record yet")
    fell = [change for change in found if change.fell]
    if fell:
        print(f"{len(fell)} of {len(found)} ratios fell by more than {LIMIT:.0%}")
        return 1
    print(f"none of {len(found)} ratios fell by more than {LIMIT:.0%}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
