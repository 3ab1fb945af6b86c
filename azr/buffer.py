"""The task buffer of one type: distinct tasks, oldest out first."""

from array import array
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from azr.tasks.records import Task


@dataclass(frozen=True, slots=True)
class Entry:
    """A task in a buffer, the key that makes it distinct, and the step that brought it."""

    key: str
    task: Task
    step: int


class TaskBuffer:
    """Tasks in order of insertion.

    The official code cuts a full buffer to its first entries, so that no new task ever enters;
    here the oldest leaves. It does not hold a task twice; the official code may.

    Weights and answers are kept as tasks come and go: to make them anew for each draw or step of a
    large buffer costs more than the draw.
    """

    def __init__(self, capacity: int, answer: Callable[[Task], str] = lambda task: ""):
        """`answer` tells what `answers` counts."""
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity = capacity
        self.answers: Counter[str] = Counter()
        """How often each answer stands in the buffer."""
        self._answer = answer
        self._added = 0
        # A ring: the entry that was added as number n is in slot n % capacity. Entries are made as
        # they are asked for: tens of thousands would take as much memory as their keys.
        self._keys: list[str] = []
        self._tasks: list[Task] = []
        self._weights = array("d")
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: str) -> bool:
        return key in self._numbers

    def __getitem__(self, place: int) -> Entry:
        """Returns the entry at a place, of which 0 is the oldest."""
        slot = (self._oldest_slot() + place) % self.capacity
        return Entry(self._keys[slot], self._tasks[slot], int(self._weights[slot]) - 1)

    def add(self, key: str, task: Task, step: int) -> bool:
        """Adds a task and returns True, or returns False where it is there already.

        A repeated task keeps its age. A full buffer drops its oldest task.
        """
        if key in self._numbers:
            return False
        weight = step + 1.0
        if len(self) == self.capacity:
            slot = self._added % self.capacity
            del self._numbers[self._keys[slot]]
            self._count(self._tasks[slot], -1)
            self._keys[slot], self._tasks[slot], self._weights[slot] = key, task, weight
        else:
            self._keys.append(key)
            self._tasks.append(task)
            self._weights.append(weight)
        self._numbers[key] = self._added
        self._added += 1
        self._count(task, 1)
        return True

    def entries(self) -> list[Entry]:
        """Returns all entries, oldest first."""
        return [self[place] for place in range(len(self))]

    def weights(self) -> np.ndarray:
        """Returns the step of each entry plus one, oldest first."""
        weights, oldest = np.frombuffer(self._weights), self._oldest_slot()
        return np.concatenate([weights[oldest:], weights[:oldest]])

    def draw(
        self,
        rng: np.random.Generator,
        n: int,
        *,
        recency: bool = False,
        exclude: Collection[str] = frozenset(),
    ) -> list[Entry]:
        """Returns at most n distinct entries, in random order, none with a key in `exclude`."""
        first = self._added - len(self)
        numbers = (self._numbers[key] for key in set(exclude) if key in self)
        skip = sorted(number - first for number in numbers)
        return draw_entries([self], rng, n, recency=recency, skip=skip)

    def _count(self, task: Task, change: int) -> None:
        answer = self._answer(task)
        self.answers[answer] += change
        if not self.answers[answer]:
            del self.answers[answer]

    def _oldest_slot(self) -> int:
        return (self._added - len(self)) % self.capacity


def draw_entries(
    buffers: Sequence[TaskBuffer],
    rng: np.random.Generator,
    n: int,
    *,
    recency: bool = False,
    skip: Sequence[int] = (),
) -> list[Entry]:
    """Returns at most n entries of some buffers, in random order, none twice.

    Uniform without replacement, or with weights step + 1 (seeds have step 0) for `recency`. Places
    in `skip`, ascending and counted over all the buffers, are left out.
    """
    size = sum(map(len, buffers)) - len(skip)
    n = min(n, size)
    if n == 0:
        return []
    weights = None
    if recency:
        weights = np.concatenate([buffer.weights() for buffer in buffers])
        weights = np.delete(weights, np.array(skip, dtype=int))
        weights /= weights.sum()
    places = rng.choice(size, size=n, replace=False, p=weights)
    for place in skip:
        places[places >= place] += 1
    return [_entry(buffers, int(place)) for place in places]


def _entry(buffers: Sequence[TaskBuffer], place: int) -> Entry:
    for buffer in buffers:
        if place < len(buffer):
            return buffer[place]
        place -= len(buffer)
    raise IndexError(place)
