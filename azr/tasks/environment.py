"""The protocol of a task family, and how one is found.

A family is a plug-in: a class registered under the entry point group `azr.environments`, built
from the `task` part of the configuration. It knows no model and no device.
"""

import difflib
import functools
import importlib
import importlib.metadata
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from azr.config import ConfigError, TaskConfig
from azr.tasks.checked import CheckedFamily
from azr.tasks.records import (
    Answer,
    Grade,
    Pending,
    Proposal,
    References,
    Task,
    Traits,
    Verdict,
)

# Families of this package, so that a checkout that is not installed finds them as well.
_BUILT_IN = {
    "prime": "azr.tasks.prime:PrimeEnvironment",
    "program": "azr.tasks.program:ProgramEnvironment",
}

M = TypeVar("M", bound=Callable)
Role = Literal["propose", "solve"]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words of a tiny model made for one family.

    `split` says how text falls into words: at white space ("word"), or into single characters
    ("char", where the space is a word like any other).
    """

    words: tuple[str, ...]
    split: Literal["word", "char"]


class Environment(Protocol):
    """What self-play asks of a task family. Every family derives from it, or from `TaskFamily`.

    Batched calls return what is `Pending`, a future or the like, so that the caller goes on while a
    family checks. Model text never raises: whatever it holds, it becomes a verdict or a grade.
    """

    task_types: tuple[str, ...]
    styles: tuple[str, ...]
    """Ways in which prompts and responses are written, out of "compact", "r1" and "chat".

    "compact" is the tiny model's own vocabulary. For the other two the family writes one and the
    same instruction, which is dressed elsewhere (`azr.text`), and reads responses through
    `azr.tasks.envelope`. A family reads responses of the style in its `TaskConfig`, where "auto"
    means compact.
    """

    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """Returns the words of the tiny model."""

    @abstractmethod
    def warmup_rows(self, rng: np.random.Generator, n: int) -> list[tuple[str, str]]:
        """Returns n (prompt, response) pairs, well formed, responses uniformly random."""

    @abstractmethod
    def seed_tasks(self, rng: np.random.Generator, n: int) -> dict[str, list[Task]]:
        """Returns at most n distinct training tasks for each type, drawn without a model."""

    @abstractmethod
    def propose_prompt(self, task_type: str, references: Sequence[Task], style: str) -> str:
        """Returns the instruction that asks for a new task unlike the references."""

    @abstractmethod
    def solve_prompt(self, task: Task, style: str) -> str:
        """Returns the instruction of a task; nothing of the answer is in it."""

    @abstractmethod
    def max_response_words(self, role: Role, task_type: str) -> int:
        """Returns how many words of `vocabulary()` a well-formed response has at most."""

    @abstractmethod
    def submit_validate(self, proposals: Sequence[Proposal]) -> Pending[list[Verdict]]:
        """Returns the verdicts on proposals."""

    @abstractmethod
    def submit_grade(self, answers: Sequence[Answer]) -> Pending[list[Grade]]:
        """Returns the grades of answers."""

    @abstractmethod
    def key(self, task: Task) -> str:
        """Returns a text that two tasks share if, and only if, they are the same task."""

    @abstractmethod
    def split(self, task: Task) -> str:
        """Returns "train", or the name of the hold-out that the task belongs to."""

    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Returns the names of all splits, "train" first."""

    @abstractmethod
    def eval_tasks(self, split: str, task_type: str) -> list[Task]:
        """Returns every distinct task of a split, or a fixed sample where they are many."""

    @abstractmethod
    def stratum(self, task: Task) -> str:
        """Returns the part of its split that a task is also reported in; "" for none."""

    @abstractmethod
    def universe_size(self, task_type: str) -> int | None:
        """Returns the number of distinct training tasks, or None where it is not counted."""

    @abstractmethod
    def chance(self, task_type: str, split: str) -> float:
        """Returns the accuracy of random well-formed answers on `eval_tasks`."""

    @abstractmethod
    def to_json(self, task: Task) -> dict[str, Any]:
        """Returns a JSON object that `from_json` turns back into an equal task.

        Called in a thread of its own while a checkpoint is written.
        """

    @abstractmethod
    def from_json(self, data: dict[str, Any]) -> Task:
        """Returns the task of `to_json`; raises ValueError on anything else."""

    # What most families keep

    def open(self) -> None:
        """Starts the processes that the family needs; raises RunError where it cannot."""

    def reference_source(self, task_type: str) -> References:
        """Returns which tasks the proposer of a type is shown: K of the same type."""
        return References(types=(task_type,))

    def first_tasks(self) -> dict[str, list[Task]]:
        """Returns tasks by type that stand in the buffers before the first seeding proposal."""
        return {}

    def traits(self, task: Task, others: Sequence[Task]) -> Traits | None:
        """Returns what can be said of a task beside others; None where the family says nothing."""
        return None

    def answer(self, task: Task) -> str:
        """Returns what a solver of the task must find, as text; "" where the family is silent."""
        return ""

    def verifier_metrics(self) -> dict[str, float]:
        """Returns metrics of the verifier over the time since the last call."""
        return {}

    def close(self) -> None:
        """Ends the processes that the family has started."""


def remembered(method: M) -> M:
    """Returns a method that works each answer out once; an environment lives as a process does."""
    # A cached method is called like the plain one, which its type does not say.
    return functools.cache(method)  # pyrefly: ignore[bad-return]


def done(result: list) -> Future:
    """Returns a finished future, for families that check faster than they could schedule."""
    future: Future = Future()
    future.set_result(result)
    return future


def load_environment(config: TaskConfig) -> Environment:
    """Returns the task family that `config.family` names, what it returns being checked.

    Raises ConfigError where no such family is installed, or it lacks a task type or the style.
    """
    points = {p.name: p for p in importlib.metadata.entry_points(group="azr.environments")}
    if config.family in _BUILT_IN:
        module, _, name = _BUILT_IN[config.family].partition(":")
        factory = getattr(importlib.import_module(module), name)
    elif config.family in points:
        factory = points[config.family].load()
    else:
        known = sorted({*points, *_BUILT_IN})
        near = difflib.get_close_matches(config.family, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"--env {config.family!r}: no such task family; known: {known}{hint}")
    environment: Any = CheckedFamily(factory(config), config.family)
    for task_type in config.types:
        if task_type not in environment.task_types:
            raise ConfigError(
                f"--task.types {task_type!r}: family {config.family!r} has "
                f"{list(environment.task_types)}"
            )
    if config.style not in ("auto", *environment.styles):
        raise ConfigError(
            f"--task.style {config.style!r}: family {config.family!r} has "
            f"{list(environment.styles)}"
        )
    return environment
