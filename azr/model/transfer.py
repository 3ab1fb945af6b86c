"""From the host to the device without waiting for it."""

import numpy as np
import torch
from torch import Tensor


def to_device(values: np.ndarray, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Returns the values on the device; on the CPU they may share the array's memory.

    To CUDA they go by way of pinned memory: a plain copy would make the host wait for all that the
    device has been given before it, at every tensor of every micro-batch.
    """
    host = torch.as_tensor(values, dtype=dtype)
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)
