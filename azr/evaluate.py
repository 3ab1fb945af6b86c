"""Held-out and training accuracy of the current model, greedy and sampled.

The tasks are the family's own evaluation sets: every distinct task of a split where they can be
listed, else a fixed sample. Greedy accuracy is the result; sampled accuracy is the fair start
value, since the greedy answers of an untrained model are a lottery.
"""

from transformers import PreTrainedTokenizerBase

from azr.accuracy import Accuracy
from azr.config import Config
from azr.keys import make_key
from azr.rollout import Request, RolloutEngine, Sampling
from azr.selfplay import response_tokens
from azr.tasks import Answer, Environment
from azr.text import prompt_ids, response_texts


def evaluate(
    config: Config,
    environment: Environment,
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerBase,
    step: int,
) -> dict[tuple[str, str], Accuracy]:
    """Returns the accuracy by (split, task type); splits without tasks are left out.

    Sampled answers are drawn at temperature 1, with noise keyed by (seed, step, task).
    """
    wanted = [
        (split, task_type, index, task)
        for split in environment.splits()
        for task_type in config.task.types
        for index, task in enumerate(environment.eval_tasks(split, task_type))
    ]
    prompts = [environment.solve_prompt(task, config.task.style) for _, _, _, task in wanted]
    ids = prompt_ids(tokenizer, prompts)
    requests = []
    for temperature, n in ((0.0, 1), (1.0, config.eval.samples)):
        sampling = {
            t: Sampling(
                temperature=temperature,
                max_new_tokens=response_tokens(config, environment, "solve", t),
                stop_token_ids=(tokenizer.eos_token_id,),
            )
            for t in config.task.types
        }
        for (split, task_type, index, _), prompt in zip(wanted, ids, strict=True) if n else ():
            key = make_key(config.run.seed, step, "eval", split, task_type, index)
            requests.append(Request(token_ids=prompt, sampling=sampling[task_type], key=key, n=n))
    samples = list(engine.generate(requests))
    answers = [
        Answer(
            task=wanted[s.request % len(wanted)][3],
            text=text,
            finished=s.finish_reason == "stop",
        )
        for s, text in zip(
            samples, response_texts(tokenizer, [s.token_ids for s in samples]), strict=True
        )
    ]
    outcomes: dict[tuple[bool, str, str], list[str]] = {}
    for sample, grade in zip(samples, environment.submit_grade(answers).result(), strict=True):
        split, task_type, _, _ = wanted[sample.request % len(wanted)]
        is_greedy = sample.request < len(wanted)
        outcomes.setdefault((is_greedy, split, task_type), []).append(grade.outcome)
    results = {}
    for split, task_type in dict.fromkeys(w[:2] for w in wanted):
        greedy = outcomes[True, split, task_type]
        sampled = outcomes.get((False, split, task_type), [])
        results[split, task_type] = Accuracy(
            tasks=len(greedy),
            samples=len(sampled) // len(greedy),
            greedy=_share(greedy, "correct"),
            greedy_format_rate=1 - _share(greedy, "malformed"),
            sampled=_share(sampled, "correct"),
            sampled_format_rate=1 - _share(sampled, "malformed"),
            chance=environment.chance(task_type, split),
        )
    return results


def _share(outcomes: list[str], outcome: str) -> float:
    return outcomes.count(outcome) / len(outcomes) if outcomes else float("nan")
