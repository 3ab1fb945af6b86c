"""Trading time for memory: a layer's activations are computed again in the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


@contextmanager
def recomputing(model: PreTrainedModel) -> Iterator[None]:
    """Decoder layers that run inside keep their input alone for the backward pass.

    transformers' own switch acts in training mode only, which would turn dropout on as well, and
    has another name from one release to the next; the layers themselves are marked by their class.
    Raises ValueError for a model without such layers.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no layers that can be computed again; use "
            "--optim.recompute False"
        )
    try:
        for layer in layers:
            # Without dropout there is no random state to keep.
            layer.forward = partial(
                checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
            )
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
