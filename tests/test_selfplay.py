"""The self-play step: what is proposed, estimated, solved, rewarded and trained on.

A scripted policy makes every case exact; `tests/test_train.py` runs the same with a real model.
"""

import itertools
import statistics
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scripted import SMALL, changed, play, solution

from azr.run.db import SampleRow
from azr.selfplay import seeding_metrics
from azr.tasks import Task
from azr.tasks.checked import CheckedFamily
from azr.tasks.environment import done
from azr.tasks.prime import PrimeEnvironment, PrimeProblem

TYPES = ("deduction", "abduction", "induction")
# Training tasks that no seed of these tests is: written by the proposer in turn.
FRESH = ["13 4", "17 3", "19 3", "17 5"]


def cycle(texts):
    """Returns a proposer that writes the texts in turn, starting over for each type."""
    counters = {}

    def propose(prompt, index, request):
        counter = counters.setdefault(prompt, itertools.count())
        return texts[-1 - next(counter) % len(texts)]  # requests come last first

    return propose


def seeded(config, propose, **kwargs):
    selfplay, engine = play(config, propose, **kwargs)
    selfplay.seed()
    engine.calls.clear()
    return selfplay, engine


def by(result, role, task_type="deduction"):
    return [e for e in result.episodes if e.role == role and e.type == task_type]


def new_keys(result, task_type="deduction"):
    return [key for t, key, _ in result.tasks if t == task_type]


def test_the_texts_of_these_tests_are_training_tasks():
    selfplay, _ = play(SMALL, cycle(FRESH))
    for text in FRESH:
        p, x = map(int, text.split())
        task = Task("deduction", PrimeProblem(p, x, pow(x, -1, p)))
        assert selfplay.environment.split(task) == "train"


def test_a_step_makes_six_cells_of_the_configured_sizes():
    selfplay, engine = seeded(SMALL, cycle(FRESH))
    result = selfplay.play(1)
    assert len(engine.calls) == 2  # all proposals, then all solutions
    for task_type in TYPES:
        proposals, answers = by(result, "propose", task_type), by(result, "solve", task_type)
        assert [e.text for e in proposals] == FRESH
        trained = [e for e in answers if e.reward is not None]
        assert len(trained) == 6 * 2
        assert sum(e.is_estimate for e in answers) == 4 * 4
        assert all(e.reward is None for e in answers if e.is_estimate)
    assert {e.advantage is None for e in result.episodes if e.reward is not None} == {False}
    assert len(result.experience("both")) == 3 * (4 + 12)


class Only:
    """What promises `result()` and nothing else."""

    def __init__(self, made):
        self.result = lambda: made


class Elsewhere(PrimeEnvironment):
    """The family as one was written before `Pending` had a name: its checks run in a pool."""

    def __init__(self, config, pending):
        super().__init__(config)
        self.pending = pending

    def submit_validate(self, proposals):
        return self.pending(super().submit_validate(proposals).result)

    def submit_grade(self, answers):
        return self.pending(super().submit_grade(answers).result)


def test_a_family_returns_futures_or_whatever_else_has_a_result():
    def played(pending=None):
        selfplay, _ = play(SMALL, cycle(FRESH))
        if pending:
            family = Elsewhere(SMALL.task, pending)
            selfplay.environment = selfplay.prompts.environment = CheckedFamily(family, "prime")
        selfplay.seed()
        result = selfplay.play(1)
        return [(e.outcome, e.key, e.reward, e.advantage) for e in result.episodes]

    usual = played()
    assert {outcome for outcome, *_ in usual} == {"valid", "correct"}
    with ThreadPoolExecutor(1) as pool:
        for pending in (pool.submit, lambda check: done(check()), lambda check: Only(check())):
            assert played(pending) == usual


def test_results_do_not_depend_on_the_order_in_which_samples_finish():
    # The scripted engine finishes the last request first; everything is in order of requests.
    selfplay, _ = seeded(SMALL, cycle(FRESH))
    result = selfplay.play(1)
    assert new_keys(result) == [f"S D {t} =" for t in FRESH]
    assert [e.sample.index for e in by(result, "solve")[:4]] == [0, 1, 2, 3]


def test_solve_rates_and_learnability_are_those_of_the_estimates():
    rates = {"13 4": 0.0, "17 3": 0.25, "19 3": 0.75, "17 5": 1.0}

    def solve(prompt, index, request):
        for text, rate in rates.items():
            if prompt == f"S D {text} =" and request.n == 4:
                return solution(prompt) if index < rate * 4 else "1"
        return solution(prompt)

    selfplay, _ = seeded(SMALL, cycle(FRESH), solve=solve)
    result = selfplay.play(1)
    proposals = by(result, "propose")
    assert [e.solve_rate for e in proposals] == [0.0, 0.25, 0.75, 1.0]
    assert [e.reward for e in proposals] == [0.0, 0.75, 0.25, 0.0]
    assert result.metrics["propose/deduction/learnability"] == 0.25
    assert "propose/deduction/novelty" not in result.metrics

    parity = changed(SMALL, reward__zero_learnability=-0.5)
    selfplay, _ = seeded(parity, cycle(FRESH), solve=solve)
    result = selfplay.play(1)
    assert [e.reward for e in by(result, "propose")] == [-0.5, 0.75, 0.25, -0.5]
    assert result.metrics["propose/deduction/learnability"] == 0.0


def test_rejected_proposals_cost_their_price_and_never_enter_a_buffer():
    texts = ["4 3", "13", "13 4...", "29 3"]
    selfplay, _ = seeded(SMALL, cycle(texts))
    result = selfplay.play(1)
    assert [(e.verdict.reason, e.reward) for e in by(result, "propose")] == [
        ("not_prime", -1.0),
        ("malformed", -1.0),
        ("unfinished", -1.0),
        ("malformed", -1.0),
    ]  # fmt: skip - 29 is no word of the vocabulary: it decodes as unknown
    assert not new_keys(result)
    assert result.metrics["propose/deduction/valid_rate"] == 0.0
    assert result.metrics["propose/deduction/rejected/not_prime"] == 1.0
    assert result.metrics["propose/deduction/format_rate"] == 0.25
    assert np.isnan(result.metrics["propose/deduction/learnability"])


def test_a_duplicate_is_estimated_once_rewarded_alike_and_enters_once():
    def solve(prompt, index, request):
        return "1" if request.n == 4 and index == 0 else solution(prompt)

    selfplay, engine = seeded(SMALL, cycle(["13 4", "17 3", "13 4", "13 4"]), solve=solve)
    result = selfplay.play(1)
    estimates = [r for r in engine.calls[1] if r.n == 4]
    assert len(estimates) == 3 * 2
    assert [e.reward for e in by(result, "propose")] == [0.25] * 4
    assert len(new_keys(result)) == 2
    assert result.metrics["propose/deduction/unique_rate"] == 0.5


def held_out_text(selfplay):
    q = selfplay.environment.eval_tasks("heldout_pair", "deduction")[0].problem
    return f"{q.p} {q.x}"


def test_a_held_out_proposal_has_no_gradient_enters_no_statistic_and_is_counted_apart():
    text = held_out_text(play(SMALL, cycle(FRESH))[0])
    selfplay, engine = seeded(SMALL, cycle(["13 4", text, "4 3", "17 3"]))
    result = selfplay.play(1)
    proposals = by(result, "propose")
    assert [e.reward is None for e in proposals] == [False, True, False, False]
    assert proposals[1].advantage is None
    assert all(e.prompt.token_ids and e.advantage is not None for e in result.episodes if e.reward)
    assert len(result.experience("proposer")) == 3 * 3
    assert f"S D {text} =" not in selfplay.buffers["deduction"]
    prompts = [engine.tokenizer.decode(list(r.token_ids)) for r in engine.calls[1]]
    assert f"S D {text} =" not in prompts
    m = result.metrics
    assert m["propose/deduction/held_out"] == 1.0
    assert m["propose/deduction/valid_rate"] == pytest.approx(2 / 3)
    assert "propose/deduction/rejected/held_out" not in m
    # The statistics of the cell are those of the other three.
    rewards = [e.reward for e in proposals if e.reward is not None]
    cell = selfplay.cells["propose", "deduction"]
    assert float(result.cells.mean[cell]) == pytest.approx(statistics.fmean(rewards))
    assert float(result.cells.std[cell]) == pytest.approx(statistics.stdev(rewards))


def test_no_held_out_task_is_ever_trained_on_whatever_is_proposed():
    numbers = itertools.product([7, 11, 13, 17, 19, 23], range(1, 23))
    texts = [f"{p} {x}" for p, x in numbers]
    config = changed(SMALL, selfplay__proposals_per_type=len(texts))
    selfplay, engine = seeded(config, cycle(texts))
    selfplay.play(1)
    environment = selfplay.environment
    for task_type in TYPES:
        held_out = {
            environment.key(t)
            for split in environment.splits()[1:]
            for t in environment.eval_tasks(split, task_type)
        }
        assert not held_out & {e.key for e in selfplay.buffers[task_type].entries()}
        prompts = {engine.tokenizer.decode(list(r.token_ids)) for r in engine.calls[1]}
        assert not held_out & prompts


def test_this_steps_tasks_are_solved_first_and_the_rest_comes_from_the_buffer():
    selfplay, engine = seeded(SMALL, cycle(FRESH))
    seeds = {e.key for e in selfplay.buffers["deduction"].entries()}
    selfplay.play(1)
    solved = [
        engine.tokenizer.decode(list(r.token_ids))
        for r in engine.calls[1]
        if r.n == 2 and engine.tokenizer.decode(list(r.token_ids)).startswith("S D")
    ]
    assert solved[:4] == [f"S D {t} =" for t in FRESH]
    assert len(solved) == 6 and set(solved[4:]) <= seeds


def test_more_valid_tasks_than_places_are_cut_in_order():
    config = changed(SMALL, selfplay__solver_tasks_per_type=2)
    selfplay, engine = seeded(config, cycle(FRESH))
    result = selfplay.play(1)
    trained = {e.key for e in by(result, "solve") if e.reward is not None}
    assert trained == {f"S D {t} =" for t in FRESH[:2]}


def test_a_small_buffer_is_drawn_from_again_so_that_a_cell_keeps_its_size():
    config = changed(SMALL, selfplay__seed_tasks=2, selfplay__solver_tasks_per_type=9)
    selfplay, _ = seeded(config, cycle(["4 3"]))  # nothing valid
    result = selfplay.play(1)
    assert sum(e.reward is not None for e in by(result, "solve")) == 9 * 2


def test_lagged_solving_solves_the_tasks_of_the_step_before():
    config = changed(SMALL, selfplay__solve_lag=1)
    texts = {1: FRESH[:2] * 2, 2: FRESH[2:] * 2}
    step = 1
    selfplay, engine = seeded(config, lambda *a: cycles[step](*a))
    cycles = {n: cycle(t) for n, t in texts.items()}
    first = selfplay.play(1)
    assert not {f"S D {t} =" for t in texts[1]} & {
        e.key for e in by(first, "solve") if not e.is_estimate
    } - {e.key for e in selfplay.buffers["deduction"].entries()}
    step = 2
    second = selfplay.play(2)
    solved = list(dict.fromkeys(e.key for e in by(second, "solve") if not e.is_estimate))
    assert solved[:2] == [f"S D {t} =" for t in texts[1][:2]]
    # The estimates are still this step's: a proposal is rewarded in its own step.
    estimated = {e.key for e in by(second, "solve") if e.is_estimate}
    assert estimated == {f"S D {t} =" for t in texts[2]}


def test_estimate_samples_can_be_the_solver_samples():
    config = changed(SMALL, selfplay__solver_samples="estimate")
    selfplay, engine = seeded(config, cycle(FRESH))
    result = selfplay.play(1)
    answers = by(result, "solve")
    estimates = [e for e in answers if e.is_estimate]
    assert len(estimates) == 4 * 4 and all(e.reward is not None for e in estimates)
    assert len([e for e in answers if not e.is_estimate]) == 2 * 2  # two tasks from the buffer
    assert len(result.experience("solver")) == 3 * (16 + 4)


def test_roles_choose_whose_samples_are_trained_on():
    selfplay, _ = seeded(SMALL, cycle(FRESH))
    result = selfplay.play(1)
    propose = {e.prompt.token_ids for e in result.episodes if e.role == "propose"}
    assert {e.prompt_ids in propose for e in result.experience("solver")} == {False}
    assert {e.prompt_ids in propose for e in result.experience("proposer")} == {True}
    assert len(result.experience("both")) == len(result.experience("solver")) + len(
        result.experience("proposer")
    )


def test_a_subset_of_task_types_has_only_their_cells():
    config = changed(SMALL, task__types=("induction",))
    selfplay, engine = seeded(config, cycle(FRESH))
    result = selfplay.play(1)
    assert {e.type for e in result.episodes} == {"induction"}
    assert len(selfplay.cells) == 2 and set(selfplay.buffers) == {"induction"}
    assert not [name for name in result.metrics if "deduction" in name or "abduction" in name]


def test_references_are_distinct_tasks_of_the_own_buffer():
    config = changed(SMALL, task__references=3, selfplay__proposals_per_type=40)
    selfplay, engine = seeded(config, lambda *a: "4 3")
    selfplay.play(1)
    known = {
        t: {f"{e.task.problem.p} {e.task.problem.x} {e.task.problem.y}" for e in b.entries()}
        for t, b in selfplay.buffers.items()
    }
    prompts = [engine.tokenizer.decode(list(r.token_ids)) for r in engine.calls[0]]
    for prompt, task_type in zip(prompts, np.repeat(TYPES, 40), strict=True):
        shown = prompt[4:-2].removesuffix(" ;").split(" ; ")
        assert len(shown) == len(set(shown)) == 3 and set(shown) <= known[task_type]
    assert len(set(prompts)) > 40  # drawn anew for each prompt
    assert len({r.key for r in engine.calls[0]}) == len(prompts)


def test_recency_sampling_prefers_new_tasks():
    def share_of_new(sampling):
        config = changed(SMALL, task__references=1, selfplay__sampling=sampling)
        config = changed(config, selfplay__proposals_per_type=300)
        selfplay, engine = seeded(config, lambda *a: "4 3")
        buffer = selfplay.buffers["deduction"]
        buffer.add("new", Task("deduction", PrimeProblem(23, 1, 1)), step=99)
        selfplay.play(1)
        prompts = [engine.tokenizer.decode(list(r.token_ids)) for r in engine.calls[0][:300]]
        return sum("23 1 1" in p for p in prompts) / 300

    assert abs(share_of_new("uniform") - 1 / 6) < 0.1
    assert share_of_new("recency") > 0.85


def test_sampling_parameters_are_explicit_for_every_phase():
    config = changed(
        SMALL, selfplay__estimate_temperature=0.7, rollout__temperature=1.3, rollout__min_p=0.1
    )
    selfplay, engine = seeded(config, cycle(FRESH))
    selfplay.play(1)
    assert {r.sampling.temperature for r in engine.calls[0]} == {1.3}
    assert {(r.n, r.sampling.temperature) for r in engine.calls[1]} == {(4, 0.7), (2, 1.3)}
    assert {r.sampling.min_p for call in engine.calls for r in call} == {0.1}


def test_keys_of_all_requests_of_several_steps_differ():
    selfplay, engine = seeded(SMALL, cycle(FRESH))
    for step in (1, 2, 3):
        selfplay.play(step)
    keys = [r.key for call in engine.calls for r in call]
    assert len(keys) == len(set(keys))


def test_the_model_seeds_its_buffers_and_the_environment_helps_only_in_the_end():
    config = changed(SMALL, selfplay__seed_source="model", selfplay__seed_tasks=3)
    selfplay, engine = play(config, cycle([*FRESH[:3], "4 3"]))
    seeding = selfplay.seed()
    assert [e.key for e in selfplay.buffers["deduction"].entries()] == [
        f"S D {t} =" for t in FRESH[:3]
    ]
    assert seeding.added == dict.fromkeys(TYPES, 0) and len(engine.calls) == 1
    assert seeding_metrics(seeding)["propose/deduction/valid_rate"] == 0.75
    assert {e.step for e in selfplay.buffers["deduction"].entries()} == {0}

    config = changed(config, selfplay__seed_rounds=2, selfplay__seed_tasks=5)
    selfplay, engine = play(config, cycle(FRESH[:1]))
    seeding = selfplay.seed()
    assert len(engine.calls) == 2
    assert seeding.added == dict.fromkeys(TYPES, 4)
    assert {len(b) for b in selfplay.buffers.values()} == {5}
    assert len(seeding.tasks) == 15


def test_environment_seeds_ask_the_model_nothing():
    selfplay, engine = play(SMALL, cycle(FRESH))
    seeding = selfplay.seed()
    assert engine.calls == [] and seeding.added == dict.fromkeys(TYPES, 5)


def test_advantages_are_whitened_inside_each_cell_alone():
    def solve(prompt, index, request):
        right = prompt.startswith("S I") or index == 0
        return solution(prompt) if right else "1"

    selfplay, _ = seeded(SMALL, cycle(["13 4", "4 3", "17 3", "13"]), solve=solve)
    result = selfplay.play(1)
    for role, task_type in itertools.product(("propose", "solve"), TYPES):
        cell = [e for e in by(result, role, task_type) if e.reward is not None]
        rewards, advantages = [e.reward for e in cell], [e.advantage for e in cell]
        if role == "solve" and task_type == "induction":
            assert set(rewards) == {1.0} and set(advantages) == {0.0}
            continue
        mean, std = statistics.fmean(rewards), statistics.stdev(rewards)
        assert advantages == pytest.approx([(r - mean) / std for r in rewards], rel=1e-5)
    assert result.metrics["reward/frac_zero_std"] == pytest.approx(1 / 6)


def test_token_whitening_counts_a_sample_once_per_token():
    # A proposal of two numbers has three tokens, one number two tokens.
    config = changed(SMALL, loss__whiten="token")
    selfplay, _ = seeded(config, cycle(["13 4", "13", "17 3", "13"]))
    cell = by(selfplay.play(1), "propose")
    assert [len(e.sample.token_ids) for e in cell] == [3, 2, 3, 2]
    repeated = [e.reward for e in cell for _ in e.sample.token_ids]
    mean, std = statistics.fmean(repeated), statistics.stdev(repeated)
    expected = [(e.reward - mean) / std for e in cell]
    assert [e.advantage for e in cell] == pytest.approx(expected, rel=1e-5)


def test_distinct_proposals_are_counted_over_the_last_ones():
    selfplay, _ = seeded(SMALL, cycle(["13 4", "17 3", "13 4", "4 3"]))
    for step in (1, 2):
        metrics = selfplay.play(step).metrics
    assert metrics["propose/recent"] == 2 * 3 * 3
    assert metrics["propose/distinct_recent"] == 2 * 3


def test_rows_for_the_record_hold_what_happened():
    selfplay, _ = seeded(SMALL, cycle(["13 4", "4 3", "17 3", "13"]))
    rows = [r for r in map(SampleRow.of, selfplay.play(1).episodes) if r.type == "deduction"]
    proposals = [r for r in rows if r.role == "propose"]
    assert [(r.text, r.outcome, r.reason) for r in proposals] == [
        ("13 4", "valid", ""), ("4 3", "invalid", "not_prime"),
        ("17 3", "valid", ""), ("13", "malformed", "malformed"),
    ]  # fmt: skip
    assert {r.outcome for r in rows if r.role == "solve"} == {"correct"}
    assert sum(r.is_estimate and r.reward is None for r in rows) == 2 * 4
