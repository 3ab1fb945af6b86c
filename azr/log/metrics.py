"""metrics.jsonl: one JSON object a step, appended and flushed."""

import json
import math
import os
from pathlib import Path
from typing import Any

from azr.errors import naming_disk_errors


class MetricsLog:
    """Appends steps to metrics.jsonl; a NaN or Inf (no sample to average, say) becomes null."""

    def __init__(self, path: Path, keep_bytes: int | None = None):
        """`keep_bytes`: everything after so many bytes is dropped, as a resumed run needs it."""
        self.path = path
        self._file = open(path, "ab")  # noqa: SIM115 - closed by close()
        if keep_bytes is not None:
            self._file.truncate(keep_bytes)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Appends one line for a step."""
        row: dict[str, Any] = {"step": step}
        for name, value in metrics.items():
            row[name] = value if math.isfinite(value) else None
        with naming_disk_errors(self.path):
            self._file.write((json.dumps(row) + "\n").encode())
            self._file.flush()

    def position(self) -> int:
        """Returns the bytes written so far, all of them safe on the disk."""
        with naming_disk_errors(self.path):
            os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a metrics.jsonl, None where a value was not finite."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def series(rows: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Returns (steps, values) of a metric over the rows that have it."""
    found = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]
