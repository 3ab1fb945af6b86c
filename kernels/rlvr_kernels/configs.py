"""The launch configuration of every kernel, by chip and element size: a table, not an autotuner.

A table is reproducible (the same bits on every start), costs no first-step search, and every row
of it is compiled and inspected without a GPU: `python -m rlvr_kernels.report`.
"""

from dataclasses import asdict, dataclass

import torch


@dataclass(frozen=True, slots=True)
class RowConfig:
    """Forward: `block` columns a step, loads `stages` deep. Backward: `block` columns a program."""

    block: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class TileConfig:
    """A tile of block_m tokens by block_n vocabulary columns, block_k hidden units a step."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int

    def describe(self) -> str:
        return "x".join(map(str, list(asdict(self).values())[:3]))


ROW_FORWARD = RowConfig(block=4096, num_warps=8, num_stages=3)
ROW_BACKWARD = RowConfig(block=4096, num_warps=8, num_stages=1)
SAMPLE = RowConfig(block=2048, num_warps=8, num_stages=3)
LOSS = RowConfig(block=1024, num_warps=4, num_stages=1)

# (compute capability major, bytes an element) -> tile. Capability 8 is the A100 (and fits the
# 99 KiB of the 8.6 and 8.9 chips too), 9 the H100 and H200; newer chips take the row of 9.
LINEAR_FORWARD = {
    (8, 2): TileConfig(128, 128, 64, 8, 3),
    (8, 4): TileConfig(64, 128, 32, 8, 3),
    (9, 2): TileConfig(128, 256, 64, 8, 3),
    (9, 4): TileConfig(64, 128, 32, 8, 3),
}
LINEAR_DLOGITS = LINEAR_FORWARD | {(9, 2): TileConfig(128, 256, 32, 8, 4)}
# A bias or a softcap takes more registers than the wide tile leaves: it would spill.
LINEAR_WITH_EPILOGUE = LINEAR_FORWARD | {(9, 2): TileConfig(128, 128, 64, 8, 4)}
# The interpreter's cost is per operation, not per element, and its shapes are small.
INTERPRETED_TILE = TileConfig(32, 64, 32, 1, 1)
INTERPRETED_BLOCK = 8192


def tile_for(
    table: dict[tuple[int, int], TileConfig], tensor: torch.Tensor, interpreted: bool
) -> TileConfig:
    if interpreted:
        return INTERPRETED_TILE
    major = torch.cuda.get_device_capability(tensor.device)[0]
    return table[min(major, 9), tensor.element_size()]
