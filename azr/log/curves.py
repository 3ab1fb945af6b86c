"""The learning curve of a run, as a picture."""

from pathlib import Path

from azr.log.metrics import read_metrics, series

COLOURS = ("#3366cc", "#dc6b1f", "#2e9e5b", "#8e44ad", "#b03a48", "#4d8a99")


def plot_learning_curve(run_dir: Path, types: tuple[str, ...], universe: dict[str, int]) -> Path:
    """Writes `learning_curve.png` from metrics.jsonl into the run directory; returns its path.

    Left: greedy accuracy on the training universe by task type, the chance level dashed, the
    hold-outs pale. Right: what the proposer did: validity, and where `universe` maps types to the
    number of their training tasks, the share of it in the buffer and among the last valid
    proposals.
    """
    # Figure without pyplot: no global state, no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(run_dir / "metrics.jsonl")
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    solver, proposer = figure.subplots(1, 2)
    splits = {name.split("/")[1] for row in rows for name in row if name.startswith("eval/")}
    held_out = sorted(splits - {"train"})
    for task_type, colour in zip(types, COLOURS, strict=False):
        solver.plot(
            *series(rows, f"eval/train/{task_type}/greedy_accuracy"), color=colour, label=task_type
        )
        steps, chance = series(rows, f"eval/train/{task_type}/chance")
        solver.plot(steps, chance, color=colour, linestyle="--", linewidth=1)
        for split, style in zip(held_out, (":", "-."), strict=False):
            steps, values = series(rows, f"eval/{split}/{task_type}/greedy_accuracy")
            solver.plot(steps, values, color=colour, linestyle=style, linewidth=1, alpha=0.6)
        steps, valid = series(rows, f"propose/{task_type}/valid_rate")
        proposer.plot(steps, _smooth(valid), color=colour, label=f"{task_type}: valid")
        if task_type in universe:
            steps, size = series(rows, f"buffer/{task_type}/size")
            proposer.plot(
                steps, [s / universe[task_type] for s in size], color=colour, linestyle="--"
            )
    if universe:
        steps, distinct = series(rows, "propose/distinct_recent")
        total = sum(universe.values())
        label = "distinct of the last 900 / all"
        proposer.plot(
            steps, [d / total for d in distinct], color="#555555", linestyle=":", label=label
        )
        label = "share of all tasks in the buffer"
        proposer.plot([], [], color="#555555", linestyle="--", label=label)
    solver.set(title="Solver: greedy accuracy", xlabel="step", ylim=(0, 1.02))
    proposer.set(title="Proposer", xlabel="step", ylim=(0, 1.02))
    solver.plot([], [], color="#555555", linestyle="--", linewidth=1, label="chance")
    for split, style in zip(held_out, (":", "-."), strict=False):
        label = split.replace("_", " ").replace("heldout", "held-out")
        solver.plot([], [], color="#555555", linestyle=style, linewidth=1, label=label)
    for axes in (solver, proposer):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    path = run_dir / "learning_curve.png"
    figure.savefig(path, dpi=110)
    return path


def _smooth(values: list[float], window: int = 15) -> list[float]:
    """Returns the running mean over up to `window` values that end at each place."""
    return [
        sum(values[max(0, i - window + 1) : i + 1]) / len(values[max(0, i - window + 1) : i + 1])
        for i in range(len(values))
    ]
