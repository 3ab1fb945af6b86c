"""What makes two programs the same: their normalised syntax tree."""

import ast
import functools
import hashlib
import sys

from azr.tasks.program.values import UNWRITTEN, parse_silently

MAX_CODE_CHARS = 8_000
MAX_DEPTH = 100
DUMP = {"show_empty": True} if sys.version_info >= (3, 13) else {}
"""As `ast.dump` was before Python 3.13."""


class UnreadableCode(ValueError):
    """Text that is no Python module of bounded size and nesting."""


def parse_module(code: str) -> ast.Module:
    """Returns the syntax tree; raises UnreadableCode, and nothing else, for any text.

    Length and nesting are bounded before and after the parser sees the text: CPython's own parser
    answers a deep nest with MemoryError or RecursionError, and a null byte with ValueError. An
    integer of more digits than Python writes, 0xff..., would make the tree one without a text.
    """
    if len(code) > MAX_CODE_CHARS:
        raise UnreadableCode("too long")
    try:
        tree = parse_silently(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise UnreadableCode(type(error).__name__) from None
    if depth(tree) > MAX_DEPTH:
        raise UnreadableCode("too deep")
    numbers = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant))
    if any(isinstance(number, int) and number >= UNWRITTEN for number in numbers):
        raise UnreadableCode("too long a number")
    return tree


def depth(tree: ast.AST) -> int:
    """Returns the number of nodes on the longest path from the root, without recursion."""
    level, nodes = 0, [tree]
    while nodes:
        level += 1
        nodes = [child for node in nodes for child in ast.iter_child_nodes(node)]
    return level


def normal_tree(code: str) -> ast.Module:
    """Returns a syntax tree that two programs share if they differ in names and comments alone.

    Names that the program binds are numbered in the order of their first appearance, except `f`
    and those that it can tell apart: members of classes and names by which calls pass arguments.
    Docstrings are dropped. Free names, attributes and keywords stay as they are. The tree is the
    same under every version of Python: hold-outs go by it. Raises UnreadableCode.

    Programs that look their own names up as texts, `globals()["g"]`, may share one all the same.
    """
    tree = parse_module(code)
    kept = {"f"}.union(*map(_kept_names, ast.walk(tree)))
    numbers: dict[str, str] = {}
    for node in ast.walk(tree):
        for name in _bound_names(node):
            if name not in kept:
                # No identifier: it cannot be confused with a free name.
                numbers.setdefault(name, f"%{len(numbers)}")
    for node in ast.walk(tree):
        _rename(node, numbers)
        _drop_docstring(node)
        _drop_novelties(node)
    return tree


@functools.lru_cache(maxsize=1 << 13)
def normal_form(code: str) -> str:
    """Returns the text of the normal tree; raises UnreadableCode."""
    try:
        return ast.dump(normal_tree(code), annotate_fields=False, **DUMP)
    except RecursionError:
        raise UnreadableCode("too deep") from None


def digest(code: str) -> str:
    """Returns 16 hexadecimal digits of the normal form; raises UnreadableCode."""
    return hashlib.blake2b(
        normal_form(code).encode(), digest_size=8, person=b"azr-code"
    ).hexdigest()


def find_f(tree: ast.Module) -> ast.FunctionDef | None:
    """Returns the definition of `f` that a program ends up with, None where it has none."""
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "f"]
    return functions[-1] if functions else None


def parameters(code: str) -> list[str]:
    """Returns the names of the parameters of the program's `f`; raises UnreadableCode."""
    function = find_f(parse_module(code))
    return [n.arg for n in ast.walk(function.args) if isinstance(n, ast.arg)] if function else []


def _bound_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
        return [node.id]
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
        return [node.name]
    if isinstance(node, ast.alias) and node.asname:
        return [node.asname]
    return []


def _kept_names(node: ast.AST) -> list[str]:
    """Returns the names that a call passes arguments by, or that a class binds in its body."""
    if isinstance(node, ast.keyword) and node.arg:
        return [node.arg]
    names: list[str] = []
    inner: list[ast.AST] = [*node.body] if isinstance(node, ast.ClassDef) else []
    while inner:
        part = inner.pop()
        names += _bound_names(part)
        if not isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            inner += ast.iter_child_nodes(part)
    return names


def _rename(node: ast.AST, numbers: dict[str, str]) -> None:
    for field in ("id", "arg", "name", "asname"):
        # A keyword's `arg` is a name of the function called, not of this program.
        if isinstance(node, ast.keyword | ast.alias) and field in ("arg", "name"):
            continue
        name = getattr(node, field, None)
        if isinstance(name, str) and name in numbers:
            setattr(node, field, numbers[name])
    if isinstance(node, ast.Global | ast.Nonlocal):
        node.names = [numbers.get(name, name) for name in node.names]


def _drop_docstring(node: ast.AST) -> None:
    if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        match node.body:
            case [ast.Expr(ast.Constant(str())), _, *_]:
                del node.body[0]


def _drop_novelties(node: ast.AST) -> None:
    """Takes off what a later Python adds to the tree of a program that does not use it."""
    if getattr(node, "type_params", None) == []:  # since 3.12
        delattr(node, "type_params")
    if isinstance(node, ast.JoinedStr):  # 3.12 ends a format specification with an empty text
        empty = [isinstance(v, ast.Constant) and v.value == "" for v in node.values]
        node.values = [v for v, drop in zip(node.values, empty, strict=True) if not drop]
