"""A layer beside its definition in float64: one rounding, and what float32 sums leave."""

import torch

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def wide(*tensors):
    """The same values in float64, each a leaf that needs a gradient; None stays."""
    return [None if x is None else x.detach().double().requires_grad_() for x in tensors]


def assert_rounded_once(place, found, exact, largest=0.0):
    """Each element within half a unit of its exact value, and 4e-6 of the largest one.

    The second part is for the sums in float32; where their terms cancel, `largest` is one of these.
    """
    assert found.shape == exact.shape and found.is_contiguous()
    if exact.numel():
        largest = max(largest, exact.detach().abs().max().item())
    torch.testing.assert_close(
        found.double(),
        exact.detach(),
        rtol=place.rounding * torch.finfo(found.dtype).eps / 2,
        # Numbers below the normal ones have no digits to lose.
        atol=4e-6 * largest + (2**-24 if found.dtype == torch.float16 else 2**-126),
    )


def assert_same_bits(place, run):
    """`run` returns tensors, the same ones every time."""
    first = run()
    for _ in range(place.repeats):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def on_one_processor(place, monkeypatch, module):
    """Lets few rows be more than there are programs in a kernel that shares them out."""
    if place.backend == "triton":
        monkeypatch.setattr(f"rlvr_kernels.{module}.processors", lambda tensor: 1)
