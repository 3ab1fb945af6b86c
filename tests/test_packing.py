"""Packed samples: a tree of distinct beginnings, and every response token found in it again."""

from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from azr.learner.packing import pack, token_tree

ids = st.integers(0, 3)  # few, so that beginnings are shared
sequences = st.lists(st.lists(ids, min_size=1, max_size=6).map(tuple), min_size=1, max_size=12)


@given(sequences)
def test_the_tree_holds_every_beginning_once(sequences):
    tree = token_tree(sequences)
    beginnings = {s[: end + 1] for s in sequences for end in range(len(s))}
    assert len(tree.ids) == len(tree.positions) == len(beginnings)
    for sequence, path in zip(sequences, tree.paths, strict=True):
        assert tuple(tree.ids[path]) == sequence
        assert tree.positions[path].tolist() == list(range(len(sequence)))
    of_token = {}
    for sequence, path in zip(sequences, tree.paths, strict=True):
        for end, token in enumerate(path.tolist()):
            assert of_token.setdefault(token, sequence[: end + 1]) == sequence[: end + 1]
    # The rows are the longest paths alone, and together go through all tokens.
    rows = [tuple(tree.ids[row]) for row in tree.rows]
    longest = {s for s in beginnings if not any(b[:-1] == s for b in beginnings)}
    assert len(rows) == len(set(rows)) and set(rows) == longest
    assert set(np.concatenate(tree.rows).tolist()) == set(range(len(tree.ids)))


samples = st.lists(
    st.builds(
        lambda prompt, response, advantage: SimpleNamespace(
            prompt_ids=tuple(prompt),
            response_ids=tuple(response),
            rollout_logprobs=-np.arange(1, len(response) + 1, dtype=np.float32),
            advantage=advantage,
        ),
        st.lists(ids, min_size=1, max_size=5),
        st.lists(ids, min_size=1, max_size=5),
        st.sampled_from([-1.0, 0.0, 2.0]),
    ),
    min_size=1,
    max_size=10,
)


@given(samples)
def test_every_response_token_is_found_after_its_own_beginning(samples):
    packed = pack(samples, torch.device("cpu"))
    rows = packed.rows
    tokens = packed.ids[0].tolist()
    full = range(sum(rows.lengths)) if rows.token_of_full is None else rows.token_of_full.tolist()
    starts = rows.starts.tolist()
    beginning = {}
    for a, b in zip(starts, starts[1:], strict=False):
        for end in range(a, b):
            beginning[full[end]] = [tokens[t] for t in full[a : end + 1]]
    assert packed.positions[0].tolist() == [len(beginning[t]) - 1 for t in range(len(tokens))]
    for i, sample in enumerate(samples):
        length = len(sample.response_ids)
        assert packed.mask[i].tolist() == [j < length for j in range(packed.mask.shape[1])]
        assert packed.rollout_logprobs[i, :length].tolist() == sample.rollout_logprobs.tolist()
        for j in range(length):
            pair = packed.pair_of_sample[i, j]
            before = [*sample.prompt_ids, *sample.response_ids[:j]]
            assert beginning[int(packed.token_of_pair[pair])] == before
            assert int(packed.target_of_pair[pair]) == sample.response_ids[j]
    assert packed.advantages.tolist() == [s.advantage for s in samples]
