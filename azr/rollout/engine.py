"""The rollout engine: continuous batching on the training module itself.

A request is prefilled once for all its samples, rows of different lengths are decoded together,
finished rows leave and waiting ones enter. Tokens are a function of the weights, the request and
its key, not of what else is in the batch.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from azr.keys import make_key
from azr.model.attention import arange_positions, head_weight, hidden_states
from azr.rollout.cache import PrefillCache, RowCache
from azr.rollout.rows import Rows
from azr.rollout.sampler import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt and how many completions of it are wanted."""

    token_ids: tuple[int, ...]
    sampling: Sampling
    key: int
    """Unsigned 64-bit key of the sampling noise; sample i draws from (key, i)."""
    n: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One completion."""

    request: int
    """Index of its request in the call."""
    index: int
    """Which of the request's n samples."""
    token_ids: tuple[int, ...]
    """Sampled tokens, a final stop token included."""
    logprobs: np.ndarray
    """float32 [len(token_ids)], under the sampling temperature, before any truncation."""
    finish_reason: Literal["stop", "length"]


CLEAN_UP_SHARE = 8
"""Rows that are done leave when they are at least one in so many."""


class RolloutEngine:
    """Generates completions with a model's current weights.

    `slots` bounds the rows decoded together. `decode` turns token ids into text and is needed only
    for requests with stop strings. `pad_id` fills prompts of unequal length in a prefill.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        slots: int,
        pad_id: int = 0,
        decode: Callable[[list[int]], str] | None = None,
    ):
        if slots < 1:
            raise ValueError(f"slots must be at least 1, got {slots}")
        self.model, self.slots, self.pad_id, self.decode = model, slots, pad_id, decode
        self.device = head_weight(model).device
        self.dtype = head_weight(model).dtype
        self.generated_tokens = 0
        """Tokens sampled since the engine was made."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Sample]:
        """Yields samples in the order in which they finish.

        Raises ValueError for an empty prompt, a request that cannot fit the model's context, or
        stop strings without a `decode` function.
        """
        waiting: deque[tuple[int, int, Request]] = deque()
        capacity = 1
        context = self.model.config.get_text_config().max_position_embeddings
        for number, request in enumerate(requests):
            self._check(number, request, context)
            capacity = max(capacity, len(request.token_ids) + request.sampling.max_new_tokens)
            waiting.extend((number, index, request) for index in range(request.n))
        if not waiting:
            return
        was_training = self.model.training
        self.model.eval()
        try:
            yield from self._run(waiting, capacity)
        finally:
            self.model.train(was_training)

    def _check(self, number: int, request: Request, context: int) -> None:
        if not request.token_ids:
            raise ValueError(f"request {number} has an empty prompt")
        if request.n < 1:
            raise ValueError(f"request {number} asks for n={request.n} samples")
        longest = len(request.token_ids) + request.sampling.max_new_tokens
        if longest > context:
            raise ValueError(
                f"request {number}: {len(request.token_ids)} prompt tokens + "
                f"{request.sampling.max_new_tokens} new ones exceed the model's context of "
                f"{context}; shorten the prompt or --rollout.max-new-tokens"
            )
        if request.sampling.stop_strings and self.decode is None:
            raise ValueError(f"request {number} has stop strings, but the engine cannot decode")

    def _run(self, waiting: deque, capacity: int) -> Iterator[Sample]:
        slots = min(self.slots, len(waiting))
        cache = RowCache(self.model.config, slots, capacity, self.device, self.dtype)
        rows: Rows | None = None
        while waiting or rows is not None:
            # Left before samples are handed out: the caller may want gradients of its own.
            with torch.inference_mode():
                samples: list[Sample] = []
                if waiting and (rows is None or len(rows) < slots):
                    count = min(slots - (0 if rows is None else len(rows)), len(waiting))
                    fresh = self._admit(cache, [waiting.popleft() for _ in range(count)])
                    rows = fresh if rows is None else rows.extended(fresh)
                else:
                    positions = cache.start_step()[:, None]
                    hidden = hidden_states(self.model, rows.last_ids()[:, None], positions, cache)
                    rows.draw(self._logits(hidden[:, 0]))
                ended = rows.ended()
                self._check_stop_strings(rows, ended)
                if bool(ended.any()):
                    samples = self._hand_out(rows, ended)
                    rows.done |= ended
                    rows = self._clean_up(cache, rows)
            yield from samples

    def _admit(self, cache: RowCache, admitted: list[tuple[int, int, Request]]) -> Rows:
        """Prefills each distinct prompt once, opens a row per sample, draws its first token."""
        prompts: dict[tuple[int, ...], int] = {}
        source = [prompts.setdefault(r.token_ids, len(prompts)) for _, _, r in admitted]
        lengths = torch.tensor([len(p) for p in prompts], device=self.device)
        width = max(len(p) for p in prompts)
        ids = torch.tensor(
            [list(p) + [self.pad_id] * (width - len(p)) for p in prompts], device=self.device
        )
        prefill = PrefillCache()
        hidden = hidden_states(self.model, ids, arange_positions(ids), prefill)
        last = hidden[torch.arange(len(prompts), device=self.device), lengths - 1]
        source_rows = torch.tensor(source, device=self.device)
        cache.admit(prefill, source_rows, lengths)
        owners = [(number, index, request.sampling) for number, index, request in admitted]
        keys = [make_key(request.key, index) for _, index, request in admitted]
        rows = Rows.open(owners, keys, self.device)
        rows.draw(self._logits(last)[source_rows])
        return rows

    def _logits(self, hidden_RD: Tensor) -> Tensor:
        return torch.nn.functional.linear(hidden_RD, head_weight(self.model)).float()

    def _check_stop_strings(self, rows: Rows, ended: Tensor) -> None:
        """Ends the rows whose text now holds one of their stop strings."""
        for r, (_, _, sampling) in enumerate(rows.owners):
            if sampling.stop_strings and not rows.done[r]:
                text = self.decode(rows.tokens[r, : rows.counts[r]].tolist())
                if any(stop in text for stop in sampling.stop_strings):
                    rows.stopped[r] = ended[r] = True

    def _hand_out(self, rows: Rows, ended: Tensor) -> list[Sample]:
        numbers = ended.nonzero().squeeze(1)
        counts = rows.counts[numbers].tolist()
        tokens = rows.tokens[numbers].tolist()
        logprobs = rows.logprobs[numbers].cpu().numpy()
        stopped = rows.stopped[numbers].tolist()
        self.generated_tokens += sum(counts)
        return [
            Sample(
                request=rows.owners[r][0],
                index=rows.owners[r][1],
                token_ids=tuple(tokens[i][: counts[i]]),
                logprobs=logprobs[i, : counts[i]].copy(),
                finish_reason="stop" if stopped[i] else "length",
            )
            for i, r in enumerate(numbers.tolist())
        ]

    def _clean_up(self, cache: RowCache, rows: Rows) -> Rows | None:
        """Drops the rows that are done, once they are many: it copies the rest of the cache."""
        done = int(rows.done.sum())
        if done == len(rows):
            cache.clear()
            return None
        if done * CLEAN_UP_SHARE < len(rows):
            return rows
        kept = (~rows.done).nonzero().squeeze(1)
        cache.keep(kept)
        return rows.keep(kept)
