"""`python -m azr.evaluate`: how good a model is, on its task family or on a suite in a JSONL file.

    python -m azr.evaluate runs/latest                      newest checkpoint beside the start model
    python -m azr.evaluate MODEL --env prime                a model folder or hub id
    python -m azr.evaluate MODEL --suite cruxeval.jsonl     a suite: greedy and pass@k

Heavy imports come after the command line is read, so that `--help` and a wrong flag answer at once.
"""

import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from azr.config import (
    Config,
    ConfigError,
    EvalConfig,
    RolloutConfig,
    RunConfig,
    TaskConfig,
    check_process,
    load_toml,
    preset_path,
    validate,
)
from azr.errors import RunError
from azr.streams import open_standard_streams

if TYPE_CHECKING:
    from azr.evaluation.subject import Subject

EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """Evaluates a model: on every task of its family beside the model that a run started from,
    or on a suite."""

    target: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MODEL_OR_RUN")]]
    """A run directory (its newest checkpoint), a checkpoint, an HF model folder, or a hub id."""
    suite: str = ""
    """JSONL file in the layout of CRUXEval (code, input, output) or of HumanEval (prompt,
    entry_point, test)."""
    out: str = ""
    """JSON file for the result; by default it is kept with the run, or in <root>/evaluations."""
    baseline: str = ""
    """Another model to compare with, on the same tasks; for a run, by default, its start model."""
    config: str = ""
    """TOML file or preset to take options from, for a model that is of no run."""
    run: RunConfig = field(default_factory=RunConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    eval: Annotated[EvalConfig, tyro.conf.arg(name="eval")] = field(default_factory=EvalConfig)


def _parse(argv: Sequence[str], base: Config) -> Arguments:
    return tyro.cli(
        Arguments,
        args=list(argv),
        default=Arguments(
            target=tyro.MISSING,
            run=base.run,
            task=base.task,
            rollout=base.rollout,
            eval=base.eval,
        ),
        prog="python -m azr.evaluate",
        config=(tyro.conf.FlagConversionOff,),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    0 done, 1 error, 2 bad usage or options, 130 stopped by Ctrl-C.
    """
    open_standard_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        check_process()
        first = _parse(arguments, Config())  # the target says where the other options come from
        from azr.model.path import check_model_path

        check_model_path(first.target)
        with _naming_baseline():
            check_model_path(first.baseline)
        from azr.evaluation.subject import find_subject

        subject = find_subject(first.target, _warn)
        base = subject.config()
        if first.config:
            if subject.run_dir:
                raise ConfigError(f"--config {first.config}: a run has options of its own")
            loaded = load_toml(preset_path(first.config))
            base = dataclasses.replace(loaded, model=base.model)
        asked = _parse(arguments, base)
        config = dataclasses.replace(
            base, run=asked.run, task=asked.task, rollout=asked.rollout, eval=asked.eval
        )
        validate(config)
        if asked.suite and asked.baseline:
            raise ConfigError(
                f"--baseline {asked.baseline}: a suite is asked of one model; give the command "
                "once for each"
            )
        if asked.suite:
            _evaluate_suite(config, subject, Path(asked.suite), asked.out)
        else:
            _evaluate_family(config, subject, asked.baseline, asked.out)
    except ConfigError as error:
        # What loads a model calls it --model; here it is the first argument.
        print(f"azr: {str(error).replace('--model ', '')}", file=sys.stderr)
        return EXIT_USAGE
    except RunError as error:
        print(f"azr: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        _warn("interrupted; the same command goes on with a suite, and starts anew with a family")
        return EXIT_INTERRUPTED
    return 0


def _evaluate_family(config: Config, subject: "Subject", baseline: str, out: str) -> None:
    """Grades the family's tasks, prints the table and writes the result."""
    from azr.accuracy import as_metrics
    from azr.evaluation.family import accuracies, grade_tasks
    from azr.evaluation.result import make_cells
    from azr.evaluation.subject import find_subject
    from azr.evaluation.table import check_writable, print_family, write_result
    from azr.model.load import load_architecture, load_tokenizer
    from azr.start.model import build_model, make_engine, prepare_device, settle_style
    from azr.tasks import check_family, load_environment

    prepare_device(config)
    load_architecture(subject.model)
    tokenizer = load_tokenizer(subject.model)
    config, _ = settle_style(config, tokenizer)

    def at(model: str) -> Config:
        return dataclasses.replace(config, model=dataclasses.replace(config.model, path=model))

    other = find_subject(baseline, _warn) if baseline else None
    model, step = (other.model, other.step) if other else (subject.start, 0)
    other_tokenizer = None
    if model:
        with _naming_baseline():  # now, and not after hours with the first model
            load_architecture(model)
            other_tokenizer = load_tokenizer(model)
            settle_style(at(model), other_tokenizer)
    path = Path(out) if out else subject.folder(config.run.root) / f"{config.task.family}.json"
    environment = load_environment(config.task)
    environment.open()

    def graded(model: str, tokenizer, step: int):
        engine = make_engine(at(model), build_model(at(model), environment, tokenizer), tokenizer)
        return grade_tasks(at(model), environment, engine, tokenizer, step)

    try:
        check_writable(path)
        check_family(environment, config.task.types)
        after = graded(subject.model, tokenizer, subject.step)
        with _naming_baseline():
            before = graded(model, other_tokenizer, step) if model else None
        cells = make_cells(environment, after, before)
        metrics = as_metrics(accuracies(environment, after))
        metrics_before = as_metrics(accuracies(environment, before)) if before else None
    finally:
        environment.close()
    result = {
        "model": subject.model,
        "step": subject.step,
        "baseline": {"model": model, "step": step} if model else None,
        "task": dataclasses.asdict(config.task),
        "seed": config.run.seed,
        "samples": config.eval.samples,
        "metrics": metrics,
        "baseline_metrics": metrics_before,
        "cells": [dataclasses.asdict(cell) for cell in cells],
    }
    print_family(cells, subject, model)
    print(f"result          {write_result(path, _finite(result))}")


def _evaluate_suite(config: Config, subject: "Subject", suite_path: Path, out: str) -> None:
    """Samples and grades a suite, prints the table and writes the result.

    The samples are kept beside the result; the same command goes on from there.
    """
    from azr.evaluation.journal import Journal
    from azr.evaluation.suite import load_suite
    from azr.evaluation.suite_grading import LIMITS, MODULES, failing_references
    from azr.evaluation.suite_run import (
        DEFAULT_MAX_NEW_TOKENS,
        fingerprint,
        item_results,
        run_suite,
        suite_style,
    )
    from azr.evaluation.suite_table import print_suite, show_progress
    from azr.evaluation.table import check_writable, write_result
    from azr.model.load import load_model
    from azr.sandbox import Sandbox, SandboxError
    from azr.start.model import DTYPES, make_engine, prepare_device
    from azr.text import prompt_texts

    suite = load_suite(suite_path)
    device = prepare_device(config)
    model, tokenizer = load_model(subject.model, DTYPES[config.run.dtype], device)
    path = Path(out) if out else subject.folder(config.run.root) / f"{suite.name}.json"
    check_writable(path)
    style = suite_style(config.task.style, tokenizer)
    most = config.rollout.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
    rollout = dataclasses.replace(config.rollout, max_new_tokens=most)
    config = dataclasses.replace(config, rollout=rollout)
    identity = {
        "suite": suite.digest,
        "weights": fingerprint(model),
        "style": style,
        "dressing": prompt_texts(tokenizer, [""], style)[0],  # a chat template may write the date
        "seed": config.run.seed,
        **{name: getattr(rollout, name) for name in _SAMPLING},
    }
    journal = Journal(path.with_suffix(".samples.jsonl"), identity)
    engine = make_engine(config, model, tokenizer)
    try:
        with Sandbox(limits=LIMITS, modules=MODULES) as sandbox:
            failing = failing_references(sandbox, suite.items)
            results = run_suite(
                config, suite, style, engine, tokenizer, sandbox, journal, show_progress
            )
    except SandboxError as error:
        raise RunError(f"--suite needs the sandbox: {error}; see `python -m azr.doctor`") from error
    finally:
        journal.close()
    print_suite(results, subject.model, suite, failing)
    result = {
        "model": subject.model,
        "step": subject.step,
        "suite_name": suite.name,
        "layout": suite.layout,
        **identity,
        "results": [dataclasses.asdict(r) for r in results],
        "failing_references": failing,
        "items": item_results(suite, config.eval.samples, journal),
    }
    print(f"result          {write_result(path, _finite(result))}\nsamples         {journal.path}")


@contextmanager
def _naming_baseline() -> Iterator[None]:
    """Lets an error in loading a model name the flag that the baseline came by."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error).replace("--model ", "--baseline ")) from error


_SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "min_p")
"""Options of `rollout` that are part of what a suite's samples are."""


def _finite(value: Any) -> Any:
    """Returns JSON values with None in place of NaN and Inf."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _warn(message: str) -> None:
    print(f"azr: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
