"""The KV cache of the SDPA backend: dense rows, in two parts.

Prompts stand once, [U, G, P, K] a layer, however many rows share them; what the rows have drawn
stands beside, [R, G, W, K]. A decode step attends to both parts and merges the two by their
log-sum-exps. All queries of one prompt go to its keys together, which is most of the speed: on a
CPU eight rows of one prompt cost little more than one.

Shapes: U prompts of at most P tokens, R rows of at most W own tokens, G key-value heads with Q
queries each, K head size, M the most rows of a prompt.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from azr.model.attention import Backend, PackedAttend, PackedRows
from azr.model.attention.sdpa import merged
from azr.model.transfer import Parcel
from azr.rollout.cache import Geometry, KVCache, Prompt, layers_of, memory_of
from azr.rollout.request import Waiting


class DenseCache(KVCache):
    """A `KVCache` of dense rows; its methods are explained there."""

    def __init__(
        self,
        backend: Backend,
        geometry: Geometry,
        *,
        slots: int,
        prompts: int,
        prompt_tokens: int,
        own_tokens: int,
        hidden: int,
        device: torch.device,
    ):
        super().__init__(backend, geometry, prompts, hidden, device)
        g = geometry
        self.prompt_layers, self.own_layers = (
            layers_of(memory_of(g, (rows, g.kv_heads, tokens, g.head_size), device))
            for rows, tokens in ((prompts, prompt_tokens), (slots, own_tokens))
        )
        self.prompts: list[Prompt] = []
        """In the order of their places, without holes."""
        self._own_of_row = np.zeros(slots, dtype=np.int64)
        self._groups: _Groups | None = None

    @staticmethod
    def bytes(
        geometry: Geometry, slots: int, prompts: int, prompt_tokens: int, own_tokens: int
    ) -> int:
        """Returns what such a cache takes."""
        return geometry.token_bytes * (slots * own_tokens + prompts * prompt_tokens)

    def take(self, slot: int, row: Waiting) -> bool:
        """Reserves a row: of these there are as many as slots, of prompts not always."""
        ids = row.request.token_ids
        prompt = self._by_ids.get(ids)
        if prompt is None:
            if len(self.prompts) == len(self.prompt_layers[0][0]):
                return False
            prompt = Prompt(token_ids=ids, claims=0, place=len(self.prompts))
            self.prompts.append(prompt)
            self._by_ids[ids] = prompt
        prompt.add_claims(row)
        self._prompt_of_row[slot] = prompt
        self._own_of_row[slot] = 0
        self._groups = None
        return True

    def prefill(self, lengths: list[int], parcel: Parcel) -> "_Prefill":
        first = sum(p.is_filled for p in self.prompts)
        attend = PackedAttend(self.backend, PackedRows.of(lengths, parcel))
        return _Prefill(attend, self.prompt_layers, first, len(self.prompts) - first)

    def step(self, rows: int, padded: int) -> "_Decode":
        """Returns who attends in the next decode step; each row grows by its last token."""
        parcel, dtype = Parcel(self.device), self.own_layers[0][0].dtype
        if self._groups is None or len(self._groups.places) != padded:
            held = (self._prompt_of_row.get(row) for row in range(padded))
            places = [p.place if p else 0 for p in held]
            lengths = [len(p.token_ids) for p in self.prompts]
            self._groups = _Groups.of(places, lengths, parcel, dtype)
        own = self._own_of_row[:padded].copy()
        own[rows:] = own[:rows].max()  # a slot without a row: it computes, and nobody reads it
        self._own_of_row[:rows] += 1
        attend = _Decode(self, self._groups, own, parcel)
        parcel.send()
        return attend

    def _forget(self, prompt: Prompt) -> None:
        """The last prompt takes the place of the one that goes."""
        del self._by_ids[prompt.token_ids]
        last = self.prompts.pop()
        if last is not prompt:
            length = len(last.token_ids)
            for layer in self.prompt_layers:
                for memory in layer:
                    memory[prompt.place, :, :length] = memory[last.place, :, :length]
            self._hidden[prompt.place] = self._hidden[last.place]
            last.place = prompt.place
            self.prompts[last.place] = last

    def move(self, source: list[int], target: list[int], rows: int, moves_2M: Tensor) -> None:
        super().move(source, target, rows, moves_2M)
        self._groups = None
        if source:
            used = int(self._own_of_row[source].max())
            source_M, target_M = moves_2M
            for layer in self.own_layers:
                for memory in layer:
                    memory[target_M, :, :used] = memory[source_M, :, :used]
            self._own_of_row[target] = self._own_of_row[source]
        self._own_of_row[rows:] = 0


@dataclass(frozen=True, slots=True)
class _Groups:
    """Which rows attend to which prompt, in a grid of U prompts with M places each."""

    prompts: int
    width: int
    """M"""
    longest: int
    members: Tensor
    """int64 [U * M]: the row in each place, 0 where there is none."""
    places: Tensor
    """int64 [R]: the place of each row."""
    mask: Tensor | None

    @classmethod
    def of(
        cls,
        prompt_of_row: list[int],
        lengths: list[int],
        parcel: Parcel,
        dtype: torch.dtype,
    ) -> "_Groups":
        prompt = np.array(prompt_of_row)
        order = np.argsort(prompt, kind="stable")
        counts = np.bincount(prompt, minlength=len(lengths))
        width, longest = int(counts.max()), max(lengths)
        column = np.arange(len(prompt)) - np.repeat(np.cumsum(counts) - counts, counts)
        at = prompt[order] * width + column  # the place of each ordered row in the grid
        members = np.zeros(len(lengths) * width, dtype=np.int64)
        members[at] = order
        places = np.empty(len(prompt), dtype=np.int64)
        places[order] = at
        return cls(
            prompts=len(lengths),
            width=width,
            longest=longest,
            members=parcel.put(members),
            places=parcel.put(places),
            mask=_mask(np.array(lengths), longest, parcel, dtype),
        )


def _mask(lengths: np.ndarray, longest: int, parcel: Parcel, dtype: torch.dtype) -> Tensor | None:
    """Returns what is added to scores [B, 1, 1, longest]; None where all rows are that long."""
    if int(lengths.min()) == longest:
        return None
    hidden = np.arange(longest) >= lengths[:, None]
    mask = np.where(hidden, -np.inf, 0.0).astype(np.float32)[:, None, None]
    return parcel.put(mask, dtype)


@dataclass(frozen=True, slots=True)
class _Prefill:
    """Attends within each prompt and stores its keys and values."""

    attend: PackedAttend
    layers: list[tuple[Tensor, Tensor]]
    first: int
    count: int

    def store(self, layer: int) -> None:
        """A call does so: a row's tokens do not lie next to each other in the memory."""
        return None

    def __call__(
        self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, scale: float
    ) -> Tensor:
        rows, places = self.attend.rows, slice(self.first, self.first + self.count)
        longest = max(rows.lengths[: self.count])
        for memory, x_TGK in zip(self.layers[layer], (k_TGK, v_TGK), strict=True):
            if rows.grid is not None:
                x_TGK = x_TGK.index_select(0, rows.grid.view(-1))
            grid = x_TGK.reshape(len(rows.lengths), rows.longest, *x_TGK.shape[1:])
            memory[places, :, :longest] = grid[: self.count, :longest].transpose(1, 2)
        return self.attend(layer, q_THK, k_TGK, v_TGK, scale)


class _Decode:
    """Stores each row's new token and attends to its prompt and to what it has drawn."""

    def __init__(self, cache: DenseCache, groups: _Groups, own: np.ndarray, parcel: Parcel):
        self.cache, self.groups = cache, groups
        self.extent = int(own.max()) + 1
        self.at = self.extent - 1 if int(own.min()) + 1 == self.extent else None
        self.mask = _mask(own + 1, self.extent, parcel, cache.own_layers[0][0].dtype)
        if self.at is None:
            self.rows = torch.arange(len(own), device=cache.device)
            self.own = parcel.put(own)

    def store(self, layer: int) -> None:
        """As in `_Prefill`."""
        return None

    def __call__(
        self, layer: int, q_RHK: Tensor, k_RGK: Tensor, v_RGK: Tensor, scale: float
    ) -> Tensor:
        R, H, K = q_RHK.shape
        G = k_RGK.shape[1]
        Q = H // G
        decode = self.cache.backend.decode
        keys, values = self.cache.own_layers[layer]
        for memory, new in ((keys, k_RGK), (values, v_RGK)):
            if self.at is not None:
                memory[:R, :, self.at] = new
            else:
                memory[self.rows, :, self.own] = new
        q_RGQK = q_RHK.reshape(R, G, Q, K)
        own = decode(
            q_RGQK, keys[:R, :, : self.extent], values[:R, :, : self.extent], self.mask, scale
        )
        g = self.groups
        U, M = g.prompts, g.width
        q_UGMK = q_RGQK.index_select(0, g.members).view(U, M, G, Q, K).transpose(1, 2)
        keys, values = self.cache.prompt_layers[layer]
        out, lse = decode(
            q_UGMK.reshape(U, G, M * Q, K),
            keys[:U, :, : g.longest],
            values[:U, :, : g.longest],
            g.mask,
            scale,
        )
        out = out.reshape(U, G, M, Q, K).transpose(1, 2).reshape(U * M, G, Q, K)
        lse = lse.reshape(U, G, M, Q).transpose(1, 2).reshape(U * M, G, Q)
        prompt = out.index_select(0, g.places), lse.index_select(0, g.places)
        return merged(prompt, own, q_RHK.dtype).reshape(R, H, K)
