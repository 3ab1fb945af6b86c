"""Matrix products with float32 accumulation, inside torch.autocast too.

Autocast would round the factors, or the product, to its own dtype: in the forward pass where that
runs inside, and in the backward pass where that does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b with float32 accumulation and result, from the values as they are."""
    with torch.autocast(a.device.type, enabled=False):
        if a.dtype == b.dtype != torch.float32 and a.is_cuda:
            return torch.mm(a, b, out_dtype=torch.float32)
        return a.float() @ b.float()


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """inputs [T, H] @ weight.T + bias in the dtype of all three, differentiable."""
    return _Linear.apply(inputs, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(inputs, weight, bias):
        with torch.autocast(inputs.device.type, enabled=False):
            return F.linear(inputs, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, *grads):
        (grad,) = grads
        inputs, weight = ctx.saved_tensors
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad
        with torch.autocast(grad.device.type, enabled=False):
            return (
                grad @ weight if needs_inputs else None,
                grad.T @ inputs if needs_weight else None,
                grad.sum(0) if needs_bias else None,
            )
