"""The job that tests a completed function: what its prompt, its test and an answer run as."""

import ast
import re
from pathlib import Path

from azr.evaluation.suite.items import Completion
from azr.sandbox import Job
from azr.tasks.program.values import parse_silently

PASSED = "passed"

TEST_PROGRAM = Path(__file__).with_name("program.py").read_text(encoding="utf-8")

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def completion_job(item: Completion, answer: str) -> Job:
    """Returns the job whose value is `PASSED` where the answer passes the item's test.

    Everything of the item and the answer is an argument of the program: no text is put into code.
    """
    setup = _runnable(item.prompt)
    answer = without_repeats(setup, item.entry_point, answer)
    texts = (setup, answer, item.test, item.entry_point)
    return Job(TEST_PROGRAM, (", ".join(map(repr, texts)),))


def _runnable(prompt: str) -> str:
    """Returns the prompt as a program.

    Its last function has a docstring alone, or no body yet, or one that breaks off: then what
    stands in front of it.
    """
    begun = [match.start() for match in re.finditer(r"(?m)^(?=\S)", prompt)]
    for text in (prompt, prompt.rstrip() + "\n    pass\n", *(prompt[:at] for at in begun[::-1])):
        if _parse(text) is not None:
            return text
    return ""


def without_repeats(setup: str, entry_point: str, answer: str) -> str:
    """Returns an answer without the definitions that it repeats from the prompt.

    The program runs those once, in front of test and answer, so that a class is the same to both.
    Comments and docstrings are not heeded. Behind a statement that binds one of the prompt's names
    anew a definition may mean something else, and stays; imports stay, for the answer gets modules
    of its own. Lines keep their numbers.
    """
    answer = answer.replace("\r\n", "\n").replace("\r", "\n")  # as Python reads them
    given, tree = _parse(setup), _parse(answer)
    if given is None or tree is None:
        return answer
    known = {_dump(node): _bound(node) for node in given.body if _bound(node) - {entry_point}}
    names = set().union(*known.values())
    repeated = []
    for node in tree.body:
        if _dump(node) in known:
            repeated.append(node)
        elif _bound(node) & names:
            break
    lines = answer.encode().split(b"\n")  # columns are bytes of UTF-8
    for node in reversed(repeated):
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        if isinstance(node, _DEFINITIONS) and node.decorator_list:
            first = node.decorator_list[0].lineno - 1
        begun, left = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
        lines[first : last + 1] = [begun + b"0" + left, *[b""] * (last - first)]
    return b"\n".join(lines).decode()


def _parse(text: str) -> ast.Module | None:
    """Returns the syntax tree without docstrings, None where there is none."""
    try:
        tree = parse_silently(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, _DEFINITIONS) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return tree


def _bound(node: ast.stmt) -> set[str]:
    """Returns the names that a statement of a module binds, those of imports left out."""
    if isinstance(node, _DEFINITIONS):
        return {node.name}
    names = (n for n in ast.walk(node) if isinstance(n, ast.Name))
    return {name.id for name in names if isinstance(name.ctx, ast.Store)}


def _dump(node: ast.stmt) -> str:
    try:
        return ast.dump(node)
    except (RecursionError, ValueError):  # too deep; an integer that Python does not write
        return f"line {node.lineno}"
