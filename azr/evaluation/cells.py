"""The result of a family's evaluation: scores part by part, beside those of another model."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from azr.accuracy import Answers, Change, Interval, Score, change, sampled_difference, score
from azr.evaluation.family import GradedTask
from azr.tasks import Environment


@dataclass(frozen=True, slots=True)
class Against:
    """The baseline on the same tasks, and the paired differences to it."""

    score: Score
    greedy_change: Change
    sampled_difference: Interval | None


@dataclass(frozen=True, slots=True)
class Cell:
    """The tasks of one split and type, or one stratum of them."""

    split: str
    type: str
    stratum: str
    """Empty for the whole of the split."""
    score: Score
    against: Against | None

    def to_json(self) -> dict[str, Any]:
        """Returns the cell as the result holds it; what is left are records of `azr.accuracy`."""
        against = self.against and {
            **_rates(self.against.score),
            "greedy_change": self.against.greedy_change,
            "sampled_difference": self.against.sampled_difference,
        }
        return {
            "split": self.split,
            "type": self.type,
            "stratum": self.stratum,
            "tasks": self.score.tasks,
            "samples": self.score.samples,
            "chance": self.score.chance,
            **_rates(self.score),
            "against": against,
        }


def _rates(score: Score) -> dict[str, Any]:
    return {
        way: accuracy and {"accuracy": accuracy, "format_rate": format_rate}
        for way, accuracy, format_rate in score.ways()
    }


def make_cells(
    environment: Environment,
    graded: Sequence[GradedTask],
    baseline: Sequence[GradedTask] | None,
) -> list[Cell]:
    """Returns a cell per split and type, each followed by its strata where it has more than one.

    `baseline` holds the same tasks in the same order, answered by the other model; raises
    ValueError where it does not.
    """
    others = graded if baseline is None else baseline
    wholes: dict[tuple[str, str], dict[str, list[tuple[GradedTask, GradedTask]]]] = {}
    for g, other in zip(graded, others, strict=True):
        if g.task != other.task:
            raise ValueError("a baseline answers the same tasks in the same order")
        if g.is_judged and other.is_judged:
            parts = wholes.setdefault((g.split, g.task.type), {})
            for stratum in {"", environment.stratum(g.task)}:
                parts.setdefault(stratum, []).append((g, other))
    cells = []
    for (split, task_type), parts in wholes.items():
        for stratum in sorted(parts, key=_natural):
            after, before = zip(*parts[stratum], strict=True)
            if stratum and len(after) == len(parts[""]):
                continue  # the only stratum of its split
            chance = math.nan if stratum else environment.chance(task_type, split)
            against = None if baseline is None else _against(before, after)
            cells.append(Cell(split, task_type, stratum, score(after, chance), against))
    return cells


def _natural(text: str) -> list[tuple[int, str]]:
    """Returns a sorting key by which "p = 7" comes before "p = 11"."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text)]


def _against(before: Sequence[Answers], after: Sequence[Answers]) -> Against:
    old = score(before)
    drawn = None
    if old.samples:
        right = [a.right for a in before], [a.right for a in after]
        drawn = sampled_difference(*right, samples=old.samples)
    solved = [a.greedy == "correct" for a in before], [a.greedy == "correct" for a in after]
    return Against(old, change(*solved), drawn)
