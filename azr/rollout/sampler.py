"""Sampling with keyed noise: a token is a function of the logits, the row's key and the position.

The noise is one uniform number per token, from a counter-based generator, so it depends neither on
the batch nor on the order of the rows. The token is found by inverting the cumulative distribution.
On CUDA the fused kernel of rlvr_kernels draws instead: Gumbel noise, one pass over the logits.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from operator import index
from typing import SupportsIndex

import numpy as np
import torch
from rlvr_kernels.sample import SampledTokens, sample_tokens, signed
from torch import Tensor

from azr.config import TEMPERATURE_MAX, TEMPERATURE_MIN, TEMPERATURES


def integers(name: str, values: Iterable[SupportsIndex]) -> tuple[int, ...]:
    """Returns `values` as plain integers, NumPy's among them. Raises TypeError for others."""
    try:
        return tuple(map(index, values))
    except TypeError as error:
        raise TypeError(f"{name}: expected integers, got {values!r:.80}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How completions of a request are drawn."""

    max_new_tokens: int
    temperature: float = 1.0
    """0 takes the most likely token; log-probs are then those at temperature 1. Else 1e-5 to 1e5,
    so that a logit over it is a number in fp32."""
    top_p: float = 1.0
    """Share, of what top-k leaves, that the most likely tokens must reach."""
    top_k: int = 0
    min_p: float = 0.0
    stop_token_ids: tuple[int, ...] = ()
    """A single one, or any iterable, is taken for such a tuple."""
    stop_strings: tuple[str, ...] = ()
    """The same."""

    @property
    def is_truncated(self) -> bool:
        """Whether some tokens cannot be drawn."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0

    def __post_init__(self) -> None:
        ids, strings = self.stop_token_ids, self.stop_strings
        ids = [ids] if isinstance(ids, int | np.integer) else ids
        object.__setattr__(self, "stop_token_ids", integers("stop_token_ids", ids))
        strings = (strings,) if isinstance(strings, str) else tuple(strings)
        object.__setattr__(self, "stop_strings", strings)
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.temperature != 0 and not TEMPERATURE_MIN <= self.temperature <= TEMPERATURE_MAX:
            raise ValueError(
                f"temperature must be 0, which takes the most likely token, or {TEMPERATURES}, "
                f"got {self.temperature}"
            )
        if "" in self.stop_strings:
            raise ValueError("stop_strings: an empty string would end every completion")
        if not (0 < self.top_p <= 1 and self.top_k >= 0 and 0 <= self.min_p < 1):
            raise ValueError(f"top_p in (0, 1], top_k >= 0, min_p in [0, 1): {self}")


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Returns the logical right shift of int64 (torch has the arithmetic one only)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def uniforms(keys_R: Tensor, positions_R: Tensor) -> Tensor:
    """Returns float64 numbers in (0, 1), a function of (key, position) alone.

    SplitMix64: keys and positions are int64 and taken as bit patterns.
    """
    z = keys_R + (positions_R + 1) * signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift_right(z, 30)) * signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * signed(0x94D049BB133111EB)
    z = z ^ _shift_right(z, 31)
    # 52 bits: with 53 the half would round the largest number up to 1.
    return (_shift_right(z, 12).to(torch.float64) + 0.5) * 2.0**-52


@dataclass(slots=True)
class RowSampling:
    """The sampling parameters of R rows, as tensors [R]."""

    keys: Tensor
    temperature: Tensor
    top_p: Tensor
    top_k: Tensor
    min_p: Tensor


@dataclass(frozen=True, slots=True)
class Mix:
    """What a batch of rows asks for: known on the host, so that no step has to ask the device.

    It only leaves out work that would change nothing: a row's token does not depend on it.
    """

    has_greedy: bool = True
    """Some row takes its most likely token."""
    has_drawn: bool = True
    """Some row does not."""
    is_scaled: bool = True
    """Some row has another temperature than 1."""
    is_truncated: bool = True
    """Some row has top-k, top-p or min-p."""

    def on_cuda(self) -> "Mix":
        """Returns the mix that a step on CUDA depends on: one for all that run the same kernels.

        Without truncation the fused kernel draws, greedy rows and any temperature alike.
        """
        return self if self.is_truncated else Mix(is_truncated=False)

    @classmethod
    def of(cls, sampling: Iterable[Sampling]) -> "Mix":
        """Returns the mix of rows with these parameters."""
        kinds = set(sampling)
        return cls(
            has_greedy=any(s.temperature == 0 for s in kinds),
            has_drawn=any(s.temperature > 0 for s in kinds),
            is_scaled=any(s.temperature not in (0, 1) for s in kinds),
            is_truncated=any(s.is_truncated for s in kinds),
        )


def draw(logits_RV: Tensor, positions_R: Tensor, rows: RowSampling, mix: Mix) -> SampledTokens:
    """Returns one drawn token per row, and its log-prob before any truncation.

    At temperature 0 the most likely token is taken and its log-prob is that at temperature 1. On
    CUDA a row without truncation is drawn by the fused kernel, from noise of its own kind: there
    the same key gives other tokens than on the CPU, by the same distribution.
    """
    if not logits_RV.is_cuda:
        return _draw_by_inversion(logits_RV, positions_R, rows, mix)
    fused = sample_tokens(logits_RV, rows.keys, positions_R, rows.temperature)
    if not mix.is_truncated:
        return fused
    inverted = _draw_by_inversion(logits_RV, positions_R, rows, mix)
    # A row's token may not depend on the rows beside it: each goes its own way.
    plain_R = (rows.top_p >= 1) & (rows.top_k == 0) & (rows.min_p == 0)
    return SampledTokens(
        torch.where(plain_R, fused.ids, inverted.ids),
        torch.where(plain_R, fused.logprobs, inverted.logprobs),
    )


def _draw_by_inversion(
    logits_RV: Tensor, positions_R: Tensor, rows: RowSampling, mix: Mix
) -> SampledTokens:
    """Draws by inverting the cumulative distribution, with one uniform number a row."""
    logits_RV = logits_RV.float()
    greedy_R = rows.temperature == 0
    # Of the logits: log-probs of near ties can round to one number.
    greedy_ids_R = logits_RV.argmax(dim=-1) if mix.has_greedy else None
    if mix.is_scaled:
        logits_RV = logits_RV / torch.where(greedy_R, 1.0, rows.temperature)[:, None]
    logprobs_RV = torch.log_softmax(logits_RV, dim=-1)
    if greedy_ids_R is not None and not mix.has_drawn:
        ids_R = greedy_ids_R
    else:
        probs_RV = logprobs_RV.exp()
        if mix.is_truncated:
            probs_RV = _truncated(probs_RV.to(torch.float64), rows)
        cumulative_RV = probs_RV.cumsum(dim=-1, dtype=torch.float64)
        target_R = uniforms(rows.keys, positions_R) * cumulative_RV[:, -1]
        ids_R = torch.searchsorted(cumulative_RV, target_R[:, None]).squeeze(1)
        # A target below the total can still meet the total's last step on a tail of zeros.
        ids_R = ids_R.clamp(max=logits_RV.shape[1] - 1)
        if greedy_ids_R is not None:
            ids_R = torch.where(greedy_R, greedy_ids_R, ids_R)
    return SampledTokens(ids_R, logprobs_RV.gather(1, ids_R[:, None]).squeeze(1))


def _truncated(probs_RV: Tensor, rows: RowSampling) -> Tensor:
    """Returns the probabilities with everything outside top-k, top-p and min-p set to 0.

    top-p keeps the smallest set of most likely tokens that has a share p of what top-k left, as in
    transformers and vLLM; ties at the edge fall to the lower token id. The most likely token always
    stays.
    """
    sorted_RV, order_RV = probs_RV.sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(probs_RV.shape[1], device=probs_RV.device)
    top_k_R = torch.where(rows.top_k > 0, rows.top_k, probs_RV.shape[1])
    sorted_RV = sorted_RV * (rank_V < top_k_R[:, None])
    mass_RV = sorted_RV.cumsum(dim=-1)
    share_R1 = rows.top_p[:, None] * mass_RV[:, -1:]
    kept_RV = ((mass_RV - sorted_RV < share_R1) | (rows.top_p >= 1)[:, None]) & (
        sorted_RV >= rows.min_p[:, None] * sorted_RV[:, :1]
    )
    kept_RV[:, 0] = True
    return torch.zeros_like(probs_RV).scatter(1, order_RV, sorted_RV * kept_RV)
