"""The update against losses and gradients written from the formulas, one sample at a time."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import azr_model, full_forward_logprobs, plain_model

import azr.learner
from azr.advantage import task_relative_advantages
from azr.config import LossConfig, ModelConfig, OptimConfig
from azr.learner import Experience, Learner, TrainingDiverged, scheduled_rate
from azr.learner.packing import pack
from azr.model.attention.sdpa import Sdpa
from azr.model.load import make_tiny_model
from azr.rollout import Request, RolloutEngine, Sampling

SIZES = dict(vocab=13, hidden_size=16, num_hidden_layers=1, intermediate_size=16)
PLAIN = plain_model("qwen2", seed=5, attention="eager", **SIZES)
OTHER = plain_model("qwen2", seed=6, attention="eager", **SIZES)
LOSS = LossConfig(entropy_coef=0.0, tis_cap=0.0)
OPTIM = OptimConfig(lr=0.01, grad_clip=1e9, weight_decay=0.0, schedule_steps=10)


def make_batch(seed=0, count=9, noise=0.3):
    """Ragged experiences; some sequences occur more than once, with other advantages."""
    rng = np.random.default_rng(seed)
    batch = []
    for i in range(count):
        if i % 3 == 2:  # a copy of an earlier sequence
            prompt, response = batch[i - 2].prompt_ids, batch[i - 2].response_ids
        else:
            prompt = tuple(rng.integers(2, 13, size=rng.integers(1, 7)).tolist())
            response = tuple(rng.integers(1, 13, size=rng.integers(1, 5)).tolist())
        (rollout,) = full_forward_logprobs(PLAIN, [prompt], [response])
        rollout = rollout + noise * rng.standard_normal(len(response)).astype(np.float32)
        batch.append(
            Experience(
                prompt_ids=prompt,
                response_ids=response,
                rollout_logprobs=rollout,
                advantage=float(rng.normal()),
            )
        )
    return batch


def make_learner(plain=PLAIN, reference=None, loss=LOSS, optim=OPTIM, temperature=1.0, **options):
    return Learner(
        azr_model(plain),
        None if reference is None else azr_model(reference).requires_grad_(False),
        loss=loss,
        optim=optim,
        temperature=temperature,
        **(dict(seed=0) | options),
    )


class Recorder:
    """Keeps the weights before, and the gradients at, every optimiser step of a learner."""

    def __init__(self, learner):
        self.weights, self.gradients = [], []
        self.model, self.step = learner.model, learner.optimizer.step
        learner.optimizer.step = self

    def __call__(self):
        named = dict(self.model.named_parameters())
        self.weights.append({name: p.detach().clone() for name, p in named.items()})
        self.gradients.append({name: p.grad.clone() for name, p in named.items()})
        self.step()


def wide(weights):
    """The model with these weights, in float64 and with transformers' own attention."""
    model = copy.deepcopy(PLAIN).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return model


def response_terms(model, experience, temperature):
    """(log-probs, entropies) [L] of one response, from a forward of its own."""
    prompt, response = experience.prompt_ids, experience.response_ids
    logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits
    logprobs = (logits[0, len(prompt) - 1 : -1] / temperature).log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(1, torch.tensor(response)[:, None])[:, 0], entropy


def token_loss(c, advantage, logp, old, rollout, entropy, ref):
    """Loss of one token: PPO's clip, dual clip, truncated importance weight, KL, entropy."""
    ratio = torch.exp(logp - old)
    clipped = ratio.clamp(1 - c.clip_low, 1 + c.clip_high)
    surrogate = torch.minimum(ratio * advantage, clipped * advantage)
    if c.dual_clip and advantage < 0:
        surrogate = torch.maximum(surrogate, torch.tensor(c.dual_clip * advantage).double())
    weight = min(math.exp(old - rollout), c.tis_cap) if c.tis_cap else 1.0
    loss = -weight * surrogate - c.entropy_coef * entropy
    if c.kl == "k1":
        loss = loss + c.kl_coef * (logp - ref)
    elif c.kl == "k2":
        loss = loss + c.kl_coef * (logp - ref) ** 2 / 2
    elif c.kl == "k3":
        loss = loss + c.kl_coef * (torch.exp(ref - logp) - 1 - (ref - logp))
    return loss


def expected(config, batch, weights, old_weights, reference=None, temperature=1.0):
    """(loss, gradients by name, largest ratio) in float64, sample by sample, nothing merged."""
    model, old_model = wide(weights), wide(old_weights)
    total, ratios = 0.0, []
    for e in batch:
        logp, entropy = response_terms(model, e, temperature)
        with torch.no_grad():
            old, _ = response_terms(old_model, e, temperature)
            ref = old
            if reference is not None:
                ref, _ = response_terms(copy.deepcopy(reference).double(), e, temperature)
        losses = [
            token_loss(
                config, e.advantage, logp[t], old[t], float(e.rollout_logprobs[t]), entropy[t],
                ref[t],
            )
            for t in range(len(e.response_ids))
        ]  # fmt: skip
        ratios += (logp.detach() - old).exp().tolist()
        if config.reduction == "token":
            total = total + sum(losses) / sum(len(e.response_ids) for e in batch)
        else:
            total = total + sum(losses) / len(losses) / len(batch)
    total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return float(total.detach()), gradients, max(ratios)


def assert_same_gradients(found, wanted, tolerance=2e-5):
    assert found.keys() == wanted.keys()
    scale = math.sqrt(sum(float(g.double().square().sum()) for g in wanted.values()))
    assert scale > 0
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).abs().max()) < tolerance * scale, name


CASES = {
    "plain": {},
    "entropy": dict(entropy_coef=0.1),
    "importance weight": dict(tis_cap=1.1),
    "tight clip": dict(clip_low=0.05, clip_high=0.05),
    "asymmetric clip": dict(clip_low=0.05, clip_high=0.4),
    "dual clip": dict(clip_low=0.9, clip_high=0.05, dual_clip=1.05),
    "k1": dict(kl="k1", kl_coef=0.3),
    "k2": dict(kl="k2", kl_coef=0.3),
    "k3": dict(kl="k3", kl_coef=0.3),
    "sequence mean": dict(reduction="seq-mean"),
    "everything": dict(
        clip_low=0.1, clip_high=0.3, dual_clip=1.02, kl="k2", kl_coef=0.2, tis_cap=1.2,
        entropy_coef=0.02, reduction="seq-mean",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_equal_the_formulas(name):
    loss = replace(LOSS, **CASES[name])
    temperature = 0.7 if name in ("plain", "everything") else 1.0
    reference = OTHER if loss.kl != "none" else None
    batch = make_batch()
    # Two passes: the first at a ratio of 1, the second against the log-probs before the first.
    optim = replace(OPTIM, epochs=2, lr=0.04, micro_batch_tokens=25)
    learner = make_learner(reference=reference, loss=loss, optim=optim, temperature=temperature)
    recorder = Recorder(learner)
    metrics = learner.update(batch, 1)
    assert len(recorder.weights) == 2
    losses = []
    for i in range(2):
        value, gradients, ratio = expected(
            loss, batch, recorder.weights[i], recorder.weights[0], reference, temperature
        )
        losses.append(value)
        assert_same_gradients(recorder.gradients[i], gradients)
    assert metrics["policy/loss"] == pytest.approx(sum(losses) / 2, rel=1e-5, abs=1e-6)
    assert metrics["policy/ratio_max"] == pytest.approx(ratio, rel=1e-4)
    # What the case is about did act.
    assert metrics["policy/clip_ratio"] > 0
    if loss.tis_cap:
        assert 0 < metrics["mismatch/capped_frac"] < 1
    if loss.dual_clip:
        assert metrics["policy/dual_clip_ratio"] > 0
    if loss.kl != "none":
        assert metrics["policy/kl"] > 0.1


def test_the_first_pass_alone_has_the_gradient_of_reinforce():
    batch = make_batch()
    learner = make_learner()
    recorder = Recorder(learner)
    metrics = learner.update(batch, 1)
    model = wide(recorder.weights[0])
    tokens = sum(len(e.response_ids) for e in batch)
    objective = sum(e.advantage * response_terms(model, e, 1.0)[0].sum() for e in batch)
    (-objective / tokens).backward()
    wanted = {name: p.grad for name, p in model.named_parameters()}
    assert_same_gradients(recorder.gradients[0], wanted)
    # The ratio is 1 exactly, not up to rounding.
    assert metrics["policy/ratio_max"] == metrics["policy/ratio_mean"] == 1.0
    assert metrics["policy/clip_ratio"] == 0.0


def test_several_updates_are_against_the_log_probs_before_the_first():
    batch = make_batch()
    for split in (dict(epochs=3), dict(minibatches=3), dict(epochs=2, minibatches=2)):
        learner = make_learner(optim=replace(OPTIM, lr=0.05, **split))
        metrics = learner.update(batch, 1)
        assert metrics["policy/ratio_max"] > 1.2
        assert metrics["policy/clip_ratio"] > 0
        updates = split.get("epochs", 1) * split.get("minibatches", 1)
        assert metrics["policy/updates"] == updates
        tokens = sum(len(e.response_ids) for e in batch)
        assert metrics["policy/tokens"] == tokens * split.get("epochs", 1)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 5))
def test_every_sample_is_in_one_minibatch_of_each_pass(count, minibatches, epochs):
    seen = []

    class Watched(Learner):
        def _one_update(self, batch, part, old):
            seen.append(part)
            return [{"tokens": 1.0}], 0.0, 0.0

    learner = make_learner(optim=replace(OPTIM, minibatches=minibatches, epochs=epochs))
    learner.__class__ = Watched
    learner.update(make_batch(count=count), 1)
    per_pass = min(minibatches, count)
    assert len(seen) == per_pass * epochs
    for epoch in range(epochs):
        parts = seen[epoch * per_pass : (epoch + 1) * per_pass]
        assert sorted(i for part in parts for i in part) == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_minibatches_are_drawn_anew_for_each_pass_step_and_seed(monkeypatch):
    drawn = []
    monkeypatch.setattr(Learner, "_one_update", lambda self, batch, part, *_: drawn.append(part))
    monkeypatch.setattr(azr.learner, "_combined", lambda updates: {})
    optim = replace(OPTIM, minibatches=2, epochs=2)
    for seed, step in ((0, 1), (0, 2), (1, 1), (0, 1)):
        make_learner(optim=optim, seed=seed).update(make_batch(count=12), step)
    passes = [sum(drawn[i : i + 2], []) for i in range(0, len(drawn), 2)]
    assert passes[:2] == passes[6:]
    assert len({tuple(order) for order in passes[:6]}) == 6
    assert all(sorted(order) == list(range(12)) != order for order in passes)


@pytest.mark.parametrize("reduction", ["token", "seq-mean"])
def test_accumulation_changes_nothing(reduction):
    batch = make_batch(count=14)
    loss = replace(LOSS, reduction=reduction, entropy_coef=0.05, tis_cap=1.3, kl="k3", kl_coef=0.1)
    results = []
    for budget in (1, 17, 40, 10**6):
        optim = replace(OPTIM, micro_batch_tokens=budget, epochs=2)
        learner = make_learner(reference=OTHER, loss=loss, optim=optim)
        recorder = Recorder(learner)
        results.append((learner.update(batch, 1), recorder.gradients))
    whole_metrics, whole = results[-1]
    for metrics, gradients in results[:-1]:
        # The second pass starts from weights that differ in their last bits.
        for found, wanted in zip(gradients, whole, strict=True):
            assert_same_gradients(found, wanted, tolerance=1e-5)
        assert metrics == pytest.approx(whole_metrics, rel=1e-4, abs=1e-6)


def test_micro_batches_keep_to_the_budget(monkeypatch):
    shapes = []
    real = azr.learner.hidden_states

    def spy(model, ids, *args):
        shapes.append(tuple(ids.shape))
        return real(model, ids, *args)

    monkeypatch.setattr(azr.learner, "hidden_states", spy)
    batch = make_batch(count=40)
    make_learner(optim=replace(OPTIM, micro_batch_tokens=24)).update(batch, 1)
    assert len(batch) > 2 * len(shapes) > 10
    assert all(rows == 1 and tokens <= 24 for rows, tokens in shapes)


class Packs(Sdpa):
    """Takes rows as they are, as FlashAttention does; what it computes is SDPA's."""

    name, cache = "packs", "pages"


def selfplay_batch(prompts=32, samples=8, seed=0, longest=900, instruction=600):
    """Prompts that share a long instruction, and samples whose responses begin alike."""
    rng = np.random.default_rng(seed)
    common = tuple(rng.integers(2, 999, size=instruction).tolist())
    start = tuple(rng.integers(2, 999, size=12).tolist())
    batch = []
    for _ in range(prompts):
        own = tuple(rng.integers(2, 999, size=rng.integers(20, 400)).tolist())
        for _ in range(samples):
            rest = tuple(rng.integers(2, 999, size=rng.integers(1, longest)).tolist())
            response = start[: rng.integers(0, 13)] + rest
            zeros = np.zeros(len(response), dtype=np.float32)
            batch.append(
                Experience(
                    prompt_ids=common + own,
                    response_ids=response,
                    rollout_logprobs=zeros,
                    advantage=1.0,
                )
            )
    return batch


@pytest.mark.parametrize("backend", [Sdpa(), Packs()], ids=lambda backend: backend.name)
@pytest.mark.parametrize("budget", [700, 4096, 16384])
def test_every_sample_is_in_one_group_and_no_group_exceeds_the_budget(backend, budget):
    batch = [*selfplay_batch(prompts=6), *make_batch(count=12)]
    # One is the beginning of the next, and one occurs twice.
    first = batch[0]
    cut = replace(
        first, response_ids=first.response_ids[:5], rollout_logprobs=first.rollout_logprobs[:5]
    )
    batch += [cut, batch[3]]
    part = [i for i in range(len(batch)) if i != 1]
    groups = azr.learner.micro_batches(batch, part, budget, backend)
    assert sorted(i for group in groups for i in group) == part
    for group in groups:
        packed = pack([batch[i] for i in group], torch.device("cpu"))
        runs, full = packed.ids.numel(), sum(packed.rows.lengths)
        if backend.cache == "rows":
            full = runs = packed.rows.longest * len(group)
        assert len(group) == 1 or runs + (full - runs) / 5 <= budget


def test_groups_are_full_of_tokens_that_run():
    """A self-play step of 256 samples, 1,000 tokens each: counted as if padded, a third is run."""
    batch, budget = selfplay_batch(), 16384
    filled = {}
    for backend in (Sdpa(), Packs()):
        groups = azr.learner.micro_batches(batch, range(len(batch)), budget, backend)
        packs = [pack([batch[i] for i in group], torch.device("cpu")) for group in groups]
        runs = [packed.ids.numel() for packed in packs]
        counted = [
            tokens + (sum(packed.rows.lengths) - tokens) / 5
            for tokens, packed in zip(runs, packs, strict=True)
        ]
        filled[backend.name] = len(groups), np.mean(counted[:-1]) / budget, sum(runs)
    assert filled["packs"][1] > 0.8
    assert filled["packs"][0] < 0.6 * filled["sdpa"][0]
    assert filled["packs"][2] <= filled["sdpa"][2]


def test_groups_of_packed_tokens_change_no_gradient(monkeypatch):
    batch = make_batch(count=14)
    results = []
    for budget, backend in ((10**6, Sdpa()), (17, Packs()), (40, Packs()), (10**6, Packs())):
        monkeypatch.setattr(azr.learner, "choose", lambda *_, backend=backend: backend)
        learner = make_learner(optim=replace(OPTIM, micro_batch_tokens=budget))
        recorder = Recorder(learner)
        results.append((learner.update(batch, 1), recorder.gradients[0]))
    whole_metrics, whole = results[0]
    for metrics, gradients in results[1:]:
        assert_same_gradients(gradients, whole, tolerance=1e-5)
        assert metrics == pytest.approx(whole_metrics, rel=1e-4, abs=1e-6)


def test_what_sequences_share_runs_through_the_model_once(monkeypatch):
    rows = []
    real = azr.learner.hidden_states

    def spy(model, ids, *args):
        rows.append(ids.tolist())
        return real(model, ids, *args)

    monkeypatch.setattr(azr.learner, "hidden_states", spy)
    one, other = make_batch(count=2)
    batch = [replace(e, advantage=a) for a in (0.5, -1.0, 2.0) for e in (one, other)]
    learner = make_learner()
    recorder = Recorder(learner)
    metrics = learner.update(batch, 1)
    ((forward,),) = rows
    # The last token of a response predicts nothing.
    inputs = {e.prompt_ids + e.response_ids[:-1] for e in batch}
    beginnings = {ids[: end + 1] for ids in inputs for end in range(len(ids))}
    assert sorted(forward) == sorted(b[-1] for b in beginnings)
    assert metrics["policy/tokens"] == 3 * (len(one.response_ids) + len(other.response_ids))
    _, gradients, _ = expected(LOSS, batch, recorder.weights[0], recorder.weights[0])
    assert_same_gradients(recorder.gradients[0], gradients)


def test_a_prompt_and_response_split_elsewhere_is_another_sequence():
    # The same 5 tokens, cut at two places: merged into one they would share their mask.
    logprobs = np.zeros(4, dtype=np.float32)
    ids = (3, 4, 5, 6, 7)
    batch = [
        Experience(
            prompt_ids=ids[:k],
            response_ids=ids[k:],
            rollout_logprobs=logprobs[: 5 - k],
            advantage=1.0,
        )
        for k in (1, 3)
    ]
    learner = make_learner()
    recorder = Recorder(learner)
    assert learner.update(batch, 1)["policy/tokens"] == 6
    _, gradients, _ = expected(LOSS, batch, recorder.weights[0], recorder.weights[0])
    assert_same_gradients(recorder.gradients[0], gradients)


def test_metrics_are_means_over_tokens():
    batch = make_batch(noise=0.3)
    loss = replace(LOSS, tis_cap=1.2)
    learner = make_learner(reference=OTHER, loss=loss, optim=replace(OPTIM, micro_batch_tokens=20))
    weights = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    metrics = learner.update(batch, 1)
    logp, entropy, ref = [], [], []
    with torch.no_grad():
        for e in batch:
            a, b = response_terms(wide(weights), e, 1.0)
            c, _ = response_terms(copy.deepcopy(OTHER).double(), e, 1.0)
            logp, entropy, ref = logp + a.tolist(), entropy + b.tolist(), ref + c.tolist()
    logp, ref = np.array(logp), np.array(ref)
    rollout = np.concatenate([e.rollout_logprobs for e in batch])
    advantage = np.concatenate([[e.advantage] * len(e.response_ids) for e in batch])
    ratio = np.exp(logp - rollout)
    assert metrics["policy/entropy"] == pytest.approx(np.mean(entropy), rel=1e-5)
    assert metrics["policy/kl"] == pytest.approx(
        np.mean(np.exp(ref - logp) - 1 - (ref - logp)), rel=1e-4
    )
    assert metrics["policy/pg_loss"] == pytest.approx(
        np.mean(-np.minimum(ratio, 1.2) * advantage), rel=1e-4
    )
    assert metrics["mismatch/kl"] == pytest.approx(np.mean(ratio - 1 - np.log(ratio)), rel=1e-3)
    assert metrics["mismatch/ratio_max"] == pytest.approx(ratio.max(), rel=1e-4)
    assert metrics["mismatch/capped_frac"] == pytest.approx(np.mean(ratio > 1.2))
    assert metrics["policy/tokens"] == len(logp)


def test_rollout_log_probs_of_the_same_weights_show_no_mismatch():
    model = azr_model(PLAIN)
    request = Request(token_ids=(3, 4), sampling=Sampling(max_new_tokens=4), key=1, n=6)
    batch = [
        Experience(
            prompt_ids=request.token_ids,
            response_ids=s.token_ids,
            rollout_logprobs=s.logprobs,
            advantage=1.0 - s.index % 3,
        )
        for s in RolloutEngine(model, slots=4).generate([request])
    ]
    metrics = make_learner(loss=replace(LOSS, tis_cap=2.0)).update(batch, 1)
    assert abs(metrics["mismatch/kl"]) < 1e-6
    assert metrics["mismatch/ratio_max"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({}, [1.0] * 10),
        (dict(warmup_steps=4), [0.25, 0.5, 0.75] + [1.0] * 7),
        (
            dict(decay_start_frac=0.5, final_lr_frac=0.1),
            [1.0] * 5 + [0.82, 0.64, 0.46, 0.28, 0.1],
        ),
        (dict(decay_start_frac=0.0, final_lr_frac=0.0), [1 - i / 10 for i in range(1, 11)]),
        (
            dict(warmup_steps=2, decay_start_frac=0.8, final_lr_frac=0.5),
            [0.5] + [1.0] * 7 + [0.75, 0.5],
        ),
        (dict(decay_start_frac=0.99, final_lr_frac=0.1), [1.0] * 9 + [0.1]),
        (dict(schedule_steps=4, decay_start_frac=0.5), [1.0] * 2 + [0.55] + [0.1] * 7),
        (dict(schedule_steps=4), [1.0] * 10),
        (dict(schedule_steps=4, warmup_steps=5), [0.2, 0.4, 0.6, 0.8] + [1.0] * 6),
    ],
)
def test_the_rate_ramps_stays_and_decays(options, rates):
    optim = replace(OPTIM, lr=0.004, **options)
    assert [scheduled_rate(optim, step) for step in range(1, 11)] == pytest.approx(
        [0.004 * rate for rate in rates]
    )
    assert scheduled_rate(optim, 10_000) == scheduled_rate(optim, 10)  # it has ended


def test_the_rate_of_the_step_is_the_one_that_is_used():
    learner = make_learner(optim=replace(OPTIM, lr=0.01, warmup_steps=4))
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    assert learner.update(make_batch(), 2)["policy/lr"] == pytest.approx(0.005)
    # Adam's first step moves every weight by the rate, whatever its gradient.
    moved = [
        (p.detach() - before[name]).abs().max() for name, p in learner.model.named_parameters()
    ]
    assert max(moved) == pytest.approx(0.005, rel=1e-3)


def test_the_optimiser_is_adamw():
    optim = replace(OPTIM, lr=0.01, beta1=0.8, beta2=0.95, weight_decay=0.1, epochs=3)
    learner = make_learner(optim=optim)
    recorder = Recorder(learner)
    learner.update(make_batch(), 1)
    name = "model.layers.0.mlp.up_proj.weight"
    weight = recorder.weights[0][name].double()
    m = v = torch.zeros_like(weight)
    for t in range(1, 4):
        g = recorder.gradients[t - 1][name].double()
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        weight = weight * (1 - 0.01 * 0.1)
        weight = weight - 0.01 * (m / (1 - 0.8**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
    found = dict(learner.model.named_parameters())[name]
    assert (found.detach() - weight).abs().max() < 1e-6


@pytest.mark.parametrize("clip", [0.01, 1e3])
def test_gradients_are_clipped_to_the_norm_given(clip):
    def run(limit):
        learner = make_learner(optim=replace(OPTIM, grad_clip=limit))
        recorder = Recorder(learner)
        return learner.update(make_batch(), 1)["policy/grad_norm"], recorder.gradients[0]

    def norm_of(gradients):
        return math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))

    norm, gradients = run(clip)
    free_norm, free = run(1e9)
    assert norm == pytest.approx(free_norm) == norm_of(free)  # before clipping
    assert 0.01 < norm < 1e3
    assert norm_of(gradients) == pytest.approx(min(norm, clip), rel=1e-3)
    scale = min(1.0, clip / norm)
    assert_same_gradients(gradients, {n: g * scale for n, g in free.items()}, tolerance=1e-4)


def state_of(learner):
    state = copy.deepcopy(learner.optimizer.state_dict()["state"])
    return {n: p.detach().clone() for n, p in learner.model.named_parameters()}, state


def assert_same_state(before, after):
    weights, moments = before
    assert all(torch.equal(weights[name], after[0][name]) for name in weights)
    assert moments.keys() == after[1].keys()
    for key, values in moments.items():
        assert all(torch.equal(value, after[1][key][name]) for name, value in values.items())


def poison_gradient(learner, value):
    """Makes one gradient non-finite where the loss is finite; returns what undoes it."""
    parameter = learner.model.model.layers[0].mlp.up_proj.weight
    return parameter.register_hook(lambda g: torch.full_like(g, value)).remove


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["advantage", "gradient"])
def test_an_update_that_is_not_finite_changes_nothing_and_is_counted(where, value, monkeypatch):
    monkeypatch.setattr("azr.learner.MAX_BAD_UPDATES", 3)
    learner = make_learner()
    good = make_batch()
    assert learner.update(good, 1)["policy/skipped_updates"] == 0
    before = state_of(learner)
    assert before[1]  # the moments of the first update
    heal, batch = lambda: None, good
    if where == "advantage":
        batch = [replace(good[0], advantage=value), *good[1:]]
    else:
        heal = poison_gradient(learner, value)
    assert learner.update(batch, 2)["policy/skipped_updates"] == 1
    assert_same_state(before, state_of(learner))
    assert learner.update(batch, 3)["policy/skipped_updates"] == 2
    assert_same_state(before, state_of(learner))
    heal()
    # A good update goes on as if nothing had happened, and the row of bad ones is broken.
    assert learner.update(good, 4)["policy/skipped_updates"] == 2
    twin = make_learner()
    for step in (1, 4):
        twin.update(good, step)
    assert_same_state(state_of(twin), state_of(learner))
    poison_gradient(learner, value)
    before = state_of(learner)
    learner.update(good, 5)
    learner.update(good, 6)
    with pytest.raises(TrainingDiverged, match="3 updates in a row .* --optim.lr 0.01"):
        learner.update(good, 7)
    assert learner.skipped_updates == 5
    assert_same_state(before, state_of(learner))


def test_an_empty_batch_is_no_update():
    learner = make_learner()
    assert learner.update([], 1) == {}
    assert not learner.optimizer.state


def test_the_reference_model_is_left_alone():
    learner = make_learner(
        reference=OTHER, loss=replace(LOSS, kl="k2", kl_coef=1.0), optim=replace(OPTIM, epochs=2)
    )
    learner.update(make_batch(), 1)
    for ours, theirs in zip(learner.reference.parameters(), OTHER.parameters(), strict=True):
        assert ours.grad is None and torch.equal(ours, theirs)


def test_the_kl_term_pulls_towards_the_reference():
    batch = [replace(e, advantage=0.0) for e in make_batch()]
    learner = make_learner(
        reference=OTHER,
        loss=replace(LOSS, kl="k2", kl_coef=1.0),
        optim=replace(OPTIM, grad_clip=1.0),
    )
    kl = [learner.update(batch, step)["policy/kl"] for step in range(1, 16)]
    assert kl[-1] < 0.5 * kl[0]


def test_without_signal_the_weights_stay():
    batch = [replace(e, advantage=0.0) for e in make_batch()]
    learner = make_learner()
    before, _ = state_of(learner)
    learner.update(batch, 1)
    assert all(torch.equal(before[n], p) for n, p in learner.model.named_parameters())


def test_two_runs_are_bit_equal():
    def run():
        learner = make_learner(optim=replace(OPTIM, epochs=2, minibatches=2, micro_batch_tokens=30))
        metrics = [learner.update(make_batch(seed), seed + 1) for seed in range(3)]
        return metrics, state_of(learner)

    (metrics, state), (again, state_again) = run(), run()
    assert metrics == again
    assert_same_state(state, state_again)


def test_the_rewarded_answer_becomes_likely():
    # Two prompts, each with one answer that pays, among 13 tokens: a bandit with a context.
    answers = {(3, 4): 7, (4, 3): 9}
    model = make_tiny_model(ModelConfig(hidden=16, layers=1, heads=2, kv_heads=1, ffn=32), 13, 0)
    engine = RolloutEngine(model, slots=64)
    learner = Learner(
        model,
        None,
        loss=LossConfig(),
        optim=OptimConfig(lr=0.005),
        temperature=1.0,
        seed=0,
    )

    def chance_of_reward():
        logprobs = full_forward_logprobs(model, answers, [[a] for a in answers.values()])
        return [math.exp(float(values[0])) for values in logprobs]

    start = chance_of_reward()
    for step in range(1, 41):
        requests = [
            Request(token_ids=p, sampling=Sampling(max_new_tokens=1), key=step, n=24)
            for p in answers
        ]
        samples = list(engine.generate(requests))
        prompts = [requests[s.request].token_ids for s in samples]
        rewards = [
            float(s.token_ids == (answers[p],)) for s, p in zip(samples, prompts, strict=True)
        ]
        advantages, _ = task_relative_advantages(
            torch.tensor(rewards),
            torch.zeros(len(samples), dtype=torch.int64),
            1,
            lengths=torch.ones(len(samples), dtype=torch.int64),
        )
        learner.update(
            [
                Experience(
                    prompt_ids=p,
                    response_ids=s.token_ids,
                    rollout_logprobs=s.logprobs,
                    advantage=a,
                )
                for s, p, a in zip(samples, prompts, advantages.tolist(), strict=True)
            ],
            step,
        )
    assert max(start) < 0.2
    assert min(chance_of_reward()) > 0.9
