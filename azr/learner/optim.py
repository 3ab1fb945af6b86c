"""AdamW for the weights as they are stored: fp32 directly, bf16 without losing small updates.

bf16 keeps 8 bits of a number. At the rates of reinforcement learning an update is a thousand times
smaller than that, so that plain AdamW on bf16 weights changes most of them never. Two cures:

    "master"       an fp32 copy of every weight takes the updates; gradients of all micro-batches
                   are added up in fp32. 18 bytes a parameter with the bf16 weight.
    "stochastic"   weights and moments stay in bf16 and are rounded up or down at random, in
                   proportion to the distance, which keeps every update in the mean. 8 bytes.
"""

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from azr.config import OptimConfig
from azr.keys import make_key

CHUNK = 2**24
"""Elements that the stochastic update holds in fp32 at a time: 64 MiB a temporary."""

_STATE = "optimizer"


def make_optimizer(model: nn.Module, config: OptimConfig, seed: int) -> "AdamW | StochasticAdamW":
    """Returns the optimiser for the weights of `model` at the rate and decay of `config`.

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
        for name, weight in self.weights.items():
            weight.register_post_accumulate_grad_hook(partial(_collect, masters[name]))
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


class StochasticAdamW(NamedState):
    """AdamW on bf16 weights with bf16 moments, all rounded stochastically.

    The noise is a function of the seed, the number of updates so far and the weight's place, so
    that a resumed run rounds as the run would have. Gradients of several micro-batches add up in
    bf16, so that few and large ones are better than many.
    """

    def __init__(self, model: nn.Module, config: OptimConfig, seed: int):
        self.named = dict(model.named_parameters())
        self.seed, self.updates = seed, 0
        self._scale: Tensor | float = 1.0
        defaults = {
            "lr": config.lr,
            "betas": (config.beta1, config.beta2),
            "weight_decay": config.weight_decay,
            "eps": 1e-8,
        }
        super().__init__(self.named.values(), defaults)

    def clip(self, max_norm: float) -> Tensor:
        """Returns the gradients' norm, fp32; `step` scales them to at most `max_norm`.

        They are not scaled in place: another rounding to bf16 is saved.
        """
        norms = [
            torch.linalg.vector_norm(p.grad, dtype=torch.float32)
            for p in self.named.values()
            if p.grad is not None
        ]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        self._scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        return norm

    @torch.no_grad()
    # No closure is taken, which torch's overloads have a value for.
    def step(self, closure: None = None) -> None:  # pyrefly: ignore[bad-override]
        """Updates every weight that has a gradient."""
        self.updates += 1
        group = self.param_groups[0]
        for place, p in enumerate(self.named.values()):
            if p.grad is None:
                continue
            if not self.state[p]:
                self.state[p] = {kind: torch.zeros_like(p) for kind in self.kinds}
            noise = torch.Generator(p.device)
            noise.manual_seed(make_key(self.seed, "rounding", self.updates, place) >> 1)
            flat = [t.view(-1) for t in (p, p.grad, *self.state[p].values())]
            for chunk in zip(*(t.split(CHUNK) for t in flat), strict=True):
                self._update(chunk, group, noise)
        self._scale = 1.0

    def _update(self, chunk: tuple[Tensor, ...], group: dict, noise: torch.Generator) -> None:
        p, grad, exp_avg, exp_avg_sq = chunk
        (beta1, beta2), lr = group["betas"], group["lr"]
        g = grad.float().mul_(self._scale)
        m = exp_avg.float().lerp_(g, 1 - beta1)
        v = exp_avg_sq.float().mul_(beta2).addcmul_(g, g, value=1 - beta2)
        size = v.sqrt().div_(math.sqrt(1 - beta2**self.updates)).add_(group["eps"])
        w = p.float().mul_(1 - lr * group["weight_decay"])
        w.addcdiv_(m, size, value=-lr / (1 - beta1**self.updates))
        for stored, exact in ((p, w), (exp_avg, m), (exp_avg_sq, v)):
            round_stochastic_(stored, exact, noise)

    def state_tensors(self) -> dict[str, Tensor]:
        """Returns copies on the CPU of the moments, and the number of updates."""
        return {f"{_STATE}/updates": torch.tensor(self.updates)} | super().state_tensors()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.updates = int(tensors[f"{_STATE}/updates"])
        super().load_tensors(tensors)


def round_stochastic_(stored: Tensor, exact: Tensor, noise: torch.Generator) -> None:
    """Writes fp32 `exact` into bf16 `stored`, rounded to one of its two neighbours.

    The mean over the noise is the exact value, as bf16 is fp32 without its lower 16 bits: a
    uniform 16-bit number is added to them, and they are cut off. `exact` must be finite; it is
    overwritten.
    """
    bits = exact.view(torch.int32)
    bits.add_(
        torch.randint(0, 2**16, bits.shape, dtype=torch.int32, device=bits.device, generator=noise)
    )
    bits.bitwise_and_(-(2**16))
    stored.copy_(exact)
