"""The program family through the whole trainer: the CPU preset, and real architectures in text."""

import dataclasses
import json
import shutil
import sqlite3
from itertools import combinations

import numpy as np
import pytest
import torch
from folders import make_folder
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from azr.config import TaskConfig, parse_command_line
from azr.evaluate import main as evaluate_main
from azr.keys import generator
from azr.run.metrics import read_metrics
from azr.sandbox import SandboxError
from azr.selfplay.seeding import read_seeds
from azr.tasks import load_environment
from azr.tasks.program.normal import digest
from azr.train import main, run

pytest.importorskip("azr._sandbox", reason="the sandbox extension is not built")

TYPES = ("deduction", "abduction", "induction")
CPU = [
    "--config", "cpu-program.toml", "--warmup.batch-size", "64", "--warmup.steps", "70",
    "--selfplay.seed-tasks", "48", "--selfplay.seed-rounds", "6",
    "--selfplay.proposals-per-type", "12", "--selfplay.solver-tasks-per-type", "16",
    "--eval.every", "20", "--eval.samples", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def few_eval_tasks():
    """Evaluations of six tasks a split and type; test_program.py has all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("azr.tasks.program.environment.EVAL_TASKS", 6)
        yield


@pytest.fixture(scope="module")
def preset(few_eval_tasks, tmp_path_factory):
    """Twenty steps of the CPU preset with small batches, saved at step 13 too."""
    root = str(tmp_path_factory.mktemp("cpu"))
    c = parse_command_line([*CPU, "--steps", "20", "--save.every", "13", "--run.root", root]).config
    return run(c), c


def same_but_time(rows):
    clocks = ("time/", "perf/", "sandbox/", "report/")
    return [{k: v for k, v in row.items() if not k.startswith(clocks)} for row in rows]


def test_twenty_steps_of_the_preset_have_no_failure_and_no_disagreement(preset):
    rows = read_metrics(preset[0].run_dir / "metrics.jsonl")
    steps = [row for row in rows if row["step"] > 0]
    assert len(steps) == 20
    assert steps[-1]["sandbox/failures_total"] == 0
    assert sum(row["sandbox/disagreements"] for row in steps) == 0
    assert sum(row["sandbox/rechecked"] for row in steps) > 20
    for t in TYPES:
        assert sum(row[f"solve/{t}/unjudged"] + row[f"propose/{t}/unjudged"] for row in steps) == 0
        assert max(row[f"propose/{t}/valid_rate"] for row in steps) > 0.2
        assert 0 < steps[-1][f"propose/{t}/answer_diversity"] <= 1
        assert steps[-1][f"propose/{t}/complexity"] == 1
        assert 2 <= steps[-1][f"propose/{t}/program_length"] <= 4
    for t in TYPES[:2]:
        assert 0 < steps[-1][f"propose/{t}/ast_distance"] < 1
        assert 0 < steps[-1][f"propose/{t}/reference_distance"] < 1
    with sqlite3.connect(preset[0].run_dir / "run.db") as db:
        codes = [json.loads(row[0])["code"] for row in db.execute("select data from tasks")]
    assert len({digest(code) for code in codes}) > 20


def test_the_preset_resumes_exactly_in_the_middle(preset, tmp_path):
    summary, c = preset
    copy = tmp_path / summary.run_dir.name
    shutil.copytree(summary.run_dir, copy, symlinks=True)
    shutil.rmtree(copy / "checkpoints" / summary.checkpoint.name)
    again = run(c, resume=copy)
    assert again.step == 20
    first = read_metrics(summary.run_dir / "metrics.jsonl")
    second = read_metrics(again.run_dir / "metrics.jsonl")
    assert same_but_time(second) == same_but_time(first)
    a, b = (load_file(s.checkpoint / "hf" / "model.safetensors") for s in (summary, again))
    assert all((a[name] == b[name]).all() for name in a)


def test_seeds_are_kept_and_can_be_begun_with(preset, tmp_path):
    summary, c = preset
    seeds = summary.run_dir / "seeds.jsonl"
    environment = load_environment(dataclasses.replace(c.task, style="compact"))
    tasks = read_seeds(seeds, environment)
    environment.close()
    assert {t.type for t in tasks} == set(TYPES) and len(tasks) == 3 * 48
    assert tasks[0].problem.code == "def f(a):\n    return a\n"
    flags = ["--steps", "1", "--run.root", str(tmp_path), "--selfplay.seed-file", str(seeds)]
    begun = run(parse_command_line([*CPU, *flags, "--warmup.steps", "1"]).config)
    assert (begun.run_dir / "seeds.jsonl").read_text() == seeds.read_text()


def test_without_a_sandbox_both_commands_say_so_and_write_nothing(
    preset, tmp_path, monkeypatch, capsys
):
    def refuse(**options):
        raise SandboxError("a zygote of the sandbox does not start: OSError")

    monkeypatch.setattr("azr.tasks.program.execution.Sandbox", refuse)
    root = tmp_path / "runs"
    for command in (
        lambda: main([*CPU, "--run.root", str(root)]),
        lambda: evaluate_main([str(preset[0].run_dir), "--out", str(root / "x.json")]),
    ):
        assert command() == 1
        error = capsys.readouterr().err
        assert "--env program needs the sandbox: a zygote" in error and "azr.doctor" in error
        assert error.count("\n") == 1 and not root.exists()


@pytest.mark.soak
def test_twenty_steps_of_the_whole_preset_have_no_failure(tmp_path):
    flags = ["--config", "cpu-program.toml", "--steps", "20", "--run.root", str(tmp_path)]
    summary = run(parse_command_line(flags).config)
    rows = [r for r in read_metrics(summary.run_dir / "metrics.jsonl") if r["step"] > 0]
    assert rows[-1]["sandbox/failures_total"] == 0
    assert sum(row["sandbox/disagreements"] for row in rows) == 0


@pytest.mark.soak
def test_two_thousand_steps_of_the_preset_hold_level_memory(tmp_path):
    flags = ["--config", "cpu-program.toml", "--steps", "2000", "--run.root", str(tmp_path)]
    summary = run(parse_command_line(flags).config)
    rows = read_metrics(summary.run_dir / "metrics.jsonl")[1:]
    # The buffers fill meanwhile. Of each 100 steps the most, as a save may take and give back.
    mib = [1024 * row["perf/host_rss_gib"] for row in rows]
    peaks = [max(mib[i : i + 100]) for i in range(0, 2000, 100)]
    slopes = [(b - a) / (100 * (j - i)) for (i, a), (j, b) in combinations(enumerate(peaks), 2)]
    assert np.median(slopes) < 0.02, peaks


# Real architectures


@pytest.fixture(scope="module")
def chat(few_eval_tasks, tmp_path_factory):
    """A Qwen2 with a chat template and byte-level BPE, taught the format, then four steps."""
    root = tmp_path_factory.mktemp("chat")
    environment = load_environment(TaskConfig(family="program", style="r1", references=1))
    texts = [f"{p}\n{r}" for p, r in environment.warmup_rows(generator("texts"), 120)]
    # More merges, fewer tokens: the prompts of 1,500 characters cost the most by far.
    folder = make_folder(root / "model", "qwen2", texts, context=2048, vocabulary=1024, heads=2)
    flags = [
        "--env", "program", "--model", str(folder), "--run.root", str(root), "--steps", "4",
        "--save.every", "3", "--task.references", "1", "--task.program.inputs", "2",
        "--rollout.max-new-tokens", "90", "--warmup.loaded", "True", "--warmup.steps", "110",
        "--warmup.batch-size", "8", "--warmup.lr", "1e-2", "--selfplay.proposals-per-type", "8",
        "--selfplay.estimate-samples", "2", "--selfplay.solver-tasks-per-type", "8",
        "--selfplay.seed-tasks", "6", "--selfplay.seed-rounds", "2", "--eval.every", "4",
        "--eval.samples", "0", "--optim.lr", "5e-4", "--loss.kl", "none", "--loss.kl-coef", "0",
    ]  # fmt: skip
    c = parse_command_line(flags).config
    return run(c), c


def test_a_chat_model_plays_all_six_cells_and_resumes(chat, tmp_path):
    summary, c = chat
    rows = [r for r in read_metrics(summary.run_dir / "metrics.jsonl") if r["step"] > 0]
    for t in TYPES:
        for role in ("propose", "solve"):
            assert max(row[f"{role}/{t}/format_rate"] for row in rows) > 0, (role, t)
            assert max(row[f"reward/{role}/{t}/std"] for row in rows) > 0, (role, t)
    assert 'style = "chat"' in (summary.run_dir / "config.toml").read_text()
    folder = summary.checkpoint / "hf"
    exported = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(
        torch.equal(exported[name], t)
        for name, t in load_file(folder / "model.safetensors").items()
    )
    assert AutoTokenizer.from_pretrained(folder).chat_template
    copy = tmp_path / summary.run_dir.name
    shutil.copytree(summary.run_dir, copy, symlinks=True)
    shutil.rmtree(copy / "checkpoints" / summary.checkpoint.name)
    again = run(c, resume=copy)
    assert same_but_time(read_metrics(again.run_dir / "metrics.jsonl")) == same_but_time(
        read_metrics(summary.run_dir / "metrics.jsonl")
    )


@pytest.mark.parametrize(
    ("preset", "architecture"),
    [
        ("a100-qwen2.5-coder-3b-program.toml", "qwen2"),
        ("a100-qwen2.5-coder-7b-program.toml", "qwen2"),
        ("a100-llama3.1-8b-program.toml", "llama"),
    ],
)
def test_the_gpu_presets_plan_a_run(tmp_path, capsys, preset, architecture):
    texts = ["def f(a):\n    return a[0]\n", "User: What does this Python program return?"]
    folder = make_folder(tmp_path / "model", architecture, texts, context=16_384)
    flags = ["--config", preset, "--model", str(folder), "--run.device", "cpu"]
    assert main([*flags, "--run.dtype", "float32", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert 'style = "r1"' in printed and 'family = "program"' in printed
    assert "references = 6" in printed and "inputs = 10" in printed
    assert architecture in printed and "KV cache" in printed
