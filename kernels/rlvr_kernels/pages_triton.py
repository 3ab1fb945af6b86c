"""A page copy kernel: a program a tensor, page and block of its elements."""

import triton
import triton.language as tl
from torch import Tensor

from .backend import interpreting
from .configs import INTERPRETED_BLOCK, PAGES
from .logprob_triton import on_device


@triton.jit
def copy_pages_kernel(
    memory_ptr, source_ptr, target_ptr,  # memory is read and written
    n_pages, n_copies, page_size, tensor_stride, page_stride,  # shapes and strides
    BLOCK: tl.constexpr,
):  # fmt: skip
    job = tl.program_id(0)  # tensors and copies on x: y ends at 65535
    tensor, copy = job // n_copies, job % n_copies
    source, target = tl.load(source_ptr + copy), tl.load(target_ptr + copy)
    # A page that is not there would be memory of something else.
    is_there = (source >= 0) & (source < n_pages) & (target >= 0) & (target < n_pages)
    memory_ptr += tensor.to(tl.int64) * tensor_stride
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (at < page_size) & is_there
    x = tl.load(memory_ptr + source * page_stride + at, mask=inside)
    tl.store(memory_ptr + target * page_stride + at, x, mask=inside)


def copy(memory: Tensor, source: Tensor, target: Tensor) -> None:
    n_tensors, n_pages, page_size = memory.shape
    n_copies = len(source)
    block = INTERPRETED_BLOCK if interpreting() else PAGES.block
    block = min(block, max(128, triton.next_power_of_2(page_size)))
    if memory.numel() and n_copies:
        with on_device(memory):
            copy_pages_kernel[(n_tensors * n_copies, triton.cdiv(page_size, block))](
                memory, source.contiguous(), target.contiguous(),
                n_pages, n_copies, page_size, memory.stride(0), memory.stride(1),
                BLOCK=block,
                num_warps=max(1, PAGES.num_warps * block // PAGES.block),
            )  # fmt: skip
