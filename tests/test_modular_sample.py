"""`modular.sample`: valid, exactly uniform, and a function of seed and index alone."""

import hashlib

import numpy as np
import pytest

from azr import modular
from azr.modular import kernels as kernels

BOUNDS = [2, 3, 13, 2**16, 2**22, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**50, 2**61, modular.MAX_P]


@pytest.mark.parametrize("p_dist", ["uniform", "log"])
@pytest.mark.parametrize("max_p", BOUNDS)
def test_problems_are_valid(max_p, p_dist):
    gmpy2 = pytest.importorskip("gmpy2")
    problems = modular.sample(500, max_p, seed=3, p_dist=p_dist)
    dtype = np.int32 if max_p < 2**31 else np.int64
    assert all(column.dtype == dtype for column in problems)
    for p, x, y in zip(*(column.tolist() for column in problems), strict=True):
        assert 1 <= x < p <= max_p and 1 <= y < p and x * y % p == 1 and gmpy2.is_prime(p)


def chi_square(observed, expected):
    """The statistic as a standard normal deviate (Wilson, Hilferty 1931)."""
    freedom = observed.size - 1
    ratio = ((observed - expected) ** 2 / expected).sum() / freedom
    return (ratio ** (1 / 3) - 1 + 2 / (9 * freedom)) / (2 / (9 * freedom)) ** 0.5


def cells_of(values, universe):
    counts = np.bincount(values, minlength=max(universe) + 1)[np.array(universe)]
    assert counts.sum() == values.size
    return counts


def draw(n, max_p, listed_max_p, monkeypatch, **arguments):
    """sample by the list of primes or, with a low threshold, by testing random numbers."""
    monkeypatch.setattr(modular, "LISTED_MAX_P", listed_max_p)
    return modular.sample(n, max_p, **arguments)


@pytest.mark.parametrize("listed_max_p", [2**24, 0])
@pytest.mark.parametrize(("min_p", "max_p"), [(2, 13), (2, 100), (50, 300), (3, 31)])
def test_p_is_uniform_over_the_primes(min_p, max_p, listed_max_p, monkeypatch):
    p, x, _ = draw(200_000, max_p, listed_max_p, monkeypatch, min_p=min_p, seed=11)
    primes = [q for q in modular.primes_upto(max_p).tolist() if q >= min_p]
    assert abs(chi_square(cells_of(p, primes), p.size / len(primes))) < 4
    largest = x[p == primes[-1]]
    universe = range(1, primes[-1])
    assert abs(chi_square(cells_of(largest, universe), largest.size / len(universe))) < 4


@pytest.mark.parametrize("listed_max_p", [2**24, 0])
def test_log_draws_the_bit_length_first(listed_max_p, monkeypatch):
    p, _, _ = draw(200_000, 1000, listed_max_p, monkeypatch, seed=12, p_dist="log")
    primes = modular.primes_upto(1000)
    bits = np.array([q.bit_length() for q in p.tolist()])
    assert abs(chi_square(cells_of(bits, range(2, 11)), p.size / 9)) < 4
    for length in range(3, 11):
        group = primes[(primes >= 2 ** (length - 1)) & (primes < 2**length)]
        chosen = p[bits == length]
        assert abs(chi_square(cells_of(chosen, group), chosen.size / group.size)) < 4


def test_large_p_and_x_are_uniform_in_bulk():
    for max_p in (2**24, 2**31 - 1, 2**40, 2**61):
        p, x, _ = modular.sample(20_000, max_p, seed=13)
        # By the prime number theorem the share below half the bound is a little over a half.
        log_ratio = np.log(max_p) / np.log(max_p / 2)
        share = (p < max_p / 2).mean()
        assert abs(share - 0.5 * log_ratio) < 0.015
        counts = np.bincount((x / p * 16).astype(int), minlength=16)
        assert abs(chi_square(counts, x.size / 16)) < 4
        low_bits = np.bincount(x % 8, minlength=8)
        assert abs(chi_square(low_bits, x.size / 8)) < 4


def test_bounded_numbers_reject_exactly_the_surplus():
    """2**64 mod bound words of every bound are drawn again; any other choice would be biased."""
    bound = np.uint64(3 << 61)  # 2**64 mod bound = 2**62, a quarter of all words
    surplus = 2**64 % int(bound)
    redrawn = 0
    for word in np.random.default_rng(14).integers(0, 2**64, 4000, dtype=np.uint64):
        number, used = kernels.below(word, bound)
        is_surplus = int(word) * int(bound) % 2**64 < surplus
        assert (int(used) != int(word)) == is_surplus
        assert int(number) == int(used) * int(bound) >> 64
        assert int(used) * int(bound) % 2**64 >= surplus
        redrawn += is_surplus
    assert abs(redrawn / 4000 - surplus / 2**64) < 0.03


def digest(problems):
    return hashlib.sha256(b"".join(c.tobytes() for c in problems)).hexdigest()[:16]


ARGUMENTS = [
    {"max_p": 2**16},
    {"max_p": 2**16, "p_dist": "log"},
    {"max_p": 2**30, "exclude_trivial": True},
    {"max_p": 2**61},
    {"max_p": 2**61, "p_dist": "log", "min_p": 1000},
]
DIGESTS = [
    "76b6728a84edfb80",
    "f73b9bc08268a768",
    "79d01d7d646712f1",
    "9f0c06921469cd60",
    "998d23b4c5424898",
]


@pytest.mark.parametrize(("arguments", "expected"), [*zip(ARGUMENTS, DIGESTS, strict=True)])
def test_a_problem_is_a_function_of_seed_and_index(arguments, expected):
    whole = modular.sample(1000, seed=2**64 - 1, **arguments)
    assert digest(whole) == expected
    for threads in (2, 3):
        assert (
            digest(modular.sample(1000, seed=2**64 - 1, threads=threads, **arguments)) == expected
        )
    for cuts in ([0, 1, 2, 999, 1000], [0, 480, 961, 1000]):
        parts = [
            modular.sample(b - a, seed=2**64 - 1, start=a, **arguments)
            for a, b in zip(cuts, cuts[1:], strict=False)
        ]
        assert digest([np.concatenate(c) for c in zip(*parts, strict=True)]) == expected


def test_seeds_and_questions_differ():
    digests = {digest(modular.sample(100, 2**31 - 1, seed=seed)) for seed in range(50)}
    assert len(digests) == 50
    # Keys on both sides of 2**63 must reach one compiled version, of unsigned words.
    assert {str(signature[0]) for signature in kernels.draw_listed.signatures} <= {"uint64"}
    assert {str(signature[0]) for signature in kernels.draw_tested.signatures} == {"uint64"}
    p, x, _ = modular.sample(1000, 2**61, seed=0)
    assert len({*p.tolist()}) == len({*x.tolist()}) == 1000


def test_trivial_rows_can_be_left_out():
    p, x, y = modular.sample(5000, 13, seed=1, exclude_trivial=True)
    assert p.min() == 5 and ((x > 1) & (x < p - 1)).all()
    assert {*x[p == 13].tolist()} == {*range(2, 12)}
    with pytest.raises(ValueError, match="no prime between 5 and 4"):
        modular.sample(1, 4, seed=0, exclude_trivial=True)


def test_large_moduli_need_no_list(monkeypatch):
    monkeypatch.setattr(modular, "primes_upto", None)
    assert modular.sample(10, 2**24 + 1, seed=0).p.size == 10


def test_a_range_without_primes_is_an_error():
    for low, high in ((24, 28), (2**40 + 16, 2**40 + 14 + 2), (0, 1)):
        with pytest.raises(ValueError, match="no prime|between"):
            modular.sample(1, high, min_p=low, seed=0)
    assert modular.sample(4, 29, min_p=24, seed=0).p.tolist() == [29] * 4


def test_none_and_wrong_arguments():
    assert [c.size for c in modular.sample(0, 100, seed=0)] == [0, 0, 0]
    good = {"n": 1, "max_p": 100, "seed": 0}
    for name, value in [("n", -1), ("max_p", 1), ("max_p", modular.MAX_P + 1), ("seed", -1),
                        ("seed", 2**64), ("start", -1), ("threads", 0), ("min_p", 101),
                        ("p_dist", "normal")]:  # fmt: skip
        with pytest.raises(ValueError, match=name):
            modular.sample(**{**good, name: value})
    for name, value in [("n", 1.0), ("max_p", 100.0), ("seed", True), ("seed", "0")]:
        with pytest.raises(TypeError, match=name):
            modular.sample(**{**good, name: value})
