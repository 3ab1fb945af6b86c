"""The rows that are being decoded, as the device sees them: last token, place, parameters.

Every tensor stands where it is for the engine's life, a column a slot, so that a captured graph
finds it again. Rows occupy the slots from 0 on without holes; a row that leaves is replaced by the
last one. What a row has drawn so far is kept on the host (azr.rollout.history).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from azr.keys import make_key
from azr.rollout.request import Waiting
from azr.rollout.sampler import Drawn, Mix, RowSampling, draw, signed

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

    def open(self, start: int, rows: Sequence[Waiting]) -> None:
        """Fills the slots from `start` on; `record` then takes each row's first token."""
        columns = []
        for row in rows:
            s = row.request.sampling
            stops = [*s.stop_token_ids, *[-1] * (self.most_stops - len(s.stop_token_ids))]
            key = signed(make_key(row.request.key, row.index))
            # One short of the prompt, since the first draw counts as a step.
            length = len(row.request.token_ids) - 1
            columns.append((0, length, 0, s.max_new_tokens, key, s.top_k, 1, *stops))
        stop = start + len(rows)
        self._ints[:, start:stop] = torch.tensor(columns).T
        sampling = [row.request.sampling for row in rows]
        self._floats[:, start:stop] = torch.tensor(
            [(s.temperature, s.top_p, s.min_p) for s in sampling]
        ).T

    def move(self, source: list[int], target: list[int], rows: int) -> None:
        """Copies slots `source` to `target`; parks what is not among the first `rows`."""
        if source:
            self._ints[:, target] = self._ints[:, source]
            self._floats[:, target] = self._floats[:, source]
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
        drawn: Drawn = draw(logits_RV, ints[_COUNT], params, mix)
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
