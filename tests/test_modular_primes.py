"""`modular.is_prime` and `modular.primes_upto` against sieves, gmpy2 and published traps."""

import numpy as np
import pytest

from azr import modular
from azr.modular import kernels as kernels


def plain_sieve(limit):
    """All primes <= limit by Eratosthenes in NumPy, nothing of the product in it."""
    is_prime = np.ones(limit + 1, dtype=bool)
    is_prime[:2] = False
    for d in range(2, int(limit**0.5) + 1):
        if is_prime[d]:
            is_prime[d * d :: d] = False
    return is_prime


def test_every_number_below_two_million():
    expected = plain_sieve(2_000_000)
    numbers = np.arange(expected.size)
    assert (modular.is_prime(numbers.astype(np.int32)) == expected).all()
    assert (modular.primes_upto(2_000_000) == np.flatnonzero(expected)).all()
    # The test for 64-bit words on the same numbers, without the trial division before it.
    left = numbers[3::2].copy()
    kept = left[: kernels.strong_test_64(numbers, left, left.size, kernels.BASES_64)]
    assert (kept == np.flatnonzero(expected)[1:]).all()


@pytest.mark.soak
def test_every_number_below_two_to_the_31():
    for low in range(0, 2**31, 2**24):
        primes = np.zeros(2**24, dtype=bool)
        primes[_primes_between(low, low + 2**24) - low] = True
        numbers = np.arange(low, low + 2**24)
        assert (modular.is_prime(numbers) == primes).all(), low


def _primes_between(low, high):
    marks = np.ones(high - low, dtype=bool)
    for d in np.flatnonzero(plain_sieve(int(high**0.5) + 1)).tolist():
        marks[max(d * d, -(-low // d) * d) - low :: d] = False
    if low == 0:
        marks[:2] = False
    return low + np.flatnonzero(marks)


@pytest.mark.parametrize(("limit", "count"), [(10**6, 78498), (10**7, 664579), (2**24, 1077871)])
def test_the_number_of_primes_is_the_published_one(limit, count):
    assert modular.primes_upto(limit).size == count


@pytest.mark.soak
def test_the_number_of_primes_below_two_to_the_31():
    primes = modular.primes_upto(2**31 - 1)
    assert primes.size == 105_097_565 and primes.dtype == np.int32 and primes[-1] == 2**31 - 1


def test_every_small_limit_of_the_sieve():
    expected = plain_sieve(3000)
    for limit in range(-2, 3000):
        primes = modular.primes_upto(limit)
        assert primes.dtype == np.int32
        assert primes.tolist() == np.flatnonzero(expected[: max(limit + 1, 0)]).tolist()


def test_segments_of_the_sieve_meet():
    expected = np.flatnonzero(plain_sieve(2**20 + 10))
    for limit in (2**19, 2**19 + 1, 2**19 + 2, 2**19 + 3, 2**20 - 1, 2**20 + 3, 2**20 + 10):
        assert (modular.primes_upto(limit) == expected[expected <= limit]).all()


@pytest.mark.parametrize("bits", [*range(11, 64, 4), 31, 32, 33, 61, 62])
def test_random_numbers_and_primes_against_gmpy2(bits):
    gmpy2 = pytest.importorskip("gmpy2")
    rng = np.random.default_rng(bits)
    n = rng.integers(2 ** (bits - 1), 2**bits, 1500)
    primes = np.array([int(gmpy2.next_prime(m)) for m in n[:200].tolist()])
    n = np.concatenate([n, n | 1, primes[primes < 2**bits]])
    expected = [gmpy2.is_prime(m) for m in n.tolist()]
    assert modular.is_prime(n).tolist() == expected
    assert [kernels.is_prime_word(np.uint64(m)) for m in n.tolist()] == expected


# Composites that pass for two of the bases 2, 7, 61 each, and the least strong pseudoprimes to
# the first k prime bases.
PASS_2_7 = [2284453, 3539101, 5489641, 15188557, 19328653, 36307981]
PASS_2_61 = [916327, 2205967, 2387797, 9006401, 9863461, 20261251]
PASS_7_61 = [79381, 178709, 721801, 764941, 954271, 1590751]
PSEUDOPRIMES = [
    2047, 3277, 4033, 4681, 8321, 1373653, 25326001, 3215031751, 2152302898747, 3474749660383,
    341550071728321, 3825123056546413051, 4759123141, 4295098369, 3057601, 1122004669633,
]  # fmt: skip
CARMICHAEL = [561, 1105, 1729, 2465, 2821, 6601, 8911, 10585, 15841, 29341, 41041, 46657, 52633,
              62745, 63973, 75361, 101101, 1590231231043178376951698401]  # fmt: skip


def test_pseudoprimes_and_carmichael_numbers_are_composite():
    numbers = PASS_2_7 + PASS_2_61 + PASS_7_61 + PSEUDOPRIMES + CARMICHAEL[:-1]
    for n in numbers:
        assert not modular.is_prime(n), n
        assert not kernels.is_prime_word(np.uint64(n)), n
    assert not modular.is_prime(numbers).any()
    left = np.arange(len(numbers))
    array = np.array(numbers)
    assert kernels.strong_test_64(array, left, left.size, kernels.BASES_64) == 0


def test_families_of_hard_composites():
    p = modular.primes_upto(70_000).astype(np.int64)
    k = np.arange(1, 100_000)
    chernick = (6 * k + 1, 12 * k + 1, 18 * k + 1)
    is_carmichael = np.logical_and.reduce([modular.is_prime(f) for f in chernick])
    for composites in (
        p * p,
        p * (2 * p - 1),
        p[:-1] * p[1:],
        np.prod([f[is_carmichael] for f in chernick], axis=0),
    ):
        assert composites.size > 500 and composites.min() > 1
        assert not modular.is_prime(composites).any()


def test_the_bases_are_the_published_ones():
    """The sets are proved as they are; a set with a base less has known failures or no proof."""
    assert kernels.BASES_32.tolist() == [2, 7, 61] and kernels.LIMIT_32 == 4759123141
    assert kernels.BASES_64.tolist() == [2, 325, 9375, 28178, 450775, 9780504, 1795265022]


def test_edges():
    numbers = [-(2**62), -7, -1, 0, 1, 2, 3, 4, 1369, 1373, 2**31 - 1, 2**31, 2**32 - 5, 2**32 + 15]
    expected = [False] * 5 + [True, True, False, False, True, True, False, True, True]
    assert modular.is_prime(numbers).tolist() == expected
    big = [2**61 - 1, 2**62 - 57, 2**62 - 59, 2**63 - 25, 2**63 - 1]
    assert modular.is_prime(big).tolist() == [True, True, False, True, False]
    assert modular.is_prime(7) and modular.is_prime(np.int8(7)) and not modular.is_prime(9)
    assert modular.is_prime([]).shape == (0,) and modular.is_prime([7]).dtype == bool
    assert modular.is_prime(np.array([[2, 4], [5, 6]])).tolist() == [[True, False], [True, False]]
    for wrong in (7.0, True, "7", [7.0], np.array([7.0])):
        with pytest.raises(TypeError):
            modular.is_prime(wrong)
        with pytest.raises(TypeError):
            modular.primes_upto(wrong)
    with pytest.raises(ValueError, match="fit 64 bits"):
        modular.is_prime(2**63)
    with pytest.raises(ValueError, match="limit"):
        modular.primes_upto(modular.MAX_SIEVE + 1)


@pytest.mark.parametrize("size", [*range(1, 5), 63, 64, 65, 127, 128, 129])
def test_lockstep_tails(size):
    primes = modular.primes_upto(10_000)[-size:]
    assert modular.is_prime(primes).all()
    assert not modular.is_prime(primes * 5003).any()


def test_lockstep_twins_agree(monkeypatch):
    numbers = np.array([2047, 3277, 8191, 9409, 10403, 65537, 131071, 1373653])
    expected = [False, False, True, False, False, True, True, False]
    for test, bases in (
        (kernels.strong_test_32, kernels.BASES_32),
        (kernels.strong_test_64, kernels.BASES_64),
    ):
        left = np.arange(numbers.size)
        with np.errstate(over="ignore"):
            count = test.py_func(numbers, left, numbers.size, bases)
        assert np.isin(np.arange(numbers.size), left[:count]).tolist() == expected
