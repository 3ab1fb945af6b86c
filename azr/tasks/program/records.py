"""The record of a program task, what a style of its texts is, and what its parsers raise."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

DEDUCTION, ABDUCTION, INDUCTION = "deduction", "abduction", "induction"


class FormatError(ValueError):
    """A response that is not in the format of its cell; its text is the named reason."""


@dataclass(frozen=True, slots=True, order=True)
class ProgramProblem:
    """A program with argument lists and what it returns for each, all as text.

    Deduction and abduction have one of each; induction has N of each, and a message. Outputs are
    what the sandbox ran, never what a model wrote.
    """

    code: str
    """Python source that defines `f`."""
    inputs: tuple[str, ...]
    """Canonical texts of argument lists, such as `1, [2, 3]`."""
    outputs: tuple[str, ...]
    """Literals: what `f` returned for each."""
    message: str = ""
    """Induction: the proposer's hint to the solver."""

    def __post_init__(self) -> None:
        # The buffers hold tens of thousands, and in the compact style few of the texts differ.
        for name in ("code", "message"):
            object.__setattr__(self, name, sys.intern(getattr(self, name)))
        for name in ("inputs", "outputs"):
            object.__setattr__(self, name, tuple(map(sys.intern, getattr(self, name))))

    @property
    def shown(self) -> int:
        """Pairs that induction shows to the solver, the first half; the rest is hidden."""
        return len(self.inputs) // 2

    @property
    def shown_pairs(self) -> tuple[tuple[str, str], ...]:
        """The (input, output) pairs that induction shows."""
        return tuple(zip(self.inputs, self.outputs, strict=True))[: self.shown]

    @property
    def hidden_pairs(self) -> tuple[tuple[str, str], ...]:
        """The (input, output) pairs that an induced program must reproduce."""
        return tuple(zip(self.inputs, self.outputs, strict=True))[self.shown :]


class Form(Protocol):
    """How prompts and responses are written: the modules `compact_format` and `text_format`."""

    def propose_prompt(
        self, task_type: str, references: Sequence[ProgramProblem], inputs: int
    ) -> str: ...
    def solve_prompt(self, task_type: str, problem: ProgramProblem) -> str: ...
    def write_proposal(self, task_type: str, first: str, inputs: Sequence[str]) -> str: ...
    def read_proposal(
        self, task_type: str, text: str, finished: bool, count: int
    ) -> tuple[str, ...]: ...
    def write_answer(self, task_type: str, answer: str) -> str: ...
    def read_answer(self, task_type: str, text: str, finished: bool) -> str: ...
    def is_expressible(self, problem: ProgramProblem) -> bool: ...
