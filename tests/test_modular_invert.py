"""`modular.invert` on every path against pow, gmpy2 and brute force."""

import itertools
from math import gcd, isqrt

import numpy as np
import pytest

from azr import modular
from azr.modular import kernels as kernels
from azr.modular import simd as simd

PATHS = {
    "small": (simd.invert_small, np.int32, 2**22),
    "medium32": (simd.invert_medium, np.int32, 2**31),
    "medium": (simd.invert_medium, np.int64, 2**50),
    "large": (simd.invert_large, np.int64, 2**62),
}
PHI, SILVER = 1.618033988749895, 2.414213562373095


def run(path, x, p):
    """out of one compiled path, as a list of Python ints; it starts as rubbish."""
    kernel, dtype, _ = PATHS[path]
    out = np.full(len(x), -7, dtype=dtype)
    kernel(np.array(x, dtype=dtype), np.array(p, dtype=dtype), out)
    return out.tolist()


def oracle(x, p):
    return [pow(a, -1, b) if gcd(a, b) == 1 else 0 for a, b in zip(x, p, strict=True)]


def all_pairs(p_max):
    pairs = [(x, p) for p in range(2, p_max) for x in range(p)]
    return [x for x, _ in pairs], [p for _, p in pairs]


@pytest.fixture(scope="module")
def small_pairs():
    x, p = all_pairs(1024)
    return x, p, oracle(x, p)


@pytest.mark.parametrize("path", PATHS)
def test_every_pair_below_1024_on_every_path(path, small_pairs):
    x, p, expected = small_pairs
    assert run(path, x, p) == expected


@pytest.mark.soak
@pytest.mark.parametrize("path", PATHS)
def test_every_pair_below_4096_on_every_path(path):
    x, p = all_pairs(4096)
    assert run(path, x, p) == oracle(x, p)


def random_pairs(bits, count, rng):
    """Coprime pairs whose modulus has exactly this many bits; prime or not."""
    xs, ps = [], []
    while len(xs) < count:
        p = rng.integers(2 ** (bits - 1), 2**bits, 2 * count)
        x = rng.integers(1, p)
        keep = np.gcd(x, p) == 1
        xs += x[keep].tolist()
        ps += p[keep].tolist()
    return xs[:count], ps[:count]


def check_bit_size(bits, count):
    gmpy2 = pytest.importorskip("gmpy2")
    x, p = random_pairs(bits, count, np.random.default_rng(bits))
    y = modular.invert(np.array(x), np.array(p))
    assert y.dtype == (np.int32 if bits <= 31 else np.int64)
    assert y.tolist() == [pow(a, -1, b) for a, b in zip(x, p, strict=True)]
    assert y.tolist() == [gmpy2.invert(a, b) for a, b in zip(x, p, strict=True)]
    for path, (_, _, limit) in PATHS.items():
        if 2**bits <= limit:
            assert run(path, x, p) == y.tolist(), path


@pytest.mark.parametrize("bits", range(2, 63))
def test_random_pairs_of_every_bit_size(bits):
    check_bit_size(bits, 20_000)


@pytest.mark.soak
@pytest.mark.parametrize("bits", range(2, 63))
def test_a_million_random_pairs_of_every_bit_size(bits):
    check_bit_size(bits, 1_000_000)


def primes_beside(limit, count=3):
    """The primes just below and just above limit."""
    near = np.arange(limit - 400, limit + 400)
    near = near[modular.is_prime(near)]
    return near[near < limit][-count:].tolist() + near[near > limit][:count].tolist()


def adversarial_x(p):
    """Residues that make Euclid slow, its first quotient odd or its numbers large."""
    centres = {0, p // 2, p // 3, round(p / PHI), round(p / PHI**2), round(p / SILVER), isqrt(p)}
    centres |= {round(p ** (1 / 3)), p - 1, 2 * p // 3, 3 * p // 4}
    centres |= {2**k for k in range(p.bit_length())} | {p - 2**k for k in range(p.bit_length())}
    return sorted({c + d for c in centres for d in range(-30, 31) if 0 <= c + d < p})


LIMITS = [2**22, 2**24, 2**31, 2**32, 2**50, 2**52, 2**53, 2**61, 2**62]


@pytest.mark.parametrize("path", PATHS)
def test_adversarial_residues_beside_every_limit(path):
    _, _, own_limit = PATHS[path]
    moduli = [p for limit in LIMITS for p in primes_beside(limit) if p < own_limit]
    moduli += [limit - d for limit in LIMITS for d in (1, 2, 4) if limit <= own_limit]
    moduli += [2**k for k in range(1, 62, 5) if 2**k < own_limit]
    x, p = [], []
    for modulus in moduli:
        values = adversarial_x(modulus)
        x += values
        p += [modulus] * len(values)
    assert run(path, x, p) == oracle(x, p)


@pytest.mark.parametrize("bits", [18, 22, 27, 31, 40, 50, 55, 61, 62])
def test_a_large_common_factor_ends_every_path(bits):
    rng = np.random.default_rng(bits)
    x, p = [], []
    for factor_bits in range(1, bits):
        factor = int(rng.integers(2 ** (factor_bits - 1), 2**factor_bits)) | 1 << factor_bits - 1
        for cofactor in ((2**bits - 1) // factor, (2**bits - 1) // factor // 2 + 1):
            if cofactor > 1:
                p += [factor * cofactor] * 2
                x += [factor * (cofactor - 1), factor * (cofactor // 2)]
    expected = oracle(x, p)
    assert 0 in expected
    for path, (_, _, limit) in PATHS.items():
        if max(p) < limit:
            assert run(path, x, p) == expected, path


def test_dispatch_follows_the_proved_limits():
    # 1/(4u) bounds |a| in the proof; for float64 a further bit keeps 3p exact.
    assert simd.SMALL_LIMIT == 2**22 and simd.MEDIUM_LIMIT == 2**50
    for p, kernel in [
        (2, simd.invert_small),
        (2**22 - 1, simd.invert_small),
        (2**22, simd.invert_medium),
        (2**50 - 1, simd.invert_medium),
        (2**50, simd.invert_large),
        (modular.MAX_P, simd.invert_large),
    ]:
        assert modular._inversion_kernel(p) is kernel
    assert simd.BLOCK % simd.LANES_F32 == simd.BLOCK % simd.LANES_F64 == 0


@pytest.mark.parametrize("bits", [20, 31, 50, 62])
def test_every_length_of_tail(bits):
    x, p = random_pairs(bits, 2 * simd.BLOCK + 2, np.random.default_rng(1))
    expected = oracle(x, p)
    around = range(simd.BLOCK - 2, simd.BLOCK + 3)
    for size in [*range(2 * simd.LANES_F32 + 2), *around, 2 * simd.BLOCK - 1, 2 * simd.BLOCK + 1]:
        dtype = np.int32 if bits < 32 else np.int64
        a, b = np.array(x[:size], dtype=dtype), np.array(p[:size], dtype=dtype)
        guarded = np.full(size + 2, 99, dtype=dtype)
        modular._inversion_kernel(2**bits - 1)(a, b, guarded[1 : size + 1])
        assert guarded[0] == guarded[-1] == 99
        assert guarded[1 : size + 1].tolist() == expected[:size]


@pytest.mark.parametrize("bits", [20, 31, 50, 62])
def test_the_twins_in_plain_python_compute_the_same(bits, monkeypatch):
    x, p = random_pairs(bits, simd.BLOCK + 5, np.random.default_rng(2))
    x, p = x + [0, 6, 1], p + [9, 9, 2]
    monkeypatch.setattr(simd, "invert_medium", simd.invert_medium.py_func)
    for path, (kernel, dtype, limit) in PATHS.items():
        if 2**bits > limit:
            continue
        out = np.full(len(x), -7, dtype=dtype)
        with np.errstate(all="ignore"):
            kernel.py_func(np.array(x, dtype=dtype), np.array(p, dtype=dtype), out)
        assert out.tolist() == run(path, x, p) == oracle(x, p)


@pytest.mark.parametrize("element", [np.float32, np.float64])
def test_the_compiled_loops_step_like_their_twins(element):
    rng = np.random.default_rng(3)
    limit, lanes = (2**22, simd.LANES_F32) if element == np.float32 else (2**50, simd.LANES_F64)
    for _ in range(50):
        a = rng.integers(limit // 2, limit, simd.BLOCK).astype(element)
        b = np.floor(a * rng.random(simd.BLOCK)).astype(element)
        ours = np.stack([a, b, a * 0, a * 0])
        theirs = ours.copy()
        compiled_euclid(ours, lanes)
        simd.euclid(theirs, lanes)
        assert (ours == theirs).all()


@simd.jit
def compiled_euclid(state, first):
    simd.euclid(state, first)


# --- arrays of every kind -----------------------------------------------------------------------

X, P = random_pairs(20, 1000, np.random.default_rng(4))
Y = oracle(X, P)


def test_odd_layouts_are_read_and_left_alone():
    x, p = np.array(X), np.array(P)
    wide = np.stack([x, p, x], axis=1)
    assert modular.invert(wide[:, 0], wide[:, 1]).tolist() == Y
    assert modular.invert(x[::-1], p[::-1]).tolist() == Y[::-1]
    x.flags.writeable = p.flags.writeable = False
    assert modular.invert(x, p).tolist() == Y
    for dtype in (np.uint32, np.uint64, ">i4", ">i8", np.int32):
        assert modular.invert(x.astype(dtype), p.astype(dtype)).tolist() == Y
    square = modular.invert(x.reshape(50, 20), p.reshape(50, 20))
    assert square.shape == (50, 20) and square.ravel().tolist() == Y
    assert x.tolist() == X and p.tolist() == P


def test_out_may_be_an_argument():
    for take_x in (True, False):
        x, p = np.array(X, dtype=np.int32), np.array(P, dtype=np.int32)
        target = x if take_x else p
        assert modular.invert(x, p, out=target) is target
        assert target.tolist() == Y
    shifted = np.array([*X, 0])
    modular.invert(shifted[:-1], np.array(P), out=shifted[1:])
    assert shifted[1:].tolist() == Y
    every_other = np.zeros(2000, dtype=np.int64)[::2]
    modular.invert(X, P, out=every_other)
    assert every_other.tolist() == Y


@pytest.mark.parametrize("out", [np.zeros(3, np.int32), np.zeros(2), np.zeros(2, np.uint32)])
def test_an_out_that_does_not_fit_is_refused(out):
    with pytest.raises(ValueError, match="out must be int32"):
        modular.invert([1, 2], [5, 7], out=out)


def test_no_rows_one_number_and_one_modulus():
    for empty in ([], np.zeros(0, np.int32), np.zeros((0, 3), np.int64)):
        assert modular.invert(empty, empty).shape == np.shape(empty)
    assert modular.invert(3, 7) == 5 and modular.invert(3, 7).shape == ()
    assert modular.invert([1, 2, 3], 7).tolist() == [1, 4, 5]
    assert modular.invert(10, 7) == 5
    assert modular.invert([2**40], [7]).tolist() == [pow(2**40, -1, 7)]


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads):
    assert modular.invert(X, P, threads=threads).tolist() == Y


@pytest.mark.parametrize(
    ("x", "p", "error", "message"),
    [
        ([1, 6], [7, 9], modular.NotInvertible, r"x\[1\] = 6 .* p\[1\] = 9"),
        ([1, 0], [7, 9], modular.NotInvertible, r"x\[1\] = 0 .* p\[1\] = 9"),
        ([1, 14], [7, 7], modular.NotInvertible, r"x\[1\] = 14 .* p\[1\] = 7"),
        ([1, -1], [7, 7], ValueError, r"x\[1\] = -1"),
        ([1, 1], [7, 1], ValueError, r"p\[1\] = 1"),
        ([1, 1], [7, -7], ValueError, r"p\[1\] = -7"),
        ([1, 1], [7, 2**62], ValueError, rf"p\[1\] = {2**62}"),
        ([1, 1], [7, 2**64], ValueError, rf"p\[1\] = {2**64}"),
        ([1, 2], [7, 7, 7], ValueError, "shapes differ"),
    ],
)
def test_rows_without_an_answer_are_named(x, p, error, message):
    with pytest.raises(error, match=message):
        modular.invert(x, p)


def test_status_instead_of_an_exception():
    y, status = modular.invert([3, 6, -1, 1, 4, 1], [7, 9, 7, 1, 7, 2**62], check="status")
    assert y.tolist() == [5, 0, 0, 0, 2, 0]
    bad = modular.BAD_PROBLEM
    assert status.tolist() == [modular.OK, bad, bad, bad, modular.OK, bad]
    assert status.dtype == np.uint8


@pytest.mark.parametrize(
    "wrong",
    [1.0, True, "3", [1.0], [True], ["3"], [None], np.array([1.0]), np.array([True]),
     np.array(["3"]), np.array([3], dtype=object), np.bool_(True), np.float64(3), None, [[1]]],
)  # fmt: skip
def test_what_is_no_integer_is_a_type_error(wrong):
    for arguments in ((wrong, 7), (3, wrong)):
        with pytest.raises(TypeError):
            modular.invert(*arguments)


def test_lists_never_pass_through_floats():
    big = 2**61 - 1
    x = [2**60 + 1, 3]
    assert modular.invert(x, [big, big]).tolist() == [pow(a, -1, big) for a in x]
    assert modular.invert([1, 2**63], [7, 7]).tolist() == [1, pow(2**63, -1, 7)]
    huge = np.array([1, 2**63], dtype=np.uint64)
    assert modular.invert(huge, [7, 7]).tolist() == [1, pow(2**63, -1, 7)]


def test_nothing_is_compiled_with_fastmath():
    """Reassociation may keep every value that a test looks at and still void the proof."""
    compiled = [f for m in (simd, kernels) for f in vars(m).values() if hasattr(f, "py_func")]
    assert len(compiled) > 15
    assert not any(f.targetoptions.get("fastmath") for f in compiled)
    assert not any(f.targetoptions.get("parallel") for f in compiled)


def inverse(x: int, p: int) -> int:
    """Python's own, 0 where there is none or the row is out of range."""
    if x < 0 or not 2 <= p <= modular.MAX_P or gcd(x, p) != 1:
        return 0
    return pow(x, -1, p)


def test_any_integer_is_inverted_or_has_a_status():
    numbers = [-(2**70), -(2**63), -(2**31), -1, 0, 1, 2, 3, 2**31, 2**61 - 1, 2**62 - 1, 2**62]
    numbers += [2**63 - 1, 2**63, 2**64 - 1, 2**64, 3**50, 10**30 + 1]
    rows = list(itertools.product(numbers, numbers))
    x, p = (list(column) for column in zip(*rows, strict=True))
    y, status = modular.invert(x, p, check="status")
    assert y.tolist() == [inverse(*row) for row in rows]
    assert status.tolist() == [modular.OK if n else modular.BAD_PROBLEM for n in y.tolist()]
    for x, p in rows:
        given = np.array([x], dtype=np.uint64) if 0 <= x < 2**64 else [x]
        if expected := inverse(x, p):
            assert modular.invert(given, p).tolist() == [expected] == [modular.invert(x, p)]
        else:
            with pytest.raises(ValueError, match=rf"x\[0\] = {x}\b.* p\[0\] = {p}$"):
                modular.invert(given, p)
