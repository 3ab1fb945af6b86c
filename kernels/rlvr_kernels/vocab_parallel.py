"""Log-probs over a vocabulary that is split between ranks: four numbers a token travel.

    mine  = linear_token_logprob_partials(hidden, weight_shard, ids, vocab_start=..., n_vocab=...)
    parts = [torch.empty_like(mine) for _ in range(world)]
    torch.distributed.all_gather(parts, mine.detach())
    parts[rank] = mine                       # the gradient flows through this rank's own shard
    found = combine_partials(torch.stack(parts))

Every rank computes the same loss from `found`; the gradient of its weight shard is then final, and
that of `hidden` is the sum over ranks of what each has, as in any tensor-parallel layer.
"""

import torch
from torch import Tensor

from .backend import resolve
from .checks import check_ids_in_range
from .linear_logprob import (
    Rows,
    backward_of,
    check_linear,
    kept_rows,
    softmax_input,
    spread,
    take,
    unit_stride,
)
from .logprob import valid_rows, wants_range_check
from .records import TokenLogprobs
from .scalars import check_positive_numbers, packed, unpacked

NAMES = ("top", "rest", "tilt", "target")
_NO_TOP = -0.6931471805599453e30  # of a shard with no column but the target


def linear_token_logprob_partials(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    *,
    vocab_start: int,
    n_vocab: int,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    return_entropy: bool = True,
    max_buffer_mb: float = 256,
    grad_weight_dtype: torch.dtype | None = None,
    validate: str = "async",
    backend: str = "auto",
) -> Tensor:
    """Return [4, ...] float32 sums of this shard's columns: top, rest, tilt, target.

    weight [V_local, H] holds columns vocab_start to vocab_start + V_local of the n_vocab columns,
    bias [V_local] likewise; ids are of the whole vocabulary. Other arguments as
    `linear_token_logprobs`; without `return_entropy` the third row is 0 and needs not travel.

    With z the softmax inputs of the shard's columns other than the target: top = max z, rest =
    sum exp(z - top), tilt = sum exp(z - top) (z - top), target = z of the target, 0 where it is in
    another shard. Differentiable but for `top`, whose effect cancels in `combine_partials`. All 0
    where masked; `target` is NaN for an id outside the whole vocabulary.
    """
    check_linear(hidden, weight, bias, ids, mask)
    check_positive_numbers(temperature=temperature, softcap=softcap, max_buffer_mb=max_buffer_mb)
    if not 0 <= vocab_start <= vocab_start + weight.shape[0] <= n_vocab:
        raise ValueError(
            f"vocab_start: expected a shard of {weight.shape[0]} columns inside {n_vocab}; "
            f"got {vocab_start}"
        )
    valid = valid_rows(ids, mask, ignore_index)
    if wants_range_check(validate, ids.device):
        check_ids_in_range(ids, valid, n_vocab)
    rows = Rows.of(ids, valid, are_dropped=mask is not None)
    sums = linear_partials(
        hidden, weight, bias, rows.ids.long() - vocab_start, rows.valid,
        packed([temperature, softcap, max_buffer_mb]), return_entropy, grad_weight_dtype,
        resolve(backend, hidden.device),
    )  # fmt: skip
    unknown = valid & ((ids < 0) | (ids >= n_vocab))
    target = torch.where(unknown, float("nan"), sums[3])
    return rows.blanked(torch.cat([sums[:3], target[None]]))


def combine_partials(partials: Tensor) -> TokenLogprobs:
    """Return log-probs, entropy and log-sum-exp, each [...], from the shards' sums [R, 4, ...].

    Shards in any order; differentiable. Entropy is meaningless where the partials were made without
    it. Masked rows give 0.
    """
    top = partials[:, 0].detach()
    peak_of_others = top.amax(0)
    gap = top - peak_of_others
    shrink = gap.exp()
    rest = (partials[:, 1] * shrink).sum(0)
    tilt = ((partials[:, 2] + partials[:, 1] * gap) * shrink).sum(0)
    target = partials[:, 3].sum(0)

    peak = torch.maximum(peak_of_others, target.detach())
    shrink = (peak_of_others - peak).exp()
    others = rest * shrink
    e_target = (target - peak).exp()
    total = others + e_target
    # Where the target leads, e_target is exactly 1, and log1p keeps the digits of the others.
    leads = target >= peak_of_others
    log_total = torch.where(leads, torch.log1p(others + (e_target - 1)), total.log())
    lean = (tilt + rest * (peak_of_others - peak)) * shrink + e_target * (target - peak)
    return TokenLogprobs(
        target - peak - log_total, log_total - lean / total, (peak + log_total).detach()
    )


@torch.library.custom_op("rlvr_kernels::linear_partials", mutates_args=())
def linear_partials(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    valid: Tensor | None,
    numbers: Tensor,
    with_entropy: bool,
    grad_weight_dtype: torch.dtype | None,
    backend: str,
) -> Tensor:
    """[4, ...] sums over the rows of `weight`; ids count from its first and may lie outside."""
    temperature, softcap, max_buffer_mb = unpacked(numbers)
    check_positive_numbers(temperature=temperature, softcap=softcap, max_buffer_mb=max_buffer_mb)
    rows = kept_rows(valid)
    hidden_TD, ids_T = take(hidden, ids, rows)
    if backend == "triton":
        from . import linear_logprob_triton

        sums = linear_logprob_triton.forward_sums(
            hidden_TD, unit_stride(weight), bias, ids_T, temperature, softcap, with_entropy, False
        )
    else:
        sums = _sums_torch(
            hidden_TD, weight, bias, ids_T, temperature, softcap, with_entropy, max_buffer_mb
        )
    return torch.stack([spread(row, rows, ids) for row in sums])


@linear_partials.register_fake
def _(hidden, weight, bias, ids, *rest):
    return hidden.new_empty((4, *ids.shape), dtype=torch.float32)


def _save(ctx, inputs, output) -> None:
    *tensors, _, grad_weight_dtype, backend = inputs
    ctx.save_for_backward(*tensors, output[0])
    ctx.options = (grad_weight_dtype, backend)


def _gradient(ctx, grad):
    *inputs, top = ctx.saved_tensors
    _, g_rest, g_tilt, g_target = grad.reshape(4, -1)
    # d rest / d z = e, d tilt / d z = e (z - top + 1), with e = exp(z - top) and top held constant.
    coefficients = torch.stack([top.reshape(-1), g_rest + g_tilt, g_tilt, g_target])
    return backward_of(ctx, inputs, coefficients)


linear_partials.register_autograd(_gradient, setup_context=_save)


def _sums_torch(
    hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, ids_T: Tensor,
    temperature: float, softcap: float | None, with_entropy: bool, max_buffer_mb: float,
) -> Tensor:  # fmt: skip
    n_rows, n_vocab = hidden_TD.shape[0], weight_VD.shape[0]
    sums = hidden_TD.new_zeros((4, n_rows), dtype=torch.float32)
    step = max(1, int(max_buffer_mb * (1 << 20)) // (12 * n_vocab))
    for first in range(0, n_rows, step):
        part = slice(first, first + step)
        z = softmax_input(hidden_TD[part], weight_VD, bias_V, temperature, softcap)
        here = (ids_T[part] >= 0) & (ids_T[part] < n_vocab)
        column = ids_T[part].clamp(0, n_vocab - 1)[:, None]
        chosen = z.gather(1, column)
        sums[3, part] = torch.where(here, chosen[:, 0], 0)
        z.scatter_(1, column, torch.where(here[:, None], -torch.inf, chosen))
        top = z.amax(1).clamp(min=_NO_TOP)
        gap = z.sub_(top[:, None])
        e = gap.exp()
        sums[0, part], sums[1, part] = top, e.sum(1)
        if with_entropy:
            sums[2, part] = (e * gap.clamp_(min=-200)).sum(1)
    return sums
