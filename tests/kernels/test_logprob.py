"""Log-probs from logits, against float64, on every backend and on the known traps."""

import pytest
import torch
from oracle import logprob_entropy_lse
from rlvr_kernels import token_logprobs
from rlvr_kernels.logprob import row_logprob
from rlvr_kernels.scalars import packed

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
VOCABULARIES = [1, 2, 127, 128, 257, 1000]
# Half a unit in the last place, relative, of a stored gradient.
HALF_ULP = {torch.float32: 2**-24, torch.bfloat16: 2**-9, torch.float16: 2**-12}


def assert_close_to_float64(place, logits, ids, *, temperature=1.0, lp_atol=2e-5, grad_atol=1e-5):
    """Log-probs, entropies, log-sum-exps and their gradients, with random upstream gradients."""
    logits = logits.to(place.device).requires_grad_()
    ids = ids.to(place.device)
    found = token_logprobs(
        logits,
        ids,
        temperature=temperature,
        return_entropy=True,
        return_lse=True,
        backend=place.backend,
    )
    exact = logits.detach().double().requires_grad_()
    wanted = logprob_entropy_lse(exact, ids, temperature)
    for got, want, atol in zip(found, wanted, (lp_atol, 5e-5, lp_atol), strict=True):
        assert got.dtype == torch.float32 and got.shape == ids.shape
        torch.testing.assert_close(got.double(), want.detach(), rtol=0, atol=atol)

    upstream = [torch.randn(ids.shape, device=place.device) for _ in range(3)]
    (got,) = torch.autograd.grad(found, logits, upstream)
    (want,) = torch.autograd.grad(wanted, exact, [g.double() for g in upstream])
    rtol = 2 * place.rounding * HALF_ULP[logits.dtype]
    scale = max(1.0, want.abs().max().item())
    torch.testing.assert_close(got.double(), want, rtol=rtol, atol=grad_atol * scale)

    # The log-prob alone, which may take another path.
    alone = token_logprobs(logits, ids, temperature=temperature, backend=place.backend)
    assert alone.entropy is None and alone.lse is None
    wanted = logprob_entropy_lse(exact, ids, temperature)[0]
    torch.testing.assert_close(alone.logprobs.double(), wanted.detach(), rtol=0, atol=lp_atol)
    (got,) = torch.autograd.grad(alone.logprobs, logits, upstream[0])
    (want,) = torch.autograd.grad(wanted, exact, upstream[0].double())
    torch.testing.assert_close(got.double(), want, rtol=rtol, atol=grad_atol * scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_vocab", VOCABULARIES)
def test_values_and_gradients(place, n_vocab, dtype):
    place.skip_interpreted(
        dtype != torch.float32 and n_vocab != 257, "every size in fp32, every dtype at one size"
    )
    logits = (torch.randn(2, 5, n_vocab) * 4).to(dtype)
    ids = torch.randint(0, n_vocab, (2, 5))
    ids[0, 0], ids[0, 1] = 0, n_vocab - 1
    assert_close_to_float64(place, logits, ids, temperature=0.7)


@pytest.mark.parametrize("n_vocab", [151936, 152064])
def test_vocabulary_of_a_real_model(place, n_vocab):
    """Neither size is a multiple of a block of 4096 columns."""
    place.skip_interpreted(n_vocab == 152064, "the last block is cut short at either size")
    logits = (torch.randn(2, n_vocab) * 10).bfloat16()
    assert_close_to_float64(place, logits, torch.tensor([3, n_vocab - 1]))


@pytest.mark.parametrize("n_vocab", [1, 127, 1000, 4097])
def test_padding_does_not_enter_the_sum(place, n_vocab):
    """With every logit near -50 a padded column counted as exp(0) outweighs the whole row."""
    logits = -50 + torch.randn(3, n_vocab) * 0.1
    assert_close_to_float64(place, logits, torch.randint(0, n_vocab, (3,)))


@pytest.mark.parametrize("miss", [1e-2, 1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradient_of_a_confident_token(place, miss, dtype):
    """1 - p(y) keeps its digits: p - 1 in float32 is wrong by 6% at 1e-6 and 0 at 1e-8."""
    n_vocab = 999
    logits = torch.zeros(2, n_vocab)
    logits[:, 7] = torch.log(torch.tensor((n_vocab - 1) / miss))
    logits = logits.to(dtype).to(place.device).requires_grad_()
    ids = torch.full((2,), 7, device=place.device)
    found = row_logprob(
        logits,
        ids,
        torch.ones_like(ids, dtype=torch.bool),
        packed([1.0]),
        False,
        False,
        place.backend,
    )[0]
    upstream = torch.randn(2, device=place.device)
    (got,) = torch.autograd.grad(found, logits, upstream)
    z = logits.detach().double()
    others = torch.exp(z).sum(1) - torch.exp(z[:, 7])
    wanted = upstream * others / (others + torch.exp(z[:, 7]))
    torch.testing.assert_close(got[:, 7].double(), wanted, rtol=1e-2, atol=0)
    torch.testing.assert_close(found.double(), torch.log1p(-wanted / upstream), rtol=1e-3, atol=0)


@pytest.mark.parametrize("wants_more", [False, True])
def test_masked_rows_give_zero_and_swallow_nan(place, wants_more):
    logits = torch.randn(3, 4, 130, device=place.device)
    ids = torch.randint(0, 130, (3, 4), device=place.device)
    mask = torch.rand(3, 4, device=place.device) > 0.4
    mask[0, 0], mask[0, 1], mask[0, 2] = False, True, True
    ids[0, 1] = -100
    off = ~mask | (ids == -100)
    logits[off] = float("nan")
    logits.requires_grad_()
    found = token_logprobs(
        logits, ids, mask=mask, return_entropy=wants_more, return_lse=wants_more,
        backend=place.backend,
    )  # fmt: skip
    found = [values for values in found if values is not None]
    for values in found:
        assert (values[off] == 0).all() and torch.isfinite(values).all()
    (grad,) = torch.autograd.grad(found, logits, [torch.randn_like(x) for x in found])
    assert (grad[off] == 0).all() and torch.isfinite(grad).all() and (grad[~off] != 0).any()
    everything_off = token_logprobs(logits, ids, mask=torch.zeros_like(mask), backend=place.backend)
    assert (everything_off.logprobs == 0).all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_an_ignore_index_inside_the_vocabulary(place, dtype):
    """All ids are in range, and still some rows are left out."""
    logits = torch.randn(6, 130, device=place.device, requires_grad=True)
    ids = torch.tensor([5, 0, 129, 5, 7, 5], dtype=dtype, device=place.device)
    found = token_logprobs(logits, ids, ignore_index=5, backend=place.backend).logprobs
    assert (found == 0).tolist() == (ids == 5).tolist()
    (grad,) = torch.autograd.grad(found.sum(), logits)
    assert (grad == 0).all(1).tolist() == (ids == 5).tolist()


def test_forbidden_tokens_have_no_mass(place):
    """A logit of -inf has p = 0 and adds nothing to the entropy or the gradient."""
    logits = torch.randn(2, 300)
    logits[:, 40:] = -torch.inf
    kept = logits[:, :40]
    ids = torch.tensor([3, 39])
    a = logits.to(place.device).requires_grad_()
    found = token_logprobs(a, ids.to(place.device), return_entropy=True, backend=place.backend)
    wanted = logprob_entropy_lse(kept, ids)
    torch.testing.assert_close(found.logprobs.cpu().double(), wanted[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.entropy.cpu().double(), wanted[1], rtol=0, atol=1e-5)
    (grad,) = torch.autograd.grad(found[:2], a, [torch.randn(2, device=place.device)] * 2)
    assert (grad[:, 40:] == 0).all() and torch.isfinite(grad).all()


def test_nan_logits_are_not_hidden(place):
    """A maximum that skips NaN would turn a broken model into plausible numbers."""
    logits = torch.randn(2, 300, device=place.device)
    logits[1, 17] = float("nan")
    ids = torch.tensor([4, 4], device=place.device)
    found = token_logprobs(logits, ids, return_entropy=True, backend=place.backend)
    assert torch.isfinite(found.logprobs[0]) and torch.isnan(found.logprobs[1])
    assert torch.isfinite(found.entropy[0]) and torch.isnan(found.entropy[1])


def test_rows_beyond_two_to_the_31_elements(place):
    """row * stride in 32 bits turns negative; the pages between the rows are never touched."""
    if place.device == "cuda":
        pytest.skip("the CUDA case allocates its memory: test_gpu.py")
    stride = 1 << 27
    memory = torch.empty(19 * stride + 64, dtype=torch.float16)
    logits = memory.as_strided((20, 64), (stride, 1))
    logits.copy_(torch.randn(20, 64))
    assert_close_to_float64(place, logits, torch.randint(0, 64, (20,)))


LAYOUTS = {
    "shifted batch": lambda: torch.randn(3, 6, 130)[:, :-1],
    "padded rows": lambda: torch.randn(3, 5, 192)[..., :130],
    "transposed batch": lambda: torch.randn(5, 3, 130).transpose(0, 1),
    "three levels": lambda: torch.randn(4, 3, 6, 130)[::2, :, :-1],
    "strided columns": lambda: torch.randn(3, 130, 5).transpose(1, 2),
    "expanded": lambda: torch.randn(1, 5, 130).expand(3, 5, 130),
    "one row": lambda: torch.randn(130),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(place, layout):
    logits = LAYOUTS[layout]()
    assert_close_to_float64(place, logits, torch.randint(0, 130, logits.shape[:-1]))


def test_ids_of_either_width_and_alignment(place):
    logits = torch.randn(7, 130, device=place.device)
    ids = torch.randint(0, 130, (8,), device=place.device)
    plain = token_logprobs(logits, ids[1:].clone(), backend=place.backend).logprobs
    for other in (ids[1:], ids.int()[1:]):  # a storage offset of one element
        torch.testing.assert_close(
            token_logprobs(logits, other, backend=place.backend).logprobs, plain, rtol=0, atol=0
        )


def test_an_id_out_of_range_poisons_only_its_row(place):
    """What CUDA does without a host sync; the public function raises on the CPU before it."""
    logits = torch.randn(4, 130, device=place.device, requires_grad=True)
    ids = torch.tensor([1, 130, -7, 2], device=place.device)
    valid = torch.ones(4, dtype=torch.bool, device=place.device)
    found = row_logprob(logits, ids, valid, packed([1.0]), True, False, place.backend)
    for values in found:
        assert torch.isnan(values).tolist() == [False, True, True, False]
    if place.device == "cpu":
        with pytest.raises(IndexError, match=r"\[0, 130\); got 130 at flat index 1"):
            token_logprobs(logits, ids, backend=place.backend)
    with pytest.raises(IndexError, match="got 130"):
        token_logprobs(logits, ids, validate="sync", backend=place.backend)


def test_no_rows(place):
    logits = torch.randn(2, 0, 130, device=place.device, requires_grad=True)
    ids = torch.zeros(2, 0, dtype=torch.int64, device=place.device)
    found = token_logprobs(logits, ids, return_entropy=True, backend=place.backend)
    assert found.logprobs.shape == found.entropy.shape == (2, 0)
    (found.logprobs.sum() + found.entropy.sum()).backward()
    assert logits.grad.shape == (2, 0, 130)


def test_inputs_survive_and_graphs_can_be_kept(place):
    logits = torch.randn(3, 130, device=place.device, requires_grad=True)
    before = logits.detach().clone()
    ids = torch.randint(0, 130, (3,), device=place.device)
    total = token_logprobs(logits, ids, return_entropy=True, backend=place.backend)
    total = (total.logprobs * torch.randn(3, device=place.device)).sum() + total.entropy.sum()
    first = torch.autograd.grad(total, logits, retain_graph=True)[0]
    again = torch.autograd.grad(total, logits)[0]
    assert torch.equal(first, again) and torch.equal(logits, before)


def test_gradient_in_place(place):
    """Overwrites the logits, and autograd refuses to use them as logits again."""
    source = torch.randn(3, 130, device=place.device, requires_grad=True)
    ids = torch.randint(0, 130, (3,), device=place.device)
    upstream = torch.randn(3, device=place.device)
    plain = token_logprobs(source, ids, return_lse=True, backend=place.backend).logprobs
    (wanted,) = torch.autograd.grad(plain, source, upstream)

    logits = source * 1.0
    found = token_logprobs(logits, ids, return_lse=True, inplace_grad=True, backend=place.backend)
    (grad,) = torch.autograd.grad(found.logprobs, source, upstream, retain_graph=True)
    torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-7)
    assert torch.equal(logits, grad)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(found.logprobs, source, upstream)


def test_same_bits_every_time(place):
    logits = torch.randn(3, 700, device=place.device, requires_grad=True)
    ids = torch.randint(0, 700, (3,), device=place.device)
    upstream = torch.randn(3, device=place.device)

    def run():
        found = token_logprobs(logits, ids, return_entropy=True, backend=place.backend)
        return [*found[:2], *torch.autograd.grad(found[:2], logits, [upstream, upstream])]

    first = run()
    for _ in range(place.repeats):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_opcheck(place):
    """Schema, fake tensors, autograd registration and ahead-of-time dispatch of the custom op."""
    logits = torch.randn(2, 3, 40, device=place.device, requires_grad=True)
    ids = torch.randint(0, 40, (2, 3), device=place.device)
    valid = torch.rand(2, 3, device=place.device) > 0.3
    torch.library.opcheck(
        row_logprob, (logits, ids, valid, packed([0.8]), True, False, place.backend)
    )


def compiled_equals_eager(place, compiler):
    logits = torch.randn(2, 3, 40, device=place.device, requires_grad=True)
    ids = torch.randint(0, 40, (2, 3), device=place.device)
    upstream = torch.randn(2, 3, device=place.device)

    def f(logits, ids):
        found = token_logprobs(logits * 2, ids, return_entropy=True, backend=place.backend)
        return found.logprobs * upstream + found.entropy

    eager = f(logits, ids)
    compiled = torch.compile(f, fullgraph=True, backend=compiler)(logits, ids)
    torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        torch.autograd.grad(compiled.sum(), logits), torch.autograd.grad(eager.sum(), logits)
    )


def test_compiles_without_a_graph_break(place):
    compiled_equals_eager(place, "aot_eager")


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiles_with_inductor(place):
    compiled_equals_eager(place, "inductor")


def test_errors_name_the_argument():
    logits, ids = torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(TypeError, match="logits: expected dtype .* got float64"):
        token_logprobs(logits.double(), ids)
    with pytest.raises(TypeError, match="ids: expected dtype int64, int32; got float32"):
        token_logprobs(logits, ids.float())
    with pytest.raises(ValueError, match=r"ids: expected shape \[2\].*got \[1\]"):
        token_logprobs(logits, ids[:1])
    with pytest.raises(ValueError, match=r"logits: .* V >= 1; got \[2, 0\]"):
        token_logprobs(logits[:, :0], ids)
    with pytest.raises(TypeError, match="mask: expected dtype bool; got int64"):
        token_logprobs(logits, ids, mask=ids)
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature: expected a finite number above 0"):
            token_logprobs(logits, ids, temperature=temperature)
    with pytest.raises(ValueError, match="backend: expected one of auto, torch, triton; got 'x'"):
        token_logprobs(logits, ids, backend="x")
