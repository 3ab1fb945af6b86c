"""Numbers of any kind, eager and compiled; products that autocast leaves alone."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch._dynamo
from rlvr_kernels import (
    combine_partials,
    group_normalize,
    linear_token_logprob_partials,
    linear_token_logprobs,
    policy_loss,
    reference,
    sample_tokens,
    token_logprobs,
)
from torch._dynamo.utils import counters

HIDDEN, WEIGHT = torch.randn(2, 3, 16), torch.randn(40, 16)
LOGITS = torch.randn(2, 3, 40) * 3
IDS = torch.tensor([[0, 39, 5], [7, 7, 1]])
MASK = torch.tensor([[True, True, False], [True, True, True]])
OLD, NEW, ADVANTAGES = torch.randn(2, 3), torch.randn(2, 3), torch.tensor([[1.5], [-2.0]])


def linear(**number):
    return linear_token_logprobs(HIDDEN, WEIGHT, IDS, return_entropy=True, **number)[:2]


def partials(**number):
    sums = linear_token_logprob_partials(HIDDEN, WEIGHT, IDS, vocab_start=0, n_vocab=40, **number)
    return combine_partials(sums[None])[:2]


def token(**number):
    return token_logprobs(LOGITS, IDS, return_entropy=True, **number)[:2]


def large_token(**number):
    return token_logprobs(LOGITS.repeat(1, 1, 200), IDS, return_entropy=True, **number)[:2]


def loss(**number):
    options = {
        "kl": "k3", "ref_logprobs": OLD + 0.1, "rollout_logprobs": OLD - 0.1, "entropy": OLD.abs(),
    }  # fmt: skip
    return policy_loss(NEW, OLD, ADVANTAGES, MASK, **options, **number)[:1]


def groups(**number):
    groups = torch.tensor([[0, 0, 1], [1, 1, 0]])
    return (group_normalize(NEW, MASK, groups, 2, **number),)


NUMBERS = [
    (linear, ("temperature", "softcap", "max_buffer_mb")),
    (partials, ("temperature", "softcap", "max_buffer_mb")),
    (token, ("temperature",)),
    (large_token, ("temperature",)),
    (loss, ("clip_low", "clip_high", "dual_clip", "kl_coef", "tis_cap", "entropy_coef",
            "log_ratio_clamp", "denom")),
    (groups, ("eps", "min_std")),
]  # fmt: skip
NAMES = [function.__name__ for function, _ in NUMBERS]


def values_of(names, i, kind=float):
    """The i-th value of each option, exact in float32."""
    return {name: kind((1.25 if name == "dual_clip" else 0.25) + i / 128) for name in names}


@pytest.mark.parametrize(("function", "names"), NUMBERS, ids=NAMES)
def test_a_number_of_any_kind_is_a_number(function, names):
    wanted = function(**values_of(names, 3))
    for kind in (np.float64, np.float32, torch.tensor, Fraction, Decimal):
        for got, want in zip(function(**values_of(names, 3, kind)), wanted, strict=True):
            assert torch.equal(got, want), kind


@pytest.mark.parametrize("kind", [float, np.float64, torch.tensor])
@pytest.mark.parametrize(("function", "names"), NUMBERS, ids=NAMES)
def test_one_compiled_graph_serves_every_number(function, names, kind):
    """torch itself compiles a function of a float twice: for its first value, and for any."""
    if kind is torch.tensor and function is not token:
        pytest.skip("in a graph it is what an np.float64 is")
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(lambda x: function(**x), fullgraph=True, backend="aot_eager")
    for i in range(5):
        wanted = function(**values_of(names, i))
        got = compiled(values_of(names, i, kind))
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] <= (2 if kind is float else 1)


def test_a_compiled_graph_refuses_a_number_that_an_op_cannot_take():
    compiled = torch.compile(lambda t: linear(temperature=t), backend="aot_eager")
    with pytest.raises(ValueError, match="temperature: expected a finite number above 0; got -1"):
        compiled(torch.tensor(-1.0))


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("buffer_mb", [256, 0.001], ids=["direct", "slabs"])
@pytest.mark.parametrize("where", ["forward", "backward", "both"])
def test_autocast_changes_no_bit(lower, dtype, buffer_mb, where):
    hidden, weight = (HIDDEN * 30).to(dtype), (WEIGHT * 30).to(dtype)
    bias = torch.randn(40)

    def results(is_cast):
        leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias, LOGITS.to(dtype))]
        options = dict(return_entropy=True, temperature=0.7)
        with torch.autocast("cpu", lower, enabled=is_cast and where != "backward"):
            linear = {"bias": leaves[2], **options}
            found = [
                *linear_token_logprobs(*leaves[:2], IDS, max_buffer_mb=buffer_mb, **linear)[:2],
                *reference.linear_token_logprobs(*leaves[:2], IDS, **linear)[:2],
                *token_logprobs(leaves[3], IDS, **options)[:2],
            ]
            shard = linear_token_logprob_partials(
                *leaves[:2], IDS, vocab_start=0, n_vocab=40, max_buffer_mb=buffer_mb, **linear
            )
            found += combine_partials(shard[None])[:2]
            found.append(policy_loss(found[0], found[0].detach() - 0.1, ADVANTAGES, MASK)[0])
            total = sum(x.sum() for x in found)
        with torch.autocast("cpu", lower, enabled=is_cast and where != "forward"):
            total.backward()
        found += sample_tokens(LOGITS[0], torch.arange(3), torch.arange(3), torch.ones(3))
        return [*found, *(leaf.grad for leaf in leaves)]

    for got, want in zip(results(True), results(False), strict=True):
        assert got.dtype == want.dtype and torch.equal(got, want)
