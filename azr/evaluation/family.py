"""Held-out and training accuracy of a model on its task family, greedy and sampled.

The tasks are the family's own evaluation sets: every distinct task of a split where they can be
listed, else a fixed sample. Greedy accuracy is the result; sampled accuracy is the fair start
value, since the greedy answers of an untrained model are a lottery.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from azr.accuracy import Answers, Scores, score
from azr.config import Config
from azr.evaluation.answers import ask, insist
from azr.keys import make_key
from azr.rollout import Request, RolloutEngine, Sampling
from azr.tasks import Answer, Environment, Task
from azr.tasks.envelope import stop_strings
from azr.text import end_ids, prompt_ids, response_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class GradedTask(Answers):
    """What became of the answers to one task of a split."""

    split: str
    task: Task


def evaluate(
    config: Config,
    environment: Environment,
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerBase,
    step: int,
) -> Scores:
    """Returns the score by (split, task type); splits without tasks are left out."""
    return scores(environment, grade_tasks(config, environment, engine, tokenizer, step))


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
    style, n = config.task.style, config.eval.samples
    wanted = [
        (split, index, task)
        for split in environment.splits()
        for task_type in config.task.types
        for index, task in enumerate(environment.eval_tasks(split, task_type))
    ]
    prompts = [environment.solve_prompt(task, style) for _, _, task in wanted]
    sampling = {
        task_type: Sampling(
            max_new_tokens=response_tokens(config, environment, "solve", task_type),
            stop_token_ids=end_ids(tokenizer, engine.model),
            stop_strings=stop_strings(style),
        )
        for task_type in config.task.types
    }
    questions = [
        Request(
            token_ids=prompt,
            sampling=sampling[task.type],
            key=make_key(config.run.seed, step, "eval", split, task.type, index),
            n=n,
        )
        for (split, index, task), prompt in zip(
            wanted, prompt_ids(tokenizer, prompts, style), strict=True
        )
    ]
    responses = [r for batch in ask(engine, tokenizer, questions) for r in batch]
    responses.sort(key=lambda r: (r.question, r.index))  # each task's greedy answer before others
    answers = [
        Answer(task=wanted[r.question][2], text=r.text, finished=r.finished) for r in responses
    ]
    grades = insist(
        lambda asked: environment.submit_grade(asked).result(),
        answers,
        lambda grade: grade.outcome == "unjudged",
    )
    graded = []
    for number, (split, _, task) in enumerate(wanted):
        greedy, *sampled = (g.outcome for g in grades[number * (1 + n) : (number + 1) * (1 + n)])
        graded.append(GradedTask(greedy, tuple(sampled), split=split, task=task))
    return graded


def scores(environment: Environment, graded: Sequence[GradedTask]) -> Scores:
    """Returns the score by (split, task type), in the order in which they come."""
    cells: dict[tuple[str, str], list[Answers]] = {}
    for g in graded:
        if g.is_judged:
            cells.setdefault((g.split, g.task.type), []).append(g)
    return {
        (split, task_type): score(answers, environment.chance(task_type, split))
        for (split, task_type), answers in cells.items()
    }
