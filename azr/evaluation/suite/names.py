"""Which names an answer may use: those by which code reaches what is not its own are refused.

What counts is the syntax tree, so that a comment, a docstring or a text that is data says nothing.
A program that spells such names in pieces gets by; what it could do then is told in the docs.
"""

import ast
import builtins
import re

from azr.tasks.program.values import parse_silently

REACHING = frozenset(
    "gi_frame cr_frame ag_frame tb_frame f_back f_globals f_locals f_builtins f_code "
    "__globals__ __code__ __closure__ __builtins__ __subclasses__ __traceback__ __loader__ "
    "__spec__ __self__ __defaults__ __kwdefaults__".split()
)
"""By these a program reaches its caller's variables, or the inside of a function that is not its
own. No solution of a task needs them."""

LOOK_UPS = frozenset(
    "getattr setattr delattr hasattr attrgetter methodcaller __getattribute__ get_field __dict__ "
    "vars eval exec compile".split()
)
"""By these a program reaches names that it has as texts."""

_IN_TEXT = re.compile(rf"(?<!\w)(?:{'|'.join(sorted(REACHING))})(?!\w)")


def reaches(program: str) -> bool:
    """Returns whether a program names one of `REACHING`.

    As a name, an attribute or a keyword of a pattern; in a text only where the program looks names
    up by their texts at all.
    """
    try:
        nodes = list(ast.walk(parse_silently(program)))
    except SyntaxError:
        return False  # it cannot run either
    except (ValueError, MemoryError, RecursionError):
        return bool(_IN_TEXT.search(program))  # beyond this parser, not surely beyond the sandbox
    names = {name for node in nodes for name in _names(node)}
    if names & REACHING:
        return True
    said = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}  # docstrings
    texts = (
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said
    )
    return bool(names & LOOK_UPS) and any(map(_IN_TEXT.search, texts))


def _names(node: ast.AST) -> list[str]:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return [name]
        case ast.alias(name=name):
            return name.split(".")
        case ast.MatchClass(kwd_attrs=names):
            return names
    return []


EXPRESSIONS = (
    ast.Attribute, ast.BinOp, ast.BoolOp, ast.Call, ast.Compare, ast.Constant, ast.Dict,
    ast.DictComp, ast.FormattedValue, ast.GeneratorExp, ast.IfExp, ast.JoinedStr, ast.Lambda,
    ast.List, ast.ListComp, ast.Name, ast.Set, ast.SetComp, ast.Slice, ast.Starred, ast.Subscript,
    ast.Tuple, ast.UnaryOp,
)  # fmt: skip
PARTS = (
    ast.arg, ast.arguments, ast.boolop, ast.cmpop, ast.comprehension, ast.expr_context, ast.keyword,
    ast.operator, ast.unaryop,
)  # fmt: skip

HARMLESS = frozenset(
    "abs all any ascii bin bool bytearray bytes callable chr complex dict divmod enumerate filter "
    "float format frozenset hash hex int isinstance issubclass iter len list map max min next "
    "object oct ord pow range repr reversed round set slice sorted str sum tuple zip False None "
    "True Ellipsis NotImplemented".split()
) | {
    name
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException)
}
"""Built-in names that arguments may use where they run beside the program."""


def is_harmless(expression: ast.expr) -> bool:
    """Returns whether arguments may be evaluated in the process of the program that gets them.

    Only these kinds of nodes, none of which binds a name beyond itself; of the built-in names only
    `HARMLESS`; no private attribute, and no name that reaches or sets others by text.
    """
    for node in ast.walk(expression):
        if not isinstance(node, EXPRESSIONS + PARTS):
            return False
        if isinstance(node, ast.Name) and hasattr(builtins, node.id) and node.id not in HARMLESS:
            return False
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            return False
        if any(name[:2] == "__" or name in REACHING | LOOK_UPS for name in _names(node)):
            return False
    return True
