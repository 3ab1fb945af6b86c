"""Stage `learn` of `make gpu`: self-play on primes in bf16 from scratch, with one resume in it.

    python -m bench.gpu_learn --device cuda --findings FILE --folder DIR [--toy]

`python -m azr.train` as it stands: primes up to 31 in decimal digits, which a tiny model learns
from nothing. It is stopped by SIGTERM in the middle (exit code 75, saved), resumed, and stopped
again when its time is over. The curve (learning_curve.svg), the report and the metrics go to DIR.
"""

import json
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench.gpu_record import Findings, stage_parser

SAVED = 75  # azr.train's exit code after SIGTERM
STEPS = 100_000  # never reached: time ends the run, at a constant learning rate
OPTIONS = (
    "--run.dtype", "bfloat16",
    "--task.prime.number-tokens", "digit",
    "--task.prime.max-p", "31",
    "--selfplay.proposals-per-type", "128",
    "--selfplay.solver-tasks-per-type", "256",
    "--loss.kl-coef", "0.25",
    "--optim.lr", "3e-3",
    "--optim.decay-start-frac", "1.0",
    "--eval.samples", "2",
    "--save.every", "0",
    "--log.every", "1",  # a line a step: the signal goes out with one
)  # fmt: skip
"""Beside the default preset's. On a CPU, in fp32, 400 steps of them reached an accuracy of 0.92."""
TOY_OPTIONS = (
    "--warmup.steps", "5", "--selfplay.proposals-per-type", "4", "--selfplay.seed-tasks", "4",
    "--selfplay.solver-tasks-per-type", "4", "--eval.every", "2", "--log.every", "1",
    "--model.hidden", "16",
)  # fmt: skip
STEP_LINE = re.compile(r"^step (\d+)/")


@dataclass(frozen=True)
class Piece:
    """How long a piece of the run may take."""

    seconds: float
    """From the start of its process, Python's own start included."""
    steps: int
    """Of them at least so many, whatever the seconds: a piece without a step shows nothing."""


FULL = (Piece(65.0, 1), Piece(70.0, 1))
TOY = (Piece(2.0, 2), Piece(2.0, 2))


def train(options: list[str], piece: Piece) -> int:
    """Runs azr.train until the piece is over, then asks it to save and leave; its exit code."""
    deadline = time.monotonic() + piece.seconds
    process = subprocess.Popen(
        [sys.executable, "-m", "azr.train", *options], stdout=subprocess.PIPE, text=True
    )
    steps = 0
    try:
        assert process.stdout is not None  # a pipe
        with process.stdout:
            for line in process.stdout:
                print(line, end="", flush=True)
                steps += bool(STEP_LINE.match(line))
                if time.monotonic() > deadline and steps >= piece.steps:
                    process.send_signal(signal.SIGTERM)
                    deadline = float("inf")
        return process.wait()
    except BaseException:
        process.kill()
        raise


def read_rows(run_dir: Path) -> list[dict[str, float]]:
    """Returns the lines of a run's metrics.jsonl, step 0 first."""
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def tell(rows: list[dict[str, float]], findings: Findings) -> None:
    """Writes the figures of a run so far."""
    for task_type in ("deduction", "abduction", "induction"):
        key = f"eval/train/{task_type}/sampled_accuracy"
        seen = [row[key] for row in rows if key in row]
        findings.figure(f"learn_{task_type}_start_frac", seen[0])
        findings.figure(f"learn_{task_type}_end_frac", seen[-1])
        findings.note(f"{task_type}, accuracy by evaluation", " ".join(f"{a:.3f}" for a in seen))
    steps = [row for row in rows if row["step"]]
    findings.figure("learn_steps", len(steps))
    findings.figure("learn_step_s", statistics.median(row["time/step_s"] for row in steps))
    findings.figure("learn_gen_tok_s", statistics.median(row["perf/gen_tok_s"] for row in steps))
    if "perf/decode_roofline_frac" in steps[-1]:
        findings.note("decode_roofline_frac of the run", steps[-1]["perf/decode_roofline_frac"])
    for phase in ("rollout", "verify", "update", "eval", "other"):
        spent = sum(row[f"time/{phase}_s"] for row in steps)
        findings.note(f"{phase}, s in all", round(spent, 1))


def main(arguments: list[str] | None = None) -> int:
    """Runs both pieces; 1 where one did not end as asked, or the second did not go on."""
    options = stage_parser("bench.gpu_learn", keeps="the curve goes").parse_args(arguments)
    findings = Findings(options.findings)
    root = options.folder / "runs"
    new = ["--device", options.device, "--steps", str(STEPS), "--run.root", str(root), *OPTIONS]
    new += TOY_OPTIONS if options.toy else ()
    pieces = TOY if options.toy else FULL
    stopped: list[int] = []
    rows: list[dict[str, float]] = []
    for piece, command in zip(pieces, (new, ["--resume", str(root / "latest")]), strict=True):
        code = train(command, piece)
        run_dir = (root / "latest").resolve()
        if not (run_dir / "metrics.jsonl").is_file():
            print(f"azr.train left no metrics, exit code {code}")
            return 1
        rows = read_rows(run_dir)
        tell(rows, findings)
        for name in ("metrics.jsonl", "learning_curve.svg", "report.html"):
            if (run_dir / name).is_file():
                shutil.copy(run_dir / name, options.folder / name)
        if code != SAVED:
            print(f"azr.train ended with code {code}, not with {SAVED} after SIGTERM")
            return 1
        stopped.append(int(rows[-1]["step"]))
        if len(stopped) == 1:
            findings.figure("learn_resumed_step", stopped[0])
    numbers = [int(row["step"]) for row in rows]
    if numbers != list(range(stopped[-1] + 1)) or stopped[1] <= stopped[0]:
        print(f"the steps of the resumed run are not one after the other: {numbers}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
