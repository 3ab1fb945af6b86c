"""From a solver's text to a grade. Expected values never enter the sandbox."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from azr.keys import make_key
from azr.tasks.program.execution import Executor, Running
from azr.tasks.program.records import ABDUCTION, DEDUCTION, Form, FormatError, ProgramProblem
from azr.tasks.program.screening import reject_program
from azr.tasks.program.values import equal, read_literal
from azr.tasks.records import Answer, Grade

RECHECKED_ONE_IN = 100
"""Grades that are made a second time, from runs afresh, by a key of task and answer."""


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


class Grading:
    """Grades answers."""

    def __init__(self, executor: Executor, form: Form):
        self._executor, self._format = executor, form

    def begin(self, answers: Sequence[Answer]) -> Callable[[], list[Grade]]:
        """Starts the sandbox on answers; returns what waits for it and gives the grades."""
        checks = [self._read(answer) for answer in answers]
        run = {i: c for i, c in enumerate(checks) if isinstance(c, Check) and not c.given}
        running = start(self._executor, run)
        again = {
            i: c for i, c in enumerate(checks) if isinstance(c, Check) and _is_rechecked(answers[i])
        }
        fresh = start(self._executor, again, afresh=True)

        def finish() -> list[Grade]:
            grades = [
                c if isinstance(c, Grade) else decide(c, running.get(i, []))
                for i, c in enumerate(checks)
            ]
            for i, check in again.items():
                second = _decide_afresh(answers[i], check, fresh[i])
                if "unjudged" not in (second.outcome, grades[i].outcome):
                    self._executor.note_recheck(second.outcome == grades[i].outcome)
            return grades

        return finish

    def _read(self, answer: Answer) -> Grade | Check:
        problem, task_type = answer.task.problem, answer.task.type
        try:
            text = self._format.read_answer(task_type, answer.text, answer.finished)
        except FormatError as error:
            return Grade(outcome="malformed", reason=str(error))
        if task_type == DEDUCTION:
            return Check(((problem.code, problem.inputs[0]),), problem.outputs, given=text)
        if task_type == ABDUCTION:
            return Check(((problem.code, text),), problem.outputs)
        if reason := reject_program(text):
            return Grade(outcome="wrong", reason=reason)
        return check_induction(text, problem)


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
