"""The statistics of an evaluation, against enumeration, published figures and simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from azr.accuracy import (
    change,
    mcnemar,
    pass_at_k,
    sampled_difference,
    wilson,
    wilson_clustered,
)


@pytest.mark.parametrize("n", range(1, 9))
def test_pass_at_k_is_the_share_of_draws_with_a_correct_sample(n):
    for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
        draws = list(itertools.combinations([i < correct for i in range(n)], k))
        assert pass_at_k(n, correct, k) == pytest.approx(
            sum(map(any, draws)) / len(draws), abs=1e-12
        )


@given(st.integers(1, 2000), st.data())
def test_pass_at_k_is_stable_where_binomials_are_huge(n, data):
    correct = data.draw(st.integers(0, n))
    k = data.draw(st.integers(1, n))
    exact = 1 - math.comb(n - correct, k) / math.comb(n, k)
    assert pass_at_k(n, correct, k) == pytest.approx(exact, rel=1e-9, abs=1e-12)


def test_pass_at_k_refuses_what_has_no_meaning():
    for n, correct, k in ((4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)):
        with pytest.raises(ValueError, match="pass@k needs"):
            pass_at_k(n, correct, k)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
     (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)  # fmt: skip
def test_wilson_gives_published_intervals(successes, n, low, high):
    interval = wilson(successes / n, n)
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


@given(st.integers(1, 5000), st.data())
def test_wilson_holds_the_values_that_the_score_test_does_not_reject(n, data):
    value = data.draw(st.integers(0, n)) / n
    interval = wilson(value, n)
    assert 0 <= interval.low <= value <= interval.high <= 1
    for p, inward in ((interval.low, 1e-6), (interval.high, -1e-6)):
        if 0 < p < 1:
            z = abs(value - p) / math.sqrt(p * (1 - p) / n)
            assert z == pytest.approx(1.959964, abs=1e-5)
            inner = p + inward * abs(value - p)
            assert abs(value - inner) <= 1.96 * math.sqrt(inner * (1 - inner) / n) + 1e-12


def test_samples_of_one_task_count_as_one_trial_where_they_are_all_alike():
    alike = [8, 0, 8, 8] * 10
    assert wilson_clustered(alike, 8) == wilson(0.75, 40)
    spread = [4] * 40
    assert wilson_clustered(spread, 8) == wilson(0.5, 320)
    between = wilson_clustered([1, 3] * 20, 4)
    assert wilson(0.5, 160).high < between.high + 1e-12 < wilson(0.5, 40).high
    assert wilson_clustered([0] * 12, 8) == wilson(0.0, 12)
    assert wilson_clustered([2], 4).value == 0.5


def test_clustered_intervals_cover_the_mean_of_the_population():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(600):
        rates = rng.beta(0.6, 0.9, size=60)  # tasks drawn from a population of mean 0.4
        interval = wilson_clustered(rng.binomial(8, rates).tolist(), 8)
        covered += interval.low <= 0.4 <= interval.high
    assert 0.92 <= covered / 600 <= 0.98


def test_mcnemar_is_the_exact_binomial_test():
    for gained, lost in itertools.product(range(9), range(9)):
        n = gained + lost
        outcomes = [sum(bits) for bits in itertools.product((0, 1), repeat=n)]
        extreme = sum(abs(2 * s - n) >= abs(gained - lost) for s in outcomes)
        assert mcnemar(gained, lost) == pytest.approx(extreme / 2**n)
    assert mcnemar(3000, 0) == 0.0 or mcnemar(3000, 0) < 1e-300


def pairs(both, gained, lost, neither):
    cells = [(True, True)] * both + [(False, True)] * gained
    cells += [(True, False)] * lost + [(False, False)] * neither
    return [b for b, _ in cells], [a for _, a in cells]


def test_a_change_counts_what_was_gained_and_lost():
    result = change(*pairs(36, 12, 2, 0))
    assert (result.gained, result.lost) == (12, 2)
    assert result.difference.value == pytest.approx(0.2)
    assert result.p_value == mcnemar(12, 2)
    same = change(*pairs(5, 0, 0, 5))
    assert same.difference.value == 0 and same.p_value == 1
    assert same.difference.low < 0 < same.difference.high


def test_a_change_has_the_published_interval():
    # Newcombe 1998 (Statistics in Medicine 17, 2635-2650), method 10.
    difference = change(*pairs(36, 12, 2, 0)).difference
    assert (difference.low, difference.high) == pytest.approx((0.0569, 0.3404), abs=5e-5)


@given(st.tuples(*[st.integers(0, 40)] * 4).filter(any))
def test_a_change_turned_round_is_its_mirror_image(cells):
    before, after = pairs(*cells)
    forth, back = change(before, after), change(after, before)
    assert back.difference.value == pytest.approx(-forth.difference.value)
    assert back.difference.low == pytest.approx(-forth.difference.high)
    assert -1 - 1e-9 <= forth.difference.low <= forth.difference.value <= forth.difference.high
    assert forth.difference.high <= 1 + 1e-9


@pytest.mark.parametrize(
    "cells", [(0.5, 0.2, 0.1, 0.2), (0.05, 0.85, 0.02, 0.08), (0.1, 0.1, 0.1, 0.7)]
)
def test_paired_intervals_cover_the_true_difference(cells):  # fmt: skip
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(500):
        interval = change(*pairs(*rng.multinomial(60, cells).tolist())).difference
        covered += interval.low <= cells[1] - cells[2] <= interval.high
    assert 0.92 <= covered / 500 <= 0.99


@given(st.integers(1, 9).flatmap(lambda m: st.tuples(
    st.just(m), st.lists(st.tuples(st.integers(0, m), st.integers(0, m)), min_size=1, max_size=30)
)))  # fmt: skip
@example((1, [(0, 0), (1, 1)]))
def test_a_sampled_difference_turned_round_is_its_mirror_image(case):
    samples, rows = case
    before, after = zip(*rows, strict=True)
    forth = sampled_difference(before, after, samples)
    back = sampled_difference(after, before, samples)
    assert forth.value == pytest.approx((sum(after) - sum(before)) / len(rows) / samples)
    assert back.low == pytest.approx(-forth.high)
    assert -1 - 1e-9 <= forth.low <= forth.value + 1e-9 and forth.value <= forth.high + 1e-9
    assert forth.low < forth.high and forth.high <= 1 + 1e-9
    if samples == 1:
        paired = change([b > 0 for b in before], [a > 0 for a in after]).difference
        assert forth.low == pytest.approx(paired.low, abs=1e-9)
        assert forth.high == pytest.approx(paired.high, abs=1e-9)


@pytest.mark.parametrize("gain", [0.0, 0.1, 0.3])
def test_sampled_differences_cover_that_of_the_population(gain):
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(500):
        rates = rng.beta(0.7, 1.5, size=50)
        before, after = rng.binomial(8, rates), rng.binomial(8, rates + gain * (1 - rates))
        interval = sampled_difference(before.tolist(), after.tolist(), 8)
        covered += interval.low <= gain * (1 - 0.7 / 2.2) <= interval.high
    assert 0.92 <= covered / 500 <= 0.99
