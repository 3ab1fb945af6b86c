"""The rows that are being decoded, as the device sees them, and what they have drawn, on the host.

Every tensor of the `Slots` stands where it is for the engine's life, a column a slot, so that a
captured graph finds it again. Rows occupy the slots from 0 on without holes; a row that leaves is
replaced by the last one. What a step draws is an `Outcome` on its way to the host, where the
`History` keeps what each row has drawn so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from rlvr_kernels.sample import signed
from torch import Tensor

from azr.errors import RunError
from azr.keys import make_key
from azr.model.transfer import Parcel
from azr.rollout.request import Sample, Waiting
from azr.rollout.sampler import Mix, RowSampling, draw

GOES_ON, AT_LIMIT, STOPPED = 0, 1, 2
"""How a row stands after a draw."""

_LAST, _LENGTH, _COUNT, _LIMIT, _KEY, _TOP_K, _RUNNING, _STOPS = range(8)


class DrawnParts(NamedTuple):
    """What R rows drew, as views [R]."""

    ids: Tensor
    """int64"""
    codes: Tensor
    """int64: GOES_ON, AT_LIMIT or STOPPED."""
    logprobs: Tensor
    """fp32"""


def drawn_parts(drawn_R3: Tensor) -> DrawnParts:
    """Returns the parts of rows of `Slots.drawn`, on the device or as copied from there."""
    floats_R6 = drawn_R3.view(torch.float32)  # the third number's first half is the log-prob
    return DrawnParts(drawn_R3[:, 0], drawn_R3[:, 1], floats_R6[:, 4])


class Slots:
    """State of S slots, each for one row."""

    def __init__(self, slots: int, most_stops: int, device: torch.device):
        self.slots, self.most_stops = slots, most_stops
        # int64 [F, S]: last token, tokens in the cache, tokens drawn, limit, key of the noise,
        # top-k, 1 while the row runs, and from _STOPS on the stop tokens, filled up with -1.
        self._ints = torch.zeros((_STOPS + most_stops, slots), dtype=torch.int64, device=device)
        self._floats = torch.ones((3, slots), device=device)  # temperature, top-p, min-p
        self.drawn = torch.zeros((slots, 3), dtype=torch.int64, device=device)
        """What each row drew last, for one copy to the host: see `drawn_parts`."""

    def open(self, start: int, rows: Sequence[Waiting], parcel: Parcel) -> None:
        """Fills the slots from `start` on once the parcel is sent; `record` then takes each row's
        first token."""
        columns = []
        for row in rows:
            s = row.request.sampling
            stops = [*s.stop_token_ids, *[-1] * (self.most_stops - len(s.stop_token_ids))]
            key = signed(make_key(row.request.key, row.index))
            # One short of the prompt, since the first draw counts as a step.
            length = len(row.request.token_ids) - 1
            columns.append((0, length, 0, s.max_new_tokens, key, s.top_k, 1, *stops))
        stop = start + len(rows)
        parcel.fill(self._ints[:, start:stop], np.array(columns, dtype=np.int64).T)
        sampling = [row.request.sampling for row in rows]
        floats = [(s.temperature, s.top_p, s.min_p) for s in sampling]
        parcel.fill(self._floats[:, start:stop], np.array(floats, dtype=np.float32).T)

    def move(self, moves_2M: Tensor, rows: int) -> None:
        """Copies slots to others, int64 (source, target); parks all from `rows` on."""
        source_M, target_M = moves_2M
        if len(source_M):
            for state in (self._ints, self._floats):
                state.index_copy_(1, target_M, state.index_select(1, source_M))
        self._ints[:, rows:] = 0

    def last_ids(self, rows: int) -> Tensor:
        """Returns the last token [rows] of each row."""
        return self._ints[_LAST, :rows]

    def lengths(self, rows: int) -> Tensor:
        """Returns the tokens [rows] of each row in the cache: the place of its last token."""
        return self._ints[_LENGTH, :rows]

    def record(self, start: int, stop: int, logits_RV: Tensor, mix: Mix) -> None:
        """Draws the next token of the rows in slots [start, stop) and keeps how they stand.

        Asks the device nothing. A row that has ended stays as it is.
        """
        ints, floats = self._ints[:, start:stop], self._floats[:, start:stop]
        params = RowSampling(ints[_KEY], floats[0], floats[1], ints[_TOP_K], floats[2])
        drawn = draw(logits_RV, ints[_COUNT], params, mix)
        running = ints[_RUNNING]
        ints[_LENGTH : _COUNT + 1] += running
        stopped = (drawn.ids == ints[_STOPS:]).any(dim=0)
        full = ints[_COUNT] >= ints[_LIMIT]
        codes = torch.where(stopped, STOPPED, full.long())
        out = drawn_parts(self.drawn[start:stop])
        out.ids.copy_(drawn.ids)
        out.codes.copy_(codes)
        out.logprobs.copy_(drawn.logprobs)
        ints[_LAST] = drawn.ids
        ints[_RUNNING] = running * (codes == GOES_ON)

    def saved(self) -> Tensor:
        """Returns a copy of what `record` changes, for `restore`."""
        return self._ints.clone()

    def restore(self, saved: Tensor) -> None:
        """Takes back what `saved` returned."""
        self._ints.copy_(saved)


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
