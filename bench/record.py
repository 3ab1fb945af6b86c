"""The JSON record of a bench run (hardware, versions, commit, every row) and its table."""

import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.measure import OURS, Result, Row

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
LATEST = RESULTS / "latest.json"
SCHEMA = 1

PACKAGES = ("torch", "triton", "transformers", "numba", "llvmlite", "numpy")
PEERS = ("gmpy2", "galois", "liger-kernel", "cut-cross-entropy", "flash-attn", "trl")


def _output(*command: str) -> str | None:
    """What a command prints, None where it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _ram_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _gpus() -> list[dict[str, str]]:
    """Every visible GPU as the driver names it; clocks as found, since nothing here locks them."""
    keys = ("name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.mem",
            "power.limit")  # fmt: skip
    text = _output("nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader")
    rows = [line.split(",") for line in (text or "").splitlines() if line.strip()]
    return [dict(zip(keys, map(str.strip, row), strict=False)) for row in rows]


def hardware() -> dict[str, Any]:
    """The machine: processor, cores, memory, GPUs."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": usable,
        "ram_gib": _ram_gib(),
        "gpus": _gpus(),
        "os": platform.platform(),
    }


def slug(machine: dict[str, Any]) -> str:
    """A folder name for a kind of machine: GPU (if any), processor, number of cores."""
    gpus = [gpu["name"] for gpu in machine["gpus"]]
    words = [*([f"{len(gpus)}x"] if len(gpus) > 1 else []), *gpus[:1]]
    text = " ".join([*words, str(machine["cpu"]), f"{machine['cores']} cores"])
    text = re.sub(r"\((r|tm)\)|@.*?ghz", " ", text.lower())
    return re.sub(r"[^a-z0-9.]+", "-", text).strip("-")


def versions() -> dict[str, str]:
    """Python's version and those of the packages that are installed, peers included."""
    found = {"python": platform.python_version()}
    for package in (*PACKAGES, *PEERS):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> dict[str, Any]:
    """The commit measured, and whether tracked files differ from it."""
    head = _output("git", "rev-parse", "HEAD")
    changes = _output("git", "status", "--porcelain", "--untracked-files=no")
    return {"commit": head, "dirty": None if changes is None else bool(changes)}


def _row(row: Row) -> dict[str, Any]:
    kept = {key: value for key, value in asdict(row).items() if value is not None and value != {}}
    return kept if row.met is None else kept | {"met": row.met}


def build(results: Iterable[Result]) -> dict[str, Any]:
    """The record of a run, ready for `json.dumps`."""
    machine = hardware()
    return {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "slug": slug(machine),
        **commit(),
        "hardware": machine,
        "versions": versions(),
        "results": [
            {
                "bench": result.bench,
                "name": result.name,
                "device": result.device,
                "rounds": result.rounds,
                "unit": result.unit,
                "facts": result.facts,
                "rows": [_row(row) for row in result.rows.values()],
            }
            for result in results
        ],
    }


def committed_path(record: dict[str, Any], results: Path = RESULTS) -> Path:
    """Where a record that is to be committed belongs."""
    short = str(record["commit"] or "no-commit")[:9]
    return results / str(record["slug"]) / f"{str(record['date'])[:10]}-{short}.json"


def write(record: dict[str, Any], path: Path) -> None:
    """Writes a record whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1, default=str) + "\n")
    part.replace(path)


def si(value: float, unit: str) -> str:
    """A figure with three digits and an SI prefix: 1.23 Mtoken, 4.5 us."""
    for power, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")):
        if abs(value) >= power:
            return f"{value / power:.3g} {prefix}{unit}"
    for power, prefix in ((1e-3, "m"), (1e-6, "u"), (1e-9, "n")):
        if abs(value) >= power:
            return f"{value / power:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def _bar(row: Row) -> str:
    if row.must is None:
        return ""
    reach = "" if row.reach is None else f", reach {row.reach:g}x"
    verdict = {True: "met", False: "MISSED", None: "not measured"}[row.met]
    return f"must {row.must:g}x{reach}: {verdict}"


def _fact(key: str, value: object) -> str:
    if key.endswith("_bytes") and isinstance(value, int | float):
        return f"{key.removesuffix('_bytes')} {value / 2**20:.1f} MiB"
    return f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"


def table(results: Iterable[Result]) -> list[str]:
    """The lines of one aligned table: ours, each peer, ratio with quartiles, throughput, bar."""
    cells: list[tuple[str, ...] | str] = []
    for result in results:
        facts = ", ".join(_fact(key, value) for key, value in result.facts.items())
        head = f"{result.bench}: {result.name}  ({result.device}, {result.rounds} rounds)"
        cells.append(head + (f"  {facts}" if facts else ""))
        for row in result.rows.values():
            if row.status != "ok":
                cells.append((row.name, row.status, "", "", row.reason or "", _bar(row)))
                continue
            assert row.median_s is not None  # an ok row has its times
            spread = f"[{row.ratio_q1:.3g}, {row.ratio_q3:.3g}]" if row.name != OURS else ""
            speed = "" if row.items_per_s is None else si(row.items_per_s, result.unit + "/s")
            said = [_bar(row), *(_fact(k, v) for k, v in row.facts.items())]
            more = "  ".join(filter(None, said))
            ratio = f"{row.ratio:.3g}x"
            cells.append((row.name, si(row.median_s, "s"), ratio, spread, speed, more))
    if not cells:
        return []
    titles = ("", "per call", "vs ours", "quartiles", "throughput", "")
    rows = [titles, *(cell for cell in cells if isinstance(cell, tuple) and cell[1] != "absent")]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    widths[0] = max(len(cell[0]) for cell in cells if isinstance(cell, tuple))

    def line(cell: tuple[str, ...]) -> str:
        head = cell[0].ljust(widths[0])
        if cell[1] in ("absent", "failed", "not timed"):
            reason = f": {cell[4]}" if cell[4] else ""
            return f"  {head}  {cell[1]}{reason}  {cell[5]}".rstrip()
        rest = "  ".join(cell[column].rjust(widths[column]) for column in range(1, 5))
        return f"  {head}  {rest}  {cell[5]}".rstrip()

    return [line(titles), *(cell if isinstance(cell, str) else line(cell) for cell in cells)]
