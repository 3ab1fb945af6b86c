"""Programs, runs and the calls that they belong to: what is still to do, no process and no thread.

A call is one program with its inputs. It asks for runs, one child process each, takes what came of
them, and ends with a result per input: `PlainCall` after one run of every input, `LabelCall` after
runs under several seeds.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from azr.sandbox.records import Label, Limits, Result, Status, Value

BASE_SEEDS = 2
"""Seeds of every label."""
ALL_SEEDS = 12
"""Seeds of the label of a program that can see hash order or identity. A fair coin that is thrown
by the seed shows the same side in all of them once in 2048."""
ROUNDS = (range(1), range(1, BASE_SEEDS), range(2, 4), range(4, 8), range(8, ALL_SEEDS))
"""Seeds that run together; a label ends with the round that shows a difference."""
FINAL_SHARE = 0.5
"""Share of a limit from which on a result is run again alone."""
CONTENDED = 1.5
"""Elapsed over CPU time from which on a CPU timeout is put down to a busy machine."""

_TEXTS = re.compile(
    rb"""'{3}(?:\\.|[^\\])*?(?:'{3}|\\?\Z)|"{3}(?:\\.|[^\\])*?(?:"{3}|\\?\Z)"""
    rb"""|'(?:\\.|[^\\'])*'?|"(?:\\.|[^\\"])*"?""",
    re.DOTALL,
)
"""String literals. One without its end reaches to that of the text, so that no text takes more than
one pass."""
_SET = re.compile(rb"set|\{\s*+[^{}:\s][^{}:]*+\}")
"""A set, where strings and comments are gone: what stands in it has a hash, so no brace is between
its own, and a dict has a colon there."""


def may_hold_set(args_text: bytes) -> bool:
    """Returns whether there may be a set in an argument text; False is certain."""
    if b"{" not in args_text and b"set" not in args_text:
        return False
    # A quote in a comment is no string's, and a mark in a string begins no comment.
    return b"#" in args_text or _SET.search(_TEXTS.sub(b"0", args_text)) is not None


DETERMINED = frozenset(
    ("ok", "exception", "syntax_error", "forbidden_import", "too_large", "unsupported_value")
)
"""Statuses that a program has by itself, whatever the machine does."""


class Outcome(NamedTuple):
    """One input of one run, as the report says it."""

    status: Status
    payload: bytes = b""
    value: Value = None
    cpu_s: float = 0.0
    wall_s: float = 0.0
    signal: int = 0
    contended: bool = False
    shows_identity: bool = False
    """Whether the program has made a text of an address by then."""

    @property
    def identity(self) -> tuple[Status, bytes]:
        """What has to be equal in all runs of a label."""
        return self.status, self.payload

    def result(self) -> Result:
        ok = self.status == "ok"
        return Result(
            self.status,
            self.value if ok else None,
            "" if ok or self.value is None else str(self.value),
            self.payload if ok else b"",
            self.cpu_s,
            self.wall_s,
            self.signal,
        )


@dataclass(slots=True, eq=False)
class Program:
    """A source and what the compiler said of it. `outcome` is None until it has spoken."""

    source: bytes
    key: bytes = b""
    id: int = 0
    attempts: int = 0
    outcome: Status | None = None
    code: bytes = b""
    detail: str = ""
    is_risky: bool = False


@dataclass(slots=True, eq=False)
class Run:
    """Inputs of one program for one child of one zygote."""

    call: "Call"
    seed: int | None
    """Which zygote; None for whichever of the first two has less to do."""
    positions: list[int]
    """Which inputs of the call, in the order of the run; one may come twice."""
    shake: int = 0
    alone: bool = False
    attempts: int = 0
    frame_bytes: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    """Of the first positions, so far."""
    is_recalled: bool = False
    """Whether a zygote that has not begun it may give it back."""


Ask = Callable[[Run], None]


class Call(ABC):
    """A program with its inputs, until every input has a result."""

    def __init__(
        self,
        program: Program,
        texts: Sequence[bytes | None],
        limits: Limits,
        done: Callable,
        is_wanted: Callable[[], bool],
    ):
        self.program = program
        self.texts = texts
        """Argument texts in UTF-8; None for one that is over a limit or no text."""
        self.limits = limits
        self.done = done
        self.is_wanted = is_wanted
        self.is_dropped = False
        """Whether it has ended because nobody waits for it; runs of it may still be under way."""
        self.begun_s = 0.0
        self.reruns = 0

    @abstractmethod
    def begin(self, ask: Ask) -> None:
        """Asks for the first runs, now that the program is compiled."""

    @abstractmethod
    def take(self, run: Run, outcomes: list[Outcome], ask: Ask) -> None:
        """Takes the outcomes of a whole run, in its order."""

    @abstractmethod
    def statuses(self) -> list[Status]:
        """The status of every input, once done."""

    @abstractmethod
    def abandon(self, why: str) -> None:
        """Ends the call for the sandbox's own failure."""

    @cached_property
    def is_risky(self) -> bool:
        """Whether the program can see hash order or identity, in its own objects or in a set that
        it is given."""
        return self.program.is_risky or any(map(may_hold_set, filter(None, self.texts)))

    def runnable(self) -> list[int]:
        """Inputs that have a text to run with."""
        return [i for i, text in enumerate(self.texts) if text is not None]

    def fixed(self) -> list[Outcome | None]:
        """Per input the outcome that needs no run, None for those that do."""
        if self.program.outcome != "ok":
            verdict = Outcome(self.program.outcome, value=self.program.detail or None)
            return [verdict] * len(self.texts)
        return [
            Outcome("too_large", value="arguments") if text is None else None for text in self.texts
        ]

    def is_close(self, outcome: Outcome) -> bool:
        """Whether a limit was so near that a busy machine may have made the verdict."""
        if outcome.status == "timeout_wall":
            return True
        if outcome.status == "timeout_cpu":
            return outcome.contended
        return (
            outcome.cpu_s > FINAL_SHARE * self.limits.cpu_s
            or outcome.wall_s > FINAL_SHARE * self.limits.wall_s
        )

    def settle(self, run: Run, outcomes: list[Outcome], ask: Ask) -> bool:
        """Asks for the run again, alone, if a verdict of it is close. All of it, in its order: a
        part would not see the state that the inputs before leave behind."""
        if run.alone or not any(map(self.is_close, outcomes)):
            return False
        self.reruns += 1
        ask(Run(self, run.seed, run.positions, run.shake, alone=True))
        return True


class PlainCall(Call):
    """Every input once."""

    def begin(self, ask: Ask) -> None:
        self.outcomes = self.fixed()
        if None not in self.outcomes:
            self.done(self)
            return
        # What cannot see hash order or identity gives the same under every seed.
        seed = 0 if self.is_risky else None
        ask(Run(self, seed, [i for i, outcome in enumerate(self.outcomes) if outcome is None]))

    def take(self, run: Run, outcomes: list[Outcome], ask: Ask) -> None:
        if self.settle(run, outcomes, ask):
            return
        for position, outcome in zip(run.positions, outcomes, strict=True):
            self.outcomes[position] = outcome
        self.done(self)

    def abandon(self, why: str) -> None:
        self.outcomes = [Outcome("sandbox_failure", value=why)] * len(self.texts)
        self.done(self)

    def statuses(self) -> list[Status]:
        return [outcome.status for outcome in self.outcomes]

    def results(self) -> list[Result]:
        """A result per input, once done."""
        return [outcome.result() for outcome in self.outcomes]


class LabelCall(Call):
    """Every input under several seeds: first in order, then in reverse, then as risk demands."""

    def begin(self, ask: Ask) -> None:
        self.first = self.fixed()
        self.differs: set[int] = set()
        self.reason = ""
        self.left = 0
        self.round = 0
        if None not in self.first:
            undone = [o.status for o in self.first if o.status not in DETERMINED]
            self.reason = f"the program: {undone[0]}" if undone else ""
            self.done(self)
            return
        self._ask(ask, 0, self.runnable())

    def _ask(self, ask: Ask, seed: int, positions: list[int]) -> None:
        self.left += 1
        ask(Run(self, seed, positions, shake=seed + 1 if self.is_risky else 0))

    def take(self, run: Run, outcomes: list[Outcome], ask: Ask) -> None:
        if self.settle(run, outcomes, ask):
            return
        self.left -= 1
        self.is_risky |= any(outcome.shows_identity for outcome in outcomes)
        for position, outcome in zip(run.positions, outcomes, strict=True):
            self._compare(position, outcome)
        if self.left:
            return
        self.round += 1
        if self.reason or self.round == (len(ROUNDS) if self.is_risky else 2):
            self.done(self)
            return
        backward = self.runnable()[::-1]
        for seed in ROUNDS[self.round]:
            # The first input comes again at the end: state shows even where there is one input.
            self._ask(ask, seed, [*backward, backward[0]])

    def _compare(self, position: int, outcome: Outcome) -> None:
        seen = self.first[position]
        if seen is None:
            self.first[position] = seen = outcome
        if outcome.status not in DETERMINED:
            self.reason = self.reason or f"input {position}: {outcome.status}"
        elif outcome.identity != seen.identity:
            self.differs.add(position)
            self.reason = f"input {position} gives different results"

    def abandon(self, why: str) -> None:
        self.first = [Outcome("sandbox_failure", value=why)] * len(self.texts)
        self.differs = set()
        self.reason = f"sandbox_failure: {why}"
        self.done(self)

    def statuses(self) -> list[Status]:
        return [
            "nondeterministic" if i in self.differs else outcome.status
            for i, outcome in enumerate(self.first)
        ]

    def label(self) -> Label:
        """The label, once done."""
        results = tuple(
            Result("nondeterministic") if i in self.differs else outcome.result()
            for i, outcome in enumerate(self.first)
        )
        return Label(results, not self.reason, self.reason)
