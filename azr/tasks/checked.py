"""What a task family returns, checked where it enters the trainer.

A family is somebody else's code. A number of another kind than asked for, of NumPy say, is
converted; what has no clear meaning ends the run in one line that names family, method and value.
"""

import dataclasses
import functools
import json
import math
import typing
from collections.abc import Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any, NoReturn, TypeVar

from azr.config import ConfigError, shown
from azr.errors import RunError
from azr.tasks.records import (
    Answer,
    Deferred,
    Grade,
    Pending,
    Proposal,
    References,
    Task,
    Traits,
    Verdict,
)

K = TypeVar("K", Verdict, Grade)

LOG_GROUPS = frozenset(
    "step buffer completions eval mismatch perf policy propose reward solve time".split()
)
"""First words of the trainer's own metrics (docs/metrics.md)."""

_TEXTS = frozenset("propose_prompt solve_prompt key split stratum answer".split())
"""Methods that return a text."""

_STATUSES = typing.get_args(typing.get_type_hints(Verdict)["status"])
_OUTCOMES = typing.get_args(typing.get_type_hints(Grade)["outcome"])


def _plain(value: Any) -> Any:
    """Returns the Python number in a scalar of NumPy or a tensor without dimensions."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _number(value: Any) -> float | None:
    """Returns any real number as a float, None as NaN, and None for what is no number."""
    value = _plain(value)
    if value is None:
        return math.nan
    try:
        return float(value) if isinstance(value, Real | Decimal) else None
    except (ValueError, OverflowError):  # a signalling NaN, 10**400
        return None


def _whole(value: Any) -> int | None:
    """Returns a whole number of any kind as an int, and None for what is none."""
    value = _plain(value)
    number = _number(value)
    if isinstance(value, bool) or number is None or not number.is_integer():
        return None
    return int(value)


def _listed(value: Any) -> Any:
    """Returns an array or tensor as lists, and any other number as a float: for JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if (number := _number(value)) is None:
        raise TypeError(f"{type(value).__name__} is no value of JSON")
    return number


class CheckedFamily:
    """A family behind the checks; whatever needs none is the family's own."""

    def __init__(self, family: Any, name: str):
        """`name` is what --env calls it."""
        self._family, self._name = family, name
        for attribute in ("task_types", "styles"):
            names = getattr(family, attribute, None)
            if not _are_names(names):
                self._refuse(attribute, names, "must be a tuple of names", ConfigError)

    def __getattr__(self, name: str) -> Any:
        if name in _TEXTS:
            return functools.partial(self._text, name)
        return getattr(self._family, name)

    def _refuse(
        self, what: str, value: Any, rule: str, error: type[Exception] = RunError
    ) -> NoReturn:
        raise error(f"task family {self._name}: {what} is {shown(value)}: {rule}")

    # Facts of the family, asked for at the start

    def _count(self, call: str, value: Any, rule: str) -> int:
        number = _whole(value)
        if number is None or not 1 <= number < 2**63:
            self._refuse(call, value, f"must be a whole number of at least 1{rule}", ConfigError)
        return number

    def max_response_words(self, role: str, task_type: str) -> int:
        words = self._family.max_response_words(role, task_type)
        return self._count(f"max_response_words({role!r}, {task_type!r})", words, "")

    def universe_size(self, task_type: str) -> int | None:
        size = self._family.universe_size(task_type)
        call = f"universe_size({task_type!r})"
        return None if size is None else self._count(call, size, ", or None: not counted")

    def chance(self, task_type: str, split: str) -> float:
        value = self._family.chance(task_type, split)
        chance = _number(value)
        if chance is None or not (0 <= chance <= 1 or math.isnan(chance)):
            call = f"chance({task_type!r}, {split!r})"
            self._refuse(call, value, "must be from 0 to 1, or NaN: not known", ConfigError)
        return chance

    def splits(self) -> tuple[str, ...]:
        splits = self._family.splits()
        if not _are_names(splits) or splits[0] != "train":
            self._refuse("splits()", splits, 'must be a tuple of names, "train" first', ConfigError)
        return tuple(splits)

    def eval_tasks(self, split: str, task_type: str) -> list[Task]:
        tasks = self._family.eval_tasks(split, task_type)
        return self._tasks(f"eval_tasks({split!r}, {task_type!r})", tasks, task_type)

    def seed_tasks(self, rng: Any, n: int) -> dict[str, list[Task]]:
        return self._tasks_by_type("seed_tasks(...)", self._family.seed_tasks(rng, n))

    def first_tasks(self) -> dict[str, list[Task]]:
        return self._tasks_by_type("first_tasks()", self._family.first_tasks())

    def _tasks_by_type(self, call: str, tasks: Any) -> dict[str, list[Task]]:
        if not isinstance(tasks, Mapping):
            self._refuse(call, tasks, "must be a dict of tasks by type", ConfigError)
        return {
            t: self._tasks(f"{call}[{t!r}]", tasks.get(t, ()), t) for t in self._family.task_types
        }

    def _tasks(self, call: str, tasks: Any, task_type: str) -> list[Task]:
        if not isinstance(tasks, list | tuple):
            self._refuse(call, tasks, "must be a list of tasks", ConfigError)
        for task in tasks:
            if not isinstance(task, Task) or task.type != task_type:
                self._refuse(f"one of {call}", task, f"must be a {task_type} Task", ConfigError)
        return list(tasks)

    def warmup_rows(self, rng: Any, n: int) -> list[tuple[str, str]]:
        rows = self._family.warmup_rows(rng, n)
        if not isinstance(rows, list | tuple) or not rows:
            self._refuse("warmup_rows(...)", rows, "must be a list of rows", ConfigError)
        for row in rows:
            if not (_are_names(row) and len(row) == 2):
                rule = "must be a prompt and a response, two texts"
                self._refuse("one of warmup_rows(...)", row, rule, ConfigError)
        return list(rows)

    def reference_source(self, task_type: str) -> References:
        source = self._family.reference_source(task_type)
        call = f"reference_source({task_type!r})"
        if not isinstance(source, References):
            self._refuse(call, source, "must be References", ConfigError)
        if not {*source.types} <= {*self._family.task_types}:
            self._refuse(f"{call}.types", source.types, "must be types of the family", ConfigError)
        return source

    def vocabulary(self) -> Any:
        vocabulary = self._family.vocabulary()
        if not _are_names(getattr(vocabulary, "words", None)):
            rule = "must be a Vocabulary with a tuple of words"
            self._refuse("vocabulary()", vocabulary, rule, ConfigError)
        return vocabulary

    # What it says of a task

    def _text(self, method: str, *arguments: object, **named: object) -> str:
        text = getattr(self._family, method)(*arguments, **named)
        if not _is_text(text):
            self._refuse(f"{method}(...)", text, "must be a text without unpaired surrogates")
        return text

    def to_json(self, task: Task) -> dict[str, Any]:
        data = self._family.to_json(task)
        try:
            json.dumps(data)
        except (TypeError, ValueError):  # not plain yet, or not JSON
            try:
                data = json.loads(json.dumps(data, default=_listed))
            except (TypeError, ValueError) as error:
                self._refuse("to_json(...)", data, f"must be a JSON object ({error})")
        if not isinstance(data, dict):
            self._refuse("to_json(...)", data, "must be a JSON object")
        return data

    def traits(self, task: Task, others: Sequence[Task]) -> Traits | None:
        traits = self._family.traits(task, others)
        if traits is None:
            return None
        if not isinstance(traits, Traits):
            self._refuse("traits(...)", traits, "must be Traits or None")
        numbers: dict[str, float] = {}
        for field in dataclasses.fields(Traits):
            value = getattr(traits, field.name)
            number = _number(value)
            if number is None or math.isinf(number):
                self._refuse(f"traits(...).{field.name}", value, "must be a finite number, or NaN")
            numbers[field.name] = number
        return Traits(**numbers)

    # What comes back in batches

    def submit_validate(self, proposals: Sequence[Proposal]) -> Pending[list[Verdict]]:
        pending = self._pending("submit_validate", self._family.submit_validate(proposals))
        return Deferred(lambda: self._verdicts(pending, proposals))

    def _verdicts(self, pending: Pending[object], proposals: Sequence[Proposal]) -> list[Verdict]:
        verdicts = self._records("submit_validate", pending, Verdict, len(proposals))
        for verdict, proposal in zip(verdicts, proposals, strict=True):
            task = verdict.task
            if task is None and verdict.status == "valid":
                self._refuse("the task of a valid verdict", None, "must be a Task")
            if task is not None and not (isinstance(task, Task) and task.type == proposal.type):
                rule = f"must be a {proposal.type} Task as proposed"
                self._refuse("the task of a verdict", task, rule)
        return [self._reasoned("verdict", verdict, "status", _STATUSES) for verdict in verdicts]

    def submit_grade(self, answers: Sequence[Answer]) -> Pending[list[Grade]]:
        pending = self._pending("submit_grade", self._family.submit_grade(answers))
        return Deferred(lambda: self._grades(pending, len(answers)))

    def _grades(self, pending: Pending[object], n: int) -> list[Grade]:
        grades = self._records("submit_grade", pending, Grade, n)
        return [self._reasoned("grade", grade, "outcome", _OUTCOMES) for grade in grades]

    def _pending(self, method: str, pending: Pending[object]) -> Pending[object]:
        if not callable(getattr(pending, "result", None)):
            rule = "must be a Future, as azr.tasks.environment.done makes one, or have a result()"
            self._refuse(f"{method}(...)", pending, rule)
        return pending

    def _records(self, method: str, pending: Pending[object], kind: type[K], n: int) -> list[K]:
        records = pending.result()
        if not isinstance(records, list) or len(records) != n:
            self._refuse(f"{method}(...)", records, f"must be a list of {n} results")
        for record in records:
            if not isinstance(record, kind):
                self._refuse(f"a result of {method}(...)", record, f"must be a {kind.__name__}")
        return records

    def _reasoned(self, what: str, record: K, field: str, known: tuple[str, ...]) -> K:
        """Returns a verdict or grade whose outcome is a known one and whose reason is a text."""
        if (outcome := getattr(record, field)) not in known:
            self._refuse(f"the {field} of a {what}", outcome, f"must be one of {list(known)}")
        if record.reason is None:
            return dataclasses.replace(record, reason="")
        if not _is_text(record.reason):
            rule = "must be a text without unpaired surrogates"
            self._refuse(f"the reason of a {what}", record.reason, rule)
        return record

    # What it measures

    def verifier_metrics(self) -> dict[str, float]:
        metrics = self._family.verifier_metrics()
        if not isinstance(metrics, Mapping):
            self._refuse("verifier_metrics()", metrics, "must be a dict of numbers by name")
        checked = {}
        for name, value in metrics.items():
            if not isinstance(name, str) or not name.strip() or not name.isprintable():
                self._refuse("a name in verifier_metrics()", name, "must be a text in one line")
            if name.partition("/")[0] in LOG_GROUPS:
                rule = f"the log has it, or its group, already; say {self._name}/{name}"
                self._refuse("a name in verifier_metrics()", name, rule)
            if (number := _number(value)) is None:
                self._refuse(f"verifier_metrics()[{name!r}]", value, "must be a number")
            checked[str(name)] = number
        return checked


def _are_names(value: Any) -> bool:
    return isinstance(value, tuple | list) and bool(value) and all(type(n) is str for n in value)


def _is_text(value: Any) -> bool:
    """Whether a value is a text that files and run.db can hold."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def check_family(environment: Any, types: Sequence[str]) -> None:
    """Asks now for what is needed later, so that a wrong value ends no run on its way."""
    for task_type in types:
        for split in environment.splits():
            if tasks := environment.eval_tasks(split, task_type):
                environment.chance(task_type, split)
                environment.to_json(tasks[0])
