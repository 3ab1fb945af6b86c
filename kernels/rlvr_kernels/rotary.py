"""Queries, keys and values of merged projections, rotated, and written to a KV cache on request.

Each head may be normalised first (Qwen3). One launch forward, one backward and, with head norms,
two short sums.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import resolve
from .checks import FLOATS, check_device, check_dtype, check_positive, check_tensor
from .rows import matrix_of


def rotary_qkv(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    kv_heads: int,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-6,
    keys: Tensor | None = None,
    values: Tensor | None = None,
    places: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (queries [T, H, K], keys [T, G, K], values [T, G, K]), contiguous, in qkv's dtype.

    qkv       [T, (H + 2G) K] float32, bfloat16 or float16: a token's queries, keys and values
              behind one another; rows may lie apart, each contiguous
    cos, sin  [T, K] of qkv's dtype or float32, both halves of the columns, as transformers makes
              them. K is even. No gradient
    heads, kv_heads     H and G
    q_weight, k_weight  [K] of qkv's dtype: RMSNorm of each query and key before it is rotated,
              with `eps`; both or none
    keys, values, places   [S, G, K] of qkv's dtype, each head contiguous, and int64 [T]: the new
              keys and values are written to keys[places] and values[places] too. All or none; then
              nothing is differentiated. A place outside of [0, S) is an error on the CPU; Triton
              leaves it out, since the host does not wait for the device
    backend   "auto", "torch" or "triton": see `rlvr_kernels.backend`

    A query or key x becomes x * cos + rotate_half(x) * sin. Norm and rotation are computed in
    float32 and rounded once, at the end. Differs from transformers: there norm, weight, both
    products and their sum are rounded in turn. Without a norm nothing of qkv is saved.
    Deterministic.
    Raises TypeError for a dtype, ValueError for a shape, layout, device, eps or arguments that
    belong together, RuntimeError where a gradient would be lost to the cache.
    """
    _check(qkv, cos, sin, heads, kv_heads, q_weight, k_weight, eps)
    sizes = heads, kv_heads, float(eps), resolve(backend, qkv.device)
    given = [part is not None for part in (keys, values, places)]
    if not any(given):
        return rotary_qkv_op(qkv, cos, sin, q_weight, k_weight, *sizes)
    if keys is None or values is None or places is None:
        raise ValueError(f"keys, values, places: expected all three or none; got {sum(given)}")
    _check_cache(keys, values, places, qkv, kv_heads, cos.shape[1])
    inputs = (qkv, cos, sin, q_weight, k_weight)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        raise RuntimeError(
            "keys, values: expected no gradient where the cache is written; call under "
            "torch.no_grad(), or without keys, values and places"
        )
    return rotary_qkv_store(*inputs, keys, values, places, *sizes)


def _check(qkv, cos, sin, heads, kv_heads, q_weight, k_weight, eps) -> None:
    check_dtype("qkv", qkv, FLOATS)
    for name, count in (("heads", heads), ("kv_heads", kv_heads)):
        if count < 1:
            raise ValueError(f"{name}: expected at least 1; got {count}")
    if qkv.dim() != 2:
        raise ValueError(f"qkv: expected shape [T, (H + 2G) K]; got {list(qkv.shape)}")
    size = qkv.shape[1] // (heads + 2 * kv_heads)
    if size == 0 or size % 2 or qkv.shape[1] % (heads + 2 * kv_heads):
        raise ValueError(
            f"qkv: expected {heads + 2 * kv_heads} heads of an even number of columns; "
            f"got {qkv.shape[1]} columns"
        )
    shape, why = (len(qkv), size), "a row per token, a column per column of a head"
    tables = (torch.float32,) if qkv.dtype == torch.float32 else (qkv.dtype, torch.float32)
    for name, table in (("cos", cos), ("sin", sin)):
        check_tensor(name, table, tables, shape, why, qkv.device, "qkv")
    check_dtype("sin", sin, (cos.dtype,))
    if (q_weight is None) != (k_weight is None):
        raise ValueError("q_weight, k_weight: expected both or none; got one")
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight is not None:
            why = "one per column of a head"
            check_tensor(name, weight, (qkv.dtype,), (size,), why, qkv.device, "qkv")
    check_positive("eps", eps)


def _check_cache(keys, values, places, qkv, kv_heads, size) -> None:
    check_tensor("places", places, (torch.int64,), (len(qkv),), "one per token", qkv.device, "qkv")
    for name, cache in (("keys", keys), ("values", values)):
        check_dtype(name, cache, (qkv.dtype,))
        if cache.dim() != 3 or cache.shape[1:] != (kv_heads, size):
            raise ValueError(
                f"{name}: expected shape [S, {kv_heads}, {size}]; got {list(cache.shape)}"
            )
        check_device(name, cache, qkv.device, "qkv")
        if cache.stride(2) != 1:
            raise ValueError(
                f"{name}: expected contiguous heads, a last stride of 1; got {cache.stride(2)}"
            )
    if keys.shape != values.shape:
        raise ValueError(
            f"values: expected shape {list(keys.shape)} (that of keys); got {list(values.shape)}"
        )


@torch.library.custom_op("rlvr_kernels::rotary_qkv", mutates_args=())
def rotary_qkv_op(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    heads: int,
    kv_heads: int,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(queries, keys, values), contiguous."""
    if backend == "triton":
        from . import rotary_triton

        weights = q_weight, k_weight
        return rotary_triton.forward(qkv, cos, sin, weights, (heads, kv_heads), eps, None)
    return _forward(qkv, cos, sin, q_weight, k_weight, heads, kv_heads, eps)


@rotary_qkv_op.register_fake
def _(qkv, cos, sin, q_weight, k_weight, heads, kv_heads, eps, backend):
    return _empty_like_results(qkv, cos, heads, kv_heads)


@torch.library.custom_op("rlvr_kernels::rotary_qkv_store", mutates_args=("keys", "values"))
def rotary_qkv_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    heads: int,
    kv_heads: int,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """`rotary_qkv_op` that writes the keys and values to the cache too; not differentiable."""
    if backend == "triton":
        from . import rotary_triton

        weights, cache = (q_weight, k_weight), (keys, values, places)
        return rotary_triton.forward(qkv, cos, sin, weights, (heads, kv_heads), eps, cache)
    found = _forward(qkv, cos, sin, q_weight, k_weight, heads, kv_heads, eps)
    keys.index_copy_(0, places, found[1])
    values.index_copy_(0, places, found[2])
    return found


@rotary_qkv_store.register_fake
def _(qkv, cos, sin, q_weight, k_weight, keys, values, places, heads, kv_heads, eps, backend):
    return _empty_like_results(qkv, cos, heads, kv_heads)


@torch.library.custom_op("rlvr_kernels::rotary_qkv_backward", mutates_args=())
def rotary_qkv_backward(
    qkv: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    g_q: Tensor | None,
    g_k: Tensor | None,
    g_v: Tensor | None,
    heads: int,
    kv_heads: int,
    eps: float,
    needs_weights: bool,
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of qkv, contiguous, and of both weights, each [0] where they are not needed.

    qkv   None without weights, which alone need it
    dtype that of qkv
    """
    if backend == "triton":
        from . import rotary_triton

        weights, grads = (q_weight, k_weight), (g_q, g_k, g_v)
        return rotary_triton.backward(
            qkv, cos, sin, weights, grads, (heads, kv_heads), eps, needs_weights, dtype
        )
    n_tokens, size = cos.shape
    d_qkv = cos.new_zeros(n_tokens, heads + 2 * kv_heads, size, dtype=dtype)
    back_sin = -sin.roll(size // 2, 1)  # what turns the rotation back, also of unequal halves
    d_weights: list[Tensor] = []
    for first, count, weight, grad in (
        (0, heads, q_weight, g_q),
        (heads, kv_heads, k_weight, g_k),
    ):
        part = slice(first, first + count)
        d_weight = cos.new_zeros(size if needs_weights else 0, dtype=dtype)
        if grad is not None:
            dx = _rotated(grad.float(), cos, back_sin)
            if qkv is not None and weight is not None:
                x = matrix_of(qkv).view(d_qkv.shape)[:, part].float()
                rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
                hat, pull = x * rstd, dx * weight
                if needs_weights:
                    d_weight = (dx * hat).sum((0, 1)).to(dtype)
                dx = (pull - hat * (pull * hat).mean(-1, keepdim=True)) * rstd
            d_qkv[:, part] = dx
        d_weights.append(d_weight)
    if g_v is not None:
        d_qkv[:, heads + kv_heads :] = g_v
    return d_qkv.flatten(1), d_weights[0], d_weights[1]


@rotary_qkv_backward.register_fake
def _(
    qkv, cos, sin, q_weight, k_weight, g_q, g_k, g_v, heads, kv_heads, eps, needs_weights, dtype,
    backend,
):  # fmt: skip
    n_tokens, size = cos.shape
    d_weights = [cos.new_empty(size if needs_weights else 0, dtype=dtype) for _ in range(2)]
    return cos.new_empty(n_tokens, (heads + 2 * kv_heads) * size, dtype=dtype), *d_weights


def _empty_like_results(qkv, cos, heads, kv_heads):
    counts = heads, kv_heads, kv_heads
    return tuple(qkv.new_empty(len(qkv), count, cos.shape[1]) for count in counts)


def _forward(qkv, cos, sin, q_weight, k_weight, heads, kv_heads, eps):
    rows = matrix_of(qkv).view(len(qkv), heads + 2 * kv_heads, cos.shape[1])
    parts = rows.split([heads, kv_heads, kv_heads], 1)
    q, k = (
        _rotated(_normed(x.float(), weight, eps), cos, sin).to(qkv.dtype)
        for x, weight in zip(parts[:2], (q_weight, k_weight), strict=True)
    )
    return q, k, parts[2].clone(memory_format=torch.contiguous_format)


def _normed(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if weight is None:
        return x
    return F.rms_norm(x, weight.shape, weight.float(), eps)


def _rotated(x_TNK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """x * cos + rotate_half(x) * sin in float32, a tensor of its own."""
    half = x_TNK.shape[-1] // 2
    cos_T1K, sin_T1K = cos_TK[:, None].float(), sin_TK[:, None].float()
    out = x_TNK * cos_T1K
    out[..., :half].addcmul_(x_TNK[..., half:], sin_T1K[..., :half], value=-1)
    out[..., half:].addcmul_(x_TNK[..., :half], sin_T1K[..., half:])
    return out


def _save(ctx, inputs, output) -> None:
    qkv, cos, sin, q_weight, k_weight, *ctx.sizes = inputs
    ctx.set_materialize_grads(False)
    ctx.dtype = qkv.dtype
    # A rotation is undone without what it rotated.
    ctx.save_for_backward(None if q_weight is None else qkv, cos, sin, q_weight, k_weight)


def _gradient(ctx, *grads):
    nothing = (None,) * 4
    if all(g is None for g in grads):
        return (None,) * 5 + nothing
    *sizes, backend = ctx.sizes
    needs = ctx.needs_input_grad[3:5]
    d_qkv, d_q_weight, d_k_weight = rotary_qkv_backward(
        *ctx.saved_tensors, *grads, *sizes, any(needs), ctx.dtype, backend
    )
    return (
        d_qkv, None, None, d_q_weight if needs[0] else None, d_k_weight if needs[1] else None,
        *nothing,
    )  # fmt: skip


rotary_qkv_op.register_autograd(_gradient, setup_context=_save)
