"""RMSNorm kernels: a row is one block, read once in either direction.

Forward: a program a row. Backward: the root mean square is taken again from the row in registers.
With a gradient of the weight a program takes every so many-th row and keeps the sum of its own rows
in registers: a partial sum a program, added up in a fixed order by torch. Without one, a program a
row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backend import interpreting
from .configs import NORM, processors
from .logprob_triton import on_device
from .rows import matrix_of


@triton.jit
def rms_norm_fwd_kernel(
    x_ptr, residual_ptr, weight_ptr,  # inputs; residual None where there is none
    sum_ptr, normed_ptr,  # results; sum None likewise
    n_columns, x_stride, residual_stride,  # shapes and strides
    eps: tl.float32,
    HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)  # row * stride passes 2^31
    columns = tl.arange(0, BLOCK)
    inside = columns < n_columns
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + row * residual_stride + columns, mask=inside, other=0.0)
        # What is normalised is the sum as it is stored: the backward pass reads that one.
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
        tl.store(sum_ptr + row * n_columns + columns, x, mask=inside)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    x = x.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, 0) / n_columns + eps)
    tl.store(normed_ptr + row * n_columns + columns, x * rstd * weight, mask=inside)


@triton.jit
def rms_norm_bwd_kernel(
    x_ptr, weight_ptr,  # saved
    g_normed_ptr, g_sum_ptr,  # upstream; g_sum None where absent
    dx_ptr, partials_ptr,  # results; partials [programs, n_columns], None where not wanted
    n_rows, n_columns, x_stride, g_normed_stride, g_sum_stride,  # shapes and strides
    eps: tl.float32,
    HAS_SUM: tl.constexpr, NEEDS_WEIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)  # and so the rows below: row * stride passes 2^31
    columns = tl.arange(0, BLOCK)
    inside = columns < n_columns
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0)
    d_weight = tl.zeros([BLOCK], tl.float32)
    for row in tl.range(program, n_rows, tl.num_programs(0)):
        x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(g_normed_ptr + row * g_normed_stride + columns, mask=inside, other=0.0)
        g = g.to(tl.float32)
        pull = g * weight.to(tl.float32)
        rstd = tl.rsqrt(tl.sum(x * x, 0) / n_columns + eps)
        hat = x * rstd
        # What comes through the mean square, in which every column has its part.
        share = tl.sum(pull * hat, 0) / n_columns
        dx = (pull - hat * share) * rstd
        if HAS_SUM:
            g_sum = tl.load(g_sum_ptr + row * g_sum_stride + columns, mask=inside, other=0.0)
            dx += g_sum.to(tl.float32)
        tl.store(dx_ptr + row * n_columns + columns, dx, mask=inside)
        if NEEDS_WEIGHT:
            d_weight += g * hat
    if NEEDS_WEIGHT:
        tl.store(partials_ptr + program * n_columns + columns, d_weight, mask=inside)


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return (sum, normalised sum); without a residual the sum is x itself."""
    normed = x.new_empty(x.shape)
    total = x if residual is None else torch.empty_like(normed)
    x_TD = matrix_of(x)
    residual_TD = x_TD if residual is None else matrix_of(residual)
    n_rows, n_columns = x_TD.shape
    block, num_warps = block_of(n_columns)
    if n_rows:
        with on_device(x):
            rms_norm_fwd_kernel[(n_rows,)](
                x_TD, None if residual is None else residual_TD, weight.contiguous(),
                None if residual is None else total, normed,
                n_columns, x_TD.stride(0), residual_TD.stride(0),
                eps,
                HAS_RESIDUAL=residual is not None,
                BLOCK=block,
                num_warps=num_warps,
            )  # fmt: skip
    return total, normed


def backward(
    x: Tensor, weight: Tensor, g_normed: Tensor, g_sum: Tensor | None, eps: float,
    needs_weight: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients of the normalised rows x and of the weight, [0] if not wanted."""
    dx = x.new_empty(x.shape)
    x_TD, g_TD = matrix_of(x), matrix_of(g_normed)
    sum_TD = None if g_sum is None else matrix_of(g_sum)
    n_rows, n_columns = x_TD.shape
    block, num_warps = block_of(n_columns)
    programs = n_rows
    if needs_weight:
        share = max(2, NORM.warps_a_processor // num_warps)
        programs = min(n_rows, share * processors(x))
    shape = (programs, n_columns if needs_weight else 0)
    partials = torch.empty(shape, dtype=torch.float32, device=x.device)
    if n_rows:
        with on_device(x):
            rms_norm_bwd_kernel[(programs,)](
                x_TD, weight.contiguous(),
                g_TD, sum_TD,
                dx, partials if needs_weight else None,
                n_rows, n_columns,
                x_TD.stride(0), g_TD.stride(0), 0 if sum_TD is None else sum_TD.stride(0),
                eps,
                HAS_SUM=sum_TD is not None,
                NEEDS_WEIGHT=needs_weight,
                BLOCK=block,
                num_warps=num_warps,
            )  # fmt: skip
    return dx, partials.sum(0).to(weight.dtype)


def block_of(n_columns: int) -> tuple[int, int]:
    """Return the columns of a block that holds a row, and its warps."""
    if n_columns > NORM.max_columns:
        raise ValueError(
            f"x: expected at most {NORM.max_columns} columns for backend 'triton'; "
            f"got {n_columns}: use backend='torch'"
        )
    block = max(16, triton.next_power_of_2(n_columns))
    if interpreting():
        return block, 1
    return block, max(1, block // NORM.columns_a_warp)
