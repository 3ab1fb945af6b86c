"""What only a GPU can show: launches, host syncs, memory, sizes that do not fit a small machine."""

import pytest
import torch
from oracle import logprob_entropy_lse, softmax_of_a_gemm
from rlvr_kernels import (
    copy_pages,
    linear_token_logprobs,
    policy_loss,
    rotary_qkv,
    token_logprobs,
)

from bench.bench_kernels import LAYERS, Scale

pytestmark = pytest.mark.gpu


def launches(function):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages() if "kernel" in event.key)


def loss_inputs():
    shape = (8, 512)
    logprobs = (-torch.rand(shape, device="cuda")).requires_grad_()
    old, advantages = logprobs.detach() - 0.1, torch.randn(shape, device="cuda")
    return logprobs, old, advantages, torch.rand(shape, device="cuda") > 0.3


def test_loss_is_two_launches_and_no_sync():
    inputs = loss_inputs()
    policy_loss(*inputs, backend="triton")[0].backward()  # compile first
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, _ = policy_loss(*inputs, backend="triton")
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert launches(lambda: policy_loss(*inputs, backend="triton")) <= 2


def test_row_kernel_needs_no_sync():
    logits = torch.randn(64, 5000, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    ids = torch.randint(0, 5000, (64,), device="cuda")
    token_logprobs(logits, ids, return_entropy=True).logprobs.sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        token_logprobs(logits, ids, return_entropy=True).logprobs.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_one_launch_and_no_sync(name):
    layer = LAYERS[name](Scale("cuda", torch.bfloat16, 128, 64, 8))

    def both():
        torch.autograd.grad(layer.ours(), layer.inputs, layer.upstream)

    both()  # compile first
    torch.cuda.set_sync_debug_mode("error")
    try:
        both()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert launches(layer.ours) == 1


@torch.no_grad()
def test_a_decode_step_writes_the_cache_in_one_launch():
    """And pages are copied in one, beyond 2^31 elements too; nothing waits."""
    qkv = torch.randn(8, 20 * 128, device="cuda", dtype=torch.bfloat16)
    cos, sin = torch.randn(2, 8, 128, device="cuda")
    memory = torch.zeros(2, 600_000, 2, 128 * 16, device="cuda", dtype=torch.bfloat16)
    keys, values = memory[..., :128]
    places = torch.arange(599_992, 600_000, device="cuda")
    cached = dict(keys=keys, values=values, places=places)

    def store():
        return rotary_qkv(qkv, cos, sin, heads=16, kv_heads=2, **cached)

    source, target = places, places - 500_000

    def copy():
        copy_pages(memory.flatten(2), source, target)

    store(), copy()  # compile first
    torch.cuda.set_sync_debug_mode("error")
    try:
        _, k, v = store()
        copy()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(keys[places], k) and torch.equal(values[places], v)
    assert torch.equal(memory[:, target], memory[:, places])
    assert launches(store) == launches(copy) == 1


def test_rows_past_two_to_the_31_elements():
    """14136 rows of 151936 columns: 4.3 GB of bf16."""
    n_rows, n_vocab = 14200, 151936
    logits = torch.empty(n_rows, n_vocab, device="cuda", dtype=torch.bfloat16).normal_()
    logits.requires_grad_()
    ids = torch.randint(0, n_vocab, (n_rows,), device="cuda")
    upstream = torch.randn(n_rows, device="cuda")
    found = token_logprobs(logits, ids).logprobs
    (grad,) = torch.autograd.grad(found, logits, upstream)
    last = slice(-4, None)
    exact = logits.detach()[last].double().requires_grad_()
    wanted = logprob_entropy_lse(exact, ids[last])[0]
    (want,) = torch.autograd.grad(wanted, exact, upstream[last].double())
    torch.testing.assert_close(found[last].double(), wanted.detach(), rtol=0, atol=2e-5)
    torch.testing.assert_close(grad[last].double(), want, rtol=2**-8, atol=1e-7)


@pytest.mark.parametrize("n_tokens", [2048, 8192])
def test_fused_linear_memory_does_not_grow_with_the_logits(n_tokens):
    """At most 512 MiB beyond the gradients; the logits of 8192 tokens alone would be 2.3 GiB."""
    n_vocab, n_hidden = 151936, 2048
    hidden = torch.randn(n_tokens, n_hidden, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(n_vocab, n_hidden, device="cuda", dtype=torch.bfloat16) * 0.02
    ids = torch.randint(0, n_vocab, (n_tokens,), device="cuda")
    hidden.requires_grad_(), weight.requires_grad_()
    gradients = 2 * (hidden.numel() + weight.numel())
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = linear_token_logprobs(hidden, weight, ids, return_entropy=True)
    forward = torch.cuda.max_memory_allocated() - before
    (found.logprobs.sum() + found.entropy.sum()).backward()
    assert forward <= 32 << 20
    assert torch.cuda.max_memory_allocated() - before - gradients <= 512 << 20


@pytest.mark.parametrize("n_hidden", [2048, 3584])
def test_fused_linear_is_as_accurate_as_a_gemm(n_hidden):
    """At most twice the error of cuBLAS with float32 logits and a float64 softmax, and 3e-4."""
    n_tokens, n_vocab = 512, 151936
    hidden = torch.randn(n_tokens, n_hidden, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(n_vocab, n_hidden, device="cuda").mul_(3 / n_hidden**0.5).bfloat16()
    ids = torch.randint(0, n_vocab, (n_tokens,), device="cuda")
    found = linear_token_logprobs(hidden, weight, ids, return_entropy=True, backend="triton")
    exact = logprob_entropy_lse(hidden.double() @ weight.double().T, ids)
    gemm = softmax_of_a_gemm(hidden, weight, ids)
    for name, ours, of_gemm, truth in zip(
        ("log-prob", "entropy"), found[:2], gemm[:2], exact[:2], strict=True
    ):
        error = (ours.double() - truth).abs().max().item()
        allowed = (of_gemm - truth).abs().max().item()
        assert error <= min(2 * allowed, 3e-4), (name, error, allowed)
