"""A rollout engine whose completions are written by the test: the exact behaviour of a policy."""

import dataclasses

import numpy as np

from azr.config import Config, PrimeConfig, RewardConfig, SelfPlayConfig, TaskConfig
from azr.model.load import make_tokenizer
from azr.rollout import Sample
from azr.selfplay import SelfPlay
from azr.tasks import load_environment

SMALL = Config(
    steps=4,
    task=TaskConfig(references=0, prime=PrimeConfig(max_p=23)),
    selfplay=SelfPlayConfig(
        proposals_per_type=4,
        estimate_samples=4,
        solver_tasks_per_type=6,
        solver_samples_per_task=2,
        seed_tasks=5,
        seed_source="environment",
    ),
    reward=RewardConfig(),
)


def changed(config: Config, **options) -> Config:
    """Returns a config with dotted options replaced; the dot is written as two underscores."""
    for name, value in options.items():
        if "__" in name:
            section, field = name.split("__")
            part = dataclasses.replace(getattr(config, section), **{field: value})
            config = dataclasses.replace(config, **{section: part})
        else:
            config = dataclasses.replace(config, **{name: value})
    return config


class ScriptedEngine:
    """Completes each request with the text that `policy(prompt, index, request)` returns.

    A text that ends in "..." runs into the length limit instead of ending itself. Samples come
    out in reverse order, as if the last request had finished first.
    """

    model = None

    def __init__(self, tokenizer, policy):
        self.tokenizer, self.policy = tokenizer, policy
        self.calls: list[list] = []
        self.generated_tokens = 0

    def generate(self, requests):
        requests = list(requests)
        self.calls.append(requests)
        for number, request in reversed(list(enumerate(requests))):
            prompt = self.tokenizer.decode(list(request.token_ids))
            for index in reversed(range(request.n)):
                text = self.policy(prompt, index, request)
                is_cut = text.endswith("...")
                ids = self.tokenizer(text.removesuffix("..."))["input_ids"]
                ids = ids if is_cut else [*ids, self.tokenizer.eos_token_id]
                yield Sample(
                    request=number,
                    index=index,
                    token_ids=tuple(ids),
                    logprobs=np.full(len(ids), -1.0, dtype=np.float32),
                    finish_reason="length" if is_cut else "stop",
                )


def solution(prompt: str) -> str:
    """Returns the right answer to a solver's prompt of the prime family up to 23."""
    _, kind, a, b, _ = prompt.split(" ")
    a, b = int(a), int(b)
    if kind != "I":
        return str(pow(b, -1, a))
    primes = [q for q in range(2, 24) if all(q % d for d in range(2, q))]
    return str(next(q for q in primes if q > max(a, b) and (a * b - 1) % q == 0))


def play(config: Config, propose, solve=lambda prompt, index, request: solution(prompt)):
    """Returns (self-play on a scripted policy, its engine)."""
    environment = load_environment(config.task)
    vocabulary = environment.vocabulary()
    tokenizer = make_tokenizer(vocabulary.words, vocabulary.split)

    def policy(prompt, index, request):
        role = propose if prompt.startswith("P") else solve
        return role(prompt, index, request)

    engine = ScriptedEngine(tokenizer, policy)
    return SelfPlay(config, environment, engine, tokenizer), engine
