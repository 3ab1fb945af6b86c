"""The KV cache of the FlashAttention backends: memory of all layers, handed out in pages.

A row reserves every page it can ever need when it enters, so a row that runs is never short of
memory: what does not fit waits. With a page table the rows of a prompt share its full pages and
own copies of its last, half-filled one; without (extents) a row's pages follow one another and
hold a copy of the whole prompt.

Shapes: S tokens of the memory (pages times PAGE_TOKENS), R rows of at most P pages, G key-value
heads, K head size. Page 0 is where slots without a row write.
"""

from dataclasses import dataclass

import numpy as np
import torch
from rlvr_kernels import copy_pages
from torch import Tensor

from azr.model.attention import Backend, PackedAttend, PackedRows, Store
from azr.model.attention.flash import PAGE_TOKENS, DecodeRows
from azr.model.transfer import Parcel
from azr.rollout.cache import Entry, Geometry, KVCache, Prompt, layers_of, memory_of
from azr.rollout.request import Waiting
from azr.rollout.rows import Slots


def pages_for(tokens: int) -> int:
    """Returns the pages that so many tokens need."""
    return -(-tokens // PAGE_TOKENS)


class Pages:
    """Which pages are free, and how many hold each of the others."""

    def __init__(self, pages: int):
        self._holders = np.zeros(pages, dtype=np.int64)
        self._holders[0] = 1  # the scratch page

    def take(self, count: int, *, adjacent: bool) -> list[int] | None:
        """Returns pages, each held once; None where there are not enough."""
        free = np.flatnonzero(self._holders == 0)
        if adjacent and count > 1 and len(free) >= count:
            # free[i] and free[i + count - 1] are count - 1 apart only where nothing lies between.
            starts = np.flatnonzero(free[count - 1 :] - free[: len(free) - count + 1] == count - 1)
            free = free[starts[0] :] if len(starts) else free[:0]
        if len(free) < count:
            return None
        taken = free[:count].tolist()
        self.hold(taken)
        return taken

    def hold(self, pages: list[int]) -> None:
        """Adds a holder."""
        self._holders[pages] += 1

    def let_go(self, pages: list[int]) -> None:
        """Takes a holder away; a page without any is free."""
        self._holders[pages] -= 1

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return int((self._holders == 0).sum())


class PageCache(KVCache):
    """A `KVCache` of pages; its methods are explained there."""

    def __init__(
        self,
        backend: Backend,
        geometry: Geometry,
        slots: Slots,
        *,
        pages: int,
        row_tokens: int,
        hidden: int,
        device: torch.device,
    ):
        """`pages` counts the scratch page too; `row_tokens` is the longest row."""
        rows = slots.slots
        super().__init__(backend, geometry, rows + 1, hidden, device)
        self.slots = slots
        self.row_pages = pages_for(row_tokens)
        shape = (pages * PAGE_TOKENS, geometry.kv_heads, geometry.head_size)
        self.memory = memory_of(geometry, shape, device)
        self.layers = layers_of(self.memory)
        self.pages = Pages(pages)
        self.is_shared = backend.cache == "pages"
        self._hidden_places = list(range(rows, -1, -1))
        self.table = torch.zeros((rows, self.row_pages), dtype=torch.int32, device=device)
        self.query_starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self.key_starts = torch.zeros(rows + 1, dtype=torch.int32, device=device)
        self._pages_of_row: dict[int, list[int]] = {}
        self._pages_of_prompt: dict[tuple[int, ...], list[int]] = {}
        self._copies: list[tuple[int, int]] = []
        """Pages of prompts that rows which share a prompt copy once it is computed."""

    @staticmethod
    def page_bytes(geometry: Geometry) -> int:
        """Returns what a page takes in all layers."""
        return geometry.token_bytes * PAGE_TOKENS

    def take(self, slot: int, row: Waiting) -> bool:
        """Reserves a row's pages; False where there are too few for now."""
        ids = row.request.token_ids
        needed, held = pages_for(row.request.most_tokens), pages_for(len(ids))
        full = len(ids) // PAGE_TOKENS
        prompt = self._by_ids.get(ids)
        shared = self._pages_of_prompt[ids][:full] if prompt and self.is_shared else []
        own = self.pages.take(needed - len(shared), adjacent=not self.is_shared)
        if own is None:
            return False
        self.pages.hold(shared)
        pages = shared + own
        if prompt is None:
            # The first row's own pages are the prompt's; the prompt holds them too.
            place = self._hidden_places.pop()
            prompt = self._by_ids[ids] = Prompt(token_ids=ids, claims=0, place=place)
            self._pages_of_prompt[ids] = pages[:held]
            self.pages.hold(pages[:held])
        else:
            origin = self._pages_of_prompt[ids]
            self._copies += zip(origin[len(shared) :], pages[len(shared) : held], strict=True)
        prompt.add_claims(row)
        self._pages_of_row[slot] = pages
        self._prompt_of_row[slot] = prompt
        return True

    def prefill(self, lengths: list[int], parcel: Parcel) -> "_Prefill":
        places = []
        for ids in self.unfilled():
            pages = np.array(self._pages_of_prompt[ids])[:, None]
            places.append((pages * PAGE_TOKENS + np.arange(PAGE_TOKENS)).reshape(-1)[: len(ids)])
        # Tokens that only fill up the batch go to the scratch page.
        places += [np.zeros(length, dtype=np.int64) for length in lengths[len(places) :]]
        where = parcel.put(np.concatenate(places))
        attend = PackedAttend(self.backend, PackedRows.of(lengths, parcel))
        return _Prefill(attend, self.layers, where)

    def enter(self, start: int, stop: int, parcel: Parcel) -> Entry:
        """Fills the page table, too."""
        table = np.zeros((stop - start, self.row_pages), dtype=np.int32)
        for at, row in enumerate(table, start):
            pages = self._pages_of_row[at]
            row[: len(pages)] = pages
        parcel.fill(self.table[start:stop], table)
        parcel.fill(self.key_starts[start:stop], table[:, 0] * PAGE_TOKENS)
        entry = super().enter(start, stop, parcel)
        if self._copies:
            copies = np.array(self._copies, dtype=np.int64).T
            entry = entry._replace(copies_2C=parcel.put(copies))
            self._copies = []
        return entry

    def begin(self, entry: Entry) -> Tensor:
        """Gives each row its copy of a prompt's pages that are not shared, too."""
        if entry.copies_2C is not None:
            paged = self.memory.view(len(self.memory), -1, PAGE_TOKENS * self.memory[0, 0].numel())
            copy_pages(paged, *entry.copies_2C)
        return super().begin(entry)

    def step(self, rows: int, padded: int) -> "_Decode":
        """Returns who attends in a decode step: only tensors that stay where they are, so that the
        step can be captured once and replayed."""
        return _Decode(self, padded)

    def leave(self, slots: list[int]) -> None:
        super().leave(slots)
        for slot in slots:
            self.pages.let_go(self._pages_of_row.pop(slot))

    def _forget(self, prompt: Prompt) -> None:
        del self._by_ids[prompt.token_ids]
        self.pages.let_go(self._pages_of_prompt.pop(prompt.token_ids))
        self._hidden_places.append(prompt.place)

    def move(self, source: list[int], target: list[int], rows: int, moves_2M: Tensor) -> None:
        """Moves the rows' table entries, not their pages."""
        super().move(source, target, rows, moves_2M)
        for s, t in zip(source, target, strict=True):
            self._pages_of_row[t] = self._pages_of_row.pop(s)
        if source:
            source_M, target_M = moves_2M
            for entries in (self.table, self.key_starts):
                entries.index_copy_(0, target_M, entries.index_select(0, source_M))
        self.table[rows:] = 0
        self.key_starts[rows:] = 0

    def drop_idle(self) -> bool:
        """Drops prompts that wait for their further samples, which will compute them anew.

        Only ever needed where rows must be contiguous and such a prompt stands in between.
        """
        used = {id(p) for p in self._prompt_of_row.values()}
        idle = [p for p in self._by_ids.values() if id(p) not in used]
        for prompt in idle:
            self._forget(prompt)
        return bool(idle)


@dataclass(frozen=True, slots=True)
class _Prefill:
    """Attends within each prompt, whose keys and values are stored."""

    attend: PackedAttend
    layers: list[tuple[Tensor, Tensor]]
    where: Tensor

    def store(self, layer: int) -> Store:
        return Store(*self.layers[layer], self.where)

    def __call__(
        self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, scale: float
    ) -> Tensor:
        return self.attend(layer, q_THK, k_TGK, v_TGK, scale)


class _Decode:
    """Attends to each row, whose new token is stored. Asks the device nothing."""

    def __init__(self, cache: PageCache, rows: int):
        self.cache = cache
        lengths = cache.slots.lengths(rows)
        page = cache.table[:rows].gather(1, (lengths // PAGE_TOKENS)[:, None]).squeeze(1)
        self.where = page.long() * PAGE_TOKENS + lengths % PAGE_TOKENS
        self.rows = DecodeRows(
            lengths=(lengths + 1).int(),
            table=cache.table[:rows],
            query_starts=cache.query_starts[: rows + 1],
            key_starts=cache.key_starts[: rows + 1],
            capacity=cache.row_pages * PAGE_TOKENS,
        )

    def store(self, layer: int) -> Store:
        return Store(*self.cache.layers[layer], self.where)

    def __call__(
        self, layer: int, q_RHK: Tensor, k_RGK: Tensor, v_RGK: Tensor, scale: float
    ) -> Tensor:
        return self.cache.backend.decode(q_RHK, *self.cache.layers[layer], self.rows, scale)
