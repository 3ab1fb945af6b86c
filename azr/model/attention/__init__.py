"""The attention of every model here: one function for transformers, one interface of two calls.

Training and prefill attend over packed rows (`varlen`), a decode step attends over a KV cache
(`decode`). Which library serves the two calls is chosen by `choose` and reported by `backends`.
"""

from azr.model.attention.interface import (
    Attend,
    Store,
    arange_positions,
    attention_forward,
    check_azr_attention,
    check_packed,
    embedding_weight,
    head_shape,
    head_weight,
    hidden_states,
    use_azr_attention,
)
from azr.model.attention.packed import Backend, PackedAttend, PackedRows, gathered
from azr.model.attention.probe import NAMES, BackendProbe, backends, choose, described

__all__ = [
    "NAMES", "Attend", "Backend", "BackendProbe", "PackedAttend", "PackedRows", "Store",
    "arange_positions", "attention_forward", "backends", "check_azr_attention", "check_packed",
    "choose", "described", "embedding_weight", "gathered", "head_shape", "head_weight",
    "hidden_states", "use_azr_attention",
]  # fmt: skip
