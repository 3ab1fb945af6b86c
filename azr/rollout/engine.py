"""The rollout engine: continuous batching on the training module itself.

A request is prefilled once for all its samples, rows of different lengths are decoded together,
finished rows leave and waiting ones enter. Tokens are a function of the weights, the request and
its key, not of what else is in the batch.

The way of a sample: its Request is checked, a Plan says how many rows fit and a KVCache is made for
them; as Waiting it takes a place among the Slots, tensors on the device that steps read and write;
what a step drew is an Outcome on its way to the host, where the History of its row grows until it
is handed out as a Sample. A Mix says what kinds of rows a step has to serve.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from azr.model.attention import (
    Attend,
    check_azr_attention,
    choose,
    embedding_weight,
    head_weight,
    hidden_states,
)
from azr.model.transfer import Parcel
from azr.rollout.cache import FEWEST_ROWS, Geometry, KVCache
from azr.rollout.graphs import StepGraphs, bucket, is_capturable
from azr.rollout.memory import Plan, cache_limit, in_groups, new_cache
from azr.rollout.request import Progress, Request, RequestError, Sample, Waiting
from azr.rollout.roofline import Floor, Meter, measure_rates
from azr.rollout.rows import GOES_ON, STOPPED, History, Outcome, Slots
from azr.rollout.sampler import Mix
from azr.rollout.stops import StopStrings

PREFILL_TOKENS = 16384
"""Prompt tokens that are computed together; bounds the activations of a prefill."""

ENTER_TOGETHER = 8
"""Rows that have to leave before others enter, or a quarter of fewer than 32: to enter is a forward
of its own, be it for one row, launched kernel by kernel, which is taken for two captured steps
(docs/notes.md); of few rows, places left free would cost more than that."""


class RolloutEngine:
    """Generates completions with a model's current weights.

    slots          bounds the rows decoded together
    pad_id         fills up a prefill that is too short to round as a long one does
    decode         turns token ids into text; needed only for requests with stop strings
    attention      backend, or "auto" (azr.model.attention.backends)
    cache_bytes    bounds the KV cache; None takes what is free
    on_progress    is told how far a long call is, at most every `progress_s` seconds
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        slots: int,
        pad_id: int = 0,
        decode: Callable[[list[int]], str] | None = None,
        attention: str = "auto",
        cache_bytes: int | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        progress_s: float = 30.0,
    ):
        if slots < 1:
            raise ValueError(f"slots must be at least 1, got {slots}")
        check_azr_attention(model)
        self.model, self.slots, self.pad_id, self.decode = model, slots, pad_id, decode
        self.device = head_weight(model).device
        self.geometry = Geometry.of(model.config, head_weight(model).dtype)
        self.backend = choose(attention, self.device, self.geometry.dtype, self.geometry.head_size)
        self.cache_bytes = cache_bytes
        self.on_progress, self.progress_s = on_progress, progress_s
        self.generated_tokens = 0
        """Tokens sampled since the engine was made."""
        self.meter: Meter | None = None
        """Decode speed beside its floor, on CUDA."""
        self._state: _Run | None = None
        self._is_running = False

    def generate(self, requests: Iterable[Request]) -> Iterator[Sample]:
        """Yields samples in the order in which they finish.

        Closing the generator ends the call; the engine is ready for the next one. Raises
        RequestError for an empty prompt, a token that the model does not know, a request that
        cannot fit the model's context or the KV cache, or stop strings without a `decode` function,
        before any work is done; RuntimeError where a call is under way already; RunError where the
        model's logits turn out not to be finite.
        """
        requests = list(requests)
        context = self.model.config.get_text_config().max_position_embeddings
        vocabulary = embedding_weight(self.model).shape[0]
        for number, request in enumerate(requests):
            self._check(number, request, context, vocabulary)
        if not requests:
            return
        if self._is_running:
            raise RuntimeError("this engine is generating already; exhaust or close that first")
        held = self._state.plan if self._state else None
        limit = cache_limit(self.cache_bytes, self.device, held)
        groups = in_groups(requests, self.geometry, self.backend, self.slots, limit, held)
        was_training = self.model.training
        self._is_running, is_done = True, False
        self.model.eval()
        tally = _Tally(samples=sum(r.n for r in requests))
        try:
            for numbers in groups:
                run = self._prepare([requests[i] for i in numbers], limit)
                run.begin(requests, numbers, tally)
                yield from run.samples()
            is_done = True
        finally:
            if not is_done:
                self.release()  # rows of the abandoned call still hold their places
            self.model.train(was_training)
            self._is_running = False

    @contextmanager
    def reporting(
        self, on_progress: Callable[[Progress], None], every_s: float = 1.0
    ) -> Iterator[None]:
        """Within it `on_progress` is told at most every `every_s` seconds how far a call is."""
        before = self.on_progress, self.progress_s
        self.on_progress, self.progress_s = on_progress, every_s
        try:
            yield
        finally:
            self.on_progress, self.progress_s = before

    def release(self) -> None:
        """Gives the KV cache and captured graphs back; the next call takes them again.

        The trainer calls this before an update, which needs the memory for activations. torch
        gives what it had set aside back to the device, so that the update's blocks, which are of
        other sizes, find it whole.
        """
        if self._state is not None:
            self._state.close()
        self._state = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def decode_roofline_frac(self) -> float | None:
        """Returns the share of the device's best that decode steps have reached since the engine
        was made: see azr.rollout.roofline. None on the CPU, or where nothing was decoded."""
        return self.meter.step_fraction() if self.meter else None

    def rollout_roofline_frac(self) -> float | None:
        """Returns the same share of whole rollouts: prefill, admissions and whatever else stands
        between the steps counts as time, but not what the caller does with a sample. Neither counts
        the capture of graphs."""
        return self.meter.phase_fraction() if self.meter else None

    def _check(self, number: int, request: Request, context: int, vocabulary: int) -> None:
        if not request.token_ids:
            raise RequestError(f"request {number} has an empty prompt")
        if not 0 <= min(request.token_ids) <= max(request.token_ids) < vocabulary:
            raise RequestError(
                f"request {number}: token ids from {min(request.token_ids)} to "
                f"{max(request.token_ids)}; the model's vocabulary is 0 to {vocabulary - 1}"
            )
        if request.n < 1:
            raise RequestError(f"request {number} asks for n={request.n} samples")
        if request.most_tokens > context:
            raise RequestError(
                f"request {number}: {len(request.token_ids)} prompt tokens + "
                f"{request.sampling.max_new_tokens} new ones exceed the model's context of "
                f"{context}; shorten the prompt or --rollout.max-new-tokens"
            )
        if request.sampling.stop_strings and self.decode is None:
            raise RequestError(f"request {number} has stop strings, but the engine cannot decode")

    def _prepare(self, requests: list[Request], limit: int) -> "_Run":
        """Returns a run with room for them: the one at hand if it serves."""
        if self.meter is None and is_capturable(self.device, self.backend):
            # While the memory that the cache will take is free.
            rates = measure_rates(self.geometry.dtype)
            self.meter = Meter(Floor.of(self.model, self.geometry, rates))
        held = self._state.plan if self._state else None
        plan = Plan.of(requests, self.geometry, self.backend, self.slots, limit, held)
        assert plan is not None  # in_groups puts together what fits
        if self._state is None or plan is not held:
            self.release()
            slots = Slots(max(plan.slots, FEWEST_ROWS), plan.most_stops, self.device)
            self._state = _Run(self, plan, slots)
        return self._state


@dataclass(slots=True)
class _Tally:
    """How far a call is."""

    samples: int
    done: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    reported: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class _Prompts:
    """Prompts that are new, packed, once their parcel is sent."""

    ids_1N: Tensor
    positions_1N: Tensor
    last_U: Tensor
    """int64: where each prompt's last token stands."""
    attend: Attend

    @classmethod
    def of(cls, cache: KVCache, pad_id: int, parcel: Parcel) -> "_Prompts | None":
        """Returns the prompts that the cache lacks; None where it lacks none."""
        prompts = cache.unfilled()
        if not prompts:
            return None
        lengths = [len(p) for p in prompts]
        last = np.cumsum(lengths) - 1
        filling = max(0, FEWEST_ROWS - sum(lengths))
        ids = [i for p in prompts for i in p] + [pad_id] * filling
        lengths += [filling] * bool(filling)
        positions = np.concatenate([np.arange(length) for length in lengths])
        return cls(
            ids_1N=parcel.put(np.array([ids], dtype=np.int64)),
            positions_1N=parcel.put(positions[None]),
            last_U=parcel.put(last),
            attend=cache.prefill(lengths, parcel),
        )


class _Run:
    """Requests under way: the rows that wait, those that are decoded, and the results to come."""

    def __init__(self, engine: RolloutEngine, plan: Plan, slots: Slots):
        self.engine, self.plan, self.slots = engine, plan, slots
        hidden = engine.model.config.get_text_config().hidden_size
        self.cache = new_cache(plan, engine.backend, engine.geometry, slots, hidden, engine.device)
        # Rows whose last step is under way keep their number until it has arrived.
        self.history = History(2 * slots.slots, plan.own_tokens)
        self.numbers = np.zeros(slots.slots, dtype=np.int64)
        """Number in the history of the row in each slot."""
        is_captured = is_capturable(engine.device, engine.backend)
        self.graphs = StepGraphs(slots) if is_captured else None
        self.lag = 1 if self.graphs else 0
        """Steps that run on the device while the host deals with an earlier one."""

    def close(self) -> None:
        """Lets go of all that is on the device, whoever still refers to the run: the frames of an
        abandoned call do, as long as its exception is under way."""
        vars(self).clear()

    def begin(self, requests: list[Request], numbers: list[int], tally: _Tally) -> None:
        """Makes ready for the requests of these numbers; earlier rows have all left."""
        self.waiting = deque(
            Waiting(number, index, requests[number])
            for number in numbers
            for index in range(requests[number].n)
        )
        self.rows, self.tally = 0, tally
        self.enter_at = self.plan.slots
        """Rows that may still run when the next ones enter."""
        self.outcomes: deque[Outcome] = deque()
        samplings = [requests[number].sampling for number in numbers]
        self.mix = Mix.of(samplings)
        self.stops: StopStrings | None = None
        if self.engine.decode and any(s.stop_strings for s in samplings):
            self.stops = StopStrings(self.engine.decode)

    def samples(self) -> Iterator[Sample]:
        """Yields samples as they finish."""
        while self.waiting or self.rows or self.outcomes:
            begun, captured_s = time.perf_counter(), self.graphs.capture_s if self.graphs else 0.0
            # Left before samples are handed out: the caller may want gradients of its own.
            with torch.inference_mode():
                self._admit()
                finished = self._settle()
                if self.rows:
                    self._step()
                    finished += self._settle()
            if self.engine.meter and self.graphs:
                captured_s = self.graphs.capture_s - captured_s
                self.engine.meter.phase_s += time.perf_counter() - begun - captured_s
            yield from finished
            self._report()

    # Rows that enter

    def _admit(self) -> None:
        """Opens rows for the samples that wait, as many as there is room for, where enough rows
        have left since it was last tried."""
        if not self.waiting or self.rows > self.enter_at:
            return
        start, prompt_tokens, is_cut = self.rows, 0, False
        entering: list[Waiting] = []
        while self.waiting and self.rows < self.plan.slots:
            row = self.waiting[0]
            ids = row.request.token_ids
            fresh = len(ids) if self.cache.lacks(ids) else 0
            if fresh and prompt_tokens and prompt_tokens + fresh > PREFILL_TOKENS:
                is_cut = True
                break
            if not self.cache.take(self.rows, row):
                if self.rows or not self.cache.drop_idle():
                    break
                continue
            prompt_tokens += fresh
            entering.append(self.waiting.popleft())
            self.rows += 1
        # What a prefill had no room for goes on in the next round.
        leaving = min(ENTER_TOGETHER, max(1, self.rows // 4))
        self.enter_at = self.plan.slots if is_cut else self.rows - leaving
        if entering:
            self._enter(start, entering)

    def _enter(self, start: int, entering: list[Waiting]) -> None:
        """Computes the prompts that are new, and the first token of the rows from `start` on."""
        parcel = Parcel(self.engine.device)
        prompts = _Prompts.of(self.cache, self.engine.pad_id, parcel)
        entry = self.cache.enter(start, self.rows, parcel)
        self.slots.open(start, entering, parcel)
        self.numbers[start : self.rows] = self.history.open(entering)
        parcel.send()
        if prompts:
            hidden = hidden_states(
                self.engine.model, prompts.ids_1N, prompts.positions_1N, prompts.attend
            )
            self.cache.filled(entry, hidden[0].index_select(0, prompts.last_U))
        logits = self._logits(self.cache.begin(entry)).index_select(0, entry.origin_of_row_R)
        self.slots.record(start, self.rows, logits, self.mix)
        self._send(start)

    # Rows that are decoded

    def _step(self) -> None:
        """Enqueues one decode step of all rows."""
        if self.graphs is None:
            self._enqueue(max(self.rows, FEWEST_ROWS), self.mix)
        else:
            rows = bucket(self.rows, self.slots.slots)
            self.graphs.prepare(self._enqueue, rows, self.mix)
            meter = self.engine.meter
            begun = meter.start() if meter else None
            self.graphs.replay(rows, self.mix)
            if meter and begun:
                held = self.history.tokens_held(self.numbers[: self.rows])
                meter.stop(begun, self.rows, held)
        self._send(0)

    def _enqueue(self, rows: int, mix: Mix) -> None:
        slots, model = self.slots, self.engine.model
        attend = self.cache.step(min(self.rows, rows), rows)
        ids_1R, positions_1R = slots.last_ids(rows)[None], slots.lengths(rows)[None]
        hidden = hidden_states(model, ids_1R, positions_1R, attend)
        slots.record(0, rows, self._logits(hidden[0]), mix)

    def _logits(self, hidden_RD: Tensor) -> Tensor:
        weight_VD = head_weight(self.engine.model)
        if hidden_RD.is_cuda and weight_VD.dtype != torch.float32:
            # Logits of 20 in bfloat16 are 0.06 apart: too coarse for log-probs.
            return torch.mm(hidden_RD, weight_VD.T, out_dtype=torch.float32)
        return torch.nn.functional.linear(hidden_RD, weight_VD)

    def _send(self, start: int) -> None:
        numbers = self.numbers[start : self.rows].copy()
        self.outcomes.append(Outcome.of(self.slots, start, self.rows, numbers))

    # Rows that have ended

    def _settle(self) -> list[Sample]:
        """Takes in the steps whose draws are due; returns the samples that they finished."""
        finished = []
        while len(self.outcomes) > (self.lag if self.rows else 0):
            finished += self._take_in(self.outcomes.popleft())
        return finished

    def _take_in(self, outcome: Outcome) -> list[Sample]:
        """Returns the samples that a step finished; their rows leave."""
        numbers, codes = self.history.add(outcome)
        self.tally.tokens += len(numbers)
        self.engine.generated_tokens += len(numbers)
        if self.stops:
            codes = codes.copy()
            for at in np.flatnonzero(codes != STOPPED).tolist():
                if self._has_stop_string(int(numbers[at])):
                    codes[at] = STOPPED
        ended = np.flatnonzero(codes != GOES_ON)
        if not len(ended):
            return []
        self._leave(numbers[ended])
        self.tally.done += len(ended)
        return [self.history.close(int(numbers[at]), int(codes[at])) for at in ended.tolist()]

    def _has_stop_string(self, number: int) -> bool:
        stops = self.history.owner(number).request.sampling.stop_strings
        if not stops or not self.stops:
            return False
        tokens = self.history.tokens(number, self.stops.window(stops))
        return self.stops.may_end(tokens[-1], stops) and self.stops.found(tokens, stops)

    def _leave(self, numbers: np.ndarray) -> None:
        """Frees the rows' slots; rows from the end move into them."""
        left = np.isin(self.numbers[: self.rows], numbers)
        leaving = np.flatnonzero(left).tolist()
        self.cache.leave(leaving)
        rows = self.rows - len(leaving)
        target = [slot for slot in leaving if slot < rows]
        source = [slot for slot in range(rows, self.rows) if not left[slot]]
        moves = np.array([source, target], dtype=np.int64)
        parcel = Parcel(self.engine.device, moves.nbytes)
        moves_2M = parcel.put(moves)
        parcel.send()
        self.cache.move(source, target, rows, moves_2M)
        self.slots.move(moves_2M, rows)
        self.numbers[target] = self.numbers[source]
        self.rows = rows

    def _report(self) -> None:
        """Tells how far the call is, now and then."""
        engine, tally, now = self.engine, self.tally, time.monotonic()
        if engine.on_progress is None or now - tally.reported < engine.progress_s:
            return
        tally.reported = now
        engine.on_progress(
            Progress(
                done=tally.done,
                samples=tally.samples,
                tokens=tally.tokens,
                seconds=now - tally.started,
                roofline_frac=engine.decode_roofline_frac(),
            )
        )
