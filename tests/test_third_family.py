"""A task family of another package: installed on its own, it trains with nothing changed here."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import processes
import pytest

from azr.run.metrics import read_metrics
from azr.tasks import Answer, Proposal, Task

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "examples" / "clock_family"
TYPES = ("deduction", "abduction", "induction")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that pip installed the package into; no network is asked for anything."""
    copy = tmp_path_factory.mktemp("source") / "clock"
    copy.mkdir()
    for name in ("pyproject.toml", "azr_clock.py"):
        (copy / name).write_bytes((SOURCE / name).read_bytes())
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    options = ["--no-build-isolation", "--disable-pip-version-check", "--target", str(target)]
    done = subprocess.run([*command, *options, str(copy)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def run(site, program, output, *arguments):
    """Returns (exit code, what it printed) of a program in a process that sees the folder."""
    # The entry point alone leads to the family: nothing but the installed folder holds the module.
    code = f"sys.path.insert(0, {str(site)!r})\n{program}"
    process = processes.start(code, arguments, output)
    return processes.finish(process, 300), output.read_text()


def test_it_is_short_and_a_package_of_its_own(installed):
    assert len((SOURCE / "azr_clock.py").read_text().splitlines()) < 120
    assert (installed / "azr_clock.py").exists()
    assert list(installed.glob("azr_clock-*.dist-info/entry_points.txt"))


def test_it_trains_twenty_steps_and_earns_rewards(installed, tmp_path):
    output = tmp_path / "output"
    code, printed = run(
        installed, processes.TRAIN, output, "--env", "clock", "--task.references", "2",
        "--steps", "20", "--run.root", tmp_path, "--selfplay.proposals-per-type", "8",
        "--eval.every", "20", "--selfplay.solver-tasks-per-type", "16", "--warmup.steps", "60",
        "--warmup.batch-size", "128",
    )  # fmt: skip
    assert code == 0, printed
    rows = read_metrics(tmp_path / "latest" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(21))
    for t in TYPES:
        later = rows[11:]
        assert np.mean([r[f"propose/{t}/valid_rate"] for r in later]) > 0.5
        assert np.mean([r[f"solve/{t}/format_rate"] for r in later]) > 0.9
        assert max(r[f"reward/propose/{t}/mean"] for r in later) > 0
        assert any(r[f"solve/{t}/accuracy"] > 0 for r in later)
        assert rows[-1][f"buffer/{t}/size"] > 16
        assert rows[-1][f"eval/heldout/{t}/chance"] == pytest.approx(1 / 12)
    code, printed = run(installed, processes.EVALUATE, output, tmp_path / "latest")
    assert code == 0, printed
    folder = tmp_path / "latest" / "evaluations" / "step_000020"
    metrics = json.loads((folder / "clock.json").read_text())["metrics"]
    assert metrics and metrics == {k: v for k, v in rows[-1].items() if k in metrics}


def test_without_the_package_the_name_is_unknown(tmp_path):
    arguments = ("--env", "clock", "--dry-run")
    code, printed = run(ROOT, processes.TRAIN, tmp_path / "output", *arguments)
    assert code == 2 and "no such task family" in printed


@pytest.fixture
def family(installed, monkeypatch):
    monkeypatch.syspath_prepend(str(installed))
    from azr_clock import ClockFamily

    from azr.config import TaskConfig

    return ClockFamily(TaskConfig(family="clock", references=2))


def test_the_defaults_split_the_universe_and_survive_json(family):
    for t in TYPES:
        train, heldout = (family.eval_tasks(split, t) for split in family.splits())
        assert len(train) + len(heldout) == 144 == len({family.key(x) for x in train + heldout})
        assert 5 <= len(heldout) <= 30 and family.universe_size(t) == len(train)
        assert {x.problem for x in heldout} == {
            x.problem for x in family.eval_tasks("heldout", "deduction")
        }
        for task in train + heldout:
            assert family.from_json(json.loads(json.dumps(family.to_json(task)))) == task
    seeds = family.seed_tasks(np.random.default_rng(0), 20)
    assert {t: len(set(tasks)) for t, tasks in seeds.items()} == dict.fromkeys(TYPES, 20)
    assert all(family.split(x) == "train" for tasks in seeds.values() for x in tasks)
    for wrong in ({}, {"type": "x", "problem": [1, 2, 3]}, {"type": "deduction", "problem": 7},
                  {"type": "deduction", "problem": [1, 2, 4]}):  # fmt: skip
        with pytest.raises(ValueError, match="not a task"):
            family.from_json(wrong)


def test_the_defaults_see_to_hold_outs_and_unfinished_text(family):
    def verdict(text, finished=True):
        proposal = Proposal(type="deduction", text=text, finished=finished)
        return family.submit_validate([proposal]).result()[0]

    (held,) = {x.problem for x in family.eval_tasks("heldout", "deduction")[:1]}
    assert verdict("{} {}".format(*held)).status == "held_out"
    (kept,) = {x.problem for x in family.eval_tasks("train", "deduction")[:1]}
    assert verdict("{} {}".format(*kept)).task == Task("deduction", kept)
    assert verdict("{} {}".format(*kept), finished=False).reason == "unfinished"
    assert verdict("12 0").status == "malformed"
    task = Task("abduction", (11, 2, 1))
    answers = [Answer(task=task, text=text, finished=f) for text, f in
               (("11", True), ("1", True), ("11", False), ("11 ", True))]  # fmt: skip
    assert [g.outcome for g in family.submit_grade(answers).result()] == [
        "correct", "wrong", "malformed", "malformed",
    ]  # fmt: skip
