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
from numba.extending import overload

from azr.modular.jit import instruction, jit

U64 = np.uint64

OK, WRONG, OUT_OF_RANGE, NOT_PRIME, UNPARSABLE, BAD_PROBLEM = range(6)

# --- exact products ------------------------------------------------------------------------------


@instruction
def _mul_high_word(typing_context, a, b):
    """The upper 64 bits of a 64 x 64-bit product: one `mul` instruction."""

    def codegen(context, builder, signature, args):
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), codegen


def mul_high(a, b):
    """Upper 64 bits of a * b for uint64 a and b; this body is the plain-Python twin."""
    return U64(int(a) * int(b) >> 64)


@overload(mul_high, inline="always")
def _mul_high_compiled(a, b):
    return lambda a, b: _mul_high_word(a, b)


@instruction
def _fused(typing_context, a, b, c):
    """a * b + c, rounded once."""

    def codegen(context, builder, signature, args):
        return builder.fma(*args)

    return types.float64(types.float64, types.float64, types.float64), codegen


def fused(a, b, c):
    """a * b + c, rounded once, for integral floats; this body is the plain-Python twin."""
    return float(int(a) * int(b) + int(c))


@overload(fused, inline="always")
def _fused_compiled(a, b, c):
    return lambda a, b, c: _fused(a, b, c)


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


@jit
def montgomery_product(a, b, n, n_inverse):
    """a * b / 2**64 mod n, in [0, n), for odd n < 2**63 and a, b < n (all uint64)."""
    high = mul_high(a, b)
    q = a * b * n_inverse
    other = mul_high(q, n)
    return high - other if high >= other else high - other + n


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
    one = (U64(0) - n) % n  # 2**64 mod n: the number 1 in Montgomery form
    minus_one = n - one
    # 2**128 mod n takes a number into Montgomery form; by 64 doublings it needs no wide division.
    square = one
    for _ in range(64):
        square = square + square
        if square >= n:
            square -= n
    odd = n - U64(1)
    twos = 0
    while odd & U64(1) == U64(0):
        odd >>= U64(1)
        twos += 1
    for base in BASES_32 if n < LIMIT_32 else BASES_64:
        a = base % n
        if a == U64(0):
            continue
        a = montgomery_product(a, square, n, n_inverse)
        power = one
        bits = odd
        while bits:
            if bits & U64(1):
                power = montgomery_product(power, a, n, n_inverse)
            a = montgomery_product(a, a, n, n_inverse)
            bits >>= U64(1)
        if power == one or power == minus_one:
            continue
        for _ in range(twos - 1):
            power = montgomery_product(power, power, n, n_inverse)
            if power == minus_one:
                break
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


_LOW_32 = U64(0xFFFFFFFF)


@jit
def product_32(a, b, n, n_inverse):
    """a * b / 2**32 mod n, in [0, n), for odd n < 2**32, n_inverse * n = 1 mod 2**32; a, b < n.

    The masks change no value: they let LLVM see 32-bit factors, one SIMD multiplication each.
    """
    ab = (a & _LOW_32) * (b & _LOW_32)
    q = (ab & _LOW_32) * (n_inverse & _LOW_32) & _LOW_32
    t = np.int64(ab >> U64(32)) - np.int64(q * (n & _LOW_32) >> U64(32))
    return U64(t + np.int64(n) if t < 0 else t)


@jit
def product(a, b, n, n_inverse, is_narrow):
    """The Montgomery product of one of the two word sizes."""
    return product_32(a, b, n, n_inverse) if is_narrow else montgomery_product(a, b, n, n_inverse)


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
        one, exponent = np.zeros(LANES, np.uint64), np.zeros(LANES, np.uint64)
        factor, power = np.zeros(LANES, np.uint64), np.zeros(LANES, np.uint64)
        # 0 or 1, as wide as what they are compared with
        passed, passed_all = np.zeros(LANES, np.uint64), np.zeros(LANES, np.uint64)
        kept = 0
        for first in range(0, count, LANES):
            lanes = min(LANES, count - first)
            all_bits = low_bits = U64(0)
            for i in range(lanes):
                m = U64(n[left[first + i]])
                modulus[i] = m
                inverse[i] = inverse_of_odd(m)
                one[i] = (U64(1) << U64(32)) % m if is_narrow else (U64(0) - m) % m
                exponent[i] = m - U64(1)
                all_bits |= m
                low_bits |= (m - U64(1)) & (U64(1) - m)
            if is_narrow:
                for i in range(LANES):
                    inverse[i] &= _LOW_32
            top = word_bits - 1
            while (all_bits >> U64(top)) & U64(1) == U64(0):
                top -= 1
            passed_all[:] = U64(1)
            for base in bases:
                # factor = base * one mod n: the base in Montgomery form.
                if is_narrow:
                    for i in range(LANES):
                        factor[i] = base * one[i] % modulus[i]
                else:
                    factor[:] = U64(0)
                    for k in range(31, -1, -1):
                        add = (base >> U64(k)) & U64(1)
                        for i in range(LANES):
                            f = factor[i] + factor[i]
                            f -= modulus[i] if f >= modulus[i] else U64(0)
                            f += one[i] if add else U64(0)
                            f -= modulus[i] if f >= modulus[i] else U64(0)
                            factor[i] = f
                for i in range(LANES):
                    passed[i] = U64(factor[i] == U64(0))
                # power = base ** (exponent >> shift), shift falling. The test looks at the
                # exponents (n - 1) / 2**k, k >= 1: -1 at any of them or 1 at the odd one is a pass.
                for shift in range(top, 0, -1):
                    bit = U64(1) << U64(shift)
                    if shift == top:
                        for i in range(LANES):
                            power[i] = factor[i] if exponent[i] & bit else one[i]
                    elif base == U64(2):
                        for i in range(LANES):
                            r, m, v = power[i], modulus[i], inverse[i]
                            square = product(r, r, m, v, is_narrow)
                            double = square + square
                            double -= modulus[i] if double >= modulus[i] else U64(0)
                            power[i] = double if exponent[i] & bit else square
                    else:
                        for i in range(LANES):
                            r, m, v = power[i], modulus[i], inverse[i]
                            square = product(r, r, m, v, is_narrow)
                            times = product(square, factor[i], m, v, is_narrow)
                            power[i] = times if exponent[i] & bit else square
                    if low_bits >> U64(shift):
                        for i in range(LANES):
                            is_odd = exponent[i] & (bit + bit - U64(1)) == bit
                            is_in_reach = exponent[i] & (bit - U64(1)) == U64(0)
                            is_minus_one = is_in_reach & (power[i] == modulus[i] - one[i])
                            is_one = is_odd & (power[i] == one[i])
                            passed[i] |= U64(1) if is_minus_one | is_one else U64(0)
                for i in range(LANES):
                    passed_all[i] &= passed[i]
            for i in range(lanes):
                left[kept] = left[first + i]
                kept += np.int64(passed_all[i])
        return kept

    return strong_test


strong_test_32 = _strong_test(32)
strong_test_64 = _strong_test(64)


@jit
def sieve_odds(composite, small, low, high):
    """Mark composite[k] (uint8) for odd numbers low + 2k < high divisible by an odd prime of small.

    `low` is odd; `small` holds the odd primes up to the square root of high.
    """
    size = composite.size
    composite[:] = 0
    for prime in small:
        if prime * prime >= high:
            break
        first = max(prime * prime, (low + prime - 1) // prime * prime)
        if first % 2 == 0:
            first += prime
        for k in range((first - low) >> 1, size, prime):
            composite[k] = 1


@jit
def gather_odds(composite, low, out, count):
    """Append the unmarked odd numbers low + 2k to out from position count; return the new count."""
    for k in range(composite.size):
        if composite[k] == 0:
            out[count] = low + 2 * k
            count += 1
    return count


# --- inversion ----------------------------------------------------------------------------------


@jit
def scan(x, p):
    """(smallest x, smallest p, largest p, whether every x < p) of int arrays."""
    x_min = x[0]
    p_min = p_max = p[0]
    reduced = True
    for i in range(x.size):
        x_min = min(x_min, x[i])
        p_min = min(p_min, p[i])
        p_max = max(p_max, p[i])
        reduced &= x[i] < p[i]
    return x_min, p_min, p_max, reduced


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
def verify_pair(p, known, answer, out):
    """out (uint8): OK, WRONG, OUT_OF_RANGE (answer not in 1..p-1) or BAD_PROBLEM, per row.

    A problem is bad unless 2 <= p < 2**62 and 1 <= known < p. Returns how many rows are bad.
    """
    bad = 0
    for i in range(p.size):
        if p[i] < 2 or p[i] >= 1 << 62 or known[i] < 1 or known[i] >= p[i]:
            out[i] = BAD_PROBLEM
            bad += 1
        elif answer[i] < 1 or answer[i] >= p[i]:
            out[i] = OUT_OF_RANGE
        elif product_is_one(U64(known[i]), U64(answer[i]), U64(p[i])):
            out[i] = OK
        else:
            out[i] = WRONG
    return bad


@jit
def verify_pair_32(p, known, answer, out):
    """out (uint8): OK or WRONG, or OUT_OF_RANGE unless 1 <= known, answer < p; int32 arrays.

    LLVM vectorises this loop. h + e is the exact product. The integer r = h + e - q*p is exact as
    well, being below 2**33, so r = 1 proves the answer right, whatever q. If it is right, the
    quotient is k + 1/p for an integer k; 1/p <= 1/3 and an error below 2**31 * 2**-51 leave k the
    nearest. For p = 2 the one row in range is 1 * 1, and the tie 1/2 rounds to k = 0.
    """
    for i in range(p.size):
        x, y, m = np.float64(known[i]), np.float64(answer[i]), np.float64(p[i])
        h = x * y
        e = fused(x, y, -h)
        q = np.rint(h / m)
        r = fused(-q, m, h) + e
        is_odd = (min(x, y) < 1.0) | (max(x, y) >= m)
        out[i] = np.uint8(OUT_OF_RANGE) if is_odd else np.uint8(r != 1.0)


@jit
def mark_bad(p, known, out):
    """Where out is OUT_OF_RANGE because of the problem: BAD_PROBLEM. Returns how many."""
    bad = 0
    for i in range(p.size):
        if out[i] == OUT_OF_RANGE and (p[i] < 2 or known[i] < 1 or known[i] >= p[i]):
            out[i] = BAD_PROBLEM
            bad += 1
    return bad


@jit
def verify_modulus(x, y, p, max_p, out):
    """out (uint8) as for `verify_pair` where p is the answer; primality of OK rows is unchecked.

    A problem is bad unless 1 <= x, y < 2**62. Returns how many rows are bad.
    """
    bad = 0
    for i in range(p.size):
        if x[i] < 1 or x[i] >= 1 << 62 or y[i] < 1 or y[i] >= 1 << 62:
            out[i] = BAD_PROBLEM
            bad += 1
        elif p[i] > max_p or p[i] <= x[i] or p[i] <= y[i]:
            out[i] = OUT_OF_RANGE
        elif product_is_one(U64(x[i]), U64(y[i]), U64(p[i])):
            out[i] = OK
        else:
            out[i] = WRONG
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
    """(uniform prime of [low, high], the last word used); the interval must hold a prime.

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
            return U64(2), word
        if is_prime_word(candidate):
            return candidate, word
        word = mix(word + GOLDEN)


@jit
def draw_listed(key, start, primes, offsets, trivial, p, x):
    """Draw problems start, start + 1, ... with p from `primes` and x; fill p and x.

    Problem i is a function of (key, i) alone. `offsets` cuts `primes` into groups, one of which is
    drawn first, uniformly. trivial = 1 leaves out x = 1 and x = p - 1 (then p >= 5), 0 keeps them.
    """
    groups = U64(offsets.size - 1)
    for i in range(p.size):
        index = start + U64(i)
        word = mix(key + U64(2) * index * GOLDEN)
        left = U64(offsets[0])
        right = U64(offsets[-1])
        if groups > U64(1):
            g, word = below(word, groups)
            left = U64(offsets[g])
            right = U64(offsets[g + U64(1)])
            word = mix(word + GOLDEN)
        k, word = below(word, right - left)
        modulus = U64(primes[left + k])
        word = mix(key + (U64(2) * index + U64(1)) * GOLDEN)
        k, word = below(word, modulus - U64(1) - U64(2) * trivial)
        p[i] = modulus
        x[i] = k + U64(1) + trivial


@jit
def draw_tested(key, start, lows, highs, trivial, p, x):
    """As `draw_listed`, with p a random prime of an interval [lows[g], highs[g]], g uniform."""
    groups = U64(lows.size)
    for i in range(p.size):
        index = start + U64(i)
        word = mix(key + U64(2) * index * GOLDEN)
        g = U64(0)
        if groups > U64(1):
            g, word = below(word, groups)
            word = mix(word + GOLDEN)
        modulus, word = random_prime(word, lows[g], highs[g])
        word = mix(key + (U64(2) * index + U64(1)) * GOLDEN)
        k, word = below(word, modulus - U64(1) - U64(2) * trivial)
        p[i] = modulus
        x[i] = k + U64(1) + trivial
