"""What a proposed program must look like before it is run at all."""

import ast
import functools

from azr.sandbox.modules import ALLOWED, FACADES
from azr.tasks.program.normal import UnreadableCode, find_f, parse_module

IMPORTABLE = frozenset(name.split(".")[0] for name in (*ALLOWED, *FACADES))
"""Packages that a program may import; everything else has files, clocks, chance or processes.

They are the sandbox's own, and it is the sandbox that keeps a program in. The check here costs
nothing, and gives the proposer a named reason without a run.
"""


@functools.lru_cache(maxsize=1 << 13)
def reject_program(code: str) -> str:
    """Returns the reason why a program is no task, empty where it may be run.

    Reasons: syntax_error, forbidden_import, no_function, no_parameter, no_return.
    """
    try:
        tree = parse_module(code)
    except UnreadableCode:
        return "syntax_error"
    for node in ast.walk(tree):
        if any(name.split(".")[0] not in IMPORTABLE for name in _imported(node)):
            return "forbidden_import"
    function = find_f(tree)
    if function is None:
        return "no_function"
    arguments = function.args
    if not (arguments.posonlyargs or arguments.args or arguments.kwonlyargs or arguments.vararg):
        return "no_parameter"
    return "" if _returns_value(function) else "no_return"


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or "."]
    return []


def _returns_value(function: ast.FunctionDef) -> bool:
    """Whether the function has a `return` of its own, not in a function inside it, with a value."""
    nodes: list[ast.AST] = list(function.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Return) and node.value is not None:
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            nodes += ast.iter_child_nodes(node)
    return False
