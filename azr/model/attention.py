"""The attention function of every model here, over packed rows or over our own KV cache.

Registered with transformers under the name "azr", so that any decoder family with standard
attention runs on it, in training and in rollouts, with the same weights. Queries and keys arrive
as [B, H, T, K] (B rows, H heads, T tokens, K head size); rows are padded on the right, so a causal
mask alone keeps real tokens from seeing padding.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

NAME = "azr"

ALTERS_LOGITS = (
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "final_logit_softcapping",
    "attn_logit_softcapping",
)
"""Options of transformers configurations that neither `attention_forward` nor the loss applies."""


class LayerCache(Protocol):
    """What the attention function asks of a KV cache (see azr.rollout.cache)."""

    def append(self, layer: int, k_BHTK: Tensor, v_BHTK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Stores new keys and values; returns all keys, all values and the mask of the visible."""
        ...


def attention_forward(
    module: nn.Module,
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTK: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    kv_cache: LayerCache | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Returns ([B, T, H, K] attention output, None) in transformers' convention.

    G key-value heads serve H query heads (H a multiple of G). Without a cache the rows attend
    causally to themselves. With a cache of kind prefill or decode, keys and values are stored
    first; a decode step (T = 1) attends to everything stored in its row.
    """
    mask = None
    if kv_cache is not None:
        k_BGTK, v_BGTK, mask = kv_cache.append(module.layer_idx, k_BGTK, v_BGTK)
    if mask is None:
        groups = q_BHTK.shape[1] // k_BGTK.shape[1]
        if groups > 1:
            k_BGTK = k_BGTK.repeat_interleave(groups, dim=1)
            v_BGTK = v_BGTK.repeat_interleave(groups, dim=1)
        out = F.scaled_dot_product_attention(
            q_BHTK, k_BGTK, v_BGTK, is_causal=True, scale=scaling, dropout_p=dropout
        )
        return out.transpose(1, 2).contiguous(), None
    # One query token per row: the query heads of a group stand in as its queries, so that keys
    # and values are read once per group and never repeated.
    B, H, _, K = q_BHTK.shape
    q_BGQK = q_BHTK.reshape(B, k_BGTK.shape[1], -1, K)
    out = F.scaled_dot_product_attention(q_BGQK, k_BGTK, v_BGTK, attn_mask=mask, scale=scaling)
    return out.reshape(B, 1, H, K), None


def use_azr_attention(model: PreTrainedModel) -> None:
    """Makes `model` attend through `attention_forward`.

    Raises ValueError for a model that would silently compute something else here, by name: one
    with sliding-window or chunked layers, which would attend to more than they were trained to, or
    one that scales or caps its logits after the head, or its attention scores.
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
    AttentionInterface.register(NAME, attention_forward)
    # No mask is ever built: the cache knows the visible keys, and rows are padded on the right.
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
    model.set_attn_implementation(NAME)


def hidden_states(
    model: PreTrainedModel, ids_BT: Tensor, positions_BT: Tensor, kv_cache: LayerCache | None = None
) -> Tensor:
    """Returns the last hidden states [B, T, D] of the decoder, before the language-model head."""
    return model.base_model(
        input_ids=ids_BT,
        position_ids=positions_BT,
        attention_mask=None,
        use_cache=False,
        kv_cache=kv_cache,
    ).last_hidden_state


def head_weight(model: PreTrainedModel) -> Tensor:
    """Returns the weight [V, D] of the language-model head.

    Raises ValueError for a head with a bias, which the loss kernels are not given here.
    """
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise ValueError(f"{type(model).__name__}: a language-model head with a bias")
    return head.weight


def arange_positions(ids_BT: Tensor) -> Tensor:
    """Returns positions [B, T] that count from 0 in each row."""
    return torch.arange(ids_BT.shape[1], device=ids_BT.device).expand(ids_BT.shape)
