"""References across types, seeds from files, what could not be judged, and novelty rewards."""

import json
import math
from types import SimpleNamespace

import pytest
from scripted import SMALL, changed, play, solution

from azr.buffer import TaskBuffer
from azr.config import ConfigError, RewardConfig
from azr.keys import generator
from azr.reward import Novelty, novelty_reward, proposer_reward
from azr.selfplay.references import draw_references
from azr.selfplay.seeding import read_seeds, write_seeds
from azr.tasks import Grade, References, Task, Traits, Verdict
from azr.tasks.environment import done

NEW = Novelty(complexity=0.4, distance=0.8, answer=0.9)
VALID = Verdict(task=Task("deduction", 1), status="valid")


def test_novelty_is_off_by_default_and_each_term_is_capped():
    assert novelty_reward(NEW, RewardConfig()) == 0
    assert novelty_reward(NEW, RewardConfig(complexity_coef=0.5)) == pytest.approx(0.2)
    on = RewardConfig(complexity_coef=1, distance_coef=1, answer_coef=1)
    assert novelty_reward(NEW, on) == pytest.approx(0.4 + 0.5 + 0.5)
    unknown = Novelty(complexity=0.4, distance=math.nan, answer=math.nan)
    assert novelty_reward(unknown, on) == pytest.approx(0.4)


def test_novelty_pays_only_where_there_is_something_to_learn():
    on = RewardConfig(distance_coef=0.5)
    assert proposer_reward(VALID, 0.25, on, NEW) == pytest.approx(0.75 + 0.4)
    for rate in (0.0, 1.0):
        assert proposer_reward(VALID, rate, on, NEW) == 0
    invalid = Verdict(task=None, status="invalid", reason="x")
    assert proposer_reward(invalid, None, on, NEW) == -1


class Told:
    """An environment that tells traits and answers of another one's tasks."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def traits(self, task, others):
        return Traits(length=3.0, complexity=5.0, distance=0.5 if others else math.nan)

    def answer(self, task):
        return str(task.problem.y)


def test_traits_become_metrics_and_rewards():
    def solve(prompt, index, request):
        return "1" if request.n == 4 and index == 0 else solution(prompt)

    config = changed(SMALL, reward__complexity_coef=0.5)
    selfplay, _ = play(config, lambda prompt, index, request: "13 4", solve=solve)
    selfplay.environment = Told(selfplay.environment)
    selfplay.seed()
    counts = [e.task.problem.y for e in selfplay.buffers["deduction"].entries()]
    result = selfplay.play(1)
    m = result.metrics
    assert m["propose/deduction/program_length"] == 3
    assert m["propose/deduction/complexity"] == 5
    assert m["propose/deduction/ast_distance"] == 0.5
    assert math.isnan(m["propose/deduction/reference_distance"])  # K = 0
    share = counts.count(10) / len(counts)  # of the answer of 13 4
    assert m["propose/deduction/answer_diversity"] == pytest.approx(1 - share)
    rewards = [e.reward for e in result.episodes if (e.role, e.type) == ("propose", "deduction")]
    assert rewards == pytest.approx([0.25 + 0.5 * 0.5] * 4)
    assert m["propose/deduction/learnability"] == 0.25
    assert m["propose/deduction/novelty"] == pytest.approx(0.25)


class Failing:
    """An environment whose verifier fails on some of the proposals and answers."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def submit_validate(self, proposals):
        found = self._inner.submit_validate(proposals).result()
        lost = Verdict(task=None, status="unjudged", reason="sandbox_failure")
        return done([lost if p.text == "17 3" else v for p, v in zip(proposals, found)])  # noqa: B905

    def submit_grade(self, answers):
        found = self._inner.submit_grade(answers).result()
        lost = Grade(outcome="unjudged", reason="sandbox_failure")
        return done([lost if a.text == "1" else g for a, g in zip(answers, found)])  # noqa: B905


def test_what_the_verifier_failed_on_has_no_reward_and_no_gradient():
    texts = ["13 4", "17 3"]

    def propose(prompt, index, request):
        return texts[request.key % 2]

    def solve(prompt, index, request):
        return "1" if index == 0 else solution(prompt)

    selfplay, _ = play(SMALL, propose, solve=solve)
    selfplay.environment = Failing(selfplay.environment)
    selfplay.seed()
    result = selfplay.play(1)
    proposals = [e for e in result.episodes if e.role == "propose"]
    lost = [e for e in proposals if e.text == "17 3"]
    kept = [e for e in proposals if e.text == "13 4"]
    assert lost and kept
    assert all(e.reward is None and e.advantage is None for e in lost)
    # The estimate counts the three samples that were judged, all of them right.
    assert {e.solve_rate for e in kept} == {1.0}
    answers = [e for e in result.episodes if e.role == "solve"]
    unjudged = [e for e in answers if e.grade.outcome == "unjudged"]
    assert unjudged and all(e.reward is None for e in unjudged)
    m = result.metrics
    for t in selfplay.types:
        assert m[f"solve/{t}/accuracy"] == 1.0
    assert sum(m[f"solve/{t}/unjudged"] for t in selfplay.types) == len(unjudged)
    assert sum(m[f"propose/{t}/unjudged"] for t in selfplay.types) == len(lost)
    assert all(e.advantage is None for e in lost + unjudged)
    experience = result.experience("both")
    assert len(experience) == len([e for e in result.episodes if e.reward is not None])


class Union:
    def __init__(self, types, count=None):
        self._references = References(types=types, count=count)

    def reference_source(self, task_type):
        return self._references


def buffers():
    made = {t: TaskBuffer(10) for t in ("deduction", "abduction", "induction")}
    for n in range(3):
        made["deduction"].add(f"d{n}", Task("deduction", n), 0)
        made["abduction"].add(f"a{n}", Task("abduction", n), n)
    made["induction"].add("i", Task("induction", 9), 0)
    return made


def draw(config, source, of, made=None):
    made = made or buffers()
    return [
        draw_references(config, source.reference_source(of), made, of, generator("references", n))
        for n in range(200)
    ]


def test_references_come_from_the_buffers_that_the_family_names():
    drawn = draw(SMALL, Union(("abduction", "deduction"), 1), "induction")
    assert {len(r) for r in drawn} == {1}
    seen = {(r[0].type, r[0].problem) for r in drawn}
    assert seen == {(t, n) for t in ("abduction", "deduction") for n in range(3)}
    assert all(r == () for r in draw(SMALL, Union(("deduction",)), "deduction"))  # K = 0
    shown = changed(SMALL, task__references=2)
    for references in draw(shown, Union(("deduction",)), "deduction"):
        assert len(set(references)) == 2 and {r.type for r in references} == {"deduction"}


def test_without_those_types_references_come_from_the_own_buffer():
    only = {"induction": buffers()["induction"]}
    drawn = draw(SMALL, Union(("abduction", "deduction"), 1), "induction", only)
    assert {r[0].problem for r in drawn} == {9}


def test_recency_prefers_what_came_late():
    config = changed(SMALL, selfplay__sampling="recency")
    drawn = draw(config, Union(("abduction",), 1), "induction")
    latest = sum(r[0].problem == 2 for r in drawn)
    assert latest > 1.5 * sum(r[0].problem == 0 for r in drawn)


def test_a_seed_may_hold_what_utf8_cannot(tmp_path):
    write_seeds(tmp_path / "seeds", SimpleNamespace(to_json=lambda text: {"a": text}), ["\ud800é"])
    assert json.loads((tmp_path / "seeds").read_text(encoding="utf-8")) == {"a": "\ud800é"}


def test_seed_files_are_read_back_and_wrong_lines_are_named(tmp_path):
    selfplay, _ = play(SMALL, lambda prompt, index, request: "4 4")
    environment = selfplay.environment
    tasks = environment.seed_tasks(generator("file"), 6)["deduction"]
    held = environment.eval_tasks("heldout_pair", "deduction")[0]
    path = tmp_path / "seeds.jsonl"
    write_seeds(path, environment, [*tasks, held])
    assert read_seeds(path, environment) == tasks
    begun, _ = play(SMALL, lambda prompt, index, request: "4 4")
    begun.seed(read_seeds(path, environment))
    assert [e.task for e in begun.buffers["deduction"].entries()] == tasks[:5]
    path.write_text(path.read_text() + '{"type": "deduction"}\n')
    with pytest.raises(ConfigError, match=r"line 8: no task of this family"):
        read_seeds(path, environment)
    for text in ("{", "[1]", "3", '"x"'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="line 1"):
            read_seeds(path, environment)
    with pytest.raises(ConfigError, match="seed-file"):
        read_seeds(tmp_path / "absent.jsonl", environment)
