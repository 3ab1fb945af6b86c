"""Log-probs of chosen tokens from logits: the public function, its op and its gradient."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import logprob_torch
from .backend import resolve
from .checks import (
    BOOL,
    FLOATS,
    INTS,
    check_choice,
    check_dtype,
    check_ids_in_range,
    check_tensor,
)
from .records import TokenLogprobs
from .scalars import Number, as_number, check_positive_numbers, packed, unpacked

# Up to here log_softmax's serial float32 sum stays within 2e-6 of float64, rows stay in the cache,
# and on the CPU torch's own operations are the fastest path.
SMALL_VOCABULARY = 4096


def token_logprobs(
    logits: Tensor,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    return_entropy: bool = False,
    return_lse: bool = False,
    inplace_grad: bool = False,
    validate: str = "async",
    backend: str = "auto",
) -> TokenLogprobs:
    """Return log softmax(logits / temperature)[ids], and where asked its entropy and log-sum-exp.

    logits       [..., V] float32, bfloat16 or float16; any strides. Read in place, whatever the
                 batch strides, where the last dimension is contiguous and at most two strides
                 describe the rows (logits[:, :-1] of a batch); else copied once
    ids          [...] int64 or int32
    temperature  divides the logits: the log-prob is of the distribution that was sampled from
    mask         [...] bool; False rows are not read, give 0 and get zero gradient, and may hold NaN
    ignore_index id that masks its row likewise
    return_entropy, return_lse   also return the entropy in nats and log(sum(exp(logits / T)))
    inplace_grad the backward pass writes the gradient over `logits`: no second tensor of that size.
                 Afterwards the logits are gone: autograd refuses a second backward, or any other
                 op that saved them. Not under torch.compile, whose own planner owns the memory.
    validate     "async": an id out of range makes its row NaN on CUDA, without a host sync, and
                 raises IndexError on the CPU. "sync": raises everywhere, at the cost of a sync
    backend      "auto", "torch" or "triton": see `rlvr_kernels.backend`

    Everything returned is float32, accumulated in float32, and differentiable. One pass over the
    logits forward; one read and one write backward.
    Raises TypeError for a dtype, ValueError for a shape, device or option, IndexError for an id.
    """
    check_dtype("logits", logits, FLOATS)
    if logits.dim() < 1 or logits.shape[-1] == 0:
        raise ValueError(f"logits: expected shape [..., V] with V >= 1; got {list(logits.shape)}")
    check_ids("logits", logits, ids, mask)
    check_positive_numbers(temperature=temperature)
    number = as_number(temperature)
    check_choice("validate", validate, ("async", "sync"))
    n_vocab = logits.shape[-1]
    chosen_backend = resolve(backend, logits.device)
    is_cpu_torch = logits.device.type == "cpu" and chosen_backend == "torch"
    is_small = is_cpu_torch and n_vocab <= SMALL_VOCABULARY and not inplace_grad
    if is_small and every_row_counts(ids, mask, ignore_index, n_vocab):
        return of_a_small_vocabulary(logits, ids, None, number, return_entropy, return_lse)
    valid = valid_rows(ids, mask, ignore_index)
    if wants_range_check(validate, ids.device):
        check_ids_in_range(ids, valid, n_vocab)
    if is_small:
        return of_a_small_vocabulary(logits, ids, valid, number, return_entropy, return_lse)
    if torch.compiler.is_compiling():
        inplace_grad = False
    logprobs, entropy, lse = row_logprob(
        logits, ids, valid, packed([temperature]), return_entropy, inplace_grad, chosen_backend
    )
    return TokenLogprobs(logprobs, entropy if return_entropy else None, lse if return_lse else None)


def check_ids(like: str, tensor: Tensor, ids: Tensor, mask: Tensor | None) -> None:
    """`ids` and `mask` hold one entry per row of `tensor`, on its device."""
    shape, device = tuple(tensor.shape[:-1]), tensor.device
    check_tensor("ids", ids, INTS, shape, f"one id per row of {like}", device, like)
    if mask is not None:
        check_tensor("mask", mask, BOOL, shape, f"one entry per row of {like}", device, like)


def valid_rows(ids: Tensor, mask: Tensor | None, ignore_index: int) -> Tensor:
    valid = ids != ignore_index
    return valid if mask is None else valid & mask


def every_row_counts(ids: Tensor, mask: Tensor | None, ignore_index: int, n_vocab: int) -> bool:
    """Whether no row is left out and all ids are in range, by two short reductions; False where
    that cannot be told cheaply. Reads values: for the CPU."""
    if torch.compiler.is_compiling() or not ids.numel() or 0 <= ignore_index < n_vocab:
        return False
    low, high = ids.aminmax()
    return int(low) >= 0 and int(high) < n_vocab and (mask is None or bool(mask.all()))


def wants_range_check(validate: str, device: torch.device) -> bool:
    """Whether ids are checked on the host first; a compiled graph cannot branch on them."""
    if torch.compiler.is_compiling():
        return False
    return validate == "sync" or device.type == "cpu"


def of_a_small_vocabulary(
    logits: Tensor,
    ids: Tensor,
    valid: Tensor | None,
    temperature: Number,
    return_entropy: bool,
    return_lse: bool,
) -> TokenLogprobs:
    """The CPU's path: plain differentiable torch, without the op's recomputation.

    `valid` None: every row counts.
    """
    shape, n_vocab = ids.shape, logits.shape[-1]
    z_TV, ids_T = logits.float().reshape(-1, n_vocab), ids.reshape(-1).long()
    valid_T = None if valid is None else valid.reshape(-1)
    if isinstance(temperature, Tensor) or temperature != 1:
        z_TV = z_TV / temperature  # in float32: a bf16 quotient would round the logits
    # Rows are cleaned where any is ignored: a NaN there would reach the gradient as 0 * NaN.
    is_whole = valid_T is None or (not torch.compiler.is_compiling() and bool(valid_T.all()))
    if not is_whole:
        z_TV = torch.where(valid_T[:, None], z_TV, 0)

    def kept(values_T: Tensor) -> Tensor:
        return (values_T if is_whole else torch.where(valid_T, values_T, 0)).view(shape)

    lse = kept(torch.logsumexp(z_TV, 1)) if return_lse else None
    if not return_entropy:
        target_T = ids_T if is_whole else torch.where(valid_T, ids_T, -100)
        nll_T = F.cross_entropy(z_TV, target_T, reduction="none", ignore_index=-100)
        return TokenLogprobs(-nll_T.view(shape), None, lse)
    logp_TV = torch.log_softmax(z_TV, 1)
    chosen_T = logp_TV.gather(1, (ids_T if is_whole else torch.where(valid_T, ids_T, 0))[:, None])
    p_TV = logp_TV.exp()
    entropy_T = -(p_TV * logp_TV).sum(1)
    # A logit of -inf has p = 0, and -inf * 0 is NaN. A clamp costs three more passes: only then.
    if torch.compiler.is_compiling() or math.isnan(entropy_T.detach().sum().item()):
        entropy_T = -(p_TV * logp_TV.clamp(min=-200)).sum(1)
    return TokenLogprobs(kept(chosen_T[:, 0]), kept(entropy_T), lse)


@torch.library.custom_op("rlvr_kernels::row_logprob", mutates_args=())
def row_logprob(
    logits: Tensor,
    ids: Tensor,
    valid: Tensor,
    numbers: Tensor,
    with_entropy: bool,
    inplace_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(log-probs, entropy or [0], log-sum-exp), each in the shape of ids, float32.

    `numbers` [1]: the temperature.
    """
    (temperature,) = unpacked(numbers)
    check_positive_numbers(temperature=temperature)
    if backend == "triton":
        from . import logprob_triton

        return logprob_triton.forward(logits, ids, valid, temperature, with_entropy)
    logprobs, entropy, lse = logprob_torch.forward(
        logits.reshape(-1, logits.shape[-1]),
        ids.reshape(-1).long(),
        valid.reshape(-1),
        temperature,
        with_entropy,
    )
    shape = ids.shape
    return (
        logprobs.view(shape),
        entropy.view(shape) if with_entropy else entropy,
        lse.view(shape),
    )


@row_logprob.register_fake
def _(logits, ids, valid, numbers, with_entropy, inplace_grad, backend):
    result = logits.new_empty(ids.shape, dtype=torch.float32)
    entropy = torch.empty_like(result) if with_entropy else result.new_empty(0)
    return result, entropy, torch.empty_like(result)


@torch.library.custom_op("rlvr_kernels::row_logprob_backward", mutates_args=())
def row_logprob_backward(
    logits: Tensor,
    ids: Tensor,
    valid: Tensor,
    logprobs: Tensor,
    entropy: Tensor,
    lse: Tensor,
    g_logprobs: Tensor | None,
    g_entropy: Tensor | None,
    g_lse: Tensor | None,
    numbers: Tensor,
    backend: str,
) -> Tensor:
    """Gradient of the logits, contiguous, in their dtype."""
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    saved, grads = (logprobs, entropy, lse), (g_logprobs, g_entropy, g_lse)
    _write_gradient(logits, ids, valid, saved, grads, numbers, backend, out)
    return out


@row_logprob_backward.register_fake
def _(logits, *_):
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _write_gradient(logits, ids, valid, saved, grads, numbers, backend, out) -> None:
    (temperature,) = unpacked(numbers)
    if backend == "triton":
        from . import logprob_triton

        logprob_triton.backward(logits, ids, valid, saved, grads, temperature, out)
        return
    n_vocab = logits.shape[-1]
    logprob_torch.backward(
        logits.reshape(-1, n_vocab),
        ids.reshape(-1).long(),
        valid.reshape(-1),
        tuple(x.reshape(-1) for x in saved),
        tuple(None if g is None else g.reshape(-1) for g in grads),
        temperature,
        out.view(-1, n_vocab),
    )


def _save(ctx, inputs, output) -> None:
    *tensors, _, ctx.inplace_grad, ctx.backend = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)


def _gradient(ctx, *grads):
    nothing = (None,) * 6
    if all(g is None for g in grads):
        return None, *nothing
    logits, ids, valid, numbers, *saved = ctx.saved_tensors
    if ctx.inplace_grad and logits.is_contiguous():
        # Through autograd's version counter: whoever else saved the logits gets an error, not rot.
        out = logits.detach()
        torch.autograd.graph.increment_version(logits)
        _write_gradient(logits, ids, valid, saved, grads, numbers, ctx.backend, out)
        return out, *nothing
    out = row_logprob_backward(logits, ids, valid, *saved, *grads, numbers, ctx.backend)
    return out, *nothing


row_logprob.register_autograd(_gradient, setup_context=_save)
