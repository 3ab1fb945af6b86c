"""Task-relative advantages against the formulas in float64, cell by cell."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from azr.advantage import MIN_STD, task_relative_advantages

REWARDS = [-1.0, -0.5, 0.0, 1.0, *(k / 8 for k in range(1, 8))]
sample = st.tuples(st.sampled_from(REWARDS), st.integers(0, 5), st.integers(1, 9))
samples = st.lists(sample, min_size=1, max_size=40)
weightings = st.sampled_from(["sequence", "token"])


def whiten(batch, weighting="sequence", n_cells=6):
    rewards, cells, lengths = zip(*batch, strict=True)
    return task_relative_advantages(
        torch.tensor(rewards),
        torch.tensor(cells),
        n_cells,
        lengths=torch.tensor(lengths),
        weighting=weighting,
    )


def formula(batch, weighting):
    """(advantages, {cell: (mean, std, whether it is flat)}) in float64."""
    statistics = {}
    for cell in range(6):
        values = [
            r
            for r, c, length in batch
            if c == cell
            for _ in range(length if weighting == "token" else 1)
        ]
        mean = math.fsum(values) / len(values) if values else 0.0
        square = math.fsum((v - mean) ** 2 for v in values)
        std = math.sqrt(square / (len(values) - 1)) if len(values) > 1 else 0.0
        statistics[cell] = (mean, std, std < MIN_STD)
    advantages = []
    for reward, cell, _ in batch:
        mean, std, is_flat = statistics[cell]
        advantages.append(0.0 if is_flat else (reward - mean) / std)
    return advantages, statistics


@given(samples, weightings)
def test_advantages_equal_the_formula(batch, weighting):
    advantages, cells = whiten(batch, weighting)
    wanted, statistics = formula(batch, weighting)
    assert advantages.dtype == torch.float32 and advantages.shape == (len(batch),)
    assert advantages.tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    for cell, (mean, std, is_flat) in statistics.items():
        assert float(cells.mean[cell]) == pytest.approx(mean, rel=1e-5, abs=1e-6)
        assert float(cells.std[cell]) == pytest.approx(std, rel=1e-5, abs=1e-6)
        assert bool(cells.is_flat[cell]) == is_flat


@given(samples, weightings)
def test_a_flat_cell_is_exactly_zero_and_reported(batch, weighting):
    advantages, cells = whiten(batch, weighting)
    rewards_of = {cell: {r for r, c, _ in batch if c == cell} for cell in range(6)}
    for advantage, (_, cell, _) in zip(advantages.tolist(), batch, strict=True):
        assert bool(cells.is_flat[cell]) == (len(rewards_of[cell]) == 1)
        assert (advantage == 0.0) or len(rewards_of[cell]) > 1


@given(samples, samples, weightings)
def test_a_cell_does_not_depend_on_the_others(batch, others, weighting):
    mine = [(r, 2, n) for r, _, n in batch]
    rest = [(r, c if c != 2 else 3, n) for r, c, n in others]
    alone, _ = whiten(mine, weighting)
    together, _ = whiten(mine + rest, weighting)
    assert together[: len(mine)].tolist() == pytest.approx(alone.tolist(), rel=1e-5, abs=1e-6)


@given(samples)
def test_a_cell_with_signal_has_mean_zero_and_unbiased_variance_one(batch):
    advantages, cells = whiten(batch)
    for cell in range(6):
        values = [a for a, (_, c, _) in zip(advantages.tolist(), batch, strict=True) if c == cell]
        if values and not cells.is_flat[cell]:
            assert math.fsum(values) == pytest.approx(0.0, abs=1e-4)
            square = math.fsum(v * v for v in values) / (len(values) - 1)
            assert square == pytest.approx(1.0, rel=1e-4)


def test_the_two_weightings_differ_where_lengths_do():
    batch = [(1.0, 0, 1), (0.0, 0, 1), (-1.0, 0, 8)]
    by_sequence, _ = whiten(batch)
    by_token, _ = whiten(batch, "token")
    assert by_sequence.tolist() == pytest.approx([1.0, 0.0, -1.0])
    # Mean -0.7 over 10 tokens, variance (1.7^2 + 0.7^2 + 8 * 0.3^2) / 9.
    std = math.sqrt((1.7**2 + 0.7**2 + 8 * 0.3**2) / 9)
    assert by_token.tolist() == pytest.approx([1.7 / std, 0.7 / std, -0.3 / std])


@pytest.mark.parametrize("weighting", ["sequence", "token"])
def test_a_cell_of_one_sample_and_one_of_none(weighting):
    advantages, cells = whiten([(0.875, 4, 7)], weighting)
    assert advantages.tolist() == [0.0]
    assert cells.is_flat.tolist() == [True] * 6
    assert float(cells.mean[4]) == pytest.approx(0.875)


@pytest.mark.parametrize("value", [0.1, 1e4 + 0.1, -0.3])
def test_rounding_noise_of_a_constant_cell_is_no_signal(value):
    advantages, cells = whiten([(value, 1, 3)] * 1000, "token")
    assert not advantages.any() and bool(cells.is_flat[1])


def test_an_empty_response_is_refused():
    with pytest.raises(ValueError, match="lengths must be at least 1, got 0"):
        whiten([(1.0, 0, 2), (0.0, 0, 0)], "token")


def test_a_cell_out_of_range_is_refused():
    with pytest.raises(IndexError, match="expected ids in"):
        whiten([(1.0, 6, 1)])
