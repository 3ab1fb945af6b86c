"""Literals, argument lists and equality: no text raises anything else, and none is run."""

import ast
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azr.tasks.program.normal import UnreadableCode, digest, normal_form
from azr.tasks.program.values import NoLiteral, equal, read_arguments, read_literal, write_literal
from azr.tasks.program.verifier import reject_program

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.binary(max_size=4)
)
HASHABLE = st.integers() | st.text(max_size=4) | st.tuples(st.integers(), st.text(max_size=3))
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(HASHABLE, inner, max_size=3)
        | st.sets(HASHABLE, max_size=4)
    ),
    max_leaves=12,
)

BOMBS = [
    "[" * 100_000,
    "(" * 5_000 + ")" * 5_000,
    "-" * 7_000 + "1",
    "not " * 1_900 + "1",
    "1" + "+1" * 3_000,
    "a" + ".b" * 3_000,
    "{" * 31 + "1" + "}" * 31,
    "9" * 7_000,
    "1e" + "9" * 5_000,
    "'" + "\\x" * 2_000 + "'",
    "f'{1}'",
    "\x00",
    "\ud800",
    "1 if 1 else 2",
    "lambda: 1",
    "[x for x in (1,)]",
    "__import__('os').system('true')",
    "1) or (True",
    "True or 1",
    "1 == 1",
    "",
    " ",
    "1\n2",
    "...",
    "nan",
    "float('inf')",
    "frozenset({1})",
    "0x" + "f" * 5_000,
    "[0o" + "7" * 6_000 + "]",
    "9" * 400 + "+1j",
    "0x" + "f" * 5_000 + "+1j",
    "-0x" + "f" * 5_000 + "-2j",
    "1e999",
    "-1e999",
    "[1, {'a': (1e999,)}]",
    "{1e999: 1}",
    "{1e999}",
    "1e999j",
    "1-1e999j",
    "1e999-1e999j",
]


@given(VALUES)
def test_a_value_survives_its_text(value):
    text = write_literal(value)
    assert equal(read_literal(text), value)
    assert type(ast.literal_eval(text)) is type(value)
    assert read_arguments(text) == text


@given(VALUES, VALUES)
def test_equality_is_that_of_python(a, b):
    assert equal(a, b) == (a == b)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("1", "1.0", True),
        ("1", "True", True),
        ("0.0", "-0.0", True),
        ("[1, 2]", "(1, 2)", False),
        ("{1, 2}", "{2, 1}", True),
        ("{'a': 1, 'b': 2}", "{'b': 2, 'a': 1}", True),
        ("[1]", "[1.0]", True),
        ("'1'", "1", False),
        ("b'a'", "'a'", False),
        ("2+0j", "2", True),
    ],
)
def test_documented_cases_of_equality(a, b, same):
    assert equal(read_literal(a), read_literal(b)) is same


def test_nan_equals_nothing_also_inside():
    assert not equal(math.nan, float("nan"))
    assert not equal([float("nan")], [float("nan")])


@pytest.mark.parametrize("text", BOMBS)
def test_what_is_no_literal_is_refused_and_nothing_else_is_raised(text):
    with pytest.raises(NoLiteral):
        read_literal(text)
    if text not in ("1\n2", "1) or (True"):
        with pytest.raises(NoLiteral):
            read_arguments(text)


LONG_NUMBERS = st.builds(
    lambda parts, form, count: form.format(*(p * count for p in parts)),
    st.tuples(*[st.sampled_from(["1", "9", "f", "7", "_1", "e9"])] * 2),
    st.sampled_from(
        ["{}", "0x{}", "-0o{}", "[0b{}]", "{}+{}j", "0x{}-{}j", "{}.{}", "{}e{}", "f({})"]
    ),
    st.integers(1, 4_500),
)


@given(
    st.text(max_size=60) | st.text(alphabet="[](){}'\"\\,:-+ 01aexfj\n", max_size=60) | LONG_NUMBERS
)
def test_no_text_raises_anything_else(text):
    for read in (lambda text: write_literal(read_literal(text)), read_arguments):
        try:
            read(text)
        except NoLiteral:
            pass
    for read in (normal_form, digest):
        try:
            read(text)
        except UnreadableCode:
            pass
    assert isinstance(reject_program(text), str)


@pytest.mark.parametrize(
    "text",
    ["1) or (True", "1); g(2", "*[1]", "**{'a': 1}", "", "x for x in ()", "1, f(2)", "x=1, x=2"],
)
def test_text_that_leaves_the_call_is_no_argument_list(text):
    with pytest.raises(NoLiteral):
        read_arguments(text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("1,2", "1, 2"),
        ("1, 2 ,", "1, 2"),
        ('"a", x=[1]  # note', "'a', x=[1]"),
        ("{2, 1}", "{1, 2}"),
        ("(\n1,\n)", "(1,)"),
        ("0x10", "16"),
    ],
)
def test_argument_lists_have_one_text(text, canonical):
    assert read_arguments(text) == canonical
    assert read_arguments(canonical) == canonical


def test_names_comments_and_layout_do_not_make_another_program():
    first = 'def f(x):\n    """Doc."""\n    # note\n    y = [z for z in x]\n    return sum(y)\n'
    same = "def f(a):\n\n    b=[i for i in a]\n    return sum(b)"
    other = "def f(a):\n    b = [i for i in a]\n    return max(b)\n"
    swapped = "def f(a):\n    b = [i for i in b]\n    return sum(a)\n"
    assert normal_form(first) == normal_form(same)
    assert len({normal_form(code) for code in (first, other, swapped)}) == 3
    # A free name is never taken for a renamed one, nor a keyword for a variable.
    assert normal_form("def f(a): return v0") != normal_form("def f(v0): return v0")


METHODS = """
class C:
    def {0}(self, x=0): return 1
    def {1}(self, x=0): return 2
def f(a): return {2}
"""


@pytest.mark.parametrize(
    ("code", "other"),
    [
        (METHODS.format("p", "q", "C().p()"), METHODS.format("q", "p", "C().p()")),
        (
            METHODS.format("__add__", "__sub__", "C() + 1"),
            METHODS.format("__sub__", "__add__", "C() + 1"),
        ),
        (
            "class C:\n    if 1:\n        p, q = 1, 2\ndef f(a): return C.p",
            "class C:\n    if 1:\n        q, p = 1, 2\ndef f(a): return C.p",
        ),
        (
            "def g(a, b): return a\ndef f(x): return g(a=x, b=0)",
            "def g(b, a): return b\ndef f(x): return g(a=x, b=0)",
        ),
    ],
)
def test_names_that_a_program_can_tell_apart_count(code, other):
    results = []
    for source in (code, other):
        exec(source, names := {})
        results.append(names["f"](1))
    assert results[0] != results[1] and normal_form(code) != normal_form(other)


def test_locals_of_methods_do_not_count():
    code = (
        "class C:\n    def p(self):\n        {0} = 1\n        return {0}\ndef f(a): return C().p()"
    )
    assert normal_form(code.format("n")) == normal_form(code.format("m"))


EVERYTHING = """
@decorated
class C(Base, metaclass=M):
    x: int = 0

def f(a, /, b=1, *c, d=None, **e) -> list[int]:
    'dropped'
    def g(): yield f"{a!r:>{b}}{{}} {b}"
    match a:
        case {"k": [1, *rest]} | C(x=2) as m if m: return [y for y in rest if (z := y)]
    return lambda: {**e, 'c': c}
"""


def test_digests_are_those_of_every_version_of_python():
    """They say what is held out: another version must not train on what this one holds out."""
    assert digest("def f(a):\n    return a\n") == "faffa02eda2f7dff"
    assert digest(EVERYTHING) == "f8d983cb6886c8ff"
    assert normal_form("def f(a): return g(b=a)") != normal_form("def f(a): return g(c=a)")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def f(a):\n    return a", ""),
        ("import math\ndef f(a):\n    return math.pi", ""),
        ("def g(x): return x\ndef f(*a): return g(a)", ""),
        ("def f(a: return a", "syntax_error"),
        ("import os\ndef f(a): return a", "forbidden_import"),
        ("def f(a):\n    from time import time\n    return a", "forbidden_import"),
        ("from . import x\ndef f(a): return a", "forbidden_import"),
        ("def g(a): return a", "no_function"),
        ("f = lambda a: a", "no_function"),
        ("def f(): return 1", "no_parameter"),
        ("def f(a): pass", "no_return"),
        ("def f(a):\n    def g(): return 1\n    return", "no_return"),
        ("def f(a):\n    return a\n" + "x = [" * 150 + "]" * 150, "syntax_error"),
        ("#" * 9_000, "syntax_error"),
    ],
)
def test_programs_are_screened_with_a_named_reason(code, reason):
    assert reject_program(code) == reason
