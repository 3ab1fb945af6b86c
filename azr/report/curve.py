"""learning_curve.svg: what a run learned, as one picture that stands alone."""

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from azr.report.chart import HEIGHT, LEFT, WIDTH, Dash, Line, plot_lines
from azr.report.record import RunRecord, read_run
from azr.report.words import plain
from azr.run.files import write_whole
from azr.run.series import Series

CURVE = "learning_curve.svg"
HELD_OUT: tuple[Dash, ...] = ("dotted", "dashdot")
# What page.css says of charts, in light colours; without variables, which not every viewer has.
STYLE = """
text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
.title { font-size: 14px; font-weight: 600; fill: #1c1e21; }
.tick { fill: #62676d; }
.grid { stroke: #ece9e4; stroke-width: 1; }
.k0 { color: #2a66a8; } .k1 { color: #b9560f; } .k2 { color: #23794c; }
.k3 { color: #7450a0; } .k4 { color: #ad3545; } .k5 { color: #1f7380; } .grey { color: #62676d; }
.line { fill: none; stroke: currentColor; stroke-width: 1.9; stroke-linejoin: round; }
.dashed { stroke-width: 1.2; stroke-dasharray: 5 3; }
.dotted { stroke-width: 1.4; stroke-dasharray: 1.5 3; opacity: .75; }
.dashdot { stroke-width: 1.2; stroke-dasharray: 7 3 1.5 3; opacity: .75; }
.raw { fill: none; stroke: currentColor; stroke-width: 1; opacity: .16; }
.gap { display: none; }
.label { fill: currentColor; font-weight: 600; }
"""


def write_learning_curve(folder: Path) -> None:
    """Draws the learning curve of a run into its directory."""
    run = read_run(folder, samples=False)
    write_whole(folder / CURVE, draw_learning_curve(run).encode("utf-8", "replace"))


def draw_learning_curve(run: RunRecord) -> str:
    """Returns the SVG: what the solver learned on the left, what the proposer did on the right.

    Left: greedy accuracy by task type, on the training tasks and on what is held out, and chance.
    Right: the share of valid proposals, and where the training tasks are counted, the shares of
    them that the buffer and the last valid proposals hold.
    """
    solver: list[Line] = []
    proposer: list[Line] = []
    held_out = dict(zip([s for s in run.splits if s != "train"], HELD_OUT, strict=False))
    for i, t in enumerate(run.types):
        colour = f"k{i % 6}"
        for split, dash in held_out.items():
            held = run.series(f"eval/{split}/{t}/greedy_accuracy")
            solver.append(Line(label="", series=held, colour=colour, dash=dash))
        chance = run.series(f"eval/train/{t}/chance")
        solver.append(Line(label="", series=chance, colour=colour, dash="dashed"))
        greedy = run.series(f"eval/train/{t}/greedy_accuracy")
        solver.append(Line(label=t, series=greedy, colour=colour))
        valid = run.series(f"propose/{t}/valid_rate")
        proposer.append(Line(label=t, series=valid, colour=colour, is_noisy=True))
        if t in run.universe:
            size = _share(run.series(f"buffer/{t}/size"), run.universe[t])
            proposer.append(Line(label="", series=size, colour=colour, dash="dashed"))
    held_key = [(plain(split), dash) for split, dash in held_out.items()]
    solver_key: list[tuple[str, Dash]] = [("training tasks", ""), *held_key, ("chance", "dashed")]
    proposer_key: list[tuple[str, Dash]] = [("valid proposals", "")]
    if run.universe:
        distinct = _share(run.series("propose/distinct_recent"), sum(run.universe.values()))
        proposer.append(Line(label="", series=distinct, colour="grey", dash="dotted"))
        proposer_key.append(("buffer, of all tasks", "dashed"))
        proposer_key.append(("distinct of the last 900, of all tasks", "dotted"))
    width, height = 2 * WIDTH + 20, HEIGHT + 74
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{1.5 * width:g}" height="{1.5 * height:g}">'
        f"<title>{escape(run.name)}</title><style>{STYLE}</style>"
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
        + _panel("Solver: greedy accuracy", solver, solver_key, 4)
        + _panel("Proposer", proposer, proposer_key, WIDTH + 16)
        + "</svg>\n"
    )


def _share(series: Series, whole: int) -> Series:
    """Returns a metric divided by a whole."""
    first, last = ((v / whole if v is not None else None) for v in (series.first, series.last))
    parts = (series.values, series.low, series.high, series.sums)
    values, low, high, sums = ([v / whole for v in part] for part in parts)
    return replace(series, values=values, first=first, last=last, low=low, high=high, sums=sums)


def _panel(title: str, lines: Sequence[Line], key: Sequence[tuple[str, Dash]], x: int) -> str:
    """Returns a title, curves, the name of their axis, and a key of (words, kind of line)."""
    place = f'x="{x}" y="24" width="{WIDTH}" height="{HEIGHT}" '
    parts = [
        f'<text class="title" x="{x + LEFT}" y="22">{escape(title)}</text>',
        plot_lines(title, lines, "share", place),
        f'<text class="tick" x="{x + (LEFT + WIDTH) / 2 - 30}" y="{HEIGHT + 26}">step</text>',
    ]
    for i, (words, dash) in enumerate(key):
        left, y = x + LEFT + i % 2 * 150, HEIGHT + 46 + i // 2 * 17
        parts.append(
            f'<path class="line grey {dash}" d="M{left} {y}h24"/>'
            f'<text class="tick" x="{left + 30}" y="{y + 4}">{escape(words)}</text>'
        )
    return "".join(parts)
