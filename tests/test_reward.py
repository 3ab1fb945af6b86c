"""The reward table of the paper, case by case, and its switches."""

import pytest

from azr.config import RewardConfig
from azr.reward import learnability, proposer_reward, solver_reward
from azr.tasks import Grade, Task, Verdict

PAPER = RewardConfig()


@pytest.mark.parametrize(
    ("rate", "reward"), [(0.0, 0.0), (0.125, 0.875), (0.5, 0.5), (0.875, 0.125), (1.0, 0.0)]
)
def test_learnability_is_one_minus_the_rate_and_zero_at_both_ends(rate, reward):
    assert learnability(rate) == reward


def test_official_parity_pays_half_a_point_less_at_both_ends_only():
    assert [learnability(r, -0.5) for r in (0.0, 0.25, 1.0)] == [-0.5, 0.75, -0.5]


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_outside_the_unit_interval_is_an_error(rate):
    with pytest.raises(ValueError, match="a solve rate lies in"):
        learnability(rate)


@pytest.mark.parametrize(
    ("outcome", "reward"), [("correct", 1.0), ("wrong", -0.5), ("malformed", -1.0)]
)
def test_solver_cases(outcome, reward):
    assert solver_reward(Grade(outcome=outcome), PAPER) == reward


TASK = Task("deduction", (7, 2, 4))


@pytest.mark.parametrize(
    ("status", "task", "rate", "reward"),
    [
        ("malformed", None, None, -1.0),
        ("invalid", None, None, -1.0),
        ("valid", TASK, 0.25, 0.75),
        ("valid", TASK, 0.0, 0.0),
        ("valid", TASK, 1.0, 0.0),
    ],
)
def test_proposer_cases(status, task, rate, reward):
    assert proposer_reward(Verdict(task=task, status=status), rate, PAPER) == reward


def test_every_value_of_the_table_is_a_switch():
    config = RewardConfig(malformed=-3.0, wrong=-2.0, invalid_proposal=-4.0, zero_learnability=-0.5)
    assert solver_reward(Grade(outcome="wrong"), config) == -2.0
    assert solver_reward(Grade(outcome="malformed"), config) == -3.0
    assert proposer_reward(Verdict(task=None, status="malformed"), None, config) == -3.0
    assert proposer_reward(Verdict(task=None, status="invalid"), None, config) == -4.0
    assert proposer_reward(Verdict(task=TASK, status="valid"), 1.0, config) == -0.5


def test_a_held_out_or_unestimated_proposal_has_no_reward():
    with pytest.raises(ValueError, match="no reward for a proposal that is held_out"):
        proposer_reward(Verdict(task=TASK, status="held_out"), 0.5, PAPER)
    with pytest.raises(ValueError, match="no reward"):
        proposer_reward(Verdict(task=TASK, status="valid"), None, PAPER)
