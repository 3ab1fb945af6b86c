"""One copy of the weights for rollouts and training: neither disturbs the other, ever."""

import copy

import numpy as np
import pytest
import torch
from models import azr_model, plain_model

from azr.config import LossConfig, OptimConfig
from azr.learner import Experience, Learner
from azr.learner.packing import pack
from azr.rollout import Request, RolloutEngine, Sampling

PLAIN = plain_model(hidden_size=16, num_hidden_layers=1, intermediate_size=16)
REQUESTS = [
    Request(token_ids=(3, 4, 5), sampling=Sampling(max_new_tokens=4), key=1, n=3),
    Request(token_ids=(9,), sampling=Sampling(max_new_tokens=3, temperature=0.0), key=2),
]


def batch_of(step):
    """What a step trains on, whatever was rolled out: a function of the step alone."""
    rng = np.random.default_rng(step)
    return [
        Experience(
            prompt_ids=tuple(rng.integers(2, 48, 3).tolist()),
            response_ids=tuple(rng.integers(2, 48, length).tolist()),
            rollout_logprobs=np.full(length, -3.0, dtype=np.float32),
            advantage=float(rng.normal()),
        )
        for length in (1, 2, 3, 4)
    ]


def learner_of(model):
    optim = OptimConfig(lr=3e-3, bf16_update="master")
    return Learner(model, None, loss=LossConfig(), optim=optim, temperature=1.0, seed=0)


def distance(learner, samples):
    """How far the engine's log-probs are from those of a forward in training, at most."""
    batch = [
        Experience(
            prompt_ids=REQUESTS[s.request].token_ids,
            response_ids=s.token_ids,
            rollout_logprobs=s.logprobs,
            advantage=0.0,
        )
        for s in samples
    ]
    packed = pack(batch, torch.device("cpu"))
    with torch.no_grad():
        logprobs, _ = learner._logprobs(learner.model, packed)
    return (logprobs - packed.rollout_logprobs)[packed.mask].abs().max().item()


@pytest.mark.parametrize(
    ("dtype", "steps", "tolerance"), [(torch.float32, 300, 1e-5), (torch.bfloat16, 40, 0.05)]
)
def test_rollouts_between_updates_change_no_bit_and_see_every_update(dtype, steps, tolerance):
    alone, shared = (azr_model(copy.deepcopy(PLAIN).to(dtype)) for _ in range(2))
    trained, followed = learner_of(alone), learner_of(shared)
    engine = RolloutEngine(shared, slots=8)
    seen = set()
    for step in range(1, steps + 1):
        samples = list(engine.generate(REQUESTS))
        assert distance(followed, samples) < tolerance, step
        seen.add(round(float(samples[-1].logprobs[0]), 6))
        if step % 2:
            engine.release()
        followed.update(batch_of(step), step)
        trained.update(batch_of(step), step)
    assert followed.skipped_updates == 0
    # The weights did move: an engine that kept a copy of its own would have been noticed.
    assert len(seen) > 0.9 * steps if dtype == torch.float32 else len(seen) > 5
    for (name, a), b in zip(alone.named_parameters(), shared.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert not torch.equal(a, dict(PLAIN.named_parameters())[name].to(dtype)), name
