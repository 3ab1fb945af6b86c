"""What a run came to, in plain words and one ladder for each type and split."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from azr.accuracy import Interval, wilson
from azr.report.chart import draw_ladder
from azr.report.record import RunRecord
from azr.report.words import duration, percent, plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Accuracy on a split of a type: at the start, at the last evaluation, and by chance."""

    split: str
    type: str
    tasks: int | None
    """None in a log that does not tell: then there is no interval either."""
    measure: str
    """"sampled" or "greedy": the same before and after."""
    before: float
    after: float
    greedy: float
    chance: float | None
    step: int

    @property
    def bounds(self) -> Interval | None:
        """The 95% interval of `after`."""
        return wilson(self.after, self.tasks) if self.tasks else None


def progress(run: RunRecord) -> list[Progress]:
    """Returns the results by split and type, in that order; [] before the first evaluation."""
    found = []
    for split in run.splits:
        for task_type in run.types:
            name = f"eval/{split}/{task_type}"
            greedy, sampled = (run.series(f"{name}/{m}_accuracy") for m in ("greedy", "sampled"))
            # Greedy answers of an untrained model are a lottery, so sampled ones are compared.
            measure, compared = ("sampled", sampled) if sampled else ("greedy", greedy)
            before, after, last = compared.first, compared.last, greedy.last
            if before is None or after is None or last is None:
                continue
            tasks = run.series(f"{name}/tasks").last
            found.append(
                Progress(
                    split=split,
                    type=task_type,
                    tasks=int(tasks) if tasks else None,
                    measure=measure,
                    before=before,
                    after=after,
                    greedy=last,
                    chance=run.series(f"{name}/chance").last,
                    step=int(greedy.steps[-1]),
                )
            )
    return found


def _pooled(found: Sequence[Progress]) -> tuple[float, float, float | None, int | None]:
    """Returns (before, after, chance, tasks) over several types, each task counted once."""
    known = all(o.tasks for o in found)
    weights = [o.tasks or 1 for o in found] if known else [1] * len(found)
    total = sum(weights)

    def mean(values: Sequence[float]) -> float:
        return sum(w * v for w, v in zip(weights, values, strict=True)) / total

    chances = [o.chance for o in found if o.chance is not None]
    return (
        mean([o.before for o in found]),
        mean([o.after for o in found]),
        mean(chances) if len(chances) == len(found) else None,
        total if known else None,
    )


def judge(after: float, chance: float | None, tasks: int | None) -> str:
    """Returns in words how an accuracy stands to chance, by its 95% interval."""
    if chance is None or tasks is None:
        return ""
    interval = wilson(after, tasks)
    if interval.low > chance:
        return "above chance"
    if interval.high < chance:
        return "below chance"
    return "not distinguishable from chance"


def headline(run: RunRecord) -> str:
    """Returns one or two sentences, escaped."""
    found = progress(run)
    at = found[0].step if found else run.step
    spent = run.series("time/elapsed_s").at(at)
    time = f" ({duration(spent)})" if spent is not None else ""
    if not found:
        return f"Nothing has been evaluated yet, after {run.step:,} steps{time}."
    by_split = []
    for split in run.splits:
        group = [o for o in found if o.split == split]
        if not group:
            continue
        before, after, chance, tasks = _pooled(group)
        solved = f"<b>{percent(after)}</b> of {f'{tasks:,}' if tasks else 'the'}"
        verdict = judge(after, chance, tasks)
        if split == "train":
            doubt = f" ({verdict})" if verdict not in ("", "above chance") else ""
            by_chance = f"; chance is {percent(chance)}" if chance is not None else ""
            start = f"from {percent(before)} before"
            by_split.append(f"{solved} training tasks, {start}{by_chance}{doubt}")
        else:
            verdict = verdict or f"from {percent(before)}"
            by_split.append(f"{solved} {escape(plain(split))} tasks ({verdict})")
    first, *others = by_split
    unseen = f" It solves {' and '.join(others)}. Held-out tasks are never trained on."
    when = f"After {at:,} steps{time} the" if at else "The start"
    return f"{when} model solves {first}.{unseen if others else ''}"


def cards(run: RunRecord, colour: str = "") -> str:
    """Returns one card for each type, with a ladder for each split.

    In the type's colour, or all in `colour`: that of the run where there are several.
    """
    found = progress(run)
    drawn = []
    for i, task_type in enumerate(run.types):
        mine = [o for o in found if o.type == task_type]
        if not mine:
            continue
        accent = colour or f"k{i % 6}"
        rows = "".join(_row(o, accent) for o in mine)
        drawn.append(f'<article class="card {accent}"><h3>{escape(task_type)}</h3>{rows}</article>')
    if not drawn:
        return ""
    intervals = "the bar is the 95% interval over tasks" if found[0].tasks else (
        "no intervals: this log does not tell the number of tasks"
    )  # fmt: skip
    legend = (
        f'<p class="legend">Accuracy of {found[0].measure} answers, 0 to 100%: '
        '<i class="hollow"></i> before, <i class="full"></i> after, '
        f'<i class="tickmark"></i> chance; {intervals}.</p>'
    )
    return f'<div class="cards">{"".join(drawn)}</div>{legend}'


def _row(o: Progress, colour: str) -> str:
    count = f" <small>{o.tasks:,}</small>" if o.tasks else ""
    words = f"{plain(o.split)}: {percent(o.before)} before, {percent(o.after)} after"
    ladder = draw_ladder(o.before, o.after, o.chance, o.bounds, colour, words)
    return (
        f'<div class="rung"><span class="split">{escape(plain(o.split))}{count}</span>'
        f'<span class="value">{percent(o.before)} → <b>{percent(o.after)}</b></span>{ladder}</div>'
    )
