"""Early signs that a run goes wrong, each a single warning that names the cause and the option.

`docs/metrics.md` lists them. They look at the metrics alone and never stop a run.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from statistics import median

Metrics = Mapping[str, float]

WINDOW = 20
"""Steps over which a rate must be bad before it is called bad."""


class Diagnosis:
    """Watches the metrics of the steps in turn."""

    def __init__(self, types: tuple[str, ...]):
        self.types = types
        self._recent: deque[Metrics] = deque(maxlen=WINDOW)
        self._first: list[Metrics] = []
        self.evaluations: list[tuple[float, float]] = []
        """(training accuracy, held-out accuracy) of every evaluation so far."""
        self._given: set[str] = set()

    def observe(self, metrics: Metrics) -> list[str]:
        """Returns the warnings that this step is the first to call for."""
        self._recent.append(metrics)
        if len(self._first) < 3 * WINDOW:
            self._first.append(metrics)
        self._note_evaluation(metrics)
        found = []
        for check in _CHECKS:
            name = check.__name__
            if name not in self._given and (message := next(check(self), None)):
                self._given.add(name)
                found.append(message)
        return found

    def mean(self, pattern: str) -> float:
        """Returns the mean of a metric over the window and all types ("{type}" in the name).

        NaN until the window is full, and where nothing was measured.
        """
        if len(self._recent) < WINDOW:
            return math.nan
        values = [
            value
            for metrics in self._recent
            for name in {pattern.replace("{type}", t) for t in self.types}
            if (value := metrics.get(name)) is not None and not math.isnan(value)
        ]
        return _mean(values)

    def first(self, name: str) -> list[float]:
        """Returns a metric over the second and the third WINDOW steps."""
        return [m[name] for m in self._first[WINDOW:] if name in m]

    def latest(self, name: str) -> list[float]:
        """Returns a metric over the window, empty until that of `first` is full as well."""
        if len(self._recent) < WINDOW or len(self._first) < 3 * WINDOW:
            return []
        return [m[name] for m in self._recent if name in m]

    def _note_evaluation(self, metrics: Metrics) -> None:
        values: dict[bool, list[float]] = {True: [], False: []}
        for name, value in metrics.items():
            if name.startswith("eval/") and name.endswith("/greedy_accuracy"):
                values[name.startswith("eval/train/")].append(value)
        train, held_out = _mean(values[True]), _mean(values[False])
        if not math.isnan(train + held_out):
            self.evaluations.append((train, held_out))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


# Each yields what to warn of, if anything; the first of it is said.


def truncation(d: Diagnosis) -> Iterator[str]:
    share = d.mean("completions/clipped_ratio")
    if share > 0.5:
        yield (
            f"{share:.0%} of the completions hit the length limit and count as malformed: raise "
            "--rollout.max-new-tokens"
        )


def nothing_well_formed(d: Diagnosis) -> Iterator[str]:
    if d.mean("solve/{type}/format_rate") == 0:
        yield (
            f"no answer has been well formed in {WINDOW} steps: the model has lost the format; "
            "lower --optim.lr, or raise --loss.kl-coef (with --loss.kl k2)"
        )


def nothing_valid(d: Diagnosis) -> Iterator[str]:
    if d.mean("propose/{type}/valid_rate") == 0:
        yield (
            f"no proposal has been valid in {WINDOW} steps: only seeds are solved; see the reasons "
            "in propose/*/rejected, and --selfplay.seed-source"
        )


def flat_cell(d: Diagnosis) -> Iterator[str]:
    for role in ("propose", "solve"):
        for task_type in d.types:
            std = [m.get(f"reward/{role}/{task_type}/std", math.nan) for m in d._recent]
            means = [m.get(f"reward/{role}/{task_type}/mean", math.nan) for m in d._recent]
            if len(std) == WINDOW and max(std) < 1e-6 and max(means) < 0:
                yield (
                    f"all rewards of {role}/{task_type} have been {means[-1]:.2f} for {WINDOW} "
                    "steps, so it learns nothing: make it easier (primes: --task.prime.max-p), or "
                    "raise --selfplay.solver-samples-per-task"
                )


def ratio_far_from_one(d: Diagnosis) -> Iterator[str]:
    ratio = d.mean("policy/ratio_mean")
    if abs(ratio - 1) > 0.2:
        yield (
            f"the policy ratio is {ratio:.2f} on average: the updates of one step move too far; "
            "lower --optim.lr or --optim.epochs"
        )


def mismatch(d: Diagnosis) -> Iterator[str]:
    kl = d.mean("mismatch/kl")
    if kl > 0.05:
        yield (
            f"rollouts and training differ by {kl:.3f} nats a token: use --run.dtype float32, no "
            "truncated sampling, and keep --loss.tis-cap on"
        )


def entropy_collapse(d: Diagnosis) -> Iterator[str]:
    entropy, accuracy = d.mean("policy/entropy"), d.mean("solve/{type}/accuracy")
    first = d._first[0].get("policy/entropy", math.nan)
    if entropy < 0.02 * first and accuracy < 0.7:
        yield (
            f"the policy is sure of itself (entropy {entropy:.3f}, {first:.2f} at the start) at "
            f"{accuracy:.0%} accuracy, and no longer explores: raise --loss.kl-coef (with "
            "--loss.kl k2) or --loss.entropy-coef, or lower --optim.lr"
        )


def proposer_collapse(d: Diagnosis) -> Iterator[str]:
    unique, valid = d.mean("propose/{type}/unique_rate"), d.mean("propose/{type}/valid_rate")
    if unique < 0.15 and valid > 0.5:
        yield (
            f"only {unique:.0%} of the valid proposals of a step are distinct: the proposer "
            "collapses; raise --loss.kl-coef or --task.references"
        )


def overfitting(d: Diagnosis) -> Iterator[str]:
    if len(d.evaluations) < 5:
        return
    best_train, best_held_out = max(d.evaluations[:-1], key=lambda pair: pair[1])
    last = d.evaluations[-3:]
    if all(h < best_held_out - 0.2 and t > best_train for t, h in last):
        yield (
            f"held-out accuracy fell from {best_held_out:.2f} to {last[-1][1]:.2f} while training "
            "accuracy rises: lower --steps or --optim.lr"
        )


def slower_steps(d: Diagnosis) -> Iterator[str]:
    # CPU time where the model is on the CPU: wall time doubles when others use the machine. Per
    # token as well as in all: neither longer completions alone are a warning, nor shorter ones,
    # which share what a step takes without them.
    def typical(rows: list[Metrics], is_per_token: bool) -> float:
        values = [
            m.get("time/step_cpu_s", m["time/step_s"] - m["time/eval_s"])
            / (max(1.0, m["completions/samples"] * m["completions/mean_length"]) ** is_per_token)
            for m in rows
            if "time/step_s" in m and "completions/samples" in m
        ]
        return median(values) if values else math.nan

    if not d.latest("time/step_s"):
        return
    first, last = d._first[WINDOW:], list(d._recent)
    before, now = typical(first, True), typical(last, True)
    if now > 2 * before and typical(last, False) > 2 * typical(first, False):
        yield (
            f"a step takes {now / before:.1f} times as long per token as at the start: see time/* "
            "for the phase, and whether other programs share the machine"
        )


def growing_memory(d: Diagnosis) -> Iterator[str]:
    before, now = d.first("perf/host_rss_gib"), d.latest("perf/host_rss_gib")
    if before and now and min(now) > 1.5 * max(before) and min(now) > max(before) + 0.5:
        yield (
            f"host memory grew from {max(before):.1f} to {now[-1]:.1f} GiB: lower "
            "--selfplay.buffer-size, and stop and --resume to be safe"
        )


def growing_handles(d: Diagnosis) -> Iterator[str]:
    for name, what in (("perf/open_files", "open files"), ("perf/children", "child processes")):
        before, now = d.first(name), d.latest(name)
        if before and now and min(now) > max(before) + 50:
            yield (
                f"{what} grew from {max(before):.0f} to {now[-1]:.0f}: something leaks; stop and "
                "--resume to be safe, and report it"
            )


_CHECKS: tuple[Callable[[Diagnosis], Iterator[str]], ...] = (
    truncation, nothing_well_formed, nothing_valid, flat_cell, ratio_far_from_one, mismatch,
    entropy_collapse, proposer_collapse, overfitting, slower_steps, growing_memory, growing_handles,
)  # fmt: skip
"""Each yields its warnings, of which the first that it ever has is given."""
