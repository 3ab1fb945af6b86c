"""The samples of a suite's evaluation: a JSONL file that a second call goes on from."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from azr.config import ConfigError
from azr.errors import naming_disk_errors


@dataclass(frozen=True, slots=True)
class Line:
    """One graded sample."""

    item: str
    kind: str
    index: int
    """Which of the sampled answers; -1 for the greedy one."""
    outcome: str
    reason: str
    text: str

    @property
    def place(self) -> tuple[str, str, int]:
        """Item, kind and index: what it is the sample of."""
        return (self.item, self.kind, self.index)


class Journal:
    """Graded samples on disk. The first line says of what; only what equals it goes on.

    A line that was cut short is dropped: its sample is drawn anew, and is the same one.
    """

    def __init__(self, path: Path, identity: dict[str, Any]):
        """Raises ConfigError for a journal of another evaluation, naming what differs."""
        self.path = path
        self.lines: dict[tuple[str, str, int], Line] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = self._read(identity) if path.exists() else 0
            self._file = open(path, "ab")  # noqa: SIM115 - closed by close()
            self._file.truncate(kept)
        except OSError as error:
            raise ConfigError(f"{path}: cannot write there: {error.strerror}") from error
        if not kept:
            self._append([identity])

    def _read(self, identity: dict[str, Any]) -> int:
        """Takes the whole lines; returns how many bytes they have."""
        kept = 0
        for number, raw in enumerate(self.path.read_bytes().splitlines(keepends=True)):
            try:
                row = json.loads(raw)
                line = Line(**row) if number else None
            except (ValueError, TypeError):
                break
            if row is None or not raw.endswith(b"\n"):
                break
            if line:
                self.lines[line.place] = line
            elif row != identity:
                held = row if isinstance(row, dict) else {}  # a file of something else
                changed = sorted(k for k in {*held, *identity} if held.get(k) != identity.get(k))
                raise ConfigError(
                    f"{self.path} holds samples of another evaluation ({', '.join(changed)} "
                    "differ); move it away, or name another file with --out"
                )
            kept += len(raw)
        return kept

    def add(self, lines: Sequence[Line]) -> None:
        """Appends samples; they are safe on the disk when it returns."""
        self._append([asdict(line) for line in lines])
        self.lines |= {line.place: line for line in lines}

    def _append(self, rows: Sequence[dict[str, Any]]) -> None:
        with naming_disk_errors(self.path):
            self._file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
