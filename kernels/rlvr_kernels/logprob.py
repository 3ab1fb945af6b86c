"""Log-probs of chosen tokens from logits."""

from torch import Tensor

from . import reference
from .backend import BACKENDS
from .checks import (
    FLOATS,
    INTS,
    check_choice,
    check_device,
    check_dtype,
    check_ids_in_range,
    check_positive,
    check_shape,
)
from .records import TokenLogprobs


def token_logprobs(
    logits: Tensor,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    return_entropy: bool = False,
    return_lse: bool = False,
    inplace_grad: bool = False,
    validate: str = "async",
    backend: str = "auto",
) -> TokenLogprobs:
    """Return log softmax(logits / temperature)[ids] in float32."""
    check_dtype("logits", logits, FLOATS)
    check_dtype("ids", ids, INTS)
    if logits.dim() < 1 or logits.shape[-1] == 0:
        raise ValueError(f"logits: expected shape [..., V] with V >= 1; got {list(logits.shape)}")
    check_shape("ids", ids, tuple(logits.shape[:-1]), "one id per row of logits")
    check_device("ids", ids, logits.device, "logits")
    check_positive("temperature", temperature)
    check_choice("validate", validate, ("async", "sync"))
    check_choice("backend", backend, BACKENDS)
    valid = ids != ignore_index
    if mask is not None:
        valid = valid & mask
    check_ids_in_range(ids, valid, logits.shape[-1])
    return reference.token_logprobs(
        logits,
        ids,
        temperature=temperature,
        mask=mask,
        ignore_index=ignore_index,
        return_entropy=return_entropy,
        return_lse=return_lse,
    )
