"""The attention function that transformers calls, and what the rest asks of a model.

Registered with transformers under the name "azr", so that any decoder family with standard
attention runs on it, in training and in rollouts, with the same weights. transformers hands over
queries and keys as [B, H, T, K] (B rows, H heads, T tokens, K head size).
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PretrainedConfig,
    PreTrainedModel,
)

from azr.model.attention.sdpa import causal

NAME = "azr"

ALTERS_LOGITS = (
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "final_logit_softcapping",
    "attn_logit_softcapping",
)
"""Options of transformers configurations that neither `attention_forward` nor the loss applies."""


class Store(NamedTuple):
    """Where the new keys and values of a call are kept."""

    keys_SGK: Tensor
    values_SGK: Tensor
    places_T: Tensor
    """int64: the row of `keys_SGK` and `values_SGK` for each token."""


class Attend(Protocol):
    """Who attends, where the tokens of a call are not simply whole rows (B = 1 then)."""

    def store(self, layer: int, /) -> Store | None:
        """Returns where a layer's keys and values are to be written before it attends; None where
        nobody reads them again, or where `__call__` keeps them itself."""
        ...

    def __call__(
        self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, scale: float, /
    ) -> Tensor:
        """Returns the attention output [T, H, K] of one layer."""
        ...


class AttentionLayer(Protocol):
    """What calls the attention function: a module of transformers that knows its number."""

    layer_idx: int


def attention_forward(
    module: AttentionLayer,
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTK: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    attend: Attend | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Returns ([B, T, H, K] attention output, None) in transformers' convention.

    Without `attend` the rows attend causally to themselves, padding on the right being seen by no
    real token. The mask is not read: see `hidden_states`. Raises ValueError for dropout, or for a
    mask that a layer has made, where `attend` is given.
    """
    if attend is None:
        return causal(q_BHTK, k_BGTK, v_BGTK, scaling, dropout).contiguous(), None
    check_packed(module, attention_mask, dropout)
    q_THK, k_TGK, v_TGK = (x[0].transpose(0, 1) for x in (q_BHTK, k_BGTK, v_BGTK))
    if store := attend.store(module.layer_idx):
        store.keys_SGK.index_copy_(0, store.places_T, k_TGK)
        store.values_SGK.index_copy_(0, store.places_T, v_TGK)
    scale = q_THK.shape[2] ** -0.5 if scaling is None else scaling
    return attend(module.layer_idx, q_THK, k_TGK, v_TGK, scale)[None], None


def check_packed(module: object, attention_mask: Tensor | None, dropout: float) -> None:
    """Raises ValueError for what packed rows do not attend with: dropout, a mask of a layer's."""
    if dropout:
        raise ValueError(
            f"attention_dropout {dropout}: packed rows attend without dropout; set it to 0 in "
            "the model's configuration"
        )
    if attention_mask is not None and attention_mask.numel() > 1:
        raise ValueError(
            f"{type(module).__name__} makes a mask of its own, which is not supported; use a "
            "model with standard attention"
        )


def use_azr_attention(model: PreTrainedModel) -> None:
    """Makes `model` attend through `attention_forward`.

    Raises ValueError for a model that would silently compute something else here, by name: one
    with sliding-window or chunked layers, which would attend to more than they were trained to,
    one that scales or caps its logits after the head, or its attention scores, one whose rotary
    embedding depends on the batch, or one that does not attend once a layer by the function it is
    given.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [])
    if not kinds:  # families whose layers are all alike name no kinds, only a window
        window = getattr(config, "sliding_window", None)
        kinds = {"full_attention" if window is None else "sliding_attention"}
    if kinds != {"full_attention"}:
        raise ValueError(
            f"{config.model_type}: layers of kind {sorted(kinds - {'full_attention'})} are not "
            "supported; use a model whose layers all have full attention"
        )
    for option in ALTERS_LOGITS:
        if getattr(config, option, None) not in (None, 1):
            raise ValueError(
                f"{config.model_type}: {option}={getattr(config, option)} is not supported; use a "
                "model whose logits are the plain product of hidden state and head"
            )
    _check_rope(model)
    AttentionInterface.register(NAME, attention_forward)
    # No mask is ever built: a cache knows the visible keys, packed rows know their ends.
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
    before = model.config._attn_implementation
    assert before is not None  # a model has chosen one when it was made
    model.set_attn_implementation(NAME)
    try:
        _check_calls(model)
    except Exception:
        model.set_attn_implementation(before)
        raise


def _check_rope(model: PreTrainedModel) -> None:
    """Raises ValueError for frequencies that transformers chooses by the longest row of a batch.

    A token would depend on what else is in its batch, and a KV cache would hold keys of several
    frequencies. Configurations spell the type in many ways; the modules have it settled.
    """
    for module in model.modules():
        found = getattr(module, "rope_type", None)
        for kind in found.values() if isinstance(found, dict) else [found]:
            if kind and (kind == "longrope" or "dynamic" in kind):
                raise ValueError(
                    f"{model.config.model_type}: rope_type {kind!r} is not supported, since its "
                    "frequencies depend on the longest row of a batch; use a model with the same "
                    "ones at every length (default, linear, yarn, llama3)"
                )


def check_azr_attention(model: PreTrainedModel) -> None:
    """Raises ValueError for a model that attends by itself: it would not see the KV cache."""
    if model.config._attn_implementation != NAME:
        raise ValueError(
            f"{type(model).__name__} attends by {model.config._attn_implementation!r}; call "
            "azr.model.attention.use_azr_attention(model) first"
        )


def head_shape(config: PretrainedConfig) -> tuple[int, int]:
    """Returns (key-value heads, head size) of a model."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return getattr(text, "num_key_value_heads", None) or heads, size


class _Calls:
    """An `Attend` that takes a note of who calls it, with keys and values of what shape."""

    def __init__(self) -> None:
        self.layers: list[int] = []
        self.shapes: set[tuple[int, ...]] = set()

    def store(self, layer: int) -> None:
        return None

    def __call__(
        self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, scale: float
    ) -> Tensor:
        self.layers.append(layer)
        self.shapes.update(tuple(x.shape[1:]) for x in (k_TGK, v_TGK))
        return v_TGK.new_zeros((*q_THK.shape[:2], v_TGK.shape[2]))


@torch.no_grad()
def _check_calls(model: PreTrainedModel) -> None:
    """Raises ValueError unless each layer of `model` attends once, through `attention_forward`, to
    keys and values of one shape, which a KV cache is made for.

    Some families accept the name and attend in their own code all the same; some call twice a
    layer, and the second call would overwrite the first in a KV cache. A forward of two tokens
    tells, in eval mode: dropout would draw from the global generator.
    """
    calls = _Calls()
    if model.config._attn_implementation == NAME:
        ids_12 = torch.zeros((1, 2), dtype=torch.int64, device=model.device)
        was_training = model.training
        try:
            hidden_states(model.eval(), ids_12, arange_positions(ids_12), calls)
        finally:
            model.train(was_training)
    layers = model.config.get_text_config().num_hidden_layers
    if sorted(calls.layers) != list(range(layers)):
        raise ValueError(
            f"{model.config.model_type}: {layers} layers call transformers' attention interface "
            f"{len(calls.layers)} times; use a model whose layers each attend through it once"
        )
    if calls.shapes != {head_shape(model.config)}:
        raise ValueError(
            f"{model.config.model_type}: keys and values have (heads, head size) "
            f"{sorted(calls.shapes)}, where its configuration says {head_shape(model.config)}; "
            "use a model with standard attention"
        )


def hidden_states(
    model: PreTrainedModel, ids_BT: Tensor, positions_BT: Tensor, attend: Attend | None = None
) -> Tensor:
    """Returns the last hidden states [B, T, D] of the decoder, before the language-model head.

    Raises ValueError for a model that `use_azr_attention` has not prepared.
    """
    check_azr_attention(model)
    # Before it asks for a mask, transformers looks for packed rows in the positions: work on the
    # host that waits for the device. A mask that is four-dimensional already spares that; the
    # attention function never reads it.
    unread = torch.zeros((1, 1, 1, 1), dtype=torch.bool, device=ids_BT.device)
    return model.base_model(
        input_ids=ids_BT,
        position_ids=positions_BT,
        attention_mask=unread,
        use_cache=False,
        attend=attend,
    ).last_hidden_state


def embedding_weight(model: PreTrainedModel) -> Tensor:
    """Returns the weight [V, D] that token ids are looked up in; V may exceed the tokens."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def head_weight(model: PreTrainedModel) -> Tensor:
    """Returns the weight [V, D] of the language-model head.

    Raises ValueError for a head with a bias, which the loss kernels are not given here.
    """
    head = model.get_output_embeddings()
    assert head is not None  # a causal language model has one
    if getattr(head, "bias", None) is not None:
        raise ValueError(f"{type(model).__name__}: a language-model head with a bias")
    return head.weight


def arange_positions(ids_BT: Tensor) -> Tensor:
    """Returns positions [B, T] that count from 0 in each row."""
    return torch.arange(ids_BT.shape[1], device=ids_BT.device).expand(ids_BT.shape)
