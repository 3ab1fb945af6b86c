"""Each sign of trouble gives one warning that names the cause and the option; health gives none."""

import random
import re
from pathlib import Path

import pytest

from azr.run.diagnosis import _CHECKS, WINDOW, Diagnosis

HEALTHY = {
    "completions/clipped_ratio": 0.01,
    "completions/samples": 100.0,
    "completions/mean_length": 5.0,
    "solve/deduction/format_rate": 0.99,
    "solve/deduction/accuracy": 0.5,
    "propose/deduction/valid_rate": 0.9,
    "propose/deduction/unique_rate": 0.6,
    "reward/propose/deduction/std": 0.4,
    "reward/propose/deduction/mean": -0.1,
    "reward/solve/deduction/std": 0.7,
    "reward/solve/deduction/mean": 0.2,
    "policy/ratio_mean": 1.0,
    "policy/entropy": 1.0,
    "mismatch/kl": 1e-6,
    "time/step_s": 1.0,
    "time/eval_s": 0.1,
    "perf/host_rss_gib": 1.0,
    "perf/open_files": 20.0,
    "perf/children": 0.0,
}

LATE = 3 * WINDOW
"""A change after this step is a change against the start."""

SIGNS = {
    "truncation": ({"completions/clipped_ratio": 0.7}, r"\d+% of the.*--rollout.max-new-tokens"),
    "nothing_well_formed": ({"solve/deduction/format_rate": 0.0}, "lost the format.*--optim.lr"),
    "nothing_valid": ({"propose/deduction/valid_rate": 0.0}, "no proposal.*--selfplay.seed-source"),
    "flat_cell": (
        {"reward/solve/deduction/std": 0.0, "reward/solve/deduction/mean": -0.5},
        "all rewards of solve/deduction have been -0.50.*--task.prime.max-p",
    ),
    "ratio_far_from_one": ({"policy/ratio_mean": 1.5}, r"ratio is 1\.\d+ on average.*--optim.lr"),
    "mismatch": ({"mismatch/kl": 0.2}, r"differ by 0\.\d+ nats a token.*--loss.tis-cap"),
    "entropy_collapse": ({"policy/entropy": 0.001}, "no longer explores.*--loss.kl-coef"),
    "proposer_collapse": (
        {"propose/deduction/unique_rate": 0.05},
        r"only \d+% of.*--task.references",
    ),
    "slower_steps": ({"time/step_s": 3.0}, r"\d\.\d times as long per token"),
    "growing_memory": ({"perf/host_rss_gib": 3.0}, "from 1.0 to 3.0 GiB.*--resume"),
    "growing_handles": ({"perf/open_files": 400.0}, "open files grew from 20 to 400"),
}


def watch(rows):
    diagnosis = Diagnosis(("deduction",))
    return [message for row in rows for message in diagnosis.observe(row)]


def test_a_healthy_run_gives_no_warning():
    assert watch([HEALTHY] * 200) == []


@pytest.mark.parametrize(("change", "message"), SIGNS.values(), ids=SIGNS)
def test_each_sign_gives_exactly_one_warning(change, message):
    warnings = watch([HEALTHY] * LATE + [HEALTHY | change] * 200)
    assert len(warnings) == 1 and re.search(message, warnings[0]), warnings


def test_completions_that_all_hit_the_limit_are_a_warning():
    (warning,) = watch([HEALTHY | {"completions/clipped_ratio": 1.0}] * WINDOW)
    assert "100% of the completions hit the length limit" in warning


def test_held_out_accuracy_that_falls_while_training_rises():
    def row(train, held_out):
        return HEALTHY | {
            "eval/train/deduction/greedy_accuracy": train,
            "eval/heldout/deduction/greedy_accuracy": held_out,
        }

    rising = [row(0.1 * i, 0.05 * i) for i in range(9)]
    assert watch(rising) == []
    falling = [row(0.1 * i, 0.5 - 0.1 * max(0, i - 3)) for i in range(9)]
    (warning,) = watch(falling)
    assert "held-out accuracy fell from 0.50" in warning


def test_longer_completions_alone_are_no_slowdown():
    longer = HEALTHY | {"time/step_s": 3.0, "completions/mean_length": 15.0}
    assert watch([HEALTHY] * LATE + [longer] * 100) == []


def test_shorter_completions_alone_are_no_slowdown():
    """Prompts, checks and the optimiser's step take what they took."""
    shorter = HEALTHY | {"time/step_s": 0.6, "completions/mean_length": 1.0}
    assert watch([HEALTHY] * LATE + [shorter] * 100) == []


def test_a_machine_that_others_use_is_no_slowdown():
    """Wall times as of a healthy run beside others that come and go; CPU time hardly moves."""
    rng = random.Random(0)
    quiet = [HEALTHY | {"time/step_cpu_s": 0.9 * rng.uniform(0.95, 1.1)} for _ in range(LATE)]
    busy = [
        HEALTHY
        | {"time/step_s": rng.uniform(2.0, 6.0), "time/step_cpu_s": 0.9 * rng.uniform(1.0, 1.4)}
        for _ in range(200)
    ]
    assert watch(quiet + busy) == []
    slower = [row | {"time/step_cpu_s": 2.5} for row in quiet]
    (warning,) = watch(quiet + slower)
    assert "times as long per token" in warning


def test_a_saturated_cell_is_no_trouble():
    solved = {"reward/solve/deduction/std": 0.0, "reward/solve/deduction/mean": 1.0}
    assert watch([HEALTHY | solved] * 200) == []


def test_every_check_has_a_test_and_is_documented():
    names = {check.__name__ for check in _CHECKS}
    assert names == {*SIGNS, "overfitting"}
    text = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
    for name in names:
        assert f"`{name}`" in text, name
