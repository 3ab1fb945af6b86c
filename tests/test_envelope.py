"""The envelope and the fences of text answers, against a regular expression and a writer."""

import re

import pytest
from folders import bpe_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from azr.tasks import envelope
from azr.tasks.envelope import (
    MAX_OPEN_BRACKETS,
    REASONS,
    STOP_STRINGS,
    TAGS,
    Envelope,
    fences,
    open_envelope,
)
from azr.text import response_texts

# The documented form, said another way.
FORM = re.compile(r"(?s).*</think>\s*<answer>((?:(?!</?think>|</?answer>).)*)</answer>\s*")

pieces = st.lists(
    st.sampled_from(
        [*TAGS, " ", "\n", "y=1", "<", ">", "</", "answer>", "think", "\x00", "\u2028", "```", "("]
    )
    | st.text(max_size=3),
    max_size=12,
).map("".join)


@given(pieces)
def test_any_text_is_read_as_the_form_says(text):
    match = FORM.fullmatch(text)
    read = open_envelope(text)
    if match:
        assert read == Envelope(match[1].strip(), None)
    else:
        assert read.answer is None and read.reason in REASONS


@given(pieces, st.text(alphabet=" \n\t\r", max_size=3), st.text(max_size=20))
def test_whatever_the_reasoning_holds_the_last_answer_wins(reasoning, space, answer):
    if any(tag in answer for tag in TAGS):
        return
    text = f"{reasoning}</think>{space}<answer>{answer}</answer>{space}"
    assert open_envelope(text) == Envelope(answer.strip(), None)


def test_a_written_envelope_is_read_back():
    assert open_envelope(envelope.write_envelope("y=3", "so be it")).answer == "y=3"
    assert open_envelope(envelope.write_envelope("")) == Envelope("", None)


REJECTED = {
    "no_answer_end": ["", "42", "</think><answer>42", "</think><answer>42</ANSWER>"],
    "text_after_answer": [
        "</think><answer>1</answer>.", "</think><answer>1</answer> <answer>2",
        "</think><answer>1</answer><|im_end|>",
    ],
    "no_answer_start": ["</think>1</answer>", "</think><Answer>1</answer>"],
    "no_think_end": ["<answer>1</answer>", "<think> <answer>1</answer>"],
    "text_before_answer": ["</think> So: <answer>1</answer>"],
    "tag_in_answer": [
        "</think><answer>1</think></answer>", "</think><answer>1</answer>2</answer>",
        "</think><answer><think>1</answer>",
    ],
    "answer_too_long": [f"</think><answer>{'1' * 20_001}</answer>"],
    "answer_too_deep": [f"</think><answer>{'[' * 101}{']' * 101}</answer>"],
    "response_too_long": ["x" * 200_001 + "</think><answer>1</answer>"],
}  # fmt: skip


@pytest.mark.parametrize("reason", REJECTED)
def test_each_rejection_has_its_reason(reason):
    for text in REJECTED[reason]:
        assert open_envelope(text) == Envelope(None, reason)


def test_every_reason_is_one_that_a_text_can_get():
    assert {*REJECTED, "unfinished"} == set(REASONS)
    assert open_envelope("</think><answer>1</answer>", finished=False).reason == "unfinished"


@pytest.mark.parametrize("last", [">", ">.", ">)", "></", ">\n<answer>2</answer>", "></answer>"])
def test_what_the_last_token_holds_behind_the_stop_string_decides_nothing(last):
    tokenizer = bpe_tokenizer("qwen2", ["</think> <answer>1</answer"], template=False)
    tokenizer.add_tokens([last])
    body = tokenizer("so </think> <answer>1</answer", add_special_tokens=False)["input_ids"]
    response = (*body, tokenizer.convert_tokens_to_ids(last))
    (text,) = response_texts(tokenizer, [response], stops=STOP_STRINGS)
    assert open_envelope(text) == Envelope("1", None)
    (whole,) = response_texts(tokenizer, [response])
    assert whole == "so </think> <answer>1</answer" + last
    (plain,) = response_texts(tokenizer, [tuple(body)], stops=("y", "x"))
    assert plain == "so </think> <answer>1</answer"


def test_nesting_counts_brackets_that_are_open_at_once():
    deep = "[" * MAX_OPEN_BRACKETS + "]" * MAX_OPEN_BRACKETS
    assert open_envelope(f"</think><answer>{deep}</answer>").answer == deep
    flat = "()" * 5_000
    assert open_envelope(f"</think><answer>{flat}</answer>").answer == flat
    closed = ")" * 200 + "(" * MAX_OPEN_BRACKETS
    assert open_envelope(f"</think><answer>{closed}</answer>").answer == closed


lines = st.text(alphabet="ab` \t#\x00\u2028", max_size=8).filter(lambda s: not s.startswith("```"))
bodies = st.lists(lines, max_size=4).map("\n".join)
blocks = st.lists(st.tuples(st.sampled_from(["python", "input", "output", "message"]), bodies))


@given(blocks, st.lists(lines, max_size=3))
def test_blocks_come_back_by_their_tag_in_order(written, noise):
    between = "\n".join(["", *noise, ""])
    text = between.join(f"```{tag}\n{body}\n```" for tag, body in written)
    for tag in ("python", "input", "output", "message", "Python", ""):
        assert fences(text, tag) == [body for t, body in written if t == tag]


@given(st.text(alphabet="`pi \nx", max_size=60), st.sampled_from(["python", "p", "i", ""]))
def test_no_text_breaks_the_fences(text, tag):
    for body in fences(text, tag):
        assert f"```{tag}" in text and body in text


@pytest.mark.parametrize(
    ("text", "python"),
    [
        ("```\nx\n```\n```python\ny\n```", ["y"]),
        # A stray fence, or one of another tag that was never closed, swallows nothing.
        ("```\n```python\ny\n```", ["y"]),
        ("```input\n1\n```python\ny\n```", ["y"]),
        # Never closed, another case, tags that only begin alike, not at the start of the line.
        ("```python\ny", []),
        ("```Python\ny\n```", []),
        ("```python3\ny\n```", []),
        ("``` python\ny\n```", []),
        (" ```python\ny\n```", []),
        ("text ```python\ny\n```", []),
        ("```python y\n```", []),
        ("````python\ny\n````", []),
        # White space after a fence is no matter; an indented one inside is the program's own.
        ("```python \t\ny\n```  ", ["y"]),
        ("```python\r\ny\n```\r\n", ["y"]),
        ("```python\n  ```\n```", ["  ```"]),
        ("```python\n```", [""]),
        ("```python\n\n```", [""]),
        ("```python\na\n```\n```python\nb\n```", ["a", "b"]),
    ],
)
def test_only_exact_fences_count(text, python):
    assert fences(text, "python") == python
