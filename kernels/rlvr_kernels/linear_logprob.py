"""Log-probs of chosen tokens from hidden states and the lm_head weight."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .logprob import token_logprobs
from .records import TokenLogprobs


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
    max_buffer_mb: int = 256,
    grad_weight_dtype: torch.dtype | None = None,
    validate: str = "async",
    backend: str = "auto",
) -> TokenLogprobs:
    """Return log softmax(softcap(hidden @ weight.T + bias) / temperature)[ids] in float32."""
    valid = ids != ignore_index
    if mask is not None:
        valid = valid & mask
    rows = valid.reshape(-1).nonzero()[:, 0]
    kept = hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows)
    logits = F.linear(kept.float(), weight.float(), None if bias is None else bias.float())
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    out = token_logprobs(
        logits,
        ids.reshape(-1)[rows],
        temperature=temperature,
        return_entropy=return_entropy,
        return_lse=return_lse,
    )

    def scatter(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        full = x.new_zeros(ids.numel())
        return full.index_copy(0, rows, x).view(ids.shape)

    return TokenLogprobs(*map(scatter, out))
