"""What goes into the engine and what comes out."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from azr.errors import RunError
from azr.rollout.sampler import Sampling, integers


class RequestError(RunError, ValueError):
    """A request that can never be served, too long for the model or for the memory say: an error
    of the caller, which ends a run with its one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt and how many completions of it are wanted."""

    token_ids: tuple[int, ...]
    """Any iterable of integers is taken for such a tuple."""
    sampling: Sampling
    key: int
    """Unsigned 64-bit key of the sampling noise; sample i draws from (key, i)."""
    n: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_ids", integers("token_ids", self.token_ids))

    @property
    def most_tokens(self) -> int:
        """Tokens of the prompt and of the longest completion allowed."""
        return len(self.token_ids) + self.sampling.max_new_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One completion."""

    request: int
    """Index of its request in the call."""
    index: int
    """Which of the request's n samples."""
    token_ids: tuple[int, ...]
    """Sampled tokens, a final stop token included, or all of those of a stop string."""
    logprobs: np.ndarray
    """float32 [len(token_ids)], under the sampling temperature, before any truncation."""
    finish_reason: Literal["stop", "length"]

    @property
    def is_finished(self) -> bool:
        """Whether the model ended it itself."""
        return self.finish_reason == "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a call is."""

    done: int
    """Samples that have finished."""
    samples: int
    """Samples that were asked for."""
    tokens: int
    """Tokens drawn, those of unfinished samples included."""
    seconds: float
    roofline_frac: float | None
    """Share of the device's best that decoding reaches; None where that is not measured."""

    def __str__(self) -> str:
        text = f"rollout: {self.done} of {self.samples} samples, {self.tokens} tokens, "
        text += f"{self.tokens / max(self.seconds, 1e-9):.0f} tokens/s"
        if self.roofline_frac is not None:
            text += f", decoding at {self.roofline_frac:.0%} of the roofline"
        return text


@dataclass(slots=True, eq=False)
class Waiting:
    """A sample that has not ended: which of which request it is."""

    number: int
    index: int
    request: Request
