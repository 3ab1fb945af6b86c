"""How near decoding comes to what the device can do at best.

The floor of a decode step of R rows holding T tokens in all is

    max(weight bytes / B, 2 R P / F) + T * bytes of a token's keys and values / B

with P the parameters that are multiplied with, B the bandwidth and F the rate of matrix products,
both measured on the device itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from azr.model.attention import embedding_weight, head_weight
from azr.rollout.cache import Geometry


@dataclass(frozen=True, slots=True)
class Rates:
    """What the device does at best."""

    bytes_per_s: float
    flop_per_s: float


def measure_rates(dtype: torch.dtype) -> Rates:
    """Returns the rates of the current CUDA device: a copy of 1 GiB and a product of 8192^3."""
    return Rates(_copy_rate(), _product_rate(dtype))


def _copy_rate() -> float:
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * 2**30 / _best_seconds(lambda: target.copy_(source))


def _product_rate(dtype: torch.dtype) -> float:
    a = torch.randn((8192, 8192), device="cuda").to(dtype)
    out = torch.empty_like(a)
    return 2 * 8192**3 / _best_seconds(lambda: torch.mm(a, a, out=out))


def _best_seconds(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(5):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return min(times)


@dataclass(frozen=True, slots=True)
class Floor:
    """The shortest time that a decode step of a model can take."""

    weight_bytes: int
    parameters: int
    token_bytes: int
    rates: Rates

    @classmethod
    def of(cls, model: PreTrainedModel, geometry: Geometry, rates: Rates) -> "Floor":
        """Returns the floor of a model; an embedding that is not the head too is only looked up."""
        embedding = embedding_weight(model)
        head = head_weight(model)
        used = [p for p in model.parameters() if p is not embedding or p is head]
        return cls(
            weight_bytes=sum(p.numel() * p.element_size() for p in used),
            parameters=sum(p.numel() for p in used),
            token_bytes=geometry.token_bytes,
            rates=rates,
        )

    def seconds(self, rows: int, tokens: int) -> float:
        """Returns the floor of a step of `rows` rows that hold `tokens` tokens in all."""
        r = self.rates
        weights = self.weight_bytes / r.bytes_per_s
        products = 2 * rows * self.parameters / r.flop_per_s
        return max(weights, products) + tokens * self.token_bytes / r.bytes_per_s


class Meter:
    """Adds up decode steps: their floor beside the time on the device, and beside the wall time of
    the rollouts that they are the steps of."""

    def __init__(self, floor: Floor):
        self.floor = floor
        self.floor_s = 0.0
        self.step_s = 0.0
        """Of the steps alone, on the device."""
        self.phase_s = 0.0
        """Of the rollouts, on the host: what stands between the steps is in it."""
        self._open: list[tuple[torch.cuda.Event, torch.cuda.Event, int, int]] = []

    def start(self) -> torch.cuda.Event:
        """Returns the mark of a step's beginning."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def stop(self, start: torch.cuda.Event, rows: int, tokens: int) -> None:
        """Notes a step of `rows` rows that held `tokens` tokens in all."""
        self._open.append((start, self.start(), rows, tokens))

    def step_fraction(self) -> float | None:
        """Returns floor over device time of the steps: 1 is the roofline; None before the first."""
        return self._settled() / self.step_s if self.step_s or self._open else None

    def phase_fraction(self) -> float | None:
        """Returns floor over wall time of the rollouts; None before the first step."""
        return self._settled() / self.phase_s if self.phase_s else None

    def _settled(self) -> float:
        """Adds up the steps so far, waiting for the last one; returns their floor in seconds."""
        for start, stop, rows, tokens in self._open:
            stop.synchronize()
            self.step_s += start.elapsed_time(stop) / 1e3
            self.floor_s += self.floor.seconds(rows, tokens)
        self._open = []
        return self.floor_s
