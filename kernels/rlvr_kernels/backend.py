"""Which backend runs the kernels on a device, and why.

    triton   the Triton kernels: CUDA, compute capability 8.0 or newer
    torch    plain torch: every device

A call chooses by its `backend` argument; "auto", the default, takes Triton where it runs and torch
elsewhere. The environment variable RLVR_KERNELS = torch | triton | interpret overrides "auto";
"interpret" runs the Triton kernels on the CPU under Triton's interpreter, slowly, to test them.
"""

import importlib.util
import os
import sys
import warnings
from functools import cache

import torch

BACKENDS = ("auto", "torch", "triton")
OVERRIDES = ("torch", "triton", "interpret")
VARIABLE = "RLVR_KERNELS"
MIN_CAPABILITY = (8, 0)


def resolve(requested: str, device: torch.device) -> str:
    """Return "torch" or "triton", raising RuntimeError where a demanded backend cannot run.

    A CUDA device that has to use torch under "auto" gets a warning with the reason, once.
    """
    if requested not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}; got {requested!r}")
    override = _override()
    choice = override if requested == "auto" else requested
    if choice == "torch":
        return "torch"
    if override == "interpret":
        _start_interpreter()
        return "triton"
    if choice == "auto" and device.type != "cuda":
        return "torch"
    problem = _triton_problem(device)
    if problem is None:
        return "triton"
    if choice == "triton":
        raise RuntimeError(f"backend 'triton' cannot run on {device}: {problem}")
    _warn_once(f"rlvr_kernels uses its slower torch path on {device}: {problem}")
    return "torch"


# A compiled graph keeps the answer of its trace. This is all that torch.compiler's
# assume_constant_result does; calling it would import the whole compiler, and triton with it.
resolve.__dict__["_dynamo_marked_constant"] = True


def doctor() -> dict[str, str]:
    """Return which backend "auto" means on each device here and why: `python -m rlvr_kernels`.

    Keys: "torch" and "triton" (versions), VARIABLE (its value), and one per device, "cpu",
    "cuda:0", ...: "triton: ..." or "torch: ..." with the reason.
    """
    lines = {
        "torch": torch.__version__,
        "triton": _triton_version() or "not installed",
        VARIABLE: os.environ.get(VARIABLE) or "not set",
        "cpu": _explain(torch.device("cpu")),
    }
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        name = torch.cuda.get_device_name(device)
        lines[f"cuda:{index}"] = f"{_explain(device)} ({name})"
    return lines


def interpreting() -> bool:
    """Whether Triton, if loaded, runs under its interpreter: fixed when it is first imported."""
    if "triton" not in sys.modules:
        return False
    import triton.language as tl
    from triton.runtime.jit import JITFunction

    return not isinstance(tl.max, JITFunction)


def _explain(device: torch.device) -> str:
    override = _override()
    if override == "torch":
        return f"torch: {VARIABLE}=torch"
    if override == "interpret":
        return f"triton: under its interpreter, {VARIABLE}=interpret"
    if device.type != "cuda" and override == "auto":
        return "torch: Triton kernels need a CUDA device"
    problem = _triton_problem(device)
    if problem is None:
        return f"triton: compute capability {_capability(device)}"
    return (
        f"none: {VARIABLE}=triton, but {problem}" if override == "triton" else f"torch: {problem}"
    )


def _override() -> str:
    value = os.environ.get(VARIABLE) or "auto"
    if value != "auto" and value not in OVERRIDES:
        raise ValueError(f"{VARIABLE}: expected one of {', '.join(OVERRIDES)}; got {value!r}")
    return value


def _triton_problem(device: torch.device) -> str | None:
    """Why the Triton kernels cannot run on `device`, or None where they can."""
    if _triton_version() is None:
        return "triton is not installed"
    if interpreting():
        return None
    if device.type != "cuda":
        return "Triton kernels need a CUDA device"
    if torch.version.hip is not None:
        return "the kernels are built for NVIDIA, this torch is for ROCm"
    if torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return f"compute capability {_capability(device)} is below 8.0"
    return None


def _start_interpreter() -> None:
    """Load Triton in interpreter mode: possible only before anything else has loaded it."""
    if _triton_version() is None:
        raise RuntimeError(f"{VARIABLE}=interpret: triton is not installed")
    if "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"
        import triton.language  # noqa: F401
    if not interpreting():
        raise RuntimeError(
            f"{VARIABLE}=interpret: triton was imported before, compiled; "
            "set TRITON_INTERPRET=1 for the whole process"
        )


def _capability(device: torch.device) -> str:
    return ".".join(map(str, torch.cuda.get_device_capability(device)))


@cache
def _triton_version() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return None
    from importlib.metadata import PackageNotFoundError, version

    for name in ("triton", "pytorch-triton"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
