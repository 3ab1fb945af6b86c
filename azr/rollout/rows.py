"""The rows that are being decoded: what was drawn for each, and which have ended."""

from dataclasses import dataclass

import torch
from torch import Tensor

from azr.rollout.sampler import RowSampling, Sampling, sample


@dataclass(slots=True)
class Rows:
    """Device state of R rows; row numbers are those of the KV cache."""

    owners: list[tuple[int, int, Sampling]]
    """Request number, sample index and parameters of each row."""
    params: RowSampling
    limits: Tensor
    """[R] tokens that a row may have."""
    stop_ids: Tensor
    """[R, S] token ids that end a row, filled up with -1."""
    tokens: Tensor
    """[R, W] token ids drawn so far."""
    logprobs: Tensor
    """[R, W] fp32 log-probs of those."""
    counts: Tensor
    """[R] tokens drawn so far."""
    stopped: Tensor
    """[R] bool: the last token is a stop token."""
    done: Tensor
    """[R] bool: handed out already; decoded on until the next clean-up, to no effect."""

    @classmethod
    def open(
        cls, owners: list[tuple[int, int, Sampling]], keys: list[int], device: torch.device
    ) -> "Rows":
        """Returns empty rows; `keys` are unsigned 64-bit numbers, one a row."""
        sampling = [s for _, _, s in owners]
        count, width = len(owners), max(s.max_new_tokens for s in sampling)
        most = max(1, *(len(s.stop_token_ids) for s in sampling))
        stop_ids = [[*s.stop_token_ids, *[-1] * (most - len(s.stop_token_ids))] for s in sampling]
        no = torch.zeros(count, dtype=torch.bool, device=device)
        return cls(
            owners=owners,
            params=RowSampling.of(sampling, keys, device),
            limits=torch.tensor([s.max_new_tokens for s in sampling], device=device),
            stop_ids=torch.tensor(stop_ids, device=device),
            tokens=torch.zeros((count, width), dtype=torch.int64, device=device),
            logprobs=torch.zeros((count, width), device=device),
            counts=torch.zeros(count, dtype=torch.int64, device=device),
            stopped=no,
            done=no.clone(),
        )

    def __len__(self) -> int:
        return len(self.owners)

    def draw(self, logits_RV: Tensor) -> None:
        """Draws the next token of every row."""
        ids, logprobs = sample(logits_RV, self.counts, self.params)
        # A row that is done may run past its width; what it draws is never read.
        column = self.counts.clamp(max=self.tokens.shape[1] - 1)[:, None]
        self.tokens.scatter_(1, column, ids[:, None])
        self.logprobs.scatter_(1, column, logprobs[:, None])
        self.counts += 1
        self.stopped = (ids[:, None] == self.stop_ids).any(dim=1)

    def last_ids(self) -> Tensor:
        """Returns the last token [R] of each row."""
        column = (self.counts - 1).clamp(max=self.tokens.shape[1] - 1)[:, None]
        return self.tokens.gather(1, column).squeeze(1)

    def ended(self) -> Tensor:
        """Returns which rows [R] have ended and were not handed out."""
        return (self.stopped | (self.counts >= self.limits)) & ~self.done

    def keep(self, rows: Tensor) -> "Rows":
        """Returns the given rows alone."""
        tensors = (
            getattr(self, name)[rows]
            for name in ("limits", "stop_ids", "tokens", "logprobs", "counts", "stopped", "done")
        )
        owners = [self.owners[r] for r in rows.tolist()]
        return Rows(owners, self.params.rows(rows), *tensors)

    def extended(self, more: "Rows") -> "Rows":
        """Returns these rows and then `more`."""

        def joined(a: Tensor, b: Tensor, fill: int) -> Tensor:
            width = max(a.shape[1], b.shape[1])
            padded = [
                torch.nn.functional.pad(t, (0, width - t.shape[1]), value=fill) for t in (a, b)
            ]
            return torch.cat(padded)

        return Rows(
            owners=self.owners + more.owners,
            params=self.params.extended(more.params),
            limits=torch.cat([self.limits, more.limits]),
            stop_ids=joined(self.stop_ids, more.stop_ids, -1),
            tokens=joined(self.tokens, more.tokens, 0),
            logprobs=joined(self.logprobs, more.logprobs, 0),
            counts=torch.cat([self.counts, more.counts]),
            stopped=torch.cat([self.stopped, more.stopped]),
            done=torch.cat([self.done, more.done]),
        )
