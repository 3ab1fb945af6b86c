"""Sampling with keyed noise: a token is a function of the logits, the row's key and the position.

The noise is one uniform number per token, from a counter-based generator, so it depends neither on
the batch nor on the order of the rows. The token is found by inverting the cumulative distribution.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How completions of a request are drawn."""

    max_new_tokens: int
    temperature: float = 1.0
    """0 takes the most likely token; log-probs are then those at temperature 1."""
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be finite and not negative: {self.temperature}")
        if not (0 < self.top_p <= 1 and self.top_k >= 0 and 0 <= self.min_p < 1):
            raise ValueError(f"top_p in (0, 1], top_k >= 0, min_p in [0, 1): {self}")


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Returns the logical right shift of int64 (torch has the arithmetic one only)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def uniforms(keys_R: Tensor, positions_R: Tensor) -> Tensor:
    """Returns float64 numbers in (0, 1), a function of (key, position) alone.

    SplitMix64: keys and positions are int64 and taken as bit patterns.
    """
    z = keys_R + (positions_R + 1) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
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

    @classmethod
    def of(cls, sampling: list[Sampling], keys: list[int], device: torch.device) -> "RowSampling":
        """Returns the parameters of rows given one by one; keys are unsigned 64-bit numbers."""
        return cls(
            keys=torch.tensor([_signed(k) for k in keys], dtype=torch.int64, device=device),
            temperature=torch.tensor([s.temperature for s in sampling], device=device),
            top_p=torch.tensor([s.top_p for s in sampling], device=device),
            top_k=torch.tensor([s.top_k for s in sampling], dtype=torch.int64, device=device),
            min_p=torch.tensor([s.min_p for s in sampling], device=device),
        )

    def rows(self, rows: Tensor) -> "RowSampling":
        """Returns the parameters of the given rows."""
        return RowSampling(*(getattr(self, name)[rows] for name in self.__slots__))

    def extended(self, more: "RowSampling") -> "RowSampling":
        """Returns the parameters of these rows and then of `more`."""
        names = self.__slots__
        return RowSampling(*(torch.cat([getattr(self, n), getattr(more, n)]) for n in names))


def sample(logits_RV: Tensor, positions_R: Tensor, rows: RowSampling) -> tuple[Tensor, Tensor]:
    """Returns (token ids [R] int64, log-probs [R] fp32) of one drawn token per row.

    The log-prob is the natural one under the row's temperature, before any truncation; at
    temperature 0 the most likely token is taken and its log-prob is that at temperature 1.
    """
    greedy_R = rows.temperature == 0
    scale_R = torch.where(greedy_R, torch.ones_like(rows.temperature), rows.temperature)
    logprobs_RV = torch.log_softmax(logits_RV.float() / scale_R[:, None], dim=-1)
    probs_RV = logprobs_RV.to(torch.float64).exp()
    if bool(((rows.top_p < 1) | (rows.top_k > 0) | (rows.min_p > 0)).any()):
        probs_RV = _truncated(probs_RV, rows)
    cumulative_RV = probs_RV.cumsum(dim=-1)
    target_R = uniforms(rows.keys, positions_R) * cumulative_RV[:, -1]
    drawn_R = torch.searchsorted(cumulative_RV, target_R[:, None]).squeeze(1)
    # A target below the total can still meet the total's last step on a tail of zeros.
    drawn_R = drawn_R.clamp(max=logits_RV.shape[1] - 1)
    ids_R = torch.where(greedy_R, logprobs_RV.argmax(dim=-1), drawn_R)
    return ids_R, logprobs_RV.gather(1, ids_R[:, None]).squeeze(1)


def _truncated(probs_RV: Tensor, rows: RowSampling) -> Tensor:
    """Returns the probabilities with everything outside top-k, top-p and min-p set to 0.

    top-p keeps the smallest set of most likely tokens whose mass reaches p; ties at the edge fall
    to the lower token id. The most likely token always stays.
    """
    sorted_RV, order_RV = probs_RV.sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(probs_RV.shape[1], device=probs_RV.device)
    top_k_R = torch.where(rows.top_k > 0, rows.top_k, probs_RV.shape[1])
    mass_before_RV = sorted_RV.cumsum(dim=-1) - sorted_RV
    kept_RV = (
        (rank_V < top_k_R[:, None])
        & ((mass_before_RV < rows.top_p[:, None]) | (rows.top_p >= 1)[:, None])
        & (sorted_RV >= rows.min_p[:, None] * sorted_RV[:, :1])
    )
    kept_RV[:, 0] = True
    return torch.zeros_like(probs_RV).scatter(1, order_RV, sorted_RV * kept_RV)
