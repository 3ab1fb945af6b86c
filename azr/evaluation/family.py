"""Held-out and training accuracy of a model on its task family, greedy and sampled.

The tasks are the family's own evaluation sets: every distinct task of a split where they can be
listed, else a fixed sample. Greedy accuracy is the result; sampled accuracy is the fair start
value, since the greedy answers of an untrained model are a lottery.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from azr.accuracy import Accuracy, Interval, wilson, wilson_clustered
from azr.config import Config
from azr.keys import make_key
from azr.rollout import Request, RolloutEngine, Sampling
from azr.tasks import Answer, Environment, Grade, Task
from azr.tasks.envelope import STOP_STRINGS, TEXT_STYLES
from azr.text import end_ids, prompt_ids, response_texts, response_tokens

RETRIES = 2


@dataclass(frozen=True, slots=True)
class GradedTask:
    """What became of the answers to one task."""

    split: str
    task: Task
    greedy: str
    """Outcome of the greedy answer."""
    sampled: tuple[str, ...]
    """Outcomes of the sampled answers, in the order of their indices."""

    @property
    def right(self) -> int:
        """How many of the sampled answers are correct."""
        return self.sampled.count("correct")

    @property
    def is_judged(self) -> bool:
        """Whether the verifier judged every answer; a task of which it did not counts nowhere."""
        return "unjudged" not in (self.greedy, *self.sampled)


@dataclass(frozen=True, slots=True)
class Score:
    """How one way of answering did."""

    accuracy: Interval
    format_rate: float


def evaluate(
    config: Config,
    environment: Environment,
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerBase,
    step: int,
) -> dict[tuple[str, str], Accuracy]:
    """Returns the accuracy by (split, task type); splits without tasks are left out."""
    return accuracies(environment, grade_tasks(config, environment, engine, tokenizer, step))


def grade_tasks(
    config: Config,
    environment: Environment,
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerBase,
    step: int,
) -> list[GradedTask]:
    """Returns the graded tasks of all splits and types, in the order of the family's own lists.

    Each task is answered once greedily and `eval.samples` times at temperature 1, with noise keyed
    by (seed, step, split, type, index of the task).
    """
    wanted = [
        (split, index, task)
        for split in environment.splits()
        for task_type in config.task.types
        for index, task in enumerate(environment.eval_tasks(split, task_type))
    ]
    prompts = [environment.solve_prompt(task, config.task.style) for _, _, task in wanted]
    ids = prompt_ids(tokenizer, prompts, config.task.style)
    ends = end_ids(tokenizer, engine.model)
    stops = STOP_STRINGS if config.task.style in TEXT_STYLES else ()
    requests = []
    for temperature, n in ((0.0, 1), (1.0, config.eval.samples)):
        sampling = {
            t: Sampling(
                temperature=temperature,
                max_new_tokens=response_tokens(config, environment, "solve", t),
                stop_token_ids=ends,
                stop_strings=stops,
            )
            for t in config.task.types
        }
        for (split, index, task), prompt in zip(wanted, ids, strict=True) if n else ():
            key = make_key(config.run.seed, step, "eval", split, task.type, index)
            requests.append(Request(token_ids=prompt, sampling=sampling[task.type], key=key, n=n))
    samples = sorted(engine.generate(requests), key=lambda s: (s.request, s.index))
    texts = response_texts(tokenizer, [s.token_ids for s in samples], ends, stops)
    answers = [
        Answer(
            task=wanted[s.request % len(wanted)][2],
            text=text,
            finished=s.finish_reason == "stop",
        )
        for s, text in zip(samples, texts, strict=True)
    ]
    outcomes: list[list[str]] = [[] for _ in requests]
    for sample, grade in zip(samples, _grades(environment, answers), strict=True):
        outcomes[sample.request].append(grade.outcome)
    greedy, sampled = outcomes[: len(wanted)], outcomes[len(wanted) :] or [()] * len(wanted)
    return [
        GradedTask(split, task, outcome, tuple(drawn))
        for (split, _, task), (outcome,), drawn in zip(wanted, greedy, sampled, strict=True)
    ]


def _grades(environment: Environment, answers: list[Answer]) -> list[Grade]:
    """Returns the grades; answers that the verifier failed on are handed to it again."""
    grades = environment.submit_grade(answers).result()
    for _ in range(RETRIES):
        left = [i for i, grade in enumerate(grades) if grade.outcome == "unjudged"]
        if not left:
            break
        again = environment.submit_grade([answers[i] for i in left]).result()
        for i, grade in zip(left, again, strict=True):
            grades[i] = grade
    return grades


def accuracies(
    environment: Environment, graded: Sequence[GradedTask]
) -> dict[tuple[str, str], Accuracy]:
    """Returns the accuracy by (split, task type), in the order in which they come."""
    cells: dict[tuple[str, str], list[GradedTask]] = {}
    for g in graded:
        if g.is_judged:
            cells.setdefault((g.split, g.task.type), []).append(g)
    return {
        (split, task_type): _accuracy(cell, environment.chance(task_type, split))
        for (split, task_type), cell in cells.items()
    }


def _accuracy(cell: list[GradedTask], chance: float) -> Accuracy:
    greedy, sampled = scores(cell)
    drawn = sampled.accuracy if sampled else Interval(math.nan, math.nan, math.nan)
    return Accuracy(
        tasks=len(cell),
        samples=len(cell[0].sampled),
        greedy=greedy.accuracy.value,
        greedy_format_rate=greedy.format_rate,
        sampled=drawn.value,
        sampled_format_rate=sampled.format_rate if sampled else math.nan,
        chance=chance,
        sampled_low=drawn.low,
        sampled_high=drawn.high,
    )


def scores(graded: Sequence[GradedTask]) -> tuple[Score, Score | None]:
    """Returns the greedy score and the sampled one, None where nothing was sampled."""
    n, samples = len(graded), len(graded[0].sampled)
    correct = sum(g.greedy == "correct" for g in graded)
    malformed = sum(g.greedy == "malformed" for g in graded)
    greedy = Score(wilson(correct / n, n), 1 - malformed / n)
    if not samples:
        return greedy, None
    malformed = sum(g.sampled.count("malformed") for g in graded)
    interval = wilson_clustered([g.right for g in graded], samples)
    return greedy, Score(interval, 1 - malformed / (n * samples))
