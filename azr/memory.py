"""The memory plan: what a run will hold, part by part, before anything of it is allocated.

Weights, gradients, optimiser state and KV cache are exact. Activations are an estimate of what
autograd keeps for one micro-batch; the logits' share is bounded by how the loss head chunks them.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PretrainedConfig

from azr.config import Config, ConfigError
from azr.model.attention import head_shape

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the plan, the option that changes it, and the phase of a step that holds it."""

    name: str
    bytes: int
    option: str
    phase: Literal["always", "rollouts", "update"] = "always"


def peak_bytes(plan: list[Part]) -> int:
    """Returns the most that is held at once: rollouts and update take turns."""
    held = {phase: sum(part.bytes for part in parts) for phase, parts in by_phase(plan).items()}
    return held["always"] + max(held["rollouts"], held["update"])


def by_phase(plan: list[Part]) -> dict[str, list[Part]]:
    """Returns the parts that are held always, in rollouts alone and in the update alone."""
    return {
        phase: [part for part in plan if part.phase == phase]
        for phase in ("always", "rollouts", "update")
    }


def memory_plan(
    config: Config,
    architecture: PretrainedConfig,
    parameters: int,
    context_tokens: int,
    available: int | None = None,
) -> list[Part]:
    """Returns the parts; `context_tokens` is the longest prompt with its response.

    The KV cache is planned for every slot at that length, or for what the other parts that
    rollouts hold leave of the `available` bytes: completions that do not fit wait.
    """
    text = architecture.get_text_config()
    width = {"float32": 4, "bfloat16": 2}[config.run.dtype]
    kv_heads, head_size = head_shape(architecture)
    c = config.selfplay
    types = len(config.task.types)
    solved = types * (
        c.proposals_per_type * c.estimate_samples
        + c.solver_tasks_per_type * c.solver_samples_per_task
    )
    rows = config.rollout.slots
    cache = 2 * text.num_hidden_layers * kv_heads * head_size * width
    tokens = min(
        config.optim.micro_batch_tokens, (solved + types * c.proposals_per_type) * context_tokens
    )
    # What a decoder layer keeps for its backward: about 12 tensors of the hidden size (norms,
    # queries, keys, values, attention output, residuals) and 4 of the feed-forward size.
    # Configurations like GPT-2's name no feed-forward size where it is four times the other.
    ffn = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    layer = 12 * text.hidden_size + 4 * ffn
    per_token = text.num_hidden_layers * layer
    if config.optim.recompute:
        # The input of every layer, and all of the one whose backward is under way.
        per_token = text.num_hidden_layers * text.hidden_size + layer
    is_reference_kept = config.loss.kl != "none"
    # Rollout: fp32 logits, and where tokens are drawn by inversion fp32 log-probs and two fp64
    # tensors beside them. The fused kernel of CUDA, which does not truncate, holds nothing more.
    is_fused = config.run.device == "cuda" and not config.rollout.is_truncated
    logits = rows * text.vocab_size * (4 if is_fused else 4 + 4 + 8 + 8)
    parts = [
        Part("weights", parameters * width, "--model.path, --run.dtype"),
        *_optimizer_parts(config, parameters),
        Part("frozen start model", parameters * width * is_reference_kept, "--loss.kl none"),
        Part(
            "activations about", tokens * per_token * width, "--optim.micro-batch-tokens", "update"
        ),
        Part("logits peak about", logits, "--rollout.slots", "rollouts"),
    ]
    kept = rows * context_tokens * cache
    if config.rollout.cache_gib:
        kept = min(kept, int(config.rollout.cache_gib * GIB))
    if available is not None:
        left = available - sum(part.bytes for part in parts if part.phase != "update")
        kept = min(kept, max(left, context_tokens * cache))
    parts.append(Part("KV cache", kept, "--rollout.slots", "rollouts"))
    return [part for part in parts if part.bytes]


def _optimizer_parts(config: Config, parameters: int) -> list[Part]:
    """Returns gradients, moments and copies (see azr.optim)."""
    option = "--optim.bf16-update stochastic"
    if config.run.dtype == "float32":
        gradient, moments, copies, option = 4, 8, 0, "--run.dtype bfloat16"
    elif config.optim.bf16_update == "master":
        gradient, moments, copies = 4, 8, 4
    else:
        gradient, moments, copies, option = 2, 4, 0, "--model.path"
    return [
        Part("gradients", parameters * gradient, option, "update"),
        Part("AdamW moments", parameters * moments, option),
        Part("fp32 copies of weights", parameters * copies, option),
    ]


def available_bytes(device: str) -> int | None:
    """Returns the memory that can be had on the device now, None where it cannot be told."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def check_fit(plan: list[Part], available: int | None, device: str) -> None:
    """Raises ConfigError naming the largest part and its option where the plan does not fit."""
    total = peak_bytes(plan)
    if available is not None and total > available:
        # A smaller part of the phase that holds less would not help.
        always, *phases = by_phase(plan).values()
        fuller = max(phases, key=lambda parts: sum(part.bytes for part in parts))
        largest = max(always + fuller, key=lambda part: part.bytes)
        raise ConfigError(
            f"the run needs about {readable(total)} on {device}, and {readable(available)} "
            f"are free; the largest part is {largest.name} ({readable(largest.bytes)}): "
            f"change {largest.option}"
        )


def readable(count: int) -> str:
    """Returns a number of bytes as text."""
    for unit, size in (("GiB", GIB), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 2**10:.0f} KiB"
