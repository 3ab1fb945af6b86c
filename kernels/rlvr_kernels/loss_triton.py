"""The policy loss in two launches: a token kernel and one small reduction; backward is one scaling.

The token kernel writes the gradient to each log-prob beside its share of every sum, so that the
backward pass multiplies by a scalar and reads no input again. Sums go through one partial record a
program and are added in a fixed order: no atomics, the same bits on every run, no host sync.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import LOSS
from .logprob_triton import on_device

# The record: first what is added, then the extremes.
SUMS = (
    "loss", "tokens", "pg_loss", "ratio_mean", "clip_frac_low", "clip_frac_high", "dual_clip_frac",
    "approx_kl", "kl", "kl_penalty", "entropy", "tis_mean", "tis_capped_frac", "mismatch_kl",
    "sequences", "clip_frac",
)  # fmt: skip
EXTREMES = ("ratio_max", "ratio_min", "tis_max")
# Their places, in the same order.
(
    LOSS_SUM, TOKENS, PG_LOSS, RATIO, CLIPPED_LOW, CLIPPED_HIGH, DUAL_CLIPPED,
    OLD_TO_NEW, KL_TO_REF, KL_PENALTY, ENTROPY, TIS, TIS_CAPPED, MISMATCH,
    SEQUENCES, CLIPPED,
    RATIO_MAX, RATIO_MIN, TIS_MAX,
) = (tl.constexpr(place) for place in range(len(SUMS + EXTREMES)))  # fmt: skip
N_SUMS = tl.constexpr(len(SUMS))
RECORD = tl.constexpr(32)  # a power of two that holds them all
REDUCE_BLOCK = 64
KL_KINDS = {None: 0, "k1": 1, "k2": 2, "k3": 3}
# How the sum becomes the loss.
DENOM_NONE, DENOM_OWN, DENOM_FLOAT, DENOM_TENSOR = (tl.constexpr(i) for i in range(4))
MIN_STD = tl.constexpr(1e-6)


@triton.jit
def bound(x, limit):
    """x within +-limit; comparisons, since a minimum would drop a NaN that has to be seen."""
    return tl.where(x > limit, limit, tl.where(x < -limit, -limit, x))


@triton.jit
def exp_minus_1_minus(x):
    """exp(x) - 1 - x >= 0, to full relative precision near 0, where the difference cancels."""
    series = x * x * (0.5 + x * (1.0 / 6 + x * (1.0 / 24 + x * (1.0 / 120 + x * (1.0 / 720)))))
    return tl.where(tl.abs(x) < 0.25, series, tl.exp(x) - 1 - x)


@triton.jit
def policy_loss_kernel(
    logprobs_ptr, old_ptr, advantages_ptr, mask_ptr,  # inputs
    ref_ptr, rollout_ptr, entropy_ptr,  # optional inputs
    group_ids_ptr, group_mean_ptr, group_std_ptr, group_count_ptr,  # optional inputs
    d_logprobs_ptr, d_entropy_ptr, records_ptr,  # results
    n_tokens, row_size, advantage_span, group_span, n_groups,  # shapes
    clip_low: tl.float32, clip_high: tl.float32, dual_clip: tl.float32,
    kl_coef: tl.float32, tis_cap: tl.float32, entropy_coef: tl.float32,
    limit: tl.float32, group_eps: tl.float32,
    KL: tl.constexpr, HAS_REF: tl.constexpr, HAS_ROLLOUT: tl.constexpr, HAS_TIS: tl.constexpr,
    HAS_ENTROPY: tl.constexpr, HAS_DUAL: tl.constexpr, HAS_GROUPS: tl.constexpr,
    SEQ_MEAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # A program owns one row: a sequence for SEQ_MEAN, else simply the next BLOCK tokens.
    first = tl.program_id(0).to(tl.int64) * row_size
    share = 1.0
    length = 0.0
    if SEQ_MEAN:
        for start in range(0, row_size, BLOCK):
            offsets = start + tl.arange(0, BLOCK)
            here = tl.load(mask_ptr + first + offsets, mask=offsets < row_size, other=0) != 0
            length += tl.sum(here.to(tl.float32), 0)
        share = 1 / tl.maximum(length, 1.0)

    slots = tl.arange(0, RECORD)
    record = tl.zeros([RECORD], tl.float32)
    ratio_max, ratio_min, tis_max = -float("inf"), float("inf"), -float("inf")
    for start in range(0, row_size, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        at = first + offsets
        inside = (offsets < row_size) & (at < n_tokens)
        on = tl.load(mask_ptr + at, mask=inside, other=0) != 0
        logp = tl.load(logprobs_ptr + at, mask=on, other=0.0)
        old = tl.load(old_ptr + at, mask=on, other=0.0)
        adv = tl.load(advantages_ptr + at // advantage_span, mask=on, other=0.0)
        if HAS_GROUPS:
            group = tl.load(group_ids_ptr + at // group_span, mask=on, other=0)
            known = on & (group >= 0) & (group < n_groups)
            mean = tl.load(group_mean_ptr + group, mask=known, other=0.0)
            std = tl.load(group_std_ptr + group, mask=known, other=0.0)
            count = tl.load(group_count_ptr + group, mask=known, other=0.0)
            adv = (adv - mean) / tl.sqrt(std * std + group_eps)
            adv = tl.where((std < MIN_STD) | (count < 2), 0.0, adv)
            adv = tl.where(on & (known == 0), float("nan"), adv)

        raw = logp - old
        log_ratio = bound(raw, limit)
        ratio = tl.exp(log_ratio)
        bounded = tl.where(ratio < 1 - clip_low, 1 - clip_low, ratio)
        bounded = tl.where(ratio > 1 + clip_high, 1 + clip_high, bounded)
        clipped = bounded * adv < ratio * adv
        surrogate = tl.where(clipped, bounded * adv, ratio * adv)
        d_surrogate = tl.where(clipped | (tl.abs(raw) > limit), 0.0, ratio * adv)
        record += tl.where(
            slots == CLIPPED_LOW, tl.sum((on & clipped & (adv < 0)).to(tl.float32), 0), 0
        )
        record += tl.where(
            slots == CLIPPED_HIGH, tl.sum((on & clipped & (adv > 0)).to(tl.float32), 0), 0
        )
        record += tl.where(slots == CLIPPED, tl.sum((on & clipped).to(tl.float32), 0), 0)
        if HAS_DUAL:
            dual = (adv < 0) & (surrogate < dual_clip * adv)
            surrogate = tl.where(dual, dual_clip * adv, surrogate)
            d_surrogate = tl.where(dual, 0.0, d_surrogate)
            record += tl.where(slots == DUAL_CLIPPED, tl.sum((on & dual).to(tl.float32), 0), 0)
        weight = 1.0
        if HAS_ROLLOUT:
            drift = bound(old - tl.load(rollout_ptr + at, mask=on, other=0.0), limit)
            importance = tl.exp(drift)
            applied = importance
            if HAS_TIS:
                applied = tl.where(importance > tis_cap, tis_cap, importance)
                weight = applied
                over = on & (importance > tis_cap)
                record += tl.where(slots == TIS_CAPPED, tl.sum(over.to(tl.float32), 0), 0)
            record += tl.where(slots == TIS, tl.sum(tl.where(on, applied, 0.0), 0), 0)
            mismatch = tl.where(on, exp_minus_1_minus(drift), 0.0)
            record += tl.where(slots == MISMATCH, tl.sum(mismatch, 0), 0)
            tis_max = tl.maximum(tis_max, tl.max(tl.where(on, importance, -float("inf")), 0))
        loss = -weight * surrogate
        d_logp = -weight * d_surrogate
        record += tl.where(slots == PG_LOSS, tl.sum(tl.where(on, loss, 0.0), 0), 0)

        if HAS_REF:
            to_ref = tl.load(ref_ptr + at, mask=on, other=0.0) - logp
            near = bound(to_ref, limit)
            k3 = exp_minus_1_minus(near)
            penalty = k3
            d_penalty = tl.where(tl.abs(to_ref) > limit, 0.0, -(k3 + near))
            if KL == 1:
                penalty = -to_ref
                d_penalty = tl.where(on, 1.0, 0.0)
            if KL == 2:
                penalty = 0.5 * to_ref * to_ref
                d_penalty = -to_ref
            if KL != 0:
                loss += kl_coef * penalty
                d_logp += kl_coef * d_penalty
            record += tl.where(slots == KL_TO_REF, tl.sum(tl.where(on, k3, 0.0), 0), 0)
            record += tl.where(slots == KL_PENALTY, tl.sum(tl.where(on, penalty, 0.0), 0), 0)
        if HAS_ENTROPY:
            nats = tl.load(entropy_ptr + at, mask=on, other=0.0)
            loss -= entropy_coef * nats
            record += tl.where(slots == ENTROPY, tl.sum(nats, 0), 0)
            tl.store(d_entropy_ptr + at, tl.where(on, -entropy_coef * share, 0.0), mask=inside)

        tl.store(d_logprobs_ptr + at, tl.where(on, d_logp * share, 0.0), mask=inside)
        record += tl.where(slots == LOSS_SUM, tl.sum(tl.where(on, loss * share, 0.0), 0), 0)
        record += tl.where(slots == TOKENS, tl.sum(on.to(tl.float32), 0), 0)
        record += tl.where(slots == RATIO, tl.sum(tl.where(on, ratio, 0.0), 0), 0)
        old_to_new = tl.where(on, exp_minus_1_minus(log_ratio), 0.0)
        record += tl.where(slots == OLD_TO_NEW, tl.sum(old_to_new, 0), 0)
        ratio_max = tl.maximum(ratio_max, tl.max(tl.where(on, ratio, -float("inf")), 0))
        ratio_min = tl.minimum(ratio_min, tl.min(tl.where(on, ratio, float("inf")), 0))

    record += tl.where(slots == SEQUENCES, tl.where(length > 0, 1.0, 0.0), 0)
    record = tl.where(slots == RATIO_MAX, ratio_max, record)
    record = tl.where(slots == RATIO_MIN, -ratio_min, record)
    record = tl.where(slots == TIS_MAX, tis_max, record)
    tl.store(records_ptr + tl.program_id(0).to(tl.int64) * RECORD + slots, record)


@triton.jit
def policy_reduce_kernel(
    records_ptr, denom_ptr,  # inputs
    loss_ptr, scale_ptr, metrics_ptr,  # results
    n_records, denom: tl.float32,
    DENOM: tl.constexpr, SEQ_MEAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    slots = tl.arange(0, RECORD)
    is_sum = slots < N_SUMS
    total = tl.where(is_sum, 0.0, -float("inf"))
    for start in range(0, n_records, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        here = (rows < n_records)[:, None]
        records = tl.load(records_ptr + rows[:, None] * RECORD + slots[None, :], mask=here, other=0)
        added = tl.sum(records, 0)
        highest = tl.max(tl.where(here, records, -float("inf")), 0)
        total = tl.where(is_sum, total + added, tl.maximum(total, highest))

    tokens = tl.sum(tl.where(slots == TOKENS, total, 0.0), 0)
    units = tokens
    if SEQ_MEAN:
        units = tl.sum(tl.where(slots == SEQUENCES, total, 0.0), 0)
    scale = 1.0
    if DENOM == DENOM_OWN:
        scale = 1 / tl.maximum(units, 1.0)
    if DENOM == DENOM_FLOAT:
        scale = 1 / denom
    if DENOM == DENOM_TENSOR:
        scale = 1 / tl.load(denom_ptr).to(tl.float32)
    loss = tl.sum(tl.where(slots == LOSS_SUM, total, 0.0), 0) * scale
    tl.store(loss_ptr, loss)
    tl.store(scale_ptr, scale)
    # Counts stay counts; what is left of the sums becomes a mean over tokens.
    is_count = (slots == TOKENS) | (slots == SEQUENCES)
    metrics = tl.where(is_count, total, total / tl.maximum(tokens, 1.0))
    metrics = tl.where(slots == LOSS_SUM, loss, metrics)
    extreme = tl.where(slots == RATIO_MIN, -total, total)
    metrics = tl.where(is_sum, metrics, tl.where(tokens > 0, extreme, 1.0))
    tl.store(metrics_ptr + slots, metrics)


@triton.jit
def scale_kernel(
    d_logprobs_ptr, d_entropy_ptr, upstream_ptr, scale_ptr,  # inputs
    logprobs_grad_ptr, entropy_grad_ptr,  # results
    n_tokens,
    HAS_ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n_tokens
    factor = tl.load(upstream_ptr) * tl.load(scale_ptr)
    d_logp = tl.load(d_logprobs_ptr + at, mask=inside, other=0.0)
    tl.store(logprobs_grad_ptr + at, d_logp * factor, mask=inside)
    if HAS_ENTROPY:
        d_entropy = tl.load(d_entropy_ptr + at, mask=inside, other=0.0)
        tl.store(entropy_grad_ptr + at, d_entropy * factor, mask=inside)


def forward(
    logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor,
    ref: Tensor | None, rollout: Tensor | None, entropy: Tensor | None,
    group_ids: Tensor | None, group_stats: list[Tensor], denom_tensor: Tensor | None,
    options: dict[str, float | None], kl: str | None, reduction: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(loss, scale, metrics record, d_logprobs, d_entropy or [0]); gradients before the scale."""
    shape, n_tokens = logprobs.shape, logprobs.numel()
    is_seq = reduction == "seq-mean"
    row_size = shape[-1] if is_seq else LOSS.block
    n_programs = n_tokens // max(1, row_size) if is_seq else triton.cdiv(n_tokens, row_size)
    advantages, advantage_span = _spread_over(advantages, shape)
    group_span = 1
    if group_ids is not None:
        group_ids, group_span = _spread_over(group_ids, shape)
    mean, std, count = group_stats or (None, None, None)

    loss, scale = logprobs.new_empty(()), logprobs.new_empty(())
    metrics = logprobs.new_empty(RECORD.value)
    records = logprobs.new_empty((n_programs, RECORD.value))
    d_logprobs = torch.empty(shape, dtype=torch.float32, device=logprobs.device)
    d_entropy = torch.empty_like(d_logprobs) if entropy is not None else loss.new_empty(0)
    kind, denom = DENOM_OWN, 1.0
    if reduction == "sum":
        kind = DENOM_NONE
    elif denom_tensor is not None:
        kind = DENOM_TENSOR
    elif options["denom"] is not None:
        kind, denom = DENOM_FLOAT, options["denom"]
    with on_device(logprobs):
        if n_programs:
            policy_loss_kernel[(n_programs,)](
                logprobs.contiguous(), old.contiguous(), advantages, mask.contiguous(),
                _dense(ref), _dense(rollout), _dense(entropy),
                group_ids, mean, std, count,
                d_logprobs, d_entropy, records,
                n_tokens, row_size, advantage_span, group_span, 0 if mean is None else len(mean),
                options["clip_low"], options["clip_high"], options["dual_clip"] or 0.0,
                options["kl_coef"], options["tis_cap"] or 0.0, options["entropy_coef"],
                options["log_ratio_clamp"], 1e-8,
                KL=KL_KINDS[kl], HAS_REF=ref is not None, HAS_ROLLOUT=rollout is not None,
                HAS_TIS=options["tis_cap"] is not None, HAS_ENTROPY=entropy is not None,
                HAS_DUAL=options["dual_clip"] is not None, HAS_GROUPS=group_ids is not None,
                SEQ_MEAN=is_seq, BLOCK=LOSS.block, num_warps=LOSS.num_warps,
            )  # fmt: skip
        policy_reduce_kernel[(1,)](
            records, denom_tensor, loss, scale, metrics, n_programs, denom,
            DENOM=kind.value, SEQ_MEAN=is_seq, BLOCK=REDUCE_BLOCK, num_warps=LOSS.num_warps,
        )  # fmt: skip
    return loss, scale, metrics, d_logprobs, d_entropy


def backward(
    upstream: Tensor, scale: Tensor, d_logprobs: Tensor, d_entropy: Tensor
) -> tuple[Tensor, Tensor]:
    """Both gradients times upstream and scale; inputs stay, for a second backward."""
    has_entropy = d_entropy.numel() == d_logprobs.numel()
    grad, entropy_grad = torch.empty_like(d_logprobs), torch.empty_like(d_entropy)
    n_tokens = d_logprobs.numel()
    if n_tokens:
        with on_device(d_logprobs):
            scale_kernel[(triton.cdiv(n_tokens, LOSS.block),)](
                d_logprobs, d_entropy, upstream, scale, grad, entropy_grad, n_tokens,
                HAS_ENTROPY=has_entropy, BLOCK=LOSS.block, num_warps=LOSS.num_warps,
            )  # fmt: skip
    return grad, entropy_grad


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _spread_over(tensor: Tensor, shape: torch.Size) -> tuple[Tensor, int]:
    """(dense tensor, tokens that share an entry): per token 1, per sequence the last dimension."""
    if tensor.shape == shape:
        return tensor.contiguous(), 1
    if tensor.shape == (*shape[:-1], 1):
        return tensor.contiguous(), shape[-1]
    return tensor.expand(shape).contiguous(), 1
