"""The clipped policy loss of REINFORCE++ / PPO over tokens, and its metrics in the same pass."""

from typing import Any

import torch
from torch import Tensor

from . import reference
from .backend import resolve
from .checks import (
    BOOL,
    check_choice,
    check_device,
    check_dtype,
    check_expandable,
    check_positive,
    check_shape,
    check_tensor,
)
from .groups import GroupStatistics
from .scalars import as_number, packed, unpacked

_RECORD = 32  # length of the kernel's record of metrics


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    ref_logprobs: Tensor | None = None,
    kl: str | None = None,
    kl_coef: float = 0.0,
    rollout_logprobs: Tensor | None = None,
    tis_cap: float | None = None,
    group_ids: Tensor | None = None,
    group_stats: GroupStatistics | None = None,
    reduction: str = "token",
    denom: float | Tensor | None = None,
    entropy: Tensor | None = None,
    entropy_coef: float = 0.0,
    log_ratio_clamp: float = 20.0,
    backend: str = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the scalar loss and a dict of detached 0-dim float32 metrics; no host sync.

    logprobs      [..., L] float32, of the policy that is trained; the gradient flows here
    old_logprobs  [..., L] float32, of the policy that the ratio is taken against
    advantages    [..., L] or any shape that expands to it ([..., 1]: one per sequence)
    mask          [..., L] bool; masked-out entries may hold anything, NaN included

    Per token, with r = exp(clamp(logprobs - old_logprobs, +-log_ratio_clamp)) and A the advantage:

        surrogate = min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)       PPO, arXiv:1707.06347
        surrogate = max(surrogate, dual_clip A) where A < 0                arXiv:1912.09729
        loss      = - w surrogate + kl_coef KL - entropy_coef entropy

    w   truncated importance weight min(exp(old_logprobs - rollout_logprobs), tis_cap), a constant;
        1 unless both are given (rollout_logprobs alone adds only its metrics)
    KL  to ref_logprobs, d = ref_logprobs - logprobs: "k1" -d, "k2" d^2 / 2, "k3" exp(d) - 1 - d
        (d clamped to +-log_ratio_clamp). As a loss only k2 has the gradient of the reverse KL under
        on-policy samples; that of k1 is zero in expectation, that of k3 the forward KL's.
    A   (advantages - mean) * rsqrt(std^2 + 1e-8) of its group where group_ids (same rule of shape
        as advantages) and group_stats (from `group_statistics`) are given, 0 in a group without
        signal: `group_normalize` fused into the loss.

    reduction "token": sum over tokens / denom, default this call's unmasked tokens. "seq-mean": the
    last dimension is a sequence; sum over sequences of its per-token mean / denom, default this
    call's sequences with at least one token. "sum": no division. Under gradient accumulation or
    data parallelism pass the global count as `denom` (a number or a 0-dim tensor), so that the
    losses of all parts add up to the one of the whole.

    With old_logprobs = logprobs.detach() the ratio is exactly 1 and the gradient REINFORCE's.

    Metrics. Means are over this call's unmasked tokens and 0 without any: combine calls as
    sum(mean * tokens) / sum(tokens), extremes by max and min (1, the neutral ratio, without any),
    `tokens`, `sequences` and, with a common denom, `loss` by adding.
        loss, tokens     the returned value; the number of unmasked tokens
        sequences        with "seq-mean": sequences with at least one token
        pg_loss          mean of - w surrogate
        ratio_mean, ratio_max, ratio_min   of r
        clip_frac        fraction with the clip active (the clipped branch strictly smaller)
        clip_frac_low    of these, r < 1 - clip_low with A < 0
        clip_frac_high   of these, r > 1 + clip_high with A > 0
        dual_clip_frac   fraction with the dual clip active
        approx_kl        KL(old || new) by k3, r - 1 - log r, nats a token
        kl, kl_penalty   with ref_logprobs: KL(new || ref) by k3, and mean of the estimator chosen
        entropy          with entropy: its mean, nats a token
        tis_mean, tis_max, tis_capped_frac   with rollout_logprobs: mean of the weight (after the
                         cap), largest before the cap, fraction above the cap
        mismatch_kl      with rollout_logprobs: KL(rollout || old) by k3, nats a token

    Raises TypeError for a dtype (bf16 log-probs would put their rounding into the ratio) and
    ValueError for a shape or an option.
    """
    _check(logprobs, old_logprobs, advantages, mask, ref_logprobs, rollout_logprobs, entropy)
    check_choice("kl", kl, (None, "k1", "k2", "k3"))
    check_choice("reduction", reduction, ("token", "seq-mean", "sum"))
    options = dict(
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        kl_coef=kl_coef,
        tis_cap=tis_cap,
        entropy_coef=entropy_coef,
        log_ratio_clamp=log_ratio_clamp,
        denom=None if isinstance(denom, Tensor) else denom,
    )
    numbers: dict[str, Any] = {
        name: None if x is None else as_number(x) for name, x in options.items()
    }
    if not torch.compiler.is_compiling():
        _check_numbers(numbers, kl, entropy)
    if tis_cap is not None and rollout_logprobs is None:
        raise ValueError("tis_cap: expected rollout_logprobs with it; got None")
    if kl is not None and ref_logprobs is None:
        raise ValueError(f"kl={kl!r}: expected ref_logprobs with it; got None")
    if (group_ids is None) != (group_stats is None):
        raise ValueError("group_ids, group_stats: expected both or neither; got one")
    if group_ids is not None and group_stats is not None:
        check_expandable("group_ids", group_ids, tuple(logprobs.shape), "logprobs")
        check_device("group_ids", group_ids, logprobs.device, "logprobs")
        for name, statistic in zip(group_stats._fields, group_stats, strict=True):
            check_dtype(f"group_stats.{name}", statistic, (torch.float32,))
            check_device(f"group_stats.{name}", statistic, logprobs.device, "logprobs")
    if reduction == "sum" and denom is not None:
        raise ValueError(f"denom: expected None with reduction='sum'; got {denom}")
    if isinstance(denom, Tensor):
        check_shape("denom", denom, (), "one number")
        check_device("denom", denom, logprobs.device, "logprobs")
    if resolve(backend, logprobs.device) == "torch":
        here: dict[str, Any] = {
            n: x.to(logprobs.device) if torch.is_tensor(x) else x for n, x in numbers.items()
        }
        if isinstance(denom, Tensor):
            here["denom"] = denom
        return reference.policy_loss(
            logprobs,
            old_logprobs,
            advantages,
            mask,
            ref_logprobs=ref_logprobs,
            kl=kl,
            rollout_logprobs=rollout_logprobs,
            group_ids=group_ids,
            group_stats=group_stats,
            reduction=reduction,
            entropy=entropy,
            **here,
        )
    loss, _, record, _, _ = fused_policy_loss(
        logprobs, old_logprobs, advantages, mask, ref_logprobs, rollout_logprobs, entropy,
        group_ids, list(group_stats or ()), denom if isinstance(denom, Tensor) else None,
        packed([numbers[name] for name in _OPTIONS]), kl, reduction,
    )  # fmt: skip
    return loss, _metrics(record, ref_logprobs, rollout_logprobs, entropy, reduction)


def _check_numbers(numbers: dict[str, Any], kl: str | None, entropy: Tensor | None) -> None:
    """Raise where a number is out of its range or weighs nothing; a compiled graph cannot tell."""
    check_positive("log_ratio_clamp", numbers["log_ratio_clamp"])
    low, high = numbers["clip_low"], numbers["clip_high"]
    if not (0 <= low <= 1 and high >= 0):
        raise ValueError(
            f"clip_low, clip_high: expected in [0, 1] and at least 0; got {low}, {high}"
        )
    if numbers["dual_clip"] is not None and not numbers["dual_clip"] > 1:
        raise ValueError(f"dual_clip: expected above 1; got {numbers['dual_clip']}")
    if numbers["tis_cap"] is not None:
        check_positive("tis_cap", numbers["tis_cap"])
    if kl is None and numbers["kl_coef"]:
        raise ValueError(
            f"kl_coef={numbers['kl_coef']}: expected kl to name an estimator; got None"
        )
    if entropy is None and numbers["entropy_coef"]:
        raise ValueError(
            f"entropy_coef={numbers['entropy_coef']}: expected entropy with it; got None"
        )


# The order of the numbers that the op takes as one tensor.
_OPTIONS = (
    "clip_low",
    "clip_high",
    "dual_clip",
    "kl_coef",
    "tis_cap",
    "entropy_coef",
    "log_ratio_clamp",
    "denom",
)


@torch.library.custom_op("rlvr_kernels::policy_loss", mutates_args=())
def fused_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    ref_logprobs: Tensor | None,
    rollout_logprobs: Tensor | None,
    entropy: Tensor | None,
    group_ids: Tensor | None,
    group_stats: list[Tensor],
    denom: Tensor | None,
    numbers: Tensor,
    kl: str | None,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, scale, record of metrics, d_logprobs, d_entropy or [0]) by the Triton kernels."""
    from . import loss_triton

    named = dict(zip(_OPTIONS, unpacked(numbers), strict=True))
    return loss_triton.forward(
        logprobs, old_logprobs, advantages, mask, ref_logprobs, rollout_logprobs, entropy,
        group_ids, group_stats, denom, named, kl, reduction,
    )  # fmt: skip


@fused_policy_loss.register_fake
def _(logprobs, old, advantages, mask, ref, rollout, entropy, *rest):
    scalar = logprobs.new_empty(())
    d_logprobs = torch.empty(logprobs.shape, dtype=torch.float32, device=logprobs.device)
    d_entropy = scalar.new_empty(0) if entropy is None else torch.empty_like(d_logprobs)
    return scalar, torch.empty_like(scalar), scalar.new_empty(_RECORD), d_logprobs, d_entropy


@torch.library.custom_op("rlvr_kernels::policy_loss_backward", mutates_args=())
def fused_policy_loss_backward(
    upstream: Tensor, scale: Tensor, d_logprobs: Tensor, d_entropy: Tensor
) -> tuple[Tensor, Tensor]:
    from . import loss_triton

    return loss_triton.backward(upstream, scale, d_logprobs, d_entropy)


@fused_policy_loss_backward.register_fake
def _(upstream, scale, d_logprobs, d_entropy):
    return torch.empty_like(d_logprobs), torch.empty_like(d_entropy)


def _save(ctx, inputs, output) -> None:
    _, scale, _, d_logprobs, d_entropy = output
    ctx.has_entropy = inputs[6] is not None
    ctx.n_stats = len(inputs[8])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(scale, d_logprobs, d_entropy)


def _gradient(ctx, upstream, *_):
    inputs: list[object] = [None] * 13
    inputs[8] = [None] * ctx.n_stats
    if upstream is not None:
        grad, entropy_grad = fused_policy_loss_backward(upstream, *ctx.saved_tensors)
        inputs[0] = grad
        inputs[6] = entropy_grad if ctx.has_entropy else None
    return tuple(inputs)


fused_policy_loss.register_autograd(_gradient, setup_context=_save)


def _metrics(record, ref_logprobs, rollout_logprobs, entropy, reduction) -> dict[str, Tensor]:
    """Name the entries of the record: views of one tensor, no launch and no sync."""
    from .loss_triton import EXTREMES, SUMS

    named = dict(zip(SUMS + EXTREMES, record.detach().unbind(), strict=False))
    absent = set()
    if reduction != "seq-mean":
        absent.add("sequences")
    if ref_logprobs is None:
        absent |= {"kl", "kl_penalty"}
    if entropy is None:
        absent.add("entropy")
    if rollout_logprobs is None:
        absent |= {"tis_mean", "tis_max", "tis_capped_frac", "mismatch_kl"}
    return {name: value for name, value in named.items() if name not in absent}


def _check(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    ref_logprobs: Tensor | None,
    rollout_logprobs: Tensor | None,
    entropy: Tensor | None,
) -> None:
    shape = tuple(logprobs.shape)
    if not shape:
        raise ValueError("logprobs: expected shape [..., L]; got a 0-dim tensor")
    check_dtype("logprobs", logprobs, (torch.float32,))
    why, device = "the shape of logprobs", logprobs.device
    check_tensor("mask", mask, BOOL, shape, why, device, "logprobs")
    check_dtype("advantages", advantages, (torch.float32,))
    check_expandable("advantages", advantages, shape, "logprobs")
    check_device("advantages", advantages, device, "logprobs")
    optional = {
        "old_logprobs": old_logprobs,
        "ref_logprobs": ref_logprobs,
        "rollout_logprobs": rollout_logprobs,
        "entropy": entropy,
    }
    for name, tensor in optional.items():
        if tensor is not None:
            check_tensor(name, tensor, (torch.float32,), shape, why, device, "logprobs")
