"""How an item of a suite is asked, and how its answer is found in a response.

Styles "r1" and "chat" ask in words and read the envelope of `azr.tasks.envelope`, with one fenced
block inside; predictions are asked exactly as the family `program` does in training, and may be
answered by expressions. Style "completion" lets a base model go on writing the program:

    output       code, `assert f(input) ==`        its line is an expression
    input        code, `assert output == f(`       its line is an argument list and `)`
    completion   the prompt as it stands           its text, up to where the function ends
"""

from azr.evaluation.suite.arguments import is_expression, until_bracket
from azr.evaluation.suite.bodies import BODY_ENDS, CONTROL, complete, until_end
from azr.evaluation.suite.items import Completion, Item, Prediction, Suite
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


def stop_strings(suite: Suite, style: str) -> tuple[str, ...]:
    """Returns the strings that end a response to any of a suite's items."""
    if style != COMPLETION:
        return STOP_STRINGS
    return ("\n",) if suite.layout == "CRUXEval" else BODY_ENDS


def extract(item: Item, style: str, text: str, finished: bool) -> str:
    """Returns the answer in a response; `finished` is False where it ran into its limit.

    For an item to complete, the answer is a program: in style "completion" the prompt goes before
    it, and a text that ran into its limit counts as far as it goes. Raises FormatError with a named
    reason where there is no answer.
    """
    if style != COMPLETION:
        task_type = INDUCTION if isinstance(item, Completion) else _TYPES[item.kind]
        return text_format.read_answer_block(task_type, text, finished)
    if isinstance(item, Completion):
        return complete(item.prompt, until_end(text))
    line, newline, _ = text.partition("\n")
    if not finished and not newline:
        raise FormatError("unfinished")
    return _line_answer(item, line.strip())


def _line_answer(item: Prediction, line: str) -> str:
    """Returns the answer that a line begins with: a comment or a control token may end it."""
    ends = [len(line), *(match.start() for match in CONTROL.finditer(line))]
    heads = [line[:end].strip() for end in ends]
    if item.kind == "output":
        return next(filter(is_expression, heads), line)
    for head in heads:
        arguments = until_bracket(head)
        if arguments is not None:
            return arguments
    if not line.endswith(")"):
        raise FormatError("no_parenthesis")
    return line[:-1]
