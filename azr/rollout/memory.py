"""How large the KV cache of a call is: what the call can use, bounded by what is free."""

import dataclasses
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from azr.memory import available_bytes
from azr.model.attention import Backend
from azr.plan import readable
from azr.rollout.cache import FEWEST_ROWS, Geometry, KVCache
from azr.rollout.dense import DenseCache
from azr.rollout.pages import PageCache, pages_for
from azr.rollout.request import Request, RequestError
from azr.rollout.slots import Slots

USABLE_FRAC = 0.85
"""Share of the free memory that the cache may take; logits and activations need the rest."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes of a cache and of the slots beside it."""

    _SIZES: ClassVar = (
        "slots", "prompts", "prompt_tokens", "own_tokens", "row_tokens", "most_stops",
    )  # fmt: skip

    slots: int
    prompts: int
    prompt_tokens: int
    own_tokens: int
    row_tokens: int
    most_stops: int
    pages: int = 0
    """Scratch page included; 0 where the cache has dense rows."""
    bytes: int = 0

    @classmethod
    def of(
        cls,
        requests: Sequence[Request],
        geometry: Geometry,
        backend: Backend,
        slots: int,
        limit: int,
        held: "Plan | None" = None,
    ) -> "Plan | None":
        """Returns the plan of a call that may take `limit` bytes: `held`, that of the cache at
        hand, where it serves; None where the requests do not fit together."""
        needed = cls._needed(requests, min(slots, sum(r.n for r in requests)))
        if held is not None and held._serves(needed):
            return held
        plan = needed._fitted(geometry, backend, limit)
        if plan is None or held is None:
            return plan
        # A cache for calls like the last one too, unless that would cost slots.
        sizes = {s: max(getattr(held, s), getattr(needed, s)) for s in cls._SIZES}
        united = dataclasses.replace(needed, **sizes)._fitted(geometry, backend, limit)
        if united is not None and united.slots >= plan.slots:
            plan = united
        return held if plan == held else plan

    @classmethod
    def _needed(cls, requests: Sequence[Request], slots: int) -> "Plan":
        return cls(
            slots=slots,
            prompts=min(slots + 1, len({r.token_ids for r in requests})),
            prompt_tokens=max(len(r.token_ids) for r in requests),
            own_tokens=max(r.sampling.max_new_tokens for r in requests),
            row_tokens=max(r.most_tokens for r in requests),
            most_stops=max(1, *(len(r.sampling.stop_token_ids) for r in requests)),
        )

    def _serves(self, needed: "Plan") -> bool:
        """Whether the cache of this plan is large enough."""
        return all(getattr(self, size) >= getattr(needed, size) for size in self._SIZES)

    def _fitted(self, geometry: Geometry, backend: Backend, limit: int) -> "Plan | None":
        """Returns the plan within `limit` bytes, with fewer slots if need be."""
        return (self._dense if backend.cache == "rows" else self._paged)(geometry, limit)

    def _dense(self, geometry: Geometry, limit: int) -> "Plan | None":
        slots = self.slots
        while True:
            prompts = min(slots + 1, self.prompts)
            size = DenseCache.bytes(
                geometry, max(slots, FEWEST_ROWS), prompts, self.prompt_tokens, self.own_tokens
            )
            if size <= limit:
                return dataclasses.replace(self, slots=slots, prompts=prompts, bytes=size)
            if slots == 1:
                return None
            slots = max(1, slots * 7 // 8)

    def _paged(self, geometry: Geometry, limit: int) -> "Plan | None":
        row = pages_for(self.row_tokens)
        # A page more for each prompt: its half-filled last one may outlive its first row.
        pages = min(self.slots * row + self.prompts, limit // PageCache.page_bytes(geometry) - 1)
        if pages < row:
            return None
        size = (pages + 1) * PageCache.page_bytes(geometry)
        return dataclasses.replace(self, slots=min(self.slots, pages), pages=pages + 1, bytes=size)


def in_groups(
    requests: Sequence[Request],
    geometry: Geometry,
    backend: Backend,
    slots: int,
    limit: int,
    held: Plan | None,
) -> list[list[int]]:
    """Returns the numbers of the requests in groups that fit each: most often one group.

    A dense cache is as wide as the longest prompt and the longest completion of all its rows, so
    requests that fit one by one need not fit together. Raises RequestError for one that does not
    fit even alone.
    """
    rest, groups = list(range(len(requests))), []

    def fails(count: int) -> bool:
        some = [requests[i] for i in rest[:count]]
        return Plan.of(some, geometry, backend, slots, limit, held) is None

    if not fails(len(rest)):
        return [rest]
    rest.sort(key=lambda i: -requests[i].sampling.max_new_tokens)
    while rest:
        count = bisect(range(1, len(rest) + 1), False, key=fails)
        if not count:
            raise _too_large(rest[0], requests[rest[0]], geometry, backend, limit)
        groups.append(sorted(rest[:count]))
        rest = rest[count:]
    return groups


def _too_large(
    number: int, request: Request, geometry: Geometry, backend: Backend, limit: int
) -> RequestError:
    prompt, new = len(request.token_ids), request.sampling.max_new_tokens
    if backend.cache == "rows":
        least = DenseCache.bytes(geometry, FEWEST_ROWS, 1, prompt, new)
    else:
        least = (pages_for(request.most_tokens) + 1) * PageCache.page_bytes(geometry)
    return RequestError(
        f"request {number}: {prompt} prompt tokens + {new} new ones need {readable(least)} of KV "
        f"cache, and it may take {readable(limit)}; lower --rollout.max-new-tokens or raise "
        "--rollout.cache-gib"
    )


def cache_limit(cache_bytes: int | None, device: torch.device, held: Plan | None) -> int:
    """Returns the bytes that a cache may take: `cache_bytes`, or a share of what is free."""
    if cache_bytes is not None:
        return cache_bytes
    free, kept = available_bytes(device.type), held.bytes if held else 0
    if free is not None and device.type == "cuda":
        # torch keeps what was freed: an allocation of ours can have that too.
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(kept, int(USABLE_FRAC * (free + kept))) if free else 2**62


def new_cache(
    plan: Plan,
    backend: Backend,
    geometry: Geometry,
    slots: Slots,
    hidden: int,
    device: torch.device,
) -> KVCache:
    """Returns the cache of a plan, in the layout that the backend reads."""
    if backend.cache == "rows":
        return DenseCache(
            backend,
            geometry,
            slots=slots.slots,
            prompts=plan.prompts,
            prompt_tokens=plan.prompt_tokens,
            own_tokens=plan.own_tokens,
            hidden=hidden,
            device=device,
        )
    return PageCache(
        backend,
        geometry,
        slots,
        pages=plan.pages,
        row_tokens=plan.row_tokens,
        hidden=hidden,
        device=device,
    )
