"""Rotated queries and keys, with and without head norms and a cache, against float64."""

import pytest
import torch
from layers import DTYPES, assert_rounded_once, assert_same_bits, on_one_processor, wide
from rlvr_kernels import reference, rotary_qkv
from rlvr_kernels.rotary import rotary_qkv_backward, rotary_qkv_op, rotary_qkv_store


def projections(place, n_tokens, counts, size, dtype=torch.float32):
    heads, kv_heads = counts
    qkv = torch.randn(n_tokens, (heads + 2 * kv_heads) * size, device=place.device)
    return qkv.to(dtype).requires_grad_()


def tables(place, n_tokens, size, dtype=torch.float32):
    """Cosines and sines whose halves differ; transformers' are equal, and hide what mixes them."""
    angles = 6.3 * torch.rand(n_tokens, size, device=place.device)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def head_weights(place, size, dtype=torch.float32):
    weights = 1 + 0.3 * torch.randn(2, size, device=place.device)
    return {
        name: weight.to(dtype).requires_grad_()
        for name, weight in zip(("q_weight", "k_weight"), weights, strict=True)
    }


def assert_rotary(place, qkv, cos, sin, counts, weights):
    """Values and gradients under random upstream gradients."""
    options = dict(zip(("heads", "kv_heads"), counts, strict=True))
    found = rotary_qkv(qkv, cos, sin, **options, **weights, backend=place.backend)
    exact_qkv, *exact_weights = wide(qkv, *weights.values())
    exact = reference.rotary_qkv(
        exact_qkv, cos.double(), sin.double(), **options,
        **dict(zip(weights, exact_weights, strict=True)),
    )  # fmt: skip
    for got, want in zip(found, exact, strict=True):
        assert got.dtype == qkv.dtype
        assert_rounded_once(place, got, want)
    assert torch.equal(found[2].double(), exact[2])
    upstream = [torch.randn_like(part) for part in found]
    got = torch.autograd.grad(found, (qkv, *weights.values()), upstream)
    want = torch.autograd.grad(exact, (exact_qkv, *exact_weights), [g.double() for g in upstream])
    for gradient, exact_gradient in zip(got, want, strict=True):
        assert_rounded_once(place, gradient, exact_gradient)


@pytest.mark.parametrize("is_normed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("counts", "size"), [((1, 1), 2), ((14, 2), 64), ((5, 1), 80), ((3, 3), 6), ((16, 8), 128)]
)
def test_values_and_gradients(place, counts, size, dtype, is_normed):
    place.skip_interpreted(
        dtype != torch.float32 and size != 6, "every size in fp32, every dtype at one size"
    )
    qkv, (cos, sin) = projections(place, 5, counts, size, dtype), tables(place, 5, size, dtype)
    weights = head_weights(place, size, dtype) if is_normed else {}
    assert_rotary(place, qkv, cos, sin, counts, weights)


@pytest.mark.parametrize("is_normed", [False, True])
def test_float32_tables_of_16_bit_projections(place, is_normed):
    qkv, (cos, sin) = projections(place, 4, (4, 2), 16, torch.bfloat16), tables(place, 4, 16)
    weights = head_weights(place, 16, torch.bfloat16) if is_normed else {}
    assert_rotary(place, qkv, cos, sin, (4, 2), weights)


@pytest.mark.parametrize("missing", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("is_normed", [False, True])
def test_a_gradient_that_is_missing(place, missing, is_normed):
    """As if it were zero."""
    place.skip_interpreted(len(missing) == 2, "each is missing in another case")
    counts, size = (3, 2), 8
    qkv, (cos, sin) = projections(place, 3, counts, size), tables(place, 3, size)
    weights = head_weights(place, size) if is_normed else {}
    found = rotary_qkv(qkv, cos, sin, heads=3, kv_heads=2, **weights, backend=place.backend)
    upstream = [torch.randn_like(part) for part in found]
    inputs = (qkv, *weights.values())
    kept = [at for at in range(3) if at not in missing]
    got = torch.autograd.grad(
        [found[at] for at in kept], inputs, [upstream[at] for at in kept], retain_graph=True
    )
    for at in missing:
        upstream[at] = torch.zeros_like(upstream[at])
    want = torch.autograd.grad(found, inputs, upstream)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_frozen_weights_and_a_frozen_projection(place):
    counts, size = (3, 2), 8
    qkv, (cos, sin) = projections(place, 3, counts, size), tables(place, 3, size)
    weights = head_weights(place, size)

    def gradients(qkv, weights):
        found = rotary_qkv(qkv, cos, sin, heads=3, kv_heads=2, **weights, backend=place.backend)
        inputs = [x for x in (qkv, *weights.values()) if x.requires_grad]
        generator = torch.Generator(place.device).manual_seed(3)
        upstream = [
            torch.randn(part.shape, device=part.device, generator=generator) for part in found
        ]
        return torch.autograd.grad(found, inputs, upstream)

    d_qkv, *d_weights = gradients(qkv, weights)
    frozen = {name: weight.detach() for name, weight in weights.items()}
    torch.testing.assert_close(gradients(qkv, frozen)[0], d_qkv, rtol=1e-6, atol=1e-6)
    half = weights | {"q_weight": frozen["q_weight"]}
    torch.testing.assert_close(gradients(qkv, half), (d_qkv, d_weights[1]), rtol=0, atol=0)
    torch.testing.assert_close(gradients(qkv.detach(), weights), tuple(d_weights), rtol=0, atol=0)


def test_more_tokens_than_programs(place, monkeypatch):
    """A program takes several tokens then, and its part of the weights' gradients is their sum."""
    on_one_processor(place, monkeypatch, "rotary_triton")
    qkv, (cos, sin) = projections(place, 70, (3, 1), 6), tables(place, 70, 6)
    assert_rotary(place, qkv, cos, sin, (3, 1), head_weights(place, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_peaked_heads_and_heads_of_zeros(place, dtype):
    qkv, (cos, sin) = projections(place, 3, (2, 1), 16, dtype), tables(place, 3, 16, dtype)
    with torch.no_grad():
        qkv[0] = 0
        qkv[1, 5], qkv[1, 37] = 1e4, -1e4
    assert_rotary(place, qkv, cos, sin, (2, 1), head_weights(place, 16, dtype))


@pytest.mark.parametrize("is_normed", [False, True])
def test_rows_and_gradients_that_lie_apart(place, is_normed):
    """Slices, strided tables, and gradients as attention gives them: heads before tokens."""
    counts, size, n_tokens = (4, 2), 16, 5
    width = (4 + 2 * 2) * size
    rows = torch.randn(n_tokens, width + 9, device=place.device)
    both = torch.randn(n_tokens, 2 * size, device=place.device)
    cos, sin = both[:, :size], both[:, size:]
    weights = head_weights(place, size) if is_normed else {}
    for qkv in (rows[:, :width], rows[:, 5 : 5 + width], rows[::2, :width], rows.T[:width].T):
        here = qkv.detach().requires_grad_()
        assert_rotary(place, here, cos[: len(qkv)], sin[: len(qkv)], counts, weights)
    turned = torch.randn(width, n_tokens, device=place.device).T.requires_grad_()
    assert_rotary(place, turned, cos, sin, counts, weights)

    found = rotary_qkv(turned, cos, sin, heads=4, kv_heads=2, **weights, backend=place.backend)
    inputs = (turned, *weights.values())
    upstream = [torch.randn_like(part) for part in found]
    want = torch.autograd.grad(found, inputs, upstream, retain_graph=True)
    layouts = (
        [g.transpose(0, 1).contiguous().transpose(0, 1) for g in upstream],
        [g.permute(2, 0, 1).contiguous().permute(1, 2, 0) for g in upstream],
        torch.cat(upstream, 1).split([4, 2, 2], 1),
    )
    for layout in layouts:
        got = torch.autograd.grad(found, inputs, layout, retain_graph=True)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    (got,) = torch.autograd.grad(sum(part.sum() for part in found), turned, retain_graph=True)
    (want,) = torch.autograd.grad(found, turned, [torch.ones_like(part) for part in found])
    assert torch.equal(got, want)


def test_nothing_of_the_projection_is_saved_without_norms(place):
    """So that its memory is free as soon as nobody else needs it."""
    qkv, (cos, sin) = projections(place, 3, (2, 1), 8), tables(place, 3, 8)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        rotary_qkv(qkv, cos, sin, heads=2, kv_heads=1, backend=place.backend)
        assert max(x.numel() for x in saved) == cos.numel()
        weights = head_weights(place, 8)
        rotary_qkv(qkv, cos, sin, heads=2, kv_heads=1, **weights, backend=place.backend)
        assert max(x.numel() for x in saved) == qkv.numel()


def cache(place, n_places, kv_heads, size, dtype=torch.float32):
    keys, values = torch.randn(2, n_places, kv_heads, size, device=place.device).to(dtype).unbind()
    return keys, values


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_normed", [False, True])
def test_the_cache_gets_what_is_returned_and_nothing_else(place, is_normed, dtype):
    counts, size, n_tokens = (5, 3), 12, 6
    qkv, (cos, sin) = projections(place, n_tokens, counts, size, dtype), tables(place, 6, size)
    weights = head_weights(place, size, dtype) if is_normed else {}
    options = dict(heads=5, kv_heads=3, backend=place.backend, **weights)
    plain = rotary_qkv(qkv, cos, sin, **options)
    keys, values = cache(place, 20, 3, size, dtype)
    before = keys.clone(), values.clone()
    places = torch.tensor([3, 19, 0, 7, 8, 11], device=place.device)
    found = rotary_qkv(qkv, cos, sin, keys=keys, values=values, places=places, **options)
    for got, want in zip(found, plain, strict=True):
        assert torch.equal(got, want)
    for memory, old, new in zip((keys, values), before, found[1:], strict=True):
        old[places] = new
        assert torch.equal(memory, old)


@torch.no_grad()
def test_a_cache_that_lies_apart(place):
    """Keys and values of one memory, and heads before places."""
    qkv, (cos, sin) = projections(place, 4, (2, 2), 8), tables(place, 4, 8)
    places = torch.tensor([9, 1, 4, 5, 2, 2, 2, 2], device=place.device)
    options = dict(heads=2, kv_heads=2, backend=place.backend)
    _, k, v = rotary_qkv(qkv, cos, sin, **options)
    for memory in (
        torch.zeros(10, 2, 2, 8, device=place.device).transpose(0, 1),
        torch.zeros(2, 2, 10, 8, device=place.device).transpose(1, 2),
        torch.zeros(2, 10, 3, 9, device=place.device)[:, :, 1:, 1:],
    ):
        keys, values = memory
        cached = dict(keys=keys, values=values, places=places[:4])
        rotary_qkv(qkv, cos, sin, **cached, **options)
        assert torch.equal(keys[places[:4]], k) and torch.equal(values[places[:4]], v)
        keys[places[:4]], values[places[:4]] = 0, 0
        assert not memory.any()
        rotary_qkv(qkv, cos, sin, **(cached | dict(places=places[:8:2])), **options)
        assert torch.equal(keys[9], k[0]) and torch.equal(keys[4], k[1])


@torch.no_grad()
@pytest.mark.parametrize("wrong", [-1, 6, 2**40])
def test_a_place_that_is_not_there(place, wrong):
    """An error where the host knows, no write elsewhere; never another's memory."""
    qkv, (cos, sin) = projections(place, 2, (2, 1), 8), tables(place, 2, 8)
    around = torch.zeros(2, 8, 1, 8, device=place.device)
    keys, values = around[:, 1:7]
    cached = dict(keys=keys, values=values, places=torch.tensor([2, wrong], device=place.device))
    options = dict(heads=2, kv_heads=1, backend=place.backend, **cached)
    if place.backend == "torch":
        with pytest.raises((IndexError, RuntimeError), match="out of .*(range|bounds)"):
            rotary_qkv(qkv, cos, sin, **options)
        return
    _, k, v = rotary_qkv(qkv, cos, sin, **options)
    assert torch.equal(keys[2], k[0]) and torch.equal(values[2], v[0])
    keys[2], values[2] = 0, 0
    assert not around.any()


def test_a_cache_takes_no_gradient(place):
    qkv, (cos, sin) = projections(place, 2, (2, 1), 8), tables(place, 2, 8)
    keys, values = cache(place, 4, 1, 8)
    places = torch.tensor([0, 1], device=place.device)
    options = dict(heads=2, kv_heads=1, keys=keys, values=values, places=places)
    options["backend"] = place.backend
    with pytest.raises(RuntimeError, match="expected no gradient where the cache is written"):
        rotary_qkv(qkv, cos, sin, **options)
    weights = head_weights(place, 8)
    with pytest.raises(RuntimeError, match="expected no gradient where the cache is written"):
        rotary_qkv(qkv.detach(), cos, sin, **options, **weights)
    assert not any(x.requires_grad for x in rotary_qkv(qkv.detach(), cos, sin, **options))


def test_no_tokens(place):
    qkv, (cos, sin) = projections(place, 0, (2, 1), 8), tables(place, 0, 8)
    weights = head_weights(place, 8)
    options = dict(heads=2, kv_heads=1, backend=place.backend, **weights)
    found = rotary_qkv(qkv, cos, sin, **options)
    assert [part.shape for part in found] == [(0, 2, 8), (0, 1, 8), (0, 1, 8)]
    inputs = (qkv, *weights.values())
    got = torch.autograd.grad(found, inputs, [torch.ones_like(part) for part in found])
    assert got[0].shape == qkv.shape and not got[1].any() and not got[2].any()
    keys, values = cache(place, 4, 1, 8)
    places = torch.zeros(0, dtype=torch.int64, device=place.device)
    with torch.no_grad():
        rotary_qkv(qkv, cos, sin, keys=keys, values=values, places=places, **options)


def test_same_bits_every_time(place):
    qkv, (cos, sin) = projections(place, 9, (4, 2), 16, torch.bfloat16), tables(place, 9, 16)
    weights = head_weights(place, 16, torch.bfloat16)

    def run():
        generator = torch.Generator(place.device).manual_seed(5)
        found = rotary_qkv(qkv, cos, sin, heads=4, kv_heads=2, **weights, backend=place.backend)
        upstream = [
            torch.randn(part.shape, device=part.device, generator=generator).bfloat16()
            for part in found
        ]
        return [*found, *torch.autograd.grad(found, (qkv, *weights.values()), upstream)]

    assert_same_bits(place, run)


def test_opcheck(place):
    """Schema, fake tensors, autograd registration and ahead-of-time dispatch of the operators."""
    qkv, (cos, sin) = projections(place, 3, (2, 1), 8), tables(place, 3, 8)
    sizes = 2, 1, 1e-6
    weights = tuple(head_weights(place, 8).values())
    for given in ((None, None), weights):
        torch.library.opcheck(rotary_qkv_op, (qkv, cos, sin, *given, *sizes, place.backend))
    places = torch.tensor([0, 3, 1], device=place.device)
    plain = [x.detach() for x in (qkv, cos, sin, *weights)]
    arguments = (*plain, *cache(place, 4, 1, 8), places, *sizes, place.backend)
    torch.library.opcheck(rotary_qkv_store, arguments)
    upstream = [torch.randn(3, count, 8, device=place.device) for count in (2, 1, 1)]
    for tensors, needs in ((plain, True), ([None, cos, sin, None, None], False)):
        arguments = (*tensors, *upstream, *sizes, needs, torch.float32, place.backend)
        torch.library.opcheck(rotary_qkv_backward, arguments)


def test_the_definition_is_that_of_transformers():
    """Rotation in float64; Qwen3's norms, which compute in float32 whatever they are given."""
    models = pytest.importorskip("transformers.models.qwen3.modeling_qwen3")
    n_tokens, (heads, kv_heads), size = 6, (4, 2), 16
    qkv = torch.randn(n_tokens, (heads + 2 * kv_heads) * size, dtype=torch.float64)
    angles = torch.randn(n_tokens, size // 2, dtype=torch.float64).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    parts = qkv.view(n_tokens, -1, size).split([heads, kv_heads, kv_heads], 1)
    found = reference.rotary_qkv(qkv, cos, sin, heads=heads, kv_heads=kv_heads)
    theirs = models.apply_rotary_pos_emb(*parts[:2], cos, sin, unsqueeze_dim=1)
    torch.testing.assert_close(found, (*theirs, parts[2]), rtol=1e-14, atol=1e-14)

    norms = [models.Qwen3RMSNorm(size, eps=1e-5) for _ in range(2)]
    for norm in norms:
        torch.nn.init.normal_(norm.weight)
    qkv, cos, sin = qkv.float(), cos.float(), sin.float()
    normed = [norm(x.float()) for norm, x in zip(norms, parts[:2], strict=True)]
    theirs = models.apply_rotary_pos_emb(*normed, cos, sin, unsqueeze_dim=1)
    q_weight, k_weight = (norm.weight for norm in norms)
    found = reference.rotary_qkv(
        qkv, cos, sin, heads=heads, kv_heads=kv_heads, q_weight=q_weight, k_weight=k_weight,
        eps=1e-5,
    )  # fmt: skip
    torch.testing.assert_close(found, (*theirs, parts[2].float()), rtol=1e-5, atol=1e-6)


ONE = torch.ones(8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(qkv=torch.zeros(3, 32).double()), "qkv: expected dtype float32, .* got float64"),
        (dict(qkv=torch.zeros(1, 3, 32)), r"qkv: expected shape \[T, .*\]; got \[1, 3, 32\]"),
        (dict(qkv=torch.zeros(3, 33)), "qkv: expected 4 heads of an even number .* got 33 columns"),
        (dict(qkv=torch.zeros(3, 12)), "qkv: expected 4 heads of an even number .* got 12 columns"),
        (dict(heads=0), "heads: expected at least 1; got 0"),
        (dict(kv_heads=-1), "kv_heads: expected at least 1; got -1"),
        (dict(cos=torch.zeros(3, 4)), r"cos: expected shape \[3, 8\] .* got \[3, 4\]"),
        (dict(sin=torch.zeros(2, 8)), r"sin: expected shape \[3, 8\] .* got \[2, 8\]"),
        (dict(cos=torch.zeros(3, 8).half()), "cos: expected dtype float32; got float16"),
        (dict(q_weight=ONE), "q_weight, k_weight: expected both or none"),
        (dict(q_weight=ONE, k_weight=ONE[:4]), r"k_weight: expected shape \[8\] .* got \[4\]"),
        (dict(eps=-1.0), "eps: expected a finite number above 0"),
        (dict(places=torch.zeros(3).long()), "keys, values, places: expected all three or none"),
        (dict(backend="cuda"), "backend: expected one of"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = dict(
        qkv=torch.zeros(3, 32), cos=torch.zeros(3, 8), sin=torch.zeros(3, 8), heads=2, kv_heads=1
    )
    with pytest.raises((TypeError, ValueError), match=message):
        rotary_qkv(**(arguments | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(keys=torch.zeros(4, 1, 8).half()), "keys: expected dtype float32; got float16"),
        (dict(values=torch.zeros(4, 2, 8)), r"values: expected shape \[S, 1, 8\]; got \[4, 2, 8\]"),
        (dict(values=torch.zeros(5, 1, 8)), r"values: expected shape \[4, 1, 8\] .* got \[5, 1, 8"),
        (dict(keys=torch.zeros(4, 1, 16)[..., ::2]), "keys: expected contiguous heads, .* got 2"),
        (dict(places=torch.zeros(3).int()), "places: expected dtype int64; got int32"),
        (dict(places=torch.zeros(2).long()), r"places: expected shape \[3\] .* got \[2\]"),
    ],
)
def test_a_wrong_cache_is_named(change, message):
    arguments = dict(
        qkv=torch.zeros(3, 32), cos=torch.zeros(3, 8), sin=torch.zeros(3, 8), heads=2, kv_heads=1,
        keys=torch.zeros(4, 1, 8), values=torch.zeros(4, 1, 8), places=torch.zeros(3).long(),
    )  # fmt: skip
    with pytest.raises((TypeError, ValueError), match=message):
        rotary_qkv(**(arguments | change))
