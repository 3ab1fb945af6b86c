"""One run's record: everything that is shown and everything that is written, step by step."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from azr import __version__
from azr.accuracy import Score, Scores, as_metrics
from azr.config import Config, to_toml
from azr.errors import naming_disk_errors
from azr.plan import GIB, Part, peak_bytes, resident_bytes
from azr.run.console import RunConsole, StepView
from azr.run.dashboards import Dashboards
from azr.run.db import RunDb, SampleRow
from azr.run.diagnosis import Diagnosis
from azr.run.directory import RunLock, create_run_dir
from azr.run.files import write_whole
from azr.run.first_samples import FIRST_STEPS, FirstSamples
from azr.run.machine import describe_machine
from azr.run.metrics import MetricsLog
from azr.run.stage import Stage
from azr.streams import take_losses
from azr.tasks.records import Task


class RunLog:
    """Owns the run directory and the console."""

    def __init__(
        self,
        config: Config,
        *,
        started: float,
        to_json: Callable[[Task], dict],
        universe: Mapping[str, int],
        resumed: Path | None = None,
        state: Mapping | None = None,
    ):
        """`started` is time.monotonic() at the first line of the program; `universe` maps task
        types to the number of their training tasks, where that is known. A resumed run gives its
        directory and what `state` returned; what was written after that is rolled back."""
        self.config, self.universe = config, dict(universe)
        self.run_dir = resumed or create_run_dir(config)
        self.machine = describe_machine()
        state = state or {}
        self._last_step = self._first_step = state.get("step", 0)
        self._is_resumed = resumed is not None
        self.before: Scores = _scores(state.get("before", []))
        self.latest: Scores = _scores(state.get("latest", []))
        self._proposals = [SampleRow(**row) for row in state.get("proposals", [])]
        self.started = started - state.get("elapsed_s", 0.0)
        self._loop_started = time.monotonic()
        self._diagnosis = Diagnosis(config.task.types)
        rates = [(a.greedy_format_rate, a.sampled_format_rate) for a in self.latest.values()]
        is_formed = any(rate > 0 for pair in rates for rate in pair)
        useful = ["propose"] * bool(self._proposals) + ["solve"] * is_formed
        self._first_samples = FirstSamples(config, self._first_step, useful)
        self.eval_s = state.get("eval_s", 0.0)
        """Seconds of the last evaluation."""
        with ExitStack() as opened:
            opened.callback(RunLock(self.run_dir).release)
            self.console = RunConsole(self.run_dir / "log.txt", every=config.log.every)
            opened.callback(self.console.close)
            self._metrics = MetricsLog(
                self.run_dir / "metrics.jsonl", state.get("metrics_bytes"), state.get("step", -1)
            )
            opened.callback(self._metrics.close)
            self._db = None
            if config.log.samples:
                path = self.run_dir / "run.db"
                self._db = RunDb(path, to_json, state.get("db"), self._warn_here, self._last_step)
                opened.callback(self._db.close)
            if resumed:
                write_whole(self.run_dir / "config.toml", to_toml(config))
                self.event(self._first_step, "resumed", json.dumps(self.machine))
                for problem in self._metrics.problems:
                    self.warn(self._first_step, problem)
            self._dashboards = Dashboards(config, self.run_dir, self._first_step, self.warn)
            opened.callback(self._note_losses)
            opened.callback(lambda: self._dashboards.close(self._last_step))
            self._opened = opened.pop_all()

    def state(self, step: int) -> dict:
        """Returns, as JSON values, how far the record has come; all of it is safe on the disk."""
        return {
            "step": step,
            "metrics_bytes": self._metrics.position(),
            "db": self._db.position() if self._db else None,
            "before": _score_rows(self.before),
            "latest": _score_rows(self.latest),
            "proposals": [dataclasses.asdict(row) for row in self._proposals],
            "elapsed_s": time.monotonic() - self.started,
            "eval_s": self.eval_s,
        }

    @property
    def is_stuck(self) -> bool:
        """Whether the run should be saved and end: run.db has been locked for minutes."""
        return self._db is not None and self._db.is_stuck

    def banner(self, facts: list[tuple[str, str]], plan: list[Part]) -> None:
        """Shows what runs, where and why, and the memory plan; a new run keeps it in env.json."""
        m = self.machine
        if not self._is_resumed:
            environment = m | {
                "started": datetime.now().astimezone().isoformat(timespec="seconds"),
                "facts": dict(facts),
                "memory_plan_bytes": {part.name: part.bytes for part in plan},
                "memory_peak_bytes": peak_bytes(plan),
                "universe": self.universe,
            }
            path = self.run_dir / "env.json"
            with naming_disk_errors(path):
                write_whole(path, json.dumps(environment, indent=2) + "\n")
        versions = ("python", "torch", "transformers", "numba")
        hardware = f"{m['processor']}, {m['cores']} cores" + (f", {m['gpu']}" if m["gpu"] else "")
        lines = [
            ("run directory", str(self.run_dir)),
            ("versions", " ".join(f"{name} {m[name]}" for name in versions)),
            ("machine", hardware),
            *facts,
        ]
        self.console.banner(__version__, m, lines, plan)

    def event(self, step: int, kind: str, message: str) -> None:
        """Appends a line to events.jsonl: warnings, resumes and the like."""
        path = self.run_dir / "events.jsonl"
        with naming_disk_errors(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "kind": kind, "message": message}) + "\n")

    def warn(self, step: int, message: str) -> None:
        """Shows a warning and keeps it in events.jsonl."""
        self.console.warn(message)
        self.event(step, "warning", message)

    def stage(self, name: str) -> Stage:
        """Returns a context that shows how far something before the first step is."""
        return Stage(self.console, name)

    def start(self, results: Scores, seeding: Mapping[str, float]) -> None:
        """Shows and records step 0: the start model beside chance, and the seeding."""
        self.before = self.latest = results
        start = {s: a for s, a in results.items() if s[0] == "train"}
        made_here = "" if self.config.model.path else ": it knows the format, and nothing else"
        self.console.start_table(start, f"Before self-play{made_here}")
        elapsed = time.monotonic() - self.started
        row = dict(seeding) | as_metrics(results) | {"time/elapsed_s": elapsed}
        self._metrics.write(0, row)
        self._dashboards.write(0, row)
        self._loop_started = time.monotonic()

    def samples(
        self, step: int, tasks: Iterable[tuple[str, str, Task]], episodes: Iterable[object]
    ) -> None:
        """Records the tasks that entered the buffers, and the samples, of a step."""
        rows = [SampleRow.of(e) for e in episodes]
        valid = [r for r in rows if r.outcome == "valid" and r.solve_rate is not None]
        self._proposals = (self._proposals + valid)[-SHOWN_FROM:]
        if step:  # the seeding's were seen round by round
            self._watch_first(step, rows)
        if self._db:
            self._db.write(step, tasks, rows)

    def seeding_round(self, episodes: Iterable[object]) -> None:
        """Warns where what the start model writes is of no use at all."""
        self._watch_first(0, [SampleRow.of(e) for e in episodes])

    def _watch_first(self, step: int, rows: list[SampleRow]) -> None:
        for message in self._first_samples.observe(step, rows):
            self.warn(step, message)

    def step(self, step: int, metrics: Mapping[str, float], accuracy: Scores | None) -> None:
        """Records and shows a step; `accuracy` where it was evaluated."""
        now = time.monotonic()
        row = dict(metrics)
        if accuracy is not None:
            self.latest = accuracy
            row |= as_metrics(accuracy)
        row["time/elapsed_s"] = now - self.started
        row |= process_metrics()
        self._metrics.write(step, row)
        self._dashboards.write(step, row)
        self._last_step = step
        a_step = (now - self._loop_started) / max(1, step - self._first_step)
        view = StepView(
            step=step,
            steps=self.config.steps,
            elapsed_s=now - self.started,
            eta_s=a_step * (self.config.steps - step),
            metrics=row,
            accuracy=self.latest,
            types=self.config.task.types,
            universe=self.universe,
        )
        self.console.step(view)
        self.eval_s = row["time/eval_s"] if accuracy is not None else self.eval_s
        if step == self._first_step + FIRST_STEPS < self.config.steps:
            self._show_pace(step)
        for message in self._diagnosis.observe(row):
            self.warn(step, message)
        self._note_losses()

    def _show_pace(self, step: int) -> None:
        """Says where the time of the first steps went, and when the run will end."""
        left, every = self.config.steps - step, self.config.eval.every
        evaluations = self.config.steps // every - step // every
        evaluations += self.config.steps % every > 0
        spent = self.console.spent
        seconds = (spent["step"] - spent["eval"]) / FIRST_STEPS * left + evaluations * self.eval_s
        self.console.pace(FIRST_STEPS, left, seconds)

    def keep_series(self) -> None:
        """Keeps the metrics so far as series, from which the report is drawn."""
        self._metrics.save_fold()

    def save_bad_batch(self, step: int, batch: list[dict]) -> Path:
        """Writes a batch that could not be trained on, as JSON, for inspection."""
        path = self.run_dir / f"bad_batch_step_{step:06d}.json"
        with naming_disk_errors(path):
            path.write_text(json.dumps(batch, default=lambda array: array.tolist()) + "\n")
        return path

    def finish(self, step: int, checkpoint: Path) -> None:
        """Shows the result, and says where everything is."""
        self.console.stop()
        self.console.end_table(self.before, self.latest)
        shown = self._proposals[-1 :: -max(1, len(self._proposals) // 5)][:5]
        if shown:
            self.console.proposals(
                [(r.type, r.text, r.task_key or "", f"{r.solve_rate:.2f}") for r in shown]
            )
        elapsed = time.monotonic() - self.started
        self.console.print(
            f"{step} of {self.config.steps} steps in {elapsed:.0f} s\n"
            f"report          {self.run_dir / 'report.html'}\n"
            f"learning curve  {self.run_dir / 'learning_curve.svg'}\n"
            f"model           {checkpoint / 'hf'}"
        )

    def close(self) -> None:
        """Closes every file and lets go of the run directory."""
        self._opened.close()

    def _note_losses(self) -> None:
        for message in take_losses():
            self._warn_here(message)

    def _warn_here(self, message: str) -> None:
        self.warn(self._last_step, message)


SHOWN_FROM = 200
"""The last valid proposals, from which the end's five are taken."""


def process_metrics() -> dict[str, float]:
    """Returns resident memory, open files and child processes; what cannot be told is left out."""
    proc = Path("/proc/self")
    try:
        children = (proc / "task" / str(os.getpid()) / "children").read_text().split()
        return {
            "perf/host_rss_gib": resident_bytes() / GIB,
            "perf/open_files": float(len(os.listdir(proc / "fd"))),
            "perf/children": float(len(children)),
        }
    except (OSError, ValueError):
        return {}  # not Linux


def _score_rows(results: Scores) -> list:
    return [[*cell, dataclasses.asdict(a)] for cell, a in results.items()]


def _scores(rows: Iterable) -> Scores:
    return {(split, task_type): Score(**values) for split, task_type, values in rows}
