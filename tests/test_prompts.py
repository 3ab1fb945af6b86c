"""Prompts within their limit: references leave, tasks are refused, nothing is cut."""

import dataclasses
from types import SimpleNamespace

import pytest
from folders import bpe_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from azr.config import Config, ConfigError, RolloutConfig, TaskConfig
from azr.selfplay import prompt_limit
from azr.selfplay.prompts import Prompts
from azr.tasks import References, Task
from azr.text import prompt_ids

TOKENIZER = bpe_tokenizer("qwen2", ["one two three"], vocabulary=300)


class Notes:
    """Tasks are texts; "more" shows K of its own, "one" shows exactly one of either type."""

    task_types = ("more", "one")

    def reference_source(self, task_type):
        if task_type == "one":
            return References(types=self.task_types, count=1)
        return References(types=(task_type,))

    def propose_prompt(self, task_type, references, style):
        return "new " + " ".join(task.problem for task in references)

    def solve_prompt(self, task, style):
        return task.problem


def length(text):
    return len(prompt_ids(TOKENIZER, [text], "r1")[0])


def prompts(limit, references=6, style="r1"):
    config = dataclasses.replace(
        Config(),
        task=TaskConfig(types=Notes.task_types, references=references, style=style),
        rollout=RolloutConfig(max_new_tokens=10, max_prompt_tokens=limit),
    )
    text = SimpleNamespace(max_position_embeddings=100_000)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))
    return Prompts(config, Notes(), TOKENIZER, model)


def note(text, task_type="more"):
    return Task(task_type, text)


@given(st.lists(st.integers(1, 30), max_size=6), st.integers(0, 80))
def test_as_many_references_are_shown_as_have_room_the_first_ones_first(sizes, room):
    tasks = tuple(note("x" * n) for n in sizes)
    limit = length("new ") + room
    (prompt,) = prompts(limit).propose([("more", tasks)])
    kept = len(prompt.references)
    assert prompt.references == tasks[:kept] and prompt.dropped == len(tasks) - kept
    assert len(prompt.token_ids) == length(Notes().propose_prompt("more", tasks[:kept], "r1"))
    assert len(prompt.token_ids) <= limit
    if prompt.dropped:
        assert length(Notes().propose_prompt("more", tasks[: kept + 1], "r1")) > limit


def test_a_prompt_that_needs_its_reference_keeps_it():
    limit = length("new xxx")
    assert prompts(limit).propose([("one", (note("xxx"),))])[0].dropped == 0
    with pytest.raises(ConfigError, match="proposer's prompt of type 'one'.*with 1 references"):
        prompts(limit).propose([("one", (note("x" * 50),))])
    with pytest.raises(ConfigError, match="'more'.*with 0 references; allow more"):
        prompts(length("new ") - 1).propose([("more", ())])


def test_a_task_fits_if_it_can_be_solved_and_shown_alone():
    limit = length("new xxx")
    # The solver's prompt of "xxxxx" has room, but not a proposer's with it.
    tasks = [note("xxx"), note("x" * 50), note("xxxxx"), note("xxxxx", "one")]
    assert [length(t.problem) <= limit for t in tasks] == [True, False, True, True]
    assert prompts(limit).fits(tasks) == [True, False, False, False]
    # With K = 0 only "one" is ever shown any.
    assert prompts(limit, references=0).fits([note("xxx"), note("xxxxx")]) == [True, False]


def test_compact_prompts_have_no_limit():
    long = note("x" * 500)
    assert prompts(20, style="compact").fits([long]) == [True]
    assert prompts(20, style="compact").propose([("more", (long,))])[0].dropped == 0


def test_the_limit_is_what_the_response_leaves_of_the_context():
    def limit(new, prompt, context):
        rollout = RolloutConfig(max_new_tokens=new, max_prompt_tokens=prompt)
        return prompt_limit(dataclasses.replace(Config(), rollout=rollout), context)

    assert limit(100, 0, 1000) == 900
    assert limit(100, 500, 1000) == 500
    assert limit(100, 900, 1000) == 900
    with pytest.raises(ConfigError, match="--rollout.max-prompt-tokens 901: .* prompts of 900"):
        limit(100, 901, 1000)
    with pytest.raises(ConfigError, match="--rollout.max-new-tokens 1000: .*room for 1000 tokens"):
        limit(1000, 0, 1000)
