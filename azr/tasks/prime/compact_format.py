"""The text of prime-inversion prompts and responses, and the one strict parser of responses.

Compact style, made for the tiny model's own vocabulary (`;` separates references):

    role      type        prompt                          response
    propose   any         P D [p x y ;]... =              p x
    solve     deduction   S D p x =                       y
    solve     abduction   S A p y =                       x
    solve     induction   S I x y =                       p

The proposer writes p and x alone. The environment computes y, as the paper's executor computes
a program's output: a proposer that writes the whole triple collapses to the trivial (p, 1, 1).

A response is decimal integers without sign or leading zero, one space between two of them,
nothing before and nothing after.
"""

import re
from collections.abc import Sequence

TYPE_MARKS = {"deduction": "D", "abduction": "A", "induction": "I"}
MAX_RESPONSE_CHARS = 64

_INTEGER = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)


def propose_prompt(task_type: str, references: Sequence[tuple[int, int, int]], max_p: int) -> str:
    """Returns the proposer's prompt; each reference is a triple (p, x, y).

    Up to where p may go is nothing that a compact prompt says.
    """
    shown = "".join(f"{p} {x} {y} ; " for p, x, y in references)
    return f"P {TYPE_MARKS[task_type]} {shown}="


def solve_prompt(task_type: str, first: int, second: int, max_p: int) -> str:
    """Returns the solver's prompt for the two known numbers, in the order of the table above."""
    return f"S {TYPE_MARKS[task_type]} {first} {second} ="


def parse_integers(text: str, count: int) -> tuple[int, ...] | None:
    """Returns exactly `count` integers, each below 10^19, or None where the text is not that."""
    if len(text) > MAX_RESPONSE_CHARS:
        return None
    words = text.split(" ")
    if len(words) != count or not all(_INTEGER.fullmatch(word) for word in words):
        return None
    return tuple(int(word) for word in words)


def write_reply(letters: tuple[str, ...], numbers: Sequence[int]) -> str:
    """Returns the response with these numbers; which letters they are is not said."""
    return " ".join(map(str, numbers))


def parse_reply(
    text: str, letters: tuple[str, ...], finished: bool
) -> tuple[tuple[int, ...] | None, str]:
    """Returns (an integer for each letter, "") or (None, reason): unfinished, malformed."""
    if not finished:
        return None, "unfinished"
    numbers = parse_integers(text, len(letters))
    return numbers, "" if numbers else "malformed"
