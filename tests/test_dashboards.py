"""TensorBoard, wandb and Trackio get what metrics.jsonl gets, and cannot end a run."""

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from azr.config import Config, ConfigError, LogConfig, RunConfig, parse_command_line
from azr.run import dashboards
from azr.run.dashboards import Dashboards, check_installed
from azr.run.log import RunLog
from azr.run.metrics import read_metrics
from azr.train import main

ROWS = {
    0: {"eval/train/deduction/greedy_accuracy": 0.1, "propose/deduction/valid_rate": math.nan},
    1: {"policy/entropy": 1.5, "eval/train/deduction/greedy_accuracy": 0.25},
    2: {"policy/entropy": 1.25, "policy/grad_norm": math.inf},
}
FINITE = {
    (step, name): value
    for step, row in ROWS.items()
    for name, value in row.items()
    if math.isfinite(value)
}


def configured(name, root="runs"):
    return Config(log=LogConfig(to=(name,)), run=RunConfig(root=str(root), name="x"))


def write_all(name, folder, first_step=0, rows=ROWS):
    told = []
    opened = Dashboards(configured(name), folder, first_step, lambda *said: told.append(said))
    for step, row in rows.items():
        opened.write(step, row)
    opened.close(max(rows))
    assert told == []


def tensorboard_values(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {
        (event.step, tag): event.value
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
    }


@pytest.mark.filterwarnings("default")  # of the libraries themselves
def test_tensorboard_holds_every_finite_value(tmp_path):
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    write_all("tensorboard", tmp_path)
    assert tensorboard_values(tmp_path) == pytest.approx(FINITE)


@pytest.mark.filterwarnings("default")
def test_tensorboard_after_a_resume_shows_each_step_once(tmp_path):
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    write_all("tensorboard", tmp_path)
    write_all("tensorboard", tmp_path, 1, {2: {"policy/entropy": 7.0}})
    assert tensorboard_values(tmp_path)[2, "policy/entropy"] == 7.0
    assert tensorboard_values(tmp_path)[1, "policy/entropy"] == 1.5


@pytest.mark.filterwarnings("default")
def test_wandb_offline_holds_the_metrics_under_one_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    write_all("wandb", tmp_path)
    kept = (tmp_path / "wandb_id").read_text()
    write_all("wandb", tmp_path, 2, {3: {"policy/entropy": 1.0}})
    assert (tmp_path / "wandb_id").read_text() == kept and len(kept) >= 8
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*-{kept}/run-{kept}.wandb"))
    assert files and {p.name for p in (tmp_path / "wandb").rglob("*.wandb")} == {
        f"run-{kept}.wandb"
    }
    # Names stand as plain text in its records, whatever the rest of the format is.
    written = b"".join(path.read_bytes() for path in files)
    for _, name in FINITE:
        assert name.encode() in written, name
    assert b"grad_norm" not in written


def test_trackio_holds_the_metrics(tmp_path):
    pytest.importorskip("trackio", reason="pip install trackio")
    # In a process of its own: where Trackio writes is settled when it is imported.
    here = Path(__file__).parent
    code = (
        "import pathlib, sys, test_dashboards;"
        "test_dashboards.write_all('trackio', pathlib.Path(sys.argv[1]))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {
            "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": f"{here}:{here.parent}:{here.parent / 'kernels'}",
        },
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (database,) = (tmp_path / "trackio").glob("*.db")
    with contextlib.closing(sqlite3.connect(database)) as db:
        rows = db.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
    found = {
        (step, name): value
        for _, step, metrics in rows
        for name, value in json.loads(metrics).items()
    }
    assert found == pytest.approx(FINITE) and {name for name, *_ in rows} == {tmp_path.name}


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_one_that_is_not_installed_is_a_line_to_type(name, tmp_path, monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == name else real(n, *a)
    )
    with pytest.raises(ConfigError, match=rf"--log\.to {name}: .*pip install 'azr\[{name}\]'"):
        check_installed(configured(name))
    # Said before anything is written, and by --dry-run as well.
    for flags in ([], ["--dry-run"]):
        assert main(["--log.to", name, "--run.root", str(tmp_path / "runs"), *flags]) == 2
    assert "pip install" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_an_unknown_one_is_refused():
    with pytest.raises(ConfigError, match="--log.to .*known are tensorboard, wandb, trackio"):
        parse_command_line(["--log.to", "mlflow"])
    with pytest.raises(ConfigError, match="twice"):
        parse_command_line(["--log.to", "wandb", "wandb"])


class Broken:
    """A dashboard that fails from its second step on."""

    def __init__(self, config, run_dir, first_step):
        self.steps = []

    def write(self, step, metrics):
        self.steps.append(step)
        if step > 0:
            raise OSError("the network is gone")

    def close(self):
        raise AssertionError("it was given up")


def test_a_failure_is_said_once_and_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(dashboards.KINDS, "wandb", Broken)
    monkeypatch.setattr(dashboards, "check_installed", lambda config: None)
    log = RunLog(configured("wandb", tmp_path), started=0.0, to_json=dict, universe={})
    log.banner([], [])
    log.start({}, {"propose/deduction/valid_rate": 0.5})
    for step in (1, 2):
        log._dashboards.write(step, {"policy/entropy": 1.0})
    log.close()
    events = [json.loads(line) for line in (log.run_dir / "events.jsonl").read_text().splitlines()]
    assert [e["message"] for e in events] == ["wandb is given up (OSError: the network is gone)"]
    assert [row["step"] for row in read_metrics(log.run_dir / "metrics.jsonl")] == [0]


def test_one_that_cannot_be_opened_is_an_error_at_the_start(tmp_path, monkeypatch):
    def refuse(config, run_dir, first_step):
        raise RuntimeError("no login")

    monkeypatch.setitem(dashboards.KINDS, "wandb", refuse)
    monkeypatch.setattr(dashboards, "check_installed", lambda config: None)
    with pytest.raises(ConfigError, match="--log.to wandb: it cannot be opened: no login"):
        Dashboards(configured("wandb"), tmp_path, 0, print)


def test_no_dashboard_is_imported_unasked(tmp_path):
    before = {n for n in ("tensorboard", "wandb", "trackio") if n in sys.modules}
    plain = dataclasses.replace(configured("wandb"), log=LogConfig())
    Dashboards(plain, tmp_path, 0, print).close(0)
    assert {n for n in ("tensorboard", "wandb", "trackio") if n in sys.modules} == before
    assert list(tmp_path.iterdir()) == []
