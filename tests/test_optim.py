"""Updates of bf16 weights: nothing small is lost, and a resumed run goes on exactly."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from azr.config import OptimConfig
from azr.learner.optim import MasterAdamW, StochasticAdamW, make_optimizer

CONFIG = OptimConfig(lr=1e-6, weight_decay=0.0, grad_clip=1.0)
MODES = ("master", "stochastic")


def bf16_model(seed=0, size=64):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(size, size), nn.Linear(size, 4))
    return model.to(torch.bfloat16)


def give_gradients(model, step, dtype=torch.bfloat16):
    """Sends one gradient to every weight, through autograd, as training does."""
    generator = torch.Generator().manual_seed(step)
    loss = 0.0
    for p in model.parameters():
        loss = loss + (p * torch.randn(p.shape, generator=generator).to(dtype)).sum()
    loss.backward()


def train(model, optimizer, steps, first=1):
    for step in range(first, first + steps):
        optimizer.zero_grad(set_to_none=True)
        give_gradients(model, step)
        optimizer.clip(1e9)
        optimizer.step()


@pytest.mark.parametrize("mode", MODES)
def test_frozen_weights_stay_as_they_are(mode):
    """And the others are rounded as they would be beside weights that are not frozen."""
    models = [bf16_model(), bf16_model()]
    models[0][0].requires_grad_(False)
    start = models[0][0].weight.clone()
    for model in models:
        optimizer = make_optimizer(model, replace(CONFIG, bf16_update=mode), seed=0)
        for _ in range(2):
            x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
            model(x).sum().backward()
        optimizer.clip(1e9)
        optimizer.step()
    assert torch.equal(models[0][0].weight, start)
    assert not torch.equal(models[1][0].weight, start)
    for frozen, whole in zip(models[0][1].parameters(), models[1][1].parameters(), strict=True):
        assert torch.equal(frozen, whole)


@pytest.mark.parametrize("mode", MODES)
def test_updates_below_the_precision_of_the_weights_arrive(mode):
    """Plain AdamW in bf16 leaves nearly all weights as they were; these two follow fp32."""
    steps, lr = 60, 2e-5
    config = replace(CONFIG, lr=lr, bf16_update=mode)
    exact, plain, ours = bf16_model().float(), bf16_model(), bf16_model()
    start = [p.detach().float().clone() for p in exact.parameters()]
    reference = torch.optim.AdamW(exact.parameters(), lr=lr, weight_decay=0.0)
    naive = torch.optim.AdamW(plain.parameters(), lr=lr, weight_decay=0.0)
    optimizer = make_optimizer(ours, config, seed=0)
    for _ in range(steps):
        # Gradients of one sign, as where a batch keeps asking for the same thing.
        for model, opt in ((exact, reference), (plain, naive), (ours, optimizer)):
            opt.zero_grad(set_to_none=True)
            sum(p.sum() for p in model.parameters()).backward()
            if opt is optimizer:
                opt.clip(1e9)
            opt.step()

    def moved(weights):
        pairs = zip(weights, start, strict=True)
        return torch.cat([(p.detach().float() - s).flatten() for p, s in pairs]).mean().item()

    wanted = moved(exact.parameters())
    assert wanted == pytest.approx(-lr * steps, rel=1e-3)
    assert moved(plain.parameters()) > 0.5 * wanted  # the control: bf16 alone loses most of it
    kept = optimizer.named.values() if mode == "master" else ours.parameters()
    assert moved(kept) == pytest.approx(wanted, rel=0.02)


def test_copies_follow_fp32_adamw_exactly_and_weights_are_their_rounding():
    config = replace(CONFIG, lr=1e-3, weight_decay=0.1)
    ours, twin = bf16_model(), bf16_model().float()
    optimizer = MasterAdamW(ours, config)
    reference = torch.optim.AdamW(twin.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.999))
    for step in range(1, 6):
        optimizer.zero_grad(set_to_none=True)
        reference.zero_grad(set_to_none=True)
        for micro in range(3):  # micro-batches add up in fp32
            give_gradients(ours, 10 * step + micro)
            generator = torch.Generator().manual_seed(10 * step + micro)
            for p in twin.parameters():
                g = torch.randn(p.shape, generator=generator).to(torch.bfloat16).float()
                p.grad = g if p.grad is None else p.grad + g
        assert all(p.grad is None for p in ours.parameters())
        ours_norm = optimizer.clip(1.0)
        norm = nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        torch.testing.assert_close(ours_norm, norm)
        optimizer.step()
        reference.step()
    for (name, weight), expected in zip(ours.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(optimizer.named[name], expected, rtol=1e-6, atol=1e-7)
        assert torch.equal(weight, optimizer.named[name].to(torch.bfloat16))


def test_stochastic_updates_follow_fp32_adamw_within_bf16():
    config = replace(CONFIG, lr=1e-3, weight_decay=0.1, bf16_update="stochastic")
    ours, twin = bf16_model(), bf16_model().float()
    optimizer = make_optimizer(ours, config, seed=3)
    reference = torch.optim.AdamW(twin.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.999))
    for step in range(1, 21):
        optimizer.zero_grad(set_to_none=True)
        give_gradients(ours, step)
        for gradient, q in zip(optimizer.gradients, twin.parameters(), strict=True):
            q.grad = gradient.total.float()
        torch.testing.assert_close(
            optimizer.clip(1.0), nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        )
        optimizer.step()
        reference.step()
    ours_flat = torch.cat([p.detach().float().flatten() for p in ours.parameters()])
    twin_flat = torch.cat([p.detach().flatten() for p in twin.parameters()])
    start = torch.cat([p.detach().float().flatten() for p in bf16_model().parameters()])
    moved, wanted = ours_flat - start, twin_flat - start
    assert torch.corrcoef(torch.stack([moved, wanted]))[0, 1] > 0.98
    assert float(moved.norm() / wanted.norm()) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("mode", MODES)
def test_a_state_taken_and_loaded_goes_on_bit_for_bit(mode):
    config = replace(CONFIG, lr=1e-4, bf16_update=mode)
    model = bf16_model()
    optimizer = make_optimizer(model, config, seed=5)
    train(model, optimizer, 3)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    tensors = optimizer.state_tensors()
    train(model, optimizer, 3, first=4)

    resumed = bf16_model(seed=9)
    resumed.load_state_dict(weights)
    again = make_optimizer(resumed, config, seed=5)
    again.load_tensors(tensors)
    train(resumed, again, 3, first=4)
    for a, b in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert all(
        torch.equal(value, again.state_tensors()[key])
        for key, value in optimizer.state_tensors().items()
    )


def test_the_noise_of_rounding_depends_on_seed_and_update():
    def weights(seed):
        model = bf16_model()
        optimizer = StochasticAdamW(model, replace(CONFIG, lr=1e-4), seed)
        train(model, optimizer, 1)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def summed(optimizer):
    """The gradients of an update so far, float64."""
    if isinstance(optimizer, MasterAdamW):
        return [p.grad.double() for p in optimizer.named.values()]
    found = []
    for gradient in optimizer.gradients:
        bits = gradient.total.float().view(torch.int32)
        if gradient.low is not None:
            bits |= gradient.low.to(torch.int32) << 8
        found.append(bits.view(torch.float32).double())
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("large_at", "small"), [(0, 2.0**-12), (2000, -(2.0**-12)), (4096, 2.0**-12), (0, 2.0**-18)]
)
def test_small_gradients_beside_a_large_one_count(mode, large_at, small):
    """4,096 of them, through autograd: within one bf16 rounding of the sum; bf16 has 1 at most."""
    model = nn.Linear(8, 1, bias=False).to(torch.bfloat16)
    optimizer = make_optimizer(model, replace(CONFIG, bf16_update=mode), seed=1)
    gradients = [small] * 4096
    gradients.insert(large_at, 1.0)
    for value in gradients:
        model(torch.full((8,), value, dtype=torch.bfloat16)).backward()
    exact = 1 + 4096 * small
    (found,) = summed(optimizer)
    # All of -2^-12 cancel 1: what is left of the sum's roundings is of its largest size, 1.
    assert float((found - exact).abs().max()) <= 2.0**-8 * max(1, abs(exact))
    norm = float(optimizer.clip(1e9))
    assert norm == pytest.approx(float(found.norm()), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_random_gradients_of_many_micro_batches_add_up(mode):
    model = bf16_model()
    optimizer = make_optimizer(model, replace(CONFIG, bf16_update=mode), seed=1)
    exact = [torch.zeros(p.shape, dtype=torch.float64) for p in model.parameters()]
    naive = [torch.zeros_like(p) for p in model.parameters()]
    for micro in range(300):
        give_gradients(model, micro)
        generator = torch.Generator().manual_seed(micro)
        for so_far, rounded in zip(exact, naive, strict=True):
            grad = torch.randn(so_far.shape, generator=generator).to(torch.bfloat16)
            so_far += grad.double()
            rounded += grad
    found = torch.cat([g.flatten() for g in summed(optimizer)])
    wanted = torch.cat([g.flatten() for g in exact])
    plain = torch.cat([g.flatten() for g in naive]).double()
    error = (found - wanted).norm() / wanted.norm()
    # The control: bf16 alone loses some percent.
    assert error < 2e-4 < 1e-2 < (plain - wanted).norm() / wanted.norm()


@pytest.mark.parametrize("mode", MODES)
def test_a_skipped_update_leaves_no_trace(mode):
    def weights(is_disturbed):
        model = bf16_model()
        optimizer = make_optimizer(model, replace(CONFIG, lr=1e-3, bf16_update=mode), seed=2)
        if is_disturbed:
            for _ in range(3):
                sum((p * float("nan")).sum() for p in model.parameters()).backward()
            assert not optimizer.clip(1.0).isfinite()
        for step in range(2):
            optimizer.zero_grad(set_to_none=True)
            for micro in range(3):
                give_gradients(model, 10 * step + micro)
            optimizer.clip(1.0)
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    for a, b in zip(weights(True), weights(False), strict=True):
        assert torch.equal(a, b)


def test_one_micro_batch_takes_two_bytes_a_parameter_and_several_three():
    model = bf16_model()
    optimizer = StochasticAdamW(model, CONFIG, 0)
    for micro, wanted in ((1, 2), (2, 3), (3, 3)):
        give_gradients(model, micro)
        kept = [t for g in optimizer.gradients for t in (g.total, g.low) if t is not None]
        parameters = sum(p.numel() for p in model.parameters())
        assert sum(t.numel() * t.element_size() for t in kept) == wanted * parameters
        assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("mode", MODES)
def test_one_that_is_closed_leaves_gradients_to_the_next(mode):
    model = bf16_model()
    optimizer = make_optimizer(model, replace(CONFIG, bf16_update=mode), seed=0)
    train(model, optimizer, 1)
    optimizer.close()
    other = make_optimizer(model, replace(CONFIG, bf16_update=mode), seed=0)
    train(model, other, 1)
    other.close()
    give_gradients(model, 1)
    assert all(p.grad is not None for p in model.parameters())


def test_weights_of_two_precisions_are_refused():
    model = bf16_model()
    model[0].float()
    with pytest.raises(ValueError, match="load them all in one"):
        make_optimizer(model, CONFIG, 0)
