"""Which backend runs the kernels on a device, and why."""

import os

import torch

BACKENDS = ("auto", "torch", "triton")


def doctor() -> dict[str, str]:
    """Return, per device kind, which backend runs and the reason: `python -m rlvr_kernels`."""
    return {
        "cpu": "torch: plain torch path",
        "torch": torch.__version__,
        "RLVR_KERNELS": os.environ.get("RLVR_KERNELS", "unset"),
    }
