"""How an item of a suite is asked, and how its answer is found in a response.

Styles "r1" and "chat" ask in words and read the envelope of `azr.tasks.envelope`, with one fenced
block inside; predictions are asked and read exactly as the family `program` does in training. Style
"completion" lets a base model go on writing the program:

    output       code, `assert f(input) ==`        its line is a literal
    input        code, `assert output == f(`       its line is an argument list and `)`
    completion   the prompt as it stands           its text, up to a line that begins something else
"""

from dataclasses import dataclass

from azr.evaluation.suite import Completion, Item, Prediction
from azr.tasks.envelope import STOP_STRINGS, TEXT_STYLES
from azr.tasks.program import text_format
from azr.tasks.program.records import (
    ABDUCTION,
    DEDUCTION,
    INDUCTION,
    FormatError,
    ProgramProblem,
)
from azr.text import COMPLETION

STYLES = (*TEXT_STYLES, COMPLETION)

BODY_ENDS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint", "\nassert", "\n@", "\n```")
"""Where a completed function has ended, and the base model is writing something else."""

_TYPES = {"output": DEDUCTION, "input": ABDUCTION}
"""The family `program` has the same questions."""


def instruction(item: Item, style: str) -> str:
    """Returns what is asked, undressed; nothing of the hidden answer is in it."""
    if isinstance(item, Completion):
        if style == COMPLETION:
            return item.prompt.rstrip()
        return (
            f"Complete the function `{item.entry_point}`:\n\n```python\n{item.prompt.rstrip()}\n"
            "```\n\nThe answer has one block with the tag `python`, which holds the whole program "
            "with its imports:\n\n```python\ndef ...\n```"
        )
    if style != COMPLETION:
        problem = ProgramProblem(item.code, (item.input,), (item.output,))
        return text_format.solve_prompt(_TYPES[item.kind], problem)
    code = item.code.rstrip()
    if item.kind == "output":
        return f"{code}\n\nassert f({item.input}) =="
    return f"{code}\n\nassert {item.output} == f("


def stop_strings(item: Item, style: str) -> tuple[str, ...]:
    """Returns the strings that end a response to this item."""
    if style != COMPLETION:
        return STOP_STRINGS
    return ("\n",) if isinstance(item, Prediction) else BODY_ENDS


@dataclass(frozen=True, slots=True)
class Extract:
    """The answer in a response, or the reason why there is none; exactly one of them is None."""

    answer: str | None
    reason: str | None


def extract(item: Item, style: str, text: str, finished: bool) -> Extract:
    """Returns the answer of a response; `finished` is False where it ran into its limit.

    For an item to complete, the answer is a program: in style "completion" the prompt goes before
    it, and a text that ran into its limit counts as far as it goes.
    """
    if style == COMPLETION:
        if isinstance(item, Completion):
            ends = [at for at in map(text.find, BODY_ENDS) if at >= 0]
            return Extract(instruction(item, style) + text[: min(ends, default=len(text))], None)
        line, newline, _ = text.partition("\n")
        if not finished and not newline:
            return Extract(None, "unfinished")
        line = line.strip()
        if item.kind == "output":
            return Extract(line, None)
        return Extract(line[:-1], None) if line.endswith(")") else Extract(None, "no_parenthesis")
    task_type = INDUCTION if isinstance(item, Completion) else _TYPES[item.kind]
    try:
        return Extract(text_format.read_answer(task_type, text, finished), None)
    except FormatError as error:
        return Extract(None, str(error))
