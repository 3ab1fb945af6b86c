"""The three backends on FlashAttention-2 kernels: CUDA, compute capability 8.0, 16-bit floats.

They differ in who calls the kernel and in how a KV cache is addressed: pages named by a table, or
one contiguous extent of memory a row.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from azr.model.attention.packed import PackedRows, gathered

PAGE_TOKENS = 256
"""Tokens of a page: what the kernels ask the page size to be a multiple of."""


@dataclass(slots=True)
class DecodeRows:
    """Where the keys and values of R rows stand in the memory of a cache, at one decode step."""

    lengths: Tensor
    """int32 [R]: tokens of each row, the new one included."""
    table: Tensor
    """int32 [R, P]: page numbers, the first lengths[r] / PAGE_TOKENS of each row in use."""
    query_starts: Tensor
    """int32 [R + 1]: 0, 1, 2, ..."""
    key_starts: Tensor
    """int32 [R + 1]: the first token of each row, where its pages follow one another."""
    capacity: int
    """Tokens that a row may have. Kernels are launched for this many, whatever the lengths, so
    that a captured launch serves every later step."""


def shared_varlen(
    kernel: Callable[..., Tensor], x: tuple[Tensor, ...], rows: PackedRows, **options: object
) -> Tensor:
    """Returns what the kernel makes of queries, keys and values over the rows in full, where tokens
    may be shared between rows."""
    if rows.token_of_full is not None:
        x = tuple(gathered(t, rows.token_of_full) for t in x)
    out = kernel(*x, rows.starts, rows.starts, rows.longest, rows.longest, **options)
    return out if rows.full_of_token is None else out.index_select(0, rows.full_of_token)


class FlashAttn:
    """The flash-attn package: its variable-length kernel and its paged KV-cache kernel."""

    name = "flash-attn"
    cache = "pages"

    def __init__(self) -> None:
        from flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache

        self._varlen, self._decode = flash_attn_varlen_func, flash_attn_with_kvcache

    def varlen(
        self, q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, rows: PackedRows, scale: float
    ) -> Tensor:
        x = q_NHK, k_NGK, v_NGK
        return shared_varlen(self._varlen, x, rows, softmax_scale=scale, causal=True)

    def decode(
        self, q_RHK: Tensor, keys_SGK: Tensor, values_SGK: Tensor, rows: DecodeRows, scale: float
    ) -> Tensor:
        out = self._decode(
            q_RHK[:, None], _pages(keys_SGK), _pages(values_SGK),
            cache_seqlens=rows.lengths, block_table=rows.table, softmax_scale=scale, causal=False,
        )  # fmt: skip
        return out[:, 0]


class TorchVarlen:
    """torch's own copy of FlashAttention-2 through its public function, paged (torch >= 2.12)."""

    name = "torch-varlen"
    cache = "pages"

    def __init__(self) -> None:
        self._attend = torch_varlen()

    def varlen(
        self, q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, rows: PackedRows, scale: float
    ) -> Tensor:
        # 2.11 checks no head counts and has no such option; later ones want to be told.
        gqa = {"enable_gqa": True} if takes(self._attend, "enable_gqa") else {}
        x = q_NHK, k_NGK, v_NGK
        return shared_varlen(self._attend, x, rows, scale=scale, window_size=(-1, 0), **gqa)

    def decode(
        self, q_RHK: Tensor, keys_SGK: Tensor, values_SGK: Tensor, rows: DecodeRows, scale: float
    ) -> Tensor:
        # The starts of the keys are not read where a table names the pages, yet the kernel may ask
        # for a tensor of their shape.
        return self._attend(
            q_RHK, _pages(keys_SGK), _pages(values_SGK), rows.query_starts, rows.key_starts,
            1, rows.capacity,
            scale=scale, enable_gqa=True, seqused_k=rows.lengths, block_table=rows.table,
        )  # fmt: skip


class TorchAten(TorchVarlen):
    """The same kernel below torch's public function, which in 2.11 takes no page table.

    Its argument `seqused_k` lets `cum_seq_k` be any start of a row, not only a running sum, so a
    cache whose rows are contiguous extents needs no table.
    """

    name = "torch-aten"
    cache = "extents"

    def decode(
        self, q_RHK: Tensor, keys_SGK: Tensor, values_SGK: Tensor, rows: DecodeRows, scale: float
    ) -> Tensor:
        return _flash_attention_forward(
            q_RHK, keys_SGK, values_SGK, rows.query_starts, rows.key_starts, 1, rows.capacity,
            0.0, False, False, scale=scale, seqused_k=rows.lengths,
        )[0]  # fmt: skip


def torch_varlen() -> Callable:
    """Returns torch's public variable-length attention; ImportError where it has none."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


def _flash_attention_forward(*args: object, **options: object) -> tuple[Tensor, ...]:
    return torch.ops.aten._flash_attention_forward(*args, **options)


def takes(function: Callable, *names: str) -> bool:
    """Returns whether a function has all these parameters."""
    return set(names) <= set(inspect.signature(function).parameters)


def _pages(memory_SGK: Tensor) -> Tensor:
    return memory_SGK.view(-1, PAGE_TOKENS, *memory_SGK.shape[1:])
