"""The tests of `azr.modular` notice when something that its proofs rest on is taken away.

Each mutation is made in a copy of the product, and a part of the tests runs against the copy in a
process of its own. It must fail, and pass without the mutation.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INVERT, VERIFY, PRIMES, SAMPLE = (
    f"tests/test_modular_{part}.py" for part in ("invert", "verify", "primes", "sample")
)

# name: (file, text, its replacement, tests, choice of tests)
MUTATIONS = {
    "drop the guard against a zero divisor": (
        "modular/simd.py",
        'builder.fcmp_ordered("!=", small, zero), quotient, zero)',
        'builder.fcmp_ordered("!=", small, zero), quotient, quotient)',
        INVERT,
        "below_1024 and small",
    ),
    "drop the guard against a large common factor": (
        "modular/simd.py",
        'is_unfinished = builder.and_(is_large, builder.fcmp_ordered("!=", b, zero))',
        "is_unfinished = is_large",
        INVERT,
        "common_factor",
    ),
    "drop the test that the gcd is 1": (
        "modular/simd.py",
        "np.int32(y if abs(g) == one else zero)",
        "np.int32(y)",
        INVERT,
        "below_1024 and small",
    ),
    "round the quotient down": (
        "modular/simd.py",
        'call("rint", builder.fdiv(big, small))',
        'call("floor", builder.fdiv(big, small))',
        INVERT,
        "loops_step",
    ),
    "raise the float32 limit": (
        "modular/simd.py",
        "SMALL_LIMIT = 2**22",
        "SMALL_LIMIT = 2**26",
        INVERT,
        "adversarial",
    ),
    "raise the float32 limit by one bit": (
        "modular/simd.py",
        "SMALL_LIMIT = 2**22",
        "SMALL_LIMIT = 2**23",
        INVERT,
        "dispatch",
    ),
    "raise the float64 limit": (
        "modular/simd.py",
        "MEDIUM_LIMIT = 2**50",
        "MEDIUM_LIMIT = 2**54",
        INVERT,
        "adversarial",
    ),
    "fastmath in the compiled loops": (
        "modular/jit.py",
        'error_model="numpy")',
        'error_model="numpy", fastmath=True)',
        INVERT,
        "fastmath",
    ),
    "remove base 2": (
        "modular/kernels.py",
        "[2, 7, 61]",
        "[7, 61]",
        PRIMES,
        "pseudoprimes",
    ),
    "remove base 7": (
        "modular/kernels.py",
        "[2, 7, 61]",
        "[2, 61]",
        PRIMES,
        "pseudoprimes",
    ),
    "remove base 61": (
        "modular/kernels.py",
        "[2, 7, 61]",
        "[2, 7]",
        PRIMES,
        "pseudoprimes",
    ),
    "remove a base of the 64-bit test": (
        "modular/kernels.py",
        "9780504, 1795265022]",
        "9780504]",
        PRIMES,
        "published_ones",
    ),
    "accept 1 at an even exponent": (
        "modular/kernels.py",
        "is_one = is_odd &",
        "is_one = is_in_reach &",
        PRIMES,
        "pseudoprimes",
    ),
    "drop the range of an answer": (
        "modular/kernels.py",
        "(min(x[i], y[i]) >= 1) & (max(x[i], y[i]) < p[i])",
        "(min(x[i], y[i]) >= 1)",
        VERIFY,
        "small_row",
    ),
    "accept any answer above 2**60": (
        "modular/kernels.py",
        "return mul_high(low * inverse_of_odd(p), p) == high",
        "return mul_high(low * inverse_of_odd(p), p) == high or p > U64(2**60)",
        VERIFY,
        "limits",
    ),
    "never test p for primality": (
        "modular/__init__.py",
        "status[divides[~is_prime(p[divides])]] = NOT_PRIME",
        "divides",
        VERIFY,
        "answer_p",
    ),
    "keep the surplus words": (
        "modular/kernels.py",
        "while low < threshold:",
        "while low < U64(0):",
        SAMPLE,
        "surplus",
    ),
    "take the next prime of a random number": (
        "modular/kernels.py",
        "        word = mix(word + GOLDEN)\n\n\n@jit\ndef draw_group",
        "        low = span = candidate\n        first_odd = candidate + U64(2)\n"
        "        span = U64(1)\n\n\n@jit\ndef draw_group",
        SAMPLE,
        "uniform",
    ),
}


# Without these guards a lane never ends, and that is how it is noticed.
ENDLESS = {
    "drop the guard against a zero divisor",
    "drop the guard against a large common factor",
}


def run_tests(folder: Path, tests: str, choice: str, is_endless: bool = False) -> int:
    """The exit status of pytest on a copy; 1 if it does not end and is not meant to."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-c", "pytest.ini", "-m", "not soak"]
    command += [tests, "-k", choice]
    limit_s = 100 if is_endless else 900
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        assert is_endless
        return 1
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.returncode


def copy_of_the_product(folder: Path) -> None:
    (folder / "azr").mkdir()
    shutil.copy(ROOT / "azr" / "__init__.py", folder / "azr")
    shutil.copytree(ROOT / "azr" / "modular", folder / "azr" / "modular")
    (folder / "tests").mkdir()
    for source in ROOT.glob("tests/test_modular_*.py"):
        shutil.copy(source, folder / "tests")
    (folder / "pytest.ini").write_text("[pytest]\npythonpath = .\nmarkers =\n    soak: long\n")


@pytest.mark.soak
def test_the_copy_passes_unchanged(tmp_path):
    copy_of_the_product(tmp_path)
    for tests in (INVERT, VERIFY, PRIMES, SAMPLE):
        assert run_tests(tmp_path, tests, "test") == 0


@pytest.mark.soak
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_noticed(name, tmp_path):
    file, text, replacement, tests, choice = MUTATIONS[name]
    copy_of_the_product(tmp_path)
    path = tmp_path / "azr" / file
    source = path.read_text()
    assert source.count(text) == 1, "the mutation no longer fits the source"
    path.write_text(source.replace(text, replacement))
    assert run_tests(tmp_path, tests, choice, name in ENDLESS) == 1
