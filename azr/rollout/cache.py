"""What the engine asks of a KV cache, whatever its layout: rows in slots, prompts they share.

Shapes: R rows, G key-value heads, K head size, D hidden size.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from azr.model.attention import Attend, head_shape
from azr.rollout.request import Waiting

FEWEST_ROWS = 8
"""Rows of the smallest matrix product: fewer round otherwise than many do."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """What one token takes in a KV cache."""

    layers: int
    kv_heads: int
    head_size: int
    dtype: torch.dtype

    @classmethod
    def of(cls, config: PretrainedConfig, dtype: torch.dtype) -> "Geometry":
        """Returns the geometry of a model."""
        return cls(config.get_text_config().num_hidden_layers, *head_shape(config), dtype)

    @property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_size * self.dtype.itemsize


def memories(
    geometry: Geometry, shape: tuple[int, ...], device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Returns memory of this shape for the keys and the values of each layer.

    Zeros, not whatever the memory held: a masked score is NaN where the key is NaN, and a masked
    value counts 0 times itself, which is NaN for NaN and Inf.
    """

    def zeros() -> Tensor:
        return torch.zeros(shape, device=device, dtype=geometry.dtype)

    return [(zeros(), zeros()) for _ in range(geometry.layers)]


@dataclass(slots=True, eq=False)
class Prompt:
    """A prompt that is in the cache, or about to be."""

    token_ids: tuple[int, ...]
    claims: int
    """Samples that still need it: those that run and those of the same request that wait."""
    place: int
    """Where the cache keeps its last hidden state."""
    is_filled: bool = False

    def add_claims(self, row: Waiting) -> None:
        """Adds the claims of a request with the first of its samples that finds the prompt."""
        if not self.claims:
            self.claims = row.request.n - row.index
        elif row.index == 0:
            self.claims += row.request.n


class KVCache(Protocol):
    """Rows occupy slots 0, 1, ... without holes, in the order of the engine's own slots."""

    def take(self, slot: int, row: Waiting) -> bool:
        """Reserves all that a row can ever need, next to its prompt; False where it must wait."""
        ...

    def unfilled(self) -> list[tuple[int, ...]]:
        """Returns the prompts that were taken and not computed yet."""
        ...

    def prefill(self, lengths: list[int]) -> Attend:
        """Returns who attends, and stores, while those prompts are computed, packed in order."""
        ...

    def filled(self, hidden_UD: Tensor, start: int, stop: int) -> None:
        """Keeps the last hidden state of each of them; gives the rows in the slots their prompt."""
        ...

    def first_hidden(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Returns hidden states [U, D] and which of them each row in the slots begins with."""
        ...

    def step(self, rows: int, padded: int) -> Attend:
        """Returns who attends in the next decode step of the first `padded` slots, in `rows` of
        which there are rows."""
        ...

    def leave(self, slots: list[int]) -> None:
        """Gives back what the rows in these slots hold; their slots are moved over next."""
        ...

    def move(self, source: list[int], target: list[int], rows: int) -> None:
        """Moves rows between slots; `rows` are left, in the first slots."""
        ...

    def drop_idle(self) -> bool:
        """Drops prompts that no running row uses; returns whether there was one."""
        ...


class PromptHidden:
    """The last hidden state of each prompt that is kept: later samples begin from it too."""

    def __init__(self, places: int, hidden: int, device: torch.device, dtype: torch.dtype):
        self._hidden = torch.zeros((places, hidden), dtype=dtype, device=device)

    def put(self, places: list[int], hidden_UD: Tensor) -> None:
        """Keeps one state a place."""
        self._hidden[places] = hidden_UD

    def of(self, places: list[int]) -> tuple[Tensor, Tensor]:
        """Returns the distinct states of these places and which of them each entry has.

        At least FEWEST_ROWS states.
        """
        distinct, inverse = np.unique(np.array(places, dtype=np.int64), return_inverse=True)
        if len(distinct) < FEWEST_ROWS:
            distinct = np.resize(distinct, FEWEST_ROWS)
        device = self._hidden.device
        return (
            self._hidden[torch.from_numpy(distinct).to(device)],
            torch.from_numpy(inverse.reshape(-1)).to(device),
        )

    def move(self, source: int, target: int) -> None:
        """Copies a state to another place."""
        self._hidden[target] = self._hidden[source]
