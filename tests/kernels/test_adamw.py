"""AdamW and sums of gradients in bf16: right in the mean, and one definition of the noise."""

import math

import pytest
import torch
from rlvr_kernels import accumulate_, adamw_, square_sum
from test_sample import MASK_32, mixed, splitmix64

OPTIONS = dict(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1, step=3, key=2**64 - 5)


def normal(*shape, seed=0, std=1.0):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std
    return drawn.to(torch.bfloat16)


def any_bytes(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def widened(high, low):
    bits = high.view(torch.int16).to(torch.int32) << 16 | low.to(torch.int32) << 8
    return bits.view(torch.float32)


def below(exact):
    """float32, cut down to bf16."""
    return (exact.view(torch.int32) & -(2**16)).view(torch.float32)


def update(place, weight, grad, exp_avg, exp_avg_sq, low=None, scale=1.0, **options):
    """Returns what becomes of copies of weight and moments."""
    w, m, v = (t.to(place.device, copy=True) for t in (weight, exp_avg, exp_avg_sq))
    adamw_(
        w, grad.to(place.device), m, v,
        grad_low=None if low is None else low.to(place.device),
        scale=torch.tensor(scale, device=place.device), backend=place.backend,
        **(OPTIONS | options),
    )  # fmt: skip
    return w.cpu(), m.cpu(), v.cpu()


def add(place, total, low, grad, key, **options):
    """Returns what becomes of copies of the sum's two parts."""
    total, low = (t.to(place.device, copy=True) for t in (total, low))
    accumulate_(total, low, grad.to(place.device), key=key, backend=place.backend, **options)
    return total.cpu(), low.cpu()


def exact_update(weight, grad, exp_avg, exp_avg_sq, *, lr, beta1, beta2, eps, weight_decay, step,
                 key=0, scale=1.0):  # fmt: skip
    """The formula of the paper in float64."""
    w, g, m, v = (t.double() for t in (weight, grad, exp_avg, exp_avg_sq))
    g = g * scale
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    step_taken = m / (1 - beta1**step) / ((v / (1 - beta2**step)).sqrt() + eps)
    return w - lr * (step_taken + weight_decay * w), m, v


def state(*shape):
    return normal(*shape, seed=1), normal(*shape, seed=2, std=0.1), normal(*shape, seed=3).abs()


@pytest.mark.parametrize("shape", [(1,), (3, 5), (9001,)])
@pytest.mark.parametrize("has_low", [False, True])
def test_an_update_is_a_neighbour_of_the_exact_one(place, shape, has_low):
    weight, exp_avg, exp_avg_sq = state(*shape)
    grad, low = normal(*shape), any_bytes(*shape) if has_low else None
    exact_grad = grad.double() if low is None else widened(grad, low).double()
    wanted = exact_update(weight, exact_grad, exp_avg, exp_avg_sq, **OPTIONS, scale=0.37)
    found = update(place, weight, grad, exp_avg, exp_avg_sq, low, 0.37)
    for got, exact in zip(found, wanted, strict=True):
        # Between the two neighbours, but for the rounding of the arithmetic: 2^-7 is their gap.
        bound = exact.abs() * (2**-7 + 1e-5) + 1e-7
        assert bool(((got.double() - exact).abs() <= bound).all())


def test_an_update_is_right_in_the_mean(place):
    """Over keys, and far below the gap of two bf16 numbers; the decay of 1e-8 too."""
    n, draws = 64, 30 if place.name == "interpreted" else 3000
    weight, exp_avg, exp_avg_sq = state(n)
    options = dict(lr=1e-5, weight_decay=1e-3)
    total = [torch.zeros(n, dtype=torch.float64) for _ in range(3)]
    for key in range(draws):
        found = update(place, weight, normal(n), exp_avg, exp_avg_sq, key=key, **options)
        for so_far, value in zip(total, found, strict=True):
            so_far += value.double()
    wanted = exact_update(weight, normal(n), exp_avg, exp_avg_sq, **(OPTIONS | options))
    for so_far, exact in zip(total, wanted, strict=True):
        gap = torch.exp2(torch.floor(torch.log2(exact.abs())) - 7)
        # The deviation of one draw is at most half the gap.
        assert float(((so_far / draws - exact) / gap).abs().max()) < 5 * 0.5 / draws**0.5


def test_the_noise_is_the_definition(place):
    """With moments and gradient of 0 the weight decays alone, by less than a gap."""
    n, key, first = 400, 0x9E3779B97F4A7C15, 2**32 - 400
    weight, zero = normal(n).abs() + 0.5, torch.zeros(n, dtype=torch.bfloat16)
    decayed = update(place, weight, zero, zero, zero, key=key, first=first, lr=1e-3)[0]
    grad, low = normal(n, seed=5, std=1e-3), any_bytes(n)
    total, total_low = add(place, weight, low, grad, key, first=first)
    word = splitmix64(key, 0)
    for i in range(n):
        noise = mixed(mixed((first + i) ^ (word & MASK_32)) ^ (word >> 32))
        w = weight[i : i + 1].float()
        exact = w - w * torch.tensor(1e-3 * 0.1)
        bits = int(exact.view(torch.int32)) + (noise & 0xFFFF)
        assert decayed[i : i + 1].view(torch.int16).item() == bits >> 16
        sum_of_both = widened(weight[i : i + 1], low[i : i + 1]) + grad[i : i + 1].float()
        bits = int(sum_of_both.view(torch.int32)) + (noise & 0xFF)
        assert total[i : i + 1].view(torch.int16).item() == bits >> 16
        assert total_low[i].item() == bits >> 8 & 0xFF


def test_the_three_noises_are_unrelated(place):
    """All three lie half way between two neighbours."""
    n = 300 if place.name == "interpreted" else 100_000
    ones = torch.ones(n, dtype=torch.bfloat16)
    options = dict(beta1=0.5 + 2**-9, beta2=0.25 + 2**-10, lr=2.0**-9, weight_decay=1.0)
    found = update(place, ones, 0 * ones, ones, ones, eps=1e30, **options)
    ups = [(value > value.min()).double() - 0.5 for value in found]
    for i, up in enumerate(ups):
        assert abs(up.mean()) < 5 * 0.5 / n**0.5
        assert abs((up * ups[i - 1]).mean()) < 5 * 0.25 / n**0.5


def test_what_bf16_can_hold_is_not_changed_by_rounding(place):
    weight, zero = normal(1000), torch.zeros(1000, dtype=torch.bfloat16)
    found = update(place, weight, zero, zero, zero, weight_decay=0.0)
    assert all(torch.equal(a, b) for a, b in zip(found, (weight, zero, zero), strict=True))


@pytest.mark.parametrize("at", [1, 1000, 1024])
def test_a_shard_rounds_as_the_whole(place, at):
    n = 2048
    weight, exp_avg, exp_avg_sq = state(n)
    grad, low = normal(n), any_bytes(n)
    whole = update(place, weight, grad, exp_avg, exp_avg_sq, low)
    total = add(place, grad, low, weight, 7)
    for part in (slice(0, at), slice(at, n)):
        tensors = (t[part].clone() for t in (weight, grad, exp_avg, exp_avg_sq, low))
        shard = update(place, *tensors, first=part.start)
        assert all(torch.equal(s, w[part]) for s, w in zip(shard, whole, strict=True))
        shard = add(place, *(t[part].clone() for t in (grad, low, weight)), 7, first=part.start)
        assert all(torch.equal(s, t[part]) for s, t in zip(shard, total, strict=True))


def test_chunks_change_nothing(place, monkeypatch):
    weight, exp_avg, exp_avg_sq = state(3000)
    grad, low = normal(3000), any_bytes(3000)

    def all_of_it():
        total = add(place, grad, low, weight, 9)
        return *update(place, weight, grad, exp_avg, exp_avg_sq, low), *total

    whole, norm = all_of_it(), square_sum(grad, low, backend=place.backend)
    monkeypatch.setattr("rlvr_kernels.adamw.CPU_CHUNK", 700)
    assert all(torch.equal(a, b) for a, b in zip(all_of_it(), whole, strict=True))
    torch.testing.assert_close(square_sum(grad, low, backend=place.backend), norm)


@pytest.mark.parametrize("gradient", [2.0**-12, 2.0**-18, -(2.0**-20), 3e-6])
def test_small_gradients_arrive_in_the_sum(place, gradient):
    """Beside 1, of which bf16 keeps 2^-7; 24 bits keep 2^-15, and the rest in the mean."""
    place.skip_interpreted(gradient != 2.0**-18, "one size of all")
    n, count = 64, 64 if place.name == "interpreted" else 4096
    total, low = torch.ones(n, dtype=torch.bfloat16), torch.zeros(n, dtype=torch.uint8)
    small = torch.full((n,), gradient).to(torch.bfloat16)
    for key in range(count):
        total, low = add(place, total, low, small, key)
    wanted = 1 + count * small.double()
    # The deviation of one rounding is at most half the gap of 24 bits between 1 and 2.
    bound = 5 * 0.5 * 2.0**-15 * count**0.5
    assert float((widened(total, low).double() - wanted).abs().max()) < bound
    # A normal number so far below the gap would never have moved a sum that is rounded to nearest.
    mean = (widened(total, low).double() - wanted).mean().abs()
    assert float(mean) < bound / n**0.5


def test_random_gradients_add_up(place):
    n, count = 500, 12 if place.name == "interpreted" else 300
    total, low = normal(n, seed=100), torch.zeros(n, dtype=torch.uint8)
    exact, scale = total.double(), total.double().abs()
    for i in range(count):
        grad = normal(n, seed=i, std=10.0 ** -(i % 5))
        total, low = add(place, total, low, grad, i)
        exact += grad.double()
        scale = torch.maximum(scale, exact.abs())
    # Rounded at each addition to 2^-15 of the largest sum on the way.
    error = (widened(total, low).double() - exact).abs() / scale
    assert float(error.max()) < 5 * 2.0**-15 * count**0.5


def test_what_is_not_finite_stays_so(place):
    bad = [math.nan, math.inf, -math.inf]
    grad = torch.tensor([*bad, 1.0]).to(torch.bfloat16)
    # A NaN of CUDA is all ones: with noise it would carry into the sign.
    total = torch.tensor([1.0, 1.0, 1.0, 0], dtype=torch.bfloat16)
    total[3:].view(torch.int16)[0] = 0x7FFF
    for key in range(5):
        high, low = add(place, total, torch.full((4,), 255, dtype=torch.uint8), grad, key)
        again, _ = add(place, high, low, torch.ones(4, dtype=torch.bfloat16), key)
        for found in (high, again):
            assert found.isnan().tolist() == [True, False, False, True]
            assert found[1:3].tolist() == bad[1:]
        norm = square_sum(high.to(place.device), low.to(place.device), backend=place.backend)
        assert not norm.isfinite()


@pytest.mark.parametrize("shape", [(0,), (1,), (9000,), (130, 77)])
@pytest.mark.parametrize("has_low", [False, True])
def test_the_sum_of_squares(place, shape, has_low):
    total, low = normal(*shape).to(place.device), any_bytes(*shape).to(place.device)
    value = widened(total, low) if has_low else total
    found = square_sum(total, low if has_low else None, backend=place.backend)
    assert found.dtype == torch.float32 and found.shape == ()
    torch.testing.assert_close(found.double(), value.double().square().sum(), rtol=1e-6, atol=0)
    for _ in range(place.repeats - 1):
        assert torch.equal(
            square_sum(total, low if has_low else None, backend=place.backend), found
        )


def test_no_elements_are_no_error(place):
    none = torch.zeros(0, dtype=torch.bfloat16)
    assert all(t.numel() == 0 for t in update(place, none, none, none, none))
    assert all(t.numel() == 0 for t in add(place, none, none.to(torch.uint8), none, 1))


def test_an_update_in_place_is_seen_by_autograd():
    weight = normal(4).requires_grad_()
    loss = (weight**2).sum()
    with torch.no_grad():
        adamw_(weight, *(normal(4) for _ in range(3)), scale=torch.ones(()), **OPTIONS)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(weight=torch.zeros(4)), "weight: expected dtype bfloat16"),
        (dict(grad=torch.zeros(5).bfloat16()), r"grad: expected shape \[4\] \(that of weight\)"),
        (dict(exp_avg=torch.zeros(8).bfloat16()[::2]), "exp_avg: expected a contiguous tensor"),
        (dict(grad_low=torch.zeros(4).bfloat16()), "grad_low: expected dtype uint8"),
        (dict(scale=torch.ones(1)), r"scale: expected shape \[\]"),
        (dict(first=2**32 - 3), "first: expected a place whose tensor of 4 elements ends below"),
        (dict(first=-1), "first: expected a place"),
        (dict(grad=None), "grad: expected a tensor; got None"),
        (dict(scale=1.0), "scale: expected a tensor, 0-dim float32; got 1.0"),
        (dict(step=0), r"step: expected 1, 2, ...; got 0"),
        (dict(beta2=1.0), r"beta2: expected a number in \[0, 1\); got 1.0"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    names = ("weight", "grad", "exp_avg", "exp_avg_sq")
    arguments = {name: torch.zeros(4, dtype=torch.bfloat16) for name in names}
    with pytest.raises((TypeError, ValueError), match=message):
        adamw_(**(arguments | dict(scale=torch.ones(())) | OPTIONS | change))
    if set(change) <= {"first"}:
        with pytest.raises(ValueError, match=message):
            low = torch.zeros(4, dtype=torch.uint8)
            accumulate_(arguments["weight"], low, arguments["grad"], key=0, **change)
