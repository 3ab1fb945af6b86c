"""One tiny decode, before "auto" relies on a backend: what was never launched may not work.

Whether torch's kernel takes a page table depends on how it was built, which its Python signature
does not tell.
"""

import torch
from torch import Tensor

from azr.errors import RunError, in_one_line
from azr.model.attention.flash import PAGE_TOKENS, DecodeRows
from azr.model.attention.packed import Backend

TOLERANCE = 0.05
"""Of outputs of about 0.1 to 1: far above 16-bit rounding, far below what wrong keys give."""


def decode_problem(
    backend: Backend, device: torch.device, dtype: torch.dtype, head_size: int
) -> str | None:
    """Returns why decoding two rows does not give what plain attention gives; None where it does.

    Half of the second row's tokens are on its second page, so that one page read for another is
    noticed, and the key behind each row is large, so that a row one token too long is. Raises
    RunError where the attempt leaves the device unusable.
    """
    heads, kv_heads, lengths, first_pages = 4, 2, (5, 2 * PAGE_TOKENS - 5), (3, 1)
    noise = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, head_size, generator=noise).to(device, dtype)

    def ints(values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    try:
        q_RHK = drawn(len(lengths), heads)
        keys, values = (drawn(4 * PAGE_TOKENS, kv_heads) for _ in range(2))
        for length, page in zip(lengths, first_pages, strict=True):
            keys[page * PAGE_TOKENS + length] *= 50
        rows = DecodeRows(
            lengths=ints(lengths),
            table=ints([[3, 0], [1, 2]]),
            query_starts=ints([0, 1, 2]),
            key_starts=ints([3 * PAGE_TOKENS, PAGE_TOKENS, 0]),
            capacity=2 * PAGE_TOKENS,
        )
        scale = head_size**-0.5
        found_RHK = backend.decode(q_RHK, keys, values, rows, scale)
        for q_HK, out_HK, length, page in zip(q_RHK, found_RHK, lengths, first_pages, strict=True):
            k_HTK, v_HTK = (
                x[page * PAGE_TOKENS :][:length].repeat_interleave(heads // kv_heads, 1)
                .transpose(0, 1).float() for x in (keys, values)
            )  # fmt: skip
            weights_H1T = (q_HK.float()[:, None] @ k_HTK.transpose(1, 2) * scale).softmax(-1)
            error = ((weights_H1T @ v_HTK)[:, 0] - out_HK.float()).abs().max().item()
            if not error < TOLERANCE:
                return f"a tiny decode is off by {error:.3g}"
    except torch.AcceleratorError as error:  # nothing that follows would run
        raise RunError(
            f"attention backend {backend.name} broke the device in a tiny decode, {error}; name "
            "another with --rollout.attention"
        ) from error
    except Exception as error:  # whatever a library raises here: the next backend is tried
        return f"a tiny decode fails: {in_one_line(error)}"
    return None
