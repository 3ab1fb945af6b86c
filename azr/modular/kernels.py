"""Compiled loops of `azr.modular`; call that module, which checks every argument first.

These functions trust their arguments: one-dimensional C-contiguous arrays of equal length and of
one dtype (int32 or int64), values in the ranges the docstrings name. Without `jit` each is plain
Python (`f.py_func`), which the tests use as its twin.

Two rules keep the arithmetic exact:

- fastmath stays off; the float kernels rely on IEEE rounding.
- A uint64 value never meets a signed one in an expression: Numba types that as int64. Literals are
  wrapped in `U64`.

Everything compiled lives in this one file because Numba's disk cache is stamped with the file of
the function alone: a helper elsewhere could change without the cache noticing.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import lower_builtin, type_callable

from azr.modular.jit import jit

U64 = np.uint64

OK, WRONG, OUT_OF_RANGE, NOT_PRIME, UNPARSABLE, BAD_PROBLEM = range(6)

# --- exact products ------------------------------------------------------------------------------


def mul_high(a, b):
    """Upper 64 bits of a * b for uint64 a and b; this body is the plain-Python twin."""
    return U64(int(a) * int(b) >> 64)


@type_callable(mul_high)
def _type_mul_high(context):
    return lambda a, b: types.uint64(types.uint64, types.uint64)


@lower_builtin(mul_high, types.uint64, types.uint64)
def _emit_mul_high(context, builder, signature, args):
    """One `mul` instruction."""
    wide = ir.IntType(128)
    product = builder.mul(*(builder.zext(factor, wide) for factor in args))
    return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))


@jit
def inverse_of_odd(m):
    """1/m mod 2**64 for odd uint64 m, by Newton's iteration: 5, 10, 20, 40, 80 bits."""
    v = (m * U64(3)) ^ U64(2)
    for _ in range(4):
        v *= U64(2) - m * v
    return v


# --- primality ----------------------------------------------------------------------------------

# Deterministic bases: Jaeschke (1993) to 4 759 123 140; Sinclair (2011) for all of 64 bits.
BASES_32 = np.array([2, 7, 61], dtype=np.uint64)
BASES_64 = np.array([2, 325, 9375, 28178, 450775, 9780504, 1795265022], dtype=np.uint64)
LIMIT_32 = U64(4_759_123_141)


_LOW_32 = U64(0xFFFFFFFF)


@jit
def montgomery_product(a, b, n, n_inverse, is_narrow):
    """a * b / R mod n, in [0, n), for odd n, n_inverse * n = 1 mod R, a < R and b < n (all uint64).

    R is 2**64 and n < 2**63 or, if `is_narrow`, R is 2**32 and n below it. The masks change no
    value: they let LLVM see 32-bit factors, one SIMD multiplication each.
    """
    if is_narrow:
        ab = (a & _LOW_32) * (b & _LOW_32)
        q = (ab & _LOW_32) * (n_inverse & _LOW_32) & _LOW_32
        t = np.int64(ab >> U64(32)) - np.int64(q * (n & _LOW_32) >> U64(32))
        return U64(t + np.int64(n) if t < 0 else t)
    high, other = mul_high(a, b), mul_high(a * b * n_inverse, n)
    return high - other if high >= other else high - other + n


@jit
def montgomery_form(n, n_inverse, is_narrow):
    """(R mod n, which is 1 in Montgomery form; R**2 mod n, the product with which leads there)."""
    one = square = (U64(0) - n) % n  # 2**64 mod n
    if is_narrow:
        one = montgomery_product(U64(1), square, n, n_inverse, is_narrow)
    else:
        # 2 squared six times is R.
        square += square
        square -= n if square >= n else U64(0)
        for _ in range(6):
            square = montgomery_product(square, square, n, n_inverse, is_narrow)
    return one, square


@jit
def is_prime_word(n):
    """Whether uint64 n < 2**63 is prime: trial division, then deterministic Miller-Rabin."""
    if n < U64(2):
        return False
    for small in (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
        if n % U64(small) == U64(0):
            return n == U64(small)
    if n & U64(1) == U64(0):
        return n == U64(2)
    if n < U64(1369):
        return True
    n_inverse = inverse_of_odd(n)
    one, square = montgomery_form(n, n_inverse, False)
    odd = n - U64(1)
    twos = 0
    while odd & U64(1) == U64(0):
        odd >>= U64(1)
        twos += 1
    for base in BASES_32 if n < LIMIT_32 else BASES_64:
        a = montgomery_product(base, square, n, n_inverse, False)
        power = one
        bits = odd
        while bits:
            if bits & U64(1):
                power = montgomery_product(power, a, n, n_inverse, False)
            a = montgomery_product(a, a, n, n_inverse, False)
            bits >>= U64(1)
        if power == one or power == U64(0):  # 0: n divides the base, which says nothing
            continue
        for _ in range(twos):
            if power == n - one:
                break
            power = montgomery_product(power, power, n, n_inverse, False)
        else:
            return False
    return True


@jit
def sort_out(n, out, left):
    """out[i] (bool) = whether trial division proves n[i] prime; the open cases go to left.

    Returns how many indices of n the int64 array left then holds: of odd numbers from 17**2
    on without a prime factor up to 13. Negative numbers are not prime.
    """
    count = 0
    for i in range(n.size):
        word = U64(max(n[i], 0))
        is_open = word >= U64(289)
        is_prime = word > U64(1)
        for small in (2, 3, 5, 7, 11, 13):
            if word % U64(small) == U64(0):
                is_open = False
                is_prime = word == U64(small)
                break
        out[i] = is_prime and not is_open
        left[count] = i
        count += is_open
    return count


LANES = 64


def _strong_test(word_bits):
    """The strong probable-prime test with Montgomery products of one word size, LANES at once.

    The word size is a number and not a function, because Numba's disk cache knows a function that
    varies again only in the process that made it.
    """
    is_narrow = word_bits == 32

    @jit
    def strong_test(n, left, count, bases):
        """Keep in left[:count] the indices i whose n[i] passes for every base; the new count.

        n[i] is odd, above 1 and below 2**32 or 2**63, according to the word. A base that n[i]
        divides says nothing, and passes.
        """
        modulus, inverse = np.ones(LANES, np.uint64), np.ones(LANES, np.uint64)
        one, square = np.zeros(LANES, np.uint64), np.zeros(LANES, np.uint64)
        factor, power = np.zeros(LANES, np.uint64), np.zeros(LANES, np.uint64)
        passes = np.zeros(LANES, np.uint64)
        kept = 0
        for first in range(0, count, LANES):
            lanes = min(LANES, count - first)
            all_bits = low_bits = U64(0)
            for i in range(lanes):
                m = U64(n[left[first + i]])
                modulus[i], inverse[i] = m, inverse_of_odd(m)
                one[i], square[i] = montgomery_form(m, inverse[i], is_narrow)
                all_bits |= m
                low_bits |= (m - U64(1)) & (U64(1) - m)
            top = word_bits - 1
            while (all_bits >> U64(top)) & U64(1) == U64(0):
                top -= 1
            passes[:] = U64(0)
            for base in bases:
                for i in range(LANES):
                    m, v = modulus[i], inverse[i]
                    factor[i] = montgomery_product(base, square[i], m, v, is_narrow)
                    power[i] = factor[i] if m >> U64(top) else one[i]
                    passes[i] += U64(factor[i] == U64(0))
                # power = base ** (n >> shift), shift falling, and n >> shift = (n - 1) >> shift.
                # The test looks at the exponents (n - 1) / 2**k, k >= 1: -1 at any of them or 1 at
                # the odd one is a pass, and no base has two.
                for shift in range(top, 0, -1):
                    bit = U64(1) << U64(shift)
                    if shift < top and base == U64(2):
                        for i in range(LANES):
                            r, m, v = power[i], modulus[i], inverse[i]
                            once = montgomery_product(r, r, m, v, is_narrow)
                            twice = once + once
                            twice -= m if twice >= m else U64(0)
                            power[i] = twice if m & bit else once
                    elif shift < top:
                        for i in range(LANES):
                            r, m, v = power[i], modulus[i], inverse[i]
                            once = montgomery_product(r, r, m, v, is_narrow)
                            twice = montgomery_product(once, factor[i], m, v, is_narrow)
                            power[i] = twice if m & bit else once
                    if low_bits >> U64(shift):
                        for i in range(LANES):
                            below = modulus[i] & (bit + bit - U64(1))
                            is_odd = below == bit + U64(1)
                            is_in_reach = below & ~bit == U64(1)
                            is_minus_one = is_in_reach & (power[i] == modulus[i] - one[i])
                            is_one = is_odd & (power[i] == one[i])
                            passes[i] += U64(1) if is_minus_one | is_one else U64(0)
            for i in range(lanes):
                left[kept] = left[first + i]
                kept += passes[i] == U64(bases.size)
        return kept

    return strong_test


strong_test_32 = _strong_test(32)
strong_test_64 = _strong_test(64)


@jit
def sieve(small, limit, primes):
    """Append the odd primes from 3 to limit to primes, which holds 2; how many it then holds.

    `small` holds the odd primes up to the square root of limit.
    """
    count = 1
    segment = np.empty(1 << 18, np.uint8)  # of odd numbers; it stays in the L2 cache
    for low in range(3, limit + 1, 2 * segment.size):
        size = min(segment.size, (limit - low) // 2 + 1)
        segment[:size] = 1
        for prime in small:
            first = max(prime * prime, (low + prime - 1) // prime * prime)
            if first % 2 == 0:
                first += prime
            for k in range((first - low) >> 1, size, prime):
                segment[k] = 0
        for k in range(size):
            primes[count] = low + 2 * k
            count += segment[k]
    return count


# --- inversion ----------------------------------------------------------------------------------


@jit
def scan(x, p):
    """(the largest p, whether every x >= 0 and p >= 2, whether every x < p) of int arrays."""
    x_min, p_min, p_max = x[0], p[0], p[0]
    is_reduced = True
    for i in range(x.size):
        x_min = min(x_min, x[i])
        p_min = min(p_min, p[i])
        p_max = max(p_max, p[i])
        is_reduced &= x[i] < p[i]
    return p_max, x_min >= 0 and p_min >= 2, is_reduced


# --- verification -------------------------------------------------------------------------------


@jit
def product_is_one(x, y, p):
    """Whether x * y = 1 (mod p), for uint64 1 <= x, y < p < 2**62, without a division.

    With p = 2**k * m, m odd: 2**k divides T = x*y - 1 if its low k bits are 0, and m divides T if
    the only q with q*m = T (mod 2**64) also matches the high word; T/m < 2**64 unless k is large,
    so the test is on T / 2**k.
    """
    low = x * y
    high = mul_high(x, y)
    high -= U64(low == U64(0))
    low -= U64(1)
    while p & U64(1) == U64(0):
        if low & U64(1):
            return False
        p >>= U64(1)
        low = (low >> U64(1)) | (high << U64(63))
        high >>= U64(1)
    return mul_high(low * inverse_of_odd(p), p) == high


@jit
def verify(x, y, p, max_p, is_p_unknown, out):
    """out (uint8) per row: OK or WRONG, or OUT_OF_RANGE unless 1 <= x, y < p <= max_p < 2**62.

    It is BAD_PROBLEM unless 1 <= x < p < 2**62 or, if p is the answer, 1 <= x, y < 2**62. Returns
    how many are.
    """
    bad = 0
    for i in range(p.size):
        if min(x[i], y[i]) < 1 or max(x[i], y[i]) >= p[i] or p[i] > max_p:
            if is_p_unknown:
                is_bad = min(x[i], y[i]) < 1 or max(x[i], y[i]) >= 1 << 62
            else:
                is_bad = x[i] < 1 or x[i] >= p[i] or p[i] >= 1 << 62
            out[i] = BAD_PROBLEM if is_bad else OUT_OF_RANGE
            bad += is_bad
        elif product_is_one(U64(x[i]), U64(y[i]), U64(p[i])):
            out[i] = OK
        else:
            out[i] = WRONG
    return bad


@jit
def verify_32(x, y, p, out):
    """As `verify`, of int32 arrays, with no look for bad problems. LLVM vectorises this loop.

    q misses x*y/p by at most 1/2 + 2**-20, so |r| < p and its 32 bits, which LLVM multiplies in
    SIMD registers, are all of it; r = 1 proves the answer right. If the answer is right, x*y/p is
    k + 1/p for an integer k, and 1/p <= 1/3 leaves k the nearest. For p = 2 the one row in range
    is 1 * 1, and the tie 1/2 rounds to k = 0.
    """
    for i in range(p.size):
        out[i] = OUT_OF_RANGE
        if (min(x[i], y[i]) >= 1) & (max(x[i], y[i]) < p[i]):
            q = np.int32(np.rint(np.float64(x[i]) * np.float64(y[i]) / np.float64(p[i])))
            r = np.int32(x[i] * y[i] - q * p[i])
            out[i] = r != 1


@jit
def mark_bad(x, p, out):
    """Where out is OUT_OF_RANGE because of the problem: BAD_PROBLEM. Returns how many."""
    bad = 0
    for i in range(p.size):
        if out[i] == OUT_OF_RANGE and (x[i] < 1 or x[i] >= p[i]):
            out[i] = BAD_PROBLEM
            bad += 1
    return bad


# --- drawing ------------------------------------------------------------------------------------

GOLDEN = U64(0x9E3779B97F4A7C15)


@jit
def mix(z):
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): a bijection of uint64 that scrambles."""
    z = (z ^ (z >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> U64(27))) * U64(0x94D049BB133111EB)
    return z ^ (z >> U64(31))


@jit
def stream_key(seed):
    """Where the stream of a seed begins; scrambled, so that neighbouring seeds lie far apart."""
    return mix(mix(seed + GOLDEN) + GOLDEN)


@jit
def below(word, bound):
    """(unbiased uint64 in [0, bound), the word it used), bound < 2**63, from a random word.

    Lemire (2019): the product's upper word is the number; the few words that would favour some
    numbers are replaced by their successors in their own SplitMix64 stream.
    """
    low = word * bound
    if low < bound:
        threshold = (U64(0) - bound) % bound
        while low < threshold:
            word = mix(word + GOLDEN)
            low = word * bound
    return mul_high(word, bound), word


@jit
def random_prime(word, low, high):
    """A uniform prime of [low, high], from a random word; the interval must hold a prime.

    Draws uniformly among the odd numbers of the interval and 2 (if it is there) until one is
    prime. That is exactly uniform over the primes, unlike the next prime of a random number.
    """
    first_odd = low | U64(1)
    if low <= U64(2):
        first_odd = U64(1)  # stands for 2, as 1 is no prime
    span = (high - first_odd) // U64(2) + U64(1)
    while True:
        k, word = below(word, span)
        candidate = first_odd + U64(2) * k
        if candidate == U64(1):
            return U64(2)
        if is_prime_word(candidate):
            return candidate
        word = mix(word + GOLDEN)


@jit
def draw_group(key, index, groups):
    """(a uniform group of so many for problem `index`, the word to draw its p from)."""
    word = mix(key + U64(2) * index * GOLDEN)
    if groups == U64(1):
        return U64(0), word
    group, word = below(word, groups)
    return group, mix(word + GOLDEN)


@jit
def draw_residue(key, index, modulus, trivial):
    """A uniform x for problem `index`; trivial = 1 leaves out 1 and p - 1 (then p >= 5)."""
    word = mix(key + (U64(2) * index + U64(1)) * GOLDEN)
    return below(word, modulus - U64(1) - U64(2) * trivial)[0] + U64(1) + trivial


@jit
def draw_listed(key, start, primes, offsets, trivial, p, x):
    """Fill p and x with problems start, start + 1, ...; p is uniform within a group of `primes`.

    Problem i is a function of (key, i) alone. `offsets` cuts `primes` into groups, one of which is
    drawn first, uniformly.
    """
    groups = U64(offsets.size - 1)
    for i in range(p.size):
        group, word = draw_group(key, start + U64(i), groups)
        first = U64(offsets[group])
        k = below(word, U64(offsets[group + U64(1)]) - first)[0]
        modulus = U64(primes[first + k])
        p[i] = modulus
        x[i] = draw_residue(key, start + U64(i), modulus, trivial)


@jit
def draw_tested(key, start, lows, highs, trivial, p, x):
    """As `draw_listed`, with p a random prime of an interval [lows[g], highs[g]], g uniform."""
    for i in range(p.size):
        group, word = draw_group(key, start + U64(i), U64(lows.size))
        modulus = random_prime(word, lows[group], highs[group])
        p[i] = modulus
        x[i] = draw_residue(key, start + U64(i), modulus, trivial)
