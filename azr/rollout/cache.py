"""What the engine asks of a KV cache, whatever its layout: rows in slots, prompts they share.

Shapes: R rows, G key-value heads, K head size, D hidden size.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from azr.model.attention import Attend, Backend, head_shape
from azr.model.transfer import Parcel
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


def memory_of(geometry: Geometry, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Returns memory of this shape for the keys and for the values of each layer: [2 L, ...].

    Zeros, not whatever the memory held: a masked score is NaN where the key is NaN, and a masked
    value counts 0 times itself, which is NaN for NaN and Inf.
    """
    return torch.zeros((2 * geometry.layers, *shape), device=device, dtype=geometry.dtype)


def layers_of(memory: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Returns the (keys, values) of each layer, views of the memory."""
    return list(zip(memory[::2], memory[1::2], strict=True))


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


class Entry(NamedTuple):
    """What the device has to know of rows that enter."""

    fresh_U: Tensor
    """int64: the places of the prompts that are computed for them."""
    origins_E: Tensor
    """int64: the places of the prompts that they begin from, at least FEWEST_ROWS."""
    origin_of_row_R: Tensor
    """int64: which of those each row begins from."""
    copies_2C: Tensor | None = None
    """int64: (source, target) of pages that are copied once the prompts are computed."""


class KVCache(ABC):
    """Rows occupy slots 0, 1, ... without holes, in the order of the engine's own slots.

    Every layout has the prompts that are kept, and of each the last hidden state: later samples
    begin from it too.
    """

    def __init__(
        self, backend: Backend, geometry: Geometry, places: int, hidden: int, device: torch.device
    ):
        """`places` is how many prompts there can be; `hidden` is the size of a hidden state."""
        self.backend, self.device = backend, device
        self._hidden = torch.zeros((places, hidden), dtype=geometry.dtype, device=device)
        self._by_ids: dict[tuple[int, ...], Prompt] = {}
        self._prompt_of_row: dict[int, Prompt] = {}

    @abstractmethod
    def take(self, slot: int, row: Waiting) -> bool:
        """Reserves all that a row can ever need, next to its prompt; False where it must wait."""

    def lacks(self, ids: tuple[int, ...]) -> bool:
        """Returns whether a prompt is neither there nor about to be computed."""
        return ids not in self._by_ids

    def unfilled(self) -> list[tuple[int, ...]]:
        """Returns the prompts that were taken and not computed yet."""
        return [ids for ids, prompt in self._by_ids.items() if not prompt.is_filled]

    @abstractmethod
    def prefill(self, lengths: list[int], parcel: Parcel) -> Attend:
        """Returns who attends, and stores, while those prompts are computed, packed in order."""

    def enter(self, start: int, stop: int, parcel: Parcel) -> Entry:
        """Returns the entry of the rows in these slots, whose tensors hold their values once the
        parcel is sent; a layout may fill what it keeps of a row."""
        fresh = [self._by_ids[ids].place for ids in self.unfilled()]
        places = np.array([self._prompt_of_row[row].place for row in range(start, stop)], np.int64)
        distinct, inverse = np.unique(places, return_inverse=True)
        if len(distinct) < FEWEST_ROWS:
            distinct = np.resize(distinct, FEWEST_ROWS)
        return Entry(
            fresh_U=parcel.put(np.array(fresh, dtype=np.int64)),
            origins_E=parcel.put(distinct),
            origin_of_row_R=parcel.put(inverse.reshape(-1)),
        )

    def filled(self, entry: Entry, hidden_UD: Tensor) -> None:
        """Keeps the last hidden states of the prompts that were computed."""
        self._hidden.index_copy_(0, entry.fresh_U, hidden_UD)
        for prompt in self._by_ids.values():
            prompt.is_filled = True

    def begin(self, entry: Entry) -> Tensor:
        """Returns the hidden states [E, D] that the rows begin from, all their prompts being
        computed; a layout may copy what they do not share."""
        return self._hidden.index_select(0, entry.origins_E)

    @abstractmethod
    def step(self, rows: int, padded: int) -> Attend:
        """Returns who attends in the next decode step of the first `padded` slots, in `rows` of
        which there are rows."""

    def leave(self, slots: list[int]) -> None:
        """Gives back what the rows in these slots hold, and the prompts that nobody needs any more;
        the slots are moved over next."""
        for slot in slots:
            prompt = self._prompt_of_row.pop(slot)
            prompt.claims -= 1
            if prompt.claims == 0:
                self._forget(prompt)

    @abstractmethod
    def _forget(self, prompt: Prompt) -> None:
        """Gives back what a prompt holds."""

    def move(self, source: list[int], target: list[int], rows: int, moves_2M: Tensor) -> None:
        """Moves rows between slots; `rows` are left, in the first slots. `moves_2M` is source and
        target on the device, int64."""
        for s, t in zip(source, target, strict=True):
            self._prompt_of_row[t] = self._prompt_of_row.pop(s)

    def drop_idle(self) -> bool:
        """Drops prompts that no running row uses; returns whether there was one. A layout with a
        place for every slot's prompt has none to drop."""
        return False
