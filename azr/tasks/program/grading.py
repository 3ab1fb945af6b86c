"""From a solver's text to a grade. Expected values never enter the sandbox."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

from azr.keys import make_key
from azr.tasks.program.execution import Executor, Running
from azr.tasks.program.records import ABDUCTION, DEDUCTION, FormatError
from azr.tasks.program.screening import reject_program
from azr.tasks.program.values import equal, read_literal
from azr.tasks.records import Answer, Grade

RECHECKED_ONE_IN = 100
"""Grades that are made a second time, from runs afresh, by a key of task and answer."""


@dataclass(frozen=True, slots=True)
class _Check:
    """What decides a grade: programs on inputs, and the values they must give."""

    pairs: tuple[tuple[str, str], ...]
    expected: tuple[str, ...]
    given: str = ""
    """A deduced output, which takes the place of a run's."""


class Grading:
    """Grades answers."""

    def __init__(self, executor: Executor, form: ModuleType):
        self._executor, self._format = executor, form

    def begin(self, answers: Sequence[Answer]) -> Callable[[], list[Grade]]:
        """Starts the sandbox on answers; returns what waits for it and gives the grades."""
        checks = [self._read(answer) for answer in answers]
        run = {i: c for i, c in enumerate(checks) if isinstance(c, _Check) and not c.given}
        running = iter(self._executor.run([pair for c in run.values() for pair in c.pairs]))
        mine = {i: [next(running) for _ in c.pairs] for i, c in run.items()}
        again = self._begin_rechecks(answers, checks)

        def finish() -> list[Grade]:
            grades = [
                c if isinstance(c, Grade) else _decide(c, mine.get(i, []))
                for i, c in enumerate(checks)
            ]
            for i, fresh in again.items():
                second = _decide_afresh(answers[i], checks[i], fresh)
                if "unjudged" not in (second.outcome, grades[i].outcome):
                    self._executor.note_recheck(second.outcome == grades[i].outcome)
            return grades

        return finish

    def _read(self, answer: Answer) -> Grade | _Check:
        problem, task_type = answer.task.problem, answer.task.type
        try:
            text = self._format.read_answer(task_type, answer.text, answer.finished)
        except FormatError as error:
            return Grade(outcome="malformed", reason=str(error))
        if task_type == DEDUCTION:
            return _Check(((problem.code, problem.inputs[0]),), problem.outputs, given=text)
        if task_type == ABDUCTION:
            return _Check(((problem.code, text),), problem.outputs)
        if reason := reject_program(text):
            return Grade(outcome="wrong", reason=reason)
        inputs, outputs = zip(*problem.hidden_pairs, strict=True)
        return _Check(tuple((text, given) for given in inputs), outputs)

    def _begin_rechecks(
        self, answers: Sequence[Answer], checks: Sequence[Grade | _Check]
    ) -> dict[int, list[Running]]:
        chosen = [
            i
            for i, (answer, check) in enumerate(zip(answers, checks, strict=True))
            if isinstance(check, _Check)
            and make_key("recheck", answer.task.problem.code, answer.text) % RECHECKED_ONE_IN == 0
        ]
        pairs = [pair for i in chosen for pair in checks[i].pairs]
        running = iter(self._executor.run(pairs, afresh=True) if pairs else ())
        return {i: [next(running) for _ in checks[i].pairs] for i in chosen}


def _decide(check: _Check, running: Sequence[Running]) -> Grade:
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


def _decide_afresh(answer: Answer, check: _Check, running: Sequence[Running]) -> Grade:
    """Returns the grade from fresh runs; a deduction is held against its program's fresh output."""
    if answer.task.type != DEDUCTION:
        return _decide(check, running)
    result = running[0].result()
    if result.status == "sandbox_failure":
        return Grade(outcome="unjudged", reason="sandbox_failure")
    is_right = result.status == "ok" and equal(result.value, read_literal(check.given))
    return Grade(outcome="correct" if is_right else "wrong")
