"""The compact style's prompts, and the one strict parser of its responses.

    role      type        prompt                              response
    propose   deduction   P D [program | input ;]... >        program | input
    propose   abduction   P A [program | input ;]... >        program | input
    propose   induction   P I program >                       input , ... , input | word
    solve     deduction   S D program : input >               output
    solve     abduction   S A program : output >              input
    solve     induction   S I input : output , ... | word >   program

`program`, `input` and `output` are written as in `azr.tasks.program.compact`; `;;` parts references
of the proposer. The input stands after the program, so that its items are where the answer looks
for them however long the program is. A message is one word for an index, a slice or a call.
"""

from collections.abc import Sequence

from azr.tasks.program import compact
from azr.tasks.program.compact import Inexpressible, read_program, read_value
from azr.tasks.program.compact import write_literal as write
from azr.tasks.program.compact import write_program as program
from azr.tasks.program.records import ABDUCTION, DEDUCTION, INDUCTION, FormatError, ProgramProblem

TYPE_MARKS = {DEDUCTION: "D", ABDUCTION: "A", INDUCTION: "I"}
MESSAGES = compact.INDICES + compact.SLICES + compact.CALLS
WORDS = ("P", "S", *TYPE_MARKS.values(), ":", "|", ">", ",", ";;", *compact.WORDS)

LONGEST_PROGRAM = 28
LONGEST_VALUE = 7
MAX_CHARS = 1_000


def propose_prompt(task_type: str, references: Sequence[ProgramProblem], inputs: int) -> str:
    """Returns the proposer's prompt; for induction the one reference is the program.

    How many inputs an induction has is nothing that a compact prompt says.
    """
    if task_type == INDUCTION:
        return f"P I {program(references[0].code)} >"
    shown = "".join(f"{program(r.code)} | {write(r.inputs[0])} ;; " for r in references)
    return f"P {TYPE_MARKS[task_type]} {shown}>"


def solve_prompt(task_type: str, problem: ProgramProblem) -> str:
    """Returns the solver's prompt; of an induction the first half of the pairs."""
    if task_type == INDUCTION:
        pairs = " , ".join(f"{write(given)} : {write(made)}" for given, made in problem.shown_pairs)
        return f"S I {pairs} | {problem.message} >"
    given = problem.inputs[0] if task_type == DEDUCTION else problem.outputs[0]
    return f"S {TYPE_MARKS[task_type]} {program(problem.code)} : {write(given)} >"


def response_words(role: str, task_type: str, inputs: int) -> int:
    """Returns how many words a response has at most."""
    if role == "propose" and task_type == INDUCTION:
        return inputs * (LONGEST_VALUE + 1) + 1
    if role == "propose":
        return LONGEST_PROGRAM + 1 + LONGEST_VALUE
    return LONGEST_PROGRAM if task_type == INDUCTION else LONGEST_VALUE


def write_proposal(task_type: str, first: str, inputs: Sequence[str]) -> str:
    """Returns the response that `read_proposal` reads back."""
    if task_type == INDUCTION:
        return " , ".join(map(write, inputs)) + f" | {first}"
    return f"{program(first)} | {write(inputs[0])}"


def write_answer(task_type: str, answer: str) -> str:
    """Returns the response that `read_answer` reads back."""
    return program(answer) if task_type == INDUCTION else write(answer)


def read_proposal(task_type: str, text: str, finished: bool, count: int) -> tuple[str, ...]:
    """Returns (program, input), or for induction (message, input, ...), as Python text.

    Raises FormatError with a reason: unfinished, malformed, input_count.
    """
    first, second = _halves(text, finished)
    if task_type == INDUCTION:
        parts = first.split(" , ")
        inputs = [value for part in parts if (value := read_value(part)) is not None]
        if len(inputs) < len(parts) or second not in MESSAGES:
            raise FormatError("malformed")
        if len(inputs) != count:
            raise FormatError("input_count")
        return (second, *inputs)
    code, given = read_program(first), read_value(second)
    if code is None or given is None:
        raise FormatError("malformed")
    return (code, given)


def read_answer(task_type: str, text: str, finished: bool) -> str:
    """Returns the output, input or program of an answer as Python text.

    Raises FormatError with a reason: unfinished, malformed.
    """
    if not finished:
        raise FormatError("unfinished")
    if len(text) > MAX_CHARS:
        raise FormatError("malformed")
    read = read_program(text) if task_type == INDUCTION else read_value(text)
    if read is None:
        raise FormatError("malformed")
    return read


def is_expressible(problem: ProgramProblem) -> bool:
    """Whether every value of a problem has a compact text."""
    try:
        for value in problem.inputs + problem.outputs:
            write(value)
        program(problem.code)
    except Inexpressible:
        return False
    return True


def _halves(text: str, finished: bool) -> tuple[str, str]:
    if not finished:
        raise FormatError("unfinished")
    first, mark, second = text.partition(" | ")
    if not mark or len(text) > MAX_CHARS:
        raise FormatError("malformed")
    return first, second
