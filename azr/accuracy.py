"""Accuracy: the record of a score, and the statistics of an evaluation.

Every interval covers 95% and treats the tasks as drawn from a population of such tasks. None needs
a random number.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Z = 1.959963984540054
"""97.5% quantile of the normal distribution: two-sided 95%."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its 95% interval."""

    value: float
    low: float
    high: float


def with_interval(interval: Interval | None, signed: bool = False) -> str:
    """Returns "0.975 [0.914, 0.993]", for a difference "+0.29 [+0.12, +0.47]", for None "-"."""
    if interval is None:
        return "-"
    form = "+.2f" if signed else ".3f"
    value, low, high = (f"{x:{form}}" for x in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


@dataclass(frozen=True, slots=True)
class Answers:
    """Outcomes of the answers to one task, as those of `azr.tasks.Grade`."""

    greedy: str
    sampled: tuple[str, ...]
    """In the order of their indices; as many for each task of an evaluation."""

    @property
    def right(self) -> int:
        """How many of the sampled answers are correct."""
        return self.sampled.count("correct")

    @property
    def is_judged(self) -> bool:
        """Whether the verifier judged every answer; a task of which it did not counts nowhere."""
        return "unjudged" not in (self.greedy, *self.sampled)


@dataclass(frozen=True, slots=True)
class Score:
    """How a model did on some tasks: accuracies, and rates of answers in the right form.

    What is not known is NaN: all of the sampled answers where none were drawn.
    """

    tasks: int
    samples: int
    """Sampled answers per task; 0 where none were drawn."""
    greedy: float
    greedy_format_rate: float
    sampled: float
    sampled_format_rate: float
    chance: float
    """Accuracy of random well-formed answers."""
    sampled_low: float = math.nan
    """Where the interval of `sampled` begins (`wilson_clustered`)."""
    sampled_high: float = math.nan
    """Where it ends."""

    @property
    def greedy_interval(self) -> Interval:
        """The greedy accuracy with its interval."""
        return wilson(self.greedy, self.tasks)

    @property
    def sampled_interval(self) -> Interval | None:
        """The sampled accuracy, which is pass@1, with its interval; None without samples."""
        drawn = Interval(self.sampled, self.sampled_low, self.sampled_high)
        return drawn if self.samples else None

    def ways(self) -> list[tuple[str, Interval | None, float]]:
        """Returns (name, accuracy, format rate) of each way of answering."""
        return [
            ("greedy", self.greedy_interval, self.greedy_format_rate),
            ("sampled", self.sampled_interval, self.sampled_format_rate),
        ]


Scores = Mapping[tuple[str, str], Score]
"""By split and task type."""


def score(answers: Sequence[Answers], chance: float = math.nan) -> Score:
    """Returns the score of the answers to some tasks, at least one, all judged."""
    n, samples = len(answers), len(answers[0].sampled)
    drawn, drawn_format_rate = Interval(math.nan, math.nan, math.nan), math.nan
    if samples:
        drawn = wilson_clustered([a.right for a in answers], samples)
        malformed = sum(a.sampled.count("malformed") for a in answers)
        drawn_format_rate = 1 - malformed / (n * samples)
    return Score(
        tasks=n,
        samples=samples,
        greedy=sum(a.greedy == "correct" for a in answers) / n,
        greedy_format_rate=1 - sum(a.greedy == "malformed" for a in answers) / n,
        sampled=drawn.value,
        sampled_format_rate=drawn_format_rate,
        chance=chance,
        sampled_low=drawn.low,
        sampled_high=drawn.high,
    )


def as_metrics(scores: Scores) -> dict[str, float]:
    """Returns scores under their names in the log."""
    metrics = {}
    for (split, task_type), s in scores.items():
        name = f"eval/{split}/{task_type}"
        metrics[f"{name}/greedy_accuracy"] = s.greedy
        metrics[f"{name}/greedy_format_rate"] = s.greedy_format_rate
        metrics[f"{name}/sampled_accuracy"] = s.sampled
        metrics[f"{name}/sampled_format_rate"] = s.sampled_format_rate
        metrics[f"{name}/chance"] = s.chance
        metrics[f"{name}/tasks"] = float(s.tasks)
        metrics[f"{name}/samples"] = float(s.tasks * s.samples)
    return metrics


@dataclass(frozen=True, slots=True)
class Change:
    """What became of the same tasks between two models."""

    difference: Interval
    """Accuracy after minus accuracy before."""
    gained: int
    """Tasks solved after only."""
    lost: int
    """Tasks solved before only."""
    p_value: float
    """Exact McNemar test: chance of so uneven a split of gained and lost tasks, were both models
    alike."""


def wilson(value: float, n: float) -> Interval:
    """Returns the Wilson score interval of a share `value` out of `n` trials.

    Unlike value ± 1.96 standard errors it stays within [0, 1] and has a width at 0 and at 1
    (E. B. Wilson 1927). `n` need not be a whole number.
    """
    center = (value + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(value * (1 - value) / n + Z**2 / (4 * n**2))
    # Rounding must not push the value itself out of its interval.
    return Interval(value, max(min(center - half, value), 0.0), min(max(center + half, value), 1.0))


def wilson_clustered(correct: Sequence[int], samples: int) -> Interval:
    """Returns the interval of the accuracy, `correct` of `samples` answers being right per task.

    Answers to one task are alike, so they count for fewer trials than their number: Wilson's
    interval with the sample size over the design effect (L. Kish 1965), which lies between the
    number of tasks, where each task is always or never solved, and the number of answers.
    """
    n = len(correct)
    mean = sum(correct) / (n * samples)
    effective: float = n
    if 0 < mean < 1 and n > 1:
        variance = math.fsum((c / samples - mean) ** 2 for c in correct) / (n - 1) / n
        if variance > 0:
            effective = min(max(mean * (1 - mean) / variance, n), n * samples)
        else:
            effective = n * samples
    return wilson(mean, effective)


def change(before: Sequence[bool], after: Sequence[bool]) -> Change:
    """Returns the paired comparison of two models on the same tasks, in the same order.

    The interval is R. G. Newcombe's for paired proportions (1998, his method 10): Wilson's
    intervals of both accuracies, joined with their correlation.
    """
    gained = sum(now and not was for was, now in zip(before, after, strict=True))
    lost = sum(was and not now for was, now in zip(before, after, strict=True))
    interval = sampled_difference(before, after, samples=1)
    return Change(interval, gained, lost, mcnemar(gained, lost))


def sampled_difference(before: Sequence[int], after: Sequence[int], samples: int) -> Interval:
    """Returns the paired difference of two models' accuracies over sampled answers.

    Both give, task by task, how many of `samples` answers were right. The interval is that of
    `change` carried over (G. Y. Zou and A. Donner 2008): the intervals of `wilson_clustered`
    joined with the correlation between tasks, with Newcombe's continuity correction, so that it
    has a width where nothing changed.
    """
    old, new = wilson_clustered(before, samples), wilson_clustered(after, samples)
    b = [count / samples - old.value for count in before]
    a = [count / samples - new.value for count in after]
    product = math.fsum(x * y for x, y in zip(b, a, strict=True))
    if product > 0:
        product = max(product - 0.5, 0.0)
    spread = math.fsum(x * x for x in b) * math.fsum(y * y for y in a)
    correlation = max(product / math.sqrt(spread), -1.0) if spread > 0 else 0.0

    def joined(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * correlation * a * b + b * b, 0.0))

    value = (sum(after) - sum(before)) / (len(before) * samples)
    low = value - joined(new.value - new.low, old.high - old.value)
    high = value + joined(new.high - new.value, old.value - old.low)
    return Interval(value, low, high)


def mcnemar(gained: int, lost: int) -> float:
    """Returns the two-sided p-value of the exact McNemar test (binomial with one half)."""
    n, fewer = gained + lost, min(gained, lost)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(fewer + 1)) / 2**n)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Returns the chance that k of the n samples, drawn without replacement, hold a correct one.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) as a product, which neither overflows nor
    cancels (M. Chen et al. 2021, arXiv:2107.03374, Eq. 1 and Fig. 3).
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass@k needs 0 <= correct <= n and 1 <= k <= n: {n=}, {correct=}, {k=}")
    if n - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - correct + 1, n + 1))
