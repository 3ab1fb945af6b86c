"""One run's record: everything that is shown and everything that is written, step by step."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from azr import __version__
from azr.accuracy import Accuracy, as_metrics
from azr.config import Config
from azr.log.console import RunConsole
from azr.log.curves import plot_learning_curve
from azr.log.metrics import MetricsLog
from azr.log.run_db import RunDb, SampleRow
from azr.log.run_dir import create_run_dir, describe_machine, write_json
from azr.memory import GIB, Part

Accuracies = Mapping[tuple[str, str], Accuracy]


class RunLog:
    """Owns the run directory and the console."""

    def __init__(
        self,
        config: Config,
        *,
        started: float,
        to_json: Callable[[object], dict],
        universe: Mapping[str, int],
    ):
        """`started` is time.monotonic() at the first line of the program; `universe` maps task
        types to the number of their training tasks, where that is known."""
        self.config, self.universe, self.started = config, dict(universe), started
        self.run_dir = create_run_dir(config)
        self.machine = describe_machine()
        write_json(self.run_dir / "env.json", self.machine)
        self.console = RunConsole(
            self.run_dir / "log.txt", plain=config.log.plain, every=config.log.every
        )
        self._metrics = MetricsLog(self.run_dir / "metrics.jsonl")
        self._db = RunDb(self.run_dir / "run.db", to_json) if config.log.samples else None
        self._loop_started = started
        self._latest: Accuracies = {}
        self._proposals: list[SampleRow] = []

    def banner(self, facts: list[tuple[str, str]], plan: list[Part]) -> None:
        """Shows what runs, where and why, and the memory plan."""
        m = self.machine
        versions = " ".join(f"{name} {m[name]}" for name in ("torch", "transformers", "numba"))
        hardware = f"{m['processor']}, {m['cores']} cores" + (f", {m['gpu']}" if m["gpu"] else "")
        lines = [
            ("run directory", str(self.run_dir)),
            ("versions", f"python {m['python']} {versions}"),
            ("machine", hardware),
            *facts,
        ]
        self.console.banner(__version__, m, lines, plan)

    def start(self, results: Accuracies, seeding: Mapping[str, float]) -> None:
        """Shows and records step 0: the start model beside chance, and the seeding."""
        self._latest = results
        start = {s: a for s, a in results.items() if s[0] == "train"}
        self.console.start_table(start, "Before self-play: it knows the format, and no arithmetic")
        elapsed = time.monotonic() - self.started
        self._metrics.write(0, dict(seeding) | as_metrics(results) | {"time/elapsed_s": elapsed})
        self._loop_started = time.monotonic()

    def samples(
        self,
        step: int,
        tasks: Iterable[tuple[str, str, object]],
        samples: Iterable[SampleRow],
    ) -> None:
        """Records the tasks that entered the buffers, and the samples, of a step."""
        rows = list(samples)
        valid = [r for r in rows if r.outcome == "valid" and r.solve_rate is not None]
        self._proposals = (self._proposals + valid)[-200:]
        if self._db:
            self._db.write(step, tasks, rows)

    def step(self, step: int, metrics: Mapping[str, float], accuracy: Accuracies | None) -> None:
        """Records and shows a step; `accuracy` where it was evaluated."""
        now = time.monotonic()
        row = dict(metrics)
        if accuracy is not None:
            self._latest = accuracy
            row |= as_metrics(accuracy)
        row["time/elapsed_s"] = now - self.started
        row["perf/host_rss_gib"] = host_rss_bytes() / GIB
        self._metrics.write(step, row)
        spent = now - self._loop_started
        self.console.step(
            step,
            self.config.steps,
            now - self.started,
            spent / step * (self.config.steps - step),
            row,
            self._latest,
            self.config.task.types,
            self.universe,
        )

    def finish(self, before: Accuracies, checkpoint: Path) -> None:
        """Shows the result, draws the learning curve, and says where everything is."""
        self.console.stop()
        self.console.end_table(before, self._latest)
        shown = self._proposals[-1 :: -max(1, len(self._proposals) // 5)][:5]
        self.console.proposals(
            [(r.type, r.text, r.task_key or "", f"{r.solve_rate:.2f}") for r in shown]
        )
        types = self.config.task.types
        curve = plot_learning_curve(self.run_dir, types, self.universe)
        elapsed = time.monotonic() - self.started
        self.console.print(
            f"{self.config.steps} steps in {elapsed:.0f} s\n"
            f"learning curve  {curve}\n"
            f"model           {checkpoint / 'hf'}"
        )

    def close(self) -> None:
        """Closes every file."""
        self.console.close()
        self._metrics.close()
        if self._db:
            self._db.close()


def host_rss_bytes() -> int:
    """Returns the resident memory of this process, 0 where it cannot be told."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError):
        return 0  # not Linux
    return pages * os.sysconf("SC_PAGE_SIZE")
