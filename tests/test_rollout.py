"""The rollout engine against transformers: same tokens, same log-probs, whatever the batch."""

import copy
import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES, azr_model, full_forward_logprobs, plain_model

import azr.rollout.engine
from azr.errors import RunError
from azr.rollout import Request, RequestError, RolloutEngine, Sampling
from azr.rollout.stops import StopStrings

EOS_IDS = (1, 7, 11, 19, 23)


def ragged_prompts(count, longest=20, vocab=48, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, size=count)
    return [tuple(rng.integers(2, vocab, size=n).tolist()) for n in lengths]


def rollout(model, requests, slots=1000, **options):
    """{(request, sample index): Sample}."""
    engine = RolloutEngine(model, slots=slots, **options)
    samples = list(engine.generate(requests))
    result = {(s.request, s.index): s for s in samples}
    assert len(result) == len(samples) == sum(r.n for r in requests)
    return result


def tokens(samples):
    return {key: (s.token_ids, s.finish_reason) for key, s in samples.items()}


def assert_full_forward_agrees(plain, requests, samples, temperature=1.0):
    prompts = [requests[number].token_ids for number, _ in samples]
    responses = [s.token_ids for s in samples.values()]
    expected = full_forward_logprobs(plain, prompts, responses, temperature)
    for sample, logprobs in zip(samples.values(), expected, strict=True):
        assert sample.logprobs.dtype == np.float32
        assert np.abs(sample.logprobs - logprobs).max() < 1e-5


def hf_greedy(plain, prompts, max_new_tokens):
    """Greedy completions by transformers' own `generate`, prompts padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    out = plain.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(EOS_IDS),
        pad_token_id=0,
    )
    completions = []
    for row in out[:, width:].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in EOS_IDS), len(row))
        completions.append((tuple(row[:end]), "stop" if row[end - 1] in EOS_IDS else "length"))
    return completions


@pytest.fixture(scope="module", params=FAMILIES)
def greedy_case(request):
    plain = plain_model(request.param, sharpness=3.0)
    prompts = ragged_prompts(128)
    return plain, prompts, hf_greedy(plain, prompts, 16)


@pytest.mark.parametrize("slots", [1, 3, 40, 1000])
def test_greedy_tokens_equal_those_of_generate(greedy_case, slots):
    plain, prompts, expected = greedy_case
    lengths = {len(completion) for completion, _ in expected}
    assert len(lengths) > 6 and {reason for _, reason in expected} == {"stop", "length"}
    sampling = Sampling(max_new_tokens=16, temperature=0.0, stop_token_ids=EOS_IDS)
    # Few slots are slow: a part of the prompts is enough there.
    count, n = {1: (6, 1), 3: (12, 2), 40: (128, 2), 1000: (128, 2)}[slots]
    requests = [Request(token_ids=p, sampling=sampling, key=5, n=n) for p in prompts[:count]]
    found = tokens(rollout(azr_model(plain), requests, slots))
    assert found == {(i, k): expected[i] for i in range(count) for k in range(n)}


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
@pytest.mark.parametrize(
    ("family", "attention"),
    [
        ("qwen2", "eager"),
        ("qwen3", "sdpa"),
        ("llama", "eager"),
        ("llama-tied", "sdpa"),
        ("mistral", "eager"),
    ],
)
def test_logprobs_equal_those_of_a_full_forward(family, attention, temperature):
    plain = plain_model(family, seed=1, attention=attention)
    sampling = Sampling(max_new_tokens=12, temperature=temperature, stop_token_ids=EOS_IDS)
    prompts = ragged_prompts(24, seed=1)
    requests = [Request(token_ids=p, sampling=sampling, key=i, n=2) for i, p in enumerate(prompts)]
    samples = rollout(azr_model(plain), requests, slots=7)
    # A greedy log-prob is the one at temperature 1.
    assert_full_forward_agrees(plain, requests, samples, temperature or 1.0)


def test_truncated_sampling_reports_the_log_probs_before_truncation():
    plain = plain_model(seed=2)
    sampling = Sampling(max_new_tokens=8, temperature=0.8, top_k=3, top_p=0.9, min_p=0.05)
    request = Request(token_ids=(5, 6, 7), sampling=sampling, key=1, n=8)
    assert_full_forward_agrees(plain, [request], rollout(azr_model(plain), [request]), 0.8)


# One small model and a mixed set of requests for everything about the batch.
SMALL = plain_model(seed=3, hidden_size=16, num_hidden_layers=1, intermediate_size=16)
MIXED = [
    Request(token_ids=prompt, sampling=sampling, key=1000 + i, n=1 + i % 3)
    for i, (prompt, sampling) in enumerate(
        zip(
            ragged_prompts(10, longest=14, seed=4),
            [
                Sampling(max_new_tokens=9),
                Sampling(max_new_tokens=1),
                Sampling(max_new_tokens=14, stop_token_ids=(3, 9, 20, 30, 31, 32)),
                Sampling(max_new_tokens=5, temperature=0.0),
                Sampling(max_new_tokens=7, temperature=0.6, top_k=5),
                Sampling(max_new_tokens=3, top_p=0.7, stop_token_ids=tuple(range(4, 20))),
                Sampling(max_new_tokens=12, min_p=0.1, temperature=1.5),
                Sampling(max_new_tokens=2),
                Sampling(max_new_tokens=14, stop_token_ids=(2, 40)),
                Sampling(max_new_tokens=6, temperature=0.0, stop_token_ids=(8,)),
            ],
            strict=True,
        )
    )
]


@pytest.fixture(scope="module")
def mixed_alone():
    """{(place in MIXED, sample index): Sample}, each request in a call of its own."""
    model = azr_model(SMALL)
    return {
        (i, index): sample
        for i, request in enumerate(MIXED)
        for (_, index), sample in rollout(model, [request]).items()
    }


@settings(max_examples=20, deadline=None)
@given(
    order=st.permutations(range(len(MIXED))),
    kept=st.integers(1, len(MIXED)),
    slots=st.integers(1, 24),
)
def test_samples_depend_on_neither_company_nor_order_nor_slots(mixed_alone, order, kept, slots):
    order = order[:kept]
    found = rollout(azr_model(SMALL), [MIXED[i] for i in order], slots)
    for (place, index), sample in found.items():
        alone = mixed_alone[order[place], index]
        assert (sample.token_ids, sample.finish_reason) == (alone.token_ids, alone.finish_reason)
        assert np.abs(sample.logprobs - alone.logprobs).max() < 1e-5


def test_one_key_gives_one_result_and_other_keys_and_samples_differ():
    model, sampling = azr_model(SMALL), Sampling(max_new_tokens=12)

    def run(key):
        return tokens(rollout(model, [Request(token_ids=(5, 6), sampling=sampling, key=key, n=8)]))

    first = run(2**64 - 1)
    assert first == run(2**64 - 1)
    assert len({completion for completion, _ in first.values()}) == 8
    assert not set(first.values()) & set(run(2**63 - 1).values())
    # Two requests that share prompt and key are one request, asked twice.
    twice = [Request(token_ids=(5, 6), sampling=sampling, key=2**64 - 1, n=4)] * 2
    assert tokens(rollout(model, twice)) == {
        (number, index): first[0, index] for number in range(2) for index in range(4)
    }


def test_more_samples_of_a_request_leave_the_first_ones_alone():
    request = dict(token_ids=(5, 6), sampling=Sampling(max_new_tokens=6), key=9)
    few, many = (tokens(rollout(azr_model(SMALL), [Request(**request, n=n)])) for n in (2, 9))
    assert few == {key: many[key] for key in few}


LETTERS = [f"{chr(97 + i % 26)}{chr(97 + (i * 7 + 3) % 26)}" for i in range(48)]


def spell(ids):
    """Two letters a token, so that a stop string can begin inside one and end inside another."""
    return "".join(LETTERS[i] for i in ids)


@pytest.fixture(scope="module")
def unbounded():
    """Token ids of 12 samples that nothing ends before 14 tokens."""
    request = Request(token_ids=(9, 4), sampling=Sampling(max_new_tokens=14), key=77, n=12)
    return {k: s.token_ids for k, s in rollout(azr_model(SMALL), [request]).items()}


def cut(ids, sampling):
    """The same draws as they end under `sampling`."""
    for end in range(1, sampling.max_new_tokens + 1):
        text = spell(ids[:end])
        if ids[end - 1] in sampling.stop_token_ids or any(s in text for s in sampling.stop_strings):
            return ids[:end], "stop"
    return ids[: sampling.max_new_tokens], "length"


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_limits_and_stops_only_cut_what_is_drawn(unbounded, data):
    text = spell(unbounded[0, 0])
    starts = st.integers(0, len(text) - 4)
    strings = st.tuples(starts, st.integers(1, 4)).map(lambda a: text[a[0] : a[0] + a[1]])
    sampling = Sampling(
        max_new_tokens=data.draw(st.integers(1, 14)),
        stop_token_ids=tuple(data.draw(st.sets(st.integers(2, 47), max_size=4))),
        stop_strings=tuple(data.draw(st.lists(strings, max_size=2))),
    )
    requests = [
        Request(token_ids=(3,), sampling=Sampling(max_new_tokens=10), key=1),
        Request(token_ids=(9, 4), sampling=sampling, key=77, n=12),
    ]
    slots = data.draw(st.sampled_from([4, 100]))
    found = tokens(rollout(azr_model(SMALL), requests, slots, decode=spell))
    assert found.pop((0, 0))[1] == "length"
    assert found == {(1, index): cut(ids, sampling) for (_, index), ids in unbounded.items()}


def test_a_stop_string_of_split_characters_and_long_rows_is_found():
    # A byte a token, so that a character spans three; the text before it is long.
    def decode(ids):
        return bytes(ids).decode(errors="replace")

    text = list(("x" * 300 + "<\u20acnd>").encode())
    stops, wanted = StopStrings(decode), ("<\u20acnd>", "never")
    ends = []
    for end in range(1, len(text) + 1):
        tokens = text[:end][-stops.window(wanted) :]
        if stops.may_end(tokens[-1], wanted) and stops.found(tokens, wanted):
            ends.append(end)
    assert ends == [len(text)]
    euro = list("\u20ac".encode())
    assert stops.may_end(euro[-1], ("\u20ac",)) and stops.found(euro, ("\u20ac",))
    assert not stops.may_end(ord("x"), wanted)


def test_a_stop_string_may_be_split_over_two_tokens(unbounded):
    ids = unbounded[0, 3]
    across = spell(ids[4:6])[1:3]
    sampling = Sampling(max_new_tokens=14, stop_strings=(across, "never"))
    expected = cut(ids, sampling)
    assert len(expected[0]) <= 6 and expected[1] == "stop"
    request = Request(token_ids=(9, 4), sampling=sampling, key=77, n=12)
    assert tokens(rollout(azr_model(SMALL), [request], decode=spell))[0, 3] == expected


@pytest.fixture
def calls(monkeypatch):
    """The number of tokens of each call of the model, in order."""
    tokens_of_call = []
    real = azr.rollout.engine.hidden_states

    def spy(model, ids, *args):
        assert len(ids) == 1
        tokens_of_call.append(ids.shape[1])
        return real(model, ids, *args)

    monkeypatch.setattr(azr.rollout.engine, "hidden_states", spy)
    return tokens_of_call


def test_a_prompt_is_prefilled_once_and_rows_that_ended_leave(calls):
    sampling = Sampling(max_new_tokens=40, stop_token_ids=tuple(range(2, 8)))
    prompt = tuple(range(9, 21))
    samples = rollout(azr_model(SMALL), [Request(token_ids=prompt, sampling=sampling, key=3, n=64)])
    assert calls[0] == len(prompt)
    # Of each sample the first token comes from the prefill, and none is decoded after the last.
    lengths = [len(s.token_ids) for s in samples.values()]
    alive = [sum(n > step for n in lengths) for step in range(1, max(lengths))]
    assert calls[1:] == [max(8, rows) for rows in alive]


def test_a_prompt_is_prefilled_once_though_its_samples_enter_one_by_one(calls):
    prompt, other = tuple(range(9, 21)), tuple(range(5, 25))
    sampling = Sampling(max_new_tokens=5, stop_token_ids=tuple(range(2, 12)))
    requests = [
        Request(token_ids=prompt, sampling=sampling, key=3, n=9),
        Request(token_ids=other, sampling=sampling, key=4, n=2),
    ]
    rollout(azr_model(SMALL), requests, slots=2)
    assert sorted(calls)[-2:] == [12, 20] and set(calls) == {8, 12, 20}


def test_a_step_has_at_least_eight_rows_and_at_most_the_slots(calls):
    """Of fewer than eight rows, a matrix product rounds otherwise: one row alone would differ."""
    rollout(azr_model(SMALL), MIXED, 1)
    assert min(calls) == 8
    calls.clear()
    long = Sampling(max_new_tokens=30)
    rollout(azr_model(SMALL), [Request(token_ids=(5,), sampling=long, key=0, n=50)], 20)
    assert max(calls) == 20


@pytest.fixture
def entered(monkeypatch):
    """(rows before, rows after) of each time that rows entered; "step" for each decode step."""
    events = []
    run = azr.rollout.engine._Run
    enter, step = run._enter, run._step

    def watched_enter(self, start, entering):
        events.append((start, self.rows))
        enter(self, start, entering)

    def watched_step(self):
        events.append("step")
        step(self)

    monkeypatch.setattr(run, "_enter", watched_enter)
    monkeypatch.setattr(run, "_step", watched_step)
    return events


@pytest.mark.parametrize(
    ("slots", "most"), [(1, 0), (2, 1), (15, 12), (16, 12), (32, 24), (72, 64)]
)
def test_rows_enter_when_eight_places_are_free_or_a_quarter_of_few(entered, slots, most):
    sampling = Sampling(max_new_tokens=14, stop_token_ids=tuple(range(2, 10)))
    request = Request(token_ids=(5, 6, 7), sampling=sampling, key=1, n=6 * slots)
    assert len(rollout(azr_model(SMALL), [request], slots)) == request.n
    starts, stops = zip(*(event for event in entered if event != "step"), strict=True)
    # As soon as they may, and then as many as there is room for.
    assert starts[0] == 0 and max(starts) == most
    assert set(stops[:-1]) == {slots}


def test_what_a_full_prefill_had_no_room_for_enters_in_the_next_round(entered, monkeypatch):
    monkeypatch.setattr(azr.rollout.engine, "PREFILL_TOKENS", 40)
    sampling = Sampling(max_new_tokens=9)
    requests = [
        Request(token_ids=(i,) * 20, sampling=sampling, key=i, n=1) for i in range(3, 9)
    ]  # fmt: skip
    rollout(azr_model(SMALL), requests, 100)
    assert entered[:6] == [(0, 2), "step", (2, 4), "step", (4, 6), "step"]


def test_a_prompt_that_is_there_takes_no_part_of_a_prefill(entered, monkeypatch):
    """Its further samples enter at once, however long it is."""
    monkeypatch.setattr(azr.rollout.engine, "PREFILL_TOKENS", 40)
    sampling = Sampling(max_new_tokens=9)
    requests = [Request(token_ids=(i,) * 30, sampling=sampling, key=i, n=8) for i in (3, 4)]
    rollout(azr_model(SMALL), requests, 100)
    assert entered[:4] == [(0, 8), "step", (8, 16), "step"]


def test_memory_that_held_nan_changes_nothing(mixed_alone):
    # Deterministic mode fills fresh memory with NaN, which a mask does not hide.
    torch.use_deterministic_algorithms(True)
    try:
        found = rollout(azr_model(SMALL), MIXED, slots=4)
    finally:
        torch.use_deterministic_algorithms(False)
    assert tokens(found) == tokens(mixed_alone)
    assert all(np.isfinite(s.logprobs).all() for s in found.values())


def test_an_optimiser_step_is_seen_by_the_next_rollout():
    model = azr_model(SMALL)
    engine = RolloutEngine(model, slots=4)
    before = [s.token_ids for s in engine.generate(MIXED)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    model(input_ids=torch.tensor([[3, 4, 5]])).logits.square().sum().backward()
    optimizer.step()
    after = [s.token_ids for s in engine.generate(MIXED)]
    fresh = RolloutEngine(azr_model(copy.deepcopy(model)), slots=4)
    assert after != before
    assert after == [s.token_ids for s in fresh.generate(MIXED)]


@pytest.mark.parametrize("training", [True, False])
def test_generation_is_in_eval_mode_and_the_mode_is_restored(training):
    plain = plain_model("llama", attention_dropout=0.5)
    expected = tokens(rollout(azr_model(plain), MIXED))
    model = azr_model(plain).train(training)
    assert tokens(rollout(model, MIXED)) == expected
    assert model.training is training
    assert all(module.training is training for module in model.modules())


@pytest.mark.parametrize("how", ["close", "forget", "fail"])
def test_a_generator_left_half_way_leaves_the_engine_usable(mixed_alone, how):
    model = azr_model(SMALL).train()
    engine = RolloutEngine(model, slots=3)
    samples = engine.generate(MIXED)
    next(samples)
    if how == "close":
        samples.close()
    elif how == "forget":
        del samples
        gc.collect()
    else:
        with pytest.raises(RuntimeError, match="the consumer failed"):
            samples.throw(RuntimeError("the consumer failed"))
    assert model.training
    assert not torch.is_inference_mode_enabled()
    found = {(s.request, s.index): s for s in engine.generate(MIXED)}
    assert tokens(found) == tokens(mixed_alone)


def test_the_consumer_runs_outside_inference_mode():
    for _ in RolloutEngine(azr_model(SMALL), slots=3).generate(MIXED[:3]):
        assert not torch.is_inference_mode_enabled()


def test_gradients_flow_through_the_model_after_a_rollout():
    model = azr_model(SMALL)
    rollout(model, MIXED[:2])
    model(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_tokens_are_counted():
    engine = RolloutEngine(azr_model(SMALL), slots=4)
    samples = [*engine.generate(MIXED), *engine.generate(MIXED[:2])]
    assert engine.generated_tokens == sum(len(s.token_ids) for s in samples)
    assert all(len(s.logprobs) == len(s.token_ids) for s in samples)


def test_samples_come_as_they_finish():
    requests = [
        Request(token_ids=(5,), sampling=Sampling(max_new_tokens=count), key=0)
        for count in (6, 2, 4)
    ]
    samples = RolloutEngine(azr_model(SMALL), slots=8).generate(iter(requests))
    assert [s.request for s in samples] == [1, 2, 0]


def test_no_requests_give_no_samples():
    assert list(RolloutEngine(azr_model(SMALL), slots=2).generate([])) == []


def test_the_whole_context_can_be_used():
    request = Request(token_ids=tuple(range(2, 42)), sampling=Sampling(max_new_tokens=56), key=1)
    samples = rollout(azr_model(SMALL), [request])
    assert len(samples[0, 0].token_ids) == 56
    assert_full_forward_agrees(SMALL, [request], samples)


@pytest.mark.parametrize(
    ("request_options", "message"),
    [
        (dict(token_ids=()), "request 1 has an empty prompt"),
        (dict(token_ids=(3, 48)), "request 1: token ids from 3 to 48; .* vocabulary is 0 to 47"),
        (dict(token_ids=(-1, 3)), "request 1: token ids from -1 to 3; .* vocabulary is 0 to 47"),
        (dict(n=0), "request 1 asks for n=0 samples"),
        (
            dict(token_ids=(3,) * 90),
            "request 1: 90 prompt tokens [+] 7 new ones exceed the model's context of 96; shorten "
            "the prompt or --rollout.max-new-tokens",
        ),
        (
            dict(sampling=Sampling(max_new_tokens=7, stop_strings=("x",))),
            "request 1 has stop strings, but the engine cannot decode",
        ),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_before_any_work(request_options, message):
    good = dict(token_ids=(3, 4), sampling=Sampling(max_new_tokens=7), key=0)
    requests = [Request(**good), Request(**(good | request_options))]
    with pytest.raises(RequestError, match=message):
        next(RolloutEngine(azr_model(SMALL), slots=2).generate(requests))
    assert issubclass(RequestError, RunError), "a run prints it as one line"


def test_an_engine_needs_a_slot():
    with pytest.raises(ValueError, match="slots must be at least 1, got 0"):
        RolloutEngine(azr_model(SMALL), slots=0)


def test_an_engine_needs_a_prepared_model():
    with pytest.raises(ValueError, match="'sdpa'; call azr.model.attention.use_azr_attention"):
        RolloutEngine(SMALL, slots=2)


def test_what_tokenizers_and_numpy_return_is_taken():
    options = dict(max_new_tokens=9, stop_token_ids=tuple(range(20, 48)), stop_strings=("ab",))
    plain = Request(token_ids=(3, 4), sampling=Sampling(**options), key=5, n=4)
    loose = options | dict(stop_token_ids=list(range(20, 48)), stop_strings="ab")
    requests = [
        replace(plain, token_ids=[3, 4], sampling=Sampling(**loose)),
        replace(plain, token_ids=np.array([3, 4]), key=np.uint64(5), n=np.int64(4)),
    ]
    expected = tokens(rollout(azr_model(SMALL), [plain], decode=spell))
    for request in requests:
        assert tokens(rollout(azr_model(SMALL), [request], decode=spell)) == expected
    assert Sampling(max_new_tokens=1, stop_token_ids=np.int64(5)).stop_token_ids == (5,)
    with pytest.raises(TypeError, match="token_ids: expected integers, got 'ab'"):
        Request(token_ids="ab", sampling=plain.sampling, key=1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_end_the_call(value, temperature):
    model = azr_model(SMALL)
    engine = RolloutEngine(model, slots=4)
    sampling = Sampling(max_new_tokens=3, temperature=temperature)
    requests = [Request(token_ids=(3, 4), sampling=sampling, key=0, n=2)]
    with torch.no_grad():
        weight = model.base_model.norm.weight[0].clone()
        model.base_model.norm.weight[0] = value
    with pytest.raises(RunError, match="request 0, sample 0: its token 0 has no finite log-prob"):
        list(engine.generate(requests))
    with torch.no_grad():
        model.base_model.norm.weight[0] = weight
    assert tokens({(s.request, s.index): s for s in engine.generate(requests)}) == tokens(
        rollout(azr_model(SMALL), requests)
    )
