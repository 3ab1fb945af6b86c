"""The memory plan: what a run will hold, part by part, before anything of it is allocated.

Weights, gradients, optimiser state and KV cache are exact. Activations are an estimate of what
autograd keeps for one micro-batch; the logits' share is bounded by how the loss head chunks them.
"""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PretrainedConfig

from azr.config import Config
from azr.model.attention import head_shape
from azr.plan import GIB, Part

CPU_SLACK = 1.5
"""What resident memory grows by for each byte of activations on the CPU: malloc keeps the holes
between the blocks of one pass, which do not fit those of the next (docs/notes.md)."""


def give_back() -> None:
    """Gives the system back what malloc keeps of freed memory, where malloc is glibc's.

    Else the holes that steps and a checkpoint leave in its heap become more by some MiB each time.
    """
    if _malloc_trim:
        _malloc_trim(0)


_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def memory_plan(
    config: Config,
    architecture: PretrainedConfig,
    parameters: int,
    context_tokens: int,
    available: int | None = None,
    warmup: Sequence["PackedTokens"] = (),
    resident: int = 0,
) -> list[Part]:
    """Returns the parts; `context_tokens` is the longest prompt with its response.

    `warmup` are the micro-batches of the format warm-up, where there is one; `resident` is what
    the process holds already of the `available` bytes. The KV cache is planned for every slot at
    that length, or for what the other parts that rollouts hold leave of the `available` bytes:
    completions that do not fit wait.
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
    # No group of samples keeps more than one that shares nothing (azr.learner.micro_batches).
    reference = parameters * width * (config.loss.kl != "none")
    activations = _activations(config, text, tokens, tokens) * width
    # Rollout: fp32 logits, and where tokens are drawn by inversion fp32 log-probs and two fp64
    # tensors beside them. The fused kernel of CUDA, which does not truncate, holds nothing more.
    is_fused = config.run.device == "cuda" and not config.rollout.is_truncated
    logits = rows * text.vocab_size * (4 if is_fused else 4 + 4 + 8 + 8)
    parts = [
        Part("this process so far", resident, "--run.device"),
        Part("weights", parameters * width, "--model.path, --run.dtype"),
        *(_warmup_parts(config, text, parameters, warmup) if warmup else ()),
        *_optimizer_parts(config, parameters),
        Part("frozen start model", reference, "--loss.kl none", "self-play"),
        Part("activations about", activations, "--optim.micro-batch-tokens", "update"),
        Part("logits peak about", logits, "--rollout.slots", "rollouts"),
    ]
    kept = rows * context_tokens * cache
    if config.rollout.cache_gib:
        kept = min(kept, int(config.rollout.cache_gib * GIB))
    if available is not None:
        left = available - sum(p.bytes for p in parts if p.phase not in ("warm-up", "update"))
        kept = min(kept, max(left, context_tokens * cache))
    parts.append(Part("KV cache", kept, "--rollout.slots", "rollouts"))
    return [part for part in parts if part.bytes]


def _optimizer_parts(config: Config, parameters: int) -> list[Part]:
    """Returns gradients, moments and copies (see azr.learner.optim)."""
    option = "--optim.bf16-update stochastic"
    if config.run.dtype == "float32":
        gradient, moments, copies, option = 4, 8, 0, "--run.dtype bfloat16"
    elif config.optim.bf16_update == "master":
        gradient, moments, copies = 4, 8, 4
    else:
        # Bits below bf16's from the second micro-batch on: how many come is not known before.
        gradient, moments, copies, option = 3, 4, 0, "--model.path"
    return [
        Part("gradients", parameters * gradient, option, "update"),
        Part("AdamW moments", parameters * moments, option, "self-play"),
        Part("fp32 copies of weights", parameters * copies, option, "self-play"),
    ]


class PackedTokens(NamedTuple):
    """The size of a micro-batch."""

    packed: int
    """Tokens that go through the model: what rows share stands once."""
    padded: int
    """Tokens of its rows in full, where attention pads filled up to the longest."""


def _warmup_parts(
    config: Config, text: PretrainedConfig, parameters: int, batches: Sequence[PackedTokens]
) -> list[Part]:
    """Returns what the format warm-up holds: an optimiser of its own, which is gone afterwards."""
    width, gradient, moments = (4, 4, 8) if config.run.dtype == "float32" else (2, 3, 4)
    # Tied weights gather two gradients, the head's and the embedding's, before they are added.
    head = text.vocab_size * text.hidden_size * 4 * 2
    kept = max(_activations(config, text, b.packed, b.padded) for b in batches) * width
    slack = CPU_SLACK if config.run.device == "cpu" else 1.0
    return [
        Part("its gradients", parameters * gradient + head, "--model.path", "warm-up"),
        Part("its AdamW moments", parameters * moments, "--model.path", "warm-up"),
        Part("its activations about", int(kept * slack), "--optim.micro-batch-tokens", "warm-up"),
    ]


def _activations(config: Config, text: PretrainedConfig, packed: int, padded: int) -> int:
    """Returns about how many numbers autograd keeps of a micro-batch.

    Of a decoder layer that is about 8 tensors of the hidden size and 4 of the feed-forward size for
    each packed token (norms, residuals, inputs of projections), and queries, keys, values and
    output of attention, which may pad its rows.
    """
    # Configurations like GPT-2's name no feed-forward size where it is four times the other.
    ffn = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    layer = packed * (8 * text.hidden_size + 4 * ffn) + padded * 4 * text.hidden_size
    if config.optim.recompute:
        # The input of every layer, and all of the one whose backward is under way.
        return text.num_hidden_layers * packed * text.hidden_size + layer
    return text.num_hidden_layers * layer


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
