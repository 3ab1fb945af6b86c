"""Fused linear kernels: log-probs of tokens from hidden states, without the logits in memory.

Forward: a program owns block_m tokens and one of S splits of the vocabulary, multiplies tile after
tile into float32 accumulators and folds each into the sums of `softmax_triton`. It leaves four
numbers a token and split: 16 S T bytes, whatever V. A second kernel merges the splits in order. No
atomics, no locks: the same bits on every run.
Backward: a tile kernel recomputes the logits of one slab of the vocabulary and writes their
gradient; the caller multiplies it (linear_logprob.py).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backend import interpreting
from .configs import (
    LINEAR_DLOGITS,
    LINEAR_FORWARD,
    LINEAR_WITH_EPILOGUE,
    TileConfig,
    processors,
    tile_for,
)
from .logprob_triton import on_device
from .softmax_triton import LN2, LOG2E, NEG_INF, NO_TOP, add_block, dlogit, finish, merge

# Tokens a program of the merge kernel; its work is a few microseconds.
MERGE_BLOCK = 128
# Token tiles that walk the same columns together, so that a panel of the weight stays in L2.
GROUP_M = 16


@triton.jit
def logits_tile(
    hidden_ptr, weight_ptr, bias_ptr,
    rows, columns, n_hidden, stride_hidden, stride_weight, cap,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, EVEN_K: tl.constexpr, UPCAST: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """softcap(hidden[rows] @ weight[columns].T + bias), float32 [BLOCK_M, BLOCK_N]; in bounds."""
    k = tl.arange(0, BLOCK_K)
    # 64-bit rows: 262144 columns of 8192 hidden units reach 2^31 elements.
    a_ptrs = hidden_ptr + rows.to(tl.int64)[:, None] * stride_hidden + k[None, :]
    b_ptrs = weight_ptr + columns.to(tl.int64)[None, :] * stride_weight + k[:, None]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, n_hidden, BLOCK_K):
        if EVEN_K:
            a = tl.load(a_ptrs)
            b = tl.load(b_ptrs)
        else:
            a = tl.load(a_ptrs, mask=k[None, :] < n_hidden - start, other=0.0)
            b = tl.load(b_ptrs, mask=k[:, None] < n_hidden - start, other=0.0)
        if UPCAST:  # the interpreter multiplies bf16 as if it were integers
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
        a_ptrs += BLOCK_K
        b_ptrs += BLOCK_K
    if HAS_BIAS:
        acc += tl.load(bias_ptr + columns).to(tl.float32)[None, :]
    if HAS_CAP:
        acc = cap * (2 * tl.sigmoid(2 * acc / cap) - 1)  # tanh, without a library call
    return acc


@triton.jit
def linear_logprob_fwd_kernel(
    hidden_ptr, weight_ptr, bias_ptr, ids_ptr,  # inputs
    partials_ptr,  # result: [4, splits, n_rows]
    n_rows, n_vocab, n_hidden, split_size, stride_hidden, stride_weight,  # shapes and strides
    scale: tl.float32, cap: tl.float32,  # log2(e) / temperature; softcap
    WITH_ENTROPY: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr,
    EVEN_K: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # Neighbouring programs share a split: they read the same panel of the weight at the same time.
    tiles_m = tl.cdiv(n_rows, BLOCK_M)
    split = tl.program_id(0) // tiles_m
    n_splits = tl.num_programs(0) // tiles_m
    rows = (tl.program_id(0) % tiles_m) * BLOCK_M + tl.arange(0, BLOCK_M)
    # Rows and columns beyond the end repeat the last one: loads need no mask, stores drop them.
    safe_rows = tl.minimum(rows, n_rows - 1)
    ids = tl.load(ids_ptr + safe_rows)

    top = tl.full([BLOCK_M], NO_TOP, tl.float32)
    rest = tl.zeros([BLOCK_M], tl.float32)
    tilt = tl.zeros([BLOCK_M], tl.float32)
    target = tl.zeros([BLOCK_M], tl.float32)
    begin = split * split_size
    end = tl.minimum(begin + split_size, n_vocab)
    for start in range(begin, end, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        z = logits_tile(
            hidden_ptr, weight_ptr, bias_ptr, safe_rows, tl.minimum(columns, n_vocab - 1),
            n_hidden, stride_hidden, stride_weight, cap,
            HAS_BIAS, HAS_CAP, EVEN_K, UPCAST, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        t = z * scale
        # A local index, guarded by the end: no column of a neighbouring split or shard can match.
        is_target = (columns[None, :] == ids[:, None]) & (columns < end)[None, :]
        target += tl.sum(tl.where(is_target, t, 0.0), 1)
        t = tl.where(is_target | (columns >= end)[None, :], NEG_INF, t)
        top, rest, tilt = add_block(t, top, rest, tilt, WITH_ENTROPY)

    plane = n_splits.to(tl.int64) * n_rows
    out = partials_ptr + split.to(tl.int64) * n_rows + rows
    inside = rows < n_rows
    tl.store(out, top, mask=inside)
    tl.store(out + plane, rest, mask=inside)
    tl.store(out + 2 * plane, tilt, mask=inside)
    tl.store(out + 3 * plane, target, mask=inside)


@triton.jit
def merge_splits_kernel(
    partials_ptr, ids_ptr,  # inputs
    result_ptr,  # [3, n_rows]: log-prob, entropy, lse; or [4, n_rows]: the sums, in nats
    n_rows, n_vocab, n_splits,
    FINISH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < n_rows
    part = partials_ptr + rows.to(tl.int64)
    top = tl.full([BLOCK], NO_TOP, tl.float32)
    rest = tl.zeros([BLOCK], tl.float32)
    tilt = tl.zeros([BLOCK], tl.float32)
    target = tl.zeros([BLOCK], tl.float32)
    for _ in range(n_splits):
        rest_part = part + n_splits * n_rows
        tilt_part = rest_part + n_splits * n_rows
        top, rest, tilt = merge(
            top, rest, tilt,
            tl.load(part, mask=inside, other=0.0),
            tl.load(rest_part, mask=inside, other=0.0),
            tl.load(tilt_part, mask=inside, other=0.0),
        )  # fmt: skip
        target += tl.load(tilt_part + n_splits * n_rows, mask=inside, other=0.0)
        part += n_rows
    out = result_ptr + rows
    if FINISH:
        ids = tl.load(ids_ptr + rows, mask=inside, other=0)
        in_range = (ids >= 0) & (ids < n_vocab)
        target = tl.where(in_range, target, float("nan"))  # not a global: see logprob_triton.py
        logprob, entropy, lse = finish(top, rest, tilt, target)
        tl.store(out, logprob, mask=inside)
        tl.store(out + n_rows, entropy, mask=inside)
        tl.store(out + 2 * n_rows, lse, mask=inside)
    else:
        tl.store(out, top * LN2, mask=inside)
        tl.store(out + n_rows, rest, mask=inside)
        tl.store(out + 2 * n_rows, tilt * LN2, mask=inside)
        tl.store(out + 3 * n_rows, target * LN2, mask=inside)


@triton.jit
def linear_dlogits_kernel(
    hidden_ptr, weight_ptr, bias_ptr, ids_ptr,  # inputs; weight and bias of the slab
    coefficients_ptr,  # [4, n_rows]: ref, level, slope, at_target
    dlogits_ptr,  # result: [n_rows, stride_dlogits], of which n_columns mean something
    n_rows, n_columns, n_hidden, first_column,  # shapes; the slab's first column
    stride_hidden, stride_weight, stride_dlogits,
    scale: tl.float32, inv_temperature: tl.float32, cap: tl.float32,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, EVEN_K: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr, GROUP_M: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_m = tl.cdiv(n_rows, BLOCK_M)
    group = tl.program_id(0) // (GROUP_M * tl.cdiv(n_columns, BLOCK_N))
    group_rows = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    within = tl.program_id(0) % (GROUP_M * tl.cdiv(n_columns, BLOCK_N))
    rows = (group * GROUP_M + within % group_rows) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = (within // group_rows) * BLOCK_N + tl.arange(0, BLOCK_N)
    safe_rows = tl.minimum(rows, n_rows - 1)
    z = logits_tile(
        hidden_ptr, weight_ptr, bias_ptr, safe_rows, tl.minimum(columns, n_columns - 1),
        n_hidden, stride_hidden, stride_weight, cap,
        HAS_BIAS, HAS_CAP, EVEN_K, UPCAST, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    ids = tl.load(ids_ptr + safe_rows) - first_column
    ref = tl.load(coefficients_ptr + safe_rows) * LOG2E
    level = tl.load(coefficients_ptr + n_rows + safe_rows)
    slope = tl.load(coefficients_ptr + 2 * n_rows + safe_rows)
    at_target = tl.load(coefficients_ptr + 3 * n_rows + safe_rows)
    dz = dlogit(
        z * scale, ref[:, None], level[:, None], slope[:, None],
        columns[None, :] == ids[:, None], at_target[:, None],
    )  # fmt: skip
    if HAS_CAP:
        dz *= 1 - (z / cap) * (z / cap)
    dz *= inv_temperature
    out = dlogits_ptr + rows.to(tl.int64)[:, None] * stride_dlogits + columns[None, :]
    # The padding of a row is written too: a bound that divides by 16 keeps the stores wide.
    inside = (rows < n_rows)[:, None] & (columns < stride_dlogits)[None, :]
    tl.store(out, dz.to(dlogits_ptr.dtype.element_ty), mask=inside)


def forward_sums(
    hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, ids_T: Tensor,
    temperature: float, softcap: float | None, with_entropy: bool, finish_rows: bool,
) -> Tensor:  # fmt: skip
    """[3, T] log-prob, entropy (meaningless unless asked), lse; or [4, T] sums of this shard."""
    n_rows, n_vocab = hidden_TD.shape[0], weight_VD.shape[0]
    result = hidden_TD.new_empty((3 if finish_rows else 4, n_rows), dtype=torch.float32)
    if not n_rows:
        return result
    is_plain = bias_V is None and softcap is None
    config = _tile(LINEAR_FORWARD, hidden_TD, is_plain)
    tiles_m = triton.cdiv(n_rows, config.block_m)
    n_tiles_n = triton.cdiv(n_vocab, config.block_n)
    n_splits = choose_splits(tiles_m, n_tiles_n, processors(hidden_TD), n_rows)
    split_size = triton.cdiv(n_tiles_n, n_splits) * config.block_n
    n_splits = triton.cdiv(n_vocab, split_size)
    partials = hidden_TD.new_empty((4, n_splits, n_rows), dtype=torch.float32)
    with on_device(hidden_TD):
        linear_logprob_fwd_kernel[(tiles_m * n_splits,)](
            hidden_TD, weight_VD, bias_V, ids_T,
            partials,
            n_rows, n_vocab, hidden_TD.shape[1], split_size,
            hidden_TD.stride(0), weight_VD.stride(0),
            LOG2E.value / temperature, softcap or 1.0,
            WITH_ENTROPY=with_entropy, **_options(hidden_TD, bias_V, softcap, config),
        )  # fmt: skip
        merge_splits_kernel[(triton.cdiv(n_rows, MERGE_BLOCK),)](
            partials, ids_T, result, n_rows, n_vocab, n_splits,
            FINISH=finish_rows, BLOCK=MERGE_BLOCK, num_warps=4,
        )  # fmt: skip
    return result


def slab_dlogits(
    hidden_TD: Tensor, weight_CD: Tensor, bias_C: Tensor | None, ids_T: Tensor,
    coefficients: Tensor, first_column: int, temperature: float, softcap: float | None,
    out_TC: Tensor,
) -> None:  # fmt: skip
    """Write the gradient to hidden @ weight.T + bias of one slab, [T, C].

    The rows of `out_TC` are written whole, from each to the next.
    """
    n_rows, n_columns = out_TC.shape
    is_plain = bias_C is None and softcap is None and out_TC.dtype == hidden_TD.dtype
    config = _tile(LINEAR_DLOGITS, hidden_TD, is_plain)
    grid = (triton.cdiv(n_rows, config.block_m) * triton.cdiv(n_columns, config.block_n),)
    with on_device(hidden_TD):
        linear_dlogits_kernel[grid](
            hidden_TD, weight_CD, bias_C, ids_T, coefficients, out_TC,
            n_rows, n_columns, hidden_TD.shape[1], first_column,
            hidden_TD.stride(0), weight_CD.stride(0), out_TC.stride(0),
            LOG2E.value / temperature, 1 / temperature, softcap or 1.0,
            GROUP_M=GROUP_M, **_options(hidden_TD, bias_C, softcap, config),
        )  # fmt: skip


def choose_splits(tiles_m: int, tiles_n: int, processors: int, n_rows: int) -> int:
    """Splits of the vocabulary that leave the fewest processors idle in the last wave.

    Each split has at least four tiles, so that its partial sums cost little beside them, and all
    partial sums together take at most 16 MiB where there are fewer than a million rows; among
    equals the fewest splits win.
    """
    best, best_time = 1, float("inf")
    for splits in range(1, max(1, min(tiles_n // 4, (1 << 20) // n_rows)) + 1):
        waves = -(-tiles_m * splits // processors)
        time = waves * -(-tiles_n // splits)
        if time < best_time:
            best, best_time = splits, time
    return best


def _tile(plain: dict[tuple[int, int], TileConfig], hidden: Tensor, is_plain: bool) -> TileConfig:
    return tile_for(plain if is_plain else LINEAR_WITH_EPILOGUE, hidden, interpreting())


def _options(
    hidden: Tensor, bias: Tensor | None, softcap: float | None, config: TileConfig
) -> dict[str, object]:
    """The compile-time arguments that both tile kernels share."""
    return dict(
        HAS_BIAS=bias is not None,
        HAS_CAP=softcap is not None,
        EVEN_K=hidden.shape[1] % config.block_k == 0,
        UPCAST=interpreting(),
        PRECISION=_precision(hidden),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _precision(hidden: Tensor) -> str:
    """float32 inputs multiply exactly unless torch's own matmul precision was lowered."""
    if hidden.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return "tf32" if hidden.is_cuda else "ieee"
    return "ieee"
