"""The memory plan against what is really allocated, and the error where it does not fit."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from folders import bpe_tokenizer
from models import FAMILIES, azr_model, plain_model
from transformers import LlamaConfig, LlamaForCausalLM

from azr.config import (
    Config,
    ConfigError,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
    RunConfig,
)
from azr.learner import Experience, Learner
from azr.learner.optim import StochasticAdamW
from azr.memory import available_bytes, give_back, memory_plan
from azr.model.attention.sdpa import Sdpa
from azr.model.load import parameter_count, save_model
from azr.plan import GIB, Part, by_phase, check_fit, peak_bytes, readable
from azr.rollout.cache import Geometry
from azr.rollout.dense import DenseCache
from azr.run.log import process_metrics
from azr.start.prepare import check_rate

CONTEXT = 30
CONFIG = Config(
    rollout=RolloutConfig(slots=12),
    optim=OptimConfig(micro_batch_tokens=40),
    loss=LossConfig(entropy_coef=0.001),
)


def plan_of(model, config=CONFIG):
    architecture = model.config
    plan = memory_plan(config, architecture, parameter_count(architecture), CONTEXT)
    parts = {part.name: part for part in plan}
    assert len(parts) == len(plan)
    return parts


def gradients_of(optimizer):
    if isinstance(optimizer, StochasticAdamW):
        return [t for g in optimizer.gradients for t in (g.total, g.low)]
    return [p.grad for p in optimizer.named.values()]


def bytes_of(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize(
    ("device", "rollout", "per_logit"),
    [
        ("cpu", {}, 24),
        ("cuda", {}, 4),
        ("cuda", dict(top_p=0.9), 24),
        ("cuda", dict(top_k=5), 24),
        ("cuda", dict(min_p=0.1), 24),
    ],
)
def test_the_fused_sampler_of_cuda_holds_the_logits_alone(device, rollout, per_logit):
    model = plain_model()
    rollout = replace(CONFIG.rollout, **rollout)
    parts = plan_of(model, replace(CONFIG, run=RunConfig(device=device), rollout=rollout))
    logits = CONFIG.rollout.slots * model.config.vocab_size
    assert parts["logits peak about"].bytes == logits * per_logit


@pytest.mark.parametrize(
    ("dtype", "update"),
    [("float32", "master"), ("bfloat16", "master"), ("bfloat16", "stochastic")],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_exact_parts_are_what_is_allocated(family, dtype, update):
    model = azr_model(plain_model(family)).to(getattr(torch, dtype))
    optim = replace(CONFIG.optim, bf16_update=update)
    parts = plan_of(model, replace(CONFIG, run=RunConfig(dtype=dtype), optim=optim))
    learner = Learner(
        model,
        None,
        loss=CONFIG.loss,
        optim=optim,
        temperature=1.0,
        seed=0,
    )
    gradients = []
    step = learner.optimizer.step

    def spy():
        gradients.append(bytes_of(gradients_of(learner.optimizer)))
        step()

    learner.optimizer.step = spy
    learner.update(
        [
            Experience(
                prompt_ids=(first, *range(2, 26)),
                response_ids=(5,),
                rollout_logprobs=torch.zeros(1).numpy(),
                advantage=1.0,
            )
            for first in (3, 5)  # two micro-batches
        ],
        1,
    )
    assert parts["weights"].bytes == bytes_of(model.parameters())
    assert parts["gradients"].bytes == gradients[0]
    moments = [s[name] for s in learner.optimizer.state.values() for name in s if name != "step"]
    assert parts["AdamW moments"].bytes == bytes_of(moments)
    copied = learner.optimizer.named.values() if (dtype, update) == ("bfloat16", "master") else ()
    copies = parts.get("fp32 copies of weights")
    assert (copies.bytes if copies else 0) == bytes_of(copied)
    # A prompt for every row is the most that there can be.
    cache = DenseCache(
        Sdpa(),
        Geometry.of(model.config, getattr(torch, dtype)),
        slots=12,
        prompts=12,
        prompt_tokens=20,
        own_tokens=CONTEXT - 20,
        hidden=model.config.hidden_size,
        device=torch.device("cpu"),
    )
    layers = cache.prompt_layers + cache.own_layers
    assert parts["KV cache"].bytes == bytes_of(t for layer in layers for t in layer)


def test_the_cache_is_planned_for_what_is_left():
    model = plain_model()
    whole = plan_of(model)
    # The update's gradients and activations are not there yet.
    rest = sum(part.bytes for part in whole.values() if part.phase in ("always", "self-play"))
    rest += whole["logits peak about"].bytes
    wanted = whole["KV cache"].bytes
    row = wanted // CONFIG.rollout.slots

    def kept(available, config=CONFIG):
        plan = memory_plan(config, model.config, parameter_count(model.config), CONTEXT, available)
        return {part.name: part.bytes for part in plan}["KV cache"]

    assert kept(rest + wanted + 1) == wanted
    assert kept(rest + wanted // 2) == wanted // 2
    # One row is the least; where not even that fits, the plan as a whole does not.
    assert kept(rest + 1) == kept(0) == row
    bounded = replace(CONFIG, rollout=RolloutConfig(slots=12, cache_gib=2 * row / GIB))
    assert kept(None, bounded) == 2 * row


def test_the_frozen_start_model_counts_only_where_it_is_kept():
    model = plain_model()
    assert "frozen start model" not in plan_of(model)
    with_kl = replace(CONFIG, loss=LossConfig(kl="k2", kl_coef=0.1))
    assert plan_of(model, with_kl)["frozen start model"].bytes == bytes_of(model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_estimate_of_activations_is_near_what_autograd_keeps(family):
    model = azr_model(plain_model(family, hidden_size=64, intermediate_size=160))
    rows, width = 4, 10  # the 40 tokens of CONFIG's micro-batch
    kept = {}

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or pack(t), lambda t: t):
        model.base_model(
            input_ids=torch.ones((rows, width), dtype=torch.int64),
            position_ids=torch.arange(width).expand(rows, -1),
        )
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    measured = sum(size for place, size in kept.items() if place not in weights)
    estimate = plan_of(model)["activations about"].bytes
    assert 0.5 < measured / estimate < 2


def test_rollouts_and_update_take_turns():
    plan = [
        Part("weights", 3 * GIB, "--model.path"),
        Part("KV cache", 5 * GIB, "--rollout.slots", "rollouts"),
        Part("logits", 1 * GIB, "--rollout.slots", "rollouts"),
        Part("activations", 4 * GIB, "--optim.micro-batch-tokens", "update"),
    ]
    assert peak_bytes(plan) == 9 * GIB
    assert peak_bytes(plan[:1]) == 3 * GIB
    assert [len(parts) for parts in by_phase(plan).values()] == [1, 0, 0, 2, 1]
    # The optimiser of self-play is made after the warm-up's is gone.
    plan.append(Part("AdamW moments", 6 * GIB, "--run.dtype", "self-play"))
    assert peak_bytes(plan) == 15 * GIB
    plan.append(Part("its activations", 13 * GIB, "--optim.micro-batch-tokens", "warm-up"))
    assert peak_bytes(plan) == 16 * GIB


def test_a_plan_that_does_not_fit_names_its_largest_part_and_the_option():
    plan = [
        Part("weights", 3 * GIB, "--model.path"),
        Part("KV cache", 5 * GIB, "--rollout.slots", "rollouts"),
        Part("activations", 4 * GIB, "--optim.micro-batch-tokens", "update"),
    ]
    check_fit(plan, 8 * GIB, "cpu")
    check_fit(plan, None, "cpu")  # where nothing can be told
    with pytest.raises(ConfigError) as caught:
        check_fit(plan, 8 * GIB - 1, "cuda")
    assert str(caught.value) == (
        "the run needs about 8.0 GiB on cuda, and 8.0 GiB are free; the largest part is "
        "KV cache (5.0 GiB): change --rollout.slots"
    )
    warm_up = [*plan, Part("its gradients", 7 * GIB, "--model.path", "warm-up")]
    with pytest.raises(ConfigError, match=r"its gradients \(7.0 GiB\) during the warm-up: change"):
        check_fit(warm_up, 8 * GIB, "cpu")
    # A smaller cache would not help here, large as it is.
    plan.append(Part("gradients", 2 * GIB, "--run.dtype bfloat16", "update"))
    with pytest.raises(ConfigError, match="about 9.0 GiB.*activations.*micro-batch-tokens"):
        check_fit(plan, 8 * GIB, "cuda")


def test_a_smaller_option_makes_its_part_smaller():
    model = plain_model()
    parts = plan_of(model)
    fewer_slots = plan_of(model, replace(CONFIG, rollout=RolloutConfig(slots=3)))
    assert fewer_slots["KV cache"].bytes * 4 == parts["KV cache"].bytes
    fewer_tokens = plan_of(model, replace(CONFIG, optim=OptimConfig(micro_batch_tokens=10)))
    assert fewer_tokens["activations about"].bytes * 4 == parts["activations about"].bytes
    for name, part in parts.items():
        assert part.bytes > 0 and part.option.startswith("--"), name


def test_what_is_free_is_told_in_bytes():
    free = available_bytes("cpu")
    assert free is None or 2**24 < free < 2**50


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 KiB"),
        (2048, "2 KiB"),
        (3 * 2**20, "3.0 MiB"),
        (GIB // 2, "512.0 MiB"),
        (GIB * 3 // 2, "1.5 GiB"),
    ],
)
def test_sizes_are_readable(count, text):
    assert readable(count) == text


def test_holes_of_the_heap_are_given_back():
    blocks = [b"x" * 100_000 for _ in range(1000)]
    del blocks[::2]
    before = process_metrics()["perf/host_rss_gib"]
    give_back()
    assert before - process_metrics()["perf/host_rss_gib"] > 0.03  # of 0.047


def test_a_trained_model_is_kept_from_the_rate_of_a_tiny_one():
    trained = replace(CONFIG, model=ModelConfig(path="some/model"))
    tiny_rate, paper_rate = OptimConfig(lr=2e-3), OptimConfig(lr=1e-6)
    with pytest.raises(ConfigError, match="--optim.lr 0.002.*some/model has 3,085,938,688 trained"):
        check_rate(replace(trained, optim=tiny_rate), 3_085_938_688)
    check_rate(replace(trained, optim=paper_rate), 3_085_938_688)
    check_rate(replace(trained, optim=tiny_rate), 88_768)  # a checkpoint of the tiny model
    check_rate(replace(CONFIG, optim=tiny_rate), 3_085_938_688)  # from scratch


WARM_UP = """
import sys
from pathlib import Path
from azr.config import parse_command_line
from azr.plan import by_phase
from azr.start.model import build_model
from azr.start.prepare import prepare
from azr.start.trainee import warm_up

ready = prepare(parse_command_line(sys.argv[1:]).config, is_dry=True)
planned = sum(p.bytes for phase in ("always", "warm-up") for p in by_phase(ready.plan)[phase])
model = build_model(ready.config, ready.environment, ready.tokenizer)
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
warm_up(ready.config, ready.environment, model, ready.tokenizer)
status = Path("/proc/self/status").read_text()
peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
print(peak, planned)
"""


@pytest.mark.soak
@pytest.mark.parametrize("tokens", [1024, 4096])
def test_the_warm_up_of_a_real_size_stays_within_its_plan(tokens, tmp_path):
    shape = dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30)
    heads = dict(num_attention_heads=9, num_key_value_heads=3, vocab_size=49152)
    model = LlamaForCausalLM(LlamaConfig(**shape, **heads, tie_word_embeddings=True))
    assert parameter_count(model.config) == 134_515_008
    save_model(model, bpe_tokenizer("llama", ["a small text"], template=False), tmp_path)
    del model
    flags = (
        f"--model {tmp_path} --task.style r1 --rollout.max-new-tokens 64 --warmup.loaded True "
        "--warmup.batch-size 16 --warmup.steps 4 --warmup.lr 1e-5 --optim.lr 1e-6 "
        f"--rollout.slots 8 --optim.micro-batch-tokens {tokens}"
    )
    command = [sys.executable, "-c", WARM_UP, *flags.split()]
    peak, planned = map(int, subprocess.check_output(command, text=True).split())
    assert 0.9 < peak / planned < 1.1, f"{peak / GIB:.2f} of {planned / GIB:.2f} GiB"
