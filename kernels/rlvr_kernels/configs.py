"""The launch configuration of every kernel, by chip and element size: a table, not an autotuner.

A table is reproducible (the same bits on every start), costs no first-step search, and every row
of it is compiled and inspected without a GPU: `python -m bench.kernels_report`.
"""

from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True, slots=True)
class RowConfig:
    """Forward: `block` columns a step, loads `stages` deep. Backward: `block` columns a program."""

    block: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class NormConfig:
    """A row in one block of at most max_columns, columns_a_warp of them a warp.

    A backward pass that adds the weight's gradient keeps `warps_a_processor` busy, a row after the
    other in each program: more hide more of the memory's latency, and write more partial sums.
    """

    max_columns: int
    columns_a_warp: int
    warps_a_processor: int


@dataclass(frozen=True, slots=True)
class TileConfig:
    """A tile of block_m tokens by block_n vocabulary columns, block_k hidden units a step."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


# Rows and linear tiles: of 5 to 11 tried on an H200 none was faster (docs/notes.md, 2026-11-27).
ROW_FORWARD = RowConfig(block=2048, num_warps=4, num_stages=3)
ROW_BACKWARD = RowConfig(block=2048, num_warps=4, num_stages=1)
SAMPLE = RowConfig(block=2048, num_warps=8, num_stages=3)
LOSS = RowConfig(block=1024, num_warps=4, num_stages=1)
# Eight elements a thread, and 32 where nothing is stored.
ADAMW = RowConfig(block=1024, num_warps=4, num_stages=1)
SQUARE_SUM = RowConfig(block=4096, num_warps=4, num_stages=1)

# Not tuned on a GPU. A norm holds 16 columns a thread, two 128-bit loads in bf16; 32, of rows twice
# as long, would spill. SwiGLU takes 8, so that its blocks of a few rows fill the chip.
NORM = NormConfig(max_columns=8192, columns_a_warp=512, warps_a_processor=16)
SWIGLU = RowConfig(block=1024, num_warps=4, num_stages=1)
PAGES = RowConfig(block=4096, num_warps=4, num_stages=1)
ROTARY_PAIRS = 256  # pairs of columns that a program of one warp turns: 8 a thread
ROTARY_WARPS_A_PROCESSOR = 32

# (generation, bytes an element) -> tile. Generation 8 fits the 99 KiB that a block has on 8.6, 8.9
# and 12.0 as well as the A100, 9 is the H100 and H200: see `generation`.
LINEAR_FORWARD = {
    (8, 2): TileConfig(128, 128, 64, 8, 3),
    (8, 4): TileConfig(64, 128, 32, 8, 3),
    (9, 2): TileConfig(128, 256, 64, 8, 3),
    (9, 4): TileConfig(64, 128, 32, 8, 3),
}
LINEAR_DLOGITS = LINEAR_FORWARD | {(9, 2): TileConfig(128, 256, 32, 8, 4)}
# A bias, a softcap or a float32 gradient of 16-bit inputs takes more registers than the wide tile
# leaves: it would spill.
LINEAR_WITH_EPILOGUE = LINEAR_FORWARD | {
    (8, 2): TileConfig(64, 128, 64, 8, 3),
    (9, 2): TileConfig(128, 128, 64, 8, 4),
}
# The interpreter's cost is per operation, not per element, and its shapes are small.
INTERPRETED_TILE = TileConfig(32, 64, 32, 1, 1)
INTERPRETED_BLOCK = 8192
# What a block must be allowed for the tiles of generation 9; the largest takes 144 KiB.
_WIDE_SHARED_BYTES = 160 << 10


def generation(major: int, shared_bytes: int) -> int:
    """Return whose tiles a chip runs, by its compute capability and what a block may share there.

    The number alone does not say: 12.0 is newer than 9.0 and offers less than half.
    """
    return 9 if major >= 9 and shared_bytes >= _WIDE_SHARED_BYTES else 8


def tile_for(
    table: dict[tuple[int, int], TileConfig], tensor: torch.Tensor, interpreted: bool
) -> TileConfig:
    """Return the tile of `table` for the GPU and the element size of `tensor`."""
    if interpreted:
        return INTERPRETED_TILE
    return table[_generation_of(tensor.device), tensor.element_size()]


def processors(tensor: torch.Tensor) -> int:
    """Return how many multiprocessors the GPU of `tensor` has; 4 for the interpreter."""
    if not tensor.is_cuda:
        return 4
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count


@cache
def _generation_of(device: torch.device) -> int:
    from triton.runtime import driver  # the figure that Triton holds every launch against

    # Triton's annotations name no `utils`, which each driver that can be active has.
    utils = driver.active.utils  # pyrefly: ignore[missing-attribute]
    shared_bytes = utils.get_device_properties(device.index or 0)["max_shared_mem"]
    return generation(torch.cuda.get_device_capability(device)[0], shared_bytes)
