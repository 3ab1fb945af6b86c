"""The record of an evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Results on the tasks of one split and type."""

    tasks: int
    samples: int
    """Sampled answers per task; 0 where none were drawn."""
    greedy: float
    greedy_format_rate: float
    sampled: float
    sampled_format_rate: float
    chance: float
    """Accuracy of uniformly random well-formed answers."""

    @property
    def sampled_error(self) -> float:
        """Standard error of `sampled`."""
        if not self.samples:
            return float("nan")
        return (self.sampled * (1 - self.sampled) / (self.tasks * self.samples)) ** 0.5


def as_metrics(results: Mapping[tuple[str, str], Accuracy]) -> dict[str, float]:
    """Returns the results by (split, type) under their names in the log."""
    metrics = {}
    for (split, task_type), a in results.items():
        name = f"eval/{split}/{task_type}"
        metrics[f"{name}/greedy_accuracy"] = a.greedy
        metrics[f"{name}/greedy_format_rate"] = a.greedy_format_rate
        metrics[f"{name}/sampled_accuracy"] = a.sampled
        metrics[f"{name}/sampled_format_rate"] = a.sampled_format_rate
        metrics[f"{name}/chance"] = a.chance
        metrics[f"{name}/tasks"] = float(a.tasks)
        metrics[f"{name}/samples"] = float(a.tasks * a.samples)
    return metrics
