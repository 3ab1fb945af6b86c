"""Accuracy of answers drawn as the warm-up draws them, without a look at the task."""

from collections.abc import Sequence
from random import Random

from azr.tasks.program import grammar
from azr.tasks.program.drawing import draw_allowed
from azr.tasks.program.execution import Executor
from azr.tasks.program.records import ABDUCTION, DEDUCTION, ProgramProblem
from azr.tasks.program.values import read_literal, write_literal
from azr.tasks.program.verifier import Check, check_induction, decide, start
from azr.tasks.records import Task

DRAWS = 40
"""Random answers that are tried on every task."""


def chance(task_type: str, tasks: Sequence[Task[ProgramProblem]], executor: Executor) -> float:
    """Returns the mean accuracy of DRAWS random answers, the same ones for every task.

    Random answers are those of `warmup_rows`. Abduction and induction run them in the sandbox.
    """
    random = Random(f"chance {task_type}")
    if task_type == DEDUCTION:
        values: list[object] = [grammar.draw_value(random) for _ in range(100 * DRAWS)]
        right = sum(values.count(read_literal(task.problem.outputs[0])) for task in tasks)
        return right / (len(values) * len(tasks))
    if task_type == ABDUCTION:
        kinds = [random.choice(grammar.KINDS) for _ in range(DRAWS)]
        inputs = [write_literal(grammar.draw_input(random, kind)) for kind in kinds]
        tried = [Check(((t.problem.code, i),), t.problem.outputs) for t in tasks for i in inputs]
    else:
        codes = [draw_allowed(random, lambda code: True)[1] for _ in range(DRAWS)]
        tried = [check_induction(code, t.problem) for t in tasks for code in codes]
    checks = dict(enumerate(tried))
    running = start(executor, checks)
    grades = [decide(check, running[i]) for i, check in checks.items()]
    return sum(grade.outcome == "correct" for grade in grades) / len(grades)
