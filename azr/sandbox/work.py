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
EITHER = -1
"""In the place of a seed: whichever of the first two zygotes has less to do."""
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
    rb"""'{3}(?:[^\\']++|\\.|'(?!''))*+(?:'{3}|\\?\Z)|"{3}(?:[^\\"]++|\\.|"(?!""))*+(?:"{3}|\\?\Z)"""
    rb"""|'(?:[^\\']++|\\.)*+'?|"(?:[^\\"]++|\\.)*+"?""",
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
    may_differ: bool = False
    """Whether the program has by then made a text that may show an address, or a class, or has been
    refused memory."""

    @property
    def may_differ_alone(self) -> bool:
        """Whether a process that has run other inputs before may have given another outcome."""
        return self.may_differ or self.status in ("memory", "crash", "no_result", "violation")

    @property
    def identity(self) -> tuple[Status, Value]:
        """What has to be equal in all runs of a label."""
        return self.status, self.payload if self.status == "ok" else self.value

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
    """Whether it may see hash order or identity."""
    keeps: bool = True
    """Whether one call may leave something to the next."""


@dataclass(slots=True, eq=False)
class Run:
    """Inputs of one program for one child of one zygote."""

    call: "Call"
    seed: int
    """Which zygote; below 0 is EITHER."""
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

NOT_RUN = Outcome("no_result", value="not run: another input has settled the label")


@dataclass(eq=False)
class Call(ABC):
    """A program with its inputs, until every input has a result.

    Every input is as if it were alone: inputs share a process only where the program is known to
    keep nothing from one call to the next.
    """

    program: Program
    texts: Sequence[bytes | None]
    """Argument texts in UTF-8; None for one that is over a limit or no text."""
    limits: Limits
    done: Callable
    """Is told when it has ended."""
    is_wanted: Callable[[], bool]
    is_dropped: bool = False
    """Whether it has ended because nobody waits for it."""
    is_over: bool = False
    """Whether it has ended; runs of it may still be under way."""
    left: int = 0
    """Runs that are asked for and not taken."""

    @abstractmethod
    def begin(self, ask: Ask) -> None:
        """Asks for the first runs, now that the program is compiled."""

    @abstractmethod
    def take(self, run: Run, outcomes: list[Outcome], ask: Ask) -> None:
        """Takes the outcomes of a run, in its order."""

    @abstractmethod
    def statuses(self) -> list[Status]:
        """The status of every input, once done."""

    @abstractmethod
    def fail(self, why: str) -> None:
        """Makes every result the sandbox's own failure."""

    def needs_rest(self, run: Run) -> bool:
        """Whether the inputs of a run are wanted that stand behind one which ended the child."""
        return True

    def finish(self) -> None:
        """Ends the call: tells the caller, once."""
        if not self.is_over:
            self.is_over = True
            self.done(self)

    def abandon(self, why: str) -> None:
        """Ends the call for the sandbox's own failure."""
        if not self.is_over:
            self.fail(why)
            self.finish()

    @cached_property
    def is_risky(self) -> bool:
        """Whether the program can see hash order or identity, in its own objects or in a set that
        it is given."""
        return self.program.is_risky or any(map(may_hold_set, filter(None, self.texts)))

    def fixed(self) -> list[Outcome | None]:
        """Per input the outcome that needs no run, None for those that do."""
        status = self.program.outcome
        if status is not None and status != "ok":
            verdict = Outcome(status, value=self.program.detail or None)
            return [verdict] * len(self.texts)
        return [
            Outcome("too_large", value="arguments") if text is None else None for text in self.texts
        ]

    def parts(self, positions: list[int]) -> list[list[int]]:
        """Returns the inputs by processes in which each is as if it were alone."""
        return [[p] for p in positions] if self.program.keeps else [positions]

    def ask_for(
        self, ask: Ask, seed: int, positions: list[int], shake: int = 0, alone: bool = False
    ) -> None:
        """Asks for a run, and counts it."""
        self.left += 1
        ask(Run(self, seed, positions, shake, alone))

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

    def settle(
        self, run: Run, outcomes: list[Outcome], ask: Ask, defining: bool
    ) -> list[tuple[int, Outcome]]:
        """Returns (input, outcome) of those that stand; asks for the others again: where a verdict
        is close to a limit, on an otherwise idle sandbox; in a run that defines what the results
        are, where it may depend on what ran in that process before, in one of its own."""
        self.left -= 1
        # What is not needed has no outcome.
        found = list(zip(run.positions, outcomes, strict=False))
        if run.alone:
            return found
        close = [p for p, outcome in found if self.is_close(outcome)]
        if close and self.program.keeps:
            close = run.positions  # a part would not see what the inputs before leave behind
        elif close:
            close += run.positions[len(found) :]
        if close:
            self.ask_for(ask, run.seed, close, run.shake, alone=True)
        unsure = []
        if defining and len(run.positions) > 1:
            unsure = [p for p, o in found if o.may_differ_alone and p not in close]
        for p in unsure:
            self.ask_for(ask, run.seed, [p], run.shake)
        again = {*close, *unsure}
        return [(p, outcome) for p, outcome in found if p not in again]


class PlainCall(Call):
    """Every input once."""

    def begin(self, ask: Ask) -> None:
        self.outcomes = self.fixed()
        positions = [i for i, outcome in enumerate(self.outcomes) if outcome is None]
        if not positions:
            self.finish()
            return
        # What cannot see hash order or identity gives the same under every seed.
        seed = 0 if self.is_risky else EITHER
        for part in self.parts(positions):
            self.ask_for(ask, seed, part)

    def take(self, run: Run, outcomes: list[Outcome], ask: Ask) -> None:
        for position, outcome in self.settle(run, outcomes, ask, True):
            self.outcomes[position] = outcome
        if not self.left:
            self.finish()

    def fail(self, why: str) -> None:
        self.outcomes = [Outcome("sandbox_failure", value=why)] * len(self.texts)

    def statuses(self) -> list[Status]:
        return [outcome.status for outcome in self.outcomes if outcome]

    def results(self) -> list[Result]:
        """A result per input, once done."""
        return [outcome.result() for outcome in self.outcomes if outcome]


class LabelCall(Call):
    """Every input under several seeds: first in order, then in reverse, then as risk demands. Ends
    with the first outcome that settles the label."""

    def begin(self, ask: Ask) -> None:
        self.first = self.fixed()
        self.differs: set[int] = set()
        self.reason = ""
        self.round = 0
        if None not in self.first:
            undone = [o.status for o in self.first if o and o.status not in DETERMINED]
            self.reason = f"the program: {undone[0]}" if undone else ""
            self.finish()
            return
        self.positions = [i for i, outcome in enumerate(self.first) if outcome is None]
        self.todo = self.parts(self.positions)
        self._ask_next(ask)

    def _ask_next(self, ask: Ask) -> None:
        """Asks for what is next in the first round: one after the other, for one may be enough."""
        self.ask_for(ask, 0, self.todo.pop(0), self._shake(0))

    def _shake(self, seed: int) -> int:
        return seed + 1 if self.is_risky else 0

    def needs_rest(self, run: Run) -> bool:
        return False

    def take(self, run: Run, outcomes: list[Outcome], ask: Ask) -> None:
        self.is_risky |= any(outcome.may_differ for outcome in outcomes)
        for position, outcome in self.settle(run, outcomes, ask, self.round == 0):
            self._compare(position, outcome)
        if self.reason:
            self.finish()
        if self.is_over or self.left:
            return
        if self.todo:
            self._ask_next(ask)
            return
        self.round += 1
        if self.round == (len(ROUNDS) if self.is_risky else 2):
            self.finish()
            return
        backward = self.positions[::-1]
        for seed in ROUNDS[self.round]:
            # In one process, and the first input again at the end: state shows even where there is
            # one input.
            self.ask_for(ask, seed, [*backward, backward[0]], self._shake(seed))

    def _compare(self, position: int, outcome: Outcome) -> None:
        seen = self.first[position]
        if seen is None:
            self.first[position] = seen = outcome
        if outcome.status not in DETERMINED:
            self.reason = self.reason or f"input {position}: {outcome.status}"
        elif outcome.identity != seen.identity:
            self.differs.add(position)
            self.reason = f"input {position} gives different results"

    def fail(self, why: str) -> None:
        self.first = [Outcome("sandbox_failure", value=why)] * len(self.texts)
        self.differs = set()
        self.reason = f"sandbox_failure: {why}"

    def statuses(self) -> list[Status]:
        return [result.status for result in self.label().results]

    def label(self) -> Label:
        """The label, once done."""
        results = (
            Result("nondeterministic") if i in self.differs else (outcome or NOT_RUN).result()
            for i, outcome in enumerate(self.first)
        )
        return Label(tuple(results), not self.reason, self.reason)
