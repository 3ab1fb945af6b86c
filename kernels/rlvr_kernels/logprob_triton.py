"""Row kernels: log-probs of chosen tokens from logits, forward and backward.

Forward: one program a row, one read of the row, one exponential an element. Each thread keeps its
own sums over groups of LANE contiguous elements, so that the running maximum costs one exponential
a group and the loop has no barrier. Backward: one read and one write, a program per row and block
of columns.
"""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backend import interpreting
from .configs import INTERPRETED_BLOCK, ROW_BACKWARD, ROW_FORWARD, RowConfig
from .rows import rows_of
from .softmax_triton import LOG2E, NEG_INF, NO_TOP, add_block, dlogit, finish, one_minus_exp


@triton.jit
def row_address(row, inner, outer_stride, inner_stride):
    """Offset of a row, in 64 bits: row * stride passes 2^31 from 14135 rows of 151936 on."""
    row = row.to(tl.int64)
    return (row // inner) * outer_stride + (row % inner) * inner_stride


@triton.jit
def row_logprob_fwd_kernel(
    logits_ptr, ids_ptr, valid_ptr,  # inputs
    logprobs_ptr, entropy_ptr, lse_ptr,  # results
    n_vocab, inner, outer_stride, inner_stride,  # shapes and strides
    scale: tl.float32,  # log2(e) / temperature
    WITH_ENTROPY: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr, LANE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    offset = row_address(row, inner, outer_stride, inner_stride)
    skip = 0
    if not ALIGNED:
        # Such a row starts anywhere. Its blocks start at the lane before, and skip what is of the
        # row above: else the compiler deals the columns out singly, at two exponentials each.
        lane_start = offset // LANE * LANE
        skip = (offset - lane_start).to(tl.int32)
        offset = lane_start
    logits_ptr += offset
    valid = tl.load(valid_ptr + row) != 0
    target = tl.load(ids_ptr + row)

    lanes: tl.constexpr = BLOCK // LANE
    columns = tl.arange(0, lanes)[:, None] * LANE + tl.arange(0, LANE)[None, :]
    top = tl.full([lanes], NO_TOP, tl.float32)
    rest = tl.zeros([lanes], tl.float32)
    tilt = tl.zeros([lanes], tl.float32)
    # A masked row is not read at all.
    end = n_vocab + skip
    for start in tl.range(0, tl.where(valid, end, 0), BLOCK, num_stages=STAGES):
        inside = start + columns < end
        if not ALIGNED:
            inside = inside & (start + columns >= skip)
        # Columns beyond the vocabulary are -inf, not 0: exp(0) would enter the sum.
        x = tl.load(logits_ptr + start + columns, mask=inside, other=NEG_INF)
        t = x.to(tl.float32) * scale
        local = target + skip - start
        if (local >= 0) & (local < BLOCK):
            t = tl.where(columns == local, NEG_INF, t)
        top, rest, tilt = add_block(t, top, rest, tilt, WITH_ENTROPY)

    peak = tl.max(top, 0)
    shrink = tl.exp2(top - peak)
    tilt = tl.sum((tilt + rest * (top - peak)) * shrink, 0)
    rest = tl.sum(rest * shrink, 0)
    # An id out of range poisons its row with NaN: no host sync, and never a plausible number.
    in_range = (target >= 0) & (target < n_vocab)
    chosen = tl.load(logits_ptr + skip + target, mask=valid & in_range, other=0.0)
    chosen = chosen.to(tl.float32) * scale
    # NaN in place: Triton compares global constants by value at every launch, and NaN != NaN.
    chosen = tl.where(in_range, chosen, float("nan"))
    logprob, entropy, lse = finish(peak, rest, tilt, chosen)
    tl.store(logprobs_ptr + row, tl.where(valid, logprob, 0.0))
    tl.store(lse_ptr + row, tl.where(valid, lse, 0.0))
    if WITH_ENTROPY:
        tl.store(entropy_ptr + row, tl.where(valid, entropy, 0.0))


@triton.jit
def row_logprob_bwd_kernel(
    logits_ptr, ids_ptr, valid_ptr, logprobs_ptr, entropy_ptr, lse_ptr,  # saved
    g_logprobs_ptr, g_entropy_ptr, g_lse_ptr,  # upstream, None where absent
    dlogits_ptr,  # result; may be logits_ptr itself
    n_vocab,
    inner, outer_stride, inner_stride,  # rows of logits
    d_inner, d_outer_stride, d_inner_stride,  # rows of dlogits
    scale: tl.float32, inv_temperature: tl.float32,
    HAS_LOGPROBS: tl.constexpr, HAS_ENTROPY: tl.constexpr, HAS_LSE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)  # rows on x: y and z end at 65535
    logits_ptr += row_address(row, inner, outer_stride, inner_stride)
    dlogits_ptr += row_address(row, d_inner, d_outer_stride, d_inner_stride)
    valid = tl.load(valid_ptr + row) != 0
    target = tl.load(ids_ptr + row)
    logprob = tl.load(logprobs_ptr + row)
    lse = tl.load(lse_ptr + row)

    g = tl.load(g_logprobs_ptr + row) if HAS_LOGPROBS else 0.0
    level = -g
    if HAS_LSE:
        level += tl.load(g_lse_ptr + row)
    slope = 0.0
    if HAS_ENTROPY:
        slope = -tl.load(g_entropy_ptr + row)
        level += slope * tl.load(entropy_ptr + row)
    p_target = tl.exp(logprob)
    lean = tl.where(p_target == 0, 0.0, slope * logprob * p_target)
    # g (1 - p) from log p: 1 - p has no digits left in float32 where p is near 1.
    at_target = (level + g) * p_target + lean + g * one_minus_exp(logprob)

    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < n_vocab
    x = tl.load(logits_ptr + columns, mask=inside & valid, other=NEG_INF)
    t = x.to(tl.float32) * scale
    dx = dlogit(t, lse * LOG2E, level, slope, columns == target, at_target) * inv_temperature
    tl.store(dlogits_ptr + columns, tl.where(valid, dx, 0.0), mask=inside)


def forward(
    logits: Tensor, ids: Tensor, valid: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows = rows_of(logits)
    n_vocab = logits.shape[-1]
    logprobs = torch.empty(ids.shape, dtype=torch.float32, device=logits.device)
    lse = torch.empty_like(logprobs)
    entropy = torch.empty_like(logprobs) if with_entropy else logprobs.new_empty(0)
    block = _block(ROW_FORWARD, n_vocab)
    lane = 16 // logits.element_size()  # one 128-bit load
    is_aligned = all(step % lane == 0 for step in (n_vocab, rows.outer_stride, rows.inner_stride))
    if rows.count:
        with on_device(logits):
            row_logprob_fwd_kernel[(rows.count,)](
                rows.tensor, ids.contiguous(), valid.contiguous(),
                logprobs, entropy, lse,
                n_vocab, rows.inner, rows.outer_stride, rows.inner_stride,
                LOG2E.value / temperature,
                WITH_ENTROPY=with_entropy,
                ALIGNED=is_aligned,
                BLOCK=block,
                LANE=lane,
                STAGES=ROW_FORWARD.num_stages,
                num_warps=_warps(ROW_FORWARD, block),
            )  # fmt: skip
    return logprobs, entropy, lse


def backward(
    logits: Tensor,
    ids: Tensor,
    valid: Tensor,
    saved: tuple[Tensor, Tensor, Tensor],
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    temperature: float,
    out: Tensor,
) -> None:
    """Write the gradient of `logits` into `out`, which may be `logits` itself."""
    rows, results = rows_of(logits), rows_of(out)
    if not rows.count:
        return
    n_vocab = logits.shape[-1]
    block = _block(ROW_BACKWARD, n_vocab)
    logprobs, entropy, lse = saved
    g_logprobs, g_entropy, g_lse = (None if g is None else g.contiguous() for g in grads)
    with on_device(logits):
        row_logprob_bwd_kernel[(rows.count, triton.cdiv(n_vocab, block))](
            rows.tensor, ids.contiguous(), valid.contiguous(), logprobs, entropy, lse,
            g_logprobs, g_entropy, g_lse,
            out,
            n_vocab,
            rows.inner, rows.outer_stride, rows.inner_stride,
            results.inner, results.outer_stride, results.inner_stride,
            LOG2E.value / temperature, 1 / temperature,
            HAS_LOGPROBS=g_logprobs is not None,
            HAS_ENTROPY=g_entropy is not None,
            HAS_LSE=g_lse is not None,
            BLOCK=block,
            num_warps=_warps(ROW_BACKWARD, block),
        )  # fmt: skip


def on_device(tensor: Tensor):
    """Launch on the tensor's own GPU, not on the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _block(config: RowConfig, n_vocab: int) -> int:
    """The configured block, smaller for a vocabulary that does not fill it."""
    block = INTERPRETED_BLOCK if interpreting() else config.block
    return min(block, max(128, triton.next_power_of_2(n_vocab)))


def _warps(config: RowConfig, block: int) -> int:
    """As many threads an element as the configuration has."""
    return min(config.num_warps, max(1, config.num_warps * block // config.block))
