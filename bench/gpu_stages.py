"""Runs the project on a machine with a GPU, in stages of at most 8 minutes each.

    make gpu STAGES="tests kernels" PYTHON=python3 RESULTS=dir

No virtual environment and no network: the interpreter given runs the checkout as it stands, and
what it lacks is reported. Every stage runs alone as well; its outcome, duration, log and JSON are
merged into RESULTS/record.json, so a record may grow over several calls. Without a GPU nothing
runs, nothing is written and the exit code is 0. Only the standard library is used here.
"""

import argparse
import datetime
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.record import commit, hardware, slug, versions, write

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 480.0
TAIL_LINES = 40
NO_TESTS = 5  # pytest's exit code where it collected nothing
OUTCOMES = {
    "ok": "passed",
    "empty": "nothing to run yet",
    "missing": "not run, for want of a module",
    "failed": "FAILED",
    "timeout": "STOPPED at its time limit",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage: its command, what it needs, and the files it leaves in the results folder.

    `{python}`, `{results}` and `{gpu_tests}` in the command are filled in. A stage whose `files`
    are not all in the tree does not exist (yet). `outputs` ending in .json or .jsonl are merged
    into the record.
    """

    name: str
    command: str
    files: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    limit_s: float = LIMIT_S


# Warnings of the versions that happen to be installed there are shown, not errors.
PYTEST = "{python} -m pytest -W default -p no:cacheprovider"
BENCH_MODULES = ("pytest", "pytest_benchmark", "torch")
TRAINER_MODULES = ("torch", "transformers", "tokenizers", "safetensors", "numba", "tyro", "rich",
                   "matplotlib")  # fmt: skip

STAGES = (
    Stage(
        name="build",
        command="{python} -m bench.gpu_build {results}/build.json",
        files=("bench/gpu_build.py",),
        outputs=("build.json",),
    ),
    Stage(
        name="aot",
        command="{python} -m rlvr_kernels.report",
        files=("kernels/rlvr_kernels/report.py",),
        modules=("torch", "triton"),
    ),
    Stage(
        name="tests",
        command=PYTEST + " -m gpu --continue-on-collection-errors {gpu_tests}",
        files=("tests/conftest.py",),
        modules=("pytest", "torch"),
    ),
    Stage(
        name="kernels",
        command=PYTEST
        + " bench/bench_kernels.py --benchmark-only --record-file {results}/kernels.json",
        files=("bench/bench_kernels.py",),
        modules=BENCH_MODULES,
        outputs=("kernels.json",),
    ),
    Stage(
        name="rollout",
        command=PYTEST + " bench/bench_rollout.py -m gpu -s --benchmark-only"
        " --record-file {results}/rollout.json",
        files=("bench/bench_rollout.py",),
        modules=(*BENCH_MODULES, "transformers"),
        outputs=("rollout.json",),
    ),
    Stage(
        name="step",
        command=PYTEST + " bench/bench_step.py --benchmark-only --record-file {results}/step.json",
        files=("bench/bench_step.py",),
        modules=("pytest", "pytest_benchmark", *TRAINER_MODULES),
        outputs=("step.json",),
    ),
    Stage(
        name="train-prime",
        command="{python} -m azr.train --device cuda"
        " --run.name gpu-prime --run.root {results}/runs",
        files=("azr/train.py",),
        modules=TRAINER_MODULES,
        outputs=("runs/latest/metrics.jsonl",),
    ),
)


def existing(stages: Sequence[Stage], root: Path = ROOT) -> list[Stage]:
    """The stages whose files are in the tree."""
    return [stage for stage in stages if all((root / file).exists() for file in stage.files)]


def choose(stages: Sequence[Stage], names: Sequence[str]) -> list[Stage]:
    """The named stages in the table's order, all where none is named; ValueError if unknown."""
    known = [stage.name for stage in stages]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no stage {', '.join(unknown)}; the stages are: {' '.join(known)}")
    return [stage for stage in stages if not names or stage.name in names]


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


def probe() -> dict[str, object]:
    """What this interpreter's torch sees of a GPU, asked in a process of its own."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"torch": None, "cuda": False, "reason": reason}
    return json.loads(done.stdout.splitlines()[-1])


def missing_modules(stage: Stage) -> list[str]:
    """The modules that a stage needs and this interpreter does not have."""
    return [name for name in stage.modules if importlib.util.find_spec(name) is None]


def gpu_tests(root: Path = ROOT) -> list[str]:
    """The test files with GPU tests. The others may import what this interpreter does not have."""
    files = sorted((root / "tests").rglob("test_*.py"))
    marked = [file for file in files if "mark.gpu" in file.read_text(encoding="utf-8")]
    return [str(file.relative_to(root)) for file in marked] or ["tests"]


def fill_in(command: str, results: Path) -> list[str]:
    """The words of a stage's command."""
    words: list[str] = []
    for word in shlex.split(command):
        if word == "{gpu_tests}":
            words += gpu_tests()
        else:
            words.append(word.format(python=sys.executable, results=results))
    return words


def run_stage(stage: Stage, results: Path) -> dict[str, object]:
    """Runs one stage and returns its part of the record."""
    command = fill_in(stage.command, results)
    part: dict[str, object] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **commit(),
        "command": shlex.join(command),
        "limit_s": stage.limit_s,
    }
    missing = missing_modules(stage)
    if missing:
        return part | {"outcome": "missing", "missing": missing}
    older = _written(stage, results)
    log = results / f"{stage.name}.log"
    started = time.monotonic()
    code, timed_out, tail = _run(command, log, stage.limit_s)
    part |= {
        "seconds": round(time.monotonic() - started, 1),
        "exit_code": code,
        "log": log.name,
        "tail": tail,
        "data": _outputs(stage, results, older),
    }
    if timed_out:
        return part | {"outcome": "timeout"}
    if code == NO_TESTS and "pytest" in stage.modules:
        return part | {"outcome": "empty"}
    return part | {"outcome": "ok" if code == 0 else "failed"}


def _run(command: list[str], log: Path, limit_s: float) -> tuple[int, bool, list[str]]:
    """(exit code, whether the limit stopped it, last lines), output to the log and the screen."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
    }
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that its own children end with it
    )
    tail: deque[str] = deque(maxlen=TAIL_LINES)

    def copy() -> None:
        with log.open("w", encoding="utf-8") as file, process.stdout:
            for line in process.stdout:
                file.write(line)
                file.flush()
                print(line, end="", flush=True)
                tail.append(line.rstrip("\n"))

    copier = threading.Thread(target=copy, daemon=True)
    copier.start()
    timed_out = False
    try:
        process.wait(timeout=limit_s)
    except subprocess.TimeoutExpired:
        timed_out = True
        _ask_to_end(process)
    finally:
        _signal(process, signal.SIGKILL)  # whatever of it still runs
    code = process.wait()
    copier.join(timeout=10)
    return code, timed_out, list(tail)


def _ask_to_end(process: subprocess.Popen) -> None:
    """Interrupts a stage and everything it started, so that pytest still says how far it came."""
    for number, patience_s in ((signal.SIGINT, 10), (signal.SIGTERM, 5)):
        _signal(process, number)
        try:
            process.wait(timeout=patience_s)
            return
        except subprocess.TimeoutExpired:
            continue


def _signal(process: subprocess.Popen, number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass  # all of it has ended


def _written(stage: Stage, results: Path) -> dict[str, int]:
    """When each output was last written, in nanoseconds; nothing for those that are not there."""
    paths = {output: results / output for output in stage.outputs}
    return {output: path.stat().st_mtime_ns for output, path in paths.items() if path.is_file()}


def _outputs(stage: Stage, results: Path, older: dict[str, int]) -> dict[str, object]:
    """The JSON that a stage wrote: a whole document, or all rows of a .jsonl file.

    What is as old as before the stage is an earlier run's and must not pass for this one's.
    """
    data: dict[str, object] = {}
    for output, written in _written(stage, results).items():
        if older.get(output) == written:
            continue
        path = results / output
        try:
            text = path.read_text(encoding="utf-8")
            rows = text.splitlines() if path.suffix == ".jsonl" else [text]
            parsed = [json.loads(row) for row in rows if row.strip()]
        except ValueError as error:  # a stage that was stopped may leave half a line
            data[output] = {"unreadable": str(error)}
            continue
        data[output] = parsed if path.suffix == ".jsonl" else parsed[0]
    return data


def open_record(path: Path, machine: dict[str, object]) -> dict[str, object]:
    """The record to merge into; ValueError where it was made on other hardware."""
    if path.exists():
        record = json.loads(path.read_text())
        if record["slug"] != slug(machine):
            raise ValueError(
                f"{path} was made on {record['slug']}, this is {slug(machine)}: "
                "give another RESULTS folder"
            )
    else:
        record = {"schema": 1, "slug": slug(machine), "stages": {}}
    return record | {"hardware": machine, "versions": versions()}


def run_all(
    stages: Sequence[Stage], results: Path, seen: dict[str, object], machine: dict[str, object]
) -> int:
    """Runs the stages, merges each into the record as it ends; 1 where one failed."""
    results.mkdir(parents=True, exist_ok=True)
    path = results / "record.json"
    record = open_record(path, machine) | {"torch": seen}
    bad = 0
    for stage in stages:
        print(f"== {stage.name} (at most {stage.limit_s:g} s)", flush=True)
        part = run_stage(stage, results)
        record["stages"][stage.name] = part
        write(record, path)
        bad += part["outcome"] in ("failed", "timeout")
        print(f"== {_verdict(stage.name, part)}", flush=True)
    print("== summary")
    for stage in stages:
        print(f"   {_verdict(stage.name, record['stages'][stage.name])}")
    print(f"   record: {path}")
    return 1 if bad else 0


def _verdict(name: str, part: dict[str, object]) -> str:
    text = f"{name}: {OUTCOMES[part['outcome']]}"
    if part["outcome"] == "missing":
        return f"{text} ({', '.join(part['missing'])})"
    return f"{text} after {part['seconds']} s, exit code {part['exit_code']}"


def main(arguments: list[str] | None = None, stages: Sequence[Stage] = STAGES) -> int:
    """Exit code 0: all stages passed, or no GPU; 1: one failed or was stopped; 2: bad usage."""
    parser = argparse.ArgumentParser(prog="make gpu")
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "gpu")
    parser.add_argument("--list", action="store_true", help="print the stages and stop")
    parser.add_argument("stages", nargs="*")
    options = parser.parse_args(arguments)
    present = existing(stages)
    try:
        chosen = choose(present, options.stages)
    except ValueError as error:
        print(f"make gpu: {error}", file=sys.stderr)
        return 2
    if options.list:
        for stage in chosen:
            print(f"{stage.name:12s} {stage.command}")
        return 0
    machine, seen = hardware(), probe()
    if not seen["cuda"] and not machine["gpus"]:
        print("no GPU on this machine: no stage was run and nothing is claimed")
        return 0
    if not seen["cuda"]:
        names = ", ".join(gpu["name"] for gpu in machine["gpus"])
        reason = seen.get("reason") or f"torch {seen['torch']} sees no CUDA device"
        print(f"make gpu: {names} is here, but {sys.executable} cannot use it: {reason}",
              file=sys.stderr)  # fmt: skip
        return 1
    try:
        return run_all(chosen, options.results.resolve(), seen, machine)
    except ValueError as error:
        print(f"make gpu: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
