"""How long, how branched and how different programs are."""

import ast
import functools
from difflib import SequenceMatcher

from mccabe import PathGraphingAstVisitor

from azr.tasks.program.normal import UnreadableCode, normal_form, normal_tree, parse_module

MOST_NODES = 2_000
"""Nodes of a tree that are compared; the matcher is quadratic."""


def lines(code: str) -> int:
    """Returns the number of lines that are not blank."""
    return sum(bool(line.strip()) for line in code.splitlines())


@functools.lru_cache(maxsize=1 << 16)
def complexity(code: str) -> int:
    """Returns the sum of the cyclomatic complexities of a program's functions, at least 1.

    By the library mccabe, which flake8 uses too. The official code logs cognitive complexity.
    """
    visitor = PathGraphingAstVisitor()
    try:
        visitor.preorder(parse_module(code), visitor)
    except (UnreadableCode, RecursionError):
        return 1
    return max(1, sum(graph.complexity() for graph in visitor.graphs.values()))


@functools.lru_cache(maxsize=1 << 16)
def ast_distance(code: str, other: str) -> float:
    """Returns the distance of two programs' syntax trees, 0 (equal) to 1 (nothing in common).

    1 minus the ratio of difflib's matching blocks, over the nodes of both normal trees in
    preorder, each with its own literal or name. The official code compares the characters of
    serialised trees by the same ratio.
    """
    if normal_form(code) == normal_form(other):
        return 0.0
    return 1.0 - SequenceMatcher(None, _nodes(code), _nodes(other), autojunk=False).ratio()


@functools.lru_cache(maxsize=1 << 14)
def _nodes(code: str) -> list[str]:
    """Returns a text per node of a program's normal tree, in preorder."""
    texts: list[str] = []
    stack: list[ast.AST] = [normal_tree(code)]
    while stack and len(texts) < MOST_NODES:
        node = stack.pop()
        leaf = getattr(node, "value", None) if isinstance(node, ast.Constant) else ""
        names = (getattr(node, field, "") for field in ("id", "attr", "arg", "name", "asname"))
        name = " ".join(filter(None, names))
        texts.append(f"{type(node).__name__} {name} {leaf!r}")
        stack += reversed(list(ast.iter_child_nodes(node)))
    return texts
