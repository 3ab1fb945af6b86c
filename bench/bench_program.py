"""A step of the program family with the sandbox, beside the same step with its verdicts replayed.

The step is that of `cpu-program.toml`, on a model that has learned for some steps and then stands
still, so that both sides generate the same completions. The replay looks every verdict and grade up
where the sandbox was asked; what is left is what verification adds to a step. Processor time of
this process does not see the sandbox's own processes, so elapsed time is noted too, and it is
elapsed time that the bar is about: measure on a quiet machine with two cores.
"""

import copy
import os
import statistics
import time

import pytest
import torch

from azr.config import load_toml, preset_path
from azr.selfplay import SelfPlay
from azr.start.model import build_model, make_family_tokenizer, settle_style
from azr.start.trainee import assemble, frozen_copy, warm_up
from azr.tasks import load_environment
from azr.tasks.environment import done

LEARNED_STEPS = 20
MOST_LONGER = 1.15
"""The step with the sandbox over the step with replayed verdicts."""


class Recorder:
    """An environment that keeps every verdict and grade by what was asked."""

    def __init__(self, environment, verdicts, grades):
        self._environment, self._verdicts, self._grades = environment, verdicts, grades

    def __getattr__(self, name):
        return getattr(self._environment, name)

    def submit_validate(self, proposals):
        found = self._environment.submit_validate(proposals).result()
        self._verdicts.update(zip(proposals, found, strict=True))
        return done(found)

    def submit_grade(self, answers):
        found = self._environment.submit_grade(answers).result()
        self._grades.update(zip(answers, found, strict=True))
        return done(found)


class Replayer(Recorder):
    """An environment that answers from what was kept."""

    def submit_validate(self, proposals):
        return done([self._verdicts[p] for p in proposals])

    def submit_grade(self, answers):
        return done([self._grades[a] for a in answers])


def player(config, environment, trainee):
    """Returns self-play in an environment, in the state of the trainee's own."""
    selfplay = SelfPlay(config, environment, trainee.engine, trainee.tokenizer)
    selfplay.load_state(trainee.selfplay.state())
    return selfplay


@pytest.fixture(scope="module")
def sides():
    """Self-play with the sandbox, recording and replaying; a learner of a copy of the model."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    config, _ = settle_style(load_toml(preset_path("cpu-program.toml")), None)
    live, recorded = load_environment(config.task), load_environment(config.task)
    tokenizer = make_family_tokenizer(live)
    model = build_model(config, live, tokenizer)
    warm_up(config, live, model, tokenizer)
    trainee = assemble(config, live, model, tokenizer, frozen_copy(model))
    trainee.selfplay.seed()
    for step in range(1, LEARNED_STEPS + 1):
        trainee.learner.update(trainee.selfplay.play(step).experience("both"), step)
    trained = copy.deepcopy(model)
    learner = assemble(config, live, trained, tokenizer, frozen_copy(model)).learner
    verdicts, grades = {}, {}
    recording = Recorder(recorded, verdicts, grades)
    replaying = Replayer(recorded, verdicts, grades)
    players = [player(config, e, trainee) for e in (live, recording, replaying)]
    yield (*players, learner)
    live.close()
    recorded.close()


def bench_step_with_sandbox(compare, sides):
    """Propose, validate, estimate, solve, whiten, update; new steps in every round."""
    live, recording, replaying, learner = sides
    numbers = {name: LEARNED_STEPS for name in ("live", "recording", "replaying")}
    elapsed: dict[str, list[float]] = {"live": [], "replaying": []}

    def play(selfplay, name):
        numbers[name] += 1
        start = time.perf_counter()
        result = selfplay.play(numbers[name])
        learner.update(result.experience("both"), numbers[name])
        elapsed[name].append(time.perf_counter() - start)

    def record():
        # What is replayed is recorded before it, outside the time that is taken.
        while numbers["recording"] <= max(numbers["live"], numbers["replaying"]):
            numbers["recording"] += 1
            recording.play(numbers["recording"])

    def replay():
        record()  # done before, where there is a clock
        play(replaying, "replaying")

    result = compare.with_options(unit="step", before=record, rounds=9, warmup=1)(
        "step with the sandbox",
        lambda: play(live, "live"),
        replayed_verdicts=replay,
    )
    paired = [a / b for a, b in zip(elapsed["live"], elapsed["replaying"], strict=False)]
    result.note(
        elapsed_ratio_median=statistics.median(paired),
        elapsed_live_s=statistics.median(elapsed["live"]),
        elapsed_replayed_s=statistics.median(elapsed["replaying"]),
        elapsed_ratio_at_most=MOST_LONGER,
    )
