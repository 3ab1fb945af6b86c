"""RMSNorm of rows and of sums, against float64, transformers and the known traps."""

import pytest
import torch
from layers import DTYPES, assert_rounded_once, assert_same_bits, on_one_processor, wide
from rlvr_kernels import add_rms_norm, reference, rms_norm
from rlvr_kernels.norm import add_rms_norm_op, rms_norm_backward, rms_norm_op

EPS = 1e-6


def inputs(place, shape, dtype=torch.float32, count=2):
    """`count` tensors of a shape and a weight, all of which need a gradient."""
    tensors = [torch.randn(shape, device=place.device) for _ in range(count)]
    tensors.append(1 + 0.3 * torch.randn(shape[-1], device=place.device))
    return [x.to(dtype).requires_grad_() for x in tensors]


def assert_norm(place, x, weight, eps=EPS):
    """Values and gradients of one norm under a random upstream gradient."""
    found = rms_norm(x, weight, eps=eps, backend=place.backend)
    exact_x, exact_weight = wide(x, weight)
    exact = reference.rms_norm(exact_x, exact_weight, eps=eps)
    assert found.dtype == x.dtype
    assert_rounded_once(place, found, exact)
    upstream = torch.randn_like(found)
    got = torch.autograd.grad(found, (x, weight), upstream)
    want = torch.autograd.grad(exact, (exact_x, exact_weight), upstream.double())
    with torch.no_grad():
        # A row's gradient has no part along the row: in short rows next to nothing is left.
        pull = reference.rms_norm(exact_x, upstream * exact_weight, eps=eps) / exact_x
    assert_rounded_once(place, got[0], want[0], largest=pull.nan_to_num().abs().max().item())
    assert_rounded_once(place, got[1], want[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_columns", [1, 2, 63, 128, 896, 8192])
def test_values_and_gradients(place, n_columns, dtype):
    place.skip_interpreted(
        dtype != torch.float32 and n_columns != 63, "every size in fp32, every dtype at one size"
    )
    assert_norm(place, *inputs(place, (2, 3, n_columns), dtype, count=1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sum_is_normalised_as_it_is_stored(place, dtype):
    x, residual, weight = inputs(place, (2, 5, 96), dtype)
    total, normed = add_rms_norm(x, residual, weight, eps=EPS, backend=place.backend)
    assert_rounded_once(place, total, x.double() + residual.double())
    exact_total, exact_weight = wide(total, weight)
    exact = reference.rms_norm(exact_total, exact_weight, eps=EPS)
    assert_rounded_once(place, normed, exact)

    g_total, g_normed = torch.randn_like(total), torch.randn_like(normed)
    got = torch.autograd.grad((total, normed), (x, residual, weight), (g_total, g_normed))
    d_total, d_weight = torch.autograd.grad(exact, (exact_total, exact_weight), g_normed.double())
    assert torch.equal(got[0], got[1])
    assert_rounded_once(place, got[0], d_total + g_total.double())
    assert_rounded_once(place, got[2], d_weight)


def test_a_gradient_that_is_missing(place):
    """Of either result, and of a weight that needs none: then nothing is computed for it."""
    x, residual, weight = inputs(place, (4, 32))
    g = torch.randn(4, 32, device=place.device)

    def gradients(weight, **chosen):
        total, normed = add_rms_norm(x, residual, weight, eps=EPS, backend=place.backend)
        results = dict(total=total, normed=normed)
        outputs = [results[name] for name in chosen]
        return torch.autograd.grad(
            outputs, (x, residual, weight), list(chosen.values()), allow_unused=True
        )

    only_sum = gradients(weight, total=g)
    assert torch.equal(only_sum[0], g) and torch.equal(only_sum[1], g) and only_sum[2] is None
    only_normed = gradients(weight, normed=g)
    with_zero = gradients(weight, normed=g, total=torch.zeros_like(g))
    for a, b in zip(only_normed, with_zero, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)

    frozen = weight.detach()
    found = rms_norm(x, frozen, eps=EPS, backend=place.backend)
    (dx,) = torch.autograd.grad(found, x, g)
    both = torch.autograd.grad(rms_norm(x, weight, eps=EPS, backend=place.backend), (x, weight), g)
    torch.testing.assert_close(dx, both[0], rtol=1e-6, atol=1e-7)
    empty = rms_norm_backward(x.detach(), frozen, g, None, EPS, False, place.backend)[1]
    assert empty.shape == (0,)


def test_more_rows_than_programs(place, monkeypatch):
    """A program takes several rows then, and its part of the weight's gradient is their sum."""
    on_one_processor(place, monkeypatch, "norm_triton")
    assert_norm(place, *inputs(place, (40, 24), count=1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_peaked_rows_and_rows_of_zeros(place, dtype):
    x, weight = inputs(place, (4, 200), dtype, count=1)
    with torch.no_grad():
        x[0], x[1] = 0, 1e-4
        x[2, 7], x[3, 199] = 1e4, -1e4
    assert_norm(place, x, weight)
    zeros = rms_norm(x[:1], weight, eps=EPS, backend=place.backend)
    assert torch.equal(zeros, torch.zeros_like(zeros))


def test_a_large_gradient_of_large_rows(place):
    """Their product is no number of float32; the gradient, by the rows' size smaller, is one."""
    x, weight = inputs(place, (3, 200), count=1)
    upstream = torch.randn(3, 200, device=place.device) * 1e25
    large = (x.detach() * 1e15).requires_grad_()
    gradients = []
    for row, eps in ((large, EPS), (x, EPS * 1e-30)):
        found = rms_norm(row, weight, eps=eps, backend=place.backend)
        gradients.append(torch.autograd.grad(found, (row, weight), upstream))
    torch.testing.assert_close(gradients[0][0] * 1e15, gradients[1][0], rtol=1e-4, atol=1e21)
    torch.testing.assert_close(gradients[0][1], gradients[1][1], rtol=1e-5, atol=1e20)


def test_rows_that_lie_apart(place):
    """Slices, transposed batches and expanded upstream gradients."""
    wide_rows = torch.randn(3, 4, 300, device=place.device)
    weight = torch.randn(250, device=place.device).requires_grad_()
    for x in (wide_rows[:, :, :250], wide_rows[:, :, 13:263], wide_rows[:, 1:, :250]):
        assert_norm(place, x.detach().requires_grad_(), weight)
    turned = torch.randn(250, 6, device=place.device).T.requires_grad_()
    assert_norm(place, turned, weight)
    found = rms_norm(turned, weight, eps=EPS, backend=place.backend)
    (got,) = torch.autograd.grad(found.sum(), turned, retain_graph=True)
    (want,) = torch.autograd.grad(found, turned, torch.ones_like(found))
    assert torch.equal(got, want)

    total, _ = add_rms_norm(turned, turned, weight, eps=EPS, backend=place.backend)
    assert total.is_contiguous() and torch.equal(total, 2 * turned)


def test_no_rows(place):
    x, residual, weight = inputs(place, (0, 40))
    results = add_rms_norm(x, residual, weight, eps=EPS, backend=place.backend)
    got = torch.autograd.grad(results, (x, residual, weight), [torch.ones_like(r) for r in results])
    assert [g.shape for g in got] == [(0, 40), (0, 40), (40,)] and not got[2].any()


def test_same_bits_every_time(place):
    x, residual, weight = inputs(place, (70, 40), torch.bfloat16)
    upstream = [torch.randn_like(x) for _ in range(2)]

    def run():
        found = add_rms_norm(x, residual, weight, eps=EPS, backend=place.backend)
        return [*found, *torch.autograd.grad(found, (x, residual, weight), upstream)]

    assert_same_bits(place, run)


def test_opcheck(place):
    """Schema, fake tensors, autograd registration and ahead-of-time dispatch of the operators."""
    x, residual, weight = inputs(place, (3, 16))
    torch.library.opcheck(rms_norm_op, (x, weight, EPS, place.backend))
    torch.library.opcheck(add_rms_norm_op, (x, residual, weight, EPS, place.backend))
    saved = x.detach(), weight.detach(), torch.randn_like(x)
    for g_sum, needs_weight in ((None, False), (torch.randn_like(x), True)):
        arguments = (*saved, g_sum, EPS, needs_weight, place.backend)
        torch.library.opcheck(rms_norm_backward, arguments)


def test_the_definition_is_that_of_transformers():
    """Theirs rounds before the weight multiplies; in float32 that is one rounding more."""
    models = pytest.importorskip("transformers.models.qwen2.modeling_qwen2")
    module = models.Qwen2RMSNorm(48, eps=1e-5)
    torch.nn.init.normal_(module.weight)
    x = torch.randn(5, 48)
    found = reference.rms_norm(x, module.weight, eps=1e-5)
    torch.testing.assert_close(found, module(x), rtol=1e-6, atol=1e-6)
    half = module.to(torch.bfloat16)
    found = reference.rms_norm(x.bfloat16(), half.weight, eps=1e-5)
    torch.testing.assert_close(found, half(x.bfloat16()), rtol=2**-7, atol=0)


def test_too_long_a_row_is_refused(place):
    if place.backend == "torch":
        pytest.skip("torch has no longest row")
    x = torch.zeros(1, 8193, device=place.device)
    with pytest.raises(ValueError, match="x: expected at most 8192 columns .* got 8193"):
        rms_norm(x, x[0], eps=EPS, backend=place.backend)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=torch.zeros(2, 3).double()), "x: expected dtype float32, .* got float64"),
        (dict(x=torch.zeros(2, 0)), r"x: expected shape \[..., D\] with D >= 1; got \[2, 0\]"),
        (dict(weight=torch.zeros(4)), r"weight: expected shape \[3\] .* got \[4\]"),
        (dict(weight=torch.zeros(3).bfloat16()), "weight: expected dtype float32; got bfloat16"),
        (dict(weight=torch.zeros(3, device="meta")), "weight: expected on cpu, where x is"),
        (dict(residual=torch.zeros(3)), r"residual: expected shape \[2, 3\] .* got \[3\]"),
        (dict(residual=torch.zeros(2, 3).half()), "residual: expected dtype float32; got float16"),
        (dict(eps=0.0), "eps: expected a finite number above 0; got 0.0"),
        (dict(backend="x"), "backend: expected one of auto, torch, triton; got 'x'"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = dict(x=torch.zeros(2, 3), residual=torch.zeros(2, 3), weight=torch.ones(3), eps=EPS)
    with pytest.raises((TypeError, ValueError), match=message):
        add_rms_norm(**(arguments | change))
