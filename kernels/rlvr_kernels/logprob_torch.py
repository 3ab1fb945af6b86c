"""Plain torch path of the row op: analytic gradient, a few rows at a time to stay in cache.

Eager log_softmax and gather hold two float32 copies of the logits and read them back; here the only
tensor of that size is the gradient.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements of a chunk: 2 MiB of float32 fits a CPU core's cache; a GPU wants launches that fill it.
_CHUNK_ELEMENTS = {"cpu": 1 << 19}
_CHUNK_ELEMENTS_ELSEWHERE = 1 << 26
# Of a row with no other column than the target: far below any logit, and finite.
_NO_TOP = -1.0e30


def chunk_rows(n_vocab: int, device: torch.device) -> int:
    return max(1, _CHUNK_ELEMENTS.get(device.type, _CHUNK_ELEMENTS_ELSEWHERE) // max(1, n_vocab))


def score(z_TV: Tensor, ids_T: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """(log-prob, entropy or None, log-sum-exp) of float32 z; overwrites z. Out of range: NaN.

    The target is kept out of the sum: log p = -softplus(lse of the others - z_y) keeps its digits
    where p is near 1.
    """
    n_vocab = z_TV.shape[1]
    in_range = (ids_T >= 0) & (ids_T < n_vocab)
    column_T1 = ids_T.clamp(0, n_vocab - 1)[:, None]
    chosen = torch.where(in_range, z_TV.gather(1, column_T1)[:, 0], float("nan"))
    z_TV.scatter_(1, column_T1, -torch.inf)
    # Relative to the largest other logit: sums that neither overflow nor cancel.
    top = z_TV.amax(1).clamp(min=_NO_TOP)
    gap = z_TV.sub_(top[:, None])
    e = gap.exp()
    rest = e.sum(1)
    others = top + rest.log()
    logp = -F.softplus(others - chosen, threshold=80)
    lse = torch.logaddexp(others, chosen)
    if not with_entropy:
        return logp, None, lse
    # -inf * 0 is NaN: a forbidden token counts nothing.
    tilt = e.mul_(gap.clamp_(min=-200)).sum(1)
    # sum p log p = share * (tilt + rest * (top - lse)) + p_y log p_y, share = exp(top - lse).
    gap_of_top = top - lse
    lean = torch.where(rest == 0, 0, gap_of_top.exp() * (tilt + rest * gap_of_top))
    p_chosen = logp.exp()
    return logp, -(lean + torch.where(p_chosen == 0, 0, p_chosen * logp)), lse


def forward(
    logits_TV: Tensor, ids_T: Tensor, valid_T: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    n_rows = ids_T.numel()
    results = logits_TV.new_zeros((3, n_rows), dtype=torch.float32)
    step = chunk_rows(logits_TV.shape[1], logits_TV.device)
    for first in range(0, n_rows, step):
        part = slice(first, first + step)
        z = _scaled(logits_TV[part], temperature)
        logp, entropy, lse = score(z, ids_T[part], with_entropy)
        valid = valid_T[part]
        results[0, part] = torch.where(valid, logp, 0)
        results[1, part] = torch.where(valid, lse, 0)
        if entropy is not None:
            results[2, part] = torch.where(valid, entropy, 0)
    # Clones: the outputs of a custom op may not share memory.
    entropy = results[2].clone() if with_entropy else results.new_empty(0)
    return results[0].clone(), entropy, results[1].clone()


def coefficients(
    logp: Tensor,
    entropy: Tensor,
    g_logp: Tensor | None,
    g_entropy: Tensor | None,
    g_lse: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(level, slope, at_target): the gradient to z is p (level + slope log p), at_target at y."""
    g = torch.zeros_like(logp) if g_logp is None else g_logp
    level, slope = -g, torch.zeros_like(g)
    if g_lse is not None:
        level = level + g_lse
    if g_entropy is not None:
        slope = -g_entropy
        level = level + slope * entropy
    p = logp.exp()
    lean = torch.where(p == 0, 0, slope * logp * p)
    # g (1 - p) by expm1: 1 - p has no digits left in float32 where p is near 1.
    return level, slope, (level + g) * p + lean - g * torch.expm1(logp)


def dlogits(
    z: Tensor,
    ref: Tensor,
    level: Tensor,
    slope: Tensor | None,
    at_target: Tensor,
    column: Tensor,
) -> Tensor:
    """Gradient to z [T, C], overwriting z, with p = exp(z - ref).

    `slope` None is 0: no gradient to an entropy.
    `column` [T] is the target's, outside [0, C) where the target is not among these columns.
    """
    gap = z.sub_(ref[:, None])
    if slope is None:
        dz = gap.exp_().mul_(level[:, None])
    else:
        p = gap.exp()
        dz = gap.clamp_(min=-200).mul_(slope[:, None]).add_(level[:, None]).mul_(p)
    here = (column >= 0) & (column < z.shape[1])
    spot = column.clamp(0, z.shape[1] - 1)[:, None]
    kept = torch.where(here[:, None], at_target[:, None], dz.gather(1, spot))
    return dz.scatter_(1, spot, kept)


def backward(
    logits_TV: Tensor,
    ids_T: Tensor,
    valid_T: Tensor,
    saved: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    temperature: float,
    out_TV: Tensor,
) -> None:
    """Write the gradient of the logits into `out_TV`, which may be `logits_TV` itself."""
    logp, entropy, lse = saved
    level, slope, at_target = coefficients(logp, entropy, *grads)
    has_entropy = grads[1] is not None
    step = chunk_rows(logits_TV.shape[1], logits_TV.device)
    for first in range(0, ids_T.numel(), step):
        part = slice(first, first + step)
        z = _scaled(logits_TV[part], temperature)
        lean = slope[part] if has_entropy else None
        dz = dlogits(z, lse[part], level[part], lean, at_target[part], ids_T[part])
        if temperature != 1:
            dz.mul_(1 / temperature)
        out_TV[part] = dz.masked_fill_(~valid_T[part, None], 0)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """A float32 copy of the logits, divided by the temperature: free to be overwritten."""
    z = logits.to(torch.float32, copy=True)
    return z if temperature == 1 else z.mul_(1 / temperature)
