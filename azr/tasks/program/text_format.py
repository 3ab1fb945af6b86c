"""The text styles: instructions in plain language, and the one strict parser of their answers.

    role      type                  shown                       answer
    propose   deduction, abduction  K triples                   one python, one input block
    propose   induction             a program                   N input blocks, one message block
    solve     deduction             program, arguments          one output block
    solve     abduction             program, output             one input block
    solve     induction             half of the pairs, message  one python block

A block is fenced by three backticks and exactly the tag named above. An answer has the blocks of
its cell, each exactly so often, and text around them is ignored. It stands in the envelope of
`azr.tasks.envelope`. An input block holds the argument list of one call, an output block one
literal.
"""

from collections.abc import Sequence

from azr.sandbox.modules import ALLOWED
from azr.tasks.envelope import fences, open_envelope, write_envelope
from azr.tasks.program.records import ABDUCTION, DEDUCTION, INDUCTION, FormatError, ProgramProblem
from azr.tasks.program.values import NoLiteral, read_arguments, write_literal
from azr.tasks.program.values import read_literal as _read_literal

MAX_MESSAGE_CHARS = 1_000

RULES = f"""\
Rules for the program:
- It is Python, and its entry point is a function `f` with at least one parameter.
- `f` returns a value other than None. Arguments and result are made of None, bool, int, float,
  str, list, tuple, dict and set.
- The same arguments always give the same result: no chance, no clock, no input or output, no
  files, no state from outside.
- It may define other functions and classes. Of the standard library it may import these modules
  and no others: {", ".join(name for name in ALLOWED if name[0] != "_" and "." not in name)}.
- It ends quickly, and its result is short."""

_ASKED = {
    DEDUCTION: "A solver will see your program and your input and must work out the output.",
    ABDUCTION: (
        "A solver will see your program and its output and must find an input that gives that "
        "output; any such input counts."
    ),
}

_ANSWER_TAGS = {DEDUCTION: "output", ABDUCTION: "input", INDUCTION: "python"}

_BLOCKS = "Fence each block with three backticks and its tag"


def propose_prompt(task_type: str, references: Sequence[ProgramProblem], inputs: int) -> str:
    """Returns the instruction that asks for a program and an input.

    For induction, the one that asks for `inputs` inputs and a message for the one reference.
    """
    if task_type == INDUCTION:
        return _propose_inputs(references[0], inputs)
    parts = [
        f"Invent a programming puzzle: a Python program and an input for it. {_ASKED[task_type]} "
        "A good puzzle takes several steps of careful thought, so that a strong solver gets it "
        "right sometimes, but not every time.",
        RULES,
    ]
    if references:
        shown = "\n\n".join(
            f"Puzzle {number}\n{_triple(problem)}" for number, problem in enumerate(references, 1)
        )
        parts += [
            "Puzzles that exist already:\n\n" + shown,
            "Yours must differ from all of them in what it computes and in how, and be harder.",
        ]
    parts.append(
        f"The answer has two blocks. {_BLOCKS}: the program as `python`, and as `input` the "
        "arguments of one call of `f`, as literals separated by commas:\n\n"
        "```python\ndef f(...):\n    ...\n```\n```input\n'text', [1, 2]\n```"
    )
    return "\n\n".join(parts)


def _propose_inputs(problem: ProgramProblem, count: int) -> str:
    return "\n\n".join(
        [
            f"Here is a Python program.\n\n{_block('python', problem.code)}",
            f"Turn it into a puzzle: write {count} inputs for it, and a message. A solver who "
            "never sees the program gets the message and some of the inputs with their outputs, "
            "and must write a program that gives the right outputs for the other inputs too.",
            "Choose inputs that differ from each other and together show all that the program "
            "does. The message may hint at the idea, but must not contain the program. A good "
            "puzzle is one that a strong solver gets right sometimes, but not every time.",
            f"The answer has {count} blocks with the tag `input`, each with the arguments of one "
            "call of `f` as literals separated by commas, and one block with the tag `message`. "
            f"{_BLOCKS}:\n\n```input\n'text', [1, 2]\n```\n```message\n...\n```",
        ]
    )


def solve_prompt(task_type: str, problem: ProgramProblem) -> str:
    """Returns the solver's instruction; nothing that it must find is in it."""
    return {
        DEDUCTION: _solve_deduction,
        ABDUCTION: _solve_abduction,
        INDUCTION: _solve_induction,
    }[task_type](problem)


def _solve_deduction(problem: ProgramProblem) -> str:
    return (
        f"What does this Python program return?\n\n{_block('python', problem.code)}\n\n"
        f"It is called with these arguments:\n\n{_block('input', problem.inputs[0])}\n\n"
        "The answer has one block with the tag `output`, which holds the value that `f` returns, "
        "as a Python literal:\n\n```output\n{'a': [1, 2]}\n```"
    )


def _solve_abduction(problem: ProgramProblem) -> str:
    return (
        f"With which arguments does this Python program return a given value?\n\n"
        f"{_block('python', problem.code)}\n\n"
        f"The value it shall return:\n\n{_block('output', problem.outputs[0])}\n\n"
        "Any arguments count that give exactly this value. The answer has one block with the tag "
        "`input`, which holds the arguments of one call of `f` as literals separated by commas:"
        "\n\n```input\n'text', [1, 2]\n```"
    )


def _solve_induction(problem: ProgramProblem) -> str:
    pairs = "\n".join(
        f"{_block('input', given)}\n{_block('output', result)}"
        for given, result in problem.shown_pairs
    )
    return (
        "Write the Python program that gave these results. Each input block holds the arguments "
        f"of one call of `f`, the output block after it what `f` returned.\n\n{pairs}\n\n"
        f"A hint from the author of the puzzle:\n\n{_block('message', problem.message)}\n\n"
        "Your program is tried on other inputs, which you do not see.\n\n"
        f"{RULES}\n\n"
        "The answer has one block with the tag `python`, which holds the whole program:\n\n"
        "```python\ndef f(...):\n    ...\n```"
    )


def write_proposal(task_type: str, first: str, inputs: Sequence[str]) -> str:
    """Returns a response that `read_proposal` reads back."""
    tag = "message" if task_type == INDUCTION else "python"
    blocks = [_block(tag, first), *(_block("input", given) for given in inputs)]
    return write_envelope("\n".join(blocks))


def write_answer(task_type: str, answer: str) -> str:
    """Returns a response that `read_answer` reads back."""
    return write_envelope(_block(_ANSWER_TAGS[task_type], answer))


def read_proposal(task_type: str, text: str, finished: bool, count: int) -> tuple[str, ...]:
    """Returns (program, arguments), or for induction (message, arguments, ...), as text.

    Argument lists are canonical. Raises FormatError with a reason: those of the envelope,
    python_block, input_block, input_count, message_block, message_too_long, input_no_literal.
    """
    answer = _answer(text, finished)
    inputs = fences(answer, "input")
    if task_type == INDUCTION:
        first = _one(answer, "message")
        if len(first) > MAX_MESSAGE_CHARS:
            raise FormatError("message_too_long")
        if len(inputs) != count:
            raise FormatError("input_count")
    else:
        first = _one(answer, "python")
        if len(inputs) != 1:
            raise FormatError("input_block")
    return (first, *(_arguments(given) for given in inputs))


def read_answer(task_type: str, text: str, finished: bool) -> str:
    """Returns the literal, argument list or program of a solver's answer, as canonical text.

    Raises FormatError with a reason: those of the envelope, python_block, input_block,
    output_block, input_no_literal, output_no_literal.
    """
    block = _one(_answer(text, finished), _ANSWER_TAGS[task_type])
    if task_type == INDUCTION:
        return block
    if task_type == ABDUCTION:
        return _arguments(block)
    try:
        return write_literal(_read_literal(block))
    except NoLiteral:
        raise FormatError("output_no_literal") from None


def is_expressible(problem: ProgramProblem) -> bool:
    """Returns True: every problem has a text."""
    return True


def read_answer_block(task_type: str, text: str, finished: bool) -> str:
    """Returns what the one block of a solver's answer holds, whatever it is.

    An input block may hold nothing, for a program without parameters. Raises FormatError as above.
    """
    answer = _answer(text, finished)
    if task_type == ABDUCTION and fences(answer, "input") == [""]:
        return ""
    return _one(answer, _ANSWER_TAGS[task_type])


def _answer(text: str, finished: bool) -> str:
    envelope = open_envelope(text, finished)
    if envelope.answer is None:
        raise FormatError(envelope.reason)
    return envelope.answer


def _one(answer: str, tag: str) -> str:
    blocks = fences(answer, tag)
    if len(blocks) != 1 or not blocks[0].strip():
        raise FormatError(f"{tag}_block")
    return blocks[0]


def _arguments(text: str) -> str:
    try:
        return read_arguments(text)
    except NoLiteral:
        raise FormatError("input_no_literal") from None


def _triple(problem: ProgramProblem) -> str:
    return "\n".join(
        [
            _block("python", problem.code),
            _block("input", problem.inputs[0]),
            _block("output", problem.outputs[0]),
        ]
    )


def _block(tag: str, text: str) -> str:
    return f"```{tag}\n{text.rstrip()}\n```"
