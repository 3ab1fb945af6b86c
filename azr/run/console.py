"""What a run shows: a banner, a live table or plain lines, and a summary at the end.

Everything that is shown, but for redraws, also goes to log.txt in the run directory.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from azr.accuracy import Scores, with_interval
from azr.errors import naming_disk_errors
from azr.plan import Part, by_phase, peak_bytes, readable
from azr.run.metrics import PHASES

REFRESH_S = 0.25
PLAIN_WIDTH = 110
"""Columns of tables where there is no terminal to ask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """What is shown of a step."""

    step: int
    steps: int
    elapsed_s: float
    eta_s: float
    metrics: Mapping[str, float]
    accuracy: Scores
    """Of the last evaluation, by split and type."""
    types: Sequence[str]
    universe: Mapping[str, int]
    """Training tasks by type, where they are counted."""


class RunConsole:
    """Shows one run on the terminal, or as plain lines where there is none."""

    def __init__(self, log_path: Path | None, *, every: int):
        # Everything is shown as it stands: names and paths may look like markup.
        literal = {"markup": False, "emoji": False, "highlight": False}
        self.console = Console(**literal)
        if not self.console.is_terminal:
            self.console.width = PLAIN_WIDTH
        # FORCE_COLOR makes any file a terminal to rich; on one of TERM=dumb it redraws nothing.
        can_redraw = self.console.is_terminal and not self.console.is_dumb_terminal
        self.is_live = can_redraw and self.console.file.isatty()
        self.every = every
        self._log = None
        if log_path:
            # Names of files may be in another encoding; closed by close().
            self._log = open(log_path, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        self._log_console = Console(file=self._log, width=PLAIN_WIDTH, no_color=True, **literal)
        self._live: Live | None = None
        self._last_refresh = 0.0
        self.spent = dict.fromkeys((*PHASES, "step"), 0.0)
        """Seconds by phase since the first step."""

    def print(self, *parts: object) -> None:
        """Prints to the screen and to the log."""
        # Text is left as it is; only tables are fitted to the width.
        soft_wrap = not isinstance(parts[0], Table)
        self.console.print(*parts, soft_wrap=soft_wrap)
        self._keep(*parts, soft_wrap=soft_wrap)

    def _keep(self, *parts: object, soft_wrap: bool) -> None:
        if self._log:
            with naming_disk_errors(Path(self._log.name)):
                self._log_console.print(*parts, soft_wrap=soft_wrap)
                self._log.flush()

    def warn(self, message: str) -> None:
        """Prints a warning: one line that names the cause and the option."""
        self.print(Text(f"warning: {message}", style="yellow"))

    def close(self) -> None:
        """Ends the live table and closes the log."""
        self.stop()
        if self._log:
            with suppress(OSError):  # what a full disk did not take, and said so
                self._log.close()

    # Before the first step

    def banner(
        self, version: str, machine: Mapping, facts: list[tuple[str, str]], plan: list[Part]
    ) -> None:
        """Prints what runs, on what, and what it will hold in memory."""
        commit = f" ({machine['commit']})" if machine["commit"] else ""
        self.print(Text(f"AZR {version}{commit}: Absolute Zero self-play", style="bold"))
        table = Table.grid(padding=(0, 2))
        for name, value in facts:
            table.add_row(Text(name, style="dim"), value)
        parts = "; ".join(
            f"{phase}: " + ", ".join(f"{p.name} {readable(p.bytes)}" for p in group)
            for phase, group in by_phase(plan).items()
            if group
        )
        table.add_row(Text("memory plan", style="dim"), f"{readable(peak_bytes(plan))}; {parts}")
        self.print(table)

    def start_table(self, results: Scores, title: str) -> None:
        """Prints the sampled accuracy of the start model beside the chance level."""
        sampled = "sampled accuracy, 95% interval"
        table = _table(title, 1, "type", "tasks", "chance", sampled, "well-formed")
        for (_, task_type), a in results.items():
            table.add_row(
                task_type,
                str(a.tasks),
                _share(a.chance, 3),
                with_interval(a.sampled_interval) if a.samples else "not sampled",
                f"{a.sampled_format_rate if a.samples else a.greedy_format_rate:.3f}",
            )
        self.print(table)

    # While it runs

    def step(self, view: StepView) -> None:
        """Shows a step: redraws the table, or prints a line at every `every` steps."""
        for name in self.spent:
            self.spent[name] += view.metrics[f"time/{name}_s"]
        if view.step % self.every == 0 or view.step in (1, view.steps):
            line = self._line(view)
            self._keep(line, soft_wrap=True)
            if not self.is_live:
                self.console.print(line, soft_wrap=True)
        if not self.is_live:
            return
        now = time.monotonic()
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False, transient=False)
            self._live.start()
        if now - self._last_refresh >= REFRESH_S or view.step == view.steps:
            self._last_refresh = now
            self._live.update(self._table(view), refresh=True)

    def pace(self, steps: int, left: int, seconds: float) -> None:
        """Prints where the time of the first steps went, and when the rest will be done."""
        total = self.spent["step"]
        parts = (
            f"{name} {self.spent[name]:.1f} s ({self.spent[name] / max(total, 1e-9):.0%})"
            for name in PHASES
        )
        end = datetime.now() + timedelta(seconds=seconds)
        self.print(
            f"{steps} steps took {total:.1f} s: {', '.join(parts)}; "
            f"{left} more will take about {_clock(seconds)}, until {end:%Y-%m-%d %H:%M}"
        )

    def stop(self) -> None:
        """Leaves the live table standing and goes back to plain printing."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self, view: StepView) -> str:
        m, types = view.metrics, view.types
        times = f"{_clock(view.elapsed_s)} ETA {_clock(view.eta_s)}"
        parts = [f"step {view.step}/{view.steps} {times}"]
        for name, is_train in (("acc", True), ("held", False)):
            values = [_greedy(view.accuracy, t, is_train) for t in types]
            parts.append(f"{name} " + "/".join(_share(v) for v in values))
        parts.append("valid " + _share(_mean([m[f"propose/{t}/valid_rate"] for t in types])))
        parts.append("learn " + _share(_mean([m[f"propose/{t}/learnability"] for t in types])))
        parts.append(f"distinct {_distinct(m)}")
        parts.append("buffer " + "/".join(_of(m, t, view.universe) for t in types))
        parts.append("fmt " + _share(_mean([m[f"solve/{t}/format_rate"] for t in types])))
        parts.append(f"H {m.get('policy/entropy', float('nan')):.2f}")
        parts.append(f"{m['perf/gen_tok_s'] / 1000:.1f}k tok/s")
        parts.append(self._split())
        return " | ".join(parts)

    def _table(self, view: StepView) -> Group:
        m, accuracy = view.metrics, view.accuracy
        head = Table.grid(padding=(0, 1))
        head.add_row(
            Text(f"step {view.step}/{view.steps}", style="bold"),
            ProgressBar(total=view.steps, completed=view.step, width=28),
            f"{_clock(view.elapsed_s)}, ETA {_clock(view.eta_s)}",
            Text(_phase(accuracy), style="dim"),
        )
        columns = ("type", "greedy", "sampled", "chance", "held out", "well-formed")
        table = _table(None, 1, *columns, "valid", "learnability", "buffer", "new")
        for t in view.types:
            train = accuracy.get(("train", t))
            table.add_row(
                t,
                Text(_share(train.greedy if train else None), style="bold green"),
                _share(train.sampled if train else None),
                _share(train.chance if train else None),
                _share(_greedy(accuracy, t, is_train=False)),
                _share(m[f"solve/{t}/format_rate"]),
                _share(m[f"propose/{t}/valid_rate"]),
                _share(m[f"propose/{t}/learnability"]),
                _of(m, t, view.universe),
                f"+{m[f'buffer/{t}/new']:.0f}",
            )
        foot = Text(
            f"distinct of the last valid proposals {_distinct(m)}   entropy "
            f"{m.get('policy/entropy', float('nan')):.2f}   {m['perf/gen_tok_s'] / 1000:.1f}k tok/s"
            f"   time: {self._split()}",
            style="dim",
        )
        return Group(head, table, foot)

    def _split(self) -> str:
        total = max(self.spent["step"], 1e-9)
        return " ".join(f"{name} {self.spent[name] / total:.0%}" for name in PHASES)

    # At the end

    def end_table(
        self,
        before: Scores,
        after: Scores,
    ) -> None:
        """Prints the accuracy before and after, by split and type."""
        columns = ("tasks", "type", "n", "chance", "sampled before", "sampled after")
        table = _table("Before and after self-play", 2, *columns, "greedy after")
        for (split, task_type), a in after.items():
            b = before[split, task_type]
            table.add_row(
                split, task_type, str(a.tasks), _share(a.chance, 3), _share(b.sampled),
                _share(a.sampled), Text(_share(a.greedy), style="bold"),
            )  # fmt: skip
        self.print(table)

    def proposals(self, rows: list[tuple[str, str, str, str]]) -> None:
        """Prints some of the last proposals: (type, text, task, solve rate)."""
        columns = ("type", "the model wrote", "the task it became", "solve rate then")
        table = _table("Five of its last proposals", len(columns), *columns)
        for row in rows:
            table.add_row(*(Text(_visible(cell)) for cell in row))
        self.print(table)


def _table(title: str | None, words: int, *columns: str) -> Table:
    """Returns an empty table; the first `words` columns are text, the others numbers."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < words else "right")
    return table


def _visible(text: str) -> str:
    """Returns a text with what would steer a terminal written out."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def _greedy(accuracy: Scores, task_type: str, is_train: bool) -> float | None:
    """Returns a type's greedy accuracy, of training or averaged over the hold-outs."""
    return _mean(
        [
            a.greedy
            for (split, t), a in accuracy.items()
            if t == task_type and (split == "train") == is_train
        ]
    )


def _mean(values: list[float]) -> float | None:
    known = [v for v in values if v == v]
    return sum(known) / len(known) if known else None


def _share(value: float | None, digits: int = 2) -> str:
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def _of(m: Mapping[str, float], task_type: str, universe: Mapping[str, int]) -> str:
    size = f"{m[f'buffer/{task_type}/size']:.0f}"
    return f"{size} of {universe[task_type]}" if task_type in universe else size


def _distinct(m: Mapping[str, float]) -> str:
    return f"{m['propose/distinct_recent']:.0f} of {m['propose/recent']:.0f}"


def _phase(accuracy: Scores) -> str:
    """Returns a word on what a newcomer sees: the first part of a run looks flat."""
    greedy = _mean([a.greedy for (s, _), a in accuracy.items() if s == "train"]) or 0.0
    if greedy < 0.35:
        return "exploring: the proposer learns what a task is"
    if greedy < 0.9:
        return "learning"
    return "nothing left to learn: learnability goes back to 0"


def _clock(seconds: float) -> str:
    seconds = int(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{seconds // 60}:{seconds % 60:02d}"
