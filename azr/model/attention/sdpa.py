"""Attention by torch's `scaled_dot_product_attention`: every device and dtype, rows padded."""

import torch
import torch.nn.functional as F
from torch import Tensor

from azr.model.attention.packed import PackedRows


def causal(
    q_BHLK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor, scale: float | None, dropout: float = 0.0
) -> Tensor:
    """Returns [B, L, H, K]: G key-value heads serve H query heads (H a multiple of G)."""
    groups = q_BHLK.shape[1] // k_BGLK.shape[1]
    if groups > 1:
        k_BGLK = k_BGLK.repeat_interleave(groups, dim=1)
        v_BGLK = v_BGLK.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(
        q_BHLK, k_BGLK, v_BGLK, is_causal=True, scale=scale, dropout_p=dropout
    ).transpose(1, 2)


class Sdpa:
    """The backend of the CPU, of fp32, and of GPUs without FlashAttention."""

    name = "sdpa"
    cache = "rows"

    def varlen(
        self, q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, rows: PackedRows, scale: float
    ) -> Tensor:
        q_BHLK, k_BGLK, v_BGLK = (_as_grid(x, rows).transpose(1, 2) for x in (q_NHK, k_NGK, v_NGK))
        flat = causal(q_BHLK, k_BGLK, v_BGLK, scale).flatten(0, 1)
        return flat if rows.grid_place is None else flat.index_select(0, rows.grid_place)

    def decode(
        self,
        q_BGQK: Tensor,
        k_BGTK: Tensor,
        v_BGTK: Tensor,
        mask_B11T: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """Returns ([B, G, Q, K], log-sum-exp [B, G, Q] of the scores, fp32).

        Q queries share each key-value head; `mask_B11T` is added to the scores. The log-sum-exp
        lets a row attend in two parts, its prompt and its own tokens: see `merged`.
        """
        if _has_cpu_kernel(q_BGQK):
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q_BGQK, k_BGTK, v_BGTK, attn_mask=mask_B11T, scale=scale
            )
        scores = torch.matmul(q_BGQK, k_BGTK.transpose(2, 3)).float() * scale
        if mask_B11T is not None:
            scores = scores + mask_B11T
        lse = torch.logsumexp(scores, dim=-1)
        return torch.matmul((scores - lse[..., None]).exp().to(v_BGTK.dtype), v_BGTK), lse


def merged(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """Returns the attention over two sets of keys from (output, log-sum-exp) over each."""
    (out_a, lse_a), (out_b, lse_b) = a, b
    # sigmoid(x - y) = e^x / (e^x + e^y), without overflow.
    share = torch.sigmoid(lse_a - lse_b)[..., None]
    return torch.lerp(out_b.float(), out_a.float(), share).to(dtype)


def _as_grid(x_NHK: Tensor, rows: PackedRows) -> Tensor:
    B, L = len(rows.lengths), rows.longest
    if rows.grid is not None:
        x_NHK = x_NHK.index_select(0, rows.grid.view(-1))
    return x_NHK.reshape(B, L, *x_NHK.shape[1:])


def _has_cpu_kernel(q: Tensor) -> bool:
    return q.device.type == "cpu" and hasattr(
        torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"
    )
