"""Grading a suite's answers in the sandbox: values come out of it and are compared here.

A predicted output that is a literal runs nowhere. A predicted input is the argument list of one
call of the item's own program; what the call returned is compared with the expected value here.
What is an expression is evaluated first, see `azr.evaluation.suite_arguments`. A completed function
runs with its test in one process, where only the absence of an exception can be told, so the
program below keeps the two apart as far as one interpreter allows.
"""

import ast
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, Protocol

from azr.errors import RunError
from azr.evaluation.suite import Completion, Item, Prediction
from azr.evaluation.suite_arguments import (
    ARGUMENTS_PROGRAM,
    arguments_job,
    call_job,
    is_argument_list,
    is_expression,
    output_job,
    write_arguments,
)
from azr.evaluation.suite_bodies import complete
from azr.evaluation.suite_names import is_harmless, reaches
from azr.sandbox import Job, Limits, Result
from azr.tasks.program.values import NoLiteral, equal, parse_call, read_literal

Outcome = Literal["correct", "wrong", "malformed"]

LIMITS = Limits(cpu_s=4.0, wall_s=20.0, args_bytes=1 << 20)
"""A test calls the function many times; public harnesses allow about 3 seconds."""

MODULES = ("hashlib", "random")
"""Imported by some of HumanEval's tests and solutions; no label is made here that they could
spoil."""


@dataclass(frozen=True, slots=True)
class Graded:
    """What became of an answer, with a named reason where it is not correct."""

    outcome: Outcome
    reason: str = ""


_Pair = tuple[Item, str]


class Runner(Protocol):
    """What is asked of `azr.sandbox.Sandbox`."""

    def submit_batch(self, jobs: Sequence[Job]) -> "list[Future[Result]]":
        """Returns a future per job."""
        ...


RETRIES = 2
"""Times that a job is run anew whose result is the sandbox's own failure."""


def grade_answers(sandbox: Runner, answers: Sequence[tuple[Item, str]]) -> list[Graded]:
    """Returns the grades of (item, answer) pairs, in order; equal pairs run once.

    Raises RunError where the sandbox itself keeps failing: that is no grade.
    """
    grades: dict[_Pair, Graded] = {}
    steps = {pair: _first_step(*pair) for pair in dict.fromkeys(answers)}
    while steps:
        grades |= {pair: step for pair, step in steps.items() if isinstance(step, Graded)}
        jobs = {pair: step for pair, step in steps.items() if isinstance(step, Job)}
        results = _run(sandbox, jobs)
        steps = {pair: _next_step(*pair, jobs[pair], result) for pair, result in results.items()}
    return [grades[pair] for pair in answers]


def _run(sandbox: Runner, jobs: Mapping[_Pair, Job]) -> dict[_Pair, Result]:
    results: dict[_Pair, Result] = {}
    left = list(jobs)
    for _ in range(1 + RETRIES):
        futures = sandbox.submit_batch([jobs[pair] for pair in left])
        results |= {pair: future.result() for pair, future in zip(left, futures, strict=True)}
        left = [pair for pair in left if results[pair].status == "sandbox_failure"]
        if not left:
            return results
    raise RunError(
        f"the sandbox failed {1 + RETRIES} times on an answer to {left[0][0].id}; what was graded "
        "before is kept, and the same command goes on from there"
    )


def failing_references(sandbox: Runner, items: Sequence[Item]) -> dict[str, str]:
    """Returns item id -> reason for items whose own answer does not pass here: nobody's can.

    Asked are inputs of predictions, and reference solutions of functions where they are given.
    """
    answers = [
        (item, _own_answer(item))
        for item in items
        if (item.reference if isinstance(item, Completion) else item.kind == "input")
    ]
    grades = grade_answers(sandbox, answers)
    return {
        item.id: grade.reason
        for (item, _), grade in zip(answers, grades, strict=True)
        if grade.outcome != "correct"
    }


def _own_answer(item: Item) -> str:
    return complete(item.prompt, item.reference) if isinstance(item, Completion) else item.input


def _first_step(item: Item, answer: str) -> Job | Graded:
    if isinstance(item, Completion):
        return Graded("wrong", "forbidden_name") if reaches(answer) else _test_job(item, answer)
    if item.kind == "input":
        return Job(item.code, (answer,))
    try:
        return _compared(item, read_literal(answer))
    except NoLiteral:
        return output_job(answer) if is_expression(answer) else Graded("malformed", "no_literal")


def _next_step(item: Item, answer: str, job: Job, result: Result) -> Job | Graded:
    """Returns the grade; the next job for an argument list that is no list of literals."""
    if isinstance(item, Completion):
        return Graded("correct") if result.value == PASSED else _failed(result)
    if item.kind == "output":
        return _compared(item, result.value) if result.ok else Graded("malformed", "no_literal")
    if job.code == ARGUMENTS_PROGRAM:
        return _call_step(item, answer, result)
    if result.status != "syntax_error":
        return _compared(item, result.value) if result.ok else _failed(result)
    if job == Job(item.code, (answer,)) and is_argument_list(answer):
        return arguments_job(item.code, answer)
    return Graded("malformed", "no_literal")


def _call_step(item: Prediction, answer: str, result: Result) -> Job | Graded:
    """Returns the call of an item's program with arguments that were evaluated."""
    if result.ok:
        literals = write_arguments(result.value)
        if literals != answer:  # else the sandbox refused these literals, as names beyond ASCII
            return Job(item.code, (literals,))
    elif result.status not in ("unsupported_value", "too_large"):
        return _failed(result)
    if not is_harmless(parse_call(answer)):
        return Graded("wrong", "forbidden_name")
    return call_job(item.code, answer)


def _compared(item: Prediction, value: object) -> Graded:
    return Graded("correct") if equal(value, item.expected()) else Graded("wrong", "wrong")


def _failed(result: Result) -> Graded:
    named = result.error if result.status == "exception" and result.error else result.status
    return Graded("wrong", named)


PASSED = "passed"


def _test_job(item: Completion, answer: str) -> Job:
    """Returns the program below, with everything of the item and the answer as its arguments."""
    setup = _runnable(item.prompt)
    args = ", ".join(map(repr, (setup, answer, item.test, item.entry_point)))
    return Job(TEST_PROGRAM, (args,))


def _runnable(prompt: str) -> str:
    """Returns the prompt as a program: its last function has a docstring alone, or no body yet."""
    for text in (prompt, prompt.rstrip() + "\n    pass\n"):
        try:
            ast.parse(text)
            return text
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            continue
    return ""


TEST_PROGRAM = '''
from collections import deque
from types import ModuleType


def f(setup, solution, test, entry_point, run=exec, kind_of=type, is_sub=issubclass,
      Module=ModuleType, Deque=deque):
    """Returns "passed" where the test of the solution raises nothing."""
    # Two worlds with nothing in common that a solution could write to: each has its own builtins,
    # and the solution's modules are copies. Everything used after it has run is held in locals.
    names = __builtins__ if kind_of(__builtins__) is dict else vars(__builtins__)
    for_test, for_solution = dict(names), dict(names)
    load, copies = for_test["__import__"], {}

    def load_copy(name, globals=None, locals=None, fromlist=(), level=0):
        module = load(name, globals, locals, fromlist, level)
        if kind_of(module) is not Module:
            return module
        if module.__name__ not in copies:
            copy = copies[module.__name__] = Module(module.__name__)
            vars(copy).update(vars(module))
        return copies[module.__name__]

    for_solution["__import__"] = load_copy
    tested = {"__name__": "test", "__builtins__": for_test}
    run(setup, tested)
    run(test, tested)
    check = tested["check"]
    solved = {"__name__": "solution", "__builtins__": for_solution}
    run(setup, solved)
    run(solution, solved)
    candidate = solved[entry_point]

    lazy = (kind_of(i for i in ()), map, filter, zip, reversed, enumerate)
    keys, items, values = kind_of({}.keys()), kind_of({}.items()), kind_of({}.values())
    plain_kinds = (kind_of(None), bool, int, float, complex, str, bytes, bytearray, range)
    bases = (
        (bool, bool), (int, int.__int__), (float, float.__float__), (str, str.__str__),
        (list, list.__iter__), (tuple, tuple.__iter__), (set, set.__iter__),
        (frozenset, frozenset.__iter__), (dict, dict.items),
    )
    Error, make_list, make_iter, number = TypeError, list, iter, enumerate

    def plain(value):
        """The value in built-in types alone, so that its own methods decide no comparison."""
        kind = kind_of(value)
        for known in plain_kinds:
            if kind is known:
                return value
        for known in lazy:
            if kind is known:
                return make_iter([plain(item) for item in value])
        if kind is keys:
            return {plain(k): 0 for k in value}.keys()
        if kind is items:
            return {plain(k): plain(v) for k, v in value}.items()
        if kind is values:
            return {n: plain(v) for n, v in number(value)}.values()
        if kind is Deque:
            return Deque([plain(item) for item in value], value.maxlen)
        for base, read in bases:
            if is_sub(kind, base):
                if base in (list, tuple, set, frozenset):
                    return base([plain(item) for item in read(value)])
                if base is dict:
                    return {plain(k): plain(v) for k, v in read(value)}
                return read(value)
        raise Error("the function returned a value of no built-in type")

    def called(*args, **kwargs):
        return plain(candidate(*args, **kwargs))

    tested[entry_point] = called
    check(called)
    return "passed"
'''
