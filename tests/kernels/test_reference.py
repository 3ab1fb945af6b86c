"""The references are differentiable as autograd says: finite differences in float64."""

import pytest
import torch
from rlvr_kernels import reference

D = torch.float64


def test_token_logprobs():
    logits = torch.randn(3, 7, dtype=D, requires_grad=True)
    ids = torch.tensor([0, 6, 2])
    mask = torch.tensor([True, True, False])

    def f(logits):
        return reference.token_logprobs(
            logits, ids, temperature=0.7, mask=mask, return_entropy=True, return_lse=True
        )

    assert torch.autograd.gradcheck(f, (logits,))
    assert f(logits).logprobs.dtype == D


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_linear_token_logprobs(softcap):
    hidden = torch.randn(2, 3, 4, dtype=D, requires_grad=True)
    weight = torch.randn(5, 4, dtype=D, requires_grad=True)
    bias = torch.randn(5, dtype=D, requires_grad=True)
    ids = torch.randint(0, 5, (2, 3))

    def f(hidden, weight, bias):
        return reference.linear_token_logprobs(
            hidden, weight, ids, bias=bias, softcap=softcap, temperature=1.3,
            return_entropy=True, return_lse=True,
        )  # fmt: skip

    assert torch.autograd.gradcheck(f, (hidden, weight, bias))


@pytest.mark.parametrize("reduction", ["token", "seq-mean", "sum"])
@pytest.mark.parametrize("kl", [None, "k1", "k2", "k3"])
def test_policy_loss(reduction, kl):
    logprobs = -torch.rand(2, 5, dtype=D)
    mask = torch.tensor([[True] * 5, [True, False, True, True, False]])
    old, ref, rollout = (logprobs + 0.3 * torch.randn(2, 5, dtype=D) for _ in range(3))
    advantages = torch.randn(2, 5, dtype=D)
    entropy = torch.rand(2, 5, dtype=D, requires_grad=True)

    def f(logprobs, entropy):
        return reference.policy_loss(
            logprobs, old, advantages, mask, dual_clip=1.5, ref_logprobs=ref, kl=kl,
            kl_coef=0.2 if kl else 0.0, rollout_logprobs=rollout, tis_cap=1.2,
            reduction=reduction, entropy=entropy, entropy_coef=0.1,
        )[0]  # fmt: skip

    assert torch.autograd.gradcheck(f, (logprobs.requires_grad_(), entropy))


def test_norms():
    x, residual = torch.randn(2, 3, 5, dtype=D, requires_grad=True).unbind()
    weight = torch.randn(5, dtype=D, requires_grad=True)

    def f(x, residual, weight):
        return reference.add_rms_norm(x, residual, weight, eps=1e-3)

    assert torch.autograd.gradcheck(f, (x, residual, weight))
    assert f(x, residual, weight)[1].dtype == D


def test_swiglu():
    gate_up = torch.randn(3, 8, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(reference.swiglu, (gate_up,))


@pytest.mark.parametrize("is_normed", [False, True])
def test_rotary(is_normed):
    qkv = torch.randn(2, (3 + 2) * 4, dtype=D, requires_grad=True)
    cos, sin = torch.randn(2, 2, 4, dtype=D)
    weights = torch.randn(2, 4, dtype=D, requires_grad=True).unbind() if is_normed else ()

    def f(qkv, q_weight=None, k_weight=None):
        return reference.rotary_qkv(
            qkv, cos, sin, heads=3, kv_heads=1, q_weight=q_weight, k_weight=k_weight, eps=1e-3
        )

    assert torch.autograd.gradcheck(f, (qkv, *weights))
