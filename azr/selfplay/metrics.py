"""The metrics of a step of self-play; docs/metrics.md explains each."""

from collections import Counter
from collections.abc import Mapping, Sequence

from azr.config import RewardConfig
from azr.reward import learnability
from azr.selfplay.diversity import diversity_metrics
from azr.selfplay.episode import Episode, Role, Seeding, StepResult
from azr.tasks import Environment


def seeding_metrics(seeding: Seeding) -> dict[str, float]:
    """Returns the start model's rates over all seeding proposals."""
    return {
        f"propose/{t}/{name}": value
        for t in seeding.new_tasks
        for name, value in _proposal_rates([e for e in seeding.episodes if e.type == t]).items()
    }


def step_metrics(
    environment: Environment,
    result: StepResult,
    cells: Mapping[tuple[Role, str], int],
    reward: RewardConfig,
) -> dict[str, float]:
    """Returns what a step's episodes tell; `cells` numbers the (role, type) cells."""
    m: dict[str, float] = {}
    rewards = [e.reward for e in result.episodes if e.reward is not None]
    m["reward/mean"] = mean(rewards)
    m["reward/frac_zero_std"] = mean(result.cells.is_flat.float().tolist())
    for (role, task_type), cell in cells.items():
        m[f"reward/{role}/{task_type}/mean"] = float(result.cells.mean[cell])
        m[f"reward/{role}/{task_type}/std"] = float(result.cells.std[cell])
    for task_type in result.new_tasks:
        mine = [e for e in result.episodes if (e.role, e.type) == ("propose", task_type)]
        good = [e for e in mine if e.outcome == "valid"]
        name = f"propose/{task_type}"
        m |= {f"{name}/{k}": v for k, v in _proposal_rates(mine).items()}
        solved = [e for e in good if e.solve_rate is not None]
        worth = [learnability(e.solve_rate, reward.zero_learnability) for e in solved]
        m[f"{name}/learnability"] = mean(worth)
        if reward.complexity_coef or reward.distance_coef or reward.answer_coef:
            m[f"{name}/novelty"] = mean([e.reward - w for e, w in zip(solved, worth, strict=True)])
        m[f"{name}/learnable_frac"] = mean([0 < e.solve_rate < 1 for e in solved])
        m[f"{name}/unique_rate"] = len({e.key for e in good}) / len(good) if good else float("nan")
        m |= {f"{name}/{k}": v for k, v in diversity_metrics(environment, good).items()}
        drawn = [e for e in result.episodes if (e.role, e.type) == ("solve", task_type)]
        answers = [e for e in drawn if e.outcome != "unjudged"]
        name = f"solve/{task_type}"
        m[f"{name}/unjudged"] = float(len(drawn) - len(answers))
        m[f"{name}/accuracy"] = mean([e.outcome == "correct" for e in answers])
        m[f"{name}/format_rate"] = mean([e.outcome != "malformed" for e in answers])
        reasons = Counter(e.reason for e in answers if e.reason)
        m |= {f"{name}/failed/{r}": float(n) for r, n in sorted(reasons.items())}
        m[f"buffer/{task_type}/new"] = float(len(result.new_tasks[task_type]))
    m["propose/dropped_references"] = float(sum(e.dropped_references for e in result.episodes))
    lengths = [len(e.sample.token_ids) for e in result.episodes]
    m["completions/mean_length"] = mean(lengths)
    m["completions/clipped_ratio"] = mean(
        [e.sample.finish_reason == "length" for e in result.episodes]
    )
    m["completions/samples"] = float(len(result.episodes))
    return m


def _proposal_rates(proposals: list[Episode]) -> dict[str, float]:
    """Returns the rates of one type's proposals; held-out and unjudged ones are counted apart."""
    by_status = Counter(e.outcome for e in proposals)
    counted = [e for e in proposals if e.outcome not in ("held_out", "unjudged")]
    rates = {
        "valid_rate": mean([e.outcome == "valid" for e in counted]),
        "format_rate": mean([e.outcome != "malformed" for e in counted]),
        "held_out": float(by_status["held_out"]),
        "unjudged": float(by_status["unjudged"]),
    }
    reasons = Counter(e.reason for e in counted if e.reason)
    return rates | {f"rejected/{r}": float(n) for r, n in sorted(reasons.items())}


def mean(values: Sequence[float]) -> float:
    """Returns the mean, NaN of nothing."""
    return float(sum(values) / len(values)) if len(values) else float("nan")
