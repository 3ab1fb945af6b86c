"""Fused linear log-probs, against float64, on every backend; slabs, splits and shards."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import logprob_entropy_lse, softmax_of_a_gemm, tensor_core_error
from rlvr_kernels import combine_partials, linear_token_logprob_partials, linear_token_logprobs
from rlvr_kernels.linear_logprob import linear_logprob, row_stride, slab_width
from rlvr_kernels.scalars import packed
from rlvr_kernels.vocab_parallel import linear_partials

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Relative error (Frobenius) of a gradient whose slab and result are stored in the input's dtype.
GRAD_ERROR = {torch.float32: 3e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
# Small enough that every case takes several slabs and the torch path recomputes.
TINY_BUFFER_MB = 0.001


def make(place, n_vocab, n_hidden, dtype=torch.float32, bias=False, shape=(2, 6)):
    hidden = torch.randn(*shape, n_hidden).to(dtype).to(place.device).requires_grad_()
    weight = torch.randn(n_vocab, n_hidden) * (4 / n_hidden**0.5)
    weight = weight.to(dtype).to(place.device).requires_grad_()
    offset = torch.randn(n_vocab).to(dtype).to(place.device).requires_grad_() if bias else None
    ids = torch.randint(0, n_vocab, shape)
    ids.view(-1)[:2] = torch.tensor([0, n_vocab - 1])
    return hidden, weight, offset, ids.to(place.device)


def exact_logits(hidden, weight, bias=None, softcap=None):
    """Leaves in float64 and the logits that they make."""
    leaves = [x.detach().double().requires_grad_() for x in (hidden, weight, bias) if x is not None]
    logits = leaves[0] @ leaves[1].T
    if bias is not None:
        logits = logits + leaves[2]
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return leaves, logits


def relative(got, want):
    return ((got.double() - want).norm() / want.norm().clamp(min=1e-9)).item()


def assert_equals_float64(
    place, hidden, weight, bias, ids, *, grad_error=None, grad_norm=1e-5, **options
):
    found = linear_token_logprobs(
        hidden,
        weight,
        ids,
        bias=bias,
        return_entropy=True,
        return_lse=True,
        backend=place.backend,
        **options,
    )
    leaves, logits = exact_logits(hidden, weight, bias, options.get("softcap"))
    wanted = logprob_entropy_lse(logits, ids, options.get("temperature", 1.0))
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got.double(), want.detach(), rtol=0, atol=2e-5)
    upstream = [torch.randn(ids.shape, device=place.device) for _ in range(3)]
    inputs = [x for x in (hidden, weight, bias) if x is not None]
    got = torch.autograd.grad(found, inputs, upstream)
    want = torch.autograd.grad(wanted, leaves, [g.double() for g in upstream])
    limit = place.rounding * (grad_error or GRAD_ERROR[hidden.dtype])
    for g, w, source in zip(got, want, inputs, strict=True):
        assert g.dtype == source.dtype
        assert relative(g, w) < limit or (g.double() - w).norm() < grad_norm

    # The log-prob alone, which may take another path.
    options["bias"] = bias
    alone = linear_token_logprobs(hidden, weight, ids, backend=place.backend, **options).logprobs
    torch.testing.assert_close(alone.double(), wanted[0].detach(), rtol=0, atol=2e-5)
    got = torch.autograd.grad(alone, inputs, upstream[0])
    leaves, logits = exact_logits(hidden, weight, bias, options.get("softcap"))
    wanted = logprob_entropy_lse(logits, ids, options.get("temperature", 1.0))[0]
    want = torch.autograd.grad(wanted, leaves, upstream[0].double())
    for g, w in zip(got, want, strict=True):
        assert relative(g, w) < limit or (g.double() - w).norm() < grad_norm


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n_vocab", "n_hidden"), [(1, 16), (2, 5), (127, 64), (257, 33), (700, 64)]
)
@pytest.mark.parametrize("buffer_mb", [TINY_BUFFER_MB, 256])
def test_values_and_gradients(place, n_vocab, n_hidden, dtype, buffer_mb):
    place.skip_interpreted(buffer_mb == 256, "one slab or several is the same kernel")
    place.skip_interpreted(
        dtype != torch.float32 and n_vocab != 257, "every size in fp32, every dtype at one size"
    )
    hidden, weight, _, ids = make(place, n_vocab, n_hidden, dtype)
    assert_equals_float64(
        place, hidden, weight, None, ids, temperature=0.7, max_buffer_mb=buffer_mb
    )


@pytest.mark.parametrize("buffer_mb", [TINY_BUFFER_MB, 256])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("bias", [False, True])
def test_bias_and_softcap(place, bias, softcap, buffer_mb):
    place.skip_interpreted(buffer_mb == 256, "one slab or several is the same kernel")
    hidden, weight, offset, ids = make(place, 300, 48, bias=bias)
    assert_equals_float64(
        place, hidden, weight, offset, ids, softcap=softcap, temperature=1.3,
        max_buffer_mb=buffer_mb,
    )  # fmt: skip


def test_padding_does_not_enter_the_sum(place):
    """All logits near -50, in a vocabulary that fills no tile."""
    hidden, weight, _, ids = make(place, 130, 32)
    with torch.no_grad():
        hidden[..., 0] = 1.0
        weight[:, 0] = -50.0
        weight[:, 1:] *= 0.01
    # exp(z - lse) inherits the rounding of an lse of -45, and the gradient to hidden[..., 0] is -50
    # times a sum that is exactly 0.
    assert_equals_float64(
        place,
        hidden,
        weight,
        None,
        ids,
        max_buffer_mb=TINY_BUFFER_MB,
        grad_error=2e-5,
        grad_norm=2e-3,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=str)
def test_logits_are_not_rounded(place, dtype):
    """Within 3e-4 of float64 on the same inputs; through bf16 logits it is off by 1e-2 and more."""
    hidden, weight, _, ids = make(place, 500, 256, dtype)
    found = linear_token_logprobs(
        hidden, weight, ids, max_buffer_mb=TINY_BUFFER_MB, backend=place.backend
    )
    exact = logprob_entropy_lse(hidden.double() @ weight.double().T, ids)[0]
    rounded = logprob_entropy_lse((hidden.float() @ weight.float().T).to(dtype), ids)[0]
    error = (found.logprobs.double() - exact).abs().max().item()
    assert error < 2e-5
    assert (rounded - exact).abs().max().item() > 100 * error


def test_accuracy_is_that_of_a_gemm(place):
    """At most twice the error of a product with float32 logits and a float64 softmax, and 3e-4."""
    hidden, weight, _, ids = make(place, 700, 512, torch.bfloat16, shape=(24,))
    found = linear_token_logprobs(
        hidden, weight, ids, max_buffer_mb=TINY_BUFFER_MB, backend=place.backend
    ).logprobs
    exact = logprob_entropy_lse(hidden.double() @ weight.double().T, ids)[0]
    logprobs = softmax_of_a_gemm(hidden, weight, ids)[0]
    assert logprobs.dtype == torch.float64
    allowed = (logprobs - exact).abs().max().item()
    assert 0 < allowed < 2e-5  # the measure itself did not round its logits to bf16
    # The log-prob is returned in float32: half a unit in its last place comes on top.
    half_unit = 2**-24 * exact.abs().max().item()
    allowed = max(2 * allowed, tensor_core_error(hidden, weight)) + half_unit
    error = (found.double() - exact).abs().max().item()
    assert error <= min(allowed, 3e-4), (error, allowed)


@pytest.mark.parametrize("buffer_mb", [TINY_BUFFER_MB, 256])
def test_masked_rows_are_dropped(place, buffer_mb):
    hidden, weight, _, ids = make(place, 300, 32)
    mask = torch.rand(ids.shape, device=place.device) > 0.5
    mask[0, 0], mask[0, 1], mask[0, 2] = True, True, False
    ids[0, 1] = -100
    on = mask & (ids != -100)
    with torch.no_grad():
        hidden[~on] = float("nan")
    found = linear_token_logprobs(
        hidden, weight, ids, mask=mask, return_entropy=True, return_lse=True,
        max_buffer_mb=buffer_mb, backend=place.backend,
    )  # fmt: skip
    upstream = [torch.randn(ids.shape, device=place.device) for _ in range(3)]
    grads = torch.autograd.grad(found, (hidden, weight), upstream)
    leaves, logits = exact_logits(hidden[on], weight)
    wanted = logprob_entropy_lse(logits, ids[on])
    want = torch.autograd.grad(wanted, leaves, [g[on].double() for g in upstream])
    for got, exact in zip(found, wanted, strict=True):
        assert (got[~on] == 0).all()
        torch.testing.assert_close(got[on].double(), exact.detach(), rtol=0, atol=1e-5)
    assert (grads[0][~on] == 0).all()
    assert relative(grads[0][on], want[0]) < 3e-6 and relative(grads[1], want[1]) < 3e-6

    nothing = linear_token_logprobs(
        hidden, weight, ids, mask=torch.zeros_like(mask), max_buffer_mb=buffer_mb,
        backend=place.backend,
    )  # fmt: skip
    assert (nothing.logprobs == 0).all()
    empty = torch.autograd.grad(nothing.logprobs.sum(), (hidden, weight))
    assert all((grad == 0).all() for grad in empty)


@pytest.mark.parametrize("ignored", [-100, 7])
@pytest.mark.parametrize("sharded", [False, True])
def test_rows_of_an_ignored_id_give_nothing(place, ignored, sharded):
    """Without a mask they are computed, so that nobody counts them, and left out."""
    hidden, weight, _, ids = make(place, 300, 32)
    ids[ids == ignored] = 8
    out = torch.zeros(ids.shape, dtype=torch.bool, device=place.device)
    out[0, 2] = out[-1, 0] = True

    def call(some_ids, **options):
        h, w = (x.detach().clone().requires_grad_() for x in (hidden, weight))
        options |= dict(max_buffer_mb=TINY_BUFFER_MB, backend=place.backend, return_entropy=True)
        if sharded:
            shards = [
                linear_token_logprob_partials(
                    h, w[a:b], some_ids, vocab_start=a, n_vocab=300, **options
                )
                for a, b in ((0, 130), (130, 300))
            ]
            found = torch.stack(shards)
            assert "mask" in options or not found[:, :, out].any()
            found = combine_partials(found)
        else:
            found = linear_token_logprobs(h, w, some_ids, **options)
        loss = (found.logprobs * upstream)[~out].sum() + (found.entropy * upstream)[~out].sum()
        if not sharded:  # the zeros of a shard are combined to other zeros
            loss = (found.logprobs * upstream).sum() + (found.entropy * upstream).sum()
            assert not found.logprobs[out].any() and not found.entropy[out].any()
        return found.logprobs[~out], found.entropy[~out], *torch.autograd.grad(loss, (h, w))

    upstream = torch.randn(ids.shape, device=place.device)
    wanted = call(ids, mask=~out, ignore_index=-100)
    found = call(ids.masked_fill(out, ignored), ignore_index=ignored)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert not found[2][out].any()


@pytest.mark.parametrize("buffer_mb", [TINY_BUFFER_MB, 256])
def test_no_rows(place, buffer_mb):
    hidden, weight, _, _ = make(place, 30, 16)
    ids = torch.zeros(2, 0, dtype=torch.int64, device=place.device)
    empty = hidden[:, :0]
    found = linear_token_logprobs(
        empty, weight, ids, max_buffer_mb=buffer_mb, backend=place.backend
    ).logprobs
    assert found.shape == (2, 0)
    found.sum().backward()
    assert weight.grad.shape == weight.shape and (weight.grad == 0).all()


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_needs_no_gradient_gets_none(place, frozen, monkeypatch):
    """A frozen lm_head skips its product; so does a frozen trunk."""
    hidden, weight, _, ids = make(place, 300, 32)
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    seen = []
    from rlvr_kernels import linear_logprob as module

    into, add = module._product_into, module._add_product
    monkeypatch.setattr(module, "_product_into", lambda *a: (seen.append("weight"), into(*a))[1])
    monkeypatch.setattr(module, "_add_product", lambda *a: (seen.append("hidden"), add(*a))[1])
    found = linear_token_logprobs(
        hidden, weight, ids, max_buffer_mb=TINY_BUFFER_MB, backend=place.backend
    ).logprobs
    (found * torch.randn_like(found)).sum().backward()
    assert set(seen) == {"hidden", "weight"} - {frozen}
    assert (hidden if frozen == "hidden" else weight).grad is None


def test_weight_gradient_in_float32(place):
    """grad_weight_dtype with a parameter that accepts it loses nothing to bf16 rounding."""
    hidden, weight, _, ids = make(place, 300, 32, torch.bfloat16)
    upstream = torch.randn(ids.shape, device=place.device)
    weight.grad_dtype = torch.float32
    found = linear_token_logprobs(
        hidden, weight, ids, grad_weight_dtype=torch.float32, max_buffer_mb=TINY_BUFFER_MB,
        backend=place.backend,
    ).logprobs  # fmt: skip
    found.backward(upstream)
    assert weight.grad.dtype == torch.float32
    assert (weight.grad != weight.grad.bfloat16().float()).any()


def test_rows_beyond_two_to_the_31_elements(place):
    """row * stride_hidden in 32 bits turns negative; the memory between is never touched."""
    if place.device == "cuda":
        pytest.skip("the CUDA case allocates its memory: test_gpu.py")
    stride = 1 << 27
    memory = torch.empty(19 * stride + 32, dtype=torch.float16)
    hidden = memory.as_strided((20, 32), (stride, 1))
    hidden.copy_(torch.randn(20, 32))
    weight = torch.randn(50, 32).half()
    ids = torch.randint(0, 50, (20,))
    found = linear_token_logprobs(
        hidden, weight, ids, max_buffer_mb=1e-4, backend=place.backend
    ).logprobs
    wanted = logprob_entropy_lse(hidden.double() @ weight.double().T, ids)[0]
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-5)


def test_more_token_tiles_than_one_group(place):
    """Tiles of tokens walk a slab in groups of 16; the interpreter's tile has 32 tokens."""
    hidden, weight, _, ids = make(place, 70, 16, shape=(520,))
    assert_equals_float64(place, hidden, weight, None, ids, max_buffer_mb=0.07)


@pytest.mark.parametrize("buffer_mb", [TINY_BUFFER_MB, 256])
def test_same_bits_every_time(place, buffer_mb):
    hidden, weight, _, ids = make(place, 300, 32)
    upstream = torch.randn(ids.shape, device=place.device)

    def run():
        found = linear_token_logprobs(
            hidden, weight, ids, return_entropy=True, max_buffer_mb=buffer_mb,
            backend=place.backend,
        )[:2]  # fmt: skip
        return [*found, *torch.autograd.grad(found, (hidden, weight), [upstream, upstream])]

    first = run()
    for _ in range(place.repeats):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


# The columns past the end are computed too; their overflow is dropped at the store.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp2")
@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply")
@pytest.mark.parametrize("softcap", [None, 6.0])
def test_shards_of_the_vocabulary_make_the_whole(place, softcap):
    """Three shards, one of a single column that is some row's target."""
    hidden, weight, bias, ids = make(place, 257, 33, bias=True)
    ids[1, 0], ids[1, 1] = 99, 100
    mask = torch.rand(ids.shape, device=place.device) > 0.2
    mask[:, :2] = True
    cuts = [0, 100, 256, 257]
    shards = [
        linear_token_logprob_partials(
            hidden, weight[a:b], ids, vocab_start=a, n_vocab=257, bias=bias[a:b],
            softcap=softcap, temperature=0.7, mask=mask, max_buffer_mb=TINY_BUFFER_MB,
            backend=place.backend,
        )
        for a, b in zip(cuts, cuts[1:], strict=False)
    ]  # fmt: skip
    found = combine_partials(torch.stack(shards[::-1]))
    leaves, logits = exact_logits(hidden, weight, bias, softcap)
    wanted = logprob_entropy_lse(logits, ids, 0.7)
    for got, want in zip(found, wanted, strict=True):
        assert (got[~mask] == 0).all()
        torch.testing.assert_close(got[mask].double(), want.detach()[mask], rtol=0, atol=1e-5)
    upstream = [torch.randn(ids.shape, device=place.device) * mask for _ in range(2)]
    got = torch.autograd.grad(found[:2], (hidden, weight, bias), upstream)
    want = torch.autograd.grad(wanted[:2], leaves, [g.double() for g in upstream])
    assert all(relative(g, w) < 3e-6 for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("masked", [True, False])
def test_opcheck(place, masked):
    hidden, weight, bias, ids = make(place, 40, 8, bias=True)
    valid = torch.rand(ids.shape, device=place.device) > 0.3 if masked else None
    torch.library.opcheck(
        linear_logprob,
        (hidden, weight, bias, ids, valid, packed([0.8, 9.0, 0.001]), True, None, place.backend),
    )


@pytest.mark.parametrize("masked", [True, False])
def test_opcheck_of_a_shard(place, masked):
    hidden, weight, bias, ids = make(place, 40, 8, bias=True)
    valid = torch.rand(ids.shape, device=place.device) > 0.3 if masked else None
    torch.library.opcheck(
        linear_partials,
        (
            hidden,
            weight,
            bias,
            ids - 20,
            valid,
            packed([0.8, None, 0.001]),
            True,
            None,
            place.backend,
        ),
    )


def test_ids_of_other_shards_are_legal_and_others_are_not(place):
    """Unchecked, an id of no shard would sum to a target logit of 0: a plausible log-prob."""
    hidden, weight, _, ids = make(place, 40, 8)
    ids[0, 3] = 41
    arguments = dict(vocab_start=0, n_vocab=41, backend=place.backend)
    if place.device == "cpu":
        with pytest.raises(IndexError, match=r"\[0, 41\); got 41"):
            linear_token_logprob_partials(hidden, weight, ids, **arguments)
    ids[0, 3] = 40  # of another shard
    mine = linear_token_logprob_partials(hidden, weight, ids, **arguments)
    assert mine[3, 0, 3] == 0 and torch.isfinite(mine).all()


def compiled_equals_eager(place, compiler, masked=True):
    hidden, weight, _, ids = make(place, 40, 8)
    mask = torch.rand(ids.shape, device=place.device) > 0.3 if masked else None
    upstream = torch.randn(ids.shape, device=place.device)

    def f(hidden, weight, ids, mask):
        found = linear_token_logprobs(
            hidden * 2, weight, ids, mask=mask, return_entropy=True, backend=place.backend
        )
        return found.logprobs * upstream + found.entropy

    eager = f(hidden, weight, ids, mask)
    compiled = torch.compile(f, fullgraph=True, backend=compiler)(hidden, weight, ids, mask)
    torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(compiled.sum(), (hidden, weight)),
        torch.autograd.grad(eager.sum(), (hidden, weight)),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("masked", [True, False])
def test_compiles_without_a_graph_break(place, masked):
    compiled_equals_eager(place, "aot_eager", masked)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiles_with_inductor(place):
    compiled_equals_eager(place, "inductor")


@given(
    n_rows=st.integers(0, 40000),
    n_vocab=st.integers(1, 300000),
    budget_mb=st.sampled_from([1, 32, 256, 512]),
)
def test_slabs_fit_the_budget(n_rows, n_vocab, budget_mb):
    """The one large temporary does not grow with the vocabulary or the tokens."""
    width = slab_width(n_rows, n_vocab, torch.bfloat16, budget_mb, "triton")
    assert width >= 1
    assert width <= 256 or width * n_rows * 2 <= budget_mb * 2**20
    # Rows padded to full stores take no more than the width that was allowed for.
    assert row_stride(min(width, n_vocab), "triton") <= max(width, 16)


def test_splits_fill_the_chip():
    pytest.importorskip("triton")
    from rlvr_kernels.linear_logprob_triton import choose_splits

    for tokens in (128, 1024, 4096, 8192, 32768):
        tiles_m, tiles_n, chip = tokens // 128, 594, 132
        splits = choose_splits(tiles_m, tiles_n, chip, tokens)
        assert 16 * splits * tokens <= 16 * 2**20
        waves = -(-tiles_m * splits // chip)
        busy = tiles_m * tiles_n / (chip * waves * -(-tiles_n // splits))
        assert splits >= 1 and busy > 0.89


def test_errors_name_the_argument():
    hidden, weight = torch.zeros(2, 4), torch.zeros(5, 4)
    ids = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(TypeError, match="weight: expected dtype float32; got bfloat16"):
        linear_token_logprobs(hidden, weight.bfloat16(), ids)
    with pytest.raises(ValueError, match=r"weight: expected shape \[5, 4\].*got \[5, 3\]"):
        linear_token_logprobs(hidden, weight[:, :3], ids)
    with pytest.raises(ValueError, match=r"bias: expected shape \[5\].*got \[4\]"):
        linear_token_logprobs(hidden, weight, ids, bias=torch.zeros(4))
    with pytest.raises(ValueError, match=r"hidden: .*H >= 1; got \[2, 0\]"):
        linear_token_logprobs(hidden[:, :0], weight[:, :0], ids)
    with pytest.raises(ValueError, match="softcap: expected a finite number above 0; got 0"):
        linear_token_logprobs(hidden, weight, ids, softcap=0)
    with pytest.raises(IndexError, match=r"\[0, 5\); got 5"):
        linear_token_logprobs(hidden, weight, ids + 5)
    with pytest.raises(ValueError, match="a shard of 5 columns inside 8; got 4"):
        linear_token_logprob_partials(hidden, weight, ids, vocab_start=4, n_vocab=8)
