"""Accuracy of answers drawn as the warm-up draws them, without a look at the task."""

from collections.abc import Sequence
from random import Random

from azr.tasks.program import grammar
from azr.tasks.program.drawing import draw_allowed
from azr.tasks.program.execution import Executor
from azr.tasks.program.records import ABDUCTION, DEDUCTION
from azr.tasks.program.values import equal, read_literal, write_literal
from azr.tasks.records import Task

DRAWS = 40
"""Random answers that are tried on every task."""


def chance(task_type: str, tasks: Sequence[Task], executor: Executor) -> float:
    """Returns the mean accuracy of DRAWS random answers, the same ones for every task.

    Random answers are those of `warmup_rows`. Abduction and induction run them in the sandbox.
    """
    random = Random(f"chance {task_type}")
    if task_type == DEDUCTION:
        values = [grammar.draw_value(random) for _ in range(100 * DRAWS)]
        right = sum(values.count(read_literal(task.problem.outputs[0])) for task in tasks)
        return right / (len(values) * len(tasks))
    if task_type == ABDUCTION:
        kinds = [random.choice(grammar.KINDS) for _ in range(DRAWS)]
        inputs = [write_literal(grammar.draw_input(random, kind)) for kind in kinds]
        tries = [[((t.problem.code, i), t.problem.outputs[:1]) for i in inputs] for t in tasks]
    else:
        codes = [draw_allowed(random, lambda code: True)[1] for _ in range(DRAWS)]
        tries = [[(code, t.problem.hidden_pairs) for code in codes] for t in tasks]
        return _induction(tries, executor)
    pairs = [pair for row in tries for pair, _ in row]
    results = iter(executor.run(pairs))
    right = 0
    for row in tries:
        for _, (output,) in row:
            result = next(results).result()
            right += result.status == "ok" and equal(result.value, read_literal(output))
    return right / len(pairs)


def _induction(tries: list, executor: Executor) -> float:
    pairs = [(code, given) for row in tries for code, hidden in row for given, _ in hidden]
    results = iter([run.result() for run in executor.run(pairs)])
    right = total = 0
    for row in tries:
        for _, hidden in row:
            outcomes = [next(results) for _ in hidden]
            total += 1
            right += all(
                r.status == "ok" and equal(r.value, read_literal(output))
                for r, (_, output) in zip(outcomes, hidden, strict=True)
            )
    return right / total
