"""The learning curve of a run, as a picture."""

from pathlib import Path

from azr.run.series import Series, read_fold

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

    metrics = read_fold(run_dir / "metrics.jsonl").series()

    def series(name: str) -> Series:
        return metrics.get(name, Series())

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    solver, proposer = figure.subplots(1, 2)
    splits = {name.split("/")[1] for name in metrics if name.startswith("eval/")}
    held_out = sorted(splits - {"train"})
    for task_type, colour in zip(types, COLOURS, strict=False):
        greedy = series(f"eval/train/{task_type}/greedy_accuracy")
        solver.plot(greedy.steps, greedy.values, color=colour, label=task_type)
        chance = series(f"eval/train/{task_type}/chance")
        solver.plot(chance.steps, chance.values, color=colour, linestyle="--", linewidth=1)
        for split, style in zip(held_out, (":", "-."), strict=False):
            held = series(f"eval/{split}/{task_type}/greedy_accuracy")
            solver.plot(
                held.steps, held.values, color=colour, linestyle=style, linewidth=1, alpha=0.6
            )
        valid = series(f"propose/{task_type}/valid_rate")
        proposer.plot(valid.steps, valid.smooth(), color=colour, label=f"{task_type}: valid")
        if valid.is_folded:
            proposer.fill_between(valid.steps, valid.low, valid.high, color=colour, alpha=0.12)
        if task_type in universe:
            size = series(f"buffer/{task_type}/size")
            shares = [s / universe[task_type] for s in size.values]
            proposer.plot(size.steps, shares, color=colour, linestyle="--")
    if universe:
        distinct = series("propose/distinct_recent")
        shares = [d / sum(universe.values()) for d in distinct.values]
        label = "distinct of the last 900 / all"
        proposer.plot(distinct.steps, shares, color="#555555", linestyle=":", label=label)
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
