"""Updates on a GPU: what the host waits for, what repeats, and the CPU's update beside it."""

import copy
import threading
import warnings

import pytest
import torch
from models import azr_model, experience_of, plain_model

from azr.config import LossConfig, OptimConfig
from azr.learner import Experience, Learner, response_logprobs
from azr.learner.packing import pack
from azr.model.attention import choose, head_shape, head_weight
from azr.model.attention.packed import gathered
from azr.model.fused import fuse_layers
from azr.rollout import Request, RolloutEngine, Sampling

pytestmark = pytest.mark.gpu

PLAIN = plain_model(hidden_size=256, num_attention_heads=4, num_key_value_heads=2, vocab=1000)


def batch_of():
    """Samples that share their prompts."""
    return experience_of(6, 4, prompt_tokens=(5, 40), response_tokens=(1, 30))


def learner_of(model, **optim):
    settings = OptimConfig(**({"lr": 1e-3, "micro_batch_tokens": 400} | optim))
    return Learner(model, None, loss=LossConfig(), optim=settings, temperature=1.0, seed=0)


@pytest.mark.parametrize("bf16_update", ["master", "stochastic"])
def test_the_host_waits_once_an_update(bf16_update):
    learner = learner_of(azr_model(PLAIN).cuda().bfloat16(), bf16_update=bf16_update)
    learner.update(batch_of(), 1)  # compiles
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            learner.update(batch_of(), 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(w.message) for w in said if "synchroniz" in str(w.message)]
    assert len(waits) == 1, waits


def test_an_update_in_fp32_is_that_of_the_cpu():
    torch.backends.cuda.matmul.allow_tf32 = False
    here, there = learner_of(azr_model(PLAIN)), learner_of(azr_model(PLAIN).cuda())
    for step in (1, 2):
        on_cpu, on_gpu = here.update(batch_of(), step), there.update(batch_of(), step)
        for name in ("policy/loss", "policy/grad_norm", "policy/entropy", "mismatch/kl"):
            assert on_gpu[name] == pytest.approx(on_cpu[name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_fused_layers_are_no_farther_from_fp32_than_transformers_own(family):
    sizes = dict(hidden_size=256, num_attention_heads=4, intermediate_size=512, vocab=1000)
    plain = plain_model(family, num_hidden_layers=4, num_key_value_heads=2, **sizes)
    exact, _ = gradients_of(azr_model(plain).cuda())
    own, _ = gradients_of(azr_model(plain).cuda().bfloat16())
    model = azr_model(plain).cuda().bfloat16()
    fuse_layers(model)  # as by default; a trial of its own is part of it
    found, launched = gradients_of(model)
    for part in ("rms_norm_fwd", "rms_norm_bwd", "rotary_fwd", "rotary_bwd", "swiglu_fwd"):
        assert any(part in name for name in launched), part
    errors, own_errors = (
        sum(((x[n].float() - exact[n]).norm() / exact[n].norm()).item() for n in exact)
        for x in (found, own)
    )
    assert errors <= 1.05 * own_errors


def backend_of(model):
    """What "auto" takes for a model."""
    weight = head_weight(model)
    return choose("auto", weight.device, weight.dtype, head_shape(model.config)[1])


def gradients_of(model):
    """Each parameter's gradient of an update's log-probs, and the kernels that were launched."""
    packed, backend = pack(batch_of(), torch.device("cuda")), backend_of(model)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        logprobs, _ = response_logprobs(model, packed, backend)
        (logprobs * packed.advantages[:, None] * packed.mask).sum().backward()
        torch.cuda.synchronize()
    names = [event.key for event in profile.key_averages()]
    return {name: p.grad.clone() for name, p in model.named_parameters()}, names


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_fused_rollouts_have_the_log_probs_of_fused_training(family):
    plain = plain_model(family, hidden_size=256, num_attention_heads=4, vocab=1000)
    model = azr_model(plain).cuda().bfloat16()
    fuse_layers(model)
    requests = [
        Request(token_ids=tuple(range(2, 40 + i)), sampling=Sampling(max_new_tokens=40), key=i, n=3)
        for i in range(12)
    ]
    for sample in RolloutEngine(model, slots=16).generate(requests):
        experience = Experience(
            prompt_ids=requests[sample.request].token_ids,
            response_ids=sample.token_ids,
            rollout_logprobs=sample.logprobs,
            advantage=1.0,
        )
        packed = pack([experience], torch.device("cuda"))
        with torch.no_grad():
            logprobs, _ = response_logprobs(model, packed, backend_of(model))
        assert (logprobs - packed.rollout_logprobs).abs().mean() < 0.02


def test_gradients_of_what_is_shared_add_up_in_fp32_and_repeat():
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, 50, (20_000,), generator=generator).cuda()
    upstream = torch.randn((20_000, 2, 64), generator=generator).bfloat16().cuda()
    x = torch.randn((50, 2, 64), generator=generator).bfloat16().cuda().requires_grad_()
    (first,) = torch.autograd.grad(gathered(x, index), x, upstream)
    wanted = torch.zeros((50, 2, 64), dtype=torch.float64, device="cuda")
    wanted.index_add_(0, index, upstream.double())
    # One rounding to bf16, of sums of 400 numbers.
    assert ((first.double() - wanted).abs() <= 2**-8 * wanted.abs() + 1e-2).all()
    for _ in range(5):
        (again,) = torch.autograd.grad(gathered(x, index), x, upstream)
        assert torch.equal(again, first)


def test_steps_are_captured_while_another_thread_uses_the_device():
    """As the thread that writes checkpoints does. It copies; it does not draw: torch's generator is
    the graph's as long as one is captured (seen on an H200)."""
    model = azr_model(copy.deepcopy(PLAIN)).cuda().bfloat16()
    engine = RolloutEngine(model, slots=32)
    weights = torch.ones(1 << 16, device="cuda")
    over = threading.Event()
    errors = []

    def busy():
        try:
            while not over.is_set():
                (2 * weights).cpu()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        requests = [
            Request(token_ids=(3, 4, 5 + i), sampling=Sampling(max_new_tokens=20), key=i, n=2)
            for i in range(16)
        ]
        assert len(list(engine.generate(requests))) == 32
    finally:
        over.set()
        thread.join()
    assert errors == []
    assert engine._state.graphs is None or engine._state.graphs.captured


def test_release_gives_the_memory_back_to_the_device():
    engine = RolloutEngine(azr_model(PLAIN).cuda().bfloat16(), slots=64)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    request = Request(token_ids=(3, 4), sampling=Sampling(max_new_tokens=90), key=0, n=64)
    list(engine.generate([request]))
    held = torch.cuda.memory_reserved()
    engine.release()
    assert torch.cuda.memory_reserved() - before < (held - before) / 2
