"""Format warm-up: a model learns what a response looks like, and nothing else."""

from collections.abc import Callable, Sequence

import torch
from rlvr_kernels import linear_token_logprobs
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from azr.config import OptimConfig, WarmupConfig
from azr.model.attention import arange_positions, head_weight, hidden_states
from azr.model.load import pad_id
from azr.optim import make_optimizer

RAMP_STEPS = 20


def format_warmup(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Callable[[int, int], list[tuple[str, str]]],
    config: WarmupConfig,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    encode: Callable[[Sequence[str]], Sequence[Sequence[int]]] | None = None,
) -> float:
    """Trains on the responses of random rows; returns the last mean loss in nats per token.

    `rows(step, n)` returns n (prompt, response) pairs whose responses are independent of their
    prompts, so the best this can reach is the responses' own distribution. `on_step` hears of each
    step. `encode` turns prompts into token ids; without it the tokenizer does. The rate ramps up,
    then falls linearly to 0.
    """

    def plain(texts: Sequence[str]) -> Sequence[Sequence[int]]:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    # "master" would leave its copies of bf16 weights behind: the run makes its own.
    settings = OptimConfig(lr=config.lr, weight_decay=0.0, bf16_update="stochastic")
    optimizer = make_optimizer(model, settings, seed=0)
    device = head_weight(model).device
    loss_value = float("nan")
    for step in range(config.steps):
        ramp = min(1.0, (step + 1) / min(RAMP_STEPS, config.steps))
        for group in optimizer.param_groups:
            group["lr"] = config.lr * ramp * (1 - step / config.steps)
        prompts, responses = zip(*rows(step, config.batch_size), strict=True)
        prompt_ids = (encode or plain)(list(prompts))
        response_ids = plain(list(responses))
        both = [
            [*p, *r, tokenizer.eos_token_id] for p, r in zip(prompt_ids, response_ids, strict=True)
        ]
        width = max(map(len, both))
        pad = pad_id(tokenizer)
        ids_BT = torch.tensor([r + [pad] * (width - len(r)) for r in both], device=device)
        steps_T = torch.arange(width - 1, device=device)
        starts_B1 = torch.tensor([[len(p) - 1] for p in prompt_ids], device=device)
        ends_B1 = torch.tensor([[len(r) - 1] for r in both], device=device)
        mask_BT = (steps_T >= starts_B1) & (steps_T < ends_B1)
        inputs_BT = ids_BT[:, :-1]
        hidden = hidden_states(model, inputs_BT, arange_positions(inputs_BT))
        logprobs = linear_token_logprobs(
            hidden, head_weight(model), ids_BT[:, 1:], mask=mask_BT
        ).logprobs
        loss = -logprobs.sum() / mask_BT.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.clip(settings.grad_clip)
        optimizer.step()
        loss_value = loss.item()
        on_step(step, loss_value)
    return loss_value
