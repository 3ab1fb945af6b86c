"""The sandbox says of a program what plain CPython says, or refuses it by a status."""

from random import Random

import pytest

from azr.sandbox import Sandbox
from tests.differential import LIMITS, Program, compare, consult, generate, report, verdict
from tests.generated import LIBRARY, every

pytest.importorskip("azr._sandbox", reason="the sandbox is not built here")

SHARE = 0.995
"""Of the programs that CPython gives one outcome; the others may be refused."""


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=2, limits=LIMITS) as sandbox:
        yield sandbox


def check(sandbox, programs: list[Program], share: float = SHARE) -> None:
    comparison = compare(sandbox, programs)
    if comparison.wrong or comparison.share < share:
        pytest.fail(report(comparison), pytrace=False)
    assert comparison.left_out <= len(programs) / 50


def test_programs_give_what_cpython_gives(sandbox):
    check(sandbox, generate(250, seed=0), share=0.98)  # few, so chance counts; soak asks for more


def test_every_template_gives_what_cpython_gives(sandbox):
    # Those that are refused stand here in their full number, not in that of what models write.
    programs = [p for p in every(Random(0)) if p.kind.split()[0] in ("syntax", "shell")]
    check(sandbox, programs, share=0.75)


@pytest.mark.soak
def test_every_function_method_and_encoding_gives_what_cpython_gives(sandbox):
    check(sandbox, [*every(Random(1))], share=0.75)


@pytest.mark.soak
def test_10000_programs_give_what_cpython_gives(sandbox):
    check(sandbox, generate(10_000, seed=1))


def test_the_oracle_tells_outcomes_apart():
    programs = [
        ("def f(x): return [x, {2, 1}, -0.0, {x: ()}]", "ok", "['a', {1, 2}, -0.0, {'a': ()}]"),
        ("def f(x): return {}[x]", "exception", "KeyError"),
        ("class E(KeyError): pass\ndef f(x): raise E", "exception", "UserException"),
        ("def f(x): return float('nan')", "unsupported", "float"),
        ("def f(x): return 10 ** 5000", "unsupported", "int"),
        ("def f(x) return x", "syntax_error", ""),
        ("def f(x):\n    while True: pass", "none", ""),
        ("import ctypes\ndef f(x): return ctypes.string_at(0)", "none", ""),
    ]  # fmt: skip
    said = consult([Program("", code, "'a'") for code, _, _ in programs], hash_seed=0)
    assert said == [(status, text) for _, status, text in programs]


@pytest.mark.parametrize(
    ("right", "got", "expected"),
    [
        (("ok", "1"), ("ok", "1"), "agreed"),
        (("ok", "1"), ("ok", "1.0"), "wrong"),
        (("ok", "1"), ("exception", "KeyError"), "wrong"),
        (("ok", "1"), ("syntax_error", ""), "wrong"),
        (("ok", "1"), ("forbidden_import", "os"), "refused"),
        (("ok", "1"), ("crash", ""), "wrong"),
        (("exception", "KeyError"), ("ok", "1"), "wrong"),
        (("exception", "KeyError"), ("exception", "IndexError"), "wrong"),
        (("exception", "MemoryError"), ("memory", ""), "agreed"),
        (("syntax_error", ""), ("syntax_error", ""), "agreed"),
        (("syntax_error", ""), ("ok", "1"), "wrong"),
        (("unsupported", "int"), ("too_large", ""), "agreed"),
        (("unsupported", "object"), ("ok", "1"), "wrong"),
    ],
)
def test_disagreements_are_told_from_refusals(right, got, expected):
    assert verdict(right, got) == expected


def test_what_differs_by_chance_is_left_out(sandbox):
    codes = [f"def f(x): return hash('{word}') & 1" for word in "abcdefghijkl"]
    comparison = compare(sandbox, [Program("", code, "1") for code in codes])
    assert comparison.wrong == comparison.refused == []
    assert comparison.left_out + comparison.agreed == len(codes) and comparison.left_out > 2


def test_programs_reach_every_module_and_repeat_by_seed():
    programs = generate(3_000, seed=0)
    assert programs[:100] == generate(100, seed=0)
    reached = {program.kind.rpartition(".")[0] for program in programs}
    assert reached >= {*LIBRARY}
    assert len({program.code for program in programs}) > 2_800
