"""Log-probs of chosen tokens from hidden states and the lm_head: the logits are never held.

Forward, per token: the running sums of the softmax over tiles (Triton) or chunks (torch) of logits.
Backward, per slab of the vocabulary: recompute the slab's logits, turn them into their gradient
dz [T, C], then dW[slab] = dz.T @ hidden, final in one product, and dH += dz @ W[slab] in float32.
Slabs of the vocabulary, not chunks of tokens: every weight gradient is written once, in the order
of the vocabulary, so there is no accumulator traffic and no dependence on timing.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import logprob_torch
from .backend import resolve
from .checks import (
    FLOATS,
    check_choice,
    check_device,
    check_dtype,
    check_ids_in_range,
    check_shape,
    check_tensor,
)
from .logprob import (
    SMALL_VOCABULARY,
    check_ids,
    every_row_counts,
    of_a_small_vocabulary,
    token_logprobs,
    valid_rows,
    wants_range_check,
)
from .products import linear, product
from .records import TokenLogprobs
from .scalars import check_positive_numbers, packed, unpacked

_MIB = 1 << 20


def linear_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    return_entropy: bool = False,
    return_lse: bool = False,
    max_buffer_mb: float = 256,
    grad_weight_dtype: torch.dtype | None = None,
    validate: str = "async",
    backend: str = "auto",
) -> TokenLogprobs:
    """Return log softmax(softcap(hidden @ weight.T + bias) / temperature)[ids], float32.

    hidden    [..., H] float32, bfloat16 or float16
    weight    [V, H] of the same dtype (cast before the call under autocast); bias [V] or None
    ids       [...] int64 or int32
    softcap   c: logits become c tanh(logits / c), before the temperature divides them
    mask      [...] bool; False rows are dropped before the product (they cost nothing and may hold
              NaN), give 0 and get zero gradient
    ignore_index   id whose rows give 0 and get zero gradient likewise. Only a mask saves their
              work: it reads on the host how many rows are left, and without one CUDA is not waited
              for
    return_entropy, return_lse   as `token_logprobs`
    max_buffer_mb  MiB of the one large temporary, the logit gradient of a slab of the vocabulary;
              memory beyond the gradients does not grow with V. On the CPU a problem whose float32
              logits fit takes the direct path, which keeps them
    grad_weight_dtype   dtype of the weight gradient, default the weight's. autograd casts it back
              to the weight's unless that tensor's own `grad_dtype` allows another
    validate, backend   as `token_logprobs`

    Products accumulate in float32 and logits are never rounded to bfloat16: through rounded logits
    a log-prob is off by 2e-2, on a ratio whose clip range is 0.2. A weight or hidden tensor that
    needs no gradient costs none. float16 hidden states use a float32 gradient slab, whose range a
    float16 one would underflow. Deterministic. No gradient is filtered out.
    Raises TypeError for a dtype, ValueError for a shape, device or option, IndexError for an id
    (see `token_logprobs`).
    """
    check_linear(hidden, weight, bias, ids, mask)
    check_positive_numbers(temperature=temperature, softcap=softcap, max_buffer_mb=max_buffer_mb)
    check_choice("validate", validate, ("async", "sync"))
    if grad_weight_dtype is not None and grad_weight_dtype not in FLOATS:
        raise TypeError(f"grad_weight_dtype: expected a float dtype; got {grad_weight_dtype}")
    chosen_backend = resolve(backend, hidden.device)
    # A compiled graph cannot hold a number of rows that depends on the data; the op hides it.
    is_compiling = torch.compiler.is_compiling()
    is_direct = hidden.device.type == "cpu" and chosen_backend == "torch" and not is_compiling
    # autograd gives the weight's dtype; only the op can give another.
    is_direct = is_direct and grad_weight_dtype in (None, weight.dtype)
    is_direct = is_direct and ids.numel() * weight.shape[0] * 4 <= max_buffer_mb * _MIB
    if is_direct and every_row_counts(ids, mask, ignore_index, weight.shape[0]):
        return _direct(
            hidden, weight, bias, ids, None, temperature, softcap, return_entropy, return_lse
        )
    valid = valid_rows(ids, mask, ignore_index)
    if wants_range_check(validate, ids.device):
        check_ids_in_range(ids, valid, weight.shape[0])
    if is_direct:
        return _direct(
            hidden, weight, bias, ids, valid, temperature, softcap, return_entropy, return_lse
        )
    rows = Rows.of(ids, valid, are_dropped=mask is not None)
    logprobs, entropy, lse = linear_logprob(
        hidden, weight, bias, rows.ids, rows.valid,
        packed([temperature, softcap, max_buffer_mb]), return_entropy, grad_weight_dtype,
        chosen_backend,
    )  # fmt: skip
    return TokenLogprobs(
        rows.blanked(logprobs),
        rows.blanked(entropy) if return_entropy else None,
        rows.blanked(lse) if return_lse else None,
    )


class Rows(NamedTuple):
    """Which rows a call is to drop, and which to compute and leave out: nothing of it is read."""

    ids: Tensor
    """In range where a row is left out."""
    valid: Tensor | None
    """The rows to keep, bool; None: all, so that nobody has to count them."""
    ignored: Tensor | None

    @classmethod
    def of(cls, ids: Tensor, valid: Tensor, *, are_dropped: bool) -> "Rows":
        """`are_dropped`: those that are not valid, else they are left out."""
        if are_dropped:
            return cls(ids, valid, None)
        return cls(ids.masked_fill(~valid, 0), None, ~valid)

    def blanked(self, values: Tensor) -> Tensor:
        """The values [..., *ids.shape] with 0 where a row is left out, gradients likewise."""
        return values if self.ignored is None else values.masked_fill(self.ignored, 0.0)


def _direct(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, valid: Tensor | None,
    temperature: float, softcap: float | None, return_entropy: bool, return_lse: bool,
) -> TokenLogprobs:  # fmt: skip
    """Keep the logits of the valid rows: three products instead of four where memory allows.

    `valid` None: every row.
    """
    temperature = float(temperature)  # of whatever kind
    rows = kept_rows(valid)
    kept, kept_ids = hidden.reshape(-1, hidden.shape[-1]), ids.reshape(-1)
    if rows is not None:
        kept, kept_ids = kept.index_select(0, rows), kept_ids.index_select(0, rows)
    logits = linear(kept.float(), weight.float(), None if bias is None else bias.float())
    if softcap is not None:
        logits = float(softcap) * torch.tanh(logits / float(softcap))
    if weight.shape[0] <= SMALL_VOCABULARY:  # the ids are known to be in range
        found = of_a_small_vocabulary(
            logits, kept_ids, None, temperature, return_entropy, return_lse
        )
    else:
        found = token_logprobs(
            logits, kept_ids, temperature=temperature, ignore_index=-1,
            return_entropy=return_entropy, return_lse=return_lse, backend="torch",
        )  # fmt: skip

    def in_place(values: Tensor | None) -> Tensor | None:
        if values is None or rows is None:
            return values if values is None else values.view(ids.shape)
        return values.new_zeros(ids.numel()).index_copy(0, rows, values).view(ids.shape)

    logprobs, entropy, lse = map(in_place, found)
    assert logprobs is not None
    return TokenLogprobs(logprobs, entropy, lse)


def check_linear(hidden, weight, bias, ids, mask) -> None:
    """Raise where the arguments of a linear log-prob do not fit together."""
    check_dtype("hidden", hidden, FLOATS)
    if hidden.dim() < 1 or hidden.shape[-1] == 0:
        raise ValueError(f"hidden: expected shape [..., H] with H >= 1; got {list(hidden.shape)}")
    check_dtype("weight", weight, (hidden.dtype,))
    if weight.dim() != 2 or weight.shape[0] == 0:
        raise ValueError(f"weight: expected shape [V, H] with V >= 1; got {list(weight.shape)}")
    n_vocab = weight.shape[0]
    check_shape("weight", weight, (n_vocab, hidden.shape[-1]), "the H of hidden")
    check_device("weight", weight, hidden.device, "hidden")
    if bias is not None:
        dtypes, why = (hidden.dtype, torch.float32), "one per row of weight"
        check_tensor("bias", bias, dtypes, (n_vocab,), why, hidden.device, "hidden")
    check_ids("hidden", hidden, ids, mask)


@torch.library.custom_op("rlvr_kernels::linear_logprob", mutates_args=())
def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    valid: Tensor | None,
    numbers: Tensor,
    with_entropy: bool,
    grad_weight_dtype: torch.dtype | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(log-probs, entropy or [0], log-sum-exp), each in the shape of ids, float32.

    `numbers`: temperature, softcap, max_buffer_mb. `valid` None: every row counts, and nothing is
    read on the host.
    """
    temperature, softcap, max_buffer_mb = unpacked(numbers)
    check_positive_numbers(temperature=temperature, softcap=softcap, max_buffer_mb=max_buffer_mb)
    rows = kept_rows(valid)
    hidden_TD, ids_T = take(hidden, ids, rows)
    if backend == "triton":
        from . import linear_logprob_triton

        found = linear_logprob_triton.forward_sums(
            hidden_TD, unit_stride(weight), bias, ids_T, temperature, softcap, with_entropy, True
        )
        logprobs, entropy, lse = found.unbind(0)
    else:
        logprobs, entropy, lse = _forward_torch(
            hidden_TD, weight, bias, ids_T, temperature, softcap, with_entropy, max_buffer_mb
        )
    return (
        spread(logprobs, rows, ids),
        spread(entropy, rows, ids) if with_entropy else logprobs.new_empty(0),
        spread(lse, rows, ids),
    )


@linear_logprob.register_fake
def _(hidden, weight, bias, ids, valid, numbers, with_entropy, *rest):
    result = hidden.new_empty(ids.shape, dtype=torch.float32)
    entropy = torch.empty_like(result) if with_entropy else result.new_empty(0)
    return result, entropy, torch.empty_like(result)


@torch.library.custom_op("rlvr_kernels::linear_logprob_backward", mutates_args=())
def linear_logprob_backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    valid: Tensor | None,
    coefficients: Tensor,
    numbers: Tensor,
    needs: list[bool],
    grad_weight_dtype: torch.dtype | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight and bias, each [0] where `needs` says it is not wanted.

    coefficients [4, ids.numel()] float32: ref, level, slope, at_target. The gradient to a softmax
    input z is exp(z - ref) (level + slope (z - ref)), and at_target in the target's column.
    """
    temperature, softcap, max_buffer_mb = unpacked(numbers)
    needs_hidden, needs_weight, needs_bias = needs
    rows = kept_rows(valid)
    hidden_TD, ids_T = take(hidden, ids, rows)
    coefficients = (coefficients if rows is None else coefficients[:, rows]).contiguous()
    n_rows, n_vocab = hidden_TD.shape[0], weight.shape[0]
    weight = unit_stride(weight)
    # float16 has no range for gradients of 1e-9: their slab is float32, and so are its products.
    slab_dtype = torch.float32 if hidden.dtype == torch.float16 else hidden.dtype
    weight_dtype = grad_weight_dtype or weight.dtype

    d_hidden = hidden_TD.new_zeros(hidden_TD.shape if needs_hidden else 0, dtype=torch.float32)
    d_weight = weight.new_empty(weight.shape if needs_weight else 0, dtype=weight_dtype)
    d_bias = weight.new_empty(n_vocab if needs_bias else 0, dtype=torch.float32)
    width = slab_width(n_rows, n_vocab, slab_dtype, max_buffer_mb, backend)
    widest = row_stride(min(width, n_vocab), backend)
    buffer = hidden_TD.new_empty(n_rows * widest, dtype=slab_dtype)
    for first in range(0, n_vocab, width):
        slab = slice(first, min(first + width, n_vocab))
        n_columns = slab.stop - first
        stride = row_stride(n_columns, backend)
        dz = buffer[: n_rows * stride].view(n_rows, stride)[:, :n_columns]
        slab_bias = None if bias is None else bias[slab]
        if backend == "triton":
            from . import linear_logprob_triton

            if n_rows:
                linear_logprob_triton.slab_dlogits(
                    hidden_TD, weight[slab], slab_bias, ids_T, coefficients, first,
                    temperature, softcap, dz,
                )  # fmt: skip
        else:
            dz.copy_(
                _slab_dlogits_torch(
                    hidden_TD, weight[slab], slab_bias, ids_T, coefficients, first,
                    temperature, softcap,
                )
            )  # fmt: skip
        if needs_weight:
            _product_into(d_weight[slab], dz.T, hidden_TD)
        if needs_hidden:
            _add_product(d_hidden, dz, weight[slab])
        if needs_bias:
            torch.sum(dz, 0, dtype=torch.float32, out=d_bias[slab])
    if needs_hidden:
        full = d_hidden.to(hidden.dtype)
        if rows is not None:
            full = full.new_zeros(ids.numel(), hidden.shape[-1]).index_copy_(0, rows, full)
        d_hidden = full.view(hidden.shape)
    return d_hidden, d_weight, d_bias if bias is None else d_bias.to(bias.dtype)


@linear_logprob_backward.register_fake
def _(hidden, weight, bias, ids, valid, coefficients, numbers, needs, grad_weight_dtype, backend):
    needs_hidden, needs_weight, needs_bias = needs
    weight_dtype = grad_weight_dtype or weight.dtype
    d_hidden = hidden.new_empty(hidden.shape) if needs_hidden else hidden.new_empty(0).float()
    d_bias_dtype = torch.float32 if bias is None else bias.dtype
    return (
        d_hidden,
        weight.new_empty(weight.shape if needs_weight else 0, dtype=weight_dtype),
        weight.new_empty(weight.shape[0] if needs_bias else 0, dtype=d_bias_dtype),
    )


def _save(ctx, inputs, output) -> None:
    *tensors, _, grad_weight_dtype, backend = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)
    ctx.options = (grad_weight_dtype, backend)


def _gradient(ctx, *grads):
    if all(g is None for g in grads):
        return (None,) * 9
    *inputs, logprobs, entropy, lse = ctx.saved_tensors
    flat = [None if g is None else g.reshape(-1) for g in grads]
    level, slope, at_target = logprob_torch.coefficients(
        logprobs.reshape(-1), entropy.reshape(-1), *flat
    )
    coefficients = torch.stack([lse.reshape(-1), level, slope, at_target])
    return backward_of(ctx, inputs, coefficients)


def backward_of(ctx, inputs, coefficients):
    """The nine gradients of an op with these tensors, from the coefficients of its rows."""
    *tensors, numbers = inputs
    needs = [bool(need) for need in ctx.needs_input_grad[:3]]
    found = linear_logprob_backward(*tensors, coefficients, numbers, needs, *ctx.options)
    wanted = [grad if need else None for grad, need in zip(found, needs, strict=True)]
    return (*wanted, *(None,) * 6)


linear_logprob.register_autograd(_gradient, setup_context=_save)


def slab_width(
    n_rows: int, n_vocab: int, dtype: torch.dtype, max_buffer_mb: float, backend: str
) -> int:
    """Columns of a slab whose temporary fits the budget: a multiple of 256, and at least that."""
    # The torch path holds float32 logits and two results beside them.
    element_bytes = dtype.itemsize if backend == "triton" else 12
    columns = int(max_buffer_mb * _MIB) // (max(1, n_rows) * element_bytes)
    width = max(256, columns // 256 * 256)
    # Even slabs: the last one is not a sliver that leaves the chip idle.
    slabs = -(-n_vocab // width)
    return max(1, min(width, -(-n_vocab // slabs // 256) * 256))


def row_stride(n_columns: int, backend: str) -> int:
    """Elements from one row of a slab to the next: on a GPU a multiple of 16.

    So its stores are 128 bits wide whatever the vocabulary. Narrow ones take registers that the
    tile does not have, and cuBLAS likes aligned rows too.
    """
    return -(-n_columns // 16) * 16 if backend == "triton" else n_columns


def kept_rows(valid: Tensor | None) -> Tensor | None:
    """Indices of the valid rows, or None where all are. Reads their number: syncs on CUDA."""
    if valid is None:
        return None
    rows = valid.reshape(-1).nonzero()[:, 0]
    return None if rows.numel() == valid.numel() else rows


def take(hidden: Tensor, ids: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    hidden_TD = hidden.reshape(-1, hidden.shape[-1])
    ids_T = ids.reshape(-1)
    if rows is not None:
        hidden_TD, ids_T = hidden_TD.index_select(0, rows), ids_T.index_select(0, rows)
    return unit_stride(hidden_TD), ids_T.long().contiguous()


def spread(values: Tensor, rows: Tensor | None, ids: Tensor) -> Tensor:
    """Values of the kept rows in the shape of ids, 0 elsewhere; a tensor of its own."""
    if rows is None:
        return values.clone().view(ids.shape)
    return values.new_zeros(ids.numel()).index_copy_(0, rows, values).view(ids.shape)


def unit_stride(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(-1) == 1 else matrix.contiguous()


def _forward_torch(
    hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, ids_T: Tensor,
    temperature: float, softcap: float | None, with_entropy: bool, max_buffer_mb: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Chunks of tokens, all of the vocabulary at once: each chunk's logits fit the budget."""
    n_rows, n_vocab = hidden_TD.shape[0], weight_VD.shape[0]
    results = hidden_TD.new_zeros((3, n_rows), dtype=torch.float32)
    step = max(1, int(max_buffer_mb * _MIB) // (12 * n_vocab))
    for first in range(0, n_rows, step):
        part = slice(first, first + step)
        z = softmax_input(hidden_TD[part], weight_VD, bias_V, temperature, softcap)
        logprobs, entropy, lse = logprob_torch.score(z, ids_T[part], with_entropy)
        results[0, part], results[2, part] = logprobs, lse
        if entropy is not None:
            results[1, part] = entropy
    return results[0], results[1], results[2]


def softmax_input(hidden, weight, bias, temperature, softcap) -> Tensor:
    """softcap(hidden @ weight.T + bias) / temperature in float32, free to be overwritten."""
    z = product(hidden, weight.T)
    if bias is not None:
        z += bias
    if softcap is not None:
        z.div_(softcap).tanh_().mul_(softcap)
    return z if temperature == 1 else z.mul_(1 / temperature)


def _slab_dlogits_torch(
    hidden_TD, weight_CD, bias_C, ids_T, coefficients, first_column, temperature, softcap
) -> Tensor:
    z = softmax_input(hidden_TD, weight_CD, bias_C, temperature, softcap)
    chain = None
    if softcap is not None:
        chain = (z * (temperature / softcap)).square_().neg_().add_(1)
    ref, level, slope, at_target = coefficients
    dz = logprob_torch.dlogits(z, ref, level, slope, at_target, ids_T - first_column)
    if chain is not None:
        dz.mul_(chain)
    return dz if temperature == 1 else dz.mul_(1 / temperature)


def _product_into(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out = a @ b, accumulated in float32 and rounded once to out's dtype."""
    if a.dtype == b.dtype == out.dtype and (a.is_cuda or a.dtype == torch.float32):
        torch.mm(a, b, out=out)
    else:
        out.copy_(product(a, b))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b in float32, without a second tensor of total's size."""
    if a.dtype == b.dtype != torch.float32 and a.is_cuda:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())
