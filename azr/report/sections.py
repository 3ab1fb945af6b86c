"""The sections of a report, each as (id, title, HTML); one without content is left out."""

import json
from collections.abc import Sequence
from html import escape

from azr.report.board import Board
from azr.report.chart import draw_histogram, draw_shares
from azr.report.samples import SampleBook
from azr.report.summary import progress
from azr.report.words import duration, number, percent, plain
from azr.run.metrics import PHASES

Section = tuple[str, str, str]
ROLES = ("propose", "solve")


def sections(board: Board) -> list[Section]:
    """Returns what stands on the page below the summary, but for the browser."""
    found = [
        ("learning", "Learning", learning(board)),
        ("warnings", "Warnings", warnings(board)),
        ("proposer", "What the proposer does", proposer(board)),
        ("rewards", "Rewards and whitening", rewards(board)),
        ("update", "The update", update(board)),
        ("time", "Time and memory", time(board)),
        ("setup", "Options and machine", setup(board)),
    ]
    found.append(("more", "Every other metric", more(board)))  # last: what nobody has shown
    return [section for section in found if section[2]]


def _grid(figures: Sequence[str]) -> str:
    return f'<div class="grid">{"".join(figures)}</div>' if figures else ""


def _folded(summary: str, content: str) -> str:
    """Returns content that a reader has to open, "" of none."""
    summary = f"<summary>{escape(summary)}</summary>"
    return f"<details>{summary}{content}</details>" if content else ""


def _heading(text: str) -> str:
    return f"<h3>{escape(text)}</h3>" if text else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Returns a table of escaped cells, "" of no rows.

    The first `words` columns are text, the others numbers. A first column without words, the run's
    where there is one, is left out.
    """
    if not any(row[0] for row in rows):
        head, rows, words = head[1:], [row[1:] for row in rows], words - 1
    if not rows:
        return ""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{'' if i < words else ' class=n'}>{escape(cell)}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def learning(board: Board) -> str:
    """Learning and held-out curves, and the table of results."""
    held_out = [s for s in board.splits if s != "train"]
    figures = [([split], plain(split)) for split in held_out]
    if board.is_single and 1 < len(held_out) <= 3:
        figures = [(held_out, "held out")]
    trained, unseen = [], []
    for task_type in board.types:
        trained += board.accuracy(task_type, ["train"], f"{task_type}: training tasks")
        for splits, words in figures:
            unseen += board.accuracy(task_type, splits, f"{task_type}: {words}")
    if not trained and not unseen:
        return ""
    note = (
        "<p>Accuracy by step; bands are 95% Wilson intervals over the tasks of a split. Where a "
        "split holds every task there is, its curve is exact, and the band says what to expect of "
        "other tasks of the kind. Dashed grey: chance, the accuracy of random well-formed answers "
        "(an estimate where the family has to draw them).</p>"
    )
    return note + _grid(trained) + _grid(unseen) + _results(board)


def _results(board: Board) -> str:
    rows = []
    for run, label, _ in board.legend:
        for o in progress(run):
            bounds = o.bounds
            rows.append(
                [label, plain(o.split), o.type, f"{o.tasks:,}" if o.tasks else "–"]
                + [percent(o.chance), percent(o.before), percent(o.after)]
                + [f"{percent(bounds.low)} to {percent(bounds.high)}" if bounds else "–"]
                + [percent(o.greedy)]
            )
    head = ["run", "tasks", "type", "n", "chance", "before", "after", "95% interval"]
    return _table([*head, "greedy after"], rows, 3)


def warnings(board: Board) -> str:
    """Warnings, resumes, and what could not be read, in the order of the steps."""
    parts = []
    for run, label, _ in board.legend:
        lines = [f"<li><b>not shown</b> {escape(problem)}</li>" for problem in run.problems]
        for event in run.events:
            message = _machine_of(event.message) if event.kind == "resumed" else event.message
            lines.append(
                f'<li class="{"warned" if event.kind == "warning" else "told"}"><b>step '
                f"{event.step:,}</b> {escape(event.kind)}: {escape(message)}</li>"
            )
        shown = f'<ul class="events">{"".join(lines)}</ul>' if lines else "<p>None was raised.</p>"
        parts.append(_heading(label) + shown)
    return "".join(parts)


def _machine_of(message: str) -> str:
    """Returns the processor that a "resumed" event names, or the message."""
    try:
        machine = json.loads(message)
        return f"on {machine['processor']}, commit {machine['commit']}"
    except (ValueError, KeyError, TypeError):
        return message


def proposer(board: Board) -> str:
    """Validity, learnability, distinct tasks, buffers, and the reasons of rejections."""
    figures = board.by_type("Valid proposals", "propose/{type}/valid_rate", "share")
    figures += board.by_type(
        "Learnability", "propose/{type}/learnability",
        note="1 minus the solve rate, mean over valid proposals; back to 0 once all are solved",
    )  # fmt: skip
    figures += board.by_type(
        "Solved sometimes, not always", "propose/{type}/learnable_frac", "share",
        note="the valid proposals that teach",
    )  # fmt: skip
    figures += board.by_type(
        "Distinct within a step", "propose/{type}/unique_rate", "share",
        note="a fall to a few per cent is collapse",
    )  # fmt: skip
    figures += board.over_runs(
        "Distinct tasks lately", "propose/distinct_recent",
        note="among the last 900 valid proposals of all types",
    )  # fmt: skip
    board.shown.add("propose/recent")
    known = [run.universe for run in board.runs if run.universe]
    of = ", ".join(f"{t} {n:,}" for t, n in known[0].items()) if known else ""
    figures += board.by_type(
        "Tasks in the buffer", "buffer/{type}/size", noisy=False,
        note=f"of all there are: {of}" if of else "",
    )  # fmt: skip
    figures += board.by_type("Answers that are right", "solve/{type}/accuracy", "share",
                             note="on the step's own tasks, so no test score")  # fmt: skip
    figures += board.by_type("Answers that parse", "solve/{type}/format_rate", "share")
    others = board.rest_by_type("propose") + board.rest_by_type("solve")
    more = _folded("More on proposals and answers", _grid(others))
    return _grid(figures) + _reasons(board) + more


def _reasons(board: Board) -> str:
    """Returns the table of rejections and failures, with their share early and late."""
    rows = []
    for run, label, _ in board.legend:
        for name in sorted(run.metrics):
            levels = name.split("/")
            if len(levels) != 4 or levels[2] not in ("rejected", "failed"):
                continue
            board.shown.add(name)
            found, half = run.series(name), run.step / 2
            sums = list(zip(found.steps, found.sums, strict=True))
            early = sum(v for s, v in sums if s <= half)
            late = sum(v for s, v in sums if s > half)
            role, task_type, _, reason = levels
            rows.append([label, role, task_type, plain(reason), number(early), number(late)])
    table = _table(["run", "role", "type", "reason", "first half", "second half"], rows, 4)
    return _folded("Why proposals and answers were rejected", table)


def rewards(board: Board) -> str:
    """Cell statistics of the whitening, and distributions of rewards and lengths."""
    cells = [f for role in ROLES for t in board.types for f in board.cell(role, t)]
    cells += board.over_runs(
        "Cells whose rewards are all equal", "reward/frac_zero_std", "share",
        note="such a (role, type) cell teaches nothing in its step",
    )  # fmt: skip
    cells += board.over_runs("Mean reward of all samples", "reward/mean")
    note = (
        "<p>Rewards are whitened inside each (role, type) cell: minus the mean, over the "
        "standard deviation" + (", drawn as a band.</p>" if board.is_single else ".</p>")
    )
    parts = [note, _grid(cells)] if cells else []
    for run, label, _ in board.legend:
        if run.samples and (histograms := _histograms(board, run.samples)):
            title = f"Distributions: {label}" if label else "Distributions"
            parts.append(_heading(title) + _thinned_note(run.samples) + _grid(histograms))
    return "".join(parts)


def _thinned_note(book: SampleBook) -> str:
    of = "" if book.scanned == book.rows else (
        f" From {book.scanned:,} evenly spaced rows of the {book.rows:,} in run.db."
    )  # fmt: skip
    return (
        '<p class="legend"><i class="early"></i> first quarter of the steps, '
        f'<i class="late"></i> last quarter.{of}</p>'
    )


def _histograms(board: Board, book: SampleBook) -> list[str]:
    figures = []
    for role in ROLES:
        for i, task_type in enumerate(board.types):
            if found := book.rewards.get((role, task_type)):
                title = f"Reward: {role} / {task_type}"
                figures.append(draw_histogram(title, found.early, found.late, f"k{i % 6}"))
    for role, found in book.tokens.items():
        figures.append(draw_histogram(f"Length in tokens: {role}", found.early, found.late, "grey"))
    return [f for f in figures if f]


def update(board: Board) -> str:
    """What the optimiser did."""
    figures = board.over_runs("Entropy", "policy/entropy", note="nats per response token")
    figures += board.over_runs("KL to the start model", "policy/kl", note="nats per token")
    figures += board.over_runs("Gradient norm", "policy/grad_norm", note="before clipping")
    figures += board.over_runs("Learning rate", "policy/lr", noisy=False)
    figures += board.over_runs("Rollout to training policy", "mismatch/kl", note="nats per token")
    figures += board.over_runs("Clipped tokens", "policy/clip_ratio", "share")
    figures += board.over_runs("Completion length", "completions/mean_length", note="tokens")
    figures += board.over_runs("Completions cut at the limit", "completions/clipped_ratio", "share")
    return _grid(figures)


def time(board: Board) -> str:
    """Where the time went, throughput and memory."""
    parts = []
    for run, name, _ in board.legend:
        spent = [(p, s) for p in PHASES if (s := sum(run.series(f"time/{p}_s").sums)) > 0]
        if spent:
            total = sum(seconds for _, seconds in spent)
            label = f"{run.series('time/step_s').count:,} steps in {duration(total)}"
            label += f": {name}" if name else ""
            words = ", ".join(f"{p} {percent(s / total)}" for p, s in spent)
            parts.append(
                f'<div class="split"><p>{escape(label)}<small>{escape(words)}</small></p>'
                f"{draw_shares(spent, label)}</div>"
            )
    board.shown.update(f"time/{phase}_s" for phase in (*PHASES, "elapsed"))
    figures = board.over_runs("Time of a step", "time/step_s", note="seconds")
    figures += board.over_runs(
        "Generation", "perf/gen_tok_s", note="tokens per second of rollout and evaluation"
    )
    figures += board.over_runs(
        "Training", "perf/train_tok_s", note="response tokens per second of update"
    )
    figures += board.over_runs("Host memory", "perf/host_rss_gib", note="GiB resident", noisy=False)
    return "".join(parts) + _grid(figures)


def setup(board: Board) -> str:
    """Options that differ from the preset, the whole configuration, and the machine."""
    parts = [] if board.is_single else [_between_runs(board)]
    for run, label, _ in board.legend:
        against = f"the preset {run.preset}" if run.preset else "the library's defaults"
        if run.changed:
            table = _table(["option", "this run", run.preset or "default"], run.changed, 3)
            changed = f"<p>Options that differ from {escape(against)}:</p>{table}"
        else:
            changed = f"<p>All options are those of {escape(against)}.</p>"
        facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in run.facts)
        lines = "\n".join(f"{key} = {value}" for key, value in run.options.items())
        options = _folded("All options", f"<pre>{escape(lines)}</pre>")
        parts.append(f"{_heading(label)}{changed}<dl>{facts}</dl>{options}")
    return "".join(parts)


def _between_runs(board: Board) -> str:
    options = dict.fromkeys(name for run in board.runs for name in run.options)
    found = {n: [run.options.get(n, "not there") for run in board.runs] for n in options}
    rows = [[name, *values] for name, values in found.items() if len(set(values)) > 1]
    if not rows:
        return "<p>The runs have the same options.</p>"
    table = _table(["option", *board.names], rows, 1 + len(board.names))
    return f"<p>Where the runs differ:</p>{table}"


def more(board: Board) -> str:
    """Whatever else metrics.jsonl holds."""
    return "".join(
        _folded(f"{name} ({len(figures)})", _grid(figures))
        for name, figures in board.rest().items()
    )
