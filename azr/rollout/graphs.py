"""Decode steps captured as CUDA graphs, one for each bucket of rows.

A captured step is one launch instead of some twenty for each layer. It reads and writes the same
tensors at every replay: the engine's slots, the cache, and the model's own weights, so a step of
the optimiser, which changes weights in place, is seen by the next replay.
"""

from collections.abc import Callable

import torch

from azr.model.attention import Backend
from azr.rollout.sampler import Mix
from azr.rollout.slots import Slots


def is_capturable(device: torch.device, backend: Backend) -> bool:
    """Returns whether steps are captured: a dense cache reads another extent at each step."""
    return device.type == "cuda" and backend.cache != "rows"


def bucket(rows: int, slots: int) -> int:
    """Returns how many rows are computed for so many: powers of two from 8, steps of 64 above."""
    size = 8
    while size < min(rows, 64):
        size *= 2
    if rows > 64:
        size = -(-rows // 64) * 64
    return min(size, slots)


class StepGraphs:
    """Captures a step when a bucket is first needed, then replays it."""

    def __init__(self, step: Callable[[int, Mix], None], slots: Slots):
        """`step(rows, mix)` enqueues one decode step and asks the device nothing."""
        self._step, self._slots = step, slots
        self._graphs: dict[tuple[int, Mix], torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self.captured = 0
        """Graphs captured so far."""

    def run(self, rows: int, mix: Mix) -> None:
        """Runs one decode step of the first `rows` slots."""
        if (rows, mix) not in self._graphs:
            self._graphs[rows, mix] = self._capture(rows, mix)
        self._graphs[rows, mix].replay()

    def _capture(self, rows: int, mix: Mix) -> torch.cuda.CUDAGraph:
        # Libraries and compilers set themselves up in a step that runs outside of any capture; what
        # it draws is taken back, and what it stores the real step stores again.
        saved = self._slots.saved()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step(rows, mix)
        torch.cuda.current_stream().wait_stream(stream)
        self._slots.restore(saved)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._step(rows, mix)
        self.captured += 1
        return graph
