"""Interleaved timing of one callable beside its peers. Pure standard library but for CUDA.

Machines drift: clocks rise and fall, neighbours come and go. So all callables take turns inside
one process, in a new order every round, and the figure of merit is the median over rounds of
`peer time / our time` of the same round: above 1, ours is faster.
"""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any, Literal, Protocol

from bench.peers import Absent

OURS = "ours"
MIN_ROUNDS = 5
DEFAULT_ROUNDS = {"cpu": 30, "cuda": 60}
DEFAULT_WARMUP = {"cpu": 3, "cuda": 10}

Call = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How `compare` measures; `compare.with_options(...)` changes any of these.

    rounds: timed rounds. Left out: 30 on cpu and 60 on cuda, fewer (at least 5) if `budget_s`
        would be exceeded; given: exactly so many.
    warmup: rounds dropped before them (3 on cpu, 10 on cuda).
    round_s: a callable is repeated inside a round until its turn takes at least this long.
    budget_s: wanted limit on the time of all rounds together.
    device: "cpu" (processor time) or "cuda" (CUDA events).
    clock: on the CPU, "process" (time of all threads added up), "thread" (calling thread only), or
        a function that returns seconds (of other processes, or elapsed).
    items, unit: work of one call, for the throughput column, or a mapping from row name
        ("ours", "peer") to it. unit "B" gives GB/s, "FLOP" gives TFLOP/s.
    before: called before every timed call, outside the clock (`bench.measure.l2_flush()`, or a
        reset of a buffer that the call consumes). Each call is then timed alone.
    memory: on cuda, one untimed call of each first measures `peak_extra_bytes`.
    facts: any further JSON values to keep with the result.
    """

    rounds: int | None = None
    warmup: int | None = None
    round_s: float = 0.01
    budget_s: float = 15.0
    device: Literal["cpu", "cuda"] = "cpu"
    clock: Literal["process", "thread"] | Callable[[], float] = "process"
    items: float | Mapping[str, float] | None = None
    unit: str = "item"
    before: Call | None = None
    memory: bool = False
    facts: Mapping[str, object] = field(default_factory=dict)

    def items_of(self, row: str) -> float | None:
        """The work of one call of this row, None where it was not told."""
        return self.items.get(row) if isinstance(self.items, Mapping) else self.items


@dataclass(slots=True, kw_only=True)
class Row:
    """One callable of a comparison. Times are seconds per call; ratios are row / ours."""

    name: str
    status: Literal["ok", "absent", "failed", "not timed"]
    reason: str | None = None
    median_s: float | None = None
    q1_s: float | None = None
    q3_s: float | None = None
    ratio: float | None = None
    ratio_q1: float | None = None
    ratio_q3: float | None = None
    loops: int | None = None
    items_per_s: float | None = None
    must: float | None = None
    reach: float | None = None
    facts: dict[str, object] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the ratio reaches the bar, None where there is no bar or no ratio."""
        return None if self.must is None or self.ratio is None else self.ratio >= self.must


@dataclass(slots=True, kw_only=True)
class Result:
    """What `compare` returns: the rows, "ours" first, and how they were measured."""

    bench: str
    name: str
    device: str
    rounds: int
    unit: str
    rows: dict[str, Row]
    facts: dict[str, object]

    @property
    def ours(self) -> Row:
        return self.rows[OURS]

    def __getitem__(self, row: str) -> Row:
        return self.rows[row]

    def ratio(self, peer: str) -> float | None:
        """Median over rounds of peer time / our time; None where the peer did not run."""
        return self.rows[peer].ratio

    def bar(self, peer: str, must: float, reach: float | None = None) -> bool | None:
        """Records the ratio that is asked for, and returns whether it is met (None: no ratio)."""
        self.rows[peer].must, self.rows[peer].reach = must, reach
        return self.rows[peer].met

    def note(self, row: str | None = None, /, **facts: object) -> None:
        """Adds JSON facts to one row, or to the whole result."""
        (self.facts if row is None else self.rows[row].facts).update(facts)


class Clock(Protocol):
    def time(self, call: Call, loops: int, before: Call | None) -> float:
        """Mean seconds of one call over `loops` calls."""
        ...


class CpuClock:
    """Processor time, which a busy neighbour on the same machine disturbs least."""

    def __init__(
        self, which: Literal["process", "thread"] | Callable[[], float] = "process"
    ) -> None:
        named = {"process": time.process_time, "thread": time.thread_time}
        self.now = which if callable(which) else named[which]

    def time(self, call: Call, loops: int, before: Call | None) -> float:
        now = self.now
        if before is None:
            start = now()
            for _ in repeat(None, loops):
                call()
            return (now() - start) / loops
        total = 0.0
        for _ in repeat(None, loops):
            before()
            start = now()
            call()
            total += now() - start
        return total / loops


class CudaClock:
    """CUDA events on the current stream; the host waits only after the last call of a turn."""

    def __init__(self, cuda=None) -> None:
        if cuda is None:
            from torch import cuda
        self.cuda = cuda

    def _event_pair(self):
        return self.cuda.Event(enable_timing=True), self.cuda.Event(enable_timing=True)

    def time(self, call: Call, loops: int, before: Call | None) -> float:
        pairs = []
        if before is None:
            pairs.append(self._event_pair())
            pairs[0][0].record()
            for _ in repeat(None, loops):
                call()
            pairs[0][1].record()
        else:
            for _ in repeat(None, loops):
                start, end = self._event_pair()
                before()  # keeps the device busy while the host queues what follows
                start.record()
                call()
                end.record()
                pairs.append((start, end))
        self.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in pairs) / 1e3 / loops

    def peak_extra_bytes(self, call: Call) -> int:
        """Most memory that one call held beyond what was allocated before it."""
        self.cuda.synchronize()
        self.cuda.reset_peak_memory_stats()
        before = self.cuda.memory_allocated()
        call()
        self.cuda.synchronize()
        return self.cuda.max_memory_allocated() - before


def l2_flush(size_bytes: int = 512 << 20) -> Call:
    """Returns a callable for `before=` that evicts the GPU's L2 cache by writing a large buffer.

    The write takes longer than the host needs to queue the timed call behind it, so the events
    time the device and not the launch.
    """
    import torch

    buffer = torch.empty(size_bytes, dtype=torch.uint8, device="cuda")
    return buffer.zero_


def turn_order(names: list[str], round_index: int) -> list[str]:
    """The order of one round: a shuffle that depends on the round only.

    A rotation would keep the same predecessor for every row, and so give each row the same
    neighbour's cache and clock state all along.
    """
    shuffled = list(names)
    random.Random(round_index).shuffle(shuffled)
    return shuffled


def calibrate(clock: Clock, call: Call, options: Options) -> tuple[int, float]:
    """How often to repeat a call in one turn, and about how long one call takes in seconds.

    The first call is thrown away: it compiles, allocates and fills caches.
    """
    clock.time(call, 1, options.before)
    loops, per_call = 1, clock.time(call, 1, options.before)
    while per_call * loops < options.round_s and loops < 1 << 24:
        wanted = math.ceil(1.1 * options.round_s / per_call) if per_call > 0 else loops * 10
        loops = min(max(wanted, loops + 1), loops * 10)
        per_call = clock.time(call, loops, options.before)
    return loops, per_call


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return q1, median, q3


def summarise(
    times_s: dict[str, list[float]], loops: dict[str, int], options: Options
) -> dict[str, Row]:
    """Rows from the per-round times: medians, and medians of the per-round ratios to ours."""
    rows = {}
    for name, mine in times_s.items():
        q1, median, q3 = quartiles(mine)
        ratios = [peer / ours for peer, ours in zip(mine, times_s[OURS], strict=True)]
        ratio_q1, ratio, ratio_q3 = quartiles(ratios)
        items = options.items_of(name)
        rows[name] = Row(
            name=name,
            status="ok",
            median_s=median,
            q1_s=q1,
            q3_s=q3,
            ratio=ratio,
            ratio_q1=ratio_q1,
            ratio_q3=ratio_q3,
            loops=loops[name],
            items_per_s=None if items is None else items / median,
        )
    return rows


def _failure(name: str, error: Exception) -> Row:
    text = str(error).strip().splitlines() or [""]
    return Row(name=name, status="failed", reason=f"{type(error).__name__}: {text[0]}"[:300])


def measure(
    bench: str,
    name: str,
    ours: Call,
    peers: Mapping[str, Call | Absent],
    options: Options,
    clock: Clock | None = None,
) -> Result:
    """Times `ours` and every peer in interleaved rounds.

    An error of ours propagates. A peer that raises becomes a row "failed" with its message: one
    peer's trouble on this machine must not cost the other rows.
    """
    if OURS in peers:
        raise ValueError(f"{name}: a peer cannot be called {OURS!r}")
    if clock is None:
        clock = CudaClock() if options.device == "cuda" else CpuClock(options.clock)
    dropped: dict[str, Row] = {}
    calls: dict[str, Call] = {OURS: ours}
    for peer, call in peers.items():
        if isinstance(call, Absent):
            dropped[peer] = Row(name=peer, status="absent", reason=call.reason)
        else:
            calls[peer] = call

    loops: dict[str, int] = {}
    turn_s: dict[str, float] = {}
    facts: dict[str, dict[str, object]] = {peer: {} for peer in calls}
    for peer in list(calls):
        try:
            loops[peer], per_call = calibrate(clock, calls[peer], options)
            turn_s[peer] = loops[peer] * per_call
            if options.memory and isinstance(clock, CudaClock):
                facts[peer]["peak_extra_bytes"] = clock.peak_extra_bytes(calls[peer])
        except Exception as error:
            if peer == OURS:
                raise
            dropped[peer] = _failure(peer, error)
            del calls[peer]

    warmup = DEFAULT_WARMUP[options.device] if options.warmup is None else options.warmup
    rounds = options.rounds
    if rounds is None:
        affordable = int(options.budget_s / max(sum(turn_s.values()), 1e-9))
        rounds = max(MIN_ROUNDS, min(DEFAULT_ROUNDS[options.device], affordable))
        warmup = min(warmup, rounds)

    times_s = _interleave(clock, calls, loops, dropped, warmup, rounds, options)
    rows = summarise(times_s, loops, options) | dropped
    for peer, row in rows.items():
        row.facts.update(facts.get(peer, {}))
    return Result(
        bench=bench,
        name=name,
        device=options.device,
        rounds=rounds,
        unit=options.unit,
        rows={row: rows[row] for row in (OURS, *peers)},
        facts=dict(options.facts),
    )


def _interleave(
    clock: Clock,
    calls: dict[str, Call],
    loops: dict[str, int],
    dropped: dict[str, Row],
    warmup: int,
    rounds: int,
    options: Options,
) -> dict[str, list[float]]:
    """Per-call seconds of every callable in every timed round; a failing peer moves to dropped."""
    times_s: dict[str, list[float]] = {name: [] for name in calls}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection would be charged to whoever happens to run
    gc.freeze()  # what stands already need not be looked through after every round
    try:
        for round_index in range(warmup + rounds):
            for name in turn_order(list(times_s), round_index):
                try:
                    seconds = clock.time(calls[name], loops[name], options.before)
                except Exception as error:
                    if name == OURS:
                        raise
                    dropped[name] = _failure(name, error)
                    del times_s[name]
                    continue
                if round_index >= warmup:
                    times_s[name].append(seconds)
            gc.collect()
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
    return times_s


def smoke(
    bench: str, name: str, ours: Call, peers: Mapping[str, Call | Absent], options: Options
) -> Result:
    """Calls ours and every peer once without a clock (`--benchmark-disable`)."""
    rows = {OURS: Row(name=OURS, status="not timed")}
    ours()
    for peer, call in peers.items():
        if isinstance(call, Absent):
            rows[peer] = Row(name=peer, status="absent", reason=call.reason)
            continue
        try:
            call()
            rows[peer] = Row(name=peer, status="not timed")
        except Exception as error:
            rows[peer] = _failure(peer, error)
    return Result(
        bench=bench,
        name=name,
        device=options.device,
        rounds=0,
        unit=options.unit,
        rows=rows,
        facts=dict(options.facts),
    )


def changed(options: Options, **changes: Any) -> Options:
    """`options` with some fields replaced; an unknown field is an error that lists the known."""
    known = Options.__dataclass_fields__
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise TypeError(f"compare has no option {', '.join(unknown)}; it has {', '.join(known)}")
    if changes.get("device", "cpu") not in ("cpu", "cuda"):
        raise ValueError(f"device is {changes['device']!r}, not 'cpu' or 'cuda'")
    return replace(options, **changes)
