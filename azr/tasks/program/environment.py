"""Python programs: deduce an output, abduce an input, induce the program (paper, section 3)."""

import functools
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np

from azr.config import ConfigError, TaskConfig
from azr.keys import make_key
from azr.tasks.envelope import COMPACT, TEXT_STYLES
from azr.tasks.environment import Environment, Role, Vocabulary, remembered
from azr.tasks.program import chances, compact_format, drawing, text_format
from azr.tasks.program.execution import Executor
from azr.tasks.program.measures import ast_distance, complexity, lines
from azr.tasks.program.normal import digest, parameters
from azr.tasks.program.records import (
    ABDUCTION,
    DEDUCTION,
    INDUCTION,
    Form,
    FormatError,
    ProgramProblem,
)
from azr.tasks.program.values import NoLiteral, names_parameters, read_arguments, read_literal
from azr.tasks.program.verifier import IDENTITY, MAX_OUTPUT_CHARS, Verifier, reject_program
from azr.tasks.records import Answer, Grade, Pending, Proposal, References, Task, Traits, Verdict

HOLDOUT_FRACTION = 0.1

# One of many salts, chosen because the held-out programs of the grammar are a fair sample of all:
# in the share of each number of statements, of each operation, and of each kind of output.
HOLDOUT_SALT = "program-holdout-2202"

EVAL_TASKS = 150

HELLO = "'Hello World'"


class ProgramEnvironment(Environment):
    """The task family `program`.

    A task is a program with inputs and with the outputs that the sandbox computed. Held out, as
    "heldout_program", is 10% of all programs by a hash of their normalised syntax tree: no task
    of any type on such a program is trained on.

    An answer is right if it equals the hidden value by Python's own `==` on plain values
    (`azr.tasks.program.values.equal`); an abduced input is right if the program gives the output
    for it, whatever the proposer's input was; an induced program must be right on every hidden
    pair. Differs from the official executor: no text is spliced into code, no expected value
    enters the process that runs a program, and nothing that a program returns can say that it is
    equal.
    """

    task_types = (DEDUCTION, ABDUCTION, INDUCTION)
    styles = (COMPACT, *TEXT_STYLES)

    def __init__(self, config: TaskConfig):
        options = config.program
        self.inputs = options.inputs
        self.is_text = config.style in TEXT_STYLES
        self.shown_references = config.references
        if self.inputs < 2:
            raise ConfigError(
                f"--task.program.inputs {self.inputs}: induction shows half of its inputs and "
                "hides the rest, so it needs at least 2"
            )
        self._format = _form(config.style)
        self._executor = Executor(
            cpu_s=options.cpu_s,
            output_bytes=MAX_OUTPUT_CHARS,
            workers=options.sandbox_workers,
        )
        self._verifier = Verifier(self._executor, self._format, self.inputs)

    # Prompts

    def vocabulary(self) -> Vocabulary:
        return Vocabulary(compact_format.WORDS, "word")

    def max_response_words(self, role: Role, task_type: str) -> int:
        return compact_format.response_words(role, task_type, self.inputs)

    def warmup_rows(self, rng: np.random.Generator, n: int) -> list[tuple[str, str]]:
        """Returns rows of all six kinds in the run's style: random programs and values, unrelated.

        No program is run for them, so no right label is shown but by accident, and none of the
        programs is held out.
        """
        random = _random(rng)
        return [
            drawing.warmup_row(
                random,
                self._format,
                self.task_types[i // 2 % 3],
                "solve" if i % 2 == 0 else "propose",
                inputs=self.inputs,
                references=self.shown_references,
                allowed=_is_train,
            )
            for i in range(n)
        ]

    def propose_prompt(
        self, task_type: str, references: Sequence[Task[ProgramProblem]], style: str
    ) -> str:
        """Returns the instruction that asks for a task; an induction's is on its reference."""
        problems = [task.problem for task in references]
        if task_type == INDUCTION and not problems:
            problems = [_identity(HELLO if style in TEXT_STYLES else "'hello'")]
        return _form(style).propose_prompt(task_type, problems, self.inputs)

    def solve_prompt(self, task: Task[ProgramProblem], style: str) -> str:
        return _form(style).solve_prompt(task.type, task.problem)

    def reference_source(self, task_type: str) -> References:
        if task_type == INDUCTION:
            return References(types=(ABDUCTION, DEDUCTION), count=1)
        return References(types=(task_type,))

    # Checking

    def submit_validate(self, proposals: Sequence[Proposal]) -> Pending[list[Verdict]]:
        """Returns verdicts; the sandbox runs while the caller goes on.

        Reasons: those of the format; syntax_error, forbidden_import, no_function, no_parameter,
        no_return, input_repeated; those of the sandbox (exception, timeout_cpu, ...);
        none_result, too_large, unsupported_value, nondeterministic, inexpressible; held_out.
        """
        return self._verifier.validate(proposals, self.split)

    def submit_grade(self, answers: Sequence[Answer]) -> Pending[list[Grade]]:
        """Returns grades; the sandbox runs while the caller goes on.

        Reasons: those of the format; wrong; for a program or an input that gives no value, the
        sandbox's status.
        """
        return self._verifier.grade(answers)

    # Tasks

    def key(self, task: Task[ProgramProblem]) -> str:
        """Returns the type, the program's normal form and the inputs.

        Where these pass arguments by name, the parameters' names count as well.
        """
        q = task.problem
        names = parameters(q.code) if any(map(names_parameters, q.inputs)) else []
        return " ".join([task.type, digest(q.code), " ; ".join(q.inputs), *names])

    def split(self, task: Task[ProgramProblem]) -> str:
        return "train" if _is_train(task.problem.code) else "heldout_program"

    def splits(self) -> tuple[str, ...]:
        return ("train", "heldout_program")

    def stratum(self, task: Task[ProgramProblem]) -> str:
        """Returns how many statements the program has."""
        count = lines(task.problem.code) - 1
        return f"{count} statement" + "s" * (count != 1)

    def first_tasks(self) -> dict[str, list[Task]]:
        """Returns the paper's zero triplet, the identity of 'Hello World', in all three types.

        In the compact style it is the identity of 'hello'.
        """
        problem = _identity(HELLO if self.is_text else "'hello'")
        others = drawing.identity_inputs(self.inputs, compact=not self.is_text)
        message = "It returns its argument." if self.is_text else "[::-1]"
        induction = ProgramProblem(problem.code, others, others, message)
        problems = {DEDUCTION: problem, ABDUCTION: problem, INDUCTION: induction}
        tasks = {t: [Task(t, q)] for t, q in problems.items()}
        return {t: found for t, found in tasks.items() if self.split(found[0]) == "train"}

    def seed_tasks(self, rng: np.random.Generator, n: int) -> dict[str, list[Task]]:
        return drawing.draw_tasks(_random(rng), n, self.inputs, self._executor, _is_train)

    def eval_tasks(self, split: str, task_type: str) -> list[Task]:
        return self._eval_tasks(split)[task_type]

    @remembered
    def _eval_tasks(self, split: str) -> dict[str, list[Task]]:
        random = Random(make_key("program-eval", split))

        def is_in(code: str) -> bool:
            return _is_train(code) == (split == "train")

        return drawing.draw_tasks(random, EVAL_TASKS, self.inputs, self._executor, is_in)

    def universe_size(self, task_type: str) -> int | None:
        return None

    @remembered
    def chance(self, task_type: str, split: str) -> float:
        """Returns the accuracy of random compact answers; NaN in the text styles."""
        if self.is_text:
            return float("nan")
        return chances.chance(task_type, self.eval_tasks(split, task_type), self._executor)

    # Description

    def traits(self, task: Task[ProgramProblem], others: Sequence[Task[ProgramProblem]]) -> Traits:
        """Returns lines, cyclomatic complexity and distance of the program.

        An induction is on somebody else's program, so it has no distance from it.
        """
        code = task.problem.code
        codes = [o.problem.code for o in others if o.problem.code != code or o.type != INDUCTION]
        if task.type == INDUCTION:
            codes = [o.problem.code for o in others if o.type == INDUCTION]
        distances = [ast_distance(code, other) for other in codes]
        return Traits(
            length=float(lines(code)),
            complexity=float(complexity(code)),
            distance=sum(distances) / len(distances) if distances else float("nan"),
        )

    def answer(self, task: Task[ProgramProblem]) -> str:
        """Returns the output of a deduction, the input of an abduction, an induction's inputs."""
        q = task.problem
        texts = {DEDUCTION: q.outputs, ABDUCTION: q.inputs}
        return texts[task.type][0] if task.type in texts else str(q.inputs)

    def verifier_metrics(self) -> dict[str, float]:
        return self._executor.metrics()

    def open(self) -> None:
        self._executor.open()

    def close(self) -> None:
        self._executor.close()

    # JSON

    def to_json(self, task: Task[ProgramProblem]) -> dict[str, Any]:
        q = task.problem
        data = {"type": task.type, "code": q.code}
        data |= {"inputs": list(q.inputs), "outputs": list(q.outputs)}
        return data | ({"message": q.message} if task.type == INDUCTION else {})

    def from_json(self, data: dict[str, Any]) -> Task:
        """Returns the task; raises ValueError where it is none of this family's.

        Programs and literals are checked, outputs are not computed again.
        """
        try:
            task = Task(
                data["type"],
                ProgramProblem(
                    data["code"],
                    tuple(map(read_arguments, _text_list(data["inputs"]))),
                    tuple(_text_list(data["outputs"])),
                    data.get("message", ""),
                ),
            )
            self._check(task)
        except (KeyError, TypeError, AttributeError, NoLiteral, FormatError) as error:
            raise ValueError(f"not a program task: {str(data)[:200]}: {error}") from error
        return task

    def _check(self, task: Task[ProgramProblem]) -> None:
        q = task.problem
        if task.type not in self.task_types:
            raise FormatError(f"type {task.type!r}")
        if reason := reject_program(q.code):
            raise FormatError(reason)
        for output in q.outputs:
            if read_literal(output) is None:
                raise FormatError("none_result")
        wanted = self.inputs if task.type == INDUCTION else 1
        if not len(q.inputs) == len(q.outputs) == wanted or not isinstance(q.message, str):
            raise FormatError(f"needs {wanted} inputs and outputs")
        if not self._format.is_expressible(q):
            raise FormatError("inexpressible in the compact style")


def _form(style: str) -> Form:
    return text_format if style in TEXT_STYLES else compact_format


def _identity(value: str) -> ProgramProblem:
    return ProgramProblem(IDENTITY, (value,), (value,))


def _random(rng: np.random.Generator) -> Random:
    return Random(int(rng.integers(2**62)))


def _text_list(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"no list of texts: {value!r}")
    return value


@functools.lru_cache(maxsize=1 << 13)
def _is_train(code: str) -> bool:
    return make_key(HOLDOUT_SALT, digest(code)) / 2**64 >= HOLDOUT_FRACTION
