"""How an item of a suite is asked, and how its answer is found in a response.

Styles "r1" and "chat" ask in words and read the envelope of `azr.tasks.envelope`, with one fenced
block inside. Style "completion" lets a base model go on writing the program:

    output       code, `assert f(input) ==`        its line is a literal
    input        code, `assert output == f(`       its line is an argument list and `)`
    completion   the prompt as it stands           its text, up to a line that begins something else
"""

from dataclasses import dataclass

from azr.evaluation.suite import Completion, Item, Prediction
from azr.tasks.envelope import STOP_STRINGS, TEXT_STYLES, fences, open_envelope
from azr.text import COMPLETION

STYLES = (*TEXT_STYLES, COMPLETION)

BODY_ENDS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint", "\nassert", "\n@", "\n```")
"""Where a completed function has ended, and the base model is writing something else."""

_FENCES = {"output": "output", "input": "input", "completion": "python"}
_ASKED = {
    "output": "What does `f({0})` return? Write the value as a Python literal, in one block that "
    "begins with ```output and ends with ```.",
    "input": "Find arguments with which `f` returns\n\n{0}\n\nAny that do are right. Write them as "
    "they stand between the parentheses of a call, literals only, in one block that begins with "
    "```input and ends with ```.",
    "completion": "Complete the function `{0}`. Write the whole program, with its imports, in one "
    "block that begins with ```python and ends with ```.",
}


def instruction(item: Item, style: str) -> str:
    """Returns what is asked, undressed; nothing of the hidden answer is in it."""
    if isinstance(item, Completion):
        if style == COMPLETION:
            return item.prompt.rstrip()
        return f"{_block(item.prompt)}\n\n{_ASKED['completion'].format(item.entry_point)}"
    shown = item.input if item.kind == "output" else item.output
    if style == COMPLETION:
        code = item.code.rstrip()
        if item.kind == "output":
            return f"{code}\n\nassert f({shown}) =="
        return f"{code}\n\nassert {shown} == f("
    # Not str.format: the shown text may hold braces.
    return f"{_block(item.code)}\n\n{_ASKED[item.kind].replace('{0}', shown)}"


def _block(code: str) -> str:
    return f"```python\n{code.strip()}\n```"


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
    envelope = open_envelope(text, finished)
    if envelope.answer is None:
        return Extract(None, envelope.reason)
    blocks = fences(envelope.answer, _FENCES[item.kind])
    return Extract(blocks[-1], None) if blocks else Extract(None, "no_block")
