"""Copies of pages inside the memory of a KV cache: all layers, keys and values in one launch."""

import torch
from torch import Tensor

from .backend import resolve
from .checks import FLOATS, check_device, check_dtype, check_tensor


def copy_pages(memory: Tensor, source: Tensor, target: Tensor, *, backend: str = "auto") -> None:
    """Copy memory[:, source] to memory[:, target], in place.

    memory          [N, P, E] float32, bfloat16 or float16: N tensors of P pages of E elements, each
                    page contiguous
    source, target  [C] int64: which pages. None may be both read and written, or written twice
    backend         "auto", "torch" or "triton": see `rlvr_kernels.backend`

    Nothing is differentiated. A page outside of [0, P) is an error on the CPU; Triton leaves it
    out, since the host does not wait for the device.
    Raises TypeError for a dtype, ValueError for a shape, layout or device.
    """
    check_dtype("memory", memory, FLOATS)
    if memory.dim() != 3:
        raise ValueError(f"memory: expected shape [N, P, E]; got {list(memory.shape)}")
    if memory.stride(2) != 1 and memory.shape[2] > 1:
        raise ValueError(
            f"memory: expected contiguous pages, a last stride of 1; got {memory.stride(2)}"
        )
    check_dtype("source", source, (torch.int64,))
    if source.dim() != 1:
        raise ValueError(f"source: expected shape [C]; got {list(source.shape)}")
    check_device("source", source, memory.device, "memory")
    shape = tuple(source.shape)
    check_tensor("target", target, (torch.int64,), shape, "that of source", memory.device, "memory")
    copy_pages_op(memory, source, target, resolve(backend, memory.device))


@torch.library.custom_op("rlvr_kernels::copy_pages", mutates_args=("memory",))
def copy_pages_op(memory: Tensor, source: Tensor, target: Tensor, backend: str) -> None:
    if backend == "triton":
        from . import pages_triton

        pages_triton.copy(memory, source, target)
    else:
        memory.index_copy_(1, target, memory.index_select(1, source))


@copy_pages_op.register_fake
def _(memory, source, target, backend):
    return None
