"""The task buffer of one type: distinct tasks, oldest out first."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Entry:
    """A task in a buffer, the key that makes it distinct, and the step that brought it."""

    key: str
    task: Hashable
    step: int


class TaskBuffer:
    """Tasks in order of insertion.

    The official code cuts a full buffer to its first entries, so that no new task ever enters;
    here the oldest leaves. It does not hold a task twice; the official code may.
    """

    def __init__(self, capacity: int):
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity = capacity
        self._entries: dict[str, Entry] = {}  # a dict keeps the order of insertion

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def add(self, key: str, task: Hashable, step: int) -> bool:
        """Adds a task and returns True, or returns False where it is there already.

        A repeated task keeps its age. A full buffer drops its oldest task.
        """
        if key in self._entries:
            return False
        if len(self._entries) == self.capacity:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = Entry(key, task, step)
        return True

    def entries(self) -> list[Entry]:
        """Returns all entries, oldest first."""
        return list(self._entries.values())

    def draw(
        self,
        rng: np.random.Generator,
        n: int,
        *,
        recency: bool = False,
        exclude: frozenset[str] | set[str] = frozenset(),
    ) -> list[Entry]:
        """Returns at most n distinct entries, in random order, none with a key in `exclude`."""
        pool = [e for e in self._entries.values() if e.key not in exclude]
        return draw_entries(pool, rng, n, recency=recency)


def draw_entries(
    pool: Sequence[Entry], rng: np.random.Generator, n: int, *, recency: bool = False
) -> list[Entry]:
    """Returns at most n entries of a pool, in random order, none twice.

    Uniform without replacement, or with weights step + 1 (seeds have step 0) for `recency`.
    """
    n = min(n, len(pool))
    if n == 0:
        return []
    weights = None
    if recency:
        weights = np.array([e.step + 1 for e in pool], dtype=np.float64)
        weights /= weights.sum()
    return [pool[i] for i in rng.choice(len(pool), size=n, replace=False, p=weights)]
