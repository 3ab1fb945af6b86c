"""Suites: tasks of other people's in JSONL files, in one of two layouts told apart by their fields.

    CRUXEval     code, input, output [, id]           two items a row: predict the output, and
                                                      an input that gives the output
    HumanEval    prompt, entry_point, test            one item a row: complete the function
                 [, task_id, canonical_solution]

Other fields may be there and are not read.
"""

import ast
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from azr.config import ConfigError, utf8_text
from azr.tasks.program.values import NoLiteral, parse_silently, read_literal

Kind = Literal["output", "input", "completion"]

CRUXEVAL = ("code", "input", "output")
HUMANEVAL = ("prompt", "entry_point", "test")
NAMES = {"CRUXEval": "id", "HumanEval": "task_id"}
"""The field that names a row; one without is named by its number."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predict what `f` of a program returns, or arguments with which it returns a value."""

    id: str
    kind: Kind
    code: str
    input: str
    """Text of the argument list, of literals or expressions; hidden where it is to be predicted."""
    output: str
    """Text of the value; hidden where it is to be predicted."""

    def expected(self) -> object:
        """Returns the value of `output`."""
        return read_literal(self.output)


@dataclass(frozen=True, slots=True)
class Completion:
    """Complete a function so that its test raises nothing."""

    id: str
    prompt: str
    """The program up to the body: imports, functions to use, signature and docstring."""
    entry_point: str
    test: str
    """Source that defines `check(candidate)`."""
    reference: str = ""
    """The body that the suite's authors give, where they do."""
    kind: Kind = "completion"


Item = Prediction | Completion


@dataclass(frozen=True, slots=True)
class Suite:
    """The items of a file, in its order."""

    name: str
    layout: Literal["CRUXEval", "HumanEval"]
    items: tuple[Item, ...]
    digest: str
    """SHA-256 of the file."""


def load_suite(path: Path) -> Suite:
    """Returns the suite in a JSONL file.

    Raises ConfigError that names file, line and field where it is in neither layout.
    """
    try:
        data = path.read_bytes()
        lines = utf8_text(data).split("\n")
    except OSError as error:
        raise ConfigError(f"--suite {path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"--suite {path}: not JSON lines in UTF-8: {error}") from error
    rows = [(n, _row(path, n, line)) for n, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ConfigError(f"--suite {path}: needs one JSON object a line, at least one")
    fields = set(rows[0][1])
    if fields >= set(HUMANEVAL):
        layout, read, needed = "HumanEval", _completion, HUMANEVAL
    elif fields >= set(CRUXEVAL):
        layout, read, needed = "CRUXEval", _predictions, CRUXEVAL
    else:
        raise ConfigError(
            f"--suite {path}: in no layout that is known: needs {', '.join(CRUXEVAL)} (CRUXEval) "
            f"or {', '.join(HUMANEVAL)} (HumanEval), has {', '.join(sorted(fields))}"
        )
    items: list[Item] = []
    lines_of: dict[str, int] = {}
    for number, row in rows:
        try:
            name = _name(row, NAMES[layout], needed, number)
            if name in lines_of:
                raise ValueError(f"{NAMES[layout]} {name!r} is that of line {lines_of[name]}, too")
            items += read(row, name)
        except ValueError as error:
            raise ConfigError(f"--suite {path}, line {number}: {error}") from error
        lines_of[name] = number
    return Suite(path.stem, layout, tuple(items), hashlib.sha256(data).hexdigest())


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        why = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise ConfigError(f"--suite {path}, line {number}: no JSON: {why}") from error
    if not isinstance(row, dict):
        raise ConfigError(f"--suite {path}, line {number}: needs one JSON object a line")
    return row


def _name(row: Mapping[str, Any], field: str, needed: Sequence[str], number: int) -> str:
    """Returns what a row is called; raises ValueError where a text of it is none."""
    texts: dict[str, Any] = {name: row.get(name) for name in needed}
    texts[field] = f"row_{number - 1}" if row.get(field) is None else str(row[field])
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"{name} must be a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name} is no text in UTF-8: {error.reason}") from error
    return texts[field]


def _predictions(row: Mapping[str, Any], name: str) -> list[Prediction]:
    code, given, output = row["code"], row["input"], row["output"]
    try:
        read_literal(output)
    except NoLiteral as error:
        raise ValueError(f"output is no Python literal ({error}): {output[:80]!r}") from error
    return [Prediction(name, kind, code, given, output) for kind in ("output", "input")]


def _completion(row: Mapping[str, Any], name: str) -> list[Completion]:
    try:
        functions = [
            n.name for n in parse_silently(row["test"]).body if isinstance(n, ast.FunctionDef)
        ]
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"test is no Python: {error}") from error
    if "check" not in functions:
        raise ValueError("test defines no function check(candidate)")
    if not row["entry_point"].isidentifier():
        raise ValueError(f"entry_point is no name: {row['entry_point']!r}")
    reference = row.get("canonical_solution")
    return [
        Completion(
            id=name,
            prompt=row["prompt"],
            entry_point=row["entry_point"],
            test=row["test"],
            reference=reference if isinstance(reference, str) else "",
        )
    ]
