"""Rows of unequal length in one stretch of tokens, without padding.

Tokens that several rows share, the prompt of n samples say, may stand in the stretch once: the
model then computes them once, and only attention sees every row in full.

Shapes: N tokens of the stretch, E tokens of all rows in full (E = N where nothing is shared).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from azr.model.transfer import Parcel

FEW_ENTRIES = 3072
"""Up to so many torch's backward of an embedding on CUDA adds in the type of its input, above in
fp32."""


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Where rows begin and end."""

    starts: Tensor
    """int32 [B + 1]: row b is the full tokens starts[b] to starts[b + 1]."""
    longest: int
    lengths: tuple[int, ...]
    token_of_full: Tensor | None = None
    """int64 [E]: which of the N tokens a row's token is; None where none is shared."""
    full_of_token: Tensor | None = None
    """int64 [N]: one of the places in which a token stands."""
    grid: Tensor | None = None
    """int64 [B, longest]: the N tokens row by row, filled up on the right with token 0; None where
    all rows are equally long and none is shared. For backends that cannot take ragged rows."""
    grid_place: Tensor | None = None
    """int64 [N]: where in the flat grid a token stands."""

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        parcel: Parcel,
        token_of_full: np.ndarray | None = None,
        full_of_token: np.ndarray | None = None,
    ) -> "PackedRows":
        """Returns the rows of the given lengths, with the two maps where tokens are shared; their
        tensors hold their values once the parcel is sent."""
        counts = np.asarray(lengths, dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(counts)])
        longest = int(counts.max())

        def tensor(values: np.ndarray | None) -> Tensor | None:
            return None if values is None else parcel.put(values, torch.int64)

        grid = place = None
        if token_of_full is not None or int(counts.min()) < longest:
            inside = np.arange(longest) < counts[:, None]
            grid = np.zeros(inside.shape, dtype=np.int64)
            grid[inside] = np.arange(starts[-1]) if token_of_full is None else token_of_full
            place = np.flatnonzero(inside)
            if full_of_token is not None:
                place = place[full_of_token]
        return cls(
            starts=parcel.put(starts, torch.int32),
            longest=longest,
            lengths=tuple(counts.tolist()),
            token_of_full=tensor(token_of_full),
            full_of_token=tensor(full_of_token),
            grid=tensor(grid),
            grid_place=tensor(place),
        )


def gathered(x_N: Tensor, index_E: Tensor) -> Tensor:
    """Returns x[index], [E, ...], where an entry may be taken many times.

    Its gradients add up in fp32 and in a fixed order. On CUDA those of `index_select` add with
    atomics, in the type of x: other bits at every run, and in bf16 small ones are lost.
    """
    x_ND = x_N.flatten(1)
    if len(index_E) <= FEW_ENTRIES:
        x_ND = x_ND.float()
    return F.embedding(index_E, x_ND).to(x_N.dtype).unflatten(1, x_N.shape[1:])


class Backend(Protocol):
    """The interface: `varlen` for training and prefill, `decode` over a KV cache."""

    name: str
    cache: str
    """How its KV cache is laid out: "pages", "extents" or "rows"."""
    decode: Callable
    """For "pages" and "extents" (queries [R, H, K], keys and values [S, G, K], `flash.DecodeRows`,
    scale) -> [R, H, K]: one query a row attends to all tokens of its row. For "rows" see `Sdpa`."""

    def varlen(
        self, q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, rows: PackedRows, scale: float
    ) -> Tensor:
        """Returns [N, H, K]: each row attends causally to itself. Differentiable."""
        ...


@dataclass(slots=True)
class PackedAttend:
    """Attends causally within each row; an `Attend`."""

    backend: Backend
    rows: PackedRows

    def store(self, layer: int) -> None:
        """Nobody reads the keys and values again."""
        return None

    def __call__(
        self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, scale: float
    ) -> Tensor:
        """Returns [T, H, K]."""
        return self.backend.varlen(q_THK, k_TGK, v_TGK, self.rows, scale)
