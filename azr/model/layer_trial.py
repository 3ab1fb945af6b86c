"""One forward and one backward pass through each decoder layer, before and after it is changed.

Layer by layer, each on the same input: through all of them the rounding of 16 bits adds up to a
tenth and more of deep models' hidden states, which would hide a wrong layer, or accuse a right one.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from azr.model.attention import (
    PackedAttend,
    PackedRows,
    Store,
    arange_positions,
    head_shape,
    hidden_states,
)
from azr.model.attention.sdpa import Sdpa
from azr.model.transfer import Parcel

TOKENS = 16
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""How far what a layer adds may be off, as a share of its size, beside the rounding of what it is
added to: far above the rounding inside one layer, far below what a wrong one gives."""

RESULTS = ("output", "gradient", "keys", "values")


@dataclass(frozen=True, slots=True)
class _Storing:
    """Attends, and has keys and values written to a small cache."""

    attend: PackedAttend
    kept: Store

    def store(self, layer: int) -> Store:
        return self.kept

    def __call__(
        self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, scale: float
    ) -> Tensor:
        return self.attend(layer, q_THK, k_TGK, v_TGK, scale)


@dataclass(slots=True)
class Trial:
    """A layer as it is when this is made, on what a forward pass of the model calls it with."""

    number: int
    layer: nn.Module
    hidden: Tensor
    options: dict[str, Any]
    storing: _Storing
    expected: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.expected = self._results()

    @property
    def is_finite(self) -> bool:
        """Whether all that the layer made is."""
        return all(math.isfinite(x.norm().item()) for x in self.expected)

    def problem(self) -> str | None:
        """Returns what the layer makes otherwise now; None where nothing is."""
        dtype = self.hidden.dtype
        rounding = 4 * torch.finfo(dtype).eps * self.hidden.float().norm().item()
        for what, found, own in zip(RESULTS, self._results(), self.expected, strict=True):
            error, size = (found - own).norm().item(), own.norm().item()
            is_added = what in ("output", "gradient")
            if not error <= TOLERANCE[dtype] * size + rounding * is_added:
                return f"layer {self.number}: {what} off by {error:.2g}, of a size of {size:.2g}"
        return None

    def _results(self) -> list[Tensor]:
        """Returns what the layer adds to its input and to a gradient, and the keys and values that
        it stores, fp32."""
        keys, values, _ = self.storing.kept
        for memory in (keys, values):
            memory.zero_()
        hidden = self.hidden.clone().requires_grad_()
        was_training = self.layer.training
        self.layer.eval()  # packed rows attend without dropout
        try:
            with torch.no_grad():
                output = self.layer(self.hidden, **self.options | {"attend": self.storing})
            with torch.enable_grad():
                again = self.layer(hidden, **self.options | {"attend": self.storing.attend})
        finally:
            self.layer.train(was_training)
        (grad,) = torch.autograd.grad(again, hidden, self.hidden)
        added = (x.float() - self.hidden.float() for x in (output, grad))
        # Copies, or the next layer would change what this one has stored.
        return [*added, keys.float().clone(), values.float().clone()]


def trials_of(model: PreTrainedModel) -> list[Trial]:
    """Returns a trial of each decoder layer of a model, on what it gets for a few tokens."""
    device = model.device
    ids = torch.arange(TOKENS, device=device)[None]
    ids = ids % model.config.get_text_config().vocab_size
    parcel = Parcel(device)
    attend = PackedAttend(Sdpa(), PackedRows.of([TOKENS], parcel))
    parcel.send()
    shape = TOKENS, *head_shape(model.config)
    keys, values = (torch.zeros(shape, device=device, dtype=model.dtype) for _ in range(2))
    storing = _Storing(attend, Store(keys, values, torch.arange(TOKENS, device=device)))
    calls: list[tuple[nn.Module, Tensor, dict[str, Any]]] = []

    def note(layer: nn.Module, given: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        calls.append((layer, given[0].detach(), options))

    layers = [m for m in model.modules() if type(m).__name__.endswith("DecoderLayer")]
    hooks = [m.register_forward_pre_hook(note, with_kwargs=True) for m in layers]
    was_training = model.training
    try:
        with torch.no_grad():
            hidden_states(model.eval(), ids, arange_positions(ids), attend)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    return [Trial(i, *call, storing) for i, call in enumerate(calls)]
