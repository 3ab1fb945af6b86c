"""A base class for task families small enough to list: what most of them share is written once.

A family that derives from `TaskFamily` writes its words, its prompts, its rules and its universe.
Hold-outs, evaluation sets, seeds, keys and JSON follow from these; each can be overridden. Larger
families override `universe_size`, `seed_tasks`, `eval_tasks` and `from_json`, and `universe` is
then never called.
"""

import functools
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from azr.keys import make_key
from azr.tasks.environment import Environment, done, remembered
from azr.tasks.records import Answer, Grade, Pending, Proposal, Task, Verdict, mark_held_out


class TaskFamily(Environment):
    """An `Environment` with defaults. A task's `problem` is a tuple of numbers and strings."""

    styles: tuple[str, ...] = ("compact",)
    holdout_fraction = 0.1
    """Share of the problems in the split "heldout", by a hash: the same ones in every run."""

    # What a family writes, beside its words and its prompts

    @abstractmethod
    def universe(self, task_type: str) -> Sequence[Task]:
        """Returns every distinct task of the type, hold-outs included, in a fixed order."""

    @abstractmethod
    def validate(self, proposal: Proposal) -> Verdict:
        """Returns the verdict on a finished proposal, hold-outs aside; no text may raise."""

    @abstractmethod
    def grade(self, answer: Answer) -> Grade:
        """Returns the grade of a finished answer; no text may raise."""

    # What follows from it

    def submit_validate(self, proposals: Sequence[Proposal]) -> Pending[list[Verdict]]:
        """Returns the verdicts of `validate`; unfinished texts and hold-outs are seen to."""
        unfinished = Verdict(task=None, status="malformed", reason="unfinished")
        verdicts = [self.validate(p) if p.finished else unfinished for p in proposals]
        return done(mark_held_out(verdicts, self.split))

    def submit_grade(self, answers: Sequence[Answer]) -> Pending[list[Grade]]:
        """Returns the grades of `grade`; an unfinished text is malformed."""
        unfinished = Grade(outcome="malformed", reason="unfinished")
        return done([self.grade(a) if a.finished else unfinished for a in answers])

    def key(self, task: Task) -> str:
        """Returns the type and the prompt: what the solver sees is what makes a task."""
        return f"{task.type} {self.solve_prompt(task, self.styles[0])}"

    def split(self, task: Task) -> str:
        """Returns "train" or "heldout": a problem is held out in all types, or in none."""
        number = make_key("family-holdout", repr(task.problem)) / 2**64
        return "heldout" if number < self.holdout_fraction else "train"

    def splits(self) -> tuple[str, ...]:
        return ("train", "heldout")

    @remembered
    def eval_tasks(self, split: str, task_type: str) -> list[Task]:
        return [task for task in self.universe(task_type) if self.split(task) == split]

    def stratum(self, task: Task) -> str:
        """Returns "": splits are reported whole."""
        return ""

    def universe_size(self, task_type: str) -> int | None:
        return len(self.eval_tasks("train", task_type))

    def seed_tasks(self, rng: np.random.Generator, n: int) -> dict[str, list[Task]]:
        drawn = {}
        for task_type in self.task_types:
            tasks = self.eval_tasks("train", task_type)
            drawn[task_type] = [tasks[i] for i in rng.permutation(len(tasks))[:n].tolist()]
        return drawn

    def chance(self, task_type: str, split: str) -> float:
        """Returns NaN: not known, and shown as null."""
        return float("nan")

    def to_json(self, task: Task) -> dict[str, Any]:
        """Returns {"type", "problem"}."""
        return {"type": task.type, "problem": list(task.problem)}

    def from_json(self, data: dict[str, Any]) -> Task:
        try:
            task = Task(data["type"], tuple(data["problem"]))
            known = task.type in self.task_types and task in self._known
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a task of this family: {data!r}") from error
        if not known:
            raise ValueError(f"not a task of this family: {data!r}")
        return task

    @functools.cached_property
    def _known(self) -> frozenset[Task]:
        return frozenset(task for t in self.task_types for task in self.universe(t))
