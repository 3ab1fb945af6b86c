"""Format warm-up: a model learns what a response looks like, and nothing else."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from azr.config import OptimConfig, WarmupConfig
from azr.learner import Experience, micro_batches, response_logprobs
from azr.learner.optim import make_optimizer
from azr.learner.packing import pack
from azr.learner.recompute import recomputing
from azr.model.attention import choose, head_shape, head_weight

RAMP_STEPS = 20


def format_warmup(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Callable[[int, int], list[tuple[str, str]]],
    config: WarmupConfig,
    *,
    optim: OptimConfig | None = None,
    attention: str = "auto",
    encode: Callable[[Sequence[str]], Sequence[tuple[int, ...]]] | None = None,
    on_progress: Callable[[float, float], None] = lambda steps, loss: None,
) -> float:
    """Trains on the responses of random rows; returns the last mean loss in nats per token.

    `rows(step, n)` returns n (prompt, response) pairs whose responses are independent of their
    prompts, so the best this can reach is the responses' own distribution. They are packed and
    taken in micro-batches as the learner's samples are: of `optim` it has the tokens of one, and
    whether layers are computed again. `encode` turns prompts into token ids; without it the
    tokenizer does. After each micro-batch `on_progress` hears how many steps are done, in parts
    by tokens, and the mean loss so far of the step. The rate ramps up, then falls linearly to 0.
    """
    run = optim or OptimConfig()
    # "master" would hold copies of bf16 weights beside those of the run's own optimiser.
    settings = OptimConfig(lr=config.lr, weight_decay=0.0, bf16_update="stochastic")
    optimizer = make_optimizer(model, settings, seed=0)
    weight, (_, head_size) = head_weight(model), head_shape(model.config)
    backend = choose(attention, weight.device, weight.dtype, head_size)
    groups = partial(micro_batches, budget=run.micro_batch_tokens, backend=backend)
    mean_loss = float("nan")
    for step in range(config.steps):
        ramp = min(1.0, (step + 1) / min(RAMP_STEPS, config.steps))
        for group in optimizer.param_groups:
            group["lr"] = config.lr * ramp * (1 - step / config.steps)
        samples = warmup_samples(tokenizer, rows(step, config.batch_size), encode)
        tokens = sum(len(s.response_ids) for s in samples)
        loss_sum, done = torch.zeros((), device=weight.device), 0
        for micro in groups(samples, range(len(samples))):
            packed = pack([samples[i] for i in micro], weight.device)
            with recomputing(model) if run.recompute else nullcontext():
                logprobs, _ = response_logprobs(model, packed, backend)
                loss = -(logprobs * packed.mask).sum()
                (loss / tokens).backward()
            loss_sum += loss.detach()
            done += sum(len(samples[i].response_ids) for i in micro)
            mean_loss = (loss_sum / done).item()
            on_progress(step + done / tokens, mean_loss)
        optimizer.clip(settings.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    optimizer.close()
    return mean_loss


def warmup_samples(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[tuple[str, str]],
    encode: Callable[[Sequence[str]], Sequence[tuple[int, ...]]] | None = None,
) -> list[Experience]:
    """Returns (prompt, response) rows as samples; what they were drawn with is of no matter."""

    def plain(texts: Sequence[str]) -> list[tuple[int, ...]]:
        return [tuple(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    prompts, responses = zip(*rows, strict=True)
    encoded = (encode or plain)(list(prompts)), plain(list(responses))
    return [
        Experience(
            prompt_ids=tuple(prompt),
            response_ids=(*response, tokenizer.eos_token_id),
            rollout_logprobs=np.zeros(len(response) + 1, dtype=np.float32),
            advantage=1.0,
        )
        for prompt, response in zip(*encoded, strict=True)
    ]
