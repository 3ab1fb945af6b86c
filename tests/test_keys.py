"""Keys are pure functions of their parts, and different parts get unrelated keys."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from azr.keys import generator, make_key, mix

part = st.one_of(st.integers(-(2**63), 2**64 - 1), st.text(max_size=8))


@given(st.lists(part, max_size=5))
def test_a_key_is_a_function_of_its_parts(parts):
    assert make_key(*parts) == make_key(*parts)
    assert 0 <= make_key(*parts) < 2**64


def test_numpy_integers_are_integers():
    parts = (2**63 + 5, 7, 0)
    assert make_key(*(np.uint64(p) for p in parts)) == make_key(*parts)
    assert make_key(np.int64(-1)) == make_key(-1)


@given(st.lists(part, max_size=4), st.lists(part, max_size=4))
def test_different_parts_get_different_keys(a, b):
    # -1 and 2^64 - 1 are one 64-bit pattern; nothing else may collide.
    patterns = [[p & (2**64 - 1) if isinstance(p, int) else p for p in parts] for parts in (a, b)]
    if patterns[0] != patterns[1]:
        assert make_key(*a) != make_key(*b)


def test_mix_is_the_splitmix64_finaliser():
    # First output of SplitMix64 with seed 0, from its published test vector.
    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


def test_keys_of_a_grid_are_distinct_and_balanced():
    keys = [make_key(seed, step, "solve", "deduction", i) for seed in range(3)
            for step in range(50) for i in range(50)]  # fmt: skip
    assert len(set(keys)) == len(keys)
    bits = np.array([[k >> b & 1 for b in range(64)] for k in keys])
    # Each bit is set in half of 7,500 keys: 6 deviations of a fair coin.
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 6 * 0.5 / np.sqrt(len(keys))


def test_a_generator_does_not_depend_on_other_draws():
    first = generator(1, 2, "x").random(5)
    generator(1, 3, "x").random(100)
    assert np.array_equal(first, generator(1, 2, "x").random(5))
    assert not np.array_equal(first, generator(1, 3, "x").random(5))
