"""Decoder layers in few kernels: what transformers computes in some forty small ones a layer.

The modules stay transformers' own, with their weights and names; their classes are exchanged for
subclasses with another `forward`, module by module, so that other models of the process are left
alone. Norms, rotary embedding with the store into the KV cache, and SwiGLU are kernels of
rlvr_kernels; queries, keys and values, and gate and up, are one product each. Training and rollouts
run the same ones. What stands between two roundings is computed in fp32: transformers rounds more
often in 16 bits, and equals it in fp32 but for the order of sums.

Shapes: T tokens, D hidden size, N outputs of some projections together, H query heads, G key-value
heads, K head size.
"""

from collections.abc import Sequence
from functools import cache
from typing import Literal, TypeGuard

import torch
import torch.nn.functional as F
from rlvr_kernels import add_rms_norm, rms_norm, rotary_qkv, swiglu
from rlvr_kernels.backend import resolve
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from azr.errors import ConfigError, in_one_line
from azr.model.attention import Attend, check_packed
from azr.model.layer_trial import trials_of

Mode = Literal["auto", "on", "off"]

FAMILIES = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}
"""Model type -> what its classes' names begin with."""

_SILU = nn.SiLU, type(ACT2FN["silu"])
_DEVICE_TYPES = "cuda", "cpu"

PARTS = "norms, rotary embedding with the KV store, SwiGLU, merged projections"


def why_not(mode: Mode, family: str, device: torch.device) -> str | None:
    """Returns why layers of a model type stay transformers' own, None where they are fused.

    Raises ConfigError where "on" asks for what cannot be.
    """
    if mode == "off":
        return "as asked by --model.fused-layers"
    if family not in FAMILIES:
        problem = f"layers of {family} are none of {', '.join(FAMILIES)}"
        if mode == "on":
            raise ConfigError(
                f"--model.fused-layers on: {problem}; use auto, which leaves them as they are"
            )
        return problem
    if mode == "auto" and device.type != "cuda":
        return "fused ones are no faster on the CPU"
    if mode == "auto" and resolve("auto", device) != "triton":
        return "fused ones are no faster without Triton"
    return None


def describe_layers(mode: Mode, family: str, device: torch.device) -> str:
    """Returns whether layers of a model type are fused and why (not), in words."""
    if reason := why_not(mode, family, device):
        return f"transformers' own: {reason}"
    return f"fused by {resolve('auto', device)}: {PARTS}"


def fuse_layers(model: PreTrainedModel, mode: Mode = "auto") -> None:
    """Fuses the layers of a model that is where it will run, unless `why_not` says no.

    Each layer is tried on a few tokens: raises ConfigError where the fused ones fail, or give
    another output, other keys and values or another gradient than transformers' own. The model then
    computes as it did.
    """
    if why_not(mode, model.config.model_type, model.device):
        return
    option, trials = f"--model.fused-layers {mode}", trials_of(model)
    if not all(trial.is_finite for trial in trials):
        raise ConfigError(
            f"{option}: the model's hidden states are not finite, with transformers' own layers "
            "either; see that its weights are"
        )
    try:
        exchange_classes(model)
        merge_projections(model)
        problem = next(filter(None, (trial.problem() for trial in trials)), None)
    except Exception as error:  # whatever a compiler or a driver raises here
        problem = in_one_line(error)
    if problem:
        restore_classes(model)
        raise ConfigError(
            f"{option}: those of {model.config.model_type} do not work here: {problem}; use "
            "--model.fused-layers off"
        )


def exchange_classes(model: PreTrainedModel) -> None:
    """Gives every module of a known layer its fused subclass."""
    for module in model.modules():
        if fused := _fused_class(type(module)):
            module.__class__ = fused


def restore_classes(model: PreTrainedModel) -> None:
    """Gives every module transformers' own class back; merged weights stay where they are."""
    for module in model.modules():
        if isinstance(module, tuple(_MIXINS.values())):
            _, own = type(module).__bases__
            module.__class__ = own


@cache
def _fused_class(kind: type[nn.Module]) -> type[nn.Module] | None:
    """Returns the fused subclass of a class of transformers; None for any other."""
    for family, prefix in FAMILIES.items():
        if kind.__module__ == f"transformers.models.{family}.modeling_{family}":
            mixin = _MIXINS.get(kind.__name__.removeprefix(prefix))
            # The name stays: wrapping policies and printed models go by it.
            return type(kind.__name__, (mixin, kind), {}) if mixin else None
    return None


def merge_projections(model: nn.Module) -> None:
    """Moves the weights of projections of one input next to one another, as one storage.

    The parameters stay what they are, now views of it. Needed again after whatever gives them
    memory of their own, as a deep copy does: where they are apart, each is multiplied by itself.
    """
    for module in model.modules():
        if isinstance(module, FusedAttention | FusedMLP):
            linears = _plain_linears(module.merged())
            for parts in ([x.weight for x in linears], [x.bias for x in linears]):
                # Llama and Qwen3 have no biases, as a rule.
                if parts and all(part is not None for part in parts) and _whole(parts) is None:
                    _merge(parts)


@torch.no_grad()
def _merge(parts: Sequence[Tensor]) -> None:
    pieces = torch.cat([part.detach() for part in parts]).split([len(part) for part in parts])
    for part, piece in zip(parts, pieces, strict=True):
        part.data = piece


def _whole(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Returns the parts as one tensor, without a gradient; None where they are not one."""
    first, rows = parts[0], 0
    if first is None:
        return None
    end = first.storage_offset()
    for part in parts:
        if part is None or part.storage_offset() != end or not part.is_contiguous():
            return None
        if part.untyped_storage()._cdata != first.untyped_storage()._cdata:
            return None
        rows, end = rows + len(part), end + part.numel()
    return first.detach().as_strided((rows, *first.shape[1:]), first.stride())


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Returns whether a call of the module is its class's `forward` on weights of its own in their
    own type, and nothing else: no adapter, no hook, no shard of a larger weight, no autocast."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return (
        type(module) is kind
        and not any(hooks)
        and not _has_any_global_hook()
        and not any(map(torch.is_autocast_enabled, _DEVICE_TYPES))
        and "forward" not in vars(module)
        and not any(map(is_traceable_wrapper_subclass, module.parameters(recurse=False)))
    )


def _plain_linears(modules: Sequence[nn.Module]) -> list[nn.Linear]:
    """Returns the modules where all of them are plain linear layers, else none."""
    linears = [m for m in modules if isinstance(m, nn.Linear) and _is_plain(m, nn.Linear)]
    return linears if len(linears) == len(modules) else []


def projected(x: Tensor, modules: Sequence[nn.Module]) -> Tensor:
    """Returns what several projections make of one input, behind one another, [..., N].

    One product where all are plain linear layers whose weights lie together; else each is called.
    """
    if linears := _plain_linears(modules):
        weights = [linear.weight for linear in linears]
        biases = [linear.bias for linear in linears]
        weight, bias = _whole(weights), _whole(biases)
        if weight is not None and (bias is not None or not any(b is not None for b in biases)):
            return _Projected.apply(x, weight, bias, *weights, *(() if bias is None else biases))
    return torch.cat([module(x) for module in modules], dim=-1)


class _Projected(torch.autograd.Function):
    """x @ weight.T + bias, whose gradients go to the parts that both are made of."""

    @staticmethod
    def forward(ctx, x, weight, bias, *parts):
        # The parts too, so that autograd notices where one is changed before the backward pass.
        ctx.save_for_backward(x, weight, *parts)
        ctx.sizes = [len(part) for part in parts if part.dim() == 2]
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, *grads):
        if torch.is_grad_enabled():  # the weight is no part of autograd's graph, its parts are
            raise RuntimeError("merged projections have no second derivative")
        (grad,) = grads
        x, weight, *_ = ctx.saved_tensors
        grad_TN, count = grad.flatten(0, -2), len(ctx.sizes)
        needs_x, _, _, *needs = ctx.needs_input_grad
        d_x = grad @ weight if needs_x else None
        d_parts: list[Tensor | None] = [None] * len(needs)
        if any(needs[:count]):
            d_parts[:count] = (grad_TN.T @ x.flatten(0, -2)).split(ctx.sizes)
        if any(needs[count:]):
            d_parts[count:] = grad_TN.sum(0).split(ctx.sizes)
        d_parts = [d if need else None for d, need in zip(d_parts, needs, strict=True)]
        return d_x, None, None, *d_parts


class FusedNorm(nn.Module):
    """RMSNorm in one kernel."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        if hidden_states.dtype != self.weight.dtype:
            return super().forward(hidden_states)
        return rms_norm(hidden_states, self.weight, eps=self.variance_epsilon)


class FusedMLP(nn.Module):
    """Gate and up in one product, SwiGLU in one kernel."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    act_fn: nn.Module

    def merged(self) -> tuple[nn.Module, ...]:
        return self.gate_proj, self.up_proj

    def forward(self, x: Tensor) -> Tensor:
        if not any(_is_plain(self.act_fn, kind) for kind in _SILU):
            return super().forward(x)
        return self.down_proj(swiglu(projected(x, self.merged())))


class FusedAttention(nn.Module):
    """Queries, keys and values in one product; head norms, rotation and store in one kernel."""

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    config: PretrainedConfig
    layer_idx: int
    head_dim: int
    scaling: float
    attention_dropout: float

    def merged(self) -> tuple[nn.Module, ...]:
        return self.q_proj, self.k_proj, self.v_proj

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: object = None,
        attend: Attend | None = None,
        **options: object,
    ) -> tuple[Tensor, None]:
        cos_1TK, sin_1TK = position_embeddings
        norms = [norm for name in ("q_norm", "k_norm") if (norm := getattr(self, name, None))]
        head_norms = [norm for norm in norms if _is_plain_norm(norm)]
        if (
            attend is None
            or past_key_values is not None
            or cos_1TK.shape[-1] != self.head_dim
            or len(head_norms) < len(norms)
        ):
            return super().forward(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                attend=attend,
                **options,
            )
        check_packed(self, attention_mask, self.attention_dropout if self.training else 0.0)
        store = attend.store(self.layer_idx)
        keys, values, places = store or (None, None, None)
        q_THK, k_TGK, v_TGK = rotary_qkv(
            # Packed rows are one batch row; a view of it costs no gradient of its own.
            projected(hidden_states.flatten(0, 1), self.merged()),
            cos_1TK[0],
            sin_1TK[0],
            heads=self.config.num_attention_heads,
            kv_heads=self.config.num_key_value_heads,
            q_weight=head_norms[0].weight if norms else None,
            k_weight=head_norms[1].weight if norms else None,
            eps=head_norms[0].variance_epsilon if norms else 1e-6,  # read with norms alone
            keys=keys,
            values=values,
            places=places,
        )
        out_THK = attend(self.layer_idx, q_THK, k_TGK, v_TGK, self.scaling)
        return self.o_proj(out_THK.flatten(1)[None]), None


class FusedLayer(nn.Module):
    """Attention's residual and the norm behind it in one kernel."""

    input_layernorm: nn.Module
    self_attn: nn.Module
    post_attention_layernorm: nn.Module
    mlp: nn.Module

    def forward(self, hidden_states: Tensor, **options: object) -> Tensor:
        norm = self.post_attention_layernorm
        if not _is_plain_norm(norm) or hidden_states.dtype != norm.weight.dtype:
            return super().forward(hidden_states, **options)
        normed = self.input_layernorm(hidden_states)
        attended, _ = self.self_attn(hidden_states=normed, **options)
        hidden_states, normed = add_rms_norm(
            attended, hidden_states, norm.weight, eps=norm.variance_epsilon
        )
        return hidden_states + self.mlp(normed)


_MIXINS: dict[str, type[nn.Module]] = {
    "RMSNorm": FusedNorm,
    "MLP": FusedMLP,
    "Attention": FusedAttention,
    "DecoderLayer": FusedLayer,
}


def _is_plain_norm(norm: nn.Module) -> TypeGuard[FusedNorm]:
    return isinstance(norm, FusedNorm) and _is_plain(norm, type(norm))
