"""Statistics per group and advantages whitened inside each group.

AZR whitens rewards inside each (role, task type) cell with the unbiased variance: group_normalize
with n_groups = 6. GRPO is the same with one group per prompt.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .checks import BOOL, INTS, check_dtype, check_tensor
from .scalars import as_number

# Bounds the [groups, elements] table of the CUDA path at 64 MiB of float32.
_TABLE_ELEMENTS = 1 << 24


class GroupStatistics(NamedTuple):
    """Mean, standard deviation and element count of each group, [n_groups] float32 each."""

    mean: Tensor
    std: Tensor
    count: Tensor


def group_statistics(
    values: Tensor,
    mask: Tensor | None,
    group_ids: Tensor,
    n_groups: int,
    *,
    unbiased: bool = True,
) -> GroupStatistics:
    """Return mean, standard deviation and count of `values` in each group, over masked-in elements.

    values     any shape, floating point; computed in float32, or float64 where given
    mask       same shape, bool, or None for all; what it leaves out may be NaN
    group_ids  same shape, int64 or int32, in [0, n_groups)
    unbiased   divide the squares by count - 1 (AZR, verl) or by count (OpenRLHF)

    Two passes (mean, then squared deviations), never E[x^2] - E[x]^2, which cancels for rewards
    with a large common offset. Deterministic: no atomics. The deviation is 0 in a group with fewer
    than two elements. Raises TypeError, ValueError, and on the CPU IndexError for a group id out of
    range; on CUDA, and compiled, such an element counts in no group.
    """
    _check(values, mask, group_ids, n_groups)
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    flat = values.detach().reshape(-1).to(dtype)
    keep = torch.ones_like(flat, dtype=torch.bool) if mask is None else mask.reshape(-1)
    ids = group_ids.reshape(-1).long()
    flat = torch.where(keep, flat, 0)

    count = _group_sum(keep.to(dtype), keep, ids, n_groups)
    mean = _group_sum(flat, keep, ids, n_groups) / count.clamp(min=1)
    deviation = flat - _of_group(mean, ids)
    # The mean's own rounding error e adds count * e^2 to the squares; the second sum removes it.
    drift = _group_sum(deviation, keep, ids, n_groups)
    squares = _group_sum(deviation.square(), keep, ids, n_groups) - drift.square() / count.clamp(1)
    divisor = (count - 1 if unbiased else count).clamp(min=1)
    std = (squares.clamp(min=0) / divisor).sqrt()
    return GroupStatistics(mean, torch.where(count < 2, 0, std), count)


def group_normalize(
    values: Tensor,
    mask: Tensor | None,
    group_ids: Tensor,
    n_groups: int,
    *,
    eps: float = 1e-8,
    unbiased: bool = True,
    center: bool = True,
    scale: bool = True,
    min_std: float = 1e-6,
) -> Tensor:
    """Return (value - mean) * rsqrt(variance + eps) inside each group, in the shape of `values`.

    `eps` stands under the root, as in the whitening of verl's REINFORCE++: a deviation d is scaled
    to d / sqrt(d^2 + eps), so that gaps well below sqrt(eps), 1e-4 by default, fade out instead of
    being blown up to 1. Rewards of 1 and 1.00001 become -0.05 and 0.05; GRPO's usual
    (value - mean) / (std + 1e-6) makes them -0.62 and 0.62, which eps=0 comes near (-0.71, 0.71).

    Arguments as `group_statistics`. `center` and `scale` switch the two halves off. The result is
    exactly 0 where the mask is 0, and in a group whose deviation is below `min_std` or that has
    fewer than two elements: such a group carries no signal, and rsqrt would amplify its rounding.
    No gradient flows through it.
    """
    statistics = group_statistics(values, mask, group_ids, n_groups, unbiased=unbiased)
    return normalize_with(
        values, mask, group_ids, statistics, eps=eps, center=center, scale=scale, min_std=min_std
    )


def normalize_with(
    values: Tensor,
    mask: Tensor | None,
    group_ids: Tensor,
    statistics: GroupStatistics,
    *,
    eps: float = 1e-8,
    center: bool = True,
    scale: bool = True,
    min_std: float = 1e-6,
) -> Tensor:
    """Whiten `values` with statistics already at hand (of a larger batch, or of all ranks)."""
    mean, std, count = statistics
    ids = group_ids.long()
    values = values.detach().to(mean.dtype)
    if mask is not None:
        values = torch.where(mask, values, 0)
    if center:
        values = values - _of_group(mean, ids)
    if scale:
        values = values * _of_group(torch.rsqrt(std.square() + as_number(eps)), ids)
    has_signal = _of_group(((std >= as_number(min_std)) & (count >= 2)).to(mean.dtype), ids) != 0
    values = torch.where(has_signal, values, 0)
    return values if mask is None else torch.where(mask, values, 0)


def _of_group(statistic: Tensor, ids: Tensor) -> Tensor:
    """statistic[ids], NaN where an id is out of range (CUDA; the CPU has raised before)."""
    n_groups = statistic.numel()
    in_range = (ids >= 0) & (ids < n_groups)
    return torch.where(in_range, statistic[ids.clamp(0, n_groups - 1)], float("nan"))


def _group_sum(flat: Tensor, keep: Tensor, ids: Tensor, n_groups: int) -> Tensor:
    """Sum of kept elements per group, [n_groups]."""
    if _is_read(flat):
        kept = torch.where(keep, flat, 0)
        return flat.new_zeros(n_groups).index_add_(0, ids.clamp(0, n_groups - 1), kept)
    # index_add_ on CUDA adds with atomics in an order that varies; a table of groups by elements
    # sums in a fixed one.
    step = max(1, _TABLE_ELEMENTS // max(1, flat.numel()))
    sums = []
    for first in range(0, n_groups, step):
        rows = torch.arange(first, min(first + step, n_groups), device=flat.device)[:, None]
        sums.append(torch.where((ids == rows) & keep, flat, 0).sum(1))
    return torch.cat(sums)


def _is_read(values: Tensor) -> bool:
    """Whether ids out of range are looked for: on the CPU, and not in a compiled graph."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def _check(values: Tensor, mask: Tensor | None, group_ids: Tensor, n_groups: int) -> None:
    check_dtype("values", values, (torch.float32, torch.float64, torch.bfloat16, torch.float16))
    shape, why, device = tuple(values.shape), "one per value", values.device
    check_tensor("group_ids", group_ids, INTS, shape, why, device, "values")
    if n_groups < 1:
        raise ValueError(f"n_groups: expected at least 1; got {n_groups}")
    if mask is not None:
        check_tensor("mask", mask, BOOL, shape, why, device, "values")
    if _is_read(values) and group_ids.numel():
        kept = group_ids if mask is None else group_ids[mask]
        if kept.numel() and not 0 <= int(kept.min()) <= int(kept.max()) < n_groups:
            raise IndexError(
                f"group_ids: expected ids in [0, {n_groups}); "
                f"got ids from {int(kept.min())} to {int(kept.max())}"
            )
