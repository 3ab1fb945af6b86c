"""From the host to the device without waiting for it."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BUFFER_BYTES = 2 << 20
"""What is copied at once, where it fits: all that 16,384 packed tokens need, as a rule."""

ALIGNED_BYTES = 16
"""Tensors begin at multiples of it, so that kernels can read 128 bits at a time."""


@dataclass(slots=True)
class _Buffer:
    """Memory of the host, pinned, and its copy on the device to be."""

    host: Tensor
    """uint8"""
    device: Tensor
    """uint8"""
    used: int = 0


class Parcel:
    """Arrays that go to a device together, in one copy that the host does not wait for.

    A plain copy would make the host wait for all that the device has been given before it, array
    by array. So whoever needs arrays on the device puts them first, then the parcel is sent, and
    only then may a kernel read them. Afterwards it is empty, and may be used again.
    """

    def __init__(self, device: torch.device, buffer_bytes: int = BUFFER_BYTES):
        self._device, self._buffer_bytes = device, buffer_bytes
        self._buffers: list[_Buffer] = []
        self._fills: list[tuple[Tensor, Tensor]] = []

    def put(self, values: np.ndarray, dtype: torch.dtype | None = None) -> Tensor:
        """Returns the tensor that holds the values once they are sent; its own type is theirs or
        `dtype`. On the CPU it holds them at once, and may share the array's memory."""
        source = torch.as_tensor(values, dtype=dtype)
        if self._device.type == "cpu":
            return source
        buffer = self._buffer(source.nbytes)
        part = slice(buffer.used, buffer.used + source.nbytes)
        buffer.used += -(-source.nbytes // ALIGNED_BYTES) * ALIGNED_BYTES
        host, device = (
            memory[part].view(source.dtype).view(source.shape)
            for memory in (buffer.host, buffer.device)
        )
        host.copy_(source)
        return device

    def fill(self, target: Tensor, values: np.ndarray) -> None:
        """Puts the values, to be written to a tensor of the device as soon as they are sent."""
        self._fills.append((target, self.put(values)))

    def send(self) -> None:
        """Starts the copy, and the writing of what is to be filled."""
        for buffer in self._buffers:
            if buffer.used:
                used = slice(buffer.used)
                buffer.device[used].copy_(buffer.host[used], non_blocking=True)
        for target, values in self._fills:
            target.copy_(values)
        self._buffers, self._fills = [], []

    def _buffer(self, size: int) -> _Buffer:
        """Returns a buffer that has room: the last one, or another."""
        if not self._buffers or self._buffers[-1].used + size > len(self._buffers[-1].host):
            size = max(self._buffer_bytes, size)
            self._buffers.append(
                _Buffer(
                    host=torch.empty(size, dtype=torch.uint8, pin_memory=True),
                    device=torch.empty(size, dtype=torch.uint8, device=self._device),
                )
            )
        return self._buffers[-1]
