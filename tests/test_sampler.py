"""The sampler draws from exactly the distribution asked for, from noise that is a pure function."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TopKLogitsWarper, TopPLogitsWarper

from azr.keys import make_key
from azr.rollout import sampler
from azr.rollout.sampler import Mix, RowSampling, Sampling, uniforms

MASK = 2**64 - 1


def splitmix64(seed, index):
    """Output `index` of SplitMix64, from its published definition."""
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def signed(key):
    return key - 2**64 if key >= 2**63 else key


def noise(keys, positions):
    keys = torch.tensor([signed(k) for k in keys], dtype=torch.int64)
    return uniforms(keys, torch.tensor(positions, dtype=torch.int64))


def parameters(sampling, keys):
    """Of rows given one by one; keys are unsigned 64-bit numbers."""
    return RowSampling(
        keys=torch.tensor([signed(k) for k in keys]),
        temperature=torch.tensor([s.temperature for s in sampling]),
        top_p=torch.tensor([s.top_p for s in sampling]),
        top_k=torch.tensor([s.top_k for s in sampling]),
        min_p=torch.tensor([s.min_p for s in sampling]),
    )


def sample(logits, positions, rows):
    drawn = sampler.draw(logits, positions, rows, Mix())
    return drawn.ids, drawn.logprobs


def draw(logits, keys, positions=None, **options):
    """Token ids and log-probs of rows that share `options`."""
    rows = parameters([Sampling(max_new_tokens=1, **options)] * len(keys), keys)
    if positions is None:
        positions = torch.zeros(len(keys), dtype=torch.int64)
    return sample(logits, positions, rows)


def chi_square_p(counts, probs):
    """p-value of observed counts, the cells with too small an expectation joined into one."""
    n = sum(counts)
    pairs = sorted(((p * n, c) for p, c in zip(probs, counts, strict=True) if p > 0), reverse=True)
    rest = [pair for pair in pairs if pair[0] < 5]
    cells = [pair for pair in pairs if pair[0] >= 5]
    if rest:
        cells.append((sum(e for e, _ in rest), sum(c for _, c in rest)))
    statistic = sum((c - e) ** 2 / e for e, c in cells)
    freedom = torch.tensor((len(cells) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2).double()))


@given(st.lists(st.tuples(st.integers(0, MASK), st.integers(0, 2**31)), min_size=1, max_size=9))
def test_the_noise_is_splitmix64(rows):
    expected = [((splitmix64(k, i) >> 12) + 0.5) * 2.0**-52 for k, i in rows]
    assert noise(*zip(*rows, strict=True)).tolist() == expected


def test_the_noise_agrees_with_the_published_test_vector():
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    found = noise([1234567] * 5, range(5)).tolist()
    # 52 of the 64 bits are used.
    assert all(abs(u - p / 2**64) < 2**-52 for u, p in zip(found, published, strict=True))


def inverse_splitmix64(value):
    """The seed whose first output is `value`."""

    def undo_shift(z, bits):
        result = z
        for _ in range(64 // bits):
            result = z ^ (result >> bits)
        return result

    z = undo_shift(value, 31) * pow(0x94D049BB133111EB, -1, 2**64) & MASK
    z = undo_shift(z, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) & MASK
    return (undo_shift(z, 30) - 0x9E3779B97F4A7C15) & MASK


def test_the_noise_is_never_0_or_1():
    keys = [inverse_splitmix64(0), inverse_splitmix64(MASK)]
    assert [splitmix64(k, 0) for k in keys] == [0, MASK]
    low, high = noise(keys, [0, 0]).tolist()
    assert 0 < low < 2.0**-50 and 1 - 2.0**-50 < high < 1
    # Not even then is a token of probability 0 drawn.
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 1.0, -math.inf]]).repeat(2, 1)
    assert draw(logits, keys)[0].tolist() == [1, 3]


@pytest.mark.parametrize("across", ["keys", "positions", "requests"])
def test_the_noise_is_uniform_and_uncorrelated(across):
    n = 100_000
    if across == "keys":
        u = noise(range(n), [0] * n)
    elif across == "positions":
        u = noise([123456789] * n, range(n))
    else:  # as the engine makes them: samples of a request, a few positions each
        keys = [make_key(42, i // 10) for i in range(n)]
        u = noise(keys, [i % 10 for i in range(n)])
    # Mean 1/2 and variance 1/12, to 5 standard errors.
    assert abs(u.mean() - 0.5) < 5 * math.sqrt(1 / 12 / n)
    assert abs(u.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / n)
    for lag in (1, 2, 10):
        correlation = ((u[lag:] - 0.5) * (u[:-lag] - 0.5)).mean() * 12
        assert abs(correlation) < 5 / math.sqrt(n)
    counts = torch.histc(u, bins=100, min=0, max=1).tolist()
    assert chi_square_p(counts, [0.01] * 100) > 1e-3


def test_every_bit_of_a_key_counts():
    keys = [0, *(1 << bit for bit in range(64))]
    rows = parameters([Sampling(max_new_tokens=1)] * 65, keys)
    u = uniforms(rows.keys, torch.zeros(65, dtype=torch.int64))
    assert torch.equal(u, noise(keys, [0] * 65)) and len(set(u.tolist())) == 65


LOGITS = torch.tensor([2.0, -1.0, 0.3, 1.1, -3.0, 0.0, 1.9, -0.4, 0.9, -8.0])


def expected_probs(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Probabilities from the definitions, in plain Python."""
    weights = [math.exp(z / temperature) for z in LOGITS.tolist()]
    probs = [w / sum(weights) for w in weights]
    ranked = sorted(range(len(probs)), key=lambda i: (-probs[i], i))
    kept, mass = set(), 0.0
    ranked = ranked[: top_k or None]
    left = sum(probs[i] for i in ranked)
    for i in ranked:
        within_p = top_p == 1.0 or mass < top_p * left
        if within_p and probs[i] >= min_p * probs[ranked[0]]:
            kept.add(i)
        mass += probs[i]
    total = sum(probs[i] for i in kept)
    return [probs[i] / total if i in kept else 0.0 for i in range(len(probs))]


@pytest.mark.parametrize(
    ("options", "support"),
    [
        ({}, 10),
        (dict(temperature=0.5), 10),
        (dict(temperature=2.0), 10),
        (dict(top_k=1), 1),
        (dict(top_k=4), 4),
        (dict(top_k=40), 10),
        (dict(top_p=0.01), 1),
        (dict(top_p=0.6), 2),
        (dict(top_p=0.95), 6),
        (dict(min_p=0.3), 4),
        (dict(temperature=3.0, top_p=0.8), 6),
        (dict(temperature=1.5, top_k=5, top_p=0.7, min_p=0.6), 2),
        (dict(top_k=3, top_p=0.7), 2),
    ],
)
def test_draws_follow_the_distribution_asked_for(options, support):
    n = 40_000
    keys = [make_key(7, i) for i in range(n)]
    ids, logprobs = draw(LOGITS.expand(n, -1), keys, **options)
    counts = torch.bincount(ids, minlength=10).tolist()
    probs = expected_probs(**options)
    assert sum(p > 0 for p in probs) == support
    assert not any(c for c, p in zip(counts, probs, strict=True) if p == 0)
    assert all(c for c, p in zip(counts, probs, strict=True) if p > 1e-3)
    if support > 1:
        assert chi_square_p(counts, probs) > 1e-3
    # Natural log-probs under the temperature alone.
    untruncated = expected_probs(temperature=options.get("temperature", 1.0))
    expected = torch.tensor([math.log(p) for p in untruncated])[ids]
    assert (logprobs - expected).abs().max() < 1e-6


def test_the_chi_square_notices_a_small_bias():
    n = 40_000
    keys = [make_key(7, i) for i in range(n)]
    ids, _ = draw(LOGITS.expand(n, -1), keys, temperature=1.08)
    assert chi_square_p(torch.bincount(ids, minlength=10).tolist(), expected_probs()) < 1e-3


def test_the_positions_of_one_row_follow_the_distribution_too():
    n = 40_000
    ids, _ = draw(LOGITS.expand(n, -1), [99] * n, torch.arange(n))
    assert chi_square_p(torch.bincount(ids, minlength=10).tolist(), expected_probs()) > 1e-3


def test_greedy_takes_the_most_likely_token_with_its_log_prob_at_temperature_1():
    logits = torch.randn(200, 30, generator=torch.Generator().manual_seed(0))
    ids, logprobs = draw(logits, list(range(200)), temperature=0.0)
    assert torch.equal(ids, logits.argmax(1))
    assert torch.equal(logprobs, logits.log_softmax(1).max(1).values)


def test_greedy_tells_logits_apart_whose_log_probs_round_to_one():
    logits = torch.tensor([[0.01, 0.01 + 9e-9, -1.0]])
    assert logits[0, 0] < logits[0, 1] and logits.log_softmax(1)[0, :2].unique().numel() == 1
    assert draw(logits, [0], temperature=0.0)[0].item() == 1


@pytest.mark.parametrize("temperature", [1e-3, 1e-5])
def test_a_low_temperature_does_not_overflow(temperature):
    ids, logprobs = draw(LOGITS.expand(50, -1) * 100, list(range(50)), temperature=temperature)
    assert set(ids.tolist()) == {0} and logprobs.abs().max() == 0


@pytest.mark.parametrize("options", [{}, dict(top_p=0.999), dict(top_k=6), dict(min_p=1e-9)])
def test_a_forbidden_token_is_never_drawn(options):
    logits = torch.full((20_000, 6), -math.inf)
    logits[:, [1, 4]] = torch.tensor([0.0, 1.0])
    ids, logprobs = draw(logits, list(range(20_000)), **options)
    assert set(ids.tolist()) == {1, 4}
    assert logprobs.isfinite().all()


@pytest.mark.parametrize("top_p", [0.35, 0.55, 0.65, 0.93, 1.0])
@pytest.mark.parametrize("top_k", [0, 2, 3, 9])
def test_a_truncation_keeps_the_tokens_that_transformers_keeps(top_k, top_p):
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.05, 0.06, 0.64, 0.25]]).log()
    warped = TopKLogitsWarper(top_k)(None, logits) if top_k else logits
    warped = TopPLogitsWarper(top_p)(None, warped)
    keys = range(400)
    for row, kept in zip(logits, warped, strict=True):
        ids, _ = draw(row.expand(400, -1), keys, top_k=top_k, top_p=top_p)
        assert set(ids.tolist()) == set(kept.isfinite().nonzero()[:, 0].tolist())


def test_ties_at_the_edge_of_a_truncation_fall_to_the_lower_id():
    ids, _ = draw(torch.zeros(2_000, 8), list(range(2_000)), top_k=3)
    assert set(ids.tolist()) == {0, 1, 2}


a_sampling = st.builds(
    Sampling,
    max_new_tokens=st.just(1),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3]),
    top_p=st.sampled_from([0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.2]),
)


@settings(deadline=None)
@given(st.lists(st.tuples(a_sampling, st.integers(0, MASK), st.integers(0, 99)), min_size=1))
def test_a_row_does_not_depend_on_the_rows_beside_it(rows):
    logits = torch.randn(len(rows), 12, generator=torch.Generator().manual_seed(len(rows)))
    sampling, keys, positions = (list(column) for column in zip(*rows, strict=True))
    params = parameters(sampling, keys)
    together, _ = sample(logits, torch.tensor(positions), params)
    for r in range(len(rows)):
        one = parameters(sampling[r : r + 1], keys[r : r + 1])
        alone, _ = sample(logits[r : r + 1], torch.tensor(positions[r : r + 1]), one)
        assert alone[0] == together[r]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_new_tokens=0), "max_new_tokens must be at least 1, got 0"),
        (dict(temperature=-0.1), "temperature must be 0, .* or from 1e-5 to 1e5, got -0.1"),
        (dict(temperature=math.inf), "temperature must be 0"),
        (dict(temperature=math.nan), "temperature must be 0"),
        (dict(temperature=1e-46), "temperature must be 0"),  # 0 in fp32
        (dict(temperature=1e39), "temperature must be 0"),  # infinite in fp32
        (dict(top_p=0.0), "top_p in .0, 1."),
        (dict(top_p=1.1), "top_p in .0, 1."),
        (dict(top_k=-1), "top_k >= 0"),
        (dict(min_p=1.0), "min_p in .0, 1."),
        (dict(stop_strings=("x", "")), "an empty string would end every completion"),
    ],
)
def test_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**(dict(max_new_tokens=1) | options))
