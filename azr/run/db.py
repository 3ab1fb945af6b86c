"""run.db: every task and every sample of a run, in SQLite.

    tasks    (id, type, key, step, data)         data is the task as JSON; step 0 are seeds
    prompts  (id, text)                          each distinct prompt once
    samples  (id, step, role, type, prompt_id, task_key, text, outcome, reason, solve_rate,
              reward, advantage, tokens, finish, is_estimate, count)

Samples of a step that agree in everything are one row with their `count`. `outcome` is valid,
invalid, malformed or held_out for proposals; correct, wrong or malformed for answers; unjudged for
either where the verifier failed. `reward` is NULL where a sample enters no statistic.
"""

import hashlib
import json
import operator
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from azr.errors import RunError, naming_disk_errors
from azr.tasks.records import Task

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

    @classmethod
    def of(cls, episode: Any) -> "SampleRow":
        """Returns what is kept of an `azr.selfplay.Episode`."""
        return cls(
            role=episode.role,
            type=episode.type,
            prompt=episode.prompt.text,
            task_key=episode.key or None,
            text=episode.text,
            outcome=episode.outcome,
            reason=episode.reason,
            solve_rate=episode.solve_rate,
            reward=episode.reward,
            advantage=episode.advantage,
            tokens=len(episode.sample.token_ids),
            finish=episode.sample.finish_reason,
            is_estimate=episode.is_estimate,
        )


SAMPLE_FIELDS = ("step", *(field.name for field in fields(SampleRow)), "count")
"""What a row says of a sample, in the order of its columns."""
_OWN_COLUMNS = tuple(field.name for field in fields(SampleRow) if field.name != "prompt")
_own_values = operator.attrgetter(*_OWN_COLUMNS)

BUSY_S = 5.0
"""Seconds that a step waits where another process has run.db locked."""
GIVE_UP_S = 600.0
"""Seconds of being locked after which the run is to be saved and ended."""
TOLD_EVERY_S = 60.0


class RunDb:
    """Writes run.db, one transaction a step.

    While another process has it locked, rows wait in memory: `write` waits `BUSY_S` for it and goes
    on, and after `GIVE_UP_S` the file is `is_stuck`.
    """

    def __init__(
        self,
        path: Path,
        to_json: Callable[[Task], dict],
        keep: Mapping[str, int] | None = None,
        warn: Callable[[str], None] = lambda message: None,
        last_step: int | None = None,
    ):
        """`keep`: what `position` returned; rows after it are dropped, as a resumed run needs.

        Rows after `last_step` are as well: a checkpoint that was made under --log.samples False has
        no position.
        `warn` is told of a lock, and of rows before it that are gone. Raises RunError for a file
        that is not a data base of rows, or is locked.
        """
        keep = keep or {}
        self._path, self._to_json, self._warn = path, to_json, warn
        self._waiting: list[tuple[int, str, list[tuple]]] = []
        """(step, statement, rows) that are not written yet."""
        self._locked_s = self._told_s = 0.0
        """time.monotonic() of when the lock was met, and of the last word on it; 0: no lock."""
        with _naming_damage(path), ExitStack() as opened:
            self._db = opened.enter_context(closing(sqlite3.connect(path, timeout=BUSY_S)))
            # The journal survives a crash of the process; fsync at every step would slow a short
            # step.
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)
            with self._db:
                for table in _TABLES if keep else ():
                    self._db.execute(f"DELETE FROM {table} WHERE id > ?", (keep[table],))
                for table in ("tasks", "samples") if last_step is not None else ():
                    self._db.execute(f"DELETE FROM {table} WHERE step > ?", (last_step,))
            self._last = {
                table: self._db.execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchone()[0]
                for table in _TABLES
            }
            self._prompts = _Prompts(self._db.execute("SELECT id, text FROM prompts ORDER BY id"))
            opened.pop_all()
        held = [(self._last[table], kept, table) for table, kept in keep.items()]
        if gone := [f"{have} of {kept} {table}" for have, kept, table in held if have < kept]:
            warn(
                f"{path} holds {', '.join(gone)} that it held at the checkpoint: the run goes on "
                "without the others"
            )

    @property
    def is_stuck(self) -> bool:
        """Whether it has been locked for so long that the run should end."""
        return self._locked_s > 0 and time.monotonic() - self._locked_s > GIVE_UP_S

    def write(
        self, step: int, tasks: Iterable[tuple[str, str, Task]], samples: Iterable[SampleRow]
    ) -> None:
        """Adds the (type, key, task) that entered the buffers, and the samples, of one step."""
        counted = Counter(samples)
        last = self._last["prompts"]
        prompts = self._prompts.number({s.prompt: None for s in counted}, last + 1)
        new = [(number, text) for text, number in prompts.items() if number > last]
        self._add(step, "prompts (id, text)", new)
        entered = [(t, key, step, json.dumps(self._to_json(task))) for t, key, task in tasks]
        self._add(step, "tasks (type, key, step, data)", entered)
        drawn = [(step, prompts[s.prompt], n, *_own_values(s)) for s, n in counted.items()]
        self._add(step, f"samples (step, prompt_id, count, {', '.join(_OWN_COLUMNS)})", drawn)
        self._flush()

    def _add(self, step: int, columns: str, rows: list[tuple]) -> None:
        """Lets rows wait for `_flush`; their numbers are known already."""
        marks = ", ".join("?" * (columns.count(",") + 1))
        self._waiting.append((step, f"INSERT INTO {columns} VALUES ({marks})", rows))
        self._last[columns.split()[0]] += len(rows)

    def _flush(self) -> bool:
        """Writes what waits; returns False where the file is locked."""
        try:
            with naming_disk_errors(self._path), self._db:
                for _, statement, rows in self._waiting:
                    self._db.executemany(statement, rows)
        except RunError as error:
            if _kind(error.__cause__) not in _LOCKED:
                raise
            now = time.monotonic()
            self._locked_s = self._locked_s or now
            if now - self._told_s >= TOLD_EVERY_S:
                self._told_s = now
                self._warn(
                    f"{self._path} is locked by another process: the samples from step "
                    f"{self._waiting[0][0]} on wait in memory, and after {GIVE_UP_S / 60:.0f} "
                    "minutes the run is saved and ends; close what holds the file"
                )
            return False
        self._waiting.clear()
        self._locked_s = self._told_s = 0.0
        return True

    def position(self) -> dict[str, int]:
        """Returns the last row number of each table, those that wait for a lock included.

        All others are safe on the disk.
        """
        if self._flush():
            with naming_disk_errors(self._path):
                self._db.execute("PRAGMA wal_checkpoint(FULL)")
        return dict(self._last)

    def close(self) -> None:
        """Writes everything back into the one file; tries for a minute where it is locked."""
        try:
            if not any(self._flush() for _ in range(12)):
                step = self._waiting[0][0]
                self._warn(f"{self._path} is still locked: it has no samples from step {step} on")
            # On a full disk the journal stays beside the file instead; nothing is lost.
            with suppress(sqlite3.OperationalError):
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            self._db.close()


class _Prompts:
    """The numbers of the prompts by a digest of their texts, 24 bytes each, in order of digests.

    A long run has millions: a dict of them would take some 120 bytes each.
    """

    def __init__(self, rows: Iterable[tuple[int, str]]):
        found = {_digest(text): number for number, text in rows}
        self._digests = np.array(sorted(found), _DIGEST)
        self._numbers = np.array([found[digest] for digest in sorted(found)], np.int64)

    def number(self, texts: Collection[str], first: int) -> dict[str, int]:
        """Returns the number of each of some distinct texts; new ones are numbered from `first`."""
        digests = np.array([_digest(text) for text in texts], _DIGEST)
        places = np.searchsorted(self._digests, digests)
        is_new = places == len(self._digests)
        is_new[~is_new] = self._digests[places[~is_new]] != digests[~is_new]
        numbers = np.empty(len(texts), np.int64)
        numbers[~is_new] = self._numbers[places[~is_new]]
        numbers[is_new] = np.arange(first, first + is_new.sum())
        added = np.flatnonzero(is_new)
        added = added[np.argsort(digests[added])]
        self._digests = np.insert(self._digests, places[added], digests[added])
        self._numbers = np.insert(self._numbers, places[added], numbers[added])
        return dict(zip(texts, numbers.tolist(), strict=True))


_DIGEST = "S16"
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DAMAGED = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_ERROR,  # whole, with other tables than ours
)


def _kind(error: BaseException | None) -> int:
    # The low byte is the kind of error, the rest its variety.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Turns what keeps a run.db from being opened into a RunError."""
    with naming_disk_errors(path):
        try:
            yield
        except sqlite3.Error as error:
            if _kind(error) in _LOCKED:
                advice = "close what has it open, then go on with --resume RUN"
            elif _kind(error) in _DAMAGED:
                advice = "move it away to go on without the samples so far"
            else:
                raise
            raise RunError(f"cannot use {path}: {error}; {advice}") from error


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
