"""Models of real shapes whose weights are fake tensors, and what stands in for flash-attn."""

import sys
import types

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from azr.model.attention import backends, use_azr_attention
from azr.model.fused import fuse_layers

FLASH = ("flash-attn", "torch-varlen", "torch-aten")
SHAPES = [*((name, "qwen2.5-3b") for name in FLASH),
          *(("torch-aten", shape) for shape in ("qwen3-4b", "llama-3.1-8b"))]  # fmt: skip
"""Each backend at one shape, and each shape by one backend."""


def _config(shape: str, layers: int):
    common = dict(num_hidden_layers=layers, pad_token_id=0, bos_token_id=None, eos_token_id=1)
    if shape == "qwen2.5-3b":
        return Qwen2Config(
            vocab_size=151936, hidden_size=2048, intermediate_size=11008, num_attention_heads=16,
            num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6}, **common,
        )  # fmt: skip
    if shape == "qwen3-4b":
        return Qwen3Config(
            vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_attention_heads=32,
            num_key_value_heads=8, head_dim=128, max_position_embeddings=40960,
            tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            **common,
        )  # fmt: skip
    if shape == "llama-3.1-8b":
        return LlamaConfig(
            vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_attention_heads=32,
            num_key_value_heads=8, max_position_embeddings=131072, tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 5e5}, **common,
        )  # fmt: skip
    return Qwen2Config(
        vocab_size=1000, hidden_size=64, intermediate_size=128, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True, **common,
    )  # fmt: skip


def fake_model(shape: str, layers: int, dtype: torch.dtype = torch.bfloat16, fused="auto"):
    """Returns a model on "cuda", its layers fused as by default; called where tensors are fake."""
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(
            _config(shape, layers), dtype=dtype, attn_implementation="sdpa"
        )
    use_azr_attention(model)
    fuse_layers(model, fused)
    return model.eval()


def usable(name: str, monkeypatch) -> None:
    """Skips with the reason where this torch does not have the backend."""
    if name == "flash-attn":
        stand_in_for_flash_attn(monkeypatch)
    probe = {p.name: p for p in backends("cuda", torch.bfloat16, 128)}[name]
    if not probe.usable:
        # Its operator is there, and refused what we pass: that is what is tested here.
        assert "a tiny decode" not in probe.reason, probe.reason
        pytest.skip(f"{name}: {probe.reason}")


def stand_in_for_flash_attn(monkeypatch) -> None:
    """Puts a package in flash-attn's place: its signatures of 2.8, and torch's own operator."""
    from torch.nn.attention.varlen import varlen_attn

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0,
        softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
        deterministic=False, return_attn_probs=False, block_table=None,
    ):  # fmt: skip
        return varlen_attn(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
            scale=softmax_scale, window_size=(-1, 0), enable_gqa=True,
        )  # fmt: skip

    def flash_attn_with_kvcache(
        q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None,
        cache_batch_idx=None, cache_leftpad=None, block_table=None, softmax_scale=None,
        causal=False, window_size=(-1, -1), softcap=0.0, rotary_interleaved=True,
        alibi_slopes=None, num_splits=0, return_softmax_lse=False,
    ):  # fmt: skip
        assert cache_seqlens.dtype == block_table.dtype == torch.int32
        assert k_cache.shape[1] % 256 == 0
        return q.clone()

    package = types.ModuleType("flash_attn")
    package.flash_attn_varlen_func = flash_attn_varlen_func
    package.flash_attn_with_kvcache = flash_attn_with_kvcache
    monkeypatch.setitem(sys.modules, "flash_attn", package)
