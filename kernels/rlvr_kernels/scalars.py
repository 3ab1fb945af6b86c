"""Numbers of any kind on their way into the kernels: a temperature, a clip range, a coefficient.

A number in a compiled graph is part of it, and each other value compiles another graph. There a
number becomes a 0-dim tensor, which is data; an op takes all of its numbers as one tensor.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_positive

Number = float | Tensor


def as_number(value: object) -> Number:
    """`value` as a float; in a compiled graph as a 0-dim tensor, float64 on the CPU."""
    if torch.compiler.is_compiling():
        # A product, since that alone makes torch take a float for data, from its second value on.
        return torch.ones((), dtype=torch.float64, device="cpu") * value
    return float(value)


def as_positive(name: str, value: object) -> Number:
    """`as_number` of a finite number above 0; raises ValueError where it can be read."""
    if not torch.compiler.is_compiling():
        check_positive(name, value)
    return as_number(value)


def packed(numbers: Sequence[Number | None]) -> Tensor:
    """Numbers for an op, [n] float64; NaN for None."""
    filled = [math.nan if number is None else number for number in numbers]
    if torch.compiler.is_compiling():
        return torch.stack([as_number(number) for number in filled])
    return torch.tensor(filled, dtype=torch.float64, device="cpu")


def unpacked(numbers: Tensor) -> list[float | None]:
    """What `packed` was given, read inside of the op."""
    return [None if math.isnan(number) else number for number in numbers.tolist()]
