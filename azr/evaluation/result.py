"""The result of a family's evaluation: cells with intervals, beside the model compared with."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from azr.accuracy import Change, Interval, change, sampled_difference
from azr.evaluation.family import GradedTask, Score, scores
from azr.tasks import Environment


@dataclass(frozen=True, slots=True)
class Against:
    """The baseline on the same tasks, and the paired differences to it."""

    greedy: Score
    sampled: Score | None
    greedy_change: Change
    sampled_difference: Interval | None


@dataclass(frozen=True, slots=True)
class Cell:
    """The tasks of one split and type, or one stratum of them."""

    split: str
    type: str
    stratum: str
    """Empty for the whole of the split."""
    tasks: int
    samples: int
    """Sampled answers to each task."""
    chance: float | None
    """Accuracy of random well-formed answers, where the family knows it."""
    greedy: Score
    sampled: Score | None
    against: Against | None


def make_cells(
    environment: Environment,
    graded: Sequence[GradedTask],
    baseline: Sequence[GradedTask] | None,
) -> list[Cell]:
    """Returns a cell per split and type, each followed by its strata where it has more than one.

    `baseline` holds the same tasks in the same order, answered by the other model; raises
    ValueError where it does not.
    """
    if baseline is not None and [b.task for b in baseline] != [g.task for g in graded]:
        raise ValueError("a baseline answers the same tasks in the same order")
    others = baseline if baseline is not None else [None] * len(graded)
    groups: dict[tuple[str, str, str], list[tuple[GradedTask, GradedTask | None]]] = {}
    for pair in zip(graded, others, strict=True):
        g = pair[0]
        if not all(answered.is_judged for answered in pair if answered):
            continue
        whole = groups.setdefault((g.split, g.task.type, ""), [])
        whole.append(pair)
        stratum = environment.stratum(g.task)
        if stratum:
            groups.setdefault((g.split, g.task.type, stratum), []).append(pair)
    cells = []
    place = {key[:2]: number for number, key in enumerate(groups) if not key[2]}
    for key in sorted(groups, key=lambda key: (place[key[:2]], _natural(key[2]))):
        (split, task_type, stratum), pairs = key, groups[key]
        if stratum and len(pairs) == len(groups[split, task_type, ""]):
            continue  # the only stratum of its split
        chance = environment.chance(task_type, split) if not stratum else None
        cells.append(_cell(split, task_type, stratum, chance, pairs))
    return cells


def _natural(text: str) -> list[tuple[int, str]]:
    """Returns a sorting key by which "p = 7" comes before "p = 11"."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text)]


def _cell(
    split: str,
    task_type: str,
    stratum: str,
    chance: float | None,
    pairs: list[tuple[GradedTask, GradedTask | None]],
) -> Cell:
    graded = [g for g, _ in pairs]
    greedy, sampled = scores(graded)
    against = None
    before = [b for _, b in pairs if b is not None]
    if before:
        old_greedy, old_sampled = scores(before)
        against = Against(
            greedy=old_greedy,
            sampled=old_sampled,
            greedy_change=change(
                [b.greedy == "correct" for b in before], [g.greedy == "correct" for g in graded]
            ),
            sampled_difference=sampled_difference(
                [b.right for b in before], [g.right for g in graded], len(graded[0].sampled)
            )
            if sampled and old_sampled
            else None,
        )
    return Cell(
        split=split,
        type=task_type,
        stratum=stratum,
        tasks=len(graded),
        samples=len(graded[0].sampled),
        chance=chance,
        greedy=greedy,
        sampled=sampled,
        against=against,
    )
