"""run.db: every task and every sample of a run, in SQLite.

    tasks    (id, type, key, step, data)         data is the task as JSON; step 0 are seeds
    prompts  (id, text)                          each distinct prompt once
    samples  (id, step, role, type, prompt_id, task_key, text, outcome, reason, solve_rate,
              reward, advantage, tokens, finish, is_estimate, count)

Samples of a step that agree in everything are one row with their `count`. `outcome` is valid,
invalid, malformed or held_out for proposals; correct, wrong or malformed for answers. `reward` is
NULL where a sample enters no statistic.
"""

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from azr.errors import naming_disk_errors

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tasks (id INTEGER PRIMARY KEY, type TEXT NOT NULL, key TEXT NOT NULL,
    step INTEGER NOT NULL, data TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS prompts (id INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS samples (id INTEGER PRIMARY KEY, step INTEGER NOT NULL,
    role TEXT NOT NULL, type TEXT NOT NULL, prompt_id INTEGER NOT NULL REFERENCES prompts(id),
    task_key TEXT, text TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL,
    solve_rate REAL, reward REAL, advantage REAL, tokens INTEGER NOT NULL, finish TEXT NOT NULL,
    is_estimate INTEGER NOT NULL, count INTEGER NOT NULL);
"""

_TABLES = ("tasks", "prompts", "samples")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """A row of `samples`, with its prompt as text."""

    role: str
    type: str
    prompt: str
    task_key: str | None
    text: str
    outcome: str
    reason: str
    solve_rate: float | None
    reward: float | None
    advantage: float | None
    tokens: int
    finish: str
    is_estimate: bool


class RunDb:
    """Writes run.db, one transaction a step."""

    def __init__(
        self,
        path: Path,
        to_json: Callable[[object], dict],
        keep: Mapping[str, int] | None = None,
    ):
        """`keep`: what `position` returned; rows after it are dropped, as a resumed run needs."""
        self._path = path
        self._db = sqlite3.connect(path)
        # The journal survives a crash of the process; fsync at every step would slow a short step.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(_SCHEMA)
        self._to_json = to_json
        with self._db:
            for table in _TABLES if keep else ():
                self._db.execute(f"DELETE FROM {table} WHERE id > ?", (keep[table],))
        # Digests, not texts: the prompts of a long run would fill the memory.
        self._prompts = {
            _digest(text): number
            for number, text in self._db.execute("SELECT id, text FROM prompts")
        }

    def write(
        self, step: int, tasks: Iterable[tuple[str, str, object]], samples: Iterable[SampleRow]
    ) -> None:
        """Adds the (type, key, task) that entered the buffers, and the samples, of one step."""
        with naming_disk_errors(self._path), self._db:
            self._db.executemany(
                "INSERT INTO tasks (type, key, step, data) VALUES (?, ?, ?, ?)",
                [(t, key, step, json.dumps(self._to_json(task))) for t, key, task in tasks],
            )
            self._db.executemany(
                "INSERT INTO samples (step, role, type, prompt_id, task_key, text, outcome, reason,"
                " solve_rate, reward, advantage, tokens, finish, is_estimate, count)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        step, s.role, s.type, self._prompt_id(s.prompt), s.task_key, s.text,
                        s.outcome, s.reason, s.solve_rate, s.reward, s.advantage, s.tokens,
                        s.finish, s.is_estimate, count,
                    )
                    for s, count in Counter(samples).items()
                ],
            )  # fmt: skip

    def _prompt_id(self, text: str) -> int:
        digest = _digest(text)
        if digest not in self._prompts:
            cursor = self._db.execute("INSERT INTO prompts (text) VALUES (?)", (text,))
            self._prompts[digest] = cursor.lastrowid
        return self._prompts[digest]

    def position(self) -> dict[str, int]:
        """Returns the last row number of each table, all rows safe on the disk."""
        with naming_disk_errors(self._path):
            self._db.execute("PRAGMA wal_checkpoint(FULL)")
            return {
                table: self._db.execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchone()[0]
                for table in _TABLES
            }

    def close(self) -> None:
        """Writes everything back into the one file run.db."""
        # On a full disk the journal stays beside the file instead; nothing is lost.
        with suppress(sqlite3.OperationalError):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
