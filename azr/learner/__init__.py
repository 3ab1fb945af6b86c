"""The update: completions and advantages in, one or several optimiser steps out.

Samples are packed without padding, and what they share runs through the model once (see packing);
the loss still counts every sample.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from rlvr_kernels import linear_token_logprobs, policy_loss
from torch import Tensor
from transformers import PreTrainedModel

from azr.config import LossConfig, OptimConfig
from azr.errors import RunError
from azr.keys import generator
from azr.learner.optim import make_optimizer
from azr.learner.packing import Experience, Packed, pack
from azr.learner.recompute import recomputing
from azr.model.attention import (
    Backend,
    PackedAttend,
    choose,
    gathered,
    head_shape,
    head_weight,
    hidden_states,
)

MAX_BAD_UPDATES = 5
"""Updates in a row with a NaN or Inf: so many end the run, fewer are skipped."""


class TrainingDiverged(RunError):
    """Too many updates in a row had a loss or gradient that is not finite."""

    batch: Sequence[Experience] = ()
    """What the last of them was to train on."""


def scheduled_rate(optim: OptimConfig, step: int) -> float:
    """Returns the rate of step 1, 2, ...: a linear ramp, a plateau, a linear decay.

    After the schedule's last step the rate stays where it is.
    """
    end = optim.schedule_steps
    start = optim.decay_start_frac * end
    ramp = min(1.0, step / optim.warmup_steps) if optim.warmup_steps else 1.0
    past = (min(step, end) - start) / (end - start) if min(step, end) > start else 0.0
    return optim.lr * ramp * (1 - (1 - optim.final_lr_frac) * past)


class Learner:
    """Owns the optimiser and the schedule of a model."""

    def __init__(
        self,
        model: PreTrainedModel,
        reference: PreTrainedModel | None,
        *,
        loss: LossConfig,
        optim: OptimConfig,
        temperature: float,
        seed: int,
        attention: str = "auto",
    ):
        """`reference` is the frozen start model of the KL term; None where there is none.

        `attention` names the backend, as in the rollout engine.
        """
        self.model, self.reference = model, reference
        self.loss_config, self.config = loss, optim
        self.seed = seed
        weight, (_, head_size) = head_weight(model), head_shape(model.config)
        backend = choose(attention, weight.device, weight.dtype, head_size)
        self._groups = partial(micro_batches, budget=optim.micro_batch_tokens, backend=backend)
        self._logprobs = partial(response_logprobs, backend=backend, temperature=temperature)
        self.optimizer = make_optimizer(model, optim, seed)
        self.skipped_updates = 0
        self.bad_in_a_row = 0

    def state_tensors(self) -> dict[str, Tensor]:
        """Returns copies on the CPU of the optimiser's state, by parameter name."""
        return self.optimizer.state_tensors()

    def load_state(self, tensors: Mapping[str, Tensor], skipped: int, bad_in_a_row: int) -> None:
        """Takes back `state_tensors` and the two counters."""
        self.optimizer.load_tensors(tensors)
        self.skipped_updates, self.bad_in_a_row = skipped, bad_in_a_row

    def update(self, batch: Sequence[Experience], step: int) -> dict[str, float]:
        """Trains on the batch; returns metrics named as in docs/metrics.md.

        With one update the ratio is taken against the policy's own detached log-probs, which is
        exactly 1 and saves a forward pass. With several, the log-probs before the first are
        computed once. An update whose loss or gradient is not finite changes nothing.
        """
        if not batch:
            return {}
        rate = scheduled_rate(self.config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        updates = self.config.epochs * self.config.minibatches
        old = self._old_logprobs(batch) if updates > 1 else None
        done = []
        for epoch in range(self.config.epochs):
            order = np.arange(len(batch))
            if self.config.minibatches > 1:
                order = generator(self.seed, step, "minibatch", epoch).permutation(len(batch))
            for part in np.array_split(order, self.config.minibatches):
                if len(part):
                    with recomputing(self.model) if self.config.recompute else nullcontext():
                        done.append(self._one_update(batch, part.tolist(), old))
        return _combined(done) | {
            "policy/lr": rate,
            "policy/skipped_updates": float(self.skipped_updates),
        }

    def _one_update(
        self, batch: Sequence[Experience], part: list[int], old: Mapping[int, Tensor] | None
    ) -> "_Update":
        config = self.loss_config
        tokens = sum(len(batch[i].response_ids) for i in part)
        denom = tokens if config.reduction == "token" else len(part)
        self.optimizer.zero_grad(set_to_none=True)
        metrics: list[dict[str, Tensor]] = []
        for micro in self._groups(batch, part):
            packed = pack([batch[i] for i in micro], head_weight(self.model).device)
            logprobs, entropy = self._logprobs(self.model, packed, return_entropy=True)
            if old is None:
                old_logprobs = logprobs.detach()
            else:
                old_logprobs = _stack([old[i] for i in micro], packed.mask.shape[1])
            reference = None
            if self.reference is not None:
                with torch.no_grad():
                    reference, _ = self._logprobs(self.reference, packed)
            loss, values = policy_loss(
                logprobs,
                old_logprobs,
                packed.advantages[:, None],
                packed.mask,
                clip_low=config.clip_low,
                clip_high=config.clip_high,
                dual_clip=config.dual_clip or None,
                ref_logprobs=reference,
                kl=None if config.kl == "none" else config.kl,
                kl_coef=config.kl_coef,
                rollout_logprobs=packed.rollout_logprobs,
                tis_cap=config.tis_cap or None,
                reduction=config.reduction,
                denom=float(denom),
                entropy=entropy,
                entropy_coef=config.entropy_coef,
            )
            loss.backward()
            metrics.append(values)
        calls, norm = _read(metrics, self.optimizer.clip(self.config.grad_clip))
        loss = sum(values["loss"] for values in calls)
        if np.isfinite(loss) and np.isfinite(norm):
            self.optimizer.step()
            self.bad_in_a_row = 0
        else:
            self.skipped_updates += 1
            self.bad_in_a_row += 1
            if self.bad_in_a_row >= MAX_BAD_UPDATES:
                error = TrainingDiverged(
                    f"{self.bad_in_a_row} updates in a row had a loss of {loss} and a gradient "
                    f"norm of {norm}; the weights are those before them. Lower --optim.lr "
                    f"{self.config.lr}"
                )
                error.batch = [batch[i] for i in part]
                raise error
        self.optimizer.zero_grad(set_to_none=True)
        return calls, loss, norm

    @torch.no_grad()
    def _old_logprobs(self, batch: Sequence[Experience]) -> dict[int, Tensor]:
        old = {}
        for micro in self._groups(batch, range(len(batch))):
            packed = pack([batch[i] for i in micro], head_weight(self.model).device)
            logprobs, _ = self._logprobs(self.model, packed)
            for row, i in enumerate(micro):
                old[i] = logprobs[row, : len(batch[i].response_ids)]
        return old


def micro_batches(
    batch: Sequence[Experience], part: Iterable[int], budget: int, backend: Backend
) -> list[list[int]]:
    """Returns the samples of a part in groups, each within `budget` tokens.

    A sample that is longer has a group of its own. FlashAttention takes rows as they are, so that
    tokens count which really run, and what samples share counts once. For a backend that pads,
    samples of similar length come together and count as if all were padded.
    """
    groups = _padded_groups if backend.cache == "rows" else _packed_groups
    return groups(batch, part, budget)


AGAIN = 0.2
"""What a token counts that attention alone sees again. There four tensors of the hidden size are
kept for it; of a token that runs, eight more and four of the feed-forward size, which is at least
twice the hidden (see azr.memory)."""


def _packed_groups(
    batch: Sequence[Experience], part: Iterable[int], budget: int
) -> list[list[int]]:
    """Counts the tokens of the tree that `pack` makes of a group, and those seen again."""
    sequences = {i: batch[i].prompt_ids + batch[i].response_ids[:-1] for i in part}
    groups: list[list[int]] = []
    before: tuple[int, ...] = ()
    tokens = full = 0
    # In order, a sequence shares with those before it exactly what it shares with the last one.
    for i in sorted(sequences, key=sequences.__getitem__):
        own = sequences[i]
        shared = _shared(before, own)
        tokens += len(own) - shared
        # One that is the beginning of the next is no row of its own.
        full += len(own) - (shared if shared == len(before) else 0)
        if groups and tokens + AGAIN * (full - tokens) <= budget:
            groups[-1].append(i)
        else:
            groups.append([i])
            tokens = full = len(own)
        before = own
    return groups


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Returns with how many equal tokens both begin."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _padded_groups(
    batch: Sequence[Experience], part: Iterable[int], budget: int
) -> list[list[int]]:
    lengths = {i: len(batch[i].prompt_ids) + len(batch[i].response_ids) for i in part}
    # Samples of one prompt lie next to each other, so that they meet in one group.
    order = sorted(
        lengths,
        key=lambda i: (
            len(batch[i].prompt_ids), batch[i].prompt_ids, lengths[i], batch[i].response_ids
        ),
    )  # fmt: skip
    groups: list[list[int]] = []
    longest = 0
    for i in order:
        longest = max(longest, lengths[i])
        if groups and longest * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(i)
        else:
            groups.append([i])
            longest = lengths[i]
    return groups


def response_logprobs(
    model: PreTrainedModel,
    packed: Packed,
    backend: Backend,
    *,
    temperature: float = 1.0,
    return_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Returns log-probs and, if asked for, entropies [n, L] of the response tokens of n samples."""
    attend = PackedAttend(backend, packed.rows)
    hidden_1ND = hidden_states(model, packed.ids, packed.positions, attend)
    result = linear_token_logprobs(
        gathered(hidden_1ND[0], packed.token_of_pair),
        head_weight(model),
        packed.target_of_pair,
        temperature=temperature,
        return_entropy=return_entropy,
    )
    entropy = result.entropy
    return (
        result.logprobs[packed.pair_of_sample],
        None if entropy is None else entropy[packed.pair_of_sample],
    )


def _read(metrics: list[dict[str, Tensor]], norm: Tensor) -> tuple[list[dict[str, float]], float]:
    """Returns the metrics of all micro-batches and the gradient's norm as numbers.

    They go to the host together: the one time in an update that it waits for the device.
    """
    scalars = [*(value for values in metrics for value in values.values()), norm]
    *numbers, norm_number = torch.stack(scalars).cpu().tolist()
    left = iter(numbers)
    return [dict(zip(values, left, strict=False)) for values in metrics], norm_number


def _stack(rows: list[Tensor], width: int) -> Tensor:
    return torch.stack([torch.nn.functional.pad(r, (0, width - len(r))) for r in rows])


# Names in the log of the loss's own metrics, and how calls combine: token mean, max or min.
_NAMES = {
    "pg_loss": ("policy/pg_loss", "mean"),
    "entropy": ("policy/entropy", "mean"),
    "kl": ("policy/kl", "mean"),
    "ratio_mean": ("policy/ratio_mean", "mean"),
    "ratio_max": ("policy/ratio_max", "max"),
    "clip_frac": ("policy/clip_ratio", "mean"),
    "clip_frac_low": ("policy/clip_ratio_low", "mean"),
    "clip_frac_high": ("policy/clip_ratio_high", "mean"),
    "dual_clip_frac": ("policy/dual_clip_ratio", "mean"),
    "mismatch_kl": ("mismatch/kl", "mean"),
    "tis_max": ("mismatch/ratio_max", "max"),
    "tis_capped_frac": ("mismatch/capped_frac", "mean"),
}


_Update = tuple[list[dict[str, float]], float, float]
"""What an update was: the metrics of its micro-batches, its loss, its gradient's norm."""


def _combined(updates: list[_Update]) -> dict[str, float]:
    """Returns the metrics of all updates, those of micro-batches weighted by their tokens."""
    calls = [call for metrics, _, _ in updates for call in metrics]
    weights = np.array([call["tokens"] for call in calls])
    result = {
        "policy/loss": float(np.mean([loss for _, loss, _ in updates])),
        "policy/grad_norm": float(np.mean([norm for _, _, norm in updates])),
        "policy/updates": float(len(updates)),
        "policy/tokens": float(weights.sum()),
    }
    for key, (name, how) in _NAMES.items():
        if all(key in call for call in calls):
            values = np.array([call[key] for call in calls])
            combined = values.max() if how == "max" else np.average(values, weights=weights)
            result[name] = float(combined)
    return result
