"""The instructions of prime inversion in plain language, and the one strict parser of answers.

    role      type        shown                answer
    propose   any         K triples            p=23, x=7
    solve     deduction   p and x              y=10
    solve     abduction   p and y              x=7
    solve     induction   x and y              p=23

An answer is exactly that: the letters in this order, decimal integers without sign or leading
zero, no space but the one after the comma. It stands in the envelope of `azr.tasks.envelope`.
"""

import re
from collections.abc import Sequence

from azr.tasks.envelope import open_envelope, write_envelope

_INTEGER = r"(0|[1-9][0-9]{0,18})"
_FORMS: dict[tuple[str, ...], re.Pattern[str]] = {
    letters: re.compile(", ".join(f"{letter}={_INTEGER}" for letter in letters), re.ASCII)
    for letters in (("p", "x"), ("p",), ("x",), ("y",))
}
PROPOSED = ("p", "x")
"""The letters of a proposer's answer."""

ASKED = {"deduction": ("y",), "abduction": ("x",), "induction": ("p",)}
"""The letters of a solver's answer, by task type."""

_UNKNOWN = {
    "deduction": "p and x are shown and y is asked",
    "abduction": "p and y are shown and x is asked",
    "induction": "x and y are shown and p is asked",
}


def propose_prompt(task_type: str, references: Sequence[tuple[int, int, int]], max_p: int) -> str:
    """Returns the text that asks for p and x; each reference is a triple (p, x, y)."""
    text = (
        "Invent a task on inverses modulo a prime. Three numbers belong to a task: a prime p from "
        f"2 to {max_p}, a number x with 1 <= x < p, and the number y with 1 <= y < p for which "
        f"x * y leaves the remainder 1 on division by p. In this kind of task {_UNKNOWN[task_type]}"
        ". You choose p and x; y follows from them and is worked out for you. A good task is one "
        "that a solver gets right sometimes, but not every time."
    )
    if references:
        shown = "\n".join(f"p={p}, x={x}, y={y}" for p, x, y in references)
        text += f"\n\nTasks that exist already:\n{shown}\n\nYours must differ from all of them."
    return text + (
        "\n\nThe answer is one line with your p and your x, in the form p=<number>, x=<number>, "
        "and has nothing else in it."
    )


def solve_prompt(task_type: str, first: int, second: int, max_p: int) -> str:
    """Returns the text of a task for its two known numbers, in the order of the table above."""
    if task_type == "induction":
        text = (
            f"Let x = {first} and y = {second}. Find a prime p, at most {max_p} and greater than "
            "both x and y, for which x * y leaves the remainder 1 on division by p."
        )
    else:
        known, asked = ("x", "y") if task_type == "deduction" else ("y", "x")
        text = (
            f"Let p = {first}, a prime, and {known} = {second}. Find the number {asked} with "
            f"1 <= {asked} < p for which x * y leaves the remainder 1 on division by p."
        )
    letter = ASKED[task_type][0]
    return f"{text}\n\nThe answer is {letter}=<number> and has nothing else in it."


def write_reply(letters: tuple[str, ...], numbers: Sequence[int]) -> str:
    """Returns a response with these numbers and no reasoning."""
    answer = ", ".join(f"{a}={n}" for a, n in zip(letters, numbers, strict=True))
    return write_envelope(answer)


def parse_reply(
    text: str, letters: tuple[str, ...], finished: bool
) -> tuple[tuple[int, ...] | None, str]:
    """Returns (the integers of the answer, "") or (None, reason).

    Reasons: those of the envelope, and "malformed" where the answer is not of the form.
    """
    envelope = open_envelope(text, finished)
    match = _FORMS[letters].fullmatch(envelope.answer or "")
    if match is None:
        return None, envelope.reason or "malformed"
    return tuple(int(number) for number in match.groups()), ""
