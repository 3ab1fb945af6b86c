"""How large the KV cache of a call is: what the call can use, bounded by what is free."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from azr.memory import available_bytes, readable
from azr.model.attention import Backend
from azr.rollout.cache import Geometry, KVCache
from azr.rollout.dense import DenseCache
from azr.rollout.pages import PageCache, pages_for
from azr.rollout.request import Request, RequestError
from azr.rollout.slots import Slots

USABLE_FRAC = 0.85
"""Share of the free memory that the cache may take; logits and activations need the rest."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes of a cache and of the slots beside it."""

    slots: int
    prompts: int
    prompt_tokens: int
    own_tokens: int
    row_tokens: int
    most_stops: int
    pages: int
    """Scratch page included; 0 where the cache has dense rows."""
    bytes: int

    @classmethod
    def of(
        cls,
        requests: Sequence[Request],
        geometry: Geometry,
        backend: Backend,
        slots: int,
        cache_bytes: int | None,
        device: torch.device,
        held: "Plan | None" = None,
    ) -> "Plan":
        """Returns the plan of a call: `held`, that of the cache at hand, where it serves.

        Raises RequestError for a request that does not fit into the memory even alone.
        """
        needed = cls._needed(requests, min(slots, sum(r.n for r in requests)))
        if held is not None:
            if held._serves(needed):
                return held
            sizes = ("slots", "prompts", "prompt_tokens", "own_tokens", "row_tokens", "most_stops")
            needed = dataclasses.replace(
                needed, **{s: max(getattr(held, s), getattr(needed, s)) for s in sizes}
            )
        limit = cache_bytes
        if limit is None:
            free = _free_bytes(device)
            limit = int(USABLE_FRAC * (free + (held.bytes if held else 0))) if free else 2**62
        fit = needed._dense if backend.cache == "rows" else needed._paged
        plan = fit(geometry, limit)
        if plan is None:
            plan = cls._needed(requests, 1)
            plan = (plan._dense if backend.cache == "rows" else plan._paged)(geometry, limit)
        if plan is None:
            number, longest = max(enumerate(requests), key=lambda r: r[1].most_tokens)
            raise RequestError(
                f"request {number}: {len(longest.token_ids)} prompt tokens + "
                f"{longest.sampling.max_new_tokens} new ones need "
                f"{readable(longest.most_tokens * geometry.token_bytes)} of KV cache, and it may "
                f"take {readable(limit)}; lower --rollout.max-new-tokens or raise "
                "--rollout.cache-gib"
            )
        return plan

    @classmethod
    def _needed(cls, requests: Sequence[Request], slots: int) -> "Plan":
        return cls(
            slots=slots,
            prompts=min(slots + 1, len({r.token_ids for r in requests})),
            prompt_tokens=max(len(r.token_ids) for r in requests),
            own_tokens=max(r.sampling.max_new_tokens for r in requests),
            row_tokens=max(r.most_tokens for r in requests),
            most_stops=max(1, *(len(r.sampling.stop_token_ids) for r in requests)),
            pages=0,
            bytes=0,
        )

    def _serves(self, needed: "Plan") -> bool:
        """Whether the cache of this plan is large enough, or as large as memory allowed."""
        sizes = ("prompts", "prompt_tokens", "own_tokens", "row_tokens", "most_stops", "slots")
        return all(getattr(self, size) >= getattr(needed, size) for size in sizes)

    def _dense(self, geometry: Geometry, limit: int) -> "Plan | None":
        slots = self.slots
        while True:
            prompts = min(slots + 1, self.prompts)
            size = DenseCache.bytes(
                geometry, max(slots, 8), prompts, self.prompt_tokens, self.own_tokens
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
        slots = min(self.slots, pages)
        return dataclasses.replace(
            self,
            slots=slots,
            pages=pages + 1,
            bytes=(pages + 1) * PageCache.page_bytes(geometry),
        )


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


def _free_bytes(device: torch.device) -> int | None:
    """Returns what can be allocated now, None where that cannot be told."""
    free = available_bytes(device.type)
    if device.type == "cuda":
        # torch keeps what was freed: an allocation of ours can have that too.
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free
