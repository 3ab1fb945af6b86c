"""Rewards of both roles (paper, Eq. 4 to 6), as pure functions of what happened."""

from dataclasses import dataclass

from azr.config import RewardConfig
from azr.tasks.records import Grade, Verdict


def learnability(solve_rate: float, zero_value: float = 0.0) -> float:
    """Returns 1 - solve_rate, or `zero_value` where a task is never or always solved.

    Eq. 4, arXiv:2505.03335: r = 0 if the mean solve rate is 0, else 1 - rate; a rate of 1 gives 0
    by the same formula. Differs from the official code, which pays -0.5 in both extreme cases:
    `zero_value=-0.5` is its parity.
    """
    if not 0.0 <= solve_rate <= 1.0:
        raise ValueError(f"a solve rate lies in [0, 1], got {solve_rate}")
    return zero_value if solve_rate in (0.0, 1.0) else 1.0 - solve_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Novelty:
    """How much of a task is new, each from 0 to 1; NaN where there was nothing to compare with."""

    complexity: float
    """Cyclomatic complexity over 10, at most 1."""
    distance: float
    """From the references that the proposer was shown."""
    answer: float
    """1 minus the share of the buffer's tasks that have the same answer."""


def novelty_reward(novelty: Novelty, config: RewardConfig) -> float:
    """Returns the sum of the terms that are switched on, each capped; NaN counts as 0.

    The intrinsic proposer rewards of the official code, in its combination "sum"; the paper found
    none of them to help (App. D.4). Its complexity is cognitive, over 15; its distance compares
    serialised syntax trees, as ours does.
    """
    terms = (
        (config.complexity_coef, novelty.complexity),
        (config.distance_coef, novelty.distance),
        (config.answer_coef, novelty.answer),
    )
    # NaN compares false, so that a term without a value adds nothing.
    return sum(min(c * value, config.novelty_cap) for c, value in terms if c and value > 0)


def proposer_reward(
    verdict: Verdict,
    solve_rate: float | None,
    config: RewardConfig,
    novelty: Novelty | None = None,
) -> float:
    """Returns the reward of a proposal; `solve_rate` is that of its task where it is valid.

    Eq. 6: -1 for what does not parse or does not execute (validity is part of the format), else
    the learnability. A held-out proposal has no reward: it must be left out before. Novelty pays
    only where the learnability is above 0, as in the official code.
    """
    if verdict.status == "malformed":
        return config.malformed
    if verdict.status == "invalid":
        return config.invalid_proposal
    if verdict.status != "valid" or solve_rate is None:
        raise ValueError(f"no reward for a proposal that is {verdict.status}")
    reward = learnability(solve_rate, config.zero_learnability)
    return reward + novelty_reward(novelty, config) if novelty and reward > 0 else reward


def solver_reward(grade: Grade, config: RewardConfig) -> float:
    """Returns the reward of an answer: 1 correct, -0.5 wrong, -1 malformed (Eq. 5 and 6).

    An answer that could not be judged has no reward: it must be left out before.
    """
    return {"correct": 1.0, "wrong": config.wrong, "malformed": config.malformed}[grade.outcome]
