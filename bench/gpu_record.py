"""The record of `make gpu`: record.json (schema 2), which grows over calls, and RECORD.md.

    {"schema": 2, "slug", "rehearsal", "hardware", "versions", "stages": {name: {...}},
     "figures": {name: {"value", "unit", "stage", "commit", "date"}}}

A stage tells what it finds through `Findings`, a line at a time, so that one that is stopped loses
nothing. Only the standard library is used here.
"""

import argparse
import json
import math
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.record import slug, versions, write

SCHEMA = 2
REHEARSAL = "rehearsal on a CPU: no figure of it means anything"
OUTCOMES = {
    "ok": "passed",
    "empty": "nothing to run",
    "missing": "not run, for want of a module",
    "partial": "passed, but not all of it was run for want of a module",
    "late": "not run, for want of time",
    "failed": "FAILED",
    "timeout": "STOPPED at its time limit",
}
NOT_RUN = ("missing", "late")
CUT_SHORT = ("failed", "timeout")


@dataclass(frozen=True, slots=True)
class Figure:
    """What a figure is, and its bar: at least `must`, or at most `most` in absolute value."""

    unit: str
    what: str
    must: float | None = None
    most: float | None = None

    def met(self, value: float) -> bool | None:
        """Whether the bar is met; None where there is none."""
        if self.must is not None:
            return value >= self.must
        return None if self.most is None else abs(value) <= self.most

    @property
    def bar(self) -> str:
        if self.must is not None:
            return f"at least {self.must:g}"
        return "" if self.most is None else f"at most {self.most:g}"


# 3B is the shape of Qwen2.5-3B with random weights, V its vocabulary of 151,936; bf16 throughout.
FIGURES = {
    "kernel_tests_collected": Figure("tests", "GPU tests of the kernels that were found"),
    "kernel_tests_passed": Figure("tests", "and passed"),
    "kernel_tests_failed": Figure("tests", "and failed", most=0),
    "kernel_tests_skipped": Figure("tests", "and were skipped"),
    "other_tests_collected": Figure("tests", "GPU tests of everything else that were found"),
    "other_tests_passed": Figure("tests", "and passed"),
    "other_tests_failed": Figure("tests", "and failed", most=0),
    "other_tests_skipped": Figure("tests", "and were skipped"),
    "copy_gb_s": Figure("GB/s", "ceiling: copying 1 GiB, read and write counted"),
    "matmul_tflop_s": Figure("TFLOP/s", "ceiling: a product of 8192 x 8192 matrices"),
    "row_logprob_fwd_copy_frac": Figure(
        "frac", "row log-probs, forward with entropy, T=8192: bytes read a second over copy's", 0.85
    ),
    "row_logprob_bwd_copy_frac": Figure("frac", "their backward: rate over copy's", 0.85),
    "row_logprob_fwd_eager_ratio": Figure("x", "their forward: eager torch's time over ours", 8),
    "row_logprob_both_eager_ratio": Figure("x", "forward and backward, T=4096: the same", 4),
    "linear_fwd_matmul_frac": Figure(
        "frac", "fused linear, forward with entropy, T=8192, H=2048: rate over one product's", 0.75
    ),
    "linear_both_matmul_frac": Figure("frac", "forward and backward over four products'", 0.70),
    "linear_fwd_eager_ratio": Figure("x", "forward: eager torch's time over ours"),
    "linear_both_eager_ratio": Figure("x", "forward and backward: the same"),
    "linear_fwd_extra_mib": Figure("MiB", "most memory that a forward takes", most=16),
    "linear_both_extra_mib": Figure(
        "MiB", "most memory of forward and backward, gradients left out", most=512
    ),
    "policy_loss_eager_ratio": Figure(
        "x", "policy loss, 32,768 tokens, forward and backward: eager's time over ours", 5
    ),
    "sampler_256_us": Figure("us", "a draw from 256 rows of V fp32 logits"),
    "sampler_256_copy_frac": Figure("frac", "the same: bytes read a second over copy's"),
    "sampler_256_eager_ratio": Figure("x", "softmax, multinomial and log in torch over ours"),
    **{
        f"decode_3b_{rows}_rows{layers}_frac": Figure(
            "frac", f"decode steps of {rows} rows of 500 tokens up{what}: floor over time", must
        )
        for layers, what, must in (
            ("_unfused", ", with the layers of transformers", None), ("", "", 0.60)
        )
        for rows in (128, 256)
    },
    "norm_fwd_copy_frac": Figure(
        "frac", "residual and RMSNorm, T=8192, D=2048, forward: rate over copy's", 0.80
    ),
    "norm_bwd_copy_frac": Figure("frac", "its backward, with the weight's gradient", 0.80),
    "swiglu_fwd_copy_frac": Figure("frac", "SwiGLU, T=8192, F=11008, forward: the same", 0.80),
    "swiglu_bwd_copy_frac": Figure("frac", "its backward", 0.80),
    "rotary_fwd_copy_frac": Figure(
        "frac", "rotation of 16 queries, 2 keys of 128, T=8192, forward: the same", 0.80
    ),
    "rotary_bwd_copy_frac": Figure("frac", "its backward", 0.80),
    "adamw_copy_frac": Figure(
        "frac", "stochastic AdamW, 24 bits of gradient: rate over copy's", 0.80
    ),
    "rollout_3b_first_call_s": Figure(
        "s", "3B, 256 slots: the first call, compilation and capture of graphs included"
    ),
    "decode_3b_256_tok_s": Figure(
        "tok/s", "the second call from start to end: lengths of mean 300, at most 800"
    ),
    "decode_3b_256_roofline_frac": Figure("frac", "its decode steps: floor over time", 0.60),
    "rollout_3b_256_roofline_frac": Figure(
        "frac", "the floor of its steps over all of its time, but that of capture"
    ),
    "rollout_3b_256_decode_frac": Figure("frac", "share of its time inside decode steps", 0.80),
    "logprob_3b_mean_abs_diff_nats": Figure(
        "nats", "log-probs of the rollout against a forward in training: mean |difference|",
        most=0.02,
    ),
    "logprob_3b_p99_abs_diff_nats": Figure("nats", "99th percentile of it", most=0.15),
    "logprob_3b_mean_diff_nats": Figure("nats", "mean difference", most=2e-3),
    "mismatch_3b_kl_nats": Figure("nats", "`mismatch/kl` of the update below"),
    "engine_3b_held_gib": Figure("GiB", "KV cache and graphs of the engine"),
    "engine_3b_left_gib": Figure("GiB", "what `release()` leaves allocated of them", most=0.1),
    "update_3b_s": Figure("s", "one update on 256 samples: fp32 copies, recomputed layers"),
    "update_3b_unfused_s": Figure("s", "the same with the layers of transformers"),
    "update_3b_matmul_frac": Figure(
        "frac", "the update's products, without those computed again, a second over matmul's", 0.35
    ),
    "update_3b_tok_s": Figure("tok/s", "prompts and responses of its samples over its time"),
    "update_3b_trained_tok_s": Figure("tok/s", "response tokens alone over its time"),
    "update_3b_peak_gib": Figure("GiB", "most memory that it held"),
    "update_3b_planned_gib": Figure("GiB", "what the memory plan says of it"),
    "learn_steps": Figure("steps", "self-play on primes in bf16: steps in the two pieces"),
    "learn_resumed_step": Figure("step", "the step after which it was stopped and resumed"),
    "learn_step_s": Figure("s", "median time of a step"),
    "learn_gen_tok_s": Figure("tok/s", "median rate of its rollouts"),
    "learn_deduction_start_frac": Figure("frac", "sampled accuracy before self-play"),
    "learn_abduction_start_frac": Figure("frac", "the same"),
    "learn_induction_start_frac": Figure("frac", "the same"),
    "learn_deduction_end_frac": Figure("frac", "sampled accuracy at the last evaluation"),
    "learn_abduction_end_frac": Figure("frac", "the same"),
    "learn_induction_end_frac": Figure("frac", "the same"),
}  # fmt: skip


def stage_parser(module: str, keeps: str = "") -> argparse.ArgumentParser:
    """Returns the options of a stage's command; `keeps` says what it leaves in --folder, if any."""
    parser = argparse.ArgumentParser(prog=module)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--findings", type=Path, required=True, help="where the figures go")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, few steps")
    if keeps:
        parser.add_argument("--folder", type=Path, required=True, help=f"where {keeps}")
    return parser


class Findings:
    """Where a stage writes what it finds: a line of JSON each, at once, and a line of text."""

    def __init__(self, path: Path):
        self.path = path

    def figure(self, name: str, value: float, *, is_last: bool = True) -> None:
        """Keeps a figure of the table; KeyError for another. One that is no number is a note, and
        one that will be replaced (`is_last` False) is not printed."""
        unit = FIGURES[name].unit
        if not math.isfinite(value):
            self.note(name, f"not a number: {value}")
            return
        self._add({"figure": name, "value": value})
        if is_last:
            print(f"{name}: {value:.6g} {unit}", flush=True)

    def note(self, name: str, value: object) -> None:
        """Keeps any other JSON value."""
        self._add({"note": name, "value": value})

    def run(self, parts: Mapping[str, Callable[[], object]]) -> int:
        """Runs the parts of a stage one after the other; returns the exit code, 1 where one failed.

        One that fails is told, and the figures of the others are worth having.
        """
        failed = 0
        for name, part in parts.items():
            try:
                part()
            except Exception:
                failed = 1
                traceback.print_exc()
                self.note(f"{name} failed", traceback.format_exc(limit=-3).splitlines())
        return failed

    def _add(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")


def read_findings(path: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """({figure: value}, {note: value}) of a stage's file; a half line at its end is left out."""
    figures: dict[str, float] = {}
    notes: dict[str, Any] = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # the stage was stopped while it wrote
        if "figure" in line:
            figures[line["figure"]] = line["value"]
        else:
            notes[line["note"]] = line["value"]
    return figures, notes


def gpu_slug(name: str) -> str:
    """A folder's word for a GPU."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def open_record(path: Path, machine: dict[str, Any], is_rehearsal: bool) -> dict[str, Any]:
    """The record to go on with; ValueError where it was made on other hardware, or in rehearsal."""
    name = f"rehearsal-{slug(machine)}" if is_rehearsal else slug(machine)
    record = {"schema": SCHEMA, "slug": name, "rehearsal": is_rehearsal}
    kept: dict[str, Any] = {"stages": {}, "figures": {}}
    if path.exists():
        older = json.loads(path.read_text())
        if older.get("schema") != SCHEMA or older["slug"] != name:
            raise ValueError(
                f"{path} was made on {older.get('slug')}, this is {name}: "
                "give another RESULTS folder"
            )
        kept = {key: older[key] for key in kept}
    return record | {"hardware": machine, "versions": versions()} | kept


def add_stage(
    record: dict[str, Any], name: str, part: dict[str, Any], figures: Mapping[str, float]
) -> None:
    """Puts a stage in the place of an earlier run of it, its figures with it.

    One that did not run leaves the earlier run where it is. One that failed or was stopped takes no
    figure away that it did not come to: each says of what day and commit it is.
    """
    if part["outcome"] in NOT_RUN and name in record["stages"]:
        return
    record["stages"][name] = part
    kept = record["figures"]
    if part["outcome"] not in CUT_SHORT:
        kept = {key: value for key, value in kept.items() if value["stage"] != name}
    commit = part["commit"] or "unknown"
    new = {
        key: {
            "value": value,
            "unit": FIGURES[key].unit,
            "stage": name,
            "commit": f"{commit}-dirty" if part["dirty"] else commit,
            "date": part["date"],
        }
        for key, value in figures.items()
    }
    record["figures"] = kept | new


def save(record: dict[str, Any], results: Path) -> None:
    """Writes record.json and RECORD.md."""
    write(record, results / "record.json")
    (results / "RECORD.md").write_text(markdown(record), encoding="utf-8")


def verdict(part: Mapping[str, Any]) -> str:
    """How a stage went, in words."""
    text = OUTCOMES[part["outcome"]]
    if part.get("missing"):
        text += f" ({', '.join(part['missing'])})"
    return text if part["outcome"] in NOT_RUN else f"{text} after {part['seconds']} s"


def said(record: Mapping[str, Any], stage: str) -> list[str]:
    """The figures of a stage with their bars, and what it could not collect, a line each."""
    lines = []
    for name, found in record["figures"].items():
        if found["stage"] == stage:
            bar = ": ".join(filter(None, _bar(name, found["value"])))
            lines.append(f"{name} {found['value']:.6g} {found['unit']}" + f"  ({bar})" * bool(bar))
    notes = record["stages"][stage].get("notes", {})
    for file, module in notes.get("not collected", {}).items():
        lines.append(f"not collected, for want of {module}: {file}")
    return lines


def markdown(record: Mapping[str, Any]) -> str:
    """The record as tables: conditions, stages, figures with their bars, and what failed."""
    machine, seen = record["hardware"], record.get("torch", {})
    gpus = ", ".join(gpu["name"] for gpu in machine["gpus"]) or "no GPU"
    lines = [f"# {'Rehearsal' if record['rehearsal'] else gpus}", ""]
    if record["rehearsal"]:
        lines += [f"**{REHEARSAL}.**", ""]
    facts = {
        "GPU": gpus,
        "processor": f"{machine['cpu']}, {machine['cores']} cores",
        "system": machine["os"],
        **{key: value for gpu in machine["gpus"][:1] for key, value in gpu.items()},
        **record["versions"],
        **{key: seen[key] for key in ("cuda_version", "capability") if key in seen},
    }
    lines += _table(("condition", ""), [(k, v) for k, v in facts.items() if k != "name"])
    lines += ["## Stages", ""]
    stages = record["stages"]
    rows = [
        (name, verdict(part), str(part["commit"])[:9] + " changed" * bool(part["dirty"]),
         part["date"])
        for name, part in stages.items()
    ]  # fmt: skip
    lines += _table(("stage", "outcome", "commit", "date"), rows)
    for name in stages:
        rows = [
            (f"`{key}`", f"{_number(found['value'])} {found['unit']}", *_bar(key, found["value"]),
             FIGURES[key].what)
            for key, found in record["figures"].items()
            if found["stage"] == name
        ]  # fmt: skip
        if rows:
            lines += [f"## {name}", ""]
            lines += _table(("figure", "value", "bar", "", "what it is"), rows)
    for name, part in stages.items():
        lines += _noted(name, part)
    return "\n".join(lines)


def _noted(name: str, part: Mapping[str, Any]) -> list[str]:
    """What a stage noted, and the last lines of one that did not pass."""
    notes = {key: value for key, value in part.get("notes", {}).items() if key != "collected"}
    if part["outcome"] in ("failed", "timeout"):
        notes["last lines"] = part["tail"]
    if not notes:
        return []
    lines = [f"## {name}: notes", ""]
    for key, value in notes.items():
        if isinstance(value, dict):
            value = [f"{part}: {text}" for part, text in value.items()]
        if not isinstance(value, list):
            lines += [f"{key}: {value}", ""]
        elif value:
            lines += [f"{key}:", "", "```", *map(str, value), "```", ""]
    return lines


def _bar(name: str, value: float) -> tuple[str, str]:
    figure = FIGURES[name]
    return figure.bar, {True: "met", False: "MISSED", None: ""}[figure.met(value)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> list[str]:
    def line(cells: tuple[object, ...]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return [line(head), "|" + "---|" * len(head), *map(line, rows), ""]
