"""Which attention backends can run here, why not the others, and which one is taken."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from azr.model.attention.flash import FlashAttn, TorchAten, TorchVarlen, takes, torch_varlen
from azr.model.attention.packed import Backend
from azr.model.attention.sdpa import Sdpa
from azr.model.attention.trial import decode_problem

MIN_CAPABILITY = (8, 0)
MAX_HEAD_SIZE = 256
USUAL_HEAD_SIZE = 128
"""What is tried where no model says otherwise."""


class BackendProbe(NamedTuple):
    """What was found out about a backend."""

    name: str
    usable: bool
    reason: str


def backends(
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    head_size: int | None = None,
) -> list[BackendProbe]:
    """Returns every backend in the order of preference, whether it can run, and why (not).

    `device` is the current CUDA device where there is one, else the CPU; `dtype` is what trains
    there, bfloat16 or float32; `head_size` is not checked where it is not given. One that looks
    usable has decoded two rows, rightly, before it is called so. The first usable one is what
    "auto" takes.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return [_probe(name, device, dtype, head_size) for name in NAMES]


def choose(requested: str, device: torch.device, dtype: torch.dtype, head_size: int) -> Backend:
    """Returns the requested backend, or for "auto" the first that can run.

    Raises ValueError for an unknown name, or for a backend that cannot run, with the reason.
    """
    return _MAKERS[_taken(requested, device, dtype, head_size)[-1].name]()


def described(requested: str, device: torch.device, dtype: torch.dtype, head_size: int) -> str:
    """Returns which backend `choose` takes and why, on a GPU also why not those before it."""
    *passed, taken = _taken(requested, device, dtype, head_size)
    why = taken.reason if requested == "auto" else "as asked by --rollout.attention"
    if device.type == "cpu":
        passed = []  # all for one reason, that it is the CPU
    return "; ".join([f"{taken.name}: {why}", *(f"not {p.name}: {p.reason}" for p in passed)])


def _taken(
    requested: str, device: torch.device, dtype: torch.dtype, head_size: int
) -> list[BackendProbe]:
    """Returns the backend that is taken, last, behind those that were passed over.

    Others than the requested one are left alone: a kernel that fails can take the device with it.
    """
    if requested not in ("auto", *NAMES):
        raise ValueError(f"attention backend {requested!r}: use one of auto, {', '.join(NAMES)}")
    probes = []
    for name in NAMES if requested == "auto" else (requested,):
        probes.append(_probe(name, device, dtype, head_size))
        if probes[-1].usable:
            return probes
    raise ValueError(
        f"attention backend {requested!r} cannot run here: {probes[-1].reason}; use auto, which "
        "takes the first that can"
    )


def _probe(
    name: str, device: torch.device, dtype: torch.dtype, head_size: int | None
) -> BackendProbe:
    if name == "sdpa":
        return BackendProbe(name, True, _REASONS[name])
    problem = (
        _common_problem(device, dtype, head_size)
        or _PROBES[name]()
        or decode_problem(_MAKERS[name](), device, dtype, head_size or USUAL_HEAD_SIZE)
    )
    return BackendProbe(name, problem is None, problem or _REASONS[name])


def _common_problem(device: torch.device, dtype: torch.dtype, head_size: int | None) -> str | None:
    """Why FlashAttention-2 kernels cannot run at all, None where they can."""
    if device.type != "cuda":
        return "needs a CUDA device"
    if torch.version.hip is not None:
        return "built for NVIDIA, this torch is for ROCm"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return f"needs compute capability 8.0, this device has {capability[0]}.{capability[1]}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"needs bfloat16 or float16, the model is {str(dtype).removeprefix('torch.')}"
    if head_size is not None and (head_size > MAX_HEAD_SIZE or head_size % 8):
        return f"needs a head size that is a multiple of 8 up to 256, the model's is {head_size}"
    return None


def _flash_attn_problem() -> str | None:
    try:
        FlashAttn()
    except ImportError as error:
        # flash-attn 4 shares the name but has neither function.
        return f"flash-attn 2 is not installed (the extra `flash`): {error}"
    return None


def _torch_varlen_problem() -> str | None:
    try:
        function = torch_varlen()
    except ImportError as error:
        return f"this torch has no varlen_attn: {error}"
    if not takes(function, "seqused_k", "block_table", "enable_gqa"):
        return f"varlen_attn of torch {torch.__version__} takes no page table (2.12 does)"
    return None


def _torch_aten_problem() -> str | None:
    try:
        torch_varlen()
        schema = torch.ops.aten._flash_attention_forward.default._schema
    except (ImportError, AttributeError) as error:
        return f"this torch has no such operator: {error}"
    if "seqused_k" not in {argument.name for argument in schema.arguments}:
        return f"_flash_attention_forward of torch {torch.__version__} takes no row lengths"
    return None


_PROBES: dict[str, Callable[[], str | None]] = {
    "flash-attn": _flash_attn_problem,
    "torch-varlen": _torch_varlen_problem,
    "torch-aten": _torch_aten_problem,
}
_MAKERS: dict[str, Callable[[], Backend]] = {
    "flash-attn": FlashAttn,
    "torch-varlen": TorchVarlen,
    "torch-aten": TorchAten,
    "sdpa": Sdpa,
}
_REASONS = {
    "flash-attn": "the flash-attn package is installed",
    "torch-varlen": "torch's varlen_attn takes a page table",
    "torch-aten": "torch's flash-attention operator takes row lengths",
    "sdpa": "runs everywhere",
}
NAMES = tuple(_MAKERS)
