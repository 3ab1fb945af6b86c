"""From a proposer's text to a task: read, screened, run, and checked to be deterministic."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future

from azr.sandbox import Label
from azr.tasks.program.execution import Executor
from azr.tasks.program.records import INDUCTION, Form, FormatError, ProgramProblem
from azr.tasks.program.screening import reject_program
from azr.tasks.program.values import NoLiteral, write_literal
from azr.tasks.records import Proposal, Task, Verdict

MAX_OUTPUT_CHARS = 400
"""A program with a longer output is no task; the official code cuts the output instead."""

IDENTITY = "def f(a):\n    return a\n"


class Validation:
    """Makes tasks of proposals."""

    def __init__(self, executor: Executor, form: Form, inputs: int):
        self._executor, self._format, self._inputs = executor, form, inputs

    def begin(self, proposals: Sequence[Proposal]) -> Callable[[], list[Verdict]]:
        """Starts the sandbox on proposals; returns what waits for it and gives the verdicts."""
        read = [self._read(proposal) for proposal in proposals]
        jobs = list(dict.fromkeys(r[:2] for r in read if not isinstance(r, Verdict)))
        futures = dict(zip(jobs, self._executor.label(jobs), strict=True))

        def finish() -> list[Verdict]:
            return [
                r if isinstance(r, Verdict) else self._judge(proposal.type, *r, futures[r[:2]])
                for proposal, r in zip(proposals, read, strict=True)
            ]

        return finish

    def _read(self, proposal: Proposal) -> Verdict | tuple[str, tuple[str, ...], str]:
        """Returns (program, inputs, message), or the verdict where there is nothing to run."""
        try:
            first, *inputs = self._format.read_proposal(
                proposal.type, proposal.text, proposal.finished, self._inputs
            )
        except FormatError as error:
            return Verdict(task=None, status="malformed", reason=str(error))
        if proposal.type == INDUCTION:
            code = proposal.references[0].problem.code if proposal.references else IDENTITY
            message = first
        else:
            code, message = first, ""
        reason = reject_program(code)
        if not reason and len(set(inputs)) < len(inputs):
            reason = "input_repeated"
        if reason:
            return Verdict(task=None, status="invalid", reason=reason)
        return code, tuple(inputs), message

    def _judge(
        self,
        task_type: str,
        code: str,
        inputs: tuple[str, ...],
        message: str,
        future: Future[Label],
    ) -> Verdict:
        label = future.result()
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
        problem = ProgramProblem(code, inputs, outputs, message)
        if not self._format.is_expressible(problem):
            return Verdict(task=None, status="invalid", reason="inexpressible")
        return Verdict(task=Task(task_type, problem), status="valid")


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
