"""The compact style: programs and values as few words, for the tiny model's own vocabulary.

A compact program is the body of `f(a)` in one line, without commas, one word per name, literal,
index or call:

    b = a [::-1] ; return [ b [0] max( a ) ]      def f(a):
                                                      b = a[::-1]
                                                      return [b[0], max(a)]

A compact value is an integer `3`, a text of one word per letter, `'h' 'e'` for 'he', or a list of
integers and letters, `[ 3 'h' ]` for [3, 'h']. Both renderings are one to one: what a compact text
means is the Python text beside it, and nothing else.
"""

import ast
import functools

from azr.tasks.program.values import NoLiteral, read_literal

VARIABLES = ("a", "b", "c")
DIGITS = tuple("01234")
LETTERS = ("'h'", "'e'", "'l'", "'o'")
INDICES = ("[0]", "[1]", "[2]", "[-1]")
SLICES = ("[::-1]", "[1:]", "[:-1]", "[:2]")
CALLS = ("max(", "min(", "sorted(", "len(")
EMPTY = "''"
MARKS = ("=", ";", "return", "[", "]", ")")
WORDS = (*MARKS, EMPTY, *VARIABLES, *DIGITS, *LETTERS, *INDICES, *SLICES, *CALLS)

MAX_WORDS = 64
MAX_EXPRESSION_DEPTH = 4
MAX_ITEMS = 8


class Inexpressible(ValueError):
    """A program or a value that the compact style has no words for."""


def read_program(text: str) -> str | None:
    """Returns the Python text of a compact program, None where the text is none.

    At most three statements; every one but the last binds the next variable, the last returns.
    """
    words = text.split(" ")
    if len(words) > MAX_WORDS:
        return None
    statements: list[list[str]] = [[]]
    for word in words:
        if word == ";":
            statements.append([])
        else:
            statements[-1].append(word)
    if len(statements) > len(VARIABLES):
        return None
    lines = ["def f(a):"]
    for number, statement in enumerate(statements, 1):
        if number == len(statements):
            start = ["return"]
        else:
            start = [VARIABLES[number], "="]
        if statement[: len(start)] != start:
            return None
        reader = _Reader(statement[len(start) :], VARIABLES[:number])
        expression = reader.expression(0)
        if expression is None or reader.rest():
            return None
        lines.append("    " + " ".join(start) + " " + expression)
    return "\n".join(lines) + "\n"


class _Reader:
    """Reads expressions off a list of words; every method returns None for what is none."""

    def __init__(self, words: list[str], variables: tuple[str, ...]):
        self._words, self._at, self._variables = words, 0, variables

    def rest(self) -> bool:
        return self._at < len(self._words)

    def _take(self) -> str:
        self._at += 1
        return self._words[self._at - 1] if self._at <= len(self._words) else ""

    def _peek(self) -> str:
        return self._words[self._at] if self.rest() else ""

    def expression(self, nesting: int) -> str | None:
        text = self._atom(nesting)
        while text is not None and self._peek() in INDICES + SLICES:
            text += self._take()
        return text

    def _atom(self, nesting: int) -> str | None:
        word = self._take()
        if word in self._variables or word in DIGITS or word in LETTERS or word == EMPTY:
            return word
        if nesting == MAX_EXPRESSION_DEPTH:
            return None
        if word == "[":
            items = self._items("]", nesting)
            return None if items is None else f"[{', '.join(items)}]"
        if word in CALLS:
            items = self._items(")", nesting)
            return f"{word}{', '.join(items)})" if items else None
        return None

    def _items(self, end: str, nesting: int) -> list[str] | None:
        items: list[str] = []
        while self._peek() != end:
            item = self.expression(nesting + 1)
            if item is None or len(items) == MAX_ITEMS:
                return None
            items.append(item)
        self._take()
        return items


def read_value(text: str) -> str | None:
    """Returns the Python text of a compact value, None where the text is none."""
    words = text.split(" ")
    if len(words) > MAX_ITEMS + 2:
        return None
    if len(words) == 1 and words[0] in (*DIGITS, EMPTY):
        return words[0]
    if all(word in LETTERS for word in words):
        return repr("".join(word[1] for word in words))
    if words[0] == "[" and words[-1] == "]" and all(w in DIGITS + LETTERS for w in words[1:-1]):
        return f"[{', '.join(words[1:-1])}]"
    return None


def write_value(value: object) -> str:
    """Returns the compact text of a value; raises Inexpressible where there is none."""
    words = None
    if type(value) is int and str(value) in DIGITS:
        words = [str(value)]
    elif type(value) is str and all(repr(c) in LETTERS for c in value):
        words = [repr(c) for c in value] or [EMPTY]
    elif type(value) is list and all(_is_item(item) for item in value):
        words = ["[", *(repr(item) for item in value), "]"]
    if words is None or len(words) > MAX_ITEMS + 2:
        raise Inexpressible(f"no compact text for {value!r:.80}")
    return " ".join(words)


def _is_item(value: object) -> bool:
    return type(value) in (int, str) and repr(value) in DIGITS + LETTERS


@functools.lru_cache(maxsize=1 << 13)
def write_literal(text: str) -> str:
    """Returns the compact text of a Python literal; raises Inexpressible where there is none."""
    try:
        return write_value(read_literal(text))
    except NoLiteral as error:
        raise Inexpressible(f"no compact text for {text!r:.80}") from error


@functools.lru_cache(maxsize=1 << 13)
def write_program(code: str) -> str:
    """Returns the compact text of a program that `read_program` made; raises Inexpressible."""
    try:
        (function,) = ast.parse(code).body
        statements = function.body if isinstance(function, ast.FunctionDef) else []
        text = " ; ".join(" ".join(_statement(statement)) for statement in statements)
    except (SyntaxError, ValueError) as error:
        raise Inexpressible(f"no compact text for the program {code!r:.80}") from error
    if read_program(text) != code:
        raise Inexpressible(f"no compact text for the program {code!r:.80}")
    return text


def _statement(node: ast.stmt) -> list[str]:
    match node:
        case ast.Return(value=ast.expr() as value):
            return ["return", *_words(value)]
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return [name, "=", *_words(value)]
    raise Inexpressible(f"no compact text for {ast.dump(node):.80}")


def _words(node: ast.expr) -> list[str]:
    match node:
        case ast.Name():
            return [node.id]
        case ast.Constant(value=int() | str()):
            return [repr(node.value)]
        case ast.List():
            return ["[", *(w for item in node.elts for w in _words(item)), "]"]
        case ast.Call(func=ast.Name(id=name)):
            return [f"{name}(", *(w for item in node.args for w in _words(item)), ")"]
        case ast.Subscript():
            return [*_words(node.value), f"[{ast.unparse(node.slice)}]"]
    raise Inexpressible(f"no compact text for {ast.dump(node):.80}")
