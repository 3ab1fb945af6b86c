"""The specification: plain torch of each function, differentiable, in float64 where given float64.

Written to be read. The kernels and the fast torch paths are tested against these, and these against
finite differences and independent oracles.
"""

import torch
from torch import Tensor

from .groups import GroupStatistics, group_normalize, group_statistics, normalize_with
from .products import linear
from .records import TokenLogprobs

__all__ = [
    "add_rms_norm",
    "copy_pages",
    "group_normalize",
    "group_statistics",
    "linear_token_logprobs",
    "policy_loss",
    "rms_norm",
    "rotary_qkv",
    "swiglu",
    "token_logprobs",
]


def token_logprobs(
    logits: Tensor,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    return_entropy: bool = False,
    return_lse: bool = False,
) -> TokenLogprobs:
    """log softmax(logits / temperature)[ids], its entropy in nats and its log-sum-exp.

    logits [..., V] floating point, ids [...] integers, mask [...] bool or None. Computed in float64
    where logits are float64, else in float32. Where masked out or id == ignore_index all three are
    0 with zero gradient, whatever the row holds.
    """
    valid = ids != ignore_index
    if mask is not None:
        valid = valid & mask
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    z = torch.where(valid[..., None], logits.to(wide), 0) / temperature
    lse = torch.logsumexp(z, -1)
    logp = z - lse[..., None]
    chosen = logp.gather(-1, torch.where(valid, ids, 0).long()[..., None])[..., 0]
    entropy = None
    if return_entropy:
        # A logit of -inf (a forbidden token) has p = 0 and contributes 0, not 0 * -inf.
        entropy = -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0)).sum(-1)
        entropy = torch.where(valid, entropy, 0)
    return TokenLogprobs(
        torch.where(valid, chosen, 0), entropy, torch.where(valid, lse, 0) if return_lse else None
    )


def linear_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    return_entropy: bool = False,
    return_lse: bool = False,
) -> TokenLogprobs:
    """`token_logprobs` of softcap(hidden @ weight.T + bias) / temperature.

    hidden [..., H], weight [V, H], bias [V], ids and mask [...]. The product accumulates in float32
    from the given values (float64 where hidden is float64), so that no logit is rounded to bf16.
    """
    valid = ids != ignore_index
    if mask is not None:
        valid = valid & mask
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    clean = torch.where(valid[..., None], hidden.to(wide), 0)
    flat = clean.reshape(-1, clean.shape[-1])
    logits = linear(flat, weight.to(wide), None if bias is None else bias.to(wide))
    logits = logits.view(*clean.shape[:-1], -1)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return token_logprobs(
        logits,
        ids,
        temperature=temperature,
        mask=mask,
        ignore_index=ignore_index,
        return_entropy=return_entropy,
        return_lse=return_lse,
    )


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
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and metrics that `rlvr_kernels.policy_loss` documents, [..., L] in, 0-dim out."""
    wide = torch.float64 if logprobs.dtype == torch.float64 else torch.float32
    count = mask.sum().to(wide)
    metrics: dict[str, Tensor] = {}

    def clean(x: Tensor) -> Tensor:
        return torch.where(mask, x.to(wide).expand_as(mask), 0)

    def mean(x: Tensor) -> Tensor:
        return torch.where(mask, x.detach().to(wide), 0).sum() / count.clamp(min=1)

    def extreme(x: Tensor, largest: bool) -> Tensor:
        """max or min over the tokens; 1, the neutral ratio, where there is none."""
        empty = -torch.inf if largest else torch.inf
        kept = torch.where(mask, x.detach(), empty).reshape(-1)
        bound = torch.cat([kept, kept.new_full((1,), empty)])
        bound = bound.max() if largest else bound.min()
        return torch.where(count > 0, bound, 1.0)

    logp, old = clean(logprobs), clean(old_logprobs).detach()
    adv = clean(advantages).detach()
    if group_ids is not None and group_stats is not None:
        adv = normalize_with(adv, mask, group_ids.expand_as(mask), group_stats)

    raw = logp - old
    log_ratio = raw.clamp(-log_ratio_clamp, log_ratio_clamp)
    ratio = log_ratio.exp()
    free, bounded = ratio * adv, ratio.clamp(1 - clip_low, 1 + clip_high) * adv
    clipped = bounded < free
    surrogate = torch.where(clipped, bounded, free)
    dual = torch.zeros_like(clipped)
    if dual_clip is not None:
        dual = (adv < 0) & (surrogate < dual_clip * adv)
        surrogate = torch.where(dual, dual_clip * adv, surrogate)

    weight = torch.ones_like(adv)
    if rollout_logprobs is not None:
        drift = old - clean(rollout_logprobs).detach()
        drift = drift.clamp(-log_ratio_clamp, log_ratio_clamp)
        is_ratio = drift.exp()
        if tis_cap is not None:
            weight = is_ratio.clamp(max=tis_cap)
        over = torch.zeros_like(mask) if tis_cap is None else is_ratio > tis_cap
        metrics["tis_mean"] = mean(is_ratio if tis_cap is None else weight)
        metrics["tis_max"] = extreme(is_ratio, True)
        metrics["tis_capped_frac"] = mean(over)
        metrics["mismatch_kl"] = mean(torch.expm1(drift) - drift)
    loss = -weight * surrogate
    pg_loss = loss.detach()
    if ref_logprobs is not None:
        to_ref = clean(ref_logprobs).detach() - logp
        bounded_ref = to_ref.clamp(-log_ratio_clamp, log_ratio_clamp)
        k3 = torch.expm1(bounded_ref) - bounded_ref
        penalty = {"k1": -to_ref, "k2": 0.5 * to_ref.square(), "k3": k3, None: k3}[kl]
        metrics["kl"] = mean(k3)
        metrics["kl_penalty"] = mean(penalty)
        if kl is not None:
            loss = loss + kl_coef * penalty
    if entropy is not None:
        nats = clean(entropy)
        metrics["entropy"] = mean(nats)
        loss = loss - entropy_coef * nats
    loss = torch.where(mask, loss, 0)

    if reduction == "seq-mean":
        length = mask.sum(-1).to(wide)
        total, units = (loss.sum(-1) / length.clamp(min=1)).sum(), (length > 0).sum().to(wide)
    else:
        total, units = loss.sum(), count
    if reduction == "sum":
        value = total
    else:
        value = (total / (units.clamp(min=1) if denom is None else denom)).to(wide)

    metrics |= {
        "loss": value,
        "tokens": count,
        "pg_loss": mean(pg_loss),
        "ratio_mean": mean(ratio),
        "ratio_max": extreme(ratio, True),
        "ratio_min": extreme(ratio, False),
        "clip_frac": mean(clipped),
        "clip_frac_low": mean(clipped & (adv < 0)),
        "clip_frac_high": mean(clipped & (adv > 0)),
        "dual_clip_frac": mean(dual),
        "approx_kl": mean(torch.expm1(log_ratio) - log_ratio),
    }
    if reduction == "seq-mean":
        metrics["sequences"] = units
    return value, {name: metric.detach() for name, metric in metrics.items()}


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, rounded once to x's dtype.

    x [..., D], weight [D]. Computed in float64 where x is float64, else in float32, like the layers
    below.
    """
    return _normed(_wide(x), weight, eps).to(x.dtype)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """(x + residual, `rms_norm` of it), the sum rounded to x's dtype before it is normalised."""
    total = x + residual
    return total, rms_norm(total, weight, eps=eps)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(first half) * second half of the last dimension, [..., 2F] to [..., F]."""
    gate, up = _wide(gate_up).chunk(2, -1)
    return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)


def rotary_qkv(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    kv_heads: int,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [T, H, K], keys and values [T, G, K] of qkv [T, (H + 2G) K].

    Queries and keys normalised by their weight [K], where there is one, then rotated:
    x * cos + rotate_half(x) * sin with cos, sin [T, K].
    """
    size = cos.shape[1]
    rows = qkv.reshape(len(qkv), heads + 2 * kv_heads, size)
    q, k, v = rows.split([heads, kv_heads, kv_heads], 1)

    def rotated(x: Tensor, weight: Tensor | None) -> Tensor:
        x = _wide(x)
        if weight is not None:
            x = _normed(x, weight, eps)
        first, second = x.chunk(2, -1)
        half_turned = torch.cat([-second, first], -1)
        return (x * _wide(cos)[:, None] + half_turned * _wide(sin)[:, None]).to(qkv.dtype)

    return rotated(q, q_weight), rotated(k, k_weight), v


def copy_pages(memory: Tensor, source: Tensor, target: Tensor) -> None:
    """memory[:, target] = memory[:, source], in place: memory [N, P, E], pages [C]."""
    for read, written in zip(source.tolist(), target.tolist(), strict=True):
        memory[:, written] = memory[:, read]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight
