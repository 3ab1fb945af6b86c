"""Whitening inside groups, against Python's own statistics module."""

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rlvr_kernels import group_normalize, group_statistics

REWARDS = st.lists(
    st.tuples(st.floats(-3, 3, width=32), st.integers(0, 3), st.booleans()),  # value, group, kept
    min_size=1,
    max_size=40,
)


def oracle(values, keep, groups, unbiased, eps=1e-8):
    """Whitened values by `statistics`, in Python floats."""
    out = [0.0] * len(values)
    for group in set(groups):
        members = [i for i, g in enumerate(groups) if g == group and keep[i]]
        if len(members) < 2:
            continue
        inside = [values[i] for i in members]
        mean = statistics.fmean(inside)
        var = statistics.variance(inside) if unbiased else statistics.pvariance(inside)
        if var**0.5 < 1e-6:
            continue
        for i in members:
            out[i] = (values[i] - mean) / (var + eps) ** 0.5
    return out


@settings(max_examples=60, deadline=None)
@given(rows=REWARDS, unbiased=st.booleans())
def test_equals_the_definition(rows, unbiased):
    values, groups, keep = map(list, zip(*rows, strict=True))
    got = group_normalize(
        torch.tensor(values, dtype=torch.float64),
        torch.tensor(keep),
        torch.tensor(groups),
        4,
        unbiased=unbiased,
    )
    wanted = torch.tensor(oracle(values, keep, groups, unbiased), dtype=torch.float64)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def test_a_common_offset_does_not_cancel():
    """E[x^2] - E[x]^2 in float32 loses every digit of a deviation of 1e-2 at an offset of 1e3."""
    rewards = 1000 + 0.0625 * torch.arange(8.0)
    ids = torch.zeros(8, dtype=torch.int64)
    mean, std, count = group_statistics(rewards, None, ids, 1)
    assert std.item() == pytest.approx(statistics.stdev(rewards.tolist()), rel=1e-5)
    assert (mean.item(), count.item()) == (1000.21875, 8)


def test_groups_without_signal_are_exactly_zero():
    values = torch.tensor([0.3, 0.3, 0.3, 7.0, 1.0, 2.0])
    ids = torch.tensor([0, 0, 0, 1, 2, 2])
    out = group_normalize(values, None, ids, 4)
    assert out[:4].tolist() == [0, 0, 0, 0]
    assert out[4:].tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])


def test_masked_nan_does_not_leak():
    values = torch.tensor([1.0, float("nan"), 3.0])
    mask = torch.tensor([True, False, True])
    out = group_normalize(values, mask, torch.zeros(3, dtype=torch.int64), 1)
    assert out.tolist() == pytest.approx([-(0.5**0.5), 0, 0.5**0.5])


@pytest.mark.parametrize(
    ("center", "scale", "wanted"),
    [
        (True, False, [-1.0, 1.0]),
        (False, True, [2**-0.5, 3 * 2**-0.5]),
        (False, False, [1.0, 3.0]),
    ],
)
def test_switches(center, scale, wanted):
    out = group_normalize(
        torch.tensor([1.0, 3.0]),
        None,
        torch.zeros(2, dtype=torch.int64),
        1,
        center=center,
        scale=scale,
    )
    assert out.tolist() == pytest.approx(wanted)


def test_shape_dtype_and_range_errors_name_the_argument():
    values, ids = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"group_ids: expected shape \[2, 3\].*got \[3\]"):
        group_normalize(values, None, ids[0], 1)
    with pytest.raises(TypeError, match="mask: expected dtype bool; got float32"):
        group_normalize(values, values, ids, 1)
    with pytest.raises(IndexError, match=r"expected ids in \[0, 1\); got ids from 0 to 5"):
        group_normalize(values, None, ids + torch.tensor([0, 5, 0]), 1)
    assert group_normalize(values[:0], None, ids[:0], 1).shape == (0, 3)


@pytest.mark.parametrize(
    ("gap", "eps", "wanted"),
    [(1e-5, 1e-8, 0.0499), (1e-5, 0.0, 0.7071), (1e-4, 1e-8, 0.4082), (1.0, 1e-8, 0.7071)],
)
def test_gaps_below_the_root_of_eps_fade_out(gap, eps, wanted):
    values = torch.tensor([1.0, 1.0 + gap], dtype=torch.float64)
    got = group_normalize(values, None, torch.zeros(2, dtype=torch.int64), 1, eps=eps)
    assert got.tolist() == pytest.approx([-wanted, wanted], abs=1e-3)
