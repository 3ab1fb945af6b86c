"""The KV cache of a rollout: rows of different lengths that come, grow and leave.

Per layer one tensor for keys and one for values, [R, G, C, K]: R rows, G key-value heads, C tokens
of capacity, K head size. Row r holds `lengths[r]` tokens.
"""

import torch
from torch import Tensor
from transformers import PretrainedConfig


class PrefillCache:
    """Takes the keys and values of prompts as they are computed, one tensor pair per layer."""

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []

    def append(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor, None]:
        """Keeps what is given; no mask, since a prompt attends causally to itself."""
        assert layer == len(self.layers)
        self.layers.append((k_BGTK, v_BGTK))
        return k_BGTK, v_BGTK, None


class RowCache:
    """The cache of the rows that are being decoded."""

    def __init__(
        self, config: PretrainedConfig, rows: int, capacity: int, device: torch.device, dtype
    ):
        text = config.get_text_config()
        heads = text.num_key_value_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        shape = (rows, heads, capacity, size)
        self.capacity = capacity
        # Zeros, not whatever the memory held: a masked score is NaN where the key is NaN, and a
        # masked value counts 0 times itself, which is NaN for NaN and Inf.
        self.layers = [
            tuple(torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
            for _ in range(text.num_hidden_layers)
        ]
        self.lengths_R = torch.zeros(0, dtype=torch.int64, device=device)

    def admit(self, prefill: PrefillCache, source_rows: Tensor, lengths: Tensor) -> None:
        """Adds one row for each entry of `source_rows`: the prompt of that prefilled row.

        Samples of one prompt share its prefill: their rows are copies of the same source row.
        """
        start, stop = len(self.lengths_R), len(self.lengths_R) + len(source_rows)
        for (keys, values), (k, v) in zip(self.layers, prefill.layers, strict=True):
            keys[start:stop, :, : k.shape[2]] = k[source_rows]
            values[start:stop, :, : v.shape[2]] = v[source_rows]
        self.lengths_R = torch.cat([self.lengths_R, lengths[source_rows]])

    def keep(self, rows: Tensor) -> None:
        """Drops every row that is not in `rows`, an ascending list of row numbers."""
        used = int(self.lengths_R.max())
        for keys, values in self.layers:
            for cache in (keys, values):
                cache[: len(rows), :, :used] = cache[rows, :, :used]
        self.lengths_R = self.lengths_R[rows]

    def clear(self) -> None:
        """Drops every row."""
        self.lengths_R = self.lengths_R[:0]

    def start_step(self) -> Tensor:
        """Prepares one decode step of every row; returns the positions [R] of the new tokens."""
        # A row that ended but has not left may be full: its new token overwrites the last one.
        positions = self.lengths_R.clamp(max=self.capacity - 1)
        self.lengths_R = positions + 1
        self._positions = positions
        self._rows = torch.arange(len(positions), device=positions.device)
        self._extent = int(positions.max()) + 1
        steps = torch.arange(self._extent, device=positions.device)
        self._mask = (steps <= positions[:, None])[:, None, None, :]
        return positions

    def append(self, layer: int, k_BG1K: Tensor, v_BG1K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Stores the new token of each row; returns keys, values and the mask of the visible."""
        keys, values = self.layers[layer]
        keys[self._rows, :, self._positions] = k_BG1K[:, :, 0]
        values[self._rows, :, self._positions] = v_BG1K[:, :, 0]
        rows = len(self._rows)
        return keys[:rows, :, : self._extent], values[:rows, :, : self._extent], self._mask
