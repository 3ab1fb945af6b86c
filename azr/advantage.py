"""Task-relative REINFORCE++: rewards whitened inside each (role, task type) cell."""

from dataclasses import dataclass
from typing import Literal

import torch
from rlvr_kernels import group_normalize, group_statistics
from torch import Tensor

MIN_STD = 1e-6
"""Below this a cell counts as constant: what is left is rounding noise, not a signal."""


@dataclass(frozen=True, slots=True)
class CellStatistics:
    """Reward statistics of C cells, each [C] fp32."""

    mean: Tensor
    std: Tensor
    is_flat: Tensor
    """bool: fewer than two samples or a deviation below MIN_STD; all advantages are 0."""


def task_relative_advantages(
    rewards: Tensor,
    cells: Tensor,
    n_cells: int,
    *,
    lengths: Tensor,
    weighting: Literal["sequence", "token"] = "sequence",
) -> tuple[Tensor, CellStatistics]:
    """Returns (advantages [N] fp32, statistics of the cells).

    Eq. 8, arXiv:2505.03335: A = (r - mean) / std with the statistics of the sample's own cell,
    unbiased variance, 1e-8 added to it: deviations below 1e-4, which no rewards of a family have
    but for rounding, fade out (see `group_normalize`). `weighting="token"` counts a sample once per
    response token (`lengths` [N]), as the official code does: long responses then dominate the
    statistics. Raises ValueError for an empty response, which would have no place among the tokens.
    """
    if bool((lengths < 1).any()):
        raise ValueError(f"lengths must be at least 1, got {int(lengths.min())}")
    rewards = rewards.to(torch.float32)
    # Whitening over tokens is whitening over samples repeated by their lengths: one function.
    repeats = lengths if weighting == "token" else torch.ones_like(lengths)
    values, groups = (t.repeat_interleave(repeats) for t in (rewards, cells))
    mask = torch.ones_like(values, dtype=torch.bool)
    whitened = group_normalize(values, mask, groups, n_cells, min_std=MIN_STD)
    statistics = group_statistics(values, mask, groups, n_cells)
    first = repeats.cumsum(0) - repeats
    is_flat = (statistics.count < 2) | ~(statistics.std >= MIN_STD)
    return whitened[first], CellStatistics(statistics.mean, statistics.std, is_flat)
