"""From a proposer's text to a task, and from a solver's text to a grade.

Each is read, screened where it is a program, run, and judged by who asks for the result, so that
the sandbox runs meanwhile. Expected values never enter the sandbox.
"""

import ast
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from azr.keys import make_key
from azr.sandbox import Label
from azr.sandbox.modules import ALLOWED, FACADES
from azr.tasks.program.execution import Executor, Running
from azr.tasks.program.normal import UnreadableCode, find_f, parse_module
from azr.tasks.program.records import (
    ABDUCTION,
    DEDUCTION,
    INDUCTION,
    Form,
    FormatError,
    ProgramProblem,
)
from azr.tasks.program.values import NoLiteral, equal, read_literal, write_literal
from azr.tasks.records import Answer, Deferred, Grade, Proposal, Task, Verdict, mark_held_out

MAX_OUTPUT_CHARS = 400
"""A program with a longer output is no task; the official code cuts the output instead."""

RECHECKED_ONE_IN = 100
"""Grades that are made a second time, from runs afresh, by a key of task and answer."""

IDENTITY = "def f(a):\n    return a\n"

IMPORTABLE = frozenset(name.split(".")[0] for name in (*ALLOWED, *FACADES))
"""Packages that a program may import; everything else has files, clocks, chance or processes.

They are the sandbox's own, and it is the sandbox that keeps a program in. The check here costs
nothing, and gives the proposer a named reason without a run.
"""


@functools.lru_cache(maxsize=1 << 13)
def reject_program(code: str) -> str:
    """Returns the reason why a program is no task, empty where it may be run.

    Reasons: syntax_error, forbidden_import, no_function, no_parameter, no_return.
    """
    try:
        tree = parse_module(code)
    except UnreadableCode:
        return "syntax_error"
    for node in ast.walk(tree):
        if any(name.split(".")[0] not in IMPORTABLE for name in _imported(node)):
            return "forbidden_import"
    function = find_f(tree)
    if function is None:
        return "no_function"
    arguments = function.args
    if not (arguments.posonlyargs or arguments.args or arguments.kwonlyargs or arguments.vararg):
        return "no_parameter"
    return "" if _returns_value(function) else "no_return"


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or "."]
    return []


def _returns_value(function: ast.FunctionDef) -> bool:
    """Whether the function has a `return` of its own, not in a function inside it, with a value."""
    nodes: list[ast.AST] = list(function.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Return) and node.value is not None:
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            nodes += ast.iter_child_nodes(node)
    return False


@dataclass(frozen=True, slots=True)
class Check:
    """What decides a grade: programs on inputs, and the values they must give."""

    pairs: tuple[tuple[str, str], ...]
    expected: tuple[str, ...]
    given: str = ""
    """A deduced output, which takes the place of a run's."""


def check_induction(code: str, problem: ProgramProblem) -> Check:
    """Returns what decides whether a program is right: all the hidden pairs."""
    inputs, outputs = zip(*problem.hidden_pairs, strict=True)
    return Check(tuple((code, given) for given in inputs), outputs)


class Verifier:
    """Makes tasks of proposals and grades of answers, in one form of texts."""

    def __init__(self, executor: Executor, form: Form, inputs: int):
        self._executor, self._form, self._inputs = executor, form, inputs

    def validate(
        self, proposals: Sequence[Proposal], split: Callable[[Task], str]
    ) -> Deferred[list[Verdict]]:
        """Starts the sandbox on proposals; what it labels becomes their verdicts."""
        read = [self._read_proposal(proposal) for proposal in proposals]
        jobs = list(
            dict.fromkeys((r.code, r.inputs) for r in read if isinstance(r, ProgramProblem))
        )
        labels = dict(zip(jobs, self._executor.label(jobs), strict=True))

        def finish() -> list[Verdict]:
            verdicts = [
                r
                if isinstance(r, Verdict)
                else self._judge(proposal.type, r, labels[r.code, r.inputs].result())
                for proposal, r in zip(proposals, read, strict=True)
            ]
            return mark_held_out(verdicts, split)

        return Deferred(finish)

    def _read_proposal(self, proposal: Proposal) -> Verdict | ProgramProblem:
        """Returns the problem, yet without outputs, or the verdict where nothing is to be run."""
        try:
            first, *inputs = self._form.read_proposal(
                proposal.type, proposal.text, proposal.finished, self._inputs
            )
        except FormatError as error:
            return Verdict(task=None, status="malformed", reason=str(error))
        code, message = first, ""
        if proposal.type == INDUCTION:
            code = proposal.references[0].problem.code if proposal.references else IDENTITY
            message = first
        reason = reject_program(code)
        if not reason and len(set(inputs)) < len(inputs):
            reason = "input_repeated"
        if reason:
            return Verdict(task=None, status="invalid", reason=reason)
        return ProgramProblem(code, tuple(inputs), (), message)

    def _judge(self, task_type: str, asked: ProgramProblem, label: Label) -> Verdict:
        statuses = [result.status for result in label.results]
        if "sandbox_failure" in statuses:
            return Verdict(task=None, status="unjudged", reason="sandbox_failure")
        reason = next((status for status in statuses if status != "ok"), "")
        if not reason and not label.deterministic:
            reason = "nondeterministic"
        if reason:
            return Verdict(task=None, status="invalid", reason=reason)
        try:
            outputs = tuple(_output(result.value) for result in label.results)
        except FormatError as error:
            return Verdict(task=None, status="invalid", reason=str(error))
        problem = replace(asked, outputs=outputs)
        if not self._form.is_expressible(problem):
            return Verdict(task=None, status="invalid", reason="inexpressible")
        return Verdict(task=Task(task_type, problem), status="valid")

    def grade(self, answers: Sequence[Answer]) -> Deferred[list[Grade]]:
        """Starts the sandbox on answers; what it ran becomes their grades."""
        read = [self._read_answer(answer) for answer in answers]
        checks = {i: check for i, check in enumerate(read) if isinstance(check, Check)}
        running = start(self._executor, {i: c for i, c in checks.items() if not c.given})
        again = {i: check for i, check in checks.items() if _is_rechecked(answers[i])}
        fresh = start(self._executor, again, afresh=True)

        def finish() -> list[Grade]:
            grades = [
                decide(c, running.get(i, ())) if isinstance(c, Check) else c
                for i, c in enumerate(read)
            ]
            for i, check in again.items():
                second = _decide_afresh(answers[i], check, fresh[i])
                if "unjudged" not in (second.outcome, grades[i].outcome):
                    self._executor.note_recheck(second.outcome == grades[i].outcome)
            return grades

        return Deferred(finish)

    def _read_answer(self, answer: Answer) -> Grade | Check:
        problem, task_type = answer.task.problem, answer.task.type
        try:
            text = self._form.read_answer(task_type, answer.text, answer.finished)
        except FormatError as error:
            return Grade(outcome="malformed", reason=str(error))
        if task_type == DEDUCTION:
            return Check(((problem.code, problem.inputs[0]),), problem.outputs, given=text)
        if task_type == ABDUCTION:
            return Check(((problem.code, text),), problem.outputs)
        if reason := reject_program(text):
            return Grade(outcome="wrong", reason=reason)
        return check_induction(text, problem)


def _output(value: object) -> str:
    """Returns the text of what a program returned; raises FormatError with the reason for none."""
    if value is None:
        raise FormatError("none_result")
    try:
        text = write_literal(value)
    except NoLiteral:
        raise FormatError("unsupported_value") from None
    # A cut output would make a task that nobody can solve, so a long one makes none.
    if len(text) > MAX_OUTPUT_CHARS:
        raise FormatError("too_large")
    return text


def _is_rechecked(answer: Answer) -> bool:
    return make_key("recheck", answer.task.problem.code, answer.text) % RECHECKED_ONE_IN == 0


def start(
    executor: Executor, checks: Mapping[int, Check], *, afresh: bool = False
) -> dict[int, list[Running]]:
    """Returns what runs for each check, a run per pair."""
    pairs = [pair for check in checks.values() for pair in check.pairs]
    running = iter(executor.run(pairs, afresh=afresh))
    return {i: [next(running) for _ in check.pairs] for i, check in checks.items()}


def decide(check: Check, running: Sequence[Running]) -> Grade:
    """Returns the grade, once all has run."""
    if check.given:
        is_right = equal(read_literal(check.expected[0]), read_literal(check.given))
        return Grade(outcome="correct") if is_right else Grade(outcome="wrong", reason="wrong")
    results = [run.result() for run in running]
    for result in results:
        if result.status == "sandbox_failure":
            return Grade(outcome="unjudged", reason="sandbox_failure")
    for result, expected in zip(results, check.expected, strict=True):
        if result.status != "ok":
            return Grade(outcome="wrong", reason=result.status)
        if not equal(read_literal(expected), result.value):
            return Grade(outcome="wrong", reason="wrong")
    return Grade(outcome="correct")


def _decide_afresh(answer: Answer, check: Check, running: Sequence[Running]) -> Grade:
    """Returns the grade from fresh runs; a deduction is held against its program's fresh output."""
    if answer.task.type != DEDUCTION:
        return decide(check, running)
    result = running[0].result()
    if result.status == "sandbox_failure":
        return Grade(outcome="unjudged", reason="sandbox_failure")
    is_right = result.status == "ok" and equal(result.value, read_literal(check.given))
    return Grade(outcome="correct" if is_right else "wrong")
