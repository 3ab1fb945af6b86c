"""The records that the public functions return."""

from typing import NamedTuple

from torch import Tensor


class TokenLogprobs(NamedTuple):
    """Log-prob of each chosen token, and where asked for the entropy in nats and the log-sum-exp.

    Each in the shape of the ids, float32 (float64 only from `reference`); None where not asked.
    """

    logprobs: Tensor
    entropy: Tensor | None = None
    lse: Tensor | None = None
