"""The records that pass between the self-play loop and a task family, and how a batch waits."""

import functools
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

P = TypeVar("P", bound=Hashable)
R = TypeVar("R", covariant=True)

Outcome = Literal["correct", "wrong", "malformed", "unjudged"]
"""`unjudged`: the verifier itself failed. Such a sample has no reward and is never trained on."""


@dataclass(frozen=True, slots=True)
class Task(Generic[P]):
    """A task that an executor has checked: its type, and the family's own record of the rest."""

    type: str
    problem: P


@dataclass(slots=True, kw_only=True, unsafe_hash=True)
class Proposal:
    """A proposer's completion, as text, with the tasks its prompt showed.

    No family changes it: it is compared, and hashed, as what it says here.
    """

    type: str
    text: str
    finished: bool
    """True where the model ended the text itself; False where it ran into the length limit."""
    references: tuple[Task, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a proposal: a task, or a reason why not."""

    task: Task | None
    status: Literal["valid", "invalid", "malformed", "held_out", "unjudged"]
    reason: str = ""
    """Named reason of a rejection; empty where the proposal is valid."""


@dataclass(slots=True, kw_only=True, unsafe_hash=True)
class Answer:
    """A solver's completion for a task, as text. No family changes it: see `Proposal`."""

    task: Task
    text: str
    finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """What became of an answer."""

    outcome: Outcome
    reason: str = ""
    """Named reason where the answer is not correct."""


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """Which tasks a proposer is shown."""

    types: tuple[str, ...]
    """Task types whose buffers, taken together, they are drawn from."""
    count: int | None = None
    """How many; None is K of the configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What can be said of a task without a solver, for metrics and the optional extra rewards."""

    length: float
    """Lines of its program, or what the family counts."""
    complexity: float
    """Cyclomatic complexity of its program, or what the family counts; at least 1."""
    distance: float
    """Mean distance from the others, 0 (the same) to 1; NaN without others."""


class Pending(Protocol[R]):
    """A batch under way: `result()` waits for it and is asked once. Nothing more is promised.

    Any `concurrent.futures.Future` is one.
    """

    def result(self) -> R:
        """Returns what became of the batch, in the order of its items."""
        ...


class Deferred(Generic[R]):
    """A batch of which the last part is done by whoever asks for the result."""

    def __init__(self, finish: Callable[[], R]):
        self._finish = functools.cache(finish)

    def result(self) -> R:
        """Returns what became of the batch, worked out the first time."""
        return self._finish()


def mark_held_out(verdicts: Iterable[Verdict], split: Callable[[Task], str]) -> list[Verdict]:
    """Returns the verdicts, those with a task outside of the split "train" as held out."""
    return [
        Verdict(task=v.task, status="held_out", reason="held_out")
        if v.task is not None and split(v.task) != "train"
        else v
        for v in verdicts
    ]
