"""A whole training step and its phases, beside what a trainer on plain transformers would run.

The step is that of `cpu-prime.toml` (600 optimiser steps of it make a run), on a model that has
already learned for 30 steps, so that the mix of tasks is a usual one. Peers: transformers'
`generate` for the rollouts, with logits kept for the log-probs as trainers on `generate` do; and
the usual padded update over full logits, every sample in its own row.
"""

import copy
import os
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from azr.config import load_toml, preset_path
from azr.learner import Learner
from azr.rollout import Request, RolloutEngine, Sampling
from azr.selfplay import SelfPlay
from azr.start.model import build_model, make_family_tokenizer
from azr.start.trainee import frozen_copy, warm_up
from azr.tasks import load_environment
from azr.text import prompt_ids
from bench.bench_rollout import generated

LEARNED_STEPS = 30


class Setting:
    """A model in the middle of learning, with everything a step needs."""

    def __init__(self, device: Literal["cpu", "cuda"]):
        config = load_toml(preset_path("cpu-prime.toml"))
        self.config = replace(config, run=replace(config.run, device=device))
        self.device = torch.device(device)
        self.environment = load_environment(self.config.task)
        self.tokenizer = make_family_tokenizer(self.environment)
        self.model = build_model(self.config, self.environment, self.tokenizer)
        warm_up(self.config, self.environment, self.model, self.tokenizer)
        self.reference = frozen_copy(self.model)
        self.engine = RolloutEngine(self.model, slots=self.config.rollout.slots)
        self.selfplay = SelfPlay(self.config, self.environment, self.engine, self.tokenizer)
        self.selfplay.seed()
        self.learner = self.new_learner(self.model)
        for self.step in range(1, LEARNED_STEPS + 1):
            self.learner.update(self.selfplay.play(self.step).experience("both"), self.step)
        self.batch = self.selfplay.play(self.step + 1).experience("both")
        self.hf = copy.deepcopy(self.model)
        self.hf.set_attn_implementation("sdpa")

    def new_learner(self, model) -> Learner:
        return Learner(
            model, self.reference, loss=self.config.loss, optim=self.config.optim,
            temperature=1.0, seed=0,
        )  # fmt: skip

    def solver_requests(self) -> list:
        """Returns one step's requests of the solver: 64 tasks a type, 4 samples each."""
        sampling = Sampling(max_new_tokens=2, stop_token_ids=(self.tokenizer.eos_token_id,))
        tasks = [e.task for b in self.selfplay.buffers.values() for e in b.entries()[:64]]
        prompts = [self.environment.solve_prompt(task, "compact") for task in tasks]
        ids = prompt_ids(self.tokenizer, prompts)
        return [Request(token_ids=t, sampling=sampling, key=i, n=4) for i, t in enumerate(ids)]


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def setting(request) -> Setting:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return Setting(request.param)


def hf_rollout(setting: Setting, requests: list) -> int:
    """Samples the requests through `generate` with log-probs; returns the number of samples."""
    eos = setting.tokenizer.eos_token_id
    ids = torch.tensor([r.token_ids for r in requests], device=setting.device)
    out = generated(
        setting.hf, ids, attention_mask=torch.ones_like(ids), num_return_sequences=4,
        max_new_tokens=2, eos_token_id=eos,
    )  # fmt: skip
    logprobs = torch.log_softmax(torch.stack(out.logits, dim=1).float(), dim=-1)
    new = out.sequences[:, ids.shape[1] :]
    logprobs.gather(2, new[:, :, None]).cpu()
    return len(new)


class PaddedUpdate:
    """The usual update: every sample a padded row, full logits, log-softmax, k2, AdamW."""

    def __init__(self, setting: Setting):
        self.model = copy.deepcopy(setting.hf)
        self.reference = copy.deepcopy(setting.reference)
        self.reference.set_attn_implementation("sdpa")
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        batch = setting.batch
        width = max(len(e.prompt_ids) + len(e.response_ids) for e in batch)
        ids, mask = np.zeros((len(batch), width), np.int64), np.zeros((len(batch), width), bool)
        for row, e in enumerate(batch):
            both = e.prompt_ids + e.response_ids
            ids[row, : len(both)] = both
            mask[row, len(e.prompt_ids) : len(both)] = True
        self.ids = torch.tensor(ids, device=setting.device)
        self.mask = torch.tensor(mask, device=setting.device)[:, 1:]
        self.advantages = torch.tensor([e.advantage for e in batch], device=setting.device)

    def logprobs(self, model) -> tuple[torch.Tensor, torch.Tensor]:
        attention = torch.ones_like(self.ids)
        logits = model(input_ids=self.ids, attention_mask=attention).logits[:, :-1].float()
        logp = torch.log_softmax(logits, dim=-1)
        entropy = -(logp.exp() * logp).sum(-1)
        return logp.gather(2, self.ids[:, 1:, None]).squeeze(2), entropy

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        logp, _ = self.logprobs(self.model)
        with torch.no_grad():
            reference, _ = self.logprobs(self.reference)
        ratio = (logp - logp.detach()).exp()
        advantages = self.advantages[:, None]
        surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        loss = (-surrogate + 0.3 * 0.5 * (reference - logp) ** 2) * self.mask
        (loss.sum() / self.mask.sum()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def bench_rollout_phase(compare, setting):
    """Solutions of one step: 192 prompts of one length, 4 samples of at most 2 tokens."""
    requests = setting.solver_requests()
    samples = sum(r.n for r in requests)
    assert hf_rollout(setting, requests) == samples
    timed = compare.with_options(device=setting.device.type, items=samples, unit="sample")
    timed(
        f"rollout of a step, {setting.device.type}",
        lambda: list(setting.engine.generate(requests)),
        hf_generate=lambda: hf_rollout(setting, requests),
    )


def bench_update_phase(compare, setting):
    """One optimiser step on a step's samples, the KL's reference forward included."""
    learner = setting.new_learner(copy.deepcopy(setting.model))
    timed = compare.with_options(
        device=setting.device.type, items=len(setting.batch), unit="sample"
    )
    timed(
        f"update of a step, {setting.device.type}",
        lambda: learner.update(setting.batch, 1),
        padded_full_logits=PaddedUpdate(setting),
    )


def bench_whole_step(compare, setting):
    """Propose, validate, estimate, solve, whiten, update: samples per second of training.

    The peer runs the same number of prompts through `generate` and the padded update, and leaves
    out everything else (prompts, verification, rewards), in its favour.
    """
    requests = setting.solver_requests()
    padded = PaddedUpdate(setting)
    proposals = [r for r in requests[:96]]
    step = iter(range(setting.step + 2, 10**9))

    def ours() -> None:
        number = next(step)
        setting.learner.update(setting.selfplay.play(number).experience("both"), number)

    def peer() -> None:
        hf_rollout(setting, proposals)
        hf_rollout(setting, requests)
        padded()

    timed = compare.with_options(
        device=setting.device.type, items=len(setting.batch), unit="sample"
    )
    timed(f"whole step, {setting.device.type}", ours, transformers_only=peer)
