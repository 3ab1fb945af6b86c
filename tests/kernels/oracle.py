"""Independent definitions in float64, for tests: no function of the package is called here."""

import math

import torch


def logprob_entropy_lse(logits, ids, temperature=1.0):
    """log p, entropy and log-sum-exp from exponentials and sums alone; differentiable."""
    z = logits.double() / temperature
    peak = z.detach().amax(-1, keepdim=True)
    e = torch.exp(z - peak)
    total = e.sum(-1)
    lse = peak[..., 0] + torch.log(total)
    chosen = torch.take_along_dim(z, ids.long()[..., None], -1)[..., 0]
    expected_gap = (e * (z - peak)).sum(-1) / total
    return chosen - lse, torch.log(total) - expected_gap, lse


def softmax_of_a_gemm(hidden, weight, ids):
    """(log-probs, entropies, lse), float64, of logits that one product left in float32.

    On CUDA by cuBLAS from 16-bit inputs as they are; elsewhere `out_dtype` has no kernel, and the
    product is of the same values in float32.
    """
    if hidden.is_cuda and hidden.dtype != torch.float32:
        logits = torch.mm(hidden, weight.T, out_dtype=torch.float32)
    else:
        logits = hidden.float() @ weight.float().T
    return logprob_entropy_lse(logits, ids)


def tensor_core_error(hidden, weight):
    """How far float32 sums of 16-bit products on tensor cores may be from exact ones.

    They are cut, not rounded, to 24 bits, once per 16 products (seen on an H200: 2e-6 of a logit
    of 2048 products, towards 0). cuBLAS avoids a part of it by splitting sums where it has few
    rows. 0 elsewhere than on CUDA.
    """
    if not hidden.is_cuda or hidden.dtype == torch.float32:
        return 0.0
    largest = (hidden.double() @ weight.double().T).abs().max().item()
    return hidden.shape[-1] / 16 * 2**-24 * largest


def policy_loss(case: dict) -> tuple[float, list[float], list[float], dict[str, float]]:
    """(loss, gradient to log-probs, gradient to entropies, metrics) of one token at a time.

    `case` holds plain Python lists of sequences and numbers under the names of the arguments.
    """
    rows = range(len(case["logprobs"]))
    cap = case["log_ratio_clamp"]
    low, high, dual = case["clip_low"], case["clip_high"], case["dual_clip"]
    lengths = [sum(case["mask"][r]) for r in rows]
    tokens = sum(lengths)
    if case["reduction"] == "seq-mean":
        units = sum(length > 0 for length in lengths)
    else:
        units = tokens
    divisor = 1.0 if case["reduction"] == "sum" else case["denom"] or max(units, 1)

    loss, d_logp, d_entropy, seen = 0.0, [], [], []
    for r in rows:
        share = 1 / max(lengths[r], 1) if case["reduction"] == "seq-mean" else 1.0
        for c, on in enumerate(case["mask"][r]):
            if not on:
                d_logp.append(0.0)
                d_entropy.append(0.0)
                continue
            x, old, adv = (case[k][r][c] for k in ("logprobs", "old_logprobs", "advantages"))
            raw = x - old
            ratio = math.exp(min(max(raw, -cap), cap))
            slope = ratio * adv if abs(raw) <= cap else 0.0
            value, is_low, is_high, is_dual = ratio * adv, False, False, False
            if adv > 0 and ratio > 1 + high:
                value, slope, is_high = (1 + high) * adv, 0.0, True
            if adv < 0 and ratio < 1 - low:
                value, slope, is_low = (1 - low) * adv, 0.0, True
            if dual is not None and adv < 0 and value < dual * adv:
                value, slope, is_dual = dual * adv, 0.0, True
            weight, importance, drift = 1.0, None, None
            if case["rollout_logprobs"] is not None:
                drift = min(max(old - case["rollout_logprobs"][r][c], -cap), cap)
                importance = math.exp(drift)
                if case["tis_cap"] is not None:
                    weight = min(importance, case["tis_cap"])
            token = -weight * value
            d_token = -weight * slope
            pg = token
            k3 = penalty = None
            if case["ref_logprobs"] is not None:
                d = case["ref_logprobs"][r][c] - x
                near = min(max(d, -cap), cap)
                k3 = math.expm1(near) - near
                penalty, d_penalty = {
                    None: (k3, 0.0),
                    "k1": (-d, 1.0),
                    "k2": (d * d / 2, -d),
                    "k3": (k3, -math.expm1(near) if abs(d) <= cap else 0.0),
                }[case["kl"]]
                if case["kl"] is not None:
                    token += case["kl_coef"] * penalty
                    d_token += case["kl_coef"] * d_penalty
            nats = None
            if case["entropy"] is not None:
                nats = case["entropy"][r][c]
                token -= case["entropy_coef"] * nats
            loss += share * token / divisor
            d_logp.append(share * d_token / divisor)
            d_entropy.append(-share * case["entropy_coef"] / divisor)
            applied = weight if case["tis_cap"] is not None else importance
            over = case["tis_cap"] is not None and (importance or 0) > case["tis_cap"]
            seen.append(
                dict(
                    pg_loss=pg, ratio=ratio, clip_frac_low=is_low, clip_frac_high=is_high,
                    clip_frac=is_low or is_high, dual_clip_frac=is_dual,
                    approx_kl=math.expm1(min(max(raw, -cap), cap)) - min(max(raw, -cap), cap),
                    kl=k3, kl_penalty=penalty, entropy=nats, tis_mean=applied,
                    tis_capped_frac=over, importance=importance,
                    mismatch_kl=None if drift is None else math.expm1(drift) - drift,
                )
            )  # fmt: skip

    def mean(name):
        return math.fsum(float(token[name]) for token in seen) / max(tokens, 1)

    metrics = {"loss": loss, "tokens": tokens, "ratio_mean": mean("ratio")}
    metrics["ratio_max"] = max((token["ratio"] for token in seen), default=1.0)
    metrics["ratio_min"] = min((token["ratio"] for token in seen), default=1.0)
    names = ["pg_loss", "clip_frac", "clip_frac_low", "clip_frac_high", "dual_clip_frac"]
    names.append("approx_kl")
    if case["ref_logprobs"] is not None:
        names += ["kl", "kl_penalty"]
    if case["entropy"] is not None:
        names.append("entropy")
    if case["rollout_logprobs"] is not None:
        names += ["tis_mean", "tis_capped_frac", "mismatch_kl"]
        metrics["tis_max"] = max((token["importance"] for token in seen), default=1.0)
    if case["reduction"] == "seq-mean":
        metrics["sequences"] = units
    return loss, d_logp, d_entropy, metrics | {name: mean(name) for name in names}
