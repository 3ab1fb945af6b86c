"""SwiGLU kernels: a program a row and block of columns, each element read and written once."""

import triton
import triton.language as tl
from torch import Tensor

from .backend import interpreting
from .configs import INTERPRETED_BLOCK, SWIGLU
from .logprob_triton import on_device
from .rows import matrix_of


@triton.jit
def swiglu_fwd_kernel(
    gate_up_ptr,  # inputs
    out_ptr,  # results
    n_columns, stride,  # shapes and strides; n_columns of each half
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)  # rows on x: y ends at 65535
    gate_up_ptr += row * stride
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < n_columns
    gate = tl.load(gate_up_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + n_columns + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * n_columns + columns, gate * tl.sigmoid(gate) * up, mask=inside)


@triton.jit
def swiglu_bwd_kernel(
    gate_up_ptr, grad_ptr,  # saved, upstream
    d_gate_up_ptr,  # results
    n_columns, stride, grad_stride,  # shapes and strides; n_columns of each half
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    gate_up_ptr += row * stride
    d_gate_up_ptr += row * n_columns * 2
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < n_columns
    gate = tl.load(gate_up_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + n_columns + columns, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad_ptr + row * grad_stride + columns, mask=inside, other=0.0).to(tl.float32)
    p = tl.sigmoid(gate)
    silu = gate * p
    d_gate = g * up * (p + silu * (1 - p))
    tl.store(d_gate_up_ptr + columns, d_gate, mask=inside)
    tl.store(d_gate_up_ptr + n_columns + columns, g * silu, mask=inside)


def forward(gate_up: Tensor) -> Tensor:
    rows = matrix_of(gate_up)
    n_rows, n_columns = len(rows), rows.shape[1] // 2
    out = gate_up.new_empty((*gate_up.shape[:-1], n_columns))
    block, num_warps = _block(n_columns)
    if n_rows:
        with on_device(gate_up):
            swiglu_fwd_kernel[(n_rows, triton.cdiv(n_columns, block))](
                rows,
                out,
                n_columns, rows.stride(0),
                BLOCK=block,
                num_warps=num_warps,
            )  # fmt: skip
    return out


def backward(gate_up: Tensor, grad: Tensor) -> Tensor:
    rows, grads = matrix_of(gate_up), matrix_of(grad)
    n_rows, n_columns = grads.shape
    out = gate_up.new_empty(gate_up.shape)
    block, num_warps = _block(n_columns)
    if n_rows:
        with on_device(gate_up):
            swiglu_bwd_kernel[(n_rows, triton.cdiv(n_columns, block))](
                rows, grads,
                out,
                n_columns, rows.stride(0), grads.stride(0),
                BLOCK=block,
                num_warps=num_warps,
            )  # fmt: skip
    return out


def _block(n_columns: int) -> tuple[int, int]:
    """Return the columns of a block, fewer for rows that do not fill it, and its warps."""
    if interpreting():
        return min(INTERPRETED_BLOCK, max(16, triton.next_power_of_2(n_columns))), 1
    block = min(SWIGLU.block, max(128, triton.next_power_of_2(n_columns)))
    return block, max(1, SWIGLU.num_warps * block // SWIGLU.block)
