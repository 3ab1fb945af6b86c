"""Suites: tasks of other people's in JSONL files, in one of two layouts told apart by their fields.

    CRUXEval     code, input, output [, id]           two items a row: predict the output, and
                                                      an input that gives the output
    HumanEval    prompt, entry_point, test, task_id   one item a row: complete the function
                 [, canonical_solution]

Other fields may be there and are not read.
"""

import ast
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from azr.config import ConfigError
from azr.tasks.program.values import NoLiteral, read_literal

Kind = Literal["output", "input", "completion"]

CRUXEVAL = ("code", "input", "output")
HUMANEVAL = ("task_id", "prompt", "entry_point", "test")


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predict what `f` of a program returns, or arguments with which it returns a value."""

    id: str
    kind: Kind
    code: str
    input: str
    """Text of the argument list; hidden where it is to be predicted."""
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
        lines = enumerate(data.decode("utf-8").split("\n"), 1)
        rows = [(number, json.loads(line)) for number, line in lines if line.strip()]
    except OSError as error:
        raise ConfigError(f"--suite {path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--suite {path}: not JSON lines in UTF-8: {error}") from error
    if not rows or not all(isinstance(row, dict) for _, row in rows):
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
    for number, row in rows:
        for name in needed:
            if not isinstance(row.get(name), str):
                raise ConfigError(f"--suite {path}, line {number}: {name} must be a string")
        try:
            items += read(row, number - 1)
        except ValueError as error:
            raise ConfigError(f"--suite {path}, line {number}: {error}") from error
    twice = {(i.id, i.kind) for i in items}
    if len(twice) < len(items):
        raise ConfigError(f"--suite {path}: two rows have one id")
    return Suite(path.stem, layout, tuple(items), hashlib.sha256(data).hexdigest())


def _predictions(row: Mapping[str, Any], number: int) -> list[Prediction]:
    name = str(row.get("id", f"row_{number}"))
    code, given, output = row["code"], row["input"], row["output"]
    try:
        read_literal(output)
    except NoLiteral as error:
        raise ValueError(f"output is no Python literal ({error}): {output[:80]!r}") from error
    return [Prediction(name, kind, code, given, output) for kind in ("output", "input")]


def _completion(row: Mapping[str, Any], number: int) -> list[Completion]:
    try:
        names = [n.name for n in ast.parse(row["test"]).body if isinstance(n, ast.FunctionDef)]
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"test is no Python: {error}") from error
    if "check" not in names:
        raise ValueError("test defines no function check(candidate)")
    if not row["entry_point"].isidentifier():
        raise ValueError(f"entry_point is no name: {row['entry_point']!r}")
    reference = row.get("canonical_solution")
    return [
        Completion(
            id=row["task_id"],
            prompt=row["prompt"],
            entry_point=row["entry_point"],
            test=row["test"],
            reference=reference if isinstance(reference, str) else "",
        )
    ]
