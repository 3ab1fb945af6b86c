"""How long, how branched and how different programs are."""

import ast
import functools
from collections import defaultdict
from collections.abc import Sequence

from mccabe import PathGraphingAstVisitor

from azr.tasks.program.normal import UnreadableCode, normal_form, normal_tree, parse_module

MOST_NODES = 2_000
"""Nodes of a tree that are compared."""


def lines(code: str) -> int:
    """Returns the number of lines that are not blank."""
    return sum(bool(line.strip()) for line in code.splitlines())


@functools.lru_cache(maxsize=1 << 13)
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


@functools.lru_cache(maxsize=1 << 13)
def ast_distance(code: str, other: str) -> float:
    """Returns the distance of two programs' syntax trees, 0 (equal) to 1 (nothing in common).

    1 minus twice the longest common subsequence over the sum of both lengths, of the nodes of the
    normal trees in preorder, each with its own literal or name. The official code compares the
    characters of serialised trees by difflib's matching blocks, which takes time with the cube of
    the length where elements repeat: half a minute for two lists of a thousand numbers.
    """
    if normal_form(code) == normal_form(other):
        return 0.0
    left, right = _nodes(code), _nodes(other)
    return 1.0 - 2 * _common(left, right) / (len(left) + len(right))


def _common(left: Sequence[str], right: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence.

    Bit-parallel, after Hyyro (2004): a row of the table is one integer, in which a bit is 0 where
    the length grows by one.
    """
    places: dict[str, int] = defaultdict(int)
    for at, text in enumerate(left):
        places[text] |= 1 << at
    full = row = (1 << len(left)) - 1
    for text in right:
        hits = row & places.get(text, 0)
        row = (row + hits | row - hits) & full
    return len(left) - row.bit_count()


@functools.lru_cache(maxsize=1 << 12)
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
