"""Decode steps captured as CUDA graphs, one for each bucket of rows.

A captured step is one launch instead of ten or more for each layer. It reads and writes
the same tensors at every replay: the engine's slots, the cache, and the model's own weights, so a
step of the optimiser, which changes weights in place, is seen by the next replay.
"""

import gc
import time
from collections.abc import Callable
from functools import cache

import torch

from azr.model.attention import Backend
from azr.rollout.rows import Slots
from azr.rollout.sampler import Mix

Step = Callable[[int, Mix], None]
"""`step(rows, mix)` enqueues one decode step of the first `rows` slots and asks the device nothing.

It is handed over with each call and never kept: whoever owns the graphs owns the cache that the
step reads too, and a cycle between them would keep the device's memory until some later collection.
"""


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


@cache
def side_stream() -> torch.cuda.Stream:
    """Returns the stream that steps are tried and captured on, one for the process.

    cuBLAS keeps a workspace for every stream that it has met, 32 MiB on an H100, and never lets go.
    """
    return torch.cuda.Stream()


class StepGraphs:
    """Captures a step when a bucket is first needed, then replays it."""

    def __init__(self, slots: Slots):
        self._slots = slots
        self._graphs: dict[tuple[int, Mix], torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self.capture_s = 0.0
        """Seconds spent on capturing."""

    @property
    def captured(self) -> int:
        """Graphs captured so far."""
        return len(self._graphs)

    def prepare(self, step: Step, rows: int, mix: Mix) -> None:
        """Captures the step of the first `rows` slots, unless it is captured already."""
        key = rows, mix.on_cuda()
        if key not in self._graphs:
            begun = time.perf_counter()
            self._graphs[key] = self._capture(step, rows, mix)
            self.capture_s += time.perf_counter() - begun

    def replay(self, rows: int, mix: Mix) -> None:
        """Runs a step that was prepared."""
        self._graphs[rows, mix.on_cuda()].replay()

    def _capture(self, step: Step, rows: int, mix: Mix) -> torch.cuda.CUDAGraph:
        # Libraries and compilers set themselves up in a step that runs outside of any capture; what
        # it draws is taken back, and what it stores the real step stores again.
        saved = self._slots.saved()
        stream = side_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step(rows, mix)
        torch.cuda.current_stream().wait_stream(stream)
        self._slots.restore(saved)
        graph = torch.cuda.CUDAGraph()
        # A collection in mid-capture could free another graph, and that call would spoil this one.
        was_collecting = gc.isenabled()
        gc.disable()
        try:
            # Other threads, the checkpoint's among them, may talk to the device meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
            ):
                step(rows, mix)
        finally:
            if was_collecting:
                gc.enable()
        return graph
