"""Grading a suite's answers in the sandbox: values come out of it and are compared here.

A predicted output that is a literal runs nowhere. A predicted input is the argument list of one
call of the item's own program; what the call returned is compared with the expected value here.
What is an expression is evaluated first, see `azr.evaluation.suite.arguments`. A completed function
runs with its test in one process, where only the absence of an exception can be told;
`azr.evaluation.suite.program` keeps the two apart as far as one interpreter allows.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

from azr.errors import RunError
from azr.evaluation.answers import RETRIES, insist
from azr.evaluation.suite.arguments import (
    ARGUMENTS_PROGRAM,
    arguments_job,
    call_job,
    is_argument_list,
    is_expression,
    output_job,
    write_arguments,
)
from azr.evaluation.suite.bodies import complete
from azr.evaluation.suite.completion import PASSED, completion_job
from azr.evaluation.suite.items import Completion, Item, Prediction
from azr.evaluation.suite.names import is_harmless, reaches
from azr.sandbox import Job, Limits, Result
from azr.tasks import Grade
from azr.tasks.program.values import NoLiteral, equal, parse_call, read_literal

LIMITS = Limits(cpu_s=4.0, wall_s=20.0, args_bytes=1 << 20)
"""A test calls the function many times; public harnesses allow about 3 seconds."""

MODULES = ("hashlib", "random")
"""Imported by some of HumanEval's tests and solutions; no label is made here that they could
spoil."""

CORRECT = Grade(outcome="correct")
NO_LITERAL = Grade(outcome="malformed", reason="no_literal")

_Pair = tuple[Item, str]


class Runner(Protocol):
    """What is asked of `azr.sandbox.Sandbox`."""

    def submit_batch(self, jobs: Sequence[Job]) -> "list[Future[Result]]":
        """Returns a future per job."""
        ...


def grade_answers(sandbox: Runner, answers: Sequence[tuple[Item, str]]) -> list[Grade]:
    """Returns the grades of (item, answer) pairs, in order; equal pairs run once.

    Raises RunError where the sandbox itself keeps failing: that is no grade.
    """
    grades: dict[_Pair, Grade] = {}
    steps = {pair: _first_step(*pair) for pair in dict.fromkeys(answers)}
    while steps:
        grades |= {pair: step for pair, step in steps.items() if isinstance(step, Grade)}
        jobs = {pair: step for pair, step in steps.items() if isinstance(step, Job)}
        results = insist(
            lambda asked: [future.result() for future in sandbox.submit_batch(asked)],
            list(jobs.values()),
            lambda result: result.status == "sandbox_failure",
        )
        steps = {
            pair: _next_step(*pair, job, result)
            for (pair, job), result in zip(jobs.items(), results, strict=True)
        }
    return [grades[pair] for pair in answers]


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


def _first_step(item: Item, answer: str) -> Job | Grade:
    if isinstance(item, Completion):
        return _wrong("forbidden_name") if reaches(answer) else completion_job(item, answer)
    if item.kind == "input":
        return Job(item.code, (answer,))
    try:
        return _compared(item, read_literal(answer))
    except NoLiteral:
        return output_job(answer) if is_expression(answer) else NO_LITERAL


def _next_step(item: Item, answer: str, job: Job, result: Result) -> Job | Grade:
    """Returns the grade; the next job for an argument list that is no list of literals."""
    if result.status == "sandbox_failure":
        raise RunError(
            f"the sandbox failed {1 + RETRIES} times on an answer to {item.id}; what was graded "
            "before is kept, and the same command goes on from there"
        )
    if isinstance(item, Completion):
        return CORRECT if result.value == PASSED else _failed(result)
    if item.kind == "output":
        return _compared(item, result.value) if result.ok else NO_LITERAL
    if job.code == ARGUMENTS_PROGRAM:
        return _call_step(item, answer, result)
    if (result.status, result.error) != ("syntax_error", "arguments"):
        return _compared(item, result.value) if result.ok else _failed(result)
    if job == Job(item.code, (answer,)) and is_argument_list(answer):
        return arguments_job(item.code, answer)
    return NO_LITERAL


def _call_step(item: Prediction, answer: str, result: Result) -> Job | Grade:
    """Returns the call of an item's program with arguments that were evaluated."""
    if result.ok:
        literals = write_arguments(result.value)
        if literals != answer:  # else the sandbox refused these literals, as names beyond ASCII
            return Job(item.code, (literals,))
    elif result.status not in ("unsupported_value", "too_large"):
        return _failed(result)
    if not is_harmless(parse_call(answer)):
        return _wrong("forbidden_name")
    return call_job(item.code, answer)


def _compared(item: Prediction, value: object) -> Grade:
    return CORRECT if equal(value, item.expected()) else _wrong("wrong")


def _failed(result: Result) -> Grade:
    return _wrong(result.error if result.status == "exception" and result.error else result.status)


def _wrong(reason: str) -> Grade:
    return Grade(outcome="wrong", reason=reason)
