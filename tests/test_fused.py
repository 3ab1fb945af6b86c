"""Fused layers beside transformers' own: the same numbers and checkpoints, nothing bypassed."""

import copy
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from flash_reference import flash_attn
from models import azr_model, experience_of, plain_model
from safetensors import safe_open
from test_learner import LOSS, OPTIM, Recorder, make_batch, make_learner
from torch import nn
from transformers import AutoModelForCausalLM

import azr.model.fused
import azr.rollout.engine
import azr.rollout.pages
from azr.config import ConfigError
from azr.learner import response_logprobs
from azr.learner.packing import pack
from azr.model import fused
from azr.model.attention import flash
from azr.model.attention.sdpa import Sdpa
from azr.model.load import load_model, make_tokenizer, save_model
from azr.rollout import Request, RolloutEngine, Sampling
from azr.start.trainee import frozen_copy

MODELS = {
    "qwen2": ("qwen2", {}),
    "qwen2 whole heads": ("qwen2", dict(num_key_value_heads=4)),
    "qwen3": ("qwen3", {}),
    "qwen3 biases": ("qwen3", dict(attention_bias=True)),
    "llama": ("llama", {}),
    "llama tied": ("llama-tied", {}),
    "llama biases": ("llama", dict(attention_bias=True, mlp_bias=True)),
}
ROWS = experience_of(3, 4, prompt_tokens=(3, 9), response_tokens=(2, 12), vocab=48)


def fused_model(plain, mode="on"):
    model = azr_model(plain)
    fused.fuse_layers(model, mode)
    return model


def kinds(model):
    """Names of the fused parts among the modules, with their number."""
    parts = [base.__name__ for m in model.modules() for base in type(m).__mro__[1:2]]
    return {name: parts.count(name) for name in sorted(set(parts)) if name.startswith("Fused")}


def logprobs_and_gradients(model, rows=ROWS):
    """Log-probs of the rows, and each parameter's gradient of a weighted sum of them."""
    packed = pack(rows, torch.device("cpu"))
    logprobs, entropy = response_logprobs(model, packed, Sdpa(), return_entropy=True)
    weights = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(1))
    ((logprobs + 0.3 * entropy) * weights * packed.mask).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return logprobs.detach()[packed.mask], found


def relative(found, exact):
    return ((found.double() - exact.double()).norm() / exact.double().norm()).item()


@pytest.mark.parametrize("name", MODELS)
def test_log_probs_and_gradients_are_those_of_the_unpatched_module(name):
    family, options = MODELS[name]
    plain = plain_model(family, **options)
    model = fused_model(plain)
    assert kinds(model) == {
        "FusedAttention": 2,
        "FusedLayer": 2,
        "FusedMLP": 2,
        "FusedNorm": 9 if family == "qwen3" else 5,
    }
    logprobs, gradients = logprobs_and_gradients(model)
    expected, exact = logprobs_and_gradients(azr_model(plain))
    assert (logprobs - expected).abs().max() <= 2e-5
    assert gradients.keys() == exact.keys()
    for parameter, gradient in gradients.items():
        assert relative(gradient, exact[parameter]) <= 1e-5, parameter


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_bf16_is_no_farther_from_fp32_than_the_unpatched_module_is(family):
    plain = plain_model(family, hidden_size=64, num_hidden_layers=6, intermediate_size=160)
    rows = experience_of(16, 4, prompt_tokens=(3, 9), response_tokens=(2, 30), vocab=48)
    expected, exact = logprobs_and_gradients(azr_model(plain), rows)
    rounded = copy.deepcopy(plain)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16()
    own, own_gradients = logprobs_and_gradients(azr_model(rounded), rows)
    found, gradients = logprobs_and_gradients(fused_model(rounded), rows)
    error, own_error = ((x.float() - expected).abs().mean() for x in (found, own))
    assert error <= own_error
    errors = [relative(gradients[name], exact[name]) for name in exact]
    own_errors = [relative(own_gradients[name], exact[name]) for name in exact]
    assert np.mean(errors) <= np.mean(own_errors)


@pytest.mark.parametrize("optim", [dict(), dict(recompute=True), dict(epochs=2, minibatches=2)])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_an_update_is_that_of_the_unpatched_module(family, optim):
    sizes = dict(vocab=13, hidden_size=16, num_hidden_layers=2, intermediate_size=16)
    plain = plain_model(family, seed=5, **sizes)
    norms, gradients = [], []
    for fuse in (False, True):
        learner = make_learner(plain, loss=LOSS, optim=replace(OPTIM, **optim))
        if fuse:
            fused.fuse_layers(learner.model, "on")
        record = Recorder(learner)
        norms.append(learner.update(make_batch(), 1)["policy/grad_norm"])
        gradients.append(record.gradients[0])
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    for name, gradient in gradients[0].items():
        assert relative(gradients[1][name], gradient) <= 1e-5, name


def test_the_optimiser_of_16_bits_trains_merged_weights():
    plain = plain_model("qwen3")
    for parameter in plain.parameters():
        parameter.data = parameter.data.bfloat16()
    for bf16_update in ("master", "stochastic"):
        learner = make_learner(plain, optim=replace(OPTIM, bf16_update=bf16_update))
        fused.fuse_layers(learner.model, "on")
        before = {n: p.detach().clone() for n, p in learner.model.named_parameters()}
        batch = experience_of(3, 3, prompt_tokens=(2, 5), response_tokens=(2, 6), vocab=40)
        learner.update(batch, 1)
        for name, parameter in learner.model.named_parameters():
            assert not torch.equal(parameter, before[name]), name
        assert merged_projections(learner.model) == 4


def merged_projections(model):
    """How many groups of projections lie in one storage each."""
    groups = [m.merged() for m in model.modules() if hasattr(m, "merged")]
    return sum(len({x.weight.untyped_storage().data_ptr() for x in g}) == 1 for g in groups)


# Rollouts

REQUESTS = [
    Request(token_ids=tuple(range(2, 2 + n)), n=3, key=n, sampling=Sampling(max_new_tokens=m))
    for n, m in ((3, 9), (5, 14), (9, 6), (12, 11), (1, 7))
]


def samples_of(model, **options):
    engine = RolloutEngine(model, slots=8, **options)
    return {(s.request, s.index): s for s in engine.generate(REQUESTS)}


def assert_same(found, expected):
    assert found.keys() == expected.keys() and len(found) == 15
    for key, sample in expected.items():
        assert found[key].token_ids == sample.token_ids
        assert np.abs(found[key].logprobs - sample.logprobs).max() <= 2e-5


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_rollouts_are_those_of_the_unpatched_module(family):
    plain = plain_model(family, seed=2)
    assert_same(samples_of(fused_model(plain)), samples_of(azr_model(plain)))


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_keys_and_values_reach_a_paged_cache(monkeypatch, family):
    """The kernel of the rotation writes them; without it `attention_forward` does."""
    plain = plain_model(family, seed=2)
    expected = samples_of(azr_model(plain))
    monkeypatch.setattr(flash, "PAGE_TOKENS", 4)
    monkeypatch.setattr(azr.rollout.pages, "PAGE_TOKENS", 4)
    monkeypatch.setattr(azr.rollout.engine, "choose", lambda *args: flash_attn(4))
    stored = []
    rotary = fused.rotary_qkv

    def watched(*args, **options):
        stored.append(options["keys"] is not None)
        return rotary(*args, **options)

    monkeypatch.setattr(fused, "rotary_qkv", watched)
    model = fused_model(plain)
    stored.clear()  # the trial's calls store nothing
    assert_same(samples_of(model), expected)
    assert stored and all(stored)


def test_rollout_and_training_agree():
    model = fused_model(plain_model("qwen3", seed=2))
    for (request, _), sample in samples_of(model).items():
        row = experience_of(1, 1, prompt_tokens=(1, 2), response_tokens=(1, 2))[0]
        row = replace(
            row,
            prompt_ids=REQUESTS[request].token_ids,
            response_ids=sample.token_ids,
            rollout_logprobs=sample.logprobs,
        )
        with torch.no_grad():
            logprobs, _ = response_logprobs(model, pack([row], torch.device("cpu")), Sdpa())
        assert np.abs(logprobs[0].numpy() - sample.logprobs).max() <= 2e-5


# Checkpoints

WORDS = tuple(f"w{i}" for i in range(45))  # with the three special tokens 48


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_is_byte_for_byte_that_of_the_unpatched_module(tmp_path, name):
    family, options = MODELS[name]
    plain = plain_model(family, **options)
    tokenizer = make_tokenizer(WORDS, "word")
    model = fused_model(plain)
    assert merged_projections(model) == 4
    save_model(azr_model(plain), tokenizer, tmp_path / "plain")
    save_model(model, tokenizer, tmp_path / "fused")
    for file in ("model.safetensors", "config.json"):
        expected = (tmp_path / "plain" / file).read_bytes()
        assert (tmp_path / "fused" / file).read_bytes() == expected
    with safe_open(tmp_path / "fused/model.safetensors", "pt") as saved:
        assert len(set(saved.keys())) == len(list(saved.keys()))
        for key in saved.keys():  # noqa: SIM118 - it is no mapping
            assert torch.equal(saved.get_tensor(key), model.state_dict()[key])
    own = AutoModelForCausalLM.from_pretrained(tmp_path / "fused")
    assert type(own).__name__ == type(plain).__name__ and not kinds(own)
    again, _ = load_model(str(tmp_path / "fused"), torch.float32, torch.device("cpu"), "on")
    found, _ = logprobs_and_gradients(again)
    assert torch.equal(found, logprobs_and_gradients(model)[0])


def test_weights_that_are_loaded_in_place_stay_merged():
    model, other = fused_model(plain_model("llama")), plain_model("llama", seed=7)
    model.load_state_dict(other.state_dict())
    assert merged_projections(model) == 4
    found, _ = logprobs_and_gradients(model)
    assert torch.equal(found, logprobs_and_gradients(fused_model(other))[0])


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"])
def test_a_weight_that_changes_before_the_backward_pass_is_noticed(name):
    model = fused_model(plain_model("qwen2"))
    logprobs, _ = response_logprobs(model, pack(ROWS, torch.device("cpu")), Sdpa())
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if n.endswith(f"{name}.weight")).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logprobs.sum().backward()


def test_a_copy_is_a_model_of_its_own():
    """Weights of a deep copy lie apart: multiplied one by one, until they are merged again."""
    model = fused_model(plain_model("qwen2"))
    expected, _ = logprobs_and_gradients(model)
    apart = copy.deepcopy(model)
    reference = frozen_copy(model)
    assert merged_projections(apart) == 0 and merged_projections(reference) == 4
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    found, _ = logprobs_and_gradients(apart)
    assert (found - expected).abs().max() <= 2e-5
    assert not any(p.requires_grad for p in reference.parameters())
    with torch.no_grad():
        logprobs, _ = response_logprobs(reference, pack(ROWS, torch.device("cpu")), Sdpa())
    assert torch.equal(logprobs[pack(ROWS, torch.device("cpu")).mask], expected)


# What is never bypassed


class Adapter(nn.Module):
    """A projection with a low-rank path beside it, as adapters have one."""

    def __init__(self, base):
        super().__init__()
        self.base, self.calls = base, 0
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        self.calls += 1
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"])
def test_an_adapter_is_called(name):
    def adapted(model):
        torch.manual_seed(0)
        for module in model.modules():
            if hasattr(module, name):
                setattr(module, name, Adapter(getattr(module, name)))
        return model

    plain = plain_model("qwen3")
    model = adapted(fused_model(plain))
    found, gradients = logprobs_and_gradients(model)
    assert sum(m.calls for m in model.modules() if isinstance(m, Adapter)) == 2
    expected, exact = logprobs_and_gradients(adapted(azr_model(plain)))
    assert (found - expected).abs().max() <= 2e-5
    for parameter, gradient in gradients.items():
        assert relative(gradient, exact[parameter]) <= 1e-5, parameter


def hooked(model, name, kind):
    """Puts a hook of that kind on the first module of that name; returns what it took note of."""
    notes = []
    module = next(m for n, m in model.named_modules() if n.endswith(name))

    def note(*args):
        notes.append(name)

    if kind == "an instance's own forward":
        forward = module.forward
        module.forward = lambda *args: notes.append(name) or forward(*args)
    elif kind == "for all modules":
        handle = nn.modules.module.register_module_forward_hook(
            lambda m, *args: notes.append(name) if m is module else None
        )
        return notes, handle
    else:
        getattr(module, f"register_{kind}")(note)
    return notes, None


@pytest.mark.parametrize(
    "kind",
    ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook",
     "an instance's own forward", "for all modules"],
)  # fmt: skip
@pytest.mark.parametrize(
    "name", ["q_proj", "up_proj", "q_norm", "k_norm", "act_fn", "post_attention_layernorm"]
)
def test_a_hook_is_called(name, kind):
    plain = plain_model("qwen3")
    model = fused_model(plain)
    notes, handle = hooked(model, name, kind)
    try:
        found, gradients = logprobs_and_gradients(model)
    finally:
        if handle:
            handle.remove()
    assert notes == [name]
    expected, exact = logprobs_and_gradients(azr_model(plain))
    assert (found - expected).abs().max() <= 2e-5
    for parameter, gradient in gradients.items():
        assert relative(gradient, exact[parameter]) <= 1e-5, parameter


def test_a_parametrised_projection_is_called():
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    def doubled(model):
        nn.utils.parametrize.register_parametrization(
            model.base_model.layers[0].self_attn.k_proj, "weight", Doubled()
        )
        return model

    plain = plain_model("llama")
    found, _ = logprobs_and_gradients(doubled(fused_model(plain)))
    expected, _ = logprobs_and_gradients(doubled(azr_model(plain)))
    assert (found - expected).abs().max() <= 2e-5


SHARDED = """
import sys
sys.path[:0] = sys.argv[1:3]
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from test_fused import azr_model, fused_model, logprobs_and_gradients, plain_model, relative
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
plain = plain_model("qwen3")
models = [azr_model(plain), fused_model(plain)]
expected, exact = logprobs_and_gradients(models[0])
model = models[1]
for layer in model.base_model.layers:
    fully_shard(layer.self_attn.q_proj, mesh=mesh)
    fully_shard(layer, mesh=mesh)
fully_shard(model.base_model, mesh=mesh)
found, gradients = logprobs_and_gradients(model)
assert (found - expected).abs().max() <= 2e-5
for name, gradient in gradients.items():
    assert relative(getattr(gradient, "full_tensor", lambda: gradient)(), exact[name]) <= 1e-5, name
dist.destroy_process_group()
print("whole")
"""


def test_sharded_weights_are_not_taken_for_whole_ones(request):
    paths = [str(request.path.parent), str(request.path.parents[1])]
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, *paths], capture_output=True, text=True, timeout=200
    )
    assert done.stdout.strip() == "whole", done.stderr[-3000:]


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_autocast_chooses_the_type_of_each_product(family):
    """Weights in fp32, products in bf16: modules are called one by one, as transformers does."""
    plain = plain_model(family)
    expected, exact = logprobs_and_gradients(azr_model(plain))
    errors = []
    for model in (azr_model(plain), fused_model(plain)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, gradients = logprobs_and_gradients(model)
        assert all(g.dtype == torch.float32 for g in gradients.values())
        error = np.mean([relative(gradients[name], exact[name]) for name in exact])
        errors.append(((found - expected).abs().mean().item(), error))
    (own, own_error), (ours, our_error) = errors
    assert 0 < ours <= 1.1 * own and 0 < our_error <= 1.1 * own_error


def test_frozen_projections_get_no_gradient():
    plain = plain_model("llama", attention_bias=True)
    model, own = fused_model(plain), azr_model(plain)
    for m in (model, own):
        for name, parameter in m.named_parameters():
            parameter.requires_grad_(
                not name.endswith(("k_proj.weight", "up_proj.weight", "q_proj.bias"))
            )
    packed = pack(ROWS, torch.device("cpu"))
    for m in (model, own):
        response_logprobs(m, packed, Sdpa())[0].sum().backward()
    for (name, parameter), exact in zip(model.named_parameters(), own.parameters(), strict=True):
        assert (parameter.grad is None) == (exact.grad is None), name
        if exact.grad is not None:
            assert relative(parameter.grad, exact.grad) <= 1e-5, name


# Which layers are fused, and who says so


def test_auto_leaves_layers_on_the_cpu_alone():
    model = azr_model(plain_model("qwen2"))
    fused.fuse_layers(model)
    assert not kinds(model) and not merged_projections(model)
    described = fused.describe_layers("auto", "qwen2", torch.device("cpu"))
    assert described == "transformers' own: fused ones are no faster on the CPU"


def test_a_family_that_is_not_known_stays_as_it_is():
    plain = plain_model("mistral")
    model = azr_model(plain)
    fused.fuse_layers(model)
    with pytest.raises(ConfigError, match=r"fused-layers on: layers of mistral are none of qwen2"):
        fused.fuse_layers(model, "on")
    assert not kinds(model)


def test_other_models_of_the_process_stay_as_they_are():
    plain = plain_model("qwen2")
    fused_model(plain)
    assert not kinds(plain) and not kinds(plain_model("qwen2"))


def spoiled(how, monkeypatch):
    """Breaks a kernel of the fused layers."""
    rotary, glu = fused.rotary_qkv, fused.swiglu

    def wrong_swiglu(gate_up, **options):
        if how == "an error":
            raise RuntimeError("no kernel image is available\nfor this device")
        if how == "another gradient":
            out = glu(gate_up, **options)
            return out.detach() + 0.5 * (out - out.detach())
        return gate_up.chunk(2, dim=-1)[0]

    def forgetful_rotary(*args, keys, values, places, **options):
        return rotary(*args, **options)

    if how == "nothing stored":
        monkeypatch.setattr(azr.model.fused, "rotary_qkv", forgetful_rotary)
    else:
        monkeypatch.setattr(azr.model.fused, "swiglu", wrong_swiglu)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("another number", "layer 0: output off by"),
        ("another gradient", "layer 0: gradient off by"),
        ("nothing stored", "layer 0: keys off by"),
        ("an error", "no kernel image"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_fail_the_trial_are_refused_and_taken_back(monkeypatch, how, says, dtype):
    plain = plain_model("qwen2")
    for parameter in plain.parameters():
        parameter.data = parameter.data.to(dtype)
    model = azr_model(plain)
    spoiled(how, monkeypatch)
    with pytest.raises(ConfigError, match=f"fused-layers on: .*{says}.*--model.fused-layers off"):
        fused.fuse_layers(model, "on")
    assert not kinds(model)
    expected, _ = logprobs_and_gradients(azr_model(plain))
    assert torch.equal(logprobs_and_gradients(model)[0], expected)


def test_deep_16_bit_models_pass_the_trial():
    """Through all of their layers rounding alone makes hidden states differ by a tenth and more."""
    plain = plain_model("qwen3", num_hidden_layers=48)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in plain.named_parameters():
        if "norm" in name:
            parameter.data.mul_(torch.randn(parameter.shape, generator=generator).exp())
        if "proj" in name:
            parameter.data.mul_(5)
        parameter.data = parameter.data.bfloat16()
    model = azr_model(plain)
    packed = pack(ROWS, torch.device("cpu"))
    with torch.no_grad():
        before, _ = response_logprobs(model, packed, Sdpa())
        fused.fuse_layers(model, "on")
        after, _ = response_logprobs(model, packed, Sdpa())
    assert kinds(model) and relative(after, before) > 0.01


def test_weights_that_are_not_finite_are_not_laid_at_the_layers_door():
    plain = plain_model("llama")
    plain.base_model.layers[1].mlp.up_proj.weight.data[3, 4] = torch.nan
    with pytest.raises(ConfigError, match="not finite, with transformers' own layers either"):
        fused.fuse_layers(azr_model(plain), "on")


def test_a_second_derivative_is_refused():
    """As of every kernel here: the merged weight is no part of autograd's graph."""
    model = fused_model(plain_model("llama"))
    packed = pack(ROWS, torch.device("cpu"))
    logprobs, _ = response_logprobs(model, packed, Sdpa())
    with pytest.raises(RuntimeError):
        torch.autograd.grad(logprobs.sum(), list(model.parameters()), create_graph=True)
    x = torch.randn(5, 32, requires_grad=True)
    attention = model.base_model.layers[0].self_attn
    found = fused.projected(x, attention.merged())
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(found.sum(), x, create_graph=True)


def command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def run_options(root):
    return ["--model.fused-layers", "on", "--warmup.steps", "3", "--eval.every", "2",
            "--eval.samples", "1", "--run.root", str(root),
            "--optim.schedule-steps", "4"]  # fmt: skip


def test_a_run_trains_with_fused_layers(tmp_path):
    """The command itself, on the CPU; its rollouts have the log-probs of its updates."""
    said = command("azr.train", *run_options(tmp_path), "--steps", "2")
    assert "fused by torch: norms" in said
    text = (tmp_path / "latest" / "metrics.jsonl").read_text()
    mismatch = [json.loads(line).get("mismatch/kl") for line in text.splitlines()]
    assert max(abs(m) for m in mismatch if m is not None) < 1e-6


@pytest.mark.proof
def test_a_run_with_fused_layers_goes_on_bit_for_bit_and_is_evaluated(tmp_path):
    options = run_options(tmp_path)
    command("azr.train", *options, "--steps", "4", "--run.name", "whole")
    command("azr.train", *options, "--steps", "2", "--run.name", "part")
    (part,) = tmp_path.glob("*-part")
    command("azr.train", *options, "--resume", str(part), "--steps", "4")
    (run,) = tmp_path.glob("*-whole")
    files = [p / "checkpoints/step_000004/hf/model.safetensors" for p in (run, part)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert "deduction" in command("azr.evaluate", str(run))
