"""`azr.modular` beside gmpy2, pow, galois and NumPy: one thread, CPU time, mixed moduli."""

import numba
import numpy as np
import pytest

from azr import modular
from bench.peers import absent, optional

ROWS = 65_536


def problems(bits: int, rows: int = ROWS) -> modular.Problems:
    """Rows whose moduli are 500 primes of exactly this many bits; x is uniform."""
    rng = np.random.default_rng(bits)
    primes = modular.sample(500, 2**bits - 1, min_p=2 ** (bits - 1), seed=bits).p
    p = rng.choice(primes, rows)
    x = (1 + rng.integers(0, p - 1)).astype(p.dtype)
    y = modular.invert(x, p)
    assert isinstance(y, np.ndarray)  # no status beside it
    return modular.Problems(p, x, y)


def galois_peer(x: np.ndarray, bits: int):
    """galois inverts modulo one prime per array: its best case, the largest prime of the size."""
    if bits > 31:
        return absent("falls back to Python objects beyond 31 bits")
    p = max(n for n in range(2**bits - 200, 2**bits) if modular.is_prime(n))

    def build(galois):
        values = galois.GF(p)(x % p)
        np.reciprocal(values)  # compiles
        return lambda: np.reciprocal(values)

    return optional("galois", build)


INVERT_BARS = {
    14: (60, 100, 70, 100),
    22: (60, 100, 70, 100),
    31: (20, 30, 70, 100),
    50: (20, 25, 70, 100),
    61: (7, 10, 70, 100),
}


@pytest.mark.parametrize("bits", INVERT_BARS)
def bench_invert(compare, bits):
    p, x, _ = problems(bits)
    pairs = list(zip(x.tolist(), p.tolist(), strict=True))

    def gmpy2_loop(gmpy2):
        invert = gmpy2.invert
        return lambda: [invert(a, b) for a, b in pairs]

    result = compare.with_options(items=ROWS, unit="pair", clock="thread", rounds=9, warmup=2)(
        f"invert {bits} bits",
        lambda: modular.invert(x, p),
        gmpy2=optional("gmpy2", gmpy2_loop),
        pow=lambda: [pow(a, -1, b) for a, b in pairs],
        galois_one_modulus=galois_peer(x, bits),
    )
    must, reach, pow_must, pow_reach = INVERT_BARS[bits]
    result.bar("gmpy2", must=must, reach=reach)
    result.bar("pow", must=pow_must, reach=pow_reach)
    if bits == 31:
        result.bar("galois_one_modulus", must=10, reach=15)


@numba.njit
def xor(a, b, c, out):
    for i in range(a.size):
        out[i] = a[i] ^ b[i] ^ c[i]


@pytest.mark.parametrize("rows", [2**18, 2**22])
def bench_verify(compare, rows):
    """2**22 rows come from memory, which bounds the xor kernel; 2**18 rows stay in the cache."""
    p, x, y = problems(31, rows)
    wide_p, wide_x, wide_y = (column.astype(np.int64) for column in (p, x, y))
    out = np.empty_like(p)
    result = compare.with_options(items=rows, unit="row", clock="thread", rounds=21)(
        f"verify {rows} rows of 31 bits",
        lambda: modular.verify_y(p, x, y),
        numpy=lambda: (wide_x * wide_y) % wide_p == 1,
        xor_of_three_arrays=lambda: xor(p, x, y, out),
    )
    result.bar("numpy", must=3.5, reach=4.5)
    if rows == 2**22:
        result.bar("xor_of_three_arrays", must=1 / 2, reach=1 / 1.5)


@pytest.mark.parametrize("bits", [31, 61])
def bench_is_prime(compare, bits):
    p = problems(bits).p
    numbers = p.tolist()

    def gmpy2_loop(gmpy2):
        is_prime = gmpy2.is_prime
        return lambda: [is_prime(n) for n in numbers]

    result = compare.with_options(items=ROWS, unit="prime", clock="thread", rounds=9, warmup=2)(
        f"is_prime, primes of {bits} bits",
        lambda: modular.is_prime(p),
        gmpy2=optional("gmpy2", gmpy2_loop),
    )
    if bits == 31:
        result.bar("gmpy2", must=25, reach=40)


@pytest.mark.parametrize("bits", [10, 16, 22, 31, 61])
def bench_sample(compare, bits):
    max_p = 2**bits
    rounds = 21 if bits <= 22 else 5
    drawn = modular.sample(ROWS, max_p, seed=1)

    def draw_then_invert():
        p, x = np.empty_like(drawn.p), np.empty_like(drawn.x)
        modular._draw(p, x, max_p, 2, 1, 0, False, "uniform", 1)
        return p, x, modular.invert(drawn.x, drawn.p)

    result = compare.with_options(items=ROWS, unit="problem", clock="thread", rounds=rounds)(
        f"sample, primes up to 2**{bits}",
        lambda: modular.sample(ROWS, max_p, seed=1),
        draw_and_invert_alone=draw_then_invert,
    )
    if bits <= 16:
        result.bar("draw_and_invert_alone", must=1 / 1.25)
