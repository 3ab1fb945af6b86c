"""Samples as one stretch of tokens without padding, in which a shared beginning stands once.

Samples of one prompt share it, and often the first tokens of their responses too; the hidden state
of a token depends on nothing after it, so every distinct beginning has to be computed only once.
The distinct tokens form a tree; a row is a way from its root to a leaf. Gradients of what rows
share add up in attention's gather and in that of the log-probs, so the update is exactly that of
the samples one by one.

Shapes: n samples, L tokens of the longest response, N tokens of the tree, M distinct pairs of a
token and its successor in a response.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from azr.model.attention import PackedRows
from azr.model.transfer import Parcel


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """A completion to train on."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    rollout_logprobs: np.ndarray
    """float32 [len(response_ids)], of the sampling policy at the sampling temperature."""
    advantage: float


@dataclass(frozen=True, slots=True)
class Packed:
    """n samples: the tree of their tokens, and where their responses stand in it."""

    ids: Tensor
    """int64 [1, N]"""
    positions: Tensor
    """int64 [1, N]"""
    rows: PackedRows
    token_of_pair: Tensor
    """int64 [M]: the token after which a response token comes."""
    target_of_pair: Tensor
    """int64 [M]: that response token."""
    pair_of_sample: Tensor
    """int64 [n, L]: which of the M pairs stands at each place of a sample's response."""
    mask: Tensor
    """bool [n, L]"""
    rollout_logprobs: Tensor
    advantages: Tensor


@dataclass(frozen=True, slots=True)
class TokenTree:
    """The distinct beginnings of some sequences."""

    ids: np.ndarray
    positions: np.ndarray
    paths: list[np.ndarray]
    """For each sequence the tokens of the tree that it goes through."""
    rows: list[np.ndarray]
    """The paths that are no beginning of another: every token is on one of them."""


def token_tree(sequences: Sequence[tuple[int, ...]]) -> TokenTree:
    """Returns the tree of sequences, none of them empty."""
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    paths: list[np.ndarray] = [np.empty(0, np.int64)] * len(sequences)
    ids, positions, rows = [], [], []
    count = 0
    before = path = np.empty(0, np.int64)
    # In order, a sequence shares with those before it exactly what it shares with the last one.
    for i in order:
        tokens = np.array(sequences[i], dtype=np.int64)
        most = min(len(tokens), len(before))
        differs = np.flatnonzero(tokens[:most] != before[:most])
        shared = int(differs[0]) if len(differs) else most
        if rows and shared == len(before):
            rows.pop()  # the last one is the beginning of this one
        fresh = len(tokens) - shared
        path = np.concatenate([path[:shared], np.arange(count, count + fresh)])
        ids.append(tokens[shared:])
        positions.append(np.arange(shared, len(tokens)))
        paths[i] = path
        rows.append(path)
        count += fresh
        before = tokens
    return TokenTree(np.concatenate(ids), np.concatenate(positions), paths, rows)


def pack(samples: Sequence[Experience], device: torch.device) -> Packed:
    """Returns the samples packed.

    The last token of a response is predicted but predicts nothing, so it is not in the tree.
    """
    sequences = [s.prompt_ids + s.response_ids[:-1] for s in samples]
    tree = token_tree(sequences)
    lengths = np.array([len(s.response_ids) for s in samples])
    before = np.concatenate(
        [path[len(s.prompt_ids) - 1 :] for path, s in zip(tree.paths, samples, strict=True)]
    )
    target = np.concatenate([np.array(s.response_ids, dtype=np.int64) for s in samples])
    # One number a pair: targets are below 2^31, tokens of a tree below 2^32.
    pairs, pair_of_token = np.unique(before << 31 | target, return_inverse=True)
    mask = np.arange(int(lengths.max())) < lengths[:, None]
    pair_of_sample = np.zeros(mask.shape, dtype=np.int64)
    pair_of_sample[mask] = pair_of_token.reshape(-1)
    rollout = np.zeros(mask.shape, dtype=np.float32)
    rollout[mask] = np.concatenate([s.rollout_logprobs for s in samples])

    parcel = Parcel(device)

    def tensor(values: np.ndarray | list, dtype: torch.dtype | None = None) -> Tensor:
        return parcel.put(np.asarray(values), dtype)

    packed = Packed(
        ids=tensor(tree.ids)[None],
        positions=tensor(tree.positions)[None],
        rows=_packed_rows(tree, parcel),
        token_of_pair=tensor(pairs >> 31),
        target_of_pair=tensor(pairs & (1 << 31) - 1),
        pair_of_sample=tensor(pair_of_sample),
        mask=tensor(mask),
        rollout_logprobs=tensor(rollout),
        advantages=tensor([s.advantage for s in samples], torch.float32),
    )
    parcel.send()
    return packed


def _packed_rows(tree: TokenTree, parcel: Parcel) -> PackedRows:
    lengths = [len(row) for row in tree.rows]
    token_of_full = np.concatenate(tree.rows)
    if len(token_of_full) == len(tree.ids) and (np.diff(token_of_full) == 1).all():
        return PackedRows.of(lengths, parcel)
    full_of_token = np.empty(len(tree.ids), dtype=np.int64)
    full_of_token[token_of_full] = np.arange(len(token_of_full))
    return PackedRows.of(lengths, parcel, token_of_full, full_of_token)
