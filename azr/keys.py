"""Keyed randomness: every random draw is a pure function of what it is for.

A key is a 64-bit number folded from (seed, step, phase, task type, index, ...), so a draw depends
neither on how many draws came before it nor on the order in which work finishes.
"""

import hashlib
from operator import index

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix(value: int) -> int:
    """Returns a 64-bit value whose bits all depend on all bits of `value` (SplitMix64's end)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def make_key(*parts: int | str) -> int:
    """Returns the 64-bit key of a sequence of integers and strings.

    Different sequences, also of different lengths, get unrelated keys.
    """
    key = mix(len(parts) + _GOLDEN)
    for part in parts:
        if isinstance(part, str):
            digest = hashlib.blake2b(part.encode(), digest_size=8, person=b"azr-key").digest()
            part = int.from_bytes(digest, "little")
        part = index(part)  # of NumPy's integers the sums below would overflow
        key = mix((key + _GOLDEN + mix((part + _GOLDEN) & _MASK)) & _MASK)
    return key


def generator(*parts: int | str) -> np.random.Generator:
    """Returns a NumPy generator (Philox) whose stream is a function of the parts alone."""
    return np.random.Generator(np.random.Philox(key=make_key(*parts)))
