"""Activations computed again in the backward pass: the same gradients from less memory."""

from dataclasses import replace

import pytest
import torch
from models import FAMILIES, azr_model, plain_model
from test_learner import LOSS, OPTIM, Recorder, make_batch, make_learner

from azr.learner.recompute import recomputing

SIZES = dict(vocab=13, hidden_size=16, num_hidden_layers=3, intermediate_size=16)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_same_bit_for_bit(family):
    plain = plain_model(family, seed=5, **SIZES)
    gradients = []
    for recompute in (False, True):
        learner = make_learner(plain, loss=LOSS, optim=replace(OPTIM, recompute=recompute))
        record = Recorder(learner)
        learner.update(make_batch(), 1)
        gradients.append(record.gradients[0])
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def kept_bytes(model):
    """Bytes of what autograd keeps of a forward pass, weights aside."""
    kept = {}

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.ones((4, 16), dtype=torch.int64)
    positions = torch.arange(16).expand(4, -1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.base_model(input_ids=ids, position_ids=positions, use_cache=False)
    return sum(kept.values())


def test_less_is_kept_and_only_inside():
    model = azr_model(plain_model("qwen2", **(SIZES | dict(num_hidden_layers=6)))).eval()
    before = kept_bytes(model)
    with recomputing(model):
        assert kept_bytes(model) < before / 3
        assert not any(m.training for m in model.modules())  # dropout stays off
    assert kept_bytes(model) == before


def test_a_model_without_such_layers_is_refused():
    with (
        pytest.raises(ValueError, match="--optim.recompute False"),
        recomputing(torch.nn.Linear(1, 1)),
    ):
        pass
