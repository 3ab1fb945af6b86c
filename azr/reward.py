"""Rewards of both roles (paper, Eq. 4 to 6), as pure functions of what happened."""

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


def proposer_reward(verdict: Verdict, solve_rate: float | None, config: RewardConfig) -> float:
    """Returns the reward of a proposal; `solve_rate` is that of its task where it is valid.

    Eq. 6: -1 for what does not parse or does not execute (validity is part of the format), else
    the learnability. A held-out proposal has no reward: it must be left out before.
    """
    if verdict.status == "malformed":
        return config.malformed
    if verdict.status == "invalid":
        return config.invalid_proposal
    if verdict.status != "valid" or solve_rate is None:
        raise ValueError(f"no reward for a proposal that is {verdict.status}")
    return learnability(solve_rate, config.zero_learnability)


def solver_reward(grade: Grade, config: RewardConfig) -> float:
    """Returns the reward of an answer: 1 correct, -0.5 wrong, -1 malformed (Eq. 5 and 6)."""
    return {"correct": 1.0, "wrong": config.wrong, "malformed": config.malformed}[grade.outcome]
