"""FlashAttention's operators in float64 on the CPU, called as the real ones are.

They read keys and values through the very arguments that the real operators get (running sums,
row lengths, page tables, starts of extents) and refuse what those would refuse, so that everything
around them is tested without a GPU.
"""

import torch

from azr.model.attention import flash


def attend(q_TQHK, keys, values, scale, causal):
    """[T, H, K] of one row in float64, causal aligned at the bottom right."""
    T, H, K = q_TQHK.shape
    groups = H // keys.shape[1]
    k = keys.double().repeat_interleave(groups, 1)
    v = values.double().repeat_interleave(groups, 1)
    scores = torch.einsum("thk,shk->hts", q_TQHK.double(), k) * scale
    if causal:
        S = len(keys)
        seen = torch.arange(S)[None] <= torch.arange(T)[:, None] + S - T
        scores = scores.masked_fill(~seen, -torch.inf)
    return torch.einsum("hts,shk->thk", scores.softmax(-1), v)


def rows_of(starts):
    assert starts.dtype == torch.int32 and starts[0] == 0
    return list(zip(starts.tolist(), starts.tolist()[1:], strict=False))


def varlen(q, k, v, cu_q, cu_k, max_q, max_k, scale, causal):
    out = []
    for (a, b), (c, d) in zip(rows_of(cu_q), rows_of(cu_k), strict=True):
        assert b - a <= max_q and d - c <= max_k
        out.append(attend(q[a:b], k[c:d], v[c:d], scale, causal))
    assert sum(map(len, out)) == len(q)
    return torch.cat(out).to(q.dtype)


def paged(q_RHK, k_pages, v_pages, lengths, table, scale, page):
    assert k_pages.shape[1] == page and lengths.dtype == table.dtype == torch.int32
    out = []
    for q, length, pages in zip(q_RHK, lengths.tolist(), table.tolist(), strict=True):
        used = pages[: -(-length // page)]
        keys = torch.cat([k_pages[p] for p in used])[:length]
        values = torch.cat([v_pages[p] for p in used])[:length]
        out.append(attend(q[None], keys, values, scale, False))
    return torch.cat(out).to(q_RHK.dtype)


def flash_attn(page):
    """The flash-attn backend on these operators."""
    backend = flash.FlashAttn.__new__(flash.FlashAttn)

    def varlen_func(q, k, v, cu_q, cu_k, max_q, max_k, *, softmax_scale, causal):
        return varlen(q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale, causal)

    def with_kvcache(q, k_cache, v_cache, *, cache_seqlens, block_table, softmax_scale, causal):
        assert q.shape[1] == 1 and not causal
        out = paged(q[:, 0], k_cache, v_cache, cache_seqlens, block_table, softmax_scale, page)
        return out[:, None]

    backend._varlen, backend._decode = varlen_func, with_kvcache
    return backend


def varlen_attn(page):
    """torch's public function of 2.12 and later."""

    def function(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1),
        enable_gqa=False, seqused_k=None, block_table=None, num_splits=None,
    ):  # fmt: skip
        assert enable_gqa or query.shape[1] == key.shape[-2]
        if block_table is None:
            assert window_size == (-1, 0)
            return varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, True)
        assert cu_seq_k.dtype == torch.int32 and cu_seq_k.shape == cu_seq_q.shape
        assert max_q == 1 and window_size == (-1, -1)
        assert cu_seq_q.tolist() == list(range(len(query) + 1))
        assert int(seqused_k.max()) <= max_k
        return paged(query, key, value, seqused_k, block_table, scale, page)

    return function


def varlen_attn_211(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None,
                    scale=None, window_size=(-1, -1)):  # fmt: skip
    """torch's public function of 2.11: no page table, no option for grouped heads."""
    assert window_size == (-1, 0)
    return varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, True)


def flash_attention_forward(
    query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal,
    return_debug_mask, *, scale=None, seqused_k=None,
):  # fmt: skip
    """The operator below it, over one extent of memory a row."""
    assert (max_q, dropout_p, is_causal, return_debug_mask) == (1, 0.0, False, False)
    assert cum_seq_k.dtype == seqused_k.dtype == torch.int32
    assert len(cum_seq_k) == len(cum_seq_q) == len(query) + 1 and int(seqused_k.max()) <= max_k
    rows = zip(query, cum_seq_k.tolist(), seqused_k.tolist(), strict=False)
    out = [attend(q[None], key[a : a + n], value[a : a + n], scale, False) for q, a, n in rows]
    return torch.cat(out).to(query.dtype), None, None, None, None


def torch_varlen(page):
    """The torch-varlen backend on these operators."""
    backend = flash.TorchVarlen.__new__(flash.TorchVarlen)
    backend._attend = varlen_attn(page)
    return backend


def torch_aten(monkeypatch):
    """The torch-aten backend on these operators."""
    monkeypatch.setattr(flash, "_flash_attention_forward", flash_attention_forward)
    backend = flash.TorchAten.__new__(flash.TorchAten)
    backend._attend = varlen_attn_211
    return backend
