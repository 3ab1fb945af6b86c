"""Fifteen minutes on a machine with a GPU: three calls, each of stages with limits of their own.

    make gpu CALL=1 PYTHON=python3 RESULTS=dir      does it run: at most 280 s
    make gpu CALL="2 3"                             numbers, learning: at most 410 s together
    make gpu STAGES="kernels learn"                 single stages, each within its own limit
    make gpu CALL=1 REHEARSE=1                      the same on a CPU at toy size

No virtual environment and no network: the interpreter given runs the checkout as it stands, and
what it lacks is reported. A stage that ends early leaves its time to the rest, and none can take
the time of a later one. Everything comes into one folder of at most 8 files, RESULTS, whose record
grows over calls. Without a GPU nothing runs, nothing is written and the exit code is 0. Only the
standard library is used here.
"""

import argparse
import datetime
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu_record import (
    REHEARSAL,
    add_stage,
    gpu_slug,
    open_record,
    read_findings,
    said,
    save,
    verdict,
)
from bench.record import RESULTS, commit, hardware

STARTED = time.monotonic()
ROOT = Path(__file__).resolve().parent.parent
CALL_LIMIT_S = {1: 280.0, 2: 240.0, 3: 170.0}
FRAME_S = 15.0
"""Of each call, for what stands around its stages."""
STOP_S = 8.0
"""Of a stage's limit, at most, for ending it in peace."""
LEAST_S = 5.0
"""A stage that has less left is not begun."""
REHEARSAL_FACTOR = 4.0
"""How much longer everything may take on a CPU."""
MOST_FILES = 8
TAIL_LINES = 40
NO_TESTS = 5  # pytest's exit code where it collected nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage: its call, its command, the modules it needs, and the files it leaves.

    In the command `{python}` is the interpreter, `{device}` cuda or cpu, `{toy}` --toy in a
    rehearsal and nothing else, `{workers}` pytest's option for several processes where that can
    be had, `{findings}` the file that its figures go to, and `{folder}` a temporary folder; of
    what it leaves there, `keep` comes into the results.
    """

    name: str
    call: int
    command: str
    limit_s: float
    modules: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()


# Warnings of the versions that happen to be installed there are shown, not errors.
PYTEST = (
    "{python} -m pytest -W default -p no:cacheprovider -p bench.gpu_tests"
    " --continue-on-collection-errors --gpu-findings {findings} --gpu-device {device}"
)
MODEL_MODULES = ("torch", "numpy", "transformers")
TRAINER_MODULES = (*MODEL_MODULES, "tokenizers", "safetensors", "numba", "tyro", "rich")

STAGES = (
    # Call 1: does it run. The short ones first: what they leave goes to the tests.
    Stage(
        name="build",
        call=1,
        command="{python} -m bench.gpu_build --findings {findings}",
        limit_s=30,
    ),
    Stage(
        name="doctor",
        call=1,
        command="{python} -m azr.doctor",
        limit_s=20,
        modules=("torch",),
    ),
    Stage(
        name="train",
        call=1,
        command="{python} -m azr.train --device {device} --run.dtype bfloat16"
        " --optim.recompute True --steps 3 --eval.samples 1 --run.root {folder}/runs",
        limit_s=45,
        modules=TRAINER_MODULES,
    ),
    Stage(
        name="kernel-tests",
        call=1,
        command=PYTEST + " --gpu-figures kernel_tests {workers} tests/kernels",
        limit_s=95,
        modules=("pytest", "torch", "triton"),
    ),
    Stage(
        name="other-tests",
        call=1,
        command=PYTEST + " --gpu-figures other_tests --ignore=tests/kernels tests",
        limit_s=75,
        modules=("pytest", "torch", "transformers"),
    ),
    # Call 2: numbers.
    Stage(
        name="kernels",
        call=2,
        command="{python} -m bench.gpu_kernels --device {device} --findings {findings} {toy}",
        limit_s=75,
        modules=("pytest", "torch", "triton"),
    ),
    Stage(
        name="model",
        call=2,
        command="{python} -m bench.gpu_model --device {device} --findings {findings}"
        " --folder {folder} {toy}",
        limit_s=150,
        modules=(*MODEL_MODULES, "pytest", "triton"),
        keep=("profile.txt",),
    ),
    # Call 3: learning.
    Stage(
        name="learn",
        call=3,
        command="{python} -m bench.gpu_learn --device {device} --findings {findings}"
        " --folder {folder} {toy}",
        limit_s=155,
        modules=TRAINER_MODULES,
        keep=("metrics.jsonl", "learning_curve.svg", "report.html"),
    ),
)


def choose(stages: Sequence[Stage], calls: Sequence[int], names: Sequence[str]) -> list[Stage]:
    """The stages of the calls or the named ones, in the table's order; all where none is asked.

    Raises ValueError for a call or a stage that there is not.
    """
    for kind, asked, known in (
        ("call", calls, list(dict.fromkeys(stage.call for stage in stages))),
        ("stage", names, [stage.name for stage in stages]),
    ):
        unknown = [str(one) for one in asked if one not in known]
        if unknown:
            raise ValueError(
                f"no {kind} {', '.join(unknown)}; the {kind}s are: {' '.join(map(str, known))}"
            )
    is_all = not calls and not names
    return [s for s in stages if is_all or s.call in calls or s.name in names]


PROBE = """
import json, sys
found = {"python": sys.version.split()[0], "torch": None, "cuda": False}
try:
    import torch
    found |= {"torch": torch.__version__, "cuda": torch.cuda.is_available()}
    if found["cuda"]:
        found |= {
            "device": torch.cuda.get_device_name(),
            "capability": list(torch.cuda.get_device_capability()),
            "cuda_version": torch.version.cuda,
        }
except ImportError as error:
    found["reason"] = str(error)
print(json.dumps(found))
"""


def probe() -> dict[str, Any]:
    """What this interpreter's torch sees of a GPU, asked in a process of its own."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"torch": None, "cuda": False, "reason": reason}
    return json.loads(done.stdout.splitlines()[-1])


def missing_modules(stage: Stage) -> list[str]:
    """The modules that a stage needs and this interpreter does not have."""
    return [name for name in stage.modules if importlib.util.find_spec(name) is None]


def workers() -> str:
    """pytest's option for six processes, where it can be had."""
    can = importlib.util.find_spec("xdist") is not None and (os.cpu_count() or 1) >= 8
    return "-n 6" if can else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where stages run, and what is known of the checkout."""

    results: Path
    is_rehearsal: bool = False
    commit: str | None = None
    """Said by the caller, for a copy of the checkout that has no history."""

    def words(self, stage: Stage, folder: Path) -> list[str]:
        """The words of a stage's command."""
        text = stage.command.format(
            python=shlex.quote(sys.executable),
            device="cpu" if self.is_rehearsal else "cuda",
            toy="--toy" if self.is_rehearsal else "",
            workers=workers(),
            findings=shlex.quote(str(folder / "findings.jsonl")),
            folder=shlex.quote(str(folder)),
        )
        return shlex.split(text)

    def run_stage(self, stage: Stage, limit_s: float) -> tuple[dict[str, Any], dict[str, float]]:
        """Runs one stage; returns (its part of the record, its figures)."""
        known = commit()
        part: dict[str, Any] = {
            "call": stage.call,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": known["commit"] or self.commit,
            "dirty": known["dirty"],
            "limit_s": round(limit_s, 1),
        }
        missing = missing_modules(stage)
        if missing:
            return part | {"outcome": "missing", "missing": missing}, {}
        if limit_s < min(LEAST_S, stage.limit_s):
            return part | {"outcome": "late"}, {}
        with tempfile.TemporaryDirectory(prefix=f"{stage.name}-") as name:
            folder = Path(name)
            command = self.words(stage, folder)
            started = time.monotonic()
            code, timed_out, tail = self._run(stage.name, command, limit_s)
            figures, notes = read_findings(folder / "findings.jsonl")
            part |= {
                "command": shlex.join(command).replace(name, "FOLDER"),
                "seconds": round(time.monotonic() - started, 1),
                "exit_code": code,
                "tail": tail,
                "notes": notes,
            }
            for kept in stage.keep:
                if (folder / kept).is_file():
                    shutil.copy(folder / kept, self.results / kept)
        if timed_out:
            return part | {"outcome": "timeout"}, figures
        if code == NO_TESTS and "pytest" in stage.modules:
            return part | {"outcome": "empty"}, figures
        if code == 0 and notes.get("missing"):
            return part | {"outcome": "partial", "missing": notes["missing"]}, figures
        return part | {"outcome": "ok" if code == 0 else "failed"}, figures

    def _run(self, name: str, command: list[str], limit_s: float) -> tuple[int, bool, list[str]]:
        """(exit code, whether the limit stopped it, last lines), output to log and screen."""
        path = os.pathsep.join(
            [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that its own children end with it
        )
        tail: deque[str] = deque(maxlen=TAIL_LINES)

        def copy() -> None:
            assert process.stdout is not None  # a pipe
            with (self.results / "log.txt").open("a", encoding="utf-8") as file, process.stdout:
                file.write(f"\n== {name}: {shlex.join(command)}\n")
                for line in process.stdout:
                    file.write(line)
                    file.flush()
                    print(line, end="", flush=True)
                    tail.append(line.rstrip("\n"))

        copier = threading.Thread(target=copy, daemon=True)
        copier.start()
        timed_out = False
        stop_s = min(STOP_S, limit_s / 3)
        try:
            process.wait(timeout=limit_s - stop_s)
        except subprocess.TimeoutExpired:
            timed_out = True
            _ask_to_end(process, stop_s)
        finally:
            _signal(process, signal.SIGKILL)  # whatever of it still runs
        code = process.wait()
        copier.join(timeout=2)
        return code, timed_out, list(tail)


def _ask_to_end(process: subprocess.Popen, patience_s: float) -> None:
    """Interrupts a stage, so that it still says how far it came, then all that it started."""
    # Not its children first: processes of pytest-xdist that end by themselves are missed at length.
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=patience_s * 0.7)
        return
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGTERM)
    try:
        process.wait(timeout=patience_s * 0.3)
    except subprocess.TimeoutExpired:
        pass  # killed next


def _signal(process: subprocess.Popen, number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass  # all of it has ended


def run_all(
    stages: Sequence[Stage],
    bench: Bench,
    seen: dict[str, Any],
    machine: dict[str, Any],
    deadline: float | None = None,
) -> int:
    """Runs the stages, merges each into the record as it ends; 1 where one failed.

    `deadline`, in time.monotonic(), is that of all of them together: each may take what is left
    after the limits of those behind it. Without it each has its own limit.
    """
    record = open_record(bench.results / "record.json", machine, bench.is_rehearsal)
    record["torch"] = seen
    bench.results.mkdir(parents=True, exist_ok=True)
    slowness = REHEARSAL_FACTOR if bench.is_rehearsal else 1.0
    parts: dict[str, dict[str, Any]] = {}
    for at, stage in enumerate(stages):
        limit_s = stage.limit_s * slowness
        if deadline is not None:
            behind_s = sum(later.limit_s * slowness for later in stages[at + 1 :])
            limit_s = deadline - time.monotonic() - behind_s
        print(f"== {stage.name} (at most {limit_s:.0f} s)", flush=True)
        part, figures = bench.run_stage(stage, limit_s)
        parts[stage.name] = part
        add_stage(record, stage.name, part, figures)
        save(record, bench.results)
        print(f"== {stage.name}: {verdict(part)}", flush=True)
    print("== summary")
    for name, part in parts.items():
        print(f"   {name}: {verdict(part)}")
        for line in said(record, name):
            print(f"      {line}")
    print(f"   record: {bench.results}")
    if bench.is_rehearsal:
        print(f"   {REHEARSAL}")
    return int(any(part["outcome"] in ("failed", "timeout") for part in parts.values()))


def default_results(machine: dict[str, Any], is_rehearsal: bool) -> Path:
    """Where the record goes that nobody gave a place."""
    if is_rehearsal:
        return ROOT / "runs" / "gpu-rehearsal"
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return RESULTS / f"{gpu_slug(machine['gpus'][0]['name'])}-{date}"


def main(arguments: list[str] | None = None, stages: Sequence[Stage] = STAGES) -> int:
    """Exit code 0: all stages passed, or no GPU; 1: one failed or was stopped; 2: bad usage."""
    parser = argparse.ArgumentParser(prog="make gpu")
    parser.add_argument("--results", type=Path, help="default: bench/results/GPU-DATE")
    parser.add_argument("--call", type=int, nargs="*", default=[])
    parser.add_argument("--rehearse", action="store_true", help="on a CPU at toy size")
    parser.add_argument("--commit", help="of a copy of the checkout without its history")
    parser.add_argument("--list", action="store_true", help="print the stages and stop")
    parser.add_argument("stages", nargs="*")
    options = parser.parse_args(arguments)
    if options.list:
        for stage in stages:
            print(f"{stage.call}  {stage.name:12s} {stage.limit_s:4.0f} s  {stage.command}")
        return 0
    results = options.results and options.results.resolve()
    try:
        chosen = choose(stages, options.call, options.stages)
        if options.rehearse and results and results.is_relative_to(RESULTS):
            raise ValueError(f"a rehearsal leaves nothing under {RESULTS}: give another RESULTS")
    except ValueError as error:
        print(f"make gpu: {error}", file=sys.stderr)
        return 2
    machine, seen = hardware(), probe()
    if not options.rehearse and not seen["cuda"]:
        if not machine["gpus"]:
            print("no GPU on this machine: no stage was run and nothing is claimed")
            return 0
        names = ", ".join(gpu["name"] for gpu in machine["gpus"])
        reason = seen.get("reason") or f"torch {seen['torch']} sees no CUDA device"
        print(f"make gpu: {names} is here, but {sys.executable} cannot use it: {reason}",
              file=sys.stderr)  # fmt: skip
        return 1
    if not machine["gpus"] and seen["cuda"]:
        machine["gpus"] = [{"name": seen["device"]}]  # no nvidia-smi here
    results = results or default_results(machine, options.rehearse)
    bench = Bench(results=results, is_rehearsal=options.rehearse, commit=options.commit)
    deadline = None
    if not options.stages:
        slowness = REHEARSAL_FACTOR if options.rehearse else 1.0
        calls = {stage.call for stage in chosen}
        deadline = STARTED + sum(CALL_LIMIT_S[call] for call in calls) * slowness - LEAST_S
    try:
        return run_all(chosen, bench, seen, machine, deadline)
    except ValueError as error:
        print(f"make gpu: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
