"""The metrics of a step of self-play; docs/metrics.md explains each."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

from azr.config import RewardConfig
from azr.reward import learnability
from azr.selfplay.episode import Proposed, Seeding, StepResult
from azr.tasks import Environment, Role


def seeding_metrics(seeding: Seeding) -> dict[str, float]:
    """Returns the start model's rates over all seeding proposals."""
    return {
        f"propose/{t}/{name}": value
        for t in seeding.added
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
    new = Counter(task_type for task_type, _, _ in result.tasks)
    for task_type in dict.fromkeys(task_type for _, task_type in cells):
        mine = [e for e in result.proposals if e.type == task_type]
        good = [e for e in mine if e.is_valid]
        name = f"propose/{task_type}"
        m |= {f"{name}/{k}": v for k, v in _proposal_rates(mine).items()}
        solved = [(e, e.solve_rate) for e in good if e.solve_rate is not None]
        worth = [learnability(rate, reward.zero_learnability) for _, rate in solved]
        m[f"{name}/learnability"] = mean(worth)
        if reward.complexity_coef or reward.distance_coef or reward.answer_coef:
            paid = [e.reward for e, _ in solved if e.reward is not None]
            m[f"{name}/novelty"] = mean([r - w for r, w in zip(paid, worth, strict=True)])
        m[f"{name}/learnable_frac"] = mean([0 < rate < 1 for _, rate in solved])
        m[f"{name}/unique_rate"] = len({e.key for e in good}) / len(good) if good else float("nan")
        m |= {f"{name}/{k}": v for k, v in _diversity(environment, good).items()}
        drawn = [e for e in result.answers if e.type == task_type]
        answers = [e for e in drawn if e.outcome != "unjudged"]
        name = f"solve/{task_type}"
        m[f"{name}/unjudged"] = float(len(drawn) - len(answers))
        m[f"{name}/accuracy"] = mean([e.outcome == "correct" for e in answers])
        m[f"{name}/format_rate"] = mean([e.outcome != "malformed" for e in answers])
        reasons = Counter(e.reason for e in answers if e.reason)
        m |= {f"{name}/failed/{r}": float(n) for r, n in sorted(reasons.items())}
        m[f"buffer/{task_type}/new"] = float(new[task_type])
    m["propose/dropped_references"] = float(sum(e.prompt.dropped for e in result.proposals))
    lengths = [len(e.sample.token_ids) for e in result.episodes]
    m["completions/mean_length"] = mean(lengths)
    m["completions/clipped_ratio"] = mean(
        [e.sample.finish_reason == "length" for e in result.episodes]
    )
    m["completions/samples"] = float(len(result.episodes))
    return m


def _diversity(environment: Environment, valid: Sequence[Proposed]) -> dict[str, float]:
    """Returns how varied one type's valid proposals of a step are; nothing without traits.

    `ast_distance` is taken between proposals that follow each other, which needs no references.
    """
    told = [(e.task, e.traits, e.novelty) for e in valid if e.traits and e.novelty]
    if not told:
        return {}
    pairs = itertools.pairwise(task for task, _, _ in told)
    neighbours = [environment.traits(task, (before,)) for before, task in pairs]
    return {
        "program_length": _mean_known([traits.length for _, traits, _ in told]),
        "complexity": _mean_known([traits.complexity for _, traits, _ in told]),
        "ast_distance": _mean_known([traits.distance for traits in neighbours if traits]),
        "reference_distance": _mean_known([traits.distance for _, traits, _ in told]),
        "answer_diversity": _mean_known([novelty.answer for _, _, novelty in told]),
    }


def _mean_known(values: Sequence[float]) -> float:
    return mean([v for v in values if v == v])


def _proposal_rates(proposals: Sequence[Proposed]) -> dict[str, float]:
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
