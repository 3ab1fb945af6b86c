"""Prime inversion in plain language: what is shown, what is asked, and what counts as an answer."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from azr.config import PrimeConfig, TaskConfig
from azr.tasks import Answer, Proposal, Task, load_environment
from azr.tasks.envelope import REASONS, write_envelope
from azr.tasks.prime import PrimeProblem
from azr.tasks.prime.text_format import ASKED, parse_reply

TYPES = ("deduction", "abduction", "induction")
TEXT = load_environment(TaskConfig(style="r1", references=3, prime=PrimeConfig(max_p=23)))
COMPACT = load_environment(TaskConfig(style="compact", references=3, prime=PrimeConfig(max_p=23)))


def validate(answer, env=TEXT, finished=True):
    text = write_envelope(answer) if env is TEXT else answer
    proposal = Proposal(type="deduction", text=text, finished=finished)
    return env.submit_validate([proposal]).result()[0]


def grade(task_type, answer, env=TEXT):
    text = write_envelope(answer) if env is TEXT else answer
    task = Task(task_type, PrimeProblem(7, 3, 5))
    return env.submit_grade([Answer(task=task, text=text, finished=True)]).result()[0]


@given(st.integers(0, 40), st.integers(0, 40))
def test_both_styles_judge_the_same_numbers_alike(p, x):
    assert validate(f"p={p}, x={x}") == validate(f"{p} {x}", COMPACT)
    for task_type in TYPES:
        (letter,) = ASKED[task_type]
        assert grade(task_type, f"{letter}={p}") == grade(task_type, str(p), COMPACT)


@pytest.mark.parametrize(
    "answer",
    ["", "7 3", "p=7,x=3", "p=7, x=3.", "p = 7, x = 3", "x=3, p=7", "p=07, x=3", "p=-7, x=3",
     "p=7, x=3, y=5", "P=7, X=3", "p=7", "p=٧, x=3", "p=7\n, x=3", "p=7,  x=3", "p=7, x=3\x00",
     "p=1e1, x=3", f"p={'9' * 20}, x=3", "p=7, x=<number>", "```\np=7, x=3\n```"],
)  # fmt: skip
def test_only_the_documented_form_is_an_answer(answer):
    assert (validate(answer).status, validate(answer).reason) == ("malformed", "malformed")


@pytest.mark.parametrize("answer", ["5", "x=5", "y=5, x=3", "y = 5", "y=5.0", "y=+5", "Y=5"])
def test_a_solver_answers_with_the_letter_that_is_asked(answer):
    assert grade("deduction", answer).reason == "malformed"
    assert grade("deduction", "y=5").outcome == "correct"
    assert grade("abduction", "x=3").outcome == "correct"
    assert grade("induction", "p=7").outcome == "correct"
    assert grade("induction", "y=5").outcome == "malformed"


def test_without_the_envelope_nothing_counts():
    for text, reason in (
        ("p=7, x=3", "no_answer_end"),
        ("<answer>p=7, x=3</answer>", "no_think_end"),
    ):
        (verdict,) = TEXT.submit_validate(
            [Proposal(type="deduction", text=text, finished=True)]
        ).result()
        assert (verdict.status, verdict.reason) == ("malformed", reason)
    assert validate("p=7, x=3", finished=False).reason == "unfinished"


@given(st.text(max_size=60), st.sampled_from([("p", "x"), ("y",)]), st.booleans())
def test_no_text_raises_and_every_rejection_has_a_known_reason(text, letters, finished):
    for whole in (text, write_envelope(text)):
        numbers, reason = parse_reply(whole, letters, finished)
        assert (numbers is None) == bool(reason)
        assert not reason or reason in (*REASONS, "malformed")


def test_instructions_show_the_two_knowns_and_the_form_and_never_the_unknown():
    for problem in COMPACT._problems:
        for task_type in TYPES:
            text = TEXT.solve_prompt(Task(task_type, problem), "r1")
            (asked,) = ASKED[task_type]
            shown = dict(re.findall(r"\b([pxy]) = (\d+)", text))
            values = {"p": problem.p, "x": problem.x, "y": problem.y}
            assert {k: int(v) for k, v in shown.items()} == {
                k: v for k, v in values.items() if k != asked
            }
            assert text.count(f"The answer is {asked}=<number>") == 1
            assert text == TEXT.solve_prompt(Task(task_type, problem), "chat")
    same = {
        TEXT.solve_prompt(Task("deduction", PrimeProblem(23, 5, y)), "r1") for y in range(1, 23)
    }
    assert len(same) == 1


def test_a_proposer_is_shown_its_references_and_the_rules():
    references = [
        Task("abduction", PrimeProblem(7, 2, 4)),
        Task("abduction", PrimeProblem(5, 3, 2)),
    ]
    text = TEXT.propose_prompt("abduction", references, "chat")
    assert "p=7, x=2, y=4\np=5, x=3, y=2\n" in text and "from 2 to 23" in text
    assert "must differ from all of them" in text
    alone = TEXT.propose_prompt("abduction", [], "chat")
    assert "exist already" not in alone and "differ" not in alone
    assert len({TEXT.propose_prompt(t, [], "r1") for t in TYPES}) == 3


def test_warmup_rows_are_answers_of_the_form_to_instructions_of_all_six_cells():
    rows = TEXT.warmup_rows(np.random.default_rng(0), 600)
    kinds = set()
    for prompt, response in rows:
        asked = re.search(r"The answer is ([pxy])=<number>", prompt)
        letters = (asked[1],) if asked else ("p", "x")
        numbers, reason = parse_reply(response, letters, True)
        assert not reason and all(1 <= n <= 23 for n in numbers)
        kinds.add(letters if asked else re.search(r"[pxy] and [pxy] are shown", prompt)[0])
    assert len(kinds) == 6
