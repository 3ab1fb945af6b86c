"""Whole updates through the learner's own code, at the shapes of real models: forward, loss,
backward, clipping and the optimiser, and how often the host waits for the device on the way."""

from collections import Counter

import pytest
import torch
from fake_models import SHAPES, fake_model, usable
from models import experience_of

from azr.config import LossConfig, OptimConfig
from azr.learner import Learner
from azr.model.attention.packed import FEW_ENTRIES


def batch_of():
    """Samples that share their prompts, as a step of self-play has them."""
    return experience_of(4, 3, prompt_tokens=(20, 200), response_tokens=(1, 90))


def learner_of(shape, *, layers=1, dtype=torch.bfloat16, attention="torch-aten", reference=False,
               loss=None, **optim):  # fmt: skip
    return Learner(
        fake_model(shape, layers, dtype),
        fake_model(shape, layers, dtype) if reference else None,
        loss=LossConfig(**(loss or {})),
        optim=OptimConfig(**({"micro_batch_tokens": 600} | optim)),
        temperature=1.0,
        seed=0,
        attention=attention,
    )


def update(device, learner, step=1, batch=None):
    """Returns (metrics, why the host waited, launches) of one update."""
    device.waits.clear()
    with device.counted() as launches:
        metrics = learner.update(batch or batch_of(), step)
    return metrics, list(device.waits), launches


@pytest.mark.parametrize(("name", "shape"), SHAPES)
def test_the_host_waits_once_an_update(device, monkeypatch, name, shape):
    """For the numbers of the log, whether they are finite among them; never in a micro-batch."""
    usable(name, monkeypatch)
    learner = learner_of(shape, attention=name)
    metrics, waits, launches = update(device, learner)
    assert learner.skipped_updates == 0 and metrics["policy/tokens"] >= 0
    assert waits == ["a copy to the host: __init__.py, _read"], waits
    assert launches["linear_logprob_fwd_kernel"] > 1, "one micro-batch alone"
    assert launches["linear_dlogits_kernel"] and launches["policy_loss_kernel"]
    assert launches["_flash_attention_forward"] and launches["_flash_attention_backward"]
    assert launches["_fused_adamw_"] == 1
    # Where a token is gathered many times its gradients add up in order, not with atomics: queries,
    # keys, values, pairs, and the embedding. What is left takes every token once, per layer.
    micro_batches = launches["_flash_attention_forward"]
    assert launches["embedding_dense_backward"] == 5 * micro_batches
    assert launches["index_add"] == micro_batches


@pytest.mark.parametrize(
    "options",
    [
        dict(recompute=True),
        dict(bf16_update="stochastic"),
        dict(reference=True, loss=dict(kl="k2", kl_coef=0.1)),
        dict(epochs=2, minibatches=2),
        dict(dtype=torch.float32, attention="sdpa"),
    ],
    ids=lambda options: " ".join(options),
)
def test_every_way_of_updating_waits_no_more(device, options):
    learner = learner_of("qwen2.5-3b", **options)
    _, waits, _ = update(device, learner)
    updates = options.get("epochs", 1) * options.get("minibatches", 1)
    assert waits == ["a copy to the host: __init__.py, _read"] * updates, waits


def test_the_stochastic_update_launches_one_kernel_a_weight(device):
    """Beside it, of each gradient its sum and its square: nothing else of a weight's size."""
    learner = learner_of("qwen2.5-3b", bf16_update="stochastic")
    update(device, learner)  # makes the optimiser's state
    _, _, launches = update(device, learner, 2)
    weights, micro_batches = len(learner.optimizer.named), launches["_flash_attention_forward"]
    assert micro_batches > 1
    assert launches["adamw_kernel"] == launches["square_sum_kernel"] == weights
    assert launches["accumulate_kernel"] == (micro_batches - 1) * weights
    learner = learner_of("qwen2.5-3b", bf16_update="stochastic", micro_batch_tokens=10**6)
    assert not update(device, learner)[2]["accumulate_kernel"]


def test_launches_of_a_layer_are_counted(device):
    found: list[Counter] = []
    # So many tokens that what is shared is gathered as in a real micro-batch.
    batch = experience_of(6, 6, prompt_tokens=(100, 200), response_tokens=(1, 90))
    assert sum(len(e.prompt_ids) + len(e.response_ids) for e in batch) > FEW_ENTRIES
    for layers in (1, 2):
        learner = learner_of("qwen2.5-3b", layers=layers, micro_batch_tokens=10**6)
        update(device, learner)  # makes the optimiser's state
        found.append(update(device, learner, 2, batch)[2])
    layer = found[1] - found[0]
    rest = found[0].total() - layer.total()
    print(
        f"\nlaunches of an update of one micro-batch: {layer.total()} a layer, forward and "
        f"backward, and {rest} for the rest; a layer: {dict(layer.most_common())}"
    )
    # The bound is where it stands: a change that adds kernels to every layer has to say so here.
    assert layer.total() <= 57
