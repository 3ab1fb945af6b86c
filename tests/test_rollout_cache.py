"""The engine over paged and contiguous KV caches, delayed steps and scarce memory.

FlashAttention's operators are stood in for by float64 ones that read the same arguments, so what
is tested is everything around them: pages, tables, sharing, admission, steps that run ahead.
"""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from flash_reference import flash_attn, torch_aten, torch_varlen
from hypothesis import given, settings
from hypothesis import strategies as st
from models import azr_model, plain_model

import azr.rollout.engine
import azr.rollout.pages
from azr.model.attention import flash
from azr.rollout import Progress, Request, RequestError, RolloutEngine, Sampling
from azr.rollout.cache import Geometry
from azr.rollout.graphs import bucket
from azr.rollout.pages import PageCache, Pages
from azr.rollout.roofline import Meter, Rates
from azr.rollout.rows import Outcome

PAGE = 4
SMALL = plain_model(seed=3, hidden_size=16, num_hidden_layers=2, intermediate_size=16)
GEOMETRY = Geometry.of(SMALL.config, torch.float32)


def requests_of(count, seed=4, longest=14):
    rng = np.random.default_rng(seed)
    samplings = [
        Sampling(max_new_tokens=9),
        Sampling(max_new_tokens=1),
        Sampling(max_new_tokens=14, stop_token_ids=(3, 9, 20, 30, 31, 32)),
        Sampling(max_new_tokens=5, temperature=0.0),
        Sampling(max_new_tokens=7, temperature=0.6, top_k=5),
        Sampling(max_new_tokens=12, min_p=0.1, temperature=1.5),
    ]
    prompts = [tuple(rng.integers(2, 48, size=n).tolist()) for n in rng.integers(1, longest, count)]
    prompts[-1] = prompts[0]  # two requests of one prompt
    return [
        Request(token_ids=prompt, sampling=samplings[i % len(samplings)], key=100 + i, n=1 + i % 4)
        for i, prompt in enumerate(prompts)
    ]


REQUESTS = requests_of(12)


def outcome(engine, requests):
    samples = list(engine.generate(requests))
    found = {(s.request, s.index): s for s in samples}
    assert len(found) == len(samples) == sum(r.n for r in requests)
    return found


@pytest.fixture(scope="module")
def expected():
    return outcome(RolloutEngine(azr_model(SMALL), slots=100), REQUESTS)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, sample in found.items():
        other = expected[key]
        assert (sample.token_ids, sample.finish_reason) == (other.token_ids, other.finish_reason)
        assert np.abs(sample.logprobs - other.logprobs).max() < 1e-5


@pytest.fixture
def small_pages(monkeypatch):
    monkeypatch.setattr(flash, "PAGE_TOKENS", PAGE)
    monkeypatch.setattr(azr.rollout.pages, "PAGE_TOKENS", PAGE)


@pytest.fixture(params=["flash-attn", "torch-varlen", "torch-aten"])
def engine_of(request, monkeypatch, small_pages):
    """Makes engines whose attention is one of the FlashAttention backends."""
    backend = {
        "flash-attn": lambda: flash_attn(PAGE),
        "torch-varlen": lambda: torch_varlen(PAGE),
        "torch-aten": lambda: torch_aten(monkeypatch),
    }[request.param]()
    monkeypatch.setattr(azr.rollout.engine, "choose", lambda *args: backend)
    return lambda **options: RolloutEngine(azr_model(SMALL), **options)


class EagerGraphs:
    """Runs the steps that would be captured; the engine is one step behind, as on a GPU."""

    capture_s = 0.0

    def __init__(self, slots):
        self.slots, self.buckets = slots, []

    def prepare(self, step, rows, mix):
        # Capturing runs a step and takes back what it drew.
        saved = self.slots.saved()
        step(rows, mix)
        self.slots.restore(saved)
        self.step = step

    def replay(self, rows, mix):
        self.step(rows, mix)
        self.buckets.append(rows)


class Untimed(Meter):
    """Without CUDA's clock."""

    def start(self):
        return None

    def stop(self, *step):
        pass


@pytest.fixture
def delayed(monkeypatch):
    """Steps are captured and one behind, as on a GPU; draws are copies, as there."""
    real = Outcome.of.__func__

    def copied(cls, *args):
        made = real(cls, *args)
        made.drawn = made.drawn._make(part.clone() for part in made.drawn)
        return made

    monkeypatch.setattr(Outcome, "of", classmethod(copied))
    monkeypatch.setattr(azr.rollout.engine, "is_capturable", lambda device, backend: True)
    monkeypatch.setattr(azr.rollout.engine, "StepGraphs", EagerGraphs)
    monkeypatch.setattr(azr.rollout.engine, "measure_rates", lambda dtype: Rates(1e12, 1e14))
    monkeypatch.setattr(azr.rollout.engine, "Meter", Untimed)


@pytest.mark.parametrize("slots", [1, 9, 100])
def test_samples_are_those_of_dense_rows(engine_of, expected, slots):
    assert_same(outcome(engine_of(slots=slots), REQUESTS), expected)


@pytest.mark.parametrize("slots", [3, 100])
def test_steps_that_run_ahead_change_nothing(engine_of, delayed, expected, slots):
    engine = engine_of(slots=slots)
    for _ in range(2):  # the second call finds the cache and the graphs of the first
        assert_same(outcome(engine, REQUESTS), expected)
    assert set(engine._state.graphs.buckets) <= {8, 16, 30}


@pytest.mark.parametrize("ahead", [False, True])
def test_a_stop_string_is_seen_a_step_late_and_cut_in_time(engine_of, request, expected, ahead):
    if ahead:
        request.getfixturevalue("delayed")
    plain = Request(token_ids=(9, 4), sampling=Sampling(max_new_tokens=14), key=77, n=6)
    free = outcome(engine_of(slots=4), [plain])
    letters = [chr(97 + i % 26) for i in range(48)]

    def spell(ids):
        return "".join(letters[i] for i in ids)

    stop = spell(free[0, 2].token_ids[5:7])
    sampling = dataclasses.replace(plain.sampling, stop_strings=(stop,))
    found = outcome(
        engine_of(slots=4, decode=spell), [dataclasses.replace(plain, sampling=sampling)]
    )
    for key, sample in found.items():
        text = spell(free[key].token_ids)
        at = text.find(stop)
        end = 14 if at < 0 else at + len(stop)
        assert sample.token_ids == free[key].token_ids[:end]
        assert sample.finish_reason == ("length" if at < 0 else "stop")
    assert any(s.finish_reason == "stop" for s in found.values())


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_scarce_memory_makes_samples_wait_and_nothing_else(expected, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flash, "PAGE_TOKENS", PAGE)
        patch.setattr(azr.rollout.pages, "PAGE_TOKENS", PAGE)
        kind = data.draw(st.sampled_from(["pages", "extents"]))
        backend = torch_varlen(PAGE) if kind == "pages" else torch_aten(patch)
        patch.setattr(azr.rollout.engine, "choose", lambda *args: backend)
        longest = max(r.most_tokens for r in REQUESTS)
        least = -(-longest // PAGE) + 1
        pages = data.draw(st.integers(least, 3 * least))
        slots = data.draw(st.sampled_from([1, 4, 100]))
        limit = pages * PageCache.page_bytes(GEOMETRY)
        engine = RolloutEngine(azr_model(SMALL), slots=slots, cache_bytes=limit)
        assert_same(outcome(engine, REQUESTS), expected)
        cache = engine._state.cache
        held = sum(t.numel() * t.element_size() for layer in cache.layers for t in layer)
        assert held <= limit
        # Everything has been given back but the scratch page.
        assert cache.pages.free == held // PageCache.page_bytes(GEOMETRY) - 1


@pytest.mark.parametrize("fitting", [1, 6, 20, 70])
def test_where_pages_are_short_rows_enter_once_as_many_have_left(monkeypatch, small_pages, fitting):
    """Eight of them, or a quarter of those that fit, as where slots are short."""
    monkeypatch.setattr(azr.rollout.engine, "choose", lambda *args: torch_varlen(PAGE))
    events = []
    enter = azr.rollout.engine._Run._enter

    def watched(run, start, entering):
        events.append((start, run.rows))
        enter(run, start, entering)

    monkeypatch.setattr(azr.rollout.engine._Run, "_enter", watched)
    rng = np.random.default_rng(0)
    requests = [
        Request(
            token_ids=tuple(rng.integers(2, 48, 6).tolist()),  # four pages, two of them a prompt's
            sampling=Sampling(max_new_tokens=10, stop_token_ids=tuple(range(2, 9))),
            key=i,
        )
        for i in range(100)
    ]
    limit = (4 * fitting + 1) * PageCache.page_bytes(GEOMETRY)
    engine = RolloutEngine(azr_model(SMALL), slots=100, cache_bytes=limit)
    assert len(outcome(engine, requests)) == 100
    assert events[0] == (0, fitting) and len(events) > 1
    for (_, before), (start, _) in itertools.pairwise(events):
        assert before - start >= min(8, max(1, before // 4))


@pytest.mark.parametrize("slots", [1, 4])
def test_a_dense_cache_keeps_to_its_limit_too(expected, slots):
    wide = max(len(r.token_ids) for r in REQUESTS) + 14
    limit = GEOMETRY.token_bytes * wide * 9  # eight rows, the least that is computed, and a prompt
    engine = RolloutEngine(azr_model(SMALL), slots=100, cache_bytes=limit)
    assert_same(outcome(engine, REQUESTS), expected)
    cache = engine._state.cache
    layers = cache.prompt_layers + cache.own_layers
    assert sum(t.numel() * t.element_size() for layer in layers for t in layer) <= limit


@pytest.mark.parametrize("kind", ["rows", "pages"])
def test_a_request_longer_than_the_cache_is_refused(kind, monkeypatch, small_pages):
    if kind == "pages":
        monkeypatch.setattr(azr.rollout.engine, "choose", lambda *args: torch_varlen(PAGE))
    engine = RolloutEngine(azr_model(SMALL), slots=4, cache_bytes=GEOMETRY.token_bytes * 30)
    long = Request(token_ids=(3,) * 20, sampling=Sampling(max_new_tokens=40), key=0)
    with pytest.raises(RequestError) as caught:
        next(engine.generate([REQUESTS[0], long]))
    # Eight rows, the least that is computed, and the prompt; fifteen pages and the scratch page.
    least = {"rows": "42 KiB", "pages": "8 KiB"}[kind]
    assert str(caught.value).startswith(
        f"request 1: 20 prompt tokens + 40 new ones need {least} of KV cache, and it may take "
        "4 KiB; lower --rollout.max-new-tokens"
    )


def test_requests_that_do_not_fit_together_take_turns():
    long_prompt = Request(token_ids=(3,) * 60, sampling=Sampling(max_new_tokens=2), key=1, n=3)
    long_answer = Request(token_ids=(5, 6), sampling=Sampling(max_new_tokens=20), key=2, n=2)
    requests = [long_answer, long_prompt, REQUESTS[0], long_answer]
    expected = outcome(RolloutEngine(azr_model(SMALL), slots=100), requests)
    told: list[Progress] = []
    engine = RolloutEngine(
        azr_model(SMALL), slots=4, cache_bytes=GEOMETRY.token_bytes * 200,
        on_progress=told.append, progress_s=0.0,
    )  # fmt: skip
    for _ in range(2):
        assert_same(outcome(engine, requests), expected)
    assert {p.samples for p in told} == {len(expected)}
    assert told[-1].done == len(expected)
    tokens = told[-1].tokens
    assert engine.generated_tokens == 2 * tokens
    # The first samples come while the others have not begun.
    samples = engine.generate(requests)
    assert next(samples).request != 1 and engine.generated_tokens < 3 * tokens
    samples.close()
    assert_same(outcome(engine, requests), expected)


def test_the_cache_of_another_call_costs_no_slots():
    narrow = [
        Request(token_ids=(i,), sampling=Sampling(max_new_tokens=20), key=i) for i in range(8)
    ]
    wide = Request(token_ids=(3,) * 60, sampling=Sampling(max_new_tokens=2), key=1)
    engine = RolloutEngine(azr_model(SMALL), slots=8, cache_bytes=GEOMETRY.token_bytes * 290)
    outcome(engine, [wide])
    outcome(engine, narrow)
    assert engine._state.plan.slots == 8


def test_a_call_that_memory_has_narrowed_keeps_its_cache_for_the_next():
    requests = [Request(token_ids=(3,) * 30, sampling=Sampling(max_new_tokens=2), key=1, n=20)]
    engine = RolloutEngine(azr_model(SMALL), slots=20, cache_bytes=GEOMETRY.token_bytes * 50)
    outcome(engine, requests)
    before = engine._state
    assert before.plan.slots < 20
    outcome(engine, requests)
    assert engine._state is before


def test_rows_of_a_prompt_share_its_full_pages(monkeypatch, small_pages):
    taken = []
    monkeypatch.setattr(azr.rollout.engine, "choose", lambda *args: torch_varlen(PAGE))
    real = Pages.take

    def spy(self, count, **options):
        taken.append(count)
        return real(self, count, **options)

    monkeypatch.setattr(Pages, "take", spy)
    engine = RolloutEngine(azr_model(SMALL), slots=8)
    prompt = tuple(range(2, 12))  # two full pages and a half
    outcome(engine, [Request(token_ids=prompt, sampling=Sampling(max_new_tokens=6), key=0, n=3)])
    assert taken == [4, 2, 2]


@pytest.mark.parametrize("adjacent", [True, False])
@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), max_size=30))
def test_no_page_is_handed_out_twice(adjacent, steps):
    pages, held = Pages(12), []
    for count, drop in steps:
        taken = pages.take(count, adjacent=adjacent)
        free = set(range(1, 12)) - {p for group in held for p in group}
        if taken is None:
            runs = "".join("x" if p in free else " " for p in range(12)).split()
            assert count > (max(map(len, runs), default=0) if adjacent else len(free))
        else:
            assert len(set(taken)) == count and set(taken) <= free
            assert not adjacent or taken == list(range(taken[0], taken[0] + count))
            held.append(taken)
        if drop < len(held):
            pages.let_go(held.pop(drop))
        assert pages.free == 11 - sum(map(len, held))


def test_released_memory_is_taken_again(engine_of, expected):
    engine = engine_of(slots=9)
    assert_same(outcome(engine, REQUESTS), expected)
    before = engine._state
    assert outcome(engine, REQUESTS[:3]) and engine._state is before
    engine.release()
    assert engine._state is None
    assert_same(outcome(engine, REQUESTS), expected)
    # A call that needs more takes more, and gives the old memory back first.
    more = [Request(token_ids=(3,) * 30, sampling=Sampling(max_new_tokens=50), key=0)]
    assert outcome(engine, more) and engine._state is not before
    assert_same(outcome(engine, REQUESTS), expected)


def test_an_abandoned_call_leaves_nothing_behind(engine_of, expected):
    engine = engine_of(slots=5)
    samples = engine.generate(REQUESTS)
    next(samples)
    with pytest.raises(RuntimeError, match="generating already"):
        next(engine.generate(REQUESTS))
    samples.close()
    assert_same(outcome(engine, REQUESTS), expected)


def test_an_optimiser_step_is_seen_by_the_graphs(engine_of, delayed):
    engine = engine_of(slots=5)
    outcome(engine, REQUESTS)
    with torch.no_grad():
        for parameter in engine.model.parameters():
            parameter.mul_(1.3)
    fresh = RolloutEngine(engine.model, slots=5)
    assert_same(outcome(engine, REQUESTS), outcome(fresh, REQUESTS))


def test_progress_is_told():
    told: list[Progress] = []
    engine = RolloutEngine(azr_model(SMALL), slots=3, on_progress=told.append, progress_s=0.0)
    samples = list(engine.generate(REQUESTS))
    assert [p.done for p in told] == sorted(p.done for p in told)
    assert told[-1].done == told[-1].samples == len(samples)
    assert told[-1].tokens == sum(len(s.token_ids) for s in samples)
    assert str(dataclasses.replace(told[-1], seconds=2.0, tokens=80)).endswith("40 tokens/s")
    with_roofline = dataclasses.replace(told[-1], roofline_frac=0.618)
    assert str(with_roofline).endswith("decoding at 62% of the roofline")


def test_buckets_cover_every_number_of_rows():
    sizes = [bucket(rows, 1024) for rows in range(1, 1025)]
    assert all(size >= rows for rows, size in enumerate(sizes, 1))
    assert len(set(sizes)) == 4 + 15 and sizes == sorted(sizes)
    assert bucket(70, 100) == 100
