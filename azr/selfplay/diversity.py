"""How varied proposals are: what the metrics show, and the optional novelty rewards are made of."""

import itertools
from collections.abc import Mapping, Sequence

from azr.buffer import TaskBuffer
from azr.reward import Novelty
from azr.selfplay.episode import Episode
from azr.tasks import Environment

COMPLEXITY_SCALE = 10.0
"""Cyclomatic complexity that counts as full novelty."""


def describe_proposals(
    environment: Environment, proposals: Sequence[Episode], buffers: Mapping[str, TaskBuffer]
) -> None:
    """Sets `traits` and `novelty` of the valid proposals, where the family tells.

    The buffers are those before these proposals enter.
    """
    for e in proposals:
        if e.outcome != "valid":
            continue
        e.traits = environment.traits(e.task, e.references)
        if e.traits is None:
            continue
        buffer = buffers[e.type]
        same = buffer.answers[environment.answer(e.task)]
        share = same / len(buffer) if len(buffer) else float("nan")
        e.novelty = Novelty(
            complexity=min(e.traits.complexity / COMPLEXITY_SCALE, 1.0),
            distance=e.traits.distance,
            answer=1 - share,
        )


def diversity_metrics(environment: Environment, valid: Sequence[Episode]) -> dict[str, float]:
    """Returns how varied one type's valid proposals of a step are; nothing without traits.

    `ast_distance` is taken between proposals that follow each other, which needs no references.
    """
    told = [e for e in valid if e.traits is not None]
    if not told:
        return {}
    neighbours = [
        environment.traits(b.task, (a.task,)).distance for a, b in itertools.pairwise(told)
    ]
    return {
        "program_length": _mean([e.traits.length for e in told]),
        "complexity": _mean([e.traits.complexity for e in told]),
        "ast_distance": _mean(neighbours),
        "reference_distance": _mean([e.traits.distance for e in told]),
        "answer_diversity": _mean([e.novelty.answer for e in told]),
    }


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if v == v]
    return sum(known) / len(known) if known else float("nan")
