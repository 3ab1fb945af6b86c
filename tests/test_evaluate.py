"""`python -m azr.evaluate` on runs and models: the numbers of training, with their intervals."""

import json
import shutil
from dataclasses import astuple

import pytest
import torch
from scripted import ScriptedEngine, changed, solution
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from azr.accuracy import (
    Interval,
    Score,
    change,
    sampled_difference,
    wilson,
    wilson_clustered,
)
from azr.config import Config, PrimeConfig, TaskConfig, load_toml, parse_command_line
from azr.evaluate import main
from azr.evaluation import GradedTask, grade_tasks, scores
from azr.evaluation.cells import make_cells
from azr.model.load import make_tokenizer
from azr.run.console import RunConsole
from azr.run.metrics import read_metrics
from azr.tasks import Grade, load_environment
from azr.tasks.environment import done
from azr.train import run

TYPES = ("deduction", "abduction", "induction")
FAST = [
    "--steps", "6", "--warmup.steps", "40", "--selfplay.proposals-per-type", "6",
    "--selfplay.solver-tasks-per-type", "16", "--selfplay.seed-tasks", "8", "--eval.every", "3",
    "--eval.samples", "3", "--task.prime.max-p", "13", "--save.every", "3",
    "--optim.lr", "3e-3", "--log.samples", "False",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return run(parse_command_line([*FAST, "--run.root", str(root)]).config).run_dir


def evaluated(*arguments):
    assert main([str(a) for a in arguments]) == 0


def eval_metrics(row):
    return {name: value for name, value in row.items() if name.startswith("eval/")}


@pytest.fixture(scope="module")
def result(finished):
    evaluated(finished)
    return json.loads((finished / "evaluations" / "step_000006" / "prime.json").read_text())


def test_the_numbers_are_those_of_the_training(finished, result):
    rows = {row["step"]: row for row in read_metrics(finished / "metrics.jsonl")}
    assert result["step"] == 6 and result["baseline"]["step"] == 0
    assert result["metrics"] == eval_metrics(rows[6])
    assert result["baseline_metrics"] == eval_metrics(rows[0])
    assert rows[0] != rows[6]
    for cell in result["cells"]:
        if not cell["stratum"]:
            name = f"eval/{cell['split']}/{cell['type']}"
            for kind in ("greedy", "sampled"):
                value = cell[kind]["accuracy"]["value"]
                assert value == rows[6][f"{name}/{kind}_accuracy"]
                assert (
                    cell["against"][kind]["accuracy"]["value"]
                    == (rows[0][f"{name}/{kind}_accuracy"])
                )
            assert cell["chance"] == rows[6][f"{name}/chance"]


def test_every_distinct_prompt_is_there_once_and_again_in_its_stratum(result):
    whole = {(c["split"], c["type"]): c for c in result["cells"] if not c["stratum"]}
    # Up to 13 there are 35 triples; induction has one prompt for the six with x = y = 1.
    for t, n in zip(TYPES, (35, 35, 30), strict=True):
        assert sum(c["tasks"] for (_, of), c in whole.items() if of == t) == n
    for key, cell in whole.items():
        parts = [c for c in result["cells"] if (c["split"], c["type"]) == key and c["stratum"]]
        if parts:
            assert sum(c["tasks"] for c in parts) == cell["tasks"]
            right = sum(c["greedy"]["accuracy"]["value"] * c["tasks"] for c in parts)
            assert right == pytest.approx(cell["greedy"]["accuracy"]["value"] * cell["tasks"])
    strata = [c["stratum"] for c in result["cells"] if c["split"] == "train"]
    assert strata == ["", *(f"p = {p}" for p in (2, 3, 5, 7, 11, 13))] * 3


@torch.no_grad()
def test_greedy_accuracy_is_what_plain_transformers_finds(finished, result):
    folder = finished / "checkpoints" / "step_000006" / "hf"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    cells = {(c["split"], c["type"]): c for c in result["cells"] if not c["stratum"]}
    environment = load_environment(load_toml(finished / "config.toml").task)
    right = 0
    tasks = environment.eval_tasks("train", "deduction")
    for task in tasks:
        ids = tokenizer(f"S D {task.problem.p} {task.problem.x} =", return_tensors="pt")
        new = model(input_ids=ids["input_ids"]).logits[0, -1].argmax()
        right += tokenizer.decode(new) == str(task.problem.y)
    assert cells["train", "deduction"]["greedy"]["accuracy"]["value"] == right / len(tasks)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        (".", 6),
        ("checkpoints/step_000006", 6),
        ("checkpoints/step_000003", 3),
        ("checkpoints/step_000003/hf", 3),
        ("start", 0),
        ("start/hf", 0),
    ],
)
def test_runs_checkpoints_and_start_models_are_found(finished, tmp_path, name, step):
    out = tmp_path / "result.json"
    evaluated(finished / name, "--out", out)
    got = json.loads(out.read_text())
    row = next(r for r in read_metrics(finished / "metrics.jsonl") if r["step"] == step)
    assert got["step"] == step and got["metrics"] == eval_metrics(row)
    assert (got["baseline"] is None) == (step == 0)


def test_a_model_of_no_run_takes_options_and_a_baseline(finished, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(finished / "checkpoints" / "step_000006" / "hf", model)
    options = ["--task.prime.max-p", "13", "--eval.samples", "0", "--run.root", tmp_path]
    evaluated(model, *options, "--baseline", finished / "start")
    name = str(model).strip("/").replace("/", "--")
    got = json.loads((tmp_path / "evaluations" / name / "prime.json").read_text())
    rows = read_metrics(finished / "metrics.jsonl")
    for kind, row in (("metrics", rows[-1]), ("baseline_metrics", rows[0])):
        greedy = {n: v for n, v in row.items() if n.startswith("eval/") and "greedy" in n}
        assert {n: v for n, v in got[kind].items() if "greedy" in n} == greedy
    assert all(c["sampled"] is None and c["samples"] == 0 for c in got["cells"])
    assert all(c["against"]["sampled_difference"] is None for c in got["cells"])


def test_the_table_shows_each_cell_with_its_interval(finished, result, tmp_path, capsys):
    evaluated(finished, "--out", tmp_path / "x.json")
    text = capsys.readouterr().out
    for cell in result["cells"]:
        a = cell["greedy"]["accuracy"]
        if not cell["stratum"]:
            assert f"{a['value']:.3f} [{a['low']:.3f}, {a['high']:.3f}]" in text
            assert f"{cell['against']['greedy_change']['difference']['low']:+.2f}" in text
    assert "p = 13" in text and "…" not in text


def test_cells_hold_the_statistics_of_their_tasks():
    environment = load_environment(TaskConfig(prime=PrimeConfig(max_p=13)))
    tasks = environment.eval_tasks("train", "deduction")[:6]
    wrong, right = "wrong", "correct"

    def graded(greedy, counts):
        return [
            GradedTask(g, (right,) * c + ("malformed",) * (4 - c), split="train", task=task)
            for task, g, c in zip(tasks, greedy, counts, strict=True)
        ]

    after = graded([right, right, right, wrong, wrong, right], [4, 2, 3, 0, 1, 4])
    before = graded([wrong, right, wrong, wrong, right, wrong], [0, 1, 1, 0, 2, 0])
    cell = make_cells(environment, after, before)[0]
    assert cell.score.greedy_interval == wilson(4 / 6, 6)
    assert cell.score.sampled_interval == wilson_clustered([4, 2, 3, 0, 1, 4], 4)
    assert cell.score.sampled_format_rate == pytest.approx(14 / 24)
    assert cell.against.greedy_change == change(
        [False, True, False, False, True, False], [True, True, True, False, False, True]
    )
    assert cell.against.greedy_change.gained == 3 and cell.against.greedy_change.lost == 1
    assert cell.against.sampled_difference == sampled_difference(
        [0, 1, 1, 0, 2, 0], [4, 2, 3, 0, 1, 4], 4
    )
    assert make_cells(environment, after, None)[0].against is None
    during = scores(environment, after)["train", "deduction"]  # what training shows
    assert during == cell.score
    interval = cell.score.sampled_interval
    assert Interval(during.sampled, during.sampled_low, during.sampled_high) == interval


def test_training_shows_a_chance_that_is_not_known_as_a_dash(capsys):
    a = Score(
        tasks=4, samples=2, greedy=0.5, greedy_format_rate=1.0, sampled=0.25,
        sampled_format_rate=1.0, chance=float("nan"), sampled_low=0.1, sampled_high=0.5,
    )  # fmt: skip
    console = RunConsole(None, every=1)
    console.start_table({("train", "deduction"): a}, "Before")
    console.end_table({("train", "deduction"): a}, {("train", "deduction"): a})
    shown = capsys.readouterr().out
    assert "0.250 [0.100, 0.500]" in shown and "95% interval" in shown and "nan" not in shown
    assert shown.count(" - ") == 2


def refused(capsys, code, *arguments):
    try:
        got = main([str(a) for a in arguments])
    except SystemExit as end:
        got = end.code
    error = capsys.readouterr().err
    assert got == code and "Traceback" not in error, error
    return error


def test_what_cannot_be_evaluated_is_refused_by_name(finished, tmp_path, capsys, monkeypatch):
    nothing = tmp_path / "nothing"
    assert refused(capsys, 2, nothing) == f"azr: {nothing}: no such folder\n"
    assert "did you mean prime" in refused(capsys, 2, finished, "--env", "prim")
    assert "a run has options of its own" in refused(
        capsys, 2, finished, "--config", "cpu-prime.toml"
    )
    assert "--eval.samples" in refused(capsys, 2, finished, "--eval.samples", "-1")
    refused(capsys, 2, finished, "--no-such-flag", "1")
    refused(capsys, 2)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with monkeypatch.context() as patch:  # all of it before any work
        patch.setattr("azr.evaluation.family.grade_tasks", None)
        for out in (blocked / "x.json", "/proc/x.json", tmp_path):
            error = refused(capsys, 2, finished, "--out", out)
            assert f"--out {out}: cannot write there" in error
        error = refused(capsys, 2, finished, "--baseline", nothing)
        assert error == f"azr: --baseline {nothing}: no such folder\n"
        error = refused(capsys, 2, finished, "--baseline", tmp_path)
        assert f"--baseline {tmp_path}: not a complete HF model folder" in error


def test_a_damaged_checkpoint_is_named_and_a_run_falls_back_to_the_one_before(
    finished, tmp_path, capsys
):
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    damaged = copy / "checkpoints" / "step_000006"
    (damaged / "COMPLETE").unlink()
    assert "no COMPLETE file" in refused(capsys, 2, damaged)
    other = shutil.copytree(copy / "checkpoints" / "step_000003", copy / "checkpoints" / "best")
    assert "named step_ and its number; rename it" in refused(capsys, 2, other)
    (copy / "start" / "hf" / "config.json").write_text("{}")
    assert "start: not a whole model: hf/config.json is" in refused(capsys, 2, copy / "start")
    out = tmp_path / "x.json"
    evaluated(copy, "--out", out)
    told = capsys.readouterr().err
    assert "step_000006 is not used" in told and "start is not compared with: hf/config" in told
    assert json.loads(out.read_text())["step"] == 3
    assert json.loads(out.read_text())["baseline"] is None
    shutil.rmtree(copy / "checkpoints")
    assert "no whole checkpoint" in refused(capsys, 1, copy)


def test_ctrl_c_is_a_line_and_an_exit_code(finished, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("azr.evaluation.family.grade_tasks", interrupted)
    assert "interrupted" in refused(capsys, 130, finished)


def test_evaluating_imports_no_trainer(finished, tmp_path):
    from test_layout import TRAINER, loaded_by, within

    arguments = [str(finished), "--eval.samples", "1", "--out", str(tmp_path / "x.json")]
    held = loaded_by(f"from azr.evaluate import main; assert main({arguments}) == 0")
    assert "azr.rollout.engine" in held and "azr.start.model" in held
    assert [module for module in held if within(module, TRAINER)] == []


def test_help_answers_without_torch():
    from test_layout import loaded_by

    code = """
from azr.evaluate import main
try:
    main(["--help"])
except SystemExit as end:
    assert not end.code
"""
    assert not loaded_by(code) & {"torch", "transformers", "numpy"}


def test_what_the_verifier_cannot_judge_is_tried_again_and_counts_nowhere(monkeypatch):
    config = changed(Config(), task__prime=PrimeConfig(max_p=7), task__style="compact")
    environment = load_environment(config.task)
    vocabulary = environment.vocabulary()
    tokenizer = make_tokenizer(vocabulary.words, vocabulary.split)
    engine = ScriptedEngine(tokenizer, lambda prompt, index, request: solution(prompt))
    plain, calls = environment.submit_grade, [None]

    def failing(answers):
        """Fails on the answers to (7, 3, 5) always, to (7, 2, 4) twice."""
        grades = plain(answers).result()
        for i, answer in enumerate(answers):
            most = {(7, 3, 5): 99, (7, 2, 4): 2}.get(astuple(answer.task.problem), 0)
            if len(calls) <= most:
                grades[i] = Grade(outcome="unjudged", reason="sandbox_failure")
        calls.append(None)
        return done(grades)

    monkeypatch.setattr(environment, "submit_grade", failing)
    graded = grade_tasks(config, environment, engine, tokenizer, 0)
    out = [astuple(g.task.problem) for g in graded if not g.is_judged]
    assert out == [(7, 3, 5)] * 3 and len(calls) == 4
    results = scores(environment, graded)
    assert sum(a.tasks for a in results.values()) == len(graded) - 3
    assert all(a.greedy == a.sampled == 1.0 for a in results.values())
    assert sum(c.score.tasks for c in make_cells(environment, graded, graded) if not c.stratum) == (
        len(graded) - 3
    )


def test_another_order_of_tasks_is_never_compared():
    environment = load_environment(TaskConfig(prime=PrimeConfig(max_p=13)))
    tasks = environment.eval_tasks("train", "deduction")[:2]
    graded = [GradedTask("wrong", (), split="train", task=task) for task in tasks]
    with pytest.raises(ValueError, match="same tasks"):
        make_cells(environment, graded, graded[::-1])
    with pytest.raises(ValueError):
        make_cells(environment, graded, graded[:1])
