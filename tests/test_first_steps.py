"""What a run shows before and in its first steps."""

import io
import time
from dataclasses import replace

import pytest
from rich.console import Console

from azr.config import Config, ModelConfig, RolloutConfig, TaskConfig, WarmupConfig
from azr.run.console import RunConsole
from azr.run.db import SampleRow
from azr.run.first_samples import FEW, FirstSamples
from azr.run.stage import EVERY_S, Stage

REAL = Config(
    model=ModelConfig(path="some/3b"),
    task=TaskConfig(style="r1"),
    rollout=RolloutConfig(max_new_tokens=512),
)


def sample(role="propose", outcome="malformed", reason="no_answer", text="Sure!", finish="stop"):
    return SampleRow(
        role=role, type="deduction", prompt="p", task_key=None, text=text, outcome=outcome,
        reason=reason, solve_rate=None, reward=-1.0, advantage=None, tokens=7, finish=finish,
        is_estimate=False,
    )  # fmt: skip


def test_proposals_that_are_all_invalid_are_told_with_three_examples_and_the_reasons():
    rows = [sample(text=f"text {i}") for i in range(FEW)]
    rows[5] = sample(text="\x1b[31mred", reason="unfinished")
    (warning,) = FirstSamples(REAL).observe(0, rows)
    first, *examples, advice = warning.split("\n")
    assert first.startswith(f"none of the first {FEW} proposals is valid: 15 no_answer, 1 unfin")
    assert len(examples) == 3 and "'text 0'" in warning
    assert "  deduction, unfinished, 7 tokens: '\\x1b[31mred'" in examples
    assert "--task.style (now r1)" in advice and "--warmup.loaded True" in advice


@pytest.mark.parametrize(
    ("change", "config", "advice"),
    [
        (dict(reason="unfinished", finish="length"), REAL, "--rollout.max-new-tokens, now 512"),
        (dict(outcome="invalid", reason="not_prime"), REAL, "--selfplay.seed-source environment"),
        (dict(), Config(), r"--warmup.steps (now 100)"),
        (
            dict(),
            replace(REAL, warmup=WarmupConfig(loaded=True, steps=7)),
            "raise --warmup.steps (now 7)",
        ),
    ],
)
def test_the_advice_fits_what_is_wrong(change, config, advice):
    (warning,) = FirstSamples(config).observe(1, [sample(**change)] * FEW)
    assert advice in warning.split("\n")[-1]


def test_one_sample_of_use_or_later_steps_give_no_warning():
    watcher = FirstSamples(REAL)
    good = [sample(outcome="valid", reason=""), sample("solve", "wrong", "wrong")]
    assert watcher.observe(1, good + [sample(), sample("solve")] * FEW) == []
    assert watcher.observe(2, [sample(), sample("solve")] * FEW) == []
    late = FirstSamples(REAL)
    assert late.observe(3, []) == [] and late.observe(4, [sample()] * FEW) == []


def test_few_samples_are_judged_after_three_steps_and_answers_apart_from_proposals():
    watcher = FirstSamples(REAL)
    rows = [sample("solve"), sample(outcome="valid", reason=""), sample(outcome="unjudged")]
    assert [watcher.observe(step, rows) for step in (0, 1, 2)] == [[], [], []]
    (warning,) = watcher.observe(3, rows)
    assert warning.startswith("none of the first 4 answers is well formed: 4 no_answer")


def test_a_resumed_run_is_judged_by_three_steps_of_its_own():
    watcher = FirstSamples(REAL, first_step=10)
    assert [watcher.observe(step, [sample()]) for step in (11, 12)] == [[], []]
    (warning,) = watcher.observe(13, [sample()])
    assert warning.startswith("none of the first 3 proposals is valid after step 10: 3 no_answer")
    watcher = FirstSamples(REAL, 10, ["propose"])
    (warning,) = watcher.observe(11, [sample(), sample("solve")] * FEW)
    assert "answers is well formed after step 10" in warning


def console(is_terminal):
    shown = RunConsole(None, every=1)
    shown.console = Console(file=io.StringIO(), force_terminal=is_terminal, width=80)
    shown.is_live = is_terminal
    return shown


@pytest.mark.parametrize(
    ("is_terminal", "variable", "is_live"),
    [(True, "TERM=xterm", True), (True, "TERM=dumb", False), (False, "FORCE_COLOR=1", False)],
)
def test_only_what_can_be_redrawn_is(is_terminal, variable, is_live, monkeypatch):
    monkeypatch.delenv("TERM", raising=False)
    monkeypatch.setenv(*variable.split("="))
    monkeypatch.setattr("sys.stdout", io.StringIO())
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    assert RunConsole(None, every=1).is_live == is_live


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_stage_says_how_far_it_is_while_the_main_thread_is_busy(is_terminal):
    shown = console(is_terminal)
    with Stage(shown, "format warm-up") as stage:
        stage.tell("3.5 of 20 steps")
        time.sleep(1.2 * EVERY_S)
        assert "format warm-up: 3.5 of 20 steps, " in shown.console.file.getvalue()
    assert shown.console.file.getvalue().endswith("format warm-up: 3.5 of 20 steps, 2 s\n")


def test_a_short_stage_says_nothing():
    shown = console(is_terminal=False)
    with Stage(shown, "seeding"):
        pass
    assert shown.console.file.getvalue() == ""


def test_the_first_steps_tell_their_phases_and_the_end_of_the_run():
    shown = console(is_terminal=False)
    shown.spent = dict(rollout=60.0, verify=5.0, update=30.0, eval=0.0, other=5.0, step=100.0)
    shown.pace(3, 497, 5 * 3600 + 40 * 60)
    said = shown.console.file.getvalue()
    assert said.startswith("3 steps took 100.0 s: rollout 60.0 s (60%), verify 5.0 s (5%), ")
    assert "497 more will take about 5:40:00, until 20" in said
