"""SwiGLU of merged gate and up projections: silu(gate) * up, one launch each way."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import resolve
from .checks import FLOATS, check_dtype


def swiglu(gate_up: Tensor, *, backend: str = "auto") -> Tensor:
    """Return silu(first half) * second half of the last dimension, [..., F] in gate_up's dtype.

    gate_up  [..., 2F] float32, bfloat16 or float16; rows may lie apart, each contiguous
    backend  "auto", "torch" or "triton": see `rlvr_kernels.backend`

    Computed in float32 and rounded once. Differs from transformers: there silu(gate) is rounded
    before it is multiplied. Saves gate_up alone. Deterministic.
    Raises TypeError for a dtype, ValueError for a shape.
    """
    check_dtype("gate_up", gate_up, FLOATS)
    if gate_up.dim() < 1 or gate_up.shape[-1] == 0 or gate_up.shape[-1] % 2:
        raise ValueError(
            f"gate_up: expected shape [..., 2F] with F >= 1; got {list(gate_up.shape)}"
        )
    return swiglu_op(gate_up, resolve(backend, gate_up.device))


@torch.library.custom_op("rlvr_kernels::swiglu", mutates_args=())
def swiglu_op(gate_up: Tensor, backend: str) -> Tensor:
    """silu(gate) * up, contiguous."""
    if backend == "triton":
        from . import swiglu_triton

        return swiglu_triton.forward(gate_up)
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate.float()).mul_(up).to(gate_up.dtype).contiguous()


@swiglu_op.register_fake
def _(gate_up, backend):
    return gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))


@torch.library.custom_op("rlvr_kernels::swiglu_backward", mutates_args=())
def swiglu_backward(gate_up: Tensor, grad: Tensor, backend: str) -> Tensor:
    """The gradient of gate_up, contiguous."""
    if backend == "triton":
        from . import swiglu_triton

        return swiglu_triton.backward(gate_up, grad)
    gate, up = (half.float() for half in gate_up.chunk(2, -1))
    g = grad.float()
    d_gate_up = gate_up.new_empty(gate_up.shape)
    d_gate, d_up = d_gate_up.chunk(2, -1)
    d_gate.copy_(torch.ops.aten.silu_backward(g * up, gate))
    d_up.copy_(F.silu(gate).mul_(g))
    return d_gate_up


@swiglu_backward.register_fake
def _(gate_up, grad, backend):
    return gate_up.new_empty(gate_up.shape)


def _save(ctx, inputs, output) -> None:
    gate_up, ctx.backend = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(gate_up)


def _gradient(ctx, grad):
    if grad is None:
        return None, None
    (gate_up,) = ctx.saved_tensors
    return swiglu_backward(gate_up, grad, ctx.backend), None


swiglu_op.register_autograd(_gradient, setup_context=_save)
