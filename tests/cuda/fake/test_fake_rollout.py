"""Whole rollouts through the engine's own code, steps captured, at the shapes of real models."""

import gc
import time
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from fake_models import FLASH, SHAPES, fake_model, usable

import azr.rollout.engine
import azr.rollout.pages
from azr.model.transfer import Parcel
from azr.rollout import Request, RolloutEngine, Sampling
from azr.rollout.rows import AT_LIMIT, GOES_ON, STOPPED, DrawnParts, History, Outcome

DRAWN = Sampling(max_new_tokens=40)
KINDS = {
    "drawn": [DRAWN],
    "greedy": [Sampling(max_new_tokens=40, temperature=0.0)],
    "scaled": [DRAWN, Sampling(max_new_tokens=25, temperature=0.7, stop_token_ids=(1, 2))],
    "truncated": [DRAWN, Sampling(max_new_tokens=30, top_p=0.9, temperature=0.8)],
    "truncated greedy": [
        Sampling(max_new_tokens=9, temperature=0.0), Sampling(max_new_tokens=8, top_k=20)
    ],
    "min-p": [Sampling(max_new_tokens=20, min_p=0.1)],
}  # fmt: skip


class Host:
    """A tensor that has arrived on the host."""

    def __init__(self, values):
        self.values = values

    def numpy(self):
        return self.values


@pytest.fixture
def draws(monkeypatch):
    """What the device would have drawn: random tokens; rows end at their limit or before it."""
    rng = np.random.default_rng(0)
    left: dict[int, int] = {}
    of, opened = Outcome.of.__func__, History.open

    def open_rows(history, owners):
        numbers = opened(history, owners)
        for number, owner in zip(numbers.tolist(), owners, strict=True):
            left[number] = owner.request.sampling.max_new_tokens
        return numbers

    def of_a_step(cls, slots, start, stop, rows):
        outcome = of(cls, slots, start, stop, rows)
        assert outcome.arrived is not None and outcome.drawn.ids.device.type == "cpu"
        codes = []
        for number in rows.tolist():
            left[number] = left[number] - 1 if left[number] > 0 and rng.random() > 0.02 else 0
            codes.append(GOES_ON if left[number] > 0 else rng.choice([AT_LIMIT, STOPPED]))
        n = len(rows)
        outcome.drawn = DrawnParts(
            Host(rng.integers(3, 99, n)), Host(np.array(codes)),
            Host(-rng.random(n, dtype=np.float32)),
        )  # fmt: skip
        return outcome

    monkeypatch.setattr(History, "open", open_rows)
    monkeypatch.setattr(Outcome, "of", classmethod(of_a_step))


def requests_of(samplings, count=6, seed=1, longest=700):
    rng = np.random.default_rng(seed)
    return [
        Request(
            token_ids=tuple(rng.integers(3, 999, rng.integers(1, longest)).tolist()),
            sampling=samplings[i % len(samplings)],
            key=i,
            n=1 + i % 5,
        )
        for i in range(count)
    ]


def samples_of(engine, requests):
    samples = list(engine.generate(requests))
    assert len({(s.request, s.index) for s in samples}) == sum(r.n for r in requests)
    return samples


@pytest.mark.parametrize(("name", "shape"), SHAPES)
def test_rollouts_at_the_shapes_of_real_models(device, draws, monkeypatch, name, shape):
    """Prefill, admission, rows that move and leave, steps captured and replayed, the meter."""
    usable(name, monkeypatch)
    engine = RolloutEngine(fake_model(shape, layers=1), slots=20, attention=name)
    samples_of(engine, requests_of(KINDS["scaled"]))
    assert device.captures
    for capture in device.captures:
        # The checkpoint's thread may talk to the device; a collection may not come in between.
        assert capture.mode == "thread_local" and not capture.collects


def test_the_meter_counts_no_capture(device, draws):
    engine = RolloutEngine(fake_model("tiny", layers=1), slots=16, attention="torch-aten")
    device.capture_s = 0.2
    begun = time.perf_counter()
    samples_of(engine, requests_of([DRAWN], count=6, longest=40))
    captures = device.order.count("capture")
    assert captures == len(device.captures) > 1
    assert 0 < engine.meter.phase_s < time.perf_counter() - begun - captures * device.capture_s
    # The two marks of a step enclose its replay and nothing else.
    replays = [i for i, what in enumerate(device.order) if what == "replay"]
    marks = {device.order[i + side] for i in replays for side in (-1, 1)}
    assert marks == {"timing event"}
    assert 0 < engine.decode_roofline_frac() < 1
    assert engine.meter.step_s == pytest.approx(len(replays) * 1e-3)
    assert engine.rollout_roofline_frac() == engine.meter.floor_s / engine.meter.phase_s


@pytest.mark.parametrize("kind", KINDS)
def test_every_mix_can_be_captured(device, draws, kind):
    engine = RolloutEngine(fake_model("qwen2.5-3b", layers=1), slots=16, attention="torch-aten")
    samples_of(engine, requests_of(KINDS[kind], count=5, longest=40))
    kernels = set().union(*(capture.launches for capture in device.captures))
    assert "sample_kernel" in kernels
    assert ("sort" in kernels) == (kind in ("truncated", "truncated greedy", "min-p"))


def test_mixes_that_run_the_same_kernels_share_their_graphs(device, draws):
    engine = RolloutEngine(fake_model("qwen2.5-3b", layers=1), slots=8, attention="torch-aten")
    for temperature in (1.0, 0.0, 0.7):
        sampling = Sampling(max_new_tokens=9, temperature=temperature)
        samples_of(engine, requests_of([sampling], count=3, longest=40))
    assert len(device.captures) == 1


@pytest.mark.parametrize(("name", "shape"), SHAPES)
def test_launches_of_a_layer_are_counted(device, draws, monkeypatch, name, shape):
    usable(name, monkeypatch)
    found: list[Counter] = []
    for layers in (1, 2):
        device.captures.clear()
        engine = RolloutEngine(fake_model(shape, layers), slots=8, attention=name)
        samples_of(engine, requests_of([DRAWN], count=4, longest=20))
        found.append(device.captures[0].launches)
    layer = found[1] - found[0]
    rest = found[0].total() - layer.total()
    print(
        f"\nlaunches of a decode step, {shape}, {name}: {layer.total()} a layer and {rest} for "
        f"embedding, head, sampler and slots; a layer: {dict(layer.most_common())}"
    )
    # The bound is where it stands: a change that adds kernels to every layer has to say so here.
    # What torch's own operator for rows of any length makes beside its kernel is no kernel of ours.
    assert layer.total() - layer["zeros"] <= 10 and layer["mm"] + layer["addmm"] == 4
    assert rest <= 44


def watch(device, monkeypatch, owner, name):
    """Returns a list in which each call of a function will leave (copies to the device, launches,
    its arguments)."""
    found, real = [], getattr(owner, name)

    def watched(*args):
        before = device.uploads
        with device.counted() as launches:
            result = real(*args)
        found.append((device.uploads - before, launches, args))
        return result

    monkeypatch.setattr(owner, name, watched)
    return found


@pytest.mark.parametrize("name", [*FLASH, "sdpa"])
def test_rows_enter_and_leave_without_a_wait(device, draws, monkeypatch, name):
    """The host waits for what a step drew and for nothing else; an event is one copy."""
    if name == "sdpa":
        model = fake_model("tiny", layers=1, dtype=torch.float32)
    else:
        usable(name, monkeypatch)
        model = fake_model("qwen2.5-3b", layers=1)
    engine = RolloutEngine(model, slots=20, attention=name)
    requests = requests_of([Sampling(max_new_tokens=6)], count=16, longest=300)
    samples_of(engine, requests[:1])  # measures the device's rates, which waits
    device.waits.clear()
    run = azr.rollout.engine._Run
    entered, left = (watch(device, monkeypatch, run, what) for what in ("_enter", "_leave"))
    samples_of(engine, requests)
    assert set(device.waits) == {"an event: rows.py, add"}
    assert {copies for copies, _, _ in entered} == {1} and len(entered) > 2
    # Where the last rows leave, none has to move.
    assert {copies for copies, _, _ in left} == {0, 1}


def test_pages_of_all_layers_are_copied_at_once(device, draws, monkeypatch):
    found = []
    for layers in (1, 3):
        engine = RolloutEngine(fake_model("qwen2.5-3b", layers), slots=16, attention="torch-aten")
        with monkeypatch.context() as patch:
            copied = watch(device, patch, azr.rollout.pages, "copy_pages")
            entered = watch(device, patch, azr.rollout.engine._Run, "_enter")
            samples_of(engine, requests_of([DRAWN], count=8))
        assert 0 < len(copied) <= len(entered)
        for _, launches, (memory, source, target) in copied:
            assert memory.shape[0] == 2 * layers and source.is_contiguous()
            assert source.shape == target.shape
            found.append(launches)
    assert {launches.total() for launches in found} == {1}


def test_a_parcel_is_one_copy_unless_it_outgrows_its_buffer(device):
    cuda = torch.device("cuda")
    empty, numbers = np.zeros((0, 3), dtype=np.int64), np.arange(5)

    def copies(*arrays, **options):
        before, parcel = device.uploads, Parcel(cuda, **options)
        tensors = [parcel.put(values) for values in arrays]
        assert device.uploads == before
        parcel.send()
        parcel.send()
        assert all(t.device.type == "cuda" for t in tensors)
        assert [t.shape for t in tensors] == [values.shape for values in arrays]
        return device.uploads - before

    assert copies() == copies(empty, empty) == 0
    assert copies(numbers) == copies(numbers, empty, numbers) == 1
    assert copies(numbers, numbers, numbers, buffer_bytes=100) == 2
    assert copies(numbers, np.arange(50), numbers, buffer_bytes=100) == 3
    assert not device.waits


def device_objects(engine):
    state = engine._state
    layer = state.cache.layers[0][0]
    return [weakref.ref(x) for x in (state.cache, state.graphs, state.slots, layer)]


@pytest.fixture
def no_collection():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_nothing_of_a_rollout_outlives_its_release(device, draws, no_collection):
    engine = RolloutEngine(fake_model("qwen2.5-3b", layers=1), slots=8, attention="torch-aten")
    samples_of(engine, requests_of([DRAWN], count=6, longest=40))
    held, emptied = device_objects(engine), device.emptied
    engine.release()
    assert [ref() for ref in held] == [None] * len(held)
    assert device.emptied == emptied + 1, "the memory stays torch's"


def test_a_larger_plan_replaces_the_smaller_one(device, draws, no_collection, monkeypatch):
    engine = RolloutEngine(fake_model("qwen2.5-3b", layers=1), slots=8, attention="torch-aten")
    samples_of(engine, requests_of([DRAWN], count=6, longest=40))
    held, alive = device_objects(engine), []
    new_cache = azr.rollout.engine.new_cache

    def watched(*args):
        alive.extend(ref() for ref in held)
        return new_cache(*args)

    monkeypatch.setattr(azr.rollout.engine, "new_cache", watched)
    samples_of(engine, requests_of([DRAWN], count=2, longest=1500))
    assert alive == [None] * len(held), "two caches at once"


@pytest.mark.parametrize("how", ["closed", "by an error of the model"])
def test_an_abandoned_call_gives_its_memory_back_at_once(device, draws, no_collection, how):
    engine = RolloutEngine(fake_model("qwen2.5-3b", layers=1), slots=8, attention="torch-aten")
    samples = engine.generate(requests_of([DRAWN], count=20, longest=40))
    next(samples)
    held, emptied = device_objects(engine), device.emptied
    if how == "closed":
        samples.close()
    else:
        engine._state.cache.leave = None  # the next row that ends is an error
        with pytest.raises(TypeError):
            list(samples)
    assert engine._state is None and device.emptied == emptied + 1
    assert [ref() for ref in held] == [None] * len(held)


def test_two_groups_never_hold_two_caches(device, draws, no_collection, monkeypatch):
    """A dense cache serves requests that do not fit together one after another."""
    model = fake_model("tiny", layers=1, dtype=torch.float32)
    engine = RolloutEngine(model, slots=8, attention="sdpa", cache_bytes=3 << 20)
    made, alive = [], []
    new_cache = azr.rollout.engine.new_cache

    def watched(*args):
        alive.extend(ref() for ref in made)
        cache = new_cache(*args)
        made.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(azr.rollout.engine, "new_cache", watched)
    long = Request(token_ids=(3,) * 700, sampling=Sampling(max_new_tokens=2), key=1)
    wide = Request(token_ids=(4,) * 2, sampling=Sampling(max_new_tokens=700), key=2)
    monkeypatch.setattr(azr.rollout.engine, "in_groups", lambda *args: [[0], [1]])
    samples_of(engine, [long, wide])
    assert len(made) == 2 and alive == [None]
