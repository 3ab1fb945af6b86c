"""One token a row in one read of its logits: noise, log-sum-exp, Gumbel argmax and its log-prob.

A program a row. As in the row kernel each thread keeps its own sums over LANE contiguous columns;
beside them it keeps the best score so far, its column and its logit, so the loop has no barrier.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backend import interpreting
from .configs import INTERPRETED_BLOCK, SAMPLE
from .logprob_triton import on_device
from .softmax_triton import LN2, LOG2E, NEG_INF, NO_TOP, add_block


@triton.jit
def row_words(key, position):
    """The two 32-bit words of `sample.row_words`, from int64 patterns; uint64 wraps and shifts."""
    z = key.to(tl.uint64) + (position.to(tl.uint64) + 1) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z = z ^ (z >> 31)
    return (z & 0xFFFFFFFF).to(tl.uint32), (z >> 32).to(tl.uint32)


@triton.jit
def mix_32(x):
    """32 mixed bits of 32 bits."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def log2_of_exponential(bits):
    """log2(-log(1 - u)) of u = (bits + 1/2) 2^-32, to full relative precision near u = 0."""
    u = (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    series = u * (1 + u * (0.5 + u * (1.0 / 3 + u * (0.25 + u * 0.2))))
    return tl.log2(tl.where(u < 0.03, series, -tl.log(1 - u)))


@triton.jit
def sample_kernel(
    logits_ptr, keys_ptr, positions_ptr, temperature_ptr,  # inputs
    ids_ptr, logprobs_ptr,  # results
    n_vocab, stride,  # shapes and strides
    BLOCK: tl.constexpr, LANE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * stride  # row * stride passes 2^31 at a large vocabulary
    low, high = row_words(tl.load(keys_ptr + row), tl.load(positions_ptr + row))
    temperature = tl.load(temperature_ptr + row)
    is_greedy = temperature == 0
    scale = LOG2E / tl.where(is_greedy, 1.0, temperature)

    lanes: tl.constexpr = BLOCK // LANE
    columns = tl.arange(0, lanes)[:, None] * LANE + tl.arange(0, LANE)[None, :]
    top = tl.full([lanes], NO_TOP, tl.float32)
    rest = tl.zeros([lanes], tl.float32)
    tilt = tl.zeros([lanes], tl.float32)
    best = tl.full([lanes], NEG_INF, tl.float32)
    best_t = tl.full([lanes], NEG_INF, tl.float32)
    best_column = tl.zeros([lanes], tl.int32)
    for start in tl.range(0, n_vocab, BLOCK, num_stages=STAGES):
        inside = start + columns < n_vocab
        x = tl.load(logits_ptr + start + columns, mask=inside, other=NEG_INF)
        t = x.to(tl.float32) * scale
        top, rest, tilt = add_block(t, top, rest, tilt, False)
        bits = mix_32(mix_32((start + columns).to(tl.uint32) ^ low) ^ high)
        score = t - tl.where(is_greedy, 0.0, log2_of_exponential(bits))
        here = tl.max(score, 1)
        # The lowest column of the best score, and its logit, without a second read.
        at = tl.min(tl.where(score == here[:, None], start + columns, 2147483647), 1)
        its_t = tl.max(tl.where(start + columns == at[:, None], t, NEG_INF), 1)
        is_better = here > best
        best = tl.where(is_better, here, best)
        best_column = tl.where(is_better, at, best_column)
        best_t = tl.where(is_better, its_t, best_t)

    peak = tl.max(top, 0)
    total = tl.sum(rest * tl.exp2(top - peak), 0)
    winner = tl.max(best, 0)
    column = tl.min(tl.where(best == winner, best_column, 2147483647), 0)
    chosen = tl.max(tl.where((best == winner) & (best_column == column), best_t, NEG_INF), 0)
    tl.store(ids_ptr + row, column.to(tl.int64))
    tl.store(logprobs_ptr + row, (chosen - peak) * LN2 - tl.log(total))


def sample(
    logits: Tensor, keys: Tensor, positions: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (ids [R] int64, log-probs [R] float32) in one launch."""
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    n_rows, n_vocab = logits.shape
    ids = torch.empty(n_rows, dtype=torch.int64, device=logits.device)
    logprobs = torch.empty(n_rows, dtype=torch.float32, device=logits.device)
    block = SAMPLE.block
    if interpreting():
        block = min(INTERPRETED_BLOCK, max(64, triton.next_power_of_2(n_vocab)))
    if n_rows:
        with on_device(logits):
            sample_kernel[(n_rows,)](
                logits, keys.contiguous(), positions.contiguous(), temperature.contiguous(),
                ids, logprobs,
                n_vocab, logits.stride(0),
                BLOCK=block,
                LANE=16 // logits.element_size(),  # one 128-bit load
                STAGES=SAMPLE.num_stages,
                num_warps=SAMPLE.num_warps,
            )  # fmt: skip
    return ids, logprobs
