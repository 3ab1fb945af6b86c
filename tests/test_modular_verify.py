"""The verifiers of `modular` against Python integers, for every verdict."""

import itertools

import numpy as np
import pytest

from azr import modular
from azr.modular import BAD_PROBLEM, NOT_PRIME, OK, OUT_OF_RANGE, UNPARSABLE, WRONG
from azr.modular import kernels as kernels


def expected_pair(p, known, answer):
    if not (2 <= p <= modular.MAX_P and 1 <= known < p):
        return BAD_PROBLEM
    if answer is None:
        return UNPARSABLE
    if not 1 <= answer < p:
        return OUT_OF_RANGE
    return OK if known * answer % p == 1 else WRONG


def is_prime_slowly(n):
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


def expected_modulus(x, y, p, max_p):
    if p > max_p or p <= max(x, y):
        return OUT_OF_RANGE
    if (x * y - 1) % p:
        return WRONG
    return OK if is_prime_slowly(p) else NOT_PRIME


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_every_small_row(dtype):
    rows = [
        (p, x, y) for p in range(-1, 40) for x in range(-1, max(p, 0) + 2) for y in range(-1, p + 3)
    ]
    p, x, y = (np.array(column, dtype=dtype) for column in zip(*rows, strict=True))
    expected = [expected_pair(*row) for row in rows]
    for verify in (modular.verify_y, modular.verify_x):
        status = verify(p, x, y, check="status")
        assert status.dtype == np.uint8
        assert status.tolist() == expected
    assert {*expected} == {OK, WRONG, OUT_OF_RANGE, BAD_PROBLEM}


@pytest.mark.parametrize("bits", [8, 16, 22, 31, 32, 50, 61])
def test_right_and_mutated_answers(bits):
    p, x, y = modular.sample(3000, 2**bits - 1, min_p=2 ** (bits - 1), seed=bits)
    for answer in (y, y + 1, y - 1, p - y, x, np.roll(y, 1), y ^ 1, y + p, 0 * y, p - 1):
        answer = answer.astype(p.dtype)  # y + p may wrap: then it is some other wrong answer
        rows = zip(p.tolist(), x.tolist(), answer.tolist(), strict=True)
        expected = [expected_pair(*row) for row in rows]
        assert modular.verify_y(p, x, answer).tolist() == expected
        assert modular.verify_x(p, x, answer).tolist() == expected
        wide = [column.astype(np.int64) for column in (p, x, answer)]
        assert modular.verify_y(*wide).tolist() == expected


def test_moduli_beside_the_limits_and_composite_ones():
    rng = np.random.default_rng(5)
    for limit in (2**31, 2**32, 2**50, 2**53, 2**61, 2**62):
        p = np.repeat(np.arange(limit - 40, limit), 20)
        x = rng.integers(1, p)
        y, invertible = modular.invert(x, p, check="status")
        keep = invertible == OK
        p, x, y = p[keep], x[keep], y[keep]
        assert (p % 2 == 0).any()
        for answer in (y, y - 1, p - y, np.roll(y, 1)):
            rows = zip(p.tolist(), x.tolist(), answer.tolist(), strict=True)
            assert modular.verify_y(p, x, answer).tolist() == [expected_pair(*r) for r in rows]


def test_the_twins_of_the_verifiers_agree(monkeypatch):
    p, x, y = modular.sample(300, 2**31 - 1, seed=9)
    p[7], x[8], y[9] = 1, 0, -5
    y[::3] -= 1
    for kernel, more in ((kernels.verify_32, ()), (kernels.verify, (2**31 - 1, False))):
        compiled, plain = np.zeros(300, np.uint8), np.zeros(300, np.uint8)
        kernel(x, y, p, *more, compiled)
        with np.errstate(over="ignore"):
            kernel.py_func(x, y, p, *more, plain)
        assert (compiled == plain).all() and {0, 1, 2} <= {*compiled.tolist()}


def test_exact_products_agree_with_python():
    rng = np.random.default_rng(6)
    for a, b in rng.integers(0, 2**63, (200, 2)).tolist() + [[0, 0], [2**63 - 1] * 2]:
        a, b = np.uint64(a), np.uint64(b)
        assert compiled_mul_high(a, b) == kernels.mul_high(a, b) == int(a) * int(b) >> 64
    for m in [1, 3, 2**63 - 1, *(rng.integers(0, 2**62, 50) * 2 + 1).tolist()]:
        assert int(kernels.inverse_of_odd(np.uint64(m))) * m % 2**64 == 1


@kernels.jit
def compiled_mul_high(a, b):
    return kernels.mul_high(a, b)


def test_kernel_words_stay_unsigned():
    """uint64 meeting a signed number becomes int64 in Numba: pinned by type, not by memory."""
    kernels.inverse_of_odd(np.uint64(3))
    kernels.mix(np.uint64(3))
    for f in (kernels.inverse_of_odd, kernels.mix):
        assert [str(s.return_type) for s in f.nopython_signatures] == ["uint64"]


# --- which prime is p? --------------------------------------------------------------------------


@pytest.mark.parametrize("max_p", [1000, 97, 2])
def test_every_small_answer_p(max_p):
    rows = [(x, y, p) for x in range(1, 14) for y in range(1, 14) for p in range(-2, 180)]
    x, y, p = zip(*rows, strict=True)
    expected = [expected_modulus(*row, max_p) for row in rows]
    assert modular.verify_p(list(x), list(y), list(p), max_p=max_p).tolist() == expected
    x, y, p = (np.array(column, dtype=np.int32) for column in (x, y, p))
    assert modular.verify_p(x, y, p, max_p=max_p).tolist() == expected


def test_any_prime_is_right_where_x_and_y_are_1():
    answers = [1, 2, 3, 4, 2**61 - 1, 2**62 - 57, 2**62]
    expected = [OUT_OF_RANGE, OK, OK, NOT_PRIME, OK, OK, OUT_OF_RANGE]
    assert modular.verify_p(1, 1, answers).tolist() == expected


def test_every_prime_factor_above_x_and_y_is_right():
    # 62 * 95 - 1 = 19 * 310 - 1 = 5889 = 3 * 13 * 151
    assert modular.verify_p(62, 95, [151, 13, 453, 1963, 5889, 149]).tolist() == [
        OK, OUT_OF_RANGE, NOT_PRIME, NOT_PRIME, NOT_PRIME, WRONG,
    ]  # fmt: skip
    assert modular.verify_p(62, 95, 151, max_p=150) == OUT_OF_RANGE


@pytest.mark.parametrize("bits", [20, 31, 45, 61])
def test_large_answers_p(bits):
    p, x, y = modular.sample(400, 2**bits - 1, min_p=2 ** (bits - 1), seed=bits)
    assert (modular.verify_p(x, y, p) == OK).all()
    assert (modular.verify_p(x, y, p, max_p=2 ** (bits - 1) - 1) == OUT_OF_RANGE).all()
    expected = []
    for a, b, c in zip(x.tolist(), y.tolist(), p.tolist(), strict=True):
        divides = (a * b - 1) // c % 2 == 0
        in_range = NOT_PRIME if divides else WRONG
        expected.append(in_range if 2 * c <= modular.MAX_P else OUT_OF_RANGE)
    wide = [column.astype(np.int64) for column in (x, y, p)]
    assert modular.verify_p(wide[0], wide[1], 2 * wide[2]).tolist() == expected
    assert set(modular.verify_p(x, y, p - 2).tolist()) <= {WRONG, OUT_OF_RANGE, NOT_PRIME}


# --- answers that are no numbers ----------------------------------------------------------------


def test_answers_never_raise():
    answers = [5, None, 0, -1, 7, 12, 10**30, -(10**30), 2**63, 2**64]
    expected = [OK, UNPARSABLE] + [OUT_OF_RANGE] * 8
    assert modular.verify_y(7, 3, answers).tolist() == expected
    assert modular.verify_x(7, 3, answers).tolist() == expected
    assert modular.verify_p(3, 5, [7, None, 10**30, -7]).tolist() == [
        OK, UNPARSABLE, OUT_OF_RANGE, OUT_OF_RANGE,
    ]  # fmt: skip
    huge = np.array([2**64 - 1, 5], dtype=np.uint64)
    assert modular.verify_y(7, 3, huge).tolist() == [OUT_OF_RANGE, OK]
    assert modular.verify_y(7, 3, 5) == OK and modular.verify_y(7, 3, 5).dtype == np.uint8


@pytest.mark.parametrize(
    "wrong", [1.0, [1.0], [True], ["5"], "5", np.array([5.0]), np.array(["5"])]
)
def test_answers_of_a_wrong_type_are_a_type_error(wrong):
    with pytest.raises(TypeError):
        modular.verify_y(7, 3, wrong)
    with pytest.raises(TypeError):
        modular.verify_p(3, 5, wrong)


@pytest.mark.parametrize(
    "bad", [(0, 1), (1, 1), (-7, 1), (7, 0), (7, 7), (7, 8), (7, -1), (2**62, 1)]
)
def test_malformed_problems_raise(bad):
    p, known = [7, bad[0]], [3, bad[1]]
    for verify, name in ((modular.verify_y, "x"), (modular.verify_x, "y")):
        message = rf"p\[1\] = {bad[0]}, {name}\[1\] = {bad[1]}"
        with pytest.raises(ValueError, match=message):
            verify(p, known, [5, 1])
        assert verify(p, known, [5, None], check="status").tolist() == [OK, BAD_PROBLEM]


def test_malformed_problems_of_the_third_kind_raise():
    for bad in (0, -1, 2**62):
        with pytest.raises(ValueError, match=rf"y\[1\] = {bad}"):
            modular.verify_p([3, 1], [5, bad], [7, 7])
        status = modular.verify_p([3, bad], [5, 1], [7, 7], check="status")
        assert status.tolist() == [OK, BAD_PROBLEM]
    for max_p in (1, modular.MAX_P + 1):
        with pytest.raises(ValueError, match="max_p"):
            modular.verify_p(3, 5, 7, max_p=max_p)


def test_empty_and_mismatched_columns():
    assert modular.verify_y([], [], []).shape == modular.verify_p([], [], []).shape == (0,)
    with pytest.raises(ValueError, match="shapes differ"):
        modular.verify_y([7, 7], [3, 3], [5, 5, 5])
    for verify in (modular.verify_y, modular.verify_x, modular.verify_p):
        with pytest.raises(ValueError, match="check"):
            verify(7, 3, 5, check="ignore")


# --- text ---------------------------------------------------------------------------------------

UNREADABLE = ["", " 5", "5 ", "5\n", "+5", "-5", "5.0", "1e3", "٣", "५", "²", "0x5", "5_0", "NaN",
              "1" + "0" * 30, "0" * 20, "five", "\x005"]  # fmt: skip


@pytest.mark.parametrize("text", UNREADABLE)
def test_the_parser_is_strict(text):
    assert modular.verify_text((7, 3, 5), [text, "5"]).tolist() == [UNPARSABLE, OK]


def test_text_answers_to_every_question():
    problems = modular.sample(200, 1000, seed=1)
    for unknown, column in zip("pxy", problems, strict=True):
        texts = [str(n) for n in column.tolist()]
        status = modular.verify_text(problems, texts, unknown=unknown)
        assert (status == OK).all()
        texts[3], texts[4], texts[5] = "9" * 19, "0", "no"
        status = modular.verify_text(problems, texts, unknown=unknown, max_p=1000)
        assert status[3:6].tolist() == [OUT_OF_RANGE, OUT_OF_RANGE, UNPARSABLE]
    assert modular.verify_text((7, 3, 5), ["007"], unknown="p").tolist() == [OK]
    with pytest.raises(ValueError, match="unknown"):
        modular.verify_text(problems, texts, unknown="z")
    for wrong in ("5", b"5", [5], [None]):
        with pytest.raises(TypeError):
            modular.verify_text((7, 3, 5), wrong)


def test_status_names_and_numbers():
    assert [*modular.Status] == [OK, WRONG, OUT_OF_RANGE, NOT_PRIME, UNPARSABLE, BAD_PROBLEM]
    assert [int(s) for s in modular.Status] == [0, 1, 2, 3, 4, 5]


# --- numbers that 64 bits do not hold -----------------------------------------------------------

EDGES = [-(2**70), -(2**63) - 1, -(2**63), 1 - 2**63, -(2**31), -1, 0, 1, 2, 3, 5, 7, 2**31 - 1]
EDGES += [2**31, 2**62 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30]


def forms(column: list[int]):
    """A column as a list and as every array that holds it."""
    yield column
    if all(0 <= n < 2**64 for n in column):
        yield np.array(column, dtype=np.uint64)
    if all(-(2**63) <= n < 2**63 for n in column):
        yield np.array(column, dtype=np.int64)


@pytest.mark.parametrize("p", EDGES)
def test_the_verifiers_of_pairs_take_any_integer(p):
    rows = [(p, known, answer) for known in EDGES for answer in EDGES]
    expected = [expected_pair(*row) for row in rows]
    p, known, answer = (list(column) for column in zip(*rows, strict=True))
    assert modular.verify_y(p, known, answer, check="status").tolist() == expected
    for row, status in list(zip(rows, expected, strict=True))[::7]:
        for columns in itertools.product(*(forms([n]) for n in row)):
            assert modular.verify_x(*columns, check="status").tolist() == [status]
        assert modular.verify_x(*row, check="status") == status


def test_the_verifier_of_moduli_takes_any_integer():
    for x, y, p in itertools.product(EDGES, EDGES, [2**63, -(2**63), 2, 7, 2**61 - 1]):
        bad = not (1 <= x <= modular.MAX_P and 1 <= y <= modular.MAX_P)
        status = modular.verify_p([x], [y], [p], check="status")
        assert (status == BAD_PROBLEM) == bad
        assert p in (2, 7, 2**61 - 1) or bad or status == OUT_OF_RANGE


def test_the_numbers_as_given_are_named():
    for p, known in ((2**70, 3), ([7, 2**70], [3, 3]), (np.uint64(2**64 - 1), 3)):
        with pytest.raises(ValueError, match=r"not a problem: p\[.\] = 1\d{19,}, x\[.\] = 3"):
            modular.verify_y(p, known, [5, 5])
