"""The fused sampler: the distribution asked for, noise that is a pure function, one definition."""

import math

import pytest
import torch
from rlvr_kernels import sample_tokens
from rlvr_kernels.sample import mix_32, row_words, uniform_noise

MASK_64, MASK_32 = 2**64 - 1, 2**32 - 1


def splitmix64(key, position):
    z = (key + (position + 1) * 0x9E3779B97F4A7C15) & MASK_64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK_64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK_64
    return z ^ (z >> 31)


def mixed(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D & MASK_32
    x = (x ^ (x >> 15)) * 0x846CA68B & MASK_32
    return x ^ (x >> 16)


def signed(key):
    return key - 2**64 if key >= 2**63 else key


def oracle(logits, key, position, temperature):
    """(token, log-prob, lead over the second) of one row, in Python's own numbers."""
    word = splitmix64(key, position)
    scores = []
    for column, logit in enumerate(logits):
        u = (mixed(mixed(column ^ (word & MASK_32)) ^ (word >> 32)) + 0.5) * 2.0**-32
        noise = 0.0 if temperature == 0 else math.log(-math.log1p(-u))
        scores.append(logit / (temperature or 1.0) - noise)
    token = max(range(len(scores)), key=lambda c: (scores[c], -c))
    z = [logit / (temperature or 1.0) for logit in logits]
    top = max(z)
    lse = top + math.log(sum(math.exp(v - top) for v in z))
    rest = max((s for c, s in enumerate(scores) if c != token), default=-math.inf)
    return token, z[token] - lse, scores[token] - rest


def draw(place, logits, keys, positions, temperature):
    return sample_tokens(
        logits.to(place.device),
        torch.tensor([signed(k) for k in keys], device=place.device),
        torch.tensor(positions, device=place.device),
        torch.tensor(temperature, dtype=torch.float32, device=place.device),
        backend=place.backend,
    )


@pytest.mark.parametrize("n_vocab", [1, 2, 100, 257, 9000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_and_log_probs_are_those_of_the_definition(place, n_vocab, dtype):
    place.skip_interpreted(
        dtype != torch.float32 and n_vocab != 257, "every size in fp32, every dtype at one size"
    )
    n_rows = 8
    logits = (3 * torch.randn(n_rows, n_vocab)).to(dtype)
    # Both ends of 64 bits too: the words are made by arithmetic that wraps.
    keys = [*(splitmix64(7, row) for row in range(n_rows - 2)), MASK_64, 2**63]
    positions = [0, 1, 2, 3, 1000, 2**20, 2**40 + 5, 2**62]
    temperature = [1.0, 0.0, 0.5, 2.0, 1.0, 1.0, 0.0, 1.3]
    ids, logprobs = draw(place, logits, keys, positions, temperature)
    assert ids.dtype == torch.int64 and logprobs.dtype == torch.float32
    for row in range(n_rows):
        token, logprob, lead = oracle(
            logits[row].tolist(), keys[row], positions[row], temperature[row]
        )
        assert lead > 1e-4, "the rounding of a logarithm could decide this row"
        assert ids[row] == token
        assert abs(logprobs[row].item() - logprob) < 2e-5


def test_the_noise_is_the_definition():
    keys = torch.tensor([signed(splitmix64(3, i)) for i in range(20)])
    positions = torch.arange(20) * 977
    low, high = row_words(keys, positions)
    pairs = zip(keys.tolist(), positions.tolist(), strict=True)
    words = [splitmix64(key % 2**64, position) for key, position in pairs]
    assert low.tolist() == [w & MASK_32 for w in words]
    assert high.tolist() == [w >> 32 for w in words]
    x = torch.tensor([0, 1, MASK_32, 0x80000000, 123456789])
    assert mix_32(x).tolist() == [mixed(v) for v in x.tolist()]


@pytest.mark.parametrize("across", ["columns", "positions", "keys"])
def test_the_noise_is_uniform_and_uncorrelated(across):
    n = 200_000
    one = torch.zeros(1, dtype=torch.int64)
    u = {
        "columns": lambda: uniform_noise(one + 5, one, n)[0],
        "positions": lambda: uniform_noise((one + 5).expand(n), torch.arange(n), 1)[:, 0],
        "keys": lambda: uniform_noise(torch.arange(n), one.expand(n), 1)[:, 0],
    }[across]().double()
    assert abs(u.mean() - 0.5) < 5 * math.sqrt(1 / 12 / n)
    assert abs(u.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / n)
    for lag in (1, 2, 64):
        assert abs(((u[lag:] - 0.5) * (u[:-lag] - 0.5)).mean() * 12) < 5 / math.sqrt(n)
    counts = torch.histc(u, bins=200, min=0, max=1)
    statistic = ((counts - n / 200) ** 2 / (n / 200)).sum()
    assert torch.special.gammaincc(torch.tensor(99.5), statistic / 2) > 1e-4


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.0])
def test_draws_follow_the_softmax(place, temperature):
    place.skip_interpreted(temperature != 0.6, "the definition is tested at all temperatures")
    logits = torch.tensor([2.0, -1.0, 0.3, 1.1, -3.0, 0.0, 1.9, -0.4, 0.9, -math.inf])
    n = 80 if place.name == "interpreted" else 40_000
    keys = [splitmix64(11, i) for i in range(n)]
    ids, _ = draw(place, logits.expand(n, -1), keys, [3] * n, [temperature] * n)
    counts = torch.bincount(ids.cpu(), minlength=10).double()
    wanted = torch.softmax(logits.double() / temperature, 0) * n
    assert counts[9] == 0
    cells = wanted > 4
    statistic = ((counts - wanted)[cells] ** 2 / wanted[cells]).sum()
    assert torch.special.gammaincc((cells.sum() - 1) / 2, statistic / 2) > 1e-3


def test_a_row_does_not_depend_on_the_rows_beside_it(place):
    logits = torch.randn(9, 300)
    keys, positions = [splitmix64(1, i) for i in range(9)], list(range(9))
    temperature = [1.0, 0.0, 0.7] * 3
    ids, logprobs = draw(place, logits, keys, positions, temperature)
    for row in (0, 4, 8):
        one = slice(row, row + 1)
        alone = draw(place, logits[one], keys[one], positions[one], temperature[one])
        assert alone.ids[0] == ids[row] and alone.logprobs[0] == logprobs[row]


def test_strided_rows_and_no_rows(place):
    wide = torch.randn(5, 700)
    keys, positions, temperature = [1, 2, 3, 4, 5], [0] * 5, [1.0] * 5
    packed = draw(place, wide[:, :333].contiguous(), keys, positions, temperature)
    strided = draw(place, wide[:, :333], keys, positions, temperature)
    assert torch.equal(packed.ids, strided.ids)
    assert torch.equal(packed.logprobs, strided.logprobs)
    none = torch.zeros(0, dtype=torch.int64, device=place.device)
    empty = wide[:0].to(place.device)
    found = sample_tokens(empty, none, none, none.float(), backend=place.backend)
    assert found.ids.shape == found.logprobs.shape == (0,)


def test_greedy_takes_the_first_of_equals(place):
    logits = torch.zeros(3, 500)
    logits[1, [77, 400]] = 2.0
    ids, logprobs = draw(place, logits, [1, 2, 3], [0] * 3, [0.0] * 3)
    assert ids.tolist() == [0, 77, 0]
    assert abs(logprobs[0].item() + math.log(500)) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(keys=torch.zeros(2, dtype=torch.int32)), "keys: expected dtype int64"),
        (dict(positions=torch.zeros(3, dtype=torch.int64)), r"positions: expected shape \[2\]"),
        (dict(temperature=torch.ones(2).double()), "temperature: expected dtype float32"),
        (dict(logits=torch.zeros(2, 0)), r"logits: expected shape \[R, V\]"),
        (dict(logits=torch.zeros(2, 3).long()), "logits: expected dtype float32, bfloat16"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = dict(
        logits=torch.zeros(2, 3),
        keys=torch.zeros(2, dtype=torch.int64),
        positions=torch.zeros(2, dtype=torch.int64),
        temperature=torch.ones(2),
    )
    with pytest.raises((TypeError, ValueError), match=message):
        sample_tokens(**(arguments | change))
