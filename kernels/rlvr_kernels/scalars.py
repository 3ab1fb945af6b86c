"""Numbers of any kind on their way into the kernels: a temperature, a clip range, a coefficient.

A number in a compiled graph is part of it, and each other value compiles another graph. There a
number becomes a 0-dim tensor, which is data; an op takes all of its numbers as one tensor.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import check_positive

Number = float | Tensor


def _as_data(value: Number) -> Tensor:
    # A product, since that alone makes torch take a float for data, from its second value on.
    return torch.ones((), dtype=torch.float64, device="cpu") * value


def as_number(value: Number) -> Number:
    """`value` as a float; in a compiled graph as a 0-dim tensor, float64 on the CPU."""
    return _as_data(value) if torch.compiler.is_compiling() else float(value)


def check_positive_numbers(**numbers: Number | None) -> None:
    """Raise ValueError where one is no finite number above 0; a compiled graph cannot tell."""
    if not torch.compiler.is_compiling():
        for name, number in numbers.items():
            if number is not None:
                check_positive(name, number)


def packed(numbers: Sequence[Number | None]) -> Tensor:
    """Numbers for an op, [n] float64; NaN for None."""
    filled = [math.nan if number is None else number for number in numbers]
    if torch.compiler.is_compiling():
        return torch.stack([_as_data(number) for number in filled])
    return torch.tensor(filled, dtype=torch.float64, device="cpu")


def unpacked(numbers: Tensor) -> list[Any]:
    """What `packed` was given, read inside of the op."""
    return [None if math.isnan(number) else number for number in numbers.tolist()]
