"""AdamW of bf16 weights and sums of bf16 gradients, rounded at random: nothing small is lost.

A number that is rounded up or down in proportion to its distance from either neighbour is right in
the mean. bf16 is float32 without its lower 16 bits, so that a uniform number is added to the bits
that go, and they are cut off. That number is a hash of a key and of the element's place: the same
on every device, and in a shard of a tensor what it is in the whole.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .backend import resolve
from .checks import check_tensor
from .sample import row_words, signed

CHUNK, CPU_CHUNK = 2**24, 2**16
"""Elements that the torch path holds in float32 at a time: 64 MiB a temporary on a device, and what
stays in a core's cache on the CPU."""


def adamw_(
    weight: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor,
    *, scale: Tensor, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
    step: int, key: int, grad_low: Tensor | None = None, first: int = 0, backend: str = "auto",
) -> None:  # fmt: skip
    """Update a weight and its two moments in place by AdamW (arXiv:1711.05101), in one launch.

    weight, grad, exp_avg, exp_avg_sq   bfloat16, contiguous, of one shape
    scale      0-dim float32 on the device, which multiplies the gradient: clipping without a wait
    step       1, 2, ...: the number of this update, for the correction of the moments' bias
    key        64 bits, the noise of this update and tensor; of the three numbers stored each has 16
               bits of its own
    grad_low   uint8 of the same shape: `accumulate_`'s further bits of the gradient
    first      where this shard begins in the tensor that `key` is for
    backend    "auto", "torch" or "triton": see `rlvr_kernels.backend`

    Computed in float32 and rounded once. What is not finite stays so or becomes anything: look at
    `square_sum` first. The decay joins the step before both meet the weight: alone, a factor of
    1 - 1e-8 is 1 in float32. The two backends agree up to rounding of the float32 arithmetic.
    Raises TypeError for a dtype, ValueError for a shape, device, layout, step or beta, or where a
    place passes 2^32.
    """
    _check_layout(
        "weight", weight, grad=grad, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq, grad_low=grad_low
    )
    if not isinstance(scale, Tensor):
        raise TypeError(f"scale: expected a tensor, 0-dim float32; got {scale!r}")
    check_tensor("scale", scale, (torch.float32,), (), "a number", weight.device, "weight")
    _check_places(first, weight.numel())
    if step < 1:
        raise ValueError(f"step: expected 1, 2, ...; got {step}")
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= beta < 1:
            raise ValueError(f"{name}: expected a number in [0, 1); got {beta}")
    numbers = [
        1 - beta1, beta2, 1 - beta2, 1 / math.sqrt(1 - beta2**step), eps,
        lr / (1 - beta1**step), lr * weight_decay,
    ]  # fmt: skip
    backend = resolve(backend, weight.device)
    update_(
        weight, grad, grad_low, exp_avg, exp_avg_sq, scale, numbers, signed(key), first, backend
    )


def accumulate_(
    total: Tensor, low: Tensor, grad: Tensor,
    *, key: int, first: int = 0, backend: str = "auto",
) -> None:  # fmt: skip
    """Add a bf16 gradient to a sum of 24 bits in place.

    total   bfloat16, contiguous: the upper 16 bits of a float32
    low     uint8 of the same shape: the 8 bits below them; 0 where the sum is one gradient so far
    grad    bfloat16 of the same shape
    key, first, backend   as in `adamw_`; every addition needs a key of its own

    The sum is formed in float32 and rounded stochastically to the 24 bits: in the mean a gradient
    counts down to 2^-24 of the sum. Infinities and NaN stay what they are.
    Raises as `adamw_` does.
    """
    _check_layout("total", total, grad=grad, low=low)
    _check_places(first, total.numel())
    add_(total, low, grad, signed(key), first, resolve(backend, total.device))


def square_sum(total: Tensor, low: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """Return the sum of squares of a gradient, 0-dim float32: the same bits every time, no wait.

    `total` bfloat16 and `low` uint8 as in `accumulate_`. bf16 bits alone would be too small: they
    are cut off, not rounded.
    """
    _check_layout("total", total, low=low)
    if resolve(backend, total.device) == "triton":
        from . import adamw_triton

        return adamw_triton.square_sum(total, low)
    parts = [_widened(total, low, part).square_().sum() for part in _parts(total)]
    return torch.stack(parts).sum() if parts else total.new_zeros((), dtype=torch.float32)


@torch.library.custom_op(
    "rlvr_kernels::adamw_update_", mutates_args=("weight", "exp_avg", "exp_avg_sq")
)
def update_(
    weight: Tensor, grad: Tensor, grad_low: Tensor | None, exp_avg: Tensor, exp_avg_sq: Tensor,
    scale: Tensor, numbers: list[float], key: int, first: int, backend: str,
) -> None:  # fmt: skip
    """`adamw_`; `numbers` are what the arithmetic below takes, in its order."""
    if backend == "triton":
        from . import adamw_triton

        adamw_triton.update_(
            weight, grad, grad_low, exp_avg, exp_avg_sq, scale, numbers, key, first
        )
        return
    fresh1, beta2, fresh2, correction, eps, rate, decay = numbers
    for part in _parts(weight):
        w_16, m_16, v_16 = (t.view(-1)[part] for t in (weight, exp_avg, exp_avg_sq))
        g = _widened(grad, grad_low, part).mul_(scale)
        m = m_16.float().lerp_(g, fresh1)
        v = v_16.float().mul_(beta2).addcmul_(g, g, value=fresh2)
        w = w_16.float()
        size = v.sqrt().mul_(correction).add_(eps)
        w -= torch.div(m, size, out=size).mul_(rate).add_(w, alpha=decay)
        one, other = (_noise(key, position, first + part.start, w) for position in (0, 1))
        for stored, exact, bits in ((w_16, w, one), (m_16, m, one >> 16), (v_16, v, other)):
            # A view of whole numbers: the sum carries from the mantissa into the exponent.
            exact.view(torch.int32).add_(bits & 0xFFFF).bitwise_and_(-(2**16))
            stored.copy_(exact)


@torch.library.custom_op("rlvr_kernels::accumulate_", mutates_args=("total", "low"))
def add_(total: Tensor, low: Tensor, grad: Tensor, key: int, first: int, backend: str) -> None:
    """`accumulate_`."""
    if backend == "triton":
        from . import adamw_triton

        adamw_triton.add_(total, low, grad, key, first)
        return
    for part in _parts(total):
        exact = _widened(total, low, part).add_(grad.view(-1)[part])
        noise = _noise(key, 0, first + part.start, exact) & 0xFF
        # Added to a NaN that is all ones, noise would make a number of it.
        bits = exact.view(torch.int32).add_(noise.masked_fill_(~exact.isfinite(), 0))
        low.view(-1)[part] = bits >> 8 & 0xFF
        bits.bitwise_and_(-(2**16))
        total.view(-1)[part] = exact


def _parts(tensor: Tensor) -> Iterator[slice]:
    """The chunks of a tensor's elements."""
    size = CPU_CHUNK if tensor.device.type == "cpu" else CHUNK
    for start in range(0, tensor.numel(), size):
        yield slice(start, min(start + size, tensor.numel()))


def _widened(high: Tensor, low: Tensor | None, part: slice) -> Tensor:
    """The float32 of a chunk's 16 upper bits and, where there are any, 8 below them; a copy."""
    wide = high.view(-1)[part].float()
    if low is not None:
        wide.view(torch.int32).bitwise_or_(low.view(-1)[part].to(torch.int32) << 8)
    return wide


def _noise(key: int, position: int, first: int, like: Tensor) -> Tensor:
    """32 hashed bits, int32, for each element of a chunk that begins at `first`."""
    one = torch.full((1,), key, device=like.device)
    words = row_words(one, torch.full_like(one, position))
    bits = torch.arange(first, first + like.numel(), device=like.device).to(torch.int32)
    for word in words:
        # `mix_32` in place: products wrap, and an arithmetic shift needs the mask.
        bits ^= word.to(torch.int32)
        bits ^= bits >> 16 & 0xFFFF
        bits *= 0x7FEB352D
        bits ^= bits >> 15 & 0x1FFFF
        bits *= 0x846CA68B - 2**32
        bits ^= bits >> 16 & 0xFFFF
    return bits


def _check_layout(name: str, tensor: Tensor, **others: Tensor | None) -> None:
    """Raise where not all are contiguous and of one shape: bf16, and uint8 what is lower bits.

    Those may be None.
    """
    shape, why = tuple(tensor.shape), f"that of {name}"
    for other, given in {name: tensor, **others}.items():
        is_low = other in ("low", "grad_low")
        if given is None and is_low:
            continue
        if given is None:
            raise TypeError(f"{other}: expected a tensor; got None")
        dtype = torch.uint8 if is_low else torch.bfloat16
        check_tensor(other, given, (dtype,), shape, why, tensor.device, name)
        if not given.is_contiguous():
            raise ValueError(f"{other}: expected a contiguous tensor; got strides {given.stride()}")


def _check_places(first: int, count: int) -> None:
    if not 0 <= first <= 2**32 - count:
        raise ValueError(
            f"first: expected a place whose tensor of {count} elements ends below 2^32; got {first}"
        )
