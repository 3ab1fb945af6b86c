"""Plain Python values as text: the one reader of literals, and when two values are equal.

Nothing here runs model-written text: literals are parsed, never evaluated. Length and nesting are
bounded before the parser sees a text, and whatever it raises means "no literal".
"""

import ast
import cmath
import functools
import warnings

from azr.sandbox.records import canonical_text
from azr.tasks.envelope import nesting

MAX_CHARS = 8_000
LITERAL_DEPTH = 32
UNWRITTEN = 10**4300
"""The least integer that Python does not write in decimal; it reads such a one in hexadecimal."""

_PARSE_ERRORS = (
    SyntaxError, ValueError, TypeError, OverflowError, MemoryError, RecursionError,
)  # fmt: skip


class NoLiteral(ValueError):
    """Text that is no literal of a plain Python value."""


def read_literal(text: str) -> object:
    """Returns the value of a literal; raises NoLiteral, and nothing else, for any other text.

    A literal is what `repr` writes for None, bool, int, float, complex, str, bytes and for lists,
    tuples, dicts and sets of these, in any spelling Python has for it. Names, calls (but for
    `set()`), operators, comprehensions and f-strings are none, and neither is what `write_literal`
    refuses: a number that overflows to infinity, `1e999`, or is NaN.
    """
    expression = parse_expression(text)
    try:
        value = ast.literal_eval(expression)
    except _PARSE_ERRORS as error:
        raise NoLiteral(type(error).__name__) from None
    if not _is_plain(value):
        raise NoLiteral("no plain value")
    return value


def parse_silently(text: str) -> ast.Module:
    """Returns what `ast.parse` does, and raises what it raises, without a word on the screen.

    Python warns of an unknown escape or `is` beside a number, and nobody here could mend them.
    """
    with warnings.catch_warnings(action="ignore"):
        return ast.parse(text)


def parse_expression(text: str) -> ast.expr:
    """Returns the syntax tree of one expression, which a comment may follow; raises NoLiteral."""
    if len(text) > MAX_CHARS:
        raise NoLiteral(f"longer than {MAX_CHARS} characters")
    if nesting(text) > LITERAL_DEPTH:
        raise NoLiteral(f"nested deeper than {LITERAL_DEPTH}")
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(text.strip(), mode="eval").body
    except _PARSE_ERRORS as error:
        raise NoLiteral(type(error).__name__) from None


def parse_call(text: str) -> ast.Call:
    """Returns the syntax tree of `f(text)`; raises NoLiteral where it is not one call of `f`.

    Text that closes the call and goes on, `1) or (2` or `1)(2`, is no argument list.
    """
    call = parse_expression(f"f({text.strip()}\n)")
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise NoLiteral("no argument list")
    return call


@functools.lru_cache(maxsize=1 << 13)
def read_arguments(text: str) -> str:
    """Returns the canonical text of an argument list; raises NoLiteral where it is none.

    `1, [2, 3], x='a'` is one: positional literals, then named ones. Two texts with the same
    canonical text mean the same arguments. A starred argument is none.
    """
    call = parse_call(text)
    try:
        values = [ast.literal_eval(node) for node in call.args]
        named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except _PARSE_ERRORS as error:
        raise NoLiteral(type(error).__name__) from None
    if not values and not named:
        raise NoLiteral("no argument")
    if None in named or len(named) < len(call.keywords):
        raise NoLiteral("starred or repeated arguments")
    parts = [write_literal(v) for v in values]
    return ", ".join([*parts, *(f"{name}={write_literal(v)}" for name, v in named.items())])


def names_parameters(text: str) -> bool:
    """Returns whether an argument list of `read_arguments` passes any argument by name."""
    return "=" in text and bool(parse_call(text).keywords)


def write_literal(value: object) -> str:
    """Returns a text that reads back as an equal value, the same one for equal sets.

    Raises NoLiteral for what has none: infinity, NaN, integers of more digits than Python writes,
    and anything that is no plain value; an instance of a subclass is one of its class.
    """
    if not _is_plain(value):
        raise NoLiteral("no plain value")
    return canonical_text(value)


def equal(left: object, right: object) -> bool:
    """Returns Python's own `left == right` for plain values.

    So 1 == 1.0 == True and 0.0 == -0.0, a list never equals a tuple, sets and dicts do not mind
    their order, and NaN equals nothing, also inside a container. The two sides come from two
    parses, so that no NaN is ever compared with itself, which a container would call equal.
    """
    try:
        return bool(left == right)
    except RecursionError:  # deeper than read_literal lets through: a value from elsewhere
        return False


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    if isinstance(value, int):
        return abs(value) < UNWRITTEN
    if isinstance(value, float | complex):
        return cmath.isfinite(value)
    return value is None or isinstance(value, str | bytes)
