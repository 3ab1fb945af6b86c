"""AdamW and the sum of gradients with stochastic rounding, one launch a tensor.

Each thread handles eight contiguous elements: 128-bit loads of bf16. The noise costs no memory: two
hashes of the element's place give the 48 bits that a weight and its two moments take.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backend import interpreting
from .configs import ADAMW, INTERPRETED_BLOCK, SQUARE_SUM
from .logprob_triton import on_device
from .sample_triton import mix_32, row_words


@triton.jit
def widened(high, low):
    """The float32 of its upper 16 bits, a bf16, and the 8 below them."""
    bits = (high.to(tl.uint16, bitcast=True).to(tl.uint32) << 16) | (low.to(tl.uint32) << 8)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def upper_half(bits):
    """The bf16 that a float32's upper 16 bits are."""
    return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def rounded(exact, noise):
    """bf16 by 16 bits of noise, in the lower half of 32."""
    return upper_half(exact.to(tl.uint32, bitcast=True) + (noise & 0xFFFF))


@triton.jit
def hashed(key, position, place):
    """The 32 bits of `adamw._noise`."""
    low, high = row_words(key.to(tl.int64), tl.full([], position, tl.int64))
    return mix_32(mix_32(place ^ low) ^ high)


# A key or a place that is odd, or one, would else compile another kernel.
@triton.jit(do_not_specialize=["key", "first"])
def adamw_kernel(
    weight_ptr, exp_avg_ptr, exp_avg_sq_ptr,  # inputs and results
    grad_ptr, low_ptr, scale_ptr,  # inputs
    n_elements,  # shapes
    fresh1: tl.float32, beta2: tl.float32, fresh2: tl.float32, correction: tl.float32,
    eps: tl.float32, rate: tl.float32, decay: tl.float32,
    key: tl.int64, first: tl.int64,
    HAS_LOW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n_elements
    g = tl.load(grad_ptr + at, mask=inside, other=0.0)
    if HAS_LOW:
        g = widened(g, tl.load(low_ptr + at, mask=inside, other=0))
    g = g.to(tl.float32) * tl.load(scale_ptr)
    m = tl.load(exp_avg_ptr + at, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(exp_avg_sq_ptr + at, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    m += (g - m) * fresh1
    v = v * beta2 + g * g * fresh2
    w -= m / (tl.sqrt(v) * correction + eps) * rate + w * decay
    place = (first + at).to(tl.uint32)
    one, other = hashed(key, 0, place), hashed(key, 1, place)
    tl.store(weight_ptr + at, rounded(w, one), mask=inside)
    tl.store(exp_avg_ptr + at, rounded(m, one >> 16), mask=inside)
    tl.store(exp_avg_sq_ptr + at, rounded(v, other), mask=inside)


@triton.jit(do_not_specialize=["key", "first"])
def accumulate_kernel(
    total_ptr, low_ptr,  # inputs and results
    grad_ptr,  # inputs
    n_elements,  # shapes
    key: tl.int64, first: tl.int64,
    BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n_elements
    high = tl.load(total_ptr + at, mask=inside, other=0.0)
    low = tl.load(low_ptr + at, mask=inside, other=0)
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0)
    bits = (widened(high, low) + grad.to(tl.float32)).to(tl.uint32, bitcast=True)
    noise = hashed(key, 0, (first + at).to(tl.uint32)) & 0xFF
    # Added to a NaN that is all ones, noise would make a number of it.
    is_finite = (bits & 0x7F800000) != 0x7F800000
    bits += tl.where(is_finite, noise, 0)
    tl.store(total_ptr + at, upper_half(bits), mask=inside)
    tl.store(low_ptr + at, ((bits >> 8) & 0xFF).to(tl.uint8), mask=inside)


@triton.jit
def square_sum_kernel(
    total_ptr, low_ptr,  # inputs
    sums_ptr,  # results
    n_elements,  # shapes
    HAS_LOW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n_elements
    x = tl.load(total_ptr + at, mask=inside, other=0.0)
    if HAS_LOW:
        x = widened(x, tl.load(low_ptr + at, mask=inside, other=0))
    x = x.to(tl.float32)
    tl.store(sums_ptr + tl.program_id(0), tl.sum(x * x, 0))


def update_(
    weight: Tensor, grad: Tensor, grad_low: Tensor | None, exp_avg: Tensor, exp_avg_sq: Tensor,
    scale: Tensor, numbers: list[float], key: int, first: int,
) -> None:  # fmt: skip
    """One launch; arguments as in `adamw.update_`."""
    n_elements = weight.numel()
    block = INTERPRETED_BLOCK if interpreting() else ADAMW.block
    if n_elements:
        with on_device(weight):
            adamw_kernel[(triton.cdiv(n_elements, block),)](
                weight, exp_avg, exp_avg_sq,
                grad, grad_low, scale,
                n_elements,
                *numbers,
                key, first,
                HAS_LOW=grad_low is not None, BLOCK=block, num_warps=ADAMW.num_warps,
            )  # fmt: skip


def add_(total: Tensor, low: Tensor, grad: Tensor, key: int, first: int) -> None:
    """One launch; arguments as in `adamw.add_`."""
    n_elements = total.numel()
    block = INTERPRETED_BLOCK if interpreting() else ADAMW.block
    if n_elements:
        with on_device(total):
            accumulate_kernel[(triton.cdiv(n_elements, block),)](
                total, low, grad, n_elements, key, first,
                BLOCK=block, num_warps=ADAMW.num_warps,
            )  # fmt: skip


def square_sum(total: Tensor, low: Tensor | None) -> Tensor:
    """0-dim float32: a sum a program, then the sum of these; no atomics."""
    n_elements = total.numel()
    block = INTERPRETED_BLOCK if interpreting() else SQUARE_SUM.block
    sums = total.new_empty(triton.cdiv(n_elements, block), dtype=torch.float32)
    if n_elements:
        with on_device(total):
            square_sum_kernel[(len(sums),)](
                total, low, sums, n_elements,
                HAS_LOW=low is not None, BLOCK=block, num_warps=SQUARE_SUM.num_warps,
            )  # fmt: skip
    return sums.sum()
