"""What the rows have drawn so far, on the host, and the draws that are still on their way there."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from azr.errors import RunError
from azr.rollout.request import Sample, Waiting
from azr.rollout.slots import STOPPED, DrawnParts, Slots, drawn_parts


@dataclass(slots=True)
class Outcome:
    """The draws of one step, on their way to the host or there."""

    rows: np.ndarray
    """Which row of the history each draw belongs to."""
    drawn: DrawnParts
    """On the host."""
    arrived: "torch.cuda.Event | None"

    @classmethod
    def of(cls, slots: Slots, start: int, stop: int, rows: np.ndarray) -> "Outcome":
        """Starts the copy to the host; on the CPU there is nothing to wait for."""
        drawn = slots.drawn[start:stop]
        if not drawn.is_cuda:
            return cls(rows, drawn_parts(drawn), None)
        host = torch.empty(drawn.shape, dtype=drawn.dtype, pin_memory=True)
        host.copy_(drawn, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return cls(rows, drawn_parts(host), arrived)


class History:
    """Tokens and log-probs of the rows that have not been handed out.

    A row is named by a number of its own, which stays with it whatever slot it moves to.
    """

    def __init__(self, rows: int, width: int):
        self._ids = np.zeros((rows, width), dtype=np.int64)
        self._logprobs = np.zeros((rows, width), dtype=np.float32)
        self._counts = np.zeros(rows, dtype=np.int64)
        self._prompt_tokens = np.zeros(rows, dtype=np.int64)
        self._is_open = np.zeros(rows, dtype=bool)
        self._owners: dict[int, Waiting] = {}
        self._free = list(range(rows - 1, -1, -1))
        self._cooling: list[int] = []

    def open(self, owners: Sequence[Waiting]) -> np.ndarray:
        """Returns the numbers of new rows, one for each owner."""
        numbers = np.array([self._free.pop() for _ in owners], dtype=np.int64)
        self._counts[numbers] = 0
        self._prompt_tokens[numbers] = [len(o.request.token_ids) for o in owners]
        self._is_open[numbers] = True
        self._owners |= zip(numbers.tolist(), owners, strict=True)
        return numbers

    def owner(self, row: int) -> Waiting:
        """Returns whose row it is."""
        return self._owners[row]

    def tokens(self, row: int, most: int) -> list[int]:
        """Returns the last tokens that the row has drawn, at most so many."""
        count = self._counts[row]
        return self._ids[row, max(0, count - most) : count].tolist()

    def tokens_held(self, rows: np.ndarray) -> int:
        """Returns the tokens of these rows, prompts included."""
        return int((self._counts[rows] + self._prompt_tokens[rows]).sum())

    def add(self, outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
        """Takes the draws of a step; returns (rows that took one, how they stand).

        Draws of rows that were closed while the step ran are left out.
        """
        if outcome.arrived:
            outcome.arrived.synchronize()
        # A closed row's number is free again once no step can be under way that still has it.
        self._free += self._cooling
        self._cooling = []
        is_open = self._is_open[outcome.rows]
        rows = outcome.rows[is_open]
        places = self._counts[rows]
        ids, codes, logprobs = (part.numpy()[is_open] for part in outcome.drawn)
        self._ids[rows, places] = ids
        self._logprobs[rows, places] = logprobs
        self._counts[rows] += 1
        return rows, codes

    def close(self, row: int, code: int) -> Sample:
        """Returns the finished sample of a row, whose number may be given to another.

        Raises RunError where a log-prob is not finite: looked at here, where they have reached the
        host anyway, and not at each step.
        """
        owner, count = self._owners.pop(row), int(self._counts[row])
        self._is_open[row] = False
        self._cooling.append(row)
        finite = np.isfinite(self._logprobs[row, :count])
        if not finite.all():
            raise RunError(
                f"request {owner.number}, sample {owner.index}: its token {finite.argmin()} has no "
                "finite log-prob, since the model's logits hold NaN or infinity; see that its "
                "weights are finite, or go back to an earlier checkpoint"
            )
        return Sample(
            request=owner.number,
            index=owner.index,
            token_ids=tuple(self._ids[row, :count].tolist()),
            logprobs=self._logprobs[row, :count].copy(),
            finish_reason="stop" if code == STOPPED else "length",
        )
