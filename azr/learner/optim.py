"""AdamW for the weights as they are stored: fp32 directly, bf16 without losing small updates.

bf16 keeps 8 bits of a number. At the rates of reinforcement learning an update is a thousand times
smaller than that, so that plain AdamW on bf16 weights changes most of them never. Two cures:

    "master"       an fp32 copy of every weight takes the updates; gradients of all micro-batches
                   are added up in fp32. 18 bytes a parameter with the bf16 weight.
    "stochastic"   weights and moments stay in bf16 and are rounded up or down at random, in
                   proportion to the distance, which keeps every update in the mean. Gradients of
                   several micro-batches are added up in 24 bits, rounded likewise. 9 bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from rlvr_kernels import accumulate_, adamw_, square_sum
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from azr.config import OptimConfig
from azr.keys import make_key

_STATE = "optimizer"


def make_optimizer(model: nn.Module, config: OptimConfig, seed: int) -> "AdamW | StochasticAdamW":
    """Returns the optimiser for the weights of `model` at the rate and decay of `config`.

    Weights that are frozen when it is made stay as they are.
    Raises ValueError where the weights are neither all fp32 nor all bf16.
    """
    dtypes = {p.dtype for p in model.parameters()}
    if dtypes == {torch.float32}:
        return AdamW(dict(model.named_parameters()), config)
    if dtypes == {torch.bfloat16}:
        if config.bf16_update == "master":
            return MasterAdamW(model, config)
        return StochasticAdamW(model, config, seed)
    raise ValueError(f"weights of {sorted(map(str, dtypes))}: load them all in one of fp32, bf16")


class NamedState(torch.optim.Optimizer):
    """An optimiser of named tensors whose state is named after them."""

    named: dict[str, Tensor]
    kinds: tuple[str, ...] = ("exp_avg", "exp_avg_sq")
    """What it keeps of each."""
    hooks: Sequence[RemovableHandle] = ()
    """By which it takes the gradients of the model's weights, where it does."""

    def close(self) -> None:
        """Leaves the gradients to the model's weights again: for an optimiser that is done."""
        for hook in self.hooks:
            hook.remove()

    def state_tensors(self) -> dict[str, Tensor]:
        """Returns copies on the CPU of everything that the next step depends on."""
        return {
            f"{_STATE}/{kind}/{name}": value.detach().to("cpu", copy=True)
            for name, parameter in self.named.items()
            for kind, value in self.state.get(parameter, {}).items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes back `state_tensors`; a parameter without any is left as it is."""
        for name, parameter in self.named.items():
            own = {
                kind: tensors[key].to(parameter.device, copy=True)
                for kind in self.kinds
                if (key := f"{_STATE}/{kind}/{name}") in tensors
            }
            if own:
                self.state[parameter] = own


class AdamW(NamedState, torch.optim.AdamW):
    """torch's fused AdamW over named fp32 tensors, with its state as named tensors."""

    # It keeps its step count in fp32, on the device where it is fused.
    kinds = ("step", *NamedState.kinds)

    def __init__(self, named: Mapping[str, Tensor], config: OptimConfig):
        self.named = dict(named)
        super().__init__(
            self.named.values(),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )

    def clip(self, max_norm: float) -> Tensor:
        """Scales the gradients to at most `max_norm`; returns their norm before, fp32."""
        return nn.utils.clip_grad_norm_(self.named.values(), max_norm)


class MasterAdamW(AdamW):
    """AdamW on fp32 copies of bf16 weights.

    A weight's gradient moves into its copy's as soon as autograd has it, so that the model never
    holds more than one micro-batch's gradient of one weight in bf16.
    """

    def __init__(self, model: nn.Module, config: OptimConfig):
        self.weights = dict(model.named_parameters())
        masters = {
            name: nn.Parameter(weight.detach().float()) for name, weight in self.weights.items()
        }
        self.hooks = [
            weight.register_post_accumulate_grad_hook(partial(_collect, masters[name]))
            for name, weight in self.weights.items()
            if weight.requires_grad
        ]
        super().__init__(masters, config)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Updates the copies, and the weights from them."""
        super().step(closure)
        torch._foreach_copy_(list(self.weights.values()), list(self.named.values()))

    def state_tensors(self) -> dict[str, Tensor]:
        """Returns copies on the CPU of the moments and of the fp32 weights."""
        copies = {
            f"{_STATE}/master/{name}": master.detach().to("cpu", copy=True)
            for name, master in self.named.items()
        }
        return super().state_tensors() | copies

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        super().load_tensors(tensors)
        for name, master in self.named.items():
            master.copy_(tensors[f"{_STATE}/master/{name}"])


def _collect(master: nn.Parameter, weight: Tensor) -> None:
    """Moves the gradient of a weight into its copy's."""
    grad, weight.grad = weight.grad, None
    assert grad is not None  # or autograd would not call
    if master.grad is None:
        master.grad = grad.float()
    else:
        master.grad.add_(grad)


@dataclass(slots=True)
class GradientSum:
    """The gradients of a bf16 weight over the micro-batches of an update.

    The first is kept as it is. From the second on the sum has 8 bits more, and each addition is
    rounded stochastically to them. A weight's gradient comes here as soon as autograd has it.
    """

    key: int = 0
    """That of this update's noise."""
    total: Tensor | None = None
    low: Tensor | None = None
    """uint8: the 8 bits below those of `total`."""
    count: int = 0

    def add(self, weight: Tensor) -> None:
        """Takes the weight's gradient from it."""
        grad, weight.grad = weight.grad, None
        assert grad is not None  # or autograd would not call
        self.count += 1
        if self.total is None:
            self.total = grad
            return
        if self.low is None:
            self.low = torch.zeros_like(self.total, dtype=torch.uint8)
        accumulate_(self.total, self.low, grad, key=make_key(self.key, self.count))

    def clear(self, key: int) -> None:
        """Begins anew, with the noise of `key`."""
        self.key, self.total, self.low, self.count = key, None, None, 0


class StochasticAdamW(NamedState):
    """AdamW on bf16 weights with bf16 moments, all rounded stochastically.

    The noise is a function of the seed, the number of updates so far and the weight's place, so
    that a resumed run rounds as the run would have.
    """

    def __init__(self, model: nn.Module, config: OptimConfig, seed: int):
        self.named = dict(model.named_parameters())
        self.seed, self.updates = seed, 0
        self.gradients = [GradientSum() for _ in self.named]
        self.hooks = [
            weight.register_post_accumulate_grad_hook(gradient.add)
            for weight, gradient in zip(self.named.values(), self.gradients, strict=True)
            if weight.requires_grad
        ]
        self._scale: Tensor | None = None
        defaults = {
            "lr": config.lr,
            "betas": (config.beta1, config.beta2),
            "weight_decay": config.weight_decay,
            "eps": 1e-8,
        }
        super().__init__(self.named.values(), defaults)
        self.zero_grad()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients since the last update."""
        super().zero_grad(set_to_none)
        self._scale = None
        for place, gradient in enumerate(self.gradients):
            gradient.clear(make_key(self.seed, "accumulation", self.updates, place))

    def clip(self, max_norm: float) -> Tensor:
        """Returns the gradients' norm, fp32; `step` scales them to at most `max_norm`.

        They are not scaled in place: another rounding to bf16 is saved.
        """
        sums = [square_sum(g.total, g.low) for g in self.gradients if g.total is not None]
        norm = torch.stack(sums).sum().sqrt()
        self._scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        return norm

    @torch.no_grad()
    # No closure is taken, which torch's overloads have a value for.
    def step(self, closure: None = None) -> None:  # pyrefly: ignore[bad-override]
        """Updates every weight that has a gradient."""
        self.updates += 1
        options = self.param_groups[0]
        beta1, beta2 = options["betas"]
        for place, (p, gradient) in enumerate(
            zip(self.named.values(), self.gradients, strict=True)
        ):
            if gradient.total is None:
                continue
            if not self.state[p]:
                self.state[p] = {kind: torch.zeros_like(p) for kind in self.kinds}
            adamw_(
                p,
                gradient.total,
                **self.state[p],
                grad_low=gradient.low,
                scale=torch.ones((), device=p.device) if self._scale is None else self._scale,
                lr=options["lr"],
                beta1=beta1,
                beta2=beta2,
                eps=options["eps"],
                weight_decay=options["weight_decay"],
                step=self.updates,
                key=make_key(self.seed, "rounding", self.updates, place),
            )

    def state_tensors(self) -> dict[str, Tensor]:
        """Returns copies on the CPU of the moments, and the number of updates."""
        return {f"{_STATE}/updates": torch.tensor(self.updates)} | super().state_tensors()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.updates = int(tensors[f"{_STATE}/updates"])
        self.zero_grad()
        super().load_tensors(tensors)
