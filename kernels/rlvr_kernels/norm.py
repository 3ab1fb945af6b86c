"""RMSNorm, alone or of a sum with the residual: one launch forward, one backward and a short sum.

Nothing is saved but the row that is normalised and the weight: the backward pass reads the row
anyway, and takes its root mean square again from what it has in registers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import resolve
from .checks import FLOATS, check_dtype, check_positive, check_tensor
from .rows import matrix_of


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, backend: str = "auto") -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * weight over the last dimension, in x's shape and dtype.

    x        [..., D] float32, bfloat16 or float16; rows may lie apart, each contiguous
    weight   [D] of the same dtype
    eps      above 0: what keeps a row of zeros finite
    backend  "auto", "torch" or "triton": see `rlvr_kernels.backend`. Triton holds a row in one
             block, of at most 8192 columns

    Computed in float32 and rounded once, at the end. Differs from transformers: there the
    normalised row is rounded to x's dtype before the weight multiplies it.
    The gradient of the weight adds parts in a fixed order, in float32. Deterministic.
    Raises TypeError for a dtype, ValueError for a shape, device, eps or too long a row.
    """
    _check(x, weight, eps)
    return rms_norm_op(x, weight, float(eps), resolve(backend, x.device))


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Return (x + residual, `rms_norm` of that sum), both in x's shape and dtype, in one pass.

    residual  of x's shape and dtype; the other arguments and errors are those of `rms_norm`

    The sum is rounded to x's dtype first and normalised as it is stored, like two calls.
    """
    _check(x, weight, eps)
    check_tensor("residual", residual, (x.dtype,), tuple(x.shape), "that of x", x.device, "x")
    return add_rms_norm_op(x, residual, weight, float(eps), resolve(backend, x.device))


def _check(x: Tensor, weight: Tensor, eps: float) -> None:
    check_dtype("x", x, FLOATS)
    if x.dim() < 1 or x.shape[-1] == 0:
        raise ValueError(f"x: expected shape [..., D] with D >= 1; got {list(x.shape)}")
    shape, why = (x.shape[-1],), "one per column of x"
    check_tensor("weight", weight, (x.dtype,), shape, why, x.device, "x")
    check_positive("eps", eps)


@torch.library.custom_op("rlvr_kernels::rms_norm", mutates_args=())
def rms_norm_op(x: Tensor, weight: Tensor, eps: float, backend: str) -> Tensor:
    """The normalised rows, contiguous."""
    if backend == "triton":
        from . import norm_triton

        return norm_triton.forward(x, None, weight, eps)[1]
    return _normed(x, weight, eps)


@rms_norm_op.register_fake
def _(x, weight, eps, backend):
    return x.new_empty(x.shape)


@torch.library.custom_op("rlvr_kernels::add_rms_norm", mutates_args=())
def add_rms_norm_op(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor]:
    """(sum, normalised sum), contiguous."""
    if backend == "triton":
        from . import norm_triton

        return norm_triton.forward(x, residual, weight, eps)
    total = (x + residual).contiguous()
    return total, _normed(total, weight, eps)


@add_rms_norm_op.register_fake
def _(x, residual, weight, eps, backend):
    return x.new_empty(x.shape), x.new_empty(x.shape)


@torch.library.custom_op("rlvr_kernels::rms_norm_backward", mutates_args=())
def rms_norm_backward(
    x: Tensor,
    weight: Tensor,
    g_normed: Tensor,
    g_sum: Tensor | None,
    eps: float,
    needs_weight: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of the normalised rows x, g_sum added before it is rounded, and of the weight.

    The second is [0] where it is not needed.
    """
    if backend == "triton":
        from . import norm_triton

        return norm_triton.backward(x, weight, g_normed, g_sum, eps, needs_weight)
    x_TD, g_TD = matrix_of(x).float(), matrix_of(g_normed).float()
    rstd_T1 = torch.rsqrt(x_TD.square().mean(1, keepdim=True).add_(eps))
    hat_TD, pull_TD = x_TD * rstd_T1, g_TD * weight
    dx_TD = pull_TD.addcmul_(hat_TD, (pull_TD * hat_TD).mean(1, keepdim=True), value=-1)
    dx_TD *= rstd_T1
    if g_sum is not None:
        dx_TD += matrix_of(g_sum)
    d_weight = hat_TD.mul_(g_TD).sum(0) if needs_weight else hat_TD.new_empty(0)
    return dx_TD.to(x.dtype).view(x.shape), d_weight.to(weight.dtype)


@rms_norm_backward.register_fake
def _(x, weight, g_normed, g_sum, eps, needs_weight, backend):
    return x.new_empty(x.shape), weight.new_empty(weight.shape if needs_weight else 0)


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype).contiguous()


def _save(ctx, inputs, output) -> None:
    x, weight, ctx.eps, ctx.backend = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight)


def _save_sum(ctx, inputs, output) -> None:
    _, _, weight, ctx.eps, ctx.backend = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], weight)


def _gradient(ctx, g_normed):
    dx, d_weight = _backward(ctx, g_normed, None, ctx.needs_input_grad[1])
    return dx, d_weight, None, None


def _gradient_of_sum(ctx, g_sum, g_normed):
    dx, d_weight = _backward(ctx, g_normed, g_sum, ctx.needs_input_grad[2])
    return dx, dx, d_weight, None, None


def _backward(ctx, g_normed, g_sum, needs_weight):
    if g_normed is None:
        return g_sum, None
    x, weight = ctx.saved_tensors
    dx, d_weight = rms_norm_backward(x, weight, g_normed, g_sum, ctx.eps, needs_weight, ctx.backend)
    return dx, d_weight if needs_weight else None


rms_norm_op.register_autograd(_gradient, setup_context=_save)
add_rms_norm_op.register_autograd(_gradient_of_sum, setup_context=_save_sum)
