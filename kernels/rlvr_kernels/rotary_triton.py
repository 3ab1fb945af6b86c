"""Rotary kernels: a program a token and a few heads, queries, keys and values alike.

A head is held as its two halves, which a rotation mixes column by column. Values pass through.
Backward with head norms: a program takes every so many-th token for its heads and keeps their part
of the weights' gradients in registers: a partial sum a program and head, added up in a fixed order
by torch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backend import interpreting
from .configs import ROTARY_PAIRS, ROTARY_WARPS_A_PROCESSOR, processors
from .logprob_triton import on_device


@triton.jit
def turned(x1, x2, cos_ptr, sin_ptr, columns, inside, HALF: tl.constexpr, BACK: tl.constexpr):
    """Both halves [heads, columns] rotated by the angles of a token, or turned back."""
    cos1 = tl.load(cos_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    cos2 = tl.load(cos_ptr + HALF + columns, mask=inside, other=0.0).to(tl.float32)
    sin1 = tl.load(sin_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    sin2 = tl.load(sin_ptr + HALF + columns, mask=inside, other=0.0).to(tl.float32)
    if BACK:
        return x1 * cos1 + x2 * sin2, x2 * cos2 - x1 * sin1
    return x1 * cos1 - x2 * sin1, x2 * cos2 + x1 * sin2


@triton.jit
def rstd_of(x1, x2, eps, HALF: tl.constexpr):
    """1 / root mean square of each head, [heads, 1]."""
    return tl.rsqrt(tl.sum(x1 * x1 + x2 * x2, 1) / (2 * HALF) + eps)[:, None]


@triton.jit
def weights_of(q_weight_ptr, k_weight_ptr, is_query, columns, inside):
    """The weights of each head's columns, [heads, columns]: the queries' or the keys'."""
    q_weight = tl.load(q_weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    k_weight = tl.load(k_weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    return tl.where(is_query, q_weight, k_weight)


@triton.jit
def store_halves(ptr, x1, x2, mask, HALF: tl.constexpr):
    tl.store(ptr, x1, mask=mask)
    tl.store(ptr + HALF, x2, mask=mask)


@triton.jit
def rotary_fwd_kernel(
    qkv_ptr, cos_ptr, sin_ptr, q_weight_ptr, k_weight_ptr,  # inputs; weights None without a norm
    q_ptr, k_ptr, v_ptr,  # results
    keys_ptr, values_ptr, places_ptr,  # the cache, None without one
    n_heads, n_kv_heads, qkv_stride,  # shapes and strides
    n_places, keys_stride, keys_head_stride, values_stride, values_head_stride,
    eps: tl.float32,
    HAS_NORM: tl.constexpr, HAS_CACHE: tl.constexpr, HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    columns = tl.arange(0, BLOCK_HALF)[None, :]
    inside = columns < HALF
    n_turned = n_heads + n_kv_heads
    exists = (heads < n_turned + n_kv_heads) & inside
    is_query = heads < n_heads
    is_value = heads >= n_turned

    at = qkv_ptr + token * qkv_stride + heads * (2 * HALF) + columns
    x1 = tl.load(at, mask=exists, other=0.0)
    x2 = tl.load(at + HALF, mask=exists, other=0.0)
    y1, y2 = x1.to(tl.float32), x2.to(tl.float32)
    if HAS_NORM:
        rstd = rstd_of(y1, y2, eps, HALF)
        y1 *= rstd * weights_of(q_weight_ptr, k_weight_ptr, is_query, columns, inside)
        y2 *= rstd * weights_of(q_weight_ptr + HALF, k_weight_ptr + HALF, is_query, columns, inside)
    angles = token * 2 * HALF
    y1, y2 = turned(y1, y2, cos_ptr + angles, sin_ptr + angles, columns, inside, HALF, False)
    y1 = tl.where(is_value, x1, y1.to(x1.dtype))
    y2 = tl.where(is_value, x2, y2.to(x2.dtype))

    # In 64 bits: a step from head to head may be that of a whole cache.
    key, value = (heads - n_heads).to(tl.int64), (heads - n_turned).to(tl.int64)
    q_at = (token * n_heads + heads) * (2 * HALF) + columns
    k_at = (token * n_kv_heads + key) * (2 * HALF) + columns
    v_at = (token * n_kv_heads + value) * (2 * HALF) + columns
    queries_here = exists & is_query
    keys_here = exists & (heads >= n_heads) & (heads < n_turned)
    values_here = exists & is_value
    store_halves(q_ptr + q_at, y1, y2, queries_here, HALF)
    store_halves(k_ptr + k_at, y1, y2, keys_here, HALF)
    store_halves(v_ptr + v_at, y1, y2, values_here, HALF)
    if HAS_CACHE:
        place = tl.load(places_ptr + token)
        # A place that is not there would be memory of something else.
        is_there = (place >= 0) & (place < n_places)
        k_at = place * keys_stride + key * keys_head_stride + columns
        v_at = place * values_stride + value * values_head_stride + columns
        store_halves(keys_ptr + k_at, y1, y2, keys_here & is_there, HALF)
        store_halves(values_ptr + v_at, y1, y2, values_here & is_there, HALF)


@triton.jit
def load_halves(
    ptr, token_stride, head_stride, token, head, columns, here, HALF: tl.constexpr,
):  # fmt: skip
    at = ptr + token * token_stride + head.to(tl.int64) * head_stride + columns
    x1 = tl.load(at, mask=here, other=0.0).to(tl.float32)
    return x1, tl.load(at + HALF, mask=here, other=0.0).to(tl.float32)


@triton.jit
def rotary_bwd_kernel(
    qkv_ptr, cos_ptr, sin_ptr, q_weight_ptr, k_weight_ptr,  # saved; None without a norm
    g_q_ptr, g_k_ptr, g_v_ptr,  # upstream, None where absent
    d_qkv_ptr, partials_ptr,  # results; partials [programs, H + G, K], None where not wanted
    n_tokens, n_heads, n_kv_heads, qkv_stride,  # shapes and strides
    q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride,
    eps: tl.float32,
    HAS_NORM: tl.constexpr, NEEDS_WEIGHTS: tl.constexpr,
    HAS_Q: tl.constexpr, HAS_K: tl.constexpr, HAS_V: tl.constexpr, HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)  # and so the tokens below
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    columns = tl.arange(0, BLOCK_HALF)[None, :]
    inside = columns < HALF
    n_turned = n_heads + n_kv_heads
    exists = (heads < n_turned + n_kv_heads) & inside
    is_query = heads < n_heads
    is_value = heads >= n_turned
    queries_here = exists & is_query
    keys_here = exists & (heads >= n_heads) & (heads < n_turned)
    values_here = exists & is_value
    d_weight1 = tl.zeros([BLOCK_HEADS, BLOCK_HALF], tl.float32)
    d_weight2 = tl.zeros([BLOCK_HEADS, BLOCK_HALF], tl.float32)
    for token in tl.range(program, n_tokens, tl.num_programs(0)):
        # Of the three every head has one: the others are 0 there.
        g1 = tl.zeros([BLOCK_HEADS, BLOCK_HALF], tl.float32)
        g2 = tl.zeros([BLOCK_HEADS, BLOCK_HALF], tl.float32)
        if HAS_Q:
            q1, q2 = load_halves(
                g_q_ptr, q_stride, q_head_stride, token, heads, columns, queries_here, HALF
            )
            g1, g2 = g1 + q1, g2 + q2
        if HAS_K:
            k1, k2 = load_halves(
                g_k_ptr, k_stride, k_head_stride, token, heads - n_heads, columns, keys_here, HALF
            )
            g1, g2 = g1 + k1, g2 + k2
        if HAS_V:
            v1, v2 = load_halves(
                g_v_ptr, v_stride, v_head_stride, token, heads - n_turned, columns, values_here,
                HALF,
            )  # fmt: skip
            g1, g2 = g1 + v1, g2 + v2
        angles = token * 2 * HALF
        d1, d2 = turned(g1, g2, cos_ptr + angles, sin_ptr + angles, columns, inside, HALF, True)
        if HAS_NORM:
            x1, x2 = load_halves(
                qkv_ptr, qkv_stride, 2 * HALF, token, heads, columns, exists & (heads < n_turned),
                HALF,
            )  # fmt: skip
            rstd = rstd_of(x1, x2, eps, HALF)
            x1, x2 = x1 * rstd, x2 * rstd
            if NEEDS_WEIGHTS:
                d_weight1 += d1 * x1
                d_weight2 += d2 * x2
            d1 *= weights_of(q_weight_ptr, k_weight_ptr, is_query, columns, inside)
            d2 *= weights_of(q_weight_ptr + HALF, k_weight_ptr + HALF, is_query, columns, inside)
            share = (tl.sum(d1 * x1 + d2 * x2, 1) / (2 * HALF))[:, None]
            d1, d2 = (d1 - x1 * share) * rstd, (d2 - x2 * share) * rstd
        d1 = tl.where(is_value, g1, d1)
        d2 = tl.where(is_value, g2, d2)
        d_at = (token * (n_turned + n_kv_heads) + heads) * (2 * HALF) + columns
        store_halves(d_qkv_ptr + d_at, d1, d2, exists, HALF)
    if NEEDS_WEIGHTS:
        at = (program * n_turned + heads) * (2 * HALF) + columns
        store_halves(partials_ptr + at, d_weight1, d_weight2, exists & (heads < n_turned), HALF)


def forward(
    qkv: Tensor, cos: Tensor, sin: Tensor, weights: tuple[Tensor | None, Tensor | None],
    counts: tuple[int, int], eps: float, cache: tuple[Tensor, Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return (queries, keys, values); `cache`: keys, values and places to write them to as well."""
    n_tokens, size = cos.shape
    n_heads, n_kv_heads = counts
    q, k, v = (qkv.new_empty(n_tokens, count, size) for count in (n_heads, *2 * (n_kv_heads,)))
    qkv = qkv if qkv.stride(1) == 1 else qkv.contiguous()
    q_weight, k_weight = (None if weight is None else weight.contiguous() for weight in weights)
    keys, values, places = cache or (None, None, None)
    block_heads, block_half, blocks = blocks_of(size, n_heads + 2 * n_kv_heads)
    if n_tokens:
        with on_device(qkv):
            rotary_fwd_kernel[(n_tokens, blocks)](
                qkv, cos.contiguous(), sin.contiguous(), q_weight, k_weight,
                q, k, v,
                keys, values, None if places is None else places.contiguous(),
                n_heads, n_kv_heads, qkv.stride(0),
                0 if keys is None else len(keys), *_strides(keys), *_strides(values),
                eps,
                HAS_NORM=q_weight is not None,
                HAS_CACHE=cache is not None,
                HALF=size // 2,
                BLOCK_HEADS=block_heads,
                BLOCK_HALF=block_half,
                num_warps=1,
            )  # fmt: skip
    return q, k, v


def backward(
    qkv: Tensor | None, cos: Tensor, sin: Tensor, weights: tuple[Tensor | None, Tensor | None],
    grads: tuple[Tensor | None, Tensor | None, Tensor | None], counts: tuple[int, int],
    eps: float, needs_weights: bool, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of qkv and of both weights, those [0] where they are not wanted."""
    n_tokens, size = cos.shape
    n_heads, n_kv_heads = counts
    n_all = n_heads + 2 * n_kv_heads
    d_qkv = torch.empty(n_tokens, n_all * size, dtype=dtype, device=cos.device)
    if qkv is not None and qkv.stride(1) != 1:
        qkv = qkv.contiguous()
    q_weight, k_weight = (None if weight is None else weight.contiguous() for weight in weights)
    g_q, g_k, g_v = (g if g is None or g.stride(2) == 1 else g.contiguous() for g in grads)
    block_heads, block_half, blocks = blocks_of(size, n_all)
    programs = n_tokens
    if needs_weights:
        programs = min(n_tokens, -(-ROTARY_WARPS_A_PROCESSOR * processors(cos) // blocks))
    shape = (programs, n_heads + n_kv_heads, size if needs_weights else 0)
    partials = torch.empty(shape, dtype=torch.float32, device=cos.device)
    if n_tokens:
        with on_device(cos):
            rotary_bwd_kernel[(programs, blocks)](
                qkv, cos.contiguous(), sin.contiguous(), q_weight, k_weight,
                g_q, g_k, g_v,
                d_qkv, partials if needs_weights else None,
                n_tokens, n_heads, n_kv_heads, 0 if qkv is None else qkv.stride(0),
                *_strides(g_q), *_strides(g_k), *_strides(g_v),
                eps,
                HAS_NORM=q_weight is not None,
                NEEDS_WEIGHTS=needs_weights,
                HAS_Q=g_q is not None,
                HAS_K=g_k is not None,
                HAS_V=g_v is not None,
                HALF=size // 2,
                BLOCK_HEADS=block_heads,
                BLOCK_HALF=block_half,
                num_warps=1,
            )  # fmt: skip
    d_q_weight, d_k_weight = (
        partials[:, heads].sum((0, 1)).to(dtype) for heads in (slice(n_heads), slice(n_heads, None))
    )
    return d_qkv, d_q_weight, d_k_weight


def _strides(tensor: Tensor | None) -> tuple[int, int]:
    """The steps to the next token or place and to the next head of [T, heads, K]."""
    return (0, 0) if tensor is None else (tensor.stride(0), tensor.stride(1))


def blocks_of(size: int, n_heads: int) -> tuple[int, int, int]:
    """Return how many heads and pairs of columns a program takes, and the programs a token."""
    block_half = triton.next_power_of_2(size // 2)
    block_heads = max(1, ROTARY_PAIRS // block_half)
    if interpreting():
        block_heads = triton.next_power_of_2(n_heads)
    return block_heads, block_half, triton.cdiv(n_heads, block_heads)
