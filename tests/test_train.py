"""The whole loop with a real model: the command line, the run directory, and determinism."""

import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from azr.config import ConfigError, load_toml, parse_command_line
from azr.run.metrics import read_metrics
from azr.train import main, run

FAST = [
    "--steps", "3", "--warmup.steps", "25", "--selfplay.proposals-per-type", "6",
    "--selfplay.solver-tasks-per-type", "8", "--selfplay.seed-tasks", "4", "--eval.every", "2",
    "--eval.samples", "2", "--task.prime.max-p", "13",
]  # fmt: skip


def fast(tmp_path, *flags):
    return parse_command_line([*FAST, "--run.root", str(tmp_path), *flags]).config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return run(fast(root)), root


def comparable(run_dir):
    """Returns the metrics without what a clock or the memory wrote."""
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "perf/"))}
        for row in read_metrics(run_dir / "metrics.jsonl")
    ]


def weights(summary):
    return load_file(summary.checkpoint / "hf" / "model.safetensors")


def test_the_run_directory_holds_what_the_design_names(finished):
    summary, root = finished
    folder = summary.run_dir
    assert (root / "latest").resolve() == folder.resolve()
    names = {p.name for p in folder.iterdir()}
    assert names == {
        "config.toml",
        "env.json",
        "metrics.jsonl",
        "metrics.folded.json",
        "run.db",
        "log.txt",
        "checkpoints",
        "learning_curve.svg",
        "report.html",
        "seeds.jsonl",
        "start",
    }  # fmt: skip - and neither a journal nor a temporary file
    assert summary.checkpoint == folder / "checkpoints" / "step_000003"
    assert (summary.checkpoint / "COMPLETE").exists()
    assert load_toml(folder / "config.toml") == fast(
        root, "--task.style", "compact", "--optim.schedule-steps", "3"
    )
    assert json.loads((folder / "env.json").read_text())["torch"] == torch.__version__
    assert (folder / "learning_curve.svg").read_text().startswith("<svg xmlns=")
    assert "step 3 of 3" in (folder / "report.html").read_text()


def test_the_checkpoint_is_an_ordinary_hf_folder(finished):
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    summary, _ = finished
    model = AutoModelForCausalLM.from_pretrained(summary.checkpoint / "hf")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(summary.checkpoint / "hf")
    ids = tokenizer("S D 13 4 =", return_tensors="pt")["input_ids"]
    out = model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert out.shape[1] > ids.shape[1]
    assert model.config.model_type == "qwen2"


def test_metrics_are_one_json_line_a_step_and_evaluations_come_as_configured(finished):
    rows = read_metrics(finished[0].run_dir / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    evaluated = [row["step"] for row in rows if "eval/train/deduction/greedy_accuracy" in row]
    assert evaluated == [0, 2, 3]
    for name in (
        "propose/deduction/valid_rate propose/abduction/learnability solve/induction/accuracy "
        "buffer/deduction/size policy/entropy policy/kl policy/grad_norm policy/lr mismatch/kl "
        "time/rollout_s time/verify_s time/update_s time/step_s perf/gen_tok_s perf/train_tok_s "
        "completions/mean_length completions/clipped_ratio reward/frac_zero_std"
    ).split():
        assert isinstance(rows[-1][name], float), name
    for row in rows[1:]:
        parts = [v for k, v in row.items() if k.startswith("time/") and "step" not in k]
        assert sum(parts) - row["time/elapsed_s"] == pytest.approx(row["time/step_s"], rel=1e-6)


def test_every_metric_is_explained(finished):
    text = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
    types = ("deduction", "abduction", "induction")
    for row in read_metrics(finished[0].run_dir / "metrics.jsonl"):
        for name in row:
            levels = ["{type}" if part in types else part for part in name.split("/")]
            if levels[0] == "eval":
                levels[1] = "{split}"
            if levels[0] == "reward" and len(levels) > 2:
                levels[1] = "{role}"
            if levels[-2:-1] in (["rejected"], ["failed"]):
                levels[-1] = "{reason}"
            assert f"`{'/'.join(levels)}`" in text, name


def test_the_report_is_written_at_checkpoints_and_no_run_ends_for_want_of_it(tmp_path, monkeypatch):
    from azr.report import page

    def refuse(folders, *, is_over=False):
        written.append(is_over)
        raise PermissionError("no ink")

    written = []
    monkeypatch.setattr(page, "write_report", refuse)
    monkeypatch.setattr(page, "FIRST_S", 0.0)
    summary = run(fast(tmp_path, "--save.every", "1", "--steps", "2"))
    assert summary.step == 2 and written == [False, True]
    events = (summary.run_dir / "events.jsonl").read_text()
    assert events.count("report.html was not written (PermissionError: no ink)") == 2


def test_the_policy_matches_its_own_rollouts(finished):
    for row in read_metrics(finished[0].run_dir / "metrics.jsonl")[1:]:
        assert abs(row["mismatch/ratio_max"] - 1) < 1e-4
        assert row["policy/ratio_max"] == 1.0
        assert row["policy/clip_ratio"] == 0.0


def test_run_db_holds_every_task_and_sample(finished):
    summary, _ = finished
    db = sqlite3.connect(summary.run_dir / "run.db")
    rows = read_metrics(summary.run_dir / "metrics.jsonl")
    for row in rows[1:]:
        (count,) = db.execute(
            "SELECT sum(count) FROM samples WHERE step = ?", (row["step"],)
        ).fetchone()
        assert count == row["completions/samples"]
    for task_type in ("deduction", "abduction", "induction"):
        keys = [k for (k,) in db.execute("SELECT key FROM tasks WHERE type = ?", (task_type,))]
        assert len(keys) == len(set(keys)) == rows[-1][f"buffer/{task_type}/size"]
    (wrong,) = db.execute(
        "SELECT count(*) FROM samples WHERE role = 'solve' AND reward IS NOT NULL AND reward != "
        "CASE outcome WHEN 'correct' THEN 1.0 WHEN 'wrong' THEN -0.5 ELSE -1.0 END"
    ).fetchone()
    assert wrong == 0


def test_two_runs_with_one_seed_are_bit_equal_and_another_seed_differs(finished, tmp_path):
    first, again = finished[0], run(fast(tmp_path))
    assert comparable(first.run_dir) == comparable(again.run_dir)
    a, b = weights(first), weights(again)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    other = weights(run(fast(tmp_path, "--seed", "1")))
    assert not torch.equal(a["model.norm.weight"], other["model.norm.weight"])


SWITCHES = {
    "fresh samples": ["--selfplay.solver-samples", "fresh"],
    "lag": ["--selfplay.solver-samples", "fresh", "--selfplay.solve-lag", "1"],
    "references": ["--task.references", "2"],
    "recency": ["--selfplay.sampling", "recency", "--task.references", "1"],
    "digits": ["--task.prime.number-tokens", "digit"],
    "one type": ["--task.types", "induction"],
    "solver only": ["--selfplay.roles", "solver"],
    "proposer only": ["--selfplay.roles", "proposer"],
    "token whitening": ["--loss.whiten", "token", "--loss.reduction", "seq-mean"],
    "no kl, entropy": ["--loss.kl", "none", "--loss.kl-coef", "0", "--loss.entropy-coef", "0.01"],
    "k3": ["--loss.kl", "k3"],
    "several updates": ["--optim.epochs", "2", "--optim.minibatches", "2"],
    "dual clip, no tis": ["--loss.dual-clip", "3", "--loss.tis-cap", "0"],
    "top-p": ["--rollout.top-p", "0.9"],
    "environment seeds": ["--selfplay.seed-source", "environment"],
    "few slots, small micro-batches": ["--rollout.slots", "7", "--optim.micro-batch-tokens", "64"],
}


@pytest.mark.parametrize("flags", SWITCHES.values(), ids=SWITCHES)
def test_every_switch_runs_to_the_end(flags, tmp_path):
    short = ["--steps", "2", "--warmup.steps", "10", "--warmup.batch-size", "128"]
    summary = run(fast(tmp_path, *short, *flags))
    row = read_metrics(summary.run_dir / "metrics.jsonl")[-1]
    assert row["policy/tokens"] > 0 and row["policy/skipped_updates"] == 0
    if "--optim.epochs" in flags:
        assert row["policy/updates"] == 4
        assert row["policy/ratio_max"] != 1.0


def test_few_slots_and_small_micro_batches_change_nothing_but_rounding(finished, tmp_path):
    flags = SWITCHES["few slots, small micro-batches"]
    a, b = weights(finished[0]), weights(run(fast(tmp_path, *flags)))
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-3


def test_seeds_of_the_latest_run_can_be_begun_with(finished, tmp_path):
    # `latest` points to the new run by the time the buffers are filled, and has no seeds yet.
    root = tmp_path / "runs"
    shutil.copytree(finished[0].run_dir, root / "earlier", ignore=lambda *_: ["checkpoints"])
    (root / "latest").symlink_to("earlier")
    seeds = root / "latest" / "seeds.jsonl"
    flags = ["--selfplay.seed-file", str(seeds), "--save.every", "1"]
    summary = run(fast(root, "--steps", "1", *flags, "--seed", "3"))
    expected = (root / "earlier" / "seeds.jsonl").read_text()
    assert (root / "latest").resolve() == summary.run_dir.resolve()
    assert (summary.run_dir / "seeds.jsonl").read_text() == expected
    facts = json.loads((summary.run_dir / "env.json").read_text())["facts"]
    assert facts["seed file"] == f"12 tasks, {(root / 'earlier' / 'seeds.jsonl').resolve()}"
    # A resumed run has its seeds in the checkpoint: the same command goes on without the file.
    shutil.rmtree(root / "earlier")
    (summary.run_dir / "seeds.jsonl").unlink()
    again = fast(root, "--steps", "2", *flags, "--seed", "3")
    assert run(again, resume=summary.run_dir).step == 2


def test_a_trained_folder_can_be_trained_on(finished, tmp_path):
    folder = finished[0].checkpoint / "hf"
    summary = run(fast(tmp_path, "--model", str(folder)))
    # No warm-up: it starts as the other one ended.
    for cell, accuracy in finished[0].after.items():
        assert summary.before[cell].greedy == accuracy.greedy
    with pytest.raises(ConfigError, match="no token for '14'.*trained on the same task options"):
        run(fast(tmp_path, "--model", str(folder), "--task.prime.max-p", "23"))


def test_solver_only_training_leaves_proposals_untouched_by_gradient(tmp_path):
    rows = {}
    for roles in ("both", "solver", "proposer"):
        summary = run(fast(tmp_path, "--selfplay.roles", roles, "--steps", "1"))
        rows[roles] = read_metrics(summary.run_dir / "metrics.jsonl")[-1]["policy/tokens"]
    assert rows["both"] == rows["solver"] + rows["proposer"]


def test_dry_run_prints_config_and_memory_plan_and_writes_nothing(tmp_path, capsys):
    root = tmp_path / "runs"
    assert main(["--dry-run", "--run.root", str(root), "--steps", "7"]) == 0
    out = capsys.readouterr().out
    assert "steps = 7" in out and "weights" in out and "KV cache" in out and "most at once" in out
    config = out[: out.index("# qwen2")]
    (tmp_path / "printed.toml").write_text(config)
    assert load_toml(tmp_path / "printed.toml").steps == 7
    assert not root.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "/nowhere/model"], "no such folder"),
        (["--env", "primes"], "did you mean prime"),
        (["--run.root", "/proc/nowhere"], "--run.root /proc/nowhere: cannot write there"),
        (["--rollout.slots", str(10**12), "--selfplay.estimate-samples", str(10**10)], "GiB"),
        (["--steps", "0"], "--steps 0"),
        (["--selfplay.seed-file", "/nowhere/s.jsonl"], "--selfplay.seed-file /nowhere/s.jsonl"),
    ],
)
def test_what_cannot_run_leaves_with_code_2_and_one_line(flags, message, tmp_path, capsys):
    assert main(["--run.root", str(tmp_path / "runs"), *flags]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("limit", [0, 3_000, 20_000, 200_000])
def test_a_disk_that_is_full_at_the_start_is_named_in_one_line(limit, tmp_path, capsys):
    flags = ["--run.root", str(tmp_path / "runs"), "--warmup.steps", "0", "--steps", "1"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))  # no file grows beyond it
    try:
        code = main([*FAST, *flags])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    err = capsys.readouterr().err
    assert code == (1 if limit else 2)
    assert [line for line in err.splitlines() if line.startswith("azr: ")] and "cannot write" in err
    assert "Traceback" not in err


def test_the_code_is_that_of_the_process():
    command = [sys.executable, "-m", "azr.train", "--steps", "0"]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="names the error without a GPU")
def test_a_missing_gpu_is_named(capsys):
    assert main(["--device", "cuda"]) == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err


def test_the_screen_shows_what_a_newcomer_needs(finished):
    text = (finished[0].run_dir / "log.txt").read_text()
    for words in (
        "Absolute Zero self-play", "run directory", "versions", "device", "loss kernels",
        "memory plan", "Before self-play", "95% interval", "chance", "step 1/3", "ETA", "valid",
        "buffer", "tok/s", "rollout", "Before and after self-play", "Five of its last proposals",
        "learning_curve.svg",
    ):  # fmt: skip
        assert words in text, words


def test_a_terminal_gets_a_live_table(tmp_path):
    """Runs the command under a pseudo-terminal and reads what it draws."""
    pty = pytest.importorskip("pty")
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "azr.train", *FAST, "--run.root", str(tmp_path)],
        stdout=child, stderr=child, stdin=child,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"},
    )  # fmt: skip
    os.close(child)
    output = b""
    try:
        while chunk := os.read(parent, 65536):
            output += chunk
    except OSError:
        pass  # the other end is closed: the program has ended
    finally:
        os.close(parent)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == 0
    text = output.decode()
    assert "step 3/3" in text and "learnability" in text and "distinct of the last" in text
    assert "\x1b[" in text


def test_the_curve_is_that_of_a_naive_loss_head(tmp_path, monkeypatch):
    """Twenty steps with log-probs from full logits instead of the kernels' CPU path."""
    from rlvr_kernels import TokenLogprobs

    import azr.learner

    def naive(hidden, weight, ids, *, temperature=1.0, mask=None, return_entropy=False):
        logp = torch.log_softmax(hidden @ weight.T / temperature, dim=-1)
        chosen = logp.gather(-1, ids[..., None]).squeeze(-1)
        entropy = -(logp.exp() * logp).sum(-1) if return_entropy else None
        return TokenLogprobs(chosen if mask is None else chosen * mask, entropy, None)

    flags = ["--steps", "20", "--eval.every", "20"]
    kernels = comparable(run(fast(tmp_path / "kernels", *flags)).run_dir)
    monkeypatch.setattr(azr.learner, "linear_token_logprobs", naive)
    reference = comparable(run(fast(tmp_path / "naive", *flags)).run_dir)
    for mine, theirs in zip(kernels[1:], reference[1:], strict=True):
        for name in ("reward/mean", "policy/loss", "policy/entropy", "policy/kl"):
            assert mine[name] == pytest.approx(theirs[name], abs=1e-5), (mine["step"], name)
