"""Where a function that a base model completed has ended, and the program that it makes.

A base model goes on after the body: with another function, which the stop strings cut off, with a
control token's name that its training texts held, or with prose. None of these is the function.
"""

import ast
import re

from azr.tasks.program.values import parse_silently

BODY_ENDS = (
    "\nclass ", "\ndef ", "\n#", "\nif ", "\nprint", "\nassert", "\n@", "\n```",
    "\n<|", "\n<fim_", "\n<file_", "\n</s>",
)  # fmt: skip
"""Where a completed function has ended, and the base model is writing something else."""

CONTROL = re.compile(
    r"<\|[^\s<>|]{1,40}\|>|<｜[^\s<>｜]{1,40}｜>|</?s>|\[/?INST\]"
    r"|<(?:fim|file|repo|gh|issue|commit|jupyter|empty|start_of|end_of)_[a-z_]{1,40}>"
    r"|<(?:EOT|PRE|SUF|MID|eos|bos|pad|unk|reponame|filename)>"
)
"""Names of control tokens, as texts; in a text of the program's own they are no end."""

PARSED_CHARS = 500_000
"""Characters that are parsed to find the end of one body; behind them it stays as it is."""

_PARSE_ERRORS = (SyntaxError, ValueError, MemoryError, RecursionError)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def until_end(body: str) -> str:
    """Returns a body up to the first of `BODY_ENDS`."""
    ends = [at for at in map(body.find, BODY_ENDS) if at >= 0]
    return body[: min(ends, default=len(body))]


def complete(prompt: str, body: str) -> str:
    """Returns the program of a prompt and the body that was written behind it.

    A body on a line of its own is not glued to a prompt that has lost its last newline. What cannot
    be the program's is cut off: from the last line at column 0, or control token, in front of which
    the program parses. Where it parses nowhere it stays whole, for the sandbox to say so.
    """
    shown = prompt.rstrip()
    if body[:1] in ("\n", "\r"):
        heads = [shown]
    else:
        heads = [shown + "\n", prompt, shown]
    kept = [_kept(head, body) for head in heads]
    best = max(kept)
    return heads[kept.index(best)] + (body if best < 0 else body[:best])


def _kept(head: str, body: str) -> int:
    """Returns how many characters of a body are the program's; -1 where it parses nowhere."""
    line_of = head.count("\n") + 1
    ends = {len(body)} | {match.start() for match in CONTROL.finditer(body)}
    ends |= {match.start() for match in re.finditer(r"(?m)^(?=[^\s#])", body) if match.start()}
    budget, last_line = PARSED_CHARS, float("inf")
    for end in sorted(ends, reverse=True):
        program = head + body[:end]
        if line_of + body.count("\n", 0, end) > last_line and end < len(body):
            continue  # the line that does not parse is still in it
        budget -= len(program)
        if budget < 0:
            return -1
        try:
            return _until_stray(head, body[:end], parse_silently(program))
        except SyntaxError as error:
            last_line = error.lineno or last_line
        except _PARSE_ERRORS:
            continue
    return -1


def _until_stray(head: str, body: str, tree: ast.Module) -> int:
    """Returns the length of a body up to a statement behind the function that is prose."""
    begins = head.count("\n") + 1
    for node in tree.body:
        is_of_body = node.lineno > begins or (node.lineno == begins and head.endswith("\n"))
        if is_of_body and _is_stray(node):
            return sum(len(line) + 1 for line in body.split("\n")[: node.lineno - begins])
    return len(body)


def _is_stray(node: ast.stmt) -> bool:
    """Returns whether a statement of a module says nothing or cannot stand there.

    "Explanation", "Note: this" and "Output: 5" are Python, too.
    """
    match node:
        case ast.Expr(value=ast.Constant(value=str())):
            return False
        case ast.Expr() | ast.AnnAssign(value=None):
            return True
    return _returns(node)


def _returns(node: ast.AST) -> bool:
    if isinstance(node, _FUNCTIONS):
        return False
    parts = (
        child
        for child in ast.iter_child_nodes(node)
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case)
    )
    return isinstance(node, ast.Return) or any(map(_returns, parts))
