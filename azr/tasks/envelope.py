"""The answer format of the text styles: one envelope around every response, one strict parser.

A prompt of style "r1" or "chat" ends with an opened think tag, so that a response is

    reasoning </think> <answer> ... </answer>

with white space at most between `</think>` and `<answer>` and after `</answer>`. The answer is
what stands between `<answer>` and `</answer>`; none of the four tags may stand in it. Everything
before that last `</think>` is reasoning and is never read, whatever it holds: where the reasoning
has tags of its own, or answers of its own, the last answer wins. (In a run, generation stops at
the first `</answer>`, so reasoning that writes one cuts itself off.)

Tags are these exact letters. Whatever is not of this form is rejected with a reason out of
`REASONS`; no text raises.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

COMPACT, R1, CHAT = "compact", "r1", "chat"
TEXT_STYLES = (R1, CHAT)
"""Styles in plain language, in which responses wear the envelope; "compact" has none."""

THINK, END_THINK, ANSWER, END_ANSWER = "<think>", "</think>", "<answer>", "</answer>"
TAGS = (THINK, END_THINK, ANSWER, END_ANSWER)

STOP_STRINGS = (END_ANSWER,)
"""What ends a response of a text style, beside the model's own end-of-text tokens."""

FRAME = (
    "The assistant first works the task out between <think> and </think>, then writes its final "
    "answer between <answer> and </answer>, and nothing after it."
)
"""The sentence that tells the format; both text styles show it."""

MAX_RESPONSE_CHARS = 200_000
MAX_ANSWER_CHARS = 20_000
MAX_OPEN_BRACKETS = 100
"""Brackets open at once in an answer, strings and all; Python's own parser gives up at 200."""

Reason = Literal[
    "unfinished",
    "response_too_long",
    "no_answer_end",
    "text_after_answer",
    "no_answer_start",
    "no_think_end",
    "text_before_answer",
    "tag_in_answer",
    "answer_too_long",
    "answer_too_deep",
]
REASONS: tuple[str, ...] = get_args(Reason)
"""Why a response is no envelope, in the order in which they are looked for."""


def stop_strings(style: str) -> tuple[str, ...]:
    """Returns what ends a family's responses of a style: of a compact one nothing more does."""
    return STOP_STRINGS if style in TEXT_STYLES else ()


@dataclass(frozen=True, slots=True)
class Envelope:
    """The answer of a response, or the reason why it has none; exactly one of them is None."""

    answer: str | None
    """What stood between the tags, without white space at its ends."""
    reason: Reason | None


def open_envelope(text: str, finished: bool = True) -> Envelope:
    """Returns the answer of a response, or the first reason of `REASONS` that it has none.

    `finished` is False where the response ran into its length limit. Linear in the length.
    """
    if not finished:
        return Envelope(None, "unfinished")
    if len(text) > MAX_RESPONSE_CHARS:
        return Envelope(None, "response_too_long")
    text = text.rstrip()
    if not text.endswith(END_ANSWER):
        return Envelope(None, "text_after_answer" if END_ANSWER in text else "no_answer_end")
    before, start, answer = text[: -len(END_ANSWER)].rpartition(ANSWER)
    if not start:
        return Envelope(None, "no_answer_start")
    if not before.rstrip().endswith(END_THINK):
        return Envelope(None, "text_before_answer" if END_THINK in before else "no_think_end")
    if any(tag in answer for tag in TAGS):
        return Envelope(None, "tag_in_answer")
    answer = answer.strip()
    if len(answer) > MAX_ANSWER_CHARS:
        return Envelope(None, "answer_too_long")
    if nesting(answer) > MAX_OPEN_BRACKETS:
        return Envelope(None, "answer_too_deep")
    return Envelope(answer, None)


def write_envelope(answer: str, reasoning: str = "") -> str:
    """Returns a response with this answer, as a warm-up shows them."""
    return f"{reasoning}\n{END_THINK}\n{ANSWER}{answer}{END_ANSWER}"


def nesting(text: str) -> int:
    """Returns the most brackets that are open at once, quotes not heeded."""
    depth = deepest = 0
    for bracket in re.findall(r"[][(){}]", text):
        depth = depth + 1 if bracket in "([{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    return deepest


def fences(answer: str, tag: str) -> list[str]:
    """Returns the contents of the fenced blocks with exactly this tag, in order.

    A block opens with a line of three backticks and a tag and ends with a line of three backticks
    alone, both at the start of the line, white space after them allowed. A tagged line always
    opens a block, also inside one that was not closed, which then counts for nothing: neither an
    untagged nor another block swallows a tagged one. A block that is never closed is none.
    """
    found: list[str] = []
    opened: tuple[str, list[str]] | None = None
    for line in answer.split("\n"):
        mark = line.rstrip()
        if mark.startswith("```") and (mark != "```" or opened is None):
            opened = (mark[3:], [])
        elif opened is not None and mark == "```":
            if opened[0] == tag:
                found.append("\n".join(opened[1]))
            opened = None
        elif opened is not None:
            opened[1].append(line)
    return found
