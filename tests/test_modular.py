"""`azr.modular` against Python integers.   pytest tests/test_modular.py"""

from math import gcd

import numpy as np
import pytest

from azr import modular


@pytest.mark.parametrize("p_dist", ["uniform", "log"])
@pytest.mark.parametrize("max_p", [2, 13, 2**16, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**61])
def test_sample_draws_valid_problems(max_p, p_dist):
    p, x, y = modular.sample(500, max_p, seed=3, p_dist=p_dist)
    dtype = np.int32 if max_p < 2**31 else np.int64
    assert p.dtype == x.dtype == y.dtype == dtype
    for a, b, c in zip(p.tolist(), x.tolist(), y.tolist(), strict=True):
        assert 1 <= b < a <= max_p and 1 <= c < a and b * c % a == 1
    assert modular.is_prime(p).all()
    assert (modular.verify_y(p, x, y) == modular.OK).all()
    assert (modular.verify_x(p, y, x) == modular.OK).all()
    assert (modular.verify_p(x, y, p, max_p=max_p) == modular.OK).all()


def test_invert_agrees_with_pow_for_all_small_pairs():
    p, x = (grid.ravel() for grid in np.mgrid[2:256, 1:256])
    keep = (x < p) & (np.gcd(x, p) == 1)
    p, x = p[keep], x[keep]
    expected = [pow(b, -1, a) for a, b in zip(p.tolist(), x.tolist(), strict=True)]
    assert modular.invert(x, p).tolist() == expected


def test_verifiers_agree_with_python_for_both_verdicts():
    p, x, y = (grid.ravel() for grid in np.mgrid[2:24, 1:26, -1:26])
    keep = x < p
    p, x, y = p[keep], x[keep], y[keep]
    got = modular.verify_y(p, x, y)
    for a, b, c, status in zip(p.tolist(), x.tolist(), y.tolist(), got.tolist(), strict=True):
        if not 1 <= c < a:
            assert status == modular.OUT_OF_RANGE
        else:
            assert status == (modular.OK if b * c % a == 1 else modular.WRONG)


def test_invert_names_the_row_without_an_answer():
    with pytest.raises(modular.NotInvertible, match=r"x\[1\] = 6 .* p\[1\] = 9"):
        modular.invert([1, 6], [7, 9])
    assert gcd(6, 9) != 1
