"""Sampling a token a row with its log-prob, by Gumbel noise that is a pure function of a key."""

from typing import NamedTuple

import torch
from torch import Tensor

from .backend import resolve
from .checks import FLOATS, check_dtype, check_tensor

MASK_32 = 0xFFFFFFFF
GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as int64
MIX_A, MIX_B = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # SplitMix64's two multipliers


class SampledTokens(NamedTuple):
    """One token a row."""

    ids: Tensor
    """int64"""
    logprobs: Tensor
    """float32, under the row's temperature; at temperature 0 that at temperature 1."""


def sample_tokens(
    logits: Tensor, keys: Tensor, positions: Tensor, temperature: Tensor, *, backend: str = "auto"
) -> SampledTokens:
    """Return one token a row, drawn from softmax(logits / temperature), and its log-prob.

    logits       [R, V] float32, bfloat16 or float16, the last dimension contiguous; may hold -inf
    keys         [R] int64 bit patterns: a row's own stream of noise
    positions    [R] int64: the place in that stream
    temperature  [R] float32; 0 takes the largest logit
    backend      "auto", "torch" or "triton": see `rlvr_kernels.backend`

    The token maximises logit / temperature - log(E), E exponential noise that is a hash of (key,
    position, column): the same whatever other rows there are. One pass over the logits. Noise
    reaches down to 2^-33, so no token loses more than that of its probability. The two backends
    agree up to rounding of the logarithms.
    Raises TypeError for a dtype, ValueError for a shape or device.
    """
    check_dtype("logits", logits, FLOATS)
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits: expected shape [R, V] with V >= 1; got {list(logits.shape)}")
    for name, tensor, dtype in (
        ("keys", keys, torch.int64),
        ("positions", positions, torch.int64),
        ("temperature", temperature, torch.float32),
    ):
        why = "one entry per row of logits"
        check_tensor(name, tensor, (dtype,), (len(logits),), why, logits.device, "logits")
    if resolve(backend, logits.device) == "triton":
        from . import sample_triton

        return SampledTokens(*sample_triton.sample(logits, keys, positions, temperature))
    return _sample(logits, keys, positions, temperature)


def _sample(logits: Tensor, keys: Tensor, positions: Tensor, temperature: Tensor) -> SampledTokens:
    is_greedy = temperature == 0
    z_RV = logits.float() / torch.where(is_greedy, 1.0, temperature)[:, None]
    u_RV = uniform_noise(keys, positions, logits.shape[1])
    score_RV = z_RV - torch.log(-torch.log1p(-u_RV)).masked_fill(is_greedy[:, None], 0.0)
    ids_R = score_RV.argmax(1)
    logprobs_R = z_RV.gather(1, ids_R[:, None])[:, 0] - torch.logsumexp(z_RV, 1)
    return SampledTokens(ids_R, logprobs_R)


def uniform_noise(keys: Tensor, positions: Tensor, columns: int) -> Tensor:
    """Return float32 [R, columns] in (0, 1]: 32 hashed bits and a half, times 2^-32.

    The key and position give two 32-bit words by SplitMix64; a column is mixed with the first,
    then with the second (two rounds of a 32-bit finaliser).
    """
    low_R1, high_R1 = (word[:, None] for word in row_words(keys, positions))
    column = torch.arange(columns, device=keys.device)[None]
    bits_RV = mix_32(mix_32(column ^ low_R1) ^ high_R1)
    return (bits_RV.float() + 0.5) * 2.0**-32


def row_words(keys: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lower and upper 32 bits, as int64, of SplitMix64's output at a position."""
    z = keys + (positions + 1) * GOLDEN
    z = (z ^ _shift(z, 30)) * MIX_A
    z = (z ^ _shift(z, 27)) * MIX_B
    z = z ^ _shift(z, 31)
    return z & MASK_32, _shift(z, 32)


def signed(key: int) -> int:
    """The int64 of the same 64 bits."""
    return (key + 2**63) % 2**64 - 2**63


def mix_32(x: Tensor) -> Tensor:
    """Return 32 mixed bits of 32 bits, both as int64."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & MASK_32
    x = (x ^ (x >> 15)) * 0x846CA68B & MASK_32
    return x ^ (x >> 16)


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)
