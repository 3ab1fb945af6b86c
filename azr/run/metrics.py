"""metrics.jsonl: one JSON object a step, appended and flushed, and folded into series."""

import json
import math
import os
import zlib
from pathlib import Path
from typing import Any

from azr.errors import naming_disk_errors
from azr.run.series import Fold, Line, read_fold, read_lines

PHASES = ("rollout", "verify", "update", "eval", "other")
"""The parts of a step's time, time/*_s."""


class MetricsLog:
    """Appends steps to metrics.jsonl; a NaN or Inf (no sample to average, say) becomes null."""

    def __init__(self, path: Path, keep_bytes: int | None = None, last_step: int = -1):
        """A resumed run keeps everything up to `last_step`, of which `keep_bytes` were written."""
        self.path = path
        self.problems: list[str] = []
        """What is missing or damaged of what was written before."""
        self._fold = Fold()
        with naming_disk_errors(path):
            if keep_bytes and path.exists():
                self._fold = read_fold(path, last_step)
                self.problems = self._fold.problems()
            kept = self._fold.position
            if keep_bytes and not kept:
                self.problems.append(
                    f"metrics.jsonl is missing or empty: it begins anew after step {last_step}"
                )
            elif keep_bytes and kept != keep_bytes:
                self.problems.append(
                    f"metrics.jsonl has {kept:,} bytes up to step {last_step}, not {keep_bytes:,} "
                    "as at the checkpoint: steps are missing or changed"
                )
            self._file = open(path, "ab")  # noqa: SIM115 - closed by close()
            self._file.truncate(self._fold.position)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Appends one line for a step."""
        row: dict[str, Any] = {"step": step}
        for name, value in metrics.items():
            row[name] = value if math.isfinite(value) else None
        line = (json.dumps(row) + "\n").encode()
        with naming_disk_errors(self.path):
            self._file.write(line)
            self._file.flush()
        self._fold.add(Line(row, len(line), zlib.crc32(line, self._fold.crc)))

    def save_fold(self) -> None:
        """Keeps the series beside the file, for who reads it."""
        self._fold.save(self.path)

    def position(self) -> int:
        """Returns the bytes written so far, all of them safe on the disk."""
        with naming_disk_errors(self.path):
            os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a metrics.jsonl, None where a value was not finite.

    A line that is none, cut short or damaged, is left out.
    """
    with open(path, "rb") as file:
        return [line.row for line in read_lines(file) if line.row is not None]
