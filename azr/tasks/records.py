"""The records that pass between the self-play loop and a task family, and how a batch waits."""

from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

P = TypeVar("P", bound=Hashable)

Outcome = Literal["correct", "wrong", "malformed", "unjudged"]
"""`unjudged`: the verifier itself failed. Such a sample has no reward and is never trained on."""


@dataclass(frozen=True, slots=True)
class Task(Generic[P]):
    """A task that an executor has checked: its type, and the family's own record of the rest."""

    type: str
    problem: P


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A proposer's completion, as text, with the tasks its prompt showed."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A solver's completion for a task, as text."""

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


class Deferred(Future):
    """A future whose work waits for whoever asks for the result: it needs no thread of its own."""

    def __init__(self, finish: Callable[[], list]):
        super().__init__()
        self._finish: Callable[[], list] | None = finish

    def result(self, timeout: float | None = None) -> list:
        """Returns the result, made at the first call."""
        if self._finish is not None:
            finish, self._finish = self._finish, None
            try:
                self.set_result(finish())
            except BaseException as error:
                self.set_exception(error)
                raise
        return super().result(timeout)
