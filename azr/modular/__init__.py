"""Modular inversion in Numba: draw problems x * y = 1 (mod p), solve them, verify answers.

    >>> from azr import modular
    >>> p, x, y = modular.sample(1000, 2**20, seed=0)
    >>> bool((modular.verify_y(p, x, y) == modular.OK).all())
    True
    >>> modular.invert([3, 5], [7, 11]).tolist()
    [5, 9]

Numbers are given as Python ints, lists of them, or integer arrays; a single number stands for
itself in every row. Floats, booleans, strings and object arrays are a TypeError even where their
values are whole numbers, and lists are checked before NumPy sees them, because NumPy turns
[1, 2**63] into floats without a word. Results are int32 where every modulus is below 2**31 and
int64 otherwise; statuses are uint8.
"""

import operator
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from functools import lru_cache
from itertools import pairwise
from math import isqrt
from typing import Literal, NamedTuple, SupportsIndex

import numpy as np

from azr.modular import kernels, simd

__all__ = [
    "BAD_PROBLEM",
    "MAX_P",
    "NOT_PRIME",
    "OK",
    "OUT_OF_RANGE",
    "UNPARSABLE",
    "WRONG",
    "NotInvertible",
    "Problems",
    "Status",
    "invert",
    "is_prime",
    "primes_upto",
    "sample",
    "verify_p",
    "verify_text",
    "verify_x",
    "verify_y",
]

MAX_P = 2**62 - 1
"""The largest modulus: twice a residue must fit a signed 64-bit word."""

MAX_SIEVE = 2**32
"""The largest argument of `primes_upto`, whose answer then takes 1.6 GB."""

LISTED_MAX_P = 2**24
"""Up to here `sample` draws from the list of all primes; beyond it tests random numbers."""

Integers = int | Sequence[int] | np.ndarray
Answers = Integers | Sequence[int | None]


class Status(IntEnum):
    """What a verifier says of one row."""

    OK = kernels.OK
    WRONG = kernels.WRONG
    OUT_OF_RANGE = kernels.OUT_OF_RANGE
    NOT_PRIME = kernels.NOT_PRIME
    UNPARSABLE = kernels.UNPARSABLE
    BAD_PROBLEM = kernels.BAD_PROBLEM


OK, WRONG, OUT_OF_RANGE, NOT_PRIME, UNPARSABLE, BAD_PROBLEM = Status


class Problems(NamedTuple):
    """Rows with x * y = 1 (mod p), 1 <= x, y < p: three arrays [n] of one dtype."""

    p: np.ndarray
    x: np.ndarray
    y: np.ndarray


class NotInvertible(ValueError):
    """x and p share a factor, so x has no inverse modulo p."""


# --- arguments ----------------------------------------------------------------------------------

_INT64_MAX = 2**63 - 1
_KERNEL_DTYPES = (np.dtype(np.int32), np.dtype(np.int64))


def _integer(name: str, value: SupportsIndex, low: int, high: int) -> int:
    """value as an int within [low, high]; TypeError or ValueError otherwise."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an int, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if not low <= number <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {number}")
    return number


def _integers(
    name: str, value: Answers, *, is_answer: bool = False, is_bounded: bool = True
) -> np.ndarray:
    """value as an int32 or int64 array that the kernels can read: C-contiguous and native.

    A number that does not fit 64 bits becomes -1, which like itself is in no range; where nothing
    else bounds the numbers (`is_bounded` off), one above is a ValueError. None in the list of an
    answer becomes -1 as well, and `_verify` marks it.
    """
    if type(value) is np.ndarray and value.flags.carray and value.dtype in _KERNEL_DTYPES:
        return value
    if isinstance(value, (list, tuple)):
        checked = np.empty(len(value), dtype=np.int64)
        for index, item in enumerate(value):
            if is_answer and item is None:
                checked[index] = -1
                continue
            if isinstance(item, bool) or not isinstance(item, (int, np.integer)):
                raise TypeError(f"{name}[{index}] must be an int, got {item!r}")
            if item > _INT64_MAX and not is_bounded:
                raise ValueError(f"{name}[{index}] = {item} does not fit 64 bits")
            checked[index] = item if -_INT64_MAX <= item <= _INT64_MAX else -1
        is_narrow = not checked.size or (checked.max() < 2**31 and checked.min() >= -(2**31))
        return checked.astype(np.int32) if is_narrow else checked
    if isinstance(value, int) and not isinstance(value, bool):
        return _integers(name, [value], is_bounded=is_bounded).reshape(())
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, got {value!r:.80} of dtype {array.dtype}")
    if array.dtype.kind == "u" and array.dtype.itemsize == 8:
        too_large = array > np.uint64(_INT64_MAX)
        if too_large.any() and not is_bounded:
            index = int(np.flatnonzero(too_large)[0])
            raise ValueError(f"{name}[{index}] = {array.flat[index]} does not fit 64 bits")
        array = np.where(too_large, -1, array.astype(np.int64))
    dtype = np.int32 if np.can_cast(array.dtype, np.int32) else np.int64
    return np.require(array, dtype, ["C", "A", "W"])


def _given(value: Integers, index: int) -> int:
    """The number of a row as it was given, however large."""
    numbers = value if isinstance(value, (list, tuple)) else np.ravel(value)
    return int(numbers[index if len(numbers) > 1 else 0])


def _named(flags: np.ndarray, **columns: Integers) -> list[str]:
    """Each column's number in the first flagged row, as it was given: "x[3] = 5"."""
    index = int(np.flatnonzero(flags)[0])
    return [f"{name}[{index}] = {_given(value, index)}" for name, value in columns.items()]


def _rows(**columns: np.ndarray) -> tuple[tuple[int, ...], list[np.ndarray]]:
    """The common shape, and the columns in order: flat, of one dtype, single numbers spread."""
    shapes = {array.shape for array in columns.values() if array.ndim}
    if len(shapes) > 1:
        given = ", ".join(f"{name} {array.shape}" for name, array in columns.items())
        raise ValueError(f"shapes differ: {given}")
    shape = shapes.pop() if shapes else ()
    is_narrow = all(array.dtype == np.int32 for array in columns.values())
    dtype = np.int32 if is_narrow else np.int64
    flat = []
    for array in columns.values():
        if shape and not array.ndim:
            array = np.full(shape, array)
        flat.append(array.astype(dtype, copy=False).reshape(-1))
    return shape, flat


def _in_parts(kernel: Callable[..., object], threads: int, *columns: np.ndarray | range) -> None:
    """Run kernel on `threads` consecutive parts of the columns, each in its own thread."""
    if threads == 1:
        kernel(*columns)
        return
    size = len(columns[0])
    cuts = [size * part // threads for part in range(threads + 1)]
    parts = [[column[a:b] for column in columns] for a, b in pairwise(cuts)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: kernel(*part), parts))


# --- inversion ----------------------------------------------------------------------------------


def _inversion_kernel(max_p: int) -> Callable[..., object]:
    """The fastest loop that is proved for moduli up to max_p."""
    if max_p < simd.SMALL_LIMIT:
        return simd.invert_small
    if max_p < simd.MEDIUM_LIMIT:
        return simd.invert_medium
    return simd.invert_large


def invert(
    x: Integers,
    p: Integers,
    *,
    out: np.ndarray | None = None,
    check: Literal["raise", "status"] = "raise",
    threads: int = 1,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """The inverses y of x modulo p, elementwise: x * y = 1 (mod p), 1 <= y < p.

    p may differ from row to row and need not be prime: 2 <= p <= MAX_P; x >= 0 may exceed p, and
    64 bits. The result has the rows' shape and is int32 if every p is below 2**31, else int64,
    unless `out` (an integer array of that shape, which may be x or p itself) receives it.

    check="raise": a row without an answer raises NotInvertible (x and p share a factor) or
    ValueError (out of range) naming its index and values. check="status": such rows get y = 0, and
    the result is the pair (y, status) with OK or BAD_PROBLEM per row.
    """
    if check not in ("raise", "status"):
        raise ValueError(f'check must be "raise" or "status", got {check!r}')
    threads = _integer("threads", threads, 1, 1024)
    shape, (flat_x, flat_p) = _rows(x=_integers("x", x), p=_integers("p", p))
    p_max, is_valid, is_reduced = 2, True, True
    if flat_x.size:
        p_max, is_valid, is_reduced = kernels.scan(flat_x, flat_p)
    if not is_valid or p_max > MAX_P:
        flat_x = _reduce_beyond_64_bits(x, flat_x, flat_p)
        bad = (flat_x < 0) | (flat_p < 2) | (flat_p > MAX_P)
        if check == "raise" and bad.any():
            row = ", ".join(_named(bad, x=x, p=p))
            raise ValueError(f"need x >= 0 and 2 <= p <= 2**62 - 1, got {row}")
        flat_x, flat_p = np.where(bad, 0, flat_x), np.where(bad, 2, flat_p)
        p_max = flat_p.max()
        is_reduced = False
    if not is_reduced:
        flat_x = flat_x % flat_p
    dtype = np.dtype(np.int32 if p_max < 2**31 else np.int64)
    flat_x, flat_p = flat_x.astype(dtype, copy=False), flat_p.astype(dtype, copy=False)
    y = np.empty(flat_x.size, dtype=dtype)
    _in_parts(_inversion_kernel(p_max), threads, flat_x, flat_p, y)
    if check == "raise" and y.size and y.min() == 0:
        raise NotInvertible(" has no inverse modulo ".join(_named(y == 0, x=x, p=p)))
    result = y.reshape(shape)
    if out is not None:
        if out.dtype.kind != "i" or out.dtype.itemsize < dtype.itemsize or out.shape != shape:
            raise ValueError(f"out must be {dtype} {shape}, got {out.dtype} {out.shape}")
        out[...] = result
        result = out
    elif not shape:
        result = result[()]
    if check == "raise":
        return result
    status = np.where(y == 0, np.uint8(BAD_PROBLEM), np.uint8(OK)).reshape(shape)
    return result, status if shape else status[()]


def _reduce_beyond_64_bits(x: Integers, flat_x: np.ndarray, flat_p: np.ndarray) -> np.ndarray:
    """flat_x with what was larger than 64 bits, and is -1 there, modulo p."""
    if isinstance(x, np.ndarray) and x.dtype.kind == "i":
        return flat_x
    flat_x = flat_x.copy()
    for index in np.flatnonzero((flat_x == -1) & (flat_p >= 2)).tolist():
        if (given := _given(x, index)) > _INT64_MAX:
            flat_x[index] = given % int(flat_p[index])
    return flat_x


# --- verification -------------------------------------------------------------------------------


def _verify(
    name_1: str, given_1: Integers, name_2: str, given_2: Integers,
    unknown: str, answer: Answers, check: str, max_p: int = MAX_P,
) -> np.ndarray:  # fmt: skip
    """The uint8 status of each answer for `unknown` to problems of two named columns."""
    if check not in ("raise", "status"):
        raise ValueError(f'check must be "raise" or "status", got {check!r}')
    is_p_unknown = unknown == "p"
    first, second = _integers(name_1, given_1), _integers(name_2, given_2)
    last = _integers(unknown, answer, is_answer=True)
    if is_p_unknown:
        shape, (x, y, p) = _rows(x=first, y=second, p=last)
    else:
        shape, (p, x, y) = _rows(p=first, known=second, answer=last)
    status = np.empty(p.size, dtype=np.uint8)
    if is_p_unknown or p.dtype == np.int64:
        bad = kernels.verify(x, y, p, max_p, is_p_unknown, status)
    else:
        kernels.verify_32(x, y, p, status)
        is_clean = not status.size or status.max() <= kernels.WRONG
        bad = 0 if is_clean else kernels.mark_bad(x, p, status)
    if bad and check == "raise":
        row = _named(status == kernels.BAD_PROBLEM, **{name_1: given_1, name_2: given_2})
        raise ValueError(f"not a problem: {', '.join(row)}")
    if isinstance(answer, (list, tuple)):
        for index, item in enumerate(answer):
            if item is None and status[index] != BAD_PROBLEM:
                status[index] = UNPARSABLE
    if is_p_unknown:
        # Primality last, and only of the survivors: a wrong answer costs a few nanoseconds.
        divides = np.flatnonzero(status == kernels.OK)
        status[divides[~is_prime(p[divides])]] = NOT_PRIME
    return status.reshape(shape) if shape else status[0]


def verify_y(
    p: Integers, x: Integers, y: Answers, *, check: Literal["raise", "status"] = "raise"
) -> np.ndarray:
    """The uint8 status of each answer y to "x * y = 1 (mod p), what is y?".

    OK; WRONG; OUT_OF_RANGE unless 1 <= y < p (so y + p is not accepted for y); UNPARSABLE where
    the answer, in a list, is None. No answer raises, however large. A malformed problem (p not in
    2..MAX_P, or x not in 1..p-1) raises ValueError, or is BAD_PROBLEM with check="status". That p
    is prime is not tested: the congruence needs no prime.
    """
    return _verify("p", p, "x", x, "y", y, check)


def verify_x(
    p: Integers, y: Integers, x: Answers, *, check: Literal["raise", "status"] = "raise"
) -> np.ndarray:
    """The uint8 status of each answer x to "x * y = 1 (mod p), what is x?"; as `verify_y`."""
    return _verify("p", p, "y", y, "x", x, check)


def verify_p(
    x: Integers,
    y: Integers,
    p: Answers,
    *,
    max_p: int = MAX_P,
    check: Literal["raise", "status"] = "raise",
) -> np.ndarray:
    """The uint8 status of each answer p to "x * y = 1 (mod p), which prime is p?".

    OK for every prime that divides x * y - 1, exceeds both x and y and is at most max_p; there can
    be several. Otherwise OUT_OF_RANGE (not above x and y, or above max_p), then WRONG (does not
    divide), then NOT_PRIME; UNPARSABLE where the answer, in a list, is None. x = y = 1 makes
    x * y - 1 = 0, which every number divides: there any prime in range is OK. A malformed problem
    (x or y not in 1..MAX_P) raises ValueError, or is BAD_PROBLEM with check="status".
    """
    max_p = _integer("max_p", max_p, 2, MAX_P)
    return _verify("x", x, "y", y, "p", p, check, max_p)


_DIGITS = re.compile(r"[0-9]{1,19}")


def verify_text(
    problems: Problems | tuple[Integers, Integers, Integers],
    texts: Sequence[str],
    *,
    unknown: Literal["y", "x", "p"] = "y",
    max_p: int = MAX_P,
    check: Literal["raise", "status"] = "raise",
) -> np.ndarray:
    """The uint8 status of answers as text: `verify_y`, `verify_x` or `verify_p` behind a parser.

    A text is an answer if it is 1 to 19 ASCII digits and nothing else: "", " 3", "+3", "1e3", "٣"
    and 10**30 are UNPARSABLE. The column of `problems` that `unknown` names is not looked at;
    max_p matters for unknown="p" alone.
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError("texts must be a sequence of strings, got one string")
    answers: list[int | None] = []
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{index}] must be a string, got {text!r}")
        answers.append(int(text) if _DIGITS.fullmatch(text) else None)
    p, x, y = problems
    if unknown == "y":
        return verify_y(p, x, answers, check=check)
    if unknown == "x":
        return verify_x(p, y, answers, check=check)
    if unknown == "p":
        return verify_p(x, y, answers, max_p=max_p, check=check)
    raise ValueError(f'unknown must be "y", "x" or "p", got {unknown!r}')


# --- primes -------------------------------------------------------------------------------------


def is_prime(n: Integers) -> np.ndarray:
    """Whether each n is prime (bool, the shape of n), proved, not probable; n < 2**63.

    Numbers below 2, negative ones included, are not prime.
    """
    array = _integers("n", n, is_bounded=False)
    flat = array.reshape(-1)
    result = np.empty(flat.size, dtype=bool)
    left = np.empty(flat.size + 1, dtype=np.int64)
    left = left[: kernels.sort_out(flat, result, left)]
    if left.size:
        is_narrow = flat.dtype == np.int32 or flat[left].max() < 2**32
        test = kernels.strong_test_32 if is_narrow else kernels.strong_test_64
        bases = kernels.BASES_32 if is_narrow else kernels.BASES_64
        # Base 2 alone first: nearly every composite falls there.
        count = test(flat, left, left.size, bases[:1])
        count = test(flat, left, count, bases[1:])
        result[left[:count]] = True
    return result.reshape(array.shape) if array.ndim else result[0]


def primes_upto(limit: int) -> np.ndarray:
    """All primes <= limit in order: int32 if limit < 2**31, else int64; limit <= MAX_SIEVE."""
    limit = _integer("limit", limit, -_INT64_MAX, MAX_SIEVE)
    dtype = np.int32 if limit < 2**31 else np.int64
    if limit < 3:
        return np.array([2][: max(0, limit - 1)], dtype=dtype)
    # pi(n) < 1.25506 n / ln n (Rosser, Schoenfeld 1962).
    primes = np.empty(int(1.25506 * limit / np.log(limit)) + 1, dtype=dtype)
    primes[0] = 2
    small = primes_upto(isqrt(limit))[1:].astype(np.int64)
    return primes[: kernels.sieve(small, limit, primes)].copy()


# --- drawing ------------------------------------------------------------------------------------


def _edges(min_p: int, max_p: int, p_dist: str) -> list[int]:
    """Where the groups of primes begin, and the end: one group, or one per bit length."""
    powers = [2**bits for bits in range(63) if min_p < 2**bits <= max_p and p_dist == "log"]
    return [min_p, *powers, max_p + 1]


@lru_cache(maxsize=8)
def _listed(min_p: int, max_p: int, p_dist: str) -> tuple[np.ndarray, np.ndarray]:
    """(primes of the range, offsets of the groups that hold any)."""
    primes = primes_upto(max_p)
    primes = primes[primes >= min_p]
    return primes, np.unique(np.searchsorted(primes, _edges(min_p, max_p, p_dist)))


@lru_cache(maxsize=8)
def _intervals(min_p: int, max_p: int, p_dist: str) -> tuple[np.ndarray, np.ndarray]:
    """(first, last) number of each group that holds a prime, as uint64 arrays."""
    groups = [(a, b - 1) for a, b in pairwise(_edges(min_p, max_p, p_dist)) if _holds_prime(a, b)]
    lows, highs = np.array(groups, dtype=np.uint64).reshape(-1, 2).T.copy()
    return lows, highs


def _holds_prime(low: int, high: int) -> bool:
    """Whether a prime lies in [low, high); prime gaps below 2**62 are short, so this is quick."""
    for first in range(low, high, 1024):
        if is_prime(np.arange(first, min(first + 1024, high))).any():
            return True
    return False


def sample(
    n: int,
    max_p: int,
    *,
    min_p: int = 2,
    seed: int,
    start: int = 0,
    exclude_trivial: bool = False,
    p_dist: Literal["uniform", "log"] = "uniform",
    threads: int = 1,
) -> Problems:
    """Problems start, ..., start + n - 1 of the stream `seed`: arrays (p, x, y), x * y = 1 (mod p).

    p is a prime in [min_p, max_p], max_p <= MAX_P: uniform over these primes, or with p_dist="log"
    of a uniformly drawn bit length (among those that occur) and uniform among its primes. x is
    uniform in 1..p-1; exclude_trivial leaves out the self-inverse x = 1 and x = p - 1, and with
    them p = 2 and p = 3. Row i depends on (seed, start + i) and the arguments above alone, not on
    n or threads. int32 if max_p < 2**31, else int64.
    """
    n = _integer("n", n, 0, 2**40)
    max_p = _integer("max_p", max_p, 2, MAX_P)
    min_p = _integer("min_p", min_p, 0, max_p)
    seed = _integer("seed", seed, 0, 2**64 - 1)
    start = _integer("start", start, 0, 2**62 - n)
    threads = _integer("threads", threads, 1, 1024)
    if p_dist not in ("uniform", "log"):
        raise ValueError(f'p_dist must be "uniform" or "log", got {p_dist!r}')
    dtype = np.int32 if max_p < 2**31 else np.int64
    p, x, y = np.empty(n, dtype), np.empty(n, dtype), np.empty(n, dtype)
    _draw(p, x, max_p, min_p, seed, start, bool(exclude_trivial), p_dist, threads)
    _in_parts(_inversion_kernel(max_p), threads, x, p, y)
    return Problems(p, x, y)


def _draw(p, x, max_p, min_p, seed, start, exclude_trivial, p_dist, threads) -> None:
    """Fill p and x with the rows of `sample`, whose arguments these are, checked."""
    lowest = max(min_p, 5 if exclude_trivial else 2)
    is_listed = max_p <= LISTED_MAX_P
    groups = (_listed if is_listed else _intervals)(lowest, max_p, p_dist)
    if not groups[0].size:
        raise ValueError(f"no prime between {lowest} and {max_p}")
    kernel = kernels.draw_listed if is_listed else kernels.draw_tested
    # Numba returns a Python int, whose type in the next call would depend on its size.
    key = np.uint64(kernels.stream_key(np.uint64(seed)))
    trivial = np.uint64(exclude_trivial)

    def fill(rows: range, p: np.ndarray, x: np.ndarray) -> None:
        kernel(key, np.uint64(rows.start), *groups, trivial, p, x)

    _in_parts(fill, threads, range(start, start + p.size), p, x)
