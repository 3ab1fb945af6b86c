"""Tasks and warm-up rows of random programs."""

from collections.abc import Callable
from random import Random

from azr.tasks.program import compact_format, grammar
from azr.tasks.program.compact import Inexpressible, write_value
from azr.tasks.program.execution import Executor
from azr.tasks.program.records import ABDUCTION, DEDUCTION, INDUCTION, Form, ProgramProblem
from azr.tasks.program.values import write_literal
from azr.tasks.records import Task

ROUNDS = 64


def draw_tasks(
    random: Random, n: int, inputs: int, executor: Executor, allowed: Callable[[str], bool]
) -> dict[str, list[Task]]:
    """Returns n distinct tasks per type, with outputs that the sandbox computed.

    The three types share their programs: one run gives the outputs of all three. Programs that
    fail on their inputs are drawn anew. `allowed` tells the programs to draw from.
    """
    tasks: dict[str, list[Task]] = {DEDUCTION: [], ABDUCTION: [], INDUCTION: []}
    seen: set[ProgramProblem] = set()
    for _ in range(ROUNDS):
        missing = n - len(tasks[DEDUCTION])
        if missing <= 0:
            break
        drawn = [_draw_problem(random, inputs, allowed) for _ in range(missing + missing // 8)]
        pairs = [(code, given) for code, givens in drawn for given in givens]
        results = iter([run.result() for run in executor.run(pairs)])
        for code, givens in drawn:
            problem = _problem(code, givens, [next(results) for _ in givens], random)
            if problem is None or len(seen) == n:
                continue
            single = ProgramProblem(code, problem.inputs[:1], problem.outputs[:1])
            if single in seen:
                continue
            seen.add(single)
            tasks[DEDUCTION].append(Task(DEDUCTION, single))
            tasks[ABDUCTION].append(Task(ABDUCTION, single))
            tasks[INDUCTION].append(Task(INDUCTION, problem))
    return tasks


def _draw_problem(
    random: Random, inputs: int, allowed: Callable[[str], bool]
) -> tuple[str, list[str]]:
    kind, code = draw_allowed(random, allowed)
    return code, [write_literal(value) for value in grammar.draw_inputs(random, kind, inputs)]


def _problem(code: str, inputs: list[str], results: list, random: Random) -> ProgramProblem | None:
    if any(result.status != "ok" or result.value is None for result in results):
        return None
    try:
        for result in results:
            write_value(result.value)
    except Inexpressible:
        return None
    outputs = tuple(write_literal(result.value) for result in results)
    return ProgramProblem(code, tuple(inputs), outputs, random.choice(compact_format.MESSAGES))


def draw_allowed(random: Random, allowed: Callable[[str], bool]) -> tuple[str, str]:
    """Returns (kind of its inputs, program) for a random program that is allowed."""
    while True:
        kind = grammar.draw_kind(random)
        code = grammar.draw_program(random, kind)
        if allowed(code):
            return kind, code


def warmup_row(
    random: Random,
    form: Form,
    task_type: str,
    role: str,
    *,
    inputs: int,
    references: int,
    allowed: Callable[[str], bool],
) -> tuple[str, str]:
    """Returns a (prompt, response) pair in a format, the response unrelated to the prompt.

    No program is run: outputs, those that a prompt shows as well, are random values.
    """

    def problem(count: int) -> ProgramProblem:
        kind, code = draw_allowed(random, allowed)
        given = [write_literal(value) for value in grammar.draw_inputs(random, kind, count)]
        outputs = [write_literal(grammar.draw_value(random)) for _ in given]
        message = random.choice(compact_format.MESSAGES)
        return ProgramProblem(code, tuple(given), tuple(outputs), message)

    shown = problem(inputs if task_type == INDUCTION else 1)
    if role == "solve":
        drawn = problem(1)
        kind = random.choice(grammar.KINDS)
        answer = {
            DEDUCTION: drawn.outputs[0],
            ABDUCTION: write_literal(grammar.draw_input(random, kind)),
            INDUCTION: drawn.code,
        }[task_type]
        return form.solve_prompt(task_type, shown), form.write_answer(task_type, answer)
    if task_type == INDUCTION:
        prompt = form.propose_prompt(task_type, [shown], inputs)
        return prompt, form.write_proposal(task_type, shown.message, shown.inputs)
    others = [problem(1) for _ in range(random.randint(0, references))]
    prompt = form.propose_prompt(task_type, others, inputs)
    return prompt, form.write_proposal(task_type, shown.code, shown.inputs)


def identity_inputs(count: int, *, compact: bool) -> tuple[str, ...]:
    """Returns inputs of the first induction, of mixed kinds."""
    mixed = ["'hello'", "[1, 2, 3]", "3", "'ole'", "[4]", "'hoe'", "0", "[0, 4, 2]", "'lo'", "1"]
    if not compact:
        mixed = ["'Hello World'", "1", "{'a': [1, 2]}", "(1.5, 2.5)", "'[[1], [2]]'"]
        mixed.append("123456789012345678901234567890")
    return tuple((mixed + [str(n) for n in range(100, 100 + count)])[:count])
