"""Metrics of one run or several as figures.

With one run a colour is a task type; with several it is a run, and each type has its own figure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from azr.accuracy import wilson
from azr.report.chart import Dash, Line, Unit, draw_lines
from azr.report.record import RunRecord
from azr.report.words import plain
from azr.run.series import Series

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
        self.legend = [
            (run, "", "") if self.is_single else (run, name, f"k{i % 6}")
            for i, (run, name) in enumerate(zip(runs, self.names, strict=True))
        ]
        """Each run with the label and the colour that tell it from others: "" of a run alone."""

    def by_type(
        self, title: str, pattern: str, unit: Unit = "number", note: str = "", noisy: bool = True
    ) -> list[str]:
        """Returns the figures of a metric that every type has; "{type}" stands in its name."""
        figures: dict[str, list[Line]] = {}
        for task_type in self.types:
            lines = self._lines(pattern.replace("{type}", task_type), task_type, task_type, noisy)
            name = title if self.is_single else f"{title}: {task_type}"
            figures[name] = figures.get(name, []) + lines
        return _drawn(figures, unit, note)

    def over_runs(
        self, title: str, name: str, unit: Unit = "number", note: str = "", noisy: bool = True
    ) -> list[str]:
        """Returns the figure of a metric, one line for each run."""
        return _drawn({title: self._lines(name, noisy=noisy)}, unit, note)

    def accuracy(self, task_type: str, splits: Sequence[str], title: str) -> list[str]:
        """Returns the learning curves of a type on some splits, with chance and 95% intervals."""
        lines = []
        is_alone = self.is_single and len(splits) == 1
        for split, dash in zip(splits, DASHES, strict=False):
            name = f"eval/{split}/{task_type}"
            label = "greedy" if is_alone else plain(split).removeprefix("held-out ")
            greedy = self._lines(f"{name}/greedy_accuracy", label, task_type)
            for run, line in zip(self.runs, greedy, strict=True):
                low, high = _bounds(line.series, run.series(f"{name}/tasks"))
                lines.append(replace(line, dash=dash, low=low, high=high))
            sampled = self._lines(f"{name}/sampled_accuracy", "sampled", task_type)
            if is_alone:
                lines.append(replace(sampled[0], dash="dotted"))
            self.shown.update(f"{name}/{metric}" for metric in ("chance", "tasks", "samples"))
        chances = [run.series(f"eval/{splits[0]}/{task_type}/chance") for run in self.runs]
        longest = max(chances, key=lambda s: s.steps[-1] if s else -1)
        lines.append(Line(label="chance", series=longest, colour="grey", dash="dashed"))
        return _drawn({title: lines}, "share")

    def cell(self, role: str, task_type: str) -> list[str]:
        """Returns the mean reward of a cell, and with one run the band of its deviation."""
        name = f"reward/{role}/{task_type}"
        lines = self._lines(f"{name}/mean", "mean", task_type, noisy=True)
        mean, std = lines[0].series, self._lines(f"{name}/std")[0].series
        if self.is_single and mean.steps == std.steps:
            pairs = list(zip(mean.values, std.values, strict=True))
            low, high = [m - s for m, s in pairs], [m + s for m, s in pairs]
            lines = [replace(lines[0], low=low, high=high)]
        return _drawn({f"{role} / {task_type}": lines})

    def rest_by_type(self, role: str) -> list[str]:
        """Returns the figures of a role's metrics by type that have not been shown yet."""
        patterns: dict[str, None] = {}
        for name in self._left():
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
        groups: dict[str, list[str]] = {}
        for name in self._left():
            figures = self.over_runs(name, name)
            groups.setdefault(name.partition("/")[0], []).extend(figures)
        return groups

    def _left(self) -> list[str]:
        names = dict.fromkeys(name for run in self.runs for name in run.metrics)
        return [name for name in names if name not in self.shown]

    def _lines(
        self, name: str, label: str = "", task_type: str = "", noisy: bool = False
    ) -> list[Line]:
        """Returns a metric of each run; the label and the type's colour are for a run alone."""
        self.shown.add(name)
        colour = f"k{self.types.index(task_type) % 6}" if task_type else "grey"
        return [
            Line(
                label=run_label or label,
                series=run.series(name),
                colour=run_colour or colour,
                is_noisy=noisy,
            )
            for run, run_label, run_colour in self.legend
        ]


def _drawn(
    figures: Mapping[str, Sequence[Line]], unit: Unit = "number", note: str = ""
) -> list[str]:
    """Returns the figures, by title, that have a point."""
    drawn = (draw_lines(title, lines, unit, note) for title, lines in figures.items())
    return [figure for figure in drawn if figure]


def _bounds(accuracy: Series, tasks: Series) -> tuple[list[float], list[float]]:
    """Returns the ends of the 95% intervals, none where the tasks of a point are not known."""
    counted = dict(zip(tasks.steps, tasks.values, strict=True))
    points = zip(accuracy.steps, accuracy.values, strict=True)
    bounds = [wilson(v, counted[step]) for step, v in points if counted.get(step)]
    if len(bounds) < len(accuracy.steps):
        return [], []
    return [b.low for b in bounds], [b.high for b in bounds]


def _short(name: str, names: Sequence[str]) -> str:
    """Returns the name without the words that all the names share, if that leaves it distinct."""
    words = [n.split("-") for n in names]
    shared = set.intersection(*map(set, words))
    short = ["-".join(w for w in one if w not in shared) for one in words]
    if len(names) == 1 or len(set(short)) < len(set(names)) or "" in short:
        return name
    return short[names.index(name)]
