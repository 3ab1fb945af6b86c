"""Syntax trees of text that is not ours."""

import ast
import warnings


def parse_silently(text: str) -> ast.Module:
    """Returns what `ast.parse` does, and raises what it raises, without a word on the screen.

    Python warns of an unknown escape or `is` beside a number, and nobody here could mend them.
    """
    with warnings.catch_warnings(action="ignore"):
        return ast.parse(text)
