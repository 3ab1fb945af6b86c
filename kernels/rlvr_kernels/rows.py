"""Rows of a [..., V] tensor addressed in place, whatever its leading strides."""

from typing import NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """`tensor` as rows: row r starts at (r // inner) * outer_stride + r % inner * inner_stride.

    Two levels reach the slice logits[:, :-1] of a [B, L + 1, V] batch without a copy.
    """

    tensor: Tensor
    count: int
    inner: int
    outer_stride: int
    inner_stride: int


def rows_of(tensor: Tensor) -> Rows:
    """Return the rows of `tensor` [..., V], copied only where two levels fall short.

    That is where the last dimension is strided, or where three or more leading dimensions do not
    merge: then the copy costs one read and one write of the tensor.
    """
    n_vocab = tensor.shape[-1]
    if tensor.stride(-1) != 1 and n_vocab > 1:
        tensor = tensor.contiguous()
    merged: list[tuple[int, int]] = []
    for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True):
        if size == 1:
            continue  # its stride is arbitrary
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    if len(merged) > 2:
        return rows_of(tensor.contiguous())
    count = tensor.numel() // max(1, n_vocab)
    (_, outer_stride), (inner, inner_stride) = [(1, 0)] * (2 - len(merged)) + merged
    return Rows(tensor, count, inner, outer_stride, inner_stride)


def matrix_of(tensor: Tensor) -> Tensor:
    """Return `tensor` [..., D] as [T, D] with contiguous rows, copied only where no view has them.

    Unlike `rows_of` for operators whose results are new: one stride addresses their rows.
    """
    matrix = tensor.reshape(-1, tensor.shape[-1])
    return matrix if matrix.stride(-1) == 1 else matrix.contiguous()
