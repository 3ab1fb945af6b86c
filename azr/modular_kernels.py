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
from numba import njit, types
from numba.extending import intrinsic, overload

U64 = np.uint64

OK, WRONG, OUT_OF_RANGE, NOT_PRIME, UNPARSABLE, BAD_PROBLEM = range(6)

# error_model="numpy": no hidden branch on a zero divisor inside the loops.
jit = njit(cache=True, nogil=True, error_model="numpy")

# --- 64-bit words -------------------------------------------------------------------------------


@intrinsic
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
def is_prime_array(n, out):
    """out[i] (bool) = whether n[i] is prime; negative numbers are not."""
    for i in range(n.size):
        out[i] = n[i] > 1 and is_prime_word(U64(n[i]))


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
    """(smallest x, largest x, smallest p, largest p, whether every x < p) of int arrays."""
    x_min = x_max = x[0]
    p_min = p_max = p[0]
    reduced = True
    for i in range(x.size):
        x_min = min(x_min, x[i])
        x_max = max(x_max, x[i])
        p_min = min(p_min, p[i])
        p_max = max(p_max, p[i])
        reduced &= x[i] < p[i]
    return x_min, x_max, p_min, p_max, reduced


@jit
def invert_scalar(x, p, out):
    """out = 1/x mod p, or 0 where there is none; 0 <= x < p, 2 <= p < 2**62. Returns how many 0."""
    failures = 0
    for i in range(x.size):
        a = U64(p[i])
        b = U64(x[i])
        s = np.int64(0)
        t = np.int64(1)
        while b:
            q = a // b
            a, b = b, a - q * b
            s, t = t, s - np.int64(q) * t
        if a != U64(1):
            out[i] = 0
            failures += 1
        else:
            out[i] = s + np.int64(p[i]) if s < 0 else s
    return failures


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
