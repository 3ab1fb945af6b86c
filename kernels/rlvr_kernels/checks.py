"""Argument checks shared by the public functions: every error names tensor, expected and given."""

import math

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INTS = (torch.int64, torch.int32)
BOOL = (torch.bool,)


def check_dtype(name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        given = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(f"{name}: expected dtype {names}; got {given}")


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], why: str) -> None:
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(
            f"{name}: expected shape {list(expected)} ({why}); got {list(tensor.shape)}"
        )


def check_expandable(name: str, tensor: Tensor, shape: tuple[int, ...], why: str) -> None:
    """Same number of dimensions, each equal to `shape`'s or 1."""
    fits = tensor.dim() == len(shape) and all(
        given in (1, wanted) for given, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"{name}: expected a shape that expands to {list(shape)} ({why}); "
            f"got {list(tensor.shape)}"
        )


def check_device(name: str, tensor: Tensor, device: torch.device, like: str) -> None:
    if tensor.device != device:
        raise ValueError(f"{name}: expected on {device}, where {like} is; got {tensor.device}")


def check_tensor(
    name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...],
    shape: tuple[int, ...], why: str, device: torch.device, like: str,
) -> None:  # fmt: skip
    """Dtype, shape and device together."""
    check_dtype(name, tensor, dtypes)
    check_shape(name, tensor, shape, why)
    check_device(name, tensor, device, like)


def check_positive(name: str, value: float | Tensor) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected a finite number above 0; got {value}")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}; got {value!r}")


def check_ids_in_range(ids: Tensor, valid: Tensor, n_vocab: int) -> None:
    """Raise IndexError when a valid id lies outside [0, n_vocab). Reads values: syncs on CUDA."""
    wrong = valid & ((ids < 0) | (ids >= n_vocab))
    if bool(wrong.any()):
        where = int(wrong.reshape(-1).nonzero()[0])
        raise IndexError(
            f"ids: expected ids in [0, {n_vocab}); got {int(ids.reshape(-1)[where])} "
            f"at flat index {where}"
        )
