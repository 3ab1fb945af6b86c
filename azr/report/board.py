"""Metrics of one run or several as figures.

With one run a colour is a task type; with several it is a run, and each type has its own figure.
"""

from collections.abc import Sequence

from azr.accuracy import wilson
from azr.report.chart import Dash, Line, Unit, draw_lines
from azr.report.record import RunRecord
from azr.report.words import plain

DASHES: tuple[Dash, ...] = ("", "dashed", "dotted")


class Board:
    """The runs of a page; remembers which metrics have been shown."""

    def __init__(self, runs: Sequence[RunRecord]):
        self.runs = runs
        self.types = tuple(dict.fromkeys(t for run in runs for t in run.types))
        self.splits = tuple(dict.fromkeys(s for run in runs for s in run.splits))
        self.is_single = len(runs) == 1
        self.shown: set[str] = set()
        names = [run.name for run in runs]
        # Run directories begin with a date and often agree in the rest: the shortest distinct end.
        self.names = [_short(name, names) for name in names]

    def by_type(
        self, title: str, pattern: str, unit: Unit = "number", note: str = "", noisy: bool = True
    ) -> list[str]:
        """Returns the figures of a metric that every type has; "{type}" stands in its name."""
        if self.is_single:
            lines = [
                line
                for i, t in enumerate(self.types)
                for line in self._line(0, pattern.replace("{type}", t), t, f"k{i % 6}", noisy)
            ]
            return _present([draw_lines(title, lines, unit, note)])
        figures = []
        for task_type in self.types:
            name = pattern.replace("{type}", task_type)
            figures += self.over_runs(f"{title}: {task_type}", name, unit, note, noisy)
        return figures

    def over_runs(
        self, title: str, name: str, unit: Unit = "number", note: str = "", noisy: bool = True
    ) -> list[str]:
        """Returns the figure of a metric, one line for each run."""
        lines = []
        for i, label in enumerate(self.names):
            colour = "grey" if self.is_single else f"k{i % 6}"
            found = self._line(i, name, "" if self.is_single else label, colour, noisy)
            lines += found
        return _present([draw_lines(title, lines, unit, note)])

    def accuracy(self, task_type: str, splits: Sequence[str], title: str) -> list[str]:
        """Returns the learning curves of a type on some splits, with chance and 95% intervals."""
        lines = []
        is_alone = self.is_single and len(splits) == 1
        for r, run in enumerate(self.runs):
            colour = f"k{(self.types.index(task_type) if self.is_single else r) % 6}"
            for s, split in enumerate(splits):
                name = f"eval/{split}/{task_type}"
                shown = ("greedy_accuracy", "sampled_accuracy", "chance", "tasks", "samples")
                self._claim(*(f"{name}/{metric}" for metric in shown))
                greedy, sampled, counted = (
                    run.series(f"{name}/{m}") for m in (*shown[:2], "tasks")
                )
                tasks = dict(zip(counted.steps, counted.values, strict=True))
                bounds = [
                    wilson(v, tasks[step])
                    for step, v in zip(greedy.steps, greedy.values, strict=True)
                    if tasks.get(step)
                ]
                if len(bounds) < len(greedy.steps):
                    bounds = []
                label = plain(split).removeprefix("held-out ") if self.is_single else self.names[r]
                lines.append(
                    Line(
                        label="greedy" if is_alone else label,
                        series=greedy,
                        colour=colour,
                        dash=DASHES[s % 3],
                        low=[b.low for b in bounds],
                        high=[b.high for b in bounds],
                    )
                )
                if is_alone:
                    lines.append(
                        Line(label="sampled", series=sampled, colour=colour, dash="dotted")
                    )
        chances = [run.series(f"eval/{splits[0]}/{task_type}/chance") for run in self.runs]
        longest = max(chances, key=lambda s: s.steps[-1] if s else -1)
        lines.append(Line(label="chance", series=longest, colour="grey", dash="dashed"))
        return _present([draw_lines(title, lines, "share")])

    def cell(self, role: str, task_type: str) -> list[str]:
        """Returns the mean reward of a cell, and with one run the band of its deviation."""
        lines = []
        for i, (run, label) in enumerate(zip(self.runs, self.names, strict=True)):
            name = f"reward/{role}/{task_type}"
            self._claim(f"{name}/mean", f"{name}/std")
            mean, std = run.series(f"{name}/mean"), run.series(f"{name}/std")
            band = self.is_single and list(mean.steps) == list(std.steps)
            pairs = list(zip(mean.values, std.values, strict=True)) if band else []
            lines.append(
                Line(
                    label="mean" if self.is_single else label,
                    series=mean,
                    colour=f"k{(self.types.index(task_type) if self.is_single else i) % 6}",
                    low=[m - s for m, s in pairs],
                    high=[m + s for m, s in pairs],
                    is_noisy=True,
                )
            )
        return _present([draw_lines(f"{role} / {task_type}", lines)])

    def rest_by_type(self, role: str) -> list[str]:
        """Returns the figures of a role's metrics by type that have not been shown yet."""
        patterns: dict[str, None] = {}
        for name in (n for run in self.runs for n in run.metrics if n not in self.shown):
            levels = name.split("/")
            if len(levels) == 3 and levels[0] == role and levels[1] in self.types:
                patterns[f"{role}/{{type}}/{levels[2]}"] = None
        figures = []
        for pattern in patterns:
            words = plain(pattern.rsplit("/", 1)[1])
            unit: Unit = "share" if words.endswith("rate") else "number"
            figures += self.by_type(f"{role}: {words}", pattern, unit)
        return figures

    def rest(self) -> dict[str, list[str]]:
        """Returns the figures of all metrics not shown yet, by the first level of their names."""
        names = dict.fromkeys(n for run in self.runs for n in run.metrics if n not in self.shown)
        groups: dict[str, list[str]] = {}
        for name in names:
            figures = self.over_runs(name, name)
            groups.setdefault(name.partition("/")[0], []).extend(figures)
        return groups

    def _line(self, run: int, name: str, label: str, colour: str, noisy: bool) -> list[Line]:
        self._claim(name)
        found = self.runs[run].series(name)
        return [Line(label=label, series=found, colour=colour, is_noisy=noisy)]

    def _claim(self, *names: str) -> None:
        self.shown.update(names)


def _present(figures: Sequence[str]) -> list[str]:
    return [f for f in figures if f]


def _short(name: str, names: Sequence[str]) -> str:
    """Returns the name without the words that all the names share, if that leaves it distinct."""
    words = [n.split("-") for n in names]
    shared = set.intersection(*map(set, words))
    short = ["-".join(w for w in one if w not in shared) for one in words]
    if len(names) == 1 or len(set(short)) < len(set(names)) or "" in short:
        return name
    return short[names.index(name)]
