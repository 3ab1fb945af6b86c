"""Arguments and outputs that are expressions: `'a' * 13`, `dict(a=1)`, `[0, 3], lambda x: x < 2`.

A dozen of CRUXEval's own inputs are no literals. Outside the sandbox a text is parsed and held
against rules; what it means is found out inside, by the programs below. Each gets texts as its
arguments and none of them ever learns the value that is looked for:

    ARGUMENTS_PROGRAM  the arguments of a call as plain values, which come out and are given to the
                       item's own program as literals
    CALL_PROGRAM       for arguments that are no plain values, a function or an iterator: what the
                       item's `f` returns, called in the same process
    OUTPUT_PROGRAM     the value of an expression, which sees no name of the item's program
"""

import ast
from typing import Any

from azr.sandbox import Job
from azr.sandbox.records import canonical_text
from azr.tasks.program.values import NoLiteral, parse_call, parse_expression

ARGUMENTS_PROGRAM = '''
def f(code, call):
    """Returns [positional, named] arguments of a call of `_call_`; a function if they share any."""
    names = {"__name__": "builtins"}
    exec(code, names)
    given = eval(call, {**names, "_call_": lambda *args, **named: [list(args), named]})
    seen = set()

    def shares(value):
        """Whether a list, set or dict stands in two places: literals would part them."""
        kind = type(value)
        if kind in (list, set, dict):
            if id(value) in seen:
                return True
            seen.add(id(value))
        items = value.values() if kind is dict else value
        return kind in (list, tuple, dict) and any([shares(item) for item in items])

    return shares if shares(given) else given
'''

CALL_PROGRAM = '''
from copy import deepcopy


def f(code, call):
    """Returns what the program's `f` returns in a call of `_call_`."""
    names = {"__name__": "builtins"}
    exec(code, names)
    del names["__builtins__"]
    # The arguments can neither rebind a name of the program nor change its lists and dicts.
    seen = {
        name: deepcopy(value) if isinstance(value, (list, dict, set)) else value
        for name, value in names.items()
    }
    return eval(call, {**seen, "_call_": names["f"]})
'''

OUTPUT_PROGRAM = '''
def f(text):
    """Returns the value of an expression."""
    return eval(text, {})
'''


def is_expression(text: str) -> bool:
    """Returns whether a text is one expression, which a comment may follow."""
    try:
        parse_expression(text)
    except NoLiteral:
        return False
    return True


def is_argument_list(text: str) -> bool:
    """Returns whether `f(text)` is one call of `f` and nothing more."""
    try:
        parse_call(text)
    except NoLiteral:
        return False
    return True


def until_bracket(line: str) -> str | None:
    """Returns the argument list in front of the bracket that closes `f(line`; None if none does.

    A comment may follow the bracket, and nothing else.
    """
    source = f"f({line.strip()}"
    try:
        call = parse_expression(source)
    except NoLiteral:
        return None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        return None
    if call.end_lineno != 1 or call.end_col_offset is None:
        return None
    # Columns are bytes of UTF-8.
    return source.encode()[2 : call.end_col_offset - 1].decode()


def arguments_job(code: str, arguments: str) -> Job:
    """Returns the job that finds out the arguments as values."""
    return Job(ARGUMENTS_PROGRAM, _texts(code, _call(arguments)))


def call_job(code: str, arguments: str) -> Job:
    """Returns the job that calls the program's `f` with arguments that are no plain values."""
    return Job(CALL_PROGRAM, _texts(code, _call(arguments)))


def output_job(answer: str) -> Job:
    """Returns the job that finds out the value of a predicted output."""
    return Job(OUTPUT_PROGRAM, _texts(answer.strip()))


def _texts(*texts: str) -> str:
    return ", ".join(map(repr, texts))


def _call(arguments: str) -> str:
    return f"_call_({arguments.strip()}\n)"


def write_arguments(given: Any) -> str:
    """Returns the literals for a value that ARGUMENTS_PROGRAM returned."""
    positional, named = given
    parts = [canonical_text(value) for value in positional]
    return ", ".join([*parts, *(f"{name}={canonical_text(v)}" for name, v in named.items())])
