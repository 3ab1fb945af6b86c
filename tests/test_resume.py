"""A resumed run is the uninterrupted run: weights, optimiser, buffers, metrics and records."""

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import sqlite3
import time
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import torch
from models import plain_model
from safetensors.torch import load_file

from azr.config import Config, ConfigError, load_toml, parse_command_line
from azr.errors import RunError
from azr.model.load import ALIGNMENT
from azr.resume import describe_rate, restore, settle_schedule, snapshot
from azr.run.checkpoint import MARKER, load_newest
from azr.run.metrics import read_metrics
from azr.start.prepare import prepare
from azr.train import main, run

FLAGS = [
    "--steps", "6", "--warmup.steps", "20", "--warmup.batch-size", "64",
    "--selfplay.proposals-per-type", "6",
    "--selfplay.solver-tasks-per-type", "8", "--selfplay.seed-tasks", "4", "--eval.every", "2",
    "--eval.samples", "1", "--task.prime.max-p", "13", "--save.every", "2",
    "--task.references", "1", "--save.keep-last", "3",
]  # fmt: skip


# bf16 is slow on a CPU: fewer steps, and a warm-up that only moves the weights.
BF16 = [
    "--run.dtype", "bfloat16", "--steps", "4", "--warmup.steps", "4", "--warmup.batch-size", "16",
]  # fmt: skip


def config(root, *flags):
    return parse_command_line([*FLAGS, "--run.root", str(root), *flags]).config


class StopAfter:
    """Asks to stop once `steps` steps have run, as a signal in the last of them would."""

    def __init__(self, steps):
        self.left = steps

    @property
    def signal(self):
        self.left -= 1
        return signal.SIGTERM if self.left < 0 else None

    def first_step(self):
        """Signals of these tests come in steps alone."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run that all others are compared with."""
    return run(config(tmp_path_factory.mktemp("whole"))).run_dir


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Gives a copy in `root` of the run that stopped after so many steps, made once for each."""
    made = {}

    def copied(root, steps):
        if steps not in made:
            here = tmp_path_factory.mktemp(f"stopped{steps}")
            summary = run(config(here), stop=StopAfter(steps))
            assert summary.step == steps
            made[steps] = summary.run_dir
        return Path(shutil.copytree(made[steps], root / made[steps].name, symlinks=True))

    return copied


def state_of(run_dir):
    """Returns everything of the end of a run that must be equal bit for bit."""
    newest = load_newest(run_dir, pytest.fail)
    saved = json.loads(json.dumps(newest.state))
    for volatile in ("elapsed_s", "eval_s", "metrics_bytes"):
        saved["log"].pop(volatile)  # a clock's digits have no fixed length
    metrics = [
        {k: v for k, v in row.items() if not k.startswith(("time/", "perf/"))}
        for row in read_metrics(run_dir / "metrics.jsonl")
    ]
    with sqlite3.connect(run_dir / "run.db") as db:
        tables = {
            t: db.execute(f"SELECT * FROM {t}").fetchall() for t in ("tasks", "prompts", "samples")
        }
    return (
        newest.step,
        saved,
        metrics,
        tables,
        newest.tensors,
        load_file(newest.path / "hf" / "model.safetensors"),
    )


def test_a_run_on_the_cpu_asks_nothing_of_a_gpu(monkeypatch):
    """Its random state is not the run's, and asking would start a context on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: pytest.fail("asked the GPU"))
    learner = SimpleNamespace(state_tensors=dict, skipped_updates=0, bad_in_a_row=0)
    trainee = SimpleNamespace(
        model=plain_model(), tokenizer=None, learner=learner, selfplay=SimpleNamespace(state=dict)
    )
    taken = snapshot(trainee, SimpleNamespace(state=lambda step: {}), 3)
    assert set(taken.tensors) == {"rng/torch"}


def assert_same(run_dir, whole):
    for mine, theirs in zip(state_of(run_dir), state_of(whole), strict=True):
        if isinstance(theirs, dict) and any(isinstance(v, torch.Tensor) for v in theirs.values()):
            assert mine.keys() == theirs.keys()
            for name in theirs:
                assert torch.equal(mine[name], theirs[name]), name
        else:
            assert mine == theirs


def test_everything_restored_lies_where_it_did_in_the_straight_run(whole):
    """Tensors of a mapped file lie anywhere, and products of few rows may round by that."""
    c = load_toml(whole / "config.toml")
    ready = prepare(c, whole)
    assert ready.checkpoint
    trainee = restore(ready, ready.checkpoint, whole)
    ready.environment.close()
    assert not ready.warnings
    model, learner = trainee.model, trainee.learner
    moments = [t for state in learner.optimizer.state.values() for t in state.values()]
    tensors = [*model.parameters(), *model.buffers(), *learner.reference.parameters(), *moments]
    assert len(moments) == 3 * len(list(model.parameters()))
    assert {t.data_ptr() % ALIGNMENT for t in tensors} == {0}


@pytest.mark.parametrize("stopped_at", [1, 3, 4])
def test_a_stopped_run_goes_on_bit_for_bit(whole, stopped, stopped_at, tmp_path):
    first = stopped(tmp_path, stopped_at)
    second = run(config(tmp_path), resume=first)
    assert second.run_dir == first and second.step == 6
    assert_same(second.run_dir, whole)
    events = (second.run_dir / "events.jsonl").read_text().splitlines()
    assert [json.loads(e)["kind"] for e in events] == ["resumed"]


def test_it_can_be_stopped_and_resumed_at_every_step(whole, stopped, tmp_path):
    run_dir = stopped(tmp_path, 1)
    for _ in range(5):
        run(config(tmp_path), resume=run_dir, stop=StopAfter(1))
    assert_same(run_dir, whole)


@pytest.mark.parametrize(
    "flags",
    [
        ["--selfplay.solver-samples", "fresh", "--selfplay.solve-lag", "1"],
        ["--optim.minibatches", "2", "--optim.epochs", "2", "--selfplay.sampling", "recency"],
        ["--loss.kl", "none", "--loss.kl-coef", "0", "--selfplay.buffer-size", "6"],
        [*BF16, "--optim.recompute", "True"],
        [*BF16, "--optim.bf16-update", "stochastic"],
    ],
    ids=[
        "lag",
        "several updates, recency",
        "no reference, full buffer",
        "bf16 with fp32 copies",
        "bf16 rounded stochastically",
    ],
)
def test_every_kind_of_state_survives(flags, tmp_path):
    through = run(config(tmp_path / "a", *flags)).run_dir
    stopped = run(config(tmp_path / "b", *flags), stop=StopAfter(3)).run_dir
    run(config(tmp_path / "b", *flags), resume=stopped)
    assert_same(stopped, through)


def test_what_was_written_after_the_checkpoint_is_rolled_back(whole, stopped, tmp_path):
    first = stopped(tmp_path, 4)
    with open(first / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "torn')
    with sqlite3.connect(first / "run.db") as db:
        db.execute("INSERT INTO tasks (type, key, step, data) VALUES ('deduction', 'x', 5, '{}')")
        db.execute("INSERT INTO prompts (text) VALUES ('never asked')")
    db.close()
    run(config(tmp_path), resume=first)
    assert_same(first, whole)


@pytest.mark.parametrize("is_there", [False, True])
def test_a_damaged_metrics_log_is_named_and_the_run_goes_on(whole, stopped, is_there, tmp_path):
    run_dir = stopped(tmp_path, 4)
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.unlink()
    if is_there:
        path.write_bytes(b"".join([lines[0], b"\0" * 99 + b"\n", lines[2], lines[3][:50]]))
    run(config(tmp_path), resume=run_dir)
    last = read_metrics(whole / "metrics.jsonl")[-1]["step"]
    before = [0, 2] if is_there else []
    assert [row["step"] for row in read_metrics(path)] == [*before, *range(5, last + 1)]
    events = [json.loads(e) for e in (run_dir / "events.jsonl").read_text().splitlines()]
    told = [e["message"] for e in events if e["message"].startswith("metrics.jsonl")]
    words = ["line 2 is cut", "bytes up to step 4"] if is_there else ["is missing"]
    assert len(told) == len(words) and all(w in t for w, t in zip(words, told, strict=True))
    assert (run_dir / "report.html").exists()
    shutil.copy(whole / "metrics.jsonl", path)  # all else is as it would have been
    assert_same(run_dir, whole)


DAMAGE = {
    "no marker": lambda c: (c / MARKER).unlink(),
    "half a marker": lambda c: (c / MARKER).write_text("{"),
    "truncated weights": lambda c: os.truncate(c / "hf" / "model.safetensors", 1000),
    "one bit of the optimiser": lambda c: flip_bit(c / "train_state.safetensors"),
    "no state": lambda c: (c / "state.json").unlink(),
}


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(whole, stopped, damage, tmp_path):
    run_dir = stopped(tmp_path, 4)
    damage(run_dir / "checkpoints" / "step_000004")
    run(config(tmp_path), resume=run_dir)
    assert_same(run_dir, whole)
    warnings = [json.loads(e) for e in (run_dir / "events.jsonl").read_text().splitlines()]
    assert "step_000004 is not used: " in warnings[1]["message"]
    assert warnings[1]["step"] == 2


def warnings_of(run_dir):
    rows = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    return [row["message"] for row in rows if row["kind"] == "warning"]


def test_the_reference_is_checked_and_one_without_a_mark_is_named(stopped, tmp_path):
    run_dir = stopped(tmp_path, 4)
    flip_bit(run_dir / "start" / "hf" / "model.safetensors")
    with pytest.raises(RunError, match="start cannot be used: hf/model.safetensors is not what"):
        run(config(tmp_path), resume=run_dir)
    flip_bit(run_dir / "start" / "hf" / "model.safetensors")
    (run_dir / "start" / MARKER).write_text("{}")
    with pytest.raises(RunError, match="start cannot be used: its COMPLETE file"):
        run(config(tmp_path), resume=run_dir)
    (run_dir / "start" / MARKER).unlink()
    run(config(tmp_path), resume=run_dir, stop=StopAfter(0))
    (warning,) = warnings_of(run_dir)
    assert "start has no COMPLETE file" in warning


NOBODY_READS = f"""
import os
reader, writer = os.pipe()
os.close(reader)
for number in (1, 2):
    os.dup2(writer, number)
{processes.TRAIN}
"""


def test_a_run_whose_reader_goes_away_goes_on_to_its_files(whole, stopped, tmp_path):
    run_dir = stopped(tmp_path, 4)
    process = processes.start(NOBODY_READS, ["--resume", run_dir], tmp_path / "output")
    assert processes.finish(process, 120) == 0
    assert_same(run_dir, whole)
    assert sorted(warnings_of(run_dir)) == [
        f"standard {name} is gone (Broken pipe): what follows is not shown there"
        for name in ("error", "output")
    ]
    assert "Before and after self-play" in (run_dir / "log.txt").read_text()


def test_a_record_that_is_gone_is_named_and_the_run_goes_on(stopped, tmp_path):
    run_dir = stopped(tmp_path, 4)
    (run_dir / "run.db").unlink()
    run(config(tmp_path, "--steps", "5"), resume=run_dir)
    (warning,) = warnings_of(run_dir)
    assert "run.db holds 0 of " in warning
    with sqlite3.connect(run_dir / "run.db") as db:
        assert db.execute("SELECT DISTINCT step FROM samples").fetchall() == [(5,)]
    db.close()


def test_a_lock_that_stays_ends_the_run_saved(stopped, tmp_path, monkeypatch):
    from azr.run import db as run_db

    def lock(self, *arguments):
        if not others:
            others.append(sqlite3.connect(run_dir / "run.db", isolation_level=None))
            others[0].execute("BEGIN IMMEDIATE")
        return write(self, *arguments)

    run_dir, others, write = stopped(tmp_path, 1), [], run_db.RunDb.write
    monkeypatch.setattr(run_db.RunDb, "write", lock)
    monkeypatch.setattr(run_db, "BUSY_S", 0.0)
    monkeypatch.setattr(run_db, "GIVE_UP_S", 0.0)
    with pytest.raises(RunError, match="run.db was locked .*saved at step 2: close what holds"):
        run(config(tmp_path), resume=run_dir)
    others[0].close()
    assert load_newest(run_dir, pytest.fail).step == 2
    assert (
        "no samples from step 2 on" in warnings_of(run_dir)[-1] and not (run_dir / "lock").exists()
    )


@pytest.mark.parametrize(
    "name",
    ["lock", "log.txt", "metrics.jsonl", "run.db", "events.jsonl", "config.toml", "start/hf"],
)
def test_a_folder_in_a_file_s_place_is_named_in_one_line(name, stopped, tmp_path, capsys):
    run_dir = stopped(tmp_path, 4)
    place = run_dir / name
    if place.is_dir():
        shutil.rmtree(place)
        place.touch()
    else:
        place.unlink(missing_ok=True)
        place.mkdir()
    assert main(["--resume", str(run_dir)]) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("azr: ") and name.split("/")[0] in line


def test_a_directory_that_cannot_be_written_is_named_in_one_line(
    stopped, tmp_path, capsys, monkeypatch
):
    def refuse(path, *args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    run_dir = stopped(tmp_path, 4)
    monkeypatch.setattr("azr.run.directory.open", refuse, raising=False)
    assert main(["--resume", str(run_dir)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "lock: Read-only file system; see that it can be written" in line


def test_without_any_whole_checkpoint_it_says_so(stopped, tmp_path):
    run_dir = stopped(tmp_path, 1)
    (run_dir / "checkpoints" / "step_000001" / MARKER).unlink()
    with pytest.raises(RunError, match=r"to go on from \(step_000001: it has no COMPLETE file"):
        run(config(tmp_path), resume=run_dir)


def test_other_options_are_refused_by_name_and_free_ones_are_not(stopped, tmp_path, capsys):
    run_dir = stopped(tmp_path, 2)
    assert main(["--resume", str(run_dir), "--optim.lr", "0.5", "--task.prime.max-p", "17"]) == 2
    err = capsys.readouterr().err
    assert "--optim.lr is 0.5, was 0.002" in err and "--task.prime.max_p is 17, was 13" in err
    with pytest.raises(ConfigError, match=r"other options .*: --optim\.lr is 0\.5, was 0\.002\."):
        run(config(tmp_path, "--optim.lr", "0.5"), resume=run_dir)
    free = ["--steps", "3", "--eval.every", "5", "--save.every", "0", "--log.every", "1"]
    assert main(["--resume", str(run_dir), *free, "--run.name", "x"]) == 0
    assert read_metrics(run_dir / "metrics.jsonl")[-1]["step"] == 3
    assert load_toml(run_dir / "config.toml").steps == 3


def rates(run_dir):
    """The learning rate of every step, by `policy/lr`."""
    rows = read_metrics(run_dir / "metrics.jsonl")
    return [row["policy/lr"] / 0.002 for row in rows[1:]]


def told(run_dir):
    """What log.txt says of the learning rate."""
    lines = (run_dir / "log.txt").read_text().splitlines()
    return [line for line in lines if line.startswith("learning rate")]


def test_the_schedule_is_the_run_s_and_a_resume_never_moves_the_rate_unsaid(stopped, tmp_path):
    run_dir = stopped(tmp_path, 4)  # of 6, over which the rate falls from step 3 on
    assert load_toml(run_dir / "config.toml").optim.schedule_steps == 6
    begun = [1, 1, 1, 0.7, 0.4, 0.1]
    assert main(["--resume", str(run_dir), "--steps", "5"]) == 0
    assert rates(run_dir) == pytest.approx(begun[:5])
    assert main(["--resume", str(run_dir), "--steps", "6", "--optim.schedule-steps", "0"]) == 0
    assert main(["--resume", str(run_dir), "--steps", "8"]) == 0
    assert rates(run_dir) == pytest.approx([*begun, 0.1, 0.1])
    drawn_anew = ["--steps", "10", "--optim.schedule-steps", "10"]
    assert main(["--resume", str(run_dir), *drawn_anew]) == 0
    assert rates(run_dir) == pytest.approx([*begun, 0.1, 0.1, 0.28, 0.1])
    assert told(run_dir) == [
        "learning rate  8.0e-04 at step 5: the schedule ends at step 6",
        "learning rate  2.0e-04 at step 6: the schedule ends at step 6",
        "learning rate  2.0e-04 from step 7 to 8: the schedule ended at step 6; "
        "--optim.schedule-steps 8 draws it anew",
        "learning rate  5.6e-04 at step 9, 2.0e-04 at step 10: --optim.schedule-steps is 10; "
        "at step 8 it was 2.0e-04",
    ]


def test_a_run_from_before_schedules_were_kept_has_the_steps_that_it_was_given():
    old, asked = Config(steps=500), Config(steps=800)
    assert settle_schedule(asked, None).optim.schedule_steps == 800
    settled = settle_schedule(asked, old)
    assert settled.optim.schedule_steps == 500
    assert describe_rate(settled, old, 500) == "1.0e-06 from step 501 to 800"
    assert describe_rate(settle_schedule(old, old), old, 300) == ""


def test_resume_takes_the_options_of_the_run_and_a_finished_one_says_so(tmp_path, capsys):
    run_dir = run(config(tmp_path, "--steps", "2")).run_dir
    before = (run_dir / "metrics.jsonl").read_text()
    assert main(["--resume", str(run_dir)]) == 0
    assert "at step 2 already; --steps 3 or more goes on" in capsys.readouterr().out
    assert (run_dir / "metrics.jsonl").read_text() == before


def test_resume_auto_starts_then_continues_then_is_done(whole, tmp_path, capsys):
    flags = [*FLAGS, "--run.root", str(tmp_path), "--resume", "auto"]
    assert main([*flags, "--steps", "6"]) == 0
    (run_dir,) = [p for p in tmp_path.iterdir() if not p.is_symlink()]
    assert_same(run_dir, whole)
    assert main(flags) == 0 and "already" in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 2  # the run and `latest`


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main(["--resume", str(tmp_path)]) == 2
    assert "no run directory" in capsys.readouterr().err


def test_a_run_that_is_being_written_is_refused(stopped, tmp_path):
    import fcntl

    run_dir = stopped(tmp_path, 1)
    with open(run_dir / "lock", "w") as other:
        other.write("4711")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="process 4711 is writing to it"):
            run(config(tmp_path), resume=run_dir)


def test_old_checkpoints_go_and_chosen_ones_stay(tmp_path):
    flags = ["--save.every", "1", "--save.keep-last", "1", "--save.keep-every", "3"]
    run_dir = run(config(tmp_path, *flags)).run_dir
    kept = sorted(p.name for p in (run_dir / "checkpoints").iterdir())
    assert kept == ["step_000003", "step_000006"]


def start_process(root, *flags):
    """Starts the trainer; `output` beside its root has what it printed."""
    root.mkdir(exist_ok=True)
    arguments = [*FLAGS, "--run.root", root, *flags]
    return processes.start(processes.TRAIN, arguments, root.with_suffix(".output"))


def printed(root):
    return root.with_suffix(".output").read_text()


def wait_for_step(root, step, process):
    """Waits until a step is in the metrics; returns the run directory."""
    for _ in range(6000):
        for path in Path(root).glob("2*/metrics.jsonl"):
            if path.read_text().count("\n") > step:
                return path.parent
        assert process.exitcode is None, printed(root)
        time.sleep(0.01)
    raise AssertionError("no step came")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_and_leaves_with_its_code(number, code, tmp_path):
    root = tmp_path / "runs"
    process = start_process(root, "--steps", "100000", "--save.every", "0")
    run_dir = wait_for_step(root, 2, process)
    os.kill(process.pid, number)
    assert processes.finish(process, 120) == code, printed(root)
    assert "finishing the step and saving" in printed(root)
    step = read_metrics(run_dir / "metrics.jsonl")[-1]["step"]
    assert load_newest(run_dir, pytest.fail).step == step
    assert not (run_dir / "lock").exists()


def test_a_second_ctrl_c_ends_at_once_and_the_last_checkpoint_stands(tmp_path):
    # A step of its own length: the first signal alone would wait for its end.
    root = tmp_path / "runs"
    process = start_process(root, "--steps", "9", "--save.every", "1", "--eval.every", "1")
    run_dir = wait_for_step(root, 2, process)
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGINT)
    # 130: the step ended between the two
    assert processes.finish(process, 60) in (-signal.SIGINT, 130), printed(root)
    assert load_newest(run_dir, lambda message: None).step >= 1


def kill_and_resume(root, whole, moments):
    """Kills runs with SIGKILL at random moments, resumes each, and compares the end."""
    rng = random.Random(0)
    flags = ["--resume", "auto", "--save.every", "1"]
    for moment in range(moments):
        folder = root / str(moment)
        process = start_process(folder, *flags)
        wait_for_step(folder, rng.randrange(1, 5), process)
        time.sleep(rng.random() * 0.2)
        process.kill()
        assert processes.finish(process, 60) == -signal.SIGKILL, printed(folder)
        process = start_process(folder, *flags)
        assert processes.finish(process, 120) == 0, printed(folder)
        # Killed before its first checkpoint a run has nothing to go on from: a new one began.
        runs = sorted(p for p in folder.iterdir() if not p.is_symlink())
        assert len(runs) == 1 or not list((runs[0] / "checkpoints").glob("*/COMPLETE"))
        assert_same(runs[-1], whole)


def test_a_killed_run_goes_on_bit_for_bit(whole, tmp_path):
    kill_and_resume(tmp_path, whole, moments=3)


@pytest.mark.soak
def test_a_run_killed_at_thirty_moments_goes_on_bit_for_bit(whole, tmp_path):
    kill_and_resume(tmp_path, whole, moments=30)


FULL_DISK = """
import resource
from azr.train import main
import azr.run.checkpoint as checkpoint
write = checkpoint._write_all
def limited(*arguments):
    # As if the disk were full: no file can grow beyond 64 KiB from the first save on.
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
    write(*arguments)
checkpoint._write_all = limited
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_ends_the_run_with_one_clear_line_and_it_resumes(whole, stopped, tmp_path):
    run_dir = stopped(tmp_path, 2)
    output = tmp_path / "output"
    process = processes.start(FULL_DISK, ["--resume", run_dir], output)
    assert processes.finish(process, 120) == 1, output.read_text()
    (line,) = [x for x in output.read_text().splitlines() if x.startswith("azr: ")]
    assert "cannot write" in line and "--resume RUN" in line
    assert "Traceback" not in output.read_text()
    assert not list((run_dir / "checkpoints").glob("*.tmp"))
    run(config(tmp_path), resume=run_dir)
    assert_same(run_dir, whole)


def test_a_batch_that_cannot_be_trained_on_is_kept_for_inspection(tmp_path, monkeypatch):
    import azr.learner

    def broken(*args, **kwargs):
        loss, metrics = real(*args, **kwargs)
        return loss * float("nan"), metrics | {"loss": metrics["loss"] * float("nan")}

    real = azr.learner.policy_loss
    monkeypatch.setattr(azr.learner, "policy_loss", broken)
    monkeypatch.setattr(azr.learner, "MAX_BAD_UPDATES", 3)
    with pytest.raises(RunError, match="3 updates in a row.*The batch is in .*bad_batch"):
        run(config(tmp_path))
    (path,) = tmp_path.glob("2*/bad_batch_step_000003.json")
    batch = json.loads(path.read_text())
    assert set(batch[0]) == {"prompt_ids", "response_ids", "rollout_logprobs", "advantage"}


@pytest.mark.parametrize(
    ("phase", "option"),
    [("azr.rollout.engine.RolloutEngine.generate", "rollouts.*--rollout.slots"),
     ("azr.learner.Learner.update", "the update.*--optim.micro-batch-tokens")],
)  # fmt: skip
def test_out_of_memory_names_the_phase_and_the_option(
    phase, option, stopped, tmp_path, monkeypatch
):
    run_dir = stopped(tmp_path, 1)

    def out_of_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(phase, out_of_memory)
    with pytest.raises(RunError, match=f"out of memory during {option}.*--resume RUN, or start"):
        run(config(tmp_path), resume=run_dir)
    monkeypatch.undo()
    less = ["--rollout.slots", "5", "--optim.micro-batch-tokens", "64", "--rollout.cache-gib", "1"]
    assert main(["--resume", str(run_dir), "--steps", "2", *less]) == 0


def test_a_curve_that_cannot_be_drawn_is_a_warning(stopped, tmp_path, monkeypatch):
    run_dir = stopped(tmp_path, 4)

    def no_room(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("azr.report.page.write_learning_curve", no_room)
    assert run(config(tmp_path), resume=run_dir).step == 6
    assert "learning_curve.svg was not written (OSError" in (run_dir / "log.txt").read_text()


def test_saving_does_not_stop_training_for_longer_than_copying(tmp_path, monkeypatch):
    """Steps go on while the disk is slow, until the next save is due."""
    import threading

    import azr.run.checkpoint as checkpoint

    gate, seen = threading.Event(), []
    real = checkpoint.write_checkpoint

    def slow(folder, snapshot):
        if snapshot.step == 2:
            seen.append(gate.wait(60))
        return real(folder, snapshot)

    class Gate(StopAfter):
        @property
        def signal(self):
            rows = list(tmp_path.glob("2*/metrics.jsonl"))
            if rows and len(read_metrics(rows[0])) > 3:  # step 3 is done meanwhile
                gate.set()
            return None

    monkeypatch.setattr(checkpoint, "write_checkpoint", slow)
    summary = run(config(tmp_path, "--save.every", "2"), stop=Gate(0))
    assert seen == [True] and summary.step == 6


def test_the_watchdog_writes_all_stacks_when_a_step_hangs(tmp_path, monkeypatch):
    from azr.selfplay import SelfPlay

    play = SelfPlay.play

    def slow(self, step):
        if step == 2:
            time.sleep(2.0)
        return play(self, step)

    monkeypatch.setattr(SelfPlay, "play", slow)
    monkeypatch.setattr("azr.run.watchdog.PERIOD_S", 0.8)
    summary = run(config(tmp_path, "--steps", "3"))
    text = (summary.run_dir / "stacks.txt").read_text()
    assert "no step finished in 0.8 s" in text and "in slow" in text and "in run" in text
    assert "Thread MainThread:" in text and "azr-watchdog" not in text


def test_a_config_knows_which_options_are_free():
    base = parse_command_line([]).config
    from azr.config import check_resumable

    check_resumable(dataclasses.replace(base, steps=9), base, Path("r"))
    with pytest.raises(ConfigError, match="--run.seed is 3, was 0"):
        seeded = dataclasses.replace(base, run=dataclasses.replace(base.run, seed=3))
        check_resumable(seeded, base, Path("r"))


def test_a_saved_step_is_not_written_again(stopped, tmp_path):
    run_dir = stopped(tmp_path, 4)  # saved by the cadence, then stopped
    checkpoint = run_dir / "checkpoints" / "step_000004"
    written = checkpoint.stat().st_ino, (checkpoint / MARKER).stat().st_mtime_ns
    again = run(config(tmp_path), resume=run_dir, stop=StopAfter(0))
    assert again.step == 4 and again.checkpoint == checkpoint
    assert (checkpoint.stat().st_ino, (checkpoint / MARKER).stat().st_mtime_ns) == written
